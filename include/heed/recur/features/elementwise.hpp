#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>

/// Feature maps of one number at a time. With normalised{}, elu_plus_one is the linear attention of Katharopoulos et
/// al. (Transformers are RNNs), relu, squared_relu and exponential its usual variants.
namespace heed {

namespace recur {

/// The map of rows made of Function::value(x) and Function::slope(x, value(x)).
template <class Function>
struct elementwise {
  static index_t features(index_t dim) { return dim; }

  template <class T, class Arch = xsimd::default_arch>
  static void apply(side, feature_rows<T> const& x, T* phi, index_t stride) {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r)
      transform_row<Arch>(
          x.dim, phi + r * stride, [](batch const& each) { return Function::value(each); }, x[r]);
  }

  template <class T, class Arch = xsimd::default_arch>
  static void differentiate(side, feature_rows<T> const& x, T const* phi, T const* dphi,
                            index_t stride, T* dx, index_t dx_stride) {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r)
      transform_row<Arch>(
          x.dim, dx + r * dx_stride,
          [](batch const& each, batch const& value, batch const& slope) {
            return slope * Function::slope(each, value);
          },
          x[r], phi + r * stride, dphi + r * stride);
  }
};

}  // namespace recur

/// x + 1 above 0 and e^x below: positive.
struct elu_plus_one : recur::elementwise<elu_plus_one> {
  template <class Batch>
  static Batch value(Batch const& x) {
    return xsimd::select(x > Batch(0), x + Batch(1), simd::exp(x));
  }
  template <class Batch>
  static Batch slope(Batch const& x, Batch const& value) {
    return xsimd::select(x > Batch(0), Batch(1), value);
  }
};

/// max(x, 0). A row of nothing but 0 gives 0.
struct relu : recur::elementwise<relu> {
  template <class Batch>
  static Batch value(Batch const& x) {
    return simd::detail::at_least(x, 0);
  }
  template <class Batch>
  static Batch slope(Batch const& x, Batch const&) {
    return xsimd::select(x > Batch(0), Batch(1), Batch(0));
  }
};

/// max(x, 0)^2.
struct squared_relu : recur::elementwise<squared_relu> {
  template <class Batch>
  static Batch value(Batch const& x) {
    Batch const above = simd::detail::at_least(x, 0);
    return above * above;
  }
  template <class Batch>
  static Batch slope(Batch const& x, Batch const&) {
    return simd::detail::at_least(x, 0) * Batch(2);
  }
};

/// e^x as it is, for |x| up to some 40; stable_exponential takes any x.
struct exponential : recur::elementwise<exponential> {
  template <class Batch>
  static Batch value(Batch const& x) {
    return simd::exp(x);
  }
  template <class Batch>
  static Batch slope(Batch const&, Batch const& value) {
    return value;
  }
};

/// x / (1 + e^-x). Of either sign: not to be normalised.
struct silu : recur::elementwise<silu> {
  template <class Batch>
  static Batch value(Batch const& x) {
    return x * simd::sigmoid(x);
  }
  template <class Batch>
  static Batch slope(Batch const& x, Batch const&) {
    return simd::fma(x, simd::sigmoid_slope(x), simd::sigmoid(x));
  }
};

/// 1 / (1 + e^-x).
struct sigmoid : recur::elementwise<sigmoid> {
  template <class Batch>
  static Batch value(Batch const& x) {
    return simd::sigmoid(x);
  }
  template <class Batch>
  static Batch slope(Batch const& x, Batch const&) {
    return simd::sigmoid_slope(x);
  }
};

}  // namespace heed
