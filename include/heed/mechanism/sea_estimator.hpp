#pragma once

#include <heed/mechanism/performer.hpp>
#include <heed/recur/passes.hpp>

/// SEA: Sparse Linear Attention with Estimated Attention Mask, its linear estimator: a Performer whose values are widened by something
/// that tells positions apart, [e, v], from whose result a small network estimates the attention matrix. Not causal, e is the
/// identity matrix stretched to the length; causal, e are learned rows, and the features are those of a relu.
///
///     interpolated_identity(e);                                        // [N, dim]
///     sea_context(q, k, v, e, context, favor{projection});             // [batch, N, heads, dim + value_dim]
///
/// with sea_features(dim) rows of the projection. The network on [context, v] and the choice of pairs by it are the caller's. Sums
/// over long sequences: give a state, or operands, in double.
namespace heed {

/// floor(dim ln dim), the number of features as published.
inline index_t sea_features(index_t dim) {
  return dim < 2
             ? dim
             : static_cast<index_t>(static_cast<double>(dim) * std::log(static_cast<double>(dim)));
}

/// The rows of the dim x dim identity matrix, linearly interpolated to N positions with the corners aligned. rows: [N, dim].
template <element E>
void interpolated_identity(tensor_view<E, 2> rows) {
  index_t const count = rows.extent(0), dim = rows.extent(1);
  for (index_t t = 0; t < count; ++t) {
    double const at = count > 1 ? static_cast<double>(t) * static_cast<double>(dim - 1) /
                                      static_cast<double>(count - 1)
                                : 0;
    auto const first = static_cast<index_t>(at);
    double const share = at - static_cast<double>(first);
    for (index_t d = 0; d < dim; ++d) {
      double const part = d == first ? 1 - share : d == first + 1 ? share : 0;
      rows(t, d) = convert_element<E>(static_cast<compute_type<E>>(part));
    }
  }
}

namespace detail {

struct sea_page {};

/// The executor of a call; an any_executor does not own it.
template <class... I>
auto sea_executor(I const&... ingredients) {
  return recur::executor_of(ingredients...);
}

/// [e, v] for every value head.
template <class T, class V, class P>
void widen_values(any_executor const& run_on, tensor_view<V, 4> value, tensor_view<P, 2> positions,
                  tensor_view<T, 4> wide) {
  index_t const dim = positions.extent(1), value_dim = value.extent(3);
  source<T> const values(value);
  recur::for_row_blocks(run_on, wide.extents(),
                        [&](index_t b, index_t h, index_t first, index_t count) {
                          if (wide.extent(3) == 0) return;
                          for (index_t i = first; i < first + count; ++i) {
                            T* const row = &wide(b, i, h, 0);
                            for (index_t d = 0; d < dim; ++d)
                              row[d] = convert_element<T>(positions(i, d));
                            if (value_dim > 0) values.copy(b, h, i, 1, row + dim, value_dim);
                          }
                        });
}

/// The gradient of [e, v] to its parts; dpositions may be an empty view.
template <class T, class DV, class DP>
void narrow_gradients(any_executor const& run_on, tensor_view<T, 4> dwide,
                      tensor_view<DP, 2> dpositions, tensor_view<DV, 4> dvalue) {
  index_t const dim = dwide.extent(3) - dvalue.extent(3);
  sink<T> const to(dvalue);
  recur::for_row_blocks(run_on, dwide.extents(),
                        [&](index_t b, index_t h, index_t first, index_t count) {
                          if (dvalue.extent(3) > 0)
                            to.store(b, h, first, count, &dwide(b, first, h, dim), dwide.stride(1));
                        });
  if (dpositions.data() == nullptr) return;
  recur::for_row_blocks(run_on, {1, dwide.extent(1), 1, 1},
                        [&](index_t, index_t, index_t first, index_t count) {
                          for (index_t i = first; i < first + count; ++i)
                            for (index_t d = 0; d < dim; ++d) {
                              double sum = 0;
                              for (index_t b = 0; b < dwide.extent(0); ++b)
                                for (index_t h = 0; h < dwide.extent(2); ++h)
                                  sum += static_cast<double>(dwide(b, i, h, d));
                              dpositions(i, d) = convert_element<DP>(static_cast<T>(sum));
                            }
                        });
}

template <class Q, class K, class V, class P, class C>
void check_sea(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
               tensor_view<P, 2> positions, char const* name, tensor_view<C, 4> context) {
  require(query.extent(1) == key.extent(1) && value.extent(1) == key.extent(1) &&
              positions.extent(0) == key.extent(1),
          [&] {
            return "query has shape " + shape_text(query.extents()) + ", key " +
                   shape_text(key.extents()) + ", value " + shape_text(value.extents()) +
                   ", positions " + shape_text(positions.extents()) +
                   "; expected as many positions of each";
          });
  expect_like(
      name, context,
      {query.extent(0), query.extent(1), query.extent(2), positions.extent(1) + value.extent(3)},
      "query with a row of positions and one of value");
}

template <class T, class Executor, class V, class P>
tensor_view<T, 4> wide_values(Executor const& run_on, tensor_view<V, 4> value,
                              tensor_view<P, 2> positions) {
  auto const wide = recur::page_tensors<sea_page, T>(recur::tensor_shape{
      value.extent(0), value.extent(1), value.extent(2), positions.extent(1) + value.extent(3)})[0];
  widen_values(any_executor(run_on), value, positions, wide);
  return wide;
}

/// Calls back(wide, dwide), and passes the gradient on.
template <class T, class Executor, class V, class P, class DP, class DV, class Back>
void with_wide_gradient(Executor const& run_on, tensor_view<V, 4> value,
                        tensor_view<P, 2> positions, tensor_view<DP, 2> dpositions,
                        tensor_view<DV, 4> dvalue, Back const& back) {
  recur::tensor_shape const shape{value.extent(0), value.extent(1), value.extent(2),
                                  positions.extent(1) + value.extent(3)};
  auto const wide = recur::page_tensors<sea_page, T>(shape, shape);
  widen_values(any_executor(run_on), value, positions, wide[0]);
  back(wide[0], wide[1]);
  narrow_gradients(any_executor(run_on), wide[1], dpositions, dvalue);
}

}  // namespace detail

/// The context of every position, not causal.
///
///   query, key, value   as those of performer, of one sequence
///   positions           [N, any], the rows of interpolated_identity
///   context             [batch, N, heads, that + value_dim]
///
/// Ingredients: those of performer.
template <element Q, element K, element V, element P, element C, class... Ingredients>
void sea_context(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                 tensor_view<P, 2> positions, tensor_view<C, 4> context, favor const& features,
                 Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, P, C>;
  detail::check_sea(query, key, value, positions, "context", context);
  auto const run_on = detail::sea_executor(ingredients...);
  auto const wide = detail::wide_values<T>(run_on, value, positions);
  performer(query, key, wide, context, features, ingredients...);
}

/// The gradients of sea_context.
template <element Q, element K, element V, element P, element C, element DC, element DQ, element DK,
          element DV, class... Ingredients>
void sea_context_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<P, 2> positions, tensor_view<C, 4> context,
                          tensor_view<DC, 4> dcontext, tensor_view<DQ, 4> dquery,
                          tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, favor const& features,
                          Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, P, C, DC, DQ, DK, DV>;
  detail::check_sea(query, key, value, positions, "context", context);
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  detail::with_wide_gradient<T>(detail::sea_executor(ingredients...), value, positions,
                                tensor_view<float, 2>(), dvalue,
                                [&](auto const& wide, auto const& dwide) {
                                  performer_backward(query, key, wide, context, dcontext, dquery,
                                                     dkey, dwide, features, ingredients...);
                                });
}

/// The context of every position from those before: positions are learned rows, features max(omega x', 0) + 1e-3.
///
/// Ingredients: those of linear_attention for features that are normalised; a state is [batch, state heads, features, that + value_dim +
/// 1].
template <element Q, element K, element V, element P, element C, class... Ingredients>
void causal_sea_context(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<P, 2> positions, tensor_view<C, 4> context,
                        favor_projection const& projection, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, P, C>;
  detail::check_sea(query, key, value, positions, "context", context);
  auto const run_on = detail::sea_executor(ingredients...);
  auto const wide = detail::wide_values<T>(run_on, value, positions);
  linear_attention(query, key, wide, context, favor_relu{projection}, normalised{.epsilon = 0},
                   ingredients...);
}

/// The gradients of causal_sea_context; dpositions is shaped like positions.
template <element Q, element K, element V, element P, element C, element DC, element DQ, element DK,
          element DV, element DP, class... Ingredients>
void causal_sea_context_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                 tensor_view<V, 4> value, tensor_view<P, 2> positions,
                                 tensor_view<C, 4> context, tensor_view<DC, 4> dcontext,
                                 tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                 tensor_view<DV, 4> dvalue, tensor_view<DP, 2> dpositions,
                                 favor_projection const& projection,
                                 Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, P, C, DC, DQ, DK, DV, DP>;
  detail::check_sea(query, key, value, positions, "context", context);
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  require(dpositions.extents() == positions.extents(), [&] {
    return "dpositions has shape " + shape_text(dpositions.extents()) + "; expected that of " +
           "positions, " + shape_text(positions.extents());
  });
  detail::with_wide_gradient<T>(
      detail::sea_executor(ingredients...), value, positions, dpositions, dvalue,
      [&](auto const& wide, auto const& dwide) {
        linear_attention_backward(query, key, wide, context, dcontext, dquery, dkey, dwide,
                                  favor_relu{projection}, normalised{.epsilon = 0}, ingredients...);
      });
}

/// One position of causal_sea_context, whose row of positions is [1, any]; `state` is updated.
template <element Q, element K, element V, element P, element C, class S, class... Ingredients>
void causal_sea_context_step(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<P, 2> position,
                             tensor_view<C, 4> context, tensor_view<S, 4> state,
                             favor_projection const& projection,
                             Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, P, C>;
  detail::check_sea(query, key, value, position, "context", context);
  auto const run_on = detail::sea_executor(ingredients...);
  auto const wide = detail::wide_values<T>(run_on, value, position);
  linear_attention_step(query, key, wide, context, state, favor_relu{projection},
                        normalised{.epsilon = 0}, ingredients...);
}

}  // namespace heed
