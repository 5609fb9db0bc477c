#pragma once

#include <heed/pattern/pattern.hpp>
#include <heed/pattern/table.hpp>

#include <optional>

namespace heed {

/// Every key for some of the query rows, none for the others: row i of head h meets keys where
/// numbers(b, h, i) > 0, so that a table of gates or of bools serves as it is. With &, | and ~ rows get
/// patterns of their own: `causal{} & (near | chosen_rows{far_sighted})`.
///
///   numbers   [batch, head, row], the first two 1 to share
///
/// The rows are those of the call, the last one at the last key, unless `first_position` says at which position row 0
/// of the table stands: 0 for a table of whole sequences, of which a call computes some rows, or with top_left.
template <class T>
struct chosen_rows {
  tensor_view<T const, 3> numbers;
  std::optional<index_t> first_position = {};

  struct bound {
    detail::table<T> numbers;
    index_t shift;  // from a position to its row

    bool keep(index_t query, index_t) const { return chosen(query); }
    interval_set keys(interval queries, index_t count) const {
      return cover(queries, {}) == coverage::none ? interval_set{} : interval_set{{0, count}};
    }
    coverage cover(interval queries, interval) const {
      bool some = false, all = true;
      for (index_t p = queries.first; p < queries.last; ++p) {
        some |= chosen(p);
        all &= chosen(p);
      }
      return all ? coverage::all : some ? coverage::some : coverage::none;
    }
    void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
      std::uint64_t bits = 0;
      for (std::size_t q = 0; q < queries.size(); ++q)
        bits |= std::uint64_t{chosen(queries[q])} << q;
      std::fill_n(rows, keys.size(), bits);
    }
    index_t pairs(index_t rows, index_t keys) const {
      index_t met = 0;
      for (index_t row = 0; row < rows; ++row) met += chosen(row + keys - rows) ? keys : 0;
      return met;
    }

   private:
    bool chosen(index_t position) const { return numbers(position + shift, T(0)) > T(0); }
  };
  bound bind(place const& where) const {
    return {detail::table<T>::of_rows(numbers, where, first_position.has_value()),
            -first_position.value_or(where.keys - where.rows)};
  }
  void check(call_shape const& shape) const {
    detail::check_table("chosen_rows", numbers, shape,
                        first_position ? numbers.extent(2) : shape.rows, "row");
  }
};
template <class U>
chosen_rows(tensor_view<U, 3>) -> chosen_rows<std::remove_const_t<U>>;
template <class U>
chosen_rows(tensor_view<U, 3>, std::optional<index_t>) -> chosen_rows<std::remove_const_t<U>>;

}  // namespace heed
