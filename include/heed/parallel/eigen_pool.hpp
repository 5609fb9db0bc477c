#pragma once

#include <heed/parallel/executor.hpp>

#include <unsupported/Eigen/CXX11/ThreadPool>

#include <atomic>
#include <memory>

namespace heed {

/// `on{pool}` for Eigen's thread pools. The calling thread works too, in place of one of the
/// pool's, and may itself belong to the pool: it waits only for calls that have begun.
template <std::derived_from<Eigen::ThreadPoolInterface> Pool>
struct pool_access<Pool> {
  static index_t concurrency(Pool const& pool) { return std::max(1, pool.NumThreads()); }

  template <class F>
  static void run(Pool& pool, index_t n, F f) {
    if (n <= 1) return serial::run(n, f);

    // Shared, because a task may start after everything is done and the caller gone.
    struct work {
      F call;
      index_t count;
      std::atomic<index_t> next{0};
      std::atomic<index_t> done{0};

      work(F f, index_t n) : call(f), count(n) {}
      void take_part() {
        for (index_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
          call(i);
          if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) done.notify_all();
        }
      }
    };
    auto const shared = std::make_shared<work>(f, n);
    try {
      for (index_t i = 1; i < n; ++i) pool.Schedule([shared] { shared->take_part(); });
    } catch (...) {
      // No memory for a task: fewer take part.
    }
    shared->take_part();
    for (index_t done; (done = shared->done.load(std::memory_order_acquire)) < n;)
      shared->done.wait(done, std::memory_order_acquire);
  }
};

}  // namespace heed
