#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/mechanism/local_aggregation.hpp>
#include <heed/recur/segments.hpp>

/// The parts of Agent Attention for pictures: agents pooled from the queries of a grid, biases from small tables, and a 3x3
/// convolution of the values.
///
///     pool_agents(q, grid, agents);
///     agent_bias(of_keys, grid, b1);           // [1, heads, agents, tokens]: an, ah, aw (and ac of the class token)
///     agent_bias(of_queries, grid, b2);        // the same of na, ha, wa (ca), given a view with its last two axes swapped
///     agent_attention(q, k, v, agents, out, agent_aggregation(bias(b1)), agent_broadcast(bias(b2_by_query)));
///     add_depthwise(v, kernel, offset, grid, out);
namespace heed {

/// Tokens on a grid, row-major, behind a class token if there is one. Agents are pooled to a grid too, rows x columns of them.
struct agent_grid {
  index_t height;
  index_t width;
  bool class_token = false;

  index_t tokens() const { return height * width + class_token; }
};

/// The tables that a bias of agents and tokens is made of: bias[a, (y, x)] = table[a] enlarged to the grid + rows[a, y] +
/// columns[a, x], and of_class[a] for the class token. Enlarged bilinearly with half-pixel centres, clamped at the border.
///
///   table      [heads, agents, any, any], 7x7 as published
///   rows       [heads, agents, height]
///   columns    [heads, agents, width]
///   of_class   [heads, agents], empty without a class token
template <class T>
struct agent_bias_tables {
  tensor_view<T, 4> table;
  tensor_view<T, 3> rows;
  tensor_view<T, 3> columns;
  tensor_view<T, 2> of_class = {};
};

namespace detail {

struct agent_grid_memory;

/// Bin i of `count`: rows floor(i n / count) to ceil((i + 1) n / count) of n.
inline interval adaptive_bin(index_t i, index_t count, index_t n) {
  return {i * n / count, ((i + 1) * n + count - 1) / count};
}

inline void check_agent_grid(agent_grid const& grid, char const* name,
                             std::array<index_t, 4> const& tokens) {
  require(grid.height > 0 && grid.width > 0 && tokens[1] == grid.tokens(), [&] {
    return std::string(name) + " has shape " + shape_text(tokens) + "; expected " +
           std::to_string(grid.tokens()) + " tokens, those of a grid of " +
           std::to_string(grid.height) + " x " + std::to_string(grid.width) +
           (grid.class_token ? " and a class token" : "");
  });
}

template <class Q, class A>
void check_pooling(agent_grid const& grid, char const* query_name, tensor_view<Q, 4> query,
                   char const* name, tensor_view<A, 4> agents, index_t rows, index_t columns) {
  check_agent_grid(grid, query_name, query.extents());
  require(rows > 0 && columns > 0, [&] {
    return "agents are pooled to " + std::to_string(rows) + " x " + std::to_string(columns) +
           "; expected at least 1 of each";
  });
  expect_like(name, agents, {query.extent(0), rows * columns, query.extent(2), query.extent(3)},
              "query with a position for each agent");
}

/// Where an enlarged row or column reads: first and second, and how much of the second.
struct enlarged {
  index_t first, second;
  double share;

  enlarged(index_t i, index_t in, index_t out) {
    double const at = std::max(
        (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5,
        0.0);
    first = std::min(static_cast<index_t>(at), in - 1);
    second = std::min(first + 1, in - 1);
    share = at - static_cast<double>(first);
  }
};

template <class T, class B>
void check_agent_bias(agent_bias_tables<T> const& tables, agent_grid const& grid, char const* what,
                      tensor_view<B, 4> out) {
  index_t const heads = tables.table.extent(0), agents = tables.table.extent(1);
  bool const has_class = tables.of_class.data() != nullptr;
  require(tables.table.extent(2) > 0 && tables.table.extent(3) > 0 &&
              tables.rows.extents() == std::array{heads, agents, grid.height} &&
              tables.columns.extents() == std::array{heads, agents, grid.width} &&
              has_class == grid.class_token &&
              (!has_class || tables.of_class.extents() == std::array{heads, agents}),
          [&] {
            return "the tables of an agent bias have shapes " + shape_text(tables.table.extents()) +
                   ", " + shape_text(tables.rows.extents()) + ", " +
                   shape_text(tables.columns.extents()) + " and " +
                   shape_text(tables.of_class.extents()) +
                   "; expected [heads, agents, any, any], [heads, agents, " +
                   std::to_string(grid.height) + "], [heads, agents, " +
                   std::to_string(grid.width) + "] and " +
                   (grid.class_token ? "[heads, agents]" : "nothing for a class token");
          });
  expect_like(what, out, {1, heads, agents, grid.tokens()}, "a bias of agents and tokens");
}

}  // namespace detail

/// Agents as the mean of the queries in the bins of a rows x columns grid, bin i of n the grid's rows floor(i H / n) to
/// ceil((i + 1) H / n). agents: [batch, rows x columns, heads, dim].
template <element Q, element A, class Executor = serial>
void pool_agents(tensor_view<Q, 4> query, agent_grid const& grid, index_t rows, index_t columns,
                 tensor_view<A, 4> agents, Executor const& run_on = {}) {
  using T = compute_type<Q, A>;
  detail::check_pooling(grid, "query", query, "agents", agents, rows, columns);
  source<T> const from(query);
  sink<T> const to(agents);
  detail::for_row_sums<T>(
      run_on, agents.extent(0), agents.extent(1), agents.extent(2), agents.extent(3),
      [&](detail::row_sum<T>& sum, index_t b, index_t a, index_t h) {
        interval const down = detail::adaptive_bin(a / columns, rows, grid.height),
                       along = detail::adaptive_bin(a % columns, columns, grid.width);
        for (index_t y = down.first; y < down.last; ++y) {
          index_t const line = grid.class_token + y * grid.width;
          sum.add(from, b, h, {line + along.first, line + along.last});
        }
        to.store(b, h, a, 1, sum.mean(down.size() * along.size()), agents.extent(3));
      });
}

/// Adds the gradient of pool_agents to dquery.
template <element DA, element DQ, class Executor = serial>
void pool_agents_backward(tensor_view<DA, 4> dagents, agent_grid const& grid, index_t rows,
                          index_t columns, tensor_view<DQ, 4> dquery, Executor const& run_on = {}) {
  using T = compute_type<DA, DQ>;
  detail::check_pooling(grid, "dquery", dquery, "dagents", dagents, rows, columns);
  index_t const heads = dquery.extent(2), dim = dquery.extent(3);
  source<T> const from(dagents);
  auto const bytes = arena::bytes<T>(dim);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  if (dquery.size() == 0) return;
  // Bins overlap: a line of tokens gathers from all that it is in.
  parallel_for(run_on, dquery.extent(0) * grid.height, [&](index_t piece, index_t worker) {
    T* const scratch = arena(memory + worker * bytes).template take<T>(dim);
    index_t const b = piece / grid.height, y = piece % grid.height;
    for (index_t i = 0; i < rows; ++i) {
      interval const down = detail::adaptive_bin(i, rows, grid.height);
      if (y < down.first || y >= down.last) continue;
      for (index_t j = 0; j < columns; ++j) {
        interval const along = detail::adaptive_bin(j, columns, grid.width);
        T const share = T(1) / static_cast<T>(down.size() * along.size());
        for (index_t h = 0; h < heads; ++h) {
          T const* const slope = from.rows(b, h, i * columns + j, 1, scratch).data;
          for (index_t x = along.first; x < along.last; ++x)
            detail::add_to_row(&dquery(b, grid.class_token + y * grid.width + x, h, 0),
                               dquery.stride(3), slope, dim, share);
        }
      }
    }
  });
}

/// The bias of agents and tokens, [1, heads, agents, tokens]. For queries and agents give it a view of [1, heads, tokens, agents]
/// with the last two axes swapped.
template <class T, element B, class Executor = serial>
void agent_bias(agent_bias_tables<T> const& tables, agent_grid const& grid, tensor_view<B, 4> out,
                Executor const& run_on = {}) {
  detail::check_agent_bias(tables, grid, "the bias", out);
  index_t const agents = out.extent(2), high = tables.table.extent(2),
                wide = tables.table.extent(3);
  parallel_for(run_on, out.extent(1) * agents, [&](index_t piece, index_t) {
    index_t const h = piece / agents, a = piece % agents;
    auto const at = [&](index_t y, index_t x) {
      return static_cast<double>(tables.table(h, a, y, x));
    };
    if (grid.class_token)
      out(index_t{0}, h, a, index_t{0}) = convert_element<B>(tables.of_class(h, a));
    for (index_t y = 0; y < grid.height; ++y) {
      detail::enlarged const down(y, high, grid.height);
      double const row = static_cast<double>(tables.rows(h, a, y));
      for (index_t x = 0; x < grid.width; ++x) {
        detail::enlarged const along(x, wide, grid.width);
        auto const line = [&](index_t in) {
          double const left = at(in, along.first);
          return left + along.share * (at(in, along.second) - left);
        };
        double const top = line(down.first), bottom = line(down.second);
        out(index_t{0}, h, a, grid.class_token + y * grid.width + x) = convert_element<B>(
            static_cast<compute_type<B>>(top + down.share * (bottom - top) + row +
                                         static_cast<double>(tables.columns(h, a, x))));
      }
    }
  });
}

/// The gradients of agent_bias, written to the tables of `gradients`.
template <class T, element DB, class Executor = serial>
void agent_bias_backward(tensor_view<DB, 4> dbias, agent_grid const& grid,
                         agent_bias_tables<T> const& gradients, Executor const& run_on = {}) {
  detail::check_agent_bias(gradients, grid, "the gradient of the bias", dbias);
  index_t const agents = dbias.extent(2), high = gradients.table.extent(2),
                wide = gradients.table.extent(3);
  auto const bytes = arena::bytes<double>(high * wide + grid.width);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, dbias.extent(1) * agents, [&](index_t piece, index_t worker) {
    index_t const h = piece / agents, a = piece % agents;
    double* const table =
        arena(memory + worker * bytes).template take<double>(high * wide + grid.width);
    double* const columns = table + high * wide;
    std::fill_n(table, high * wide + grid.width, 0.0);
    if (grid.class_token)
      gradients.of_class(h, a) = convert_element<T>(dbias(index_t{0}, h, a, index_t{0}));
    for (index_t y = 0; y < grid.height; ++y) {
      detail::enlarged const down(y, high, grid.height);
      double row = 0;
      for (index_t x = 0; x < grid.width; ++x) {
        detail::enlarged const along(x, wide, grid.width);
        double const slope =
            static_cast<double>(dbias(index_t{0}, h, a, grid.class_token + y * grid.width + x));
        row += slope;
        columns[x] += slope;
        auto const add = [&](index_t in, double part) {
          table[in * wide + along.first] += (1 - along.share) * part;
          table[in * wide + along.second] += along.share * part;
        };
        add(down.first, (1 - down.share) * slope);
        add(down.second, down.share * slope);
      }
      gradients.rows(h, a, y) = static_cast<T>(row);
    }
    for (index_t x = 0; x < grid.width; ++x)
      gradients.columns(h, a, x) = static_cast<T>(columns[x]);
    for (index_t y = 0; y < high; ++y)
      for (index_t x = 0; x < wide; ++x)
        gradients.table(h, a, y, x) = static_cast<T>(table[y * wide + x]);
  });
}

namespace detail {

template <class V, class W, class B, class O>
void check_depthwise(tensor_view<V, 4> value, tensor_view<W, 3> kernel, tensor_view<B, 2> offset,
                     agent_grid const& grid, char const* out_name, tensor_view<O, 4> out) {
  check_agent_grid(grid, "value", value.extents());
  expect_like(out_name, out, value.extents(), "value");
  index_t const heads = value.extent(2), dim = value.extent(3);
  require(kernel.extents() == std::array<index_t, 3>{9, heads, dim} &&
              offset.extents() == std::array{heads, dim},
          [&] {
            return "the kernel has shape " + shape_text(kernel.extents()) + ", the offset " +
                   shape_text(offset.extents()) + "; expected [9, " + std::to_string(heads) + ", " +
                   std::to_string(dim) + "] and [" + std::to_string(heads) + ", " +
                   std::to_string(dim) + "]";
          });
}

/// The tokens on the grid.
template <class E>
tensor_view<E, 4> on_grid(tensor_view<E, 4> tokens, agent_grid const& grid) {
  return tokens.slice(1, grid.class_token, grid.height * grid.width);
}

}  // namespace detail

/// Adds a 3x3 depthwise convolution of the values to out: sum_d kernel(d, c) value(i + d, c) + offset(c), with zeros around the
/// grid; nothing for the class token. kernel [9, heads, dim], row-major; offset [heads, dim].
template <element V, element W, element B, element O, class Executor = serial>
void add_depthwise(tensor_view<V, 4> value, tensor_view<W, 3> kernel, tensor_view<B, 2> offset,
                   agent_grid const& grid, tensor_view<O, 4> out, Executor const& run_on = {}) {
  using T = compute_type<V, W, B, O>;
  detail::check_depthwise(value, kernel, offset, grid, "out", out);
  auto const from = detail::on_grid(value, grid);
  auto const to = detail::on_grid(out, grid);
  auto const filtered = detail::laid_out<detail::agent_grid_memory>([&](arena& memory) {
    return bnhd(memory.take<T>(from.size()), from.extent(0), from.extent(1), from.extent(2),
                from.extent(3));
  });
  local_aggregation(from, kernel, token_box<2>{{grid.height, grid.width}, {3, 3}}, filtered,
                    run_on);
  detail::add_scaled(run_on, T(1), filtered, to);
  // The same offset for every token.
  tensor_view<B const, 4> const everywhere(offset.data(), to.extents(),
                                           {0, 0, offset.stride(0), offset.stride(1)});
  detail::add_scaled(run_on, T(1), everywhere, to);
}

/// The gradients of add_depthwise: dkernel and doffset are written, dvalue is added to.
template <element V, element W, element B, element DO, element DV, element DW, element DB,
          class Executor = serial>
void add_depthwise_backward(tensor_view<V, 4> value, tensor_view<W, 3> kernel,
                            tensor_view<B, 2> offset, agent_grid const& grid,
                            tensor_view<DO, 4> dout, tensor_view<DV, 4> dvalue,
                            tensor_view<DW, 3> dkernel, tensor_view<DB, 2> doffset,
                            Executor const& run_on = {}) {
  using T = compute_type<V, W, B, DO, DV, DW, DB>;
  detail::check_depthwise(value, kernel, offset, grid, "dout", dout);
  detail::check_depthwise(value, dkernel, doffset, grid, "dvalue", dvalue);
  auto const from = detail::on_grid(value, grid);
  auto const slopes = detail::on_grid(dout, grid);
  auto const back = detail::laid_out<detail::agent_grid_memory>([&](arena& memory) {
    return bnhd(memory.take<T>(from.size()), from.extent(0), from.extent(1), from.extent(2),
                from.extent(3));
  });
  local_aggregation_backward(from, kernel, token_box<2>{{grid.height, grid.width}, {3, 3}}, slopes,
                             back, dkernel, run_on);
  detail::add_scaled(run_on, T(1), back, detail::on_grid(dvalue, grid));
  source<T> const all(slopes);
  detail::for_row_sums<T>(run_on, 1, 1, slopes.extent(2), slopes.extent(3),
                          [&](detail::row_sum<T>& sum, index_t, index_t, index_t h) {
                            for (index_t b = 0; b < slopes.extent(0); ++b)
                              sum.add(all, b, h, {0, slopes.extent(1)});
                            T const* const whole = sum.mean(1);
                            for (index_t d = 0; d < slopes.extent(3); ++d)
                              doffset(h, d) = convert_element<DB>(whole[d]);
                          });
}

}  // namespace heed
