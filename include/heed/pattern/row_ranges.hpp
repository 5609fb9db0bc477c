#pragma once

#include <heed/pattern/pattern.hpp>
#include <heed/pattern/table.hpp>

#include <optional>

namespace heed {

namespace detail {

/// What can be said of a pattern in which each row meets one interval of keys, its `interval row(index_t position)`.
template <class Pattern>
struct interval_rows {
  bool keep(index_t query, index_t key) const {
    interval const mine = of(query);
    return mine.first <= key && key < mine.last;
  }
  interval_set keys(interval queries, index_t count) const {
    interval_set all;
    for (index_t p = queries.first; p < queries.last; ++p) all.add(intersect(of(p), {0, count}));
    return all;
  }
  coverage cover(interval queries, interval keys) const {
    bool some = false, every = true;
    for (index_t p = queries.first; p < queries.last; ++p) {
      index_t const met = intersect(of(p), keys).size();
      some |= met > 0;
      every &= met == keys.size();
    }
    return every ? coverage::all : some ? coverage::some : coverage::none;
  }
  void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::fill_n(rows, keys.size(), 0);
    for (std::size_t q = 0; q < queries.size(); ++q) {
      interval const met = intersect(of(queries[q]), keys);
      for (index_t key = met.first; key < met.last; ++key)
        rows[key - keys.first] |= std::uint64_t{1} << q;
    }
  }
  index_t pairs(index_t rows, index_t count) const {
    index_t sum = 0;
    for (index_t p = count - rows; p < count; ++p) sum += intersect(of(p), {0, count}).size();
    return sum;
  }

 private:
  interval of(index_t position) const { return static_cast<Pattern const*>(this)->row(position); }
};

}  // namespace detail

/// Row i meets the keys [first_i, last_i), and none if that is empty. first, last: [batch, head, row], the first two 1
/// to share; values in [0, keys].
///
/// The rows are those of the call, the last one at the last key, unless `first_position` says at which position row 0
/// of the table stands: 0 for a table of whole sequences, of which a call computes some rows, or with top_left.
struct row_ranges {
  tensor_view<index_t const, 3> first;
  tensor_view<index_t const, 3> last;
  std::optional<index_t> first_position = {};

  struct bound : detail::interval_rows<bound> {
    detail::table<index_t> first;
    detail::table<index_t> last;
    index_t shift;  // from a position to its row

    interval row(index_t query) const { return {first(query + shift, 0), last(query + shift, 0)}; }
  };

  bound bind(place const& where) const {
    bool const whole = first_position.has_value();
    return {{},
            detail::table<index_t>::of_rows(first, where, whole),
            detail::table<index_t>::of_rows(last, where, whole),
            -first_position.value_or(where.keys - where.rows)};
  }
  void check(call_shape const& shape) const {
    check(shape, "row_ranges.first", first);
    check(shape, "row_ranges.last", last);
  }

 private:
  void check(call_shape const& shape, char const* name,
             tensor_view<index_t const, 3> bounds) const {
    detail::check_table(name, bounds, shape, first_position ? first.extent(2) : shape.rows, "row");
    detail::each_number(bounds, [&](index_t end) {
      require(end >= 0 && end <= shape.keys, [&] {
        return std::string(name) + " holds " + std::to_string(end) + "; expected 0 to " +
               std::to_string(shape.keys) + " (keys)";
      });
    });
  }
};

}  // namespace heed
