#pragma once

#include <heed/simd/fma.hpp>
#include <heed/simd/lanes.hpp>
#include <heed/simd/load.hpp>

#include <algorithm>

/// Products for few queries, where keys are read once and in the order they lie: dimensions in lanes.
namespace heed::simd {

namespace detail {

/// The sum of the lanes of each register of `rows`, which are as many as a register has lanes.
template <class T, class Arch>
void sum_lanes(xsimd::batch<T, Arch> const* rows, T* sums) {
  using batch = xsimd::batch<T, Arch>;
  if constexpr (std::is_base_of_v<xsimd::avx512f, Arch>) {
    // By halves of 256 bits: xsimd 8 adds up the wrong lanes of 512.
    using half = xsimd::batch<T, xsimd::avx2>;
    half folded[batch::size];
    for (std::size_t i = 0; i < batch::size; ++i) {
      alignas(64) T lanes[batch::size];
      rows[i].store_aligned(lanes);
      folded[i] = half::load_aligned(lanes) + half::load_aligned(lanes + half::size);
    }
    for (std::size_t i = 0; i < batch::size; i += half::size)
      xsimd::haddp(folded + i).store_unaligned(sums + i);
  } else {
    xsimd::haddp(rows).store_unaligned(sums);
  }
}

/// Calls step(d) for each register of a row of `depth` numbers, and begin(d) where a cache line of them begins.
template <class Stored, index_t lanes, class Begin, class Step>
inline void each_line(index_t depth, Begin&& begin, Step&& step) {
  constexpr index_t line = std::max(64 / static_cast<index_t>(sizeof(Stored)), lanes);
  index_t d = 0;
  for (; d + line <= depth; d += line) {
    begin(d);
#pragma GCC unroll 16
    for (index_t i = 0; i < line; i += lanes) step(d + i);
  }
  if (d < depth) begin(d);
  for (; d < depth; d += lanes) step(d);
}

}  // namespace detail

/// scores[k * score_stride] = query(k) . row(k) for `count` rows, stored in any element type, each with a query of its own; a
/// stride of 0 gives them one. Strides are in elements. Rows are `depth` numbers long, a number of whole registers; queries
/// are aligned. While a row is read the one `ahead` elements on is asked for.
template <class Arch, class T, class Stored>
void dot_pairs(T const* queries, index_t query_stride, Stored const* rows, index_t row_stride,
               index_t count, index_t depth, T* scores, index_t score_stride, index_t ahead = 0) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  for (index_t first = 0; first < count; first += lanes) {
    batch sum[lanes];
    // One row after the other: memory is read in order, and the rows' sums overlap in flight.
#pragma GCC unroll 16
    for (index_t k = 0; k < lanes; ++k) {
      index_t const at = std::min(first + k, count - 1);
      Stored const* const row = rows + at * row_stride;
      T const* const query = queries + at * query_stride;
      sum[k] = batch(T(0));
      detail::each_line<Stored, lanes>(
          depth, [&](index_t line) { __builtin_prefetch(row + line + ahead); },
          [&](index_t d) {
            sum[k] =
                simd::fma(load_stored<T, Arch>(row + d), batch::load_aligned(query + d), sum[k]);
          });
    }
    alignas(64) T result[lanes];
    detail::sum_lanes<T, Arch>(sum, result);
    for (index_t k = 0; k < std::min(lanes, count - first); ++k)
      scores[(first + k) * score_stride] = result[k];
  }
}

/// scores[q * score_stride + k] = query(q) . row(k) for `count` rows and a few queries at once, as in dot_pairs; with
/// `ahead` 0 nothing is asked for.
template <int Queries, class Arch, class T, class Stored>
void dot_rows(T const* queries, index_t query_stride, Stored const* rows, index_t row_stride,
              index_t count, index_t depth, T* scores, index_t score_stride, index_t ahead = 0) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  // One round fills a register with sums: Queries x lanes / Queries of them.
  constexpr index_t rows_per_round = lanes / Queries;
  static_assert(rows_per_round * Queries == lanes);
  for (index_t first = 0; first < count; first += rows_per_round) {
    Stored const* row[rows_per_round];
    batch sum[Queries][rows_per_round];
#pragma GCC unroll 16
    for (index_t k = 0; k < rows_per_round; ++k) {
      row[k] = rows + std::min(first + k, count - 1) * row_stride;
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q) sum[q][k] = batch(T(0));
    }
    auto const step = [&](index_t k, index_t d) {
      batch const part = load_stored<T, Arch>(row[k] + d);
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q)
        sum[q][k] = simd::fma(part, batch::load_aligned(queries + q * query_stride + d), sum[q][k]);
    };
    if (ahead != 0)
      for (index_t k = 0; k < rows_per_round; ++k)
        for (index_t d = 0; d < depth; d += 64 / static_cast<index_t>(sizeof(Stored)))
          __builtin_prefetch(row[k] + d + ahead);
    for (index_t d = 0; d < depth; d += lanes)
#pragma GCC unroll 16
      for (index_t k = 0; k < rows_per_round; ++k) step(k, d);
    alignas(64) T result[lanes];
    detail::sum_lanes<T, Arch>(&sum[0][0], result);
    for (int q = 0; q < Queries; ++q) {
      T* const to = scores + q * score_stride + first;
      if (first + rows_per_round <= count)
        std::copy_n(result + q * rows_per_round, rows_per_round, to);
      else
        std::copy_n(result + q * rows_per_round, count - first, to);
    }
  }
}

/// to(k)[c] += weights[k * weight_stride] * row(k)[c] for `count` rows; strides of 0 as in dot_pairs. `columns` is a number of
/// whole registers, `to` aligned, `ahead` as there.
template <class Arch, class T, class Stored>
void add_weighted_pairs(T const* weights, index_t weight_stride, Stored const* rows,
                        index_t row_stride, index_t count, index_t columns, T* to,
                        index_t to_stride, index_t ahead = 0) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  for (index_t k = 0; k < count; ++k) {
    Stored const* const row = rows + k * row_stride;
    T* const sums = to + k * to_stride;
    batch const weight(weights[k * weight_stride]);
    detail::each_line<Stored, lanes>(
        columns, [&](index_t c) { __builtin_prefetch(row + c + ahead); },
        [&](index_t c) {
          simd::fma(weight, load_stored<T, Arch>(row + c), batch::load_aligned(sums + c))
              .store_aligned(sums + c);
        });
  }
}

/// to[c] += sum_k weights[k] * row(k)[c], the same sums for all rows; otherwise as above.
template <class Arch, class T, class Stored>
void add_weighted_rows(T const* weights, Stored const* rows, index_t stride, index_t count,
                       index_t columns, T* to, index_t ahead = 0) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  // Rows are read one after the other where memory takes longer than a sum to come back from where it was stored.
  constexpr index_t long_row = 512 / static_cast<index_t>(sizeof(Stored)), together = 2;
  index_t k = 0;
  for (; columns < long_row && k + together <= count; k += together) {
    Stored const* const row = rows + k * stride;
    batch weight[together];
#pragma GCC unroll 4
    for (index_t i = 0; i < together; ++i) weight[i] = batch(weights[k + i]);
    detail::each_line<Stored, lanes>(
        columns,
        [&](index_t c) {
#pragma GCC unroll 4
          for (index_t i = 0; i < together; ++i) __builtin_prefetch(row + i * stride + c + ahead);
        },
        [&](index_t c) {
          batch sum = batch::load_aligned(to + c);
#pragma GCC unroll 4
          for (index_t i = 0; i < together; ++i)
            sum = simd::fma(weight[i], load_stored<T, Arch>(row + i * stride + c), sum);
          sum.store_aligned(to + c);
        });
  }
  add_weighted_pairs<Arch>(weights + k, 1, rows + k * stride, stride, count - k, columns, to, 0,
                           ahead);
}

}  // namespace heed::simd
