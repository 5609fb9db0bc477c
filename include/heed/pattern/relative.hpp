#pragma once

#include <heed/pattern/grid.hpp>

namespace heed {

/// The entries of a table that has one number for each relative position: row-major over the axes, 2 reach + 1 for each,
/// the difference 0 in the middle. Differences are those of coordinates in a group: query - key, or key - query.
///
///     relative_positions<2> const swin{.reach = {6, 6}};                    // windows of 7 x 7
///     relative_positions<2> const around{.reach = {6, 6}, .key_first = true};  // neighborhoods of 7 x 7
template <std::size_t d>
struct relative_positions {
  grid_point<d> reach{};
  bool key_first = false;

  /// The number of entries.
  constexpr index_t size() const { return grid_size(extents()); }

  /// The entry for a query and a key, whose coordinates differ by at most the reach.
  constexpr index_t operator()(grid_point<d> const& query, grid_point<d> const& key) const {
    grid_point<d> at;
    for (std::size_t a = 0; a < d; ++a)
      at[a] = (key_first ? key[a] - query[a] : query[a] - key[a]) + reach[a];
    return grid_index(extents(), at);
  }

  /// How the entry changes from a key to the next one along the last axis.
  constexpr index_t next_key() const { return key_first ? 1 : -1; }

 private:
  constexpr grid_point<d> extents() const {
    grid_point<d> extents;
    for (std::size_t a = 0; a < d; ++a) extents[a] = 2 * reach[a] + 1;
    return extents;
  }
};

}  // namespace heed
