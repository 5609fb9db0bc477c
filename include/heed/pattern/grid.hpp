#pragma once

#include <heed/pattern/place.hpp>

#include <algorithm>
#include <array>
#include <cstddef>

/// Tokens on a canvas of one to three axes, stored row-major: places, boxes, and lattices of them.
namespace heed {

/// A number for each of d axes: the extents of a canvas, a place on it, a size of window.
template <std::size_t d>
using grid_point = std::array<index_t, d>;

/// An interval for each of d axes.
template <std::size_t d>
using grid_box = std::array<interval, d>;

/// The same number for each of d axes.
template <std::size_t d>
constexpr grid_point<d> all_axes(index_t number) {
  grid_point<d> point;
  point.fill(number);
  return point;
}

/// The number of places on a canvas.
template <std::size_t d>
constexpr index_t grid_size(grid_point<d> const& extents) {
  index_t size = 1;
  for (index_t extent : extents) size *= extent;
  return size;
}

/// The place of which the row-major number is `index`, and back.
template <std::size_t d>
constexpr grid_point<d> grid_place(grid_point<d> const& extents, index_t index) {
  grid_point<d> at;
  for (std::size_t axis = d; axis-- > 1;) {
    index_t const outer = index / extents[axis];
    at[axis] = index - outer * extents[axis];
    index = outer;
  }
  at[0] = index;
  return at;
}
template <std::size_t d>
constexpr index_t grid_index(grid_point<d> const& extents, grid_point<d> const& at) {
  index_t index = at[0];
  for (std::size_t axis = 1; axis < d; ++axis) index = index * extents[axis] + at[axis];
  return index;
}

namespace detail {

template <std::size_t axis, std::size_t d, class F>
constexpr void each_box_from(grid_point<d> const& extents, interval indices, grid_box<d>& box,
                             F& f) {
  if constexpr (axis + 1 == d) {
    box[axis] = indices;
    f(box);
  } else {
    index_t inner = 1;
    for (std::size_t a = axis + 1; a < d; ++a) inner *= extents[a];
    index_t first = indices.first / inner;
    index_t const last = indices.last / inner;
    index_t const head = indices.first - first * inner, tail = indices.last - last * inner;
    if (first == last) {
      box[axis] = {first, first + 1};
      each_box_from<axis + 1>(extents, {head, tail}, box, f);
      return;
    }
    if (head > 0) {
      box[axis] = {first, first + 1};
      each_box_from<axis + 1>(extents, {head, inner}, box, f);
      ++first;
    }
    if (first < last) {
      box[axis] = {first, last};
      for (std::size_t a = axis + 1; a < d; ++a) box[a] = {0, extents[a]};
      f(box);
    }
    if (tail > 0) {
      box[axis] = {last, last + 1};
      each_box_from<axis + 1>(extents, {0, tail}, box, f);
    }
  }
}

}  // namespace detail

/// Calls f(box) for each of at most 2 d - 1 boxes that together hold the places of the row-major numbers
/// `indices`, which are not empty.
template <std::size_t d, class F>
constexpr void each_grid_box(grid_point<d> const& extents, interval indices, F f) {
  grid_box<d> box;
  detail::each_box_from<0>(extents, indices, box, f);
}

/// The first row-major run of places of a box at or after the number `from`, empty if there is none. Axes that
/// the box holds whole join runs.
template <std::size_t d>
constexpr interval next_in_box(grid_point<d> const& extents, grid_box<d> const& box, index_t from) {
  std::size_t axis = d - 1;
  index_t inner = 1;
  for (; axis > 0 && box[axis].first == 0 && box[axis].last == extents[axis]; --axis)
    inner *= extents[axis];
  // A line is what the axis and those after it hold; a run is the box's share of one.
  interval const run{box[axis].first * inner, box[axis].last * inner};
  index_t const line_size = extents[axis] * inner;
  index_t line = from / line_size;
  index_t rest = from - line * line_size;
  grid_point<d> at{};
  for (std::size_t a = axis; a-- > 0;) {
    index_t const outer = a == 0 ? 0 : line / extents[a];
    at[a] = line - outer * extents[a];
    line = outer;
  }
  if (line > 0) return {};  // where the box has a single line, and that has passed

  std::size_t a = 0;
  while (a < axis && at[a] >= box[a].first && at[a] < box[a].last) ++a;
  if (a < axis && at[a] < box[a].first) {
    at[a] = box[a].first;
  } else if (a < axis || rest >= run.last) {
    do {
      if (a == 0) return {};
      --a;
    } while (at[a] + 1 >= box[a].last);
    ++at[a];
  } else {
    a = d;
  }
  if (a < d) {
    rest = 0;
    while (++a < axis) at[a] = box[a].first;
  }
  index_t start = 0;
  for (std::size_t b = 0; b < axis; ++b) start = start * extents[b] + at[b];
  start *= line_size;
  return {start + std::max(run.first, rest), start + run.last};
}

/// The places first + step * n, 0 <= n < count, along every axis of a canvas, numbered row-major.
template <std::size_t d>
struct lattice {
  grid_point<d> canvas{};
  grid_point<d> first{};
  grid_point<d> step = all_axes<d>(1);
  grid_point<d> count{};

  constexpr index_t size() const { return grid_size(count); }

  /// The token, the row-major number on the canvas, of a place of the lattice.
  constexpr index_t token(grid_point<d> at) const {
    for (std::size_t axis = 0; axis < d; ++axis) at[axis] = first[axis] + step[axis] * at[axis];
    return grid_index(canvas, at);
  }

  /// The tokens of the places number `slot` and after it: as many as are equally far apart.
  constexpr token_run run(index_t slot) const {
    index_t alike = count[d - 1];
    for (std::size_t axis = d - 1; axis > 0; --axis) {
      bool const whole = step[axis] == 1 && count[axis] == canvas[axis];
      if (!whole || (count[axis - 1] > 1 && step[axis - 1] != 1)) break;
      alike *= count[axis - 1];
    }
    index_t const between = step[d - 1];
    if (alike == size()) return {token({}) + slot * between, alike - slot, between};
    return {token(grid_place(count, slot)), alike - slot % alike, between};
  }
};

}  // namespace heed
