#pragma once

#include <heed/simd/multiply.hpp>

namespace heed::simd {

/// c[row][column] (+)= sum_k a(row, k) b[k][column] for `columns` columns, a number of whole registers; c is aligned, and the
/// strides of b and c are whole registers too. See multiply().
template <bool Accumulate, class Arch, class T>
void product(index_t rows, index_t depth, scalar_rows<T> a, T const* b, index_t b_stride,
             index_t columns, T* c, index_t c_stride) {
  using shape = tile_shape<T, Arch>;
  if (rows <= 0) return;
  index_t at = 0, left = columns / shape::lanes;
  auto const tile = [&]<int Registers>(std::integral_constant<int, Registers>) {
    multiply<Registers, Accumulate, Arch>(rows, depth, a, b + at, b_stride, c + at, c_stride);
    at += Registers * shape::lanes;
    left -= Registers;
  };
  while (left > 0) {
    if constexpr (shape::many_registers)
      if (left % 3 != 0 && left >= 4) {
        tile(std::integral_constant<int, 4>());
        continue;
      }
    // Two of two rather than three and one.
    if (left == 1)
      tile(std::integral_constant<int, 1>());
    else if (left == 2 || left == 4)
      tile(std::integral_constant<int, 2>());
    else
      tile(std::integral_constant<int, 3>());
  }
}

}  // namespace heed::simd
