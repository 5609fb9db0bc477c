#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>
#include <heed/pattern/shared.hpp>

#include <array>
#include <optional>
#include <string>

/// Patterns that are written down: as rectangles, ranges, blocks or bits of a table with a row for each query
/// and a column for each key.
///
/// Row i of a table is query row i of the call, and column j its key j. Where packed documents share one table, rows
/// and columns are those of the packed tensors. A table that tells of more rows than the call has, in decoding or in
/// a chunk of a prompt, says at which position its row 0 stands: `.first_position = 0` for one over whole sequences.
/// So does one for queries aligned at the first key (top_left).
namespace heed {

/// A table as a pattern: positions and keys of the call, in; rows and columns of the table, inside. A Table has
///
///     bool keep(index_t row, index_t key) const;
///     coverage cover(interval rows, interval keys) const;
///
/// and what it likes of keys(rows, among), next_keys(rows, among), mask(rows, keys, bits) and pairs(rows, keys), where
/// `among` are the columns of the sequence.
template <class Table>
struct placed_table {
  Table table;
  index_t row_shift = 0;  // row = position + row_shift
  index_t key_shift = 0;  // column = key + key_shift

  constexpr bool keep(index_t query, index_t key) const {
    return table.keep(query + row_shift, key + key_shift);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return table.cover(shifted(queries, row_shift), shifted(keys, key_shift));
  }
  constexpr interval_set keys(interval queries, index_t count) const requires
      requires(Table const& t, interval i) {
    t.keys(i, i);
  }
  {
    interval_set met;
    for (interval each : table.keys(shifted(queries, row_shift), shifted({0, count}, key_shift)))
      met.add(shifted(each, -key_shift));
    return met;
  }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const requires
      requires(Table const& t, interval i) {
    t.next_keys(i, i);
  }
  {
    interval const run =
        table.next_keys(shifted(queries, row_shift), shifted({from, count}, key_shift));
    return run.empty() ? interval{} : shifted(run, -key_shift);
  }
  constexpr void mask(std::span<index_t const> queries, interval keys,
                      std::uint64_t* bits) const requires
      requires(Table const& t, std::span<index_t const> rows, std::uint64_t* to) {
    t.mask(rows, interval{}, to);
  }
  {
    if (row_shift == 0) return table.mask(queries, shifted(keys, key_shift), bits);
    std::array<index_t, 64> rows{};
    for (std::size_t q = 0; q < queries.size(); ++q) rows[q] = queries[q] + row_shift;
    table.mask(std::span(rows).first(queries.size()), shifted(keys, key_shift), bits);
  }
  constexpr index_t pairs(index_t rows, index_t keys) const requires
      requires(Table const& t, interval i) {
    t.pairs(i, i);
  }
  { return table.pairs(shifted({keys - rows, keys}, row_shift), shifted({0, keys}, key_shift)); }

 private:
  static constexpr interval shifted(interval each, index_t by) {
    return {each.first + by, each.last + by};
  }
};

namespace detail {

/// A table at a place; see the top of this page.
template <class Table>
constexpr placed_table<Table> place_table(Table const& table, place const& where,
                                          std::optional<index_t> first_position) {
  return {table, where.first_row - first_position.value_or(where.keys - where.rows),
          where.first_key};
}

/// The queries in one of the rows [rows.first, rows.last), as bits.
constexpr std::uint64_t bits_in(std::span<index_t const> queries, bool are_consecutive,
                                interval rows) {
  if (queries.empty()) return 0;
  if (are_consecutive) return bit_range(rows.first - queries[0], rows.last - queries[0]);
  return bits_of(queries, [&](index_t row) { return rows.first <= row && row < rows.last; });
}

inline std::string text(interval each) {
  return "[" + std::to_string(each.first) + ", " + std::to_string(each.last) + ")";
}

}  // namespace detail

}  // namespace heed
