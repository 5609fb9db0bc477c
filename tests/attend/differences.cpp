#include "support/problem.hpp"

// Gradients against central differences of heed's own forward pass, in double: what the reference's
// backward is trusted for, without the reference.

using heed::index_t;
using heed::tensor_view;

namespace {

/// A small problem with every differentiable ingredient; loss = sum dout . out + sum dlse . lse.
struct everything {
  support::random draw{5};
  static constexpr index_t B = 2, N = 7, M = 9, H = 2, D = 5, Dv = 3;
  std::vector<double> query = normal(B * N * H * D), key = normal(B * M * 1 * D),
                      value = normal(B * M * H * Dv), dout = normal(B * N * H * Dv),
                      dlse = normal(B * H * N), row_scale = normal(B * H * N),
                      bias = normal(B * 1 * 1 * M), sinks = normal(H * 2), slopes = normal(H),
                      numbers = {0.4, 3.};

  std::vector<double> normal(index_t count) {
    std::vector<double> values(static_cast<std::size_t>(count));
    for (double& x : values) x = draw.normal();
    return values;
  }
  std::vector<std::vector<double>*> parameters() {
    return {&query, &key, &value, &row_scale, &bias, &sinks, &slopes, &numbers};
  }

  double loss() {
    std::vector<double> out(dout.size()), lse(dlse.size());
    forward(out, lse);
    double sum = 0;
    for (std::size_t n = 0; n < out.size(); ++n) sum += dout[n] * out[n];
    for (std::size_t n = 0; n < lse.size(); ++n) sum += dlse[n] * lse[n];
    return sum;
  }
  void forward(std::vector<double>& out, std::vector<double>& lse) {
    heed::attention(heed::bnhd(query.data(), B, N, H, D), heed::bnhd(key.data(), B, M, 1, D),
                    heed::bnhd(value.data(), B, M, H, Dv), heed::bnhd(out.data(), B, N, H, Dv),
                    heed::causal{}, heed::lse_into<double>{{lse.data(), {B, H, N}}},
                    heed::scale{numbers[0]}, heed::row_scale<double>{{row_scale.data(), {B, H, N}}},
                    heed::softcap{numbers[1]},
                    heed::alibi{tensor_view<double, 1>(slopes.data(), {H})},
                    heed::bias{tensor_view<double, 4>(bias.data(), {B, 1, 1, M})},
                    heed::softmax_with_sinks{tensor_view<double, 2>(sinks.data(), {H, 2})});
  }
  /// The gradients of parameters(), in that order.
  std::vector<std::vector<double>> backward() {
    std::vector<double> out(dout.size()), lse(dlse.size());
    forward(out, lse);
    std::vector<std::vector<double>> g;
    for (auto const* each : parameters()) g.emplace_back(each->size());
    heed::attention_backward(
        heed::bnhd(query.data(), B, N, H, D), heed::bnhd(key.data(), B, M, 1, D),
        heed::bnhd(value.data(), B, M, H, Dv), heed::bnhd(out.data(), B, N, H, Dv),
        tensor_view<double, 3>(lse.data(), {B, H, N}), heed::bnhd(dout.data(), B, N, H, Dv),
        heed::bnhd(g[0].data(), B, N, H, D), heed::bnhd(g[1].data(), B, M, 1, D),
        heed::bnhd(g[2].data(), B, M, H, Dv), heed::causal{},
        heed::lse_gradient{tensor_view<double const, 3>(dlse.data(), {B, H, N})},
        heed::scale{numbers[0], &g[7][0]},
        heed::row_scale<double>{{row_scale.data(), {B, H, N}}, {g[3].data(), {B, H, N}}},
        heed::softcap{numbers[1], &g[7][1]},
        heed::alibi{tensor_view<double, 1>(slopes.data(), {H}),
                    tensor_view<double, 1>(g[6].data(), {H})},
        heed::bias{tensor_view<double, 4>(bias.data(), {B, 1, 1, M}),
                   tensor_view<double, 4>(g[4].data(), {B, 1, 1, M})},
        heed::softmax_with_sinks{tensor_view<double, 2>(sinks.data(), {H, 2}),
                                 tensor_view<double, 2>(g[5].data(), {H, 2})});
    return g;
  }
};

}  // namespace

TEST_CASE("differences: every gradient", "[attend][quick]") {
  everything x;
  auto const gradients = x.backward();
  auto const parameters = x.parameters();
  double const h = 1e-5;
  for (std::size_t p = 0; p < parameters.size(); ++p)
    for (std::size_t n = 0; n < parameters[p]->size(); ++n) {
      double& parameter = (*parameters[p])[n];
      double const here = parameter;
      parameter = here + h;
      double const above = x.loss();
      parameter = here - h;
      double const below = x.loss();
      parameter = here;
      CAPTURE(p, n);
      // The difference quotient is off by h^2 times a third derivative, and by eps |loss| / h.
      CHECK(gradients[p][n] == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(2e-8));
    }
}

TEST_CASE("differences: the reference's own gradient", "[attend][quick]") {
  support::random draw(9);
  auto const fill = [&](auto extents) {
    reference::tensor<double, std::tuple_size_v<decltype(extents)>> t(extents);
    for (double& x : t.values) x = draw.normal();
    return t;
  };
  auto q = fill(std::array<index_t, 4>{1, 4, 2, 3}), k = fill(std::array<index_t, 4>{1, 5, 1, 3}),
       v = fill(std::array<index_t, 4>{1, 5, 2, 2});
  auto const dout = fill(std::array<index_t, 4>{1, 4, 2, 2});
  auto const dlse = fill(std::array<index_t, 3>{1, 2, 4});
  reference::options o;
  o.keep = [](index_t, index_t p, index_t j) { return j <= p; };
  o.factor = [](index_t p, index_t j) { return 1. / double(1 + std::abs(p - j)); };
  o.modifiers = {reference::softcap{2}, reference::alibi{{0.3, -0.1}}};
  o.sinks = fill(std::array<index_t, 2>{2, 1});
  auto const loss = [&] {
    auto const r = reference::attention(q, k, v, o);
    double sum = 0;
    for (std::size_t n = 0; n < r.out.values.size(); ++n) sum += dout.values[n] * r.out.values[n];
    for (std::size_t n = 0; n < r.lse.values.size(); ++n) sum += dlse.values[n] * r.lse.values[n];
    return sum;
  };
  auto const saved = reference::attention(q, k, v, o);
  auto const g = reference::attention_backward(q, k, v, saved.out, saved.lse, dout, dlse, o);
  auto const check = [&](double& parameter, double gradient) {
    double const here = parameter, h = 1e-5;
    parameter = here + h;
    double const above = loss();
    parameter = here - h;
    double const below = loss();
    parameter = here;
    CHECK(gradient == Approx((above - below) / (2 * h)).epsilon(1e-6).margin(2e-8));
  };
  for (std::size_t n = 0; n < q.values.size(); ++n) check(q.values[n], g.query.values[n]);
  for (std::size_t n = 0; n < k.values.size(); ++n) check(k.values[n], g.key.values[n]);
  for (std::size_t n = 0; n < v.values.size(); ++n) check(v.values[n], g.value.values[n]);
  for (std::size_t n = 0; n < o.sinks.values.size(); ++n)
    check(o.sinks.values[n], g.sinks.values[n]);
  check(std::get<reference::softcap>(o.modifiers[0]).cap, g.modifiers[0].values[0]);
  for (std::size_t n = 0; n < 2; ++n)
    check(std::get<reference::alibi>(o.modifiers[1]).slopes[n], g.modifiers[1].values[n]);
}
