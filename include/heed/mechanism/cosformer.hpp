#pragma once

#include <heed/recur/features/cosine_reweighted.hpp>
#include <heed/recur/linear_attention.hpp>

/// cosFormer (Qin et al.: cosFormer, Rethinking Softmax in Attention): linear attention with the weights
///
///     w_ij = relu(q_i) . relu(k_j) cos(pi (i - j) / 2 m),     out_i = sum_j w_ij v_j / max(sum_j w_ij, 1e-6)
///
/// for a horizon m no shorter than the sequence; far keys count less the nearer they are to it, and results depend
/// on it. Causal, the last query stands where the last key does; with dense{} query i and key i stand at one place.
namespace heed {

/// The horizon m, and how many tokens of a sequence were before this call's; a sequence that is worked on in several
/// calls has one horizon for all of them. Default: the longer of queries and keys, and no tokens before.
struct cosine_horizon {
  index_t positions = 0;
  index_t tokens_before = 0;
};

namespace detail {

inline constexpr normalised cosformer_normaliser{.epsilon = 0, .at_least = 1e-6};
inline constexpr auto is_cosine_horizon = []<class T>() { return std::same_as<T, cosine_horizon>; };
inline constexpr auto is_no_cosine_horizon = []<class T>() {
  return !std::same_as<T, cosine_horizon>;
};

template <class... I>
cosine_reweighted cosformer_map(index_t rows, index_t keys, I const&... ingredients) {
  cosine_horizon const given = one_of<is_cosine_horizon>(cosine_horizon{}, ingredients...);
  index_t const longest = given.tokens_before + std::max(rows, keys);
  index_t const horizon = given.positions == 0 ? std::max<index_t>(longest, 1) : given.positions;
  require(given.tokens_before >= 0 && horizon >= longest, [&] {
    return "cosine_horizon has " + std::to_string(given.positions) + " positions and " +
           std::to_string(given.tokens_before) + " tokens before; expected at least " +
           std::to_string(longest) + " positions for " + std::to_string(rows) + " queries and " +
           std::to_string(keys) + " keys";
  });
  return {horizon, given.tokens_before};
}

}  // namespace detail

/// Shapes and further ingredients as those of linear_attention: cosine_horizon, dense, documents, states, executor.
template <element Q, element K, element V, element O, class... Ingredients>
void cosformer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<O, 4> out, Ingredients const&... ingredients) {
  auto const map = detail::cosformer_map(query.extent(1), key.extent(1), ingredients...);
  std::apply(
      [&](auto const&... own) {
        linear_attention(query, key, value, out, map, detail::cosformer_normaliser, own...);
      },
      all_of<detail::is_no_cosine_horizon>(ingredients...));
}

template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void cosformer_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                        tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                        Ingredients const&... ingredients) {
  auto const map = detail::cosformer_map(query.extent(1), key.extent(1), ingredients...);
  std::apply(
      [&](auto const&... own) {
        linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue, map,
                                  detail::cosformer_normaliser, own...);
      },
      all_of<detail::is_no_cosine_horizon>(ingredients...));
}

/// One token; `state` is [batch, state heads, 2 head_dim, value_dim + 1], and `at` the horizon, fixed beforehand,
/// and how many tokens the state has seen.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void cosformer_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, tensor_view<S, 4> state, cosine_horizon const& at,
                    Ingredients const&... ingredients) {
  require(at.positions > 0, [] { return "a step of cosformer needs cosine_horizon.positions"; });
  linear_attention_step(query, key, value, out, state, detail::cosformer_map(1, 1, at),
                        detail::cosformer_normaliser, ingredients...);
}

}  // namespace heed
