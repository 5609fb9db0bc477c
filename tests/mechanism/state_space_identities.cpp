#include "reference/state_space.hpp"
#include "support/guarded.hpp"

#include <heed/linear.hpp>
#include <heed/mechanism/selective_scan.hpp>
#include <heed/recur/diagonal_scan.hpp>
#include <heed/softmax.hpp>

// Understanding the differences in Foundation Models: Attention, State Space Models, and Recurrent Neural Networks. Its
// dynamical form h_i = Lambda_i h_(i-1) + B_i u_i, y_i = C_i h_i of several models, run as such and as what heed has of them.

using heed::index_t;
using heed::tensor_view;

namespace {

using tensor = support::guarded<double, 4>;

struct drawn {
  support::random draw{21};

  template <class F>
  tensor make(support::extents_of<4> const& extents, F f) {
    tensor all(extents, support::packed<4>(extents));
    all.fill(f);
    return all;
  }
  tensor normal(support::extents_of<4> const& extents) {
    return make(extents, [this](auto const&) { return draw.normal(); });
  }
  tensor uniform(support::extents_of<4> const& extents, double low, double high) {
    return make(extents, [=, this](auto const&) { return draw.uniform(low, high); });
  }
};

double largest_difference(tensor const& a, tensor const& b) {
  auto const x = a.values<double>(), y = b.values<double>();
  double largest = 0;
  for (std::size_t n = 0; n < x.values.size(); ++n)
    largest = std::max(largest, std::abs(x.values[n] - y.values[n]));
  return largest;
}

/// y_i = phi(q_i)^T h_i with h_i = eta_(i-1) / eta_i h_(i-1) + phi(k_i) v_i^T / eta_i, the state's numbers as channels.
template <class Eta>
tensor dynamical_form(drawn& make, tensor const& q, tensor const& k, tensor const& v, Eta eta) {
  index_t const N = q.extents()[1], n = q.extents()[3], e = v.extents()[3];
  auto fade = make.normal({1, N, n, e}), in = make.normal({1, N, n, e}),
       h = make.normal({1, N, n, e}), y = make.normal({1, N, 1, e});
  for (index_t i = 0; i < N; ++i)
    for (index_t f = 0; f < n; ++f)
      for (index_t c = 0; c < e; ++c) {
        fade.view()(0, i, f, c) = i == 0 ? 0 : eta(i - 1) / eta(i);
        in.view()(0, i, f, c) = k.view()(0, i, 0, f) * v.view()(0, i, 0, c) / eta(i);
      }
  heed::diagonal_scan(fade.view(), in.view(), h.view());
  y.fill([&](auto const& at) {
    double sum = 0;
    for (index_t f = 0; f < n; ++f) sum += q.view()(0, at[1], 0, f) * h.view()(0, at[1], f, at[3]);
    return sum;
  });
  return y;
}

}  // namespace

TEST_CASE("dynamical form: linear attention", "[mechanism][identities]") {
  drawn make;
  index_t const N = 40, n = 6, e = 5;
  auto const q = make.uniform({1, N, 1, n}, 0.1, 1), k = make.uniform({1, N, 1, n}, 0.1, 1),
             v = make.normal({1, N, 1, e});
  auto out = make.normal({1, N, 1, e});
  heed::linear_attention(q.view(), k.view(), v.view(), out.view(), heed::normalised{.epsilon = 0});
  auto const eta = [&](index_t i) {
    double sum = 0;
    for (index_t j = 0; j <= i; ++j)
      for (index_t f = 0; f < n; ++f) sum += q.view()(0, i, 0, f) * k.view()(0, j, 0, f);
    return sum;
  };
  CHECK(largest_difference(dynamical_form(make, q, k, v, eta), out) < 1e-13);
}

TEST_CASE("dynamical form: normalised attention is a division behind the recurrence",
          "[mechanism][identities]") {
  drawn make;
  index_t const N = 40, n = 6, e = 5;
  auto const q = make.normal({1, N, 1, n}), k = make.normal({1, N, 1, n}),
             v = make.normal({1, N, 1, e}), w = make.normal({1, N, 1, 1});
  for (int which = 0; which < 3; ++which) {
    auto const eta = [&](index_t i) {
      double const x = w.view()(0, i, 0, 0);
      return which == 0 ? std::exp(x) : which == 1 ? reference::softplus(x) : reference::sigmoid(x);
    };
    auto out = make.normal({1, N, 1, e});
    heed::linear_attention(q.view(), k.view(), v.view(), out.view(), heed::chunk_size{16});
    out.fill([&](auto const& at) { return out.view()(0, at[1], 0, at[3]) / eta(at[1]); });
    CHECK(largest_difference(dynamical_form(make, q, k, v, eta), out) < 2e-12);
  }
}

TEST_CASE("dynamical form: softmax attention has infinitely many features",
          "[mechanism][identities]") {
  // psi_l(x) = x^l / sqrt(l!) for one channel; 60 of them are enough for products up to 9.
  drawn make;
  index_t const N = 30, e = 4, n = 60;
  auto const q = make.uniform({1, N, 1, 1}, -3, 3), k = make.uniform({1, N, 1, 1}, -3, 3),
             v = make.normal({1, N, 1, e});
  auto const features = [&](tensor const& x) {
    return make.make({1, N, 1, n}, [&](auto const& at) {
      return std::pow(x.view()(0, at[1], 0, 0), double(at[3])) /
             std::sqrt(std::tgamma(double(at[3]) + 1));
    });
  };
  auto const phi = features(q), psi = features(k);
  auto out = make.normal({1, N, 1, e}), expected = make.normal({1, N, 1, e});
  heed::linear_attention(phi.view(), psi.view(), v.view(), out.view(),
                         heed::normalised{.epsilon = 0});
  heed::attention(q.view(), k.view(), v.view(), expected.view(), heed::causal{}, heed::scale{1});
  // The terms of exp(-9) are as large as exp(9).
  CHECK(largest_difference(out, expected) < 1e-16 * std::exp(18) * 10);
}

TEST_CASE("dynamical form: S6 with one rate is a kernel form", "[mechanism][identities]") {
  // phi(q_i) = C_i, psi(k_j) = step_j B_j e^(a tau_j), eta_i = e^(a tau_i), tau the sum of steps so far.
  drawn make;
  index_t const N = 25, n = 4, e = 3;
  double const a = 0.7;
  auto const u = make.normal({1, N, 1, e}), B = make.normal({1, N, 1, n}),
             C = make.normal({1, N, 1, n}), step = make.uniform({1, N, 1, 1}, 0, 1);
  auto out = make.normal({1, N, 1, e});
  std::vector<double> const rate{-a};
  heed::selective_scan(u.view(),
                       tensor_view<double const, 4>(step.view().data(), {1, N, 1, e}, {0, 1, 0, 0}),
                       tensor_view<double const, 3>(rate.data(), {1, e, n}, {0, 0, 0}), B.view(),
                       C.view(), out.view());
  for (index_t i = 0; i < N; ++i)
    for (index_t c = 0; c < e; ++c) {
      double sum = 0, tau = 0;
      for (index_t j = 0; j <= i; ++j) {
        double const step_j = step.view()(0, j, 0, 0);
        tau += step_j;
        double product = 0;
        for (index_t f = 0; f < n; ++f) product += C.view()(0, i, 0, f) * B.view()(0, j, 0, f);
        sum += product * step_j * std::exp(a * tau) * u.view()(0, j, 0, c);
      }
      CHECK(out.view()(0, i, 0, c) == Approx(sum / std::exp(a * tau)).margin(1e-12));
    }
}

TEST_CASE("dynamical form: S6's transition is a reversed sigmoid gate; the qLSTM",
          "[mechanism][identities]") {
  // e^(-softplus(x)) = sigmoid(-x).
  for (double x = -30; x < 30; x += 0.37)
    CHECK(std::exp(-reference::softplus(x)) == Approx(reference::sigmoid(-x)).epsilon(1e-14));

  // h_t = sigmoid(f_t) h_(t-1) + sigmoid(i_t) u_t, y_t = sigmoid(o_t) h_t is a diagonal scan; with f = -x its transition is that of
  // S6 with A = -1, and with the same input the state is the same.
  drawn make;
  index_t const N = 50, D = 7;
  auto const x = make.normal({1, N, 1, D}), input = make.normal({1, N, 1, D}),
             output = make.normal({1, N, 1, D}), u = make.normal({1, N, 1, D});
  auto const gate = [&](tensor const& of, double sign) {
    return make.make(of.extents(), [&](auto const& at) {
      return reference::sigmoid(sign * of.view()(0, at[1], 0, at[3]));
    });
  };
  auto const forget = gate(x, -1), in_gate = gate(input, 1), out_gate = gate(output, 1);
  auto in = make.make(u.extents(), [&](auto const& at) {
    return in_gate.view()(0, at[1], 0, at[3]) * u.view()(0, at[1], 0, at[3]);
  });
  auto h = make.normal({1, N, 1, D});
  heed::diagonal_scan(forget.view(), in.view(), h.view());
  for (index_t d = 0; d < D; ++d) {
    double state = 0;
    for (index_t t = 0; t < N; ++t) {
      state = forget.view()(0, t, 0, d) * state + in_gate.view()(0, t, 0, d) * u.view()(0, t, 0, d);
      CHECK(out_gate.view()(0, t, 0, d) * h.view()(0, t, 0, d) ==
            Approx(out_gate.view()(0, t, 0, d) * state).margin(1e-14));
    }
  }
  // S6 writes softplus(x) times its input.
  auto scaled = make.make(u.extents(), [&](auto const& at) {
    return in.view()(0, at[1], 0, at[3]) / reference::softplus(x.view()(0, at[1], 0, at[3]));
  });
  std::vector<double> const minus_one{-1}, ones(static_cast<std::size_t>(N), 1.0);
  auto out = make.normal({1, N, 1, D});
  tensor_view<double const, 4> const one(ones.data(), {1, N, 1, 1});
  heed::selective_scan(scaled.view(), x.view(),
                       tensor_view<double const, 3>(minus_one.data(), {1, D, 1}, {0, 0, 0}), one,
                       one, out.view(), heed::softplus_step());
  CHECK(largest_difference(out, h) < 1e-13);
}
