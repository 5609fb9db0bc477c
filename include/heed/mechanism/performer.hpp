#pragma once

#include <heed/recur/composition.hpp>
#include <heed/recur/features/favor.hpp>
#include <heed/recur/linear_attention.hpp>

#include <limits>

/// Performer (Choromanski et al.: Rethinking Attention with Performers): softmax attention with scale 1 /
/// sqrt(head_dim) estimated by positive random features, which favor_projection::orthogonal draws. Generalised
/// features need no page: linear_attention with favor_relu and normalised.
///
/// Exponents are kept small by constants that cancel, and that gradients take as constants. Over all keys:
///
///     phi(x) = m^-1/2 (exp(omega x' - |x'|^2 / 2 - c) + epsilon),  x' = x / head_dim^1/4
///
/// c is the largest omega x' of a query, and of the keys of a head. Causal: a maximum over all keys would look
/// ahead. There the exponents of keys are relative to the largest so far, c_t, the state fades by e^(c_(t-1) - c_t)
/// where that grows, and epsilon is 0, which together equals the form without any c exactly.
///
/// Rows are divided by the sum of their weights, phi(q) . z; for another divisor give normalised{epsilon, at_least}
/// in each call. The projection is one for all calls that share a state. Documents are for calls of their own.
namespace heed {

/// The largest exponent of the keys so far, which belongs to the state of a causal Performer: read where the state
/// is, and updated where that is by causal_performer and its step. Begins as -infinity.
///
///   view   [batch, heads of the keys]
template <class T>
struct running_maximum {
  tensor_view<T, 2> view;
};
template <class T>
running_maximum(tensor_view<T, 2>) -> running_maximum<T>;

namespace detail {

struct performer_page {};

inline constexpr auto is_running_maximum = []<class T>() { return is_a<T, running_maximum>; };
inline constexpr auto is_for_performer = []<class T>() {
  return !is_a<T, running_maximum> && !std::same_as<T, normalised>;
};

/// Calls f with what linear_attention takes of the ingredients.
template <class F, class... I>
void with_performer_ingredients(F const& f, I const&... ingredients) {
  static_assert(!(false || ... || std::same_as<I, documents>),
                "heed: Performer takes no documents; call for each of them");
  normalised const by =
      one_of<recur::detail::is_normalised>(normalised{.epsilon = 0}, ingredients...);
  std::apply([&](auto const&... own) { f(by, own...); }, all_of<is_for_performer>(ingredients...));
}

/// The largest exponent of every key; [batch, position, heads].
template <class T, class K>
void favor_maxima(any_executor const& run_on, favor_projection const& omega, tensor_view<K, 4> key,
                  bool with_square, tensor_view<T, 3> largest) {
  source<T> const rows(key);
  recur::for_row_blocks(
      run_on, key.extents(), [&](index_t b, index_t h, index_t first, index_t count) {
        largest_favor_exponents(omega, recur::rows_for_map(rows, b, h, first, count, 0),
                                with_square, &largest(b, first, h), largest.stride(1));
      });
}

/// The constants of a call over all keys: one for each batch entry and head.
template <class T, class K>
favor_positive<T> performer_map(any_executor const& run_on, favor_projection const& omega,
                                tensor_view<K, 4> key, double epsilon) {
  index_t const batches = key.extent(0), keys = key.extent(1), heads = key.extent(2);
  auto const pages = recur::page_tensors<performer_page, T>(
      recur::tensor_shape{batches, keys, heads, 1}, recur::tensor_shape{batches, 1, heads, 1});
  auto const of_keys = recur::without_channels(pages[0]),
             largest = recur::without_channels(pages[1]);
  favor_maxima(run_on, omega, key, false, of_keys);
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h) {
      T most = keys > 0 ? of_keys(b, 0, h) : T(0);
      for (index_t j = 1; j < keys; ++j) most = std::max(most, of_keys(b, j, h));
      largest(b, 0, h) = most;
    }
  return {omega,
          tensor_view<T const, 3>(largest.data(), {batches, keys, heads},
                                  {largest.stride(0), 0, largest.stride(2)}),
          epsilon};
}

/// The constants of a causal call and the gates between them. `last` receives the last constant of each batch entry
/// and head.
template <class T>
struct causal_performer_parts {
  favor_positive<T> map;
  decay<double> gates;
  tensor_view<T, 3> last;  // [batch, 1, heads]
};
template <class T, class K, class... I>
causal_performer_parts<T> causal_performer_map(any_executor const& run_on,
                                               favor_projection const& omega, tensor_view<K, 4> key,
                                               I const&... ingredients) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr bool continues = (false || ... || is_a<I, running_maximum>);
  static_assert(continues == (false || ... ||
                              (is_a<I, state> || is_a<I, initial_state> || is_a<I, final_state>)),
                "heed: the state of a causal Performer and its running_maximum come together");
  static_assert(!(false || ... || std::same_as<I, dense>),
                "heed: performer() is the one that sees all keys");
  index_t const batches = key.extent(0), keys = key.extent(1), heads = key.extent(2);
  auto const before = one_of<is_running_maximum>(running_maximum<T>{{}}, ingredients...).view;
  if constexpr (continues)
    require(before.extent(0) == batches && before.extent(1) == heads, [&] {
      return "running_maximum has shape " + shape_text(before.extents()) + "; expected [" +
             std::to_string(batches) + ", " + std::to_string(heads) +
             "] (batch, heads of the keys)";
    });
  recur::tensor_shape const shape{batches, keys, heads, 1};
  auto const pages =
      recur::page_tensors<performer_page, T>(shape, recur::tensor_shape{batches, 1, heads, 1});
  auto const constants = recur::without_channels(pages[0]),
             last = recur::without_channels(pages[1]);
  auto const gates = recur::without_channels(recur::page_tensors<performer_page, double>(shape)[0]);
  favor_maxima(run_on, omega, key, true, constants);
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h) {
      T most = continues ? static_cast<T>(before(b, h)) : -infinity;
      for (index_t j = 0; j < keys; ++j) {
        T const now = std::max(most, constants(b, j, h));
        // The difference of two floats is exact in double, so that gates add up to what the constants say.
        gates(b, j, h) =
            most == -infinity ? 0 : static_cast<double>(most) - static_cast<double>(now);
        constants(b, j, h) = most = now;
      }
      last(b, 0, h) = most;
    }
  return {{omega, tensor_view<T const, 3>(constants), 0},
          decay<double>(tensor_view<double const, 3>(gates)),
          last};
}

template <class T, class... I>
void update_running_maximum(tensor_view<T, 3> last, I const&... ingredients) {
  [[maybe_unused]] auto const update = [&](auto const& ingredient) {
    if constexpr (is_a<std::remove_cvref_t<decltype(ingredient)>, running_maximum>) {
      using S = typename decltype(ingredient.view)::value_type;
      for (index_t b = 0; b < last.extent(0); ++b)
        for (index_t h = 0; h < last.extent(2); ++h)
          ingredient.view(b, h) = static_cast<S>(last(b, 0, h));
    }
  };
  (update(ingredients), ...);
}

template <class Q, class K>
void check_performer(favor_projection const& omega, tensor_view<Q, 4> query,
                     tensor_view<K, 4> key) {
  recurrence_shape shape;
  shape.query_dim = query.extent(3);
  shape.key_dim = key.extent(3);
  omega.check(shape);
}

}  // namespace detail

/// The features of a Performer over all keys.
struct favor {
  favor_projection const& projection;
  double epsilon = 1e-4;
};

/// Performer over all keys; shapes as those of linear_attention. Further ingredients: normalised, states, executor,
/// scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void performer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<O, 4> out, favor const& features, Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  detail::check_performer(features.projection, query, key);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const map = detail::performer_map<T>(run_on, features.projection, key, features.epsilon);
  detail::with_performer_ingredients(
      [&](auto const&... own) { linear_attention(query, key, value, out, map, dense{}, own...); },
      ingredients...);
}

template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void performer_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                        tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, favor const& features,
                        Ingredients const&... ingredients) {
  using T = compute_type<recur::compute_type_of<Q, K, V, O, Ingredients...>, DO, DQ, DK, DV>;
  detail::check_performer(features.projection, query, key);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const map = detail::performer_map<T>(run_on, features.projection, key, features.epsilon);
  detail::with_performer_ingredients(
      [&](auto const&... own) {
        linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue, map, dense{},
                                  own...);
      },
      ingredients...);
}

/// Causal Performer; shapes as those of linear_attention. Further ingredients: normalised, states with their
/// running_maximum, executor, scratch. A state is [batch, state heads, features, value_dim + 1].
template <element Q, element K, element V, element O, class... Ingredients>
void causal_performer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<O, 4> out, favor_projection const& projection,
                      Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  detail::check_performer(projection, query, key);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const parts = detail::causal_performer_map<T>(run_on, projection, key, ingredients...);
  detail::with_performer_ingredients(
      [&](auto const&... own) {
        linear_attention(query, key, value, out, parts.map, parts.gates, own...);
      },
      ingredients...);
  detail::update_running_maximum(parts.last, ingredients...);
}

/// The gradients of causal_performer. With an initial_state, running_maximum is what it was before the forward call,
/// and stays.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void causal_performer_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<O, 4> out,
                               tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                               tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                               favor_projection const& projection,
                               Ingredients const&... ingredients) {
  using T = compute_type<recur::compute_type_of<Q, K, V, O, Ingredients...>, DO, DQ, DK, DV>;
  detail::check_performer(projection, query, key);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const parts = detail::causal_performer_map<T>(run_on, projection, key, ingredients...);
  detail::with_performer_ingredients(
      [&](auto const&... own) {
        linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue, parts.map,
                                  parts.gates, own...);
      },
      ingredients...);
}

/// One token of causal_performer; `state` and `largest` are updated.
template <element Q, element K, element V, element O, class S, class L, class... Ingredients>
void causal_performer_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<O, 4> out, tensor_view<S, 4> state,
                           running_maximum<L> const& largest, favor_projection const& projection,
                           Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, heed::state<S>, Ingredients...>;
  detail::check_performer(projection, query, key);
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const parts =
      detail::causal_performer_map<T>(run_on, projection, key, largest, heed::state<S>{state});
  detail::with_performer_ingredients(
      [&](auto const&... own) {
        linear_attention_step(query, key, value, out, state, parts.map, parts.gates, own...);
      },
      ingredients...);
  detail::update_running_maximum(parts.last, largest);
}

}  // namespace heed
