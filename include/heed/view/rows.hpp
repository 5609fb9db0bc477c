#pragma once

#include <heed/view/element.hpp>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace heed {

/// Rows of numbers ready to compute with: row r, column c at data[r * stride + c].
template <class T>
struct row_block {
  T const* data;
  index_t stride;

  T const* operator[](index_t row) const { return data + row * stride; }
};

/// Rows of numbers that lie anywhere.
template <class T>
struct scattered_rows {
  T const* const* rows;

  T const* operator[](index_t row) const { return rows[row]; }
};

namespace detail {

template <class To, class From>
void convert_row(From const* from, index_t step, index_t count, To* to) {
  index_t i = 0;
  if (step == 1) {
    if constexpr (std::is_same_v<From, Eigen::half> && std::is_same_v<To, float>) {
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(
            to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from + i))));
#endif
    } else if constexpr (std::is_same_v<From, Eigen::bfloat16> && std::is_same_v<To, float>) {
      // Eigen's conversion tests for NaN; bits moved up are the same number, and vectorise.
      static_assert(sizeof(From) == sizeof(std::uint16_t));
      auto const* const bits = reinterpret_cast<std::uint16_t const*>(from);
      for (; i < count; ++i) to[i] = std::bit_cast<float>(std::uint32_t{bits[i]} << 16);
    }
    for (; i < count; ++i) to[i] = static_cast<To>(from[i]);
  } else {
    for (; i < count; ++i) to[i] = static_cast<To>(from[i * step]);
  }
}

template <class To, class From>
void convert_rows(void const* from, index_t row_stride, index_t step, index_t rows, index_t columns,
                  To* to, index_t to_stride, index_t ahead) {
  if constexpr (std::is_same_v<To, From>)
    if (step == 1 && row_stride == columns && to_stride == columns && ahead == 0) {
      std::memcpy(to, from, static_cast<std::size_t>(rows * columns) * sizeof(To));
      return;
    }
  for (index_t r = 0; r < rows; ++r) {
    From const* const row = static_cast<From const*>(from) + r * row_stride;
    if (ahead > 0)
      for (index_t c = 0; c < columns; c += 64 / static_cast<index_t>(sizeof(From)))
        __builtin_prefetch(row + ahead * row_stride + c);
    convert_row(row, step, columns, to + r * to_stride);
  }
}

template <class From, class To>
void store_rows(void* to, index_t row_stride, index_t step, index_t rows, index_t columns,
                From const* from, index_t from_stride) {
  for (index_t r = 0; r < rows; ++r) {
    To* const row = static_cast<To*>(to) + r * row_stride;
    for (index_t c = 0; c < columns; ++c)
      row[c * step] = static_cast<To>(from[r * from_stride + c]);
  }
}

}  // namespace detail

/// A tensor [batch, position, head, dim] to read, its element type erased: the engines see rows of
/// numbers of type T and are compiled once for all storage types.
template <class T>
class source {
 public:
  source() = default;

  template <element E>
  explicit source(tensor_view<E, 4> view)
      : data_(reinterpret_cast<char const*>(view.data())),
        element_size_(sizeof(E)),
        extents_(view.extents()),
        strides_(view.strides()),
        in_place_(std::is_same_v<std::remove_const_t<E>, T> &&
                  (view.stride(3) == 1 || view.extent(3) <= 1)),
        convert_(&detail::convert_rows<T, std::remove_const_t<E>>) {}

  index_t batches() const { return extents_[0]; }
  index_t positions() const { return extents_[1]; }
  index_t heads() const { return extents_[2]; }
  index_t dim() const { return extents_[3]; }
  auto const& extents() const { return extents_; }
  auto const& strides() const { return strides_; }

  /// Columns [first, first + count) of every row.
  source columns(index_t first, index_t count) const {
    source part = *this;
    part.data_ += first * strides_[3] * element_size_;
    part.extents_[3] = count;
    return part;
  }

  /// Where row `first` of one head is stored, in elements of the tensor's own type.
  void const* stored(index_t batch, index_t head, index_t first) const {
    return at(batch, first, head);
  }
  /// Of the tensor's own type, in bytes.
  index_t element_size() const { return element_size_; }
  bool unit_stride() const { return strides_[3] == 1 || dim() <= 1; }

  /// Whether rows can be used where they lie.
  bool in_place() const { return in_place_; }

  /// Rows [first, first + count) of one head: where they lie, or converted into `scratch`, which has
  /// room for count * dim() numbers. Rows that are to be `reused` are gathered too, since the usual strides
  /// between rows, powers of two, would have them evict each other from the first-level cache.
  row_block<T> rows(index_t batch, index_t head, index_t first, index_t count, T* scratch,
                    bool reused = false) const {
    if (in_place_ && !(reused && strides_[1] != dim()))
      return {reinterpret_cast<T const*>(at(batch, first, head)), strides_[1]};
    copy(batch, head, first, count, scratch, dim(), rows_ahead);
    return {scratch, dim()};
  }

  /// `count` rows of one head from `first` on, `step` apart, converted into `to`. Asks for the row `ahead` rows on to be brought near
  /// while it reads a row.
  void copy(index_t batch, index_t head, index_t first, index_t count, T* to, index_t to_stride,
            index_t ahead = 0, index_t step = 1) const {
    convert_(at(batch, first, head), step * strides_[1], strides_[3], count, dim(), to, to_stride,
             ahead);
  }

 private:
  static constexpr index_t rows_ahead = 32;

  char const* at(index_t batch, index_t position, index_t head) const {
    return data_ +
           (batch * strides_[0] + position * strides_[1] + head * strides_[2]) * element_size_;
  }

  char const* data_ = nullptr;
  index_t element_size_ = 0;
  std::array<index_t, 4> extents_{};
  std::array<index_t, 4> strides_{};
  bool in_place_ = false;
  void (*convert_)(void const*, index_t, index_t, index_t, index_t, T*, index_t, index_t) = nullptr;
};

/// A tensor [batch, position, head, dim] to write, its element type erased.
template <class T>
class sink {
 public:
  sink() = default;

  template <element E>
  explicit sink(tensor_view<E, 4> view)
      : data_(reinterpret_cast<char*>(view.data())),
        element_size_(sizeof(E)),
        extents_(view.extents()),
        strides_(view.strides()),
        in_place_(std::is_same_v<E, T> && (view.stride(3) == 1 || view.extent(3) <= 1)),
        store_(&detail::store_rows<T, E>) {}

  auto const& extents() const { return extents_; }
  bool in_place() const { return in_place_; }

  /// Columns [first, first + count) of every row.
  sink columns(index_t first, index_t count) const {
    sink part = *this;
    part.data_ += first * strides_[3] * element_size_;
    part.extents_[3] = count;
    return part;
  }
  index_t row_stride() const { return strides_[1]; }

  /// Where row `first` of one head lies; only if in_place().
  T* row(index_t batch, index_t head, index_t first) const {
    return reinterpret_cast<T*>(at(batch, first, head));
  }

  void store(index_t batch, index_t head, index_t first, index_t count, T const* from,
             index_t from_stride, index_t step = 1) const {
    store_(at(batch, first, head), step * strides_[1], strides_[3], count, extents_[3], from,
           from_stride);
  }

 private:
  char* at(index_t batch, index_t position, index_t head) const {
    return data_ +
           (batch * strides_[0] + position * strides_[1] + head * strides_[2]) * element_size_;
  }

  char* data_ = nullptr;
  index_t element_size_ = 0;
  std::array<index_t, 4> extents_{};
  std::array<index_t, 4> strides_{};
  bool in_place_ = false;
  void (*store_)(void*, index_t, index_t, index_t, index_t, T const*, index_t) = nullptr;
};

}  // namespace heed
