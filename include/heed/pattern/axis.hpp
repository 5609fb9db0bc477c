#pragma once

#include <heed/pattern/grid.hpp>

#include <string>

/// One axis of a neighborhood: which coordinates of keys a coordinate of a query meets. Windows of an axis
/// begin and end no earlier for later queries, and leave no gap between neighbours.
namespace heed {

/// An axis without dilation. Each query meets the `window` coordinates around its own, or around the leader of
/// its group of `stride`; at a border the window moves inward. A causal axis ends at the query instead.
struct window_axis {
  index_t length = 0;
  index_t window = 1;
  index_t stride = 1;
  bool causal = false;

  constexpr index_t queries() const { return length; }

  /// The coordinates that the query at c meets.
  [[gnu::always_inline]] constexpr interval window_of(index_t c) const {
    index_t const group = stride == 1 ? c : c / stride * stride;
    if (causal) {
      index_t const leader = std::min(group + stride - 1, length - 1);
      return {std::max(leader - window + 1, index_t{0}), c + 1};
    }
    index_t const leader = std::min(group + stride / 2, length - 1);
    index_t const start = std::clamp(leader - window / 2, index_t{0}, length - window);
    return {start, start + window};
  }

  /// The queries that meet the key at c.
  constexpr interval queries_of(index_t c) const {
    if (causal) return {c, c + window >= length ? length : (c + window) / stride * stride};
    index_t const left = window / 2, right = window - 1 - left, middle = stride / 2;
    auto const group_from = [&](index_t x) { return (x + stride - 1) / stride * stride; };
    return {c < window ? 0 : group_from(c - right - middle),
            c >= length - window ? length : std::min(length, group_from(c + 1 + left - middle))};
  }

  /// The number of pairs that meet.
  constexpr index_t pairs() const {
    if (!causal) return length * window;
    if (stride == 1) return window * length - window * (window - 1) / 2;
    index_t sum = 0;
    for (index_t c = 0; c < length; ++c) sum += window_of(c).size();
    return sum;
  }
};

/// An axis of `length` coordinates, of which those that are equal modulo `dilation` are a group: an axis of its
/// own, without dilation, in which the coordinate y is number y / dilation.
struct neighborhood_axis {
  index_t length = 0;
  index_t window = 1;
  index_t stride = 1;
  index_t dilation = 1;
  bool causal = false;

  constexpr index_t group_length(index_t group) const {
    return length / dilation + (group < length % dilation ? 1 : 0);
  }
  constexpr window_axis group(index_t group) const {
    return {group_length(group), window, stride, causal};
  }

  /// What the query at y meets, and the queries that meet the key at y: numbers in y's group.
  constexpr interval window_of(index_t y) const {
    return group(y % dilation).window_of(y / dilation);
  }
  constexpr interval queries_of(index_t y) const {
    return group(y % dilation).queries_of(y / dilation);
  }

  /// The sum of f(group) over the groups, which come in two lengths.
  template <class F>
  constexpr auto sum_over_groups(F f) const {
    index_t const longer = length % dilation, shorter = dilation - longer;
    auto sum = f(group(dilation - 1)) * shorter;
    if (longer > 0) sum += f(group(0)) * longer;
    return sum;
  }

  constexpr index_t pairs() const {
    return sum_over_groups([](window_axis const& each) { return each.pairs(); });
  }

  /// Throws heed::error unless 1 <= stride <= window and 1 <= window * dilation <= length. `number` is the axis's.
  void check(std::size_t number) const {
    auto const expect = [&](char const* name, index_t value, index_t most, char const* most_name) {
      require(value >= 1 && value <= most, [&] {
        return "neighborhood." + std::string(name) + " of axis " + std::to_string(number) + " is " +
               std::to_string(value) + "; expected 1 to " + std::to_string(most) + " (" +
               most_name + ")";
      });
    };
    require(length >= 1, [&] {
      return "neighborhood.canvas of axis " + std::to_string(number) + " is " +
             std::to_string(length) + "; expected at least 1";
    });
    expect("dilation", dilation, length, "canvas");
    expect("window", window, length / dilation, "canvas / dilation");
    expect("stride", stride, window, "window");
  }
};

}  // namespace heed
