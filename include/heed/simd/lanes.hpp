#pragma once

#include <heed/view/tensor_view.hpp>

#include <xsimd/xsimd.hpp>

namespace heed::simd {

/// The shape of the register tiles of an architecture. Queries stand in the lanes of up to three
/// registers; `rows` scalars meet them at once. More accumulators than this spill, fewer leave the
/// multiply-add units waiting.
template <class T, class Arch>
struct tile_shape {
  static constexpr index_t lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  static constexpr int max_registers = 3;
  static constexpr index_t max_lanes = lanes * max_registers;

  // The architectures with 512-bit registers and 64-bit ARM have 32 registers, the others 16.
  static constexpr bool many_registers =
      sizeof(xsimd::batch<T, Arch>) == 64 || std::is_base_of_v<xsimd::neon, Arch>;

  // Four registers are for products of which few rows are made at a time, and only where there are many registers.
  template <int Registers>
  static constexpr int rows = many_registers ? (Registers == 4   ? 4
                                                : Registers == 3 ? 8
                                                                 : 12)
                                             : (Registers == 3   ? 4
                                                : Registers == 2 ? 6
                                                                 : 8);
};

/// `count` rounded up to whole steps.
constexpr index_t round_up(index_t count, index_t step) {
  return (count + step - 1) / step * step;
}

}  // namespace heed::simd
