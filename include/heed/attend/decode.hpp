#pragma once

#include <heed/attend/tile.hpp>
#include <heed/simd/dot.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

/// Engine 1, decode: few queries against many keys.
///
/// Here the cost is reading keys and values, so they are read once for all query heads that share
/// them, in the order they lie in memory, and keys rather than queries stand in lanes. Keys are
/// split in chunks, each with a state of its own, and the states are joined in the order of the
/// keys; chunks are cut by the number of keys alone.
namespace heed::attend {

/// A sequence goes this way up to so many query rows.
inline constexpr index_t most_decode_rows = 8;

/// Whether a normaliser can meet the keys of a row side by side.
template <class Bound>
inline constexpr bool decodes = decltype(Bound::normaliser)::order == key_order::any;

/// The products of queries with stored rows, for the element type of the rows: they are converted
/// in registers.
template <class T, class Arch>
struct stored_products {
  static constexpr int together = xsimd::batch<T, Arch>::size >= 4 ? 4 : 2;

  /// Scores of some keys, each with its query; see simd::dot_pairs.
  void (*dot)(T const* queries, index_t query_stride, void const* keys, index_t stride,
              index_t count, index_t depth, T* scores, index_t score_stride, index_t ahead);
  /// Scores of `together` queries with some keys; see simd::dot_rows.
  void (*dot_together)(T const* queries, void const* keys, index_t stride, index_t count,
                       index_t depth, T* scores, index_t ahead);
  /// Some values times the weights of one query; see simd::add_weighted_rows.
  void (*add)(T const* weights, void const* rows, index_t stride, index_t count, index_t columns,
              T* to, index_t ahead);
  /// Some values times a weight each, to sums of their own; see simd::add_weighted_pairs.
  void (*add_apart)(T const* weights, index_t weight_stride, void const* rows, index_t stride,
                    index_t count, index_t columns, T* to, index_t to_stride, index_t ahead);
  /// Some values times the weights of `queries`, to[query][column]; see simd::multiply.
  void (*add_together)(T const* weights, index_t queries, void const* rows, index_t stride,
                       index_t count, index_t columns, T* to, index_t to_stride, index_t ahead);

  template <element E>
  static stored_products of() {
    using stored = std::remove_const_t<E>;
    return {[](T const* queries, index_t query_stride, void const* keys, index_t stride,
               index_t count, index_t depth, T* scores, index_t score_stride, index_t ahead) {
              simd::dot_pairs<Arch>(queries, query_stride, static_cast<stored const*>(keys), stride,
                                    count, depth, scores, score_stride, ahead);
            },
            [](T const* queries, void const* keys, index_t stride, index_t count, index_t depth,
               T* scores, index_t ahead) {
              simd::dot_rows<together, Arch>(queries, depth, static_cast<stored const*>(keys),
                                             stride, count, depth, scores, keys_per_tile, ahead);
            },
            [](T const* weights, void const* rows, index_t stride, index_t count, index_t columns,
               T* to, index_t ahead) {
              simd::add_weighted_rows<Arch>(weights, static_cast<stored const*>(rows), stride,
                                            count, columns, to, ahead);
            },
            [](T const* weights, index_t weight_stride, void const* rows, index_t stride,
               index_t count, index_t columns, T* to, index_t to_stride, index_t ahead) {
              simd::add_weighted_pairs<Arch>(weights, weight_stride,
                                             static_cast<stored const*>(rows), stride, count,
                                             columns, to, to_stride, ahead);
            },
            &add_stored<stored>};
  }

 private:
  /// Some columns at a time; with each part of them a part of the rows `ahead` is asked for.
  template <class Stored>
  static void add_stored(T const* weights, index_t queries, void const* rows, index_t stride,
                         index_t count, index_t columns, T* to, index_t to_stride, index_t ahead) {
    constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
    constexpr index_t line = 64 / static_cast<index_t>(sizeof(Stored));
    auto const* const value = static_cast<Stored const*>(rows);
    index_t const registers = columns / lanes, parts = (registers + 2) / 3;
    for (index_t part = 0; part < parts; ++part) {
      if (ahead != 0)
        for (index_t k = count * part / parts; k < count * (part + 1) / parts; ++k)
          for (index_t c = 0; c < columns; c += line)
            __builtin_prefetch(value + k * stride + ahead + c);
      index_t const first = registers * part / parts, last = registers * (part + 1) / parts;
      with_registers(static_cast<int>(last - first), [&](auto size) {
        simd::multiply<size, true, Arch>(
            queries, count, simd::scalar_rows<T>{weights, keys_per_tile, 1}, value + first * lanes,
            stride, to + first * lanes, to_stride);
      });
    }
  }
};

/// What a chunk of keys came to for some rows: running states, accumulated values, and what
/// observers need.
template <class T, class Arch, class Bound>
struct decode_states {
  using batch = xsimd::batch<T, Arch>;
  using state = typename decltype(Bound::normaliser)::template state<batch>;
  static_assert(sizeof(state) % sizeof(batch) == 0,
                "heed: a normaliser's state consists of registers");

  state* rows;
  T* accumulated;  // [row][padded value_dim]
  T* row_max;      // [row]
  T* score_sum;    // [row]
  index_t stride;

  decode_states(arena& memory, index_t count, index_t padded_value_dim)
      : rows(memory.take<state>(count)),
        accumulated(memory.take<T>(count * padded_value_dim)),
        row_max(memory.take<T>(count)),
        score_sum(memory.take<T>(count)),
        stride(padded_value_dim) {}

  void clear(index_t count) const {
    for (index_t r = 0; r < count; ++r) new (rows + r) state();
    std::fill_n(accumulated, count * stride, T(0));
    std::fill_n(row_max, count, -std::numeric_limits<T>::infinity());
    std::fill_n(score_sum, count, T(0));
  }

  /// Row `r` takes in row `other_row` of a later chunk.
  template <class Normaliser>
  void join(index_t r, decode_states const& other, index_t other_row,
            Normaliser const& normaliser) const {
    auto const [mine, theirs] = normaliser.join(rows[r], other.rows[other_row]);
    constexpr auto lanes = static_cast<index_t>(batch::size);
    T* const sum = accumulated + r * stride;
    T const* const part = other.accumulated + other_row * stride;
    for (index_t c = 0; c < stride; c += lanes)
      simd::fma(batch::load_aligned(part + c), theirs, batch::load_aligned(sum + c) * mine)
          .store_aligned(sum + c);
    row_max[r] = std::max(row_max[r], other.row_max[other_row]);
    score_sum[r] = score_sum[r] * mine.get(0) + other.score_sum[other_row] * theirs.get(0);
  }
};

/// How the keys of a sequence are cut for decoding.
struct decode_chunks {
  static index_t size(index_t keys) {
    return simd::round_up(std::max<index_t>(512, (keys + 63) / 64), keys_per_tile);
  }
  static index_t count(index_t keys) { return (keys + size(keys) - 1) / size(keys); }
};

/// One worker's decode of a chunk of keys for the query heads [heads.first, heads.last) of a
/// sequence. A row is a query of a head; rows are numbered head by head.
template <class T, class Arch, class Sentence, class Bound, bool SumsScores>
class decode_worker {
 public:
  using batch = xsimd::batch<T, Arch>;
  using states = decode_states<T, Arch, Bound>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);

  // Keys and values are read in turns, and what predicts reads in hardware loses the thread at each turn. What is asked for
  // too late is waited for, and what is asked for too early pushes the rows at hand out of the first cache.
  static constexpr index_t bytes_ahead = 8 << 10;

  decode_worker(arena& memory, problem<T> const& p, Sentence const& whole, index_t rows,
                stored_products<T, Arch> const& with_key,
                stored_products<T, Arch> const& with_value)
      : p_(p),
        whole_(whole),
        with_key_(with_key),
        with_value_(with_value),
        dim_(simd::round_up(p.dim, lanes)),
        value_dim_(simd::round_up(p.value_dim, lanes)),
        query_(memory.take<T>(rows * dim_)),
        scores_(memory.take<T>(rows * keys_per_tile)),
        staged_(memory.take<T>(readers_of<Bound> * staged_stride)),
        masks_(memory.take<std::uint64_t>(keys_per_tile)),
        rows_(memory.take<T>(shared_step * std::max(dim_, value_dim_))) {}

  void run(index_t sequence, interval heads, interval chunk, states const& to) {
    place const first = p_.sequence.at(sequence, heads.first);
    index_t const count = heads.size() * first.rows;
    to.clear(count);
    interval_set keys;
    bool scattered = false;
    for (index_t head = heads.first; head < heads.last; ++head) {
      place const where = p_.sequence.at(sequence, head);
      Bound const bound = whole_.at(where);
      scattered |= bound.pattern.scattered();
      keys =
          keys | pattern_keys(bound.pattern, p_.position.hull(where, {0, where.rows}), where.keys);
      load_queries(where, query_ + (head - heads.first) * where.rows * dim_);
    }
    for (interval part : keys& interval_set(chunk))
      for (index_t tile = part.first / keys_per_tile; tile * keys_per_tile < part.last; ++tile) {
        interval met = intersect(part, {tile * keys_per_tile, (tile + 1) * keys_per_tile});
        if (scattered) met = met_keys(sequence, heads, met);
        if (!met.empty()) visit(sequence, heads, met, to);
      }
    for (index_t r = 0; r < count; ++r)
      fold_lanes(to, r, whole_.at(p_.sequence.at(sequence, heads.first + r / first.rows)));
  }

 private:
  /// The smallest interval around the keys of a tile that some of the heads meet.
  interval met_keys(index_t sequence, interval heads, interval tile) const {
    interval around{tile.last, tile.first};
    for (index_t head = heads.first; head < heads.last; ++head) {
      place const where = p_.sequence.at(sequence, head);
      Bound const bound = whole_.at(where);
      interval const queries = p_.position.hull(where, {0, where.rows});
      for (index_t from = tile.first; from < tile.last;) {
        interval const run = intersect(bound.pattern.next_keys(queries, from, where.keys), tile);
        if (run.empty()) break;
        around = {std::min(around.first, run.first), std::max(around.last, run.last)};
        from = run.last;
      }
    }
    return around;
  }

  void load_queries(place const& where, T* to) {
    constexpr T unit = score_tile<1, Arch, T, Bound>::query_unit;
    p_.query.copy(where.batch, where.head, where.first_row, where.rows, to, dim_);
    for (index_t n = 0; n < where.rows; ++n) {
      T* const row = to + n * dim_;
      T const factor = p_.score_scale(where, where.row(n)) * unit;
      for (index_t d = 0; d < p_.dim; ++d) row[d] *= factor;
      std::fill(row + p_.dim, row + dim_, T(0));
    }
  }

  /// Rows of keys or values, whole registers long.
  row_block<T> padded_rows(source<T> const& from, place const& where, index_t head, interval keys,
                           index_t padded) {
    index_t const first = where.first_key + keys.first;
    if (from.in_place() && from.dim() == padded)
      return from.rows(where.batch, head, first, keys.size(), rows_);
    from.copy(where.batch, head, first, keys.size(), rows_, padded, rows_ahead(from, from.dim()));
    for (index_t k = 0; k < keys.size(); ++k)
      std::fill(rows_ + k * padded + from.dim(), rows_ + (k + 1) * padded, T(0));
    return {rows_, padded};
  }

  /// Calls f(shared head, its first row, number of rows) for the key or value heads behind `heads`.
  template <class F>
  void each_shared_head(interval heads, index_t rows, index_t shared_heads, F&& f) const {
    index_t const sharing = p_.heads / shared_heads;
    for (index_t head = heads.first; head < heads.last; head += sharing)
      f(head / sharing, (head - heads.first) * rows, std::min(sharing, heads.last - head) * rows);
  }

  void visit(index_t sequence, interval heads, interval tile, states const& to) {
    place const here = p_.sequence.at(sequence, heads.first);
    if (lie_side_by_side(p_.key, heads, here.rows, dim_))
      for (index_t k = tile.first; k < tile.last; ++k)
        with_key_.dot(query_, dim_, p_.key.stored(here.batch, heads.first, here.first_key + k),
                      p_.key.strides()[2], heads.size(), dim_, scores_ + (k - tile.first),
                      keys_per_tile,
                      rows_ahead(p_.key, heads.size() * p_.key.dim()) * p_.key.strides()[1]);
    else
      each_step(
          tile, heads.size() * here.rows, p_.heads / p_.key_heads * here.rows, [&](interval step) {
            each_shared_head(
                heads, here.rows, p_.key_heads, [&](index_t head, index_t row, index_t count) {
                  multiply_keys(here, head, step, row, count,
                                scores_ + row * keys_per_tile + (step.first - tile.first));
                });
          });
    bool hidden = false;
    for (index_t head = heads.first; head < heads.last; ++head) {
      place const where = p_.sequence.at(sequence, head);
      Bound const bound = whole_.at(where);
      for (index_t n = 0; n < where.rows; ++n)
        hidden |= weigh(where, bound, n, tile, (head - heads.first) * where.rows + n, to);
    }
    if (!hidden && lie_side_by_side(p_.value, heads, here.rows, value_dim_))
      for (index_t k = tile.first; k < tile.last; ++k)
        with_value_.add_apart(
            scores_ + (k - tile.first), keys_per_tile,
            p_.value.stored(here.batch, heads.first, here.first_key + k), p_.value.strides()[2],
            heads.size(), value_dim_, to.accumulated, to.stride,
            rows_ahead(p_.value, heads.size() * p_.value.dim()) * p_.value.strides()[1]);
    else
      each_step(tile, heads.size() * here.rows, p_.heads / p_.value_heads * here.rows,
                [&](interval step) {
                  each_shared_head(heads, here.rows, p_.value_heads,
                                   [&](index_t head, index_t row, index_t count) {
                                     multiply_values(
                                         here, head, step, row, count,
                                         scores_ + row * keys_per_tile + (step.first - tile.first),
                                         hidden, to);
                                   });
                });
  }

  /// Whether heads with one query row and with keys or values of their own lie side by side in every position, and are enough
  /// to fill half a register with their scores: then memory is read in order, position by position.
  bool lie_side_by_side(source<T> const& from, interval heads, index_t rows, index_t padded) const {
    return rows == 1 && 2 * heads.size() >= lanes && from.heads() == p_.heads &&
           from.unit_stride() && from.dim() == padded &&
           std::abs(from.strides()[2]) < std::abs(from.strides()[1]);
  }
  /// How many rows on, of `numbers` each, to ask for what will be read.
  static index_t rows_ahead(source<T> const& from, index_t numbers) {
    return std::max<index_t>(1, bytes_ahead / std::max<index_t>(1, numbers * from.element_size()));
  }

  /// A tile in steps of some keys of every head: few where several heads are read, so that they are
  /// read in the order they lie; more where rows are converted first, for the sake of the product.
  template <class F>
  void each_step(interval tile, index_t rows, index_t sharing, F&& f) const {
    index_t const size = sharing < 3 && sharing < rows ? single_step : shared_step;
    for (index_t k = tile.first; k < tile.last; k += size)
      f(interval{k, std::min(k + size, tile.last)});
  }

  /// Rows of keys or values whole registers long, where they are stored or padded, and what multiplies them.
  struct readable_rows {
    stored_products<T, Arch> const& with;
    void const* data;
    index_t stride;
    index_t ahead;  // to the rows that are asked for meanwhile
  };
  readable_rows rows_of(source<T> const& from, stored_products<T, Arch> const& with_stored,
                        place const& where, index_t head, interval keys, index_t padded) {
    if (from.unit_stride() && from.dim() == padded)
      return {with_stored, from.stored(where.batch, head, where.first_key + keys.first),
              from.strides()[1], rows_ahead(from, padded) * from.strides()[1]};
    row_block<T> const copied = padded_rows(from, where, head, keys, padded);
    return {with_padded_, copied.data, copied.stride, 0};
  }

  void multiply_keys(place const& where, index_t head, interval keys, index_t row, index_t count,
                     T* scores) {
    constexpr int together = stored_products<T, Arch>::together;
    readable_rows const key = rows_of(p_.key, with_key_, where, head, keys, dim_);
    T const* const query = query_ + row * dim_;
    index_t ahead = key.ahead, r = 0;
    for (; r + together <= count; r += together, ahead = 0)
      key.with.dot_together(query + r * dim_, key.data, key.stride, keys.size(), dim_,
                            scores + r * keys_per_tile, ahead);
    for (; r < count; ++r)
      key.with.dot(query + r * dim_, 0, key.data, key.stride, keys.size(), dim_,
                   scores + r * keys_per_tile, 1, ahead);
  }

  void multiply_values(place const& where, index_t head, interval keys, index_t row, index_t count,
                       T const* weights, bool hidden, states const& to) {
    T* const sums = to.accumulated + row * to.stride;
    if (hidden) {
      row_block<T> const value = padded_rows(p_.value, where, head, keys, value_dim_);
      for (index_t r = 0; r < count; ++r)
        for (index_t k = 0; k < keys.size(); ++k)
          if (T const* const weight = weights + r * keys_per_tile + k;
              !(*weight == T(0) && std::signbit(*weight)))
            simd::add_weighted_rows<Arch>(weight, value[k], value.stride, 1, value_dim_,
                                          sums + r * to.stride);
      return;
    }
    readable_rows const value = rows_of(p_.value, with_value_, where, head, keys, value_dim_);
    if (count < 3)
      for (index_t r = 0; r < count; ++r)
        value.with.add(weights + r * keys_per_tile, value.data, value.stride, keys.size(),
                       value_dim_, sums + r * to.stride, value.ahead);
    else
      value.with.add_together(weights, count, value.data, value.stride, keys.size(), value_dim_,
                              sums, to.stride, value.ahead);
  }

  /// Turns row `row`'s scores of a tile into weights, -0 where a pair is hidden; true if any may
  /// be.
  bool weigh(place const& where, Bound const& bound, index_t n, interval tile, index_t row,
             states const& to) {
    T* const scores = scores_ + row * keys_per_tile;
    T const infinity = std::numeric_limits<T>::infinity();
    index_t const position = p_.position(where, n), count = tile.size(),
                  padded = simd::round_up(count, lanes);
    interval const at{position, position + 1};
    coverage const cover = pattern_cover(bound.pattern, at, tile);
    bool const partial = cover != coverage::all;
    bool const hidden = hides(bound, partial);
    index_t reader = 0;
    auto const stage = [&](auto const& modifier) {
      if constexpr (heed::detail::reads<std::remove_cvref_t<decltype(modifier)>>)
        modifier.fill(
            pair_tile<T>{staged_ + reader++ * staged_stride, {n, n + 1}, tile, keys_per_tile, 1});
    };
    std::apply([&](auto const&... modifier) { (stage(modifier), ...); }, bound.modifiers);
    for (index_t k = count; k < padded; ++k) scores[k] = -infinity;
    batch const query(static_cast<T>(position));
    if constexpr (std::tuple_size_v < decltype(Bound::modifiers) >> 0)
      for (index_t k = 0; k < padded; k += lanes)
        modified(bound, batch::load_aligned(scores + k), query, tile.first + k, staged_ + k)
            .store_aligned(scores + k);
    if (partial) {
      bound.pattern.mask({&position, 1}, tile, masks_);
      for (index_t k = 0; k < count; ++k)
        if ((masks_[k] & 1) == 0) scores[k] = -infinity;
    }
    // Lanes beyond the tile hold no key.
    std::fill(scores + count, scores + padded, -infinity);
    batch top(-infinity);
    for (index_t k = 0; k < padded; k += lanes)
      top = xsimd::max(top, batch::load_aligned(scores + k));
    alignas(64) T tops[lanes];
    top.store_aligned(tops);
    T const largest = *std::max_element(tops, tops + lanes);
    to.row_max[row] = std::max(to.row_max[row], largest);

    auto& state = to.rows[row];
    batch const rescale = bound.normaliser.admit(state, batch(largest));
    if (T const factor = rescale.get(0); factor != T(1)) {
      for (index_t c = 0; c < to.stride; ++c) to.accumulated[row * to.stride + c] *= factor;
      to.score_sum[row] *= factor;
    }
    batch score_sum(T(0));
    for (index_t k = 0; k < padded; k += lanes) {
      batch const score = batch::load_aligned(scores + k);
      batch weight = bound.normaliser.weigh(state, score);
      auto const is_hidden = score == batch(-infinity);
      if constexpr (SumsScores) score_sum += xsimd::select(is_hidden, batch(T(0)), weight * score);
      if constexpr (std::tuple_size_v < decltype(Bound::factors) >> 0) {
        batch const key = keys_from(tile.first + k);
        std::apply([&](auto const&... f) { ((weight *= f.factor(query, key)), ...); },
                   bound.factors);
      }
      if (hidden) weight = xsimd::select(is_hidden, batch(T(-0.0)), weight);
      weight.store_aligned(scores + k);
    }
    if constexpr (SumsScores) {
      alignas(64) T parts[lanes];
      score_sum.store_aligned(parts);
      for (T part : parts) to.score_sum[row] += part;
    }
    return hidden;
  }

  static batch keys_from(index_t first) {
    alignas(64) T positions[lanes];
    for (index_t i = 0; i < lanes; ++i) positions[i] = static_cast<T>(first + i);
    return batch::load_aligned(positions);
  }

  static batch modified(Bound const& bound, batch score, batch const& query, index_t first_key,
                        T const* numbers) {
    batch const key = keys_from(first_key);
    auto const step = [&](auto const& modifier) {
      if constexpr (heed::detail::reads<std::remove_cvref_t<decltype(modifier)>>) {
        score = modifier.apply(score, batch::load_aligned(numbers));
        numbers += staged_stride;
      } else {
        score = modifier.apply(score, query, key);
      }
    };
    std::apply([&](auto const&... modifier) { (step(modifier), ...); }, bound.modifiers);
    return score * batch(score_tile<1, Arch, T, Bound>::unit);
  }

  /// The lanes of a row's state saw different keys: joins them in all lanes, by halves.
  void fold_lanes(states const& to, index_t row, Bound const& bound) {
    using state = typename states::state;
    constexpr std::size_t registers = sizeof(state) / sizeof(batch);
    for (index_t half = lanes / 2; half > 0; half /= 2) {
      alignas(64) T mine[registers][static_cast<std::size_t>(lanes)],
          turned[registers][static_cast<std::size_t>(lanes)];
      std::memcpy(mine, &to.rows[row], sizeof(state));
      for (std::size_t i = 0; i < registers; ++i)
        for (index_t lane = 0; lane < lanes; ++lane)
          turned[i][lane] = mine[i][(lane + half) % lanes];
      state other;
      std::memcpy(static_cast<void*>(&other), turned, sizeof(state));
      bound.normaliser.join(to.rows[row], other);
    }
  }

  static constexpr index_t staged_stride = keys_per_tile;
  static constexpr index_t single_step = std::max<index_t>(8, lanes);
  static constexpr index_t shared_step = 32;
  problem<T> const& p_;
  Sentence const& whole_;
  stored_products<T, Arch> const& with_key_;
  stored_products<T, Arch> const& with_value_;
  stored_products<T, Arch> const with_padded_ = stored_products<T, Arch>::template of<T>();
  index_t dim_;
  index_t value_dim_;
  T* query_;
  T* scores_;
  T* staged_;
  std::uint64_t* masks_;
  T* rows_;
};

/// A decode pass over problem `p` into `out`, its shapes checked; `observers` see the rows.
template <class Arch, class T, class Sentence, class... Observers>
void decode_pass(problem<T> const& p, Sentence const& whole,
                 std::tuple<Observers...> const& observers, any_executor const& run_on,
                 workspace& scratch_memory, sink<T> const& out,
                 stored_products<T, Arch> const& with_key,
                 stored_products<T, Arch> const& with_value) {
  using bound_type = decltype(whole.at(place{}));
  using batch = xsimd::batch<T, Arch>;
  using states_type = decode_states<T, Arch, bound_type>;
  using worker_type =
      decode_worker<T, Arch, Sentence, bound_type, (false || ... || wants_mean_score<Observers>)>;
  if (p.heads == 0) return;

  // Heads that lie interleaved are read together.
  index_t const groups = std::gcd(p.key_heads, p.value_heads);
  bool const interleaved = std::abs(p.key.strides()[2]) < std::abs(p.key.strides()[1]);
  index_t const parts = interleaved ? 1 : groups, heads_per_part = p.heads / parts;
  index_t most_rows = 0, chunks = 1;
  for (index_t g = 0; g < p.sequence.count; ++g)
    if (place const where = p.sequence.at(g, 0); where.rows <= most_decode_rows) {
      most_rows = std::max(most_rows, where.rows);
      chunks = std::max(chunks, decode_chunks::count(where.keys));
    }
  if (most_rows == 0) return;
  index_t const rows = heads_per_part * most_rows;
  index_t const padded = simd::round_up(p.value_dim, static_cast<index_t>(batch::size));
  index_t const concurrency = static_cast<index_t>(run_on.concurrency());

  arena measure_states, measure_worker;
  states_type(measure_states, rows, padded);
  worker_type(measure_worker, p, whole, rows, with_key, with_value);
  index_t const state_bytes = static_cast<index_t>(measure_states.used());
  index_t const worker_bytes = static_cast<index_t>(measure_worker.used());
  index_t const pieces = p.sequence.count * parts * chunks;
  std::byte* const memory = scratch_memory.reserve(
      static_cast<std::size_t>(pieces * state_bytes + concurrency * worker_bytes));
  std::byte* const workers = memory + pieces * state_bytes;

  parallel_for(run_on, pieces, [&](index_t piece, index_t worker) {
    index_t const sequence = piece / chunks / parts, part = piece / chunks % parts,
                  chunk = piece % chunks;
    place const where = p.sequence.at(sequence, 0);
    if (where.rows > most_decode_rows) return;
    index_t const size = decode_chunks::size(where.keys);
    arena of_states(memory + piece * state_bytes), own(workers + worker * worker_bytes);
    states_type const to(of_states, rows, padded);
    worker_type(own, p, whole, rows, with_key, with_value)
        .run(sequence, {part * heads_per_part, (part + 1) * heads_per_part},
             intersect({chunk * size, (chunk + 1) * size}, {0, where.keys}), to);
  });

  parallel_for(run_on, p.sequence.count * p.heads, [&](index_t piece, index_t) {
    index_t const sequence = piece / p.heads, head = piece % p.heads, part = head / heads_per_part;
    place const where = p.sequence.at(sequence, head);
    if (where.rows > most_decode_rows) return;
    bound_type const bound = whole.at(where);
    auto const states_of = [&](index_t chunk) {
      arena of_states(memory + ((sequence * parts + part) * chunks + chunk) * state_bytes);
      return states_type(of_states, rows, padded);
    };
    constexpr T unit = static_cast<T>(decltype(bound_type::normaliser)::score_unit);
    for (index_t n = 0; n < where.rows; ++n) {
      index_t const row = (head - part * heads_per_part) * where.rows + n;
      states_type const all = states_of(0);
      for (index_t chunk = 1; chunk < chunks; ++chunk)
        all.join(row, states_of(chunk), row, bound.normaliser);
      finished_row<batch> const done = bound.normaliser.finish(all.rows[row]);
      T* const sum = all.accumulated + row * padded;
      for (index_t c = 0; c < p.value_dim; ++c) sum[c] *= done.factor.get(0);
      out.store(where.batch, head, where.first_row + n, 1, sum, padded);
      row_summary<T> const summary{done.lse.get(0), done.rest.get(0), all.row_max[row] / unit,
                                   all.score_sum[row] * done.factor.get(0) / unit};
      show_row(observers, where, n, summary);
    }
  });
}

}  // namespace heed::attend
