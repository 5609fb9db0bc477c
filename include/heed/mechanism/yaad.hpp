#pragma once

#include <heed/recur/memory/miras.hpp>

/// It's All Connected (Miras): Yaad.
///
/// A matrix learns each key and value by a step on the Huber loss of the error, so that outliers do not own it:
///
///     W_t = retention_t W_(t-1) - k_t (rate_t psi(e_t))^T        e_t = W_ref^T k_t - v_t        out_t = W_t^T q_t
///
/// psi(e) = e where |e|_2 is at most the token's threshold, and beyond it threshold sign(e). W_ref is W at the start of the
/// current chunk of C tokens, counted from the start of the sequence; C = 1 is token by token. The state is W, 0 unless
/// given. An infinite threshold is the gated delta rule with rate rate / retention and value retention v.
namespace heed {

/// What is followed beyond the threshold: threshold sign(e); or `unit`, threshold e / |e|_2, which is continuous; or
/// `each`, every coordinate of e cut to [-threshold, threshold] alone.
using yaad_beyond = recur::memory::beyond;

struct yaad_options {
  yaad_beyond beyond = yaad_beyond::sign;
  index_t chunk = 1;  // C
};

/// Thresholds of the tokens, [batch, position, heads] of keys, at least 0 or infinite; `gradient`, the same shape, is
/// written by the backward pass. Optional.
template <element T>
struct yaad_threshold {
  tensor_view<T const, 3> threshold;
  tensor_view<T, 3> gradient;

  yaad_threshold(tensor_view<T const, 3> delta, tensor_view<T, 3> ddelta = {})
      : threshold(delta), gradient(ddelta) {}
};
template <class T, class... G>
yaad_threshold(tensor_view<T, 3>, G const&...) -> yaad_threshold<std::remove_const_t<T>>;

/// Learns keys and values and reads the memory, each row after its own token. Shapes and ingredients as those of moneta().
template <element Q, element K, element V, element O, element G, class... Ingredients>
void yaad(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
          tensor_view<O, 4> out, miras_gates<G> const& gates, yaad_threshold<G> const& threshold,
          yaad_options const& options, Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, O, G, states_type<Ingredients...>>;
  given_states<T> states;
  auto const call = miras_call<T>(query, key, value, gates, threshold.threshold, options.chunk,
                                  states, ingredients...);
  huber_error<T, xsimd::default_arch> const error{options.beyond};
  miras_forward<huber_error, read_as_it_is>(call, error, read_as_it_is<T, xsimd::default_arch>{},
                                            out, ingredients...);
}

/// The gradients of yaad(), with its arguments and ingredients; further final_state_gradient. Those of gates, thresholds
/// and the initial state go where these say.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          element G, class... Ingredients>
void yaad_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                   tensor_view<DV, 4> dvalue, miras_gates<G> const& gates,
                   yaad_threshold<G> const& threshold, yaad_options const& options,
                   Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, DO, G, states_type<Ingredients...>>;
  given_states<T> states;
  auto const call = miras_call<T>(query, key, value, gates, threshold.threshold, options.chunk,
                                  states, ingredients...);
  huber_error<T, xsimd::default_arch> const error{options.beyond};
  miras_backward<huber_error, read_as_it_is>(
      call, states, error, read_as_it_is<T, xsimd::default_arch>{}, dout, dquery, dkey, dvalue,
      gates, threshold.gradient, ingredients...);
}

/// Some more tokens of every sequence, one in decoding: yaad() that begins where the last call ended.
template <element Q, element K, element V, element O, element G, class T, class... Ingredients>
void yaad_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<O, 4> out, miras_gates<G> const& gates,
               yaad_threshold<G> const& threshold, yaad_options const& options,
               miras_state<T>& carried, Ingredients const&... ingredients) {
  using namespace recur::memory;
  given_states<T> states;
  auto call = miras_call<T>(query, key, value, gates, threshold.threshold, options.chunk, states,
                            state<T>{carried.state}, ingredients...);
  continue_call(call, carried);
  huber_error<T, xsimd::default_arch> const error{options.beyond};
  miras_forward<huber_error, read_as_it_is>(call, error, read_as_it_is<T, xsimd::default_arch>{},
                                            out, ingredients...);
  carried.absorbed = (carried.absorbed + key.extent(1)) % options.chunk;
}

}  // namespace heed
