#pragma once

#include <heed/attend/problem.hpp>
#include <heed/simd/finite.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/mask.hpp>
#include <heed/simd/multiply.hpp>
#include <heed/simd/transpose.hpp>

#include <array>

/// One tile of scores: a panel of queries in the lanes of registers against a block of keys, a key a row.
///
/// Everything that reads scores (forward, backward, sweeps) makes them here, so that they agree to the bit.
namespace heed::attend {

using simd::all_finite;

/// Keys in a tile. Larger tiles amortise the accumulators' traffic, smaller ones stay in the first cache.
inline constexpr index_t keys_per_tile = 128;

/// A panel: consecutive query rows of one head, one a lane.
struct panel {
  interval rows;       // of the sequence
  interval positions;  // around their positions
  int registers = 0;   // how many hold them

  index_t count() const { return rows.size(); }
};

/// The queries that the engine works on at a time, of the type of the computation: what an arrangement that puts
/// queries in boxes has for the size of a box.
template <class T, class Arch = xsimd::default_arch>
inline constexpr index_t panel_lanes = simd::tile_shape<T, Arch>::max_lanes;

/// How the rows of a sequence are cut into panels; a function of their number and arrangement alone.
template <class T, class Arch>
struct panelling {
  using shape = simd::tile_shape<T, Arch>;

  static index_t count(place const& where) {
    index_t const block = block_of(where), whole = where.rows / block;
    return whole * of_block(block) + of_block(where.rows - whole * block);
  }

  static interval rows(place const& where, interval panels) {
    index_t const block = block_of(where), each = of_block(block);
    auto const first_of = [&](index_t panel) {
      index_t const whole = panel / each;
      return whole * block + (panel - whole * each) * shape::max_lanes;
    };
    return {first_of(panels.first), std::min(first_of(panels.last), where.rows)};
  }

  /// The most that a sequence has.
  static index_t most(sequences const& all) {
    index_t most = 0;
    for (index_t g = 0; g < all.count; ++g) most = std::max(most, count(all.at(g, 0)));
    return most;
  }

  static panel at(place const& where, standing const& position, index_t number) {
    interval const rows = panelling::rows(where, {number, number + 1});
    return {rows, position.hull(where, rows),
            static_cast<int>((rows.size() + shape::lanes - 1) / shape::lanes)};
  }

 private:
  /// Panels begin anew at each block of so many rows.
  static index_t block_of(place const& where) {
    return where.panel_rows > 0 ? where.panel_rows : shape::max_lanes;
  }
  static index_t of_block(index_t rows) { return (rows + shape::max_lanes - 1) / shape::max_lanes; }
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

/// Rows of a sequence, converted into `to`; zeros where no token stands.
template <class T>
void copy_query_rows(source<T> const& from, place const& where, interval rows, T* to,
                     index_t stride) {
  where.each_row_run(rows, [&](index_t before, token_run tokens) {
    T* const part = to + before * stride;
    if (tokens.padding())
      for (index_t r = 0; r < tokens.size; ++r) std::fill_n(part + r * stride, from.dim(), T(0));
    else
      from.copy(where.batch, where.head, tokens.first, tokens.size, part, stride, 0, tokens.step);
  });
}

/// Some keys or values of a sequence: where they lie, or in `scratch`.
template <class T>
row_block<T> key_rows(source<T> const& from, place const& where, index_t head, interval keys,
                      T* scratch, bool reused = false) {
  if (where.order == nullptr)
    return from.rows(where.batch, head, where.first_key + keys.first, keys.size(), scratch, reused);
  where.each_key_run(keys, [&](index_t before, token_run tokens) {
    from.copy(where.batch, head, tokens.first, tokens.size, scratch + before * from.dim(),
              from.dim(), 0, tokens.step);
  });
  return {scratch, from.dim()};
}

/// The same of single tokens: where each lies, or in `scratch`.
template <class T>
scattered_rows<T> scattered_key_rows(source<T> const& from, place const& where, index_t head,
                                     std::span<index_t const> tokens, T const** rows, T* scratch) {
  if (from.in_place()) {
    T const* const first = from.rows(where.batch, head, 0, 1, scratch).data;
    for (std::size_t k = 0; k < tokens.size(); ++k) rows[k] = first + tokens[k] * from.strides()[1];
  } else {
    for (std::size_t k = 0; k < tokens.size(); ++k, scratch += from.dim()) {
      from.copy(where.batch, head, tokens[k], 1, scratch, from.dim());
      rows[k] = scratch;
    }
  }
  return {rows};
}

/// Query rows as columns: to[d][lane] = factor[lane] * row(lane)[d], zero in lanes beyond `rows`. `tokens` are the rows of
/// the tensor, below 0 where there is none.
template <class Arch, class T>
void load_columns(source<T> const& from, place const& where, interval rows, index_t const* tokens,
                  T const* factor, T* to, index_t lanes, T* row_scratch) {
  using batch = xsimd::batch<T, Arch>;
  index_t const count = rows.size(), dim = from.dim();
  if (where.order == nullptr) {
    row_block<T> const block =
        from.rows(where.batch, where.head, where.first_row + rows.first, count, row_scratch, true);
    simd::transpose<Arch>(count, dim, block.data, block.stride, to, lanes);
    for (index_t d = 0; d < dim; ++d) std::fill(to + d * lanes + count, to + (d + 1) * lanes, T(0));
  } else {
    T const* lane_rows[simd::tile_shape<T, Arch>::max_lanes];
    T const* const first =
        from.in_place() ? from.rows(where.batch, where.head, 0, 1, row_scratch).data : nullptr;
    for (index_t lane = 0; lane < lanes; ++lane) {
      T* const own = row_scratch + lane * dim;
      bool const empty = lane >= count || tokens[lane] < 0;
      if (empty)
        std::fill_n(own, dim, T(0));
      else if (first == nullptr)
        from.copy(where.batch, where.head, tokens[lane], 1, own, dim);
      lane_rows[lane] = empty || first == nullptr ? own : first + tokens[lane] * from.strides()[1];
    }
    simd::transpose_rows<Arch, T>(lanes, dim, lane_rows, simd::rows_to_write<T>{to, lanes}, true);
  }
  if (factor == nullptr) return;
  for (index_t d = 0; d < dim; ++d)
    for (index_t lane = 0; lane < lanes; lane += static_cast<index_t>(batch::size)) {
      T* const at = to + d * lanes + lane;
      (batch::load_aligned(at) * batch::load_aligned(factor + lane)).store_aligned(at);
    }
}

/// A panel made ready to meet keys.
template <class T>
struct query_panel {
  panel queries;
  T* query;           // [dim][lane], scaled, in units of scores
  T* positions;       // [lane]
  index_t* standing;  // the same as whole numbers
  index_t* tokens;    // [lane], the rows of the tensors, below 0 where there is none

  query_panel(arena& memory, index_t dim, index_t width)
      : query(memory.take<T>(dim * width)),
        positions(memory.take<T>(width)),
        standing(memory.take<index_t>(width)),
        tokens(memory.take<index_t>(width)) {}

  /// Where the query of a lane lies, as a place whose row() is known already.
  place seen_from(place const& where, index_t lane) const {
    place seen = where;
    seen.order = nullptr;
    seen.first_row = tokens[lane] - (queries.rows.first + lane);
    return seen;
  }

  std::span<index_t const> each_position() const {
    return {standing, static_cast<std::size_t>(queries.count())};
  }
};

/// The keys of a tile, and which queries of a panel do not meet them.
template <class T>
struct key_tile {
  static constexpr index_t most_runs = keys_per_tile, most_found = 64;
  static constexpr std::uint64_t met_by_all = ~std::uint64_t{0};

  interval* runs;        // of the sequence's keys, one below the other in the tile
  interval* found;       // runs to come
  T* positions;          // [key row], for those who ask for them
  index_t* tokens;       // [key row], where they lie
  std::uint64_t* masks;  // [key row], of the lanes that meet the key; only in `masked`
  int run_count = 0;
  index_t count = 0;     // of keys
  interval masked = {};  // the key rows that not every query meets

  explicit key_tile(arena& memory)
      : runs(memory.take<interval>(most_runs)),
        found(memory.take<interval>(most_found)),
        positions(memory.take<T>(keys_per_tile)),
        tokens(memory.take<index_t>(keys_per_tile)),
        masks(memory.take<std::uint64_t>(keys_per_tile)) {}

  std::span<interval const> each_run() const { return {runs, static_cast<std::size_t>(run_count)}; }

  void clear() {
    run_count = 0;
    count = 0;
    masked = {};
  }

  /// Adds a run of keys below the others, for which there is room.
  void add(interval run) {
    runs[run_count++] = run;
    count += run.size();
  }

  /// Whether some query does not meet the key of a row.
  bool hides(index_t k) const {
    return masked.first <= k && k < masked.last && masks[k] != met_by_all;
  }

  /// Finds out where the keys lie.
  std::span<index_t const> locate(place const& where) {
    index_t* next = tokens;
    for (interval run : each_run())
      where.each_key_run(run, [&](index_t, token_run rows) {
        for (index_t i = 0; i < rows.size; ++i) *next++ = rows.first + i * rows.step;
      });
    return {tokens, static_cast<std::size_t>(count)};
  }

  /// Finds out which queries of a panel meet which keys.
  void mask(query_panel<T> const& panel, bound_any_pattern const& pattern) {
    // Masks are dearer than a look at a part of a long run.
    constexpr index_t step = 32, short_run = 48;
    auto const queries = panel.each_position();
    masked = {};
    if (std::all_of(runs, runs + run_count, [](interval run) { return run.size() <= short_run; })) {
      pattern.mask_runs(queries, each_run(), masks);
      return note_masked({0, count}, every(queries));
    }
    index_t at = 0;
    for (interval run : each_run())
      for (index_t first = run.first; first < run.last; first += step) {
        interval const part{first, std::min(first + step, run.last)};
        if (pattern.cover(panel.queries.positions, part) != coverage::all) {
          pattern.mask(queries, part, masks + at);
          note_masked({at, at + part.size()}, every(queries));
        }
        at += part.size();
      }
  }

  /// A tile of one run, without the keys at its ends that no query meets.
  void set(interval run, query_panel<T> const& panel, bound_any_pattern const& pattern) {
    clear();
    coverage const cover =
        run.empty() ? coverage::none : pattern.cover(panel.queries.positions, run);
    if (cover == coverage::none) return;
    add(run);
    if (cover == coverage::all) return;
    mask(panel, pattern);
    std::uint64_t const all = every(panel.each_position());
    auto const is_empty = [&](index_t k) {
      return masked.first <= k && k < masked.last && (masks[k] & all) == 0;
    };
    index_t first = 0, last = count;
    while (first < last && is_empty(first)) ++first;
    while (first < last && is_empty(last - 1)) --last;
    if (first == 0 && last == count) return;
    std::copy(masks + first, masks + last, masks);
    masked = intersect({masked.first - first, masked.last - first}, {0, last - first});
    runs[0] = {run.first + first, run.first + last};
    count = last - first;
    if (count == 0) clear();
  }

 private:
  /// Widens `masked` to the key rows in `part` that not all queries meet.
  void note_masked(interval part, std::uint64_t all) {
    for (index_t k = part.first; k < part.last; ++k) {
      if ((masks[k] & all) == all) {
        masks[k] = met_by_all;
        continue;
      }
      // What lies between masked rows and was met by all has no mask yet.
      if (masked.empty()) masked = {k, k};
      for (; masked.last < part.first; ++masked.last) masks[masked.last] = met_by_all;
      masked.last = k + 1;
    }
  }

  static std::uint64_t every(std::span<index_t const> queries) {
    return ~std::uint64_t{0} >> (64 - queries.size());
  }
};

/// Brings the keys in `among` that a panel meets, wherever they lie, into a tile, and calls meet() with each tileful, of
/// about the same size. The panel meets nothing else, so the tile needs a mask only within its runs.
template <class T, class Meet>
void gather_keys(bound_any_pattern const& pattern, interval queries, index_t all_keys,
                 interval among, key_tile<T>& tile, Meet&& meet) {
  std::span<interval> const runs(tile.found, tile.most_found);
  tile.clear();
  auto const meet_and_clear = [&] {
    meet();
    tile.clear();
  };
  for (index_t from = among.first;;) {
    std::size_t const found = pattern.list_keys(queries, from, all_keys, runs);
    std::size_t count = 0;
    index_t keys = tile.count;
    while (count < found && runs[count].first < among.last) {
      runs[count].last = std::min(runs[count].last, among.last);
      keys += runs[count++].size();
    }
    index_t const tiles = std::max<index_t>(1, (keys + keys_per_tile - 1) / keys_per_tile);
    index_t const size = std::min(keys_per_tile, simd::round_up((keys + tiles - 1) / tiles, 4));
    if (tile.count >= size) meet_and_clear();  // what the runs before left over
    for (std::size_t i = 0; i < count; ++i)
      for (interval run = runs[i]; !run.empty();) {
        interval const part{run.first, std::min(run.last, run.first + size - tile.count)};
        tile.add(part);
        if (tile.count == size) meet_and_clear();
        run.first = part.last;
      }
    if (count < runs.size()) break;
    from = runs[count - 1].last;
  }
  if (tile.count > 0) meet_and_clear();
}

/// Columns as rows of the output: the reverse of load_columns, each lane times its factor.
template <class Arch, class T>
void store_columns(T* columns, index_t lanes, T const* factor, sink<T> const& to,
                   place const& where, interval rows, index_t const* tokens, T* row_scratch) {
  using batch = xsimd::batch<T, Arch>;
  index_t const dim = to.extents()[3], count = rows.size();
  for (index_t d = 0; d < dim; ++d)
    for (index_t lane = 0; lane < lanes; lane += static_cast<index_t>(batch::size)) {
      T* const at = columns + d * lanes + lane;
      (batch::load_aligned(at) * batch::load_aligned(factor + lane)).store_aligned(at);
    }
  if (to.in_place()) {
    T* lane_rows[simd::tile_shape<T, Arch>::max_lanes];
    T* const first = to.row(where.batch, where.head, 0);
    for (index_t lane = 0; lane < count; ++lane)
      lane_rows[lane] = tokens[lane] < 0 ? row_scratch : first + tokens[lane] * to.row_stride();
    simd::transpose_rows<Arch, T>(dim, count, row_block<T>{columns, lanes}, lane_rows, false);
  } else {
    simd::transpose<Arch>(dim, count, columns, lanes, row_scratch, dim);
    for (index_t lane = 0; lane < count; ++lane)
      if (tokens[lane] >= 0)
        to.store(where.batch, where.head, tokens[lane], 1, row_scratch + lane * dim, dim);
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
  key_tile<T> const& keys;
  T* scores;            // [key][width], raw products in, scores out
  T* staged = nullptr;  // [modifier that reads][key][width]
  index_t staged_stride = 0;

  index_t first_key() const { return keys.runs[0].first; }

  /// Fills in what modifiers and factors read: positions, and numbers from memory, 0 in lanes beyond the last row.
  /// Call before finish.
  void stage() const {
    if constexpr (modifiers + std::tuple_size_v < decltype(Bound::factors) >> 0) {
      T* position = keys.positions;
      for (interval run : keys.each_run())
        for (index_t key = run.first; key < run.last; ++key) *position++ = static_cast<T>(key);
    }
    index_t reader = 0;
    auto const fill = [&](auto const& modifier) {
      if constexpr (heed::detail::reads<std::remove_cvref_t<decltype(modifier)>>) {
        T* const numbers = staged + reader++ * staged_stride;
        T* part = numbers;
        for (interval run : keys.each_run()) {
          modifier.fill(pair_tile<T>{part, queries.rows, run, 1, width});
          part += run.size() * width;
        }
        for (index_t k = 0; k < keys.count && queries.count() < width; ++k)
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
    if (keys.hides(k)) simd::hide_unset(score, keys.masks[k]);
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
    batch const key(keys.positions[k]);
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
    batch const key(keys.positions[k]);
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

/// The keys that a panel may meet; those of a scattered pattern are gathered instead.
template <class T, class Bound>
interval_set keys_of(query_panel<T> const& at, place const& where, Bound const& bound) {
  return bound.pattern.scattered() ? interval_set({0, where.keys})
                                   : bound.pattern.keys(at.queries.positions, where.keys);
}

/// Opens panel `number` of a place. `scratch` holds a panel's rows.
template <class Arch, class Bound, class T>
void open_panel(problem<T> const& p, place const& where, index_t number, query_panel<T>& at,
                T* scratch) {
  constexpr index_t lanes = simd::tile_shape<T, Arch>::lanes;
  at.queries = panelling<T, Arch>::at(where, p.position, number);
  where.each_row_run(at.queries.rows, [&](index_t before, token_run run) {
    for (index_t i = 0; i < run.size; ++i)
      at.tokens[before + i] = run.padding() ? -1 : run.first + i * run.step;
  });
  index_t const width = at.queries.registers * lanes;
  alignas(64) T scale[simd::tile_shape<T, Arch>::max_lanes];
  constexpr T unit = score_tile<1, Arch, T, Bound>::query_unit;
  index_t const count = at.queries.count();
  p.position.list(where, at.queries.rows, at.standing);
  // Lanes beyond the last row stand where it stands; what they compute is never stored.
  std::fill(at.standing + count, at.standing + width, at.standing[count - 1]);
  std::copy_n(at.standing, width, at.positions);
  std::fill_n(scale, width, p.scale * unit);
  if (p.row_scale.data() != nullptr)
    for (index_t lane = 0; lane < count; ++lane)
      scale[lane] = p.score_scale(where, at.tokens[lane]) * unit;
  load_columns<Arch>(p.query, where, at.queries.rows, at.tokens, scale, at.query, width, scratch);
}

/// scores[k][lane] = key_k . query_lane, and to[d][lane] += sum_k value_k[d] weights[k][lane].
template <int Registers, class Arch, class T>
void multiply_keys(index_t count, index_t dim, row_block<T> key, T const* query, T* scores) {
  constexpr index_t width = simd::tile_shape<T, Arch>::lanes * Registers;
  simd::multiply<Registers, false, Arch>(count, dim, {key.data, key.stride, 1}, query, width,
                                         scores, width);
}
template <int Registers, class Arch, class T>
void multiply_keys(index_t count, index_t dim, scattered_rows<T> key, T const* query, T* scores) {
  constexpr index_t width = simd::tile_shape<T, Arch>::lanes * Registers;
  simd::multiply_rows<Registers, Arch>(count, dim, key.rows, query, width, scores, width);
}
template <int Registers, class Arch, class T>
void multiply_values(index_t dim, index_t count, row_block<T> value, T const* weights, T* to) {
  constexpr index_t width = simd::tile_shape<T, Arch>::lanes * Registers;
  simd::multiply<Registers, true, Arch>(dim, count, {value.data, 1, value.stride}, weights, width,
                                        to, width);
}
template <int Registers, class Arch, class T>
void multiply_values(index_t dim, index_t count, scattered_rows<T> value, T const* weights, T* to) {
  constexpr index_t width = simd::tile_shape<T, Arch>::lanes * Registers;
  simd::multiply_columns<Registers, Arch>(dim, count, value.rows, weights, width, to, width);
}

/// to[c][lane] += sum_k rows(k, c) * weights[k][lane], leaving out the pairs whose mark is -0: the same as
/// simd::multiply, and safe where hidden rows hold NaN or infinity.
template <int Registers, class Arch, class T, class Rows>
void multiply_visible(index_t columns, index_t depth, Rows rows, T const* weights, T const* marks,
                      T* to, index_t width) {
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
        batch const next =
            simd::fma(batch(rows[k][c]), batch::load_aligned(weights + k * width + r * lanes), sum);
        sum = xsimd::select(visible, next, sum);
      }
      sum.store_aligned(at);
    }
}

}  // namespace heed::attend
