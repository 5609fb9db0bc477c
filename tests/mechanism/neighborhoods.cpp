#include "reference/patterns/neighborhood.hpp"
#include "support/attention_check.hpp"
#include "support/random.hpp"

#include <heed/mechanism/dilated_neighborhood.hpp>
#include <heed/mechanism/inward_window.hpp>
#include <heed/mechanism/multi_axis.hpp>
#include <heed/mechanism/shifted_windows.hpp>
#include <heed/mechanism/two_axes.hpp>
#include <heed/neighborhood.hpp>

#include <cmath>

// Neighborhoods, windows, grids, axes, residues and halos through the engine, against the definitions on coordinates;
// and the mechanisms made of them.

using heed::grid_point;
using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr index_t lanes = heed::attend::panel_lanes<float>;

/// A predicate on the coordinates of each axis, as one on tokens.
template <std::size_t d, class F>
auto on_axes(grid_point<d> const& canvas, F f) {
  return [=](index_t, index_t, index_t q, index_t k) {
    auto const x = reference::coordinates_of(q, canvas), y = reference::coordinates_of(k, canvas);
    for (std::size_t a = 0; a < d; ++a)
      if (!f(a, x[a], y[a])) return false;
    return true;
  };
}

template <std::size_t d>
std::string check_neighborhood(seed_t seed, index_t most) {
  support::random draw(seed);
  heed::neighborhood<d> around;
  std::vector<reference::axis> axes;
  for (std::size_t a = 0; a < d; ++a) {
    around.canvas[a] = draw.between(1, most);
    around.dilation[a] = draw.one_in(2) ? 1 : draw.between(1, around.canvas[a]);
    around.window[a] = draw.between(1, around.canvas[a] / around.dilation[a]);
    around.stride[a] = draw.one_in(2) ? 1 : draw.between(1, around.window[a]);
    around.causal[a] = draw.one_in(3);
    axes.push_back({around.canvas[a], around.window[a], around.stride[a], around.dilation[a],
                    around.causal[a]});
  }
  heed::neighborhood_order<d> const order(around, lanes);
  index_t const size = heed::grid_size(around.canvas);
  return support::attention_complaint(
      seed, {.pattern = order.pattern(),
             .keep = on_axes(around.canvas,
                             [&](std::size_t a, index_t y, index_t z) {
                               return reference::axis_keeps(axes[a], y, z);
                             }),
             .rows = size,
             .keys = size,
             .batches = draw.between(1, 2),
             .order = heed::any_arrangement(order)});
}

template <class Arrangement, class Keep>
std::string check_dense(seed_t seed, Arrangement const& order, index_t size, Keep keep) {
  order.check({.rows = size, .keys = size});
  return support::attention_complaint(seed, {.pattern = heed::dense{},
                                             .keep = keep,
                                             .rows = size,
                                             .keys = size,
                                             .batches = 2,
                                             .order = heed::any_arrangement(order)});
}

}  // namespace

TEST_CASE("neighborhood attention", "[neighborhood]") {
  for_each_seed("neighborhoods attended", 40, [](seed_t seed) {
    return check_neighborhood<1>(seed, 150) + check_neighborhood<2>(seed, 13) +
           check_neighborhood<3>(seed, 5);
  });
}

TEST_CASE("attention in windows, grids and along axes", "[neighborhood]") {
  for_each_seed("partitions attended", 30, [](seed_t seed) {
    support::random draw(seed);
    heed::window_partition<2> windows{
        {draw.between(1, 14), draw.between(1, 14)}, {draw.between(1, 6), draw.between(1, 6)}, {}};
    for (std::size_t a = 0; a < 2; ++a) windows.shift[a] = draw.between(0, windows.window[a] - 1);
    heed::grid_partition<2> grid{{}, {draw.between(1, 5), draw.between(1, 5)}};
    for (std::size_t a = 0; a < 2; ++a) grid.canvas[a] = grid.cells[a] * draw.between(1, 3);
    heed::axial<3> const one{{draw.between(1, 5), draw.between(1, 5), draw.between(1, 5)},
                             draw.between(0, 2)};
    return check_dense(seed, windows, heed::grid_size(windows.canvas),
                       on_axes(windows.canvas,
                               [&](std::size_t a, index_t y, index_t z) {
                                 auto const number = [&](index_t x) {
                                   return reference::window_number(x, windows.window[a],
                                                                   windows.shift[a]);
                                 };
                                 return number(y) == number(z);
                               })) +
           check_dense(seed, grid, heed::grid_size(grid.canvas),
                       on_axes(grid.canvas,
                               [&](std::size_t a, index_t y, index_t z) {
                                 index_t const apart = grid.canvas[a] / grid.cells[a];
                                 return y % apart == z % apart;
                               })) +
           check_dense(seed, one, heed::grid_size(one.canvas),
                       on_axes(one.canvas, [&](std::size_t a, index_t y, index_t z) {
                         return a == static_cast<std::size_t>(one.axis) || y == z;
                       }));
  });
}

TEST_CASE("dilated windows by residues", "[neighborhood]") {
  for_each_seed("residues attended", 30, [](seed_t seed) {
    support::random draw(seed);
    heed::residues const apart{draw.between(1, 9), draw.between(1, 150), draw.between(1, 150)};
    index_t const reach = draw.between(0, 60), shift = apart.key_count - apart.query_count;
    auto const keep = [=](index_t, index_t, index_t row, index_t key) {
      index_t const distance = row + shift - key;
      return distance >= 0 && distance <= reach && distance % apart.step == 0;
    };
    return support::attention_complaint(
        seed,
        {.pattern = apart.pattern(heed::sliding_window{.left = reach / apart.step, .right = 0}),
         .keep = keep,
         .rows = apart.query_count,
         .keys = apart.key_count,
         .order = heed::any_arrangement(apart)});
  });
}

TEST_CASE("attention to a block and its halo", "[neighborhood]") {
  for_each_seed("halos attended", 30, [](seed_t seed) {
    support::random draw(seed);
    heed::halo_blocks<2> blocks;
    for (std::size_t a = 0; a < 2; ++a) {
      blocks.query_stride[a] = draw.between(1, 2);
      blocks.block[a] = blocks.query_stride[a] * draw.between(1, 4);
      blocks.canvas[a] = blocks.block[a] * draw.between(1, 3);
      blocks.halo[a] = draw.between(0, 3);
    }
    heed::halo_order<2> const order(blocks, lanes);
    return support::attention_complaint(
        seed, {.pattern = order.pattern(),
               .keep =
                   [&](index_t, index_t, index_t q, index_t k) {
                     auto const y = reference::coordinates_of(q, blocks.query_canvas());
                     auto const z = reference::coordinates_of(k, blocks.canvas);
                     for (std::size_t a = 0; a < 2; ++a)
                       if (!reference::halo_keeps(blocks.canvas[a], blocks.block[a], blocks.halo[a],
                                                  blocks.query_stride[a], y[a], z[a]))
                         return false;
                     return true;
                   },
               .rows = heed::grid_size(blocks.query_canvas()),
               .keys = heed::grid_size(blocks.canvas),
               .order = heed::any_arrangement(order)});
  });
}

TEST_CASE("the inward window of FreeSwim is a neighborhood", "[neighborhood][quick]") {
  index_t wrong = 0, wrong_clipped = 0;
  for (index_t length = 1; length <= 20; ++length)
    for (index_t reach = 0; reach <= 12; ++reach) {
      auto const clipped = heed::clipped_window({3, 4, length}, {1, reach});
      clipped.check();
      for (index_t y = 0; y < length; ++y) {
        heed::interval const window = clipped.axis(2).window_of(y);
        wrong_clipped += window.first != std::max(y - reach, index_t{0}) ||
                         window.last != std::min(y + reach + 1, length);
      }
      for (index_t frame = 0; frame < 3; ++frame)
        wrong_clipped += clipped.axis(0).window_of(frame).size() != 3;
      auto const around = heed::inward_window({3, 4, length}, {1, reach});
      around.check();
      reference::axis const axis{length, around.window[2]};
      for (index_t y = 0; y < length; ++y)
        for (index_t z = 0; z < length; ++z) {
          index_t const zero = 0;
          bool const meets = y - reach - std::max(zero, reach + y - length + 1) <= z &&
                             z <= y + reach + std::max(zero, reach - y);
          wrong += meets != reference::axis_keeps(axis, y, z);
        }
      CHECK(around.pairs() == 9 * 4 * 3 * length * std::min(length, 2 * reach + 1));
    }
  CHECK(wrong == 0);
  CHECK(wrong_clipped == 0);
  CHECK(heed::inward_window_reach(480) == 15);
  CHECK(heed::inward_window_scale(128).value ==
        Approx(std::sqrt(std::log(2. * 1560) / std::log(1560.) / 128)));
}

TEST_CASE("pages of windows and neighborhoods", "[neighborhood][quick]") {
  auto const moved = heed::shifted_windows<2>({14, 7}, {7, 8}, true);
  CHECK(moved.shift == grid_point<2>{3, 0});  // an axis of one window stays
  CHECK(heed::shifted_windows<2>({14, 7}, {7, 8}, false).shift == grid_point<2>{0, 0});
  CHECK(heed::window_table<2>({7, 7}).size() == 169);
  auto const around = heed::dilated_neighborhood({56, 56}, 7, 8);
  around.check();
  CHECK(around.pairs() == 56 * 56 * 49);
  CHECK(heed::dilated_neighborhood_table(7).size() == 169);
  CHECK(heed::multi_axis_block({28, 14}, 7).pairs() == 28 * 14 * 49);
  CHECK(heed::multi_axis_block({28, 14}, 7).groups() == 8);
  CHECK(heed::multi_axis_grid({28, 14}, 7).pairs() == 28 * 14 * 49);
  CHECK(heed::multi_axis_grid({28, 14}, 7).groups() == 8);
  std::vector<float> numbers(2 * 5 * 3);
  heed::tensor_view<float, 4> const table(numbers.data(), {2, 5, 1, 3});
  CHECK(&heed::exchanged(table)(1, 2, 0, 4) == &table(1, 4, 0, 2));
}
