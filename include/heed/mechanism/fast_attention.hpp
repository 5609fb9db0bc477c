#pragma once

#include <heed/recur/features/polynomial.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/passes.hpp>

#include <cmath>

/// FAST (Gerami et al.: FAST, Factorizable Attention for Speeding up Transformers), or Fastmax: softmax with the
/// exponential cut off,
///
///     a_ij = f(s_ij) / sum_j f(s_ij),   f(s) = sum_(l <= degree) s^l / l!,   s_ij = scale q^_i . k^_j
///
/// over j <= i or, with dense{}, over all keys, where q^ and k^ are standardised. For an even degree f is positive,
/// at least 1/2 for 2; for an odd one weights may be negative and their sum 0, unless |s| stays below 1: degree 1
/// asks for by_largest_norm. Degree 2, no standardisation and scale head_dim^-1/2 is BASED.
namespace heed {

/// How queries and keys are standardised.
enum class standardisation {
  none,
  by_deviation,  ///< a row less its mean over channels, divided by sqrt(variance + 1e-6)
  by_largest_norm  ///< divided by the largest norm of the rows of its batch entry and head, which sees later rows too
};

struct fastmax {
  index_t degree = 2;
  standardisation standardise = standardisation::by_deviation;
  double scale = 1;
};

namespace detail {

struct fastmax_page {};
struct fastmax_gradient_page {};

inline constexpr auto is_fastmax = []<class T>() { return std::same_as<T, fastmax>; };
inline constexpr auto is_no_fastmax = []<class T>() { return !std::same_as<T, fastmax>; };

/// The features of rows that are standardised first. `query_divisor` and `key_divisor`, [batch, heads], are those of
/// by_largest_norm.
template <class D>
struct fastmax_map {
  polynomial powers;
  standardisation how;
  tensor_view<D const, 2> query_divisor, key_divisor;

  index_t features(index_t dim) const { return powers.features(dim); }
  void check(recurrence_shape const& shape) const { powers.check(shape); }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    if (how == standardisation::none) return powers.template apply<T, Arch>(of, x, phi, stride);
    T* const room = scratch<T>(x.dim);
    for (index_t r = 0; r < x.count; ++r) {
      standardise<T, Arch>(of, x, r, room);
      powers.template apply<T, Arch>(of, one_row(x, room), phi + r * stride, stride);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    powers.template differentiate<T, Arch>(of, x, phi, dphi, stride, dx, dx_stride);
    if (how == standardisation::none) return;
    T* const room = scratch<T>(x.dim);
    for (index_t r = 0; r < x.count; ++r) {
      // The polynomial's gradient reads features, not rows.
      T* const to = dx + r * dx_stride;
      batch const factor(standardise<T, Arch>(of, x, r, room));
      batch mean(T(0)), along(T(0));
      if (how == standardisation::by_deviation && x.dim > 0) {
        T const n = static_cast<T>(x.dim);
        mean = batch(recur::sum_row<Arch>(x.dim, to) / n);
        along = batch(recur::dot_row<Arch>(x.dim, to, room) / n);
      }
      recur::transform_row<Arch>(
          x.dim, to,
          [&](batch const& slope, batch const& row) {
            return factor * (slope - mean - row * along);
          },
          to, room);
    }
  }

 private:
  /// Apart from the scratch of the polynomial.
  template <class T>
  static T* scratch(index_t count) {
    thread_local workspace own;
    return arena(own.reserve(static_cast<std::size_t>(arena::bytes<T>(count))))
        .template take<T>(count);
  }
  template <class T>
  static feature_rows<T> one_row(feature_rows<T> const& x, T const* row) {
    return {row, x.dim, 1, x.dim, x.batch, x.head, x.first_position};
  }

  /// Writes a row, standardised; returns what it was multiplied by.
  template <class T, class Arch>
  T standardise(side of, feature_rows<T> const& x, index_t r, T* to) const {
    using batch = xsimd::batch<T, Arch>;
    T mean = 0, factor = 1;
    if (how == standardisation::by_largest_norm) {
      factor =
          1 / static_cast<T>((of == side::query ? query_divisor : key_divisor)(x.batch, x.head));
    } else if (how == standardisation::by_deviation && x.dim > 0) {
      T const n = static_cast<T>(x.dim);
      mean = recur::sum_row<Arch>(x.dim, x[r]) / n;
      batch const middle(mean);
      recur::transform_row<Arch>(
          x.dim, to, [&](batch const& each) { return each - middle; }, x[r]);
      factor = 1 / std::sqrt(recur::dot_row<Arch>(x.dim, to, to) / n + T(1e-6));
    }
    batch const by(factor), less(mean);
    recur::transform_row<Arch>(
        x.dim, to, [&](batch const& each) { return (each - less) * by; }, x[r]);
    return factor;
  }
};

/// The row of the largest norm of a batch entry and head, the first of several, and that norm; 1 if it is 0.
struct largest_row {
  index_t row = 0;
  double norm = 1;
};
template <class T>
largest_row find_largest_row(source<T> const& x, index_t b, index_t h) {
  constexpr index_t together = 32;
  largest_row found;
  double most = 0;
  for (index_t first = 0; first < x.positions(); first += together) {
    auto const rows =
        recur::rows_for_map(x, b, h, first, std::min(together, x.positions() - first), 0);
    for (index_t r = 0; r < rows.count; ++r) {
      double squares = 0;
      for (index_t d = 0; d < rows.dim; ++d)
        squares += static_cast<double>(rows[r][d]) * static_cast<double>(rows[r][d]);
      if (squares > most) {
        most = squares;
        found = {first + r, std::sqrt(squares)};
      }
    }
  }
  return found;
}

template <class T, class X>
void write_divisors(any_executor const& run_on, tensor_view<X, 4> x, tensor_view<T, 4> to) {
  source<T> const rows(x);
  parallel_for(run_on, x.extent(0) * x.extent(2), [&](index_t piece, index_t) {
    index_t const b = piece / x.extent(2), h = piece % x.extent(2);
    to(b, 0, h, 0) = static_cast<T>(find_largest_row(rows, b, h).norm);
  });
}

/// The gradient through the divisor too: with partial = d loss / d x at a fixed divisor |x_a|, the largest row a
/// loses (sum_j partial_j . x_j) x_a / |x_a|^2.
template <class T, class X, class DX>
void finish_divisor_gradient(any_executor const& run_on, tensor_view<X, 4> x,
                             tensor_view<T, 4> partial, tensor_view<DX, 4> dx) {
  source<T> const rows(x);
  sink<T> const to(dx);
  parallel_for(run_on, x.extent(0) * x.extent(2), [&](index_t piece, index_t) {
    constexpr index_t together = 32;
    index_t const b = piece / x.extent(2), h = piece % x.extent(2);
    largest_row const largest = find_largest_row(rows, b, h);
    double sum = 0;
    for (index_t first = 0; first < x.extent(1); first += together) {
      auto const block =
          recur::rows_for_map(rows, b, h, first, std::min(together, x.extent(1) - first), 0);
      for (index_t r = 0; r < block.count; ++r)
        for (index_t d = 0; d < block.dim; ++d)
          sum +=
              static_cast<double>(block[r][d]) * static_cast<double>(partial(b, first + r, h, d));
    }
    if (x.extent(1) == 0) return;
    auto const row = recur::rows_for_map(rows, b, h, largest.row, 1, 0);
    for (index_t d = 0; d < row.dim; ++d) {
      T& slope = partial(b, largest.row, h, d);
      slope = static_cast<T>(static_cast<double>(slope) -
                             sum / (largest.norm * largest.norm) * static_cast<double>(row[0][d]));
    }
    to.store(b, h, 0, x.extent(1), &partial(b, 0, h, 0), partial.stride(1));
  });
}

/// Calls f with the map, the normaliser and what else linear_attention takes of the ingredients.
template <class T, class Q, class K, class F, class... I>
void with_fastmax(tensor_view<Q, 4> query, tensor_view<K, 4> key, F const& f,
                  I const&... ingredients) {
  fastmax const given = one_of<is_fastmax>(fastmax{}, ingredients...);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  fastmax_map<T> map{{given.degree, given.scale}, given.standardise, {}, {}};
  if (given.standardise == standardisation::by_largest_norm) {
    require(!(false || ... || std::same_as<I, documents>),
            [] { return "fastmax of documents by_largest_norm: call for each of them"; });
    auto const divisors = recur::page_tensors<fastmax_page, T>(
        recur::tensor_shape{query.extent(0), 1, query.extent(2), 1},
        recur::tensor_shape{key.extent(0), 1, key.extent(2), 1});
    write_divisors(run_on, query, divisors[0]);
    write_divisors(run_on, key, divisors[1]);
    auto const numbers = [](tensor_view<T, 4> all) {
      return tensor_view<T const, 2>(all.data(), {all.extent(0), all.extent(2)},
                                     {all.stride(0), all.stride(2)});
    };
    map.query_divisor = numbers(divisors[0]);
    map.key_divisor = numbers(divisors[1]);
  }
  std::apply([&](auto const&... own) { f(map, normalised{.epsilon = 0}, own...); },
             all_of<is_no_fastmax>(ingredients...));
}

}  // namespace detail

/// Shapes and further ingredients as those of linear_attention: fastmax, dense, documents, states, executor.
template <element Q, element K, element V, element O, class... Ingredients>
void fast_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, Ingredients...>;
  detail::with_fastmax<T>(
      query, key, [&](auto const&... own) { linear_attention(query, key, value, out, own...); },
      ingredients...);
}

/// The gradients of fast_attention, with the ingredients of the forward call; `out` is what that returned.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void fast_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<O, 4> out,
                             tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                             tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                             Ingredients const&... ingredients) {
  using T = compute_type<recur::compute_type_of<Q, K, V, O, Ingredients...>, DO, DQ, DK, DV>;
  fastmax const given = one_of<detail::is_fastmax>(fastmax{}, ingredients...);
  bool const by_norm = given.standardise == standardisation::by_largest_norm;
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::with_fastmax<T>(
      query, key,
      [&](auto const&... own) {
        if (!by_norm)
          return linear_attention_backward(query, key, value, out, dout, dquery, dkey, dvalue,
                                           own...);
        detail::expect_distinct_elements("dquery", dquery);
        detail::expect_distinct_elements("dkey", dkey);
        auto const partial =
            recur::page_tensors<detail::fastmax_gradient_page, T>(query.extents(), key.extents());
        linear_attention_backward(query, key, value, out, dout, partial[0], partial[1], dvalue,
                                  own...);
        auto const runs = recur::executor_of(ingredients...);
        any_executor const run_on(runs);
        detail::finish_divisor_gradient(run_on, query, partial[0], dquery);
        detail::finish_divisor_gradient(run_on, key, partial[1], dkey);
      },
      ingredients...);
}

/// One token; `state` is [batch, state heads, polynomial::features(head_dim), value_dim + 1]. Not by_largest_norm,
/// which is known at the end only.
template <element Q, element K, element V, element O, class S, class... Ingredients>
void fast_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<O, 4> out, tensor_view<S, 4> state,
                         Ingredients const&... ingredients) {
  using T = recur::compute_type_of<Q, K, V, O, heed::state<S>, Ingredients...>;
  require(one_of<detail::is_fastmax>(fastmax{}, ingredients...).standardise !=
              standardisation::by_largest_norm,
          [] { return "a step of fast_attention by_largest_norm: that of all rows is not known"; });
  detail::with_fastmax<T>(
      query, key,
      [&](auto const&... own) { linear_attention_step(query, key, value, out, state, own...); },
      ingredients...);
}

}  // namespace heed
