#pragma once

#include <heed/recur/memory/miras.hpp>

/// It's All Connected (Miras): Memora.
///
/// A matrix of positive numbers with a fixed sum learns each key and value by a step that is measured by their relative
/// entropy: W_t = total Softmax(retention_t log W_(t-1) - k_t (rate_t e_t)^T). Its logits are carried instead, which is the
/// same, needs no logarithm and is a gated linear recurrence inside a chunk:
///
///     L_t = retention_t L_(t-1) - k_t (rate_t e_t)^T        e_t = W_ref^T k_t - v_t
///     W_t = total Softmax(L_t)        out_t = W_t^T q_t
///
/// with the softmax over all entries, or over those of each value channel. W_ref is W at the start of the current chunk of
/// C tokens, counted from the start of the sequence; C = 1 is token by token. The state is L, 0 unless given: to begin with
/// weights, give their logarithms.
namespace heed {

struct memora_options {
  double total = 1;           // the sum of the entries
  bool each_channel = false;  // the softmax of each value channel alone; all of them sum to total
  index_t chunk = 1;          // C
};

namespace detail {

template <class T>
recur::memory::read_by_softmax<T, xsimd::default_arch> memora_reading(
    memora_options const& options) {
  require(options.total > 0 && std::isfinite(options.total), [&] {
    return "memora has a total of " + std::to_string(options.total) + "; expected above 0";
  });
  return {static_cast<T>(options.total), options.each_channel};
}

}  // namespace detail

/// Learns keys and values and reads the memory, each row after its own token. Shapes and ingredients as those of moneta().
template <element Q, element K, element V, element O, element G, class... Ingredients>
void memora(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<O, 4> out, miras_gates<G> const& gates, memora_options const& options,
            Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, O, G, states_type<Ingredients...>>;
  given_states<T> states;
  auto const call =
      miras_call<T>(query, key, value, gates, {}, options.chunk, states, ingredients...);
  miras_forward<squared_error, read_by_softmax>(call, squared_error<T, xsimd::default_arch>{},
                                                detail::memora_reading<T>(options), out,
                                                ingredients...);
}

/// The gradients of memora(), with its arguments and ingredients; further final_state_gradient. Those of gates and the
/// initial logits go where these say.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          element G, class... Ingredients>
void memora_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                     tensor_view<DV, 4> dvalue, miras_gates<G> const& gates,
                     memora_options const& options, Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, DO, G, states_type<Ingredients...>>;
  given_states<T> states;
  auto const call =
      miras_call<T>(query, key, value, gates, {}, options.chunk, states, ingredients...);
  miras_backward<squared_error, read_by_softmax>(
      call, states, squared_error<T, xsimd::default_arch>{}, detail::memora_reading<T>(options),
      dout, dquery, dkey, dvalue, gates, tensor_view<G, 3>{}, ingredients...);
}

/// Some more tokens of every sequence, one in decoding: memora() that begins where the last call ended.
template <element Q, element K, element V, element O, element G, class T, class... Ingredients>
void memora_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                 tensor_view<O, 4> out, miras_gates<G> const& gates, memora_options const& options,
                 miras_state<T>& carried, Ingredients const&... ingredients) {
  using namespace recur::memory;
  given_states<T> states;
  auto call = miras_call<T>(query, key, value, gates, {}, options.chunk, states,
                            state<T>{carried.state}, ingredients...);
  continue_call(call, carried);
  miras_forward<squared_error, read_by_softmax>(call, squared_error<T, xsimd::default_arch>{},
                                                detail::memora_reading<T>(options), out,
                                                ingredients...);
  carried.absorbed = (carried.absorbed + key.extent(1)) % options.chunk;
}

}  // namespace heed
