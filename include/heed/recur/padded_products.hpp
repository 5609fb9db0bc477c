#pragma once

#include <heed/simd/multiply.hpp>

/// Products of small matrices whose rows are whole registers. They allocate nothing.
namespace heed::recur {

/// c[row][column] (+)= sum_k a(row, k) b[k][column] for `columns` columns, a number of whole registers. c is aligned, and
/// the strides of b and c are whole registers too.
template <bool Accumulate, class T, class Arch = xsimd::default_arch>
void multiply_padded(index_t rows, index_t columns, index_t depth, simd::scalar_rows<T> a,
                     T const* b, index_t b_stride, T* c, index_t c_stride) {
  constexpr index_t lanes = simd::tile_shape<T, Arch>::lanes;
  index_t first = 0;
  for (; first + 3 * lanes <= columns; first += 3 * lanes)
    simd::multiply<3, Accumulate, Arch>(rows, depth, a, b + first, b_stride, c + first, c_stride);
  if (columns - first == 2 * lanes)
    simd::multiply<2, Accumulate, Arch>(rows, depth, a, b + first, b_stride, c + first, c_stride);
  else if (columns - first == lanes)
    simd::multiply<1, Accumulate, Arch>(rows, depth, a, b + first, b_stride, c + first, c_stride);
}

}  // namespace heed::recur
