#include "support/pattern_check.hpp"
#include "support/tables.hpp"

#include <heed/pattern/placed_table.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

// Where the rows and columns of a table stand: what tables that look at pair after pair say there, against the pairs of the
// call.

using heed::coverage;
using heed::index_t;
using heed::interval;

namespace {

/// Pairs kept by chance, none beyond the table.
struct table_of_pairs {
  index_t rows, columns;
  std::vector<bool> kept;

  table_of_pairs(support::random& draw, index_t row_count, index_t column_count)
      : rows(row_count), columns(column_count) {
    index_t const odds = draw.between(1, 12);
    for (index_t n = 0; n < rows * columns; ++n) kept.push_back(draw.one_in(odds));
  }

  bool keep(index_t row, index_t key) const {
    return row >= 0 && row < rows && key >= 0 && key < columns &&
           kept[static_cast<std::size_t>(row * columns + key)];
  }
  coverage cover(interval some, interval keys) const {
    index_t const met = pairs(some, keys);
    if (met == 0) return coverage::none;
    return met == some.size() * keys.size() ? coverage::all : coverage::some;
  }
  index_t pairs(interval some, interval keys) const {
    index_t sum = 0;
    for (index_t row = some.first; row < some.last; ++row)
      for (index_t key = keys.first; key < keys.last; ++key) sum += keep(row, key);
    return sum;
  }
};

/// One that knows its keys as a set.
struct table_with_keys : table_of_pairs {
  using table_of_pairs::table_of_pairs;

  heed::interval_set keys(interval some, interval among) const {
    heed::interval_set met;
    for (index_t key = among.first; key < among.last; ++key)
      if (pairs(some, {key, key + 1}) > 0) met.add({key, key + 1});
    return met;
  }
};

/// One that lists them, and has masks.
struct table_with_runs : table_of_pairs {
  using table_of_pairs::table_of_pairs;

  interval next_keys(interval some, interval among) const {
    auto const is_met = [&](index_t key) {
      return key < among.last && pairs(some, {key, key + 1}) > 0;
    };
    index_t first = among.first;
    while (first < among.last && !is_met(first)) ++first;
    index_t last = first;
    while (is_met(last)) ++last;
    return {first, last};
  }
  void mask(std::span<index_t const> some, interval keys, std::uint64_t* bits) const {
    for (index_t key = keys.first; key < keys.last; ++key)
      bits[key - keys.first] =
          heed::detail::bits_of(some, [&](index_t row) { return keep(row, key); });
  }
};

template <class Table>
struct pattern_of {
  Table const& table;
  std::optional<index_t> first_position;

  heed::placed_table<Table> bind(heed::place const& where) const {
    return heed::detail::place_table(table, where, first_position);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("placed_table: the pairs of a call are those of its rows and columns",
                   "[pattern][quick]", table_with_keys, table_with_runs) {
  support::for_each_seed("placed_table", 300, [](support::seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(0, 40), keys = draw.between(1, 40);
    heed::place const where = support::place_within(draw, draw.between(1, 2), 1, rows, keys);
    // One over whole sequences may have rows before the call's first and beyond its last.
    std::optional<index_t> first_position;
    if (draw.one_in(2)) first_position = draw.one_in(2) ? 0 : draw.between(-10, 10);
    TestType const table(draw, first_position ? draw.between(0, 60) : rows, keys);
    index_t const at_row_0 = first_position ? *first_position : where.keys - where.rows;
    return support::check_pattern(draw, pattern_of<TestType>{table, first_position}, where,
                                  [&](index_t position, index_t key) {
                                    return table.keep(where.first_row + position - at_row_0,
                                                      where.first_key + key);
                                  },
                                  {.exact_tiles = true, .exact_keys = true});
  });
}

TEST_CASE("placed_table: has what its table has", "[pattern][quick]") {
  support::random draw(1);
  table_with_keys const with_keys(draw, 4, 4);
  table_with_runs const none(draw, 4, 0);
  heed::place const where{.rows = 4, .keys = 4, .first_row = 3, .first_key = 5};
  auto const with_set = heed::detail::place_table(with_keys, where, std::nullopt);
  auto const with_list = heed::detail::place_table(none, where, std::nullopt);
  CHECK_FALSE(heed::is_scattered(with_set));
  CHECK(heed::is_scattered(with_list));
  // A list that is at its end is empty where nobody has to look for it.
  interval const run = with_list.next_keys({0, 4}, 0, 4);
  CHECK(run.first == 0);
  CHECK(run.last == 0);
}

TEST_CASE("the queries in some rows, as bits", "[pattern][quick]") {
  support::random draw(1);
  for (int n = 0; n < 300; ++n) {
    index_t const count = draw.between(0, 64), first = draw.between(-80, 80);
    interval const rows{draw.between(-80, 80), draw.between(-80, 80)};
    bool const are_consecutive = draw.one_in(2);
    CAPTURE(count, first, rows.first, rows.last, are_consecutive);
    std::vector<index_t> queries;
    for (index_t q = 0; q < count; ++q)
      queries.push_back(are_consecutive ? first + q : draw.between(-80, 80));
    std::uint64_t expected = 0;
    for (std::size_t q = 0; q < queries.size(); ++q)
      expected |= std::uint64_t{queries[q] >= rows.first && queries[q] < rows.last} << q;
    // Bits beyond the queries mean nothing.
    std::uint64_t const meaning = count == 0 ? 0 : ~std::uint64_t{0} >> (64 - count);
    std::uint64_t const bits = heed::detail::bits_in(queries, are_consecutive, rows);
    CHECK((bits & meaning) == expected);
  }
}
