#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/by_segments.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/count.hpp>
#include <heed/pattern/key_offsets.hpp>
#include <heed/pattern/moved.hpp>
#include <heed/pattern/queries_from.hpp>

using heed::index_t;
using support::check_pattern;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Starts of segments, some of them empty, the last perhaps too.
std::vector<index_t> random_starts(support::random& draw, index_t count) {
  std::vector<index_t> starts{0};
  index_t const segments = draw.between(1, 8);
  while (static_cast<index_t>(starts.size()) < segments)
    starts.push_back(draw.one_in(3) ? starts.back() : draw.between(starts.back(), count));
  return starts;
}

heed::tensor_view<index_t const, 2> one_batch(std::vector<index_t> const& starts) {
  return {starts.data(), {1, static_cast<index_t>(starts.size())}};
}

index_t segment_of(std::vector<index_t> const& starts, index_t position) {
  index_t segment = -1;
  for (index_t start : starts) segment += start <= position;
  return segment;
}

}  // namespace

TEST_CASE("patterns over segments of any lengths", "[pattern][quick]") {
  for_each_seed("by_segments", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const count = draw.between(1, 60);
    heed::place const where{.rows = draw.between(1, count), .keys = count};
    auto const starts = random_starts(draw, count);
    index_t const reach = draw.between(0, 3), first = draw.between(0, 2);
    auto const of = [&](index_t x) { return segment_of(starts, x); };
    std::vector<heed::interval> const offsets{{-3, -2}, {-1, 0}, {2, 3}};
    return check_pattern(
               draw,
               heed::by_segments{heed::sliding_window{.left = reach, .right = 0},
                                 one_batch(starts)},
               where,
               [&](index_t i, index_t j) { return of(j) <= of(i) && of(i) - of(j) <= reach; }) +
           check_pattern(draw,
                         heed::causal{} & heed::by_segments{heed::sliding_window{0, 0} |
                                                                heed::first_keys{first} |
                                                                heed::queries_from{reach},
                                                            one_batch(starts)},
                         where,
                         [&](index_t i, index_t j) {
                           return j <= i && (of(i) == of(j) || of(j) < first || of(i) >= reach);
                         }) +
           check_pattern(draw, heed::by_segments{heed::key_offsets{offsets}, one_batch(starts)},
                         where, [&](index_t i, index_t j) {
                           index_t const d = of(j) - of(i);
                           return d == -3 || d == -1 || d == 2;
                         });
  });
}

TEST_CASE("segments of a batch entry", "[pattern][quick]") {
  std::vector<index_t> const starts{0, 2, 4, 0, 3, 3};
  heed::by_segments const pattern{heed::sliding_window{0, 0},
                                  heed::tensor_view<index_t const, 2>(starts.data(), {2, 3})};
  auto const at = [&](index_t batch) {
    return heed::bind_at(pattern, heed::place{.batch = batch, .rows = 6, .keys = 6});
  };
  CHECK(at(0).keep(3, 2));
  CHECK_FALSE(at(0).keep(4, 3));
  CHECK(at(1).keep(1, 2));
  CHECK_FALSE(at(1).keep(2, 3));
  CHECK(heed::kept_pairs(pattern, heed::place{.batch = 0, .rows = 6, .keys = 6}) == 12);
  CHECK(heed::kept_pairs(pattern, heed::place{.batch = 1, .rows = 6, .keys = 6}) == 18);
}

TEST_CASE("what cannot be segments is refused", "[pattern][quick]") {
  heed::call_shape const shape{.batches = 3, .sequences = 3, .heads = 1, .rows = 6, .keys = 6};
  auto const refusal = [&](std::vector<index_t> const& starts, index_t batches) {
    heed::by_segments{heed::causal{},
                      heed::tensor_view<index_t const, 2>(
                          starts.data(), {batches, static_cast<index_t>(starts.size()) / batches})}
        .check(shape);
  };
  CHECK_THROWS_WITH(
      refusal({0, 1, 0, 1}, 2),
      "heed: by_segments.starts has shape [2, 2]; expected [1 or 3, 1 or more] (batch, "
      "segment)");
  CHECK_THROWS_WITH(refusal({1, 2}, 1),
                    "heed: by_segments.starts holds 1; expected 0 for the first segment");
  CHECK_THROWS_WITH(
      refusal({0, 5, 4}, 1),
      "heed: by_segments.starts holds 4 after 5; expected starts that do not decrease");
  CHECK_NOTHROW(refusal({0, 5, 5}, 1));
}

TEST_CASE("patterns that count from before the first position", "[pattern][quick]") {
  for_each_seed("moved", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const count = draw.between(1, 60), size = draw.between(1, 12), by = draw.between(0, 20);
    heed::place const where{.rows = draw.between(1, count), .keys = count};
    auto const block = [&](index_t x) {
      return static_cast<index_t>(std::floor(double(x + by) / double(size)));
    };
    std::vector<heed::interval> const offsets{{-9, -7}, {-1, 2}};
    return check_pattern(draw, heed::moved{heed::by_blocks{heed::sliding_window{0, 0}, size}, by},
                         where, [&](index_t i, index_t j) { return block(i) == block(j); }) +
           check_pattern(draw, heed::moved{heed::causal{} & heed::first_keys{size}, by}, where,
                         [&](index_t i, index_t j) { return j <= i && j + by < size; }) +
           check_pattern(draw, heed::moved{heed::causal{}, by}, where,
                         [](index_t i, index_t j) { return j <= i; }, {.exact_tiles = true}) +
           check_pattern(draw, heed::moved{heed::key_offsets{offsets}, by}, where,
                         [&](index_t i, index_t j) {
                           index_t const d = j - i;
                           return (-9 <= d && d < -7) || (-1 <= d && d < 2);
                         }) +
           check_pattern(draw, heed::queries_from{size}, where,
                         [&](index_t i, index_t) { return i >= size; }, {.exact_tiles = true});
  });
  CHECK_THROWS_WITH((heed::moved{heed::causal{}, -1}.check({})),
                    "heed: moved has a distance of -1; expected 0 or more");
}
