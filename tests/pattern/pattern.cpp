#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>

#include <vector>

// What a pattern says about tiles and intervals, against its own keep() pair by pair, and keep()
// against the specification.

using heed::operator~;  // for a pattern that is not of the namespace heed
using heed::index_t;
using support::check_pattern;
using support::for_each_seed;
using support::lanes_agree;
using support::seed_t;

namespace {

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

heed::place random_place(support::random& draw) {
  return {.rows = draw.between(0, 60), .keys = draw.between(1, 60)};
}

}  // namespace

TEST_CASE("simple patterns know their tiles exactly", "[pattern][quick]") {
  for_each_seed("simple patterns", 1000, [](seed_t seed) {
    support::random draw(seed);
    heed::place const where = random_place(draw);
    auto const window = random_window(draw);
    heed::first_keys const first{draw.between(0, where.keys + 3)};
    auto const check = [&](auto const& pattern, auto keep) {
      return check_pattern(draw, pattern, where, keep, {.exact_tiles = true, .exact_keys = true});
    };
    return check(heed::dense{}, [](index_t, index_t) { return true; }) +
           check(heed::causal{}, [](index_t p, index_t j) { return j <= p; }) +
           check(window, [=](index_t p, index_t j) { return in_window(window, p, j); }) +
           check(first, [=](index_t, index_t j) { return j < first.count; }) +
           check(~window, [=](index_t p, index_t j) { return !in_window(window, p, j); });
  });
}

TEST_CASE("compositions of patterns", "[pattern][quick]") {
  for_each_seed("compositions", 1000, [](seed_t seed) {
    support::random draw(seed);
    heed::place const where = random_place(draw);
    auto const a = random_window(draw), b = random_window(draw);
    heed::first_keys const first{draw.between(0, 9)};
    every_third const third;
    auto const check = [&](auto const& pattern, auto keep) {
      return check_pattern(draw, pattern, where, keep);
    };
    return check(heed::causal{} & (a | first),
                 [=](index_t p, index_t j) {
                   return j <= p && (in_window(a, p, j) || j < first.count);
                 }) +
           check((a | b) & ~first,
                 [=](index_t p, index_t j) {
                   return (in_window(a, p, j) || in_window(b, p, j)) && j >= first.count;
                 }) +
           check(~(a & b) | first,
                 [=](index_t p, index_t j) {
                   return !(in_window(a, p, j) && in_window(b, p, j)) || j < first.count;
                 }) +
           check(third & a,
                 [=](index_t p, index_t j) { return (j - p) % 3 == 0 && in_window(a, p, j); }) +
           check(~third | heed::causal{},
                 [=](index_t p, index_t j) { return (j - p) % 3 != 0 || j <= p; });
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
  CHECK(lanes_agree<float>(window, {far, far + 4}, {far - 110, far + 20}));
  CHECK(lanes_agree<float>(heed::causal{}, {far, far + 4}, {far - 110, far + 20}));
}
