#include "reference/rat.hpp"
#include "reference/documents.hpp"
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
struct rat_problem : support::definition_check<T> {
  index_t B, N, H, D, size;
  reference::packing packed;

  rat_problem(seed_t seed, index_t most, bool whole = false) : support::definition_check<T>(seed) {
    auto& dice = this->draw;
    N = !whole && dice.one_in(8) ? dice.between(0, 3) : dice.between(whole ? 2 : 1, most);
    B = dice.between(1, 2), H = 2 * dice.between(1, 2), D = 2 * dice.between(1, 12);
    size = dice.one_in(8) ? N + 3 : dice.between(1, 12);
    if (!whole && B == 1 && dice.one_in(2)) {
      index_t const cut = dice.between(0, N);
      std::vector<index_t> const bounds{0, cut, dice.between(cut, N), N};
      packed = {bounds, bounds, {0, 1, 2, 3, 4}, {}};
    }
    auto const gate = [&] { return dice.uniform(); };
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, dice.one_in(2) ? H : H / 2, D});
    this->input("v", {B, N, dice.one_in(2) ? H : 1, D});
    this->input("forget", {B, N, H, D}, gate);
    this->input("gate", {B, N, H, D}, gate);
    this->output("out", {B, N, H, D});
  }
  template <class F>
  void call(F const& f) const {
    packed.rows.empty() ? f() : f(heed::documents{packed.rows, packed.rows});
  }
  template <class Cut, class... I>
  void forward_of(Cut const& of, I&&... all) {
    heed::rat(of(this->in(0)), of(this->in(1)), of(this->in(2)), of(this->in(3)), of(this->in(4)),
              of(this->out(0)), all...);
  }
  template <class Cut, class... I>
  void backward_of(Cut const& of, I const&... all) {
    heed::rat_backward(of(this->in(0)), of(this->in(1)), of(this->in(2)), of(this->in(3)),
                       of(this->in(4)), of(this->dout(0)), of(this->din(0)), of(this->din(1)),
                       of(this->din(2)), of(this->din(3)), of(this->din(4)), all...);
  }
  auto definition(bool newest_first) const {
    return [size = size, packed = packed, newest_first]<class R>(reference::tensors<R> const& in) {
      return packed(in, [&](reference::tensors<R> const& own) {
        return reference::tensors<R>{reference::rat(own, size, newest_first)};
      });
    };
  }
};

template <class T>
std::string rat(seed_t seed, index_t most, bool backward) {
  rat_problem<T> p(seed, most);
  auto const whole = [](auto view) { return view; };
  p.call([&](auto const&... all) {
    backward ? p.backward_of(whole, p.size, all...) : p.forward_of(whole, p.size, all...);
  });
  return backward ? p.backward(p.definition(false), p.definition(true))
                  : p.forward(p.definition(false), p.definition(true));
}

/// What a sequence carries on, or a gradient by it.
template <class T>
struct held_averages {
  support::guarded<T, 4> keys, values, running;

  explicit held_averages(rat_problem<T> const& p)
      : keys(blank({p.B, (p.N - 1) / p.size + 1, p.H, p.D})),
        values(blank(keys.extents())),
        running(blank({p.B, 1, p.H, p.D})) {}
  /// Nothing is to be read that was not written.
  static support::guarded<T, 4> blank(support::extents_of<4> const& extents) {
    support::guarded<T, 4> all(extents, support::packed<4>(extents));
    all.fill([](auto const&) { return std::numeric_limits<T>::quiet_NaN(); });
    return all;
  }
  template <template <class> class As>
  As<T> as() {
    return {keys.view(), values.view(), running.view()};
  }
  void take(held_averages& other) {
    for (auto part : {&held_averages::keys, &held_averages::values, &held_averages::running})
      heed::copy_elements((other.*part).view(), (this->*part).view());
  }
};

/// Three calls, each of which goes on from the one before, and their gradients; the last one may be of steps.
template <class T>
std::string rat_in_three(seed_t seed) {
  rat_problem<T> p(seed, 40, true);
  index_t const one = p.draw.between(1, p.N - 1), two = p.draw.between(one, p.N);
  index_t const bounds[] = {0, one, two, p.N};
  auto const part = [&](std::size_t n) {
    return [&, n](auto view) { return view.slice(1, bounds[n], bounds[n + 1] - bounds[n]); };
  };
  held_averages<T> now(p), begun[3]{held_averages<T>(p), held_averages<T>(p), held_averages<T>(p)};
  auto cache = now.template as<heed::rat_cache>();
  for (std::size_t n = 0; n < 3; ++n) {
    begun[n].take(now);
    p.forward_of(part(n), cache, p.size);
  }
  CHECK(cache.tokens == p.N);
  held_averages<T> slope(p), later(p);
  for (std::size_t n = 3; n-- > 0;) {
    if (bounds[n + 1] == bounds[n]) continue;
    auto from = begun[n].template as<heed::rat_cache>();
    from.tokens = bounds[n];
    bool const last = bounds[n + 1] == p.N;
    auto const to = slope.template as<heed::rat_cache_gradient>();
    if (last)
      p.backward_of(part(n), p.size, from, to);
    else
      p.backward_of(part(n), p.size, from, to, later.template as<heed::rat_final_gradient>());
    later.take(slope);
  }
  return p.forward(p.definition(false), p.definition(true)) +
         p.backward(p.definition(false), p.definition(true));
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

TEMPLATE_TEST_CASE("rat: parts and their gradients are the whole", "[mechanism][rat]", double,
                   float) {
  for_each_seed("rat in three", 50, [](seed_t seed) { return rat_in_three<TestType>(seed); });
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
    // A prompt at once and the rest by steps.
    cache.tokens = 0;
    auto const prompt = [&](auto& all) { return all.view().slice(1, 0, 23); };
    heed::rat(prompt(p.q), prompt(p.k), prompt(p.v), prompt(p.forget), prompt(p.gate),
              prompt(p.out), cache, size);
    for (index_t t = 23; t < 41; ++t) {
      auto const at = [&](auto& all) { return all.view().slice(1, t, 1); };
      heed::rat_step(at(p.q), at(p.k), at(p.v), at(p.forget), at(p.gate), at(p.out), cache, size);
    }
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
  CHECK_THROWS_WITH(heed::rat(view(3, 2, 4), view(3, 2, 4), view(3, 2, 4), view(3, 2, 4),
                              view(3, 2, 4), view(3, 2, 4), cache, 2),
                    "heed: rat_cache.keys has shape [1, 1, 2, 4]; expected [1, at least 3, 2, 4] "
                    "(batch, chunk, head, dim)");
  index_t const rows[] = {0, 2, 5}, keys[] = {0, 3, 5};
  CHECK_THROWS_WITH(
      heed::rat(q, q, q, q, q, q, 2, heed::documents{rows, keys}),
      "heed: documents.queries and documents.keys differ; rat expects the same offsets twice");
  CHECK(numbers == std::vector<float>(200, 0.5f));
}
