#include "reference/combiner.hpp"
#include "reference/attention.hpp"
#include "support/central_differences.hpp"
#include "support/error_rule.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/combiner_cache.hpp>

// Attention through summaries of blocks, against its definition; its gradient against central differences.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::gradient_complaint;
using support::guarded;
using support::seed_t;

namespace {

struct combiner_problem {
  support::random draw;
  index_t B, N, H;
  heed::pooling pool;
  double scale;
  guarded<double, 4> query, key, value, out;
  guarded<double, 3> lse;

  combiner_problem(seed_t seed, index_t most)
      : draw(seed),
        B(draw.between(1, 2)),
        N(draw.between(1, most)),
        H(draw.one_in(2) ? 2 : 4),
        pool(draw.one_of(std::array{heed::pooling::max, heed::pooling::sum, heed::pooling::mean})),
        scale(pool == heed::pooling::sum ? 0.1 : 0.4) {
    index_t const D = draw.between(1, 5), Dv = draw.between(1, 5);
    auto const shared = [&] { return draw.one_in(2) ? H : index_t{2}; };
    query = make({B, N, H, D});
    key = make({B, N, shared(), D});
    value = make({B, N, shared(), Dv});
    out = make({B, N, H, Dv});
    lse = support::blank<double, 3>({B, H, N});
  }

  guarded<double, 4> make(support::extents_of<4> const& extents) {
    guarded<double, 4> tensor(extents, support::random_layout<4>(draw, extents, false));
    tensor.fill([&](auto const&) { return draw.normal(); });
    return tensor;
  }

  reference::pool reference_pool() const { return static_cast<reference::pool>(pool); }

  reference::combiner_result<double> defined(reference::combiner_partition const& partition) const {
    return reference::combiner(query.values<double>(), key.values<double>(), value.values<double>(),
                               scale, reference_pool(), partition);
  }

  template <class How>
  void run(How const& how) {
    heed::combiner_attention(how, std::as_const(query).view(), std::as_const(key).view(),
                             std::as_const(value).view(), out.view(), heed::scale{scale},
                             heed::lse_into{lse.view()});
  }

  template <class How>
  std::string forward(How const& how, reference::combiner_partition const& partition) {
    run(how);
    auto const exact = defined(partition);
    std::string complaint;
    if (!(support::difference(out.values<double>(), exact.out) < 1e-12)) complaint += "out\n";
    if (!(support::difference(lse.values<double>(), exact.lse) < 1e-12)) complaint += "lse\n";
    // Weights of a row sum to 1; of a key that is seen they are positive.
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t i = 0; i < N; ++i) {
          double sum = 0;
          for (index_t j = 0; j < N; ++j) sum += exact.weights(b, h, i, j);
          if (std::abs(sum - 1) > 1e-12) complaint += "weights do not sum to 1\n";
        }
    return complaint;
  }

  template <class How>
  std::string backward(How const& how, reference::combiner_partition const& partition) {
    run(how);
    auto dout = make(out.extents()), dquery = make(query.extents()), dkey = make(key.extents()),
         dvalue = make(value.extents());
    heed::combiner_attention_backward(
        how, std::as_const(query).view(), std::as_const(key).view(), std::as_const(value).view(),
        std::as_const(out).view(), std::as_const(lse).view(), std::as_const(dout).view(),
        dquery.view(), dkey.view(), dvalue.view(), heed::scale{scale});
    auto const loss = [&] {
      return reference::weighted_sum(dout.values<double>(), defined(partition).out);
    };
    return gradient_complaint(draw, "dquery", query, dquery, loss) +
           gradient_complaint(draw, "dkey", key, dkey, loss) +
           gradient_complaint(draw, "dvalue", value, dvalue, loss);
  }
};

}  // namespace

TEST_CASE("combiner: blocks", "[mechanism][combiner]") {
  for_each_seed("combiner fixed", 150, [](seed_t seed) {
    combiner_problem p(seed, 40);
    index_t const block = p.draw.between(1, p.N + 3);
    bool const causal = p.draw.one_in(2);
    return p.forward(heed::combiner_fixed{block, causal, p.pool},
                     reference::combiner_fixed(p.N, block, causal));
  });
}

TEST_CASE("combiner: the tree", "[mechanism][combiner]") {
  for_each_seed("combiner tree", 150, [](seed_t seed) {
    combiner_problem p(seed, 70);
    return p.forward(heed::combiner_log_sparse{p.pool}, reference::combiner_log_sparse());
  });
  // i = 13 meets [0, 8), [8, 12), 12 and itself.
  auto const row = reference::combiner_log_sparse()(13);
  REQUIRE(row.spans.size() == 2);
  CHECK(row.direct == std::vector<index_t>{13, 12});
  CHECK(row.spans[0].members == reference::positions(8, 12));
  CHECK(row.spans[1].members == reference::positions(0, 8));
}

TEST_CASE("combiner: gradients", "[mechanism][combiner]") {
  for_each_seed("combiner fixed backward", 25, [](seed_t seed) {
    combiner_problem p(seed, 14);
    index_t const block = p.draw.between(1, p.N + 1);
    bool const causal = p.draw.one_in(2);
    return p.backward(heed::combiner_fixed{block, causal, p.pool},
                      reference::combiner_fixed(p.N, block, causal));
  });
  for_each_seed("combiner tree backward", 25, [](seed_t seed) {
    combiner_problem p(seed, 14);
    return p.backward(heed::combiner_log_sparse{p.pool}, reference::combiner_log_sparse());
  });
}

TEST_CASE("combiner: exact where spans are single keys or there are none",
          "[mechanism][combiner]") {
  for_each_seed("combiner exact", 30, [](seed_t seed) {
    combiner_problem p(seed, 30);
    bool const causal = p.draw.one_in(2);
    reference::options whole;
    whole.scale = p.scale;
    if (causal) whole.keep = [](index_t, index_t i, index_t j) { return j <= i; };
    auto const exact = reference::attention(p.query.values<double>(), p.key.values<double>(),
                                            p.value.values<double>(), whole);
    std::string complaint;
    for (index_t block : {index_t{1}, p.N, p.N + 5}) {
      p.run(heed::combiner_fixed{block, causal, p.pool});
      if (!(support::difference(p.out.values<double>(), exact.out) < 1e-12))
        complaint += "blocks of " + std::to_string(block) + " differ\n";
    }
    return complaint;
  });
}

TEST_CASE("combiner: decoding is the whole sequence, row by row", "[mechanism][combiner]") {
  for_each_seed("combiner decode", 60, [](seed_t seed) {
    combiner_problem p(seed, 30);
    index_t const block = p.draw.between(1, 9), blocks = p.N / block;
    heed::combiner_fixed const how{block, true, p.pool};
    p.run(how);
    auto const key_shape = p.key.extents(), value_shape = p.value.extents();
    auto open_keys = p.make({p.B, block, key_shape[2], key_shape[3]}),
         open_values = p.make({p.B, block, value_shape[2], value_shape[3]}),
         keys = p.make({p.B, blocks, key_shape[2], key_shape[3]}),
         values = p.make({p.B, blocks, p.H, value_shape[3]}),
         pooled = p.make({p.B, 1, p.H, key_shape[3]}), out = p.make(p.out.extents());
    heed::combiner_cache<double> cache(
        how, heed::kv_cache<double>(open_keys.view(), open_values.view()),
        heed::kv_cache<double>(keys.view(), values.view()), pooled.view());
    for (index_t i = 0; i < p.N; ++i)
      cache.step(p.query.view().slice(1, i, 1), p.key.view().slice(1, i, 1),
                 p.value.view().slice(1, i, 1), out.view().slice(1, i, 1), heed::scale{p.scale});
    return support::difference(p.out.values<double>(), out.values<double>()) < 1e-12
               ? ""
               : "decoding differs\n";
  });
}

TEST_CASE("combiner: which summaries a row meets", "[mechanism][combiner][quick]") {
  for_each_seed("combiner patterns", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(2, 90), block = draw.between(1, 12);
    bool const causal = draw.one_in(2);
    heed::combiner_fixed const fixed{block, causal};
    heed::combiner_log_sparse const tree;
    std::string complaint;
    auto const expect = [&](bool good, char const* what) {
      if (!good && complaint.empty()) complaint = what;
    };
    auto const compare = [&](auto const& how, auto const& partition) {
      index_t const count = heed::detail::count_spans(how, rows);
      auto const pattern = how.spans(rows);
      for (index_t i = 0; i < rows; ++i) {
        std::vector<index_t> met;
        heed::detail::each_span_run(how, rows,
                                    [&](auto level, index_t first, index_t spans, index_t size) {
                                      for (index_t n = 0; n < spans; ++n)
                                        if (pattern.keep(i, level.first + first + n))
                                          met.push_back(first * level.size + n * size);
                                    });
        std::vector<index_t> expected;
        for (auto const& span : partition(i).spans) expected.push_back(span.members.front());
        expect(met == expected || met == std::vector<index_t>(expected.rbegin(), expected.rend()),
               "a row meets other summaries\n");
      }
      heed::interval tile_rows{draw.between(0, rows - 1), 0},
          tile{draw.between(0, std::max<index_t>(count - 1, 0)), 0};
      tile_rows.last = draw.between(tile_rows.first + 1, rows);
      tile.last = std::min(count, tile.first + draw.between(1, 9));
      if (tile.empty()) return;
      index_t kept = 0;
      for (index_t i = tile_rows.first; i < tile_rows.last; ++i)
        for (index_t t = tile.first; t < tile.last; ++t) kept += pattern.keep(i, t) ? 1 : 0;
      auto const cover = heed::pattern_cover(pattern, tile_rows, tile);
      expect(cover != heed::coverage::none || kept == 0, "cover() misses a pair\n");
      expect(cover != heed::coverage::all || kept == tile_rows.size() * tile.size(),
             "cover() adds a pair\n");
      for (index_t t = 0, next = 0; t < count; ++t) {
        bool some = false;
        for (index_t i = tile_rows.first; i < tile_rows.last; ++i) some |= pattern.keep(i, t);
        heed::interval const run = heed::next_run(pattern, tile_rows, next, count);
        expect(!some || (run.first <= t && t < run.last), "a summary is left out\n");
        if (!run.empty() && t + 1 >= run.last) next = run.last;
      }
    };
    compare(fixed, reference::combiner_fixed(rows, block, causal));
    compare(tree, reference::combiner_log_sparse());
    return complaint;
  });
  CHECK(heed::detail::count_spans(heed::combiner_log_sparse{}, 1000) < 1000);
}

TEST_CASE("combiner: float, half and no tokens at all", "[mechanism][combiner]") {
  combiner_problem p(21, 40);
  heed::combiner_fixed const how{5, true, p.pool};
  p.run(how);
  auto const rounded = [&]<class T>(T, guarded<double, 4> const& from) {
    auto to = support::blank<T, 4>(from.extents());
    auto const view = from.view();
    to.fill([&](auto const& at) { return T(float(view(at[0], at[1], at[2], at[3]))); });
    return to;
  };
  auto const error = [&]<class T>(T zero) {
    auto const query = rounded(zero, p.query), key = rounded(zero, p.key),
               value = rounded(zero, p.value);
    auto out = support::blank<T, 4>(p.out.extents());
    heed::combiner_attention(how, query.view(), key.view(), value.view(), out.view(),
                             heed::scale{p.scale});
    return support::difference(out.template values<double>(), p.out.values<double>());
  };
  CHECK(error(0.0f) < 1e-5);
  CHECK(error(Eigen::half(0.0f)) < 2e-2);
  auto const nothing = heed::bnhd(static_cast<float*>(nullptr), 2, 0, 2, 3);
  heed::combiner_attention(how, nothing, nothing, nothing, nothing);
}

TEST_CASE("combiner: what does not fit is refused", "[mechanism][combiner]") {
  std::vector<float> memory(1000, 7.0f);
  auto const tokens = [&](index_t n, index_t heads, index_t dim) {
    return heed::bnhd(memory.data(), 2, n, heads, dim);
  };
  auto const run = [&](heed::combiner_fixed how, auto query, auto key, auto value, auto out) {
    heed::combiner_attention(how, query, key, value, out);
  };
  CHECK_THROWS_WITH(run({0}, tokens(6, 2, 3), tokens(6, 2, 3), tokens(6, 2, 3), tokens(6, 2, 3)),
                    "heed: combiner_fixed has blocks of 0; expected at least 1");
  CHECK_THROWS_WITH(run({2}, tokens(6, 2, 3), tokens(5, 2, 3), tokens(5, 2, 3), tokens(6, 2, 3)),
                    "heed: query has shape [2, 6, 2, 3], key [2, 5, 2, 3]; expected as many "
                    "positions, each with a query and a key");
  CHECK_THROWS_AS(run({2}, tokens(6, 2, 3), tokens(6, 2, 3), tokens(5, 2, 3), tokens(6, 2, 3)),
                  heed::error);
  CHECK_THROWS_AS(run({2}, tokens(6, 2, 3), tokens(6, 2, 3), tokens(6, 2, 3), tokens(6, 2, 4)),
                  heed::error);
  CHECK(memory == std::vector<float>(1000, 7.0f));
}
