#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>

#include <algorithm>
#include <cmath>

namespace heed {

/// [e^(y - c), e^(-y - c)] of rows y: c is the largest |y| of a query, and the number after those of a key.
struct paired_exponentials {
  bool stable = true;
  static constexpr double bound = 30;  // of exponents otherwise

  static index_t features(side of, index_t dim) { return 2 * (of == side::key ? dim - 1 : dim); }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = features(of, x.dim) / 2;
    for (index_t r = 0; r < x.count; ++r) {
      T* const to = phi + r * stride;
      T top = 0;
      if (stable && of == side::key) top = x[r][width];
      if (stable && of == side::query)
        for (index_t c = 0; c < width; ++c) top = std::max(top, std::abs(x[r][c]));
      batch const most(top);
      auto const exponential = [&](T sign, T* half) {
        recur::transform_row<Arch>(
            width, half, [&](batch const& y) { return simd::exp(bounded(y) * batch(sign) - most); },
            x[r]);
      };
      exponential(T(1), to);
      exponential(T(-1), to + width);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = features(of, x.dim) / 2;
    for (index_t r = 0; r < x.count; ++r) {
      T const *const y = x[r], *const up = phi + r * stride, *const slope = dphi + r * stride;
      T* const to = dx + r * dx_stride;
      recur::transform_row<Arch>(
          width, to, [](batch const& a, batch const& b) { return a * b; }, up, slope);
      recur::transform_row<Arch>(
          width, to, [](batch const& a, batch const& b, batch const& sum) { return sum - a * b; },
          up + width, slope + width, static_cast<T const*>(to));
      for (index_t c = 0; c < width && !stable; ++c)
        if (std::abs(y[c]) > T(bound)) to[c] = 0;
      if (of == side::key) to[width] = 0;
    }
  }

 private:
  template <class Batch>
  Batch bounded(Batch const& y) const {
    using T = typename Batch::value_type;
    return stable ? y : xsimd::min(xsimd::max(y, Batch(T(-bound))), Batch(T(bound)));
  }
};

}  // namespace heed
