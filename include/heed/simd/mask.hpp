#pragma once

#include <heed/simd/math.hpp>

#include <array>
#include <type_traits>

namespace heed::simd {

/// The lanes of some registers, where the bits are set as they are and -infinity elsewhere; bit 0 is the first lane's.
template <class Batch, std::size_t Count>
void hide_unset(Batch (&scores)[Count], std::uint64_t bits) {
  using T = typename Batch::value_type;
  using word = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using words = xsimd::batch<word, typename Batch::arch_type>;
  // A word with the bits of all registers is brought into lanes once.
  constexpr bool one_word = Count * Batch::size < 8 * sizeof(word);
  alignas(64) static constexpr auto lane_bit = [] {
    std::array<word, Count * Batch::size> bit{};
    for (std::size_t lane = 0; lane < bit.size(); ++lane)
      bit[lane] = word{1} << (one_word ? lane : lane % Batch::size);
    return bit;
  }();
  Batch const hidden(-std::numeric_limits<T>::infinity());
  words part(static_cast<word>(bits));
#pragma GCC unroll 4
  for (std::size_t r = 0; r < Count; ++r) {
    if constexpr (!one_word) part = words(static_cast<word>(bits >> (r * Batch::size)));
    words const own = words::load_aligned(lane_bit.data() + r * Batch::size);
    scores[r] = xsimd::select(cast_bool<T>((part & own) == own), scores[r], hidden);
  }
}

}  // namespace heed::simd
