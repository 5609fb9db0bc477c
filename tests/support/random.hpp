// Random cases that can be replayed. HEED_TEST_SEED=n runs only the case of that seed,
// HEED_TEST_CASES=n sets how many cases each loop runs.
#pragma once

#include "support/catch.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <string_view>

namespace support {

using seed_t = std::uint64_t;

/// Draws. The standard distributions differ between libraries; these do not, so that a seed is the
/// same case everywhere.
class random {
 public:
  explicit random(seed_t seed) : engine_(seed) {}

  /// An integer in [low, high].
  std::ptrdiff_t between(std::ptrdiff_t low, std::ptrdiff_t high) {
    return low + static_cast<std::ptrdiff_t>(engine_() % static_cast<seed_t>(high - low + 1));
  }
  bool one_in(std::ptrdiff_t n) { return between(1, n) == 1; }
  /// In [0, 1).
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// About normal, with mean 0 and variance 1: the sum of twelve uniform draws.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  template <class Choices>
  auto one_of(Choices const& choices) {
    return *(std::begin(choices) + between(0, static_cast<std::ptrdiff_t>(std::size(choices)) - 1));
  }

 private:
  std::mt19937_64 engine_;
};

/// Complaints that are let pass where the measure is the error of a definition summed in one order or a few: once in some
/// dozens of cases that is small by luck, of sums that cancel above all, and which cases those are depends on the registers.
inline constexpr int luck = 2;

/// Runs `body(seed)` for `cases` seeds that belong to `name`. The body returns what it complains
/// about, or nothing. Up to `waived` complaints are shown and let pass; the caller says why.
void for_each_seed(std::string_view name, int cases, std::function<std::string(seed_t)> const& body,
                   int waived = 0);

}  // namespace support
