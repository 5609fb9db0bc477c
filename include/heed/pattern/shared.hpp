#pragma once

#include <heed/pattern/place.hpp>

/// Views of which the first two axes are batch and head, each with an extent of 1 where all share one.
namespace heed::detail {

/// Where the entry of a place lies in such a view.
template <class T, int Rank>
constexpr index_t shared_offset(tensor_view<T, Rank> const& view, place const& where) {
  return (view.extent(0) == 1 ? 0 : where.batch * view.stride(0)) +
         (view.extent(1) == 1 ? 0 : where.head * view.stride(1));
}

/// Whether its first two axes are those of a call.
template <class T, int Rank>
constexpr bool shares_axes(tensor_view<T, Rank> const& view, call_shape const& shape) {
  return (view.extent(0) == 1 || view.extent(0) == shape.batches) &&
         (view.extent(1) == 1 || view.extent(1) == shape.heads);
}

/// As an error names them.
inline std::string shared_axes_text(call_shape const& shape) {
  return "1 or " + std::to_string(shape.batches) + ", 1 or " + std::to_string(shape.heads);
}

template <class T, int Rank>
void check_shared_axes(char const* name, tensor_view<T, Rank> const& view,
                       call_shape const& shape) {
  auto const check = [&](int axis, char const* of, index_t expected) {
    require(view.extent(axis) == 1 || view.extent(axis) == expected, [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected 1 or " +
             std::to_string(expected) + " on axis " + std::to_string(axis) + " (" + of + ")";
    });
  };
  check(0, "batch", shape.batches);
  check(1, "head", shape.heads);
}

}  // namespace heed::detail
