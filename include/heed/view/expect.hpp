#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <string>

/// What a call expects of its arguments; each throws heed::error with the argument's name, its shape and what was expected.
namespace heed::detail {

/// A tensor_view of any type and rank, as far as its shape goes: a check is compiled once for all. Lasts as long as the
/// view that it was made of.
class any_tensor {
 public:
  template <class T, int Rank>
  any_tensor(tensor_view<T, Rank> const& view)
      : has_memory_(view.data() != nullptr), extents_(view.extents()), strides_(view.strides()) {}

  bool has_memory() const { return has_memory_; }
  std::span<index_t const> extents() const { return extents_; }
  int rank() const { return static_cast<int>(extents_.size()); }
  index_t extent(int axis) const { return extents_[static_cast<std::size_t>(axis)]; }
  index_t stride(int axis) const { return strides_[static_cast<std::size_t>(axis)]; }
  index_t size() const {
    index_t count = 1;
    for (index_t extent : extents_) count *= extent;
    return count;
  }

 private:
  bool has_memory_;
  std::span<index_t const> extents_, strides_;
};

inline void expect_extent(char const* name, any_tensor const& view, int axis, index_t expected,
                          char const* axis_name) {
  require(view.extent(axis) == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           std::to_string(expected) + " for axis " + std::to_string(axis) + " (" + axis_name + ")";
  });
}

inline void expect_like(char const* name, any_tensor const& view,
                        std::array<index_t, 4> const& expected, char const* like) {
  require(std::ranges::equal(view.extents(), expected), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected that of " +
           like + ", " + shape_text(expected);
  });
}

inline void expect_memory(char const* name, any_tensor const& view) {
  require(view.has_memory() || view.size() == 0, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + " and no memory";
  });
}

inline void expect_distinct_elements(char const* name, any_tensor const& view) {
  for (int axis = 0; axis < view.rank(); ++axis)
    require(view.extent(axis) <= 1 || view.stride(axis) != 0 || view.size() == 0, [&] {
      return std::string(name) + " is written to, and has stride 0 along axis " +
             std::to_string(axis) + " of shape " + shape_text(view.extents());
    });
}

/// Heads (axis 2) that each serve as many of `heads`, which are those `of` another tensor.
inline void expect_divisor(char const* name, any_tensor const& view, index_t heads,
                           char const* of) {
  index_t const count = view.extent(2);
  require(heads == 0 || (count > 0 && heads % count == 0), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + ": " +
           std::to_string(count) + " heads; expected a divisor of the " + std::to_string(heads) +
           " heads of " + of;
  });
}

inline void expect_no_negative_extent(char const* name, any_tensor const& view) {
  for (index_t extent : view.extents())
    require(extent >= 0, [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) +
             "; expected no negative extent";
    });
}

/// Query, key and value [batch, position, head, dim] of one call: values stand where keys do.
inline void expect_operands(any_tensor const& query, any_tensor const& key,
                            any_tensor const& value) {
  auto const each = [&](auto expect) {
    expect("query", query), expect("key", key), expect("value", value);
  };
  each(expect_no_negative_extent);
  each(expect_memory);
  expect_extent("key", key, 0, query.extent(0), "batch, that of query");
  expect_extent("value", value, 0, query.extent(0), "batch, that of query");
  expect_extent("value", value, 1, key.extent(1), "position, that of key");
}

}  // namespace heed::detail
