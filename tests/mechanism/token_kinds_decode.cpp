#include "support/identity.hpp"

#include <heed/mechanism/faithful_maps.hpp>
#include <heed/mechanism/isolation.hpp>
#include <heed/mechanism/sentinel_tokens.hpp>
#include <heed/mechanism/text_queries.hpp>
#include <heed/mechanism/token_types.hpp>

#include <memory>

// Caches that forget, step by step, against the pattern over all that was; and calls with fewer rows.

using heed::index_t;
using heed::marker;
using heed::token_type;
using support::blank;
using support::for_each_seed;
using support::seed_t;

namespace {

double step_difference(support::attended<float> const& step, support::attended<float> const& whole,
                       index_t row) {
  double error = 0;
  for (index_t b = 0; b < whole.out.extent(0); ++b)
    for (index_t h = 0; h < whole.out.extent(2); ++h)
      for (index_t d = 0; d < whole.out.extent(3); ++d)
        error = std::max(error, double(std::abs(step.out(b, 0, h, d) - whole.out(b, row, h, d))));
  return error;
}

}  // namespace

TEST_CASE("decoding with token types forgets what has no use", "[mechanism][quick]") {
  for_each_seed("decoding with token types", 20, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = 2, N = draw.between(2, 50), H = 4, Hkv = 2, D = 4,
                  window = draw.between(0, 6);
    support::operands given(N, N, H, Hkv, D, B);
    std::vector<token_type> types(static_cast<std::size_t>(B * Hkv * N));
    for (auto& type : types)
      type = draw.one_in(6)   ? token_type::global
             : draw.one_in(2) ? token_type::local
                              : token_type::sliding;
    // The last token ends the locals of a whole sequence only; decoding does not know it is the last.
    heed::tensor_view<token_type const, 3> const view(types.data(), {B, Hkv, N});
    heed::token_types const lives(view, window, H / Hkv);
    auto const whole = given(lives.pattern());

    auto key_memory = blank<float, 4>({B, N, Hkv, D}),
         value_memory = blank<float, 4>({B, N, Hkv, D});
    heed::evicting_cache cache(key_memory.view(), value_memory.view());
    double error = 0;
    std::string complaint;
    for (index_t i = 0; i < N; ++i) {
      heed::append_typed(
          cache, given.key.view().slice(1, i, 1), given.value.view().slice(1, i, 1),
          heed::tensor_view<token_type const, 2>(&view(0, 0, i), {B, Hkv}, {Hkv * N, N}), window);
      auto const step = support::attend(given.query.view().slice(1, i, 1), cache.keys(),
                                        cache.values(), cache.filled(H));
      error = std::max(error, step_difference(step, whole, i));
      for (index_t b = 0; b < B; ++b)
        for (index_t h = 0; h < Hkv; ++h) {
          index_t met = 0;
          for (index_t j = 0; j <= i; ++j) met += lives.ends()(b, h, j) > i;
          if (static_cast<index_t>(cache.positions(b, h).size()) != met)
            complaint += "the cache keeps more than the query meets\n";
        }
    }
    if (error > support::rounding) complaint += "a step is off by " + std::to_string(error) + "\n";
    return complaint;
  });

  std::vector<float> memory(100);
  auto const view = heed::bnhd(memory.data(), 1, 2, 2, 3);
  heed::evicting_cache cache(view, view);
  token_type const types[2] = {};
  CHECK_THROWS_WITH(heed::append_typed(cache, view, view,
                                       heed::tensor_view<token_type const, 2>(types, {1, 2}), 1),
                    "heed: append_typed is given keys of shape [1, 2, 2, 3] and types of shape [1, "
                    "2]; expected one "
                    "position, and a type for each batch entry and key head");
}

TEST_CASE("decoding with spans keeps closing markers", "[mechanism][quick]") {
  for_each_seed("decoding with spans", 20, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = 2, N = draw.between(2, 50), H = 2, Hkv = 1, D = 4;
    support::operands given(N, N, H, Hkv, D, B);
    // Spans that are all closed in the end, as far as there is room.
    std::vector<std::vector<marker>> markers(2);
    for (auto& list : markers) {
      index_t open = 0;
      for (index_t i = 0; i < N; ++i) {
        bool const must_close = open >= N - i;
        marker mark = marker::none;
        if (must_close || (open > 0 && draw.one_in(5)))
          mark = marker::close;
        else if (open + 1 < N - i && draw.one_in(5))
          mark = marker::open;
        open += mark == marker::open ? 1 : mark == marker::close ? -1 : 0;
        list.push_back(mark);
      }
    }
    heed::sentinel_tokens const first(markers[0]), second(markers[1]);
    std::vector const patterns{first.pattern(), second.pattern()};
    auto const whole = given(heed::by_sequence<decltype(first.pattern())>{patterns});

    auto key_memory = blank<float, 4>({B, N + 1, Hkv, D}),
         value_memory = blank<float, 4>({B, N + 1, Hkv, D});
    heed::sentinel_cache<float> cache(key_memory.view(), value_memory.view());
    double error = 0;
    std::string complaint;
    for (index_t i = 0; i < N; ++i) {
      std::vector<marker> const now{markers[0][static_cast<std::size_t>(i)],
                                    markers[1][static_cast<std::size_t>(i)]};
      cache.append(given.key.view().slice(1, i, 1), given.value.view().slice(1, i, 1), now);
      auto const step = support::attend(given.query.view().slice(1, i, 1), cache.keys(),
                                        cache.values(), cache.pattern());
      error = std::max(error, step_difference(step, whole, i));
    }
    if (error > support::rounding) complaint += "a step is off by " + std::to_string(error) + "\n";
    // Both sequences are closed: one more token, and only what is outside and closing markers are left.
    cache.append(given.key.view().slice(1, 0, 1), given.value.view().slice(1, 0, 1),
                 std::vector<marker>(2, marker::none));
    index_t most = 0;
    for (auto const& list : markers) {
      index_t kept = 1, open = 0;
      for (marker mark : list) {
        if (mark == marker::open) ++open;
        if (mark == marker::close) --open;
        kept += mark == marker::close || (open == 0 && mark == marker::none);
      }
      most = std::max(most, kept);
    }
    if (cache.keys().extent(1) != most) complaint += "the cache keeps more than it needs\n";
    return complaint;
  });

  std::vector<float> memory(100);
  auto const view = heed::bnhd(memory.data(), 1, 4, 2, 3);
  heed::sentinel_cache<float> cache(view, view);
  std::vector<marker> const close{marker::close}, two{marker::none, marker::none};
  CHECK_THROWS_WITH(cache.append(view.slice(1, 0, 1), view.slice(1, 0, 1), close),
                    "heed: batch entry 0 closes a span at position 0 that was not opened");
  CHECK_THROWS_WITH(
      cache.append(view.slice(1, 0, 1), view.slice(1, 0, 1), two),
      "heed: a sentinel cache is given keys of shape [1, 1, 2, 3] and 2 markers; expected one "
      "position, and a marker for each of 1 batch entries");
}

TEST_CASE("rows of visual tokens are left out", "[mechanism][quick]") {
  index_t const N = 60, D = 8;
  support::operands given(N, N, 2, 2, D);
  auto const visual = std::make_unique<bool[]>(static_cast<std::size_t>(N));
  for (index_t i = 0; i < N; ++i) visual[static_cast<std::size_t>(i)] = given.draw.one_in(2);
  auto const whole =
      given(heed::text_queries(heed::tensor_view<bool const, 3>(visual.get(), {1, 1, N})));
  auto const rows = heed::text_positions({visual.get(), static_cast<std::size_t>(N)});
  auto const count = static_cast<index_t>(rows.size());
  auto queries = blank<float, 4>({1, count, 2, D});
  heed::gather_rows(given.query.view(), rows, queries.view());
  auto const some = support::attend(
      queries.view(), given.key.view(), given.value.view(), heed::causal{},
      heed::query_positions{heed::tensor_view<index_t const, 2>(rows.data(), {1, count})});
  double error = 0;
  for (index_t n = 0; n < count; ++n)
    for (index_t d = 0; d < D; ++d)
      error =
          std::max(error, double(std::abs(some.out(0, n, 1, d) -
                                          whole.out(0, rows[static_cast<std::size_t>(n)], 1, d))));
  CHECK(error < support::rounding);
}

TEST_CASE("the scores of references have a weight of their own", "[mechanism][quick]") {
  index_t const P = 20, D = 8;
  support::operands given(P, 2 * P, 1, 1, D);
  std::vector<std::uint64_t> const regions(static_cast<std::size_t>(P), 1);
  auto const all = std::make_unique<bool[]>(static_cast<std::size_t>(P));
  std::fill_n(all.get(), P, true);
  std::vector<std::span<bool const>> const references{{all.get(), static_cast<std::size_t>(P)}};
  heed::isolation const plan(regions, references);
  std::vector<float> weights(static_cast<std::size_t>(2 * P));
  std::fill_n(weights.begin(), P, 0.75f);
  auto const as_bias =
      given(plan.pattern(),
            heed::bias(heed::tensor_view<float const, 4>(weights.data(), {1, 1, 1, 2 * P})));
  CHECK(support::same(given(plan.pattern(), heed::reference_weight{P, 0.75}), as_bias));
  CHECK(support::same(given(plan.pattern(), heed::reference_weight{P}), given(plan.pattern())));
}

TEST_CASE("soft masks and their gradients", "[mechanism][quick]") {
  // The loss is a weighted sum of what comes out; central differences say how it moves with m.
  index_t const B = 2, N = 7, D = 4;
  support::random draw(3);
  auto query = support::normal<double>(draw, {B, N, 1, D}),
       key = support::normal<double>(draw, {B, N, 1, D}),
       value = support::normal<double>(draw, {B, N, 1, D}),
       dout = support::normal<double>(draw, {B, N, 1, D});
  std::vector<double> m(B * N), numbers(m), dnumbers(m), dm(m);
  for (double& each : m) each = draw.uniform(0.05, 1);
  heed::tensor_view<double, 2> const m_view(m.data(), {B, N});
  heed::tensor_view<double, 4> const bias_view(numbers.data(), {B, 1, 1, N}),
      dbias_view(dnumbers.data(), {B, 1, 1, N});
  auto const attend = [&] {
    heed::soft_mask(m_view, bias_view);
    return support::attend(query.view(), key.view(), value.view(), heed::bias(bias_view));
  };
  auto const loss = [&] {
    auto const result = attend();
    double sum = 0;
    for (index_t b = 0; b < B; ++b)
      for (index_t i = 0; i < N; ++i)
        for (index_t d = 0; d < D; ++d) sum += result.out(b, i, 0, d) * dout.view()(b, i, 0, d);
    return sum;
  };
  std::vector<double> const no_dlse(B * N);
  loss();
  support::attend_backward<double>(query.view(), key.view(), value.view(), dout.view(),
                                   heed::tensor_view<double const, 3>(no_dlse.data(), {B, 1, N}),
                                   heed::bias(bias_view, dbias_view));
  heed::soft_mask_backward(m_view, dbias_view, heed::tensor_view<double, 2>(dm.data(), {B, N}));
  for (std::size_t n = 0; n < m.size(); ++n) {
    double const original = m[n], step = 1e-6;
    m[n] = original + step;
    double const above = loss();
    m[n] = original - step;
    CHECK((above - loss()) / (2 * step) == Approx(dm[n]).margin(1e-7));
    m[n] = original;
  }

  // With m of 0 and 1 it is the hard form, up to weights of 1e-10.
  bool kept[B * N];
  for (std::size_t n = 0; n < m.size(); ++n) {
    kept[n] = n % 7 == 0 || draw.one_in(2);
    m[n] = kept[n];
  }
  auto const hard =
      support::attend(query.view(), key.view(), value.view(),
                      heed::faithful_patches(heed::tensor_view<bool const, 3>(kept, {B, 1, N}), 1));
  CHECK(support::difference(attend().out, hard.out) < 1e-7);

  CHECK_THROWS_WITH(
      heed::soft_mask(m_view, heed::tensor_view<double, 4>(numbers.data(), {1, 1, 2, 7})),
      "heed: the numbers of a soft mask have shape [1, 1, 2, 7]; expected [2, 1, 1, 7] "
      "(batch, 1, 1, key)");
}
