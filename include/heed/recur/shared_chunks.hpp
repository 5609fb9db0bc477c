#pragma once

#include <heed/recur/chunk.hpp>

namespace heed::recur {

/// The chunks of few states shared out among many workers, some of them at a time. What each adds to its state is found first,
/// then the states between them one after the other: the same numbers, to the bit, as chunk after chunk.
template <class Arch, class T>
class shared_chunks {
 public:
  /// Many, since workers wait for each other between the passes.
  static constexpr index_t at_a_time = 128;
  static constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);

  shared_chunks(problem<T> const& p, any_executor const& run_on)
      : p_(p),
        run_on_(run_on),
        features_(simd::round_up(p.features, lanes)),
        columns_(simd::round_up(p.columns, lanes)) {
    for (index_t s = 0; s < p.sequences.count; ++s)
      most = std::max(most, chunk_list(p.sequences.at(s), p.causal, p.chunk).size());
  }

  index_t states() const { return p_.sequences.count * p_.shape.state_heads; }
  index_t size() const { return p_.features * columns_; }
  state_place place_of(index_t n) const {
    return {p_.sequences.at(n / p_.shape.state_heads), n % p_.shape.state_heads};
  }

  /// A state for each chunk that is worked on at a time; and what is left of one over each, by feature and by column.
  T* take_slots(arena& memory) const { return memory.take<T>(states() * slots() * size()); }
  T* take_fades(arena& memory) const {
    return memory.take<T>(states() * slots() * (features_ + columns_));
  }
  T* slot(T* of, index_t n, index_t c) const { return of + (n * slots() + c) * size(); }
  T* fades_of(T* fades, index_t n, index_t c) const {
    return fades + (n * slots() + c) * (features_ + columns_);
  }

  /// Calls f(worker, n, c, place, chunk) for chunk first + c of every state n.
  template <class F>
  void over(interval chunks, F f) const {
    parallel_for(run_on_, states() * chunks.size(), [&](index_t piece, index_t worker) {
      index_t const n = piece / chunks.size(), c = piece % chunks.size();
      state_place const at = place_of(n);
      chunk_list const all(at.where, p_.causal, p_.chunk);
      if (chunks.first + c < all.size()) f(worker, n, c, at, all[chunks.first + c]);
    });
  }

  /// Slots that hold what chunks add receive what they begin with; `running`, a state for each, becomes what the last of
  /// them ends with. The first is the last if `backwards`.
  void pass_on(interval chunks, bool backwards, T* running, T* slots, T* fades) const {
    constexpr index_t features_at_a_time = 8;
    index_t const parts = (p_.features + features_at_a_time - 1) / features_at_a_time;
    parallel_for(run_on_, states() * parts, [&](index_t piece, index_t) {
      index_t const n = piece / parts, begin = piece % parts * features_at_a_time;
      interval const rows{begin, std::min(begin + features_at_a_time, p_.features)};
      chunk_list const all(place_of(n).where, p_.causal, p_.chunk);
      index_t const count = std::min(chunks.size(), all.size() - chunks.first);
      for (index_t i = 0; i < count; ++i) {
        index_t const c = backwards ? count - 1 - i : i;
        exchange(rows, fades_of(fades, n, c), slot(slots, n, c), running + n * size());
      }
    });
  }

  /// What is left of a state over the chunk that a worker has loaded.
  void store_fades(chunk_worker<T, Arch> const& worker, T* to) const {
    if (worker.count > 0 && worker.key_fade.kind() == fading::channels)
      std::copy_n(worker.key_fade.whole_channels(), features_, to);
    else
      std::fill_n(to, features_, worker.count > 0 ? worker.key_fade.whole() : T(1));
    if (worker.count > 0 && worker.value_fade.kind() == fading::channels)
      std::copy_n(worker.value_fade.whole_channels(), columns_, to + features_);
    else
      std::fill_n(to + features_, columns_, T(1));
  }

  index_t most = 0;  // chunks of a sequence

 private:
  index_t slots() const { return std::min(at_a_time, most); }

  /// As advance_state does.
  void exchange(interval rows, T const* fades, T* slot, T* state) const {
    using batch = xsimd::batch<T, Arch>;
    bool const columns_fade = p_.value_fading == fading::channels;
    for (index_t d = rows.first; d < rows.last; ++d)
      for (index_t e = 0; e < columns_; e += lanes) {
        T* const here = state + d * columns_ + e;
        T* const there = slot + d * columns_ + e;
        batch const begins = batch::load_aligned(here);
        batch by_column;
        if (columns_fade) by_column = batch::load_aligned(fades + features_ + e);
        after_chunk(begins, batch(fades[d]), columns_fade ? &by_column : nullptr,
                    batch::load_aligned(there))
            .store_aligned(here);
        begins.store_aligned(there);
      }
  }

  problem<T> const& p_;
  any_executor const& run_on_;
  index_t features_;  // and columns, padded
  index_t columns_;
};

}  // namespace heed::recur
