#pragma once

#include <heed/recur/features/favor.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/passes.hpp>
#include <heed/recur/running_reference.hpp>

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
/// in each call. The projection is one for all calls that share a state.
namespace heed {

/// The largest exponent of the keys so far, which belongs to the state of a causal Performer: read where the state
/// is, and updated where that is by causal_performer and its step. Begins as -infinity.
///
///   view   [sequences, heads of the keys]
template <class T>
struct running_maximum {
  tensor_view<T, 2> view;
};
template <class T>
running_maximum(tensor_view<T, 2>) -> running_maximum<T>;

namespace detail {

struct performer_page;
struct performer_gate_page;
struct performer_maximum_page;

inline constexpr auto is_running_maximum = []<class T>() { return is_a<T, running_maximum>; };
inline constexpr auto is_for_performer = []<class T>() {
  return !is_a<T, running_maximum> && !std::same_as<T, normalised>;
};

/// Calls f with what linear_attention takes of the ingredients.
template <class F, class... I>
void with_performer_ingredients(F const& f, I const&... ingredients) {
  normalised const by =
      one_of<recur::detail::is_normalised>(normalised{.epsilon = 0}, ingredients...);
  std::apply([&](auto const&... own) { f(by, own...); }, all_of<is_for_performer>(ingredients...));
}

/// What belongs to one of some sequences; of documents nothing.
template <class View>
View of_sequence(View const& all, index_t sequences, index_t sequence) {
  if (all.data() == nullptr) return all;
  require(all.extent(0) == sequences, [&] {
    return "a state or running_maximum has shape " + shape_text(all.extents()) + "; expected " +
           std::to_string(sequences) + " sequences (axis 0)";
  });
  return all.slice(0, sequence, 1);
}
template <class I>
auto ingredient_of_sequence(I const& ingredient, index_t sequences, index_t sequence) {
  auto const of = [&](auto const& view) { return of_sequence(view, sequences, sequence); };
  if constexpr (std::same_as<I, documents>)
    return std::tuple<>();
  else if constexpr (is_a<I, initial_state>)
    return std::tuple(I(of(ingredient.view), of(ingredient.gradient)));
  else if constexpr (is_a<I, state> || is_a<I, final_state> || is_a<I, final_state_gradient> ||
                     is_a<I, running_maximum>)
    return std::tuple(I{of(ingredient.view)});
  else
    return std::tuple<I>(ingredient);
}

/// Calls f(what cuts the rows of a document from a tensor, what cuts its keys, its ingredients...) for one document after the
/// other, or once for all: the constants of a key are those of its document.
template <class F, class Q, class K, class... I>
void for_each_document(tensor_view<Q, 4> query, tensor_view<K, 4> key, F const& f,
                       I const&... ingredients) {
  if constexpr ((false || ... || std::same_as<I, documents>)) {
    auto const sequences = recur::sequences_among(query.extents(), key.extents(), ingredients...);
    for (index_t s = 0; s < sequences.count; ++s) {
      place const at = sequences.at(s);
      auto const cut = [](index_t positions, index_t first, index_t count) {
        return [=](auto const& view) {
          require(view.extent(1) == positions, [&] {
            return "a tensor has shape " + shape_text(view.extents()) + "; expected " +
                   std::to_string(positions) + " positions (axis 1)";
          });
          return view.slice(1, first, count);
        };
      };
      std::apply(
          [&](auto const&... own) {
            f(cut(query.extent(1), at.first_row, at.rows),
              cut(key.extent(1), at.first_key, at.keys), own...);
          },
          std::tuple_cat(ingredient_of_sequence(ingredients, sequences.count, s)...));
    }
  } else {
    constexpr auto whole = [](auto const& view) { return view; };
    f(whole, whole, ingredients...);
  }
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
  tensor_view<double, 2> last;
};
template <class T, class K, class... I>
causal_performer_parts<T> causal_performer_map(any_executor const& run_on,
                                               favor_projection const& omega, tensor_view<K, 4> key,
                                               I const&... ingredients) {
  constexpr bool continues = (false || ... || is_a<I, running_maximum>);
  static_assert(continues == (false || ... ||
                              (is_a<I, state> || is_a<I, initial_state> || is_a<I, final_state>)),
                "heed: the state of a causal Performer and its running_maximum come together");
  static_assert(!(false || ... || std::same_as<I, dense>),
                "heed: performer() is the one that sees all keys");
  recur::tensor_shape const shape{key.extent(0), key.extent(1), key.extent(2), 1};
  auto const constants = recur::without_channels(recur::page_tensors<performer_page, T>(shape)[0]);
  auto const gates =
      recur::without_channels(recur::page_tensors<performer_gate_page, double>(shape)[0]);
  tensor_view<double, 2> last;
  if constexpr (continues) {
    auto const before = one_of<is_running_maximum>(nullptr, ingredients...).view;
    require(before.extent(0) == shape[0] && before.extent(1) == shape[2], [&] {
      return "running_maximum has shape " + shape_text(before.extents()) + "; expected [" +
             std::to_string(shape[0]) + ", " + std::to_string(shape[2]) +
             "] (sequence, head of the keys)";
    });
    auto const copy = recur::page_tensors<performer_maximum_page, double>(
        recur::tensor_shape{1, shape[0], 1, shape[2]})[0];
    last = tensor_view<double, 2>(copy.data(), before.extents());
    copy_elements(recur::with_first_axes(before), recur::with_first_axes(last));
  }
  favor_maxima(run_on, omega, key, true, constants);
  recur::running_reference(run_on, recur::sequences_of(key.extents(), key.extents(), {}), constants,
                           gates, last);
  return {{omega, tensor_view<T const, 3>(constants), 0},
          decay<double>(tensor_view<double const, 3>(gates)),
          last};
}

template <class... I>
void update_running_maximum(tensor_view<double, 2> last, I const&... ingredients) {
  [[maybe_unused]] auto const update = [&](auto const& ingredient) {
    if constexpr (is_a<std::remove_cvref_t<decltype(ingredient)>, running_maximum>)
      copy_elements(recur::with_first_axes(last), recur::with_first_axes(ingredient.view));
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

/// Performer over all keys; shapes as those of linear_attention. Further ingredients: normalised, states, documents, an
/// executor, scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void performer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<O, 4> out, favor const& features, Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  detail::check_performer(features.projection, query, key);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  detail::for_each_document(
      query, key,
      [&](auto const& rows, auto const& keys, auto const&... all) {
        auto const map =
            detail::performer_map<T>(run_on, features.projection, keys(key), features.epsilon);
        detail::with_performer_ingredients(
            [&](auto const&... own) {
              linear_attention(rows(query), keys(key), keys(value), rows(out), map, dense{},
                               own...);
            },
            all...);
      },
      ingredients...);
}

/// The gradients of performer.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void performer_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                        tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, favor const& features,
                        Ingredients const&... ingredients) {
  using T = compute_type<recur::compute_type_of<Q, K, V, O, Ingredients...>, DO, DQ, DK, DV>;
  detail::check_performer(features.projection, query, key);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  detail::for_each_document(
      query, key,
      [&](auto const& rows, auto const& keys, auto const&... all) {
        auto const map =
            detail::performer_map<T>(run_on, features.projection, keys(key), features.epsilon);
        detail::with_performer_ingredients(
            [&](auto const&... own) {
              linear_attention_backward(rows(query), keys(key), keys(value), rows(out), rows(dout),
                                        rows(dquery), keys(dkey), keys(dvalue), map, dense{},
                                        own...);
            },
            all...);
      },
      ingredients...);
}

/// Causal Performer; shapes as those of linear_attention. Further ingredients: normalised, states with their
/// running_maximum, documents, an executor, scratch. A state is [sequences, state heads, features, value_dim + 1].
template <element Q, element K, element V, element O, class... Ingredients>
void causal_performer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<O, 4> out, favor_projection const& projection,
                      Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  detail::check_performer(projection, query, key);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  detail::for_each_document(
      query, key,
      [&](auto const& rows, auto const& keys, auto const&... all) {
        auto const parts = detail::causal_performer_map<T>(run_on, projection, keys(key), all...);
        detail::with_performer_ingredients(
            [&](auto const&... own) {
              linear_attention(rows(query), keys(key), keys(value), rows(out), parts.map,
                               parts.gates, own...);
            },
            all...);
        detail::update_running_maximum(parts.last, all...);
      },
      ingredients...);
}

/// The gradients of causal_performer. With an initial_state, running_maximum is what it was before the forward call,
/// and stays. A loss may depend on e^running_maximum times the final state only: final_state_gradient is d loss / d that state
/// with the maximum as it is.
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
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  detail::for_each_document(
      query, key,
      [&](auto const& rows, auto const& keys, auto const&... all) {
        auto const parts = detail::causal_performer_map<T>(run_on, projection, keys(key), all...);
        detail::with_performer_ingredients(
            [&](auto const&... own) {
              linear_attention_backward(rows(query), keys(key), keys(value), rows(out), rows(dout),
                                        rows(dquery), keys(dkey), keys(dvalue), parts.map,
                                        parts.gates, own...);
            },
            all...);
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
  auto const runs = recur::executor_of(ingredients...);
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
