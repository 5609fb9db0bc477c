// heed_conformance run delta_rule | efla | gated_linear_attention | transnormer | lightnet | flow_attention | gated_slot_attention |
// abc | lizard | toeplitz_mixing: recurrences with gates, and the layers around them.
#include "operand_call.hpp"

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/efla.hpp>
#include <heed/mechanism/flow_attention.hpp>
#include <heed/mechanism/gated_linear_attention.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>
#include <heed/mechanism/lightnet.hpp>
#include <heed/mechanism/lightning_attention.hpp>
#include <heed/mechanism/lizard.hpp>
#include <heed/mechanism/toeplitz_mixing.hpp>

namespace conformance {
namespace {

using heed::tensor_view;

/// Queries, keys and values, and a result.
struct recurrence_operands : operand_call {
  operand<4> q, k, v;
  tensor<double, 4> out;

  recurrence_operands(arguments& from, std::vector<std::string_view> gradients = {})
      : operand_call(from, gradients, "q"),
        q(take<4>("q", "dq")),
        k(take<4>("k", "dk")),
        v(take<4>("v", "dv")),
        out({q.value.shape()[0], q.value.shape()[1], q.value.shape()[2], v.value.shape()[3]}) {}

  /// Heads of states, if gates and rates have no more.
  index_t state_heads() const { return std::max(k.value.shape()[2], v.value.shape()[2]); }
  tensor<double, 4> state(index_t features, index_t columns) const {
    return tensor<double, 4>({q.value.shape()[0], state_heads(), features, columns});
  }
  index_t dim() const { return k.value.shape()[3]; }
  index_t columns() const { return v.value.shape()[3]; }

  /// Token by token if decoding was asked for, else at once; true if gradients are to follow.
  template <class Whole, class Step>
  bool forward(Whole const& whole, Step const& step) {
    if (what == verb::decode) {
      require(q.value.shape()[1] == k.value.shape()[1],
              [] { return "decoding is of calls with as many keys as queries"; });
      for (index_t t = 0; t < q.value.shape()[1]; ++t) step(t, out.view().slice(1, t, 1));
    } else {
      whole();
    }
    given.output("o", out);
    return what == verb::backward;
  }
};

std::vector<parameter> recurrence_parameters(std::vector<operand_parameter> own,
                                             std::vector<parameter> more,
                                             std::string_view verbs = "forward|backward|decode") {
  std::vector<operand_parameter> operands{{"q", "dq", "[B, N, H, D]", "queries"},
                                          {"k", "dk", "[B, M, H_k, D]", "keys; H_k divides H"},
                                          {"v", "dv", "[B, M, H_v, D_v]", "values; H_v divides H"}};
  operands.insert(operands.end(), own.begin(), own.end());
  return operand_parameters(operands, "[B, N, H, D_v]", std::move(more), verbs);
}
parameter const scale_parameter{"scale", kind::number, "", "1/sqrt(D)", "factor of q.k"};

double scale_of(arguments const& given, index_t dim, double otherwise = 0) {
  if (given.has("scale")) return given.number("scale");
  return otherwise != 0 ? otherwise : 1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)));
}

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

void run_lightnet(arguments& given) {
  recurrence_operands c(given);
  heed::scale const by{scale_of(given, c.dim(), 1)};
  bool const single = given.choice("order") == "single_scan";
  auto const state = c.state(c.dim(), c.columns());
  tensor<double, 3> const total({c.q.value.shape()[0], c.k.value.shape()[2], c.dim()});
  heed::lightnet_state<double> const held{state.view(), total.view()};
  held.clear();
  bool const backward = c.forward(
      [&] {
        if (single)
          heed::lightnet_single_scan(c.q.in(), c.k.in(), c.v.in(), c.out.view(), by, c.run_on);
        else
          heed::lightnet(c.q.in(), c.k.in(), c.v.in(), c.out.view(), by, c.run_on);
      },
      [&](index_t t, auto out) {
        require(!single, [] { return "decoding is of order=causal"; });
        heed::lightnet_step(c.q.at(t), c.k.at(t), c.v.at(t), out, held, by, c.run_on);
      });
  if (!backward) return;
  auto const dout = c.dout();
  auto const run = [&](auto const& differentiate) {
    differentiate(c.q.in(), c.k.in(), c.v.in(), c.out.const_view(), dout.const_view(), c.q.to(),
                  c.k.to(), c.v.to(), by, c.run_on);
  };
  single ? run([](auto... all) { heed::lightnet_single_scan_backward(all...); })
         : run([](auto... all) { heed::lightnet_backward(all...); });
  c.write(c.q, c.k, c.v);
}

void run_flow_attention(arguments& given) {
  recurrence_operands c(given);
  heed::flow_options const how{given.number("clamp"), given.flag("relu")};
  bool const causal = given.choice("order") == "causal";
  index_t const B = c.q.value.shape()[0], H = c.q.value.shape()[2];
  auto const memory = tensor<double, 4>({B, H, c.dim(), c.columns()});
  tensor<double, 4> const sums({B, H, 4, c.dim()});
  tensor<double, 3> const counts({B, H, 2});
  heed::flow_state<double> const held{memory.view(), sums.view(), counts.view()};
  held.clear();
  bool const backward = c.forward(
      [&] {
        if (causal)
          heed::causal_flow_attention(c.q.in(), c.k.in(), c.v.in(), c.out.view(), how, c.run_on);
        else
          heed::flow_attention(c.q.in(), c.k.in(), c.v.in(), c.out.view(), how, c.run_on);
      },
      [&](index_t t, auto out) {
        require(causal, [] { return "decoding is of order=causal"; });
        heed::causal_flow_attention(c.q.at(t), c.k.at(t), c.v.at(t), out, held, how, c.run_on);
      });
  if (!backward) return;
  auto const dout = c.dout();
  auto const run = [&](auto const& differentiate) {
    differentiate(c.q.in(), c.k.in(), c.v.in(), c.out.const_view(), dout.const_view(), c.q.to(),
                  c.k.to(), c.v.to(), how, c.run_on);
  };
  causal ? run([](auto... all) { heed::causal_flow_attention_backward(all...); })
         : run([](auto... all) { heed::flow_attention_backward(all...); });
  c.write(c.q, c.k, c.v);
}

void run_gsa(arguments& given) {
  recurrence_operands c(given, {"dstrength", "dlog_gate"});
  auto strength = c.take<4>("strength", "dstrength");
  auto gate = c.take<4>("log_gate", "dlog_gate");
  heed::scale const by{scale_of(given, c.dim())};
  index_t const slots = strength.value.shape()[3];
  auto const keys = c.state(c.dim(), slots), values = c.state(slots, c.columns());
  heed::slot_state<double> const held{keys.view(), values.view()};
  bool const backward = c.forward(
      [&] {
        heed::gated_slot_attention(c.q.in(), c.k.in(), c.v.in(), strength.in(), gate.in(),
                                   c.out.view(), by, c.run_on);
      },
      [&](index_t t, auto out) {
        heed::gated_slot_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), strength.at(t), gate.at(t),
                                        out, held, by, c.run_on);
      });
  if (!backward) return;
  heed::gated_slot_attention_backward(c.q.in(), c.k.in(), c.v.in(), strength.in(), gate.in(),
                                      c.out.const_view(), c.dout().const_view(), c.q.to(), c.k.to(),
                                      c.v.to(), strength.to(), gate.to(), by, c.run_on);
  c.write(c.q, c.k, c.v, strength, gate);
}

void run_abc(arguments& given) {
  recurrence_operands c(given, {"dcontrol", "dvalue_control"});
  auto control = c.take<4>("control", "dcontrol");
  heed::scale const by{scale_of(given, c.dim())};
  index_t const slots = control.value.shape()[3];
  bool const causal = given.choice("order") == "causal";
  require(causal != given.has("value_control"),
          [] { return "value_control is of order=dense, and needed there"; });
  operand<4> values_control;
  if (!causal) values_control = c.take<4>("value_control", "dvalue_control");
  auto const keys = c.state(c.dim(), slots), values = c.state(slots, c.columns());
  tensor<double, 3> const total({c.q.value.shape()[0], control.value.shape()[2], slots});
  heed::slot_state<double> const held{keys.view(), values.view(), total.view()};
  held.clear();
  bool const backward = c.forward(
      [&] {
        if (causal)
          heed::abc_attention(c.q.in(), c.k.in(), c.v.in(), control.in(), c.out.view(), by,
                              c.run_on);
        else
          heed::abc_cross_attention(c.q.in(), c.k.in(), c.v.in(), control.in(), values_control.in(),
                                    c.out.view(), by, c.run_on);
      },
      [&](index_t t, auto out) {
        require(causal, [] { return "decoding is of order=causal"; });
        heed::abc_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), control.at(t), out, held, by,
                                 c.run_on);
      });
  if (!backward) return;
  auto const dout = c.dout();
  if (causal) {
    heed::abc_attention_backward(c.q.in(), c.k.in(), c.v.in(), control.in(), c.out.const_view(),
                                 dout.const_view(), c.q.to(), c.k.to(), c.v.to(), control.to(), by,
                                 c.run_on);
  } else {
    heed::abc_cross_attention_backward(c.q.in(), c.k.in(), c.v.in(), control.in(),
                                       values_control.in(), c.out.const_view(), dout.const_view(),
                                       c.q.to(), c.k.to(), c.v.to(), control.to(),
                                       values_control.to(), by, c.run_on);
    c.write(values_control);
  }
  c.write(c.q, c.k, c.v, control);
}

void run_lizard(arguments& given) {
  recurrence_operands c(given, {"dgate", "dquery_weights", "dkey_weights", "dalpha", "dsinks"});
  auto gate = c.take<4>("gate", "dgate");
  auto query_weights = c.take<3>("query_weights", "dquery_weights");
  auto key_weights = c.take<3>("key_weights", "dkey_weights");
  auto alpha = c.take<1>("alpha", "dalpha");
  operand<2> sinks;
  auto const span_of = [](auto* data, index_t count) {
    return std::span(data, static_cast<std::size_t>(count));
  };
  index_t const heads = alpha.value.shape()[0], window = given.integer("window");
  heed::lizard_parameters<double> with{
      query_weights.in(), key_weights.in(),
      span_of(static_cast<double const*>(alpha.value.data()), heads), window};
  heed::lizard_gradients<double> to{query_weights.to(), key_weights.to(),
                                    span_of(alpha.slope.data(), heads)};
  with.normalised = !given.flag("unnormalised");
  if (given.has("sinks")) {
    sinks = c.take<2>("sinks", "dsinks");
    with.sinks = sinks.in();
    to.sinks = sinks.to();
  }
  tensor<double, 4> const gated(c.out.shape()), windowed(c.out.shape());
  tensor<double, 3> const lse({c.out.shape()[0], c.out.shape()[2], c.out.shape()[1]});
  heed::lizard_branches<double> const branches{gated.view(), windowed.view(), lse.view()};
  heed::scale const by{scale_of(given, c.dim())};
  index_t const B = c.q.value.shape()[0], keys = c.k.value.shape()[2];
  auto const memory =
      c.state(2 * key_weights.value.shape()[2], c.columns() + (with.normalised ? 1 : 0));
  tensor<double, 2> const largest({B, keys});
  heed::lizard_state<double> const held{memory.view(), largest.view()};
  held.clear();
  tensor<double, 4> const ring_keys({B, std::max<index_t>(window, 1), keys, c.dim()}),
      ring_values({B, std::max<index_t>(window, 1), c.v.value.shape()[2], c.columns()});
  heed::ring_cache<double> ring(ring_keys.view(), ring_values.view(), 0);
  bool const backward = c.forward(
      [&] {
        heed::lizard_attention(c.q.in(), c.k.in(), c.v.in(), gate.in(), with, branches,
                               c.out.view(), by, c.run_on);
      },
      [&](index_t t, auto out) {
        heed::lizard_attention_step(c.q.at(t), c.k.at(t), c.v.at(t), gate.at(t), with, held, ring,
                                    out, by, c.run_on);
      });
  if (!backward) return;
  heed::lizard_attention_backward(c.q.in(), c.k.in(), c.v.in(), gate.in(), with, branches,
                                  c.dout().const_view(), c.q.to(), c.k.to(), c.v.to(), gate.to(),
                                  to, by, c.run_on);
  c.write(c.q, c.k, c.v, gate);
  c.write(query_weights, key_weights, alpha);
  if (given.has("sinks")) c.write(sinks);
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

parameter optional_input(std::string_view name, std::string_view shape, std::string_view meaning) {
  return {name, kind::input, shape, "none", meaning};
}
parameter gradient_of(std::string_view name, std::string_view shape) {
  return {name, kind::output, shape, "none", "gradient of the loss by the operand without d"};
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
mechanism_registration const lightnet{{
    "lightnet",
    recurrence_parameters({}, {{"scale", kind::number, "", "1", "factor of the result"},
                               {"order", kind::choice, "causal|single_scan", "causal",
                                "single_scan: every query reads the last state"}}),
    run_lightnet,
}};
mechanism_registration const flow_attention{{
    "flow_attention",
    recurrence_parameters(
        {}, {{"clamp", kind::number, "", "1", "bound of the competition among sources"},
             {"relu", kind::flag, "", "false", "relu(x) + 1e-6 for sigmoid(x)"},
             {"order", kind::choice, "causal|dense", "dense", "causal: sums over the past"}}),
    run_flow_attention,
}};
mechanism_registration const gated_slot_attention{{
    "gated_slot_attention",
    recurrence_parameters(
        {{"strength", "dstrength", "[B, M, H_k, slots]", "of writing to each slot"},
         {"log_gate", "dlog_gate", "[B, M, H_k, slots]", "log gates of the slots, at most 0"}},
        {scale_parameter}),
    run_gsa,
}};
mechanism_registration const abc{{
    "abc",
    recurrence_parameters(
        {{"control", "dcontrol", "[B, M, H_c, slots]",
          "control of the slots; dense: of their keys"}},
        {optional_input("value_control", "[B, M, H_c, slots]", "dense: control of their values"),
         gradient_of("dvalue_control", "[B, M, H_c, slots]"),
         {"order", kind::choice, "causal|dense", "causal", "dense: averages over all keys"},
         scale_parameter}),
    run_abc,
}};
mechanism_registration const lizard{{
    "lizard",
    recurrence_parameters(
        {{"gate", "dgate", "[B, M, H_k, 1|width]", "before the sigmoid"},
         {"query_weights", "dquery_weights", "[H|1, D, width]", "the map of queries"},
         {"key_weights", "dkey_weights", "[H_k|1, D, width]", "the map of keys"},
         {"alpha", "dalpha", "[H]", "factor of the windowed branch"}},
        {{"window", kind::integer, "", required, "keys of the windowed branch"},
         optional_input("sinks", "[H, sinks]", "logits without values"),
         gradient_of("dsinks", "[H, sinks]"),
         {"unnormalised", kind::flag, "", "false", "the gated branch is not divided"},
         scale_parameter}),
    run_lizard,
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
