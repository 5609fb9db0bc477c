#pragma once

#include <heed/pattern/pattern.hpp>

#include <xsimd/xsimd.hpp>

#include <concepts>

/// Score modifiers: a score in, a score out.
///
/// The order is fixed: product, scale, modifiers in the order they are given, pattern, normaliser. All a
/// modifier must have is, for SIMD registers of scores and of positions,
///
///     template <class Batch> Batch apply(Batch score, Batch query, Batch key) const;
///
/// and, unless it only adds something that does not depend on the score, its derivative
///
///     template <class Batch> Batch slope(Batch score, Batch modified) const;
///
/// A modifier that reads a number for each pair from memory has instead
///
///     template <class Batch> Batch apply(Batch score, Batch number) const;
///     template <class T> void fill(pair_tile<T> const&) const;  // writes the numbers of a tile
///
/// A modifier with one parameter, or one for each head, can have its gradient summed over the pairs:
///
///     double parameter_slope(double score, double modified, index_t query, index_t key) const;
///     bool wants_gradient() const;
///     void set_gradient(double const* sum_of_head, index_t heads) const;
///
/// One that reads its numbers from a table can have the gradient of the table, by saying how many entries a
/// head has and, bound, which of them a row and key of its sequence read; the sums are then [head][entry]:
///
///     index_t parameters(call_shape const&) const;
///     index_t parameter(index_t row, index_t key) const;
///
/// A numerator factor multiplies a pair's weight in the sum of values, and not in the normaliser:
///
///     template <class Batch> Batch factor(Batch query, Batch key) const;
///
/// Where parameters differ by batch or head, `bind(place const&)` returns what applies there, as it does
/// for patterns.
namespace heed {

/// A block of one number for each pair of a row and a key; the caller owns the memory and its layout.
template <class T>
struct pair_tile {
  T* data;
  interval rows;
  interval keys;
  index_t row_stride;
  index_t key_stride;
};

namespace detail {

using probe = xsimd::batch<float>;

template <class M>
concept applies = requires(M const& m, probe x) {
  { m.apply(x, x, x) } -> std::convertible_to<probe>;
};
template <class M>
concept reads = requires(M const& m, probe x, pair_tile<float> const& tile) {
  { m.apply(x, x) } -> std::convertible_to<probe>;
  m.fill(tile);
};
template <class M>
concept factors = requires(M const& m, probe x) {
  { m.factor(x, x) } -> std::convertible_to<probe>;
};
}  // namespace detail

template <class M>
concept bound_score_modifier = detail::applies<M> || detail::reads<M>;

template <class M>
concept score_modifier = bound_score_modifier<M> || requires(M const& m, place const& where) {
  { m.bind(where) } -> bound_score_modifier;
};

template <class F>
concept numerator_factor = detail::factors<F> || requires(F const& f, place const& where) {
  { f.bind(where) } -> detail::factors;
};

}  // namespace heed
