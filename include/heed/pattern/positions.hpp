#pragma once

#include <heed/pattern/pattern.hpp>

#include <span>

namespace heed {

/// Query row i stands at position i: the first query at the first key. Without it row i stands at
/// i + (keys - rows), the last query at the last key. The two agree where there are as many rows as keys.
struct top_left {};

/// Query row i of sequence b stands at position rows(b, i): for queries that are a subset of the rows, in any
/// order. rows: [sequence or 1, row], values in (-2^24, 2^24).
struct query_positions {
  tensor_view<index_t const, 2> rows;

  void check(call_shape const& shape) const {
    require(
        (rows.extent(0) == 1 || rows.extent(0) == shape.sequences) && rows.extent(1) == shape.rows,
        [&] {
          return "query_positions has shape " + shape_text(rows.extents()) + "; expected [1 or " +
                 std::to_string(shape.sequences) + ", " + std::to_string(shape.rows) +
                 "] (sequence, row)";
        });
    constexpr index_t limit = index_t{1} << 24;
    for (index_t b = 0; b < rows.extent(0); ++b)
      for (index_t i = 0; i < rows.extent(1); ++i)
        require(rows(b, i) > -limit && rows(b, i) < limit, [&] {
          return "query_positions holds " + std::to_string(rows(b, i)) +
                 "; expected less than 2^24 in size";
        });
  }
};

/// Several sequences packed along the position axis of one batch entry: sequence g owns the query rows
/// [queries[g], queries[g + 1]) and the key rows [keys[g], keys[g + 1]). Each is a problem of its own, and
/// positions count from 0 in each. Both lists start at 0, do not decrease, are as long as each other and
/// end at the number of rows and of keys.
struct documents {
  std::span<index_t const> queries;
  std::span<index_t const> keys;

  void check(index_t batches, index_t rows, index_t key_rows) const {
    require(batches == 1, [&] {
      return "documents need tensors of one batch entry; these have " + std::to_string(batches);
    });
    require(queries.size() == keys.size(), [&] {
      return "documents.queries has " + std::to_string(queries.size()) +
             " offsets and documents.keys " + std::to_string(keys.size()) + "; expected as many";
    });
    check_offsets("documents.queries", queries, rows);
    check_offsets("documents.keys", keys, key_rows);
  }

 private:
  static void check_offsets(char const* name, std::span<index_t const> offsets, index_t end) {
    bool ordered = !offsets.empty() && offsets.front() == 0 && offsets.back() == end;
    for (std::size_t g = 1; g < offsets.size(); ++g) ordered &= offsets[g - 1] <= offsets[g];
    require(ordered, [&] {
      return std::string(name) + " is " + (offsets.size() > 16 ? "a list" : shape_text(offsets)) +
             "; expected offsets that start at 0, do not decrease and end at " +
             std::to_string(end);
    });
  }
};

namespace detail {
inline constexpr auto is_documents = []<class T>() { return std::same_as<T, documents>; };
}  // namespace detail

}  // namespace heed
