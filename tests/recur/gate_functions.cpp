#include "support/tensors.hpp"

#include <heed/recur/gate_functions.hpp>

#include <cmath>

// log(sigmoid(x)) / temperature of numbers a head and numbers a channel, and its slope.

using heed::index_t;
using heed::tensor_view;
using support::blank;

TEST_CASE("log gates of a projection: sigmoids of any size, their slopes", "[recur][quick]") {
  support::random draw(1);
  double const temperature = 16;
  auto x = blank<double, 4>({2, 3, 2, 5}), gate = blank<double, 4>(x.extents()),
       up = blank<double, 4>(x.extents()), dx = blank<double, 4>(x.extents());
  index_t count = 0;
  x.fill([&](auto const&) {
    // Far out on both sides too, where a sigmoid by itself is 0 or 1.
    double const size = ++count % 3 == 0 ? 300 : 3;
    return size * draw.normal();
  });
  up.fill([&](auto const&) { return draw.normal(); });
  heed::log_sigmoid_gate(std::as_const(x).view(), gate.view(), temperature);
  heed::log_sigmoid_gate_backward(std::as_const(x).view(), std::as_const(up).view(), dx.view(),
                                  temperature);
  support::for_each_index(x.extents(), [&](auto const& at) {
    double const number = x.view()(at[0], at[1], at[2], at[3]);
    long double const exact = number > 0
                                  ? -std::log1p(std::exp(-static_cast<long double>(number)))
                                  : number - std::log1p(std::exp(static_cast<long double>(number)));
    CHECK(gate.view()(at[0], at[1], at[2], at[3]) ==
          Approx(static_cast<double>(exact) / temperature).epsilon(1e-14));
    CHECK(dx.view()(at[0], at[1], at[2], at[3]) ==
          Approx(up.view()(at[0], at[1], at[2], at[3]) / (1 + std::exp(number)) / temperature)
              .epsilon(1e-13));
  });

  // A number a head is the first channel of one.
  auto heads = blank<double, 3>({2, 3, 2}), of_heads = blank<double, 3>({2, 3, 2});
  heads.fill([&](auto const& at) { return x.view()(at[0], at[1], at[2], 0); });
  heed::log_sigmoid_gate(std::as_const(heads).view(), of_heads.view(), temperature);
  support::for_each_index(heads.extents(), [&](auto const& at) {
    CHECK(of_heads.view()(at[0], at[1], at[2]) == gate.view()(at[0], at[1], at[2], 0));
  });

  CHECK_THROWS_AS(heed::log_sigmoid_gate(std::as_const(x).view(), gate.view(), 0), heed::error);
  auto small = blank<double, 4>({2, 3, 2, 4});
  CHECK_THROWS_AS(heed::log_sigmoid_gate(std::as_const(x).view(), small.view(), 1), heed::error);
}
