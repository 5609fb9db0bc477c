#include "support/random.hpp"

#include <heed/score/alibi.hpp>
#include <heed/score/softcap.hpp>

#include <array>
#include <cmath>

using heed::index_t;
using batch = xsimd::batch<double>;

namespace {

double first_lane(batch const& x) {
  std::array<double, batch::size> lanes;
  x.store_unaligned(lanes.data());
  return lanes[0];
}

template <class Modifier>
double apply(Modifier const& m, double score, double query = 0, double key = 0) {
  return first_lane(m.apply(batch(score), batch(query), batch(key)));
}

}  // namespace

TEST_CASE("alibi slopes are the published ones", "[score][quick]") {
  for (index_t h = 0; h < 8; ++h)
    CHECK(heed::alibi<double>::slope(h, 8) == std::exp2(-double(h + 1)));
  for (index_t heads : {1, 2, 3, 5, 6, 12, 16, 20, 33}) {
    index_t n = 1;
    while (2 * n <= heads) n *= 2;
    for (index_t h = 0; h < heads; ++h) {
      double const published = h < n ? std::pow(2., -8. * double(h + 1) / double(n))
                                     : std::pow(2., -4. * double(2 * (h - n) + 1) / double(n));
      CHECK(heed::alibi<double>::slope(h, heads) == Approx(published).epsilon(1e-14));
      CHECK(heed::alibi<float>::slope(h, heads) ==
            static_cast<float>(heed::alibi<double>::slope(h, heads)));
    }
  }
}

TEST_CASE("alibi takes the distance times the slope of the head", "[score][quick]") {
  std::array<double, 2> const slopes{0.5, -0.125};
  heed::alibi const linear{heed::tensor_view<double const, 1>(slopes.data(), {2})};
  for (index_t head : {0, 1}) {
    auto const bound = heed::bind_at(linear, heed::place{.head = head});
    for (index_t query : {-3, 0, 7})
      for (index_t key : {0, 5, 9}) {
        double const distance = std::abs(double(key - query));
        CHECK(apply(bound, 1.5, double(query), double(key)) ==
              1.5 - slopes[static_cast<std::size_t>(head)] * distance);
        CHECK(bound.parameter_slope(1.5, 1.5, query, key) == -distance);
      }
  }
}

TEST_CASE("softcap and its slopes", "[score][quick]") {
  auto const at = [](double cap) { return heed::softcap{cap}.bind({}); };
  support::random draw(1);
  for (int n = 0; n < 1000; ++n) {
    double const cap = draw.uniform(0.1, 50), score = draw.uniform(-100, 100), h = 1e-5;
    auto const capped = at(cap);
    double const value = apply(capped, score);
    CAPTURE(cap, score);
    CHECK(value == Approx(cap * std::tanh(score / cap)).epsilon(4e-15));
    CHECK(std::abs(value) <= cap);
    double const slope = first_lane(capped.slope(batch(score), batch(value)));
    CHECK(slope ==
          Approx((apply(capped, score + h) - apply(capped, score - h)) / (2 * h)).margin(1e-8));
    double const cap_slope =
        (apply(at(cap + h * cap), score) - apply(at(cap - h * cap), score)) / (2 * h * cap);
    CHECK(capped.parameter_slope(score, value, 0, 0) == Approx(cap_slope).margin(1e-8));
  }
  CHECK(apply(at(1e12), 3.25) == Approx(3.25).epsilon(1e-14));
}
