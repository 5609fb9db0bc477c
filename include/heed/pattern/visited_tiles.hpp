#pragma once

#include <heed/pattern/neighborhood.hpp>

namespace heed {

/// What a kernel that works on tiles has to visit of a neighborhood, and what it may gain by it.
struct tile_visits {
  index_t visited = 0;  // pairs of a query tile and a key tile that hold a kept pair
  index_t full = 0;     // of these, the ones that keep all theirs
  index_t dense = 0;    // all pairs of tiles of one dilation group

  double speedup_by_pairs = 1;  // pairs of full attention for each pair kept
  double speedup_by_tiles = 1;  // dense for each visited

  /// No tile has a pair to hide: the speedup by tiles is the one by pairs, if tiles divide the axes.
  bool perfectly_sparse() const { return visited == full; }
};

/// Counts the tiles, of query_tile and key_tile tokens along each axis, that a neighborhood visits. Tiles hold tokens of
/// one dilation group, side by side. Costs a walk along each axis, not over tiles.
///
///     visited_tiles<2>({.canvas = {8, 8}, .window = {3, 3}}, {4, 4}, {4, 4}).visited == 16
template <std::size_t d>
tile_visits visited_tiles(neighborhood<d> const& around, grid_point<d> const& query_tile,
                          grid_point<d> const& key_tile) {
  around.check();
  for (std::size_t a = 0; a < d; ++a)
    require(query_tile[a] >= 1 && key_tile[a] >= 1, [&] {
      return "visited_tiles has tiles of " + shape_text(query_tile) + " queries and " +
             shape_text(key_tile) + " keys; expected at least 1 along each axis";
    });
  auto const up = [](index_t x, index_t tile) { return (x + tile - 1) / tile; };
  tile_visits visits{1, 1, 1};
  // Tiles are products of axes and so are groups: sums multiply.
  for (std::size_t a = 0; a < d; ++a) {
    index_t const tq = query_tile[a], tk = key_tile[a];
    auto const sum = [&](auto of_tile) {
      return around.axis(a).sum_over_groups([&](window_axis const& axis) {
        index_t total = 0;
        for (index_t first = 0; first < axis.length; first += tq)
          total += of_tile(axis, axis.window_of(first),
                           axis.window_of(std::min(first + tq, axis.length) - 1));
        return total;
      });
    };
    visits.visited *= sum([&](window_axis const&, interval first, interval last) {
      return up(last.last, tk) - first.first / tk;
    });
    visits.full *= sum([&](window_axis const& axis, interval first, interval last) {
      index_t const end = first.last == axis.length ? up(axis.length, tk) : first.last / tk;
      return std::max(end - up(last.first, tk), index_t{0});
    });
    visits.dense *=
        sum([&](window_axis const& axis, interval, interval) { return up(axis.length, tk); });
  }
  double const tokens = static_cast<double>(grid_size(around.canvas));
  visits.speedup_by_pairs = tokens * tokens / static_cast<double>(around.pairs());
  visits.speedup_by_tiles = static_cast<double>(visits.dense) / static_cast<double>(visits.visited);
  return visits;
}

}  // namespace heed
