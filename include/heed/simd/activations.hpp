#pragma once

#include <heed/simd/fma.hpp>
#include <heed/simd/math.hpp>

/// The elementary functions of feature maps and gates, on SIMD registers.
namespace heed::simd {

namespace detail {

// n ln2_high is exact for every exponent n, so that only the small rest of x is rounded.
template <class T>
struct exp_constants;
template <>
struct exp_constants<float> {
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <>
struct exp_constants<double> {
  static constexpr double ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
};

}  // namespace detail

/// e^x. Relative error 1.5e-7 in float, 4e-16 in double. Where the result is below 2^-126.5 (2^-1022.5) it may be
/// exactly 0, and from 2^127.5 (2^1023.5) up it is infinity; NaN stays NaN.
template <class Batch>
Batch exp(Batch const& x) {
  using T = typename Batch::value_type;
  using two = detail::exp2_constants<T>;
  using e = detail::exp_constants<T>;
  constexpr T magic = T(1.5) * T(std::int64_t{1} << two::mantissa_bits) + two::bias;
  constexpr T log2_e = T(1.44269504088896340736), ln2 = T(0.69314718055994530942);
  Batch const bounded = heed::simd::detail::at_least(x, -two::bias * ln2);
  // As in exp2: the nearest power of two stands in the low bits of the sum, its exponent biased.
  Batch const shifted = simd::fma(bounded, Batch(log2_e), Batch(magic));
  Batch const whole = shifted - Batch(magic);
  Batch const rest =
      simd::fma(whole, Batch(-e::ln2_low), simd::fma(whole, Batch(-e::ln2_high), bounded));
  auto const exponent = cast_bits<typename two::integer>(shifted) << two::mantissa_bits;
  Batch const power = polynomial(rest * Batch(log2_e), two::coefficients) * cast_bits<T>(exponent);
  return xsimd::select(x > Batch((two::bias + T(0.5)) * ln2),
                       Batch(std::numeric_limits<T>::infinity()), power);
}

/// 1 / (1 + e^-x). Relative error 3e-7 in float, 8e-16 in double; exactly 0 where it is below 2^-127.5 (2^-1023.5).
template <class Batch>
Batch sigmoid(Batch const& x) {
  using T = typename Batch::value_type;
  return Batch(T(1)) / (Batch(T(1)) + heed::simd::exp(-x));
}

/// The derivative of sigmoid, e^-|x| / (1 + e^-|x|)^2: as exact in the tails as in the middle.
template <class Batch>
Batch sigmoid_slope(Batch const& x) {
  using T = typename Batch::value_type;
  Batch const power = heed::simd::exp(-xsimd::abs(x)), sum = Batch(T(1)) + power;
  return power / (sum * sum);
}

}  // namespace heed::simd
