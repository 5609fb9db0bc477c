#include "reference/mega.hpp"
#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/mega.hpp>

// Mega's attention functions, and its layer, against plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

template <class T>
std::string attention(seed_t seed, index_t most, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const B = draw.between(1, 2), M = draw.between(1, most),
                N = backward || draw.one_in(2) ? M : draw.between(1, M), H = draw.one_in(3) ? 2 : 1,
                z = draw.between(1, 20), e = draw.between(1, 20), P = M + draw.between(0, 2);
  reference::mega_context where{draw.one_in(2), draw.one_in(2) ? draw.between(1, 15) : 0, {}};
  if (draw.one_in(3))
    for (index_t b = 0; b < B; ++b) where.lengths.push_back(draw.between(0, M));
  auto const what =
      draw.one_of(std::array{reference::mega_function::softmax, reference::mega_function::laplace,
                             reference::mega_function::relu_squared});
  check.input("q", {B, N, H, z});
  check.input("k", {B, M, 1, z});
  check.input("v", {B, M, draw.one_in(2) ? 1 : H, e});
  check.input("table", {1, 1, 1, 2 * P - 1});
  check.output("out", {B, N, H, e});
  using compute = heed::compute_type<T>;
  support::guarded<compute, 3> lse({B, H, N}, support::packed<3>({B, H, N}));
  lse.fill([](auto const&) { return compute(0); });
  heed::mega_context const own{where.causal, where.block, where.lengths};
  auto const with = [&](auto const& chosen) {
    heed::mega_attention(check.in(0), check.in(1), check.in(2), check.out(0), lse.view(), chosen,
                         own, heed::distance_bias(last_axes<1>(check.in(3))));
    if (backward)
      heed::mega_attention_backward(
          check.in(0), check.in(1), check.in(2), check.saved(0), std::as_const(lse).view(),
          check.dout(0), check.din(0), check.din(1), check.din(2), chosen, own,
          heed::distance_bias(last_axes<1>(check.in(3)), last_axes<1>(check.din(3))));
  };
  if (what == reference::mega_function::softmax) with(heed::softmax{});
  if (what == reference::mega_function::laplace) with(heed::mega_laplace{});
  if (what == reference::mega_function::relu_squared) with(heed::mega_relu_squared{});
  auto const in_order = [&]<class R>(reference::tensors<R> const& in) {
    return reference::tensors<R>{reference::mega(what, where, in, false)};
  };
  auto const backwards = [&]<class R>(reference::tensors<R> const& in) {
    return reference::tensors<R>{reference::mega(what, where, in, true)};
  };
  return backward ? check.backward(in_order, backwards) : check.forward(in_order, backwards);
}

}  // namespace

TEMPLATE_TEST_CASE("mega attention: the definition", "[mechanism][mega][quick]", double, float) {
  for_each_seed("mega attention", 150,
                [](seed_t seed) { return attention<TestType>(seed, 60, false); });
}

TEMPLATE_TEST_CASE("mega attention: the gradients", "[mechanism][mega]", double, float) {
  for_each_seed(
      "mega attention backward", 60,
      [](seed_t seed) { return attention<TestType>(seed, 30, true); }, support::luck);
}

TEST_CASE("mega attention: laplace is 1/2 at its mean", "[mechanism][mega]") {
  auto const at = []<class T>(T x) {
    alignas(64) T lanes[xsimd::batch<T>::size];
    heed::detail::laplace_function::value(xsimd::batch<T>(x)).store_aligned(lanes);
    return lanes[0];
  };
  CHECK(at(0.707107) == Approx(0.5).epsilon(1e-15));
  CHECK(at(0.707107f) == Approx(0.5));
  CHECK(at(-std::numeric_limits<float>::infinity()) == 0);
  CHECK(at(1e30f) == 1);
  CHECK(at(-1e30f) == 0);
  for (float x = -3; x < 4; x += 0.01f) {
    double const exact = 0.5 * (1 + std::erf((double(x) - 0.707107) / (0.282095 * std::sqrt(2.0))));
    CHECK(std::abs(double(at(x)) - exact) < 2e-7);
    CHECK(std::abs(at(double(x)) - exact) < 1e-15);
  }
}

TEST_CASE("mega attention: blocks as long as the sequence are none", "[mechanism][mega]") {
  support::random draw(1);
  auto const make = [&](support::extents_of<4> const& extents) {
    support::guarded<float, 4> all(extents, support::packed<4>(extents));
    all.fill([&](auto const&) { return float(draw.normal()); });
    return all;
  };
  auto q = make({1, 40, 1, 8}), k = make({1, 40, 1, 8}), v = make({1, 40, 1, 8}),
       out = make({1, 40, 1, 8}), table = make({1, 1, 1, 79});
  support::guarded<float, 3> lse({1, 1, 40}, support::packed<3>({1, 1, 40}));
  support::threads executor;
  auto const run = [&](index_t block, auto const&... more) {
    heed::mega_attention(q.view(), k.view(), v.view(), out.view(), lse.view(), heed::mega_laplace{},
                         heed::mega_context{.block = block},
                         heed::distance_bias(last_axes<1>(table.view())), more...);
    return out.values<float>();
  };
  auto const whole = run(0);
  CHECK(support::same_bits(whole, run(40)));
  CHECK(support::same_bits(whole, run(64)));
  CHECK(support::same_bits(whole, run(0, heed::on{executor})));
  CHECK(!support::same_bits(whole, run(20)));

  // Decoding: a row at a time, with the keys so far.
  auto const blocks = run(16);
  for (index_t t = 0; t < 40; ++t)
    heed::mega_attention(
        q.view().slice(1, t, 1), k.view().slice(1, 0, t + 1), v.view().slice(1, 0, t + 1),
        out.view().slice(1, t, 1), lse.view().slice(2, t, 1), heed::mega_laplace{},
        heed::mega_context{.block = 16}, heed::distance_bias(last_axes<1>(table.view())));
  auto const steps = out.values<float>();
  for (std::size_t n = 0; n < steps.values.size(); ++n)
    CHECK(steps.values[n] == Approx(blocks.values[n]).margin(1e-6));
}

TEST_CASE("mega attention: the rotary table is Toeplitz, with its gradient", "[mechanism][mega]") {
  support::random draw(2);
  index_t const z = 6, P = 9;
  auto alpha = support::guarded<double, 1>({z}, support::packed<1>({z}));
  alpha.fill([&](auto const&) { return draw.normal(); });
  auto beta = support::guarded<double, 1>({z}, support::packed<1>({z}));
  beta.fill([&](auto const&) { return draw.normal(); });
  std::vector<double> table(2 * P - 1), slopes(2 * P - 1);
  tensor_view<double, 1> const to(table.data(), {2 * P - 1});
  heed::mega_rotary_table(alpha.view(), beta.view(), to);
  // rot_i(alpha) . rot_j(beta)
  auto const turned = [&](auto const& x, index_t at) {
    std::vector<double> all(6);
    for (index_t l = 0; l < 3; ++l) {
      double const angle = double(at) * std::pow(10000.0, -double(l) / 3), a = x.view()(l),
                   b = x.view()(l + 3);
      all[std::size_t(l)] = a * std::cos(angle) - b * std::sin(angle);
      all[std::size_t(l + 3)] = b * std::cos(angle) + a * std::sin(angle);
    }
    return all;
  };
  for (index_t i = 0; i < P; ++i)
    for (index_t j = 0; j < P; ++j) {
      auto const left = turned(alpha, i), right = turned(beta, j);
      double sum = 0;
      for (std::size_t l = 0; l < 6; ++l) sum += left[l] * right[l];
      CHECK(table[std::size_t(j - i + P - 1)] == Approx(sum).margin(1e-13));
    }

  for (double& each : slopes) each = draw.normal();
  std::vector<double> dalpha(6), dbeta(6);
  auto const view = [](std::vector<double>& all) {
    return tensor_view<double, 1>(all.data(), {static_cast<index_t>(all.size())});
  };
  heed::mega_rotary_table_backward(alpha.view(), beta.view(), view(slopes), view(dalpha),
                                   view(dbeta));
  auto const loss = [&] {
    heed::mega_rotary_table(alpha.view(), beta.view(), to);
    double sum = 0;
    for (std::size_t e = 0; e < table.size(); ++e) sum += slopes[e] * table[e];
    return sum;
  };
  auto const slope = [&](double& x) {
    double const before = x;
    x = before + 1e-5;
    double const above = loss();
    x = before - 1e-5;
    double const below = loss();
    x = before;
    return (above - below) / 2e-5;
  };
  for (index_t l = 0; l < 6; ++l) {
    CHECK(dalpha[std::size_t(l)] == Approx(slope(alpha.view()(l))).margin(1e-8));
    CHECK(dbeta[std::size_t(l)] == Approx(slope(beta.view()(l))).margin(1e-8));
  }
}

TEST_CASE("mega attention: what does not fit is refused", "[mechanism][mega]") {
  std::vector<float> numbers(200, 0.5f);
  auto const x = heed::bnhd(numbers.data(), 2, 5, 1, 3);
  tensor_view<float, 3> const lse(numbers.data(), {2, 1, 5});
  std::vector<index_t> const lengths{3};
  CHECK_THROWS_WITH(heed::mega_attention(x, x, x, x, lse, heed::mega_laplace{},
                                         heed::mega_context{.lengths = lengths}),
                    "heed: mega_context has 1 lengths; expected 2, one for each batch entry");
  CHECK_THROWS_WITH(
      heed::mega_attention(x, x, x, x, lse, heed::softmax{}, heed::mega_context{.block = -1}),
      "heed: mega_context.block is -1; expected at least 0");
  CHECK_THROWS_WITH(
      heed::mega_attention(x, x, x, x, lse, heed::softmax{}, heed::mega_context{},
                           heed::distance_bias(tensor_view<float, 1>(numbers.data(), {4}))),
      "heed: the table of distance_bias has shape [4]; expected an odd extent, 2 P - 1, and "
      "memory");
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
