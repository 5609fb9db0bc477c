#pragma once

#include <heed/linear.hpp>
#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/prefix.hpp>

#include <cmath>

/// Efficient Attention (Shen et al.: Efficient Attention, Attention with Linear Complexities): queries choose among channels,
/// channels average values over positions,
///
///     out = A (B^T v),   A = softmax of each query over its channels,   B = softmax of each channel over the keys
///
/// with any number of queries and keys. The rows of A B^T are weights of sum 1. Its causal form, with softmaxes over the keys so far, is that of
/// LightNet with channel_softmax for the queries.
namespace heed {

namespace detail {
struct efficient_attention_page {};
struct efficient_attention_gradient_page {};

/// Checks the call, and returns its sequences.
template <class T, class Q, class K, class V, class O, class... I>
recur::sequence_list efficient_attention_sequences(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                                   tensor_view<V, 4> value, tensor_view<O, 4> out,
                                                   I const&... ingredients) {
  return recur::make_problem<T>(query, key, value, out, for_queries(channel_softmax{}), dense{},
                                ingredients...)
      .sequences;
}

}  // namespace detail

/// Shapes as those of linear_attention; ingredients are documents, executor and scratch. The weights B are kept in memory of the
/// calling thread that only grows.
template <element Q, element K, element V, element O, class... Ingredients>
void efficient_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  auto const sequences =
      detail::efficient_attention_sequences<T>(query, key, value, out, ingredients...);
  auto const run_on = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  auto const [weights] = recur::page_tensors<detail::efficient_attention_page, T>(key.extents());
  using rows = recur::channel_rows<double>;
  recur::position_softmax(any_executor(run_on), sequences, rows(key), rows(weights));
  linear_attention(query, weights, value, out, for_queries(channel_softmax{}), dense{},
                   ingredients...);
}

/// The gradients of efficient_attention, with the ingredients of the forward call; `out` is what that returned.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void efficient_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                  tensor_view<V, 4> value, tensor_view<O, 4> out,
                                  tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                  tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                  Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV>;
  auto const sequences =
      detail::efficient_attention_sequences<T>(query, key, value, out, ingredients...);
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_distinct_elements("dkey", dkey);
  any_executor const run_on(one_of<recur::detail::is_executor>(serial{}, ingredients...));
  auto const [weights, dweights] =
      recur::page_tensors<detail::efficient_attention_gradient_page, T>(key.extents(),
                                                                        key.extents());
  using rows = recur::channel_rows<double>;
  recur::position_softmax(run_on, sequences, rows(key), rows(weights));
  linear_attention_backward(query, weights, value, out, dout, dquery, dweights, dvalue,
                            for_queries(channel_softmax{}), dense{}, ingredients...);
  recur::position_softmax_backward(run_on, sequences, rows(weights), rows(dweights), rows(dkey));
}

/// The other normalisation of the paper, by lengths: out = q / sqrt(N) (k / sqrt(M))^T v. One sequence a batch entry; ingredients are executor
/// and scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void efficient_attention_by_length(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<O, 4> out,
                                   Ingredients const&... ingredients) {
  static_assert(!(false || ... || std::same_as<Ingredients, documents>),
                "heed: the length of documents differs; call for each of them");
  double const pairs = static_cast<double>(query.extent(1)) * static_cast<double>(key.extent(1));
  linear_attention(query, key, value, out, dense{},
                   scale{1 / std::sqrt(std::max(pairs, 1.0)), nullptr}, ingredients...);
}
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void efficient_attention_by_length_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                            tensor_view<V, 4> value, tensor_view<O, 4> out,
                                            tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                            tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                            Ingredients const&... ingredients) {
  static_assert(!(false || ... || std::same_as<Ingredients, documents>),
                "heed: the length of documents differs; call for each of them");
  double const pairs = static_cast<double>(query.extent(1)) * static_cast<double>(key.extent(1));
  linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue, dense{},
                            scale{1 / std::sqrt(std::max(pairs, 1.0)), nullptr}, ingredients...);
}

}  // namespace heed
