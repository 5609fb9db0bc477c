#pragma once

#include <xsimd/xsimd.hpp>

#include <type_traits>

/// Multiply-adds that are rounded once, whatever the compiler's options: xsimd 8 spells them as a product and a sum for
/// 512-bit registers, which g++ fuses from -O2 on and not before. Where it does not, or not everywhere, what should
/// cancel does not, and sums that should be equal differ in their bits.
namespace heed::simd {

/// x y + z.
template <class T, class Arch>
xsimd::batch<T, Arch> fma(xsimd::batch<T, Arch> const& x, xsimd::batch<T, Arch> const& y,
                          xsimd::batch<T, Arch> const& z) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    if constexpr (std::is_same_v<T, float>)
      return _mm512_fmadd_ps(x, y, z);
    else
      return _mm512_fmadd_pd(x, y, z);
  } else
#endif
    return xsimd::fma(x, y, z);
}

/// z - x y.
template <class T, class Arch>
xsimd::batch<T, Arch> fnma(xsimd::batch<T, Arch> const& x, xsimd::batch<T, Arch> const& y,
                           xsimd::batch<T, Arch> const& z) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    if constexpr (std::is_same_v<T, float>)
      return _mm512_fnmadd_ps(x, y, z);
    else
      return _mm512_fnmadd_pd(x, y, z);
  } else
#endif
    return xsimd::fnma(x, y, z);
}

}  // namespace heed::simd
