#pragma once

#include <heed/recur/chunk.hpp>

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

/// All chunks of one state, in order.
template <class Arch, class T>
void run_in_order(problem<T> const& p, state_place const& at, sink<T> const& out, arena memory) {
  chunk_worker<T, Arch> worker(memory, p);
  T* const state = memory.take<T>(worker.state_size());
  T* const added = memory.take<T>(worker.state_size());
  worker.load_state(at, state);
  chunk_list const chunks(at.where, p.causal, p.chunk);
  for (index_t n = 0; n < chunks.size(); ++n) {
    auto const now = chunks[n];
    worker.load_keys(at, now);
    worker.solve(state);
    read_rows(worker, at, now, state, out);
    if (now.keys == 0 || (n + 1 == chunks.size() && !p.ends)) continue;
    worker.write(added);
    advance_state(worker.key_fade, worker.value_fade, {0, p.features}, worker.columns, added,
                  state);
  }
  worker.store_state(at, state);
}

template <class Arch, class T>
std::size_t memory_in_order(problem<T> const& p) {
  arena measure;
  chunk_worker<T, Arch> const worker(measure, p);
  measure.take<T>(worker.state_size());
  measure.take<T>(worker.state_size());
  return measure.used();
}

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

/// The slot of a chunk, which has what it writes, receives the state that it begins with; `state` becomes the one
/// that it ends with.
template <class Arch, class T>
void exchange_states(interval features, index_t columns, bool writes, T const* by_feature,
                     T const* by_column, bool columns_fade, T* slot, T* state) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = features.first; d < features.last; ++d)
    for (index_t e = 0; e < columns; e += static_cast<index_t>(batch::size)) {
      T* const here = state + d * columns + e;
      T* const there = slot + d * columns + e;
      batch const begins = batch::load_aligned(here);
      if (writes) {
        batch faded = begins * batch(by_feature[d]);
        if (columns_fade) faded *= batch::load_aligned(by_column + e);
        (faded + batch::load_aligned(there)).store_aligned(here);
      }
      begins.store_aligned(there);
    }
}

/// Chunks shared out: what they write, the states between them, their rows, for some chunks of every state at a time.
template <class Arch, class T>
void run_shared_out(problem<T> const& p, sink<T> const& out, any_executor const& run_on,
                    workspace& scratch_memory) {
  constexpr index_t at_a_time = 64;
  index_t const states = p.sequences.count * p.shape.state_heads;
  auto const place_of = [&](index_t n) {
    return state_place{p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads};
  };
  index_t most_chunks = 0;
  for (index_t s = 0; s < p.sequences.count; ++s)
    most_chunks = std::max(most_chunks, chunk_list(p.sequences.at(s), p.causal, p.chunk).size());

  arena measure;
  chunk_worker<T, Arch> const sizes(measure, p);
  index_t const worker_bytes = static_cast<index_t>(measure.used()), size = sizes.state_size();
  index_t const workers = run_on.concurrency();
  index_t const factors = sizes.features + sizes.columns;
  index_t const chunk_states = std::min(at_a_time, most_chunks);
  arena total;
  total.take<T>(states * size);
  total.take<T>(states * chunk_states * size);
  total.take<T>(states * chunk_states * factors);
  std::byte* const memory =
      scratch_memory.reserve(total.used() + static_cast<std::size_t>(workers * worker_bytes));
  arena shared(memory);
  T* const running = shared.take<T>(states * size);
  T* const between = shared.take<T>(states * chunk_states * size);
  T* const fading_over = shared.take<T>(states * chunk_states * factors);
  std::byte* const own = memory + total.used();
  auto const with_worker = [&](index_t worker, auto f) {
    arena mine(own + worker * worker_bytes);
    chunk_worker<T, Arch> w(mine, p);
    f(w);
  };

  parallel_for(run_on, states, [&](index_t n, index_t worker) {
    with_worker(worker, [&](auto& w) { w.load_state(place_of(n), running + n * size); });
  });
  for (index_t first = 0; first < most_chunks; first += at_a_time) {
    index_t const some = std::min(at_a_time, most_chunks - first);
    auto const over_chunks = [&](auto f) {
      parallel_for(run_on, states * some, [&](index_t piece, index_t worker) {
        index_t const n = piece / some, c = piece % some;
        state_place const at = place_of(n);
        chunk_list const chunks(at.where, p.causal, p.chunk);
        if (first + c >= chunks.size()) return;
        with_worker(worker, [&](auto& w) {
          f(w, at, chunks[first + c], between + (n * chunk_states + c) * size,
            fading_over + (n * chunk_states + c) * factors);
        });
      });
    };
    over_chunks(
        [&](auto& w, state_place const& at, chunk_list::chunk const& now, T* added, T* fades) {
          if (now.keys == 0) return;
          w.load_keys(at, now);
          w.write(added);
          if (w.key_fade.kind() == fading::channels)
            std::copy_n(w.key_fade.whole_channels(), w.features, fades);
          else
            std::fill_n(fades, w.features, w.key_fade.whole());
          if (w.value_fade.kind() == fading::channels)
            std::copy_n(w.value_fade.whole_channels(), w.columns, fades + w.features);
          else
            std::fill_n(fades + w.features, w.columns, T(1));
        });
    // A state is what was written so far: features are independent.
    index_t const features_at_a_time = 8;
    index_t const parts = (p.features + features_at_a_time - 1) / features_at_a_time;
    parallel_for(run_on, states * parts, [&](index_t piece, index_t) {
      index_t const n = piece / parts, begin = piece % parts * features_at_a_time;
      interval const rows{begin, std::min(begin + features_at_a_time, p.features)};
      chunk_list const chunks(place_of(n).where, p.causal, p.chunk);
      T* const state = running + n * size;
      for (index_t c = 0; c < some && first + c < chunks.size(); ++c) {
        T* const slot = between + (n * chunk_states + c) * size;
        bool const writes = chunks[first + c].keys > 0;
        exchange_states<Arch>(rows, sizes.columns, writes,
                              fading_over + (n * chunk_states + c) * factors,
                              fading_over + (n * chunk_states + c) * factors + sizes.features,
                              p.value_fading == fading::channels, slot, state);
      }
    });
    over_chunks([&](auto& w, state_place const& at, chunk_list::chunk const& now, T* state, T*) {
      w.load_keys(at, now);
      w.solve(state);
      read_rows(w, at, now, state, out);
    });
  }
  parallel_for(run_on, states, [&](index_t n, index_t worker) {
    with_worker(worker, [&](auto& w) { w.store_state(place_of(n), running + n * size); });
  });
}

/// A call, its shapes checked.
template <class Arch, class T>
void forward_pass(problem<T> const& p, sink<T> const& out, any_executor const& run_on,
                  workspace& scratch_memory) {
  index_t const states = p.sequences.count * p.shape.state_heads;
  index_t const workers = run_on.concurrency();
  if (states == 0) return;
  if (p.rule == write_rule::add && states < workers)
    return run_shared_out<Arch>(p, out, run_on, scratch_memory);

  bool const splits = states < workers && !p.is_normalised && p.columns > 0;
  column_parts<Arch, T> const parts(std::max<index_t>(p.columns, 1),
                                    splits ? (workers + states - 1) / states : 1);
  std::size_t const bytes = memory_in_order<Arch>(p);
  std::byte* const memory = scratch_memory.reserve(bytes * static_cast<std::size_t>(workers));
  parallel_for(run_on, states * parts.count, [&](index_t piece, index_t worker) {
    index_t const n = piece / parts.count, part = piece % parts.count;
    state_place const at{p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads};
    arena own(memory + static_cast<std::size_t>(worker) * bytes);
    if (parts.count == 1)
      run_in_order<Arch>(p, at, out, own);
    else
      run_in_order<Arch>(parts.of(p, part), at, parts.of(out, p, part), own);
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
