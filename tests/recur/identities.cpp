#include "support/error_rule.hpp"
#include "support/recurrence_call.hpp"
#include "support/tensors.hpp"

#include <heed/recur/linear_attention.hpp>

#include <algorithm>

// The identities that specifications 1, 2, 14 and 15 state.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::blank;
using support::difference;
using support::guarded;
using support::normal;

namespace {

/// Both sides of an identity are as exact as specification 1 says, in proportion to the largest number.
bool same(tensor<float, 4> const& a, tensor<float, 4> const& b) {
  double largest = 0;
  for (float each : b.values) largest = std::max(largest, std::abs(static_cast<double>(each)));
  return difference(a, b) <= 4e-6 * largest;
}

guarded<float, 3> drawn(support::random& draw, support::extents_of<3> const& extents, double low,
                        double high) {
  auto all = blank<float, 3>(extents);
  all.fill([&](auto const&) { return static_cast<float>(draw.uniform(low, high)); });
  return all;
}

/// The same numbers for each of some channels.
guarded<float, 4> for_channels(guarded<float, 3> const& from, index_t channels) {
  auto const& e = from.extents();
  auto all = blank<float, 4>({e[0], e[1], e[2], channels});
  all.fill([&](auto const& at) { return from.view()(at[0], at[1], at[2]); });
  return all;
}

void normalise_rows(guarded<float, 4>& all, double length = 1) {
  auto const view = all.view();
  for (index_t b = 0; b < view.extent(0); ++b)
    for (index_t i = 0; i < view.extent(1); ++i)
      for (index_t h = 0; h < view.extent(2); ++h) {
        double sum = 0;
        for (index_t d = 0; d < view.extent(3); ++d)
          sum += static_cast<double>(view(b, i, h, d)) * static_cast<double>(view(b, i, h, d));
        for (index_t d = 0; d < view.extent(3); ++d)
          view(b, i, h, d) *= static_cast<float>(length / std::sqrt(sum));
      }
}

struct operands {
  support::random draw;
  index_t B, N, H, D, E;
  guarded<float, 4> q, k, v, start;
  guarded<float, 4> state;  // the last that was asked for

  explicit operands(index_t positions = 150, index_t dim = 20, index_t value_dim = 13)
      : draw(static_cast<support::seed_t>(positions * 1000 + dim)),
        B(2),
        N(positions),
        H(2),
        D(dim),
        E(value_dim),
        q(normal(draw, {B, N, H, D})),
        k(normal(draw, {B, N, H, D}, 0.3)),
        v(normal(draw, {B, N, H, E})),
        start(normal(draw, {B, H, D, E})),
        state(blank<float, 4>({B, H, D, E})) {}

  /// What a call returns; the state goes to `state`.
  support::recurrence_call<float> call(guarded<float, 4>& out, bool states = true) {
    support::recurrence_call<float> c;
    c.query = q.view();
    c.key = k.view();
    c.value = v.view();
    c.out = out.view();
    if (states) {
      c.initial = start.view();
      c.final = state.view();
    }
    return c;
  }
  template <class Change>
  tensor<float, 4> operator()(Change change, bool states = true) {
    auto out = blank<float, 4>({B, N, H, v.extents()[3]});
    auto c = call(out, states);
    change(c);
    c.forward();
    return out.values<float>();
  }
  tensor<float, 4> operator()(bool states = true) {
    return (*this)([](auto&) {}, states);
  }
};

}  // namespace

// --- 1, the core

TEST_CASE("recurrence: any chunk", "[recur][identities]") {
  operands x;
  auto gate = drawn(x.draw, {2, 150, 2}, -0.3, 0);
  auto const expected = x([&](auto& c) { c.log_gate = gate.view(), c.chunk = 64; });
  auto const state = x.state.values<float>();
  for (index_t chunk : {1, 2, 7, 8, 9, 63, 65, 149, 150, 151, 4096}) {
    CAPTURE(chunk);
    CHECK(same(x([&](auto& c) { c.log_gate = gate.view(), c.chunk = chunk; }), expected));
    CHECK(same(x.state.values<float>(), state));
  }
}

TEST_CASE("recurrence: gates of 1 are no gates", "[recur][identities]") {
  operands x;
  auto gate = drawn(x.draw, {2, 150, 2}, 0, 0);
  auto features = for_channels(gate, 20), channels = for_channels(gate, 13);
  auto const expected = x();
  auto const state = x.state.values<float>();
  CHECK(same(x([&](auto& c) { c.log_gate = gate.view(); }), expected));
  CHECK(same(x([&](auto& c) { c.log_key_gate = features.view(); }), expected));
  CHECK(same(x([&](auto& c) { c.log_value_gate = channels.view(); }), expected));
  CHECK(same(x.state.values<float>(), state));
}

TEST_CASE("recurrence: one gate for a token is equal gates of its features, or of its channels",
          "[recur][identities]") {
  operands x;
  for (double lowest : {-0.01, -1.0, -30.0}) {
    auto gate = drawn(x.draw, {2, 150, 2}, lowest, 0);
    auto features = for_channels(gate, 20), channels = for_channels(gate, 13);
    auto const expected = x([&](auto& c) { c.log_gate = gate.view(); });
    auto const state = x.state.values<float>();
    CHECK(same(x([&](auto& c) { c.log_key_gate = features.view(); }), expected));
    CHECK(same(x.state.values<float>(), state));
    CHECK(same(x([&](auto& c) { c.log_value_gate = channels.view(); }), expected));
    CHECK(same(x.state.values<float>(), state));
  }
}

TEST_CASE("recurrence: a fixed decay is that gate at every token", "[recur][identities]") {
  operands x;
  std::vector<float> const logs{-0.1f, -2};
  auto gate = blank<float, 3>({2, 150, 2});
  gate.fill([&](auto const& at) { return logs[static_cast<std::size_t>(at[2])]; });
  auto const expected = x([&](auto& c) { c.log_gate = gate.view(); }, false);
  auto out = blank<float, 4>({2, 150, 2, 13});
  heed::linear_attention(x.q.view(), x.k.view(), x.v.view(), out.view(),
                         heed::fixed_decay(std::span<float const>(logs)));
  CHECK(same(out.values<float>(), expected));
}

TEST_CASE("recurrence: columns of values are independent", "[recur][identities]") {
  operands x;
  auto gate = drawn(x.draw, {2, 150, 2}, -0.3, 0);
  auto rate = drawn(x.draw, {2, 150, 2}, 0, 0.4);
  for (bool erases : {false, true}) {
    auto const clauses = [&](auto& c) {
      c.log_gate = gate.view();
      if (erases) c.rate = rate.view();
    };
    auto const whole = x(clauses, false);
    for (index_t column = 0; column < 13; ++column) {
      auto out = blank<float, 4>({2, 150, 2, 1});
      auto c = x.call(out, false);
      clauses(c);
      c.value = c.value.slice(3, column, 1);
      c.forward();
      CHECK(same(out.values<float>(), support::read<float>(tensor_view<float const, 4>(
                                          whole.values.data() + column, {2, 150, 2, 1},
                                          {150 * 2 * 13, 2 * 13, 13, 1}))));
    }
  }
}

TEST_CASE("recurrence: rows are linear in queries, and in values and the state together",
          "[recur][identities]") {
  operands x;
  auto gate = drawn(x.draw, {2, 150, 2}, -0.3, 0);
  auto const clauses = [&](auto& c) { c.log_gate = gate.view(); };
  auto expected = x(clauses);
  for (float& each : expected.values) each *= 3;
  CHECK(same(x([&](auto& c) { clauses(c), c.scale = 3; }), expected));
  for (auto* each : {&x.v, &x.start}) {
    auto const view = each->view();
    each->fill([&](auto const& at) { return 3 * view(at[0], at[1], at[2], at[3]); });
  }
  CHECK(same(x(clauses), expected));
}

TEST_CASE("recurrence: the last row in order is that of a dense call", "[recur][identities]") {
  operands x;
  auto const causal = x(), dense = x([](auto&c) { c.dense = true; });
  double largest = 0;
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 2; ++h)
      for (index_t e = 0; e < 13; ++e)
        largest = std::max(largest, std::abs(static_cast<double>(causal(b, 149, h, e)) -
                                             static_cast<double>(dense(b, 149, h, e))));
  CHECK(largest < 1e-4);
}

TEST_CASE("recurrence: a dense call is the same for keys in any order", "[recur][identities]") {
  operands x;
  auto const expected = x([](auto& c) { c.dense = true; });
  // The keys and their values from the last to the first.
  auto const reversed = x([](auto& c) {
    c.dense = true;
    for (auto* view : {&c.key, &c.value}) {
      auto strides = view->strides();
      float const* const last = &(*view)(0, view->extent(1) - 1, 0, 0);
      strides[1] = -strides[1];
      *view = {last, view->extents(), strides};
    }
  });
  CHECK(same(reversed, expected));
}

TEST_CASE("recurrence: heads that share keys are heads with copies of them",
          "[recur][identities]") {
  operands x;
  support::random draw(5);
  auto const q = normal(draw, {2, 150, 6, 20});
  auto const repeated = [](guarded<float, 4> const& from) {
    auto const& e = from.extents();
    auto all = blank<float, 4>({e[0], e[1], 6, e[3]});
    all.fill([&](auto const& at) { return from.view()(at[0], at[1], at[2] / 3, at[3]); });
    return all;
  };
  auto const k = repeated(x.k), v = repeated(x.v);
  auto shared = blank<float, 4>({2, 150, 6, 13}), own = blank<float, 4>({2, 150, 6, 13});
  support::recurrence_call<float> c;
  c.query = q.view();
  c.key = std::as_const(x.k).view();
  c.value = std::as_const(x.v).view();
  c.out = shared.view();
  c.forward();
  c.key = k.view();
  c.value = v.view();
  c.out = own.view();
  c.forward();
  CHECK(support::same_bits(shared.values<float>(), own.values<float>()));
}

// --- 2, feature maps and normalisers

TEST_CASE("recurrence: weights that are normalised sum to 1", "[recur][identities]") {
  operands x(150, 20, 1);
  x.v.fill([](auto const&) { return 1.0f; });
  x.start = blank<float, 4>({2, 2, 20, 2});
  x.start.fill([](auto const&) { return 0.0f; });
  x.state = blank<float, 4>({2, 2, 20, 2});
  auto gate = drawn(x.draw, {2, 150, 2}, -0.3, 0);
  for (bool fades : {false, true})
    for (bool dense : {false, true}) {
      if (fades && dense) continue;
      auto const out = x([&](auto& c) {
        c.map = support::test_features{};
        c.normaliser = heed::normalised{.epsilon = 0};
        if (fades) c.log_gate = gate.view();
        c.dense = dense;
      });
      for (float each : out.values) CHECK(std::abs(each - 1) < 1e-6f);
    }
}

TEST_CASE("recurrence: normalised rows do not depend on the size of the keys' features",
          "[recur][identities]") {
  operands x;
  x.start = normal(x.draw, {2, 2, 20, 14});
  x.start.fill([](auto const&) { return 0.0f; });
  x.state = blank<float, 4>({2, 2, 20, 14});
  auto const rows = [&] {
    return x([](auto& c) {
      c.map = support::test_features{support::test_features::relu_squared};
      c.normaliser = heed::normalised{.epsilon = 0};
    });
  };
  auto const expected = rows();
  auto const view = x.k.view();
  x.k.fill([&](auto const& at) { return 4 * view(at[0], at[1], at[2], at[3]); });
  CHECK(same(rows(), expected));
}

TEST_CASE("recurrence: a map of one side is the features written out", "[recur][identities]") {
  operands x;
  auto const mapped = [&](guarded<float, 4> const& from) {
    auto all = blank<float, 4>(from.extents());
    all.fill([&](auto const& at) {
      float const each = from.view()(at[0], at[1], at[2], at[3]);
      return each > 0 ? each + 1 : std::exp(each);
    });
    return all;
  };
  auto const q = mapped(x.q), k = mapped(x.k);
  support::test_features const map;
  auto expected = blank<float, 4>({2, 150, 2, 13}), got = blank<float, 4>({2, 150, 2, 13});
  auto const run = [&](guarded<float, 4>& to, auto const& query, auto const& key,
                       auto const&... clauses) {
    heed::linear_attention(std::as_const(query).view(), std::as_const(key).view(), x.v.view(),
                           to.view(), clauses...);
    return to.values<float>();
  };
  CHECK(support::same_bits(run(got, x.q, x.k, heed::for_queries(map)), run(expected, q, x.k)));
  CHECK(support::same_bits(run(got, x.q, x.k, heed::for_keys(map)), run(expected, x.q, k)));
  CHECK(support::same_bits(run(got, x.q, x.k, map), run(expected, q, k)));
  CHECK(support::same_bits(run(got, x.q, x.k, heed::identity{}), run(expected, x.q, x.k)));
}

// --- 14, the delta rule

TEST_CASE("recurrence: a value that was just written is read at once", "[recur][identities]") {
  operands x;
  normalise_rows(x.k);
  auto rate = drawn(x.draw, {2, 150, 2}, 1, 1);
  auto gate = drawn(x.draw, {2, 150, 2}, -0.3, 0);
  for (bool fades : {false, true}) {
    auto const out = x([&](auto& c) {
      c.rate = rate.view();
      c.query = std::as_const(x.k).view();
      if (fades) c.log_gate = gate.view();
    });
    CHECK(same(out, x.v.values<float>()));
  }
}

TEST_CASE("recurrence: a delta rule with rate 0 only fades", "[recur][identities]") {
  operands x;
  auto rate = drawn(x.draw, {2, 150, 2}, 0, 0), gate = drawn(x.draw, {2, 150, 2}, -0.02, 0);
  x([&](auto& c) { c.rate = rate.view(), c.log_gate = gate.view(); });
  double largest = 0;
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 2; ++h) {
      double log = 0;
      for (index_t t = 0; t < 150; ++t) log += static_cast<double>(gate.view()(b, t, h));
      for (index_t d = 0; d < 20; ++d)
        for (index_t e = 0; e < 13; ++e)
          largest = std::max(
              largest, std::abs(static_cast<double>(x.state.view()(b, h, d, e)) -
                                std::exp(log) * static_cast<double>(x.start.view()(b, h, d, e))));
    }
  CHECK(largest < 1e-6);
}

TEST_CASE("recurrence: a delta rule with orthogonal keys adds rate v", "[recur][identities]") {
  // As many tokens as features, keys along the axes; no initial state.
  operands x(20, 20, 13);
  x.k.fill([](auto const& at) { return at[3] == (7 * at[1] + at[2]) % 20 ? 1.0f : 0.0f; });
  auto rate = drawn(x.draw, {2, 20, 2}, 0, 1);
  auto const erased = x([&](auto& c) { c.rate = rate.view(); }, false);
  auto const view = x.v.view();
  x.v.fill([&](auto const& at) {
    return rate.view()(at[0], at[1], at[2]) * view(at[0], at[1], at[2], at[3]);
  });
  CHECK(same(x(false), erased));
}

TEST_CASE("recurrence: a delta rule without values is a product of reflections",
          "[recur][identities]") {
  operands x(70, 12, 12);
  normalise_rows(x.k);
  x.v.fill([](auto const&) { return 0.0f; });
  x.start.fill([](auto const& at) { return at[2] == at[3] ? 1.0f : 0.0f; });
  auto rate = drawn(x.draw, {2, 70, 2}, 0, 2);
  x([&](auto& c) { c.rate = rate.view(); });
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 2; ++h) {
      // The latest factor on the left.
      std::vector<double> transfer(144);
      for (std::size_t d = 0; d < 12; ++d) transfer[d * 13] = 1;
      for (index_t t = 0; t < 70; ++t) {
        auto const key = [&](std::size_t d) {
          return static_cast<double>(x.k.view()(b, t, h, static_cast<index_t>(d)));
        };
        double const by = static_cast<double>(rate.view()(b, t, h));
        for (std::size_t e = 0; e < 12; ++e) {
          double along = 0;
          for (std::size_t d = 0; d < 12; ++d) along += key(d) * transfer[d * 12 + e];
          for (std::size_t d = 0; d < 12; ++d) transfer[d * 12 + e] -= by * key(d) * along;
        }
      }
      double largest = 0;
      for (std::size_t d = 0; d < 12; ++d)
        for (std::size_t e = 0; e < 12; ++e)
          largest = std::max(
              largest, std::abs(transfer[d * 12 + e] -
                                static_cast<double>(x.state.view()(b, h, static_cast<index_t>(d),
                                                                   static_cast<index_t>(e)))));
      CHECK(largest < 1e-5);
    }
}

TEST_CASE("recurrence: keys that are nearly the same, at the precision of specification 14",
          "[recur][identities]") {
  support::random draw(3);
  index_t const N = 512, D = 32;
  auto q = normal(draw, {1, N, 2, D}), k = normal(draw, {1, N, 2, D}, 0.05),
       v = normal(draw, {1, N, 2, D});
  auto const view = k.view();
  k.fill(
      [&](auto const& at) { return view(at[0], at[1], at[2], at[3]) + (at[3] == 0 ? 1.0f : 0); });
  normalise_rows(k);
  auto rate = drawn(draw, {1, N, 2}, 1.9, 1.9);
  auto out = blank<float, 4>({1, N, 2, D});
  support::recurrence_call<float> c;
  c.query = std::as_const(q).view();
  c.key = std::as_const(k).view();
  c.value = std::as_const(v).view();
  c.rate = std::as_const(rate).view();
  c.out = out.view();
  c.chunk = 64;
  c.forward();
  reference::recurrence<> definition;
  definition.rule = reference::update_rule::delta;
  reference::recurrence_operands<double> x;
  x.query = q.values<double>();
  x.key = k.values<double>();
  x.value = v.values<double>();
  x.rate = rate.values<double>();
  auto const exact = definition.forward(x).out;
  double largest = 0;
  for (double each : exact.values) largest = std::max(largest, std::abs(each));
  CHECK(difference(out.values<double>(), exact) <= 6e-6 * largest);
}

// --- 15, error-free linear attention

TEST_CASE("recurrence: an exact step is two of half the time", "[recur][identities]") {
  operands x(40);
  auto rate = drawn(x.draw, {2, 40, 2}, 0, 2);
  x([&](auto& c) { c.rate = rate.view(), c.exact = true; });
  auto const once = x.state.values<float>();
  // Every token twice.
  auto const twice = [](auto const& from) {
    auto extents = from.extents();
    extents[1] *= 2;
    constexpr int rank = static_cast<int>(extents.size());
    auto all = blank<float, rank>(extents);
    all.fill([&](auto at) {
      at[1] /= 2;
      return from.view().data()[support::offset(at, from.view().strides())];
    });
    return all;
  };
  auto const k = twice(x.k), v = twice(x.v), q = twice(x.q);
  auto half = twice(rate);
  auto const view = half.view();
  half.fill([&](auto const& at) { return view(at[0], at[1], at[2]) / 2; });
  auto out = blank<float, 4>({2, 80, 2, 13});
  auto c = x.call(out);
  c.query = q.view();
  c.key = k.view();
  c.value = v.view();
  c.rate = std::as_const(half).view();
  c.exact = true;
  c.forward();
  CHECK(difference(x.state.values<float>(), once));
}

TEST_CASE("recurrence: exact rates at their limits", "[recur][identities]") {
  operands x;
  auto rate = drawn(x.draw, {2, 150, 2}, 0, 2);
  // Keys of almost no length: the delta rule itself.
  auto const view = x.k.view();
  x.k.fill([&](auto const& at) { return 1e-5f * view(at[0], at[1], at[2], at[3]); });
  auto const exact = x([&](auto& c) { c.rate = rate.view(), c.exact = true; });
  CHECK(same(exact, x([&](auto& c) { c.rate = rate.view(); })));
  // Keys of no length: nothing is written, and nothing is not a number.
  x.k.fill([](auto const&) { return 0.0f; });
  x([&](auto& c) { c.rate = rate.view(), c.exact = true; });
  CHECK(difference(x.state.values<float>(), x.start.values<float>()) == 0);
  // All the time there is: the value is what the key then reads.
  operands y;
  auto endless = drawn(y.draw, {2, 150, 2}, 1e30, 1e30);
  auto const read = y([&](auto& c) {
    c.rate = endless.view();
    c.exact = true;
    c.query = std::as_const(y.k).view();
  });
  CHECK(difference(read, y.v.values<float>()));
}

TEST_CASE("recurrence: an exact step solves its differential equation", "[recur][identities]") {
  // dS/dt = -k k^T S + k v^T over a time `rate`, by the classical Runge-Kutta method.
  operands x(6, 5, 4);
  auto rate = drawn(x.draw, {2, 6, 2}, 0, 2);
  x([&](auto& c) { c.rate = rate.view(), c.exact = true; });
  double largest = 0;
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 2; ++h)
      for (index_t e = 0; e < 4; ++e) {
        std::array<double, 5> s;
        for (index_t d = 0; d < 5; ++d)
          s[static_cast<std::size_t>(d)] = static_cast<double>(x.start.view()(b, h, d, e));
        for (index_t t = 0; t < 6; ++t) {
          auto const slope = [&](std::array<double, 5> const& at) {
            double missed = static_cast<double>(x.v.view()(b, t, h, e));
            for (std::size_t d = 0; d < 5; ++d)
              missed -= static_cast<double>(x.k.view()(b, t, h, static_cast<index_t>(d))) * at[d];
            std::array<double, 5> by;
            for (std::size_t d = 0; d < 5; ++d)
              by[d] = missed * static_cast<double>(x.k.view()(b, t, h, static_cast<index_t>(d)));
            return by;
          };
          auto const moved = [&](std::array<double, 5> const& by, double time) {
            auto at = s;
            for (std::size_t d = 0; d < 5; ++d) at[d] += time * by[d];
            return at;
          };
          int const steps = 200;
          double const time = static_cast<double>(rate.view()(b, t, h)) / steps;
          for (int n = 0; n < steps; ++n) {
            auto const a = slope(s), c = slope(moved(a, time / 2)), f = slope(moved(c, time / 2)),
                       g = slope(moved(f, time));
            for (std::size_t d = 0; d < 5; ++d)
              s[d] += time * (a[d] + 2 * c[d] + 2 * f[d] + g[d]) / 6;
          }
        }
        for (index_t d = 0; d < 5; ++d)
          largest = std::max(largest, std::abs(s[static_cast<std::size_t>(d)] -
                                               static_cast<double>(x.state.view()(b, h, d, e))));
      }
  CHECK(largest < 1e-6);
}
