#pragma once

#include <heed/simd/fma.hpp>

#include <xsimd/xsimd.hpp>

#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

/// Elementary functions on SIMD registers, as accurate as attention needs them and no slower.
namespace heed::simd {

/// The bits of `x` as elements of another type of the same size.
template <class To, class From, class Arch>
xsimd::batch<To, Arch> cast_bits(xsimd::batch<From, Arch> const& x) {
  using result = xsimd::batch<To, Arch>;
  if constexpr (std::same_as<decltype(xsimd::bitwise_cast<To>(x)), result>)
    return xsimd::bitwise_cast<To>(x);
  else  // xsimd 8 names the batch instead of its element
    return xsimd::bitwise_cast<result>(x);
}

/// A comparison of integers, as one of numbers To of the same size.
template <class To, class From, class Arch>
xsimd::batch_bool<To, Arch> cast_bool(xsimd::batch_bool<From, Arch> const& x) {
  if constexpr (requires { batch_bool_cast<To>(x); })
    return batch_bool_cast<To>(x);
  else  // xsimd 8
    return bool_cast(x);
}

namespace detail {

// xsimd 8 takes logarithms of 512-bit registers in code that compiles with optimisation only: there, in halves.
template <class Batch, class F>
Batch in_halves(Batch const& x, F f) {
#if XSIMD_VERSION_MAJOR < 9
  if constexpr (std::is_base_of_v<xsimd::avx512f, typename Batch::arch_type>) {
    using half = xsimd::batch<typename Batch::value_type, xsimd::fma3<xsimd::avx2>>;
    alignas(64) typename Batch::value_type numbers[Batch::size];
    x.store_aligned(numbers);
    for (std::size_t i = 0; i < Batch::size; i += half::size)
      f(half::load_aligned(numbers + i)).store_aligned(numbers + i);
    return Batch::load_aligned(numbers);
  } else {
    return f(x);
  }
#else
  return f(x);
#endif
}

}  // namespace detail

/// log x and e^x - 1, as exact as xsimd's.
template <class Batch>
Batch log(Batch const& x) {
  return detail::in_halves(x, [](auto const& some) { return xsimd::log(some); });
}
template <class Batch>
Batch expm1(Batch const& x) {
  return detail::in_halves(x, [](auto const& some) { return xsimd::expm1(some); });
}

/// c[0] + x (c[1] + x (c[2] + ...)).
template <class Batch, std::size_t Terms>
Batch polynomial(Batch const& x, typename Batch::value_type const (&c)[Terms]) {
  Batch sum(c[Terms - 1]);
#pragma GCC unroll 16
  for (std::size_t k = 1; k < Terms; ++k) sum = simd::fma(sum, x, Batch(c[Terms - 1 - k]));
  return sum;
}

namespace detail {

template <class T>
struct exp2_constants;

// Minimax in the relative error on [-1/2, 1/2], 2.6e-9 and 3.1e-18, with 2^0 exact.
template <>
struct exp2_constants<float> {
  using integer = std::int32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr float bias = 127;
  static constexpr float coefficients[] = {1.0f,           0.69314721497f, 0.24022652783f,
                                           0.05550310551f, 0.00961769299f, 0.00134066439f,
                                           0.000155946782f};
};
template <>
struct exp2_constants<double> {
  using integer = std::int64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr double bias = 1023;
  static constexpr double coefficients[] = {
      0.9999999999999999971,     0.69314718055994533046,     0.24022650695910156204,
      0.055504108664819921605,   0.0096181291075883352443,   0.0013333558146789921722,
      0.00015403530462514432062, 0.000015252733489988525649, 1.321543308967639918e-6,
      1.0178198021671930844e-7,  7.0741056135081427963e-9,   4.4352827069572771511e-10};
};

// xsimd's emulated registers compare as std::max does; hardware returns the second operand if
// either is NaN, which is what keeps NaN alive here.
template <class Batch>
Batch at_least(Batch const& x, typename Batch::value_type floor) {
  if constexpr (requires { Batch(floor).data.size(); })
    return xsimd::select(x < Batch(floor), Batch(floor), x);
  else
    return xsimd::max(Batch(floor), x);
}

}  // namespace detail

/// 2^x for x <= 127 (1023 for double). Relative error 1.3e-7 in float, 4e-16 in double; exact for
/// whole numbers. From 2^-127 down (2^-1023) it is exactly 0, so 2^-infinity is; NaN stays NaN.
template <class Batch>
Batch exp2(Batch const& x) {
  using T = typename Batch::value_type;
  using constants = detail::exp2_constants<T>;
  // Adding 1.5 * 2^mantissa_bits rounds x to an integer that then stands in the low bits; with the
  // exponent's bias added too, those bits shifted up are 2^rounded.
  constexpr T magic = T(1.5) * T(std::int64_t{1} << constants::mantissa_bits) + constants::bias;
  Batch const bounded = detail::at_least(x, -constants::bias);
  Batch const shifted = bounded + Batch(magic);
  Batch const fraction = bounded - (shifted - Batch(magic));
  auto const exponent = cast_bits<typename constants::integer>(shifted) << constants::mantissa_bits;
  return polynomial(fraction, constants::coefficients) * cast_bits<T>(exponent);
}

namespace detail {

// Out of line, so that the short way of tanh is in line.
template <class Batch>
[[gnu::noinline]] Batch tanh_far(Batch const& x) {
  using T = typename Batch::value_type;
  constexpr T two_log2_e = T(2.8853900817779268147);
  Batch const power = exp2(xsimd::abs(x) * Batch(-two_log2_e));
  // Where tanh is near 1 what is taken from it is small, and so is its error.
  return xsimd::copysign(Batch(T(1)) - (power + power) / (Batch(T(1)) + power), x);
}

}  // namespace detail

/// bound * tanh(x / bound), given 1 / bound too. Relative error 4e-7 in float, 1e-15 in double.
template <class Batch>
Batch bounded_by_tanh(Batch const& x, Batch const& bound, Batch const& inverse) {
  using T = typename Batch::value_type;
  constexpr T short_range = T(0.625);
  Batch const level = x * inverse, square = level * level;
  Batch near;
  if constexpr (std::same_as<T, float>) {
    constexpr float odd[] = {-0.33333260526917082914f, 0.13331127535998427903f,
                             -0.053721068021394893403f, 0.020590988414008865564f,
                             -0.0056599891641491594043f};
    near = simd::fma(x * square, polynomial(square, odd), x);
  } else {
    constexpr double odd[] = {
        -0.33333333333332621459,    0.13333333333246061778,     -0.053968253926267261364,
        0.021869487489971076489,    -0.0088632200993752234254,  0.0035919831017037756153,
        -0.0014549321533059796052,  0.00058623991443400124211,  -0.00022842633399050687022,
        0.000077003007787505513196, -0.000016009574234599751802};
    near = simd::fma(x * square, polynomial(square, odd), x);
  }
  auto const is_far = square > Batch(short_range * short_range);
  // Scores are mostly far below their bound, so the division is mostly skipped.
  if (!xsimd::any(is_far)) [[likely]]
    return near;
  return xsimd::select(is_far, bound * detail::tanh_far(level), near);
}

/// Hyperbolic tangent, as exact.
template <class Batch>
Batch tanh(Batch const& x) {
  using T = typename Batch::value_type;
  return bounded_by_tanh(x, Batch(T(1)), Batch(T(1)));
}

}  // namespace heed::simd
