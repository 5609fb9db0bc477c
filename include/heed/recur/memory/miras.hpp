#pragma once

#include <heed/recur/clauses.hpp>
#include <heed/recur/matrix_memory.hpp>
#include <heed/view/convert.hpp>

/// The call of the memories of Miras: what is common to Moneta, Yaad and Memora.
namespace heed {

/// What each token brings, of the positions and heads of keys.
///
///   retention   alpha in [0, 1], [batch, position, heads]
///   rate        eta >= 0, [batch, position, heads], or [batch, position, heads, value_dim]: one for each value channel
///   dretention, drate   their gradients, written by the backward pass. Optional
///
/// What is outside, and NaN, is refused. A stride of 0 shares gates.
template <element T>
struct miras_gates {
  tensor_view<T const, 3> retention;
  tensor_view<T const, 4> rate;
  tensor_view<T, 3> dretention;
  tensor_view<T, 4> drate;

  miras_gates(tensor_view<T const, 3> alpha, tensor_view<T const, 4> eta,
              tensor_view<T, 3> dalpha = {}, tensor_view<T, 4> deta = {})
      : retention(alpha), rate(eta), dretention(dalpha), drate(deta) {}
  miras_gates(tensor_view<T const, 3> alpha, tensor_view<T const, 3> eta,
              tensor_view<T, 3> dalpha = {}, tensor_view<T, 3> deta = {})
      : miras_gates(
            alpha, recur::memory::with_channel(eta), dalpha,
            deta.data() == nullptr ? tensor_view<T, 4>{} : recur::memory::with_channel(deta)) {}
};
template <class T, class... G>
miras_gates(tensor_view<T, 3>, G const&...) -> miras_gates<std::remove_const_t<T>>;

/// What decoding carries from call to call, in the type of the computation.
///
///   state       [sequences, key heads, head_dim, value_dim], the transposed of the papers' matrix
///   reference   shaped like it: the state at the start of the chunk. Written and read where chunks are longer than 1
template <class T>
struct miras_state {
  tensor_view<T, 4> state, reference;
  index_t absorbed = 0;  // tokens of the current chunk that the state holds
};

namespace recur::memory {

using recur::states_type;
using recur::detail::is_any_state;
using recur::detail::is_final_gradient;
using recur::detail::is_final_state;
using recur::detail::is_initial_state;
using recur::detail::is_state;

template <class I>
constexpr bool check_miras_ingredient() {
  constexpr bool known = is_executor.template operator()<I>() ||
                         is_scratch.template operator()<I>() ||
                         is_documents.template operator()<I>() || is_any_state<I>;
  static_assert(known,
                "heed: this memory takes state, initial_state, final_state, "
                "final_state_gradient, documents, an executor and scratch");
  return known;
}

/// Numbers within bounds; NaN is not. What a stride of 0 shares is looked at once.
template <class E>
void expect_numbers(char const* name, tensor_view<E, 4> view, double least, double most) {
  auto const extent = [&](int axis) {
    return view.stride(axis) == 0 ? std::min<index_t>(1, view.extent(axis)) : view.extent(axis);
  };
  for (index_t b = 0; b < extent(0); ++b)
    for (index_t i = 0; i < extent(1); ++i)
      for (index_t h = 0; h < extent(2); ++h)
        for (index_t c = 0; c < extent(3); ++c) {
          auto const x = convert_element<double>(view(b, i, h, c));
          require(x >= least && x <= most, [&] {
            return std::string(name) + " holds " + std::to_string(x) + " at " +
                   shape_text(std::array{b, i, h, c}) + "; expected numbers from " +
                   std::to_string(static_cast<index_t>(least)) +
                   (most <= 1 ? " to " + std::to_string(static_cast<index_t>(most)) : " up");
          });
        }
}

/// What states a call is given.
template <class T>
struct given_states {
  tensor_view<T const, 4> initial;
  tensor_view<T, 4> final, initial_gradient;
  tensor_view<T const, 4> final_gradient;
};

template <class T, class... I>
given_states<T> states_of(std::array<index_t, 4> const& expected, I const&... ingredients) {
  static_assert(int((false || ... || is_state.template operator()<I>())) +
                        int((false || ... ||
                             (is_initial_state.template operator()<I>() ||
                              is_final_state.template operator()<I>()))) <=
                    1,
                "heed: state is the initial and the final state");
  given_states<T> all;
  [[maybe_unused]] auto const check = [&](char const* name, auto const& view) {
    using E = typename std::remove_cvref_t<decltype(view)>::value_type;
    static_assert(std::is_same_v<E, T>,
                  "heed: states have the type of the computation, double with any operand in it");
    if (view.data() != nullptr || view.size() != 0) expect_rows(name, view, expected);
    return view;
  };
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_state.template operator()<One>()) {
      all.final = check("state", ingredient.view);
      all.initial = all.final;
    } else if constexpr (is_initial_state.template operator()<One>()) {
      all.initial = check("initial_state", ingredient.view);
      all.initial_gradient = check("initial_state.gradient", ingredient.gradient);
    } else if constexpr (is_final_state.template operator()<One>()) {
      all.final = check("final_state", ingredient.view);
    } else if constexpr (is_final_gradient.template operator()<One>()) {
      all.final_gradient = check("final_state_gradient", ingredient.view);
    }
  };
  (look(ingredients), ...);
  return all;
}

/// Checks a call and gathers it. `threshold` is empty for objectives without one.
template <class T, class Q, class K, class V, class G, class... I>
matrix_call<T> miras_call(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          miras_gates<G> const& gates, tensor_view<G const, 3> threshold,
                          index_t chunk, given_states<T>& states, I const&... ingredients) {
  static_assert((true && ... && check_miras_ingredient<I>()));
  matrix_call<T> call;
  call.given = operands_of<T>(query, key, value, ingredients...);
  std::array<index_t, 4> of_keys{key.extent(0), key.extent(1), key.extent(2), 1};
  expect_rows("retention", with_channel(gates.retention), of_keys);
  expect_numbers("retention", with_channel(gates.retention), 0, 1);
  if (gates.rate.extent(3) != 1) of_keys[3] = value.extent(3);
  expect_rows("rate", gates.rate, of_keys);
  expect_numbers("rate", gates.rate, 0, std::numeric_limits<double>::max());
  require(chunk > 0, [&] {
    return "a memory has chunks of " + std::to_string(chunk) + " tokens; expected at least 1";
  });
  if (threshold.data() != nullptr || threshold.size() > 0) {
    of_keys[3] = 1;
    expect_rows("threshold", with_channel(threshold), of_keys);
    expect_numbers("threshold", with_channel(threshold), 0,
                   std::numeric_limits<double>::infinity());
    call.threshold = source<T>(with_channel(threshold));
  }
  call.retention = source<T>(with_channel(gates.retention));
  call.rate = source<T>(gates.rate);
  call.chunk = chunk;
  states = states_of<T>(
      {call.given.sequence.count(), call.given.heads, call.given.dim, call.given.value_dim},
      ingredients...);
  call.initial = states.initial;
  call.final = states.final;
  return call;
}

/// Runs f(sequence, head, scratch) for every memory of a call.
template <class Work, class T, class F, class... I>
void for_each_memory(Work const& work, matrix_call<T> const& call, bool backward, F f,
                     I const&... ingredients) {
  auto const run_on = executor_of(ingredients...);
  std::size_t const bytes = work.bytes(backward);
  std::byte* const memory =
      scratch_of(ingredients...).reserve(bytes * static_cast<std::size_t>(run_on.concurrency()));
  parallel_for(run_on, call.given.sequence.count() * call.given.heads,
               [&](index_t piece, index_t worker) {
                 f(piece / call.given.heads, piece % call.given.heads,
                   memory + static_cast<std::size_t>(worker) * bytes);
               });
}

template <template <class, class> class Error, template <class, class> class Reading, class T,
          class E, class R, class O, class... I>
void miras_forward(matrix_call<T> const& call, E const& error, R const& reading,
                   tensor_view<O, 4> out, I const&... ingredients) {
  std::array<index_t, 4> rows = call.given.query.extents();
  rows[3] = call.given.value_dim;
  expect_rows("out", out, rows);
  matrix_memory<T, Error, Reading> const work(call, error, reading);
  sink<T> const to(out);
  for_each_memory(
      work, call, false,
      [&](index_t s, index_t h, std::byte* memory) { work.forward(s, h, memory, to); },
      ingredients...);
}

template <template <class, class> class Error, template <class, class> class Reading, class T,
          class E, class R, class DO, class DQ, class DK, class DV, class G, class... I>
void miras_backward(matrix_call<T> const& call, given_states<T> const& states, E const& error,
                    R const& reading, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                    tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, miras_gates<G> const& gates,
                    tensor_view<G, 3> dthreshold, I const&... ingredients) {
  std::array<index_t, 4> rows = call.given.query.extents();
  expect_rows("dquery", dquery, rows);
  rows[3] = call.given.value_dim;
  expect_rows("dout", dout, rows);
  expect_rows("dkey", dkey, call.given.key.extents());
  expect_rows("dvalue", dvalue, call.given.value.extents());
  matrix_gradients<T> to;
  auto const gate = [&](char const* name, auto view, std::array<index_t, 4> const& expected,
                        sink<T>& into) {
    if (view.data() == nullptr) return;
    expect_rows(name, view, expected);
    into = sink<T>(view);
  };
  gate("dretention", with_channel(gates.dretention), call.retention.extents(), to.retention);
  gate("drate", gates.drate, call.rate.extents(), to.rate);
  gate("dthreshold", with_channel(dthreshold), call.threshold.extents(), to.threshold);
  to.out = source<T>(dout);
  to.query = sink<T>(dquery);
  to.key = sink<T>(dkey);
  to.value = sink<T>(dvalue);
  to.final = states.final_gradient;
  to.initial = states.initial_gradient;
  matrix_memory<T, Error, Reading> const work(call, error, reading);
  for_each_memory(
      work, call, true,
      [&](index_t s, index_t h, std::byte* memory) { work.backward(s, h, memory, to); },
      ingredients...);
}

/// A call that begins where the last one ended, within a chunk too.
template <class T>
void continue_call(matrix_call<T>& call, miras_state<T> const& state) {
  require(state.absorbed >= 0 && state.absorbed < call.chunk, [&] {
    return "state.absorbed is " + std::to_string(state.absorbed) + "; expected 0 to " +
           std::to_string(call.chunk - 1) + ", within a chunk";
  });
  if (call.chunk > 1) expect_rows("state.reference", state.reference, call.final.extents());
  call.absorbed = state.absorbed;
  if (call.chunk == 1) return;
  call.reference = state.reference;
  call.final_reference = state.reference;
}

}  // namespace recur::memory
}  // namespace heed
