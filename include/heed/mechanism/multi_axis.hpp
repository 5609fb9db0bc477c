#pragma once

#include <heed/pattern/partition.hpp>

/// Multi-axis attention (MaxViT; MOAT's later stages): a layer of windows, in which a pixel meets its neighbours, then one
/// of grids, in which it meets as many pixels spread evenly over the picture. Two layers connect all pixels, at a cost
/// that grows with the pixels and not with their pairs.
///
///     attention(q, k, v, out, multi_axis_block({28, 28}, 7));
///     attention(q, k, v, out, multi_axis_grid({28, 28}, 7));
///
/// Heads may add a number for each relative position, as in shifted_windows.hpp; both layers have tables of
/// window_table<2>({size, size}).
namespace heed {

constexpr window_partition<2> multi_axis_block(grid_point<2> const& canvas, index_t size) {
  return {canvas, {size, size}, {}};
}
/// size divides both extents of the canvas.
constexpr grid_partition<2> multi_axis_grid(grid_point<2> const& canvas, index_t size) {
  return {canvas, {size, size}};
}

}  // namespace heed
