#include "support/pattern_check.hpp"

#include <heed/pattern/any_pattern.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/key_set.hpp>

#include <vector>

// The number of pairs of a pattern, whatever it tells about itself.

using heed::coverage;
using heed::index_t;
using heed::interval;
using heed::kept_pairs;
using support::count_pairs;
using support::for_each_seed;
using support::seed_t;

namespace {

struct only_keep {
  heed::sliding_window window;
  bool keep(index_t query, index_t key) const { return window.keep(query, key); }
};

/// Counts how often it is asked for a pair.
struct watched {
  heed::sliding_window window;
  index_t* asked;

  bool keep(index_t query, index_t key) const {
    ++*asked;
    return window.keep(query, key);
  }
  heed::interval_set keys(interval queries, index_t count) const {
    return window.keys(queries, count);
  }
  coverage cover(interval queries, interval keys) const { return window.cover(queries, keys); }
};

}  // namespace

TEST_CASE("pairs are counted", "[pattern][quick]") {
  for_each_seed("pairs", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(0, 300), keys = draw.between(0, 300);
    auto const reach = [&] {
      return draw.one_in(4) ? heed::unbounded : draw.between(0, draw.one_in(2) ? 300 : 10);
    };
    heed::sliding_window const window{reach(), reach()}, other{reach(), reach()};
    heed::first_keys const first{draw.between(0, 100)};
    std::string complaint;
    auto const check = [&](char const* name, auto const& pattern) {
      index_t const counted = kept_pairs(pattern, rows, keys);
      index_t const really =
          count_pairs(rows, keys, [&](index_t p, index_t j) { return pattern.keep(p, j); });
      if (counted != really)
        complaint += std::string(name) + ": " + std::to_string(counted) + ", not " +
                     std::to_string(really) + "\n";
    };
    index_t asked = 0;
    check("closed form", window);
    check("keep", only_keep{window});
    check("keys and cover", watched{window, &asked});
    check("and", window & other);
    check("or", (window | first) & other);
    check("not", ~(window | other));
    return complaint;
  });
}

TEST_CASE("pairs of a pattern chosen at run time are counted", "[pattern][quick]") {
  for_each_seed("pairs of any pattern", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(0, 200), keys = draw.between(0, 200);
    heed::sliding_window const window{draw.between(0, 60), draw.between(0, 60)};
    heed::first_keys const first{draw.between(0, 100)};
    std::vector<index_t> listed;
    for (index_t j = 0; j < keys; ++j)
      if (draw.one_in(7)) listed.push_back(j);
    heed::key_list const list{heed::tensor_view<index_t const, 3>(
        listed.data(), {1, 1, static_cast<index_t>(listed.size())})};
    std::string complaint;
    auto const check = [&](char const* name, auto const& pattern) {
      index_t const counted = kept_pairs(heed::any_pattern(pattern), rows, keys),
                    expected = kept_pairs(pattern, rows, keys);
      if (counted != expected)
        complaint += std::string(name) + ": " + std::to_string(counted) + ", not " +
                     std::to_string(expected) + "\n";
    };
    check("closed form", window);
    check("keep", only_keep{window});
    check("scattered", list);
    check("composed", (window | list) & ~first);
    heed::any_pattern const a = window, b = list;
    check("of any patterns", a | ~b);
    if (kept_pairs(a | ~b, rows, keys) != kept_pairs(window | ~list, rows, keys))
      complaint += "any patterns composed\n";
    return complaint;
  });
  std::vector<index_t> const lengths{3, 0, 7};
  CHECK(kept_pairs(heed::any_pattern(heed::key_lengths{lengths}),
                   {.batches = 3, .sequences = 3, .heads = 2, .rows = 5, .keys = 7}) ==
        2 * 5 * (3 + 0 + 7));
}

TEST_CASE("pairs of full tiles are not visited", "[pattern][quick]") {
  index_t asked = 0;
  index_t const n = 20000;
  CHECK(kept_pairs(watched{{.left = heed::unbounded, .right = 0}, &asked}, n, n) ==
        n * (n + 1) / 2);
  CHECK(asked <= 4 * 64 * n);  // along the diagonal only
}

TEST_CASE("pairs of all heads and sequences", "[pattern][quick]") {
  std::vector<index_t> const lengths{3, 0, 7};
  heed::call_shape const shape{.batches = 3, .sequences = 3, .heads = 2, .rows = 5, .keys = 7};
  CHECK(kept_pairs(heed::key_lengths{lengths}, shape) == 2 * 5 * (3 + 0 + 7));
  CHECK(kept_pairs(heed::dense{}, shape) == 3 * 2 * 5 * 7);
  CHECK(kept_pairs(heed::key_lengths{lengths}, heed::place{.sequence = 2, .rows = 5, .keys = 7}) ==
        5 * 7);
  CHECK_THROWS_WITH(
      kept_pairs(heed::key_lengths{lengths}, {.batches = 3, .sequences = 3, .rows = 5, .keys = 6}),
      "heed: key_lengths holds 7; expected 0 to 6 (keys)");
}
