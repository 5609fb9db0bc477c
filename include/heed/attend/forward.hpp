#pragma once

#include <heed/attend/decode.hpp>
#include <heed/attend/sweep.hpp>
#include <heed/attend/tile.hpp>

#include <new>

/// Engine 1, forward: tiles of scores become tiles of weights and are multiplied into the output,
/// and nothing larger than a tile exists.
///
/// Queries stand in lanes and keys in rows, so that keys and values are scalars broadcast from
/// where they lie, and what belongs to a row (its maximum, its sum, its rescaling) is a lane and
/// needs no shuffling.
namespace heed::attend {

/// Shape-dependent sizes of the scratch memory of a forward worker.
template <class T, class Arch, class Bound>
class forward_scratch {
 public:
  using batch = xsimd::batch<T, Arch>;
  using shape = simd::tile_shape<T, Arch>;
  using state = typename decltype(Bound::normaliser)::template state<batch>;

  struct panel_memory : query_panel<T> {
    interval_set keys;  // that it may meet, unless they are gathered
    T* accumulated;     // [value_dim][lane]
    T* row_max;         // [lane], in units of scores
    T* score_sum;       // [lane], sum of weight * score
    state* rows;        // [register]

    panel_memory(arena& memory, problem<T> const& p)
        : query_panel<T>(memory, p.dim, shape::max_lanes),
          accumulated(memory.take<T>(p.value_dim * shape::max_lanes)),
          row_max(memory.take<T>(shape::max_lanes)),
          score_sum(memory.take<T>(shape::max_lanes)),
          rows(memory.take<state>(shape::max_registers)) {}
  };

  forward_scratch(arena& memory, problem<T> const& p, index_t panels) : keys(memory) {
    panel_ = memory.take<panel_memory>(panels);
    for (index_t i = 0; i < panels; ++i) {
      panel_memory const parts(memory, p);
      if (!memory.measuring()) new (panel_ + i) panel_memory(parts);
    }
    key = memory.take<T>(keys_per_tile * p.dim);
    value = memory.take<T>(keys_per_tile * p.value_dim);
    scores = memory.take<T>(keys_per_tile * shape::max_lanes);
    staged = memory.take<T>(readers_of<Bound> * staged_stride);
    rows = memory.take<T>(shape::max_lanes * std::max(p.dim, p.value_dim));
    key_rows = memory.take<T const*>(keys_per_tile);
    value_rows = memory.take<T const*>(keys_per_tile);
  }

  panel_memory& operator[](index_t i) const { return panel_[i]; }

  static constexpr index_t staged_stride = keys_per_tile * shape::max_lanes;
  key_tile<T> keys;
  T* key;
  T* value;
  T* scores;
  T* staged;
  T* rows;
  T const** key_rows;
  T const** value_rows;

 private:
  panel_memory* panel_;
};

/// One worker's view of a forward call at one place: carries panels through the key tiles.
template <class T, class Arch, class Bound, class Observers>
class forward_worker;
template <class T, class Arch, class Bound, class... Observers>
class forward_worker<T, Arch, Bound, std::tuple<Observers...>> {
 public:
  using batch = xsimd::batch<T, Arch>;
  using shape = simd::tile_shape<T, Arch>;
  using memory = forward_scratch<T, Arch, Bound>;
  using panel_memory = typename memory::panel_memory;
  using state = typename memory::state;
  static constexpr index_t lanes = shape::lanes;
  static constexpr index_t few_keys = 512;  // stay in the first two caches
  static constexpr bool factored = std::tuple_size_v < decltype(Bound::factors) >> 0;
  static constexpr bool sums_scores = (false || ... || wants_mean_score<Observers>);

  forward_worker(problem<T> const& p, place const& where, Bound const& bound, memory& scratch)
      : p_(p), where_(where), bound_(bound), scratch_(scratch) {}

  /// Panels [first, last) of the place against all their keys.
  void run(interval panels, sink<T> const& out, std::tuple<Observers...> const& observers) {
    constexpr bool in_any_order = decltype(Bound::normaliser)::order == key_order::any;
    // The keys of a small group stay near without being brought together.
    bool const gathers = in_any_order && (bound_.pattern.scattered() ||
                                          (where_.order != nullptr && where_.keys <= few_keys));
    if (gathers) {
      for (index_t number = panels.first; number < panels.last; ++number) {
        panel_memory& at = scratch_[0];
        begin(at, number);
        gather(at);
        // Values that are not finite spoil the sums even where they are hidden: then once more, with care.
        if (hides_pairs_ && !has_finite_sums(at)) {
          careful_ = true;
          begin(at, number);
          gather(at);
          careful_ = false;
        }
        finish(at, out, observers);
      }
      return;
    }
    interval_set keys;
    for (index_t i = 0; i < panels.size(); ++i) {
      panel_memory& at = scratch_[i];
      begin(at, panels.first + i);
      at.keys = keys_of(at, where_, bound_);
      keys = keys | at.keys;
    }
    visit(keys, panels.size());
    for (index_t i = 0; i < panels.size(); ++i) finish(scratch_[i], out, observers);
  }

 private:
  void begin(panel_memory& at, index_t number) {
    open_panel<Arch, Bound>(p_, where_, number, at, scratch_.rows);
    index_t const width = at.queries.registers * lanes;
    std::fill_n(at.row_max, width, -std::numeric_limits<T>::infinity());
    std::fill_n(at.score_sum, width, T(0));
    std::fill_n(at.accumulated, p_.value_dim * width, T(0));
    for (int r = 0; r < at.queries.registers; ++r) new (at.rows + r) state();
    hides_pairs_ = false;
  }

  bool has_finite_sums(panel_memory const& at) const {
    index_t const count = p_.value_dim * at.queries.registers * lanes;
    return all_finite<Arch, T>(row_block<T>{at.accumulated, count}, 1, count);
  }

  /// All panels through the tiles of `keys`, in the order that the normaliser asks for. Tiles lie
  /// on one grid, and a panel meets all its keys of a tile at once, so that a row's result does not
  /// depend on the panels it shares its tiles with.
  void visit(interval_set const& keys, index_t panels) {
    constexpr bool backwards = decltype(Bound::normaliser)::order == key_order::newest_first;
    index_t met = -1;  // the tile that was met last: intervals may share one
    auto const visit_tiles = [&](interval part) {
      index_t const first = part.first / keys_per_tile;
      index_t const last = (part.last + keys_per_tile - 1) / keys_per_tile;
      for (index_t i = 0; i < last - first; ++i) {
        index_t const tile = backwards ? last - 1 - i : first + i;
        if (tile == met) continue;
        met = tile;
        visit_tile(keys.hull_within({tile * keys_per_tile, (tile + 1) * keys_per_tile}), panels);
      }
    };
    if constexpr (backwards)
      for (auto part = keys.end(); part != keys.begin();) visit_tiles(*--part);
    else
      for (interval part : keys) visit_tiles(part);
  }

  void visit_tile(interval tile, index_t panels) {
    bool const reused = panels > 1;
    row_block<T> const key =
        key_rows(p_.key, where_, p_.key_head(where_.head), tile, scratch_.key, reused);
    row_block<T> const value =
        key_rows(p_.value, where_, p_.value_head(where_.head), tile, scratch_.value, reused);
    value_check finite{value, tile.size()};
    for (index_t i = 0; i < panels; ++i) {
      panel_memory& at = scratch_[i];
      scratch_.keys.set(at.keys.hull_within(tile), at, bound_.pattern);
      if (scratch_.keys.count == 0) continue;
      index_t const skipped = scratch_.keys.runs[0].first - tile.first;
      with_registers(at.queries.registers, [&](auto registers) {
        absorb<registers>(at, row_block<T>{key.data + skipped * key.stride, key.stride},
                          row_block<T>{value.data + skipped * value.stride, value.stride}, finite);
      });
    }
  }

  /// One panel through just the keys that it meets, wherever they lie.
  void gather(panel_memory& at) {
    gather_keys(bound_.pattern, at.queries.positions, where_.keys, {0, where_.keys}, scratch_.keys,
                [&] { meet(at); });
  }

  /// A panel meets the keys that have been gathered.
  void meet(panel_memory& at) {
    key_tile<T>& keys = scratch_.keys;
    keys.mask(at, bound_.pattern);
    scattered_rows<T> const key{scratch_.key_rows}, value{scratch_.value_rows};
    // The panels of a small group meet the same keys.
    interval const only = keys.run_count == 1 ? keys.runs[0] : interval{};
    if (only.empty() || only.first != located_.first || only.last != located_.last) {
      auto const tokens = keys.locate(where_);
      scattered_key_rows(p_.key, where_, p_.key_head(where_.head), tokens, scratch_.key_rows,
                         scratch_.key);
      scattered_key_rows(p_.value, where_, p_.value_head(where_.head), tokens, scratch_.value_rows,
                         scratch_.value);
      located_ = only;
    }
    auto const finite = [&](index_t) { return !careful_; };
    with_registers(at.queries.registers,
                   [&](auto registers) { absorb<registers>(at, key, value, finite); });
  }

  // Whether the values of a tile are finite, found out at most once.
  struct value_check {
    row_block<T> value;
    index_t rows;
    int known = -1;

    bool operator()(index_t dim) {
      if (known < 0) known = all_finite<Arch, T>(value, rows, dim) ? 1 : 0;
      return known == 1;
    }
  };

  /// A panel meets a tile of keys. `finite(value_dim)` says whether hidden values can do no harm.
  template <int Registers, class Rows, class Finite>
  void absorb(panel_memory& at, Rows key, Rows value, Finite& finite) {
    constexpr index_t width = lanes * Registers;
    key_tile<T> const& keys = scratch_.keys;
    index_t const count = keys.count;
    T* const scores = scratch_.scores;
    score_tile<Registers, Arch, T, Bound> const tile{
        bound_, at.queries, at.positions, keys, scores, scratch_.staged, memory::staged_stride};
    multiply_keys<Registers, Arch>(count, p_.dim, key, at.query, scores);
    tile.stage();

    bool const hidden = hides(bound_, !keys.masked.empty());
    hides_pairs_ |= hidden;
    bool const careful = hidden && !finite(p_.value_dim);
    // What a factor makes of a hidden pair can be anything.
    weigh<Registers>(at, tile, count, careful || (hidden && factored));
    if (careful)
      multiply_visible<Registers, Arch>(p_.value_dim, count, value, scores, scores, at.accumulated,
                                        width);
    else
      multiply_values<Registers, Arch>(p_.value_dim, count, value, scores, at.accumulated);
  }

  /// Turns the raw scores of a tile into weights, 0 where a pair is hidden, and moves the state of the rows. With `marked` a
  /// hidden pair has the weight -0, which no other has.
  template <int Registers>
  void weigh(panel_memory& at, score_tile<Registers, Arch, T, Bound> const& tile, index_t count,
             bool marked) {
    constexpr index_t width = lanes * Registers;
    constexpr bool backwards = decltype(Bound::normaliser)::order == key_order::newest_first;
    T* const scores = scratch_.scores;
    batch const lowest(-std::numeric_limits<T>::infinity());
    batch top[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) top[r] = lowest;
    constexpr bool modified = std::tuple_size_v < decltype(Bound::modifiers) >> 0;
    auto const meet = [&](index_t first, index_t last, auto finishing) {
      for (index_t k = first; k < last; ++k) {
        batch score[Registers];
        if constexpr (finishing) tile.finish(k, score);
#pragma GCC unroll 4
        for (int r = 0; r < Registers; ++r) {
          T* const place = scores + k * width + r * lanes;
          if constexpr (finishing)
            score[r].store_aligned(place);
          else
            score[r] = batch::load_aligned(place);
          top[r] = xsimd::max(top[r], score[r]);
        }
      }
    };
    if constexpr (modified) {
      meet(0, count, std::true_type{});
    } else {
      interval const masked = tile.keys.masked.empty() ? interval{count, count} : tile.keys.masked;
      meet(0, masked.first, std::false_type{});
      meet(masked.first, masked.last, std::true_type{});
      meet(masked.last, count, std::false_type{});
    }

    state rows[Registers];
    bool rescale = false;
    batch factor[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      rows[r] = at.rows[r];
      factor[r] = bound_.normaliser.admit(rows[r], top[r]);
      rescale |= !xsimd::all(factor[r] == batch(T(1)));
      T* const row_max = at.row_max + r * lanes;
      xsimd::max(batch::load_aligned(row_max), top[r]).store_aligned(row_max);
    }
    if (rescale) {
      for (index_t d = 0; d < p_.value_dim; ++d)
#pragma GCC unroll 4
        for (int r = 0; r < Registers; ++r) {
          T* const sum = at.accumulated + d * width + r * lanes;
          (batch::load_aligned(sum) * factor[r]).store_aligned(sum);
        }
    }
    batch score_sum[Registers];
    if constexpr (sums_scores)
      for (int r = 0; r < Registers; ++r)
        score_sum[r] = batch::load_aligned(at.score_sum + r * lanes) * factor[r];

    auto const weigh_keys = [&](auto marking) {
      for (index_t i = 0; i < count; ++i) {
        index_t const k = backwards ? count - 1 - i : i;
        [[maybe_unused]] bool const mark = readers_of<Bound> > 0 || tile.keys.hides(k);
        [[maybe_unused]] batch pair_factor[Registers];
        if constexpr (factored) tile.factors(k, pair_factor);
#pragma GCC unroll 4
        for (int r = 0; r < Registers; ++r) {
          T* const place = scores + k * width + r * lanes;
          batch const score = batch::load_aligned(place);
          batch weight = bound_.normaliser.weigh(rows[r], score);
          if constexpr (sums_scores)
            score_sum[r] += xsimd::select(score == lowest, batch(T(0)), weight * score);
          if constexpr (factored) weight *= pair_factor[r];
          if constexpr (marking)
            if (mark) weight = xsimd::select(score == lowest, batch(T(-0.0)), weight);
          weight.store_aligned(place);
        }
      }
    };
    if (marked)
      weigh_keys(std::true_type{});
    else
      weigh_keys(std::false_type{});

#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      at.rows[r] = rows[r];
      if constexpr (sums_scores) score_sum[r].store_aligned(at.score_sum + r * lanes);
    }
  }

  void finish(panel_memory& at, sink<T> const& out, std::tuple<Observers...> const& observers) {
    index_t const width = at.queries.registers * lanes;
    T* const factor = scratch_.scores;
    T* const lse = factor + shape::max_lanes;
    T* const rest = lse + shape::max_lanes;
    for (int r = 0; r < at.queries.registers; ++r) {
      auto const done = bound_.normaliser.finish(at.rows[r]);
      done.factor.store_aligned(factor + r * lanes);
      done.lse.store_aligned(lse + r * lanes);
      done.rest.store_aligned(rest + r * lanes);
    }
    if constexpr (sizeof...(Observers) > 0) {
      constexpr T unit = static_cast<T>(decltype(Bound::normaliser)::score_unit);
      for (index_t lane = 0; lane < at.queries.count(); ++lane) {
        row_summary<T> const summary{lse[lane], rest[lane], at.row_max[lane] / unit,
                                     at.score_sum[lane] * factor[lane] / unit};
        if (at.tokens[lane] >= 0)
          show_row(observers, at.seen_from(where_, lane), at.queries.rows.first + lane, summary);
      }
    }
    store_columns<Arch>(at.accumulated, width, factor, out, where_, at.queries.rows, at.tokens,
                        scratch_.rows);
  }

  problem<T> const& p_;
  place const& where_;
  Bound const& bound_;
  memory& scratch_;
  interval located_{};  // the run of keys whose rows have been found
  bool hides_pairs_ = false;
  bool careful_ = false;  // of hidden values that are not finite
};

/// How the panels of a call are cut into pieces for the executor: pieces of up to `panels` panels
/// of one head of one sequence, the last panels first, since under a causal pattern they are the
/// longest. Sequences that are small and many, the groups of an arrangement, share pieces.
template <class T, class Arch>
struct piece_list {
  using cut = panelling<T, Arch>;

  sequences const& sequence;
  index_t heads;
  index_t panels;
  index_t fewest_rows;   // sequences of fewer are left out
  index_t* first_piece;  // of each sequence, and their number at the end; only if they share none
  index_t sharing;       // sequences to a piece

  piece_list(sequences const& s, index_t h, index_t p, index_t fewest, index_t* memory)
      : sequence(s),
        heads(h),
        panels(p),
        fewest_rows(fewest),
        first_piece(memory),
        sharing(most_sharing(s, p)) {
    if (sharing > 1) return;
    first_piece[0] = 0;
    for (index_t g = 0; g < sequence.count; ++g)
      first_piece[g + 1] = first_piece[g] + heads * blocks_of(sequence.at(g, 0));
  }

  static index_t most_sharing(sequences const& s, index_t panels) {
    return s.order && s.groups > 1
               ? std::max<index_t>(1, panels / std::max<index_t>(1, cut::count(s.at(0, 0))))
               : 1;
  }

  index_t size() const {
    return sharing > 1 ? heads * ((sequence.count + sharing - 1) / sharing)
                       : first_piece[sequence.count];
  }

  /// Calls f(place, panels) for the parts of a piece.
  template <class F>
  void with(index_t piece, F&& f) const {
    if (sharing > 1) {
      index_t const first = piece / heads * sharing;
      for (index_t g = first; g < std::min(first + sharing, sequence.count); ++g) {
        place const where = sequence.at(g, piece % heads);
        f(where, interval{0, cut::count(where)});
      }
      return;
    }
    index_t const g =
        std::upper_bound(first_piece, first_piece + sequence.count + 1, piece) - first_piece - 1;
    index_t const within = piece - first_piece[g];
    index_t const blocks = (first_piece[g + 1] - first_piece[g]) / heads;
    index_t const first = (blocks - 1 - within % blocks) * panels;
    place const where = sequence.at(g, within / blocks);
    f(where, interval{first, std::min(first + panels, cut::count(where))});
  }

 private:
  index_t blocks_of(place const& where) const {
    return where.rows < fewest_rows ? 0 : (cut::count(where) + panels - 1) / panels;
  }
};

/// The rows of sequences with at least `fewest_rows` of problem `p` into `out`; `observers` see
/// them.
template <class Arch, class T, class Sentence, class Observers>
void panel_pass(problem<T> const& p, Sentence const& whole, Observers const& observers,
                any_executor const& run_on, workspace& scratch_memory, sink<T> const& out,
                index_t fewest_rows) {
  using bound = decltype(whole.at(place{}));
  using shape = simd::tile_shape<T, Arch>;
  using memory_type = forward_scratch<T, Arch, bound>;

  // A block of panels reuses each tile of keys; it should stay in the second-level cache.
  index_t const panel_bytes =
      shape::max_lanes * (p.dim + p.value_dim) * static_cast<index_t>(sizeof(T));
  index_t const most = std::clamp<index_t>((512 << 10) / std::max<index_t>(panel_bytes, 1), 2, 32);
  index_t panels = 0;
  for (index_t g = 0; g < p.sequence.count; ++g)
    panels += p.heads * panelling<T, Arch>::count(p.sequence.at(g, 0));
  index_t const concurrency = static_cast<index_t>(run_on.concurrency());
  index_t const per_piece = std::clamp<index_t>(panels / (8 * concurrency), 1, most);

  arena measure;
  memory_type(measure, p, per_piece);
  index_t const worker_bytes = static_cast<index_t>(measure.used());
  bool const share = piece_list<T, Arch>::most_sharing(p.sequence, per_piece) > 1;
  index_t const list_bytes = share ? 0 : arena::bytes<index_t>(p.sequence.count + 1);
  std::byte* const memory =
      scratch_memory.reserve(static_cast<std::size_t>(list_bytes + concurrency * worker_bytes));

  piece_list<T, Arch> const pieces(p.sequence, p.heads, per_piece, fewest_rows,
                                   reinterpret_cast<index_t*>(memory));
  parallel_for(run_on, pieces.size(), [&](index_t piece, index_t worker) {
    arena own(memory + list_bytes + worker * worker_bytes);
    memory_type scratch(own, p, per_piece);
    pieces.with(piece, [&](place const& where, interval block) {
      bound const here = whole.at(where);
      forward_worker<T, Arch, bound, Observers>(p, where, here, scratch).run(block, out, observers);
    });
  });
}

/// A forward pass over problem `p` into `out`, its shapes checked; `observers` see the rows. Each
/// sequence goes the way that its own number of rows says, so that it does not matter what else is
/// in the batch.
template <class Arch, element K, element V, class T, class Sentence, class Observers>
void forward_pass(problem<T> const& p, Sentence const& whole, Observers const& observers,
                  any_executor const& run_on, workspace& memory, sink<T> const& out) {
  // The groups of an arrangement are windows of something, of few rows but not few of them.
  bool const arranged{p.sequence.order};
  if constexpr (decodes<decltype(whole.at(place{}))>) {
    if (arranged) return panel_pass<Arch>(p, whole, observers, run_on, memory, out, 1);
    decode_pass<Arch>(p, whole, observers, run_on, memory, out,
                      stored_products<T, Arch>::template of<K>(),
                      stored_products<T, Arch>::template of<V>());
    panel_pass<Arch>(p, whole, observers, run_on, memory, out, most_decode_rows + 1);
  } else {
    panel_pass<Arch>(p, whole, observers, run_on, memory, out, 1);
  }
}

/// Every row's lse, with what rounding took from it.
template <class T>
struct precise_lse_into {
  tensor_view<T, 3> out;
  tensor_view<T, 3> rest;

  void observe(place const& where, index_t row, row_summary<T> const& summary) const {
    out(where.batch, where.head, where.row(row)) = summary.lse;
    rest(where.batch, where.head, where.row(row)) = summary.lse_rest;
  }
};

/// Softmax attention, or whatever the ingredients make of it; see softmax.hpp.
template <class Arch = xsimd::default_arch, element Q, element K, element V, element O, class... I>
void forward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
             tensor_view<O, 4> out, I const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  static_assert(!std::is_const_v<O>, "heed: out is written to");
  problem<T> const p = make_problem<T>(query, key, value, ingredients...);
  detail::expect_like("out", out,
                      {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
                      "query with the head_dim of value");
  detail::expect_memory("out", out);
  detail::expect_distinct_elements("out", out);

  auto const whole = make_sentence(ingredients...);
  auto const observers = all_of<detail::is_row_observer>(ingredients...);
  auto const sweeps = all_of<detail::is_sweep_observer>(ingredients...);
  auto const given_executor = executor_of(ingredients...);
  any_executor const run_on(given_executor);
  workspace& memory = scratch_of(ingredients...);

  if constexpr (std::tuple_size_v<decltype(sweeps)> == 0) {
    forward_pass<Arch, K, V>(p, whole, observers, run_on, memory, sink<T>(out));
  } else {
    // The second sweep needs every row's lse, in all the precision there is.
    thread_local workspace lse_memory;
    std::array<index_t, 3> const shape{query.extent(0), query.extent(2), query.extent(1)};
    index_t const rows = shape[0] * shape[1] * shape[2];
    arena lse_place(lse_memory.reserve(static_cast<std::size_t>(2 * arena::bytes<T>(rows))));
    precise_lse_into<T> const lse{tensor_view<T, 3>(lse_place.take<T>(rows), shape),
                                  tensor_view<T, 3>(lse_place.take<T>(rows), shape)};
    // Panels only: the sweep makes scores as they do, to the bit, and decoding does not.
    panel_pass<Arch>(p, whole, std::tuple_cat(observers, std::tuple(lse)), run_on, memory,
                     sink<T>(out), 1);
    saved_result<T> const saved{{}, {}, lse.out, {}, lse.rest};
    std::apply(
        [&](auto const&... sweep) {
          (observe_sweep<Arch>(sweep, p, saved, whole, run_on, memory), ...);
        },
        sweeps);
  }
}

}  // namespace heed::attend
