#pragma once

#include <heed/attend/problem.hpp>
#include <heed/simd/multiply.hpp>
#include <heed/simd/transpose.hpp>

#include <array>

/// One tile of scores: a panel of queries in the lanes of registers against a block of keys, a key a row.
///
/// Everything that reads scores (forward, backward, sweeps) makes them here, so that they agree to the bit.
namespace heed::attend {

/// Keys in a tile. Larger tiles amortise the accumulators' traffic, smaller ones stay in the first cache.
inline constexpr index_t keys_per_tile = 128;

/// A panel: consecutive query rows of one head, one a lane.
struct panel {
  interval rows;       // of the sequence
  interval positions;  // around their positions
  int registers = 0;   // how many hold them

  index_t count() const { return rows.size(); }
};

/// How the rows of a sequence are cut into panels; a function of their number alone.
template <class T, class Arch>
struct panelling {
  using shape = simd::tile_shape<T, Arch>;

  static index_t count(index_t rows) { return (rows + shape::max_lanes - 1) / shape::max_lanes; }

  static panel at(place const& where, standing const& position, index_t number) {
    interval const rows{number * shape::max_lanes,
                        std::min((number + 1) * shape::max_lanes, where.rows)};
    return {rows, position.hull(where, rows),
            static_cast<int>((rows.size() + shape::lanes - 1) / shape::lanes)};
  }
};

/// Calls f with the number of registers of a panel as a compile-time constant.
template <class F>
void with_registers(int registers, F&& f) {
  if (registers >= 3)
    f(std::integral_constant<int, 3>{});
  else if (registers == 2)
    f(std::integral_constant<int, 2>{});
  else
    f(std::integral_constant<int, 1>{});
}

/// Query rows as columns: to[d][lane] = factor[lane] * row(lane)[d], zero in lanes beyond `count`.
template <class Arch, class T>
void load_columns(source<T> const& from, place const& where, interval rows, T const* factor, T* to,
                  index_t lanes, T* row_scratch) {
  using batch = xsimd::batch<T, Arch>;
  index_t const count = rows.size();
  row_block<T> const block =
      from.rows(where.batch, where.head, where.first_row + rows.first, count, row_scratch, true);
  simd::transpose<Arch>(count, from.dim(), block.data, block.stride, to, lanes);
  for (index_t d = 0; d < from.dim(); ++d) {
    T* const column = to + d * lanes;
    for (index_t lane = count; lane < lanes; ++lane) column[lane] = T(0);
    if (factor != nullptr)
      for (index_t lane = 0; lane < lanes; lane += static_cast<index_t>(batch::size))
        (batch::load_aligned(column + lane) * batch::load_aligned(factor + lane))
            .store_aligned(column + lane);
  }
}

/// A panel made ready to meet keys.
template <class T>
struct query_panel {
  panel queries;
  interval_set keys;  // that it may meet
  T* query;           // [dim][lane], scaled, in units of scores
  T* positions;       // [lane]

  query_panel(arena& memory, index_t dim, index_t width)
      : query(memory.take<T>(dim * width)), positions(memory.take<T>(width)) {}
};

/// Columns as rows of the output: the reverse of load_columns, each lane times its factor.
template <class Arch, class T>
void store_columns(T* columns, index_t lanes, T const* factor, sink<T> const& to,
                   place const& where, interval rows, T* row_scratch) {
  using batch = xsimd::batch<T, Arch>;
  index_t const dim = to.extents()[3];
  for (index_t d = 0; d < dim; ++d)
    for (index_t lane = 0; lane < lanes; lane += static_cast<index_t>(batch::size)) {
      T* const at = columns + d * lanes + lane;
      (batch::load_aligned(at) * batch::load_aligned(factor + lane)).store_aligned(at);
    }
  index_t const first = where.first_row + rows.first;
  if (to.in_place()) {
    simd::transpose<Arch>(dim, rows.size(), columns, lanes, to.row(where.batch, where.head, first),
                          to.row_stride());
  } else {
    simd::transpose<Arch>(dim, rows.size(), columns, lanes, row_scratch, dim);
    to.store(where.batch, where.head, first, rows.size(), row_scratch, dim);
  }
}

/// The scores of a panel against some keys: everything that turns the raw products into what the normaliser
/// sees.
template <int Registers, class Arch, class T, class Bound>
struct score_tile {
  using batch = xsimd::batch<T, Arch>;
  static constexpr index_t lanes = simd::tile_shape<T, Arch>::lanes;
  static constexpr index_t width = lanes * Registers;
  static constexpr std::size_t modifiers = std::tuple_size_v<decltype(Bound::modifiers)>;
  static constexpr T unit = static_cast<T>(decltype(Bound::normaliser)::score_unit);

  /// The factor that load_columns gives the queries: without modifiers the normaliser's unit is folded in.
  static constexpr T query_unit = modifiers == 0 ? unit : T(1);

  Bound const& bound;
  panel const& queries;
  T const* positions;  // of the lanes
  interval keys;
  interval masked;      // the keys, of the tile's, that not every query meets
  T* scores;            // [key][width], raw products in, scores out
  T* staged = nullptr;  // [modifier that reads][key][width]
  index_t staged_stride = 0;

  /// Fills in what modifiers read from memory, 0 in lanes beyond the last row. Call before finish.
  void stage() const {
    index_t reader = 0;
    auto const fill = [&](auto const& modifier) {
      if constexpr (heed::detail::reads<std::remove_cvref_t<decltype(modifier)>>) {
        T* const numbers = staged + reader++ * staged_stride;
        modifier.fill(pair_tile<T>{numbers, queries.rows, keys, 1, width});
        for (index_t k = 0; k < keys.size() && queries.count() < width; ++k)
          std::fill(numbers + k * width + queries.count(), numbers + (k + 1) * width, T(0));
      }
    };
    std::apply([&](auto const&... modifier) { (fill(modifier), ...); }, bound.modifiers);
  }

  /// Applies modifiers and pattern to the scores of key row `k`, in registers. With `slopes`, also gives
  /// d score / d raw product.
  template <bool Slopes = false>
  void finish(index_t k, batch (&score)[Registers], batch (*slopes)[Registers] = nullptr) const {
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      score[r] = batch::load_aligned(scores + k * width + r * lanes);
      if constexpr (Slopes) (*slopes)[r] = batch(T(1));
    }
    if constexpr (modifiers > 0) {
      apply_modifiers(
          k, score,
          [&](std::size_t, auto const& modifier, int r, batch const& before, batch const& after) {
            if constexpr (Slopes && requires { modifier.slope(before, after); })
              (*slopes)[r] *= modifier.slope(before, after);
          });
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) score[r] *= batch(unit);
    }
    if (masked.first <= k && k < masked.last) hide(k, score);
  }

  /// What modifier number `Which` does in key row `k`: the scores before and after it, and d score / d after.
  template <std::size_t Which>
  void trace(index_t k, batch (&before)[Registers], batch (&after)[Registers],
             batch (&later)[Registers]) const {
    batch score[Registers];
    for (int r = 0; r < Registers; ++r) {
      score[r] = batch::load_aligned(scores + k * width + r * lanes);
      later[r] = batch(T(1));
    }
    apply_modifiers(
        k, score,
        [&](std::size_t number, auto const& modifier, int r, batch const& in, batch const& out) {
          if (number == Which) {
            before[r] = in;
            after[r] = out;
          }
          if constexpr (requires { modifier.slope(in, out); })
            if (number > Which) later[r] *= modifier.slope(in, out);
        });
  }

  /// The numerator factor of each pair of key row `k`, 1 if there is none.
  void factors(index_t k, batch (&factor)[Registers]) const {
    batch const key(static_cast<T>(keys.first + k));
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      batch const query = batch::load_aligned(positions + r * lanes);
      factor[r] = batch(T(1));
      std::apply([&](auto const&... f) { ((factor[r] *= f.factor(query, key)), ...); },
                 bound.factors);
    }
  }

 private:
  /// The scores of key row `k` through all modifiers; `seen` is shown each step.
  template <class Seen>
  void apply_modifiers(index_t k, batch (&score)[Registers], Seen&& seen) const {
    batch const key(static_cast<T>(keys.first + k));
    batch query[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) query[r] = batch::load_aligned(positions + r * lanes);
    std::size_t number = 0;
    index_t reader = 0;
    auto const step = [&](auto const& modifier) {
      constexpr bool reads = heed::detail::reads<std::remove_cvref_t<decltype(modifier)>>;
      T const* const numbers = staged + reader * staged_stride + k * width;
      if constexpr (reads) ++reader;
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) {
        batch const before = score[r];
        if constexpr (reads)
          score[r] = modifier.apply(before, batch::load_aligned(numbers + r * lanes));
        else
          score[r] = modifier.apply(before, query[r], key);
        seen(number, modifier, r, before, score[r]);
      }
      ++number;
    };
    std::apply([&](auto const&... modifier) { (step(modifier), ...); }, bound.modifiers);
  }

  void hide(index_t k, batch (&score)[Registers]) const {
    batch const hidden(-std::numeric_limits<T>::infinity());
    auto const& pattern = bound.pattern;
    if constexpr (requires(batch p) {
                    { pattern.keep(p, p) } -> std::convertible_to<typename batch::batch_bool_type>;
                  }) {
      batch const key(static_cast<T>(keys.first + k));
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) {
        batch const query = batch::load_aligned(positions + r * lanes);
        score[r] = xsimd::select(pattern.keep(query, key), score[r], hidden);
      }
    } else {
      alignas(64) T lane_scores[lanes];
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) {
        score[r].store_aligned(lane_scores);
        for (index_t lane = 0; lane < lanes; ++lane)
          if (!pattern.keep(static_cast<index_t>(positions[r * lanes + lane]), keys.first + k))
            lane_scores[lane] = -std::numeric_limits<T>::infinity();
        score[r] = batch::load_aligned(lane_scores);
      }
    }
  }
};

/// How many of a bound sentence's modifiers read numbers from memory.
template <class Bound>
inline constexpr index_t readers_of = []<class... M>(std::tuple<M...> const*) {
  return (index_t{0} + ... + index_t{heed::detail::reads<M>});
}(static_cast<decltype(Bound::modifiers)*>(nullptr));

/// Whether pairs inside a tile can be hidden, by the pattern or by a modifier that reads -infinity.
template <class Bound>
constexpr bool hides(Bound const&, bool partial) {
  return partial || readers_of<Bound> > 0;
}

/// The rows of a tile of `keys` that some of the queries do not meet, counted from its first; none if all are met.
template <class Pattern>
interval masked_rows(Pattern const& pattern, interval queries, interval keys) {
  constexpr index_t step = 16;
  interval masked{keys.size(), 0};
  for (index_t k = 0; k < keys.size(); k += step) {
    interval const part = intersect({keys.first + k, keys.first + k + step}, keys);
    if (pattern_cover(pattern, queries, part) != coverage::all)
      masked = {std::min(masked.first, k), k + part.size()};
  }
  return masked;
}

/// Opens panel `number` of a place. `scratch` holds a panel's rows.
template <class Arch, class T, class Bound>
void open_panel(problem<T> const& p, place const& where, Bound const& bound, index_t number,
                query_panel<T>& at, T* scratch) {
  constexpr index_t lanes = simd::tile_shape<T, Arch>::lanes;
  at.queries = panelling<T, Arch>::at(where, p.position, number);
  at.keys = pattern_keys(bound.pattern, at.queries.positions, where.keys);
  index_t const width = at.queries.registers * lanes;
  alignas(64) T scale[simd::tile_shape<T, Arch>::max_lanes];
  for (index_t lane = 0; lane < width; ++lane) {
    // Lanes beyond the last row stand where it stands; what they compute is never stored.
    index_t const row = std::min(at.queries.rows.first + lane, at.queries.rows.last - 1);
    at.positions[lane] = static_cast<T>(p.position(where, row));
    scale[lane] = p.score_scale(where, row) * score_tile<1, Arch, T, Bound>::query_unit;
  }
  load_columns<Arch>(p.query, where, at.queries.rows, scale, at.query, width, scratch);
}

/// Whether every number in a block of rows is finite.
template <class Arch, class T>
bool all_finite(row_block<T> block, index_t rows, index_t columns) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto size = static_cast<index_t>(batch::size);
  batch sum(T(0));
  T rest = 0;
  for (index_t r = 0; r < rows; ++r) {
    T const* const row = block.data + r * block.stride;
    index_t c = 0;
    for (; c + size <= columns; c += size)
      sum = xsimd::fma(batch::load_unaligned(row + c), batch(T(0)), sum);
    for (; c < columns; ++c) rest += row[c] * T(0);
  }
  return xsimd::all(sum == batch(T(0))) && rest == T(0);
}

/// to[c][lane] += sum_k rows(k, c) * weights[k][lane], leaving out the pairs whose mark is -0: the same as
/// simd::multiply, and safe where hidden rows hold NaN or infinity.
template <int Registers, class Arch, class T>
void multiply_visible(index_t columns, index_t depth, row_block<T> rows, T const* weights,
                      T const* marks, T* to, index_t width) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  for (index_t c = 0; c < columns; ++c)
    for (int r = 0; r < Registers; ++r) {
      T* const at = to + c * width + r * lanes;
      batch sum = batch::load_aligned(at);
      for (index_t k = 0; k < depth; ++k) {
        // Of all weights only -0 has -infinity for its inverse.
        batch const inverse = batch(T(1)) / batch::load_aligned(marks + k * width + r * lanes);
        auto const visible = inverse != batch(-std::numeric_limits<T>::infinity());
        batch const next = xsimd::fma(batch(rows.data[k * rows.stride + c]),
                                      batch::load_aligned(weights + k * width + r * lanes), sum);
        sum = xsimd::select(visible, next, sum);
      }
      sum.store_aligned(at);
    }
}

}  // namespace heed::attend
