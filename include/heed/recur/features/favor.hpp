#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/convert.hpp>

#include <cmath>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// The random features of Performer (Choromanski et al.: Rethinking Attention with Performers).
namespace heed {

/// How long the rows of an orthogonal projection are: as those of Gaussian vectors, or all sqrt(dim).
enum class row_lengths { chi, root_dim };

/// The projection Omega [features, dim] of Performer, fixed for all calls that share a state.
class favor_projection {
 public:
  /// A matrix of one's own.
  template <element E>
  explicit favor_projection(tensor_view<E, 2> omega)
      : features_(omega.extent(0)), dim_(omega.extent(1)) {
    require(features_ > 0 && dim_ > 0, [&] {
      return "a favor_projection has shape " + shape_text(omega.extents()) +
             "; expected at least one feature and channel";
    });
    matrix_.reserve(static_cast<std::size_t>(features_ * dim_));
    for (index_t f = 0; f < features_; ++f)
      for (index_t d = 0; d < dim_; ++d) matrix_.push_back(convert_element<double>(omega(f, d)));
    pack(single_);
    pack(double_);
  }

  /// Rows orthogonal in blocks of `dim`, each uniform on the sphere, of lengths drawn apart: the orthonormal factor
  /// of a Gaussian matrix with a positive diagonal in the triangular one. `generator` is a generator of random bits.
  template <class Generator>
  static favor_projection orthogonal(index_t features, index_t dim, Generator& generator,
                                     row_lengths lengths = row_lengths::chi) {
    require(features > 0 && dim > 0, [&] {
      return "favor_projection::orthogonal of " + std::to_string(features) + " features and " +
             std::to_string(dim) + " channels; expected at least one of each";
    });
    auto const gaussian = [&] {
      std::vector<double> row(static_cast<std::size_t>(dim));
      // Box and Muller: std::normal_distribution differs from library to library.
      for (double& x : row) {
        double const radius =
            std::sqrt(-2 * std::log1p(-std::generate_canonical<double, 53>(generator)));
        x = radius *
            std::cos(6.28318530717958647693 * std::generate_canonical<double, 53>(generator));
      }
      return row;
    };
    std::vector<double> omega;
    std::vector<std::vector<double>> block;
    for (index_t f = 0; f < features; ++f) {
      if (f % dim == 0) block.clear();
      std::vector<double> row = gaussian();
      // Gram and Schmidt, which is that factor; twice, so that rounding leaves nothing.
      for (int pass = 0; pass < 2; ++pass)
        for (auto const& other : block) add(row, -dot(row, other), other);
      scale(row, 1 / std::sqrt(dot(row, row)));
      block.push_back(row);
      double length = std::sqrt(static_cast<double>(dim));
      if (lengths == row_lengths::chi) {
        std::vector<double> const drawn = gaussian();
        length = std::sqrt(dot(drawn, drawn));
      }
      scale(row, length);
      omega.insert(omega.end(), row.begin(), row.end());
    }
    return favor_projection(tensor_view<double const, 2>(omega.data(), {features, dim}));
  }

  index_t features() const { return features_; }
  index_t dim() const { return dim_; }
  tensor_view<double const, 2> matrix() const { return {matrix_.data(), {features_, dim_}}; }

  /// Columns of the product with a row, a multiple of 16.
  index_t columns() const { return simd::round_up(features_, 16); }
  /// to[r][f] = omega_f . row r, for f < columns(); `to` is aligned.
  template <class Arch, class T>
  void project(index_t rows, T const* x, index_t stride, T* to) const {
    recur::product<Arch>(rows, dim_, columns(), x, stride, packed<T>().transposed.data(), to);
  }
  /// to[r][d] = sum_f weights[r][f] omega_f[d], in rows of round_up(dim, 16) numbers; `to` is aligned.
  template <class Arch, class T>
  void project_back(index_t rows, T const* weights, index_t stride, T* to) const {
    recur::product<Arch>(rows, features_, simd::round_up(dim_, 16), weights, stride,
                         packed<T>().rows.data(), to);
  }

  void check(recurrence_shape const& shape) const {
    for (index_t dim : {shape.query_dim, shape.key_dim})
      require(dim == dim_, [&] {
        return "a favor_projection is for " + std::to_string(dim_) +
               " channels; those of query and key are " + std::to_string(shape.query_dim) +
               " and " + std::to_string(shape.key_dim);
      });
  }

 private:
  template <class T>
  struct packing {
    std::vector<T> transposed;  // [dim][columns()]
    std::vector<T> rows;        // [features][dim, padded]
  };

  static double dot(std::vector<double> const& a, std::vector<double> const& b) {
    double sum = 0;
    for (std::size_t n = 0; n < a.size(); ++n) sum += a[n] * b[n];
    return sum;
  }
  static void add(std::vector<double>& to, double factor, std::vector<double> const& more) {
    for (std::size_t n = 0; n < to.size(); ++n) to[n] += factor * more[n];
  }
  static void scale(std::vector<double>& row, double factor) {
    for (double& x : row) x *= factor;
  }

  template <class T>
  void pack(packing<T>& to) const {
    index_t const padded = simd::round_up(dim_, 16);
    to.transposed.assign(static_cast<std::size_t>(dim_ * columns()), T(0));
    to.rows.assign(static_cast<std::size_t>(features_ * padded), T(0));
    for (index_t f = 0; f < features_; ++f)
      for (index_t d = 0; d < dim_; ++d) {
        T const x = static_cast<T>(matrix()(f, d));
        to.transposed[static_cast<std::size_t>(d * columns() + f)] = x;
        to.rows[static_cast<std::size_t>(f * padded + d)] = x;
      }
  }
  template <class T>
  packing<T> const& packed() const {
    if constexpr (std::is_same_v<T, float>)
      return single_;
    else
      return double_;
  }

  index_t features_, dim_;
  std::vector<double> matrix_;
  packing<float> single_;
  packing<double> double_;
};

namespace recur {

/// The rows of a favor map in pieces: x' = x / dim^1/4, its products with omega, and |x'|^2 / 2.
template <class T, class Arch>
class favor_rows {
 public:
  static constexpr index_t together = 16;

  explicit favor_rows(favor_projection const& omega)
      : omega_(omega),
        columns_(omega.columns()),
        padded_(simd::round_up(omega.dim(), 16)),
        shrink_(static_cast<T>(1 / std::sqrt(std::sqrt(static_cast<double>(omega.dim()))))) {
    arena pieces(recur::feature_workspace().reserve(static_cast<std::size_t>(
        arena::bytes<T>(together * padded_) * 2 + arena::bytes<T>(together * columns_) * 2)));
    rows_ = pieces.take<T>(together * padded_);
    back_ = pieces.take<T>(together * padded_);
    products_ = pieces.take<T>(together * columns_);
    weights_ = pieces.take<T>(together * columns_);
  }

  /// Calls f(first row, count) for pieces of some rows, projected.
  template <class F>
  void for_pieces(feature_rows<T> const& x, F const& f) {
    using batch = xsimd::batch<T, Arch>;
    batch const shrink(shrink_);
    for (index_t first = 0; first < x.count; first += together) {
      index_t const count = std::min(together, x.count - first);
      for (index_t r = 0; r < count; ++r) {
        transform_row<Arch>(
            x.dim, row(r), [&](batch const& each) { return each * shrink; }, x[first + r]);
        halves_[r] = dot_row<Arch>(x.dim, row(r), row(r)) / 2;
      }
      omega_.template project<Arch, T>(count, rows_, padded_, products_);
      f(first, count);
    }
  }

  T* row(index_t r) const { return rows_ + r * padded_; }
  T* products(index_t r) const { return products_ + r * columns_; }
  T* weights(index_t r) const { return weights_ + r * columns_; }
  T half_square(index_t r) const { return halves_[r]; }

  /// From d loss / d exponents or products in weights(): back(r) = sum_f weights_f omega_f.
  void project_back(index_t count) {
    omega_.template project_back<Arch, T>(count, weights_, columns_, back_);
  }
  T* back(index_t r) const { return back_ + r * padded_; }
  T shrink() const { return shrink_; }

 private:
  favor_projection const& omega_;
  index_t columns_, padded_;
  T shrink_;
  T *rows_, *back_, *products_, *weights_;
  T halves_[together];
};

}  // namespace recur

/// Generalised random features, max(omega x', 0) + epsilon with x' = x / dim^1/4.
struct favor_relu {
  favor_projection const& projection;
  double epsilon = 1e-3;

  index_t features(index_t) const { return projection.features(); }
  void check(recurrence_shape const& shape) const { projection.check(shape); }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    batch const floor(static_cast<T>(epsilon));
    recur::favor_rows<T, Arch> rows(projection);
    rows.for_pieces(x, [&](index_t first, index_t count) {
      for (index_t r = 0; r < count; ++r)
        recur::transform_row<Arch>(
            projection.features(), phi + (first + r) * stride,
            [&](batch const& each) { return simd::detail::at_least(each, 0) + floor; },
            rows.products(r));
    });
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side, feature_rows<T> const& x, T const*, T const* dphi, index_t stride, T* dx,
                     index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    recur::favor_rows<T, Arch> rows(projection);
    batch const shrink(rows.shrink());
    rows.for_pieces(x, [&](index_t first, index_t count) {
      for (index_t r = 0; r < count; ++r)
        recur::transform_row<Arch>(
            projection.features(), rows.weights(r),
            [](batch const& each, batch const& slope) {
              return xsimd::select(each > batch(0), slope, batch(0));
            },
            rows.products(r), dphi + (first + r) * stride);
      rows.project_back(count);
      for (index_t r = 0; r < count; ++r)
        recur::transform_row<Arch>(
            x.dim, dx + (first + r) * dx_stride, [&](batch const& each) { return each * shrink; },
            rows.back(r));
    });
  }
};

/// Positive random features for normalised attention, m^-1/2 (exp(omega x' - |x'|^2 / 2 - c) + epsilon) with x' = x
/// / dim^1/4 and m features: without c and epsilon, phi(q) . phi(k) is exp(q.k / sqrt(dim)) in the mean over omega.
///
/// Of a query, c is the largest of its omega x'; with epsilon = 0, where all that its features have in common
/// cancels, |x'|^2 / 2 is left out too. Of a key, c is `key_shift`. Gradients take c as a constant.
///
///   key_shift   [batch, position, heads of the keys], strides of 0 to share; largest_favor_exponents makes one
template <element S = float>
struct favor_positive {
  favor_projection const& projection;
  tensor_view<S const, 3> key_shift;
  double epsilon = 1e-4;

  index_t features(index_t) const { return projection.features(); }
  void check(recurrence_shape const& shape) const {
    projection.check(shape);
    require(key_shift.data() != nullptr || shape.batches * shape.keys * shape.key_heads == 0,
            [] { return "favor_positive.key_shift has no memory"; });
    require(key_shift.extents() == std::array{shape.batches, shape.keys, shape.key_heads}, [&] {
      return "favor_positive.key_shift has shape " + shape_text(key_shift.extents()) +
             "; expected " + shape_text(std::array{shape.batches, shape.keys, shape.key_heads}) +
             " (batch, position, heads of the keys)";
    });
  }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    recur::favor_rows<T, Arch> rows(projection);
    batch const factor(static_cast<T>(root())), floor(static_cast<T>(epsilon));
    rows.for_pieces(x, [&](index_t first, index_t count) {
      for (index_t r = 0; r < count; ++r) {
        auto const [square, most] = taken_off<Arch>(of, x, rows, first, r);
        batch const less(square), shift(most);
        recur::transform_row<Arch>(
            projection.features(), phi + (first + r) * stride,
            [&](batch const& each) { return factor * (simd::exp(each - less - shift) + floor); },
            rows.products(r));
      }
    });
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const*, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    recur::favor_rows<T, Arch> rows(projection);
    batch const factor(static_cast<T>(root())), shrink(rows.shrink());
    index_t const m = projection.features();
    rows.for_pieces(x, [&](index_t first, index_t count) {
      for (index_t r = 0; r < count; ++r) {
        auto const [square, most] = taken_off<Arch>(of, x, rows, first, r);
        batch const less(square), shift(most);
        recur::transform_row<Arch>(
            m, rows.weights(r),
            [&](batch const& each, batch const& slope) {
              return factor * simd::exp(each - less - shift) * slope;
            },
            rows.products(r), dphi + (first + r) * stride);
      }
      rows.project_back(count);
      for (index_t r = 0; r < count; ++r) {
        // Each exponent has -|x'|^2 / 2 in it.
        batch const sum(has_square(of) ? recur::sum_row<Arch>(m, rows.weights(r)) : T(0));
        recur::transform_row<Arch>(
            x.dim, dx + (first + r) * dx_stride,
            [&](batch const& each, batch const& row) {
              return shrink * simd::fnma(sum, row, each);
            },
            rows.back(r), rows.row(r));
      }
    });
  }

 private:
  bool has_square(side of) const { return of == side::key || epsilon != 0; }

  /// |x'|^2 / 2 and c, which are taken from exponents one after the other: so they are never above 0 where c is the
  /// largest of largest_favor_exponents, whatever is rounded off.
  template <class Arch, class T, class Rows>
  std::pair<T, T> taken_off(side of, feature_rows<T> const& x, Rows const& rows, index_t first,
                            index_t r) const {
    return {has_square(of) ? rows.half_square(r) : T(0),
            of == side::query
                ? recur::largest_of_row<Arch>(projection.features(), rows.products(r))
                : convert_element<T>(key_shift(x.batch, x.first_position + first + r, x.head))};
  }
  double root() const { return 1 / std::sqrt(static_cast<double>(projection.features())); }
};

/// For each key the largest of its exponents, max_f omega_f x' - |x'|^2 / 2, or the largest of its products, max_f
/// omega_f x', alone; [batch, position, heads]. What favor_positive and Performer subtract is a maximum of these.
template <class T, class Arch = xsimd::default_arch>
void largest_favor_exponents(favor_projection const& projection, feature_rows<T> const& x,
                             bool with_square, T* largest, index_t stride) {
  recur::favor_rows<T, Arch> rows(projection);
  rows.for_pieces(x, [&](index_t first, index_t count) {
    for (index_t r = 0; r < count; ++r)
      largest[(first + r) * stride] =
          recur::largest_of_row<Arch>(projection.features(), rows.products(r)) -
          (with_square ? rows.half_square(r) : T(0));
  });
}

}  // namespace heed
