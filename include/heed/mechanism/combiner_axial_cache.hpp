#pragma once

#include <heed/cache/kv_cache.hpp>
#include <heed/mechanism/combiner_grid.hpp>

namespace heed {

/// Decoding with a row-major combiner_grid: queries, keys and values of the open row only, and a summary of every closed
/// row for each column. It computes what combiner_attention would over the whole grid.
///
///   queries     room for a row: [batch, columns, heads, head_dim]
///   open        room for a row: [batch, columns, key_heads or value_heads, dim]
///   summaries   room for rows - 1 of them: keys [batch, (rows - 1) * columns, key_heads, head_dim], with weighted sums
///               for keys `heads` instead of key_heads; values [batch, (rows - 1) * columns, heads, value_dim]
template <element T>
class combiner_axial_cache {
 public:
  using number = compute_type<T>;

  combiner_axial_cache(combiner_grid grid, tensor_view<T, 4> queries, kv_cache<T> open,
                       kv_cache<T> summaries)
      : grid_(grid), queries_(queries), open_(open), summaries_(summaries) {
    grid.check();
    require(grid.axis == combiner_axis::row_major, [] {
      return "combiner_axial_cache decodes by rows; expected a row-major combiner_grid";
    });
    index_t const columns = grid.columns, closed = (grid.rows - 1) * columns;
    require(queries.extent(1) == columns && open.capacity() == columns && open.length() == 0 &&
                summaries.capacity() >= closed && summaries.length() == 0,
            [&] {
              return "combiner_axial_cache got room for " + std::to_string(queries.extent(1)) +
                     " queries, for " + text(open) + " and for " + text(summaries) +
                     " summaries; expected room for " + std::to_string(columns) +
                     " of the open row and for " + std::to_string(closed) + " summaries, all empty";
            });
  }

  /// The next position: [batch, 1, heads, dim] each. Ingredients: scale, an executor, scratch, lse_into.
  template <element Q, element K, element V, element O, class... Ingredients>
  void step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<O, 4> out, Ingredients const&... ingredients) {
    index_t const column = open_.length() % grid_.columns;
    auto const now = queries_.slice(1, column, 1);
    attend::detail::expect_like("query", query, now.extents(), "a position of the queries");
    attend::detail::expect_like("out", out, {query.extent(0), 1, query.extent(2), value.extent(3)},
                                "query with the head_dim of value");
    require(open_.length() < grid_.columns, [&] {
      return "the grid of " + std::to_string(grid_.rows) + " rows and " +
             std::to_string(grid_.columns) + " columns is full";
    });
    open_.append(key, value);
    copy_elements(query, now);
    attention_with_extra_keys(
        query, open_.keys(), open_.values(),
        extra_keys(above(column, summaries_.keys()), above(column, summaries_.values())), out,
        ingredients...);
    bool const is_last = summaries_.length() == (grid_.rows - 1) * grid_.columns;
    if (open_.length() == grid_.columns && !is_last) close(ingredients...);
  }

 private:
  static std::string text(kv_cache<T> const& cache) {
    return std::to_string(cache.length()) + " of " + std::to_string(cache.capacity());
  }

  /// The summaries of closed rows in a column.
  template <class E>
  tensor_view<E, 4> above(index_t column, tensor_view<E, 4> all) const {
    index_t const closed = all.extent(1) / grid_.columns;
    return {all.data() + (closed > 0 ? column * all.stride(1) : 0),
            {all.extent(0), closed, all.extent(2), all.extent(3)},
            {all.stride(0), grid_.columns * all.stride(1), all.stride(2), all.stride(3)}};
  }

  /// Summarises the open row and forgets it.
  template <class... I>
  void close(I const&... ingredients) {
    auto const shared = attend::all_of<detail::is_for_summaries>(ingredients...);
    auto const lay_out = [&](arena memory) {
      auto const take = [&](index_t dim) {
        index_t const batches = queries_.extent(0), heads = queries_.extent(2);
        return bhnd(memory.take<number>(batches * heads * grid_.columns * dim), batches, heads,
                    grid_.columns, dim);
      };
      bool const sums = grid_.key == summary_key::weighted_sum;
      return std::tuple(take(open_.values().extent(3)), take(sums ? queries_.extent(3) : 0),
                        memory.used());
    };
    auto const [value, key, used] =
        lay_out(arena(detail::combiner_workspace().reserve(std::get<2>(lay_out(arena())))));
    tensor_view<T const, 4> const query = queries_;
    auto const sum_up = [&, this](tensor_view<T const, 4> what, tensor_view<number, 4> to) {
      std::apply([&](auto const&... own) { attention(query, open_.keys(), what, to, own...); },
                 shared);
    };
    sum_up(open_.values(), value);
    if (grid_.key == summary_key::weighted_sum) {
      sum_up(open_.keys(), key);
      summaries_.append(key, value);
    } else {
      summaries_.append(open_.keys(), value);
    }
    open_.truncate(0);
  }

  combiner_grid grid_;
  tensor_view<T, 4> queries_;
  kv_cache<T> open_;
  kv_cache<T> summaries_;
};

}  // namespace heed
