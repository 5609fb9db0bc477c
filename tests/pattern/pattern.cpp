#include "support/random.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>

#include <xsimd/xsimd.hpp>

#include <array>
#include <vector>

// What a pattern says about tiles and intervals, against its own keep() pair by pair, and keep()
// against the specification.

using heed::coverage;
using heed::operator~;  // for a pattern that is not of the namespace heed
using heed::index_t;
using heed::interval;
using heed::interval_set;
using support::for_each_seed;
using support::seed_t;

namespace {

bool contains(interval_set const& set, index_t x) {
  for (interval each : set)
    if (each.first <= x && x < each.last) return true;
  return false;
}

/// Does the pattern's batch form agree with keep(), for every pair of a tile?
template <class T, class Pattern>
bool lanes_agree(Pattern const& pattern, interval queries, interval keys) {
  using batch = xsimd::batch<T>;
  std::array<T, batch::size> positions;
  bool agree = true;
  for (index_t q = queries.first; q < queries.last; ++q)
    for (index_t first = keys.first; first < keys.last;
         first += static_cast<index_t>(batch::size)) {
      for (std::size_t lane = 0; lane < batch::size; ++lane)
        positions[lane] = static_cast<T>(first + static_cast<index_t>(lane));
      auto const kept = xsimd::select(
          pattern.keep(batch(static_cast<T>(q)), batch::load_unaligned(positions.data())),
          batch(T(1)), batch(T(0)));
      std::array<T, batch::size> lanes;
      kept.store_unaligned(lanes.data());
      for (std::size_t lane = 0; lane < batch::size; ++lane)
        agree &= (lanes[lane] == T(1)) == pattern.keep(q, first + static_cast<index_t>(lane));
    }
  return agree;
}

struct tally {
  bool exact = true;  // `some` only ever for tiles that are really partial
  std::string complaint;
};

/// Compares a pattern with `keep` on random tiles of positions around `count` keys.
template <class Pattern, class Keep>
tally check(support::random& draw, Pattern const& pattern, index_t count, Keep keep) {
  tally result;
  auto const complain = [&](char const* what, interval queries, interval keys) {
    result.complaint += std::string(what) + " for positions [" + std::to_string(queries.first) +
                        ", " + std::to_string(queries.last) + ") and keys [" +
                        std::to_string(keys.first) + ", " + std::to_string(keys.last) + ") of " +
                        std::to_string(count) + "\n";
  };
  for (int tile = 0; tile < 20; ++tile) {
    interval queries, keys;
    queries.first = draw.between(-20, count + 20);
    queries.last = queries.first + draw.between(1, 30);
    keys.first = draw.between(0, count - 1);
    keys.last = draw.between(keys.first + 1, count);
    index_t kept = 0;
    interval_set const met = heed::pattern_keys(pattern, queries, count);
    for (index_t q = queries.first; q < queries.last; ++q)
      for (index_t j = 0; j < count; ++j) {
        bool const expected = keep(q, j);
        if (pattern.keep(q, j) != expected) complain("keep() is wrong", queries, keys);
        if (expected && !contains(met, j)) complain("keys() leaves out a key", queries, keys);
        kept += expected && j >= keys.first && j < keys.last;
      }
    for (interval each : met)
      if (each.empty() || each.first < 0 || each.last > count)
        complain("keys() leaves the keys", queries, keys);
    coverage const really = kept == 0                              ? coverage::none
                            : kept == queries.size() * keys.size() ? coverage::all
                                                                   : coverage::some;
    coverage const said = heed::pattern_cover(pattern, queries, keys);
    if (said != really && said != coverage::some) complain("cover() is wrong", queries, keys);
    result.exact &= said == really;
    if constexpr (requires(xsimd::batch<float> x) { pattern.keep(x, x); }) {
      if (!lanes_agree<float>(pattern, queries, keys))
        complain("keep() of floats is wrong", queries, keys);
      if (!lanes_agree<double>(pattern, queries, keys))
        complain("keep() of doubles is wrong", queries, keys);
    }
  }
  return result;
}

heed::sliding_window random_window(support::random& draw) {
  auto const reach = [&] { return draw.one_in(4) ? heed::unbounded : draw.between(0, 30); };
  return {.left = reach(), .right = reach()};
}

bool in_window(heed::sliding_window const& w, index_t p, index_t j) {
  return (w.left == heed::unbounded || p - w.left <= j) &&
         (w.right == heed::unbounded || j <= p + w.right);
}

struct every_third {
  bool keep(index_t query, index_t key) const { return (key - query) % 3 == 0; }
};

}  // namespace

TEST_CASE("simple patterns know their tiles exactly", "[pattern][quick]") {
  for_each_seed("simple patterns", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const count = draw.between(1, 60);
    auto const window = random_window(draw);
    heed::first_keys const first{draw.between(0, count + 3)};
    tally const results[] = {
        check(draw, heed::dense{}, count, [](index_t, index_t) { return true; }),
        check(draw, heed::causal{}, count, [](index_t p, index_t j) { return j <= p; }),
        check(draw, window, count, [=](index_t p, index_t j) { return in_window(window, p, j); }),
        check(draw, first, count, [=](index_t, index_t j) { return j < first.count; }),
        check(draw, ~window, count, [=](index_t p, index_t j) { return !in_window(window, p, j); }),
    };
    std::string complaint;
    for (tally const& each : results) {
      complaint += each.complaint;
      if (!each.exact) complaint += "a tile that is empty or full was called partial\n";
    }
    return complaint;
  });
}

TEST_CASE("compositions of patterns", "[pattern][quick]") {
  for_each_seed("compositions", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const count = draw.between(1, 60);
    auto const a = random_window(draw), b = random_window(draw);
    heed::first_keys const first{draw.between(0, 9)};
    every_third const third;
    return check(draw, heed::causal{} & (a | first), count,
                 [=](index_t p, index_t j) {
                   return j <= p && (in_window(a, p, j) || j < first.count);
                 })
               .complaint +
           check(draw, (a | b) & ~first, count,
                 [=](index_t p, index_t j) {
                   return (in_window(a, p, j) || in_window(b, p, j)) && j >= first.count;
                 })
               .complaint +
           check(draw, ~(a & b) | first, count,
                 [=](index_t p, index_t j) {
                   return !(in_window(a, p, j) && in_window(b, p, j)) || j < first.count;
                 })
               .complaint +
           check(draw, third & a, count,
                 [=](index_t p, index_t j) { return (j - p) % 3 == 0 && in_window(a, p, j); })
               .complaint +
           check(draw, ~third | heed::causal{}, count, [=](index_t p, index_t j) {
             return (j - p) % 3 != 0 || j <= p;
           }).complaint;
  });
}

TEST_CASE("key_lengths is bound to its sequence", "[pattern][quick]") {
  std::vector<index_t> const lengths{3, 0, 7};
  auto const pattern = heed::key_lengths{lengths} & heed::causal{};
  for (index_t sequence = 0; sequence < 3; ++sequence) {
    auto const bound = heed::bind_at(pattern, heed::place{.sequence = sequence, .batch = sequence});
    for (index_t p = -1; p < 9; ++p)
      for (index_t j = 0; j < 9; ++j)
        CHECK(bound.keep(p, j) == (j < lengths[static_cast<std::size_t>(sequence)] && j <= p));
  }
}

TEST_CASE("a window keeps its edges where positions are large", "[pattern][quick]") {
  heed::sliding_window const window{.left = 100, .right = 3};
  index_t const far = (index_t{1} << 24) - 200;
  support::random draw(1);
  CHECK(lanes_agree<float>(window, {far, far + 4}, {far - 110, far + 20}));
  CHECK(lanes_agree<float>(heed::causal{}, {far, far + 4}, {far - 110, far + 20}));
}
