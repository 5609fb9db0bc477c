#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>
#include <heed/pattern/table.hpp>

#include <array>
#include <bit>
#include <optional>

namespace heed {

namespace detail {

/// labels at one place.
struct bound_labels {
  table<int> query_labels;
  table<int> key_labels;
  tensor_view<bool const, 2> admitted;
  index_t shift;  // from a position to its row

  bool keep(index_t query, index_t key) const {
    int const a = query_labels(query + shift, -1), b = key_labels(key, -1);
    return a >= 0 && b >= 0 && admitted(a, b);
  }
  coverage cover(interval queries, interval keys) const {
    label_set const rows(query_labels, shifted(queries)), columns(key_labels, keys);
    bool some = false, every = rows.complete && columns.complete;
    for (std::uint64_t a = rows.labels; a != 0; a &= a - 1)
      for (std::uint64_t b = columns.labels; b != 0; b &= b - 1) {
        bool const met = admitted(std::countr_zero(a), std::countr_zero(b));
        some |= met;
        every &= met;
      }
    return !some ? coverage::none : every ? coverage::all : coverage::some;
  }
  interval next_keys(interval queries, index_t from, index_t count) const {
    std::uint64_t const met = met_by(label_set(query_labels, shifted(queries)).labels);
    while (from < count && !has(met, from)) ++from;
    index_t end = from;
    while (end < count && has(met, end)) ++end;
    return {from, end};
  }
  void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::array<std::uint64_t, 64> met_by_label{};  // the queries that meet a key of this label
    for (std::size_t q = 0; q < queries.size(); ++q)
      if (int const a = query_labels(queries[q] + shift, -1); a >= 0)
        for (index_t b = 0; b < admitted.extent(1); ++b)
          met_by_label[static_cast<std::size_t>(b)] |= std::uint64_t{admitted(a, b)} << q;
    for (index_t key = keys.first; key < keys.last; ++key) {
      int const b = key_labels(key, -1);
      rows[key - keys.first] = b < 0 ? 0 : met_by_label[static_cast<std::size_t>(b)];
    }
  }
  index_t pairs(index_t rows, index_t count) const {
    std::array<index_t, 64> queries_of{}, keys_of{};
    for (index_t p = count - rows; p < count; ++p)
      if (int const a = query_labels(p + shift, -1); a >= 0)
        ++queries_of[static_cast<std::size_t>(a)];
    for (index_t key = 0; key < count; ++key)
      if (int const b = key_labels(key, -1); b >= 0) ++keys_of[static_cast<std::size_t>(b)];
    index_t sum = 0;
    for (index_t a = 0; a < admitted.extent(0); ++a)
      for (index_t b = 0; b < admitted.extent(1); ++b)
        if (admitted(a, b))
          sum += queries_of[static_cast<std::size_t>(a)] * keys_of[static_cast<std::size_t>(b)];
    return sum;
  }

 private:
  constexpr interval shifted(interval queries) const {
    return {queries.first + shift, queries.last + shift};
  }
  static std::uint64_t bit(int label) { return label < 0 ? 0 : std::uint64_t{1} << label; }
  /// The labels of some rows or keys, and whether each of them has one.
  struct label_set {
    std::uint64_t labels = 0;
    bool complete = true;

    label_set(table<int> const& of, interval slots) {
      interval const inside = intersect(slots, {0, of.size()});
      complete = inside.size() == slots.size();
      for (index_t n = inside.first; n < inside.last; ++n) {
        int const label = of(n, -1);
        labels |= bit(label);
        complete &= label >= 0;
      }
    }
  };
  /// The labels of keys that queries of some labels meet.
  std::uint64_t met_by(std::uint64_t rows) const {
    std::uint64_t met = 0;
    for (; rows != 0; rows &= rows - 1)
      for (index_t b = 0; b < admitted.extent(1); ++b)
        met |= std::uint64_t{admitted(std::countr_zero(rows), b)} << b;
    return met;
  }
  bool has(std::uint64_t set, index_t key) const { return (set & bit(key_labels(key, -1))) != 0; }
};

}  // namespace detail

/// A query meets the keys whose label is admitted for its own: admitted(label of the query, label of the key).
///
///   queries   [batch, head, row], labels from 0 on; the first two 1 to share
///   keys      [batch, head, key], the same
///   admitted  [query labels, key labels], at most 64 each
///
/// The rows are those of the call, the last one at the last key, unless `first_position` says at which position row 0
/// of `queries` stands: 0 for labels of whole sequences, of which a call computes some rows, or with top_left.
struct labels {
  tensor_view<int const, 3> queries;
  tensor_view<int const, 3> keys;
  tensor_view<bool const, 2> admitted;
  std::optional<index_t> first_position = {};

  detail::bound_labels bind(place const& where) const {
    return {detail::table<int>::of_rows(queries, where, first_position.has_value()),
            detail::table<int>::of_keys(keys, where), admitted,
            -first_position.value_or(where.keys - where.rows)};
  }
  void check(call_shape const& shape) const {
    for (int axis = 0; axis < 2; ++axis)
      require(admitted.extent(axis) >= 1 && admitted.extent(axis) <= 64, [&] {
        return "labels.admitted has shape " + shape_text(admitted.extents()) +
               "; expected 1 to 64 labels of queries and of keys";
      });
    check_labels("labels.queries", queries, shape, first_position ? queries.extent(2) : shape.rows,
                 "row", admitted.extent(0));
    check_labels("labels.keys", keys, shape, shape.keys, "key", admitted.extent(1));
  }

 private:
  static void check_labels(char const* name, tensor_view<int const, 3> numbers,
                           call_shape const& shape, index_t last, char const* axis, index_t count) {
    detail::check_table(name, numbers, shape, last, axis);
    detail::each_number(numbers, [&](int label) {
      require(label >= 0 && label < count, [&] {
        return std::string(name) + " holds label " + std::to_string(label) + "; expected 0 to " +
               std::to_string(count - 1) + ", the labels that labels.admitted knows";
      });
    });
  }
};

}  // namespace heed
