#include "reference/recurrence.hpp"

#include "support/random.hpp"

#include <array>

// The definition against itself: token by token or by sums over pairs, and its gradients against central differences.

using reference::index_t;
using reference::tensor;
using reference::update_rule;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Features of a row and of where it stands: sines and squares of shifted numbers.
struct wavy_features {
  index_t count(index_t dim) const { return 2 * dim; }
  static double shift(reference::feature_place const& at) {
    return 0.1 * static_cast<double>(at.position) + static_cast<double>(at.head + at.batch) +
           (at.of_query ? 0.5 : 0);
  }
  template <class T>
  std::vector<T> features(reference::feature_place const& at, std::vector<T> const& x) const {
    std::vector<T> phi;
    for (T each : x) phi.push_back(std::sin(each + T(shift(at))));
    for (T each : x) phi.push_back(each * each);
    return phi;
  }
  template <class T>
  std::vector<T> gradient(reference::feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> dx;
    for (std::size_t d = 0; d < x.size(); ++d)
      dx.push_back(dphi[d] * std::cos(x[d] + T(shift(at))) + dphi[d + x.size()] * 2 * x[d]);
    return dx;
  }
};

template <class Map>
struct small_problem {
  support::random draw;
  reference::recurrence<Map> definition;
  reference::recurrence_operands<double> x;
  tensor<double, 4> dout, dstate;

  explicit small_problem(seed_t seed) : draw(seed) {
    index_t const H = draw.one_of(std::array<index_t, 3>{1, 2, 6});
    auto const heads = [&] {
      index_t n = draw.between(1, H);
      while (H % n != 0) --n;
      return n;
    };
    bool const documents = draw.one_in(3);
    index_t const B = documents ? 1 : draw.between(1, 2), N = draw.between(0, 7),
                  M = draw.between(0, 7), D = draw.between(1, 3), E = draw.between(1, 3);
    definition.heads = H;
    definition.scale = draw.uniform(0.5, 1.5);
    definition.normalised = draw.one_in(3);
    // Far from a division by 0, where differences say nothing.
    bool const bounded = draw.one_in(2);
    if (bounded) definition.at_least = 1.5;
    definition.epsilon = bounded ? 0.1 : 30;
    definition.rule = draw.one_of(
        std::array{update_rule::additive, update_rule::delta, update_rule::exact_delta});
    definition.dense = draw.one_in(4);
    if (documents) {
      definition.query_offsets = {0, draw.between(0, N), N, N};
      definition.key_offsets = {0, draw.between(0, M), M, M};
    }
    index_t const F = definition.map.count(D);
    x.query = normal<4>({B, N, heads(), D});
    x.key = normal<4>({B, M, heads(), D});
    x.value = normal<4>({B, M, heads(), E});
    if (draw.one_in(2)) x.log_gate = gates<3>({B, M, heads()});
    if (draw.one_in(2)) x.log_key_gate = gates<4>({B, M, heads(), F});
    if (draw.one_in(2)) x.log_value_gate = gates<4>({B, M, heads(), E});
    if (definition.rule != update_rule::additive) {
      x.rate = normal<3>({B, M, heads()});
      for (double& rate : x.rate.values) rate = draw.uniform(0, 1.2);
      // Keys that do not have the states grow; or such short ones that the exact rate is a limit.
      bool const tiny = definition.rule == update_rule::exact_delta && draw.one_in(2);
      for (double& k : x.key.values) k *= tiny ? 1e-2 : 0.4;
    }
    tensor<double, 4> const states = definition.forward(x).state;
    if (draw.one_in(2)) x.initial = normal<4>(states.extents);
    dout = normal<4>({B, N, H, E});
    dstate = normal<4>(states.extents);
  }

  template <int Rank>
  tensor<double, Rank> normal(typename tensor<double, Rank>::index_array const& extents) {
    tensor<double, Rank> all(extents);
    for (double& each : all.values) each = draw.normal();
    return all;
  }
  template <int Rank>
  tensor<double, Rank> gates(typename tensor<double, Rank>::index_array const& extents) {
    tensor<double, Rank> all(extents);
    for (double& each : all.values)
      each = draw.one_in(20)  ? -std::numeric_limits<double>::infinity()
             : draw.one_in(9) ? -300
                              : draw.uniform(-1, 0);
    return all;
  }

  template <int Rank>
  static double distance(tensor<double, Rank> const& a, tensor<double, Rank> const& b) {
    if (a.extents != b.extents) return 1e300;
    double largest = 0;
    for (std::size_t n = 0; n < a.values.size(); ++n) {
      double const apart = std::abs(a.values[n] - b.values[n]) / (1 + std::abs(b.values[n]));
      largest = apart <= largest ? largest : apart;  // NaN stays
    }
    return largest;
  }

  std::string recurrent_is_parallel() const {
    auto const a = definition.forward(x), b = definition.parallel(x);
    double out = distance(a.out, b.out), state = distance(a.state, b.state);
    if (x.log_value_gate.values.empty()) {
      auto const c = definition.chunked(x, 3);
      out = std::max(out, distance(c.out, a.out));
      state = std::max(state, distance(c.state, a.state));
    }
    return (out < 1e-9 ? "" : "out is off by " + std::to_string(out) + "\n") +
           (state < 1e-12 ? "" : "the state is off by " + std::to_string(state) + "\n");
  }

  double loss() const {
    auto const result = definition.forward(x);
    return reference::weighted_sum(dout, result.out) +
           reference::weighted_sum(dstate, result.state);
  }
  std::string gradients() {
    auto const d = definition.backward(x, definition.forward(x).out, dout, dstate);
    return gradient("query", x.query, d.query) + gradient("key", x.key, d.key) +
           gradient("value", x.value, d.value) + gradient("gate", x.log_gate, d.log_gate) +
           gradient("key gate", x.log_key_gate, d.log_key_gate) +
           gradient("value gate", x.log_value_gate, d.log_value_gate) +
           gradient("rate", x.rate, d.rate) +
           (x.initial.values.empty() ? "" : gradient("initial state", x.initial, d.initial));
  }
  template <int Rank>
  std::string gradient(char const* name, tensor<double, Rank>& of,
                       tensor<double, Rank> const& expected) {
    double largest = 0;
    for (std::size_t n = 0; n < of.values.size(); ++n) {
      double const before = of.values[n], step = 1e-5 * std::min(1.0, 1e-2 + std::abs(before));
      if (std::isinf(before)) {
        largest = std::max(largest, std::abs(expected.values[n]));
        continue;
      }
      of.values[n] = before + step;
      double const above = loss();
      of.values[n] = before - step;
      double const below = loss();
      of.values[n] = before;
      double const slope = (above - below) / (2 * step);
      double const apart = std::abs(slope - expected.values[n]) / (1 + std::abs(slope));
      largest = apart <= largest ? largest : apart;
    }
    return largest < 1e-6 ? "" : std::string(name) + " is off by " + std::to_string(largest) + "\n";
  }
};

}  // namespace

TEST_CASE("recurrence: the definition token by token is that by pairs", "[recur][reference]") {
  for_each_seed("definition", 1000, [](seed_t seed) {
    return seed % 2 == 0 ? small_problem<reference::identity_features>(seed).recurrent_is_parallel()
                         : small_problem<wavy_features>(seed).recurrent_is_parallel();
  });
}

TEST_CASE("recurrence: the gradient of the definition", "[recur][reference]") {
  for_each_seed("definition gradient", 1000, [](seed_t seed) {
    return seed % 2 == 0 ? small_problem<reference::identity_features>(seed).gradients()
                         : small_problem<wavy_features>(seed).gradients();
  });
}

TEST_CASE("recurrence: the exact rate and its derivatives", "[recur][reference]") {
  for (double rate : {0.0, 1e-9, 0.01, 0.7, 3.0})
    for (double size : {0.0, 1e-12, 1e-5, 1e-3, 0.05, 2.0, 1e3}) {
      // (1 - e^(-x s)) / s in long double, where it loses little.
      auto const value = [](long double b, long double s) {
        return s == 0 ? b : -std::expm1(-b * s) / s;
      };
      reference::exact_rate<double> const got(rate, size);
      CAPTURE(rate, size);
      CHECK(got.value == Approx(static_cast<double>(value(rate, size))).margin(1e-300));
      CHECK(got.by_rate == Approx(std::exp(-rate * size)));
      long double const step = size < 1e-4 ? 1e-4L : 1e-4L * size;
      double const slope =
          size < 1e-4 ? -rate * rate / 2
                      : static_cast<double>((value(rate, size + step) - value(rate, size - step)) /
                                            (2 * step));
      CHECK(got.by_size == Approx(slope).epsilon(2e-5).margin(1e-12));
    }
}
