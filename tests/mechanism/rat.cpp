#include "reference/rat.hpp"
#include "support/definition_check.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/rat.hpp>

// RAT against its definition in plain loops.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class T>
std::string rat(seed_t seed, index_t most, bool backward) {
  support::definition_check<T> check(seed);
  auto& draw = check.draw;
  index_t const N = draw.one_in(8) ? draw.between(0, 3) : draw.between(1, most),
                B = draw.between(1, 2), H = 2 * draw.between(1, 2), D = 2 * draw.between(1, 12),
                size = draw.one_in(8) ? N + 3 : draw.between(1, 12);
  auto const gate = [&] { return draw.uniform(); };
  check.input("q", {B, N, H, D});
  check.input("k", {B, N, draw.one_in(2) ? H : H / 2, D});
  check.input("v", {B, N, draw.one_in(2) ? H : 1, D});
  check.input("forget", {B, N, H, D}, gate);
  check.input("gate", {B, N, H, D}, gate);
  check.output("out", {B, N, H, D});
  if (backward)
    heed::rat_backward(check.in(0), check.in(1), check.in(2), check.in(3), check.in(4),
                       check.dout(0), check.din(0), check.din(1), check.din(2), check.din(3),
                       check.din(4), size);
  else
    heed::rat(check.in(0), check.in(1), check.in(2), check.in(3), check.in(4), check.out(0), size);
  auto const oldest = [&]<class R>(reference::tensors<R> const& in) {
    return reference::tensors<R>{reference::rat(in, size, false)};
  };
  auto const newest = [&]<class R>(reference::tensors<R> const& in) {
    return reference::tensors<R>{reference::rat(in, size, true)};
  };
  return backward ? check.backward(oldest, newest) : check.forward(oldest, newest);
}

/// Plain operands.
template <class T>
struct operands {
  support::random draw{7};
  support::guarded<T, 4> q, k, v, forget, gate, out;

  explicit operands(support::extents_of<4> const& extents)
      : q(make(extents, false)),
        k(make(extents, false)),
        v(make(extents, false)),
        forget(make(extents, true)),
        gate(make(extents, true)),
        out(make(extents, false)) {}
  support::guarded<T, 4> make(support::extents_of<4> const& extents, bool is_gate) {
    support::guarded<T, 4> all(extents, support::packed<4>(extents));
    all.fill([&](auto const&) { return static_cast<T>(is_gate ? draw.uniform() : draw.normal()); });
    return all;
  }
  template <class... More>
  auto run(index_t size, More const&... more) {
    heed::rat(q.view(), k.view(), v.view(), forget.view(), gate.view(), out.view(), size, more...);
    return out.template values<T>();
  }
};

double largest_difference(auto const& a, auto const& b) {
  double largest = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n)
    largest = std::max(largest, std::abs(double(a.values[n]) - double(b.values[n])));
  return largest;
}

}  // namespace

TEMPLATE_TEST_CASE("rat: the definition", "[mechanism][rat][quick]", double, float) {
  for_each_seed("rat", 100, [](seed_t seed) { return rat<TestType>(seed, 70, false); });
}

TEMPLATE_TEST_CASE("rat: the gradients", "[mechanism][rat]", double, float) {
  for_each_seed("rat backward", 50, [](seed_t seed) { return rat<TestType>(seed, 40, true); });
}

TEST_CASE("rat: step by step", "[mechanism][rat]") {
  for (index_t size : {1, 4, 100}) {
    operands<double> p({2, 41, 2, 6});
    auto const whole = p.run(size);
    auto keys = p.make({2, 41 / size + 1, 2, 6}, false),
         values = p.make({2, 41 / size + 1, 2, 6}, false), running = p.make({2, 1, 2, 6}, false);
    heed::rat_cache cache{keys.view(), values.view(), running.view()};
    for (index_t t = 0; t < 41; ++t) {
      auto const at = [&](auto& all) { return all.view().slice(1, t, 1); };
      heed::rat_step(at(p.q), at(p.k), at(p.v), at(p.forget), at(p.gate), at(p.out), cache, size);
    }
    CHECK(cache.tokens == 41);
    CHECK(largest_difference(whole, p.out.values<double>()) < 1e-13);
  }
}

TEST_CASE("rat: chunks of one token are causal attention", "[mechanism][rat]") {
  operands<double> p({1, 30, 2, 8});
  auto const out = p.run(1);
  auto keys = p.make({1, 30, 2, 8}, false), values = p.make({1, 30, 2, 8}, false),
       queries = p.make({1, 30, 2, 8}, false), expected = p.make({1, 30, 2, 8}, false);
  auto const weigh = [&](auto& x, auto& to) {
    to.fill([&](auto const& at) {
      return (1 - p.forget.view()(at[0], at[1], at[2], at[3])) *
             x.view()(at[0], at[1], at[2], at[3]);
    });
  };
  weigh(p.k, keys);
  weigh(p.v, values);
  std::vector<index_t> places(30);
  std::iota(places.begin(), places.end(), 0);
  heed::rotate(heed::rotary{}, keys.view(), keys.view(), places);
  heed::rotate(heed::rotary{}, p.q.view(), queries.view(), places);
  heed::attention(queries.view(), keys.view(), values.view(), expected.view(), heed::causal{});
  auto golden = expected.values<double>();
  auto const gates = p.gate.values<double>();
  for (std::size_t n = 0; n < golden.values.size(); ++n) golden.values[n] *= gates.values[n];
  CHECK(largest_difference(out, golden) < 1e-13);
}

TEST_CASE("rat: one chunk is a gated average", "[mechanism][rat]") {
  operands<double> p({1, 30, 2, 8});
  auto const out = p.run(30);
  for (index_t h = 0; h < 2; ++h)
    for (index_t d = 0; d < 8; ++d) {
      double average = 0;
      for (index_t t = 0; t < 30; ++t) {
        double const g = p.forget.view()(0, t, h, d);
        average = g * average + (1 - g) * p.v.view()(0, t, h, d);
        CHECK(out(0, t, h, d) == Approx(p.gate.view()(0, t, h, d) * average).margin(1e-14));
      }
    }
}

TEST_CASE("rat: the last token of a chunk does not meet its chunk's end twice",
          "[mechanism][rat]") {
  // Its weight would be doubled: with one earlier chunk of the same key, 2/3 instead of 1/2.
  operands<double> p({1, 4, 1, 2});
  p.forget.fill([](auto const&) { return 0.0; });
  p.gate.fill([](auto const&) { return 1.0; });
  p.k.fill([](auto const&) { return 0.0; });
  p.v.fill([](auto const& at) { return at[1] < 2 ? 0.0 : 1.0; });
  CHECK(p.run(2)(0, 3, 0, 0) == Approx(0.5));
}

TEST_CASE("rat: the same bits on any executor", "[mechanism][rat]") {
  operands<float> p({2, 300, 2, 16});
  support::threads executor;
  auto const one = p.run(16), three = p.run(16, heed::on{executor});
  CHECK(support::same_bits(one, three));
  auto dq = p.make({2, 300, 2, 16}, false), dk = p.make({2, 300, 2, 16}, false),
       dv = p.make({2, 300, 2, 16}, false), dg = p.make({2, 300, 2, 16}, false),
       dz = p.make({2, 300, 2, 16}, false);
  auto const differentiate = [&](auto const&... more) {
    heed::rat_backward(p.q.view(), p.k.view(), p.v.view(), p.forget.view(), p.gate.view(),
                       p.out.view(), dq.view(), dk.view(), dv.view(), dg.view(), dz.view(), 16,
                       more...);
    return std::array{dq.values<float>(), dk.values<float>(), dv.values<float>(),
                      dg.values<float>(), dz.values<float>()};
  };
  auto const first = differentiate(), second = differentiate(heed::on{executor});
  for (std::size_t n = 0; n < first.size(); ++n) CHECK(support::same_bits(first[n], second[n]));
}

TEST_CASE("rat: what does not fit is refused", "[mechanism][rat]") {
  std::vector<float> numbers(200, 0.5f);
  auto const view = [&](index_t n, index_t h, index_t d) {
    return heed::bnhd(numbers.data(), 1, n, h, d);
  };
  auto const q = view(5, 2, 4);
  CHECK_THROWS_WITH(heed::rat(q, view(4, 2, 4), q, q, q, q, 2),
                    "heed: k has shape [1, 4, 2, 4]; expected [1, 5, a divisor of 2, 4] (batch, "
                    "position, head, dim)");
  CHECK_THROWS_WITH(heed::rat(q, q, q, view(5, 1, 4), q, q, 2),
                    "heed: forget has shape [1, 5, 1, 4]; expected that of q, [1, 5, 2, 4]");
  CHECK_THROWS_WITH(heed::rat(q, q, q, q, q, q, 0),
                    "heed: chunks have 0 positions; expected at least 1");
  auto const odd = view(5, 2, 3);
  CHECK_THROWS_WITH(heed::rat(odd, odd, odd, odd, odd, odd, 2),
                    "heed: q has shape [1, 5, 2, 3]; expected an even dim, for rotary positions");
  auto const one = view(1, 2, 4);
  heed::rat_cache cache{view(1, 2, 4), view(1, 2, 4), view(1, 2, 4)};
  cache.tokens = 2;
  CHECK_THROWS_WITH(heed::rat_step(one, one, one, one, one, one, cache, 2),
                    "heed: rat_cache.keys has shape [1, 1, 2, 4]; expected [1, at least 2, 2, 4] "
                    "(batch, chunk, head, dim)");
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
