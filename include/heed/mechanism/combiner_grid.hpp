#pragma once

#include <heed/mechanism/combiner.hpp>

/// Combiner on grids of tokens, causal in row-major order: what a query meets, as parts of which each is a row or a column
/// of the grid. combiner_axial.hpp computes with them.
namespace heed {

/// What the query at row r and column c of a grid meets beside its own row up to itself.
enum class combiner_axis {
  row_major,  ///< earlier rows, each through its member in column c
  vertical,   ///< its own column above, directly; every other column through its part above row r
  horizontal,  ///< its own column above; of every earlier row the part left of c and the part right of it
  mixture  ///< both of the last two, as published: earlier rows count twice
};

/// Where a row-major summary takes its key from: the member's own key, or the sum of the row's keys by its shares.
enum class summary_key { own, weighted_sum };

struct combiner_grid {
  index_t rows;
  index_t columns;
  combiner_axis axis = combiner_axis::row_major;
  pooling pool = pooling::max;         // of vertical, horizontal and mixture
  summary_key key = summary_key::own;  // of row_major

  void check() const {
    require(rows >= 1 && columns >= 1, [&] {
      return "combiner_grid has " + std::to_string(rows) + " rows and " + std::to_string(columns) +
             " columns; expected at least 1 of each";
    });
  }
};

namespace detail {

/// The rows of a grid, or its columns, as batch entries: entries `lines` of them, positions `along` of each.
struct grid_lines {
  index_t columns;  // of the grid
  bool are_rows;
  interval lines, along;
  bool turned = false;  // each from its last position to its first

  grid_lines cut(interval new_lines, interval new_along) const {
    return {columns, are_rows, new_lines, new_along, turned};
  }

  /// Of a tensor [1, position, head, dim].
  template <class E>
  tensor_view<E, 4> operator()(tensor_view<E, 4> of) const {
    auto const [line, next] = steps(of.stride(1));
    return {of.data() + first(line, next),
            {lines.size(), along.size(), of.extent(2), of.extent(3)},
            {line, turned ? -next : next, of.stride(2), of.stride(3)}};
  }
  /// Of a tensor [1, head, position].
  template <class E>
  tensor_view<E, 3> operator()(tensor_view<E, 3> of) const {
    auto const [line, next] = steps(of.stride(2));
    return {of.data() + first(line, next),
            {lines.size(), of.extent(1), along.size()},
            {line, of.stride(1), turned ? -next : next}};
  }

 private:
  std::array<index_t, 2> steps(index_t step) const {
    return are_rows ? std::array{columns * step, step} : std::array{step, columns * step};
  }
  index_t first(index_t line, index_t next) const {
    return lines.first * line + (turned ? along.last - 1 : along.first) * next;
  }
};

/// Calls work.direct(queries, keys, pattern) and work.summarised(spans, queries, summaries, pattern) for the parts that
/// merge to the attention on a grid, the one with every query first. Each of the lines `spans` has summaries: of all of
/// it for each position where rows have their members for summaries, otherwise of what comes up to each position.
template <class Work>
void each_grid_part(combiner_grid const& grid, Work&& work) {
  interval const each_row{0, grid.rows}, each_column{0, grid.columns};
  interval const later{1, grid.rows}, earlier{0, grid.rows - 1};
  grid_lines const rows{grid.columns, true, each_row, each_column},
      columns{grid.columns, false, each_column, each_row},
      below = columns.cut(each_column, later), above = columns.cut(each_column, earlier);
  work.direct(rows, rows, causal{});
  if (grid.rows == 1) return;
  if (grid.axis == combiner_axis::row_major) return work.summarised(rows, below, above, causal{});
  work.direct(below, above, causal{});
  if (grid.axis != combiner_axis::horizontal)
    work.summarised(columns, rows.cut(later, each_column), rows.cut(earlier, each_column),
                    ~sliding_window{0, 0});
  if (grid.axis == combiner_axis::vertical || grid.columns == 1) return;
  // The part left of a column ends at the column before it; the part right of it, read backwards, at the one after it.
  interval const left{0, grid.columns - 1}, right{1, grid.columns};
  work.summarised(rows, columns.cut(right, later), columns.cut(left, earlier), causal{});
  grid_lines turned = rows;
  turned.turned = true;
  work.summarised(turned, columns.cut(left, later), columns.cut(right, earlier), causal{});
}

/// pooled(line, n) = the pool of the positions [0, n] of a line.
template <class T, class E>
void pool_prefixes(tensor_view<E, 4> all, pooling how, tensor_view<T, 4> pooled) {
  for (index_t line = 0; line < all.extent(0); ++line)
    for (index_t h = 0; h < all.extent(2); ++h)
      for (index_t d = 0; d < all.extent(3); ++d) {
        T so_far = 0;
        for (index_t n = 0; n < all.extent(1); ++n) {
          T const next = convert_element<T>(all(line, n, h, d));
          so_far = n == 0 ? next : how == pooling::max ? std::max(so_far, next) : so_far + next;
          pooled(line, n, h, d) = how == pooling::mean ? so_far / static_cast<T>(n + 1) : so_far;
        }
      }
}

/// Adds the gradient of pool_prefixes.
template <class T, class E>
void pool_prefixes_backward(tensor_view<E, 4> all, pooling how, tensor_view<T, 4> dpooled,
                            tensor_view<T, 4> gradient) {
  for (index_t line = 0; line < all.extent(0); ++line)
    for (index_t h = 0; h < all.extent(2); ++h)
      for (index_t d = 0; d < all.extent(3); ++d) {
        if (how == pooling::max) {
          index_t largest = 0;
          for (index_t n = 0; n < all.extent(1); ++n) {
            if (convert_element<T>(all(line, n, h, d)) >
                convert_element<T>(all(line, largest, h, d)))
              largest = n;
            gradient(line, largest, h, d) += dpooled(line, n, h, d);
          }
          continue;
        }
        T from_here_on = 0;
        for (index_t n = all.extent(1) - 1; n >= 0; --n) {
          T const whole = dpooled(line, n, h, d);
          from_here_on += how == pooling::mean ? whole / static_cast<T>(n + 1) : whole;
          gradient(line, n, h, d) += from_here_on;
        }
      }
}

}  // namespace detail

}  // namespace heed
