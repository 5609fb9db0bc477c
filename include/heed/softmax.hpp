#pragma once

#include <heed/attend/backward.hpp>
#include <heed/attend/forward.hpp>
#include <heed/attend/merge.hpp>
#include <heed/cache/kv_cache.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/score/alibi.hpp>
#include <heed/score/bias.hpp>
#include <heed/score/softcap.hpp>

/// Exact softmax attention: prefill, decode and backward.
namespace heed {

/// Softmax attention, s_ij = scale q_i.k_j modified by the ingredients, a_ij = exp(s_ij) / sum_j exp(s_ij)
/// over the keys that the pattern keeps, out_i = sum_j a_ij v_j.
///
///   query  [batch, N, heads, head_dim]
///   key    [batch, M, key_heads, head_dim]
///   value  [batch, M, value_heads, value_dim]
///   out    [batch, N, heads, value_dim]
///
/// Query head h reads key head floor(h * key_heads / heads) and value head floor(h * value_heads / heads);
/// both counts divide heads. Elements are double, float, Eigen::half or Eigen::bfloat16, each tensor its
/// own; arithmetic is in float, and in double where a tensor is double. Any strides; value may alias key.
///
/// Ingredients, in any order, each at most once unless marked *:
///   a pattern           causal, sliding_window, first_keys, key_lengths, &, |, ~, your own   default dense
///   positions           top_left, query_positions                                    default bottom right
///   sequences           documents                                             default one a batch entry
///   scale, row_scale    factors of the raw product                              default 1/sqrt(head_dim)
///   score modifiers *   softcap, alibi, bias, your own, applied in the order given
///   numerator factors * your own
///   a normaliser        softmax, softmax_with_sinks                                       default softmax
///   observers *         lse_into, row_max_into, entropy_into, column_sums_into, top_keys_into
///   an executor         serial, on, openmp                                                 default serial
///   scratch             the workspace to use                                      default one a thread
///
/// A query that meets no key gives 0, and lse -infinity. The result has the same bits for every executor
/// and number of threads. Throws heed::error before writing anything if shapes do not fit.
template <element Q, element K, element V, element O, class... Ingredients>
void attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<O, 4> out, Ingredients const&... ingredients) {
  attend::forward(query, key, value, out, ingredients...);
}

/// Attention over the keys and values in a cache: a step of decoding, or a chunk of a prompt.
template <element Q, element K, element O, class... Ingredients>
void attention(tensor_view<Q, 4> query, kv_cache<K> const& cache, tensor_view<O, 4> out,
               Ingredients const&... ingredients) {
  attention(query, cache.keys(), cache.values(), out, ingredients...);
}

/// The gradients of attention() from its saved result. Call it with the ingredients of the forward call.
///
///   out, lse    what attention() returned; lse is [batch, heads, N], in the type of the computation
///   dout        d loss / d out, shaped like out
///   dquery, dkey, dvalue   receive the gradients, shaped like query, key and value; those of shared
///               heads are summed. A gradient of half or bfloat16 is summed in a float buffer of its size.
///
/// Further ingredients: lse_gradient{dlse} where the loss also depends on lse. The gradients of scale,
/// softcap, alibi, bias and sinks are written where the ingredient carries a `gradient`.
template <element Q, element K, element V, element O, class T, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, tensor_view<T, 3> lse, tensor_view<DO, 4> dout,
                        tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                        tensor_view<DV, 4> dvalue, Ingredients const&... ingredients) {
  attend::backward(query, key, value, out, lse, dout, dquery, dkey, dvalue, ingredients...);
}

}  // namespace heed
