#include "reference/attention.hpp"
#include "support/error_rule.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/local_alignment.hpp>

// A decoder state that looks at the source around one place. The definition is in plain loops and double, its gradient
// by central differences.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// a_s = softmax over the integers s of [0, keys) with |s - p| <= radius, times exp(-(s - p)^2 / (2 rho^2)).
struct definition {
  tensor<double, 4> query, key, value;
  tensor<double, 3> centres;
  double radius;

  std::vector<double> weights(index_t b, index_t h, index_t t) const {
    double const p = centres(b % centres.extent(0), h % centres.extent(1), t), rho = radius / 2;
    std::vector<double> all(static_cast<std::size_t>(key.extent(1)));
    double total = 0;
    for (std::size_t s = 0; s < all.size(); ++s) {
      if (std::abs(double(s) - p) > radius) continue;
      double score = 0;
      for (index_t d = 0; d < query.extent(3); ++d)
        score += query(b, t, h, d) * key(b, index_t(s), h * key.extent(2) / query.extent(2), d);
      all[s] = std::exp(score / std::sqrt(double(query.extent(3))));
      total += all[s];
    }
    for (std::size_t s = 0; s < all.size(); ++s)
      if (total > 0) all[s] *= std::exp(-std::pow(double(s) - p, 2) / (2 * rho * rho)) / total;
    return all;
  }
  tensor<double, 4> out() const {
    tensor<double, 4> all({query.extent(0), query.extent(1), query.extent(2), value.extent(3)});
    for (index_t b = 0; b < all.extent(0); ++b)
      for (index_t t = 0; t < all.extent(1); ++t)
        for (index_t h = 0; h < all.extent(2); ++h) {
          auto const a = weights(b, h, t);
          for (std::size_t s = 0; s < a.size(); ++s)
            for (index_t d = 0; d < all.extent(3); ++d)
              all(b, t, h, d) +=
                  a[s] * value(b, index_t(s), h * value.extent(2) / all.extent(2), d);
        }
    return all;
  }
};

struct alignment_problem {
  support::random draw;
  index_t B = 2, N, M, H = 4;
  guarded<double, 4> query, key, value, dout, out;
  guarded<double, 3> centres, lse;
  double radius;

  explicit alignment_problem(seed_t seed)
      : draw(seed), N(draw.between(1, 40)), M(draw.between(1, 40)) {
    query = support::normal<double>(draw, {B, N, H, 3});
    key = support::normal<double>(draw, {B, M, 2, 3});
    value = support::normal<double>(draw, {B, M, 2, 4});
    dout = support::normal<double>(draw, {B, N, H, 4});
    out = support::blank<double, 4>({B, N, H, 4});
    lse = support::blank<double, 3>({B, H, N});
    radius = draw.uniform(1, 12);
    centres = support::blank<double, 3>({draw.one_in(2) ? 1 : B, draw.one_in(2) ? 1 : H, N});
    centres.fill([&](auto const&) { return double(M) * draw.uniform(); });
  }
  definition defined() const {
    return {query.values<double>(), key.values<double>(), value.values<double>(),
            centres.values<double>(), radius};
  }
  heed::local_predictive<double> around() const {
    return heed::local_predictive<double>(centres.view(), radius);
  }
  void run() {
    heed::local_predictive_attention(std::as_const(query).view(), std::as_const(key).view(),
                                     std::as_const(value).view(), out.view(), around(),
                                     heed::lse_into{lse.view()});
  }
};

}  // namespace

TEST_CASE("local-p: the definition", "[mechanism][local_alignment]") {
  for_each_seed("local-p", 100, [](seed_t seed) {
    alignment_problem p(seed);
    p.run();
    auto const exact = p.defined();
    std::string complaint;
    if (!(support::difference(p.out.values<double>(), exact.out()) < 1e-12))
      complaint += "out differs\n";
    for (index_t t = 0; t < p.N; ++t) {
      double sum = 0;
      for (double a : exact.weights(0, 0, t)) sum += a;
      if (sum > 1 + 1e-12) complaint += "weights exceed 1\n";
      if (sum == 0) complaint += "a row is empty\n";
    }
    return complaint;
  });
}

TEST_CASE("local-p: the gradient, also of the centres", "[mechanism][local_alignment]") {
  for_each_seed("local-p backward", 25, [](seed_t seed) {
    alignment_problem p(seed);
    p.run();
    auto dquery = support::blank<double, 4>(p.query.extents()),
         dkey = support::blank<double, 4>(p.key.extents()),
         dvalue = support::blank<double, 4>(p.value.extents());
    auto dcentres = support::blank<double, 3>(p.centres.extents());
    heed::local_predictive_attention_backward(
        std::as_const(p.query).view(), std::as_const(p.key).view(), std::as_const(p.value).view(),
        std::as_const(p.out).view(), std::as_const(p.lse).view(), std::as_const(p.dout).view(),
        dquery.view(), dkey.view(), dvalue.view(), dcentres.view(), p.around());
    auto exact = p.defined();
    auto const dout = p.dout.values<double>();
    auto const loss = [&] {
      auto const all = exact.out();
      double sum = 0;
      for (std::size_t n = 0; n < all.values.size(); ++n) sum += dout.values[n] * all.values[n];
      return sum;
    };
    auto const differs = [&](char const* name, std::vector<double>& input,
                             std::vector<double> const& gradient) {
      double largest = 0;
      for (std::size_t n = 0; n < input.size(); n += 1 + input.size() / 40) {
        double const before = input[n], step = 1e-6;
        input[n] = before + step;
        double const above = loss();
        input[n] = before - step;
        double const below = loss();
        input[n] = before;
        largest = std::max(largest, std::abs((above - below) / (2 * step) - gradient[n]));
      }
      return largest < 1e-6 ? ""
                            : std::string(name) + " is off by " + std::to_string(largest) + "\n";
    };
    return differs("dquery", exact.query.values, dquery.values<double>().values) +
           differs("dkey", exact.key.values, dkey.values<double>().values) +
           differs("dvalue", exact.value.values, dvalue.values<double>().values) +
           differs("dcentres", exact.centres.values, dcentres.values<double>().values);
  });
}

TEST_CASE("local-p: one row at a time", "[mechanism][local_alignment]") {
  alignment_problem p(11);
  p.run();
  for (index_t t = 0; t < p.N; ++t) {
    auto row = support::blank<double, 4>({p.B, 1, p.H, 4});
    heed::local_predictive_attention(
        std::as_const(p.query).view().slice(1, t, 1), std::as_const(p.key).view(),
        std::as_const(p.value).view(), row.view(),
        heed::local_predictive{std::as_const(p.centres).view().slice(2, t, 1), p.radius},
        heed::lse_into{p.lse.view().slice(2, t, 1)});
    for (index_t h = 0; h < p.H; ++h)
      CHECK(row.view()(1, 0, h, 2) == Approx(p.out.view()(1, t, h, 2)).margin(1e-12));
  }
}

TEST_CASE("local-p: the pattern", "[mechanism][local_alignment][quick]") {
  for_each_seed("local-p pattern", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 60);  // as many rows as keys: positions are rows
    std::vector<float> centres(static_cast<std::size_t>(n));
    double const radius = draw.uniform(0.5, 12);
    for (float& each : centres)
      each = float(draw.one_in(3) ? double(draw.between(0, n)) : draw.uniform(-5, double(n) + 5));
    return support::check_pattern(
        draw,
        heed::local_predictive{tensor_view<float const, 3>(centres.data(), {1, 1, n}), radius},
        {.rows = n, .keys = n},
        [&](index_t p, index_t j) {
          return p >= 0 && p < n &&
                 std::abs(double(j) - double(centres[static_cast<std::size_t>(p)])) <= radius;
        },
        {.exact_tiles = true});
  });
}

TEST_CASE("local-m: the pattern", "[mechanism][local_alignment][quick]") {
  for (index_t radius : {0, 1, 5})
    for (index_t p = 0; p < 20; ++p)
      for (index_t j = 0; j < 20; ++j)
        CHECK(heed::local_monotone(radius).keep(p, j) == (std::abs(p - j) <= radius));
  CHECK(heed::kept_pairs(heed::local_monotone(20), 15, 20) == 300);  // radius >= S: global
}

TEST_CASE("local-p: what does not fit is refused", "[mechanism][local_alignment]") {
  alignment_problem p(4);
  auto const run = [&](heed::local_predictive<double> const& around) {
    heed::local_predictive_attention(std::as_const(p.query).view(), std::as_const(p.key).view(),
                                     std::as_const(p.value).view(), p.out.view(), around,
                                     heed::lse_into{p.lse.view()});
  };
  CHECK_THROWS_WITH(run(heed::local_predictive{std::as_const(p.centres).view(), 0.0}),
                    "heed: the radius of local_predictive is 0.000000; expected a positive number");
  double const nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> centres(static_cast<std::size_t>(p.N), nan);
  CHECK_THROWS_WITH(
      run(heed::local_predictive{tensor_view<double const, 3>(centres.data(), {1, 1, p.N}), 4.0}),
      "heed: local_predictive.centres holds nan; expected numbers less than 2^24 in size");
}
