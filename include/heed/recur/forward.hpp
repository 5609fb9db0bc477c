#pragma once

#include <heed/parallel/per_worker.hpp>
#include <heed/recur/shared_chunks.hpp>

/// Engine 2, forward: chunks of tokens in turn, and what passes between them is the state.
///
/// Sequences and heads are shared out first. Where there are fewer of them than workers, chunks are: what each one writes is
/// found first, then the states between them one after the other, then the rows. A chunk's numbers are the same either way,
/// to the bit. Under the delta rule what is written depends on the state; there, the columns of the values are shared out.
namespace heed::recur {

/// The rows of a chunk, for every head that reads the state.
template <class T, class Arch>
void read_rows(chunk_worker<T, Arch>& worker, state_place const& at, chunk_list::chunk const& now,
               T const* state, sink<T> const& out) {
  if (now.rows == 0) return;
  if (worker.p_.rule == write_rule::add) worker.prepare_scores();
  index_t const readers = worker.p_.readers();
  for (index_t head = at.head * readers; head < (at.head + 1) * readers; ++head) {
    // Heads that share a query and a key share the scores.
    if (head == at.head * readers || worker.p_.query_head(head) != worker.p_.query_head(head - 1)) {
      worker.load_queries(at.where, head, now);
      worker.score(now.rows);
    }
    worker.read(state, now.rows);
    worker.normalise(now.rows);
    out.store(at.where.batch, head, at.where.first_row + now.first_row, now.rows, worker.out.data,
              worker.columns);
  }
}

/// A worker with the states that it carries through the chunks.
template <class T, class Arch>
struct forward_worker : chunk_worker<T, Arch> {
  forward_worker(arena& memory, problem<T> const& p)
      : chunk_worker<T, Arch>(memory, p),
        state(memory.take<T>(this->state_size())),
        added(memory.take<T>(this->state_size())) {}

  /// All chunks of one state, in order.
  void run(state_place const& at, sink<T> const& to) {
    problem<T> const& p = this->p_;
    this->load_state(at, state);
    chunk_list const chunks(at.where, p.causal, p.chunk);
    for (index_t n = 0; n < chunks.size(); ++n) {
      auto const now = chunks[n];
      this->load_keys(at, now);
      this->solve(state);
      read_rows(*this, at, now, state, to);
      if (now.keys == 0 || (n + 1 == chunks.size() && !p.ends)) continue;
      this->write(added);
      advance_state(this->key_fade, this->value_fade, p.features, this->columns, added, state);
    }
    this->store_state(at, state);
  }

  T* state;
  T* added;
};

/// The columns of the values cut into parts of whole registers, as many as are asked for if there are so many.
template <class Arch, class T>
struct column_parts {
  index_t width;
  index_t count;

  column_parts(index_t columns, index_t parts) {
    constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
    width = std::max(lanes, simd::round_up((columns + parts - 1) / parts, lanes));
    count = std::max<index_t>(1, (columns + width - 1) / width);
  }

  problem<T> of(problem<T> const& p, index_t part) const {
    problem<T> own = p;
    index_t const first = part * width, columns = std::min(width, p.columns - first);
    own.value = p.value.columns(first, columns);
    own.columns = own.shape.value_dim = columns;
    if (p.begins) own.initial = p.initial.columns(first, columns);
    if (p.ends) own.final = p.final.columns(first, columns);
    return own;
  }
  sink<T> of(sink<T> const& out, problem<T> const& p, index_t part) const {
    return out.columns(part * width, std::min(width, p.columns - part * width));
  }
};

/// The chunks of few states shared out among the workers.
template <class T, class Arch>
class shared_forward {
 public:
  shared_forward(arena& memory, problem<T> const& p, any_executor const& run_on)
      : p_(p),
        run_on_(run_on),
        shared_(p, run_on),
        running_(memory.take<T>(shared_.states() * shared_.size())),
        between_(shared_.take_slots(memory)),
        fades_(shared_.take_fades(memory)),
        workers_(memory, run_on.concurrency(), p) {}

  void run(sink<T> const& out) {
    parallel_for(run_on_, shared_.states(), [&](index_t n, index_t worker) {
      workers_.get(worker, p_).load_state(shared_.place_of(n), running_ + n * shared_.size());
    });
    for (index_t first = 0; first < shared_.most; first += shared_.at_a_time) {
      interval const some{first, std::min(first + shared_.at_a_time, shared_.most)};
      shared_.over(some, [&](index_t worker, index_t n, index_t c, state_place const& at,
                             chunk_list::chunk const& now) {
        auto& w = workers_.get(worker, p_);
        w.load_keys(at, now);
        w.write(shared_.slot(between_, n, c));
        shared_.store_fades(w, shared_.fades_of(fades_, n, c));
      });
      shared_.pass_on(some, false, running_, between_, fades_);
      shared_.over(some, [&](index_t worker, index_t n, index_t c, state_place const& at,
                             chunk_list::chunk const& now) {
        auto& w = workers_.get(worker, p_);
        T const* const state = shared_.slot(between_, n, c);
        w.load_keys(at, now);
        w.solve(state);
        read_rows(w, at, now, state, out);
      });
    }
    parallel_for(run_on_, shared_.states(), [&](index_t n, index_t worker) {
      workers_.get(worker, p_).store_state(shared_.place_of(n), running_ + n * shared_.size());
    });
  }

 private:
  problem<T> const& p_;
  any_executor const& run_on_;
  shared_chunks<Arch, T> shared_;
  T *running_, *between_, *fades_;
  per_worker<chunk_worker<T, Arch>> workers_;
};

/// A call, its shapes checked.
template <class Arch, class T>
void forward_pass(problem<T> const& p, sink<T> const& out, any_executor const& run_on,
                  workspace& scratch_memory) {
  index_t const states = p.sequences.count * p.shape.state_heads;
  index_t const workers = run_on.concurrency();
  if (states == 0) return;
  if (p.rule == write_rule::add && states < workers) {
    arena measure;
    shared_forward<T, Arch>(measure, p, run_on);
    arena memory(scratch_memory.reserve(measure.used()));
    shared_forward<T, Arch>(memory, p, run_on).run(out);
    return;
  }

  bool const splits = states < workers && !p.is_normalised && p.columns > 0;
  column_parts<Arch, T> const parts(std::max<index_t>(p.columns, 1),
                                    splits ? (workers + states - 1) / states : 1);
  auto const place_of = [&](index_t n) {
    return state_place{p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads};
  };
  using worker_type = forward_worker<T, Arch>;
  arena measure;
  if (parts.count == 1) {
    per_worker<worker_type>(measure, workers, p);
    arena memory(scratch_memory.reserve(measure.used()));
    per_worker<worker_type> own(memory, workers, p);
    parallel_for(run_on, states,
                 [&](index_t n, index_t worker) { own.get(worker, p).run(place_of(n), out); });
    return;
  }
  worker_type(measure, p);
  std::size_t const bytes = measure.used();
  std::byte* const memory = scratch_memory.reserve(bytes * static_cast<std::size_t>(workers));
  parallel_for(run_on, states * parts.count, [&](index_t piece, index_t worker) {
    problem<T> const part = parts.of(p, piece % parts.count);
    arena own(memory + static_cast<std::size_t>(worker) * bytes);
    worker_type(own, part).run(place_of(piece / parts.count),
                               parts.of(out, p, piece % parts.count));
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
  auto const run_on = one_of<detail::is_executor>(serial{}, ingredients...);
  forward_pass<Arch>(p, sink<T>(out), any_executor(run_on), scratch_of(ingredients...));
}

}  // namespace heed::recur
