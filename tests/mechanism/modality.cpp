#include "support/error_rule.hpp"
#include "support/guarded.hpp"
#include "support/random.hpp"

#include <heed/mechanism/modality.hpp>

#include <memory>

// MODA's alignment of visual keys, against its definition in plain loops, and its gradients against differences.

using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class T>
using tensor4 = reference::tensor<T, 4>;

struct problem {
  index_t B, N, H, D;
  support::guarded<float, 4> key, value;
  std::unique_ptr<bool[]> visual;
  std::vector<double> rho, mix;

  problem(support::random& draw, index_t most_tokens)
      : B(draw.between(1, 2)),
        N(draw.between(1, most_tokens)),
        H(draw.between(1, 2)),
        D(draw.between(1, 9)) {
    auto const rows = [&] {
      support::extents_of<4> const extents{B, N, H, D};
      support::guarded<float, 4> x(extents, support::random_layout<4>(draw, extents, false));
      x.fill([&](auto const&) { return static_cast<float>(draw.normal()); });
      return x;
    };
    key = rows();
    value = rows();
    visual.reset(new bool[static_cast<std::size_t>(B * N)]);
    index_t const kind = draw.between(0, 5);  // all text, all visual, or some of both
    for (index_t n = 0; n < B * N; ++n)
      visual[static_cast<std::size_t>(n)] = kind == 0 ? false : kind == 1 ? true : draw.one_in(2);
    for (index_t d = 0; d < D; ++d) rho.push_back(draw.normal());
    for (index_t d = 0; d < D * D; ++d) mix.push_back(draw.normal());
  }
  heed::tensor_view<bool const, 2> visual_view() const { return {visual.get(), {B, N}}; }
  bool is_visual(index_t b, index_t i) const { return visual[static_cast<std::size_t>(b * N + i)]; }
};

/// The definition. Sums run forwards or backwards, to see what rounding does.
template <class T>
tensor4<T> aligned(problem const& p, tensor4<T> const& k, tensor4<T> const& v,
                   std::vector<T> const& rho, std::vector<T> const& mix, bool backwards = false) {
  tensor4<T> out = k;
  auto const index = [&](index_t n, index_t count) { return backwards ? count - 1 - n : n; };
  auto const at = [](index_t i) { return static_cast<std::size_t>(i); };
  for (index_t b = 0; b < p.B; ++b)
    for (index_t h = 0; h < p.H; ++h) {
      auto const unit = [&](index_t i) {
        std::vector<T> row;
        T square = 0;
        for (index_t d = 0; d < p.D; ++d) row.push_back(k(b, i, h, d) + T(1e-6));
        for (index_t d = 0; d < p.D; ++d) square += row[at(index(d, p.D))] * row[at(index(d, p.D))];
        for (T& x : row) x /= std::sqrt(square);
        return row;
      };
      std::vector<T> G(at(p.D * p.D));
      for (index_t n = 0; n < p.N; ++n) {
        index_t const i = index(n, p.N);
        if (p.is_visual(b, i)) continue;
        auto const u = unit(i);
        for (index_t d = 0; d < p.D; ++d)
          for (index_t e = 0; e < p.D; ++e) G[at(d * p.D + e)] += u[at(d)] * v(b, i, h, e);
      }
      for (index_t d = 0; d < p.D; ++d) {
        T square = 0;
        for (index_t e = 0; e < p.D; ++e) square += G[at(d * p.D + e)] * G[at(d * p.D + e)];
        if (square > 0)
          for (index_t e = 0; e < p.D; ++e) G[at(d * p.D + e)] /= std::sqrt(square);
      }
      for (index_t i = 0; i < p.N; ++i) {
        if (!p.is_visual(b, i)) continue;
        auto const u = unit(i);
        std::vector<T> x(at(p.D));
        for (index_t e = 0; e < p.D; ++e) {
          T sum = 0;
          for (index_t n = 0; n < p.D; ++n) {
            index_t const d = index(n, p.D);
            sum += u[at(d)] * G[at(d * p.D + e)];
          }
          x[at(e)] = k(b, i, h, e) + rho[at(e)] * sum;
        }
        for (index_t e = 0; e < p.D; ++e) {
          T sum = 0;
          for (index_t n = 0; n < p.D; ++n) {
            index_t const d = index(n, p.D);
            sum += mix[at(e * p.D + d)] * x[at(d)];
          }
          out(b, i, h, e) = sum;
        }
      }
    }
  return out;
}

template <class T>
std::vector<T> as(std::vector<double> const& numbers) {
  return {numbers.begin(), numbers.end()};
}

}  // namespace

TEST_CASE("visual keys are aligned with the text", "[mechanism][quick]") {
  for_each_seed("key alignment", 200, [](seed_t seed) {
    support::random draw(seed);
    problem p(draw, 40);
    std::vector<float> const rho = as<float>(p.rho), mix = as<float>(p.mix);
    heed::key_alignment const how{heed::tensor_view<float const, 1>(rho.data(), {p.D}),
                                  heed::tensor_view<float const, 2>(mix.data(), {p.D, p.D})};
    support::extents_of<4> const extents{p.B, p.N, p.H, p.D};
    support::guarded<float, 4> out(extents, support::random_layout<4>(draw, extents, false));
    out.remember();
    heed::align_keys(p.key.view(), p.value.view(), p.visual_view(), how, out.view());
    std::string complaint;
    if (!out.untouched_outside()) complaint += "something else was written\n";
    std::vector<double> const exact_rho(rho.begin(), rho.end()), exact_mix(mix.begin(), mix.end());
    auto const kf = p.key.values<float>(), vf = p.value.values<float>();
    complaint += support::two_times_rule(
        "aligned", out.values<float>(),
        aligned(p, p.key.values<double>(), p.value.values<double>(), exact_rho, exact_mix),
        std::vector{aligned(p, kf, vf, rho, mix), aligned(p, kf, vf, rho, mix, true)},
        support::epsilon<float>());
    return complaint;
  });
}

TEST_CASE("identities of key alignment", "[mechanism][quick]") {
  for_each_seed("identities of key alignment", 50, [](seed_t seed) {
    support::random draw(seed);
    problem p(draw, 20);
    auto const k = p.key.values<double>(), v = p.value.values<double>();
    auto const run = [&](tensor4<double> const& key, tensor4<double> const& value,
                         std::vector<double> const& rho, std::vector<double> const& mix,
                         bool const* visual) {
      tensor4<double> out(key.extents);
      heed::align_keys(
          heed::tensor_view<double const, 4>(key.values.data(), key.extents),
          heed::tensor_view<double const, 4>(value.values.data(), key.extents),
          heed::tensor_view<bool const, 2>(visual, {p.B, p.N}),
          heed::key_alignment{heed::tensor_view<double const, 1>(rho.data(), {p.D}),
                              heed::tensor_view<double const, 2>(mix.data(), {p.D, p.D})},
          heed::tensor_view<double, 4>(out.values.data(), out.extents));
      return out;
    };
    std::string complaint;
    std::vector<double> const zero(p.rho.size());
    std::vector<double> identity(p.mix.size());
    for (index_t d = 0; d < p.D; ++d) identity[static_cast<std::size_t>(d * p.D + d)] = 1;
    if (run(k, v, zero, identity, p.visual.get()).values != k.values)
      complaint += "with rho 0 and W 1 keys do not stay\n";

    // The order of the text does not matter: reverse all tokens.
    tensor4<double> turned_key = k, turned_value = v;
    auto const turned_visual = std::make_unique<bool[]>(static_cast<std::size_t>(p.B * p.N));
    for (index_t b = 0; b < p.B; ++b)
      for (index_t i = 0; i < p.N; ++i) {
        turned_visual[static_cast<std::size_t>(b * p.N + i)] = p.is_visual(b, p.N - 1 - i);
        for (index_t h = 0; h < p.H; ++h)
          for (index_t d = 0; d < p.D; ++d) {
            turned_key(b, i, h, d) = k(b, p.N - 1 - i, h, d);
            turned_value(b, i, h, d) = v(b, p.N - 1 - i, h, d);
          }
      }
    auto const straight = run(k, v, p.rho, p.mix, p.visual.get());
    auto const turned = run(turned_key, turned_value, p.rho, p.mix, turned_visual.get());
    double error = 0;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t i = 0; i < p.N; ++i)
        for (index_t h = 0; h < p.H; ++h)
          for (index_t d = 0; d < p.D; ++d)
            error = std::max(error, std::abs(straight(b, i, h, d) - turned(b, p.N - 1 - i, h, d)));
    if (error > 1e-11) complaint += "the order of tokens matters\n";
    return complaint;
  });
}

TEST_CASE("gradients of key alignment", "[mechanism][quick]") {
  for_each_seed("gradients of key alignment", 30, [](seed_t seed) {
    support::random draw(seed);
    problem p(draw, 7);
    auto k = p.key.values<double>(), v = p.value.values<double>();
    tensor4<double> weights(k.extents), dkey(k.extents), dvalue(k.extents, 0.5);
    for (double& w : weights.values) w = draw.normal();
    std::vector<double> drho(p.rho.size()), dmix(p.mix.size());
    auto const view = [](auto& tensor) {
      return heed::tensor_view<double, 4>(tensor.values.data(), tensor.extents);
    };
    heed::key_alignment const how{heed::tensor_view<double const, 1>(p.rho.data(), {p.D}),
                                  heed::tensor_view<double const, 2>(p.mix.data(), {p.D, p.D})};
    heed::align_keys_backward(view(k), view(v), p.visual_view(), how, view(weights), view(dkey),
                              view(dvalue), heed::tensor_view<double, 1>(drho.data(), {p.D}),
                              heed::tensor_view<double, 2>(dmix.data(), {p.D, p.D}));
    for (double& each : dvalue.values) each -= 0.5;  // gradients of values are added
    auto const loss = [&] {
      auto const out = aligned(p, k, v, p.rho, p.mix);
      double sum = 0;
      for (std::size_t n = 0; n < out.values.size(); ++n) sum += out.values[n] * weights.values[n];
      return sum;
    };
    std::string complaint;
    auto const compare = [&](char const* name, std::vector<double>& input,
                             std::vector<double> const& gradient) {
      double const step = 1e-5;
      for (std::size_t n = 0; n < input.size(); ++n) {
        double const original = input[n];
        auto const at = [&](double steps) {
          input[n] = original + steps * step;
          return loss();
        };
        // Four points: where a norm is small the loss bends too much for two.
        double const difference = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step);
        input[n] = original;
        if (std::abs(difference - gradient[n]) > 1e-5 * (1 + std::abs(gradient[n]))) {
          complaint += std::string(name) + " is " + std::to_string(gradient[n]) + ", not " +
                       std::to_string(difference) + "\n";
          return;
        }
      }
    };
    compare("dkey", k.values, dkey.values);
    compare("dvalue", v.values, dvalue.values);
    compare("drho", p.rho, drho);
    compare("dmix", p.mix, dmix);

    // In place of the gradient that came in.
    auto in_place = weights;
    std::fill(dvalue.values.begin(), dvalue.values.end(), 0);
    heed::align_keys_backward(view(k), view(v), p.visual_view(), how, view(in_place),
                              view(in_place), view(dvalue),
                              heed::tensor_view<double, 1>(drho.data(), {p.D}),
                              heed::tensor_view<double, 2>(dmix.data(), {p.D, p.D}));
    if (in_place.values != dkey.values) complaint += "in place it differs\n";
    return complaint;
  });
}

TEST_CASE("what cannot be aligned is refused", "[mechanism][quick]") {
  std::vector<float> memory(64);
  bool visual[4] = {};
  auto const keys = heed::bnhd(memory.data(), 1, 4, 1, 3);
  heed::tensor_view<bool const, 2> const marks(visual, {1, 4});
  heed::key_alignment const how{heed::tensor_view<float const, 1>(memory.data(), {3}),
                                heed::tensor_view<float const, 2>(memory.data(), {3, 3})};
  heed::key_alignment const wrong{heed::tensor_view<float const, 1>(memory.data(), {2}),
                                  heed::tensor_view<float const, 2>(memory.data(), {3, 3})};
  CHECK_THROWS_WITH(
      heed::align_keys(keys, keys, marks, wrong, keys),
      "heed: a key alignment has rho of shape [2] and mix of shape [3, 3]; expected [3] and "
      "[3, 3]");
  CHECK_THROWS_WITH(
      heed::align_keys(keys, keys, heed::tensor_view<bool const, 2>(visual, {1, 3}), how, keys),
      "heed: visual has shape [1, 3]; expected [1 or 1, 4] (batch, token)");
  auto const other = heed::bnhd(memory.data(), 1, 4, 1, 2);
  CHECK_THROWS_WITH(
      heed::align_keys(keys, other, marks, how, keys),
      "heed: the values of a key alignment have shape [1, 4, 1, 2]; expected that of the "
      "keys, [1, 4, 1, 3]");
  CHECK_THROWS_AS(heed::align_keys(keys, keys, marks, how, other), heed::error);
}
