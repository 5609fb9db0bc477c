#pragma once

#include <heed/neighborhood.hpp>
#include <heed/score/relative_bias.hpp>

/// Windows of a picture, as in Swin, MOAT and DaViT: every pixel meets those of its window. In Swin every second layer
/// moves the windows by half their size, so that neighbours in different windows meet in the next layer.
///
///     attention(q, k, v, out, shifted_windows<2>({56, 56}, {7, 7}, layer % 2 == 1));
///
/// This is what rolling the picture, hiding the pairs that meet over the border, and rolling back computes, without any
/// of it. Heads add a number for each relative position in the window, query minus key (Swin, MOAT):
///
///     relative_index const index(windows, window_table<2>({7, 7}));  // once for all layers with these windows
///     attention(q, k, v, out, windows, relative_bias(index, table));  // table [heads, 13 * 13]
///
/// MOAT and DaViT do not shift. Windows that a border cuts are smaller; where a model lets padding take part as keys, pad the tensors.
namespace heed {

/// The windows of a layer; an axis that fits into one window has one, and is not moved.
template <std::size_t d>
constexpr window_partition<d> shifted_windows(grid_point<d> const& canvas,
                                              grid_point<d> const& window, bool shifted) {
  window_partition<d> windows{canvas, window, {}};
  for (std::size_t a = 0; a < d; ++a)
    if (shifted && canvas[a] > window[a]) windows.shift[a] = window[a] / 2;
  return windows;
}

/// The table of relative positions: [2 window - 1, …] for each head.
template <std::size_t d>
constexpr relative_positions<d> window_table(grid_point<d> const& window) {
  relative_positions<d> table;
  for (std::size_t a = 0; a < d; ++a) table.reach[a] = window[a] - 1;
  return table;
}

}  // namespace heed
