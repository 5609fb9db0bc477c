#include <heed/mechanism/lightning_attention.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

// Fixed decays, LRPE and the token mixer of TransNormerLLM, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::blank;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

template <class T>
struct mixer_problem : definition_check<T> {
  index_t B, N, M, H, D, E;
  bool turns;
  std::vector<T> decays;

  explicit mixer_problem(seed_t seed, bool as_many = false) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = dice.between(1, 2), N = dice.between(4, 40), M = as_many ? N : dice.between(4, 40);
    H = dice.between(1, 3), D = dice.between(2, 9), E = dice.between(2, 9);
    turns = dice.one_in(2);
    decays.resize(static_cast<std::size_t>(H));
    heed::lightning_decays<T>(dice.between(0, 3), 4, decays);
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, H, D});
    this->input("v", {B, M, H, E});
    this->input("gate", {B, N, H, E});
    if (turns)
      this->input("theta", {1, 1, dice.one_in(2) ? 1 : H, D},
                  [&] { return dice.uniform(0.01, 1); });
    this->output("out", {B, N, H, E});
  }

  heed::transnormer_features<T> map() {
    if (!turns) return {};
    auto const rows = [](auto view) {
      return tensor_view<typename decltype(view)::element_type, 2>(
          view.data(), {view.extent(2), view.extent(3)}, {view.stride(2), view.stride(3)});
    };
    return {heed::lrpe<T>(rows(this->in(4)), rows(this->din(4)))};
  }

  auto definition(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      auto const activated = [&](tensor<U, 4> const& x, index_t offset) {
        auto const phi = each(x, reference::silu<U>);
        return turns ? reference::turned(phi, in[4], true, {}, offset) : phi;
      };
      auto const q = activated(in[0], M - N), k = activated(in[1], 0);
      reference::recurrence_parts<U> parts;
      parts.log_gate = tensor<U, 4>({B, M, H, 1});
      for (index_t b = 0; b < B; ++b)
        for (index_t t = 0; t < M; ++t)
          for (index_t h = 0; h < H; ++h)
            parts.log_gate(b, t, h, 0) = U(decays[static_cast<std::size_t>(h)]);
      auto const o = by_pairs ? reference::gated_recurrence_by_pairs(q, k, in[2], parts)
                              : reference::gated_recurrence(q, k, in[2], parts);
      return tensors<U>{each(reference::rms_rows(o, 1e-6, true), in[3],
                             [](U const& x, U const& gate) { return x * gate; })};
    };
  }
};

}  // namespace

TEMPLATE_TEST_CASE("lightning attention: the token mixer and its gradients",
                   "[mechanism][lightning]", double, float) {
  for_each_seed("transnormer", 50, [](seed_t seed) {
    mixer_problem<TestType> p(seed);
    auto attended = blank<TestType, 4>({p.B, p.N, p.H, p.E});
    std::span<TestType const> const decays(p.decays);
    heed::transnormer(p.in(0), p.in(1), p.in(2), p.in(3), attended.view(), p.out(0), decays,
                      p.map());
    heed::transnormer_backward(p.in(0), p.in(1), p.in(2), p.in(3), attended.view(), p.dout(0),
                               p.din(0), p.din(1), p.din(2), p.din(3), decays, p.map());
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lightning attention: steps of the token mixer", "[mechanism][lightning]") {
  for_each_seed("transnormer step", 40, [](seed_t seed) {
    mixer_problem<float> p(seed, true);
    auto state = blank<float, 4>({p.B, p.H, p.map().features(p.D), p.E});
    state.fill([](auto const&) { return 0.0f; });
    for (index_t t = 0; t < p.N; ++t) {
      auto map = p.map();
      map.positions.offset = t;
      heed::transnormer_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1), p.in(2).slice(1, t, 1),
                             p.in(3).slice(1, t, 1), p.out(0).slice(1, t, 1), state.view(),
                             std::span<float const>(p.decays), map);
    }
    return p.forward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lightning attention: decays of the released models", "[mechanism][lightning]") {
  std::vector<double> eight(8), six(6);
  heed::lightning_decays<double>(0, 24, eight);
  for (std::size_t h = 0; h < 8; ++h)
    CHECK(eight[h] == Approx(-std::exp2(-double(h + 1)) * (1 + 1e-5)).epsilon(1e-14));
  heed::lightning_decays<double>(23, 24, eight);
  CHECK(eight[0] == Approx(-0.5e-5).epsilon(1e-10));
  // Six heads: the four slopes of four heads, then the first and third of eight.
  heed::lightning_decays<double>(12, 25, six);
  double const slopes[] = {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125};
  for (std::size_t h = 0; h < 6; ++h)
    CHECK(six[h] == Approx(-slopes[h] * (0.5 + 1e-5)).epsilon(1e-13));
  heed::lightning_paper_decays<double>(1, 4, eight);
  for (std::size_t h = 0; h < 8; ++h) CHECK(eight[h] == Approx(-double(h) * 0.75).epsilon(1e-14));
  CHECK(eight[0] == 0);
  heed::retention_decays<double>(eight);
  for (std::size_t h = 0; h < 8; ++h)
    CHECK(std::exp(eight[h]) == Approx(1 - std::exp2(-5 - double(h))).epsilon(1e-14));
  CHECK_THROWS_WITH(heed::lightning_decays<double>(24, 24, eight),
                    "heed: layer 24 of 24; expected one of the layers from 0 on");
  // A model of one layer.
  heed::lightning_decays<double>(0, 1, eight);
  CHECK(eight[0] == Approx(-0.500005));
}

TEST_CASE("lightning attention: without decay it is linear attention", "[mechanism][lightning]") {
  support::random draw(2);
  auto const q = support::normal<double>(draw, {1, 30, 1, 4}),
             k = support::normal<double>(draw, {1, 30, 1, 4}),
             v = support::normal<double>(draw, {1, 30, 1, 3});
  auto plain = blank<double, 4>({1, 30, 1, 3}), faded = blank<double, 4>({1, 30, 1, 3});
  double const none[] = {0.0};
  heed::linear_attention(q.view(), k.view(), v.view(), plain.view());
  heed::linear_attention(q.view(), k.view(), v.view(), faded.view(),
                         heed::fixed_decay(std::span<double const>(none)));
  CHECK(support::difference(plain.values<double>(), faded.values<double>()) < 1e-13);
}

TEST_CASE("lightning attention: a long sequence with a strong decay stays finite",
          "[mechanism][lightning]") {
  // lambda^-t is no number after 700 tokens here.
  constexpr index_t N = 3000;
  std::vector<float> ones(N, 1.0f), out(N);
  float const decay[] = {-1.0f};
  auto const rows = [](std::vector<float>& x) { return heed::bnhd(x.data(), 1, N, 1, 1); };
  heed::linear_attention(rows(ones), rows(ones), rows(ones), rows(out),
                         heed::fixed_decay(std::span<float const>(decay)));
  CHECK(out[0] == 1);
  for (std::size_t t : {20u, 699u, 701u, 2999u}) CHECK(out[t] == Approx(1 / (1 - std::exp(-1.0))));
}

TEMPLATE_TEST_CASE("lrpe: the definition on sequences and grids", "[mechanism][lightning]", double,
                   float) {
  for_each_seed("lrpe", 100, [](seed_t seed) {
    definition_check<TestType> p(seed);
    auto& draw = p.draw;
    bool const complex = draw.one_in(2);
    std::vector<index_t> grid;
    index_t N = 1;
    for (index_t axis = draw.between(0, 3); axis > 0; --axis) {
      grid.push_back(draw.between(1, 6));
      N *= grid.back();
    }
    if (grid.empty()) N = draw.between(1, 90);
    index_t const offset = grid.empty() ? draw.between(0, 1000) : 0,
                  axes = std::max<index_t>(1, index_t(grid.size()));
    index_t const D = 2 * axes * draw.between(1, 5), A = D / axes / (complex ? 1 : 2),
                  H = draw.between(1, 2);
    p.input("x", {1, N, H, D});
    p.input("theta", {1, 1, draw.one_in(2) ? 1 : H, A}, [&] { return draw.uniform(0.001, 1); });
    p.output("phi", {1, N, H, complex ? 2 * D : D});
    auto const theta = [](auto view) {
      return tensor_view<typename decltype(view)::element_type, 2>(
          view.data(), {view.extent(2), view.extent(3)}, {view.stride(2), view.stride(3)});
    };
    heed::lrpe<TestType> map(theta(p.in(1)), theta(p.din(1)));
    map.form = complex ? heed::lrpe_form::complex : heed::lrpe_form::rotating;
    map.offset = offset;
    map.grid = grid;
    heed::serial const here;
    heed::any_executor const run_on(here);
    heed::feature_map_view<TestType> const view(map);
    auto phi = blank<TestType, 4>(p.out(0).extents()),
         dphi = blank<TestType, 4>(p.out(0).extents()),
         nothing = blank<TestType, 4>({1, 0, H, complex ? 2 * D : D});
    heed::source<TestType> const x(p.in(0));
    heed::recur::write_features(run_on, view, heed::side::key, x, 0, phi.view());
    dphi.fill([&](auto const& at) { return p.dout(0)(at[0], at[1], at[2], at[3]); });
    support::for_each_index(phi.extents(), [&](auto const& at) {
      p.out(0)(at[0], at[1], at[2], at[3]) = phi.view()(at[0], at[1], at[2], at[3]);
    });
    heed::recur::write_feature_gradient(run_on, view, heed::side::key, x, 0, phi.view(),
                                        dphi.view(), heed::sink<TestType>(p.din(0)));
    heed::recur::write_angle_gradient(run_on, map, D, 0, nothing.view(), nothing.view(), phi.view(),
                                      dphi.view());
    auto const definition = [&]<class U>(tensors<U> const& in) {
      return tensors<U>{reference::turned(in[0], in[1], complex, grid, offset)};
    };
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("lrpe: products depend on the distance only", "[mechanism][lightning]") {
  constexpr index_t N = 200, D = 6;
  support::random draw(3);
  auto row = support::normal<double>(draw, {1, 1, 1, D});
  auto angles = blank<double, 2>({1, D});
  heed::lrpe_angles(angles.view());
  CHECK(angles.view()(0, 0) == 1);
  CHECK(angles.view()(0, 1) == Approx(std::pow(10000.0, -1.0 / 3)));
  tensor_view<double, 4> const same(row.view().data(), {1, N, 1, D}, {0, 0, 0, 1});
  for (auto form : {heed::lrpe_form::complex, heed::lrpe_form::rotating}) {
    heed::lrpe map(angles.view());
    map.form = form;
    auto phi = blank<double, 4>({1, N, 1, map.features(D)});
    heed::serial const here;
    heed::recur::write_features(heed::any_executor(here), heed::feature_map_view<double>(map),
                                heed::side::key, heed::source<double>(same), 0, phi.view());
    auto const product = [&](index_t i, index_t j) {
      double sum = 0;
      for (index_t f = 0; f < phi.extents()[3]; ++f)
        sum += phi.view()(0, i, 0, f) * phi.view()(0, j, 0, f);
      return sum;
    };
    for (index_t distance : {0, 1, 33, 150}) {
      double expected = 0;
      for (index_t d = 0; d < D; ++d) {
        index_t const angle = form == heed::lrpe_form::complex ? d : d / 2;
        double const x = row.view()(0, 0, 0, d);
        expected += x * x * std::cos(angles.view()(0, angle) * double(distance));
      }
      CHECK(product(distance, 0) == Approx(expected).epsilon(1e-12));
      CHECK(product(distance + 40, 40) == Approx(expected).epsilon(1e-12));
    }
  }
}

TEST_CASE("lightning attention: what does not fit is refused", "[mechanism][lightning]") {
  float numbers[200] = {};
  auto const rows = [&](index_t n, index_t d) { return heed::bnhd(numbers, 1, n, 2, d); };
  float decays[2] = {-1, -1};
  std::span<float> const fading(decays);
  heed::transnormer_features<float> const plain;
  CHECK_THROWS_WITH(heed::transnormer(rows(3, 4), rows(3, 4), rows(3, 5), rows(3, 4), rows(3, 5),
                                      rows(3, 5), fading, plain),
                    "heed: gate has shape [1, 3, 2, 4]; expected that of out, [1, 3, 2, 5]");
  heed::transnormer_features<float> const turned{
      heed::lrpe<float>(tensor_view<float, 2>(numbers, {2, 3}))};
  CHECK_THROWS_WITH(heed::transnormer(rows(3, 4), rows(3, 4), rows(3, 5), rows(3, 5), rows(3, 5),
                                      rows(3, 5), fading, turned),
                    "heed: lrpe.theta has shape [2, 3]; expected [1 or 2, 4 or more] (head, "
                    "angle), and 2 key heads unless 1");
}
