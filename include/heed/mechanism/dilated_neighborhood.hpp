#pragma once

#include <heed/neighborhood.hpp>
#include <heed/score/relative_bias.hpp>

/// Medical Image Classification with KAN-Integrated Transformers and Dilated Neighborhood Attention (MedViTV2): the
/// attention of its local blocks. A pixel meets the window x window pixels around it, every `dilation`-th; stages
/// differ in their dilation. Heads may add a number for each relative position, key minus query in steps of the
/// dilation; current models have none.
///
///     neighborhood_attention<2>(q, k, v, out, dilated_neighborhood({56, 56}, 7, 8));
///
///     neighborhood_order<2> const order(dilated_neighborhood({56, 56}, 7, 8), attend::panel_lanes<float>);
///     relative_index const index(order, dilated_neighborhood_table(7));
///     attention(q, k, v, out, order, order.pattern(), relative_bias(index, table));  // table [heads, 13 * 13]
namespace heed {

constexpr neighborhood<2> dilated_neighborhood(grid_point<2> const& canvas, index_t window,
                                               index_t dilation) {
  return {.canvas = canvas, .window = {window, window}, .dilation = {dilation, dilation}};
}

/// The table of relative positions: [2 window - 1, 2 window - 1] for each head.
constexpr relative_positions<2> dilated_neighborhood_table(index_t window) {
  return {.reach = {window - 1, window - 1}, .key_first = true};
}

}  // namespace heed
