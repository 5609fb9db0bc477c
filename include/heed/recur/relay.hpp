#pragma once

#include <heed/recur/chunk.hpp>

#include <atomic>
#include <memory>
#include <thread>

namespace heed::recur {

/// States that several workers carry through their chunks, where there are fewer states than workers. A worker makes of a
/// chunk what it can without the state, waits for the chunk before, takes the state and leaves it as it is after its own
/// chunk, and only then goes on with what needs it: the same numbers, to the bit, as chunk after chunk. States are handed on
/// by parts of their columns, so that the next worker begins with the first while the last are made.
///
/// Who waits, waits for a chunk that somebody works on: parallel_for begins its pieces in order.
template <class T, class Arch>
class relay {
 public:
  relay(arena& memory, problem<T> const& p, any_executor const& run_on)
      : p_(p), run_on_(run_on), columns_(simd::round_up(p.columns, lanes)) {
    // Parts of whole cache lines, which no two workers write to at a time.
    index_t const workers = run_on.concurrency();
    width_ = simd::round_up(std::max<index_t>((columns_ + workers - 1) / workers, 1), line);
    parts_ = (columns_ + width_ - 1) / width_;
    for (index_t s = 0; s < p.sequences.count; ++s)
      most_ = std::max(most_, chunk_list(p.sequences.at(s), p.causal, p.chunk).size());
    carried_ = memory.take<T>(states() * size());
    turns_ = memory.take<turn>(states() * parts_);
    if (!memory.measuring()) std::uninitialized_default_construct_n(turns_, states() * parts_);
  }

  index_t states() const { return p_.sequences.count * p_.shape.state_heads; }
  index_t size() const { return p_.features * columns_; }
  /// Chunks of the longest sequence.
  index_t most() const { return most_; }
  state_place place_of(index_t n) const {
    return {p_.sequences.at(n / p_.shape.state_heads), n % p_.shape.state_heads};
  }
  /// The n-th state where it is now.
  T* carried(index_t n) const { return carried_ + n * size(); }

  /// A state about to be carried through a chunk, the `chunk`-th of its sequence.
  struct baton {
    relay& of;
    index_t state;
    index_t chunk;
    index_t turn;  // how many carry it before

    /// Takes the state into `taken` part by part and hands on what f(part, taken, carried) makes of it. Whether it could: not
    /// if the call has failed elsewhere.
    template <class F>
    bool pass(T* taken, F f) const {
      T* const carried = of.carried(state);
      for (index_t n = 0; n < of.parts_; ++n) {
        std::atomic<index_t>& next = of.turns_[state * of.parts_ + n].next;
        if (!of.wait(next, turn)) return false;
        interval const part{n * of.width_, std::min((n + 1) * of.width_, of.columns_)};
        for (index_t d = 0; d < of.p_.features; ++d)
          std::copy_n(carried + d * of.columns_ + part.first, part.size(),
                      taken + d * of.columns_ + part.first);
        f(part, taken, carried);
        next.store(turn + 1, std::memory_order_release);
      }
      return true;
    }
  };

  /// Calls f(worker, place, chunk, baton) for these chunks of every state, in order or the last first; each call is to pass
  /// its baton.
  template <class F>
  void over(interval chunks, bool backwards, F f) {
    for (index_t n = 0; n < states() * parts_; ++n) turns_[n].next = 0;
    failed_ = false;
    parallel_for(run_on_, states() * chunks.size(), [&](index_t piece, index_t worker) {
      index_t const n = piece % states(), c = piece / states();
      state_place const at = place_of(n);
      chunk_list const all(at.where, p_.causal, p_.chunk);
      index_t const count = std::min(all.size(), chunks.last) - chunks.first;
      if (c >= count) return;
      index_t const chunk = chunks.first + (backwards ? count - 1 - c : c);
      try {
        f(worker, at, all[chunk], baton{*this, n, chunk, c});
      } catch (...) {
        failed_ = true;
        throw;
      }
    });
  }

 private:
  static constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  static constexpr index_t line = std::max(lanes, static_cast<index_t>(64 / sizeof(T)));

  struct alignas(64) turn {
    std::atomic<index_t> next{0};  // the chunk that may take a part of the state
  };

  bool wait(std::atomic<index_t> const& next, index_t own_turn) const {
    constexpr int patience = 1000;
    for (int looks = 0; next.load(std::memory_order_acquire) != own_turn; ++looks) {
      if (failed_.load(std::memory_order_relaxed)) return false;
      if (looks >= patience) std::this_thread::yield();
    }
    return true;
  }

  problem<T> const& p_;
  any_executor const& run_on_;
  index_t columns_;  // padded
  index_t width_;    // of a part
  index_t parts_;
  index_t most_ = 0;
  T* carried_;
  turn* turns_;
  std::atomic<bool> failed_{false};
};

}  // namespace heed::recur
