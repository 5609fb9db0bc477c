#pragma once

#include <heed/parallel/per_worker.hpp>
#include <heed/recur/relay.hpp>

/// Engine 2, forward: chunks of tokens in turn, and what passes between them is the state.
///
/// Sequences and heads are shared out first. Where there are fewer of them than workers, chunks are, and states pass from one
/// worker to the next. A chunk's numbers are the same either way, to the bit.
namespace heed::recur {

/// A worker with the states that it carries through the chunks.
template <class T, class Arch>
class forward_worker : public chunk_worker<T, Arch> {
 public:
  forward_worker(arena& memory, problem<T> const& p)
      : chunk_worker<T, Arch>(memory, p),
        state_(memory.take<T>(this->state_size())),
        added_(memory.take<T>(this->state_size())) {}

  /// All chunks of one state, in order.
  void run(state_place const& at, sink<T> const& to) {
    problem<T> const& p = this->p_;
    interval const all = this->all_columns();
    this->load_state(at, state_);
    chunk_list const chunks(at.where, p.causal, p.chunk);
    for (index_t n = 0; n < chunks.size(); ++n) {
      auto const now = chunks[n];
      prepare(at, now);
      this->solve(state_, all);
      read_rows(at, now, to);
      if (now.keys == 0 || (n + 1 == chunks.size() && !p.ends)) continue;
      this->write(added_, all);
      this->advance(state_, added_, all, state_);
    }
    this->store_state(at, state_);
  }

  /// One chunk of a state that others carry up to it and from it on.
  void run(state_place const& at, chunk_list::chunk const& now,
           typename relay<T, Arch>::baton const& baton, sink<T> const& to) {
    prepare(at, now);
    if (!this->erases()) this->write(added_, this->all_columns());
    auto const carry = [&](interval part, T const* taken, T* carried) {
      this->solve(taken, part);
      if (this->erases()) this->write(added_, part);
      this->advance(taken, added_, part, carried);
    };
    if (baton.pass(state_, carry)) read_rows(at, now, to);
  }

 private:
  /// What does not need the state, up to the scores of the first head that reads it.
  void prepare(state_place const& at, chunk_list::chunk const& now) {
    this->load_keys(at, now);
    if (now.rows > 0 || this->erases()) this->prepare_scores();
    this->prepare_erasures();
    if (now.rows > 0 && this->p_.readers() > 0) prepare_rows(at, now, at.head * this->p_.readers());
  }
  void prepare_rows(state_place const& at, chunk_list::chunk const& now, index_t head) {
    this->load_queries(at.where, head, now);
    this->score(now.rows);
  }

  /// The rows of the chunk, for every head that reads the state.
  void read_rows(state_place const& at, chunk_list::chunk const& now, sink<T> const& to) {
    if (now.rows == 0) return;
    problem<T> const& p = this->p_;
    this->find_rows_at_once();
    index_t const first = at.head * p.readers();
    for (index_t head = first; head < first + p.readers(); ++head) {
      // Heads that share a query and a key share the scores.
      if (head > first && p.query_head(head) != p.query_head(head - 1)) prepare_rows(at, now, head);
      this->read(state_, now.rows);
      this->normalise(now.rows);
      to.store(at.where.batch, head, at.where.first_row + now.first_row, now.rows, this->out.data,
               this->columns);
    }
  }

  T* state_;
  T* added_;
};

/// The chunks of few states shared out among the workers.
template <class T, class Arch>
class shared_forward {
 public:
  shared_forward(arena& memory, problem<T> const& p, any_executor const& run_on)
      : p_(p),
        run_on_(run_on),
        states_(memory, p, run_on),
        workers_(memory, run_on.concurrency(), p) {}

  void run(sink<T> const& out) {
    parallel_for(run_on_, states_.states(), [&](index_t n, index_t worker) {
      workers_.get(worker, p_).load_state(states_.place_of(n), states_.carried(n));
    });
    states_.over({0, states_.most()}, false,
                 [&](index_t worker, state_place const& at, chunk_list::chunk const& now,
                     auto const& baton) { workers_.get(worker, p_).run(at, now, baton, out); });
    parallel_for(run_on_, states_.states(), [&](index_t n, index_t worker) {
      workers_.get(worker, p_).store_state(states_.place_of(n), states_.carried(n));
    });
  }

 private:
  problem<T> const& p_;
  any_executor const& run_on_;
  relay<T, Arch> states_;
  per_worker<forward_worker<T, Arch>> workers_;
};

/// A call, its shapes checked.
template <class Arch, class T>
void forward_pass(problem<T> const& p, sink<T> const& out, any_executor const& run_on,
                  workspace& scratch_memory) {
  index_t const states = p.sequences.count * p.shape.state_heads;
  index_t const workers = run_on.concurrency();
  if (states == 0) return;
  if (states < workers) {
    arena measure;
    shared_forward<T, Arch>(measure, p, run_on);
    arena memory(scratch_memory.reserve(measure.used()));
    shared_forward<T, Arch>(memory, p, run_on).run(out);
    return;
  }
  using worker_type = forward_worker<T, Arch>;
  arena measure;
  per_worker<worker_type>(measure, workers, p);
  arena memory(scratch_memory.reserve(measure.used()));
  per_worker<worker_type> own(memory, workers, p);
  parallel_for(run_on, states, [&](index_t n, index_t worker) {
    own.get(worker, p).run({p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads}, out);
  });
}

/// Linear attention; see linear.hpp.
template <class Arch = xsimd::default_arch, element Q, element K, element V, element O, class... I>
void forward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
             tensor_view<O, 4> out, I const&... ingredients) {
  using T = compute_type_of<Q, K, V, O, I...>;
  static_assert(!std::is_const_v<O>, "heed: out is written to");
  problem<T> const p = make_problem<T>(query, key, value, out, ingredients...);
  heed::detail::expect_distinct_elements("out", out);
  auto const run_on = executor_of(ingredients...);
  forward_pass<Arch>(p, sink<T>(out), any_executor(run_on), scratch_of(ingredients...));
}

}  // namespace heed::recur
