#pragma once

#include <heed/mechanism/blend.hpp>
#include <heed/mechanism/streaming.hpp>

#include <algorithm>
#include <span>
#include <vector>

/// DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads. A gate for each key/value
/// head says whether its query heads need all keys. While gates are trained both results are mixed:
///
///     heed::attention(q, k, v, streamed, heed::streaming{sinks, recent}, heed::lse_into{lse});
///     heed::duo_blend(full, streamed, gates, out);
///     heed::duo_blend_backward(full, streamed, gates, dout, dstreamed, dgates);
///     heed::attention_backward(q, k, v, streamed, lse, dstreamed, dq, dk, dv, heed::streaming{sinks, recent});
///
/// where `full` is the result of causal attention: a teacher's, or of the same q, k and v. Nothing flows into it.
/// Deployed, a gate chooses: streaming_heads with the numbers of duo_heads, and a cache of sinks + recent keys for
/// the streaming ones.
namespace heed {

namespace detail {

template <class G, class O>
void check_gates(tensor_view<G, 1> gates, tensor_view<O, 4> out) {
  require(gates.extent(0) > 0 && out.extent(2) % gates.extent(0) == 0, [&] {
    return "gates have shape " + shape_text(gates.extents()) +
           "; expected one for each key head, "
           "a divisor of the " +
           std::to_string(out.extent(2)) + " heads";
  });
}

}  // namespace detail

/// out = g full + (1 - g) streamed, g the gate of the head's group, clamped to [0, 1]. gates: [key head].
template <element A, element B, class G, element O>
void duo_blend(tensor_view<A, 4> full, tensor_view<B, 4> streamed, tensor_view<G, 1> gates,
               tensor_view<O, 4> out) {
  detail::check_gates(gates, out);
  detail::blend(full, streamed, out, [&](index_t, index_t h, index_t) {
    return std::clamp<std::remove_const_t<G>>(gates(h * gates.extent(0) / out.extent(2)), 0, 1);
  });
}

/// The gradients of duo_blend: dstreamed = (1 - g) dout, and dgates = sum of dout.(full - streamed), 0 where the gate
/// is clamped.
template <element A, element B, class G, element DO, element DB, class DG>
void duo_blend_backward(tensor_view<A, 4> full, tensor_view<B, 4> streamed, tensor_view<G, 1> gates,
                        tensor_view<DO, 4> dout, tensor_view<DB, 4> dstreamed,
                        tensor_view<DG, 1> dgates) {
  detail::check_gates(gates, dout);
  detail::require_same_shape("dgates", dgates, "gates", gates);
  index_t const heads = dout.extent(2), groups = gates.extent(0);
  for (index_t g = 0; g < groups; ++g) dgates(g) = 0;
  detail::blend_backward(
      full, streamed, dout, tensor_view<DB, 4>(), dstreamed,
      [&](index_t, index_t h, index_t) {
        return std::clamp<std::remove_const_t<G>>(gates(h * groups / heads), 0, 1);
      },
      [&](index_t, index_t h, index_t, double sum) {
        index_t const g = h * groups / heads;
        if (gates(g) > 0 && gates(g) < 1)
          dgates(g) = static_cast<DG>(static_cast<double>(dgates(g)) + sum);
      });
}

/// The threshold with which a share of all gates, those of every layer together, is for full attention: their quantile
/// at 1 - share, between two of them in proportion. With a share of 1 all are, with 0 none.
template <class G>
double duo_threshold(std::span<G const> gates, double share) {
  require(share >= 0 && share <= 1 && !gates.empty(), [&] {
    return "duo_threshold got " + std::to_string(gates.size()) + " gates and a share of " +
           std::to_string(share) + "; expected at least one gate and a share of 0 to 1";
  });
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (share == 0 || share == 1) return share == 0 ? infinity : -infinity;
  std::vector<double> sorted(gates.begin(), gates.end());
  std::sort(sorted.begin(), sorted.end());
  double const place = (1 - share) * static_cast<double>(sorted.size() - 1);
  auto const below = static_cast<std::size_t>(place);
  double const above = sorted[std::min(below + 1, sorted.size() - 1)];
  return sorted[below] + (place - static_cast<double>(below)) * (above - sorted[below]);
}

/// The deployed choice, into the numbers of streaming_heads: heads whose gate exceeds the threshold are causal.
///
///   gates            [key head]
///   sinks_of, recent_of   [1, head]
template <class G>
void duo_heads(tensor_view<G, 1> gates, double threshold, streaming const& others,
               tensor_view<index_t, 2> sinks_of, tensor_view<index_t, 2> recent_of) {
  index_t const heads = sinks_of.extent(1), groups = gates.extent(0);
  require(sinks_of.extent(0) == 1 && sinks_of.extents() == recent_of.extents() && groups > 0 &&
              heads % groups == 0,
          [&] {
            return "duo_heads got gates of shape " + shape_text(gates.extents()) + ", sinks of " +
                   shape_text(sinks_of.extents()) + " and recent keys of " +
                   shape_text(recent_of.extents()) +
                   "; expected [1, heads] for both, the gates a divisor of the heads";
          });
  for (index_t h = 0; h < heads; ++h) {
    bool const full = static_cast<double>(gates(h * groups / heads)) > threshold;
    sinks_of(0, h) = full ? 0 : others.sinks;
    recent_of(0, h) = full ? unbounded : others.recent;
  }
}

}  // namespace heed
