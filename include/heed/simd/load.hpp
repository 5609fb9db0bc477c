#pragma once

#include <heed/view/rows.hpp>

#include <xsimd/xsimd.hpp>

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

namespace heed::simd {

/// A register of numbers from as many stored elements, converted on the way.
template <class T, class Arch, class Stored>
xsimd::batch<T, Arch> load_stored(Stored const* from) {
  using batch = xsimd::batch<T, Arch>;
  if constexpr (std::is_same_v<Stored, T>) {
    return batch::load_unaligned(from);
  } else {
#if defined(__AVX2__) && defined(__F16C__)
    constexpr bool half = std::is_same_v<Stored, Eigen::half> && std::is_same_v<T, float>;
    constexpr bool brain = std::is_same_v<Stored, Eigen::bfloat16> && std::is_same_v<T, float>;
    if constexpr (half && std::is_base_of_v<xsimd::avx2, Arch>)
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
    if constexpr (brain && std::is_base_of_v<xsimd::avx2, Arch>)
      return _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from))), 16));
#if defined(__AVX512F__)
    if constexpr (half && std::is_base_of_v<xsimd::avx512f, Arch>)
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from)));
    if constexpr (brain && std::is_base_of_v<xsimd::avx512f, Arch>)
      return _mm512_castsi512_ps(_mm512_slli_epi32(
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from))), 16));
#endif
#endif
    alignas(64) T numbers[batch::size];
    heed::detail::convert_row(from, 1, static_cast<index_t>(batch::size), numbers);
    return batch::load_aligned(numbers);
  }
}

}  // namespace heed::simd
