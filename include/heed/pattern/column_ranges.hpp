#pragma once

#include <heed/pattern/placed_table.hpp>

namespace heed {

/// For each key, the ranges of query rows from which it is hidden (the start and end rows of FlashMask): documents,
/// prefixes, windows and shared contexts in four numbers a key.
///
///   columns         [batch or 1, head or 1, key, 4 or 2]: LTS, LTE, UTS, UTE hide the key from the rows [LTS, LTE)
///                   and [UTS, UTE). Of two numbers the second range (causal) or the outer ends (not causal) are left
///                   out: causal [LTS, LTE]; otherwise [LTS, UTE], the rows from LTS on and those before UTE
///   causal          hides a key from the queries before it as well: key > position
///   first_position  see placed_table.hpp
///
/// A panel of queries looks at the numbers of every key. For long sequences and few pairs, classify() the pattern
/// once.
struct column_ranges {
  tensor_view<index_t const, 4> columns;
  bool causal = false;
  std::optional<index_t> first_position = {};

  /// The ranges of one batch entry and head.
  struct table {
    index_t const* first;
    index_t key_stride;
    index_t number_stride;
    index_t key_count;
    bool two_numbers;
    bool causal;
    index_t diagonal;  // a causal key is met from row key + diagonal on

    constexpr bool keep(index_t row, index_t key) const {
      for (interval each : hidden(key))
        if (each.first <= row && row < each.last) return false;
      return true;
    }
    constexpr interval_set keys(interval rows, interval among) const {
      interval_set met;
      if (rows.empty()) return met;
      index_t const last = causal ? std::min(among.last, rows.last - diagonal) : among.last;
      interval run{among.first, among.first};
      for (index_t key = among.first; key < last; ++key) {
        if (visible(key, rows) == 0) {
          met.add(run);
          run.first = key + 1;
        }
        run.last = key + 1;
      }
      met.add({run.first, std::max(run.first, last)});
      return met;
    }
    /// Exact: a tile is full if every key is met by all rows, and empty if each by none.
    constexpr coverage cover(interval rows, interval keys) const {
      bool all = true, none = true;
      for (index_t key = keys.first; key < keys.last && (all || none); ++key) {
        index_t const met = visible(key, rows);
        all = all && met == rows.size();
        none = none && met == 0;
      }
      return none ? coverage::none : all ? coverage::all : coverage::some;
    }
    constexpr void mask(std::span<index_t const> rows, interval keys, std::uint64_t* bits) const {
      bool const are_consecutive = detail::consecutive(rows);
      for (index_t key = keys.first; key < keys.last; ++key) {
        std::uint64_t out = 0;
        for (interval each : hidden(key)) out |= detail::bits_in(rows, are_consecutive, each);
        bits[key - keys.first] = ~out;
      }
    }
    constexpr index_t pairs(interval rows, interval keys) const {
      index_t sum = 0;
      for (index_t key = keys.first; key < keys.last; ++key) sum += visible(key, rows);
      return sum;
    }

   private:
    static constexpr index_t far = index_t{1} << 40;  // beyond every row

    constexpr std::array<interval, 3> hidden(index_t key) const {
      index_t const* const numbers = first + key * key_stride;
      auto const number = [&](int n) { return numbers[n * number_stride]; };
      interval const before{-far, causal ? key + diagonal : -far};
      if (!two_numbers) return {{{number(0), number(1)}, {number(2), number(3)}, before}};
      if (causal) return {{{number(0), number(1)}, {0, 0}, before}};
      return {{{number(0), far}, {-far, number(1)}, before}};
    }

    /// How many of the rows meet a key.
    constexpr index_t visible(index_t key, interval rows) const {
      auto const ranges = hidden(key);
      index_t met = 0;
      for (index_t row = rows.first; row < rows.last;) {
        index_t next = rows.last;  // up to where nothing changes
        bool is_hidden = false;
        for (interval each : ranges) {
          if (each.first <= row && row < each.last) {
            next = is_hidden ? std::max(next, each.last) : each.last;
            is_hidden = true;
          } else if (!is_hidden && row < each.first && !each.empty()) {
            next = std::min(next, each.first);
          }
        }
        next = std::min(next, rows.last);
        if (!is_hidden) met += next - row;
        row = next;
      }
      return met;
    }
  };

  constexpr placed_table<table> bind(place const& where) const {
    auto placed = detail::place_table(
        table{columns.data() + detail::shared_offset(columns, where), columns.stride(2),
              columns.stride(3), columns.extent(2), columns.extent(3) == 2, causal, 0},
        where, first_position);
    placed.table.diagonal = placed.row_shift - placed.key_shift;
    return placed;
  }

  void check(call_shape const& shape) const {
    require(columns.extent(3) == 4 || columns.extent(3) == 2, [&] {
      return "column_ranges has shape " + shape_text(columns.extents()) +
             "; expected 4 numbers or 2 for each key on the last axis";
    });
    detail::check_shared_axes("column_ranges", columns, shape);
    index_t const keys = columns.extent(2);
    require(first_position ? keys >= shape.keys : keys == shape.keys, [&] {
      return "column_ranges has shape " + shape_text(columns.extents()) + "; expected " +
             std::to_string(shape.keys) + " keys on axis 2";
    });
    for (index_t b = 0; b < columns.extent(0); ++b)
      for (index_t h = 0; h < columns.extent(1); ++h)
        for (index_t j = 0; j < keys; ++j) check_key(b, h, j);
  }

 private:
  void check_key(index_t b, index_t h, index_t j) const {
    auto const ordered = [&](int n) {
      require(0 <= columns(b, h, j, n) && columns(b, h, j, n) <= columns(b, h, j, n + 1), [&] {
        return "column_ranges hides key " + std::to_string(j) + " of head " + std::to_string(h) +
               ", batch " + std::to_string(b) + ", from the rows " +
               detail::text({columns(b, h, j, n), columns(b, h, j, n + 1)}) +
               "; expected 0 <= start <= end";
      });
    };
    if (columns.extent(3) == 4 || causal) ordered(0);
    if (columns.extent(3) == 4) ordered(2);
  }
};

}  // namespace heed
