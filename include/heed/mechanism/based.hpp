#pragma once

#include <heed/recur/features/polynomial.hpp>
#include <heed/recur/linear_attention.hpp>

/// The linear layer of BASED (Arora et al.: Simple Linear Attention Language Models Balance the Recall-Throughput
/// Tradeoff): attention with the second-order Taylor polynomial of the exponential, whose weights are at least 1/2,
///
///     out_i = sum_(j <= i) f(s_ij) v_j / sum_(j <= i) f(s_ij),  f(s) = 1 + s + s^2 / 2,  s_ij = q_i.k_j / sqrt(head_dim)
///
/// for queries and keys of few channels, 16 in the paper: a state has 1 + D + D (D + 1) / 2 rows of value_dim + 1
/// numbers. The paper alternates such layers with others of exact attention in a window of 64 or 128 tokens,
/// `attention(q, k, v, out, sliding_window{63, 0})`; there is nothing that the two have in common.
namespace heed {

/// What the sum of weights is increased by: nothing, next to weights of at least 1/2.
inline constexpr normalised based_normaliser{.epsilon = 1e-12};

/// Shapes and further ingredients as those of linear_attention: dense, documents, states, executor.
template <element Q, element K, element V, element O, class... Ingredients>
void based_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<O, 4> out, Ingredients const&... ingredients) {
  linear_attention(query, key, value, out, taylor{}, based_normaliser, ingredients...);
}

template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void based_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                              tensor_view<V, 4> value, tensor_view<O, 4> out,
                              tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                              tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                              Ingredients const&... ingredients) {
  linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue, taylor{},
                            based_normaliser, ingredients...);
}

/// One token; `state` is [batch, state heads, taylor::features(head_dim), value_dim + 1].
template <element Q, element K, element V, element O, class S, class... Ingredients>
void based_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<O, 4> out, tensor_view<S, 4> state,
                          Ingredients const&... ingredients) {
  linear_attention_step(query, key, value, out, state, taylor{}, based_normaliser, ingredients...);
}

}  // namespace heed
