#include "reference/patterns/windows.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/dilated_window.hpp>
#include <heed/pattern/key_offsets.hpp>

#include <vector>

// Sets of differences of a key and a position.

using heed::index_t;
using heed::interval;
using heed::kept_pairs;
using support::for_each_seed;
using support::seed_t;

namespace {

std::vector<interval> random_offsets(support::random& draw) {
  std::vector<interval> offsets;
  index_t last = draw.between(-70, 10);
  for (index_t n = draw.between(0, 6); n > 0; --n) {
    index_t const first = last + draw.between(1, 12);
    last = first + draw.between(1, draw.one_in(2) ? 1 : 20);
    offsets.push_back({first, last});
  }
  return offsets;
}

bool has(std::vector<interval> const& offsets, index_t difference) {
  bool found = false;
  for (interval each : offsets) found |= each.first <= difference && difference < each.last;
  return found;
}

}  // namespace

TEST_CASE("sets of differences", "[pattern][quick]") {
  for_each_seed("differences", 1000, [](seed_t seed) {
    support::random draw(seed);
    auto const offsets = random_offsets(draw);
    heed::key_offsets const pattern{offsets};
    pattern.check({});
    return check_pattern(draw, pattern, {.rows = draw.between(0, 60), .keys = draw.between(1, 60)},
                         [&](index_t p, index_t j) { return has(offsets, j - p); },
                         {.exact_tiles = true, .exact_keys = true});
  });
}

TEST_CASE("pairs of differences are diagonals, and key by key the same", "[pattern][quick]") {
  for_each_seed("diagonals", 500, [](seed_t seed) {
    support::random draw(seed);
    auto const offsets = random_offsets(draw);
    index_t const N = draw.between(0, 80), M = draw.between(1, 80), off = M - N;
    index_t diagonals = 0, by_keys = 0;
    for (interval each : offsets)
      for (index_t d = each.first; d < each.last; ++d) {
        diagonals +=
            std::max<index_t>(0, std::min(N, M - off - d) - std::max<index_t>(0, -off - d));
        // Q(j) = (j - D) - off
        for (index_t j = 0; j < M; ++j) by_keys += j - d - off >= 0 && j - d - off < N;
      }
    index_t const counted = kept_pairs(heed::key_offsets{offsets}, N, M);
    return counted == diagonals && counted == by_keys
               ? std::string()
               : std::to_string(counted) + " pairs, not " + std::to_string(diagonals) + " or " +
                     std::to_string(by_keys);
  });
}

TEST_CASE("windows are sets of differences", "[pattern][quick]") {
  for (index_t left : {0, 3, 50})
    for (index_t right : {0, 2, 50})
      for (index_t step : {1, 2, 5}) {
        std::vector<interval> window{{-left, right + 1}}, dilated;
        for (index_t d = -left; d <= right; ++d)
          if (d % step == 0 && step > 1) dilated.push_back({d, d + 1});
        if (step == 1) dilated = window;
        for (index_t N : {5, 30})
          for (index_t M : {5, 30}) {
            CHECK(kept_pairs(heed::key_offsets{window}, N, M) ==
                  kept_pairs(heed::sliding_window{left, right}, N, M));
            CHECK(kept_pairs(heed::key_offsets{dilated}, N, M) ==
                  kept_pairs(heed::dilated_window{left, right, step}, N, M));
            for (index_t p = M - N; p < M; ++p)
              for (index_t j = 0; j < M; ++j)
                CHECK(heed::key_offsets{dilated}.keep(p, j) ==
                      heed::dilated_window{left, right, step}.keep(p, j));
          }
      }
}

TEST_CASE("differences that are not in order are refused", "[pattern][quick]") {
  std::vector<interval> const touching{{-4, -2}, {-2, 1}}, empty{{0, 0}};
  CHECK_THROWS_WITH(heed::key_offsets{touching}.check({}),
                    "heed: key_offsets holds an interval that ends at -2 and then one that starts "
                    "at -2; expected sorted intervals that do not touch");
  CHECK_THROWS_WITH(heed::key_offsets{empty}.check({}),
                    "heed: key_offsets holds [0, 0); expected intervals that are not empty");
}
