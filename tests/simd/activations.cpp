#include "support/sweep.hpp"

#include <heed/simd/activations.hpp>

#include <cmath>
#include <limits>

// The promises of exp and sigmoid: over every float of their domains, and over a large sample of doubles.

using support::sample;
using support::sweep;
using support::value;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct exp_function {
  template <class Batch>
  Batch operator()(Batch const& x) const {
    return heed::simd::exp(x);
  }
  template <class T>
  T exact(T x) const {
    return std::exp(x);
  }
};
struct sigmoid_function {
  template <class Batch>
  Batch operator()(Batch const& x) const {
    return heed::simd::sigmoid(x);
  }
  template <class T>
  T exact(T x) const {
    return 1 / (1 + std::exp(-x));
  }
};
struct sigmoid_slope_function {
  template <class Batch>
  Batch operator()(Batch const& x) const {
    return heed::simd::sigmoid_slope(x);
  }
  template <class T>
  T exact(T x) const {
    T const power = std::exp(-std::abs(x));
    return power / ((1 + power) * (1 + power));
  }
};

}  // namespace

TEST_CASE("exp of every float that has a normal result", "[simd]") {
  float const tiny = std::numeric_limits<float>::min();
  CHECK(sweep(exp_function{}, tiny, 88.37f).relative <= 1.5e-7);
  CHECK(sweep(exp_function{}, -tiny, -87.3f).relative <= 1.5e-7);
}

TEST_CASE("exp of doubles", "[simd]") {
  for (double range : {708., 20., 1., 1e-6})
    CHECK(sample(exp_function{}, -range, range).relative <= 4e-16);
}

TEST_CASE("exp at the edges", "[simd][quick]") {
  exp_function const f;
  CHECK(value(f, 0.f) == 1);
  CHECK(value(f, -0.) == 1);
  CHECK(value(f, -infinity) == 0);
  CHECK(value(f, std::numeric_limits<float>::lowest()) == 0);
  CHECK(value(f, -88.5f) == 0);
  CHECK(value(f, 88.5f) == infinity);
  CHECK(value(f, std::numeric_limits<float>::max()) == infinity);
  CHECK(value(f, infinity) == infinity);
  CHECK(std::isnan(value(f, not_a_number)));
  CHECK(value(f, -double(infinity)) == 0);
  CHECK(value(f, -1e300) == 0);
  CHECK(value(f, 710.) == infinity);
  CHECK(value(f, 1e300) == infinity);
  CHECK(std::isnan(value(f, double(not_a_number))));
}

TEST_CASE("sigmoid and its slope", "[simd]") {
  float const tiny = std::numeric_limits<float>::min();
  for (float end : {88.f, -87.f}) {
    CHECK(sweep(sigmoid_function{}, std::copysign(tiny, end), end).relative <= 3e-7);
    CHECK(sweep(sigmoid_slope_function{}, std::copysign(tiny, end), std::copysign(87.f, end))
              .relative <= 5e-7);
  }
  for (double range : {700., 20., 1e-6}) {
    CHECK(sample(sigmoid_function{}, -range, range).relative <= 8e-16);
    CHECK(sample(sigmoid_slope_function{}, -range, range).relative <= 1.2e-15);
  }
}

TEST_CASE("sigmoid at the edges", "[simd][quick]") {
  CHECK(value(sigmoid_function{}, 0.f) == 0.5f);
  CHECK(value(sigmoid_function{}, 1e30f) == 1);
  CHECK(value(sigmoid_function{}, -1e30f) == 0);
  CHECK(value(sigmoid_function{}, infinity) == 1);
  CHECK(value(sigmoid_function{}, -infinity) == 0);
  CHECK(std::isnan(value(sigmoid_function{}, not_a_number)));
  CHECK(value(sigmoid_slope_function{}, 1e30f) == 0);
  CHECK(value(sigmoid_slope_function{}, -infinity) == 0);
}
