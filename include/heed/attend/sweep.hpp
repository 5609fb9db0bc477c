#pragma once

#include <heed/attend/gradient.hpp>
#include <heed/attend/tile.hpp>

#include <algorithm>

/// A second sweep over the scores, with the lse known: statistics of columns, and gradients of
/// parameters.
///
/// Each piece of work owns what it writes and adds to it in a fixed order, so that the sums do not
/// depend on who computes them.
namespace heed::attend {

/// One worker's tiles of final weights and, with `Gradients`, of score gradients.
template <class T, class Arch, class Bound, bool Gradients>
class sweep_worker {
 public:
  using batch = xsimd::batch<T, Arch>;
  using shape = simd::tile_shape<T, Arch>;
  static constexpr index_t lanes = shape::lanes;

  sweep_worker(arena& memory, problem<T> const& p, saved_result<T> const& saved)
      : p_(p),
        saved_(saved),
        at_(memory, p, shape::max_lanes),
        key_(memory.take<T>(keys_per_tile * p.dim)),
        value_(memory.take<T>(keys_per_tile * p.value_dim)),
        scores_(memory.take<T>(keys_per_tile * shape::max_lanes)),
        dweights_(memory.take<T>(keys_per_tile * shape::max_lanes)),
        staged_(memory.take<T>(readers_of<Bound> * staged_stride)),
        rows_(memory.take<T>(2 * shape::max_lanes * std::max(p.dim, p.value_dim))),
        keys_(memory) {}

  /// Panel `number` against the keys of `among` that it meets, in ascending order. Calls
  /// visit(tile, k, score, weight, dscore) for each key row k of each tile, which is the key
  /// tile.first_key() + k, in registers: scores in units of scores, -infinity where hidden; final
  /// weights; d loss / d final score.
  template <class Visit>
  void run(place const& where, Bound const& bound, index_t number, interval among, Visit&& visit) {
    if constexpr (Gradients) {
      open_gradient_panel<Arch, Bound>(p_, saved_, where, number, at_, rows_);
    } else {
      open_panel<Arch, Bound>(p_, where, number, at_, rows_);
      load_lse(where);
    }
    for (interval part : keys_of(at_, where, bound) & interval_set(among))
      for (index_t tile = part.first / keys_per_tile; tile * keys_per_tile < part.last; ++tile) {
        interval const keys = intersect(part, {tile * keys_per_tile, (tile + 1) * keys_per_tile});
        if (!bound.pattern.scattered()) {
          meet(where, bound, keys, visit);
          continue;
        }
        for (index_t from = keys.first; from < keys.last;) {
          interval const run = bound.pattern.next_keys(at_.queries.positions, from, where.keys);
          if (run.empty() || run.first >= keys.last) break;
          meet(where, bound, intersect(run, keys), visit);
          from = run.last;
        }
      }
  }

  panel const& queries() const { return at_.queries; }
  T const* positions() const { return at_.positions; }

 private:
  template <class Visit>
  void meet(place const& where, Bound const& bound, interval keys, Visit&& visit) {
    keys_.set(keys, at_, bound.pattern);
    if (keys_.count == 0) return;
    with_registers(at_.queries.registers, [&](auto registers) {
      this->template sweep_tile<registers>(where, bound, visit);
    });
  }

  void load_lse(place const& where) {
    index_t const width = at_.queries.registers * lanes;
    std::fill_n(at_.lse, width, std::numeric_limits<T>::infinity());
    std::fill_n(at_.rest, width, T(0));
    for (index_t lane = 0; lane < at_.queries.count(); ++lane) {
      index_t const row = at_.tokens[lane];
      if (row < 0) continue;
      at_.lse[lane] = saved_.lse(where.batch, where.head, row);
      at_.rest[lane] = saved_.rest(where.batch, where.head, row);
    }
  }

  template <int Registers, class Visit>
  void sweep_tile(place const& where, Bound const& bound, Visit&& visit) {
    constexpr index_t width = lanes * Registers;
    constexpr bool factored = std::tuple_size_v < decltype(Bound::factors) >> 0;
    index_t const count = keys_.count;
    row_block<T> const key = key_rows(p_.key, where, p_.key_head(where.head), keys_.runs[0], key_);
    simd::multiply<Registers, false, Arch>(count, p_.dim, {key.data, key.stride, 1}, at_.query,
                                           width, scores_, width);
    if constexpr (Gradients) {
      row_block<T> const value =
          key_rows(p_.value, where, p_.value_head(where.head), keys_.runs[0], value_);
      simd::multiply<Registers, false, Arch>(count, p_.value_dim, {value.data, value.stride, 1},
                                             at_.dout, width, dweights_, width);
    }
    score_tile<Registers, Arch, T, Bound> const tile{bound,   at_.queries, at_.positions, keys_,
                                                     scores_, staged_,     staged_stride};
    tile.stage();
    batch const hidden(-std::numeric_limits<T>::infinity());
    for (index_t k = 0; k < count; ++k) {
      batch score[Registers], weight[Registers], dscore[Registers];
      [[maybe_unused]] batch factor[Registers];
      tile.finish(k, score);
      if constexpr (Gradients && factored) tile.factors(k, factor);
      for (int r = 0; r < Registers; ++r) {
        weight[r] = bound.normaliser.weight(score[r], batch::load_aligned(at_.lse + r * lanes),
                                            batch::load_aligned(at_.rest + r * lanes));
        weight[r] = xsimd::select(score[r] == hidden, batch(T(0)), weight[r]);
        if constexpr (Gradients) {
          batch dweight = batch::load_aligned(dweights_ + k * width + r * lanes);
          if constexpr (factored) dweight *= factor[r];
          dscore[r] = bound.normaliser.score_gradient(score[r], weight[r], dweight,
                                                      batch::load_aligned(at_.delta + r * lanes),
                                                      batch::load_aligned(at_.dlse + r * lanes));
          dscore[r] = xsimd::select(score[r] == hidden, batch(T(0)), dscore[r]);
        }
      }
      visit(tile, k, score, weight, dscore);
    }
  }

  static constexpr index_t staged_stride = keys_per_tile * shape::max_lanes;
  problem<T> const& p_;
  saved_result<T> const& saved_;
  gradient_panel<T> at_;
  T* key_;
  T* value_;
  T* scores_;
  T* dweights_;
  T* staged_;
  T* rows_;
  key_tile<T> keys_;
};

/// Runs pieces of a sweep, f(piece, sweep, own): the sweep and `numbers` numbers at `own` are the
/// worker's. Returns `results` numbers that it hands to f as a fourth argument, good until the
/// memory is used again.
template <bool Gradients, class Arch, class T, class Sentence, class F>
double* for_each_swept(problem<T> const& p, saved_result<T> const& saved, Sentence const&,
                       any_executor const& run_on, workspace& memory, index_t pieces,
                       index_t numbers, index_t results, F&& f) {
  using bound = decltype(std::declval<Sentence>().at(place{}));
  using worker_type = sweep_worker<T, Arch, bound, Gradients>;
  arena measure;
  worker_type(measure, p, saved);
  measure.take<T>(numbers);
  std::size_t const bytes = measure.used();
  index_t const result_bytes = arena::bytes<double>(results);
  std::byte* const block = memory.reserve(static_cast<std::size_t>(result_bytes) +
                                          bytes * static_cast<std::size_t>(run_on.concurrency()));
  double* const result = reinterpret_cast<double*>(block);
  parallel_for(run_on, pieces, [&](index_t piece, index_t worker) {
    arena own(block + result_bytes + static_cast<std::size_t>(worker) * bytes);
    worker_type sweep(own, p, saved);
    f(piece, sweep, own.take<T>(numbers), result);
  });
  return result;
}

/// column_sums_into: a piece owns 512 keys of one head of one sequence.
template <class Arch, class T, class Sentence>
void observe_sweep(column_sums_into<T> const& observer, problem<T> const& p,
                   saved_result<T> const& saved, Sentence const& whole, any_executor const& run_on,
                   workspace& memory) {
  using batch = xsimd::batch<T, Arch>;
  constexpr index_t chunk = 8 * keys_per_tile;
  index_t const chunks = (p.sequence.max_keys() + chunk - 1) / chunk;
  for_each_swept<false, Arch>(
      p, saved, whole, run_on, memory, p.sequence.count * p.heads * chunks, 0, 0,
      [&](index_t piece, auto& sweep, T*, double*) {
        place const where = p.sequence.at(piece / chunks / p.heads, piece / chunks % p.heads);
        interval const keys =
            intersect({piece % chunks * chunk, (piece % chunks + 1) * chunk}, {0, where.keys});
        auto const bound = whole.at(where);
        auto const sum = [&](index_t key) -> T& {
          return observer.out(where.batch, where.head, where.key_row(key));
        };
        for (index_t key = keys.first; key < keys.last; ++key) sum(key) = T(0);
        for (index_t number = 0; number < panelling<T, Arch>::count(where); ++number)
          sweep.run(
              where, bound, number, keys,
              [&](auto const& tile, index_t k, auto&, auto& weight, auto&) {
                constexpr int registers = std::extent_v<std::remove_reference_t<decltype(weight)>>;
                alignas(64) T row_weight[batch::size];
                batch total(T(0));
                for (int r = 0; r < registers; ++r) {
                  if (observer.row_weights.data() != nullptr) {
                    for (std::size_t lane = 0; lane < batch::size; ++lane) {
                      index_t const row = sweep.queries().rows.first +
                                          r * static_cast<index_t>(batch::size) +
                                          static_cast<index_t>(lane);
                      index_t const at = row < sweep.queries().rows.last ? where.row(row) : -1;
                      row_weight[lane] =
                          at < 0 ? T(0) : observer.row_weights(where.batch, where.head, at);
                    }
                    weight[r] *= batch::load_aligned(row_weight);
                  }
                  total += weight[r];
                }
                alignas(64) T lanes[batch::size];
                total.store_aligned(lanes);
                T pair_sum = T(0);
                for (T lane : lanes) pair_sum += lane;
                sum(tile.first_key() + k) += pair_sum;
              });
      });
}

/// top_keys_into: a piece owns a panel of rows.
template <class Arch, class T, class Sentence>
void observe_sweep(top_keys_into<T> const& observer, problem<T> const& p,
                   saved_result<T> const& saved, Sentence const& whole, any_executor const& run_on,
                   workspace& memory) {
  using batch = xsimd::batch<T, Arch>;
  using cut = panelling<T, Arch>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  index_t const panels = cut::most(p.sequence), most = observer.indices.extent(3);
  for_each_swept<false, Arch>(
      p, saved, whole, run_on, memory, p.sequence.count * p.heads * panels,
      most * cut::shape::max_lanes, 0, [&](index_t piece, auto& sweep, T* best, double*) {
        place const where = p.sequence.at(piece / panels / p.heads, piece / panels % p.heads);
        index_t const number = piece % panels;
        if (number >= cut::count(where)) return;
        interval const rows = cut::at(where, p.position, number).rows;
        auto const index_at = [&](index_t lane, index_t i) -> index_t& {
          return observer.indices(where.batch, where.head, where.row(rows.first + lane), i);
        };
        auto const set_weight = [&](index_t lane, index_t i, T weight) {
          if (observer.weights.data() != nullptr)
            observer.weights(where.batch, where.head, where.row(rows.first + lane), i) = weight;
        };
        std::fill_n(best, most * rows.size(), lowest);
        for (index_t lane = 0; lane < rows.size(); ++lane)
          for (index_t i = 0; i < most && where.row(rows.first + lane) >= 0; ++i) {
            index_at(lane, i) = -1;
            set_weight(lane, i, T(0));
          }
        // Keys come in ascending order, so that a key goes behind those of the same score.
        sweep.run(where, whole.at(where), number, {0, where.keys},
                  [&](auto const& tile, index_t k, auto& score, auto&, auto&) {
                    constexpr int registers =
                        std::extent_v<std::remove_reference_t<decltype(score)>>;
                    alignas(64) T scores[batch::size];
                    for (int r = 0; r < registers; ++r) {
                      score[r].store_aligned(scores);
                      for (std::size_t i = 0; i < batch::size; ++i) {
                        index_t const lane =
                            r * static_cast<index_t>(batch::size) + static_cast<index_t>(i);
                        if (lane >= rows.size()) break;
                        if (where.row(rows.first + lane) < 0) continue;
                        T* const mine = best + lane * most;
                        index_t at = most;
                        while (at > 0 && scores[i] > mine[at - 1]) --at;
                        if (at == most) continue;
                        for (index_t j = most - 1; j > at; --j) {
                          mine[j] = mine[j - 1];
                          index_at(lane, j) = index_at(lane, j - 1);
                        }
                        mine[at] = scores[i];
                        index_at(lane, at) = where.key_row(tile.first_key() + k);
                      }
                    }
                  });
        if (observer.weights.data() == nullptr) return;
        constexpr double unit = decltype(whole.at(place{}).normaliser)::score_unit;
        for (index_t lane = 0; lane < rows.size(); ++lane) {
          index_t const row = where.row(rows.first + lane);
          if (row < 0) continue;
          double const lse = static_cast<double>(saved.lse(where.batch, where.head, row)) +
                             static_cast<double>(saved.rest(where.batch, where.head, row));
          for (index_t i = 0; i < most; ++i)
            if (best[lane * most + i] > lowest)
              set_weight(lane, i,
                         static_cast<T>(
                             std::exp(static_cast<double>(best[lane * most + i]) / unit - lse)));
        }
      });
}

/// Adds to numbers in memory; what goes to the same one in a row is summed in double first.
template <class T>
class running_sum {
 public:
  ~running_sum() { flush(); }
  void add(T& to, double number) {
    if (&to != to_) {
      flush();
      to_ = &to;
    }
    sum_ += number;
  }

 private:
  void flush() {
    if (to_ != nullptr) *to_ += static_cast<T>(sum_);
    sum_ = 0;
  }

  T* to_ = nullptr;
  double sum_ = 0;
};

/// The gradient of modifier number `Which` of the sentence, if it asks for one.
template <std::size_t Which, class Arch, class T, class Sentence>
void modifier_gradient(problem<T> const& p, saved_result<T> const& saved, Sentence const& whole,
                       any_executor const& run_on, workspace& memory) {
  using batch = xsimd::batch<T, Arch>;
  auto const& modifier = std::get<Which>(whole.modifiers);
  // Calls f(lane, key, d loss / d modified score, score before, score after) for the visible pairs
  // of a panel.
  auto const each_pair = [&](auto& sweep, place const& where, auto const& bound, index_t number,
                             interval among, auto&& f) {
    sweep.run(where, bound, number, among,
              [&](auto const& tile, index_t k, auto& score, auto&, auto& dscore) {
                constexpr int registers = std::extent_v<std::remove_reference_t<decltype(score)>>;
                batch before[registers], after[registers], later[registers];
                tile.template trace<Which>(k, before, after, later);
                alignas(64) T in[batch::size], out[batch::size], gradient[batch::size];
                for (int r = 0; r < registers; ++r) {
                  before[r].store_aligned(in);
                  after[r].store_aligned(out);
                  (dscore[r] * later[r]).store_aligned(gradient);
                  for (std::size_t i = 0; i < batch::size; ++i) {
                    index_t const lane =
                        r * static_cast<index_t>(batch::size) + static_cast<index_t>(i);
                    if (lane < sweep.queries().count() && gradient[i] != T(0))
                      f(lane, tile.first_key() + k, gradient[i], in[i], out[i]);
                  }
                }
              });
  };

  if constexpr (requires(double const* sums) { modifier.set_gradient(sums, index_t{}); }) {
    if (!modifier.wants_gradient()) return;
    index_t parameters = 1;
    if constexpr (requires { modifier.parameters(p.shape()); })
      parameters = modifier.parameters(p.shape());
    // A piece owns a head.
    auto const sum_head = [&](index_t head, auto& sweep, T*, double* all_sums) {
      double* const sums = all_sums + head * parameters;
      std::fill_n(sums, parameters, 0.0);
      for (index_t g = 0; g < p.sequence.count; ++g) {
        place const where = p.sequence.at(g, head);
        auto const bound = whole.at(where);
        auto const here = bind_at(modifier, where);
        constexpr bool reads_table = requires(index_t i) {
          here.parameter(i, i);
        };
        for (index_t number = 0; number < panelling<T, Arch>::count(where); ++number)
          each_pair(sweep, where, bound, number, {0, where.keys},
                    [&](index_t lane, index_t key, T gradient, T before, T after) {
                      index_t const row = sweep.queries().rows.first + lane;
                      if constexpr (reads_table)
                        sums[here.parameter(row, key)] += static_cast<double>(gradient);
                      else
                        sums[0] += static_cast<double>(gradient) *
                                   here.parameter_slope(static_cast<double>(before),
                                                        static_cast<double>(after),
                                                        p.position(where, row), key);
                    });
      }
    };
    modifier.set_gradient(for_each_swept<true, Arch>(p, saved, whole, run_on, memory, p.heads, 0,
                                                     p.heads * parameters, sum_head),
                          p.heads);
  } else if constexpr (requires {
                         modifier.gradient(index_t{}, index_t{}, index_t{}, index_t{});
                       }) {
    auto const& target = modifier.gradient;
    if (target.data() == nullptr) return;
    // A piece owns a batch entry and a head of the gradient, and a chunk of keys unless all keys
    // share one number.
    index_t const batches = target.extent(0), heads = target.extent(1);
    bool const by_key = target.extent(3) > 1;
    constexpr index_t chunk = 8 * keys_per_tile;
    index_t const chunks = by_key ? (p.sequence.max_keys() + chunk - 1) / chunk : 1;
    for (index_t b = 0; b < batches; ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < target.extent(2); ++i)
          for (index_t j = 0; j < target.extent(3); ++j) target(b, h, i, j) = 0;
    for_each_swept<true, Arch>(
        p, saved, whole, run_on, memory, batches * heads * chunks, 0, 0,
        [&](index_t piece, auto& sweep, T*, double*) {
          index_t const b = piece / chunks / heads, h = piece / chunks % heads, c = piece % chunks;
          for (index_t g = 0; g < p.sequence.count; ++g)
            for (index_t head = 0; head < p.heads; ++head) {
              place const where = p.sequence.at(g, head);
              if ((batches > 1 && where.batch != b) || (heads > 1 && head != h)) continue;
              interval const keys = by_key
                                        ? intersect({c * chunk, (c + 1) * chunk}, {0, where.keys})
                                        : interval{0, where.keys};
              if (keys.empty()) continue;
              auto const bound = whole.at(where);
              running_sum<std::remove_cvref_t<decltype(target(b, h, b, h))>> sum;
              for (index_t number = 0; number < panelling<T, Arch>::count(where); ++number)
                each_pair(sweep, where, bound, number, keys,
                          [&](index_t lane, index_t key, T gradient, T, T) {
                            index_t const row = where.row(sweep.queries().rows.first + lane);
                            sum.add(target(b, h, target.extent(2) > 1 ? row : 0,
                                           by_key ? where.key_row(key) : 0),
                                    static_cast<double>(gradient));
                          });
            }
        });
  }
}

/// The gradient of sink logits, dz_t = -sum_i exp(z_t - lse_i) delta_i; a piece owns a head.
template <class Arch, class T, class Sentence>
void normaliser_gradient(problem<T> const& p, saved_result<T> const& saved, Sentence const& whole,
                         any_executor const& run_on, workspace& memory) {
  auto const& normaliser = whole.normaliser;
  if constexpr (requires {
                  normaliser.logits(index_t{}, index_t{}) +
                      normaliser.gradient(index_t{}, index_t{});
                }) {
    if (normaliser.gradient.data() == nullptr) return;
    index_t const sinks = normaliser.logits.extent(1);
    for_each_swept<true, Arch>(
        p, saved, whole, run_on, memory, p.heads, 2 * p.value_dim, 0,
        [&](index_t head, auto&, T* own, double*) {
          for (index_t t = 0; t < sinks; ++t) {
            double const logit = static_cast<double>(normaliser.logits(head, t));
            double sum = 0;
            for (index_t b = 0; b < p.query.batches(); ++b)
              for (index_t row = 0; row < p.query.positions(); ++row) {
                double const share = std::exp(logit - static_cast<double>(saved.lse(b, head, row)));
                // Not so for a sink of -infinity in a row without keys, where the share is NaN.
                if (!(share > 0)) continue;
                double delta = saved.dlse.data() == nullptr
                                   ? 0.0
                                   : -static_cast<double>(saved.dlse(b, head, row));
                T const* const out = saved.out.rows(b, head, row, 1, own).data;
                T const* const dout = saved.dout.rows(b, head, row, 1, own + p.value_dim).data;
                for (index_t d = 0; d < p.value_dim; ++d)
                  delta += static_cast<double>(out[d]) * static_cast<double>(dout[d]);
                sum -= share * delta;
              }
            normaliser.gradient(head, t) =
                static_cast<std::remove_cvref_t<decltype(normaliser.gradient(head, t))>>(sum);
          }
        });
  }
}

/// Every gradient of a parameter that the ingredients ask for.
template <class Arch, class T, class Sentence>
void parameter_gradients(problem<T> const& p, saved_result<T> const& saved, Sentence const& whole,
                         any_executor const& run_on, workspace& memory) {
  [&]<std::size_t... Which>(std::index_sequence<Which...>) {
    (modifier_gradient<Which, Arch>(p, saved, whole, run_on, memory), ...);
  }
  (std::make_index_sequence<std::tuple_size_v<decltype(Sentence::modifiers)>>{});
  normaliser_gradient<Arch>(p, saved, whole, run_on, memory);
}

}  // namespace heed::attend
