// heed_conformance run lightnet | flow_attention | gated_slot_attention | abc | lizard: recurrences whose gates or weights come
// from sums over the sequence, and pairs of branches.
#include "recurrence_operands.hpp"

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/flow_attention.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>
#include <heed/mechanism/lightnet.hpp>
#include <heed/mechanism/lizard.hpp>

namespace conformance {
namespace {

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

}  // namespace
}  // namespace conformance
