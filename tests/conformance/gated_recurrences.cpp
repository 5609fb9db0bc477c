// heed_conformance run delta_rule | efla | gated_linear_attention | transnormer | toeplitz_mixing: recurrences with gates and decays.
#include "recurrence_operands.hpp"

#include <heed/mechanism/efla.hpp>
#include <heed/mechanism/gated_linear_attention.hpp>
#include <heed/mechanism/lightning_attention.hpp>
#include <heed/mechanism/toeplitz_mixing.hpp>

namespace conformance {
namespace {

void run_delta_rule(arguments& given) {
  recurrence_operands c(given, {"drate", "dlog_gate"});
  auto rate = c.take<3>("rate", "drate");
  bool const gated = given.has("log_gate");
  operand<3> gate;
  if (gated) gate = c.take<3>("log_gate", "dlog_gate");
  heed::unit_features const unit{.after_silu = given.flag("silu"),
                                 .query_scale = scale_of(given, c.dim())};
  auto const state = c.state(c.dim(), c.columns());
  auto const run = [&](auto const& gate_at, auto const&... gates) {
    bool const backward = c.forward(
        [&] {
          heed::linear_attention(c.q.in(), c.k.in(), c.v.in(), c.out.view(), unit,
                                 heed::delta(rate.in()), c.run_on, gates...);
        },
        [&](index_t t, auto out) {
          std::apply(
              [&](auto const&... now) {
                heed::linear_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), out, state.view(),
                                            unit, heed::delta(rate.at(t)), c.run_on, now...);
              },
              gate_at(t));
        });
    if (!backward) return;
    heed::linear_attention_backward(c.q.in(), c.k.in(), c.v.in(), c.out.const_view(),
                                    c.dout().const_view(), c.q.to(), c.k.to(), c.v.to(), unit,
                                    heed::delta(rate.in(), rate.to()), c.run_on, gates...);
    c.write(c.q, c.k, c.v, rate);
    if (gated) c.write(gate);
  };
  if (gated)
    run([&](index_t t) { return std::tuple(heed::decay(gate.at(t))); },
        heed::decay(gate.in(), gate.to()));
  else
    run([](index_t) { return std::tuple(); });
}

void run_efla(arguments& given) {
  recurrence_operands c(given, {"drate"});
  auto rate = c.take<3>("rate", "drate");
  auto const queries =
      heed::for_queries(heed::unit_features{.query_scale = scale_of(given, c.dim())});
  auto const state = c.state(c.dim(), c.columns());
  bool const backward = c.forward(
      [&] {
        heed::linear_attention(c.q.in(), c.k.in(), c.v.in(), c.out.view(), queries,
                               heed::exact_delta(rate.in()), c.run_on);
      },
      [&](index_t t, auto out) {
        heed::linear_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), out, state.view(), queries,
                                    heed::exact_delta(rate.at(t)), c.run_on);
      });
  if (!backward) return;
  heed::linear_attention_backward(c.q.in(), c.k.in(), c.v.in(), c.out.const_view(),
                                  c.dout().const_view(), c.q.to(), c.k.to(), c.v.to(), queries,
                                  heed::exact_delta(rate.in(), rate.to()), c.run_on);
  c.write(c.q, c.k, c.v, rate);
}

void run_gla(arguments& given) {
  recurrence_operands c(given, {"dgate"});
  auto gate = c.take<4>("gate", "dgate");
  heed::scale const by{scale_of(given, c.dim())};
  auto const state = c.state(c.dim(), c.columns());
  bool const backward = c.forward(
      [&] {
        heed::gated_linear_attention(c.q.in(), c.k.in(), c.v.in(), gate.in(), c.out.view(), by,
                                     c.run_on);
      },
      [&](index_t t, auto out) {
        heed::gated_linear_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), gate.at(t), out,
                                          state.view(), by, c.run_on);
      });
  if (!backward) return;
  heed::gated_linear_attention_backward(c.q.in(), c.k.in(), c.v.in(), gate.in(), c.out.const_view(),
                                        c.dout().const_view(), c.q.to(), c.k.to(), c.v.to(),
                                        gate.to(), by, c.run_on);
  c.write(c.q, c.k, c.v, gate);
}

void run_transnormer(arguments& given) {
  recurrence_operands c(given, {"dgate", "dtheta"});
  auto gate = c.take<4>("gate", "dgate");
  auto const decays = given.input<double, 1>("log_decays");
  std::span<double const> const fading(decays.data(), static_cast<std::size_t>(decays.shape()[0]));
  operand<2> theta;
  heed::transnormer_features<double> map;
  if (given.has("theta")) {
    theta = c.take<2>("theta", "dtheta");
    map.positions = heed::lrpe<double>(theta.in(), theta.to());
  }
  tensor<double, 4> const attended(c.out.shape());
  auto const state = c.state(map.features(c.dim()), c.columns());
  bool const backward = c.forward(
      [&] {
        heed::transnormer(c.q.in(), c.k.in(), c.v.in(), gate.in(), attended.view(), c.out.view(),
                          fading, map, c.run_on);
      },
      [&](index_t t, auto out) {
        map.positions.offset = t;
        heed::transnormer_step(c.q.at(t), c.k.at(t), c.v.at(t), gate.at(t), out, state.view(),
                               fading, map, c.run_on);
      });
  if (!backward) return;
  heed::transnormer_backward(c.q.in(), c.k.in(), c.v.in(), gate.in(), attended.const_view(),
                             c.dout().const_view(), c.q.to(), c.k.to(), c.v.to(), gate.to(), fading,
                             map, c.run_on);
  c.write(c.q, c.k, c.v, gate);
  if (given.has("theta")) c.write(theta);
}

void run_toeplitz(arguments& given) {
  operand_call c(given, {"dx", "dread", "dwrite", "dlogits"}, "x");
  auto x = c.take<4>("x", "dx");
  auto read = c.take<2>("read", "dread"), write = c.take<2>("write", "dwrite"),
       logits = c.take<2>("logits", "dlogits");
  heed::toeplitz_mixer<double> const mixer{read.in(), write.in(), logits.in()};
  auto const& shape = x.value.shape();
  tensor<double, 4> const out(shape), state({shape[0], shape[2], read.value.shape()[1], shape[3]});
  if (c.what == verb::decode)
    for (index_t t = 0; t < shape[1]; ++t)
      heed::toeplitz_mix_step(x.at(t), mixer, out.view().slice(1, t, 1), state.view(), c.run_on);
  else
    heed::toeplitz_mix(x.in(), mixer, out.view(), c.run_on);
  given.output("o", out);
  if (c.what != verb::backward) return;
  heed::toeplitz_mix_backward(x.in(), mixer, out.const_view(), c.dout().const_view(), x.to(),
                              heed::toeplitz_gradients<double>{read.to(), write.to(), logits.to()},
                              c.run_on);
  c.write(x, read, write, logits);
}

mechanism_registration const delta_rule{{
    "delta_rule",
    recurrence_parameters(
        {{"rate", "drate", "[B, M, H_k]", "how much of the error is written"}},
        {optional_input("log_gate", "[B, M, H_k]", "log gates, at most 0: the gated delta rule"),
         gradient_of("dlog_gate", "[B, M, H_k]"),
         {"silu", kind::flag, "", "false", "keys and queries go through silu before their norm"},
         scale_parameter}),
    run_delta_rule,
}};
mechanism_registration const efla{{
    "efla",
    recurrence_parameters({{"rate", "drate", "[B, M, H_k]", "times, at least 0"}},
                          {scale_parameter}),
    run_efla,
}};
mechanism_registration const gated_linear_attention{{
    "gated_linear_attention",
    recurrence_parameters({{"gate", "dgate", "[B, M, H_k, D]", "before log(sigmoid) / 16"}},
                          {scale_parameter}),
    run_gla,
}};
mechanism_registration const transnormer{{
    "transnormer",
    recurrence_parameters(
        {{"gate", "dgate", "[B, N, H, D_v]", "multiplies the normed result"}},
        {{"log_decays", kind::input, "[H]", required, "log decays, at most 0"},
         optional_input("theta", "[H|1, D]", "angles of LRPE-d; none: no positions"),
         gradient_of("dtheta", "[H|1, D]")}),
    run_transnormer,
}};
mechanism_registration const toeplitz_mixing{{
    "toeplitz_mixing",
    operand_parameters({{"x", "dx", "[B, N, H, D]", "tokens"},
                        {"read", "dread", "[H, n]", "a"},
                        {"write", "dwrite", "[H, n]", "b"},
                        {"logits", "dlogits", "[H, n|1]", "of the decays"}},
                       "[B, N, H, D]", {}, "forward|backward|decode"),
    run_toeplitz,
}};

}  // namespace
}  // namespace conformance
