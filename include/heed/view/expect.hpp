#pragma once

#include <heed/view/tensor_view.hpp>

/// What a call expects of its arguments; each throws heed::error with the argument's name, its shape and what was expected.
namespace heed::detail {

template <class View>
void expect_extent(char const* name, View const& view, int axis, index_t expected,
                   char const* axis_name) {
  require(view.extent(axis) == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           std::to_string(expected) + " for axis " + std::to_string(axis) + " (" + axis_name + ")";
  });
}

template <class View>
void expect_like(char const* name, View const& view, std::array<index_t, 4> const& expected,
                 char const* like) {
  require(view.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected that of " +
           like + ", " + shape_text(expected);
  });
}

template <class View>
void expect_memory(char const* name, View const& view) {
  require(view.data() != nullptr || view.size() == 0, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + " and no memory";
  });
}

template <class View>
void expect_distinct_elements(char const* name, View const& view) {
  for (int axis = 0; axis < View::rank; ++axis)
    require(view.extent(axis) <= 1 || view.stride(axis) != 0 || view.size() == 0, [&] {
      return std::string(name) + " is written to, and has stride 0 along axis " +
             std::to_string(axis) + " of shape " + shape_text(view.extents());
    });
}

}  // namespace heed::detail
