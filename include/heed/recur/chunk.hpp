#pragma once

#include <heed/recur/fade.hpp>
#include <heed/simd/finite.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>

/// One worker's way through the chunks of a sequence, for one state.
///
/// In a chunk that begins with the state S, with queries, keys and written values in rows Q, K and U,
///
///     O = gather(scores(Q, K), U) + from_start(Q) S          S <- e^G_end S + to_end(K)^T U
///
/// U is the values as they are; under the delta rule, what is written is found row by row first,
/// U = rate (V - gather(strict scores(K, K), U) - from_start(K) S).
namespace heed::recur {

/// The chunks of a sequence in order: keys before the first row, rows before the first key, then both together.
/// Rows that see all keys, or none, come without keys.
struct chunk_list {
  struct chunk {
    index_t first_key, keys, first_row, rows;
  };

  index_t lone_keys;
  index_t lone_rows;
  index_t pairs;
  index_t tokens;

  chunk_list(place const& where, bool causal, index_t chunk_tokens)
      : lone_keys(causal ? std::max<index_t>(where.keys - where.rows, 0) : where.keys),
        lone_rows(causal ? std::max<index_t>(where.rows - where.keys, 0) : where.rows),
        pairs(where.keys - lone_keys),
        tokens(chunk_tokens) {}

  index_t size() const { return count(lone_keys) + count(lone_rows) + count(pairs); }
  chunk operator[](index_t n) const {
    if (n < count(lone_keys)) return {n * tokens, part(lone_keys, n), 0, 0};
    n -= count(lone_keys);
    if (n < count(lone_rows)) return {0, 0, n * tokens, part(lone_rows, n)};
    n -= count(lone_rows);
    return {lone_keys + n * tokens, part(pairs, n), lone_rows + n * tokens, part(pairs, n)};
  }

 private:
  index_t count(index_t of) const { return (of + tokens - 1) / tokens; }
  index_t part(index_t of, index_t n) const { return std::min(tokens, of - n * tokens); }
};

/// Where a state is: its sequence and its head.
struct state_place {
  place where;
  index_t head;
};

/// Columns of one feature of a state after a chunk: what is left of them, by feature and by column, and what was written.
template <class Batch>
Batch after_chunk(Batch const& state, Batch const& by_feature, Batch const* by_column,
                  Batch const& written) {
  return by_column == nullptr ? simd::fma(state, by_feature, written)
                              : simd::fma(state * by_feature, *by_column, written);
}

/// The rate of exact_delta, (1 - exp(-rate norm)) / norm, at its limit where the norm is 0.
template <class T>
T exact_rate(T rate, T norm) {
  T const x = rate * norm;
  return x < T(1e-8) ? rate * (1 - x / 2) : -std::expm1(-x) / norm;
}

/// What one worker holds of a chunk, and what it makes of it; its parts are called in the order they stand in.
template <class T, class Arch>
class chunk_worker {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);
  static constexpr index_t block = fade<T, Arch>::block;

  chunk_worker(arena& memory, problem<T> const& p)
      : p_(p),
        features(simd::round_up(p.features, lanes)),
        columns(simd::round_up(p.columns, lanes)),
        key_fade(memory, p.key_fading, p.features, p.chunk),
        value_fade(memory, p.value_fading, p.columns, p.chunk),
        score_stride(key_fade.score_stride()) {
    index_t const tokens = score_stride;
    auto const rows = [&](index_t stride) {
      padded_rows<T> const block_of_rows{memory.take<T>(tokens * stride), stride};
      if (!memory.measuring()) std::fill_n(block_of_rows.data, tokens * stride, T(0));
      return block_of_rows;
    };
    raw = memory.take<T>(tokens * std::max(p.shape.key_dim, p.shape.query_dim));
    keys = rows(features);
    keys_at_end = rows(p.key_fading == fading::channels ? features : 0);
    keys_transposed = rows(features).data;
    written = rows(columns);
    faded_written =
        rows(p.key_fading == fading::scalar || p.value_fading == fading::channels ? columns : 0);
    queries = rows(features);
    queries_from_start = rows(p.key_fading == fading::none ? 0 : features);
    scores = rows(score_stride).data;
    out = rows(columns);
    if (p.rule != write_rule::add) {
      keys_from_start = rows(features);
      erasures = rows(score_stride).data;
      rates = memory.take<T>(tokens);
    }
  }

  /// Brings in the tokens of a chunk: keys, values, gates and rates.
  void load_keys(state_place const& at, chunk_list::chunk const& now) {
    count = now.keys;
    index_t const first = at.where.first_key + now.first_key, entry = at.where.batch;
    index_t const head = p_.of_state(p_.shape.key_heads, at.head);
    load_features(side::key, p_.key, entry, head, first, now.first_key, count, keys);
    key_fade.load(p_.key_gate, entry, p_.of_state(p_.key_gate.heads(), at.head), first, count);
    value_fade.load(p_.value_gate, entry, p_.of_state(p_.value_gate.heads(), at.head), first,
                    count);
    // Copied even where they could be used as they lie: products would wait for each row by itself.
    p_.value.copy(entry, p_.of_state(p_.shape.value_heads, at.head), first, count, written.data,
                  columns);
    if (p_.is_normalised)
      for (index_t j = 0; j < count; ++j) written[j][p_.columns - 1] = T(1);
    if (p_.key_fading == fading::channels) key_fade.to_end(keys, features, keys_at_end);
    if (erases()) load_rates(entry, at.head, first);
  }

  /// Whether tokens are written by the delta rule.
  bool erases() const { return p_.rule != write_rule::add; }
  /// All columns of a state.
  interval all_columns() const { return {0, columns}; }

  /// What scores are made from: to be called for a chunk whose rows are read, or whose keys erase.
  void prepare_scores() {
    key_fade.prepare_scores();
    if (count > 0 && p_.key_fading != fading::channels)
      simd::transpose<Arch>(count, p_.features, keys.data, features, keys_transposed, score_stride);
  }

  /// What solve() needs of the keys.
  void prepare_erasures() {
    if (!erases() || count == 0) return;
    key_fade.scores(fade<T, Arch>::most_rows_at_once, true, keys, keys, keys_transposed,
                    p_.features, erasures);
    if (p_.key_fading == fading::none)
      for (index_t i = 0; i < count; ++i) std::copy_n(keys[i], features, keys_from_start[i]);
    else
      key_fade.from_start(count, keys, features, keys_from_start);
    // Both are subtracted: negated once, they are added.
    for (index_t i = 0; i < count; ++i) {
      multiply_row<Arch>(T(-1), keys_from_start[i], features, keys_from_start[i]);
      multiply_row<Arch>(T(-1), erasures + i * score_stride, simd::round_up(i, lanes),
                         erasures + i * score_stride);
    }
  }

  /// Under the delta rule, turns some columns of the chunk's values into what is written. `missed`, if given, receives what the
  /// state did not say of each key, [token][columns].
  void solve(T const* state, interval part, T* missed = nullptr) {
    if (!erases() || count == 0) return;
    index_t const width = part.size();
    auto const row = [&](index_t i) { return written[i] + part.first; };
    product<true, Arch>(count, p_.features, along(keys_from_start), state + part.first, columns,
                        width, row(0), columns);
    for (index_t first = 0; first < count; first += block) {
      index_t const last = std::min(first + block, count);
      if (first > 0)
        product<true, Arch>(last - first, first, {erasures + first * score_stride, score_stride, 1},
                            row(0), columns, width, row(first), columns);
      for (index_t e = part.first; e < part.last; e += lanes) {
        batch before[block];
        // With &&, so that a compiler sees that the rows before one have run.
        [&]<index_t... Row>(std::integer_sequence<index_t, Row...>) {
          static_cast<void>(
              ((first + Row < last && (solve_row<Row>(first, e, before, missed), true)) && ...));
        }
        (std::make_integer_sequence<index_t, block>());
      }
    }
  }

  /// What the chunk adds to some columns of the state, [feature][columns].
  void write(T* added, interval part) {
    if (count == 0) {
      for (index_t d = 0; d < p_.features; ++d)
        std::fill_n(added + d * columns + part.first, part.size(), T(0));
      return;
    }
    fade_written(part);
    product<false, Arch>(p_.features, count, across(keys_left()), written_at_end.data + part.first,
                         written_at_end.stride, part.size(), added + part.first, columns);
  }

  /// Some columns of what is written as they are at the end of the chunk. One number that keys and values fade by goes with
  /// them.
  void fade_written(interval part) {
    written_at_end = written;
    if (p_.value_fading == fading::channels) {
      value_fade.to_end(written, columns, faded_written);
      written_at_end = faded_written;
    }
    if (p_.key_fading == fading::scalar) {
      key_fade.to_end({written_at_end.data + part.first, columns}, part.size(),
                      {faded_written.data + part.first, columns});
      written_at_end = faded_written;
    }
  }
  row_block<T> keys_left() const { return p_.key_fading == fading::channels ? keys_at_end : keys; }

  /// The columns of some rows, to be multiplied as rows are.
  static simd::scalar_rows<T> across(row_block<T> rows) { return {rows.data, 1, rows.stride}; }
  static simd::scalar_rows<T> along(row_block<T> rows) { return {rows.data, rows.stride, 1}; }

  /// Some columns of the state after the chunk: `from` is the state before, and may be `to`.
  void advance(T const* from, T const* added, interval part, T* to) const {
    bool const columns_fade = count > 0 && value_fade.kind() == fading::channels;
    for (index_t d = 0; d < p_.features; ++d) {
      batch const factor(count == 0                            ? T(1)
                         : key_fade.kind() == fading::channels ? key_fade.whole_channels()[d]
                                                               : key_fade.whole());
      for (index_t e = part.first; e < part.last; e += lanes) {
        index_t const at = d * columns + e;
        batch by_column;
        if (columns_fade) by_column = batch::load_aligned(value_fade.whole_channels() + e);
        after_chunk(batch::load_aligned(from + at), factor, columns_fade ? &by_column : nullptr,
                    batch::load_aligned(added + at))
            .store_aligned(to + at);
      }
    }
  }

  /// Brings in the queries of a chunk for one head of the output.
  void load_queries(place const& where, index_t head, chunk_list::chunk const& now) {
    index_t const position = p_.causal ? now.first_row + where.keys - where.rows : now.first_row;
    load_features(side::query, p_.query, where.batch, p_.query_head(head),
                  where.first_row + now.first_row, position, now.rows, queries);
  }

  /// The scores of a chunk's queries, and the queries as the state it begins with is seen by them.
  void score(index_t rows) {
    if (count > 0) {
      key_fade.scores(fade<T, Arch>::most_rows_at_once, false, queries, keys, keys_transposed,
                      p_.features, scores);
      if (p_.key_fading != fading::none)
        key_fade.from_start(rows, queries, features, queries_from_start);
    }
  }
  row_block<T> seeing() const {
    return count > 0 && p_.key_fading != fading::none ? queries_from_start : queries;
  }

  /// Chooses how many rows are made at a time, once what is written is known.
  void find_rows_at_once() {
    rows_at_once = simd::all_finite<Arch, T>(written, count, p_.columns)
                       ? fade<T, Arch>::most_rows_at_once
                       : 1;
  }

  /// The rows of a chunk from its scores, not yet normalised.
  void read(T const* state, index_t rows) {
    product<false, Arch>(rows, p_.features, along(seeing()), state, columns, columns, out.data,
                         columns);
    if (count == 0) return;
    if (p_.value_fading == fading::channels) value_fade.from_start(rows, out, columns, out);
    value_fade.gather(rows_at_once, scores, written, columns, out);
  }

  void normalise(index_t rows) {
    if (!p_.is_normalised) return;
    for (index_t i = 0; i < rows; ++i) {
      T const by = p_.divisor(out[i][p_.columns - 1]);
      multiply_row<Arch>(by != T(0) ? 1 / by : T(0), out[i], columns, out[i]);
      if (by == T(0)) std::fill_n(out[i], p_.columns, T(0));
    }
  }

  void load_state(state_place const& at, T* state) const {
    std::fill_n(state, p_.features * columns, T(0));
    if (p_.begins) p_.initial.copy(at.where.sequence, at.head, 0, p_.features, state, columns);
  }
  void store_state(state_place const& at, T const* state) const {
    if (p_.ends) p_.final.store(at.where.sequence, at.head, 0, p_.features, state, columns);
  }

  index_t state_size() const { return p_.features * columns; }

  problem<T> const& p_;
  index_t features;  // and columns, padded to whole registers
  index_t columns;
  fade<T, Arch> key_fade, value_fade;
  index_t score_stride;
  index_t count = 0;         // tokens in the chunk
  index_t rows_at_once = 1;  // fewer where products with 0 are not 0
  T* raw;                    // rows before the feature map
  padded_rows<T> keys, keys_at_end, keys_from_start{};
  padded_rows<T> written, faded_written;
  row_block<T> written_at_end{};
  padded_rows<T> queries, queries_from_start;
  T* keys_transposed;
  T* scores;
  padded_rows<T> out;
  T* erasures = nullptr;  // strict scores of keys against keys
  T* rates = nullptr;

 protected:
  void load_features(side of, source<T> const& from, index_t entry, index_t head, index_t first,
                     index_t position, index_t rows, padded_rows<T> to) {
    if (!p_.map.is_identity()) {
      p_.map.apply(of, raw_rows(of, from, entry, head, first, position, rows), to.data, features);
      return;
    }
    from.copy(entry, head, first, rows, to.data, features);
    if (of == side::query && p_.scale != T(1))
      for (index_t i = 0; i < rows; ++i) multiply_row<Arch>(p_.scale, to[i], features, to[i]);
  }

  /// Rows as the feature map sees them.
  feature_rows<T> raw_rows(side of, source<T> const& from, index_t entry, index_t head,
                           index_t first, index_t position, index_t rows) {
    from.copy(entry, head, first, rows, raw, from.dim());
    if (of == side::query && p_.scale != T(1))
      for (index_t n = 0; n < rows * from.dim(); ++n) raw[n] *= p_.scale;
    return {raw, from.dim(), rows, from.dim(), entry, head, position};
  }

 private:
  /// Inside a block: one register of columns of what is written for the token at `Row`. `before`: those of the tokens before it.
  template <index_t Row>
  void solve_row(index_t first, index_t column, batch (&before)[block], T* missed) {
    index_t const i = first + Row;
    T const* const erased = erasures + i * score_stride + first;
    batch sum = batch::load_aligned(written[i] + column);
#pragma GCC unroll 16
    for (index_t j = 0; j < Row; ++j) sum = simd::fma(batch(erased[j]), before[j], sum);
    if (missed != nullptr) sum.store_aligned(missed + i * columns + column);
    before[Row] = batch(rates[i]) * sum;
    before[Row].store_aligned(written[i] + column);
  }

  void load_rates(index_t entry, index_t head, index_t first) {
    p_.rate.numbers.copy(entry, p_.of_state(p_.rate.heads(), head), first, count, rates, 1);
    if (p_.rule != write_rule::exact_delta) return;
    for (index_t j = 0; j < count; ++j)
      rates[j] = exact_rate(rates[j], inner_product<Arch>(keys[j], keys[j], features));
  }
};

}  // namespace heed::recur
