#pragma once

#include <heed/pattern/grid.hpp>
#include <heed/pattern/pattern.hpp>

#include <array>
#include <cstdint>
#include <span>

/// Queries in boxes: queries that stand together on a canvas look at nearly the same keys, so that a panel
/// of them reads each key once.
namespace heed {

/// One axis of queries cut into boxes of `tile` coordinates. Boxes begin anew at each multiple of `period`,
/// so that none holds queries of two periods; the last box of a period, and of the axis, may be smaller.
class boxed_axis {
 public:
  constexpr boxed_axis() = default;
  constexpr boxed_axis(index_t length, index_t tile, index_t period)
      : length_(length), tile_(tile), period_(std::min(period, length)) {
    per_period_ = (period_ + tile - 1) / tile;
    boxes_ = length / period_ * per_period_ + (length % period_ + tile - 1) / tile;
  }

  constexpr index_t length() const { return length_; }
  constexpr index_t tile() const { return tile_; }
  constexpr index_t boxes() const { return boxes_; }

  /// Whether boxes follow one another without padding.
  constexpr bool gapless() const { return boxes_ == per_period_ || period_ % tile_ == 0; }

  /// The coordinates of a box.
  constexpr interval box(index_t number) const {
    index_t const period = boxes_ == per_period_ ? 0 : number / per_period_;
    index_t const first = period * period_ + (number - period * per_period_) * tile_;
    return {first, std::min({first + tile_, (period + 1) * period_, length_})};
  }

 private:
  index_t length_ = 1, tile_ = 1, period_ = 1, per_period_ = 1, boxes_ = 1;
};

/// An order of queries: box after box, row-major inside. Every box has as many slots as the tile, and those
/// without a query, at ragged borders, are padding: they stand where the box's last query of that axis does, so
/// that what a box meets is what its queries meet.
template <std::size_t d>
struct box_order {
  std::array<boxed_axis, d> axes{};

  constexpr grid_point<d> tile() const {
    return each_axis([](boxed_axis const& axis) { return axis.tile(); });
  }
  constexpr grid_point<d> boxes() const {
    return each_axis([](boxed_axis const& axis) { return axis.boxes(); });
  }
  constexpr index_t slots() const { return grid_size(boxes()) * grid_size(tile()); }

  /// The place on the canvas of the query at a slot.
  constexpr grid_point<d> place(index_t slot) const {
    index_t const lanes = grid_size(tile());
    grid_box<d> const around = box(slot / lanes);
    grid_point<d> at = grid_place(tile(), slot % lanes);
    for (std::size_t a = 0; a < d; ++a)
      at[a] = std::min(around[a].first + at[a], around[a].last - 1);
    return at;
  }

  /// The tokens at a slot and after it, as far as they are consecutive, where the queries are those of a lattice. Runs
  /// along the last axis; slots of padding are below 0.
  constexpr token_run run(lattice<d> const& tokens, index_t slot) const {
    grid_point<d> const shape = tile();
    index_t const lanes = grid_size(shape), number = slot / lanes, lane = slot - number * lanes;
    grid_box<d> const around = box(number);
    if (index_t const padding = padding_from(lane, around); padding > 0) return {-1, padding};
    grid_point<d> at = grid_place(shape, lane);
    for (std::size_t a = 0; a < d; ++a) at[a] += around[a].first;
    // Boxes of a single line follow one another along it.
    boxed_axis const& last = axes[d - 1];
    bool const line = lanes == last.tile() && last.gapless();
    return {tokens.token(at), (line ? last.length() : around[d - 1].last) - at[d - 1],
            tokens.step[d - 1]};
  }

  /// The coordinates of the queries of box `number`.
  constexpr grid_box<d> box(index_t number) const {
    grid_point<d> const at = grid_place(boxes(), number);
    grid_box<d> around;
    for (std::size_t a = 0; a < d; ++a) around[a] = axes[a].box(at[a]);
    return around;
  }

  /// Calls f(box) for boxes of the canvas that together hold the queries at `slots`, which are not empty.
  template <class F>
  constexpr void each_box(interval slots, F f) const {
    grid_point<d> const shape = tile();
    index_t const lanes = grid_size(shape);
    auto const within = [&](index_t number, interval lane) {
      grid_box<d> const around = box(number);
      each_grid_box(shape, lane, [&](grid_box<d> part) {
        for (std::size_t a = 0; a < d; ++a) {
          index_t const end = around[a].last;
          part[a] = {std::min(around[a].first + part[a].first, end - 1),
                     std::min(around[a].first + part[a].last, end)};
        }
        f(part);
      });
    };
    index_t first = slots.first / lanes;
    index_t const last = slots.last / lanes;
    index_t const head = slots.first - first * lanes, tail = slots.last - last * lanes;
    if (head == 0 && slots.size() == lanes) return f(box(first));  // mostly
    if (first == last) return within(first, {head, tail});
    if (head > 0) within(first++, {head, lanes});
    if (first < last)
      each_grid_box(boxes(), {first, last}, [&](grid_box<d> part) {
        for (std::size_t a = 0; a < d; ++a)
          part[a] = {axes[a].box(part[a].first).first, axes[a].box(part[a].last - 1).last};
        f(part);
      });
    if (tail > 0) within(last, {0, tail});
  }

 private:
  /// The slots without a query from a lane of a box to the next query, or to the end of the box.
  constexpr index_t padding_from(index_t lane, grid_box<d> const& around) const {
    grid_point<d> const shape = tile();
    index_t const first = lane, lanes = grid_size(shape);
    while (lane < lanes) {
      grid_point<d> const at = grid_place(shape, lane);
      std::size_t a = 0;
      while (a < d && at[a] < around[a].size()) ++a;
      if (a == d) break;
      // To the end of this axis in the box.
      index_t inner = 1;
      for (std::size_t b = a + 1; b < d; ++b) inner *= shape[b];
      lane = (lane / (shape[a] * inner) + 1) * shape[a] * inner;
    }
    return lane - first;
  }

  template <class F>
  constexpr grid_point<d> each_axis(F f) const {
    grid_point<d> numbers;
    for (std::size_t a = 0; a < d; ++a) numbers[a] = f(axes[a]);
    return numbers;
  }
};

/// A pair is kept if every axis keeps its coordinates. Queries stand in an order of boxes and keys row-major.
///
/// An Axis has `length` coordinates of keys; window_of(c), the interval of them that the query at c meets, whose ends
/// do not decrease with c and leave no gap; and pairs().
template <class Axis, std::size_t d>
struct axis_product {
  std::array<Axis, d> axes{};
  box_order<d> queries{};

  constexpr bool keep(index_t query, index_t key) const {
    grid_point<d> const q = queries.place(inside(query)), k = grid_place(extents(), key);
    bool kept = true;
    for (std::size_t a = 0; a < d; ++a) {
      interval const window = axes[a].window_of(q[a]);
      kept &= window.first <= k[a] && k[a] < window.last;
    }
    return kept;
  }

  constexpr interval_set keys(interval slots, index_t count) const {
    if (slots.empty()) return {};
    grid_point<d> const shape = extents();
    interval_set set;
    queries.each_box(inside(slots), [&](grid_box<d> const& box) {
      grid_point<d> first, last;
      for (std::size_t a = 0; a < d; ++a) {
        interval const met = met_by_some(a, box[a]);
        first[a] = met.first;
        last[a] = met.last - 1;
      }
      set.add({grid_index(shape, first), std::min(grid_index(shape, last) + 1, count)});
    });
    return set;
  }

  /// Exact.
  constexpr coverage cover(interval slots, interval keys) const {
    bool meets = false, fills = true;
    queries.each_box(inside(slots), [&](grid_box<d> const& box) {
      grid_box<d> some, all;
      for (std::size_t a = 0; a < d; ++a) {
        some[a] = met_by_some(a, box[a]);
        all[a] = {axes[a].window_of(box[a].last - 1).first, axes[a].window_of(box[a].first).last};
      }
      each_grid_box(extents(), keys, [&](grid_box<d> const& part) {
        bool touches = true;
        for (std::size_t a = 0; a < d; ++a) {
          touches &= !intersect(some[a], part[a]).empty();
          fills &= all[a].first <= part[a].first && part[a].last <= all[a].last;
        }
        meets |= touches;
      });
    });
    if (!meets) return coverage::none;
    return fills ? coverage::all : coverage::some;
  }

  /// Exactly the keys that some of the queries meet.
  constexpr interval next_keys(interval slots, index_t from, index_t count) const {
    slots = inside(slots);
    int boxes = 0;
    interval run = next_run_of_boxes(slots, from, boxes);
    // Another box may go on where this run ends.
    while (boxes > 1 && !run.empty() && run.last < count) {
      interval const more = next_run_of_boxes(slots, run.last, boxes);
      if (more.empty() || more.first > run.last) break;
      run.last = more.last;
    }
    return intersect(run, {0, count});
  }

  /// The runs of a whole box are found together.
  std::size_t list_keys(interval slots, index_t from, index_t count,
                        std::span<interval> runs) const {
    slots = inside(slots);
    index_t const lanes = grid_size(queries.tile());
    bool const one_box = slots.first % lanes == 0 && slots.size() == lanes;
    grid_box<d> box{};
    if (one_box) {
      box = queries.box(slots.first / lanes);
      for (std::size_t a = 0; a < d; ++a) box[a] = met_by_some(a, box[a]);
    }
    grid_point<d> const shape = extents();
    std::size_t number = 0;
    for (; number < runs.size() && from < count; ++number) {
      interval const run = one_box ? intersect(next_in_box(shape, box, from), {0, count})
                                   : next_keys(slots, from, count);
      if (run.empty()) break;
      runs[number] = run;
      from = run.last;
    }
    return number;
  }

  void mask(std::span<index_t const> slots, interval keys, std::uint64_t* rows) const {
    mask_runs(slots, {&keys, 1}, rows);
  }
  void mask_runs(std::span<index_t const> slots, std::span<interval const> runs,
                 std::uint64_t* rows) const {
    if (slots.empty()) return;
    index_t const lanes = grid_size(queries.tile());
    index_t const first = slots.front(), count = static_cast<index_t>(slots.size());
    bool one_box = first >= 0 && first % lanes + count <= lanes && first < queries.slots();
    for (std::size_t q = 1; q < slots.size(); ++q)
      one_box &= slots[q] == first + static_cast<index_t>(q);
    shared_windows windows[d];
    one_box ? windows_of_box(first, count, windows) : windows_of_any(slots, windows);
    line_mask inner;
    for (interval run : runs) {
      mask_of_windows(windows, inner, run, rows);
      rows += run.size();
    }
  }

  /// The number of pairs, of which padding has none.
  constexpr index_t pairs() const {
    index_t pairs = 1;
    for (Axis const& axis : axes) pairs *= axis.pairs();
    return pairs;
  }

 private:
  /// Windows on one axis, and which queries have each. (As three arrays: g++ 12 writes a window as two numbers and
  /// moves it as one, which stalls.)
  struct shared_windows {
    std::size_t count;
    index_t first[64], last[64];
    std::uint64_t queries[64];

    void set(std::size_t n, interval window, std::uint64_t who) {
      first[n] = window.first;
      last[n] = window.last;
      queries[n] = who;
    }
  };

  constexpr grid_point<d> extents() const {
    grid_point<d> extents;
    for (std::size_t a = 0; a < d; ++a) extents[a] = axes[a].length;
    return extents;
  }

  // Slots beyond the last stand where it does, and those before the first where that does.
  constexpr index_t inside(index_t slot) const {
    return std::clamp(slot, index_t{0}, queries.slots() - 1);
  }
  constexpr interval inside(interval slots) const {
    return {inside(slots.first), inside(slots.last - 1) + 1};
  }

  constexpr interval met_by_some(std::size_t axis, interval coordinates) const {
    return {axes[axis].window_of(coordinates.first).first,
            axes[axis].window_of(coordinates.last - 1).last};
  }

  /// The earliest run of the boxes that the slots stand in, and their number.
  constexpr interval next_run_of_boxes(interval slots, index_t from, int& boxes) const {
    grid_point<d> const shape = extents();
    interval next{};
    boxes = 0;
    if (from >= grid_size(shape)) return next;
    queries.each_box(slots, [&](grid_box<d> box) {
      ++boxes;
      for (std::size_t a = 0; a < d; ++a) box[a] = met_by_some(a, box[a]);
      interval const run = next_in_box(shape, box, from);
      if (run.empty()) return;
      if (next.empty() || run.first < next.first ||
          (run.first == next.first && run.last > next.last))
        next = run;
    });
    return next;
  }

  /// What the last axis alone says of some of its coordinates. The lines that a box meets are alike.
  struct line_mask {
    static constexpr index_t most = 64;
    interval coordinates{};
    std::uint64_t rows[most];

    void set(shared_windows const& windows, interval line) {
      if (line.first == coordinates.first && line.last == coordinates.last) return;
      coordinates = line;
      // A bit changes where its query's window begins and ends.
      std::fill_n(rows, line.size(), std::uint64_t{0});
      for (std::size_t w = 0; w < windows.count; ++w) {
        index_t const begin = std::max(windows.first[w] - line.first, index_t{0});
        index_t const end = std::max(windows.last[w] - line.first, index_t{0});
        if (begin < line.size()) rows[begin] ^= windows.queries[w];
        if (end < line.size()) rows[end] ^= windows.queries[w];
      }
      for (index_t k = 1; k < line.size(); ++k) rows[k] ^= rows[k - 1];
    }
  };

  /// rows of the keys, from the windows of each axis.
  void mask_of_windows(shared_windows const (&windows)[d], line_mask& inner, interval keys,
                       std::uint64_t* rows) const {
    grid_point<d> const shape = extents();
    for (index_t key = keys.first; key < keys.last;) {
      grid_point<d> const at = grid_place(shape, key);
      index_t const length = std::min({shape[d - 1] - at[d - 1], keys.last - key, line_mask::most});
      std::uint64_t outer = ~std::uint64_t{0};
      for (std::size_t a = 0; a + 1 < d; ++a) {
        std::uint64_t met = 0;
        for (std::size_t w = 0; w < windows[a].count; ++w)
          if (windows[a].first[w] <= at[a] && at[a] < windows[a].last[w])
            met |= windows[a].queries[w];
        outer &= met;
      }
      inner.set(windows[d - 1], {at[d - 1], at[d - 1] + length});
      for (index_t k = 0; k < length; ++k) *rows++ = inner.rows[k] & outer;
      key += length;
    }
  }

  /// Consecutive slots of one box share their windows: one for each coordinate of an axis.
  void windows_of_box(index_t first, index_t count, shared_windows (&windows)[d]) const {
    index_t const lanes = grid_size(queries.tile());
    grid_box<d> const around = queries.box(first / lanes);
    index_t const skipped = first % lanes;
    std::uint64_t const present = ~std::uint64_t{0} >> (64 - count);
    index_t inner = 1;
    for (std::size_t a = d; a-- > 0;) {
      index_t const tile = queries.axes[a].tile();
      // The slots with coordinate 0 on this axis; those with coordinate t follow t * inner later.
      std::uint64_t const block = ~std::uint64_t{0} >> (64 - inner);
      std::uint64_t zero = 0;
      for (index_t lane = 0; lane < lanes; lane += tile * inner) zero |= block << lane;
      windows[a].count = static_cast<std::size_t>(tile);
      for (index_t t = 0; t < tile; ++t) {
        index_t const at = std::min(around[a].first + t, around[a].last - 1);
        windows[a].set(static_cast<std::size_t>(t), axes[a].window_of(at),
                       zero << (t * inner) >> skipped & present);
      }
      inner *= tile;
    }
  }

  void windows_of_any(std::span<index_t const> slots, shared_windows (&windows)[d]) const {
    for (shared_windows& each : windows) each.count = slots.size();
    for (std::size_t q = 0; q < slots.size(); ++q) {
      grid_point<d> const at = queries.place(inside(slots[q]));
      for (std::size_t a = 0; a < d; ++a)
        windows[a].set(q, axes[a].window_of(at[a]), std::uint64_t{1} << q);
    }
  }
};

/// A shape of query tile: its extents, and where its boxes begin anew.
template <std::size_t d>
struct query_tile {
  grid_point<d> tile{};
  grid_point<d> period{};
  double kept_share =
      0;  // of the pairs of a slot and a key that its box meets; a bound on efficiency
};

namespace detail {

inline void expect_lanes(char const* name, index_t lanes) {
  require(lanes >= 1 && lanes <= 64, [&] {
    return std::string(name) + " has lanes " + std::to_string(lanes) + "; expected 1 to 64";
  });
}

/// The keys that the boxes of an axis meet, summed over boxes.
template <class Axis>
constexpr index_t keys_of_boxes(Axis const& axis, boxed_axis const& boxes) {
  index_t keys = 0;
  for (index_t b = 0; b < boxes.boxes(); ++b) {
    interval const box = boxes.box(b);
    keys += axis.window_of(box.last - 1).last - axis.window_of(box.first).first;
  }
  return keys;
}

/// Calls f(tile) for each shape of `lanes` slots.
template <std::size_t axis, std::size_t d, class F>
constexpr void each_tile(grid_point<d>& tile, index_t lanes, F& f) {
  if constexpr (axis + 1 == d) {
    tile[axis] = lanes;
    f(tile);
  } else {
    for (index_t size = 1; size <= lanes; ++size)
      if (lanes % size == 0) {
        tile[axis] = size;
        each_tile<axis + 1>(tile, lanes / size, f);
      }
  }
}

/// The tile of `lanes` queries with the largest share of kept pairs. cost(axis, tile, period) is the number of keys
/// that boxes meet on an axis; its periods are the whole axis, or `aligned`.
template <std::size_t d, class Cost>
constexpr query_tile<d> best_tile(index_t lanes, double pairs, grid_point<d> const& whole,
                                  grid_point<d> const& aligned, Cost cost) {
  query_tile<d> best;
  auto const consider = [&](grid_point<d> const& tile) {
    query_tile<d> candidate{tile, whole, 0};
    double slots_and_keys = static_cast<double>(lanes);
    for (std::size_t a = 0; a < d; ++a) {
      index_t const free = cost(a, tile[a], whole[a]);
      index_t const kept_apart = aligned[a] > 1 ? cost(a, tile[a], aligned[a]) : free;
      if (kept_apart < free) candidate.period[a] = aligned[a];
      slots_and_keys *= static_cast<double>(std::min(free, kept_apart));
    }
    candidate.kept_share = pairs / slots_and_keys;
    if (candidate.kept_share > best.kept_share) best = candidate;
  };
  grid_point<d> tile{};
  each_tile<0>(tile, lanes, consider);
  return best;
}

}  // namespace detail

}  // namespace heed
