#pragma once

#include <heed/simd/lanes.hpp>

namespace heed::simd {

namespace detail {

// 128-bit registers where there are any: what interleaving means for wider ones differs between versions of
// xsimd, and a transposition is bound by loads and stores anyway.
template <class Arch>
using transpose_arch = std::conditional_t<xsimd::sse2::supported(), xsimd::sse2, Arch>;

/// Rounds of interleaving register i with register i + size/2 move the bits of a lane's number one place
/// towards those of its register's; after log2(size) rounds they have changed places.
template <class Batch>
void transpose_square(Batch (&rows)[Batch::size]) {
  constexpr std::size_t size = Batch::size;
#pragma GCC unroll 8
  for (std::size_t round = 1; round < size; round *= 2) {
    Batch next[size];
#pragma GCC unroll 16
    for (std::size_t i = 0; i < size / 2; ++i) {
      next[2 * i] = xsimd::zip_lo(rows[i], rows[i + size / 2]);
      next[2 * i + 1] = xsimd::zip_hi(rows[i], rows[i + size / 2]);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < size; ++i) rows[i] = next[i];
  }
}

}  // namespace detail

/// to[column][row] = from[row][column] for `rows` rows and `columns` columns.
template <class Arch, class T>
void transpose(index_t rows, index_t columns, T const* from, index_t from_stride, T* to,
               index_t to_stride) {
  using batch = xsimd::batch<T, detail::transpose_arch<Arch>>;
  constexpr auto size = static_cast<index_t>(batch::size);
  index_t const whole_rows = rows - rows % size, whole_columns = columns - columns % size;
  auto const move_square = [&](index_t r, index_t c) {
    batch square[batch::size];
#pragma GCC unroll 16
    for (index_t i = 0; i < size; ++i)
      square[i] = batch::load_unaligned(from + (r + i) * from_stride + c);
    detail::transpose_square(square);
#pragma GCC unroll 16
    for (index_t i = 0; i < size; ++i) square[i].store_unaligned(to + (c + i) * to_stride + r);
  };
  // Along the rows that lie further apart, each of which is a cache line.
  if (from_stride >= to_stride) {
    for (index_t r = 0; r < whole_rows; r += size)
      for (index_t c = 0; c < whole_columns; c += size) move_square(r, c);
  } else {
    for (index_t c = 0; c < whole_columns; c += size)
      for (index_t r = 0; r < whole_rows; r += size) move_square(r, c);
  }
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_stride + r] = from[r * from_stride + c];
}

}  // namespace heed::simd
