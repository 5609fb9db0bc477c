#pragma once

#include <heed/cache/ring_cache.hpp>
#include <heed/mechanism/extra_keys.hpp>
#include <heed/mechanism/learned_features.hpp>
#include <heed/mechanism/lizard_gated.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/simd/fma.hpp>
#include <heed/softmax.hpp>

/// Lizard: An Efficient Linearization Framework for Large Language Models. What takes the place of softmax attention is the sum of
/// two branches, each with a normaliser of its own:
///
///     gated     y_i = sum_(j <= i) (phi_q(q_i) * e^(G_i - G_j)).phi_k(k_j) v_j / the same without v_j,
///               phi(x) = [e^(x W), e^(-x W)], G the running sum of log sigmoid(gate)
///     windowed  w_i = softmax attention over the `window` last keys and some learned sinks
///     out_i     = y_i + alpha w_i
///
/// Positions are not rotated. Exponentials of any size: a query's are relative to its largest |q W|, a key's to the largest
/// |k W| of the keys so far, which passes into the gate; both cancel in y.
namespace heed {

/// The learned parameters and the form.
///
///   query_weights, key_weights   W, [heads of query, of key, or 1; head_dim, width]
///   alpha                        one for each head
///   window                       how many keys the windowed branch meets, the query's own included
///   sinks                        [heads, sinks], logits whose weight carries no value. Optional
///   meta_keys, meta_values       instead of sinks, [batch, keys, heads, dim]: keys that every query meets in the window's
///                                softmax. Optional; give a batch stride of 0 to share them
///   normalised                   false: y without the division, the recurrence that the paper decodes with. Exponents are then
///                                kept within 30
template <class T>
struct lizard_parameters {
  tensor_view<T const, 3> query_weights;
  tensor_view<T const, 3> key_weights;
  std::span<T const> alpha;
  index_t window;
  tensor_view<T const, 2> sinks = {};
  tensor_view<T const, 4> meta_keys = {};
  tensor_view<T const, 4> meta_values = {};
  bool normalised = true;
};

/// Where the backward pass writes the gradients of the parameters, shaped like them.
template <class T>
struct lizard_gradients {
  tensor_view<T, 3> query_weights;
  tensor_view<T, 3> key_weights;
  std::span<T> alpha;
  tensor_view<T, 2> sinks = {};
  tensor_view<T, 4> meta_keys = {};
  tensor_view<T, 4> meta_values = {};
};

/// The results of the two branches, which the backward pass needs: gated and windowed [batch, N, heads, value_dim], lse
/// [batch, heads, N], all in the type of the computation.
template <class T>
struct lizard_branches {
  tensor_view<T, 4> gated;
  tensor_view<T, 4> windowed;
  tensor_view<T, 3> lse;
};

namespace detail {

struct lizard_gradient_page;
struct lizard_gate_gradient_page;
struct lizard_step_page;
struct lizard_state_page;

/// Calls f(clauses of the windowed branch's normaliser...).
template <class E, class F>
void with_lizard_sinks(lizard_parameters<E> const& with, tensor_view<E, 2> gradient, F const& f) {
  if (with.sinks.data() == nullptr)
    f();
  else
    f(softmax_with_sinks<E>(with.sinks, gradient));
}

inline auto lizard_window(index_t window) {
  return causal{} & sliding_window{.left = window - 1};
}

/// The windowed branch of the keys that are given, whose softmax has sinks or further keys.
template <class Q, class K, class V, class O, class E, class... I>
void lizard_windowed(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     lizard_parameters<E> const& with, tensor_view<O, 4> out,
                     I const&... ingredients) {
  if (with.meta_keys.data() != nullptr)
    attention_with_extra_keys(query, key, value, extra_keys(with.meta_keys, with.meta_values), out,
                              ingredients...);
  else
    with_lizard_sinks<E>(with, {}, [&](auto const&... sinks) {
      attention(query, key, value, out, sinks..., ingredients...);
    });
}

/// out = gated + alpha windowed.
template <class T, class O, class E>
void add_lizard_branches(any_executor const& run_on, tensor_view<T, 4> gated,
                         tensor_view<T, 4> windowed, std::span<E const> alpha,
                         tensor_view<O, 4> out) {
  tensor_view<E const, 4> const factors(alpha.data(), out.extents(), {0, 0, 1, 0});
  recur::transform(
      run_on, sink<T>(out),
      [](auto const& y, auto const& w, auto const& a) { return simd::fma(a, w, y); },
      source<T>(gated), source<T>(windowed), source<T>(factors));
}

template <class O, class E>
void check_lizard_parameters(tensor_view<O, 4> out, lizard_parameters<E> const& with) {
  require(static_cast<index_t>(with.alpha.size()) == out.extent(2), [&] {
    return "lizard_parameters.alpha has " + std::to_string(with.alpha.size()) +
           " numbers; expected one for each of " + std::to_string(out.extent(2)) + " heads";
  });
  require(with.window > 0, [&] {
    return "lizard_parameters.window is " + std::to_string(with.window) +
           "; expected at least 1 key";
  });
  require(with.sinks.data() == nullptr || with.meta_keys.data() == nullptr, [] {
    return std::string("lizard_parameters has sinks and meta_keys; expected one of them");
  });
}

template <class Q, class... I>
scale lizard_scale(tensor_view<Q, 4> query, I const&... ingredients) {
  return one_of<recur::detail::is_scale>(
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(query.extent(3), 1))), nullptr},
      ingredients...);
}

}  // namespace detail

/// Lizard's attention.
///
///   query, key, value, out   as in attention()
///   gate                     [batch, M, key heads, 1 or width]: numbers before the sigmoid, for a head or for each
///                            feature of k W
///   branches                 receives the results of the branches
///
/// Ingredients: scale of the windowed branch (default head_dim^-1/2), lizard_state, documents, chunk_size, an executor, scratch. A
/// lizard_state carries on the gated branch. The windowed one meets the keys that are given, of which there may then be more than
/// gates: with those of the window - 1 tokens before, which the state has taken in, a sequence can be cut anywhere.
template <element Q, element K, element V, element G, element O, class E, class T,
          class... Ingredients>
void lizard_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<G, 4> gate, lizard_parameters<E> const& with,
                      lizard_branches<T> const& branches, tensor_view<O, 4> out,
                      Ingredients const&... ingredients) {
  static_assert(std::is_same_v<T, compute_type<Q, K, V, G, O, E>>,
                "heed: the branches of lizard are in the type of the computation");
  detail::check_lizard_parameters(out, with);
  index_t const ahead =
      detail::lizard_keys_ahead(key, gate, with.key_weights.extent(2), ingredients...);
  auto const own_key = key.slice(1, ahead, gate.extent(1));
  auto const held = detail::lizard_largest(ingredients...);
  auto const largest = recur::page_copy<detail::lizard_state_page>(held);
  auto const& b = branches;
  detail::expect_like("branches.gated", b.gated, out.extents(), "out");
  detail::expect_like("branches.windowed", b.windowed, out.extents(), "out");
  detail::expect_like("value", value,
                      {key.extent(0), key.extent(1), value.extent(2), value.extent(3)},
                      "key with heads and a value_dim of its own");
  auto const x =
      detail::prepare_lizard<T>(query, own_key, gate, with.query_weights, with.key_weights,
                                with.normalised, largest, ingredients...);
  auto const shared = all_of<detail::is_for_both_branches>(ingredients...);
  std::apply(
      [&](auto const&... all) {
        detail::lizard_windowed(query, key, value, with, b.windowed,
                                detail::lizard_scale(query, ingredients...), all...,
                                detail::lizard_window(with.window), lse_into<T>{b.lse});
      },
      shared);
  detail::with_lizard_clauses(with.normalised, x.log_gate, {}, [&](auto const&... clauses) {
    std::apply(
        [&](auto const&... all) {
          linear_attention(x.query, x.key, value.slice(1, ahead, gate.extent(1)), b.gated,
                           clauses..., all...);
        },
        std::tuple_cat(all_of<detail::is_for_gated_branch>(ingredients...),
                       detail::lizard_memory(ingredients...)));
  });
  auto const runs = recur::executor_of(ingredients...);
  detail::add_lizard_branches<T>(any_executor(runs), b.gated, b.windowed, with.alpha, out);
  copy_elements(recur::with_first_axes(largest), recur::with_first_axes(held));
}

/// The gradients of lizard_attention from its saved branches. dgate is shaped like gate. Further ingredients: the lizard_state
/// that the forward call began with, lizard_state_gradient, which receives its gradient, and final_state_gradient, d loss / d the
/// memory it ended with.
template <element Q, element K, element V, element G, element DO, element DQ, element DK,
          element DV, element DG, class E, class T, class... Ingredients>
void lizard_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<G, 4> gate,
                               lizard_parameters<E> const& with, lizard_branches<T> const& branches,
                               tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                               tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                               tensor_view<DG, 4> dgate, lizard_gradients<E> const& to,
                               Ingredients const&... ingredients) {
  auto const& b = branches;
  detail::check_lizard_parameters(b.gated, with);
  detail::expect_like("dout", dout, b.gated.extents(), "branches.gated");
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  detail::expect_like("dgate", dgate, gate.extents(), "gate");
  require(to.alpha.size() == with.alpha.size(), [&] {
    return "lizard_gradients.alpha has " + std::to_string(to.alpha.size()) + " numbers; expected " +
           std::to_string(with.alpha.size());
  });
  index_t const ahead =
      detail::lizard_keys_ahead(key, gate, with.key_weights.extent(2), ingredients...);
  auto const own = [&](auto const& rows) { return rows.slice(1, ahead, gate.extent(1)); };
  auto const own_key = own(key);
  auto const own_value = own(value);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const x = detail::prepare_lizard<T>(
      query, own_key, gate, with.query_weights, with.key_weights, with.normalised,
      recur::page_copy<detail::lizard_state_page>(detail::lizard_largest(ingredients...)),
      ingredients...);
  auto const t = recur::page_tensors<detail::lizard_gradient_page, T>(
      x.query.extents(), x.key.extents(), query.extents(), own_key.extents(), own_value.extents(),
      dout.extents(), recur::tensor_shape{dout.extent(0), dout.extent(1), dout.extent(2), 1});
  auto const &dprojected_query = t[0], &dprojected_key = t[1], &query_share = t[2],
             &key_share = t[3], &value_share = t[4], &dwindowed = t[5];
  auto const dlog_gate =
      recur::page_tensors<detail::lizard_gate_gradient_page, double>(x.log_gate.extents())[0];

  // The window, whose result counts alpha times.
  tensor_view<E const, 4> const factors(with.alpha.data(), dout.extents(), {0, 0, 1, 0});
  recur::transform(
      run_on, sink<T>(dwindowed), [](auto const& a, auto const& d) { return a * d; },
      source<T>(factors), source<T>(dout));
  std::apply(
      [&](auto const&... all) {
        scale const by = detail::lizard_scale(query, ingredients...);
        if (with.meta_keys.data() != nullptr)
          attention_with_extra_keys_backward(
              query, key, value, extra_keys(with.meta_keys, with.meta_values), b.windowed, b.lse,
              dwindowed, dquery, dkey, dvalue, to.meta_keys, to.meta_values,
              detail::lizard_window(with.window), by, all...);
        else
          detail::with_lizard_sinks<E>(with, to.sinks, [&](auto const&... sinks) {
            attention_backward(query, key, value, b.windowed, b.lse, dwindowed, dquery, dkey,
                               dvalue, detail::lizard_window(with.window), by, sinks..., all...);
          });
      },
      all_of<detail::is_for_both_branches>(ingredients...));
  auto const gains = recur::without_channels(t[6]);
  recur::dot_rows(run_on, source<double>(dout), source<double>(b.windowed), gains);
  static constexpr T one = 1;
  recur::sums_over_tokens(run_on, gains, tensor_view<T const, 3>(&one, gains.extents(), {0, 0, 0}),
                          to.alpha);

  // The gated branch, whose gradients are added.
  detail::with_lizard_clauses(with.normalised, x.log_gate, dlog_gate, [&](auto const&... clauses) {
    std::apply(
        [&](auto const&... all) {
          linear_attention_backward(x.query, x.key, own_value, b.gated, dout, dprojected_query,
                                    dprojected_key, value_share, clauses..., all...);
        },
        std::tuple_cat(all_of<detail::is_for_gated_branch>(ingredients...),
                       detail::initial_lizard_memory(ingredients...)));
  });
  tensor_view<E const, 2> const no_bias;
  index_t const width = with.key_weights.extent(2);
  detail::learned_features_backward(detail::projection_only{}, query, with.query_weights, no_bias,
                                    dprojected_query, query_share, to.query_weights,
                                    tensor_view<E, 2>(), runs);
  detail::learned_features_backward(detail::projection_only{}, own_key, with.key_weights, no_bias,
                                    dprojected_key.slice(3, 0, width), key_share, to.key_weights,
                                    tensor_view<E, 2>(), runs);
  auto const add = [&](auto const& sum, auto const& more) {
    recur::transform(
        run_on, sink<T>(sum), [](auto const& a, auto const& c) { return a + c; }, source<T>(sum),
        source<T>(more));
  };
  add(dquery, query_share);
  add(own(dkey), key_share);
  add(own(dvalue), value_share);
  auto const first_half = dlog_gate.slice(3, 0, gate.extent(3));
  if (gate.extent(3) > 1)
    recur::transform(
        run_on, sink<double>(first_half), [](auto const& a, auto const& c) { return a + c; },
        source<double>(first_half), source<double>(dlog_gate.slice(3, width, width)));
  log_sigmoid_gate_backward(gate, first_half, dgate, 1, runs);
}

/// One token, whose tensors have one position: appended to `window`, a ring cache of with.window slots and no sinks, and taken
/// into `held`. Allocates nothing after the first.
template <element Q, element K, element V, element G, element O, class E, class S, element C,
          class... Ingredients>
void lizard_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<G, 4> gate, lizard_parameters<E> const& with,
                           lizard_state<S> const& held, ring_cache<C>& window,
                           tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O, E, S, C>;
  detail::check_lizard_parameters(out, with);
  require(window.slots().window == with.window && window.slots().sinks == 0, [&] {
    return "a ring cache with a window of " + std::to_string(window.slots().window) + " and " +
           std::to_string(window.slots().sinks) + " sinks; expected " +
           std::to_string(with.window) + " and none";
  });
  auto const branches =
      recur::page_tensors<detail::lizard_step_page, T>(out.extents(), out.extents());
  detail::lizard_keys_ahead(key, gate, with.key_weights.extent(2), ingredients...);
  auto const largest = recur::page_copy<detail::lizard_state_page>(held.largest);
  auto const x = detail::prepare_lizard<T>(query, key, gate, with.query_weights, with.key_weights,
                                           with.normalised, largest, held, ingredients...);
  detail::with_lizard_clauses(with.normalised, x.log_gate, {}, [&](auto const&... clauses) {
    std::apply(
        [&](auto const&... all) {
          linear_attention_step(x.query, x.key, value, branches[0], held.memory, clauses...,
                                all...);
        },
        all_of<detail::is_for_gated_branch>(ingredients...));
  });
  window.append(key, value);
  std::apply(
      [&](auto const&... all) {
        detail::lizard_windowed(query, window.keys(), window.values(), with, branches[1],
                                detail::lizard_scale(query, ingredients...), all...);
      },
      all_of<detail::is_for_both_branches>(ingredients...));
  auto const runs = recur::executor_of(ingredients...);
  detail::add_lizard_branches<T>(any_executor(runs), branches[0], branches[1], with.alpha, out);
  copy_elements(recur::with_first_axes(largest), recur::with_first_axes(held.largest));
}

}  // namespace heed
