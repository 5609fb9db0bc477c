#include "reference/state_space.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/recur/causal_convolution.hpp>

// Causal filters of each channel, short and long, against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string convolution(seed_t seed, index_t most, index_t most_taps, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most);
  support::drawn_sequences const all(draw, N);
  index_t const B = all.batches, H = draw.between(1, 3),
                D = draw.one_in(3) ? draw.between(1, 3) : draw.between(1, 40),
                taps = draw.between(1, most_taps);
  bool const silu = draw.one_in(2);
  check.input("x", {B, N, H, D});
  check.input("weights", {1, taps, H, D});
  check.input("bias", {1, 1, H, D});
  check.input("initial", {all.count(), H, taps - 1, D});
  check.output("out", {B, N, H, D});
  check.output("final", {all.count(), H, taps - 1, D});
  auto const call = [&](auto const&... more) {
    if (!backward) {
      heed::causal_convolution(check.in(0), last_axes<3>(check.in(1)), check.out(0), more...,
                               heed::channel_bias(last_axes<2>(check.in(2))),
                               heed::initial_state(check.in(3)), heed::final_state{check.out(1)});
    } else {
      heed::causal_convolution_backward(
          check.in(0), last_axes<3>(check.in(1)), check.dout(0), check.din(0),
          last_axes<3>(check.din(1)), more...,
          heed::channel_bias(last_axes<2>(check.in(2)), last_axes<2>(check.din(2))),
          heed::initial_state(check.in(3), check.din(3)),
          heed::final_state_gradient(check.dout(1)));
    }
  };
  all.call([&](auto const&... packed) {
    if (silu)
      call(packed..., heed::with_silu{});
    else
      call(packed...);
  });
  auto const definition = [&]<class R>(reference::tensors<R> const& in) {
    reference::tensors<R> out(2);
    out[0] = reference::causal_convolution(all, in[0], in[1], in[2], in[3], silu, out[1]);
    return out;
  };
  return backward ? check.backward(definition) : check.forward(definition);
}

}  // namespace

TEMPLATE_TEST_CASE("causal convolution: the definition", "[recur][convolution][quick]", double,
                   float) {
  for_each_seed("short convolution", 200,
                [](seed_t seed) { return convolution<TestType>(seed, 60, 5, false); });
  for_each_seed("long convolution", 50,
                [](seed_t seed) { return convolution<TestType>(seed, 60, 80, false); });
}

TEMPLATE_TEST_CASE("causal convolution: the gradients", "[recur][convolution]", double, float) {
  for_each_seed("short convolution backward", 150,
                [](seed_t seed) { return convolution<TestType>(seed, 40, 5, true); });
  for_each_seed("long convolution backward", 30,
                [](seed_t seed) { return convolution<TestType>(seed, 40, 60, true); });
}

TEST_CASE("causal convolution: half in, half out", "[recur][convolution]") {
  for_each_seed("convolution of halves", 50,
                [](seed_t seed) { return convolution<Eigen::half>(seed, 40, 5, false); });
}

TEST_CASE("causal convolution: pieces of long sequences", "[recur][convolution]") {
  for_each_seed("convolution in pieces", 4,
                [](seed_t seed) { return convolution<float>(seed, 1300, 6, false); });
  for_each_seed("convolution in pieces backward", 2,
                [](seed_t seed) { return convolution<float>(seed, 1300, 4, true); });
}

TEST_CASE("causal convolution: the same bits cut anywhere, step by step and on any executor",
          "[recur][convolution]") {
  support::random draw(3);
  for (index_t taps : {1, 4, 9}) {
    index_t const N = 700, H = 2, D = 11;
    auto const make = [&](support::extents_of<4> const& extents) {
      support::guarded<float, 4> all(extents, support::packed<4>(extents));
      all.fill([&](auto const&) { return float(draw.normal()); });
      return all;
    };
    auto x = make({2, N, H, D}), w = make({1, taps, H, D}), whole = make({2, N, H, D}),
         parts = make({2, N, H, D}), steps = make({2, N, H, D}), threaded = make({2, N, H, D}),
         state = make({2, H, taps - 1, D});
    auto const weights = last_axes<3>(w.view());
    heed::causal_convolution(x.view(), weights, whole.view(), heed::with_silu{});
    support::threads executor;
    heed::causal_convolution(x.view(), weights, threaded.view(), heed::with_silu{},
                             heed::on{executor});
    auto const cut = [&](auto& to, auto const& pieces) {
      state.fill([](auto const&) { return 0.0f; });
      for (auto [first, count] : pieces)
        heed::causal_convolution(x.view().slice(1, first, count), weights,
                                 to.view().slice(1, first, count), heed::with_silu{},
                                 heed::state{state.view()});
    };
    cut(parts, std::vector<std::pair<index_t, index_t>>{{0, 2}, {2, 0}, {2, 398}, {400, 300}});
    std::vector<std::pair<index_t, index_t>> each;
    for (index_t t = 0; t < N; ++t) each.push_back({t, 1});
    cut(steps, each);
    CHECK(support::same_bits(whole.values<float>(), threaded.values<float>()));
    CHECK(support::same_bits(whole.values<float>(), parts.values<float>()));
    CHECK(support::same_bits(whole.values<float>(), steps.values<float>()));

    auto dx = make({2, N, H, D}), dw = make({1, taps, H, D});
    auto const differentiate = [&](auto const&... more) {
      heed::causal_convolution_backward(x.view(), weights, whole.view(), dx.view(),
                                        last_axes<3>(dw.view()), heed::with_silu{}, more...);
      return std::pair(dx.values<float>(), dw.values<float>());
    };
    auto const one = differentiate(), three = differentiate(heed::on{executor});
    CHECK(support::same_bits(one.first, three.first));
    CHECK(support::same_bits(one.second, three.second));
  }
}

TEST_CASE("gates on registers are exact", "[simd][quick]") {
  auto const worst = []<class T>(T, auto fast, auto exact, double low, double high) {
    using batch = xsimd::batch<T>;
    double error = 0;
    for (int n = 0; n <= 400000; ++n) {
      T const x = static_cast<T>(low + (high - low) * n / 400000);
      alignas(64) T lanes[batch::size];
      fast(batch(x)).store_aligned(lanes);
      long double const want = exact(static_cast<long double>(x));
      error = std::max(error, static_cast<double>(std::abs((lanes[0] - want) / want)));
    }
    return error / std::numeric_limits<T>::epsilon();
  };
  auto const softplus = [](auto x) { return heed::simd::softplus(x); };
  auto const silu = [](auto x) { return heed::simd::silu(x); };
  auto const exact_softplus = [](long double x) { return reference::softplus(x); };
  auto const exact_silu = [](long double x) { return reference::silu(x); };
  CHECK(worst(0.0f, softplus, exact_softplus, -80, 100) < 4);
  CHECK(worst(0.0, softplus, exact_softplus, -600, 800) < 4);
  CHECK(worst(0.0f, silu, exact_silu, -80.1, 100) < 4);
  CHECK(worst(0.0, silu, exact_silu, -600.1, 800) < 4);
  // Large inputs neither overflow nor turn to NaN.
  for (float x : {1e30f, -1e30f, 3e38f, -3e38f}) {
    alignas(64) float lanes[xsimd::batch<float>::size];
    heed::simd::softplus(xsimd::batch<float>(x)).store_aligned(lanes);
    CHECK(lanes[0] == std::max(x, 0.0f));
    heed::simd::silu(xsimd::batch<float>(x)).store_aligned(lanes);
    CHECK(lanes[0] == std::max(x, 0.0f));
    heed::simd::silu_slope(xsimd::batch<float>(x)).store_aligned(lanes);
    CHECK(lanes[0] == (x > 0 ? 1.0f : 0.0f));
  }
}

TEMPLATE_TEST_CASE("centred convolution: the definition and the gradients", "[recur][convolution]",
                   double, float) {
  // A causal filter over a sequence that goes on with zeros, read half its taps later.
  for_each_seed("centred convolution", 100, [](seed_t seed) {
    support::definition_check<TestType> check(seed), slopes(seed);
    auto const call = [](auto& c, bool backward) {
      index_t const B = c.draw.between(1, 2), N = c.draw.between(1, 40), H = c.draw.between(1, 2),
                    D = c.draw.between(1, 20), taps = c.draw.between(1, 30);
      bool const silu = c.draw.one_in(2);
      c.input("x", {B, N, H, D});
      c.input("weights", {1, taps, H, D});
      c.output("out", {B, N, H, D});
      auto const run = [&](auto const&... more) {
        if (backward)
          heed::causal_convolution_backward(c.in(0), last_axes<3>(c.in(1)), c.dout(0), c.din(0),
                                            last_axes<3>(c.din(1)), heed::centred{}, more...);
        else
          heed::causal_convolution(c.in(0), last_axes<3>(c.in(1)), c.out(0), heed::centred{},
                                   more...);
      };
      if (silu)
        run(heed::with_silu{});
      else
        run();
      return [=]<class R>(reference::tensors<R> const& in) {
        reference::tensor<R, 4> out(in[0].extents);
        for (index_t b = 0; b < B; ++b)
          for (index_t t = 0; t < N; ++t)
            for (index_t h = 0; h < H; ++h)
              for (index_t d = 0; d < D; ++d) {
                R sum = 0;
                for (index_t k = 0; k < taps; ++k)
                  if (index_t const from = t + (taps - 1) / 2 - k; from >= 0 && from < N)
                    sum = sum + in[1](0, k, h, d) * in[0](b, from, h, d);
                out(b, t, h, d) = silu ? reference::silu(sum) : sum;
              }
        return reference::tensors<R>{out};
      };
    };
    return check.forward(call(check, false)) + slopes.backward(call(slopes, true));
  });
}

TEST_CASE("causal convolution: what does not fit is refused", "[recur][convolution]") {
  std::vector<float> numbers(200, 0.5f);
  auto const view = [&](index_t n) { return heed::bnhd(numbers.data(), 2, n, 2, 3); };
  auto const weights = [&](index_t taps, index_t heads) {
    return tensor_view<float, 3>(numbers.data(), {taps, heads, 3});
  };
  CHECK_THROWS_WITH(heed::causal_convolution(view(4), weights(0, 2), view(4)),
                    "heed: weights have shape [0, 2, 3]; expected [taps, 2, 3] (tap, head, dim) "
                    "and at least one tap");
  CHECK_THROWS_WITH(heed::causal_convolution(view(4), weights(3, 1), view(4)),
                    "heed: weights have shape [3, 1, 3]; expected [taps, 2, 3] (tap, head, dim) "
                    "and at least one tap");
  CHECK_THROWS_WITH(heed::causal_convolution(view(4), weights(3, 2), view(5)),
                    "heed: out has shape [2, 5, 2, 3]; expected that of x, [2, 4, 2, 3]");
  CHECK_THROWS_WITH(
      heed::causal_convolution(view(4), weights(3, 2), view(4),
                               heed::channel_bias(tensor_view<float, 2>(numbers.data(), {2, 4}))),
      "heed: channel_bias.bias has shape [2, 4]; expected [2, 3] (head, dim)");
  CHECK_THROWS_WITH(
      heed::causal_convolution(view(4), weights(3, 2), view(4), heed::state{view(3)}),
      "heed: state has shape [2, 3, 2, 3]; expected [2, 2, 2, 3] (sequence, head, state row, dim)");
  CHECK_THROWS_WITH(
      heed::causal_convolution_backward(view(4), weights(3, 2), view(4), view(4), weights(2, 2)),
      "heed: dweights have shape [2, 2, 3]; expected that of weights, [3, 2, 3]");
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
