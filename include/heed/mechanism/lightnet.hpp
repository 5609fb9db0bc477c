#pragma once

#include <heed/mechanism/lrpe.hpp>
#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/prefix.hpp>

/// You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet. The additive recurrence: with
/// z_t = log sum_(s <= t) e^k_s of each channel,
///
///     S_t = diag(e^(z_(t-1) - z_t)) S_(t-1) + e^(k_t - z_t) v_t^T        out_t = scale silu(q_t)^T S_t
///
/// so that row d of S_t is the average of the values so far with weights softmax(k_1d .. k_td). Over all positions, in
/// any number of dimensions, one scan is enough: every query reads the last state, lightnet_single_scan. Positions come in
/// by an lrpe, along the sequence or on a grid, or by mixing tokens beforehand: toeplitz_mixing.hpp.
namespace heed {

/// What a sequence carries on, in memory of the caller; a call begins with it and leaves there what it ends with.
///
///   memory      [sequences, heads, head_dim (twice with a complex lrpe), value_dim], float or double
///   log_total   z, [sequences, key heads, head_dim]
///
/// clear() is the state before the first token.
template <class T>
struct lightnet_state {
  tensor_view<T, 4> memory;
  tensor_view<double, 3> log_total;

  void clear() const {
    for (index_t s = 0; s < memory.extent(0); ++s)
      for (index_t h = 0; h < memory.extent(1); ++h)
        for (index_t d = 0; d < memory.extent(2); ++d)
          for (index_t e = 0; e < memory.extent(3); ++e) memory(s, h, d, e) = T(0);
    for (index_t s = 0; s < log_total.extent(0); ++s)
      for (index_t h = 0; h < log_total.extent(1); ++h)
        for (index_t d = 0; d < log_total.extent(2); ++d)
          log_total(s, h, d) = -std::numeric_limits<double>::infinity();
  }
};
template <class T>
lightnet_state(tensor_view<T, 4>, tensor_view<double, 3>) -> lightnet_state<T>;

/// Where the backward pass writes d loss / d the state a call began with; shaped like it.
template <class T>
struct lightnet_state_gradient {
  tensor_view<T, 4> memory;
  tensor_view<double, 3> log_total;
};
template <class T>
lightnet_state_gradient(tensor_view<T, 4>, tensor_view<double, 3>) -> lightnet_state_gradient<T>;

namespace detail {

inline constexpr auto is_lightnet_state = []<class T>() { return is_a<T, lightnet_state>; };
inline constexpr auto is_lightnet_gradient = []<class T>() {
  return is_a<T, lightnet_state_gradient>;
};
inline constexpr auto is_lrpe = []<class T>() { return is_a<T, lrpe>; };
/// What the engine is given as it is.
inline constexpr auto is_for_lightnet_engine = []<class T>() {
  using namespace recur::detail;
  return is_executor.template operator()<T>() || is_documents.template operator()<T>() ||
         is_chunk.template operator()<T>() || is_scratch.template operator()<T>() ||
         is_lrpe.template operator()<T>();
};

template <class I>
constexpr bool check_lightnet_ingredient() {
  constexpr bool known = is_for_lightnet_engine.template operator()<I>() ||
                         is_lightnet_state.template operator()<I>() ||
                         is_lightnet_gradient.template operator()<I>() ||
                         recur::detail::is_scale.template operator()<I>();
  static_assert(known,
                "heed: this is no ingredient of lightnet: expected scale, lrpe, lightnet_state, "
                "lightnet_state_gradient, documents, chunk_size, an executor or scratch");
  return known;
}

template <class... I>
double lightnet_scale(I const&... ingredients) {
  return one_of<recur::detail::is_scale>(scale{1, nullptr}, ingredients...).value;
}

struct lightnet_page;
struct lightnet_state_page;
struct lightnet_gradient_page;

/// What stands between the inputs and the engine, in memory of the calling thread.
template <class T>
struct lightnet_tensors {
  tensor_view<T, 4> query;     // scale silu(query)
  tensor_view<T, 4> weight;    // e^(k - z)
  tensor_view<T, 4> log_gate;  // z_(t-1) - z_t, for each feature
  recur::sequence_list sequences;
};

template <class T, class Q, class To>
void activate_lightnet_queries(any_executor const& run_on, tensor_view<Q, 4> query, double factor,
                               tensor_view<To, 4> to) {
  recur::transform(
      run_on, sink<T>(to),
      [&](auto const& each) {
        return silu::value(each) * std::remove_cvref_t<decltype(each)>(static_cast<T>(factor));
      },
      source<T>(query));
}
/// d loss / d query, from that by scale silu(query).
template <class T, class Q, class DQ>
void differentiate_lightnet_queries(any_executor const& run_on, tensor_view<Q, 4> query,
                                    double factor, tensor_view<T, 4> dactivated,
                                    tensor_view<DQ, 4> dquery) {
  recur::transform(
      run_on, sink<T>(dquery),
      [&](auto const& each, auto const& slope) {
        return slope * silu::slope(each, each) *
               std::remove_cvref_t<decltype(each)>(static_cast<T>(factor));
      },
      source<T>(query), source<T>(dactivated));
}

/// `total` is moved on.
template <class T, class Q, class K, class... I>
lightnet_tensors<T> prepare_lightnet(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                     tensor_view<double, 3> total, I const&... ingredients) {
  static_assert((true && ... && check_lightnet_ingredient<I>()));
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  index_t copies = 1;  // of the gates, one for each feature of a channel
  [[maybe_unused]] auto const look = [&](auto const& ingredient) {
    if constexpr (is_lrpe.template operator()<std::remove_cvref_t<decltype(ingredient)>>()) {
      require(ingredient.form == lrpe_form::complex, [] {
        return std::string(
            "a rotating lrpe in a causal lightnet, where channels fade each on its own; expected "
            "the complex form");
      });
      copies = 2;
    }
  };
  (look(ingredients), ...);
  recur::tensor_shape gates = key.extents();
  gates[3] *= copies;
  auto const t = recur::page_tensors<lightnet_page, T>(query.extents(), key.extents(), gates);
  auto const packed = one_of<recur::detail::is_documents>(documents{}, ingredients...);
  if (!packed.keys.empty()) packed.check(key.extent(0), query.extent(1), key.extent(1));
  lightnet_tensors<T> const all{t[0], t[1], t[2],
                                recur::sequences_of(query.extents(), key.extents(), packed)};
  if ((false || ... || is_lightnet_state.template operator()<I>())) {
    std::array<index_t, 3> const expected{all.sequences.count, key.extent(2), key.extent(3)};
    require(total.extents() == expected && total.data() != nullptr, [&] {
      return "lightnet_state.log_total has shape " + shape_text(total.extents()) +
             "; expected [sequences, key heads, head_dim], " + shape_text(expected);
    });
  }
  activate_lightnet_queries<T>(run_on, query, lightnet_scale(ingredients...), all.query);
  using rows = recur::channel_rows<double>;
  auto const first = all.log_gate.slice(3, 0, key.extent(3));
  recur::running_softmax(run_on, all.sequences, rows(key), rows(all.weight), rows(first), total);
  if (copies == 2)
    recur::transform(
        run_on, sink<T>(all.log_gate.slice(3, key.extent(3), key.extent(3))),
        [](auto const& each) { return each; }, source<T>(first));
  return all;
}

/// A copy of the z of the state among the ingredients; null without one.
template <class... I>
tensor_view<double, 3> copy_of_lightnet_total(I const&... ingredients) {
  if constexpr ((false || ... || is_lightnet_state.template operator()<I>())) {
    auto const total = std::get<0>(all_of<is_lightnet_state>(ingredients...)).log_total;
    auto const& e = total.extents();
    auto const copy = recur::page_tensors<lightnet_state_page, double>(
        recur::tensor_shape{e[0], 1, e[1], e[2]})[0];
    tensor_view<double, 3> const result(copy.data(), e);
    for (index_t s = 0; s < e[0]; ++s)
      for (index_t h = 0; h < e[1]; ++h)
        for (index_t d = 0; d < e[2]; ++d) result(s, h, d) = total(s, h, d);
    return result;
  } else {
    return {};
  }
}
inline void copy_lightnet_total(tensor_view<double, 3> from, tensor_view<double, 3> to) {
  for (index_t s = 0; s < to.extent(0); ++s)
    for (index_t h = 0; h < to.extent(1); ++h)
      for (index_t d = 0; d < to.extent(2); ++d) to(s, h, d) = from(s, h, d);
}

}  // namespace detail

/// Causal LightNet; shapes as in linear_attention.
///
/// Ingredients: scale (default 1), lrpe of the complex form, lightnet_state, documents, chunk_size, an executor, scratch.
/// Weights and gates are kept in memory of the calling thread.
template <element Q, element K, element V, element O, class... Ingredients>
void lightnet(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
              tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  auto const total = detail::copy_of_lightnet_total(ingredients...);
  auto const t = detail::prepare_lightnet<T>(query, key, total, ingredients...);
  auto const call = [&](auto const&... all) {
    linear_attention(t.query, t.weight, value, out, key_decay(t.log_gate), all...);
  };
  auto const shared = all_of<detail::is_for_lightnet_engine>(ingredients...);
  if constexpr ((false || ... || detail::is_lightnet_state.template operator()<Ingredients>())) {
    auto const held = std::get<0>(all_of<detail::is_lightnet_state>(ingredients...));
    std::apply(call, std::tuple_cat(shared, std::tuple(state{held.memory})));
    detail::copy_lightnet_total(total, held.log_total);
  } else {
    std::apply(call, shared);
  }
}

/// The gradients of lightnet; a lightnet_state among the ingredients is what the forward call began with, and
/// lightnet_state_gradient receives its gradient. That of an lrpe's angles is not written.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void lightnet_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                       tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                       tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                       Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV>;
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  auto const t = detail::prepare_lightnet<T>(
      query, key, detail::copy_of_lightnet_total(ingredients...), ingredients...);
  auto const d = recur::page_tensors<detail::lightnet_gradient_page, T>(
      query.extents(), key.extents(), key.extents());
  auto const call = [&](auto const&... all) {
    linear_attention_backward(t.query, t.weight, value, out, dout, d[0], d[1], dvalue,
                              key_decay(t.log_gate), all...);
  };
  auto const shared = all_of<detail::is_for_lightnet_engine>(ingredients...);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  // No gradient of the gates is needed: what they take is what the averages divide by.
  auto const finish = [&](tensor_view<double, 3> carried) {
    recur::sum_of_reads(run_on, t.sequences, t.query, d[0], d[2], false);
    using rows = recur::channel_rows<double>;
    recur::running_softmax_backward(run_on, t.sequences, rows(t.weight), rows(d[1]), rows(d[2]),
                                    rows(dkey), carried);
    detail::differentiate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...),
                                              d[0], dquery);
  };
  if constexpr ((false || ... || detail::is_lightnet_state.template operator()<Ingredients>())) {
    auto const held = std::get<0>(all_of<detail::is_lightnet_state>(ingredients...));
    using E = typename decltype(held.memory)::value_type;
    auto const to =
        one_of<detail::is_lightnet_gradient>(lightnet_state_gradient<E>{}, ingredients...);
    auto const& carried = to.log_total;
    require(carried.data() == nullptr ||
                (carried.extents() == held.log_total.extents() && to.memory.data() != nullptr),
            [&] {
              return "lightnet_state_gradient.log_total has shape " +
                     shape_text(carried.extents()) +
                     "; expected that of lightnet_state.log_total, " +
                     shape_text(held.log_total.extents()) + ", beside memory";
            });
    std::apply(call, std::tuple_cat(shared, std::tuple(initial_state<E>(held.memory, to.memory))));
    for (index_t s = 0; s < carried.extent(0); ++s)
      for (index_t h = 0; h < carried.extent(1); ++h)
        for (index_t c = 0; c < carried.extent(2); ++c) carried(s, h, c) = 0;
    finish(carried);
    if (carried.data() == nullptr) return;
    index_t const dim = carried.extent(2),
                  copies = held.memory.extent(2) / std::max<index_t>(dim, 1);
    index_t const group = held.memory.extent(1) / std::max<index_t>(carried.extent(1), 1);
    for (index_t s = 0; s < carried.extent(0); ++s)
      for (index_t h = 0; h < carried.extent(1); ++h)
        for (index_t c = 0; c < dim; ++c) {
          double sum = 0;
          for (index_t g = h * group; g < (h + 1) * group; ++g)
            for (index_t n = 0; n < copies; ++n)
              for (index_t e = 0; e < held.memory.extent(3); ++e)
                sum += static_cast<double>(held.memory(s, g, n * dim + c, e)) *
                       static_cast<double>(to.memory(s, g, n * dim + c, e));
          carried(s, h, c) = sum - carried(s, h, c);
        }
  } else {
    std::apply(call, shared);
    finish({});
  }
}

/// One token of lightnet, whose tensors have one position; `held` is updated. Give an lrpe's offset the tokens before it.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void lightnet_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<O, 4> out, lightnet_state<S> const& held,
                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, S>;
  auto const total = detail::copy_of_lightnet_total(held);
  auto const t = detail::prepare_lightnet<T>(query, key, total, held, ingredients...);
  std::apply(
      [&](auto const&... all) {
        linear_attention_step(t.query, t.weight, value, out, held.memory, key_decay(t.log_gate),
                              all...);
      },
      all_of<detail::is_for_lightnet_engine>(ingredients...));
  detail::copy_lightnet_total(total, held.log_total);
}

/// LightNet over all positions: out = scale silu(query) (softmax_positions(key)^T value), in whatever order and
/// dimensions the positions are. Ingredients: scale (default 1), lrpe of any form and grid, documents, an executor, scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void lightnet_single_scan(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  static_assert((true && ... && detail::check_lightnet_ingredient<Ingredients>()));
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const packed = one_of<recur::detail::is_documents>(documents{}, ingredients...);
  if (!packed.keys.empty()) packed.check(key.extent(0), query.extent(1), key.extent(1));
  auto const t = recur::page_tensors<detail::lightnet_page, T>(query.extents(), key.extents());
  detail::activate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...), t[0]);
  using rows = recur::channel_rows<double>;
  recur::position_softmax(run_on, recur::sequences_of(query.extents(), key.extents(), packed),
                          rows(key), rows(t[1]));
  std::apply([&](auto const&... all) { linear_attention(t[0], t[1], value, out, dense{}, all...); },
             all_of<detail::is_for_lightnet_engine>(ingredients...));
}

/// The gradients of lightnet_single_scan.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void lightnet_single_scan_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<O, 4> out,
                                   tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                   tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV>;
  static_assert((true && ... && detail::check_lightnet_ingredient<Ingredients>()));
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const packed = one_of<recur::detail::is_documents>(documents{}, ingredients...);
  if (!packed.keys.empty()) packed.check(key.extent(0), query.extent(1), key.extent(1));
  auto const sequences = recur::sequences_of(query.extents(), key.extents(), packed);
  auto const t = recur::page_tensors<detail::lightnet_gradient_page, T>(
      query.extents(), key.extents(), query.extents(), key.extents());
  detail::activate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...), t[0]);
  using rows = recur::channel_rows<double>;
  recur::position_softmax(run_on, sequences, rows(key), rows(t[1]));
  std::apply(
      [&](auto const&... all) {
        linear_attention_backward(t[0], t[1], value, out, dout, t[2], t[3], dvalue, dense{},
                                  all...);
      },
      all_of<detail::is_for_lightnet_engine>(ingredients...));
  recur::position_softmax_backward(run_on, sequences, rows(t[1]), rows(t[3]), rows(dkey));
  detail::differentiate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...),
                                            t[2], dquery);
}

}  // namespace heed
