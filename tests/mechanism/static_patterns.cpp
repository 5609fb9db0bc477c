#include "reference/patterns/head_mixtures.hpp"
#include "reference/patterns/long_range.hpp"
#include "support/attention_check.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/elastic_spans.hpp>
#include <heed/mechanism/factorised.hpp>
#include <heed/mechanism/head_strides.hpp>
#include <heed/mechanism/power_attention.hpp>

// Long-range patterns and spans per head, against their definitions: pairs, tiles and counts.

using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

heed::place random_place(support::random& draw, index_t most = 70) {
  index_t const keys = draw.between(1, most);
  return {.head = draw.between(0, 5), .rows = draw.between(0, most), .keys = keys};
}

index_t triangle(index_t n) {
  return n > 0 ? n * (n + 1) / 2 : 0;
}

}  // namespace

TEST_CASE("power attention: the definition", "[mechanism][power_attention][quick]") {
  for_each_seed("power attention", 500, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    index_t const block = draw.between(1, 6), window = draw.between(1, 6),
                  sinks = draw.between(0, 3);
    return check_pattern(draw, heed::power_of_two_keys, where, reference::power_of_two_keys,
                         {.exact_tiles = true, .exact_keys = true}) +
           check_pattern(draw, heed::power_attention(block, window, sinks), where,
                         [=](index_t p, index_t j) {
                           return reference::power_attention(p, j, block, window, sinks);
                         });
  });
}

TEST_CASE("power attention: work and identities", "[mechanism][power_attention][quick]") {
  CHECK(heed::kept_pairs(heed::power_of_two_keys, 16, 16) == 65);
  for (index_t n = 2; n < 200; ++n) {
    index_t e = 0;
    while ((index_t{2} << e) <= n - 1) ++e;
    CHECK(heed::kept_pairs(heed::power_of_two_keys, n, n) ==
          n + (e + 1) * n - ((index_t{2} << e) - 1));
    CHECK(heed::kept_pairs(heed::power_attention(1, 1, 0), n, n) ==
          heed::kept_pairs(heed::power_of_two_keys, n, n));
  }
  index_t const block = 8, blocks = 24;
  index_t work = 0;
  for (index_t m = 0; m < blocks; ++m) {
    index_t seen = 0;
    for (index_t earlier = 0; earlier < m; ++earlier)
      seen += reference::power_attention(m, earlier, 1, 5, 1) ? 1 : 0;
    work += triangle(block) + block * block * seen;
  }
  CHECK(heed::kept_pairs(heed::power_attention(block), block * blocks, block * blocks) == work);
  CHECK(heed::kept_pairs(heed::power_attention(block, blocks, 0), block * blocks, block * blocks) ==
        triangle(block * blocks));
  for (index_t i = 1; i < 300; ++i) {
    index_t row = 0;
    for (index_t j = 0; j < 300; ++j) row += heed::power_of_two_keys.keep(i, j) ? 1 : 0;
    CHECK(row == 2 + static_cast<index_t>(std::floor(std::log2(double(i)))));
  }
}

TEST_CASE("factorised attention: the definition", "[mechanism][factorised][quick]") {
  for_each_seed("factorised", 500, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    index_t const length = draw.between(1, 12), count = draw.between(1, length),
                  variants = draw.between(1, length / count);
    return check_pattern(
               draw, heed::factorised_local(length), where,
               [=](index_t p, index_t j) { return reference::factorised_local(p, j, length); },
               {.exact_tiles = true}) +
           check_pattern(
               draw, heed::factorised_strided(length), where,
               [=](index_t p, index_t j) { return reference::factorised_strided(p, j, length); },
               {.exact_tiles = true}) +
           check_pattern(draw, heed::summary_places{length, count, variants}, where,
                         [=](index_t, index_t j) {
                           return reference::summary_place(j, length, count, variants, where.head);
                         },
                         {.exact_tiles = true, .exact_keys = true}) +
           check_pattern(draw, heed::factorised_fixed({length, count, variants}), where,
                         [=](index_t p, index_t j) {
                           return reference::factorised_fixed(p, j, length, count, variants,
                                                              where.head);
                         });
  });
}

TEST_CASE("factorised attention: work and identities", "[mechanism][factorised][quick]") {
  for (index_t l = 1; l < 9; ++l)
    for (index_t n = 1; n < 50; ++n) {
      index_t const a = n / l, b = n % l;
      index_t const far = l * triangle(a) + b * (a + 1);
      CHECK(heed::kept_pairs(heed::factorised_strided(l), n, n) == far);
      CHECK(heed::kept_pairs(heed::factorised_local(l) | heed::factorised_strided(l), n, n) ==
            heed::kept_pairs(heed::factorised_local(l), n, n) + far - n);
      for (index_t c = 1; c <= l && b == 0; ++c)
        CHECK(heed::kept_pairs(heed::factorised_fixed({l, c}), n, n) ==
              c * l * a * (a - 1) / 2 + a * triangle(l));
      CHECK(heed::kept_pairs(heed::factorised_local(n), n, n) == triangle(n));
      CHECK(heed::kept_pairs(heed::factorised_fixed({n}), n, n) == triangle(n));
    }
  // The summary places of l / c heads tile the keys.
  heed::summary_places const places{12, 3, 4};
  for (index_t j = 0; j < 50; ++j) {
    int heads = 0;
    for (index_t h = 0; h < 4; ++h) heads += heed::bind_at(places, {.head = h}).keep(0, j) ? 1 : 0;
    CHECK(heads == 1);
  }
  CHECK_THROWS_WITH(heed::check_against(heed::summary_places{8, 3, 3}, heed::call_shape{}),
                    "heed: summary_places has 3 variants of 3 places in blocks of 8; expected at "
                    "least 1 of each, and room for all");
}

TEST_CASE("head-wise strides: the definition", "[mechanism][head_strides][quick]") {
  for_each_seed("head strides", 500, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    index_t const stride = draw.between(1, 6);
    std::string complaint =
        check_pattern(
            draw, heed::head_strides{stride}, where,
            [=](index_t, index_t j) { return reference::head_strides(j, stride, where.head); },
            {.exact_tiles = true, .exact_keys = true}) +
        check_pattern(draw, heed::head_parts{stride}, where, [=](index_t, index_t j) {
          return reference::head_parts(j, where.keys, stride, where.head);
        });
    index_t const share = where.head % stride < where.keys
                              ? (where.keys - where.head % stride + stride - 1) / stride
                              : 0;
    if (heed::kept_pairs(heed::head_strides{stride}, where) != where.rows * share)
      complaint += "the work of a head is not its share\n";
    // The packed keys that a head meets are its own, in order.
    heed::packed_head_strides const packed{where.keys, stride};
    heed::place packed_place = where;
    packed_place.keys = packed.rows();
    auto const bound = heed::bind_at(packed, packed_place);
    for (index_t t = 0; t < packed.rows(); ++t) {
      index_t const key = where.head % stride + t * stride;
      if (bound.keep(0, t) != (key < where.keys)) complaint += "a packed head keeps a wrong row\n";
    }
    return complaint;
  });
  CHECK(heed::kept_pairs(heed::head_strides{1}, 7, 9) == 63);
  std::vector<float> const all{0, 1, 2, 3, 4, 5, 6};  // [1, 7, 1, 1]
  std::vector<float> packed(9, -1.0f);                // [1, 3, 3, 1]
  heed::pack_head_strides(heed::bnhd(all.data(), 1, 7, 1, 1), 3,
                          heed::bnhd(packed.data(), 1, 3, 3, 1));
  CHECK(packed == std::vector<float>{0, 1, 2, 3, 4, 5, 6, 0, 0});
  CHECK_THROWS_WITH(
      heed::pack_head_strides(heed::bnhd(all.data(), 1, 7, 1, 1), 4,
                              heed::bnhd(packed.data(), 1, 3, 3, 1)),
      "heed: packed heads have shape [1, 3, 3, 1], all of them [1, 7, 1, 1]; expected "
      "ceil(keys / stride) positions and a multiple of the heads");
}

TEST_CASE("elastic spans: the rule", "[mechanism][elastic_spans][quick]") {
  auto const span = [](double alpha, double beta, index_t n) {
    heed::streaming const s = heed::elastic_span(alpha, beta, n);
    CHECK(s.sinks == 64);
    return s.sinks + s.recent;
  };
  CHECK(span(0, 0.1, 9216) == 960);
  CHECK(span(2048, 0, 9216) == 2048);
  CHECK(span(0, 0, 9216) == 128);
  CHECK(span(1e9, 1, 1000) == 1024);
  support::random draw(1);
  for (int n = 0; n < 1000; ++n) {
    double const alpha = draw.uniform(-100, 3000), beta = draw.uniform(0, 1.2);
    index_t const length = draw.between(1, 20000);
    auto const expected = reference::elastic_span(alpha, beta, length);
    auto const got = heed::elastic_span(alpha, beta, length);
    CHECK(got.sinks == expected.sinks);
    CHECK(got.recent == expected.recent);
    if (alpha >= 0 && beta >= 1)  // causal
      CHECK(heed::kept_pairs(got, length, length) == triangle(length));
  }
  double const alpha[] = {0, 2048}, beta[] = {0.1, 0};
  index_t sinks[2], recent[2];
  heed::elastic_spans(heed::tensor_view<double const, 1>(alpha, {2}),
                      heed::tensor_view<double const, 1>(beta, {2}), 9216,
                      heed::tensor_view<index_t, 2>(sinks, {1, 2}),
                      heed::tensor_view<index_t, 2>(recent, {1, 2}));
  CHECK(recent[0] == 896);
  CHECK(recent[1] == 1984);
}

TEST_CASE("elastic spans: the form in blocks", "[mechanism][elastic_spans][quick]") {
  for_each_seed("elastic spans", 40, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw, 500);
    heed::streaming const span{64, 64 * draw.between(1, 5)};
    reference::span const same{span.sinks, span.recent};
    auto const blocks = heed::elastic_span_in_blocks(span);
    std::string complaint = check_pattern(draw, blocks, where, [=](index_t p, index_t j) {
      return reference::elastic_span_in_blocks(p, j, same);
    });
    for (index_t p = 0; p < 500; ++p)
      for (index_t j = 0; j < 500; ++j) {
        if (blocks.keep(p, j) && !span.keep(p, j)) complaint = "blocks are wider than tokens\n";
        if (p % 64 == 63 && blocks.keep(p, j) != span.keep(p, j))
          complaint = "the last row of a block differs\n";
      }
    return complaint;
  });
}

TEST_CASE("long-range patterns: the engine", "[mechanism][engine]") {
  for_each_seed("long-range attention", 24, [](seed_t seed) {
    support::random draw(seed);
    index_t const M = draw.between(20, 200), rows = draw.between(1, M), block = draw.between(1, 16),
                  length = draw.between(2, 20), count = draw.between(1, length / 2),
                  stride = draw.between(1, 5);
    heed::streaming const span{64, 64};
    auto const complaint = [&](heed::any_pattern const& pattern, auto keep) {
      return support::attention_complaint(
          seed, {.pattern = pattern, .keep = keep, .rows = rows, .keys = M, .heads = 4});
    };
    switch (seed % 6) {
      case 0:
        return complaint(heed::power_of_two_keys, [](index_t, index_t, index_t p, index_t j) {
          return reference::power_of_two_keys(p, j);
        });
      case 1:
        return complaint(heed::power_attention(block), [=](index_t, index_t, index_t p, index_t j) {
          return reference::power_attention(p, j, block, 5, 1);
        });
      case 2:
        return complaint(heed::factorised_local(length) | heed::factorised_strided(length),
                         [=](index_t, index_t, index_t p, index_t j) {
                           return reference::factorised_local(p, j, length) ||
                                  reference::factorised_strided(p, j, length);
                         });
      case 3:
        return complaint(heed::factorised_fixed({length, count, 2}),
                         [=](index_t, index_t h, index_t p, index_t j) {
                           return reference::factorised_fixed(p, j, length, count, 2, h);
                         });
      case 4:
        return complaint(heed::elastic_span_in_blocks(span),
                         [=](index_t, index_t, index_t p, index_t j) {
                           return reference::elastic_span_in_blocks(p, j, {64, 64});
                         });
      default:
        return complaint(heed::head_strides{stride},
                         [=](index_t, index_t h, index_t, index_t j) {
                           return reference::head_strides(j, stride, h % stride);
                         }) +
               complaint(heed::head_parts{stride}, [=](index_t, index_t h, index_t, index_t j) {
                 return reference::head_parts(j, M, stride, h);
               });
    }
  });
}

TEST_CASE("head-wise strides: packed keys are the same attention", "[mechanism][head_strides]") {
  for_each_seed("packed head strides", 20, [](seed_t seed) {
    support::random draw(seed);
    index_t const M = draw.between(1, 40), stride = draw.between(1, 6);
    heed::packed_head_strides const share{M, stride};
    auto const query = support::normal(draw, {2, 3, 4, 5}),
               key = support::normal(draw, {2, M, 2, 5}),
               value = support::normal(draw, {2, M, 2, 6});
    auto packed_key = support::blank<float, 4>({2, share.rows(), 4, 5}),
         packed_value = support::blank<float, 4>({2, share.rows(), 4, 6});
    heed::pack_head_strides(key.view(), stride, packed_key.view());
    heed::pack_head_strides(value.view(), stride, packed_value.view());
    auto const got = support::attend(query.view(), std::as_const(packed_key).view(),
                                     std::as_const(packed_value).view(), heed::any_pattern(share));
    auto const expected = support::attend(query.view(), key.view(), value.view(),
                                          heed::any_pattern(heed::head_strides{stride}));
    return support::difference(got.out, expected.out) < 4e-6 ? "" : "packed heads differ\n";
  });
}
