#pragma once

#include <heed/simd/lanes.hpp>
#include <heed/view/rows.hpp>

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

/// Rows of numbers to write, `stride` apart.
template <class T>
struct rows_to_write {
  T* data;
  index_t stride;

  T* operator[](index_t row) const { return data + row * stride; }
};

/// to[column][row] = from[row][column] for `rows` rows and `columns` columns; `from` and `to` give pointers to rows.
/// What lies further apart is gone along: the rows that are read, or those that are written.
template <class Arch, class T, class From, class To>
void transpose_rows(index_t rows, index_t columns, From from, To to, bool along_from) {
  using batch = xsimd::batch<T, detail::transpose_arch<Arch>>;
  constexpr auto size = static_cast<index_t>(batch::size);
  index_t const whole_rows = rows - rows % size, whole_columns = columns - columns % size;
  auto const move_square = [&](index_t r, index_t c) {
    batch square[batch::size];
#pragma GCC unroll 16
    for (index_t i = 0; i < size; ++i) square[i] = batch::load_unaligned(from[r + i] + c);
    detail::transpose_square(square);
#pragma GCC unroll 16
    for (index_t i = 0; i < size; ++i) square[i].store_unaligned(to[c + i] + r);
  };
  if (along_from) {
    for (index_t r = 0; r < whole_rows; r += size)
      for (index_t c = 0; c < whole_columns; c += size) move_square(r, c);
  } else {
    for (index_t c = 0; c < whole_columns; c += size)
      for (index_t r = 0; r < whole_rows; r += size) move_square(r, c);
  }
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c][r] = from[r][c];
}

/// The same of two matrices.
template <class Arch, class T>
void transpose(index_t rows, index_t columns, T const* from, index_t from_stride, T* to,
               index_t to_stride) {
  transpose_rows<Arch, T>(rows, columns, row_block<T>{from, from_stride},
                          rows_to_write<T>{to, to_stride}, from_stride >= to_stride);
}

}  // namespace heed::simd
