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

/// For the backward pass where the loss also depends on the state that a call ended with: that state as the call left it, and
/// d loss / d it.
template <class T>
struct lightnet_final_gradient {
  lightnet_state<T> ended;
  lightnet_state_gradient<T> gradient;
};
template <class T>
lightnet_final_gradient(lightnet_state<T>, lightnet_state_gradient<T>)
    -> lightnet_final_gradient<T>;

namespace detail {

inline constexpr auto is_lightnet_state = []<class T>() { return is_a<T, lightnet_state>; };
inline constexpr auto is_lightnet_gradient = []<class T>() {
  return is_a<T, lightnet_state_gradient>;
};
inline constexpr auto is_lightnet_final = []<class T>() {
  return is_a<T, lightnet_final_gradient>;
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
                         is_lightnet_final.template operator()<I>() ||
                         recur::detail::is_scale.template operator()<I>();
  static_assert(known,
                "heed: this is no ingredient of lightnet: expected scale, lrpe, lightnet_state, "
                "lightnet_state_gradient, lightnet_final_gradient, documents, chunk_size, an "
                "executor or scratch");
  return known;
}

template <class... I>
double lightnet_scale(I const&... ingredients) {
  return one_of<recur::detail::is_scale>(scale{1, nullptr}, ingredients...).value;
}

struct lightnet_page;
struct lightnet_state_page;
struct lightnet_gradient_page;
struct lightnet_carried_page;
struct lightnet_first_page;

inline void check_lightnet_total(char const* name, tensor_view<double, 3> total,
                                 std::array<index_t, 3> const& expected, bool optional) {
  if (optional && total.data() == nullptr) return;
  require(total.extents() == expected && total.data() != nullptr, [&] {
    return std::string(name) + " has shape " + shape_text(total.extents()) +
           "; expected [sequences, key heads, head_dim], " + shape_text(expected);
  });
}

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
  auto const runs = recur::executor_of(ingredients...);
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
  lightnet_tensors<T> const all{
      t[0], t[1], t[2], recur::sequences_among(query.extents(), key.extents(), ingredients...)};
  if ((false || ... || is_lightnet_state.template operator()<I>()))
    check_lightnet_total("lightnet_state.log_total", total,
                         {all.sequences.count, key.extent(2), key.extent(3)}, false);
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

/// What the engine is given of the gradient by the state that a call ended with.
template <class... I>
auto lightnet_final_slopes(I const&... ingredients) {
  if constexpr ((false || ... || is_lightnet_final.template operator()<I>())) {
    auto const slope = std::get<0>(all_of<is_lightnet_final>(ingredients...)).gradient.memory;
    return std::tuple(final_state_gradient<typename decltype(slope)::value_type>(slope));
  } else {
    return std::tuple<>();
  }
}

/// What running_softmax_backward() begins with at the end of the sequences: nothing, or what the state they ended with says.
template <class... I>
tensor_view<double, 3> lightnet_carried(recur::sequence_list const& sequences, index_t heads,
                                        index_t dim, I const&... ingredients) {
  auto const carried = recur::page_sums<lightnet_carried_page>(sequences.count, heads, dim);
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_lightnet_final.template operator()<One>()) {
      auto const& [ended, slope] = ingredient;
      expect_like("lightnet_final_gradient.ended.memory", ended.memory, slope.memory.extents(),
                  "its gradient");
      check_lightnet_total("lightnet_final_gradient.gradient.log_total", slope.log_total,
                           carried.extents(), true);
      recur::add_state_products(ended.memory, slope.memory, carried);
      if (slope.log_total.data() != nullptr)
        recur::write_difference(carried, slope.log_total, carried);
    }
  };
  (look(ingredients), ...);
  return carried;
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
  auto const call = [&](tensor_view<double, 3> total, auto const&... states) {
    auto const t = detail::prepare_lightnet<T>(query, key, total, ingredients...);
    std::apply(
        [&](auto const&... all) {
          linear_attention(t.query, t.weight, value, out, key_decay(t.log_gate), all..., states...);
        },
        all_of<detail::is_for_lightnet_engine>(ingredients...));
  };
  if constexpr ((false || ... || detail::is_lightnet_state.template operator()<Ingredients>())) {
    auto const held = std::get<0>(all_of<detail::is_lightnet_state>(ingredients...));
    auto const total = recur::page_copy<detail::lightnet_state_page>(held.log_total);
    call(total, state{held.memory});
    copy_elements(recur::with_first_axes(total), recur::with_first_axes(held.log_total));
  } else {
    call({});
  }
}

/// The gradients of lightnet. Further ingredients: the lightnet_state that the forward call began with, lightnet_state_gradient,
/// which receives its gradient, and lightnet_final_gradient. That of an lrpe's angles is not written.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void lightnet_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                       tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                       tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                       Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV>;
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  // What lies between the engine's gradients and those of this call. No gradient of the gates is needed: what they take is what
  // the averages divide by.
  auto const call = [&](auto const& held, auto const& to, auto const&... states) {
    auto const t = detail::prepare_lightnet<T>(
        query, key, recur::page_copy<detail::lightnet_state_page>(held.log_total), ingredients...);
    auto const carried =
        detail::lightnet_carried(t.sequences, key.extent(2), key.extent(3), ingredients...);
    detail::check_lightnet_total("lightnet_state_gradient.log_total", to.log_total,
                                 carried.extents(), true);
    auto const d = recur::page_tensors<detail::lightnet_gradient_page, T>(
        query.extents(), key.extents(), key.extents());
    std::apply(
        [&](auto const&... all) {
          linear_attention_backward(t.query, t.weight, value, out, dout, d[0], d[1], dvalue,
                                    key_decay(t.log_gate), all..., states...);
        },
        std::tuple_cat(all_of<detail::is_for_lightnet_engine>(ingredients...),
                       detail::lightnet_final_slopes(ingredients...)));
    recur::sum_of_reads(run_on, t.sequences, t.query, d[0], d[2], false);
    using rows = recur::channel_rows<double>;
    recur::running_softmax_backward(run_on, t.sequences, rows(t.weight), rows(d[1]), rows(d[2]),
                                    rows(dkey), carried);
    if (to.log_total.data() != nullptr) {
      // What reads the first state as it is does not see z_0.
      recur::add_first_reads(t.sequences, t.query, d[0], carried);
      auto const first = recur::page_sums<detail::lightnet_first_page>(
          t.sequences.count, key.extent(2), key.extent(3));
      recur::add_state_products(held.memory, to.memory, first);
      recur::write_difference(first, carried, to.log_total);
    }
    detail::differentiate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...),
                                              d[0], dquery);
  };
  if constexpr ((false || ... || detail::is_lightnet_state.template operator()<Ingredients>())) {
    auto const held = std::get<0>(all_of<detail::is_lightnet_state>(ingredients...));
    using E = typename decltype(held.memory)::value_type;
    lightnet_state_gradient<E> const to =
        one_of<detail::is_lightnet_gradient>(lightnet_state_gradient<E>{}, ingredients...);
    require(to.log_total.data() == nullptr || to.memory.data() != nullptr, [] {
      return std::string("lightnet_state_gradient has log_total without memory; expected both");
    });
    call(held, to, initial_state<E>(held.memory, to.memory));
  } else {
    static_assert((true && ... && !detail::is_lightnet_gradient.template operator()<Ingredients>()),
                  "heed: lightnet_state_gradient without lightnet_state");
    call(lightnet_state<T>{}, lightnet_state_gradient<T>{});
  }
}

/// One token of lightnet, whose tensors have one position; `held` is updated. Give an lrpe's offset the tokens before it.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void lightnet_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<O, 4> out, lightnet_state<S> const& held,
                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, S>;
  auto const total = recur::page_copy<detail::lightnet_state_page>(held.log_total);
  auto const t = detail::prepare_lightnet<T>(query, key, total, held, ingredients...);
  std::apply(
      [&](auto const&... all) {
        linear_attention_step(t.query, t.weight, value, out, held.memory, key_decay(t.log_gate),
                              all...);
      },
      all_of<detail::is_for_lightnet_engine>(ingredients...));
  copy_elements(recur::with_first_axes(total), recur::with_first_axes(held.log_total));
}

/// LightNet over all positions: out = scale silu(query) (softmax_positions(key)^T value), in whatever order and
/// dimensions the positions are. Ingredients: scale (default 1), lrpe of any form and grid, documents, an executor, scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void lightnet_single_scan(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  static_assert((true && ... && detail::check_lightnet_ingredient<Ingredients>()));
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const sequences = recur::sequences_among(query.extents(), key.extents(), ingredients...);
  auto const t = recur::page_tensors<detail::lightnet_page, T>(query.extents(), key.extents());
  detail::activate_lightnet_queries<T>(run_on, query, detail::lightnet_scale(ingredients...), t[0]);
  using rows = recur::channel_rows<double>;
  recur::position_softmax(run_on, sequences, rows(key), rows(t[1]));
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
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const sequences = recur::sequences_among(query.extents(), key.extents(), ingredients...);
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
