#pragma once

#include <heed/mechanism/slot_attention.hpp>
#include <heed/recur/gate_functions.hpp>
#include <heed/recur/row_norms.hpp>
#include <heed/simd/fma.hpp>

/// Gated Slot Attention for Efficient Linear-Time Sequence Modeling: the slots of slot_attention.hpp forget by gates of
/// their own, and what a token writes to a slot is what the slot forgets,
///
///     g_t = log(sigmoid(x_t)) / 8        s_t = 1 - e^g_t
///
/// In the layer queries, keys and values have gone through silu, scale is 1, and silu, a norm and a projection follow.
namespace heed {

/// log_gate and strength of the slots from the numbers x that the token is projected to; all [batch, position, heads, slots].
template <element X, element G, element S, class Executor = serial>
void slot_gates(tensor_view<X, 4> x, tensor_view<G, 4> log_gate, tensor_view<S, 4> strength,
                Executor const& run_on = {}) {
  using T = compute_type<X, G, S>;
  recur::expect_same_shape("strength", strength, x, "x");
  log_sigmoid_gate(x, log_gate, 8, run_on);
  recur::transform(
      any_executor(run_on), sink<T>(strength),
      [](auto const& each) {
        using batch = std::remove_cvref_t<decltype(each)>;
        return -simd::expm1(simd::softplus(-each) * batch(T(-0.125)));
      },
      source<T>(x));
}

/// From the gradients by log_gate and strength to that by x.
template <element X, element DG, element DS, element DX, class Executor = serial>
void slot_gates_backward(tensor_view<X, 4> x, tensor_view<DG, 4> dlog_gate,
                         tensor_view<DS, 4> dstrength, tensor_view<DX, 4> dx,
                         Executor const& run_on = {}) {
  using T = compute_type<X, DG, DS, DX>;
  recur::expect_same_shape("dlog_gate", dlog_gate, x, "x");
  recur::expect_same_shape("dstrength", dstrength, x, "x");
  recur::expect_same_shape("dx", dx, x, "x");
  recur::transform(
      any_executor(run_on), sink<T>(dx),
      [](auto const& each, auto const& gate, auto const& strength) {
        using batch = std::remove_cvref_t<decltype(each)>;
        batch const kept = simd::exp(simd::softplus(-each) * batch(T(-0.125)));
        return simd::fnma(kept, strength, gate) * simd::sigmoid(-each) * batch(T(0.125));
      },
      source<T>(x), source<T>(dlog_gate), source<T>(dstrength));
}

/// Gated slot attention.
///
///   query, key, value, out   as in linear_attention
///   strength, log_gate       [batch, M, heads, slots]; log gates at most 0
///
/// Ingredients: scale (default head_dim^-1/2), slot_state, documents, chunk_size, an executor, scratch.
template <element Q, element K, element V, element S, element G, element O, class... Ingredients>
void gated_slot_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<S, 4> strength, tensor_view<G, 4> log_gate,
                          tensor_view<O, 4> out, Ingredients const&... ingredients) {
  recur::expect_same_shape("log_gate", log_gate, strength, "strength");
  detail::slot_attention<compute_type<Q, K, V, S, G, O>>(query, key, value, strength, log_gate, out,
                                                         ingredients...);
}

/// Its gradients. Further ingredients: the slot_state that the forward call began with, slot_state_gradient, which receives its
/// gradient, and slot_final_gradient. dstrength and dlog_gate are shaped like strength and log_gate. Scores are computed again.
template <element Q, element K, element V, element S, element G, element O, element DO, element DQ,
          element DK, element DV, element DS, element DG, class... Ingredients>
void gated_slot_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<S, 4> strength,
                                   tensor_view<G, 4> log_gate, tensor_view<O, 4> out,
                                   tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                   tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                   tensor_view<DS, 4> dstrength, tensor_view<DG, 4> dlog_gate,
                                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, S, G, O, DO, DQ, DK, DV, DS, DG>;
  recur::expect_same_shape("log_gate", log_gate, strength, "strength");
  recur::expect_same_shape("dstrength", dstrength, strength, "strength");
  recur::expect_same_shape("dlog_gate", dlog_gate, strength, "strength");
  auto const slots = detail::slot_attention_backward<true, T>(
      query, key, value, strength, log_gate, out, dout, dquery, dkey, dvalue, ingredients...);
  auto const runs = recur::executor_of(ingredients...);
  auto const add = [&](auto const& to, auto const& parts) {
    recur::transform(
        any_executor(runs), sink<T>(to), [](auto const& a, auto const& b) { return a + b; },
        source<T>(parts[0]), source<T>(parts[1]));
  };
  add(dstrength, slots.dstrength);
  add(dlog_gate, slots.dgate);
}

/// One token, whose tensors have one position; `held` is updated. Allocates nothing after the first.
template <element Q, element K, element V, element S, element G, element O, class E,
          class... Ingredients>
void gated_slot_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<S, 4> strength,
                               tensor_view<G, 4> log_gate, tensor_view<O, 4> out,
                               slot_state<E> const& held, Ingredients const&... ingredients) {
  recur::expect_same_shape("log_gate", log_gate, strength, "strength");
  detail::slot_attention_step<compute_type<Q, K, V, S, G, O, E>>(
      query, key, value, strength, log_gate, out, held, ingredients...);
}

}  // namespace heed
