#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/s4d.hpp>

// Diagonal state spaces against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string s4d(seed_t seed, index_t most, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most);
  support::drawn_sequences const all(draw, N);
  index_t const B = all.batches, H = draw.between(1, 3), n = draw.between(1, 5),
                D = draw.one_in(3) ? draw.between(1, 3) : draw.between(1, 24);
  bool const future = draw.one_in(2);
  support::extents_of<4> const of_channel{1, 1, H, D}, of_number{1, H, D, n},
      state{all.count(), H, 2 * n, D};
  check.input("u", {B, N, H, D});
  check.input("log_step", of_channel, [&] { return draw.uniform(-4, 0); });
  check.input("skip", of_channel);
  check.input("decay", of_number);
  check.input("frequency", of_number, [&] { return draw.uniform(-3, 3); });
  check.input("read_real", of_number);
  check.input("read_imaginary", of_number);
  check.input("initial", state);
  if (future) {
    check.input("later_real", of_number);
    check.input("later_imaginary", of_number);
  }
  check.output("out", {B, N, H, D});
  check.output("final", state);
  auto const gather = [&](auto const& at) {
    return heed::s4d_parameters<std::remove_pointer_t<decltype(at(0).data())>>{
        last_axes<2>(at(1)), last_axes<2>(at(2)), last_axes<3>(at(3)),
        last_axes<3>(at(4)), last_axes<3>(at(5)), last_axes<3>(at(6))};
  };
  auto const given = gather([&](std::size_t i) { return check.in(i); });
  auto const call = [&](auto const&... more) {
    if (backward)
      heed::s4d_backward(check.in(0), given, check.dout(0), check.din(0),
                         gather([&](std::size_t i) { return check.din(i); }), more...,
                         heed::initial_state(check.in(7), check.din(7)),
                         heed::final_state_gradient(check.dout(1)));
    else
      heed::s4d(check.in(0), given, check.out(0), more..., heed::initial_state(check.in(7)),
                heed::final_state{check.out(1)});
  };
  all.call([&](auto const&... packed) {
    if (future)
      call(packed..., heed::s4d_future{last_axes<3>(check.in(8)), last_axes<3>(check.in(9)),
                                       last_axes<3>(check.din(8)), last_axes<3>(check.din(9))});
    else
      call(packed...);
  });
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    return reference::s4d(all, in);
  };
  return backward ? check.backward(definition) : check.forward(definition);
}

/// Plain operands.
struct operands {
  support::random draw{3};
  index_t D, n;
  support::guarded<double, 4> u, of_channel, of_number, out;

  operands(index_t N, index_t dim, index_t of_state)
      : D(dim),
        n(of_state),
        u(make({2, N, 1, D})),
        of_channel(make({2, 1, 1, D})),
        of_number(make({4, 1, D, n})),
        out(make({2, N, 1, D})) {
    for (index_t d = 0; d < D; ++d) of_channel.view()(0, 0, 0, d) = draw.uniform(-4, 0);
  }
  support::guarded<double, 4> make(support::extents_of<4> const& extents) {
    support::guarded<double, 4> all(extents, support::packed<4>(extents));
    all.fill([&](auto const&) { return draw.normal(); });
    return all;
  }
  heed::s4d_parameters<double> parameters() {
    auto const channel = [&](index_t i) { return last_axes<2>(of_channel.view().slice(0, i, 1)); };
    auto const number = [&](index_t i) { return last_axes<3>(of_number.view().slice(0, i, 1)); };
    return {channel(0), channel(1), number(0), number(1), number(2), number(3)};
  }
  template <class... More>
  auto run(More const&... more) {
    heed::s4d(u.view(), parameters(), out.view(), more...);
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

TEMPLATE_TEST_CASE("s4d: the definition", "[mechanism][s4d][quick]", double, float) {
  for_each_seed("s4d", 120, [](seed_t seed) { return s4d<TestType>(seed, 80, false); });
}

TEMPLATE_TEST_CASE("s4d: the gradients", "[mechanism][s4d]", double, float) {
  for_each_seed("s4d backward", 50, [](seed_t seed) { return s4d<TestType>(seed, 50, true); });
}

TEST_CASE("s4d: the recurrence is the convolution, in both directions", "[mechanism][s4d]") {
  operands p(60, 7, 3);
  auto taps = p.make({1, 60, 1, 7});
  heed::s4d_kernel(p.parameters(), last_axes<3>(taps.view()));
  auto const recurrent = p.run();
  heed::causal_convolution(p.u.view(), last_axes<3>(taps.view()), p.out.view());
  CHECK(largest_difference(recurrent, p.out.values<double>()) < 1e-12);

  // The future: another C, without the token's own.
  auto const all = p.parameters();
  auto const both = p.run(heed::s4d_future{all.read_imaginary, all.read_real});
  auto other = p.parameters();
  std::swap(other.read_real, other.read_imaginary);
  auto none = p.make({1, 1, 1, 7});
  none.fill([](auto const&) { return 0.0; });
  other.skip = last_axes<2>(none.view());
  heed::s4d_kernel(other, last_axes<3>(taps.view()));
  for (index_t b = 0; b < 2; ++b)
    for (index_t t = 0; t < 60; ++t)
      for (index_t d = 0; d < 7; ++d) {
        double sum = recurrent(b, t, 0, d);
        for (index_t s = t + 1; s < 60; ++s)
          sum += taps.view()(0, s - t - 1, 0, d) * p.u.view()(b, s, 0, d);
        CHECK(both(b, t, 0, d) == Approx(sum).margin(1e-12));
      }
}

TEST_CASE("s4d: a rate near 0 leaves the step", "[mechanism][s4d]") {
  // (e^(Delta A) - 1) / A -> Delta, and its gradient -> Delta^2 / 2, without cancelling.
  for (double decay : {-40.0, -300.0, -800.0}) {
    heed::recur::scan::s4d_number const number(-1.0, decay, 0.0);
    CHECK(std::abs(number.gain - std::exp(-1.0)) < 1e-15);
    CHECK(std::abs(number.gain_by_rate() - std::exp(-2.0) / 2) < 1e-15);
  }
  // The series and the quotient meet.
  using number = heed::recur::scan::s4d_number;
  for (double frequency : {0.02, 0.0999, 0.1001, 0.3}) {
    std::complex<long double> const z(-0.01l, static_cast<long double>(frequency));
    auto const exact = (std::exp(z) - (std::exp(z) - 1.0l) / z) / z;
    auto const got = number(0, std::log(0.01), frequency).gain_by_rate();
    CHECK(std::abs(std::complex<long double>(got) - exact) < 1e-13l);
  }
}

TEST_CASE("s4d: the same bits cut anywhere, step by step and on any executor", "[mechanism][s4d]") {
  operands p(70, 11, 4);
  auto const whole = p.run();
  support::threads executor;
  CHECK(support::same_bits(whole, p.run(heed::on{executor})));
  for (index_t most : {1, 33}) {
    auto state = p.make({2, 1, 8, 11});
    state.fill([](auto const&) { return 0.0; });
    for (index_t t = 0; t < 70; t += most) {
      index_t const count = std::min<index_t>(most, 70 - t);
      heed::s4d(p.u.view().slice(1, t, count), p.parameters(), p.out.view().slice(1, t, count),
                heed::state{state.view()});
    }
    CHECK(support::same_bits(whole, p.out.values<double>()));
  }
}

TEST_CASE("s4d: what does not fit is refused", "[mechanism][s4d]") {
  operands p(5, 3, 2);
  auto const before = p.out.values<double>();
  auto parameters = p.parameters();
  parameters.frequency = parameters.frequency.slice(2, 0, 1);
  CHECK_THROWS_WITH(heed::s4d(p.u.view(), parameters, p.out.view()),
                    "heed: frequency has shape [1, 3, 1]; expected [1, 3, 2], and memory");
  parameters = p.parameters();
  parameters.log_step = parameters.log_step.slice(1, 0, 2);
  CHECK_THROWS_WITH(heed::s4d(p.u.view(), parameters, p.out.view()),
                    "heed: log_step has shape [1, 2]; expected [1, 3], and memory");
  auto state = p.make({2, 1, 2, 3});
  CHECK_THROWS_WITH(
      heed::s4d(p.u.view(), p.parameters(), p.out.view(), heed::state{state.view()}),
      "heed: state has shape [2, 1, 2, 3]; expected [2, 1, 4, 3] (sequence, head, state row, dim)");
  CHECK(support::same_bits(before, p.out.values<double>()));
}
