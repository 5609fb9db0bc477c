// Tensors in memory that notices: any strides, red zones around them, poison in the gaps.
#pragma once

#include "reference/tensor.hpp"
#include "support/random.hpp"

#include <heed/view/element.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <type_traits>

#if defined(__SANITIZE_ADDRESS__)
#define HEED_TEST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HEED_TEST_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef HEED_TEST_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace support {

using heed::index_t;
using heed::tensor_view;

template <int Rank>
using extents_of = std::array<index_t, static_cast<std::size_t>(Rank)>;

/// Calls visit(index) for every index of a tensor, the last axis fastest.
template <std::size_t Rank, class Visit>
void for_each_index(std::array<index_t, Rank> const& extents, Visit visit) {
  for (index_t extent : extents)
    if (extent <= 0) return;
  std::array<index_t, Rank> at{};
  for (;;) {
    visit(at);
    std::size_t axis = Rank;
    while (axis-- > 0) {
      if (++at[axis] < extents[axis]) break;
      at[axis] = 0;
      if (axis == 0) return;
    }
  }
}

template <std::size_t Rank>
index_t offset(std::array<index_t, Rank> const& at, std::array<index_t, Rank> const& strides) {
  index_t sum = 0;
  for (std::size_t axis = 0; axis < Rank; ++axis) sum += at[axis] * strides[axis];
  return sum;
}

/// Where the elements of a tensor lie: strides, the place of element 0, and how many elements it
/// spans.
template <int Rank>
struct layout {
  extents_of<Rank> strides{};
  index_t first = 0;
  index_t span = 0;
};

/// Lays the axes out in `order`, outermost first, with `gap` unused elements after each step of an
/// axis.
template <int Rank>
layout<Rank> lay_out(extents_of<Rank> const& extents, extents_of<Rank> const& order,
                     extents_of<Rank> const& gap = {}) {
  layout<Rank> result;
  index_t stride = 1;
  for (std::size_t n = order.size(); n-- > 0;) {
    auto const axis = static_cast<std::size_t>(order[n]);
    stride += gap[axis];
    result.strides[axis] = stride;
    stride *= std::max<index_t>(extents[axis], 1);
  }
  result.span = stride;
  return result;
}

template <int Rank>
layout<Rank> packed(extents_of<Rank> const& extents) {
  extents_of<Rank> order;
  std::iota(order.begin(), order.end(), 0);
  return lay_out<Rank>(extents, order);
}

/// A layout of any kind: dense, heads outside positions, padded, or axes in any order, reversed,
/// with gaps; with `shared`, batch entries and heads may share memory. (Where all keys share it,
/// scores are equal and the definition's error is 0, which is no measure of anything.)
template <int Rank>
layout<Rank> random_layout(random& draw, extents_of<Rank> extents, bool shared) {
  extents_of<Rank> order, gap{};
  std::iota(order.begin(), order.end(), 0);
  index_t const kind = draw.between(0, 9);
  if constexpr (Rank > 2)
    if (kind >= 3 && kind < 6) std::swap(order[1], order[2]);
  if (kind >= 4)
    for (std::size_t axis = 0; axis + 1 < gap.size(); ++axis) gap[axis] = draw.between(0, 9);
  if (kind < 8) return lay_out<Rank>(extents, order, gap);

  for (std::size_t n = order.size(); n-- > 1;)
    std::swap(order[n], order[static_cast<std::size_t>(draw.between(0, static_cast<index_t>(n)))]);
  gap.back() = draw.between(0, 2);
  extents_of<Rank> held = extents;
  for (std::size_t axis = 0; axis < held.size(); axis += 2)
    if (shared && axis + 1 < held.size() && draw.one_in(3))
      held[axis] = std::min<index_t>(held[axis], 1);
  layout<Rank> result = lay_out<Rank>(held, order, gap);
  for (std::size_t axis = 0; axis < order.size(); ++axis) {
    if (held[axis] < extents[axis]) {
      result.strides[axis] = 0;
    } else if (held[axis] > 0 && draw.one_in(4)) {
      result.first += (held[axis] - 1) * result.strides[axis];
      result.strides[axis] = -result.strides[axis];
    }
  }
  return result;
}

template <class T>
T poison() {
  if constexpr (std::is_integral_v<T> && sizeof(T) == 1)
    return T(1);
  else if constexpr (std::is_integral_v<T>)
    return static_cast<T>(T(1) << (8 * sizeof(T) - 2));
  else
    return std::numeric_limits<T>::quiet_NaN();
}

template <class To, class From>
To convert(From const& x) {
  if constexpr (std::is_arithmetic_v<From>)
    return static_cast<To>(x);
  else  // half and bfloat16 convert through float only
    return static_cast<To>(static_cast<float>(x));
}

/// A copy of what a view shows.
template <class To, class T, int Rank>
reference::tensor<To, Rank> read(tensor_view<T, Rank> view) {
  reference::tensor<To, Rank> result(view.extents());
  std::size_t n = 0;
  for_each_index(view.extents(), [&](auto const& at) {
    result.values[n++] = convert<To>(view.data()[offset(at, view.strides())]);
  });
  return result;
}

/// Owns the memory of a tensor. Everything that is not an element of the tensor is poison, and
/// stays.
template <class T, int Rank>
class guarded {
 public:
  using value_type = T;

  guarded() = default;
  guarded(extents_of<Rank> const& extents, layout<Rank> const& where, index_t misalignment = 0)
      : extents_(extents),
        layout_(where),
        before_(red_zone + misalignment),
        size_(static_cast<std::size_t>(before_ + where.span + red_zone)),
        memory_(new T[size_]) {
    std::fill_n(memory_.get(), size_, poison<T>());
    guard(true);
  }
  guarded(guarded&&) = default;
  guarded& operator=(guarded&& other) {
    guard(false);
    extents_ = other.extents_;
    layout_ = other.layout_;
    before_ = other.before_;
    size_ = other.size_;
    memory_ = std::move(other.memory_);
    snapshot_ = std::move(other.snapshot_);
    return *this;
  }
  ~guarded() { guard(false); }

  tensor_view<T, Rank> view() { return {data(), extents_, layout_.strides}; }
  tensor_view<T const, Rank> view() const { return {data(), extents_, layout_.strides}; }
  extents_of<Rank> const& extents() const { return extents_; }

  /// Sets every element to f(index).
  template <class F>
  void fill(F f) {
    for_each_index(extents_, [&](auto const& at) { data()[offset(at, layout_.strides)] = f(at); });
  }

  template <class To>
  reference::tensor<To, Rank> values() const {
    return read<To>(view());
  }

  /// Remembers the memory for the two questions below.
  void remember() {
    guard(false);
    snapshot_.reset(new T[size_]);
    std::copy_n(memory_.get(), size_, snapshot_.get());
    guard(true);
  }
  bool untouched() {
    guard(false);
    bool const same = same_bytes(0, size_);
    guard(true);
    return same;
  }
  bool untouched_outside() {
    guard(false);
    std::vector<char> inside(size_, 0);
    for_each_index(extents_, [&](auto const& at) {
      inside[static_cast<std::size_t>(before_ + layout_.first + offset(at, layout_.strides))] = 1;
    });
    bool same = true;
    for (std::size_t i = 0; i < size_; ++i) same &= inside[i] || same_bytes(i, 1);
    guard(true);
    return same;
  }

 private:
  static constexpr index_t red_zone = 64;

  T* data() { return memory_.get() + before_ + layout_.first; }
  T const* data() const { return memory_.get() + before_ + layout_.first; }
  bool same_bytes(std::size_t first, std::size_t count) const {
    return std::memcmp(memory_.get() + first, snapshot_.get() + first, count * sizeof(T)) == 0;
  }
  void guard([[maybe_unused]] bool on) {
#ifdef HEED_TEST_ADDRESS_SANITIZER
    if (!memory_) return;
    if (!on) {
      ASAN_UNPOISON_MEMORY_REGION(memory_.get(), size_ * sizeof(T));
    } else {
      ASAN_POISON_MEMORY_REGION(memory_.get(), static_cast<std::size_t>(before_) * sizeof(T));
      ASAN_POISON_MEMORY_REGION(memory_.get() + before_ + layout_.span,
                                static_cast<std::size_t>(red_zone) * sizeof(T));
    }
#endif
  }

  extents_of<Rank> extents_{};
  layout<Rank> layout_{};
  index_t before_ = 0;
  std::size_t size_ = 0;
  std::unique_ptr<T[]> memory_,
      snapshot_;  // no vectors: a vector of bool has no elements to point at
};

}  // namespace support
