#include "support/catch.hpp"
#include "support/random.hpp"

#include <heed/recur/landmark_inverse.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

// The iterations of Nystroemformer by themselves; tests/mechanism/landmarks.cpp has them in the mechanism.

using heed::index_t;

namespace {

/// A softmax matrix of m landmarks with `sharpness` on the diagonal.
void fill(heed::recur::landmark_inverse const& inverse, double sharpness) {
  support::random draw(1);
  for (index_t c = 0; c < inverse.m; ++c) {
    double* const row = inverse.a + c * inverse.stride;
    double total = 0;
    for (index_t e = 0; e < inverse.stride; ++e)
      total += row[e] = e < inverse.m ? std::exp(draw.normal() + (c == e ? sharpness : 0)) : 0;
    for (index_t e = 0; e < inverse.m; ++e) row[e] /= total;
  }
}

}  // namespace

TEST_CASE("landmark_inverse: reaches the inverse of a matrix that is far from singular",
          "[recur][quick]") {
  for (index_t m : {1, 5, 16}) {
    heed::workspace memory;
    heed::arena own(memory.reserve(1 << 16));
    heed::recur::landmark_inverse inverse(own, m, 1, false);
    fill(inverse, 5);
    double const* const z = inverse.run();
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < m; ++j) {
        double sum = 0;
        for (index_t k = 0; k < m; ++k)
          sum += inverse.a[i * inverse.stride + k] * z[k * inverse.stride + j];
        CHECK(sum == Approx(i == j ? 1 : 0).margin(1e-9));
      }
  }
}

TEST_CASE("landmark_inverse: its gradient against differences", "[recur][quick]") {
  index_t const m = 5;
  heed::workspace memory;
  heed::arena own(memory.reserve(1 << 16));
  heed::recur::landmark_inverse inverse(own, m, 1, true);
  fill(inverse, 1);
  support::random draw(2);
  std::vector<double> weights(static_cast<std::size_t>(m * inverse.stride), 0.0);
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < m; ++j)
      weights[static_cast<std::size_t>(i * inverse.stride + j)] = draw.normal();
  auto const loss = [&] {
    double const* const z = inverse.run();
    double sum = 0;
    for (std::size_t n = 0; n < weights.size(); ++n) sum += weights[n] * z[n];
    return sum;
  };
  std::vector<double> numeric(weights.size(), 0.0);
  constexpr double step = 1e-6;
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < m; ++j) {
      double& a = inverse.a[i * inverse.stride + j];
      double const before = a;
      a = before + step;
      double const above = loss();
      a = before - step;
      double const below = loss();
      a = before;
      numeric[static_cast<std::size_t>(i * inverse.stride + j)] = (above - below) / (2 * step);
    }
  loss();
  std::copy(weights.begin(), weights.end(), inverse.slope);
  double const* const da = inverse.differentiate(inverse.slope);
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < m; ++j)
      CHECK(da[i * inverse.stride + j] ==
            Approx(numeric[static_cast<std::size_t>(i * inverse.stride + j)])
                .epsilon(1e-6)
                .margin(1e-6));
}
