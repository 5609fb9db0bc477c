#pragma once

#include <heed/view/error.hpp>

#include <array>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

namespace heed {

/// Extents, strides and positions. Signed, so that differences of positions are numbers too.
using index_t = std::ptrdiff_t;

/// A non-owning, strided view of a tensor: a pointer, `Rank` extents and `Rank` strides, counted in
/// elements. Strides are free: zero broadcasts an axis, a negative one reverses it.
///
/// Attention tensors have the axes [batch, position, head, dim] in that order whatever their layout in
/// memory is; `bnhd` and `bhnd` build such views for the two usual layouts.
template <class T, int Rank>
class tensor_view {
 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using index_array = std::array<index_t, static_cast<std::size_t>(Rank)>;
  static constexpr int rank = Rank;

  /// A view of nothing: data() is null and every extent is 0.
  constexpr tensor_view() = default;

  /// Views `extents` elements at `data`, the last axis contiguous.
  constexpr tensor_view(T* data, index_array const& extents) : data_(data), extents_(extents) {
    index_t stride = 1;
    for (std::size_t axis = extents.size(); axis-- > 0;) {
      strides_[axis] = stride;
      stride *= extents[axis];
    }
  }

  constexpr tensor_view(T* data, index_array const& extents, index_array const& strides)
      : data_(data), extents_(extents), strides_(strides) {}

  /// Views a span, the last axis contiguous. Throws heed::error if the span is too short.
  constexpr tensor_view(std::span<T> data, index_array const& extents)
      : tensor_view(data.data(), extents) {
    require(static_cast<index_t>(data.size()) >= size(), [&] {
      return "a span of " + std::to_string(data.size()) +
             " elements cannot hold a tensor of shape " + shape_text(extents);
    });
  }

  /// A view of mutable elements is also a view of constant ones.
  template <class U>
    requires(!std::is_same_v<U, T> && std::is_convertible_v<U (*)[], T (*)[]>)
  constexpr tensor_view(tensor_view<U, Rank> const& other)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  constexpr T* data() const { return data_; }
  constexpr index_array const& extents() const { return extents_; }
  constexpr index_array const& strides() const { return strides_; }
  constexpr index_t extent(int axis) const { return extents_[static_cast<std::size_t>(axis)]; }
  constexpr index_t stride(int axis) const { return strides_[static_cast<std::size_t>(axis)]; }

  /// The number of elements.
  constexpr index_t size() const {
    index_t count = 1;
    for (index_t extent : extents_) count *= extent;
    return count;
  }

  template <class... Index>
    requires(sizeof...(Index) == Rank)
  constexpr T& operator()(Index... at) const {
    index_t offset = 0;
    std::size_t axis = 0;
    ((offset += static_cast<index_t>(at) * strides_[axis++]), ...);
    return data_[offset];
  }

  /// The same elements with two axes exchanged.
  constexpr tensor_view swap_axes(int a, int b) const {
    tensor_view view = *this;
    std::swap(view.extents_[static_cast<std::size_t>(a)],
              view.extents_[static_cast<std::size_t>(b)]);
    std::swap(view.strides_[static_cast<std::size_t>(a)],
              view.strides_[static_cast<std::size_t>(b)]);
    return view;
  }

  /// Positions [first, first + count) of one axis. Throws heed::error if they are not all there.
  constexpr tensor_view slice(int axis, index_t first, index_t count) const {
    require(first >= 0 && count >= 0 && first + count <= extent(axis), [&] {
      return "slice [" + std::to_string(first) + ", " + std::to_string(first + count) +
             ") of axis " + std::to_string(axis) + " of a tensor of shape " + shape_text(extents_);
    });
    tensor_view view = *this;
    view.data_ += first * stride(axis);
    view.extents_[static_cast<std::size_t>(axis)] = count;
    return view;
  }

 private:
  T* data_ = nullptr;
  index_array extents_{};
  index_array strides_{};
};

/// Views memory laid out as [batch, position, head, dim].
template <class T>
constexpr tensor_view<T, 4> bnhd(T* data, index_t batch, index_t positions, index_t heads,
                                 index_t dim) {
  return {data, {batch, positions, heads, dim}};
}

/// Views memory laid out as [batch, head, position, dim]; the axes of the view are
/// [batch, position, head, dim] as everywhere.
template <class T>
constexpr tensor_view<T, 4> bhnd(T* data, index_t batch, index_t heads, index_t positions,
                                 index_t dim) {
  return tensor_view<T, 4>(data, {batch, heads, positions, dim}).swap_axes(1, 2);
}

}  // namespace heed
