#pragma once

#include <heed/recur/gate_functions.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/row_norms.hpp>

/// Gated Linear Attention (Gated Linear Attention Transformers with Hardware-Efficient Training): a gate for each channel
/// of the key, made of the token,
///
///     g_t = log(sigmoid(gate_t)) / 16     S_t = diag(e^g_t) S_(t-1) + k_t v_t^T     out_t = scale q_t^T S_t
///
/// with scale head_dim^-1/2. Before the layer's output projection comes gla_output.
namespace heed {

namespace detail {

struct gla_page;
inline constexpr double gla_temperature = 16;

/// Calls f(log gates, ingredients with a scale) for a call with these gate logits.
template <class T, class G, class F, class... I>
void with_gla_gate(tensor_view<G, 4> gate, F const& f, I const&... ingredients) {
  auto const log_gate = recur::page_tensors<gla_page, T>(gate.extents(), gate.extents());
  log_sigmoid_gate(gate, log_gate[0], gla_temperature, recur::executor_of(ingredients...));
  recur::with_default_scale(
      gate.extent(3), [&](auto const&... all) { f(log_gate[0], log_gate[1], all...); },
      ingredients...);
}

}  // namespace detail

/// Gated linear attention; shapes as in linear_attention, `gate` [batch, M, heads, head_dim], the numbers before the sigmoid.
/// Ingredients are those of linear_attention but maps and decays. Log gates are kept in memory of the calling thread.
template <element Q, element K, element V, element G, element O, class... Ingredients>
void gated_linear_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                            tensor_view<G, 4> gate, tensor_view<O, 4> out,
                            Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O>;
  detail::with_gla_gate<T>(
      gate,
      [&](tensor_view<T, 4> log_gate, auto const&, auto const&... all) {
        linear_attention(query, key, value, out, key_decay(log_gate), all...);
      },
      ingredients...);
}

/// Its gradients, with the ingredients of the forward call as in linear_attention_backward.
template <element Q, element K, element V, element G, element O, element DO, element DQ, element DK,
          element DV, element DG, class... Ingredients>
void gated_linear_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                     tensor_view<V, 4> value, tensor_view<G, 4> gate,
                                     tensor_view<O, 4> out, tensor_view<DO, 4> dout,
                                     tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                     tensor_view<DV, 4> dvalue, tensor_view<DG, 4> dgate,
                                     Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O, DO, DQ, DK, DV, DG>;
  detail::expect_like("dgate", dgate, gate.extents(), "gate");
  detail::with_gla_gate<T>(
      gate,
      [&](tensor_view<T, 4> log_gate, tensor_view<T, 4> dlog_gate, auto const&... all) {
        linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue,
                                  key_decay(log_gate, dlog_gate), all...);
        log_sigmoid_gate_backward(gate, dlog_gate, dgate, detail::gla_temperature,
                                  recur::executor_of(all...));
      },
      ingredients...);
}

/// One token of gated_linear_attention; see linear_attention_step.
template <element Q, element K, element V, element G, element O, class S, class... Ingredients>
void gated_linear_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                 tensor_view<V, 4> value, tensor_view<G, 4> gate,
                                 tensor_view<O, 4> out, tensor_view<S, 4> state,
                                 Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O>;
  detail::with_gla_gate<T>(
      gate,
      [&](tensor_view<T, 4> log_gate, auto const&, auto const&... all) {
        linear_attention_step(query, key, value, out, state, key_decay(log_gate), all...);
      },
      ingredients...);
}

/// The end of the layer, rms(attended) * silu(gate) of each head; all [batch, position, heads, value_dim].
template <element X, element G, element O, class Executor = serial>
void gla_output(tensor_view<X, 4> attended, tensor_view<G, 4> gate, tensor_view<O, 4> out,
                Executor const& run_on = {}) {
  normalise_and_gate<silu>(attended, gate, out, rms_norm{}, run_on);
}

/// Its gradients.
template <element X, element G, element DO, element DX, element DG, class Executor = serial>
void gla_output_backward(tensor_view<X, 4> attended, tensor_view<G, 4> gate,
                         tensor_view<DO, 4> dout, tensor_view<DX, 4> dattended,
                         tensor_view<DG, 4> dgate, Executor const& run_on = {}) {
  normalise_and_gate_backward<silu>(attended, gate, dout, dattended, dgate, rms_norm{}, run_on);
}

}  // namespace heed
