#pragma once

#include <heed/parallel/executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/recur/segments.hpp>
#include <heed/simd/math.hpp>
#include <heed/simd/product.hpp>
#include <heed/view/expect.hpp>

/// Keys and values compressed along positions by weights that are a softmax over positions: P = softmax_j(logits_j),
/// K' = P^T K and V' = P^T V, for whole sequences or for chunks of them.
namespace heed {

namespace detail {

/// The columns of logits of one chunk of one head, and what they are made of.
template <class T, class Arch = xsimd::default_arch>
class position_compressor {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);

  struct place {
    index_t batch_entry, head;
    interval positions;
  };

  position_compressor(arena& memory, index_t columns, index_t dim, index_t value_dim, bool backward)
      : columns_(columns),
        dim_(dim),
        value_dim_(value_dim),
        padded_(simd::round_up(columns, lanes)),
        wide_(simd::round_up(dim + value_dim, lanes)),
        top_(memory.take<T>(padded_)),
        total_(memory.take<double>(padded_)),
        weights_(memory.take<T>(tile * padded_)),
        rows_(memory.take<T>(tile * wide_)),
        product_(memory.take<T>(std::max(columns, tile) * wide_)),
        sums_(memory.take<double>(columns * wide_)) {
    if (!backward) return;
    slopes_ = memory.take<T>(columns * wide_);
    turned_ = memory.take<T>(wide_ * padded_);
    share_ = memory.take<T>(padded_);
    by_weight_ = memory.take<T>(tile * padded_);
  }

  /// Writes the compressed rows from `to_row` on.
  void compress(source<T> const& logits, source<T> const& key, source<T> const& value,
                place const& at, sink<T> const& to_key, sink<T> const& to_value, index_t to_row) {
    find_top(logits, at);
    std::fill_n(total_, padded_, 0.0);
    std::fill_n(sums_, columns_ * wide_, 0.0);
    each_tile(at, [&](index_t first, index_t count) {
      weigh(logits, at, first, count);
      load_rows(key, value, at, first, count);
      simd::product<false, Arch>(columns_, count, simd::scalar_rows<T>{weights_, 1, padded_}, rows_,
                                 wide_, wide_, product_, wide_);
      for (index_t n = 0; n < columns_ * wide_; ++n) sums_[n] += static_cast<double>(product_[n]);
    });
    for (index_t c = 0; c < columns_; ++c)
      for (index_t d = 0; d < wide_; ++d)
        product_[c * wide_ + d] =
            total_[c] > 0 ? static_cast<T>(sums_[c * wide_ + d] / total_[c]) : T(0);
    to_key.store(at.batch_entry, at.head, to_row, columns_, product_, wide_);
    to_value.store(at.batch_entry, at.head, to_row, columns_, product_ + dim_, wide_);
  }

  /// Writes dlogits, and adds to dkey and dvalue, given the results and the gradients of compressed rows.
  template <class DK, class DV>
  void differentiate(source<T> const& logits, source<T> const& key, source<T> const& value,
                     place const& at, source<T> const& compressed_key,
                     source<T> const& compressed_value, source<T> const& dcompressed_key,
                     source<T> const& dcompressed_value, index_t row, sink<T> const& dlogits,
                     tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue) {
    index_t const b = at.batch_entry, h = at.head;
    std::fill_n(product_, columns_ * wide_, T(0));
    std::fill_n(slopes_, columns_ * wide_, T(0));
    compressed_key.copy(b, h, row, columns_, product_, wide_);
    compressed_value.copy(b, h, row, columns_, product_ + dim_, wide_);
    dcompressed_key.copy(b, h, row, columns_, slopes_, wide_);
    dcompressed_value.copy(b, h, row, columns_, slopes_ + dim_, wide_);
    std::fill_n(turned_, wide_ * padded_, T(0));
    std::fill_n(share_, padded_, T(0));
    for (index_t c = 0; c < columns_; ++c)
      for (index_t d = 0; d < dim_ + value_dim_; ++d) {
        turned_[d * padded_ + c] = slopes_[c * wide_ + d];
        share_[c] += slopes_[c * wide_ + d] * product_[c * wide_ + d];
      }
    find_top(logits, at);
    std::fill_n(total_, padded_, 0.0);
    each_tile(at, [&](index_t first, index_t count) { weigh(logits, at, first, count); });
    each_tile(at, [&](index_t first, index_t count) {
      weigh(logits, at, first, count, true);
      load_rows(key, value, at, first, count);
      simd::product<false, Arch>(count, dim_ + value_dim_, simd::scalar_rows<T>{rows_, wide_, 1},
                                 turned_, padded_, padded_, by_weight_, padded_);
      for (index_t r = 0; r < count; ++r)
        for (index_t c = 0; c < padded_; c += lanes) {
          T* const slope = by_weight_ + r * padded_ + c;
          (batch::load_aligned(weights_ + r * padded_ + c) *
           (batch::load_aligned(slope) - batch::load_aligned(share_ + c)))
              .store_aligned(slope);
        }
      dlogits.store(b, h, first, count, by_weight_, padded_);
      simd::product<false, Arch>(count, columns_, simd::scalar_rows<T>{weights_, padded_, 1},
                                 slopes_, wide_, wide_, product_, wide_);
      for (index_t r = 0; r < count; ++r) {
        if (dim_ > 0)
          add_to_row(&dkey(b, first + r, h, 0), dkey.stride(3), product_ + r * wide_, dim_, T(1));
        if (value_dim_ > 0)
          add_to_row(&dvalue(b, first + r, h, 0), dvalue.stride(3), product_ + r * wide_ + dim_,
                     value_dim_, T(1));
      }
    });
  }

 private:
  static constexpr index_t tile = 64;

  template <class F>
  static void each_tile(place const& at, F f) {
    for (index_t first = at.positions.first; first < at.positions.last; first += tile)
      f(first, std::min(tile, at.positions.last - first));
  }

  /// Logits of some positions, with -infinity beyond the columns.
  void load_logits(source<T> const& logits, place const& at, index_t first, index_t count) {
    for (index_t r = 0; r < count; ++r)
      std::fill(weights_ + r * padded_ + columns_, weights_ + (r + 1) * padded_,
                -std::numeric_limits<T>::infinity());
    logits.copy(at.batch_entry, at.head, first, count, weights_, padded_);
  }
  void load_rows(source<T> const& key, source<T> const& value, place const& at, index_t first,
                 index_t count) {
    for (index_t r = 0; r < count; ++r)
      std::fill(rows_ + r * wide_ + dim_ + value_dim_, rows_ + (r + 1) * wide_, T(0));
    key.copy(at.batch_entry, at.head, first, count, rows_, wide_);
    value.copy(at.batch_entry, at.head, first, count, rows_ + dim_, wide_);
  }

  void find_top(source<T> const& logits, place const& at) {
    std::fill_n(top_, padded_, -std::numeric_limits<T>::infinity());
    each_tile(at, [&](index_t first, index_t count) {
      load_logits(logits, at, first, count);
      for (index_t r = 0; r < count; ++r)
        for (index_t c = 0; c < padded_; c += lanes)
          xsimd::max(batch::load_aligned(weights_ + r * padded_ + c), batch::load_aligned(top_ + c))
              .store_aligned(top_ + c);
    });
    // Of columns that are nothing but -infinity all weights are 0.
    for (index_t c = 0; c < padded_; ++c)
      if (top_[c] == -std::numeric_limits<T>::infinity()) top_[c] = 0;
  }

  /// exp(logits - top); and their sums are added to the totals, or if those are `known`, what they are divided by.
  void weigh(source<T> const& logits, place const& at, index_t first, index_t count,
             bool known = false) {
    constexpr T log2_e = T(1.442695040888963407359924681L);
    load_logits(logits, at, first, count);
    for (index_t c = 0; c < padded_; c += lanes) {
      batch const top = batch::load_aligned(top_ + c);
      alignas(64) T numbers[lanes];
      for (index_t lane = 0; lane < lanes; ++lane)
        numbers[lane] =
            known && total_[c + lane] > 0 ? static_cast<T>(1 / total_[c + lane]) : T(known ? 0 : 1);
      batch const factor = batch::load_aligned(numbers);
      batch sum(T(0));
      for (index_t r = 0; r < count; ++r) {
        T* const weight = weights_ + r * padded_ + c;
        batch const each = simd::exp2((batch::load_aligned(weight) - top) * batch(log2_e)) * factor;
        each.store_aligned(weight);
        sum += each;
      }
      if (known) continue;
      sum.store_aligned(numbers);
      for (index_t lane = 0; lane < lanes; ++lane)
        total_[c + lane] += static_cast<double>(numbers[lane]);
    }
  }

  index_t columns_, dim_, value_dim_, padded_, wide_;
  T* top_;
  double* total_;
  T *weights_, *rows_, *product_;
  double* sums_;
  T *slopes_ = nullptr, *turned_ = nullptr, *share_ = nullptr, *by_weight_ = nullptr;
};

/// Calls f(compressor, its place, first compressed row) for every chunk of every head.
template <class T, class Executor, class F>
void for_chunks(Executor const& run_on, std::array<index_t, 4> const& logits, index_t length,
                index_t dim, index_t value_dim, bool backward, F f) {
  index_t const heads = logits[2], columns = logits[3], chunks = logits[1] / length;
  arena size;
  position_compressor<T> const measured(size, columns, dim, value_dim, backward);
  auto const bytes = static_cast<index_t>(size.used());
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, logits[0] * heads * chunks, [&](index_t piece, index_t worker) {
    arena own(memory + worker * bytes);
    position_compressor<T> compressor(own, columns, dim, value_dim, backward);
    index_t const chunk = piece % chunks;
    f(compressor,
      typename position_compressor<T>::place{
          piece / chunks / heads, piece / chunks % heads, {chunk * length, (chunk + 1) * length}},
      chunk * columns);
  });
}

template <class L, class K, class V, class CK, class CV>
void check_compression(tensor_view<L, 4> logits, tensor_view<K, 4> key, tensor_view<V, 4> value,
                       index_t length, char const* key_name, tensor_view<CK, 4> compressed_key,
                       char const* value_name, tensor_view<CV, 4> compressed_value) {
  require(length > 0, [&] {
    return "positions are compressed in chunks of " + std::to_string(length) +
           "; expected at least 1";
  });
  for (int axis = 0; axis < 3; ++axis)
    require(logits.extent(axis) == key.extent(axis) && logits.extent(axis) == value.extent(axis),
            [&] {
              return "logits has shape " + shape_text(logits.extents()) + ", key " +
                     shape_text(key.extents()) + ", value " + shape_text(value.extents()) +
                     "; expected the same batch, positions and heads";
            });
  index_t const rows = key.extent(1) / length * logits.extent(3);
  expect_like(key_name, compressed_key, {key.extent(0), rows, key.extent(2), key.extent(3)},
              "key with the compressed positions");
  expect_like(value_name, compressed_value,
              {value.extent(0), rows, value.extent(2), value.extent(3)},
              "value with the compressed positions");
}

}  // namespace detail

/// Compresses every whole chunk of `length` positions to as many rows as there are logits; the positions of a ragged last one
/// are left out. `length` = M compresses the whole sequence.
///
///   logits                               [batch, M, heads, rows of a chunk]
///   key, value                           [batch, M, heads, dim], of as many heads
///   compressed_key, compressed_value     [batch, chunks x rows, heads, dim]
template <element L, element K, element V, element CK, element CV, class Executor = serial>
void compress_positions(tensor_view<L, 4> logits, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        index_t length, tensor_view<CK, 4> compressed_key,
                        tensor_view<CV, 4> compressed_value, Executor const& run_on = {}) {
  using T = compute_type<L, K, V, CK, CV>;
  detail::check_compression(logits, key, value, length, "compressed_key", compressed_key,
                            "compressed_value", compressed_value);
  source<T> const all(logits), keys(key), values(value);
  sink<T> const to_key(compressed_key), to_value(compressed_value);
  detail::for_chunks<T>(run_on, logits.extents(), length, key.extent(3), value.extent(3), false,
                        [&](auto& compressor, auto const& at, index_t row) {
                          compressor.compress(all, keys, values, at, to_key, to_value, row);
                        });
}

/// The gradients of compress_positions from its results: dlogits is written, and 0 at positions that are left out; dkey and
/// dvalue are added to.
template <element L, element K, element V, element CK, element CV, element DCK, element DCV,
          element DL, element DK, element DV, class Executor = serial>
void compress_positions_backward(tensor_view<L, 4> logits, tensor_view<K, 4> key,
                                 tensor_view<V, 4> value, index_t length,
                                 tensor_view<CK, 4> compressed_key,
                                 tensor_view<CV, 4> compressed_value,
                                 tensor_view<DCK, 4> dcompressed_key,
                                 tensor_view<DCV, 4> dcompressed_value, tensor_view<DL, 4> dlogits,
                                 tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                 Executor const& run_on = {}) {
  using T = compute_type<L, K, V, CK, CV, DCK, DCV, DL, DK, DV>;
  detail::check_compression(logits, key, value, length, "compressed_key", compressed_key,
                            "compressed_value", compressed_value);
  detail::check_compression(logits, key, value, length, "dcompressed_key", dcompressed_key,
                            "dcompressed_value", dcompressed_value);
  detail::expect_like("dlogits", dlogits, logits.extents(), "logits");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  source<T> const all(logits), keys(key), values(value), found_keys(compressed_key),
      found_values(compressed_value), key_slopes(dcompressed_key), value_slopes(dcompressed_value);
  sink<T> const to(dlogits);
  detail::for_chunks<T>(run_on, logits.extents(), length, key.extent(3), value.extent(3), true,
                        [&](auto& compressor, auto const& at, index_t row) {
                          compressor.differentiate(all, keys, values, at, found_keys, found_values,
                                                   key_slopes, value_slopes, row, to, dkey, dvalue);
                        });
  for (index_t b = 0; b < dlogits.extent(0); ++b)
    for (index_t i = dlogits.extent(1) / length * length; i < dlogits.extent(1); ++i)
      for (index_t h = 0; h < dlogits.extent(2); ++h)
        for (index_t c = 0; c < dlogits.extent(3); ++c) dlogits(b, i, h, c) = DL(0);
}

}  // namespace heed
