#pragma once

#include <heed/recur/backward.hpp>
#include <heed/recur/forward.hpp>
#include <heed/recur/step.hpp>

namespace heed {

/// A gated linear recurrence, read at every token:
///
///     S_t = diag(e^g_t) S_(t-1) diag(e^h_t) + phi(k_t) v_t^T          out_t = phi(scale q_t)^T S_t
///
///   query  [batch, N, query heads, head_dim]
///   key    [batch, M, key heads, head_dim]
///   value  [batch, M, value heads, value_dim]
///   out    [batch, N, heads, value_dim]
///
/// The number of heads of each divides that of out; head h of out reads head floor(h * key_heads / heads), and so on. Keys,
/// values, gates and rates of a head make its state; heads of out that share all of them share it. Before row i is read the
/// state has taken in all keys j <= i + M - N. Elements are double, float, Eigen::half or Eigen::bfloat16, each tensor its
/// own, with any strides; arithmetic is in float, in double where a tensor or a state is. Rows are worked on in chunks, at
/// 4 F E + (C + 1) (F + E) operations a token for F features, E channels and chunks of C.
///
/// Ingredients, in any order, each at most once:
///   a feature map          phi of queries and keys; for_queries(map), for_keys(map)    default identity
///   decay, fixed_decay     a log gate for each token, or the same for all              default none
///   key_decay              a log gate for each feature
///   value_decay            a log gate for each channel of the value
///   delta, exact_delta     what the state says of a key already is taken away first    default: added
///   normalised             divided by phi(q) . z, z_t = diag(e^g_t) z_(t-1) + phi(k_t) default: not
///   dense                  every row reads the state after the last key                default causal
///   scale                  a factor of the queries, before the feature map             default 1
///   state, initial_state, final_state      what the call begins and ends with          default 0
///   documents              packed sequences, each with a state of its own              default one a batch entry
///   chunk_size             the tokens of a chunk                                       default by shape
///   an executor            serial, on, openmp                                          default serial
///   scratch                the workspace to use                                        default one a thread
///
/// Calls can be chained: one that begins with the state another has ended with goes on where that one stopped. The
/// result has the same bits for every executor and number of threads. Throws heed::error before writing anything if shapes do
/// not fit, if a log gate is above 0 or NaN, or a rate is not finite.
template <element Q, element K, element V, element O, class... Ingredients>
void linear_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<O, 4> out, Ingredients const&... ingredients) {
  recur::forward(query, key, value, out, ingredients...);
}

/// The gradients of linear_attention(). Call it with the ingredients of the forward call, `state{s}` replaced by an
/// initial_state with what s was before.
///
///   out     what linear_attention() returned
///   dout    d loss / d out, shaped like out
///   dquery, dkey, dvalue   receive the gradients, shaped like query, key and value; those of shared heads are summed
///
/// Further ingredients: final_state_gradient where the loss also depends on the final state. The gradients of gates, rates and
/// the initial state are written where the ingredient carries a `gradient`. States are made anew, chunk by chunk, from some
/// that are kept: memory grows with the square root of the length.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void linear_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<O, 4> out,
                               tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                               tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                               Ingredients const&... ingredients) {
  recur::backward(query, key, value, out, dout, dquery, dkey, dvalue, ingredients...);
}

/// One token of linear_attention: its tensors have one position, and `state` is updated where it lies.
///
///   state   [batch, state heads, features, value_dim (+ 1 if normalised)], float or double
///
/// Allocates nothing once the workspace has its size. A feature map that depends on positions is given position 0: write one
/// that carries the position.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void linear_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<O, 4> out, tensor_view<S, 4> state,
                           Ingredients const&... ingredients) {
  recur::step(query, key, value, out, state, ingredients...);
}

}  // namespace heed
