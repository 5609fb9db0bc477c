#include <heed/mechanism/gated_linear_attention.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"

// Gated linear attention with its gate and its epilogue, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::definition_check;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class T>
struct gla_problem : definition_check<T> {
  index_t B, N, M, H, keys, D, E;

  explicit gla_problem(seed_t seed, bool aligned = false) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = dice.between(1, 2), N = dice.between(4, 40), M = aligned ? N : dice.between(4, 40);
    keys = dice.between(1, 2), H = 2 * keys, D = dice.between(2, 9), E = dice.between(1, 9);
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, keys, D});
    this->input("v", {B, M, keys, E});
    this->input("gate", {B, M, keys, D}, [&] { return 3 * dice.normal(); });
    this->output("out", {B, N, H, E});
  }

  template <class U>
  tensors<U> definition(tensors<U> const& in, bool by_pairs) const {
    reference::recurrence_parts<U> parts;
    parts.scale = U(1 / std::sqrt(double(D)));
    parts.log_gate = each(in[3], [](U const& x) { return -reference::softplus(-x) / U(16); });
    return {by_pairs ? reference::gated_recurrence_by_pairs(in[0], in[1], in[2], parts)
                     : reference::gated_recurrence(in[0], in[1], in[2], parts)};
  }
  std::string forward_complaint() {
    return this->forward([&](auto const& in) { return definition(in, false); },
                         [&](auto const& in) { return definition(in, true); });
  }
  std::string backward_complaint() {
    return this->backward([&](auto const& in) { return definition(in, false); },
                          [&](auto const& in) { return definition(in, true); });
  }
};

}  // namespace

TEMPLATE_TEST_CASE("gated linear attention: the definition and its gradients",
                   "[mechanism][gated_linear_attention]", double, float) {
  for_each_seed("gla", 60, [](seed_t seed) {
    gla_problem<TestType> p(seed);
    heed::gated_linear_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.out(0));
    heed::gated_linear_attention_backward(p.in(0), p.in(1), p.in(2), p.in(3), p.saved(0), p.dout(0),
                                          p.din(0), p.din(1), p.din(2), p.din(3));
    return p.forward_complaint() + p.backward_complaint();
  });
}

TEMPLATE_TEST_CASE("gated linear attention: steps", "[mechanism][gated_linear_attention]", float,
                   Eigen::bfloat16) {
  for_each_seed("gla step", 60, [](seed_t seed) {
    gla_problem<TestType> p(seed, true);
    support::guarded<float, 4> state({p.B, p.keys, p.D, p.E},
                                     support::packed<4>({p.B, p.keys, p.D, p.E}));
    state.fill([](auto const&) { return 0.0f; });
    for (index_t t = 0; t < p.N; ++t)
      heed::gated_linear_attention_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1),
                                        p.in(2).slice(1, t, 1), p.in(3).slice(1, t, 1),
                                        p.out(0).slice(1, t, 1), state.view());
    return p.forward_complaint();
  });
}

TEMPLATE_TEST_CASE("gated linear attention: its epilogue", "[mechanism][gated_linear_attention]",
                   double, float) {
  for_each_seed("gla epilogue", 60, [](seed_t seed) {
    definition_check<TestType> p(seed);
    support::extents_of<4> const shape{2, p.draw.between(1, 40), 2, p.draw.between(2, 20)};
    p.input("attended", shape);
    p.input("gate", shape);
    p.output("out", shape);
    heed::gla_output(p.in(0), p.in(1), p.out(0));
    heed::gla_output_backward(p.in(0), p.in(1), p.dout(0), p.din(0), p.din(1));
    auto const definition = []<class U>(tensors<U> const& in) {
      return tensors<U>{each(reference::rms_rows(in[0], 1e-6, false), in[1],
                             [](U const& x, U const& gate) { return x * reference::silu(gate); })};
    };
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("gated linear attention: gates of any number are log gates",
          "[mechanism][gated_linear_attention]") {
  float x[5] = {-1e30f, -100, 0, 100, 1e30f}, g[5], dg[5] = {1, 1, 1, 1, 1}, dx[5];
  auto const view = [](float* data) { return tensor_view<float, 3>(data, {1, 1, 5}); };
  heed::log_sigmoid_gate(view(x), view(g), 16);
  heed::log_sigmoid_gate_backward(view(x), view(dg), view(dx), 16);
  CHECK(g[0] == -6.25e28f);
  CHECK(g[1] == -6.25f);
  CHECK(g[2] == Approx(-std::log(2.0) / 16));
  CHECK((g[3] <= 0 && g[3] > -1e-30f));
  CHECK(g[4] == 0);
  CHECK((dx[0] == 0.0625f && dx[2] == Approx(0.03125) && dx[4] == 0));
}

TEST_CASE("gated linear attention: what does not fit is refused",
          "[mechanism][gated_linear_attention]") {
  float numbers[400] = {};
  auto const rows = [&](index_t n, index_t d) { return heed::bnhd(numbers, 1, n, 2, d); };
  CHECK_THROWS_WITH(heed::gated_linear_attention_backward(
                        rows(4, 3), rows(4, 3), rows(4, 5), rows(4, 3), rows(4, 5), rows(4, 5),
                        rows(4, 3), rows(4, 3), rows(4, 5), rows(4, 2)),
                    "heed: dgate has shape [1, 4, 2, 2]; expected that of gate, [1, 4, 2, 3]");
  CHECK_THROWS_AS(
      heed::gated_linear_attention(rows(4, 3), rows(4, 3), rows(4, 5), rows(3, 3), rows(4, 5)),
      heed::error);
  CHECK_THROWS_WITH(heed::log_sigmoid_gate(rows(4, 3), rows(4, 3), 0),
                    "heed: temperature is 0.000000; expected a number above 0");
}
