#include "reference/learned_features.hpp"

#include "support/definition_check.hpp"
#include "support/sequences.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/learned_features.hpp>

// T2R and Hedgehog against their definitions.

using heed::index_t;
using heed::tensor_view;
using support::definition_check;
using support::for_each_seed;
using support::last_axes;
using support::seed_t;

namespace {

enum class map { t2r, hedgehog, exponential_of_keys, exponential_of_queries };

template <class T>
struct features_problem {
  definition_check<T> check;
  map kind;
  double shift = 0;
  index_t B, N, H, D, F;

  features_problem(seed_t seed, map which) : check(seed), kind(which) {
    support::random& draw = check.draw;
    B = draw.between(1, 2);
    N = draw.between(0, 80);
    H = draw.between(1, 3);
    D = draw.between(1, 40);
    F = draw.between(1, 40);
    shift = double(float(draw.normal()));
    check.input("x", {B, N, H, D});
    // y of about 1.
    double const spread = 1 / std::sqrt(static_cast<double>(D));
    check.input("weights", {1, draw.one_in(2) ? 1 : H, D, F},
                [&] { return spread * draw.normal(); });
    if (!exponential())
      check.input("bias", {1, 1, draw.one_in(2) ? 1 : H, F}, [&] { return 0.3 * draw.normal(); });
    check.output("phi", {B, N, H, kind == map::t2r ? F : 2 * F});
  }

  bool exponential() const { return kind != map::t2r && kind != map::hedgehog; }
  heed::hedgehog_exponential stabiliser() const {
    return kind == map::exponential_of_queries ? heed::hedgehog_exponential::queries()
                                               : heed::hedgehog_exponential::keys(shift);
  }

  auto definition() const {
    return [kind = kind, shift = shift, F = F]<class U>(reference::tensors<U> const& in) {
      auto const rows = [&](auto const& row, index_t count) {
        return reference::tensors<U>{reference::learned_features(
            in[0], in[1], in.size() > 2 ? &in[2] : nullptr, count, row)};
      };
      if (kind == map::t2r) return rows(reference::t2r_row{}, F);
      if (kind == map::hedgehog) return rows(reference::hedgehog_row{}, 2 * F);
      return rows(reference::hedgehog_exponential_row{shift, kind == map::exponential_of_queries},
                  2 * F);
    };
  }

  template <class Executor = heed::serial>
  void run(Executor const& run_on = {}) {
    auto const weights = last_axes<3>(check.in(1));
    auto const dweights = last_axes<3>(check.din(1));
    if (exponential()) {
      heed::hedgehog_exponential_features(check.in(0), weights, check.out(0), stabiliser(), run_on);
      heed::hedgehog_exponential_features_backward(check.in(0), weights, check.dout(0),
                                                   check.din(0), dweights, stabiliser(), run_on);
      return;
    }
    auto const bias = last_axes<2>(check.in(2));
    auto const dbias = last_axes<2>(check.din(2));
    if (kind == map::t2r) {
      heed::t2r_features(check.in(0), weights, bias, check.out(0), run_on);
      heed::t2r_features_backward(check.in(0), weights, bias, check.dout(0), check.din(0), dweights,
                                  dbias, run_on);
    } else {
      heed::hedgehog_features(check.in(0), weights, bias, check.out(0), run_on);
      heed::hedgehog_features_backward(check.in(0), weights, bias, check.dout(0), check.din(0),
                                       dweights, dbias, run_on);
    }
  }

  std::string compare() {
    run();
    return check.forward(definition()) + check.backward(definition());
  }
};

constexpr std::array all_maps{map::t2r, map::hedgehog, map::exponential_of_keys,
                              map::exponential_of_queries};

}  // namespace

TEST_CASE("learned features: the definition and its gradients, float", "[mechanism][features]") {
  for_each_seed("learned features", 160, [](seed_t seed) {
    return features_problem<float>(seed, all_maps[seed % 4]).compare();
  });
}

TEST_CASE("learned features: the definition and its gradients, double", "[mechanism][features]") {
  for_each_seed("learned features in double", 80, [](seed_t seed) {
    return features_problem<double>(seed, all_maps[seed % 4]).compare();
  });
}

TEST_CASE("learned features: the same bits on any executor", "[mechanism][features]") {
  for (map kind : all_maps) {
    features_problem<float> p(5, kind), other(5, kind);
    p.run();
    other.run(support::threads{});
    for (std::size_t n = 0; n < (p.exponential() ? 2u : 3u); ++n)
      CHECK(support::same_bits(support::read<float>(p.check.din(n)),
                               support::read<float>(other.check.din(n))));
    CHECK(support::same_bits(support::read<float>(p.check.out(0)),
                             support::read<float>(other.check.out(0))));
  }
}

TEST_CASE("hedgehog: features are positive, of sum 1, for numbers of any size",
          "[mechanism][features]") {
  std::vector<float> x{300, -1e4f, 0.5f, 3e4f}, weights{1, 0, 0, 1}, bias{0, 0.1f}, phi(8);
  heed::hedgehog_features(
      heed::bnhd(x.data(), 1, 2, 1, 2), tensor_view<float, 3>(weights.data(), {1, 2, 2}),
      tensor_view<float, 2>(bias.data(), {1, 2}), heed::bnhd(phi.data(), 1, 2, 1, 4));
  CHECK(phi == std::vector<float>{0, 0, 0, 1, 0, 1, 0, 0});
  heed::hedgehog_exponential_features(
      heed::bnhd(x.data(), 1, 2, 1, 2), tensor_view<float, 3>(weights.data(), {1, 2, 2}),
      heed::bnhd(phi.data(), 1, 2, 1, 4), heed::hedgehog_exponential::queries());
  CHECK(phi == std::vector<float>{0, 0, 0, 1, 0, 1, 0, 0});
  heed::hedgehog_exponential_features(
      heed::bnhd(x.data(), 1, 2, 1, 2), tensor_view<float, 3>(weights.data(), {1, 2, 2}),
      heed::bnhd(phi.data(), 1, 2, 1, 4), heed::hedgehog_exponential::keys(3e4));
  CHECK(phi == std::vector<float>{0, 0, 0, 0, 0, 1, 0, 0});
}

TEST_CASE("learned features: what does not fit is refused", "[mechanism][features]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const rows = [&](index_t n, index_t d) { return heed::bnhd(numbers.data(), 1, n, 2, d); };
  auto const weights = [&](index_t h, index_t d) {
    return tensor_view<float, 3>(numbers.data(), {h, d, 5});
  };
  auto const bias = [&](index_t h) { return tensor_view<float, 2>(numbers.data(), {h, 5}); };
  CHECK_THROWS_WITH(heed::t2r_features(rows(4, 3), weights(3, 3), bias(1), rows(4, 5)),
                    "heed: weights have shape [3, 3, 5]; expected [1 or 2, 3, width] (heads, dim, "
                    "width) for x of shape [1, 4, 2, 3]");
  CHECK_THROWS_WITH(heed::t2r_features(rows(4, 3), weights(2, 3), bias(3), rows(4, 5)),
                    "heed: bias has shape [3, 5]; expected [1 or 2, 5] (heads, width)");
  CHECK_THROWS_WITH(heed::hedgehog_features(rows(4, 3), weights(2, 3), bias(1), rows(4, 5)),
                    "heed: phi has shape [1, 4, 2, 5]; expected that of x with its features, [1, "
                    "4, 2, 10]");
  CHECK_THROWS_WITH(
      heed::t2r_features_backward(rows(4, 3), weights(2, 3), bias(1), rows(4, 5), rows(4, 3),
                                  weights(1, 3), bias(1)),
      "heed: dweights have shape [1, 3, 5], dbias [1, 5]; expected those of weights and bias, [2, "
      "3, 5] and [1, 5]");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}
