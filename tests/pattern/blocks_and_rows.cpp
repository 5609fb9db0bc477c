#include "support/guarded.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/periodic_keys.hpp>

// Patterns of blocks, of rows and of periods, against predicates.

using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

index_t floor_div(index_t a, index_t b) {
  return (a - ((a % b + b) % b)) / b;
}

heed::place random_place(support::random& draw) {
  index_t const keys = draw.between(1, 70);
  return {.head = draw.between(0, 2), .rows = draw.between(0, 70), .keys = keys};
}

}  // namespace

TEST_CASE("patterns of blocks", "[pattern][quick]") {
  for_each_seed("by_blocks", 1000, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    index_t const size = draw.between(1, 12);
    heed::sliding_window const w{draw.between(0, 4), draw.between(0, 4)};
    heed::first_keys const first{draw.between(0, 3)};
    heed::periodic_keys const every_third{3, 1, 1};
    auto const block = [=](index_t p) { return floor_div(p, size); };
    return check_pattern(draw, heed::by_blocks{heed::causal{}, size}, where,
                         [=](index_t p, index_t j) { return block(j) <= block(p); },
                         {.exact_tiles = true}) +
           check_pattern(draw, heed::by_blocks{heed::sliding_window{0, 0}, size}, where,
                         [=](index_t p, index_t j) { return block(j) == block(p); },
                         {.exact_tiles = true}) +
           check_pattern(
               draw, heed::by_blocks{w | first, size}, where,
               [=](index_t p, index_t j) {
                 return (block(j) >= block(p) - w.left && block(j) <= block(p) + w.right) ||
                        block(j) < first.count;
               }) +
           check_pattern(draw, heed::by_blocks{every_third, size}, where,
                         [=](index_t, index_t j) { return block(j) % 3 == 1; },
                         {.exact_tiles = true, .exact_keys = true}) +
           check_pattern(
               draw, heed::causal{} & heed::by_blocks{w, size}, where, [=](index_t p, index_t j) {
                 return j <= p && block(j) >= block(p) - w.left && block(j) <= block(p) + w.right;
               });
  });
}

TEST_CASE("chosen rows", "[pattern][quick]") {
  for_each_seed("chosen_rows", 1000, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    support::guarded<float, 3> numbers({1, 3, where.rows},
                                       support::random_layout<3>(draw, {1, 3, where.rows}, false));
    numbers.fill([&](auto const&) { return float(draw.uniform(-1, 2)); });
    auto const view = std::as_const(numbers).view();
    return check_pattern(draw, heed::chosen_rows{view}, where,
                         [=](index_t p, index_t) {
                           index_t const row = p - (where.keys - where.rows);
                           return row >= 0 && row < where.rows && view(0, where.head, row) > 0;
                         },
                         {.exact_tiles = true});
  });
  for_each_seed("chosen_rows of whole sequences", 1000, [](seed_t seed) {
    support::random draw(seed);
    auto const where = random_place(draw);
    index_t const first = draw.between(-3, 5), count = draw.between(1, 50);
    support::guarded<float, 3> numbers({1, 3, count},
                                       support::random_layout<3>(draw, {1, 3, count}, false));
    numbers.fill([&](auto const&) { return float(draw.uniform(-1, 2)); });
    auto const view = std::as_const(numbers).view();
    return check_pattern(draw, heed::chosen_rows{view, first}, where,
                         [=](index_t p, index_t) {
                           index_t const row = p - first;
                           return row >= 0 && row < count && view(0, where.head, row) > 0;
                         },
                         {.exact_tiles = true});
  });
  heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 3, .rows = 4, .keys = 5};
  bool const table[30] = {};
  heed::check_against(heed::chosen_rows{heed::tensor_view<bool const, 3>(table, {2, 3, 5}), 0},
                      shape);
  heed::check_against(heed::chosen_rows{heed::tensor_view<bool const, 3>(table, {2, 1, 4})}, shape);
  CHECK_THROWS_WITH(
      heed::check_against(heed::chosen_rows{heed::tensor_view<bool const, 3>(table, {2, 3, 5})},
                          shape),
      "heed: chosen_rows has shape [2, 3, 5]; expected [1 or 2, 1 or 3, 4] (batch, head, row)");
}

TEST_CASE("periodic keys", "[pattern][quick]") {
  for_each_seed("periodic_keys", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const period = draw.between(1, 20), first = draw.between(0, period),
                  count = draw.between(0, period - first);
    return check_pattern(
        draw, heed::periodic_keys{period, first, count}, random_place(draw),
        [=](index_t, index_t j) { return j % period >= first && j % period < first + count; },
        {.exact_tiles = true, .exact_keys = true});
  });
  CHECK_THROWS_WITH(
      heed::check_against(heed::periodic_keys{4, 3, 2}, heed::call_shape{}),
      "heed: periodic_keys keeps the places [3, 5) of every 4; expected places inside "
      "a period of at least 1");
  CHECK_THROWS_WITH(heed::check_against(heed::by_blocks{heed::causal{}, 0}, heed::call_shape{}),
                    "heed: by_blocks has blocks of 0 positions; expected at least 1");
}
