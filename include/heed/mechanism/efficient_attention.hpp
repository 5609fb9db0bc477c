#pragma once

#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/prefix.hpp>

#include <cmath>

/// Efficient Attention (Shen et al.: Efficient Attention, Attention with Linear Complexities): queries choose among
/// channels, channels average values over positions,
///
///     out = A (B^T v),   A = softmax of each query over its channels,   B = softmax of each channel over the keys
///
/// with any number of queries and keys. The rows of A B^T are weights of sum 1. The causal form, which is ours, has
/// softmaxes over the keys so far in B: with z_t = log sum_(s <= t) e^k_s of each channel, S_t = diag(e^(z_(t-1) -
/// z_t)) S_(t-1) + e^(k_t - z_t) v_t^T.
namespace heed {

/// z of each channel of the keys so far, which belongs to the state of causal_efficient_attention: read where the
/// state is, and updated where that is. Begins as -infinity.
///
///   view   [sequences, heads of the keys, head_dim]
struct running_log_total {
  tensor_view<double, 3> view;
};

namespace detail {
struct efficient_attention_page {};
struct efficient_attention_gradient_page {};

inline void copy_log_total(tensor_view<double, 3> from, tensor_view<double, 3> to) {
  for (index_t s = 0; s < to.extent(0); ++s)
    for (index_t h = 0; h < to.extent(1); ++h)
      for (index_t d = 0; d < to.extent(2); ++d) to(s, h, d) = from(s, h, d);
}

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

/// Shapes as those of linear_attention; ingredients are documents, executor and scratch. The weights B are kept in
/// memory of the calling thread that only grows.
template <element Q, element K, element V, element O, class... Ingredients>
void efficient_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  auto const sequences =
      detail::efficient_attention_sequences<T>(query, key, value, out, ingredients...);
  auto const run_on = recur::executor_of(ingredients...);
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
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const [weights, dweights] =
      recur::page_tensors<detail::efficient_attention_gradient_page, T>(key.extents(),
                                                                        key.extents());
  using rows = recur::channel_rows<double>;
  recur::position_softmax(run_on, sequences, rows(key), rows(weights));
  linear_attention_backward(query, weights, value, out, dout, dquery, dweights, dvalue,
                            for_queries(channel_softmax{}), dense{}, ingredients...);
  recur::position_softmax_backward(run_on, sequences, rows(weights), rows(dweights), rows(dkey));
}

namespace detail {

inline constexpr auto is_log_total = []<class T>() { return std::same_as<T, running_log_total>; };
inline constexpr auto is_no_log_total = []<class T>() {
  return !std::same_as<T, running_log_total>;
};

/// What stands between keys and the engine, in memory of the calling thread.
template <class T>
struct causal_efficient_parts {
  tensor_view<T, 4> weights, log_gates;
  tensor_view<double, 3> log_total;  // after the call; a copy
  recur::sequence_list sequences;
};
template <class T, class Q, class K, class V, class O, class... I>
causal_efficient_parts<T> causal_efficient_attention_parts(
    any_executor const& run_on, tensor_view<Q, 4> query, tensor_view<K, 4> key,
    tensor_view<V, 4> value, tensor_view<O, 4> out, I const&... ingredients) {
  static_assert(
      (false || ... || is_log_total.template operator()<I>()) ==
          (false || ... || (is_a<I, state> || is_a<I, initial_state> || is_a<I, final_state>)),
      "heed: the state of causal_efficient_attention and its running_log_total come together");
  causal_efficient_parts<T> parts;
  // Everything is checked before anything is written.
  std::apply(
      [&](auto const&... own) {
        parts.sequences =
            recur::make_problem<T>(query, key, value, out, for_queries(channel_softmax{}), own...)
                .sequences;
      },
      all_of<is_no_log_total>(ingredients...));
  auto const before = one_of<is_log_total>(running_log_total{}, ingredients...).view;
  std::array<index_t, 3> const expected{parts.sequences.count, key.extent(2), key.extent(3)};
  if (before.data() != nullptr) {
    require(before.extents() == expected, [&] {
      return "running_log_total has shape " + shape_text(before.extents()) +
             "; expected [sequences, key heads, head_dim], " + shape_text(expected);
    });
    parts.log_total =
        tensor_view<double, 3>(recur::page_tensors<efficient_attention_page, double>(
                                   recur::tensor_shape{expected[0], 1, expected[1], expected[2]})[0]
                                   .data(),
                               expected);
    copy_log_total(before, parts.log_total);
  }
  auto const pages = recur::page_tensors<efficient_attention_page, T>(key.extents(), key.extents());
  parts.weights = pages[0];
  parts.log_gates = pages[1];
  using rows = recur::channel_rows<double>;
  recur::running_softmax(run_on, parts.sequences, rows(key), rows(parts.weights),
                         rows(parts.log_gates), parts.log_total);
  return parts;
}

template <class... I>
void update_log_total(tensor_view<double, 3> now, I const&... ingredients) {
  auto const to = one_of<is_log_total>(running_log_total{}, ingredients...).view;
  if (to.data() != nullptr) copy_log_total(now, to);
}

}  // namespace detail

/// Causal efficient attention; shapes as those of linear_attention. Ingredients are states with their
/// running_log_total, documents, chunk_size, executor and scratch. A state is [sequences, state heads, head_dim,
/// value_dim].
template <element Q, element K, element V, element O, class... Ingredients>
void causal_efficient_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                tensor_view<V, 4> value, tensor_view<O, 4> out,
                                Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  auto const runs = recur::executor_of(ingredients...);
  auto const parts = detail::causal_efficient_attention_parts<T>(any_executor(runs), query, key,
                                                                 value, out, ingredients...);
  std::apply(
      [&](auto const&... own) {
        linear_attention(query, parts.weights, value, out, for_queries(channel_softmax{}),
                         key_decay(parts.log_gates), own...);
      },
      all_of<detail::is_no_log_total>(ingredients...));
  detail::update_log_total(parts.log_total, ingredients...);
}

/// The gradients of a causal_efficient_attention that begins without a state. Heads of keys divide those of queries.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void causal_efficient_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                         tensor_view<V, 4> value, tensor_view<O, 4> out,
                                         tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                         tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                         Ingredients const&... ingredients) {
  static_assert(!(false || ... || detail::is_log_total.template operator()<Ingredients>()),
                "heed: causal_efficient_attention_backward takes no states");
  using T = compute_type<recur::compute_type_of<Q, K, V, O, Ingredients...>, DO, DQ, DK, DV>;
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_distinct_elements("dquery", dquery);
  detail::expect_distinct_elements("dkey", dkey);
  require(key.extent(2) > 0 && query.extent(2) % key.extent(2) == 0, [&] {
    return "key has shape " + shape_text(key.extents()) +
           "; expected a number of heads that divides the " + std::to_string(query.extent(2)) +
           " of query";
  });
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const parts =
      detail::causal_efficient_attention_parts<T>(run_on, query, key, value, out, ingredients...);
  auto const pages = recur::page_tensors<detail::efficient_attention_gradient_page, T>(
      query.extents(), query.extents(), key.extents(), key.extents());
  auto const phi = pages[0], dphi = pages[1], dweights = pages[2], reads = pages[3];
  channel_softmax const softmax_of_channels;
  feature_map_view<T> const map(softmax_of_channels);
  recur::write_features(run_on, map, side::query, source<T>(query), 0, phi);
  linear_attention_backward(phi, parts.weights, value, out, dout, dphi, dweights, dvalue,
                            key_decay(parts.log_gates), ingredients...);
  // What the gates take is what averages divide by: they need no gradient of their own.
  recur::sum_of_reads(run_on, parts.sequences, phi, dphi, reads, false);
  using rows = recur::channel_rows<double>;
  recur::running_softmax_backward(run_on, parts.sequences, rows(parts.weights), rows(dweights),
                                  rows(reads), rows(dkey), {});
  recur::write_feature_gradient(run_on, map, side::query, source<T>(query), 0, phi, dphi,
                                sink<T>(dquery));
}

/// One token of causal_efficient_attention; `state` and `total` are updated.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void causal_efficient_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                     tensor_view<V, 4> value, tensor_view<O, 4> out,
                                     tensor_view<S, 4> state, running_log_total const& total,
                                     Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, heed::state<S>, Ingredients...>;
  auto const runs = recur::executor_of(ingredients...);
  auto const parts = detail::causal_efficient_attention_parts<T>(
      any_executor(runs), query, key, value, out, heed::state<S>{state}, total, ingredients...);
  linear_attention_step(query, parts.weights, value, out, state, for_queries(channel_softmax{}),
                        key_decay(parts.log_gates), ingredients...);
  detail::update_log_total(parts.log_total, total);
}

/// The other normalisation of the paper, by lengths: out = q / sqrt(N) (k / sqrt(M))^T v. One sequence a batch
/// entry; ingredients are executor and scratch.
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
