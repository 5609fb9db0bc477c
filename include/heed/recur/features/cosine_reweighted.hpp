#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>
#include <string>

namespace heed {

/// relu, reweighted by distance (cosFormer): with u = relu(x) and p the position, counted from 1, of a query or key,
/// [u sin(pi p / 2 horizon), u cos(pi p / 2 horizon)], 2 dim features, so that a weight is relu(q) . relu(k) cos(pi
/// (i - j) / 2 horizon).
///
///   horizon      at least the number of positions; beyond it weights would be negative
///   tokens_before   what is added to every position: the tokens that the state has seen before
struct cosine_reweighted {
  index_t horizon;
  index_t tokens_before = 0;

  static index_t features(index_t dim) { return 2 * dim; }

  void check(recurrence_shape const& shape) const {
    index_t const longest = tokens_before + std::max(shape.keys, shape.rows);
    require(horizon >= 1 && horizon >= longest, [&] {
      return "cosine_reweighted.horizon is " + std::to_string(horizon) +
             "; expected the number of positions, " + std::to_string(longest) + ", or more";
    });
  }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r) {
      double const angle = angle_of(x, r);
      auto const write = [&](T* to, double factor) {
        batch const by(static_cast<T>(factor));
        recur::transform_row<Arch>(
            x.dim, to, [&](batch const& each) { return simd::detail::at_least(each, 0) * by; },
            x[r]);
      };
      write(phi + r * stride, std::sin(angle));
      write(phi + r * stride + x.dim, std::cos(angle));
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side, feature_rows<T> const& x, T const*, T const* dphi, index_t stride, T* dx,
                     index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r) {
      double const angle = angle_of(x, r);
      batch const sine(static_cast<T>(std::sin(angle))), cosine(static_cast<T>(std::cos(angle)));
      recur::transform_row<Arch>(
          x.dim, dx + r * dx_stride,
          [&](batch const& each, batch const& by_sine, batch const& by_cosine) {
            return xsimd::select(each > batch(0), simd::fma(by_sine, sine, by_cosine * cosine),
                                 batch(0));
          },
          x[r], dphi + r * stride, dphi + r * stride + x.dim);
    }
  }

 private:
  template <class T>
  double angle_of(feature_rows<T> const& x, index_t row) const {
    constexpr double half_pi = 1.57079632679489661923;
    index_t const position = tokens_before + x.first_position + row + 1;
    return half_pi * static_cast<double>(position) / static_cast<double>(horizon);
  }
};

}  // namespace heed
