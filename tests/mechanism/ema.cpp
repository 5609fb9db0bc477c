#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/ema.hpp>

// Mega's moving averages against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string ema(seed_t seed, index_t most, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most);
  support::drawn_sequences const all(draw, N);
  index_t const B = all.batches, H = draw.between(1, 3), n = draw.between(1, 6),
                D = draw.one_in(3) ? draw.between(1, 3) : draw.between(1, 40);
  bool const silu = draw.one_in(2), future = draw.one_in(2);
  support::extents_of<4> const of_channel{1, H, D, n}, state{all.count(), H, n, D};
  check.input("x", {B, N, H, D});
  for (char const* name : {"delta", "alpha", "beta", "gamma"}) check.input(name, of_channel);
  check.input("omega", {1, 1, H, D});
  check.input("initial", state);
  if (future)
    for (char const* name : {"delta2", "alpha2", "beta2", "gamma2"}) check.input(name, of_channel);
  check.output("out", {B, N, H, D});
  check.output("final", state);
  auto const three = [](auto view) { return last_axes<3>(view); };
  auto const given = [&](std::size_t first) {
    return heed::ema_parameters{three(check.in(first)), three(check.in(first + 1)),
                                three(check.in(first + 2)), three(check.in(first + 3))};
  };
  auto const wanted = [&](std::size_t first) {
    return heed::ema_parameters{three(check.din(first)), three(check.din(first + 1)),
                                three(check.din(first + 2)), three(check.din(first + 3))};
  };
  auto const call = [&](auto const&... more) {
    if (backward)
      heed::exponential_moving_average_backward(
          check.in(0), given(1), last_axes<2>(check.in(5)), check.dout(0), check.din(0), wanted(1),
          last_axes<2>(check.din(5)), more..., heed::initial_state(check.in(6), check.din(6)),
          heed::final_state_gradient(check.dout(1)));
    else
      heed::exponential_moving_average(check.in(0), given(1), last_axes<2>(check.in(5)),
                                       check.out(0), more..., heed::initial_state(check.in(6)),
                                       heed::final_state{check.out(1)});
  };
  auto const with_gate = [&](auto const&... more) {
    if (silu)
      call(more..., heed::with_silu{});
    else
      call(more...);
  };
  all.call([&](auto const&... packed) {
    if (future)
      with_gate(packed..., heed::ema_of_future{given(7), wanted(7)});
    else
      with_gate(packed...);
  });
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    reference::tensors<R> out(2);
    out[1] = reference::tensor<R, 4>(state);
    out[0] = reference::moving_averages(all, in, 1, &in[6], &out[1], false);
    reference::tensor<R, 4> more(in[0].extents);
    if (future) more = reference::moving_averages<R>(all, in, 7, nullptr, nullptr, true);
    for (index_t b = 0; b < B; ++b)
      for (index_t t = 0; t < N; ++t)
        for (index_t h = 0; h < H; ++h)
          for (index_t d = 0; d < D; ++d) {
            R& y = out[0](b, t, h, d);
            y = y + more(b, t, h, d) + in[5](0, 0, h, d) * in[0](b, t, h, d);
            if (silu) y = reference::silu(y);
          }
    return out;
  };
  return backward ? check.backward(definition) : check.forward(definition);
}

/// Plain operands.
struct operands {
  support::random draw{3};
  support::guarded<double, 4> x, delta, alpha, beta, gamma, omega, out;

  operands(index_t N, index_t D, index_t n)
      : x(make({2, N, 1, D})),
        delta(make({1, 1, D, n})),
        alpha(make({1, 1, D, n})),
        beta(make({1, 1, D, n})),
        gamma(make({1, 1, D, n})),
        omega(make({1, 1, 1, D})),
        out(make({2, N, 1, D})) {}
  support::guarded<double, 4> make(support::extents_of<4> const& extents) {
    support::guarded<double, 4> all(extents, support::packed<4>(extents));
    all.fill([&](auto const&) { return draw.normal(); });
    return all;
  }
  auto parameters() {
    return heed::ema_parameters{last_axes<3>(delta.view()), last_axes<3>(alpha.view()),
                                last_axes<3>(beta.view()), last_axes<3>(gamma.view())};
  }
  template <class... More>
  auto run(More const&... more) {
    heed::exponential_moving_average(x.view(), parameters(), last_axes<2>(omega.view()), out.view(),
                                     more...);
    return out.values<double>();
  }
};

double largest_difference(auto const& a, auto const& b) {
  double largest = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n)
    largest = std::max(largest, std::abs(double(a.values[n]) - double(b.values[n])));
  return largest;
}

}  // namespace

TEMPLATE_TEST_CASE("ema: the definition", "[mechanism][ema][quick]", double, float) {
  for_each_seed("ema", 150, [](seed_t seed) { return ema<TestType>(seed, 90, false); });
}

TEMPLATE_TEST_CASE("ema: the gradients", "[mechanism][ema]", double, float) {
  for_each_seed("ema backward", 60, [](seed_t seed) { return ema<TestType>(seed, 70, true); });
}

TEST_CASE("ema: a scan is a convolution", "[mechanism][ema]") {
  operands p(80, 11, 4);
  auto const scanned = p.run();
  auto taps = p.make({1, 80, 1, 11});
  heed::ema_kernel(p.parameters(), last_axes<3>(taps.view()));
  for (index_t d = 0; d < 11; ++d) taps.view()(0, 0, 0, d) += p.omega.view()(0, 0, 0, d);
  heed::causal_convolution(p.x.view(), last_axes<3>(taps.view()), p.out.view());
  CHECK(largest_difference(scanned, p.out.values<double>()) < 1e-13);
}

TEST_CASE("ema: long kernels do not drift", "[mechanism][ema]") {
  // rho^l in float as a product of l factors would be off by l eps.
  std::vector<float> delta{-9}, alpha{0}, one{1}, taps(100000);
  auto const view = [](std::vector<float>& all) {
    return tensor_view<float, 3>(all.data(), {1, 1, 1});
  };
  heed::ema_kernel(heed::ema_parameters{view(delta), view(alpha), view(one), view(one)},
                   tensor_view<float, 3>(taps.data(), {100000, 1, 1}));
  long double const p = 1 / (1 + std::exp(9.0l)), rho = 1 - p / 2;
  for (std::size_t l = 0; l < taps.size(); l += 999) {
    long double const exact = p * std::pow(rho, static_cast<long double>(l));
    CHECK(std::abs(static_cast<double>(taps[l] / exact) - 1) < 2e-7);
  }
}

TEST_CASE("ema: the same bits cut anywhere, step by step and on any executor", "[mechanism][ema]") {
  operands p(70, 11, 4);
  auto const whole = p.run(heed::with_silu{});
  support::threads executor;
  CHECK(support::same_bits(whole, p.run(heed::with_silu{}, heed::on{executor})));
  for (index_t most : {1, 33}) {
    auto state = p.make({2, 1, 4, 11});
    state.fill([](auto const&) { return 0.0; });
    for (index_t t = 0; t < 70; t += most) {
      index_t const count = std::min<index_t>(most, 70 - t);
      heed::exponential_moving_average(
          p.x.view().slice(1, t, count), p.parameters(), last_axes<2>(p.omega.view()),
          p.out.view().slice(1, t, count), heed::with_silu{}, heed::state{state.view()});
    }
    CHECK(support::same_bits(whole, p.out.values<double>()));
  }
}

TEST_CASE("ema: what does not fit is refused", "[mechanism][ema]") {
  operands p(5, 3, 2);
  auto const before = p.out.values<double>();
  auto parameters = p.parameters();
  parameters.beta = parameters.beta.slice(2, 0, 1);
  CHECK_THROWS_WITH(heed::exponential_moving_average(p.x.view(), parameters,
                                                     last_axes<2>(p.omega.view()), p.out.view()),
                    "heed: the parameters have shape [1, 3, 1]; expected [1, 3, 2] (head, dim, "
                    "average), and memory");
  CHECK_THROWS_WITH(
      heed::exponential_moving_average(p.x.view(), p.parameters(),
                                       last_axes<2>(p.omega.view()).slice(1, 0, 2), p.out.view()),
      "heed: omega has shape [1, 2]; expected [1, 3] (head, dim)");
  CHECK_THROWS_WITH(
      heed::exponential_moving_average(p.x.view(), p.parameters(), last_axes<2>(p.omega.view()),
                                       p.out.view().slice(1, 0, 4)),
      "heed: out has shape [2, 4, 1, 3]; expected that of x, [2, 5, 1, 3]");
  CHECK(support::same_bits(before, p.out.values<double>()));
}
