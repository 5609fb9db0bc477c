// An executor for tests of what must not depend on one.
#pragma once

#include <heed/parallel/executor.hpp>

#include <thread>
#include <vector>

namespace support {

/// Runs everything on threads of its own, in an order that is chance.
struct threads {
  heed::index_t concurrency() const { return 3; }
  template <class F>
  void run(heed::index_t n, F f) const {
    std::vector<std::thread> all;
    for (heed::index_t i = 0; i < n; ++i) all.emplace_back([=] { f(i); });
    for (auto& each : all) each.join();
  }
};

}  // namespace support
