#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/selective_scan.hpp>
#include <heed/recur/diagonal_scan.hpp>

// Mamba's scan against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

/// A random call with every ingredient.
template <class T>
std::string selective(seed_t seed, index_t most, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most);
  support::drawn_sequences const all(draw, N);
  index_t const B = all.batches, H = draw.between(1, 4), n = draw.between(1, 17),
                D = draw.one_in(3) ? draw.between(1, 3) : draw.between(1, 40);
  index_t groups = draw.between(1, H);
  while (H % groups != 0) --groups;
  bool const softplus = draw.one_in(2);
  support::extents_of<4> const tokens{B, N, H, D}, state{all.count(), H, n, D};
  check.input("u", tokens);
  check.input("step", tokens, [&] { return softplus ? draw.normal() : draw.uniform(0, 2); });
  check.input("A", {1, H, D, n}, [&] { return -std::exp(draw.normal()); });
  check.input("B", {B, N, groups, n});
  check.input("C", {B, N, groups, n});
  check.input("skip", {1, 1, H, D});
  check.input("z", tokens);
  check.input("initial", state);
  if (softplus) check.input("bias", {1, 1, H, D});
  check.output("out", tokens);
  check.output("final", state);
  auto const call = [&](auto const&... more) {
    if (backward)
      heed::selective_scan_backward(
          check.in(0), check.in(1), last_axes<3>(check.in(2)), check.in(3), check.in(4),
          check.dout(0), check.din(0), check.din(1), last_axes<3>(check.din(2)), check.din(3),
          check.din(4), more...,
          heed::skip_input(last_axes<2>(check.in(5)), last_axes<2>(check.din(5))),
          heed::silu_gate(check.in(6), check.din(6)),
          heed::initial_state(check.in(7), check.din(7)),
          heed::final_state_gradient(check.dout(1)));
    else
      heed::selective_scan(check.in(0), check.in(1), last_axes<3>(check.in(2)), check.in(3),
                           check.in(4), check.out(0), more...,
                           heed::skip_input(last_axes<2>(check.in(5))),
                           heed::silu_gate(check.in(6)), heed::initial_state(check.in(7)),
                           heed::final_state{check.out(1)});
  };
  all.call([&](auto const&... packed) {
    if (softplus)
      call(packed..., heed::softplus_step(last_axes<2>(check.in(8)), last_axes<2>(check.din(8))));
    else
      call(packed...);
  });
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    auto step = in[1];
    if (softplus)
      for (index_t b = 0; b < B; ++b)
        for (index_t t = 0; t < N; ++t)
          for (index_t h = 0; h < H; ++h)
            for (index_t d = 0; d < D; ++d)
              step(b, t, h, d) = reference::softplus(step(b, t, h, d) + in[8](0, 0, h, d));
    reference::tensors<R> out(2);
    out[0] = reference::selective_scan<R>(
        all, {in[0], step, in[2], in[3], in[4], in[5], in[6], in[7]}, out[1]);
    return out;
  };
  return backward ? check.backward(definition) : check.forward(definition);
}

/// Plain tensors of one call without ingredients.
template <class T>
struct operands {
  support::random draw;
  index_t B, N, H, D, n;
  support::guarded<T, 4> u, step, decay, write, read, out, du, dstep, ddecay, dwrite, dread, state;

  operands(seed_t seed, index_t b, index_t tokens, index_t h, index_t d, index_t of_state)
      : draw(seed),
        B(b),
        N(tokens),
        H(h),
        D(d),
        n(of_state),
        u(make({B, N, H, D}, [this] { return draw.normal(); })),
        step(make({B, N, H, D}, [this] { return draw.uniform(0, 1); })),
        decay(make({1, H, D, n}, [this] { return -draw.uniform(0.01, 3); })),
        write(make({B, N, 1, n}, [this] { return draw.normal(); })),
        read(make({B, N, 1, n}, [this] { return draw.normal(); })),
        out(like(u)),
        du(like(u)),
        dstep(like(u)),
        ddecay(like(decay)),
        dwrite(like(write)),
        dread(like(write)),
        state(make({B, H, n, D}, [] { return 0.0; })) {}

  template <class F>
  static support::guarded<T, 4> make(support::extents_of<4> const& extents, F f) {
    support::guarded<T, 4> all(extents, support::packed<4>(extents));
    all.fill([&](auto const&) { return static_cast<T>(f()); });
    return all;
  }
  static support::guarded<T, 4> like(support::guarded<T, 4> const& other) {
    return make(other.extents(), [] { return 0.0; });
  }

  template <class... I>
  auto run(I const&... more) {
    heed::selective_scan(u.view(), step.view(), last_axes<3>(decay.view()), write.view(),
                         read.view(), out.view(), more...);
    return out.template values<T>();
  }
  template <class... I>
  auto differentiate(I const&... more) {
    heed::selective_scan_backward(
        u.view(), step.view(), last_axes<3>(decay.view()), write.view(), read.view(), u.view(),
        du.view(), dstep.view(), last_axes<3>(ddecay.view()), dwrite.view(), dread.view(), more...);
    return std::array{du.template values<T>(), dstep.template values<T>(),
                      ddecay.template values<T>(), dwrite.template values<T>(),
                      dread.template values<T>()};
  }
};

}  // namespace

TEMPLATE_TEST_CASE("selective scan: the definition", "[mechanism][selective_scan][quick]", double,
                   float) {
  for_each_seed("selective scan", 150,
                [](seed_t seed) { return selective<TestType>(seed, 70, false); });
}

TEMPLATE_TEST_CASE("selective scan: the gradients", "[mechanism][selective_scan]", double, float) {
  for_each_seed("selective scan backward", 60,
                [](seed_t seed) { return selective<TestType>(seed, 70, true); });
}

TEST_CASE("selective scan: bfloat16", "[mechanism][selective_scan]") {
  for_each_seed("selective scan in bfloat16", 30,
                [](seed_t seed) { return selective<Eigen::bfloat16>(seed, 40, false); });
}

TEST_CASE("selective scan: the same bits cut anywhere, step by step and on any executor",
          "[mechanism][selective_scan]") {
  operands<float> p(1, 2, 100, 2, 70, 5);
  auto const whole = p.run();
  support::threads executor;
  CHECK(support::same_bits(whole, p.run(heed::on{executor})));
  auto const cut = [&](index_t most) {
    p.state.fill([](auto const&) { return 0.0f; });
    for (index_t first = 0; first < p.N; first += most) {
      index_t const count = std::min(most, p.N - first);
      auto const part = [&](auto& of) { return of.view().slice(1, first, count); };
      heed::selective_scan(part(p.u), part(p.step), last_axes<3>(p.decay.view()), part(p.write),
                           part(p.read), part(p.out), heed::state{p.state.view()});
    }
    return p.out.values<float>();
  };
  CHECK(support::same_bits(whole, cut(1)));
  CHECK(support::same_bits(whole, cut(37)));
  auto const one = p.differentiate(), three = p.differentiate(heed::on{executor});
  for (std::size_t n = 0; n < one.size(); ++n) CHECK(support::same_bits(one[n], three[n]));
}

TEST_CASE("selective scan: a state of one number is a diagonal scan",
          "[mechanism][selective_scan]") {
  operands<double> p(2, 1, 50, 1, 9, 1);
  p.read.fill([](auto const&) { return 1.0; });
  auto a = p.like(p.u), x = p.like(p.u), h = p.like(p.u);
  for (index_t t = 0; t < p.N; ++t)
    for (index_t d = 0; d < p.D; ++d) {
      a.view()(0, t, 0, d) = p.step.view()(0, t, 0, d) * p.decay.view()(0, 0, d, 0);
      x.view()(0, t, 0, d) =
          p.step.view()(0, t, 0, d) * p.u.view()(0, t, 0, d) * p.write.view()(0, t, 0, 0);
    }
  heed::diagonal_scan(a.view(), x.view(), h.view(), heed::in_logs{});
  auto const out = p.run();
  auto const expected = h.values<double>();
  for (std::size_t n = 0; n < out.values.size(); ++n)
    CHECK(out.values[n] == Approx(expected.values[n]).margin(1e-13));
}

TEST_CASE("selective scan: softplus of large steps is the step", "[mechanism][selective_scan]") {
  operands<float> p(3, 1, 20, 1, 5, 3);
  p.step.fill([](auto const&) { return 1000.0f; });
  auto const plain = p.run();
  auto const soft = p.run(heed::softplus_step());
  CHECK(support::same_bits(plain, soft));
  for (float each : plain.values) CHECK(std::isfinite(each));
}

TEST_CASE("selective scan: what does not fit is refused", "[mechanism][selective_scan]") {
  operands<float> p(4, 2, 6, 2, 3, 4);
  auto const before = p.out.values<float>();
  auto const decay = last_axes<3>(p.decay.view());
  CHECK_THROWS_WITH(heed::selective_scan(p.u.view(), p.step.view().slice(1, 0, 5), decay,
                                         p.write.view(), p.read.view(), p.out.view()),
                    "heed: step has shape [2, 5, 2, 3]; expected that of u, [2, 6, 2, 3]");
  CHECK_THROWS_WITH(heed::selective_scan(p.u.view(), p.step.view(), decay.slice(1, 0, 2),
                                         p.write.view(), p.read.view(), p.out.view()),
                    "heed: decay has shape [2, 2, 4]; expected [2, 3, state] (head, dim, state)");
  CHECK_THROWS_WITH(
      heed::selective_scan(p.u.view(), p.step.view(), decay, p.write.view().slice(3, 0, 3),
                           p.read.view(), p.out.view()),
      "heed: write has shape [2, 6, 1, 3]; expected [2, 6, a divisor of 2, 4] "
      "(batch, position, group, state)");
  CHECK_THROWS_WITH(
      heed::selective_scan(p.u.view(), p.step.view(), decay, p.write.view(), p.read.view(),
                           p.out.view(), heed::state{p.state.view().slice(2, 0, 3)}),
      "heed: state has shape [2, 2, 3, 3]; expected [2, 2, 4, 3] (sequence, head, state row, dim)");
  p.step.view()(1, 2, 1, 0) = -0.5f;
  CHECK_THROWS_WITH(p.run(),
                    "heed: step holds -0.500000 at [1, 2, 1, 0]; expected steps of at least 0");
  p.decay.view()(0, 1, 2, 3) = 0.25f;
  CHECK_THROWS_WITH(p.run(),
                    "heed: decay holds 0.250000 at [1, 2, 3]; expected rates of at most 0");
  CHECK_THROWS_WITH(p.differentiate(),
                    "heed: decay holds 0.250000 at [1, 2, 3]; expected rates of at most 0");
  CHECK(support::same_bits(before, p.out.values<float>()));
}
