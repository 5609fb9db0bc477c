#include "support/sweep.hpp"

#include <heed/simd/math.hpp>

#include <array>
#include <cmath>
#include <limits>

// The promises of heed::simd's functions, each over every float of its domain or, for double, over
// a large sample, against the standard library in the next wider type.

using support::sample;
using support::sweep;
using support::value;
using support::worst_error;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct exp2_function {
  template <class Batch>
  Batch operator()(Batch const& x) const {
    return heed::simd::exp2(x);
  }
  long double exact(long double x) const { return std::exp2(x); }
  double exact(double x) const { return std::exp2(x); }
};
struct tanh_function {
  template <class Batch>
  Batch operator()(Batch const& x) const {
    return heed::simd::tanh(x);
  }
  long double exact(long double x) const { return std::tanh(x); }
  double exact(double x) const { return std::tanh(x); }
};

}  // namespace

TEST_CASE("exp2 of every float that has a normal result", "[simd]") {
  for (auto const& [from, to] : {std::pair{-0.f, -126.f}, std::pair{0.f, 127.f}}) {
    worst_error const worst = sweep(exp2_function{}, from, to);
    CAPTURE(worst.at);
    CHECK(worst.relative <= 1.3e-7);
  }
}

TEST_CASE("exp2 of doubles", "[simd]") {
  for (auto const& [from, to] :
       {std::pair{-1022., 1023.}, std::pair{-1., 1.}, std::pair{-1e-3, 1e-3}}) {
    worst_error const worst = sample(exp2_function{}, from, to);
    CAPTURE(worst.at);
    CHECK(worst.relative <= 4e-16);
  }
}

TEST_CASE("exp2 of whole numbers is exact", "[simd][quick]") {
  // A row whose reference stays must not be rescaled: 2^0 is 1 to the bit.
  exp2_function const whole;
  for (int n = -126; n <= 127; ++n) CHECK(value(whole, float(n)) == std::ldexp(1.f, n));
  for (int n = -1022; n <= 1023; ++n) CHECK(value(whole, double(n)) == std::ldexp(1., n));
  CHECK(value(whole, -infinity) == 0);
  CHECK(value(whole, -127.f) == 0);
  CHECK(value(whole, -1023.) == 0);
}

TEST_CASE("exp2 at the edges", "[simd][quick]") {
  exp2_function const f;
  CHECK(value(f, -infinity) == 0);
  CHECK(value(f, std::numeric_limits<float>::lowest()) == 0);
  CHECK(value(f, -1e30f) == 0);
  CHECK(value(f, -127.f) == 0);
  CHECK(value(f, std::nextafter(-127.f, -200.f)) == 0);
  CHECK(std::isnan(value(f, not_a_number)));
  CHECK(std::isnan(value(f, -not_a_number)));
  CHECK(value(f, -double(infinity)) == 0);
  CHECK(value(f, -1e300) == 0);
  CHECK(value(f, -1023.) == 0);
  CHECK(std::isnan(value(f, double(not_a_number))));
}

TEST_CASE("tanh of every float", "[simd]") {
  // Beyond 10 it is 1, to the last bit; a stride covers what is left.
  for (float sign : {1.f, -1.f}) {
    worst_error const worst =
        sweep(tanh_function{}, sign * std::numeric_limits<float>::min(), sign * 10);
    CAPTURE(worst.at);
    CHECK(worst.relative <= 4e-7);
    worst_error const far =
        sweep(tanh_function{}, sign * 10, sign * std::numeric_limits<float>::max(), 997);
    CAPTURE(far.at);
    CHECK(far.relative <= 4e-7);
  }
}

TEST_CASE("tanh of doubles", "[simd]") {
  for (double range : {25., 1., 0.63, 1e-3, 1e-9}) {
    worst_error const worst = sample(tanh_function{}, -range, range);
    CAPTURE(worst.at);
    CHECK(worst.relative <= 1e-15);
  }
}

TEST_CASE("tanh at the edges", "[simd][quick]") {
  tanh_function const f;
  CHECK(value(f, 0.f) == 0);
  CHECK(value(f, -0.f) == 0);
  CHECK(value(f, infinity) == 1);
  CHECK(value(f, -infinity) == -1);
  CHECK(std::isnan(value(f, not_a_number)));
  CHECK(value(f, double(infinity)) == 1);
  CHECK(value(f, -double(infinity)) == -1);
  CHECK(std::isnan(value(f, double(not_a_number))));
  // Lanes on both sides of the bound between the two forms keep their own.
  using batch = xsimd::batch<float>;
  std::array<float, batch::size> x, y;
  for (std::size_t lane = 0; lane < batch::size; ++lane) x[lane] = lane % 2 == 0 ? 0.01f : 3.f;
  heed::simd::tanh(batch::load_unaligned(x.data())).store_unaligned(y.data());
  for (std::size_t lane = 0; lane < batch::size; ++lane)
    CHECK(y[lane] == Approx(std::tanh(x[lane])).epsilon(4e-7));
}
