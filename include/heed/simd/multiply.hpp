#pragma once

#include <heed/simd/fma.hpp>
#include <heed/simd/lanes.hpp>
#include <heed/simd/load.hpp>

#include <algorithm>

namespace heed::simd {

namespace detail {

template <int Rows, int Registers, bool Accumulate, class T, class Arch, class Stored>
inline void multiply_tile(T const* const (&row)[Rows], index_t row_step, Stored const* b,
                          index_t b_stride, index_t depth, T* const (&c)[Rows]) {
  using batch = xsimd::batch<T, Arch>;
  constexpr index_t lanes = tile_shape<T, Arch>::lanes;
  batch sum[Rows][Registers];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r)
      sum[i][r] = Accumulate ? batch::load_aligned(c[i] + r * lanes) : batch(T(0));
  for (index_t k = 0, at = 0; k < depth; ++k, at += row_step, b += b_stride) {
    batch right[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) right[r] = load_stored<T, Arch>(b + r * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      batch const left(row[i][at]);
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) sum[i][r] = simd::fma(left, right[r], sum[i][r]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) sum[i][r].store_aligned(c[i] + r * lanes);
}

template <int Columns, int Registers, class T, class Arch>
inline void multiply_columns_tile(T const* const* rows, index_t const (&column)[Columns],
                                  T const* b, index_t b_stride, index_t depth,
                                  T* const (&c)[Columns]) {
  using batch = xsimd::batch<T, Arch>;
  constexpr index_t lanes = tile_shape<T, Arch>::lanes;
  batch sum[Columns][Registers];
#pragma GCC unroll 16
  for (int i = 0; i < Columns; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) sum[i][r] = batch::load_aligned(c[i] + r * lanes);
  for (index_t k = 0; k < depth; ++k, b += b_stride) {
    T const* const row = rows[k];
    batch right[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) right[r] = batch::load_unaligned(b + r * lanes);
#pragma GCC unroll 16
    for (int i = 0; i < Columns; ++i) {
      batch const left(row[column[i]]);
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) sum[i][r] = simd::fma(left, right[r], sum[i][r]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Columns; ++i)
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) sum[i][r].store_aligned(c[i] + r * lanes);
}

/// Rows of scalars against lanes: row(r) is where row r is read, sum(r) where its sums go.
template <int Registers, bool Accumulate, class Arch, class T, class Stored, class Row, class Sum>
inline void multiply_each(index_t rows, index_t depth, Row row, index_t row_step, Stored const* b,
                          index_t b_stride, Sum sum) {
  constexpr int step = tile_shape<T, Arch>::template rows<Registers>;
  for (index_t first = 0; first < rows; first += step) {
    // A last tile of fewer rows computes its last row several times, alike each time.
    T const* from[step];
    T* to[step];
    for (int i = 0; i < step; ++i) {
      index_t const r = std::min(first + i, rows - 1);
      from[i] = row(r);
      to[i] = sum(r);
    }
    multiply_tile<step, Registers, Accumulate, T, Arch>(from, row_step, b, b_stride, depth, to);
  }
}

}  // namespace detail

/// A matrix of scalars read where it lies: element (row, k) at data[row * row_stride + k * depth_stride].
template <class T>
struct scalar_rows {
  T const* data;
  index_t row_stride;
  index_t depth_stride;
};

/// The one product everything is made of, scalars times lanes:
///
///   c[row][lane] (+)= sum_k a(row, k) * b[k][lane],   row < rows, k < depth, lane < Registers * lanes
///
/// `a` is broadcast from where it lies, `b` may lie anywhere and be stored in any element type; `c` is aligned, its
/// stride a number of whole registers.
template <int Registers, bool Accumulate, class Arch, class T, class Stored>
void multiply(index_t rows, index_t depth, scalar_rows<T> a, Stored const* b, index_t b_stride,
              T* c, index_t c_stride) {
  detail::multiply_each<Registers, Accumulate, Arch, T>(
      rows, depth, [&](index_t r) { return a.data + r * a.row_stride; }, a.depth_stride, b,
      b_stride, [&](index_t r) { return c + r * c_stride; });
}

/// The same of rows that lie anywhere, c[row][lane] = sum_k rows[row][k] * b[k][lane].
template <int Registers, class Arch, class T>
void multiply_rows(index_t count, index_t depth, T const* const* rows, T const* b, index_t b_stride,
                   T* c, index_t c_stride) {
  detail::multiply_each<Registers, false, Arch, T>(
      count, depth, [&](index_t r) { return rows[r]; }, 1, b, b_stride,
      [&](index_t r) { return c + r * c_stride; });
}

/// And of their columns, c[column][lane] += sum_k rows[k][column] * b[k][lane].
template <int Registers, class Arch, class T>
void multiply_columns(index_t columns, index_t depth, T const* const* rows, T const* b,
                      index_t b_stride, T* c, index_t c_stride) {
  constexpr int step = tile_shape<T, Arch>::template rows<Registers>;
  for (index_t first = 0; first < columns; first += step) {
    index_t column[step];
    T* sum[step];
    for (int i = 0; i < step; ++i) {
      column[i] = std::min(first + i, columns - 1);
      sum[i] = c + column[i] * c_stride;
    }
    detail::multiply_columns_tile<step, Registers, T, Arch>(rows, column, b, b_stride, depth, sum);
  }
}

/// Into rows that lie anywhere, sums[row][lane] += sum_k a(row, k) * b[k][lane]; `column` is where in them.
template <int Registers, class Arch, class T>
void multiply_into_rows(index_t rows, index_t depth, scalar_rows<T> a, T const* b, index_t b_stride,
                        T* const* sums, index_t column) {
  detail::multiply_each<Registers, true, Arch, T>(
      rows, depth, [&](index_t r) { return a.data + r * a.row_stride; }, a.depth_stride, b,
      b_stride, [&](index_t r) { return sums[r] + column; });
}

}  // namespace heed::simd
