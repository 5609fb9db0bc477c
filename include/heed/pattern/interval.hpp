#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <array>

namespace heed {

/// The integers [first, last).
struct interval {
  index_t first = 0;
  index_t last = 0;

  constexpr bool empty() const { return first >= last; }
  constexpr index_t size() const { return empty() ? 0 : last - first; }
};

/// What two intervals share; empty, with first >= last, if nothing.
constexpr interval intersect(interval a, interval b) {
  return {std::max(a.first, b.first), std::min(a.last, b.last)};
}

/// A few sorted, disjoint, non-touching intervals. Where more than `capacity` would be needed, the two
/// with the smallest gap between them are joined: the set may grow by that, and never loses a member.
class interval_set {
 public:
  static constexpr int capacity = 8;

  constexpr interval_set() = default;
  constexpr interval_set(interval only) { add(only); }

  constexpr interval const* begin() const { return items_.data(); }
  constexpr interval const* end() const { return items_.data() + count_; }
  constexpr bool empty() const { return count_ == 0; }

  /// The smallest interval around the set.
  constexpr interval hull() const {
    return empty() ? interval{} : interval{items_[0].first, items_[at(count_ - 1)].last};
  }

  /// The smallest interval around what the set and `frame` share.
  constexpr interval hull_within(interval frame) const {
    interval around{frame.last, frame.first};
    for (interval item : *this) {
      interval const part = intersect(item, frame);
      if (!part.empty())
        around = {std::min(around.first, part.first), std::max(around.last, part.last)};
    }
    return around;
  }

  /// Leaves out what lies beyond `frame`.
  constexpr void clip(interval frame) {
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      interval const part = intersect(items_[at(i)], frame);
      if (!part.empty()) items_[at(kept++)] = part;
    }
    count_ = kept;
  }

  /// Adds an interval in any order, joining what it touches.
  constexpr void add(interval next) {
    if (next.empty()) return;
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      interval const item = items_[at(i)];
      if (item.last < next.first || next.last < item.first) {
        items_[at(kept++)] = item;
      } else {
        next = {std::min(item.first, next.first), std::max(item.last, next.last)};
      }
    }
    int place = kept;
    for (; place > 0 && items_[at(place - 1)].first > next.first; --place)
      items_[at(place)] = items_[at(place - 1)];
    items_[at(place)] = next;
    count_ = kept + 1;
    if (count_ > capacity) join_closest();
  }

  friend constexpr interval_set operator|(interval_set a, interval_set const& b) {
    for (interval item : b) a.add(item);
    return a;
  }

  friend constexpr interval_set operator&(interval_set const& a, interval_set const& b) {
    interval_set both;
    for (interval x : a)
      for (interval y : b) both.add(intersect(x, y));
    return both;
  }

 private:
  static constexpr std::size_t at(int i) { return static_cast<std::size_t>(i); }

  constexpr void join_closest() {
    int closest = 0;
    auto gap = [this](int i) { return items_[at(i + 1)].first - items_[at(i)].last; };
    for (int i = 1; i + 1 < count_; ++i)
      if (gap(i) < gap(closest)) closest = i;
    items_[at(closest)].last = items_[at(closest + 1)].last;
    for (int i = closest + 1; i + 1 < count_; ++i) items_[at(i)] = items_[at(i + 1)];
    --count_;
  }

  std::array<interval, capacity + 1> items_{};
  int count_ = 0;
};

}  // namespace heed
