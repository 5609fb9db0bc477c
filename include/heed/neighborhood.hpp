#pragma once

#include <heed/pattern/halo.hpp>
#include <heed/pattern/neighborhood.hpp>
#include <heed/pattern/packed_canvases.hpp>
#include <heed/pattern/partition.hpp>
#include <heed/pattern/visited_tiles.hpp>
#include <heed/score/relative_bias.hpp>
#include <heed/softmax.hpp>

/// Attention on pictures, films and other canvases of one to three axes, whose tokens are stored row-major: neighborhoods,
/// windows, grids, axes, halos.
///
/// What a query should see                                     | use
/// ------------------------------------------------------------|---------------------------------------------------
/// the 7 x 7 tokens around it                                  | neighborhood_attention<2>, window {7, 7}
/// every third token, 7 x 7 of them                            | the same with dilation {3, 3}
/// what the middle of its 4 x 4 group sees (faster)            | the same with stride {4, 4}
/// the past only, along time                                   | the same with causal {true, false, false}
/// its window of a fixed tiling, shifted or not (Swin)         | attention(…, window_partition<2>{…})
/// 7 x 7 tokens spread evenly over the picture (MaxViT)        | attention(…, grid_partition<2>{…})
/// its row, or its column                                      | attention(…, axial<2>{…})
/// its block and a rim around it (HaloNet)                     | halo_attention (mechanism/halo_attention.hpp)
/// a learned bias by relative position on top                  | relative_bias, a score modifier
/// pictures of different shapes in one call                    | packed_canvases
namespace heed {

/// Neighborhood attention: query i meets the prod(window) keys around it on the canvas, and softmax attention is over
/// these; see neighborhood for the borders, strides, dilation and causal axes.
///
///     neighborhood_attention<2>(q, k, v, out, {.canvas = {112, 112}, .window = {7, 7}});
///
///   query  [batch, tokens, heads, head_dim], tokens = prod(canvas), row-major
///   key    [batch, tokens, key_heads, head_dim]
///   value  [batch, tokens, value_heads, value_dim]
///   out    [batch, tokens, heads, value_dim]
///
/// Takes the ingredients of attention() other than patterns, positions and documents. Score modifiers see slots of
/// neighborhood_order where they would see positions; bias and the observers see tokens. Throws heed::error, before
/// anything is written, if a window, stride or dilation does not fit its axis, or the canvas the tensors.
///
/// Faster Neighborhood Attention; Generalized Neighborhood Attention.
template <std::size_t d, element Q, element K, element V, element O, class... Ingredients>
void neighborhood_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                            tensor_view<O, 4> out, neighborhood<d> const& around,
                            Ingredients const&... ingredients) {
  neighborhood_order<d> const order(around, attend::panel_lanes<compute_type<Q, K, V, O>>);
  attention(query, key, value, out, order, order.pattern(), ingredients...);
}

/// The gradients of neighborhood_attention() from its saved result; see attention_backward().
template <std::size_t d, element Q, element K, element V, element O, class T, element DO,
          element DQ, element DK, element DV, class... Ingredients>
void neighborhood_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                     tensor_view<V, 4> value, tensor_view<O, 4> out,
                                     tensor_view<T, 3> lse, tensor_view<DO, 4> dout,
                                     tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                     tensor_view<DV, 4> dvalue, neighborhood<d> const& around,
                                     Ingredients const&... ingredients) {
  neighborhood_order<d> const order(around, attend::panel_lanes<compute_type<Q, K, V, O>>);
  attention_backward(query, key, value, out, lse, dout, dquery, dkey, dvalue, order,
                     order.pattern(), ingredients...);
}

}  // namespace heed
