#include "support/random.hpp"

#include <heed/simd/activations.hpp>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

// The promises of exp and sigmoid: over every float of their domains, and over a large sample of doubles.

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

template <class T, class F>
T value(F f, T x) {
  std::array<T, xsimd::batch<T>::size> lanes;
  f(xsimd::batch<T>(x)).store_unaligned(lanes.data());
  return lanes[0];
}

/// The largest relative error over every float between two of the same sign.
template <class F>
double worst_of_floats(F f, float from, float to) {
  using batch = xsimd::batch<float>;
  auto low = std::bit_cast<std::uint32_t>(from), high = std::bit_cast<std::uint32_t>(to);
  if (low > high) std::swap(low, high);
  std::array<float, batch::size> x, y;
  double worst = 0;
  for (std::uint64_t bits = low; bits <= high; bits += batch::size) {
    for (std::size_t lane = 0; lane < batch::size; ++lane)
      x[lane] = std::bit_cast<float>(
          static_cast<std::uint32_t>(std::min<std::uint64_t>(high, bits + lane)));
    f(batch::load_unaligned(x.data())).store_unaligned(y.data());
    for (std::size_t lane = 0; lane < batch::size; ++lane) {
      double const exact = f.exact(double(x[lane]));
      double const error = std::abs(double(y[lane]) - exact) / exact;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

template <class F>
double worst_of_doubles(F f, double from, double to) {
  using batch = xsimd::batch<double>;
  support::random draw(1);
  std::array<double, batch::size> x, y;
  double worst = 0;
  for (int n = 0; n < 200000; ++n) {
    for (double& each : x) each = draw.uniform(from, to);
    f(batch::load_unaligned(x.data())).store_unaligned(y.data());
    for (std::size_t lane = 0; lane < batch::size; ++lane) {
      long double const exact = f.exact(static_cast<long double>(x[lane]));
      auto const error =
          static_cast<double>(std::abs(static_cast<long double>(y[lane]) - exact) / exact);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("exp of every float that has a normal result", "[simd]") {
  float const tiny = std::numeric_limits<float>::min();
  CHECK(worst_of_floats(exp_function{}, tiny, 88.37f) <= 1.5e-7);
  CHECK(worst_of_floats(exp_function{}, -tiny, -87.3f) <= 1.5e-7);
}

TEST_CASE("exp of doubles", "[simd]") {
  for (double range : {708., 20., 1., 1e-6})
    CHECK(worst_of_doubles(exp_function{}, -range, range) <= 4e-16);
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
    CHECK(worst_of_floats(sigmoid_function{}, std::copysign(tiny, end), end) <= 3e-7);
    CHECK(worst_of_floats(sigmoid_slope_function{}, std::copysign(tiny, end),
                          std::copysign(87.f, end)) <= 5e-7);
  }
  for (double range : {700., 20., 1e-6}) {
    CHECK(worst_of_doubles(sigmoid_function{}, -range, range) <= 8e-16);
    CHECK(worst_of_doubles(sigmoid_slope_function{}, -range, range) <= 1.2e-15);
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
