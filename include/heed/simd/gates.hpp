#pragma once

#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>

/// The gates of state-space layers, on SIMD registers.
namespace heed::simd {

/// x / (1 + e^-x).
template <class Batch>
Batch silu(Batch const& x) {
  return x * sigmoid(x);
}

/// The derivative of silu.
template <class Batch>
Batch silu_slope(Batch const& x) {
  return simd::fma(x, sigmoid_slope(x), sigmoid(x));
}

/// log(1 + e^x): x where that is large, e^x where it is small. Its derivative is sigmoid(x).
template <class Batch>
Batch softplus(Batch const& x) {
  using T = typename Batch::value_type;
  // log1p of y = e^-|x| in (0, 1] as 2 artanh(y / (2 + y)): an odd series in an argument of at most 1/3.
  Batch const y = heed::simd::exp(-xsimd::abs(x));
  Batch const z = y / (Batch(T(2)) + y), square = z * z;
  Batch series;
  if constexpr (std::same_as<T, float>) {
    constexpr float odd[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9, 2.0f / 11, 2.0f / 13};
    series = polynomial(square, odd);
  } else {
    constexpr double odd[] = {2.0,      2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                              2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21, 2.0 / 23,
                              2.0 / 25, 2.0 / 27, 2.0 / 29, 2.0 / 31};
    series = polynomial(square, odd);
  }
  return simd::fma(z, series, xsimd::select(x > Batch(T(0)), x, Batch(T(0))));
}

}  // namespace heed::simd
