#pragma once

#ifdef _OPENMP

#include <heed/parallel/executor.hpp>

#include <omp.h>

namespace heed {

/// An executor on OpenMP threads: `threads` of them, or as many as OpenMP would take by itself.
/// There only where the compiler's OpenMP is switched on.
struct openmp {
  int threads = 0;

  index_t concurrency() const { return threads > 0 ? threads : omp_get_max_threads(); }
  template <class F>
  void run(index_t n, F f) const {
    int const team = static_cast<int>(std::min(n, concurrency()));
    if (team <= 1) return serial::run(n, f);
#pragma omp parallel for num_threads(team) schedule(static, 1)
    for (index_t i = 0; i < n; ++i) f(i);
  }
};

}  // namespace heed

#endif
