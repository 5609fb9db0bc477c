#pragma once

#include <heed/simd/dot.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/product.hpp>
#include <heed/simd/transpose.hpp>

#include <algorithm>

/// Products of small matrices whose rows are padded with zeros to whole registers.
namespace heed::recur::memory {

/// Rows of numbers that a kernel works on: row r at data + r * stride.
template <class T>
struct panel {
  T* data = nullptr;
  index_t stride = 0;

  T* operator[](index_t row) const { return data + row * stride; }
  panel from_row(index_t row) const { return {data + row * stride, stride}; }
  simd::scalar_rows<T> scalars() const { return {data, stride, 1}; }
  simd::scalar_rows<T> transposed_scalars() const { return {data, 1, stride}; }
};

template <class T, class Arch>
struct products {
  using batch = xsimd::batch<T, Arch>;
  static constexpr index_t lanes = static_cast<index_t>(batch::size);

  static constexpr index_t padded(index_t count) { return simd::round_up(count, lanes); }

  /// c (+)= a b for `rows` rows of a, `columns` columns of b. The padding of c becomes that of b.
  template <bool Accumulate>
  static void multiply(index_t rows, index_t depth, index_t columns, simd::scalar_rows<T> a,
                       panel<T> b, panel<T> c) {
    if (rows == 0) return;
    if (rows == 1) return multiply_row<Accumulate>(depth, columns, a, b, c.data);
    simd::product<Accumulate, Arch>(rows, depth, a, b.data, b.stride, padded(columns), c.data,
                                    c.stride);
  }

  /// c = a b^T. `scratch` has room for depth rows of padded(columns) numbers.
  static void multiply_transposed(index_t rows, index_t depth, index_t columns, panel<T> a,
                                  panel<T> b, panel<T> c, T* scratch) {
    if (rows == 0) return;
    if (rows == 1) {
      simd::dot_pairs<Arch>(a.data, 0, b.data, b.stride, columns, padded(depth), c.data, 1);
      std::fill(c.data + columns, c.data + padded(columns), T(0));
      return;
    }
    panel<T> const turned{scratch, padded(columns)};
    transpose(columns, depth, b, turned);
    multiply<false>(rows, depth, columns, a.scalars(), turned, c);
  }

  /// to = from^T, its rows padded with zeros.
  static void transpose(index_t rows, index_t columns, panel<T> from, panel<T> to) {
    simd::transpose<Arch>(rows, columns, from.data, from.stride, to.data, to.stride);
    if (rows < padded(rows))
      for (index_t c = 0; c < columns; ++c) std::fill(to[c] + rows, to[c] + padded(rows), T(0));
  }

  /// The product of two rows of a whole number of registers.
  static T dot(index_t columns, T const* x, T const* y) {
    batch sum[2] = {batch(T(0)), batch(T(0))};
    index_t c = 0;
    for (; c + 2 * lanes <= padded(columns); c += 2 * lanes)
      for (index_t i = 0; i < 2; ++i)
        sum[i] = simd::fma(batch::load_unaligned(x + c + i * lanes),
                           batch::load_unaligned(y + c + i * lanes), sum[i]);
    for (; c < padded(columns); c += lanes)
      sum[0] = simd::fma(batch::load_unaligned(x + c), batch::load_unaligned(y + c), sum[0]);
    return add_lanes(sum[0] + sum[1]);
  }
  /// The sum of the products of two matrices' elements.
  static T dot(index_t rows, index_t columns, panel<T> x, panel<T> y) {
    T sum = 0;
    for (index_t r = 0; r < rows; ++r) sum += dot(columns, x[r], y[r]);
    return sum;
  }

  /// y = f(y, x, ...) by registers, for some rows of a number of whole registers.
  template <class F, class... X>
  static void each(index_t rows, index_t columns, F f, panel<T> y, X const&... x) {
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < padded(columns); c += lanes)
        f(batch::load_unaligned(y[r] + c), batch::load_unaligned(x[r] + c)...)
            .store_unaligned(y[r] + c);
  }

  /// to = factors[r] * from, row by row.
  static void scale_rows(index_t rows, index_t columns, T const* factors, panel<T> from,
                         panel<T> to) {
    for (index_t r = 0; r < rows; ++r) {
      batch const factor(factors[r]);
      for (index_t c = 0; c < padded(columns); c += lanes)
        (factor * batch::load_unaligned(from[r] + c)).store_unaligned(to[r] + c);
    }
  }

  static void fill(index_t rows, index_t columns, panel<T> to, T value = 0) {
    for (index_t r = 0; r < rows; ++r) std::fill_n(to[r], padded(columns), value);
  }
  static void copy(index_t rows, index_t columns, panel<T> from, panel<T> to) {
    for (index_t r = 0; r < rows; ++r) std::copy_n(from[r], padded(columns), to[r]);
  }

  /// The lanes added by halves, which every instruction set does alike.
  static T add_lanes(batch const& x) {
    alignas(64) T lane[batch::size];
    x.store_aligned(lane);
    for (index_t half = lanes / 2; half > 0; half /= 2)
      for (index_t i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }

 private:
  /// One row: as many columns at once as hide the latency of their sums.
  template <bool Accumulate>
  static void multiply_row(index_t depth, index_t columns, simd::scalar_rows<T> a, panel<T> b,
                           T* c) {
    index_t const end = padded(columns);
    index_t at = 0;
    for (; at + 8 * lanes <= end; at += 8 * lanes)
      row_tile<8, Accumulate>(depth, a, b.data + at, b.stride, c + at);
    for (; at + 4 * lanes <= end; at += 4 * lanes)
      row_tile<4, Accumulate>(depth, a, b.data + at, b.stride, c + at);
    for (; at < end; at += lanes) row_tile<1, Accumulate>(depth, a, b.data + at, b.stride, c + at);
  }
  template <int Registers, bool Accumulate>
  static void row_tile(index_t depth, simd::scalar_rows<T> a, T const* b, index_t b_stride, T* c) {
    batch sum[Registers];
#pragma GCC unroll 8
    for (int r = 0; r < Registers; ++r)
      sum[r] = Accumulate ? batch::load_unaligned(c + r * lanes) : batch(T(0));
    for (index_t k = 0; k < depth; ++k, b += b_stride) {
      batch const left(a.data[k * a.depth_stride]);
#pragma GCC unroll 8
      for (int r = 0; r < Registers; ++r)
        sum[r] = simd::fma(left, batch::load_unaligned(b + r * lanes), sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Registers; ++r) sum[r].store_unaligned(c + r * lanes);
  }
};

}  // namespace heed::recur::memory
