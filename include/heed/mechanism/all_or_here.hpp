#pragma once

#include <heed/mechanism/blend.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/chosen_rows.hpp>

#include <cmath>

/// Learning When Not to Attend Globally (All-or-Here attention). A gate logit for each token and query head, one more
/// output of the query projection, says whether the row meets every key up to its own or only the most recent ones.
namespace heed {

/// Causal where the logit is positive, else the `recent` most recent keys, the query's own included.
/// logits: [batch, head, row], of the rows of the call, or of more of them with `first_position`; see chosen_rows.
/// Prefill honours the gates as decoding does.
template <class T>
auto all_or_here(tensor_view<T, 3> logits, index_t recent,
                 std::optional<index_t> first_position = {}) {
  return causal{} &
         (sliding_window{.left = recent - 1, .right = 0} | chosen_rows{logits, first_position});
}

/// The choice that all_or_here does not make, for the gradient of the gates.
template <class T>
auto all_or_here_reversed(tensor_view<T, 3> logits, index_t recent) {
  return causal{} & (sliding_window{.left = recent - 1, .right = 0} | ~chosen_rows{logits});
}

/// The straight-through gradient of the gates: dlogit = sigmoid'(logit) dout.(full - near). Of the two results of a
/// row `chosen` is the one that the gate chose, from all_or_here, and `other` the one from all_or_here_reversed.
/// The gradients of query, key and value are those of attention_backward with all_or_here.
template <element A, element B, class T, element DO, class DT>
void all_or_here_gate_gradient(tensor_view<A, 4> chosen, tensor_view<B, 4> other,
                               tensor_view<T, 3> logits, tensor_view<DO, 4> dout,
                               tensor_view<DT, 3> dlogits) {
  detail::check_blend_weights("logits", logits, dout);
  detail::require_same_shape("dlogits", dlogits, "logits", logits);
  require(logits.size() == dout.extent(0) * dout.extent(1) * dout.extent(2), [&] {
    return "logits have shape " + shape_text(logits.extents()) +
           "; expected one for each batch entry, head and row";
  });
  auto const none = tensor_view<std::remove_const_t<DO>, 4>();
  detail::blend_backward(
      chosen, other, dout, none, none, [](index_t, index_t, index_t) { return 0; },
      [&](index_t n, index_t h, index_t i, double sum) {
        double const logit = static_cast<double>(logits(n, h, i));
        double const gate = 1 / (1 + std::exp(-logit));
        dlogits(n, h, i) = static_cast<DT>(gate * (1 - gate) * (logit > 0 ? sum : -sum));
      });
}

}  // namespace heed
