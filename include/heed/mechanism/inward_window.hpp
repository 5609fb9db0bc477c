#pragma once

#include <heed/neighborhood.hpp>
#include <heed/score/scale.hpp>

#include <cmath>

/// FreeSwim: films of more pixels than the model was trained on. Each token sees, in all frames, a window of the size
/// of a training picture that moves inward at the border:
///
///     y' meets y if y - d - max(0, d + y - H + 1) <= y' <= y + d + max(0, d - y)
///
/// on height and width, d the reach. This is neighborhood attention with windows of 2 d + 1, and scores are scaled for the
/// number of keys of the training:
///
///     neighborhood_attention<3>(q, k, v, out, inward_window({frames, height, width}, {dy, dx}),
///                               inward_window_scale(head_dim));
///
/// The window keeps details and loses the picture as a whole. So a second, full branch goes through the same layers with
/// hidden states of its own and attention(q, k, v, out), and wherever both attend to the text, the window branch
/// takes the output of the full branch's cross-attention in place of its own: call attention() with the full branch's
/// queries and hand its `out` to both. Every second denoising step may reuse the outputs of the step before, so that
/// the full branch rests; the unconditional pass of guidance runs the window branch alone.
namespace heed {

/// The reach for a training picture of so many pixels along an axis: half its tokens, of 16 pixels each.
constexpr index_t inward_window_reach(index_t training_pixels) {
  return training_pixels / 16 / 2;
}

/// What a token sees of a film of [frames, height, width] tokens, with a reach along height and width.
constexpr neighborhood<3> inward_window(grid_point<3> const& canvas, grid_point<2> const& reach) {
  return {.canvas = canvas,
          .window = {canvas[0], std::min(canvas[1], 2 * reach[0] + 1),
                     std::min(canvas[2], 2 * reach[1] + 1)}};
}

/// The variant whose windows end at the border, so that tokens there meet fewer keys: with halo_order.
constexpr halo_blocks<3> clipped_window(grid_point<3> const& canvas, grid_point<2> const& reach) {
  return {.canvas = canvas, .block = {1, 1, 1}, .halo = {canvas[0] - 1, reach[0], reach[1]}};
}

/// sqrt(log(2 n) / log(n) / head_dim) for n tokens in a frame of the training.
inline scale inward_window_scale(index_t head_dim, index_t training_tokens = 30 * 52) {
  double const n = static_cast<double>(training_tokens);
  return {std::sqrt(std::log(2 * n) / std::log(n) / static_cast<double>(head_dim))};
}

}  // namespace heed
