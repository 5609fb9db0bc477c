#pragma once

#include <heed/pattern/pattern.hpp>

namespace heed {

/// Every key for some of the query rows, none for the others: row i of head h meets keys where
/// numbers(b, h, i) > 0, so that a table of gates or of bools serves as it is. With &, | and ~ rows get
/// patterns of their own: `causal{} & (near | chosen_rows{far_sighted})`.
///
///   numbers   [batch or 1, head or 1, row]
///
/// Queries stand bottom right, the last row at the last key.
template <class T>
struct chosen_rows {
  tensor_view<T const, 3> numbers;

  template <class U>
    requires std::same_as<T, std::remove_const_t<U>>
  explicit chosen_rows(tensor_view<U, 3> n) : numbers(n) {}

  struct bound {
    tensor_view<T const, 3> numbers;
    place where;

    bool keep(index_t query, index_t) const { return chosen(query); }
    interval_set keys(interval queries, index_t count) const {
      return cover(queries, {}) == coverage::none ? interval_set{} : interval_set{{0, count}};
    }
    coverage cover(interval queries, interval) const {
      bool some = false, all = true;
      for (index_t p = queries.first; p < queries.last; ++p) (chosen(p) ? some : all) = chosen(p);
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
    bool chosen(index_t position) const {
      index_t const row = position - (where.keys - where.rows);
      return row >= 0 && row < where.rows &&
             numbers(numbers.extent(0) == 1 ? 0 : where.batch,
                     numbers.extent(1) == 1 ? 0 : where.head, where.row(row)) > T(0);
    }
  };
  bound bind(place const& where) const { return {numbers, where}; }

  void check(call_shape const& shape) const {
    auto const fits = [](index_t extent, index_t full) { return extent == 1 || extent == full; };
    require(fits(numbers.extent(0), shape.batches) && fits(numbers.extent(1), shape.heads) &&
                numbers.extent(2) == shape.rows,
            [&] {
              return "chosen_rows has shape " + shape_text(numbers.extents()) +
                     "; expected [1 or " + std::to_string(shape.batches) + ", 1 or " +
                     std::to_string(shape.heads) + ", " + std::to_string(shape.rows) +
                     "] (batch, head, row)";
            });
  }
};
template <class U>
chosen_rows(tensor_view<U, 3>) -> chosen_rows<std::remove_const_t<U>>;

}  // namespace heed
