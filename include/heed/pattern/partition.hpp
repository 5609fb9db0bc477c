#pragma once

#include <heed/pattern/grid.hpp>
#include <heed/pattern/pattern.hpp>

#include <span>

/// Canvases cut into groups in which every query may meet every key: windows, grids, axes, residues. They are
/// arrangements: each group is a problem of its own, and no pair is hidden.
namespace heed {

namespace detail {

template <std::size_t d>
void expect_canvas(char const* name, grid_point<d> const& canvas, call_shape const& shape) {
  index_t const size = grid_size(canvas);
  require(shape.rows == size && shape.keys == size, [&] {
    return std::string(name) + ".canvas is " + shape_text(canvas) +
           "; expected the tokens of a call with " + std::to_string(shape.rows) + " queries and " +
           std::to_string(shape.keys) + " keys";
  });
}

template <std::size_t d>
void expect_between(char const* name, grid_point<d> const& values, index_t least,
                    grid_point<d> const& most) {
  for (std::size_t axis = 0; axis < d; ++axis)
    require(values[axis] >= least && values[axis] <= most[axis], [&] {
      return std::string(name) + " of axis " + std::to_string(axis) + " is " +
             std::to_string(values[axis]) + "; expected " + std::to_string(least) + " to " +
             std::to_string(most[axis]);
    });
}
template <std::size_t d>
void expect_positive(char const* name, grid_point<d> const& values) {
  for (std::size_t axis = 0; axis < d; ++axis)
    require(values[axis] >= 1, [&] {
      return std::string(name) + " of axis " + std::to_string(axis) + " is " +
             std::to_string(values[axis]) + "; expected at least 1";
    });
}

}  // namespace detail

/// Windows of `window` tokens along each axis, side by side from the coordinate `shift`; what is left before it, and at
/// the end, are smaller windows. 0 <= shift < window. Tokens stand row-major in their window.
template <std::size_t d>
struct window_partition {
  grid_point<d> canvas{};
  grid_point<d> window{};
  grid_point<d> shift{};

  index_t groups() const { return grid_size(windows()); }
  index_t rows(index_t group) const { return tokens(group).size(); }
  index_t keys(index_t group) const { return tokens(group).size(); }
  token_run query_run(index_t group, index_t slot) const { return tokens(group).run(slot); }
  token_run key_run(index_t group, index_t slot) const { return tokens(group).run(slot); }
  grid_point<d> query_place(index_t group, index_t slot) const {
    return grid_place(tokens(group).count, slot);
  }
  grid_point<d> key_place(index_t group, index_t slot) const { return query_place(group, slot); }

  /// The number of pairs.
  index_t pairs() const {
    index_t pairs = 1;
    for (std::size_t a = 0; a < d; ++a) {
      index_t sum = 0;
      for (index_t n = 0; n < windows()[a]; ++n) sum += span(a, n).size() * span(a, n).size();
      pairs *= sum;
    }
    return pairs;
  }

  void check(call_shape const& shape) const {
    detail::expect_positive("window_partition.canvas", canvas);
    detail::expect_positive("window_partition.window", window);
    grid_point<d> most;
    for (std::size_t a = 0; a < d; ++a) most[a] = window[a] - 1;
    detail::expect_between("window_partition.shift", shift, 0, most);
    detail::expect_canvas("window_partition", canvas, shape);
  }

 private:
  grid_point<d> windows() const {
    grid_point<d> count;
    for (std::size_t a = 0; a < d; ++a) {
      index_t const before = shift[a] > 0 ? 1 : 0;
      index_t const rest = std::max(canvas[a] - shift[a], index_t{0});
      count[a] = before + (rest + window[a] - 1) / window[a];
    }
    return count;
  }
  /// The coordinates of window n of an axis.
  interval span(std::size_t a, index_t n) const {
    index_t const last = shift[a] > 0 ? shift[a] + n * window[a] : (n + 1) * window[a];
    return {std::max(last - window[a], index_t{0}), std::min(last, canvas[a])};
  }
  lattice<d> tokens(index_t group) const {
    lattice<d> tokens{.canvas = canvas};
    grid_point<d> const at = grid_place(windows(), group);
    for (std::size_t a = 0; a < d; ++a) {
      tokens.first[a] = span(a, at[a]).first;
      tokens.count[a] = span(a, at[a]).size();
    }
    return tokens;
  }
};

/// A grid of `cells` tokens along each axis, as far apart as they can be: those of equal coordinates modulo canvas /
/// cells. cells divides canvas.
template <std::size_t d>
struct grid_partition {
  grid_point<d> canvas{};
  grid_point<d> cells{};

  index_t groups() const { return grid_size(apart()); }
  index_t rows(index_t) const { return grid_size(cells); }
  index_t keys(index_t) const { return grid_size(cells); }
  token_run query_run(index_t group, index_t slot) const { return tokens(group).run(slot); }
  token_run key_run(index_t group, index_t slot) const { return tokens(group).run(slot); }
  grid_point<d> query_place(index_t, index_t slot) const { return grid_place(cells, slot); }
  grid_point<d> key_place(index_t, index_t slot) const { return grid_place(cells, slot); }

  /// The number of pairs.
  index_t pairs() const { return grid_size(canvas) * grid_size(cells); }

  void check(call_shape const& shape) const {
    detail::expect_positive("grid_partition.canvas", canvas);
    detail::expect_between("grid_partition.cells", cells, 1, canvas);
    for (std::size_t axis = 0; axis < d; ++axis)
      require(canvas[axis] % cells[axis] == 0, [&] {
        return "grid_partition.cells of axis " + std::to_string(axis) + " is " +
               std::to_string(cells[axis]) + "; expected a divisor of the canvas, " +
               std::to_string(canvas[axis]);
      });
    detail::expect_canvas("grid_partition", canvas, shape);
  }

 private:
  grid_point<d> apart() const {
    grid_point<d> apart;
    for (std::size_t a = 0; a < d; ++a) apart[a] = canvas[a] / cells[a];
    return apart;
  }
  lattice<d> tokens(index_t group) const {
    return {canvas, grid_place(apart(), group), apart(), cells};
  }
};

/// One axis of a canvas: tokens that differ in no other coordinate.
template <std::size_t d>
struct axial {
  grid_point<d> canvas{};
  index_t axis = 0;

  index_t groups() const { return grid_size(others()); }
  index_t rows(index_t) const { return canvas[along()]; }
  index_t keys(index_t) const { return canvas[along()]; }
  token_run query_run(index_t group, index_t slot) const { return tokens(group).run(slot); }
  token_run key_run(index_t group, index_t slot) const { return tokens(group).run(slot); }

  /// The number of pairs.
  index_t pairs() const { return grid_size(canvas) * canvas[along()]; }

  void check(call_shape const& shape) const {
    detail::expect_positive("axial.canvas", canvas);
    require(axis >= 0 && axis < static_cast<index_t>(d), [&] {
      return "axial.axis is " + std::to_string(axis) + "; expected 0 to " + std::to_string(d - 1);
    });
    detail::expect_canvas("axial", canvas, shape);
  }

 private:
  std::size_t along() const { return static_cast<std::size_t>(axis); }
  grid_point<d> others() const {
    grid_point<d> others = canvas;
    others[along()] = 1;
    return others;
  }
  lattice<d> tokens(index_t group) const {
    lattice<d> tokens{canvas, grid_place(others(), group), all_axes<d>(1), all_axes<d>(1)};
    tokens.count[along()] = canvas[along()];
    return tokens;
  }
};

/// A pattern of positions in an arranged group: the query at slot i stands at i + (keys - rows), the last query at the
/// last key.
template <pattern P>
struct last_at_last {
  P pattern;

  template <bound_pattern Bound>
  struct shifted {
    Bound bound;
    index_t shift;

    constexpr bool keep(index_t query, index_t key) const { return bound.keep(query + shift, key); }
    constexpr interval_set keys(interval queries, index_t count) const {
      return pattern_keys(bound, moved(queries), count);
    }
    constexpr coverage cover(interval queries, interval keys) const {
      return pattern_cover(bound, moved(queries), keys);
    }
    void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
      std::array<index_t, 64> positions;
      for (std::size_t q = 0; q < queries.size(); ++q) positions[q] = queries[q] + shift;
      pattern_mask(bound, std::span<index_t const>(positions.data(), queries.size()), keys, rows);
    }
    constexpr bool scattered() const { return is_scattered(bound); }
    constexpr interval next_keys(interval queries, index_t from, index_t count) const {
      return next_run(bound, moved(queries), from, count);
    }

   private:
    constexpr interval moved(interval queries) const {
      return {queries.first + shift, queries.last + shift};
    }
  };

  auto bind(place const& where) const {
    return shifted<decltype(bind_at(pattern, where))>{bind_at(pattern, where),
                                                      where.keys - where.rows};
  }
  void check(call_shape const& shape) const { check_against(pattern, shape); }
};

/// Tokens of one sequence by their position modulo `step`, the last query at the last key. A dilated window of reach w is
/// a plain one of reach w / step in each group:
///
///     residues const apart{.step = 4, .query_count = N, .key_count = M};
///     attention(q, k, v, out, apart, apart.pattern(sliding_window{.left = 63, .right = 0}));  // 253 positions back
///
/// Leading tokens that all others meet (global tokens) are not to be in here: slice the views behind them, and join
/// their part with merge_attention.
struct residues {
  index_t step = 1;
  index_t query_count = 0;
  index_t key_count = 0;

  index_t groups() const { return step; }
  index_t rows(index_t group) const { return query_tokens(group).size(); }
  index_t keys(index_t group) const { return key_tokens(group).size(); }
  token_run query_run(index_t group, index_t slot) const { return query_tokens(group).run(slot); }
  token_run key_run(index_t group, index_t slot) const { return key_tokens(group).run(slot); }

  /// A pattern of positions in a group: position p of the sequence is p / step of its group.
  template <heed::pattern P>
  last_at_last<P> pattern(P const& of_positions) const {
    return {of_positions};
  }

  void check(call_shape const& shape) const {
    require(step >= 1,
            [&] { return "residues.step is " + std::to_string(step) + "; expected at least 1"; });
    require(shape.rows == query_count && shape.keys == key_count, [&] {
      return "residues are of " + std::to_string(query_count) + " queries and " +
             std::to_string(key_count) + " keys; expected " + std::to_string(shape.rows) + " and " +
             std::to_string(shape.keys);
    });
  }

 private:
  lattice<1> key_tokens(index_t group) const { return every(group, key_count); }
  lattice<1> query_tokens(index_t group) const {
    index_t const position = group - (key_count - query_count);  // of a token with this residue
    return every((position % step + step) % step, query_count);
  }
  lattice<1> every(index_t first, index_t tokens) const {
    return {{tokens}, {first}, {step}, {first < tokens ? (tokens - first + step - 1) / step : 0}};
  }
};

}  // namespace heed
