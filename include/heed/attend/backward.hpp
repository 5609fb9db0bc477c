#pragma once

#include <heed/attend/gradient.hpp>
#include <heed/attend/sweep.hpp>
#include <heed/attend/tile.hpp>
#include <heed/simd/fma.hpp>

#include <numeric>
#include <utility>

/// Engine 1, backward: one sweep over the tiles of scores, five products a tile.
///
/// The weights are made again from the scores and the saved lse. A piece of work is a chunk of keys
/// of one group of heads: it owns the gradients of its keys and values outright, and leaves its
/// share of the query gradient in a buffer of its own; the shares are added in the order of the
/// chunks. Chunks are cut by the shape of the call, so the sums are the same whoever computes them.
/// Query rows go by in blocks, so that the buffers do not grow with the sequence.
namespace heed::attend {

/// How a backward call is cut up; a function of its shape alone.
template <class T, class Arch>
struct backward_plan {
  using shape = simd::tile_shape<T, Arch>;
  static constexpr index_t panels_per_block = std::max<index_t>(1, 512 / shape::max_lanes);

  problem<T> const& p;
  index_t groups;  // of heads that share keys or values, for each sequence
  index_t heads_per_group;
  index_t chunks;           // of keys, the most a sequence has
  index_t groups_per_wave;  // sequence and group pairs whose pieces run at once

  explicit backward_plan(problem<T> const& problem_)
      : p(problem_),
        groups(std::max<index_t>(std::gcd(p.key_heads, p.value_heads), 1)),
        heads_per_group(p.heads / groups),
        chunks(0) {
    for (index_t g = 0; g < p.sequence.count; ++g)
      chunks = std::max(chunks, chunks_of(p.sequence.at(g, 0).keys));
    groups_per_wave = std::clamp<index_t>(64 / std::max<index_t>(chunks, 1), 1,
                                          std::max<index_t>(p.sequence.count * groups, 1));
  }

  /// Enough chunks for many threads where heads are few, and never more than 64 of them.
  index_t keys_per_chunk(index_t keys) const {
    index_t const wanted = std::clamp<index_t>(keys * groups / 16, 128, 1024);
    return simd::round_up(std::max(wanted, (keys + 63) / 64), keys_per_tile);
  }
  index_t chunks_of(index_t keys) const {
    index_t const size = keys_per_chunk(keys);
    return (keys + size - 1) / size;
  }
  index_t query_share() const { return panels_per_block * shape::max_lanes * p.dim; }
};

/// Scratch memory of a backward worker: a block of query rows in both orientations, a stripe of keys, and a tile.
template <class T, class Arch>
struct backward_scratch {
  using shape = simd::tile_shape<T, Arch>;
  static constexpr index_t lanes = shape::lanes;

  struct panel_memory : gradient_panel<T> {
    interval_set keys;   // that it may meet
    T* query_rows;       // [lane][padded dim], scaled
    T* dout_rows;        // [lane][padded value_dim]
    bool finite = true;  // the rows hold neither NaN nor infinity

    panel_memory(arena& memory, problem<T> const& p, index_t padded_dim, index_t padded_value_dim)
        : gradient_panel<T>(memory, p, shape::max_lanes),
          query_rows(memory.take<T>(shape::max_lanes * padded_dim)),
          dout_rows(memory.take<T>(shape::max_lanes * padded_value_dim)) {}
  };

  backward_scratch(arena& memory, problem<T> const& p, index_t panels, index_t readers)
      : keys(memory),
        padded_dim(simd::round_up(p.dim, lanes)),
        padded_value_dim(simd::round_up(p.value_dim, lanes)),
        stripe(std::clamp(stripe_numbers / std::max<index_t>(padded_dim + padded_value_dim, 1) /
                              keys_per_tile * keys_per_tile,
                          keys_per_tile, 8 * keys_per_tile)) {
    constexpr index_t width = shape::max_lanes;
    panel_ = memory.take<panel_memory>(panels);
    for (index_t i = 0; i < panels; ++i) {
      panel_memory const parts(memory, p, padded_dim, padded_value_dim);
      if (!memory.measuring()) new (panel_ + i) panel_memory(parts);
    }
    key = memory.take<T>(stripe * p.dim);
    value = memory.take<T>(stripe * p.value_dim);
    weights = memory.take<T>(keys_per_tile * width);
    dscores = memory.take<T>(keys_per_tile * width);
    staged = memory.take<T>(readers * staged_stride);
    dkey = memory.take<T>(stripe * padded_dim);
    dvalue = memory.take<T>(stripe * padded_value_dim);
    key_rows = memory.take<T const*>(keys_per_tile);
    value_rows = memory.take<T const*>(keys_per_tile);
    dkey_rows = memory.take<T*>(keys_per_tile);
    dvalue_rows = memory.take<T*>(keys_per_tile);
    rows = memory.take<T>(2 * width * std::max(p.dim, p.value_dim));
  }

  panel_memory& operator[](index_t i) const { return panel_[i]; }

  static constexpr index_t staged_stride = keys_per_tile * shape::max_lanes;
  static constexpr index_t stripe_numbers = 1 << 16;  // stay in the second cache
  key_tile<T> keys;
  index_t padded_dim;
  index_t padded_value_dim;
  index_t stripe;  // keys whose gradients are held; a tile, unless keys lie scattered
  T* key;
  T* value;
  T* weights;
  T* dscores;
  T* staged;
  T* dkey;
  T* dvalue;
  T const** key_rows;  // of the tile
  T const** value_rows;
  T** dkey_rows;
  T** dvalue_rows;
  T* rows;

 private:
  panel_memory* panel_;
};

/// One worker's view of a piece: a chunk of keys against a block of query rows of one head.
template <class T, class Arch, class Bound>
class backward_worker {
 public:
  using batch = xsimd::batch<T, Arch>;
  using shape = simd::tile_shape<T, Arch>;
  using memory = backward_scratch<T, Arch>;
  using panel_memory = typename memory::panel_memory;
  static constexpr index_t lanes = shape::lanes;

  backward_worker(problem<T> const& p, saved_result<T> const& saved, place const& where,
                  Bound const& bound, memory& scratch)
      : p_(p), saved_(saved), where_(where), bound_(bound), scratch_(scratch) {}

  /// Panels [panels.first, panels.last) against the keys of a chunk, of which they meet some in `met`. Adds to the
  /// rows of dkey and dvalue that belong to the chunk; `share` receives the chunk's part of
  /// d loss / d (scaled query): [panel][dim][lane].
  void run(interval panels, interval chunk, interval_set const& met, T* share,
           accumulator<T> const& dkey, accumulator<T> const& dvalue) {
    std::fill_n(share, panels.size() * shape::max_lanes * p_.dim, T(0));
    for (index_t i = 0; i < panels.size(); ++i) open(scratch_[i], panels.first + i);
    index_t const size = bound_.pattern.scattered() ? scratch_.stripe : keys_per_tile;
    for (index_t first = chunk.first; first < chunk.last; first += size) {
      interval const stripe{first, std::min(first + size, chunk.last)};
      if (!met.hull_within(stripe).empty()) visit(stripe, panels.size(), share, dkey, dvalue);
    }
  }

 private:
  void open(panel_memory& at, index_t number) {
    open_gradient_panel<Arch, Bound>(p_, saved_, where_, number, at, scratch_.rows);
    at.keys = keys_of(at, where_, bound_);
    interval const rows = at.queries.rows;
    T* const scale = scratch_.weights;
    for (index_t lane = 0; lane < rows.size(); ++lane)
      scale[lane] = p_.score_scale(where_, at.tokens[lane]);
    load_rows(p_.query, rows, scale, at.query_rows, scratch_.padded_dim);
    load_rows(saved_.dout, rows, nullptr, at.dout_rows, scratch_.padded_value_dim);
    at.finite = all_finite<Arch, T>(row_block<T>{at.query_rows, scratch_.padded_dim}, rows.size(),
                                    p_.dim) &&
                all_finite<Arch, T>(row_block<T>{at.dout_rows, scratch_.padded_value_dim},
                                    rows.size(), p_.value_dim);
  }

  void load_rows(source<T> const& from, interval rows, T const* scale, T* to, index_t stride) {
    copy_query_rows(from, where_, rows, to, stride);
    for (index_t r = 0; r < rows.size(); ++r) {
      if (scale != nullptr)
        for (index_t d = 0; d < from.dim(); ++d) to[r * stride + d] *= scale[r];
      std::fill(to + r * stride + from.dim(), to + (r + 1) * stride, T(0));
    }
  }

  void visit(interval stripe, index_t panels, T* share, accumulator<T> const& dkey,
             accumulator<T> const& dvalue) {
    index_t const key_head = p_.key_head(where_.head), value_head = p_.value_head(where_.head);
    row_block<T> const key = key_rows(p_.key, where_, key_head, stripe, scratch_.key, true);
    row_block<T> const value = key_rows(p_.value, where_, value_head, stripe, scratch_.value, true);
    int key_finite = -1;
    std::fill_n(scratch_.dkey, stripe.size() * scratch_.padded_dim, T(0));
    std::fill_n(scratch_.dvalue, stripe.size() * scratch_.padded_value_dim, T(0));
    auto const meet = [&](panel_memory& at, T* panel_share) {
      locate(stripe.first, key, value);
      bool const hidden = hides(bound_, !scratch_.keys.masked.empty());
      if (hidden && key_finite < 0)
        key_finite = all_finite<Arch, T>(key, stripe.size(), p_.dim) ? 1 : 0;
      with_registers(at.queries.registers, [&](auto registers) {
        absorb<registers>(at, !hidden || key_finite == 1, !hidden || at.finite, panel_share);
      });
    };
    for (index_t i = 0; i < panels; ++i) {
      panel_memory& at = scratch_[i];
      T* const panel_share = share + i * shape::max_lanes * p_.dim;
      if (bound_.pattern.scattered()) {
        gather_keys(bound_.pattern, at.queries.positions, where_.keys, stripe, scratch_.keys, [&] {
          scratch_.keys.mask(at, bound_.pattern);
          meet(at, panel_share);
        });
      } else {
        scratch_.keys.set(at.keys.hull_within(stripe), at, bound_.pattern);
        if (scratch_.keys.count > 0) meet(at, panel_share);
      }
    }
    where_.each_key_run(stripe, [&](index_t before, token_run tokens) {
      dkey.add(where_.batch, key_head, tokens, scratch_.dkey + before * scratch_.padded_dim,
               scratch_.padded_dim);
      dvalue.add(where_.batch, value_head, tokens,
                 scratch_.dvalue + before * scratch_.padded_value_dim, scratch_.padded_value_dim);
    });
  }

  /// Finds out where the rows of the tile's keys and of their gradients are, in a stripe from `first` on.
  void locate(index_t first, row_block<T> key, row_block<T> value) const {
    index_t k = 0;
    for (interval run : scratch_.keys.each_run())
      for (index_t at = run.first - first; at < run.last - first; ++at, ++k) {
        scratch_.key_rows[k] = key[at];
        scratch_.value_rows[k] = value[at];
        scratch_.dkey_rows[k] = scratch_.dkey + at * scratch_.padded_dim;
        scratch_.dvalue_rows[k] = scratch_.dvalue + at * scratch_.padded_value_dim;
      }
  }

  template <int Registers>
  void absorb(panel_memory& at, bool key_finite, bool rows_finite, T* share) {
    constexpr index_t width = lanes * Registers;
    key_tile<T> const& keys = scratch_.keys;
    index_t const count = keys.count;
    scattered_rows<T> const key{scratch_.key_rows}, value{scratch_.value_rows};
    T* const weights = scratch_.weights;
    T* const dscores = scratch_.dscores;
    score_tile<Registers, Arch, T, Bound> const tile{
        bound_, at.queries, at.positions, keys, weights, scratch_.staged, memory::staged_stride};
    multiply_keys<Registers, Arch>(count, p_.dim, key, at.query, weights);
    multiply_keys<Registers, Arch>(count, p_.value_dim, value, at.dout, dscores);
    tile.stage();
    if (hides(bound_, !keys.masked.empty()))
      differentiate<Registers, true>(at, tile, count);
    else
      differentiate<Registers, false>(at, tile, count);

    if (key_finite)
      multiply_values<Registers, Arch>(p_.dim, count, key, dscores, share);
    else
      multiply_visible<Registers, Arch>(p_.dim, count, key, dscores, weights, share, width);
    add_rows(count, at.queries.count(), dscores, weights, width, rows_finite, at.query_rows,
             scratch_.padded_dim, scratch_.dkey_rows);
    if constexpr (std::tuple_size_v < decltype(Bound::factors) >> 0)
      apply_factors<Registers>(tile, count);
    add_rows(count, at.queries.count(), weights, weights, width, rows_finite, at.dout_rows,
             scratch_.padded_value_dim, scratch_.dvalue_rows);
  }

  /// From raw scores and d loss / d weight: weights, -0 where a pair is hidden, and d loss / d raw
  /// score.
  template <int Registers, bool Hidden>
  void differentiate(panel_memory const& at, score_tile<Registers, Arch, T, Bound> const& tile,
                     index_t count) {
    constexpr index_t width = lanes * Registers;
    constexpr bool factored = std::tuple_size_v < decltype(Bound::factors) >> 0;
    batch lse[Registers], delta[Registers], dlse[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      lse[r] = batch::load_aligned(at.lse + r * lanes);
      delta[r] = batch::load_aligned(at.delta + r * lanes);
      dlse[r] = batch::load_aligned(at.dlse + r * lanes);
    }
    for (index_t k = 0; k < count; ++k) {
      batch score[Registers], slope[Registers];
      [[maybe_unused]] batch factor[Registers];
      tile.template finish<true>(k, score, &slope);
      if constexpr (factored) tile.factors(k, factor);
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) {
        T* const weight_place = scratch_.weights + k * width + r * lanes;
        T* const dscore_place = scratch_.dscores + k * width + r * lanes;
        batch dweight = batch::load_aligned(dscore_place);
        if constexpr (factored) dweight *= factor[r];
        batch weight = bound_.normaliser.weight(score[r], lse[r], batch(T(0)));
        batch dscore =
            bound_.normaliser.score_gradient(score[r], weight, dweight, delta[r], dlse[r]);
        if constexpr (std::tuple_size_v < decltype(Bound::modifiers) >> 0) dscore *= slope[r];
        if constexpr (Hidden) {
          auto const is_hidden = score[r] == batch(-std::numeric_limits<T>::infinity());
          weight = xsimd::select(is_hidden, batch(T(-0.0)), weight);
          dscore = xsimd::select(is_hidden, batch(T(0)), dscore);
        }
        weight.store_aligned(weight_place);
        dscore.store_aligned(dscore_place);
      }
    }
  }

  template <int Registers>
  void apply_factors(score_tile<Registers, Arch, T, Bound> const& tile, index_t count) {
    for (index_t k = 0; k < count; ++k) {
      batch factor[Registers];
      tile.factors(k, factor);
      for (int r = 0; r < Registers; ++r) {
        T* const place = scratch_.weights + k * lanes * Registers + r * lanes;
        (batch::load_aligned(place) * factor[r]).store_aligned(place);
      }
    }
  }

  /// to[key][column] += sum_lane numbers[key][lane] * rows[lane][column].
  void add_rows(index_t keys, index_t count, T const* numbers, T const* marks, index_t width,
                bool finite, T const* rows, index_t columns, T* const* to) {
    if (!finite) return add_visible_rows(keys, count, numbers, marks, width, rows, columns, to);
    index_t const registers = columns / lanes, parts = (registers + 2) / 3;
    for (index_t part = 0; part < parts; ++part) {
      index_t const first = registers * part / parts, last = registers * (part + 1) / parts;
      with_registers(static_cast<int>(last - first), [&](auto size) {
        simd::multiply_into_rows<size, Arch>(keys, count, simd::scalar_rows<T>{numbers, width, 1},
                                             rows + first * lanes, columns, to, first * lanes);
      });
    }
  }

  void add_visible_rows(index_t keys, index_t count, T const* numbers, T const* marks,
                        index_t width, T const* rows, index_t columns, T* const* to) {
    for (index_t k = 0; k < keys; ++k)
      for (index_t lane = 0; lane < count; ++lane)
        if (!(marks[k * width + lane] == T(0) && std::signbit(marks[k * width + lane])))
          for (index_t c = 0; c < columns; c += lanes) {
            T* const sum = to[k] + c;
            simd::fma(batch(numbers[k * width + lane]),
                      batch::load_aligned(rows + lane * columns + c), batch::load_aligned(sum))
                .store_aligned(sum);
          }
  }

  problem<T> const& p_;
  saved_result<T> const& saved_;
  place const& where_;
  Bound const& bound_;
  memory& scratch_;
};

/// The memory of a backward pass.
template <class T>
struct backward_memory {
  T* shares;           // of the query gradient, one for each piece of a wave
  char* shared;        // whether a piece has left one
  double* scale_sums;  // one for each panel of a wave
  accumulator<T> query, key, value;
  std::byte* workers;
  index_t worker_bytes;
};

/// All pairs of panels and chunks of keys, in waves; returns the gradient of scale.
template <class Arch, class T, class Sentence>
double backward_waves(problem<T> const& p, saved_result<T> const& saved, Sentence const& whole,
                      row_gradient_targets<T> const& row_gradients, backward_memory<T> const& to,
                      any_executor const& run_on) {
  using bound = decltype(whole.at(place{}));
  using plan_type = backward_plan<T, Arch>;
  plan_type const plan(p);
  constexpr index_t readers = readers_of<bound>;
  index_t const pairs = p.sequence.count * plan.groups;
  double dscale = 0;
  index_t const blocks = (panelling<T, Arch>::most(p.sequence) + plan_type::panels_per_block - 1) /
                         plan_type::panels_per_block;
  for (index_t member = 0; member < plan.heads_per_group; ++member)
    for (index_t block = 0; block < blocks; ++block)
      for (index_t first_pair = 0; first_pair < pairs; first_pair += plan.groups_per_wave) {
        index_t const wave = std::min(plan.groups_per_wave, pairs - first_pair);
        auto const place_of = [&](index_t pair) {
          return p.sequence.at(pair / plan.groups,
                               pair % plan.groups * plan.heads_per_group + member);
        };
        auto const panels_of = [&](place const& where) {
          return intersect(
              {block * plan_type::panels_per_block, (block + 1) * plan_type::panels_per_block},
              {0, panelling<T, Arch>::count(where)});
        };
        parallel_for(run_on, wave * plan.chunks, [&](index_t piece, index_t worker) {
          place const where = place_of(first_pair + piece / plan.chunks);
          interval const panels = panels_of(where);
          index_t const size = plan.keys_per_chunk(where.keys), chunk = piece % plan.chunks;
          interval const keys = intersect({chunk * size, (chunk + 1) * size}, {0, where.keys});
          to.shared[piece] = 0;
          if (panels.empty() || keys.empty()) return;
          bound const here = whole.at(where);
          interval const rows = panelling<T, Arch>::rows(where, panels);
          interval_set const met =
              pattern_keys(here.pattern, p.position.hull(where, rows), where.keys);
          if (met.hull_within(keys).empty()) return;
          to.shared[piece] = 1;
          arena own(to.workers + worker * to.worker_bytes);
          backward_scratch<T, Arch> scratch(own, p, plan_type::panels_per_block, readers);
          backward_worker<T, Arch, bound>(p, saved, where, here, scratch)
              .run(panels, keys, met, to.shares + piece * plan.query_share(), to.key, to.value);
        });
        parallel_for(
            run_on, wave * plan_type::panels_per_block, [&](index_t piece, index_t worker) {
              place const where = place_of(first_pair + piece / plan_type::panels_per_block);
              interval const panels = panels_of(where);
              index_t const number = piece % plan_type::panels_per_block;
              to.scale_sums[piece] = 0;
              if (number >= panels.size()) return;
              panel const queries =
                  panelling<T, Arch>::at(where, p.position, panels.first + number);
              index_t const first_piece = piece / plan_type::panels_per_block * plan.chunks;
              T const* const first_share = to.shares + first_piece * plan.query_share() +
                                           number * plan_type::shape::max_lanes * p.dim;
              to.scale_sums[piece] = add_shares<T, Arch>(
                  p, where, queries, first_share, plan.query_share(),
                  {to.shared + first_piece, static_cast<std::size_t>(plan.chunks_of(where.keys))},
                  to.query, row_gradients,
                  reinterpret_cast<T*>(to.workers + worker * to.worker_bytes));
            });
        for (index_t piece = 0; piece < wave * plan_type::panels_per_block; ++piece)
          dscale += to.scale_sums[piece];
      }
  return dscale;
}

/// The gradients of forward(); see softmax.hpp.
template <class Arch = xsimd::default_arch, element Q, element K, element V, element O, class L,
          element DO, element DQ, element DK, element DV, class... I>
void backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
              tensor_view<O, 4> out, tensor_view<L, 3> lse, tensor_view<DO, 4> dout,
              tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
              I const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  static_assert(
      std::is_same_v<std::remove_const_t<L>, T>,
      "heed: lse is in the type of the computation: float, or double where an operand is double");
  problem<T> const p = make_problem<T>(query, key, value, ingredients...);
  saved_result<T> const saved =
      make_saved_result<T>(p, query, value, out, lse, dout, ingredients...);
  check_gradients(query, key, value, dquery, dkey, dvalue);

  auto const whole = make_sentence(ingredients...);
  auto const given_executor = executor_of(ingredients...);
  any_executor const run_on(given_executor);
  using bound = decltype(whole.at(place{}));
  using plan_type = backward_plan<T, Arch>;
  plan_type const plan(p);
  auto const row_gradients = make_row_gradients<T>(ingredients...);

  index_t const concurrency = static_cast<index_t>(run_on.concurrency());
  constexpr index_t readers = readers_of<bound>;
  arena measure;
  backward_scratch<T, Arch>(measure, p, plan_type::panels_per_block, readers);
  index_t const worker_bytes = static_cast<index_t>(measure.used());
  index_t const pieces_per_wave = plan.groups_per_wave * plan.chunks;

  auto const lay_out = [&](arena& memory) {
    return backward_memory<T>{
        memory.take<T>(pieces_per_wave * plan.query_share()),
        memory.take<char>(pieces_per_wave),
        memory.take<double>(plan.groups_per_wave * plan_type::panels_per_block),
        accumulator<T>(dquery, memory),
        accumulator<T>(dkey, memory),
        accumulator<T>(dvalue, memory),
        memory.take<std::byte>(worker_bytes * concurrency),
        worker_bytes};
  };
  arena total;
  lay_out(total);
  arena memory(scratch_of(ingredients...).reserve(total.used()));
  backward_memory<T> const to = lay_out(memory);
  to.query.clear();
  to.key.clear();
  to.value.clear();

  double const dscale = backward_waves<Arch>(p, saved, whole, row_gradients, to, run_on);
  to.query.finish(dquery);
  to.key.finish(dkey);
  to.value.finish(dvalue);
  if (row_gradients.scale != nullptr) *row_gradients.scale = dscale;
  parameter_gradients<Arch>(p, saved, whole, run_on, scratch_of(ingredients...));
}

}  // namespace heed::attend
