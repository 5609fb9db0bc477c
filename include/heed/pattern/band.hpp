#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>

namespace heed {

/// A reach without end, for sliding_window.
inline constexpr index_t unbounded = -1;

/// Keys within reach of the query's position p: p - left <= key <= p + right. Both reaches are
/// inclusive, so `{.left = 255, .right = 0}` is the 256 most recent keys, the query's own included;
/// `unbounded` (the default) lifts a side.
struct sliding_window {
  index_t left = unbounded;
  index_t right = unbounded;

  template <class I>
  constexpr auto keep(I query, I key) const {
    using number = decltype(scalar_of(query));
    auto const before = static_cast<number>(left < 0 ? far : left);
    auto const after = static_cast<number>(right < 0 ? far : right);
    return detail::both(key >= query - I(before), key <= query + I(after));
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    if (queries.empty()) return {};
    return intersect(
        interval{left < 0 ? 0 : queries.first - left, right < 0 ? count : queries.last + right},
        interval{0, count});
  }
  constexpr coverage cover(interval queries, interval keys) const {
    index_t const first = queries.first, last = queries.last - 1;
    if ((left >= 0 && keys.last - 1 < first - left) || (right >= 0 && keys.first > last + right))
      return coverage::none;
    if ((left < 0 || keys.first >= last - left) && (right < 0 || keys.last - 1 <= first + right))
      return coverage::all;
    return coverage::some;
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    // The positions that meet a key are consecutive too.
    index_t const before = right < 0 ? far : right, after = left < 0 ? far : left;
    if (detail::consecutive(queries)) {
      for (index_t key = keys.first; key < keys.last; ++key)
        rows[key - keys.first] =
            detail::bit_range(key - before - queries[0], key + after + 1 - queries[0]);
    } else {
      for (index_t key = keys.first; key < keys.last; ++key)
        rows[key - keys.first] = detail::bits_of(
            queries, [&](index_t p) { return p >= key - before && p <= key + after; });
    }
  }
  constexpr index_t pairs(index_t rows, index_t count) const {
    index_t const shift = count - rows;  // of the first query
    return (right < 0 ? rows * count : detail::clamped_sum(shift + right + 1, rows, count)) -
           (left < 0 ? 0 : detail::clamped_sum(shift - left, rows, count));
  }

 private:
  // Beyond every distance between two positions, and exact in a float.
  static constexpr index_t far = index_t{1} << 30;

  static constexpr index_t scalar_of(index_t);
  template <class Batch>
  static constexpr typename Batch::value_type scalar_of(Batch);
};

/// A query meets the keys up to its own position: key <= p. With fewer queries than keys the last
/// query stands at the last key; `top_left` moves the first query to the first key instead.
struct causal {
  template <class I>
  static constexpr auto keep(I query, I key) {
    return key <= query;
  }
  static constexpr interval_set keys(interval queries, index_t count) {
    return sliding_window{unbounded, 0}.keys(queries, count);
  }
  static constexpr coverage cover(interval queries, interval keys) {
    return sliding_window{unbounded, 0}.cover(queries, keys);
  }
  static constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) {
    sliding_window{unbounded, 0}.mask(queries, keys, rows);
  }
  static constexpr index_t pairs(index_t rows, index_t count) {
    return sliding_window{unbounded, 0}.pairs(rows, count);
  }
};

}  // namespace heed
