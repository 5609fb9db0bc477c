#pragma once

#include <heed/view/element.hpp>
#include <heed/view/ingredients.hpp>

#include <span>

/// The clauses of a recurrence besides its feature map: how a state fades, how it is written to, how a row is normalised,
/// and which states a call begins and ends with.
namespace heed {

/// A scalar log gate for each token: S_t = e^g_t S_(t-1) + ...
///
///   log_gate   [batch, position, heads], none above 0; -infinity forgets all that was before. Heads as those of keys
///   gradient   d loss / d log_gate, the same shape; written by the backward pass. Optional
///
/// What would make a state grow, and NaN, is refused.
template <element T>
struct decay {
  tensor_view<T const, 3> log_gate;
  tensor_view<T, 3> gradient;

  decay(tensor_view<T const, 3> g, tensor_view<T, 3> dg = {}) : log_gate(g), gradient(dg) {}
};
template <class T, class... G>
decay(tensor_view<T, 3>, G const&...) -> decay<std::remove_const_t<T>>;

/// The same decay at every token: `log_decays` has one for each head, e^log_decay in (0, 1].
template <element T>
decay<std::remove_const_t<T>> fixed_decay(std::span<T> log_decays) {
  using E = std::remove_const_t<T>;
  return decay<E>(tensor_view<E const, 3>(
      log_decays.data(), {-1, -1, static_cast<index_t>(log_decays.size())}, {0, 0, 1}));
}

/// A log gate for each feature of the key, S_t = diag(e^g_t) S_(t-1) + ...; [batch, position, heads, features].
template <element T>
struct key_decay {
  tensor_view<T const, 4> log_gate;
  tensor_view<T, 4> gradient;

  key_decay(tensor_view<T const, 4> g, tensor_view<T, 4> dg = {}) : log_gate(g), gradient(dg) {}
};
template <class T, class... G>
key_decay(tensor_view<T, 4>, G const&...) -> key_decay<std::remove_const_t<T>>;

/// A log gate for each channel of the value, S_t = S_(t-1) diag(e^h_t) + ...; [batch, position, heads, value_dim].
template <element T>
struct value_decay {
  tensor_view<T const, 4> log_gate;
  tensor_view<T, 4> gradient;

  value_decay(tensor_view<T const, 4> h, tensor_view<T, 4> dh = {}) : log_gate(h), gradient(dh) {}
};
template <class T, class... G>
value_decay(tensor_view<T, 4>, G const&...) -> value_decay<std::remove_const_t<T>>;

/// The delta rule: what the faded state S' already says of a key is taken away before the value is written,
/// S_t = S' + rate_t phi(k_t) (v_t - S'^T phi(k_t))^T. Stable for rate |phi(k)|^2 in [0, 2]: keys are usually normalised.
///
///   rate       [batch, position, heads]
///   gradient   the same shape, written by the backward pass. Optional
template <element T>
struct delta {
  tensor_view<T const, 3> rate;
  tensor_view<T, 3> gradient;

  delta(tensor_view<T const, 3> r, tensor_view<T, 3> dr = {}) : rate(r), gradient(dr) {}
};
template <class T, class... G>
delta(tensor_view<T, 3>, G const&...) -> delta<std::remove_const_t<T>>;

/// The delta rule as the exact solution over a time `rate` of dS/dt = -k k^T S + k v^T: its rate is
/// (1 - exp(-rate |k|^2)) / |k|^2, which is stable for every key and rate >= 0. Error-Free Linear Attention.
template <element T>
struct exact_delta {
  tensor_view<T const, 3> rate;
  tensor_view<T, 3> gradient;

  exact_delta(tensor_view<T const, 3> r, tensor_view<T, 3> dr = {}) : rate(r), gradient(dr) {}
};
template <class T, class... G>
exact_delta(tensor_view<T, 3>, G const&...) -> exact_delta<std::remove_const_t<T>>;

/// Divides a row by the sum of its weights, phi(q_i) . z_i with z = sum_j phi(k_j) faded as the state is, plus epsilon, and
/// no less than `at_least`. A row whose divisor is 0 gives 0. The state has z for its last column.
struct normalised {
  double epsilon = 1e-6;
  double at_least = -std::numeric_limits<double>::infinity();
};

/// The number of tokens in a chunk, which moves results by rounding only. Default: chosen by the shape.
struct chunk_size {
  index_t tokens;
};

/// The state a call begins with, and where it leaves the one it ends with.
///
///   view   [sequences, state heads, features, value_dim (+ 1 if normalised)], float or double; double has the call
///          compute in double. State heads are the most heads that keys, values, gates or rates have
template <class T>
struct state {
  tensor_view<T, 4> view;
};
template <class T>
state(tensor_view<T, 4>) -> state<T>;

/// The state a call begins with, if it is not to be overwritten; `gradient` receives d loss / d view. Default 0.
template <element T>
struct initial_state {
  tensor_view<T const, 4> view;
  tensor_view<T, 4> gradient;

  initial_state(tensor_view<T const, 4> s, tensor_view<T, 4> ds = {}) : view(s), gradient(ds) {}
};
template <class T, class... G>
initial_state(tensor_view<T, 4>, G const&...) -> initial_state<std::remove_const_t<T>>;

/// Where the state goes that a call ends with.
template <class T>
struct final_state {
  tensor_view<T, 4> view;
};
template <class T>
final_state(tensor_view<T, 4>) -> final_state<T>;

/// d loss / d final state, for the backward pass. Default 0.
template <element T>
struct final_state_gradient {
  tensor_view<T const, 4> view;

  final_state_gradient(tensor_view<T const, 4> ds) : view(ds) {}
};
template <class T>
final_state_gradient(tensor_view<T, 4>) -> final_state_gradient<std::remove_const_t<T>>;

namespace recur {

namespace detail {

inline constexpr auto is_state = []<class T>() { return heed::detail::is_a<T, state>; };
inline constexpr auto is_initial_state = []<class T>() {
  return heed::detail::is_a<T, initial_state>;
};
inline constexpr auto is_final_state = []<class T>() { return heed::detail::is_a<T, final_state>; };
inline constexpr auto is_final_gradient = []<class T>() {
  return heed::detail::is_a<T, final_state_gradient>;
};
template <class I>
inline constexpr bool is_any_state =
    is_state.template operator()<I>() || is_initial_state.template operator()<I>() ||
    is_final_state.template operator()<I>() || is_final_gradient.template operator()<I>();

template <class I>
struct state_type {
  using type = float;
};
template <class I>
  requires is_any_state<I>
struct state_type<I> {
  using type = typename decltype(I::view)::value_type;
};
// A class, because g++ 12 loses a fold in an alias of an alias.
template <class... I>
struct states_type {
  using type = compute_type<float, typename state_type<std::remove_cvref_t<I>>::type...>;
};

}  // namespace detail

/// The type that the states among the ingredients of a call have it compute in: double if one is in double.
template <class... I>
using states_type = typename detail::states_type<I...>::type;

}  // namespace recur

}  // namespace heed
