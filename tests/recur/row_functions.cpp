#include "support/random.hpp"

#include <heed/recur/features/paired_exponentials.hpp>
#include <heed/recur/features/row_functions.hpp>

#include <cmath>
#include <numeric>
#include <vector>

// Functions of a row, of every length up to a few registers, against the row written out; nothing beyond it is read or
// written: rows end where their vectors do, and the sanitizers look on.

using heed::index_t;

namespace {

template <class T>
std::vector<T> draws(support::random& draw, index_t count) {
  std::vector<T> all(static_cast<std::size_t>(count));
  for (T& each : all) each = static_cast<T>(draw.normal());
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("functions of a row", "[recur][quick]", float, double) {
  using T = TestType;
  using arch = xsimd::default_arch;
  using batch = xsimd::batch<T, arch>;
  support::random draw(1);
  for (index_t count = 0; count <= 3 * static_cast<index_t>(batch::size) + 1; ++count) {
    CAPTURE(count);
    auto const a = draws<T>(draw, count), b = draws<T>(draw, count), c = draws<T>(draw, count);
    std::vector<T> to(a.size());
    heed::recur::transform_row<arch>(
        count, to.data(), [](batch const& x) { return x + x; }, a.data());
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(to[i] == a[i] + a[i]);
    heed::recur::transform_row<arch>(
        count, to.data(), [](batch const& x, batch const& y, batch const& z) { return x - y + z; },
        a.data(), b.data(), c.data());
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(to[i] == a[i] - b[i] + c[i]);

    double const dot = std::inner_product(a.begin(), a.end(), b.begin(), 0.0),
                 sum = std::accumulate(a.begin(), a.end(), 0.0);
    CHECK(heed::recur::dot_row<arch>(count, a.data(), b.data()) == Approx(dot).margin(1e-5));
    CHECK(heed::recur::sum_row<arch>(count, a.data()) == Approx(sum).margin(1e-5));
    if (count > 0)
      CHECK(heed::recur::largest_of_row<arch>(count, a.data()) ==
            *std::max_element(a.begin(), a.end()));
  }
}

TEST_CASE("paired exponentials: both signs, the largest exponent of a query taken off",
          "[recur][quick]") {
  using heed::side;
  support::random draw(2);
  for (index_t width : {1, 7, 16, 21}) {
    CAPTURE(width);
    // A key has a number more, which is taken off its exponents.
    auto const query = draws<double>(draw, width), key = draws<double>(draw, width + 1);
    std::vector<double> phi(static_cast<std::size_t>(2 * width));
    auto const rows = [](std::vector<double> const& row) {
      auto const dim = static_cast<index_t>(row.size());
      return heed::feature_rows<double>{row.data(), dim, 1, dim, 0, 0, 0};
    };
    for (bool stable : {true, false})
      for (side of : {side::query, side::key}) {
        auto const& row = of == side::query ? query : key;
        heed::paired_exponentials{stable}.apply(of, rows(row), phi.data(), 2 * width);
        double most = 0;
        if (stable && of == side::key) most = key.back();
        if (stable && of == side::query)
          for (double each : query) most = std::max(most, std::abs(each));
        for (std::size_t i = 0; i < phi.size() / 2; ++i) {
          CHECK(phi[i] == Approx(std::exp(row[i] - most)).epsilon(1e-14));
          CHECK(phi[phi.size() / 2 + i] == Approx(std::exp(-row[i] - most)).epsilon(1e-14));
        }
      }
  }
}
