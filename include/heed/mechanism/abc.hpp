#pragma once

#include <heed/mechanism/slot_attention.hpp>
#include <heed/softmax.hpp>

/// ABC: Attention with Bounded-memory Control. Slots hold averages of keys and values, with weights that a control says of
/// each token and slot,
///
///     K~ = softmax_positions(C_k)^T K      V~ = softmax_positions(C_v)^T V      out = softmax(scale q K~^T) V~
///
/// Causal, the averages are those of the tokens so far, with one control for both: attention over slots
/// (slot_attention.hpp) with s_t = e^(c_t - z_t) and g_t = z_(t-1) - z_t, where z_t = log sum_(s <= t) e^c_s. A resumed
/// sequence carries z too.
namespace heed {

namespace detail {

struct abc_page;
struct abc_state_page;
struct abc_gradient_page;
struct abc_carried_page;
struct abc_first_page;

/// What a slot_state among the ingredients says of z; null without one.
template <class... I>
tensor_view<double, 3> log_total_of(I const&... ingredients) {
  if constexpr ((false || ... || is_slot_state.template operator()<I>()))
    return std::get<0>(all_of<is_slot_state>(ingredients...)).log_total;
  else
    return {};
}

inline void check_abc_total(char const* name, tensor_view<double, 3> total,
                            std::array<index_t, 3> const& expected, bool optional) {
  if (optional && total.data() == nullptr) return;
  require(total.extents() == expected && total.data() != nullptr, [&] {
    return std::string(name) + " has shape " + shape_text(total.extents()) +
           "; expected [sequences, heads of the control, slots], " + shape_text(expected);
  });
}

template <class C, class... I>
recur::sequence_list check_abc_state(tensor_view<C, 4> control, index_t rows,
                                     I const&... ingredients) {
  recur::tensor_shape query = control.extents();
  query[1] = rows;
  auto const sequences = recur::sequences_among(query, control.extents(), ingredients...);
  if constexpr ((false || ... || is_slot_state.template operator()<I>()))
    check_abc_total("slot_state.log_total", log_total_of(ingredients...),
                    {sequences.count, control.extent(2), control.extent(3)}, false);
  return sequences;
}

/// to += what slots hold times the gradients by it, slot by slot.
template <class T>
void add_slot_products(slot_state<T> const& held, slot_state_gradient<T> const& slope,
                       tensor_view<double, 3> to) {
  recur::add_state_products(held.keys.swap_axes(2, 3), slope.keys.swap_axes(2, 3), to);
  recur::add_state_products(held.values, slope.values, to);
}

/// What running_softmax_backward() begins with at the end of the sequences: nothing, or what the slots at last say.
template <class C, class... I>
tensor_view<double, 3> abc_carried(recur::sequence_list const& sequences, tensor_view<C, 4> control,
                                   I const&... ingredients) {
  auto const carried =
      recur::page_sums<abc_carried_page>(sequences.count, control.extent(2), control.extent(3));
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_slot_final.template operator()<One>()) {
      auto const& [slope, ended] = ingredient;
      expect_like("slot_final_gradient.ended.keys", ended.keys, slope.keys.extents(),
                  "its gradient");
      expect_like("slot_final_gradient.ended.values", ended.values, slope.values.extents(),
                  "its gradient");
      check_abc_total("slot_final_gradient.gradient.log_total", slope.log_total, carried.extents(),
                      true);
      add_slot_products(ended, slope, carried);
      if (slope.log_total.data() != nullptr)
        recur::write_difference(carried, slope.log_total, carried);
    }
  };
  (look(ingredients), ...);
  return carried;
}

/// Writes strengths and log gates of the slots; `total` is moved on.
template <class T, class C, class... I>
std::array<tensor_view<T, 4>, 2> abc_gates(recur::sequence_list const& sequences,
                                           tensor_view<C, 4> control, tensor_view<double, 3> total,
                                           I const&... ingredients) {
  auto const gates = recur::page_tensors<abc_page, T>(control.extents(), control.extents());
  auto const runs = recur::executor_of(ingredients...);
  using rows = recur::channel_rows<double>;
  recur::running_softmax(any_executor(runs), sequences, rows(control), rows(gates[0]),
                         rows(gates[1]), total);
  return gates;
}

}  // namespace detail

/// Causal ABC.
///
///   query, key, value, out   as in linear_attention
///   control                  [batch, M, heads, slots]
///
/// Ingredients: scale (default head_dim^-1/2), slot_state with log_total, documents, chunk_size, an executor, scratch.
template <element Q, element K, element V, element C, element O, class... Ingredients>
void abc_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<C, 4> control, tensor_view<O, 4> out,
                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, C, O>;
  auto const sequences = detail::check_abc_state(control, query.extent(1), ingredients...);
  auto const held = detail::log_total_of(ingredients...);
  auto const total = recur::page_copy<detail::abc_state_page>(held);
  auto const gates = detail::abc_gates<T>(sequences, control, total, ingredients...);
  detail::slot_attention<T>(query, key, value, gates[0], gates[1], out, ingredients...);
  // Only now that nothing can be refused any more.
  copy_elements(recur::with_first_axes(total), recur::with_first_axes(held));
}

/// The gradients of abc_attention. Further ingredients: the slot_state that the forward call began with, slot_state_gradient,
/// which receives its gradient, and slot_final_gradient with what the slots held at last.
template <element Q, element K, element V, element C, element O, element DO, element DQ, element DK,
          element DV, element DC, class... Ingredients>
void abc_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                            tensor_view<C, 4> control, tensor_view<O, 4> out,
                            tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                            tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                            tensor_view<DC, 4> dcontrol, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, C, O, DO, DQ, DK, DV, DC>;
  detail::expect_like("dcontrol", dcontrol, control.extents(), "control");
  auto const sequences = detail::check_abc_state(control, query.extent(1), ingredients...);
  auto const gates = detail::abc_gates<T>(
      sequences, control,
      recur::page_copy<detail::abc_state_page>(detail::log_total_of(ingredients...)),
      ingredients...);
  auto const carried = detail::abc_carried(sequences, control, ingredients...);
  tensor_view<double, 3> dtotal;
  if constexpr ((false || ... || detail::is_slot_gradient.template operator()<Ingredients>()))
    dtotal = std::get<0>(all_of<detail::is_slot_gradient>(ingredients...)).log_total;
  detail::check_abc_total("slot_state_gradient.log_total", dtotal, carried.extents(), true);
  auto const slots = detail::slot_attention_backward<false, T>(
      query, key, value, gates[0], gates[1], out, dout, dquery, dkey, dvalue, ingredients...);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  // No gradient of the gates is needed: what they take from a slot is what the averages divide by.
  auto const reads = recur::page_tensors<detail::abc_gradient_page, T>(control.extents())[0];
  recur::sum_of_reads(run_on, sequences, slots.weights, slots.dweights, reads, false);
  recur::sum_of_reads(run_on, sequences, slots.scores, slots.dscores, reads, true);
  recur::transform(
      run_on, sink<T>(slots.dstrength[0]), [](auto const& a, auto const& b) { return a + b; },
      source<T>(slots.dstrength[0]), source<T>(slots.dstrength[1]));
  using rows = recur::channel_rows<double>;
  recur::running_softmax_backward(run_on, sequences, rows(gates[0]), rows(slots.dstrength[0]),
                                  rows(reads), rows(dcontrol), carried);
  if constexpr ((false || ... || detail::is_slot_gradient.template operator()<Ingredients>())) {
    if (dtotal.data() == nullptr) return;
    // What reads the first slots as they are does not see z_0.
    recur::add_first_reads(sequences, slots.weights, slots.dweights, carried);
    recur::add_first_reads(sequences, slots.scores, slots.dscores, carried);
    auto const first = recur::page_sums<detail::abc_first_page>(sequences.count, control.extent(2),
                                                                control.extent(3));
    detail::add_slot_products(std::get<0>(all_of<detail::is_slot_state>(ingredients...)),
                              std::get<0>(all_of<detail::is_slot_gradient>(ingredients...)), first);
    recur::write_difference(first, carried, dtotal);
  }
}

/// One token of abc_attention, whose tensors have one position; `held`, with log_total, is updated. Allocates nothing after
/// the first.
template <element Q, element K, element V, element C, element O, class E, class... Ingredients>
void abc_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<C, 4> control, tensor_view<O, 4> out, slot_state<E> const& held,
                        Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, C, O, E>;
  auto const sequences = detail::check_abc_state(control, query.extent(1), held, ingredients...);
  auto const total = recur::page_copy<detail::abc_state_page>(held.log_total);
  auto const gates = detail::abc_gates<T>(sequences, control, total, ingredients...);
  detail::slot_attention_step<T>(query, key, value, gates[0], gates[1], out, held, ingredients...);
  copy_elements(recur::with_first_axes(total), recur::with_first_axes(held.log_total));
}

namespace detail {

struct abc_slots_page;
struct abc_slots_gradient_page;

/// Slots that average over all positions: the softmaxes of the controls, the averages, and the unit vectors that read
/// one slot each.
template <class T>
struct abc_slots {
  tensor_view<T, 4> key_weights, value_weights;  // [batch, position, heads, slot]
  tensor_view<T, 4> key, value;                  // [batch, slot, heads, dim]
  tensor_view<T, 4> units;                       // [batch, slot, 1, slot]
};

template <class T, class K, class V, class CK, class CV, class Executor>
abc_slots<T> fill_abc_slots(tensor_view<K, 4> key, tensor_view<V, 4> value,
                            tensor_view<CK, 4> key_control, tensor_view<CV, 4> value_control,
                            Executor const& run_on) {
  auto const fits = [](char const* name, auto const& control, auto const& like, index_t slots) {
    require(control.extent(0) == like.extent(0) && control.extent(1) == like.extent(1) &&
                control.extent(2) > 0 && control.extent(3) == slots,
            [&] {
              return std::string(name) + " has shape " + shape_text(control.extents()) +
                     "; expected [" + std::to_string(like.extent(0)) + ", " +
                     std::to_string(like.extent(1)) + ", heads, " + std::to_string(slots) +
                     "] (batch, position, head, slot)";
            });
  };
  fits("key_control", key_control, key, key_control.extent(3));
  fits("value_control", value_control, value, key_control.extent(3));
  index_t const batches = key.extent(0), slots = key_control.extent(3);
  auto const t = recur::page_tensors<abc_slots_page, T>(
      key_control.extents(), value_control.extents(),
      recur::tensor_shape{batches, slots, std::max(key.extent(2), key_control.extent(2)),
                          key.extent(3)},
      recur::tensor_shape{batches, slots, std::max(value.extent(2), value_control.extent(2)),
                          value.extent(3)},
      recur::tensor_shape{1, slots, 1, slots});
  tensor_view<T, 4> const units(t[4].data(), {batches, slots, 1, slots}, {0, slots, 0, 1});
  for (index_t i = 0; i < slots; ++i)
    for (index_t j = 0; j < slots; ++j) t[4](0, i, 0, j) = i == j ? T(1) : T(0);
  abc_slots<T> const all{t[0], t[1], t[2], t[3], units};
  using rows = recur::channel_rows<double>;
  auto const sequences = [](auto const& control) {
    return recur::sequences_of(control.extents(), control.extents(), {});
  };
  recur::position_softmax(any_executor(run_on), sequences(key_control), rows(key_control),
                          rows(all.key_weights));
  recur::position_softmax(any_executor(run_on), sequences(value_control), rows(value_control),
                          rows(all.value_weights));
  linear_attention(units, all.key_weights, key, all.key, dense{}, run_on);
  linear_attention(units, all.value_weights, value, all.value, dense{}, run_on);
  return all;
}

}  // namespace detail

/// ABC over all positions, of the same sequence or of another one.
///
///   query [batch, N, heads, head_dim]; key, value [batch, M, heads of their own, dim]; out [batch, N, heads, value_dim]
///   key_control, value_control   [batch, M, heads of their own, slots]
///
/// Ingredients: scale (default head_dim^-1/2), an executor.
template <element Q, element K, element V, element CK, element CV, element O, class... Ingredients>
void abc_cross_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<CK, 4> key_control, tensor_view<CV, 4> value_control,
                         tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, CK, CV, O>;
  auto const run_on = recur::executor_of(ingredients...);
  auto const slots = detail::fill_abc_slots<T>(key, value, key_control, value_control, run_on);
  attention(query, slots.key, slots.value, out, ingredients...);
}

/// The gradients of abc_cross_attention.
template <element Q, element K, element V, element CK, element CV, element O, element DO,
          element DQ, element DK, element DV, element DCK, element DCV, class... Ingredients>
void abc_cross_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                  tensor_view<V, 4> value, tensor_view<CK, 4> key_control,
                                  tensor_view<CV, 4> value_control, tensor_view<O, 4> out,
                                  tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                  tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                  tensor_view<DCK, 4> dkey_control,
                                  tensor_view<DCV, 4> dvalue_control,
                                  Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, CK, CV, O, DO, DQ, DK, DV, DCK, DCV>;
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  detail::expect_like("dkey_control", dkey_control, key_control.extents(), "key_control");
  detail::expect_like("dvalue_control", dvalue_control, value_control.extents(), "value_control");
  auto const run_on = recur::executor_of(ingredients...);
  auto const slots = detail::fill_abc_slots<T>(key, value, key_control, value_control, run_on);
  index_t const count = key_control.extent(3);
  auto const t = recur::page_tensors<detail::abc_slots_gradient_page, T>(
      slots.key.extents(), slots.value.extents(), key_control.extents(), value_control.extents(),
      recur::tensor_shape{query.extent(0), count, 1, count}, out.extents(),
      detail::with_dim(out.extents(), 1));
  auto const& [dslot_key, dslot_value, dkey_weights, dvalue_weights, dunits, again, logs] = t;
  tensor_view<T, 3> const lse(logs.data(), {out.extent(0), out.extent(2), out.extent(1)});
  attention(query, slots.key, slots.value, again, lse_into<T>{lse}, ingredients...);
  attention_backward(query, slots.key, slots.value, out, lse, dout, dquery, dslot_key, dslot_value,
                     ingredients...);
  linear_attention_backward(slots.units, slots.key_weights, key, slots.key, dslot_key, dunits,
                            dkey_weights, dkey, dense{}, run_on);
  linear_attention_backward(slots.units, slots.value_weights, value, slots.value, dslot_value,
                            dunits, dvalue_weights, dvalue, dense{}, run_on);
  using rows = recur::channel_rows<double>;
  auto const sequences = recur::sequences_of(key_control.extents(), key_control.extents(), {});
  any_executor const runs(run_on);
  recur::position_softmax_backward(runs, sequences, rows(slots.key_weights), rows(dkey_weights),
                                   rows(dkey_control));
  recur::position_softmax_backward(runs, sequences, rows(slots.value_weights), rows(dvalue_weights),
                                   rows(dvalue_control));
}

}  // namespace heed
