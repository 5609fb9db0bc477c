#include "reference/patterns/windows.hpp"
#include "support/attention_check.hpp"
#include "support/pattern_check.hpp"

#include <heed/sliding_window.hpp>

#include <functional>
#include <string>
#include <vector>

// Windows, prefixes, sinks, global tokens and dilation against their definitions.

using heed::index_t;
using heed::interval;
using heed::kept_pairs;
using heed::place;
using support::for_each_seed;
using support::seed_t;

namespace {

place random_place(support::random& draw) {
  return {.rows = draw.between(0, 60), .keys = draw.between(1, 60)};
}

index_t random_reach(support::random& draw) {
  return draw.one_in(4) ? heed::unbounded : draw.between(0, 30);
}

constexpr support::pattern_claims exact{.exact_tiles = true, .exact_keys = true};

/// Whether two patterns keep the same pairs among a few positions and keys.
template <class A, class B>
bool same_pairs(A const& a, B const& b, index_t rows, index_t keys) {
  auto const at = place{.rows = rows, .keys = keys};
  auto const x = heed::bind_at(a, at);
  auto const y = heed::bind_at(b, at);
  bool same = kept_pairs(a, rows, keys) == kept_pairs(b, rows, keys);
  for (index_t p = keys - rows; p < keys; ++p)
    for (index_t j = 0; j < keys; ++j) same &= x.keep(p, j) == y.keep(p, j);
  return same;
}

}  // namespace

TEST_CASE("a prefix, sinks, global tokens and dilation are what they are defined as",
          "[mechanism][quick]") {
  for_each_seed("windows", 1000, [](seed_t seed) {
    support::random draw(seed);
    place const where = random_place(draw);
    index_t const some = draw.between(0, where.keys + 3), reach = draw.between(0, 20);
    index_t const left = random_reach(draw), right = random_reach(draw);
    index_t const step = draw.between(1, draw.one_in(2) ? 4 : 40);
    index_t const recent = draw.one_in(8) ? heed::unbounded : draw.between(1, 30);
    auto const check = [&](char const* name, auto const& pattern, auto keep,
                           support::pattern_claims claims = exact) {
      std::string const complaint = check_pattern(draw, pattern, where, keep, claims);
      return complaint.empty() ? "" : name + (": " + complaint);
    };
    return check("prefix_lm", heed::prefix_lm(some),
                 [=](index_t p, index_t j) { return reference::prefix_lm(some, p, j); }) +
           check("streaming", heed::streaming{some, recent},
                 [=](index_t p, index_t j) { return reference::streaming(some, recent, p, j); }) +
           check(
               "global_tokens", heed::global_tokens{some, reach},
               [=](index_t p, index_t j) { return reference::global_tokens(some, reach, p, j); }) +
           check("causal global_tokens", heed::global_tokens{some, reach} & heed::causal{},
                 [=](index_t p, index_t j) {
                   return reference::global_tokens(some, reach, p, j) && j <= p;
                 },
                 {}) +
           check(
               "dilated_window", heed::dilated_window{left, right, step},
               [=](index_t p, index_t j) { return reference::dilated(left, right, step, p, j); }) +
           check("strided", heed::strided(step), [=](index_t p, index_t j) {
             return reference::dilated(reference::infinite, 0, step, p, j);
           });
  });
}

TEST_CASE("pairs of windows in the closed forms of their definitions", "[mechanism][quick]") {
  for_each_seed("pairs of windows", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(0, 400), M = draw.between(0, 400);
    index_t const left = random_reach(draw), right = random_reach(draw);
    index_t const reach = draw.between(0, 450), recent = draw.between(1, 450);
    index_t const some = draw.between(0, N), step = draw.between(1, 50);
    std::string complaint;
    auto const expect = [&](char const* what, index_t got, index_t expected) {
      if (got != expected)
        complaint += std::string(what) + ": " + std::to_string(got) + ", not " +
                     std::to_string(expected) + "\n";
    };
    heed::sliding_window const window{left, right};
    heed::streaming const streaming{some, recent};
    expect("window", kept_pairs(window, N, M), reference::band_pairs(left, right, N, M));
    expect("causal", kept_pairs(heed::causal{}, N, M), reference::causal_pairs(N, M));
    expect("square window", kept_pairs(heed::sliding_window{reach, reach}, N, N),
           reference::square_window_pairs(reach, N));
    if (recent <= N)
      expect("causal window", kept_pairs(heed::sliding_window{recent - 1, 0}, N, N),
             recent * N - recent * (recent - 1) / 2);
    expect("prefix_lm", kept_pairs(heed::prefix_lm(some), N, N),
           reference::prefix_lm_pairs(some, N));
    expect("streaming", kept_pairs(streaming, N, M),
           reference::streaming_pairs(some, recent, N, M));
    expect("global_tokens", kept_pairs(heed::global_tokens{some, reach}, N, N),
           reference::global_tokens_pairs(some, reach, N));
    expect("strided", kept_pairs(heed::strided(step), N, N), reference::strided_pairs(step, N));
    // The same pairs, key by key.
    auto const by_keys = [&](auto seen) { return reference::pairs_by_keys(M, seen); };
    expect("window by keys", kept_pairs(window, N, M),
           by_keys([&](index_t j) { return reference::seen_by_band(left, right, j, N, M); }));
    expect("prefix_lm by keys", kept_pairs(heed::prefix_lm(some), N, M),
           by_keys([&](index_t j) { return reference::seen_by_prefix_lm(some, j, N, M); }));
    expect("streaming by keys", kept_pairs(streaming, N, M),
           by_keys([&](index_t j) { return reference::seen_by_streaming(some, recent, j, N, M); }));
    return complaint;
  });
}

TEST_CASE("windows of any size are counted", "[mechanism][quick]") {
  index_t const n = index_t{1} << 26, far = index_t{1} << 60;
  CHECK(kept_pairs(heed::dense{}, n, n) == n * n);
  CHECK(kept_pairs(heed::causal{}, n, n) == n * (n + 1) / 2);
  CHECK(kept_pairs(heed::sliding_window{far, 0}, n, n) == n * (n + 1) / 2);
  CHECK(kept_pairs(heed::sliding_window{far, far}, n, n) == n * n);
  CHECK(kept_pairs(heed::streaming{4, 1020}, n, n) == reference::streaming_pairs(4, 1020, n, n));
  CHECK(kept_pairs(heed::streaming{far, 1}, n, n) == n * (n + 1) / 2);
  // An unbounded reach of 2 M + 1 keys: 100 taps on each side.
  CHECK(kept_pairs(heed::dilated_window{100 * 64, 100 * 64, 64}, 1, 1 << 20) == 101);
}

TEST_CASE("identities of windows", "[mechanism][quick]") {
  for (index_t N : {1, 2, 17, 40})
    for (index_t M : {1, 2, 17, 40}) {
      CAPTURE(N, M);
      index_t const most = std::max(M, N);
      heed::causal const causal;
      CHECK(same_pairs(heed::sliding_window{.left = M + N, .right = 0}, causal, N, M));
      CHECK(same_pairs(heed::sliding_window{.left = most, .right = most}, heed::dense{}, N, M));
      CHECK(same_pairs(heed::streaming{0, 5}, heed::sliding_window{.left = 4, .right = 0}, N, M));
      CHECK(same_pairs(heed::streaming{3, most}, causal, N, M));
      CHECK(same_pairs(heed::streaming{most, 1}, causal, N, M));
      CHECK(same_pairs(heed::streaming{3}, causal, N, M));
      CHECK(same_pairs(heed::prefix_lm(M), heed::dense{}, N, M));
      CHECK(same_pairs(heed::prefix_lm(M + 5), heed::dense{}, N, M));
      CHECK(same_pairs(heed::dilated_window{5, 3, 1}, heed::sliding_window{5, 3}, N, M));
      CHECK(same_pairs(heed::strided(1), causal, N, M));
      CHECK(same_pairs(heed::streaming{3, 6},
                       causal & (heed::first_keys{3} | heed::sliding_window{.left = 5}), N, M));
      if (N != M) continue;
      CHECK(kept_pairs(heed::sliding_window{0, 0}, N, N) == N);
      CHECK(same_pairs(heed::prefix_lm(0), causal, N, N));
      CHECK(same_pairs(heed::prefix_lm(1), causal, N, N));
      CHECK(same_pairs(heed::global_tokens{0, 4}, heed::sliding_window{4, 4}, N, N));
      CHECK(same_pairs(heed::global_tokens{N, 0}, heed::dense{}, N, N));
    }
  // Alignments agree only where there are as many rows as keys: the first of 3 rows, at key 0 or at key 2.
  CHECK(kept_pairs(heed::causal{}, 3, 5) == 3 + 4 + 5);
  CHECK(kept_pairs(heed::causal{}, 5, 3) == 0 + 0 + 1 + 2 + 3);
  CHECK(kept_pairs(heed::causal{}, 1, 5) == 5);
}

TEST_CASE("dilated windows of known numbers of taps", "[mechanism][quick]") {
  for (index_t reach : {0, 1, 6, 7})
    for (index_t step : {1, 2, 3, 7, 8}) {
      heed::dilated_window const window{reach, reach, step};
      index_t taps = 0;
      for (index_t j = 0; j < 100; ++j) taps += window.keep(50, j);
      CHECK(taps == 2 * (reach / step) + 1);
    }
}

TEST_CASE("streaming heads and full heads side by side", "[mechanism][quick]") {
  std::vector<index_t> const sinks{4, 0, 2}, recent{8, heed::unbounded, 1, 16, 3, 5};
  heed::streaming_heads const pattern{{sinks, {1, 3}}, {recent, {2, 3}}};
  heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 3, .rows = 30, .keys = 40};
  REQUIRE_NOTHROW(pattern.check(shape));
  support::random draw(1);
  index_t sum = 0;
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 3; ++h) {
      index_t const s = sinks[static_cast<std::size_t>(h)];
      index_t const w = recent[static_cast<std::size_t>(3 * b + h)];
      place const where{.sequence = b, .batch = b, .head = h, .rows = 30, .keys = 40};
      auto const keep = [=](index_t p, index_t j) { return reference::streaming(s, w, p, j); };
      CHECK(check_pattern(draw, pattern, where, keep, exact) == "");
      sum += support::count_pairs(30, 40, keep);
    }
  CHECK(kept_pairs(pattern, shape) == sum);
}

TEST_CASE("prefixes of several sequences", "[mechanism][quick]") {
  std::vector<index_t> const prefixes{3, 0, 9};
  auto const pattern = heed::prefix_lm(prefixes);
  support::random draw(1);
  for (index_t b = 0; b < 3; ++b) {
    index_t const prefix = prefixes[static_cast<std::size_t>(b)];
    CHECK(check_pattern(
              draw, pattern, {.sequence = b, .batch = b, .rows = 9, .keys = 9},
              [=](index_t p, index_t j) { return reference::prefix_lm(prefix, p, j); },
              exact) == "");
  }
  CHECK_THROWS_WITH(check_against(pattern, {.batches = 3, .sequences = 3, .rows = 9, .keys = 8}),
                    "heed: key_lengths holds 9; expected 0 to 8 (keys)");
}

TEST_CASE("windows that cannot be used say why", "[mechanism][quick]") {
  heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 3, .rows = 9, .keys = 8};
  CHECK_THROWS_WITH((heed::streaming{4, 0}.check(shape)),
                    "heed: the recent keys of streaming are 0; expected 1 (the query's own) or "
                    "more, or unbounded");
  CHECK_THROWS_WITH((heed::streaming{-4, 1}.check(shape)),
                    "heed: the sinks of streaming are -4; expected 0 or more");
  CHECK_THROWS_WITH((heed::dilated_window{.step = 0}.check(shape)),
                    "heed: the step of dilated_window is 0; expected 1 or more");
  CHECK_THROWS_WITH(
      (heed::global_tokens{1, 1}.check(shape)),
      "heed: global_tokens with 9 queries and 8 keys; expected at most as many queries as keys");
  CHECK_THROWS_WITH((heed::global_tokens{1, -1}.check({.rows = 1, .keys = 1})),
                    "heed: global_tokens has a count of 1 and a reach of -1; expected 0 or more");
  std::vector<index_t> const two{1, 2};
  CHECK_THROWS_WITH(
      (heed::streaming_heads{{two, {1, 2}}, {two, {2, 1}}}.check(shape)),
      "heed: streaming_heads has numbers of shape [1, 2]; expected [1 or 2, 1 or 3] (batch, head)");
  std::vector<index_t> const none{1, 0};
  CHECK_THROWS_WITH((heed::streaming_heads{{two, {2, 1}}, {none, {2, 1}}}.check(shape)),
                    "heed: the recent keys of streaming are 0; expected 1 (the query's own) or "
                    "more, or unbounded");
}

TEST_CASE("attention of windows, forward, backward and decoded", "[mechanism][quick]") {
  for_each_seed("attention of windows", 60, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 150), M = draw.between(draw.one_in(4) ? 1 : N, 300);
    index_t const some = draw.between(0, draw.one_in(2) ? 8 : 40), reach = draw.between(0, 40);
    index_t const left = random_reach(draw), right = random_reach(draw);
    index_t const step = draw.between(1, 20), recent = draw.between(1, 40);
    std::vector<index_t> const sinks{0, some}, recents{recent, heed::unbounded};
    std::vector<interval> const offsets{{-100, -50 - some}, {-17, -16}, {-9, -8}, {-1, 1}};
    using keep_t = std::function<bool(index_t, index_t, index_t, index_t)>;
    auto const check = [&](char const* name, heed::any_pattern const& pattern, keep_t const& keep) {
      index_t const keys = std::max(M, name == std::string("global_tokens") ? N : 1);
      std::string const complaint = support::attention_complaint(
          seed, {.pattern = pattern, .keep = keep, .rows = N, .keys = keys});
      return complaint.empty() ? "" : name + (": " + complaint);
    };
    switch (draw.between(0, 6)) {
      case 0:
        return check("sliding_window", heed::sliding_window{left, right},
                     [=](index_t, index_t, index_t p, index_t j) {
                       return reference::band(left, right, p, j);
                     });
      case 1:
        return check("prefix_lm", heed::prefix_lm(some),
                     [=](index_t, index_t, index_t p, index_t j) {
                       return reference::prefix_lm(some, p, j);
                     });
      case 2:
        return check("streaming", heed::streaming{some, recent},
                     [=](index_t, index_t, index_t p, index_t j) {
                       return reference::streaming(some, recent, p, j);
                     });
      case 3:
        return check("streaming_heads", heed::streaming_heads{{sinks, {1, 2}}, {recents, {1, 2}}},
                     [&](index_t, index_t h, index_t p, index_t j) {
                       auto const head = static_cast<std::size_t>(h);
                       return reference::streaming(sinks[head], recents[head], p, j);
                     });
      case 4:
        return check("global_tokens", heed::global_tokens{some, reach},
                     [=](index_t, index_t, index_t p, index_t j) {
                       return reference::global_tokens(some, reach, p, j);
                     });
      case 5:
        return check("dilated_window", heed::dilated_window{left, right, step},
                     [=](index_t, index_t, index_t p, index_t j) {
                       return reference::dilated(left, right, step, p, j);
                     });
      default:
        return check("key_offsets", heed::key_offsets{offsets},
                     [&](index_t, index_t, index_t p, index_t j) {
                       bool met = false;
                       for (interval each : offsets)
                         met |= each.first <= j - p && j - p < each.last;
                       return met;
                     });
    }
  });
}
