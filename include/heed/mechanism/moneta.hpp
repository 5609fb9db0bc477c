#pragma once

#include <heed/recur/memory/miras.hpp>

/// It's All Connected (Miras): Moneta.
///
/// A matrix learns each key and value by a step on the sum of |e|^p, e the error, and is kept small by an l_q norm:
///
///     A_t = retention_t A_(t-1) - k_t (rate_t psi(e_t))^T        e_t = W_ref^T k_t - v_t,  psi(e) = p sign(e) |e|^(p-1)
///     W_t = A_t / |A_t|_q^(q-2)        out_t = W_t^T q_t
///
/// with the norm over all entries, and W = A while A = 0. W_ref is W at the start of the current chunk of C tokens,
/// counted from the start of the sequence; C = 1 is token by token. The state is A, 0 unless given. p = q = 2 is the gated
/// delta rule with rate 2 rate / retention and value retention v.
namespace heed {

struct moneta_options {
  double p = 3;         // at least 1
  double q = 4;         // at least 1
  bool smooth = false;  // tanh(10 e) for sign(e) and sqrt(e^2 + 1e-6) for |e|
  bool exact =
      true;  // each row is read by the norm of its own token; else by that at the start of its chunk
  index_t chunk = 1;  // C
};

namespace detail {

inline void check_moneta(moneta_options const& options) {
  require(options.p >= 1 && std::isfinite(options.p) && options.q >= 1 && std::isfinite(options.q),
          [&] {
            return "moneta has p = " + std::to_string(options.p) +
                   " and q = " + std::to_string(options.q) + "; expected both at least 1";
          });
}
template <class T>
recur::memory::power_error<T, xsimd::default_arch> moneta_error(moneta_options const& options) {
  return {static_cast<T>(options.p), options.smooth};
}
template <class T>
recur::memory::read_by_norm<T, xsimd::default_arch> moneta_reading(moneta_options const& options) {
  return {static_cast<T>(options.q), options.exact};
}

}  // namespace detail

/// Learns keys and values and reads the memory, each row after its own token.
///
///   query   [batch, N, heads, D]       a head of keys has a memory, which its group of query heads reads
///   key     [batch, M, key_heads, D]   M > N: the first M - N keys are learned before the first row is read;
///   value   [batch, M, key_heads, E]   M < N: the first N - M rows read the memory as it begins
///   out     [batch, N, heads, E]
///
/// Ingredients: state, initial_state, final_state (A, [sequences, key heads, D, E]), documents, an executor, scratch.
/// The result has the same bits for every executor. Throws heed::error before writing anything.
template <element Q, element K, element V, element O, element G, class... Ingredients>
void moneta(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<O, 4> out, miras_gates<G> const& gates, moneta_options const& options,
            Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, O, G, states_type<Ingredients...>>;
  detail::check_moneta(options);
  given_states<T> states;
  auto const call =
      miras_call<T>(query, key, value, gates, {}, options.chunk, states, ingredients...);
  miras_forward<power_error, read_by_norm>(call, detail::moneta_error<T>(options),
                                           detail::moneta_reading<T>(options), out, ingredients...);
}

/// The gradients of moneta(), with its arguments and ingredients; further final_state_gradient. Those of gates and the
/// initial state go where these say.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          element G, class... Ingredients>
void moneta_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                     tensor_view<DV, 4> dvalue, miras_gates<G> const& gates,
                     moneta_options const& options, Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, DO, G, states_type<Ingredients...>>;
  detail::check_moneta(options);
  given_states<T> states;
  auto const call =
      miras_call<T>(query, key, value, gates, {}, options.chunk, states, ingredients...);
  miras_backward<power_error, read_by_norm>(call, states, detail::moneta_error<T>(options),
                                            detail::moneta_reading<T>(options), dout, dquery, dkey,
                                            dvalue, gates, tensor_view<G, 3>{}, ingredients...);
}

/// Some more tokens of every sequence, one in decoding: moneta() that begins where the last call ended.
template <element Q, element K, element V, element O, element G, class T, class... Ingredients>
void moneta_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                 tensor_view<O, 4> out, miras_gates<G> const& gates, moneta_options const& options,
                 miras_state<T>& carried, Ingredients const&... ingredients) {
  using namespace recur::memory;
  detail::check_moneta(options);
  given_states<T> states;
  auto call = miras_call<T>(query, key, value, gates, {}, options.chunk, states,
                            state<T>{carried.state}, ingredients...);
  continue_call(call, carried);
  miras_forward<power_error, read_by_norm>(call, detail::moneta_error<T>(options),
                                           detail::moneta_reading<T>(options), out, ingredients...);
  carried.absorbed = (carried.absorbed + key.extent(1)) % options.chunk;
}

}  // namespace heed
