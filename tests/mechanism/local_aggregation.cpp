#include "reference/local_aggregation.hpp"
#include "support/error_rule.hpp"

#include <heed/mechanism/local_aggregation.hpp>

#include <algorithm>
#include <cmath>
#include <thread>

// Sums over a box with weights of position alone, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

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

template <class T, int Axes>
struct aggregation_problem {
  using compute = heed::compute_type<T>;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  support::random draw;
  heed::token_box<Axes> box;
  reference::aggregation definition{{1, 1, 1}, {1, 1, 1}};
  guarded<T, 4> value, out, dout, dvalue;
  guarded<T, 3> weights;
  guarded<compute, 3> dweights;

  explicit aggregation_problem(seed_t seed) : draw(seed) {
    index_t positions = 1, taps = 1;
    for (std::size_t axis = 0; axis < Axes; ++axis) {
      box.grid[axis] = draw.between(1, Axes == 1 ? 40 : Axes == 2 ? 11 : 5);
      box.window[axis] = 2 * draw.between(0, 3) + 1;
      definition.grid[axis + 3 - Axes] = box.grid[axis];
      definition.window[axis + 3 - Axes] = box.window[axis];
      positions *= box.grid[axis];
      taps *= box.window[axis];
    }
    index_t const B = draw.between(1, 2), H = draw.between(1, 3), D = draw.between(1, 20);
    value = make<T, 4>({B, positions, H, D});
    out = make<T, 4>({B, positions, H, D});
    dout = make<T, 4>({B, positions, H, D});
    dvalue = make<T, 4>({B, positions, H, D});
    support::extents_of<3> const shape{taps, draw.one_in(3) ? 1 : H, draw.one_in(3) ? 1 : D};
    weights = make<T, 3>(shape);
    dweights = make<compute, 3>(shape);
  }

  template <class E, int Rank>
  guarded<E, Rank> make(support::extents_of<Rank> const& extents) {
    guarded<E, Rank> all(extents, support::random_layout<Rank>(draw, extents, false));
    all.fill([&](auto const&) { return support::convert<E>(draw.normal()); });
    all.remember();
    return all;
  }

  std::string forward() {
    heed::local_aggregation(std::as_const(value).view(), std::as_const(weights).view(), box,
                            out.view());
    auto const of = [&]<class U>(U) {
      return definition.forward(value.template values<U>(), weights.template values<U>());
    };
    return support::two_times_rule("out", out.template values<golden>(), of(golden{}),
                                   std::vector{of(compute{})}, support::epsilon<T>()) +
           (out.untouched_outside() ? "" : "memory outside out was written to\n");
  }

  std::string backward() {
    heed::local_aggregation_backward(std::as_const(value).view(), std::as_const(weights).view(),
                                     box, std::as_const(dout).view(), dvalue.view(),
                                     dweights.view());
    auto const of = [&]<class U>(U) {
      std::pair<tensor<U, 4>, tensor<U, 3>> all;
      definition.backward(value.template values<U>(), weights.template values<U>(),
                          dout.template values<U>(), all.first, all.second);
      return all;
    };
    auto const exact = of(golden{});
    auto const naive = of(compute{});
    // A gradient of a weight is one number, the sum of many: its rounding is measured by their sizes.
    std::pair<tensor<double, 4>, tensor<double, 3>> sizes;
    auto const size_of = [](auto tensor) {
      for (double& x : tensor.values) x = std::abs(x);
      return tensor;
    };
    definition.backward(size_of(value.template values<double>()),
                        size_of(weights.template values<double>()),
                        size_of(dout.template values<double>()), sizes.first, sizes.second);
    double const terms = *std::max_element(sizes.second.values.begin(), sizes.second.values.end());
    return support::two_times_rule("dvalue", dvalue.template values<golden>(), exact.first,
                                   std::vector{naive.first}, support::epsilon<T>()) +
           support::two_times_rule("dweights", dweights.template values<golden>(), exact.second,
                                   std::vector{naive.second}, support::epsilon<compute>(), terms) +
           (dvalue.untouched_outside() && dweights.untouched_outside()
                ? ""
                : "memory outside a gradient was written to\n");
  }
};

}  // namespace

TEMPLATE_TEST_CASE("local aggregation: the definition", "[mechanism][local_aggregation]", double,
                   float, Eigen::half, Eigen::bfloat16) {
  for_each_seed("aggregation", 300, [](seed_t seed) {
    return seed % 3 == 0   ? aggregation_problem<TestType, 1>(seed).forward()
           : seed % 3 == 1 ? aggregation_problem<TestType, 2>(seed).forward()
                           : aggregation_problem<TestType, 3>(seed).forward();
  });
}

TEMPLATE_TEST_CASE("local aggregation: the gradient", "[mechanism][local_aggregation]", double,
                   float, Eigen::half) {
  for_each_seed("aggregation backward", 300, [](seed_t seed) {
    return seed % 3 == 0   ? aggregation_problem<TestType, 1>(seed).backward()
           : seed % 3 == 1 ? aggregation_problem<TestType, 2>(seed).backward()
                           : aggregation_problem<TestType, 3>(seed).backward();
  });
}

TEST_CASE("local aggregation: equal weights give the mean inside",
          "[mechanism][local_aggregation]") {
  heed::token_box<2> const box{{9, 8}, {5, 5}};
  std::vector<double> value(72 * 3), weights(25, 1.0 / 25), out(72 * 3);
  support::random draw(1);
  for (double& x : value) x = draw.normal();
  heed::local_aggregation(heed::bnhd(value.data(), 1, 72, 1, 3),
                          tensor_view<double, 3>(weights.data(), {25, 1, 1}), box,
                          heed::bnhd(out.data(), 1, 72, 1, 3));
  for (std::size_t y = 2; y < 7; ++y)
    for (std::size_t x = 2; x < 6; ++x)
      for (std::size_t c = 0; c < 3; ++c) {
        double mean = 0;
        for (std::size_t v = y - 2; v <= y + 2; ++v)
          for (std::size_t u = x - 2; u <= x + 2; ++u) mean += value[(v * 8 + u) * 3 + c] / 25;
        CHECK(out[(y * 8 + x) * 3 + c] == Approx(mean));
      }
}

TEST_CASE("local aggregation: the same bits on any executor", "[mechanism][local_aggregation]") {
  aggregation_problem<float, 2> p(7);
  auto const value = std::as_const(p.value).view();
  auto const weights = std::as_const(p.weights).view();
  auto const dout = std::as_const(p.dout).view();
  heed::local_aggregation(value, weights, p.box, p.out.view());
  heed::local_aggregation_backward(value, weights, p.box, dout, p.dvalue.view(), p.dweights.view());
  auto const out = p.out.values<float>(), dvalue = p.dvalue.values<float>();
  auto const dweights = p.dweights.values<float>();
  heed::local_aggregation(value, weights, p.box, p.out.view(), threads{});
  heed::local_aggregation_backward(value, weights, p.box, dout, p.dvalue.view(), p.dweights.view(),
                                   threads{});
  CHECK(p.out.values<float>().values == out.values);
  CHECK(p.dvalue.values<float>().values == dvalue.values);
  CHECK(p.dweights.values<float>().values == dweights.values);
}

TEST_CASE("local aggregation: what does not fit is refused", "[mechanism][local_aggregation]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const tokens = [&](index_t n) { return heed::bnhd(numbers.data(), 1, n, 2, 3); };
  auto const weights = [&](index_t taps, index_t heads) {
    return tensor_view<float, 3>(numbers.data(), {taps, heads, 3});
  };
  heed::token_box<2> const box{{4, 5}, {3, 3}};
  CHECK_THROWS_WITH(
      heed::local_aggregation(tokens(21), weights(9, 2), box, tokens(21)),
      "heed: value has shape [1, 21, 2, 3]; expected 20 positions, those of the grid");
  CHECK_THROWS_WITH(heed::local_aggregation(tokens(20), weights(8, 2), box, tokens(20)),
                    "heed: weights have shape [8, 2, 3]; expected [9, 1 or 2, 1 or 3] "
                    "(offset, head, dim)");
  CHECK_THROWS_WITH(heed::local_aggregation(tokens(20), weights(9, 2), box, tokens(19)),
                    "heed: out has shape [1, 19, 2, 3]; expected that of value, [1, 20, 2, 3]");
  CHECK_THROWS_WITH(heed::local_aggregation(tokens(20), weights(9, 2),
                                            heed::token_box<2>{{4, 5}, {3, 2}}, tokens(20)),
                    "heed: token_box has the window [3, 2]; expected odd extents");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}
