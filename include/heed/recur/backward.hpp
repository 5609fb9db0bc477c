#pragma once

#include <heed/recur/forward.hpp>
#include <heed/recur/gate_gradients.hpp>

#include <cmath>
#include <utility>

/// Engine 2, backward. With R the gradient of the state a chunk ends with, and dO, dU those of its rows and of what it writes,
///
///     dU = scatter(P, dO) + to_end(K) R                       P = scores(Q, K)
///     dQ = gather(dP, K) + from_start(dO S^T)                 dP = scores(dO, U)
///     dK = scatter(dP, Q) + to_end(U R^T)                     R <- e^G_end R + from_start(Q)^T dO
///
/// The erasing of the delta rule is one more row that reads: the key itself, before the token, its gradient that of what was
/// missed, negated.
namespace heed::recur {

template <class T, class Arch>
class backward_worker : public chunk_worker<T, Arch> {
 public:
  using base = chunk_worker<T, Arch>;
  using base::block;
  using base::columns;
  using base::count;
  using base::features;
  using base::key_fade;
  using base::keys;
  using base::lanes;
  using base::out;
  using base::p_;
  using base::queries;
  using base::rows_at_once;
  using base::score_stride;
  using base::value_fade;
  using base::written;

  backward_worker(arena& memory, problem<T> const& p, gradients<T> const& g)
      : base(memory, p), g_(g), gates_(memory, p, g, *this) {
    index_t const tokens = score_stride;
    auto const rows = [&](index_t stride) {
      padded_rows<T> const block_of_rows{memory.take<T>(tokens * stride), stride};
      if (!memory.measuring()) std::fill_n(block_of_rows.data, tokens * stride, T(0));
      return block_of_rows;
    };
    index_t const size = features * columns;
    auto const square = [&] {
      T* const at = memory.take<T>(size);
      if (!memory.measuring()) std::fill_n(at, size, T(0));
      return at;
    };
    dout_ = rows(columns);
    faded_dout_ = p.value_fading == fading::channels ? rows(columns) : dout_;
    dwritten_ = rows(columns);
    dkeys_ = rows(features);
    dqueries_ = rows(features);
    dscores_ = rows(score_stride).data;
    written_transposed_ = memory.take<T>(columns * score_stride);
    state_transposed_ = square();
    gradient_transposed_ = square();
    added_ = square();
    gradient = square();
    index_t const dim = std::max(p.shape.key_dim, p.shape.query_dim);
    draw_ = memory.take<T>(tokens * dim);
    if (p.rule != write_rule::add) {
      drates_ = memory.take<T>(tokens);
      given_rates_ = memory.take<T>(tokens);
    }
    if (!memory.measuring()) std::fill_n(written_transposed_, columns * score_stride, T(0));
  }

  /// The gradients of a chunk that begins with `state` and ends with `ended`, whose gradient is `gradient`, which becomes that
  /// of `state`. `missed`: what solve() found, under the delta rule.
  void differentiate(state_place const& at, chunk_list::chunk const& now, T const* state,
                     T const* ended, T const* missed) {
    load(at, now, missed);
    begin_share();
    differentiate_loaded(at, now, state, ended);
    end_share();
    this->advance(gradient, added_, this->all_columns(), gradient);
  }

  /// The same of a chunk whose R others carry up to it and from it on; not under the delta rule.
  void differentiate(state_place const& at, chunk_list::chunk const& now,
                     typename relay<T, Arch>::baton const& baton, T const* state, T const* ended) {
    load(at, now, nullptr);
    begin_share();
    for (index_t r = 0; r < p_.readers() && now.rows > 0; ++r) {
      load_rows(at, now, at.head * p_.readers() + r, state);
      add_share(now.rows, this->seeing(), seen_dout());
    }
    end_share();
    auto const carry = [&](interval part, T const* taken, T* carried) {
      this->advance(taken, added_, part, carried);
    };
    if (baton.pass(gradient, carry)) differentiate_loaded(at, now, state, ended);
  }

  /// The state after a chunk; `missed` as solve() has it.
  void advance_state(state_place const& at, chunk_list::chunk const& now, T const* from, T* to,
                     T* missed) {
    interval const all = this->all_columns();
    this->load_keys(at, now);
    if (this->erases()) this->prepare_scores();
    this->prepare_erasures();
    this->solve(from, all, missed);
    this->write(added_, all);
    this->advance(from, added_, all, to);
  }

  /// The same of a state that others carry up to the chunk and from it on; not under the delta rule.
  void advance_state(state_place const& at, chunk_list::chunk const& now,
                     typename relay<T, Arch>::baton const& baton, T* from) {
    this->load_keys(at, now);
    this->write(added_, this->all_columns());
    baton.pass(from, [&](interval part, T const* taken, T* carried) {
      this->advance(taken, added_, part, carried);
    });
  }

  void load_gradient(state_place const& at, T* to) const {
    std::fill_n(to, this->state_size(), T(0));
    if (g_.ends) g_.final.copy(at.where.sequence, at.head, 0, p_.features, to, columns);
  }
  void store_gradient(state_place const& at, T const* from) const {
    if (g_.begins) g_.initial.store(at.where.sequence, at.head, 0, p_.features, from, columns);
  }

  T* gradient;  // R

 private:
  using batch = typename base::batch;

  /// Brings in a chunk's tokens, and what is written for them.
  void load(state_place const& at, chunk_list::chunk const& now, T const* missed) {
    this->load_keys(at, now);
    this->prepare_scores();
    this->prepare_erasures();
    missed_ = missed;
    loaded_head_ = -1;
    if (this->erases() && count > 0) {
      p_.rate.numbers.copy(at.where.batch, p_.of_state(p_.rate.heads(), at.head),
                           at.where.first_key + now.first_key, count, given_rates_, 1);
      for (index_t i = 0; i < count; ++i)
        multiply_row<Arch>(this->rates[i], missed + i * columns, columns, written[i]);
    }
    this->find_rows_at_once();
    if (!simd::all_finite<Arch, T>(keys, count, p_.features)) rows_at_once = 1;
  }

  void differentiate_loaded(state_place const& at, chunk_list::chunk const& now, T const* state,
                            T const* ended) {
    simd::transpose<Arch>(p_.features, columns, state, columns, state_transposed_, features);
    if (count > 0) {
      gates_.begin(state, ended, gradient);
      simd::transpose<Arch>(p_.features, columns, gradient, columns, gradient_transposed_,
                            features);
      simd::transpose<Arch>(count, columns, written.data, written.stride, written_transposed_,
                            score_stride);
      from_end();
    }
    for (index_t r = 0; r < p_.readers() && now.rows > 0; ++r)
      read_backward(at, now, at.head * p_.readers() + r, state);
    if (count == 0) return;
    if (this->erases()) erase_backward();
    gates_.store(at, now, dkeys_, dwritten_);
    store_keys(at, now);
  }

  /// What the end of the chunk says: dU = to_end(K) R and dK = to_end(U R^T).
  void from_end() {
    this->fade_written(this->all_columns());
    product<false, Arch>(count, p_.features, this->along(this->keys_left()), gradient, columns,
                         columns, dwritten_.data, columns);
    if (value_fade.kind() == fading::channels) value_fade.to_end(dwritten_, columns, dwritten_);
    if (key_fade.kind() == fading::scalar) key_fade.to_end(dwritten_, columns, dwritten_);
    product<false, Arch>(count, p_.columns, this->along(this->written_at_end), gradient_transposed_,
                         features, features, dkeys_.data, features);
    if (key_fade.kind() == fading::channels) key_fade.to_end(dkeys_, features, dkeys_);
    gates_.add_end(dkeys_);
  }

  /// Queries, scores and dO of one head's rows.
  void load_rows(state_place const& at, chunk_list::chunk const& now, index_t head,
                 T const* state) {
    if (std::exchange(loaded_head_, head) == head) return;
    this->load_queries(at.where, head, now);
    this->score(now.rows);
    load_dout(at.where, head, now, state);
    if (count > 0 && value_fade.kind() == fading::channels)
      value_fade.from_start(now.rows, dout_, columns, faded_dout_);
  }
  padded_rows<T> seen_dout() const { return count > 0 ? faded_dout_ : dout_; }

  /// One head's rows: dU, dK, dQ and what they say of the state that the chunk begins with.
  void read_backward(state_place const& at, chunk_list::chunk const& now, index_t head,
                     T const* state) {
    place const& where = at.where;
    load_rows(at, now, head, state);
    index_t const at_once =
        simd::all_finite<Arch, T>(queries, now.rows, p_.features) &&
                simd::all_finite<Arch, T>(row_block<T>{dout_.data, columns}, now.rows, p_.columns)
            ? rows_at_once
            : 1;
    if (g_.value_gate.wanted && count > 0) {
      if (g_.out.in_place())
        g_.out.copy(where.batch, head, where.first_row + now.first_row, now.rows, out.data,
                    columns);
      else
        this->read(state, now.rows);  // they may have been rounded where they were stored
      gates_.add_values(now.rows, out, dout_);
    }
    if (count > 0) value_fade.scatter(at_once, this->scores, dout_, columns, dwritten_);
    see_backward(at_once, false, now.rows, queries, this->seeing(), dout_, seen_dout(), dqueries_);
    store_features(side::query, p_.query, g_.query, where.batch, p_.query_head(head), head,
                   where.first_row + now.first_row,
                   p_.causal ? now.first_row + where.keys - where.rows : now.first_row, now.rows,
                   queries, dqueries_);
  }

  /// Rows x that read with the gradient dz: dx, dK += scatter(dP, x), and R's share.
  void see_backward(index_t at_once, bool strict, index_t rows, row_block<T> x,
                    row_block<T> x_from_start, padded_rows<T> dz, padded_rows<T> dz_from_start,
                    padded_rows<T> dx) {
    product<false, Arch>(rows, p_.columns, {dz_from_start.data, columns, 1}, state_transposed_,
                         features, features, dx.data, features);
    if (count > 0) {
      if (key_fade.kind() != fading::none) key_fade.from_start(rows, dx, features, dx);
      value_fade.scores(at_once, strict, dz, written, written_transposed_, p_.columns, dscores_);
      if (strict)
        gates_.add_pairs(rows, this->erasures, dscores_, T(-1), x, dx);
      else
        gates_.add_pairs(rows, this->scores, dscores_, T(1), x, dx);
      key_fade.fade_scores(at_once, dscores_);
      key_fade.gather(at_once, dscores_, keys, features, dx);
      key_fade.scatter(at_once, dscores_, x, features, dkeys_);
      gates_.add_rows(rows, x, dx);
    }
    add_share(rows, x_from_start, dz_from_start);
  }

  /// Between these two, rows add to what the chunk adds to R.
  void begin_share() { share_ = share::empty; }
  void end_share() {
    if (share_ == share::empty) std::fill_n(added_, this->state_size(), T(0));
    share_ = share::done;
  }
  void add_share(index_t rows, row_block<T> x_from_start, row_block<T> dz_from_start) {
    auto const across = this->across(x_from_start);
    if (share_ == share::empty)
      product<false, Arch>(p_.features, rows, across, dz_from_start.data, columns, columns, added_,
                           columns);
    else if (share_ == share::begun)
      product<true, Arch>(p_.features, rows, across, dz_from_start.data, columns, columns, added_,
                          columns);
    if (share_ == share::empty) share_ = share::begun;
  }

  /// The gradient of rows before they were normalised, with that of their divisor for a column.
  void load_dout(place const& where, index_t head, chunk_list::chunk const& now, T const* state) {
    index_t const first = where.first_row + now.first_row;
    g_.dout.copy(where.batch, head, first, now.rows, dout_.data, columns);
    if (!p_.is_normalised) return;
    sum_weights(state, now.rows);
    index_t const last = p_.columns - 1;
    for (index_t i = 0; i < now.rows; ++i) {
      T const sum = out[i][last];
      g_.out.copy(where.batch, head, first + i, 1, out[i], columns);
      T const by = p_.divisor(sum);
      dout_[i][last] = T(0);
      T const along = inner_product<Arch>(dout_[i], out[i], columns);
      bool const is_clamped = sum + p_.epsilon < p_.at_least;
      dout_[i][last] = is_clamped ? T(0) : -along;
      multiply_row<Arch>(by != T(0) ? 1 / by : T(0), dout_[i], columns, dout_[i]);
      if (by == T(0)) std::fill_n(dout_[i], p_.columns, T(0));
    }
  }

  /// The last column of the rows: the sum of their weights.
  void sum_weights(T const* state, index_t rows) {
    index_t const from = columns - lanes;
    product<false, Arch>(rows, p_.features, this->along(this->seeing()), state + from, columns,
                         lanes, out.data + from, columns);
    if (count > 0)
      value_fade.gather(rows_at_once, this->scores, {written.data + from, written.stride}, lanes,
                        {out.data + from, columns});
  }

  /// Through the delta rule: from the gradient of what was written to that of what was missed, the last token first.
  void erase_backward() {
    for (index_t first = (count - 1) / block * block; first >= 0; first -= block) {
      index_t const last = std::min(first + block, count);
      if (last < count)
        product<true, Arch>(last - first, count - last,
                            {this->erasures + last * score_stride + first, 1, score_stride},
                            dwritten_[last], columns, columns, dwritten_[first], columns);
      for (index_t i = last; i-- > first;) {
        drates_[i] = inner_product<Arch>(dwritten_[i], missed_ + i * columns, columns);
        multiply_row<Arch>(this->rates[i], dwritten_[i], columns, dwritten_[i]);
        for (index_t j = first; j < i; ++j)
          add_product<Arch>(this->erasures[i * score_stride + j], dwritten_[i], columns,
                            dwritten_[j]);
      }
    }
    // What was missed is the value less what is read: a row whose gradient is the negated one. Its keys are negated already.
    for (index_t i = 0; i < count; ++i) multiply_row<Arch>(T(-1), dwritten_[i], columns, dout_[i]);
    for (index_t i = 0; i < count; ++i)
      multiply_row<Arch>(T(-1), this->keys_from_start[i], features, this->keys_from_start[i]);
    see_backward(rows_at_once, true, count, keys, this->keys_from_start, dout_, dout_, dqueries_);
  }

  void store_keys(state_place const& at, chunk_list::chunk const& now) {
    index_t const first = at.where.first_key + now.first_key, entry = at.where.batch;
    g_.value.store(entry, at.head, first, count, dwritten_.data, columns);
    if (this->erases()) {
      for (index_t i = 0; i < count; ++i)
        add_product<Arch>(T(1), dqueries_[i], features, dkeys_[i]);
      if (p_.rule == write_rule::exact_delta) exact_backward();
      g_.rate.store(entry, at.head, first, count, drates_, 1);
    }
    store_features(side::key, p_.key, g_.key, entry, p_.of_state(p_.shape.key_heads, at.head),
                   at.head, first, now.first_key, count, keys, dkeys_);
  }

  /// From the gradient of the exact rate to those of its time and of the key's norm.
  void exact_backward() {
    for (index_t i = 0; i < count; ++i) {
      T const norm = inner_product<Arch>(keys[i], keys[i], features);
      T const rate = given_rates_[i], x = rate * norm, fall = std::exp(-x);
      // (x e^-x - 1 + e^-x) / norm^2, which cancels where x is small: there, its series.
      T const series =
          T(-1) / 2 +
          x * (T(1) / 3 + x * (T(-1) / 8 + x * (T(1) / 30 + x * (T(-1) / 144 + x / 840))));
      T const by_norm =
          x < T(1e-2) ? rate * rate * series : (x * fall + std::expm1(-x)) / (norm * norm);
      add_product<Arch>(2 * drates_[i] * by_norm, keys[i], features, dkeys_[i]);
      drates_[i] *= fall;
    }
  }

  /// Through the feature map.
  void store_features(side of, source<T> const& from, gradient_rows<T> const& to, index_t entry,
                      index_t tensor_head, index_t head, index_t first, index_t position,
                      index_t rows, row_block<T> phi, padded_rows<T> dphi) {
    if (!to.wanted) return;
    T const factor = of == side::query ? p_.scale : T(1);
    T* dx = dphi.data;
    index_t stride = features;
    if (!p_.map.is_identity()) {
      auto const x = this->raw_rows(of, from, entry, tensor_head, first, position, rows);
      dx = draw_;
      stride = from.dim();
      p_.map.differentiate(of, x, phi.data, dphi.data, features, dx, stride);
    }
    if (factor != T(1))
      for (index_t i = 0; i < rows; ++i)
        for (index_t d = 0; d < from.dim(); ++d) dx[i * stride + d] *= factor;
    to.store(entry, head, first, rows, dx, stride);
  }

  gradients<T> const& g_;
  gate_gradients<T, Arch> gates_;
  padded_rows<T> dout_, faded_dout_, dwritten_, dkeys_, dqueries_;
  T* dscores_;
  T* written_transposed_;
  T* state_transposed_;
  T* gradient_transposed_;
  T* added_;
  T* draw_;
  T* drates_ = nullptr;
  T* given_rates_ = nullptr;
  T const* missed_ = nullptr;
  index_t loaded_head_ = -1;
  enum class share { empty, begun, done } share_ = share::empty;
};

/// All chunks of one state, the last first. States are made anew from saved ones some chunks apart.
template <class T, class Arch>
class backward_run {
 public:
  static constexpr index_t most_saved = 128;

  backward_run(arena& memory, problem<T> const& p, gradients<T> const& g, index_t most_chunks)
      : p_(p), worker_(memory, p, g), size_(worker_.state_size()) {
    apart_ = most_chunks <= most_saved
                 ? std::max<index_t>(most_chunks, 1)
                 : static_cast<index_t>(std::ceil(std::sqrt(static_cast<double>(most_chunks))));
    index_t const saved = (most_chunks + apart_ - 1) / apart_;
    saved_ = memory.take<T>(std::max<index_t>(saved, 1) * size_);
    states_ = memory.take<T>((apart_ + 1) * size_);
    missed_ = memory.take<T>(worker_.erases() ? apart_ * missed_size() : 0);
  }

  void run(state_place const& at) {
    chunk_list const chunks(at.where, p_.causal, p_.chunk);
    index_t const count = chunks.size();
    worker_.load_gradient(at, worker_.gradient);
    worker_.load_state(at, saved_);
    index_t const last_saved = count > 0 ? (count - 1) / apart_ * apart_ : 0;
    for (index_t n = 0; n < last_saved; ++n) {
      if (n % apart_ == 0) std::copy_n(saved_ + n / apart_ * size_, size_, states_);
      worker_.advance_state(at, chunks[n], states_, states_, nullptr);
      if ((n + 1) % apart_ == 0) std::copy_n(states_, size_, saved_ + (n + 1) / apart_ * size_);
    }
    for (index_t first = last_saved; count > 0 && first >= 0; first -= apart_) {
      index_t const last = std::min(first + apart_, count);
      auto const state = [&](index_t n) { return states_ + (n - first) * size_; };
      auto const missed = [&](index_t n) {
        return worker_.erases() ? missed_ + (n - first) * missed_size() : nullptr;
      };
      std::copy_n(saved_ + first / apart_ * size_, size_, states_);
      for (index_t n = first; n < last; ++n)
        worker_.advance_state(at, chunks[n], state(n), state(n + 1), missed(n));
      for (index_t n = last; n-- > first;)
        worker_.differentiate(at, chunks[n], state(n), state(n + 1), missed(n));
    }
    worker_.store_gradient(at, worker_.gradient);
  }

 private:
  index_t missed_size() const { return worker_.score_stride * worker_.columns; }

  problem<T> const& p_;
  backward_worker<T, Arch> worker_;
  index_t size_;
  index_t apart_;
  T* saved_;
  T* states_;
  T* missed_;
};

/// The chunks of few states shared out among the workers, some at a time: states first, then R from chunk to chunk and the
/// gradients.
template <class T, class Arch>
class shared_backward {
 public:
  static constexpr index_t at_a_time = 128;

  shared_backward(arena& memory, problem<T> const& p, gradients<T> const& g,
                  any_executor const& run_on)
      : p_(p),
        g_(g),
        run_on_(run_on),
        states_(memory, p, run_on),
        gradients_(memory, p, run_on),
        blocks_((states_.most() + at_a_time - 1) / at_a_time),
        saved_(memory.take<T>(blocks_ * total())),
        begins_(memory.take<T>(std::min(at_a_time, states_.most()) * total())),
        workers_(memory, run_on.concurrency(), p, g) {}

  void run() {
    index_t const states = states_.states();
    parallel_for(run_on_, states, [&](index_t n, index_t worker) {
      worker_at(worker).load_state(states_.place_of(n), states_.carried(n));
      worker_at(worker).load_gradient(states_.place_of(n), gradients_.carried(n));
    });
    for (index_t block = 0; block < blocks_; ++block) {
      std::copy_n(states_.carried(0), total(), saved_ + block * total());
      if (block + 1 < blocks_) find_states(block);
    }
    for (index_t block = blocks_; block-- > 0;) {
      std::copy_n(saved_ + block * total(), total(), states_.carried(0));
      find_states(block);
      gradients_.over(
          chunks_of(block), true,
          [&](index_t worker, state_place const& at, chunk_list::chunk const& now,
              auto const& baton) {
            bool const is_last = baton.turn == 0;
            worker_at(worker).differentiate(
                at, now, baton, begin_of(baton.state, baton.chunk),
                is_last ? states_.carried(baton.state) : begin_of(baton.state, baton.chunk + 1));
          });
    }
    parallel_for(run_on_, states, [&](index_t n, index_t worker) {
      worker_at(worker).store_gradient(states_.place_of(n), gradients_.carried(n));
    });
  }

 private:
  using carrier = relay<T, Arch>;

  backward_worker<T, Arch>& worker_at(index_t worker) { return workers_.get(worker, p_, g_); }
  index_t total() const { return states_.states() * states_.size(); }
  T* begin_of(index_t state, index_t chunk) const {
    return begins_ + chunk % at_a_time * total() + state * states_.size();
  }
  interval chunks_of(index_t block) const {
    index_t const first = block * at_a_time;
    return {first, std::min(first + at_a_time, states_.most())};
  }
  void find_states(index_t block) {
    states_.over(chunks_of(block), false,
                 [&](index_t worker, state_place const& at, chunk_list::chunk const& now,
                     auto const& baton) {
                   worker_at(worker).advance_state(at, now, baton,
                                                   begin_of(baton.state, baton.chunk));
                 });
  }

  problem<T> const& p_;
  gradients<T> const& g_;
  any_executor const& run_on_;
  carrier states_, gradients_;
  index_t blocks_;
  T *saved_, *begins_;
  per_worker<backward_worker<T, Arch>> workers_;
};

/// A call, its shapes checked.
template <class Arch, class T>
void backward_pass(problem<T> const& p, gradients<T> g, any_executor const& run_on,
                   workspace& scratch_memory) {
  index_t const states = p.sequences.count * p.shape.state_heads;
  index_t const workers = std::min(run_on.concurrency(), std::max<index_t>(states, 1));
  bool const shares = p.rule == write_rule::add && states < run_on.concurrency();
  index_t most_chunks = 0;
  for (index_t s = 0; s < p.sequences.count; ++s)
    most_chunks = std::max(most_chunks, chunk_list(p.sequences.at(s), p.causal, p.chunk).size());

  g.query.heads = p.shape.heads;
  g.for_each([&](gradient_rows<T>& rows) {
    if (&rows != &g.query) rows.heads = p.shape.state_heads;
  });
  using in_order = backward_run<T, Arch>;
  using shared_out = shared_backward<T, Arch>;
  auto const take_buffers = [&](arena& memory) {
    g.for_each([&](gradient_rows<T>& rows) { rows.take_buffer(memory); });
  };
  arena measure;
  take_buffers(measure);
  if (shares)
    shared_out(measure, p, g, run_on);
  else
    per_worker<in_order>(measure, workers, p, g, most_chunks);
  arena memory(scratch_memory.reserve(measure.used()));
  take_buffers(memory);
  if (shares) {
    shared_out(memory, p, g, run_on).run();
  } else {
    per_worker<in_order> own(memory, workers, p, g, most_chunks);
    parallel_for(run_on, states, [&](index_t n, index_t worker) {
      own.get(worker, p, g, most_chunks)
          .run({p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads});
    });
  }
  g.for_each([&](gradient_rows<T>& rows) { rows.add_up(run_on); });
}

namespace detail {

template <class T, class E, class L>
gradient_rows<T> gradient_to(char const* name, tensor_view<E, 4> to, tensor_view<L, 4> like,
                             char const* like_name) {
  expect_like(name, to, like.extents(), like_name);
  expect_memory(name, to);
  expect_distinct_elements(name, to);
  return {.to = sink<T>(to), .heads = 0, .buffer = {}, .wanted = true};
}

}  // namespace detail

/// The gradients of linear attention; see linear.hpp.
template <class Arch = xsimd::default_arch, element Q, element K, element V, element O, element DO,
          element DQ, element DK, element DV, class... I>
void backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
              tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
              tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, I const&... ingredients) {
  using namespace detail;
  using T = compute_type<compute_type_of<Q, K, V, O, I...>, DO, DQ, DK, DV>;
  problem<T> const p = make_problem<T>(query, key, value, out, ingredients...);
  gradients<T> g;
  expect_like("dout", dout, out.extents(), "out");
  expect_memory("dout", dout);
  g.out = source<T>(out);
  g.dout = source<T>(dout);
  g.query = gradient_to<T>("dquery", dquery, query, "query");
  g.key = gradient_to<T>("dkey", dkey, key, "key");
  g.value = gradient_to<T>("dvalue", dvalue, value, "value");

  [[maybe_unused]] auto const use = [&](auto const& ingredient) {
    using kind = std::remove_cvref_t<decltype(ingredient)>;
    if constexpr (is_decay.template operator()<kind>()) {
      if (ingredient.gradient.data() != nullptr)
        g.key_gate = gradient_to<T>("decay.gradient", with_one_channel(ingredient.gradient),
                                    with_one_channel(ingredient.log_gate), "decay.log_gate");
    } else if constexpr (is_key_decay.template operator()<kind>()) {
      if (ingredient.gradient.data() != nullptr)
        g.key_gate = gradient_to<T>("key_decay.gradient", ingredient.gradient, ingredient.log_gate,
                                    "key_decay.log_gate");
    } else if constexpr (is_value_decay.template operator()<kind>()) {
      if (ingredient.gradient.data() != nullptr)
        g.value_gate = gradient_to<T>("value_decay.gradient", ingredient.gradient,
                                      ingredient.log_gate, "value_decay.log_gate");
    } else if constexpr (is_delta.template operator()<kind>()) {
      if (ingredient.gradient.data() != nullptr)
        g.rate = gradient_to<T>("delta.gradient", with_one_channel(ingredient.gradient),
                                with_one_channel(ingredient.rate), "delta.rate");
    } else if constexpr (is_initial_state.template operator()<kind>()) {
      if (ingredient.gradient.data() != nullptr) {
        expect_state("initial_state.gradient", ingredient.gradient, p.shape, p.features, p.columns);
        expect_distinct_elements("initial_state.gradient", ingredient.gradient);
        g.initial = sink<T>(with_features_first(ingredient.gradient));
        g.begins = true;
      }
    } else if constexpr (is_final_gradient.template operator()<kind>()) {
      expect_state("final_state_gradient", ingredient.view, p.shape, p.features, p.columns);
      g.final = source<T>(with_features_first(ingredient.view));
      g.ends = true;
    }
    static_assert(
        !is_state.template operator()<kind>(),
        "heed: the backward pass writes no state: name the one the call began with, initial_state");
  };
  (use(ingredients), ...);
  auto const run_on = executor_of(ingredients...);
  backward_pass<Arch>(p, g, any_executor(run_on), scratch_of(ingredients...));
}

}  // namespace heed::recur
