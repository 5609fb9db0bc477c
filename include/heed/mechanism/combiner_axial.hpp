#pragma once

#include <heed/mechanism/combiner.hpp>

/// Combiner on grids of tokens, causal in row-major order. Every part of a row's keys is a row or a column of the grid,
/// so that each is plain attention over views with other strides, and the parts are merged.
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
  combiner_grid const& grid;
  bool rows;
  interval lines, along;

  static grid_lines all(combiner_grid const& grid, bool rows) {
    interval const each_row{0, grid.rows}, each_column{0, grid.columns};
    return {grid, rows, rows ? each_row : each_column, rows ? each_column : each_row};
  }
  grid_lines cut(interval new_lines, interval new_along) const {
    return {grid, rows, new_lines, new_along};
  }

  /// Of a tensor [1, position, head, dim].
  template <class E>
  tensor_view<E, 4> operator()(tensor_view<E, 4> of) const {
    auto const [line, next] = steps(of.stride(1));
    return {of.data() + lines.first * line + along.first * next,
            {lines.size(), along.size(), of.extent(2), of.extent(3)},
            {line, next, of.stride(2), of.stride(3)}};
  }
  /// Of a tensor [1, head, position].
  template <class E>
  tensor_view<E, 3> operator()(tensor_view<E, 3> of) const {
    auto const [line, next] = steps(of.stride(2));
    return {of.data() + lines.first * line + along.first * next,
            {lines.size(), of.extent(1), along.size()},
            {line, of.stride(1), next}};
  }

 private:
  std::array<index_t, 2> steps(index_t step) const {
    return rows ? std::array{grid.columns * step, step} : std::array{step, grid.columns * step};
  }
};

/// The positions of each batch entry from the last to the first.
template <class E>
tensor_view<E, 4> reversed(tensor_view<E, 4> lines) {
  return {lines.data() + (lines.extent(1) - 1) * lines.stride(1),
          lines.extents(),
          {lines.stride(0), -lines.stride(1), lines.stride(2), lines.stride(3)}};
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

/// One batch entry: the parts of its keys, merged into the result as they come.
template <class T, class Q, class K, class V, class... Shared>
class axial_combiner {
 public:
  struct memory {
    partial_attention<T> whole, part;
    tensor_view<T, 4> query, key, value;  // of summaries

    memory(arena& from, index_t positions, index_t heads, index_t dim, index_t value_dim) {
      auto const take = [&](index_t size) {
        return bhnd(from.take<T>(heads * positions * size), 1, heads, positions, size);
      };
      for (auto* each : {&whole, &part})
        *each = {take(value_dim), {from.take<T>(heads * positions), {1, heads, positions}}};
      query = take(dim);
      key = take(dim);
      value = take(value_dim);
    }
  };

  axial_combiner(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                 tensor_view<V, 4> value, memory const& scratch,
                 std::tuple<Shared...> const& shared)
      : grid_(grid),
        query_(query),
        key_(key),
        value_(value),
        memory_(scratch),
        shared_(shared),
        pooled_key_(memory_.key.slice(2, 0, key.extent(2))) {}

  void run() {
    attend(rows_(query_), rows_(key_), rows_(value_), rows_(memory_.whole.out), causal{},
           lse_into<T>{rows_(memory_.whole.lse)});
    if (grid_.rows == 1) return;
    if (grid_.axis == combiner_axis::row_major) return add_rows_through_members();
    add(below_, above_(key_), above_(value_), causal{});
    if (grid_.axis != combiner_axis::horizontal) add_other_columns();
    if (grid_.axis != combiner_axis::vertical && grid_.columns > 1) {
      add_parts_of_rows([](auto const& lines) { return lines; }, 1, 0);
      add_parts_of_rows([](auto const& lines) { return reversed(lines); }, 0, 1);
    }
  }

 private:
  void add_rows_through_members() {
    attend(rows_(query_), rows_(key_), rows_(value_), rows_(memory_.value), dense{});
    if (grid_.key == summary_key::own)
      return add(below_, above_(key_), above_(memory_.value), causal{});
    attend(rows_(query_), rows_(key_), rows_(key_), rows_(memory_.key), dense{});
    add(below_, above_(memory_.key), above_(memory_.value), causal{});
  }

  void add_other_columns() {
    pool_prefixes(columns_(query_), grid_.pool, columns_(memory_.query));
    pool_prefixes(columns_(key_), grid_.pool, columns_(pooled_key_));
    attend(columns_(memory_.query), columns_(key_), columns_(value_), columns_(memory_.value),
           causal{});
    interval const every{0, grid_.columns};
    grid_lines const later = rows_.cut({1, grid_.rows}, every),
                     earlier = rows_.cut({0, grid_.rows - 1}, every);
    add(later, earlier(pooled_key_), earlier(memory_.value), ~sliding_window{0, 0});
  }

  /// `turned` makes a part of a row begin at its first column; the query's column is that of the summary moved.
  template <class Turned>
  void add_parts_of_rows(Turned turned, index_t first_query, index_t first_summary) {
    pool_prefixes(turned(rows_(query_)), grid_.pool, turned(rows_(memory_.query)));
    pool_prefixes(turned(rows_(key_)), grid_.pool, turned(rows_(pooled_key_)));
    attend(turned(rows_(memory_.query)), turned(rows_(key_)), turned(rows_(value_)),
           turned(rows_(memory_.value)), causal{});
    auto const neighbours = [&](index_t first) {
      return interval{first, first + grid_.columns - 1};
    };
    grid_lines const queries = columns_.cut(neighbours(first_query), {1, grid_.rows}),
                     summaries = columns_.cut(neighbours(first_summary), {0, grid_.rows - 1});
    add(queries, summaries(pooled_key_), summaries(memory_.value), causal{});
  }

  template <class Key, class Value, class Pattern>
  void add(grid_lines const& queries, Key const& key, Value const& value, Pattern const& pattern) {
    partial_attention<T> const whole{queries(memory_.whole.out), queries(memory_.whole.lse)},
        part{queries(memory_.part.out), queries(memory_.part.lse)};
    attend(queries(query_), key, value, part.out, pattern, lse_into<T>{part.lse});
    merge_attention(std::array{whole, part}, whole.out, whole.lse);
  }

  template <class A, class B, class C, class... I>
  void attend(tensor_view<A, 4> query, tensor_view<B, 4> key, tensor_view<C, 4> value,
              tensor_view<T, 4> out, I const&... ingredients) {
    std::apply(
        [&](auto const&... shared) {
          attention(tensor_view<A const, 4>(query), tensor_view<B const, 4>(key),
                    tensor_view<C const, 4>(value), out, ingredients..., shared...);
        },
        shared_);
  }

  combiner_grid const& grid_;
  tensor_view<Q, 4> query_;
  tensor_view<K, 4> key_;
  tensor_view<V, 4> value_;
  memory const& memory_;
  std::tuple<Shared...> const& shared_;
  tensor_view<T, 4> pooled_key_;
  grid_lines const rows_ = grid_lines::all(grid_, true), columns_ = grid_lines::all(grid_, false),
                   below_ = columns_.cut({0, grid_.columns}, {1, grid_.rows}),
                   above_ = columns_.cut({0, grid_.columns}, {0, grid_.rows - 1});
};

}  // namespace detail

/// Attention over the keys and summaries of a grid; see combiner_axis.
///
///   query, key, value, out   as in attention(), with a query and a key for each of rows * columns positions
///
/// Ingredients: scale, an executor, scratch, lse_into. Memory of the size of one batch entry belongs to the calling
/// thread.
template <element Q, element K, element V, element O, class... Ingredients>
void combiner_attention(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                        tensor_view<V, 4> value, tensor_view<O, 4> out,
                        Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_combiner<T>(grid, query, key, value, out, ingredients...);
  require(query.extent(1) == grid.rows * grid.columns, [&] {
    return "query has shape " + shape_text(query.extents()) + "; expected " +
           std::to_string(grid.rows * grid.columns) + " positions, those of the grid";
  });
  if (out.size() == 0) return;
  auto const shared = attend::all_of<detail::is_for_summaries>(ingredients...);
  using combiner = decltype([]<class... I>(std::tuple<I...> const&) {
    return static_cast<detail::axial_combiner<T, Q, K, V, I...>*>(nullptr);
  }(shared));
  using worker = std::remove_pointer_t<combiner>;
  auto const lay_out = [&](arena& memory) {
    return typename worker::memory(memory, query.extent(1), query.extent(2), query.extent(3),
                                   value.extent(3));
  };
  arena size;
  lay_out(size);
  arena memory(detail::combiner_workspace().reserve(size.used()));
  auto const scratch = lay_out(memory);
  auto const lse = attend::one_of<detail::is_lse_into>(lse_into<T>{}, ingredients...).out;
  for (index_t b = 0; b < query.extent(0); ++b) {
    worker(grid, query.slice(0, b, 1), key.slice(0, b, 1), value.slice(0, b, 1), scratch, shared)
        .run();
    merge_attention(std::array{scratch.whole}, out.slice(0, b, 1),
                    lse.data() == nullptr ? lse : lse.slice(0, b, 1));
  }
}

}  // namespace heed
