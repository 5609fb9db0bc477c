#pragma once

#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/prefix.hpp>

/// Attention over a fixed number of slots, in which a recurrence keeps keys and values: what gated slot attention and
/// causal ABC have in common. With write strengths s_t and log gates g_t of the slots,
///
///     Sk_t = Sk_(t-1) diag(e^g_t) + k_t s_t^T      p_t = softmax(scale q_t^T Sk_t)
///     Sv_t = diag(e^g_t) Sv_(t-1) + s_t v_t^T      out_t = p_t^T Sv_t
///
/// that is two recurrences of the engine, one with value_decay and one with key_decay, and a softmax over slots between them.
namespace heed {

/// What slots hold, in memory of the caller; a call begins with it and leaves there what it ends with.
///
///   keys        [sequences, heads, head_dim, slots]; values [sequences, heads, slots, value_dim]. float or double
///   log_total   [sequences, heads of the control, slots], of ABC only: z, how much each slot has averaged
///
/// clear() empties the slots.
template <class T>
struct slot_state {
  tensor_view<T, 4> keys;
  tensor_view<T, 4> values;
  tensor_view<double, 3> log_total = {};

  void clear() const {
    for (auto const& view : {keys, values})
      for (index_t s = 0; s < view.extent(0); ++s)
        for (index_t h = 0; h < view.extent(1); ++h)
          for (index_t r = 0; r < view.extent(2); ++r)
            for (index_t c = 0; c < view.extent(3); ++c) view(s, h, r, c) = T(0);
    for (index_t s = 0; s < log_total.extent(0); ++s)
      for (index_t h = 0; h < log_total.extent(1); ++h)
        for (index_t c = 0; c < log_total.extent(2); ++c)
          log_total(s, h, c) = -std::numeric_limits<double>::infinity();
  }
};
template <class T>
slot_state(tensor_view<T, 4>, tensor_view<T, 4>) -> slot_state<T>;
template <class T>
slot_state(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<double, 3>) -> slot_state<T>;

/// Where the backward pass writes d loss / d what the slots held at first; shaped like slot_state.
template <class T>
struct slot_state_gradient {
  tensor_view<T, 4> keys;
  tensor_view<T, 4> values;
  tensor_view<double, 3> log_total = {};
};
template <class T>
slot_state_gradient(tensor_view<T, 4>, tensor_view<T, 4>) -> slot_state_gradient<T>;
template <class T>
slot_state_gradient(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<double, 3>)
    -> slot_state_gradient<T>;

/// For the backward pass where the loss also depends on what the slots hold at last: d loss / d that, and for ABC what they hold,
/// as the forward call left it.
template <class T>
struct slot_final_gradient {
  slot_state_gradient<T> gradient;
  slot_state<T> ended = {};
};
template <class T>
slot_final_gradient(slot_state_gradient<T>) -> slot_final_gradient<T>;
template <class T>
slot_final_gradient(slot_state_gradient<T>, slot_state<T>) -> slot_final_gradient<T>;

namespace detail {

inline constexpr auto is_slot_state = []<class T>() { return is_a<T, slot_state>; };
inline constexpr auto is_slot_gradient = []<class T>() { return is_a<T, slot_state_gradient>; };
inline constexpr auto is_slot_final = []<class T>() { return is_a<T, slot_final_gradient>; };
inline constexpr auto is_for_both_passes = []<class T>() {
  using namespace recur::detail;
  return is_executor.template operator()<T>() || is_documents.template operator()<T>() ||
         is_chunk.template operator()<T>() || is_scratch.template operator()<T>();
};

template <class I>
constexpr bool check_slot_ingredient() {
  constexpr bool known =
      is_for_both_passes.template operator()<I>() ||
      recur::detail::is_scale.template operator()<I>() || is_slot_state.template operator()<I>() ||
      is_slot_gradient.template operator()<I>() || is_slot_final.template operator()<I>();
  static_assert(known,
                "heed: this is no ingredient of attention over slots: expected scale, slot_state, "
                "slot_state_gradient, slot_final_gradient, documents, chunk_size, an executor or "
                "scratch");
  return known;
}

/// The factor of the queries.
template <class... I>
scale slot_scale(index_t dim, I const&... ingredients) {
  return one_of<recur::detail::is_scale>(
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1))), nullptr},
      ingredients...);
}

/// Calls f(clauses of the first pass, clauses of the second), with what turns a slot_state into clauses of the engine.
template <class F, class... I>
void with_slot_states(F const& f, I const&... ingredients) {
  static_assert((true && ... && check_slot_ingredient<I>()));
  if constexpr ((false || ... || is_slot_state.template operator()<I>())) {
    auto const held = std::get<0>(all_of<is_slot_state>(ingredients...));
    f(std::tuple(state{held.keys}), std::tuple(state{held.values}));
  } else {
    f(std::tuple<>(), std::tuple<>());
  }
}
template <class F, class... I>
void with_slot_slopes(F const& f, I const&... ingredients) {
  if constexpr ((false || ... || is_slot_final.template operator()<I>())) {
    auto const after = std::get<0>(all_of<is_slot_final>(ingredients...)).gradient;
    using E = typename decltype(after.keys)::value_type;
    f(std::tuple(final_state_gradient<E>(after.keys)),
      std::tuple(final_state_gradient<E>(after.values)));
  } else {
    f(std::tuple<>(), std::tuple<>());
  }
}
template <class F, class... I>
void with_initial_slot_states(F const& f, I const&... ingredients) {
  static_assert((true && ... && check_slot_ingredient<I>()));
  with_slot_slopes(
      [&](auto const& first, auto const& second) {
        if constexpr ((false || ... || is_slot_state.template operator()<I>())) {
          auto const held = std::get<0>(all_of<is_slot_state>(ingredients...));
          using E = typename decltype(held.keys)::element_type;
          slot_state_gradient<E> const to =
              one_of<is_slot_gradient>(slot_state_gradient<E>{}, ingredients...);
          f(std::tuple_cat(std::tuple(initial_state<E>(held.keys, to.keys)), first),
            std::tuple_cat(std::tuple(initial_state<E>(held.values, to.values)), second));
        } else {
          static_assert((true && ... && !is_slot_gradient.template operator()<I>()),
                        "heed: slot_state_gradient without slot_state");
          f(first, second);
        }
      },
      ingredients...);
}

/// Calls linear_attention or another such function with clauses in tuples.
template <class F, class... Tuples>
void apply_all(F const& f, Tuples const&... tuples) {
  std::apply(f, std::tuple_cat(tuples...));
}

struct slot_page;
struct slot_gradient_page;

inline recur::tensor_shape with_dim(recur::tensor_shape shape, index_t dim) {
  shape[3] = dim;
  return shape;
}

/// The scores of the slots, from the first pass.
template <class T, class Q, class K, class S, class G, class Clauses, class... I>
void score_slots(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<S, 4> strength,
                 tensor_view<G, 4> log_gate, tensor_view<T, 4> scores, Clauses const& clauses,
                 I const&... ingredients) {
  apply_all(
      [&](auto const&... all) {
        linear_attention(query, key, strength, scores, value_decay(log_gate),
                         slot_scale(query.extent(3), ingredients...), all...);
      },
      all_of<is_for_both_passes>(ingredients...), clauses);
}

/// Softmax over slots.
template <class T, class... I>
void weigh_slots(tensor_view<T, 4> scores, tensor_view<T, 4> weights, I const&... ingredients) {
  auto const runs = recur::executor_of(ingredients...);
  static constexpr channel_softmax over_slots;
  recur::write_features(any_executor(runs), feature_map_view<T>(over_slots), side::query,
                        source<T>(scores), 0, weights);
}

/// Both passes. `strength` and `log_gate` [batch, key, heads, slots].
template <class T, class Q, class K, class V, class S, class G, class O, class... I>
void slot_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<S, 4> strength, tensor_view<G, 4> log_gate, tensor_view<O, 4> out,
                    I const&... ingredients) {
  auto const scores =
      recur::page_tensors<slot_page, T>(with_dim(out.extents(), strength.extent(3)))[0];
  auto const shared = all_of<is_for_both_passes>(ingredients...);
  with_slot_states(
      [&](auto const& first, auto const& second) {
        // Checked before the first pass changes what the slots hold.
        apply_all(
            [&](auto const&... all) {
              recur::make_problem<T>(scores, strength, value, out, key_decay(log_gate), all...);
            },
            shared, second);
        score_slots(query, key, strength, log_gate, scores, first, ingredients...);
        weigh_slots(scores, scores, ingredients...);
        apply_all(
            [&](auto const&... all) {
              linear_attention(scores, strength, value, out, key_decay(log_gate), all...);
            },
            shared, second);
      },
      ingredients...);
}

/// What the backward pass finds out about the slots, in memory of the calling thread.
template <class T>
struct slot_gradients {
  tensor_view<T, 4> scores, dscores, weights, dweights;  // [batch, row, head, slot]
  std::array<tensor_view<T, 4>, 2> dstrength, dgate;     // of both passes, [batch, key, head, slot]
};

/// The gradients of both passes; those of the gates only if they are `gated`.
template <bool gated, class T, class Q, class K, class V, class S, class G, class O, class DO,
          class DQ, class DK, class DV, class... I>
slot_gradients<T> slot_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                          tensor_view<V, 4> value, tensor_view<S, 4> strength,
                                          tensor_view<G, 4> log_gate, tensor_view<O, 4> out,
                                          tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                          tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                          I const&... ingredients) {
  expect_like("dquery", dquery, query.extents(), "query");
  expect_like("dkey", dkey, key.extents(), "key");
  auto const rows = with_dim(out.extents(), strength.extent(3));
  auto const keys = strength.extents();
  auto const gates = with_dim(keys, gated ? keys[3] : 0);
  auto const t =
      recur::page_tensors<slot_gradient_page, T>(rows, rows, rows, rows, keys, keys, gates, gates);
  slot_gradients<T> const all{t[0], t[1], t[2], t[3], {t[4], t[5]}, {t[6], t[7]}};
  auto const gate = [&](int pass) {
    return gated ? all.dgate[static_cast<std::size_t>(pass)] : tensor_view<T, 4>();
  };
  auto const runs = recur::executor_of(ingredients...);
  auto const shared = all_of<is_for_both_passes>(ingredients...);
  with_initial_slot_states(
      [&](auto const& first, auto const& second) {
        apply_all(
            [&](auto const&... clauses) {
              recur::make_problem<T>(all.weights, strength, value, out, key_decay(log_gate),
                                     clauses...);
            },
            shared, second);
        score_slots(query, key, strength, log_gate, all.scores, first, ingredients...);
        weigh_slots(all.scores, all.weights, ingredients...);
        apply_all(
            [&](auto const&... clauses) {
              linear_attention_backward(
                  all.weights, strength, value, out, dout, all.dweights, all.dstrength[1], dvalue,
                  key_decay<std::remove_const_t<G>>(log_gate, gate(1)), clauses...);
            },
            shared, second);
        static constexpr channel_softmax over_slots;
        recur::write_feature_gradient(any_executor(runs), feature_map_view<T>(over_slots),
                                      side::query, source<T>(all.scores), 0, all.weights,
                                      all.dweights, sink<T>(all.dscores));
        apply_all(
            [&](auto const&... clauses) {
              linear_attention_backward(query, key, strength, all.scores, all.dscores, dquery, dkey,
                                        all.dstrength[0],
                                        value_decay<std::remove_const_t<G>>(log_gate, gate(0)),
                                        slot_scale(query.extent(3), ingredients...), clauses...);
            },
            shared, first);
      },
      ingredients...);
  return all;
}

/// One token. Both states are updated where they lie.
template <class T, class Q, class K, class V, class S, class G, class O, class E, class... I>
void slot_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<S, 4> strength, tensor_view<G, 4> log_gate,
                         tensor_view<O, 4> out, slot_state<E> const& held,
                         I const&... ingredients) {
  static_assert((true && ... && check_slot_ingredient<I>()));
  auto const scores =
      recur::page_tensors<slot_page, T>(with_dim(out.extents(), strength.extent(3)))[0];
  auto const shared = all_of<is_for_both_passes>(ingredients...);
  apply_all(
      [&](auto const&... all) {
        recur::make_problem<T>(scores, strength, value, out, key_decay(log_gate),
                               state{held.values}, all...);
        linear_attention_step(query, key, strength, scores, held.keys, value_decay(log_gate),
                              slot_scale(query.extent(3), ingredients...), all...);
        weigh_slots(scores, scores, ingredients...);
        linear_attention_step(scores, strength, value, out, held.values, key_decay(log_gate),
                              all...);
      },
      shared);
}

}  // namespace detail
}  // namespace heed
