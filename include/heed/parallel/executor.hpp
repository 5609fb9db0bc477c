#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <atomic>
#include <concepts>
#include <exception>

/// Executors: who runs independent pieces of work.
///
/// A user's own is any class with
///
///     heed::index_t concurrency() const;  // how many calls can run at once, at least 1
///     void run(heed::index_t n, F f);     // calls f(0) to f(n - 1); returns when all are done
///
/// The calls may be made in any order and at the same time; f is cheap to copy and does not throw.
/// The executor is named in a call as `on{executor}`. What heed computes never depends on it, not
/// by a bit.
namespace heed {

namespace detail {
struct any_call {
  void operator()(index_t) const noexcept {}
};
}  // namespace detail

template <class E>
concept executor = requires(E& e, E const& constant, index_t n, detail::any_call f) {
  { constant.concurrency() } -> std::convertible_to<index_t>;
  e.run(n, f);
};

/// Everything on the calling thread.
struct serial {
  static constexpr index_t concurrency() { return 1; }
  template <class F>
  static constexpr void run(index_t n, F f) {
    for (index_t i = 0; i < n; ++i) f(i);
  }
};

/// How `on` drives a pool. Here, one that models executor; eigen_pool.hpp adds Eigen's. Specialise
/// it for a pool that cannot be changed.
template <class Pool>
struct pool_access {
  static_assert(
      executor<Pool>,
      "heed::on needs an executor, with concurrency() const and run(n, f), or an Eigen thread "
      "pool with <heed/parallel/eigen_pool.hpp> included");

  static index_t concurrency(Pool const& pool) { return static_cast<index_t>(pool.concurrency()); }
  template <class F>
  static void run(Pool& pool, index_t n, F f) {
    pool.run(n, f);
  }
};

/// Runs the call on a user's executor or thread pool, which must outlive the call.
template <class Pool>
struct on {
  Pool& pool;

  index_t concurrency() const { return pool_access<Pool>::concurrency(pool); }
  template <class F>
  void run(index_t n, F f) const {
    pool_access<Pool>::run(pool, n, f);
  }
};
template <class Pool>
on(Pool&) -> on<Pool>;

/// Calls f(piece, worker) once for every piece in [0, pieces) and returns when all have returned.
/// Workers are numbered from 0, fewer than max(1, executor.concurrency()) of them; calls with the
/// same worker never overlap, so that a worker may own scratch. Pieces are begun in order; which worker
/// gets which is chance. If a piece throws, no further ones are begun and the first exception is rethrown here.
template <class Executor, class F>
  requires executor<Executor const>
void parallel_for(Executor const& executor, index_t pieces, F f) {
  index_t const workers = std::min(static_cast<index_t>(executor.concurrency()), pieces);
  if (workers <= 1) {
    for (index_t piece = 0; piece < pieces; ++piece) f(piece, index_t{0});
    return;
  }
  std::atomic<index_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  executor.run(workers, [&](index_t worker) noexcept {
    try {
      for (index_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
        f(piece, worker);
    } catch (...) {
      next.store(pieces, std::memory_order_relaxed);
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace heed
