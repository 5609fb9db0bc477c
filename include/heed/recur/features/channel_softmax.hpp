#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>

namespace heed {

/// The softmax of a row over its own channels, e^(x - max x) / sum_d e^(x_d - max x): positive, of sum 1.
struct channel_softmax {
  static index_t features(index_t dim) { return dim; }

  template <class T, class Arch = xsimd::default_arch>
  static void apply(side, feature_rows<T> const& x, T* phi, index_t stride) {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count && x.dim > 0; ++r) {
      T* const to = phi + r * stride;
      batch const most(recur::largest_of_row<Arch>(x.dim, x[r]));
      recur::transform_row<Arch>(
          x.dim, to, [&](batch const& each) { return simd::exp(each - most); }, x[r]);
      batch const sum(recur::sum_row<Arch>(x.dim, to));
      recur::transform_row<Arch>(
          x.dim, to, [&](batch const& each) { return each / sum; }, to);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  static void differentiate(side, feature_rows<T> const& x, T const* phi, T const* dphi,
                            index_t stride, T* dx, index_t dx_stride) {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r) {
      T const *const value = phi + r * stride, *const slope = dphi + r * stride;
      batch const mean(recur::dot_row<Arch>(x.dim, value, slope));
      recur::transform_row<Arch>(
          x.dim, dx + r * dx_stride, [&](batch const& a, batch const& b) { return a * (b - mean); },
          value, slope);
    }
  }
};

}  // namespace heed
