#pragma once

#include <heed/simd/math.hpp>

#include <array>
#include <type_traits>

namespace heed::simd {

/// The lanes of a register, where the bits are set as they are and -infinity elsewhere; bit 0 is the first lane's.
template <class Batch>
Batch hide_unset(Batch const& score, std::uint64_t bits) {
  using T = typename Batch::value_type;
  using word = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using words = xsimd::batch<word, typename Batch::arch_type>;
  alignas(64) static constexpr auto lane_bit = [] {
    std::array<word, Batch::size> bit{};
    for (std::size_t lane = 0; lane < Batch::size; ++lane) bit[lane] = word{1} << lane;
    return bit;
  }();
  words const own = words::load_aligned(lane_bit.data());
  auto const kept = (words(static_cast<word>(bits & 0xffff)) & own) == own;
  return cast_bits<T>(xsimd::select(kept, cast_bits<word>(score),
                                    cast_bits<word>(Batch(-std::numeric_limits<T>::infinity()))));
}

}  // namespace heed::simd
