// heed_conformance run linear_attention: the gated linear recurrence with all its clauses.
#include "operand_call.hpp"

#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/linear_attention.hpp>

#include <algorithm>
#include <limits>

namespace conformance {
namespace {

using heed::tensor_view;

/// A feature map chosen by name.
struct named_map {
  enum { identity, elu1, relu, relu2, exp, silu, sigmoid } which = identity;

  static named_map of(std::string_view name) {
    constexpr std::string_view names[] = {"identity", "elu1", "relu",   "relu2",
                                          "exp",      "silu", "sigmoid"};
    auto const at = std::find(std::begin(names), std::end(names), name) - std::begin(names);
    return {static_cast<decltype(which)>(at)};
  }

  static index_t features(index_t dim) { return dim; }
  template <class T, class... To>
  void apply(heed::side of, heed::feature_rows<T> const& x, To... to) const {
    visit([&](auto const& map) { map.apply(of, x, to...); });
  }
  template <class T, class... Rest>
  void differentiate(heed::side of, heed::feature_rows<T> const& x, Rest... rest) const {
    visit([&](auto const& map) { map.differentiate(of, x, rest...); });
  }

 private:
  template <class F>
  void visit(F const& f) const {
    switch (which) {
      case identity:
        return f(heed::identity{});
      case elu1:
        return f(heed::elu_plus_one{});
      case relu:
        return f(heed::relu{});
      case relu2:
        return f(heed::squared_relu{});
      case exp:
        return f(heed::exponential{});
      case silu:
        return f(heed::silu{});
      case sigmoid:
        return f(heed::sigmoid{});
    }
  }
};

/// An operand, or none.
template <int Rank>
operand<Rank> take_if_given(operand_call& call, std::string_view name, std::string_view gradient) {
  return call.given.has(name) ? call.take<Rank>(name, gradient) : operand<Rank>{gradient, {}, {}};
}

struct recurrence : operand_call {
  operand<4> q, k, v;
  operand<3> gate, rate;
  operand<4> key_gate, value_gate;
  named_map map;
  index_t heads, states;
  bool normalised, dense, exact;
  tensor<double, 4> out;
  operand<4> state;
  tensor<double, 4> final, dfinal, dout;

  explicit recurrence(arguments& from)
      : operand_call(
            from, {"dlog_gate", "dlog_key_gate", "dlog_value_gate", "drate", "dinitial", "dfinal"},
            "q"),
        q(take<4>("q", "dq")),
        k(take<4>("k", "dk")),
        v(take<4>("v", "dv")),
        gate(take_if_given<3>(*this, "log_gate", "dlog_gate")),
        rate(take_if_given<3>(*this, "rate", "drate")),
        key_gate(take_if_given<4>(*this, "log_key_gate", "dlog_key_gate")),
        value_gate(take_if_given<4>(*this, "log_value_gate", "dlog_value_gate")),
        map(named_map::of(given.choice("map"))),
        states(std::max({k.value.shape()[2], v.value.shape()[2], gate.value.shape()[2],
                         rate.value.shape()[2], key_gate.value.shape()[2],
                         value_gate.value.shape()[2]})),
        normalised(given.flag("normalised")),
        dense(given.flag("dense")),
        exact(given.choice("rule") == "exact_delta") {
    heads = given.has("heads") ? given.integer("heads") : std::max(q.value.shape()[2], states);
    require((given.choice("rule") != "add") == given.has("rate"),
            [] { return "rate= is of the rules delta and exact_delta"; });
    out = tensor<double, 4>({q.value.shape()[0], q.value.shape()[1], heads, v.value.shape()[3]});
    tensor<double, 4>::shape_type const of_states{sequences(), states, k.value.shape()[3],
                                                  v.value.shape()[3] + (normalised ? 1 : 0)};
    state = given.has("initial") ? take<4>("initial", "dinitial")
                                 : operand<4>{"dinitial", tensor<double, 4>(of_states),
                                              tensor<double, 4>(of_states)};
    final = tensor<double, 4>(of_states);
    for (auto const& [name, operand_name] : {std::pair{"dlog_gate", "log_gate"},
                                             {"dlog_key_gate", "log_key_gate"},
                                             {"dlog_value_gate", "log_value_gate"},
                                             {"drate", "rate"}})
      require(!given.has(name) || given.has(operand_name), [&, name = name, of = operand_name] {
        return std::string(name) + " needs " + of + "=";
      });
    if (what == verb::backward) dout = operand_call::dout();
    dfinal = given.has("dfinal") ? given.input<double, 4>("dfinal") : tensor<double, 4>(of_states);
  }

  std::vector<index_t> query_offsets =
      given.has("cu_seqlens_q") ? given.integers("cu_seqlens_q") : std::vector<index_t>();
  std::vector<index_t> key_offsets =
      given.has("cu_seqlens_k") ? given.integers("cu_seqlens_k") : std::vector<index_t>();
  index_t sequences() const {
    return query_offsets.empty() ? q.value.shape()[0]
                                 : static_cast<index_t>(query_offsets.size()) - 1;
  }
};

// Which gates and which rule.
enum : unsigned { scalar = 1, by_key = 2, by_value = 4, erasing = 8, exactly = 16, at_end = 32 };

unsigned kind_of(recurrence const& c) {
  return (c.gate.value.data() ? scalar : 0u) | (c.key_gate.value.data() ? by_key : 0u) |
         (c.value_gate.value.data() ? by_value : 0u) |
         (!c.rate.value.data() ? 0u
          : c.exact            ? exactly
                               : erasing) |
         (c.dense ? at_end : 0u);
}

/// Calls f with the ingredients of a kind, views over tokens as at(view) makes them.
template <unsigned kind, class At, class F, class... I>
void with_kind(recurrence const& c, At const& at, F const& f, I const&... ingredients) {
  if constexpr ((kind & scalar) != 0)
    with_kind<kind & ~scalar>(c, at, f, ingredients...,
                              heed::decay(at(c.gate.in()), at(c.gate.to())));
  else if constexpr ((kind & by_key) != 0)
    with_kind<kind & ~by_key>(c, at, f, ingredients...,
                              heed::key_decay(at(c.key_gate.in()), at(c.key_gate.to())));
  else if constexpr ((kind & by_value) != 0)
    with_kind<kind & ~by_value>(c, at, f, ingredients...,
                                heed::value_decay(at(c.value_gate.in()), at(c.value_gate.to())));
  else if constexpr ((kind & erasing) != 0)
    with_kind<kind & ~erasing>(c, at, f, ingredients...,
                               heed::delta(at(c.rate.in()), at(c.rate.to())));
  else if constexpr ((kind & exactly) != 0)
    with_kind<kind & ~exactly>(c, at, f, ingredients...,
                               heed::exact_delta(at(c.rate.in()), at(c.rate.to())));
  else if constexpr ((kind & at_end) != 0)
    with_kind<kind & ~at_end>(c, at, f, ingredients..., heed::dense{});
  else
    f(ingredients..., c.map, heed::scale{c.given.number("scale")}, c.run_on);
}
template <unsigned... kinds, class At, class F>
void with_one_of(recurrence const& c, At const& at, F const& f) {
  require(((kind_of(c) == kinds && (with_kind<kinds>(c, at, f), true)) || ...), [] {
    return "these clauses do not go together: expected log_gate or log_key_gate, and a rule, or "
           "log_value_gate and neither rule nor normalised; none of them with dense";
  });
}

/// Calls f(ingredients...) with the clauses of a call.
template <bool whole, class At, class F>
void with_clauses(recurrence const& c, At const& at, F const& f) {
  constexpr unsigned all_rows = whole ? unsigned{at_end} : 0u;  // a step has an order
  if (c.normalised)
    with_one_of<0, scalar, by_key, erasing, scalar | erasing, by_key | erasing, exactly,
                scalar | exactly, by_key | exactly, all_rows>(c, at, [&](auto const&... clauses) {
      f(clauses...,
        heed::normalised{c.given.number("epsilon"),
                         c.given.has("at_least") ? c.given.number("at_least")
                                                 : -std::numeric_limits<double>::infinity()});
    });
  else
    with_one_of<0, scalar, by_key, by_value, scalar | by_value, by_key | by_value, erasing,
                scalar | erasing, by_key | erasing, exactly, scalar | exactly, by_key | exactly,
                all_rows>(c, at, f);
}

/// A call for each batch entry, or all documents in one.
template <class F>
void with_documents(recurrence const& c, F const& f) {
  if (c.query_offsets.empty())
    f();
  else
    f(heed::documents{c.query_offsets, c.key_offsets});
}

void run_linear_attention(arguments& given) {
  recurrence const c(given);
  if (c.what == verb::decode) {
    require(c.q.value.shape()[1] == c.k.value.shape()[1] && c.query_offsets.empty() && !c.dense,
            [] { return "decoding is of calls in order with as many keys as queries"; });
    std::copy_n(c.state.value.data(), c.state.value.view().size(), c.final.data());
    for (index_t t = 0; t < c.q.value.shape()[1]; ++t)
      with_clauses<false>(
          c, [t](auto view) { return view.slice(1, t, 1); },
          [&](auto const&... clauses) {
            heed::linear_attention_step(c.q.at(t), c.k.at(t), c.v.at(t),
                                        c.out.view().slice(1, t, 1), c.final.view(), clauses...);
          });
  } else {
    auto const as_it_is = [](auto view) { return view; };
    with_documents(c, [&](auto const&... documents) {
      with_clauses<true>(c, as_it_is, [&](auto const&... clauses) {
        heed::linear_attention(c.q.in(), c.k.in(), c.v.in(), c.out.view(), clauses..., documents...,
                               heed::initial_state(c.state.in()),
                               heed::final_state<double>{c.final.view()});
        if (c.what == verb::backward)
          heed::linear_attention_backward(c.q.in(), c.k.in(), c.v.in(), c.out.const_view(),
                                          c.dout.const_view(), c.q.to(), c.k.to(), c.v.to(),
                                          clauses..., documents...,
                                          heed::initial_state(c.state.in(), c.state.to()),
                                          heed::final_state_gradient(c.dfinal.const_view()));
      });
    });
  }
  given.output("o", c.out);
  given.output("final", c.final);
  if (c.what != verb::backward) return;
  for (auto const* each : {&c.q, &c.k, &c.v, &c.key_gate, &c.value_gate, &c.state})
    given.output(each->gradient, each->slope);
  for (auto const* each : {&c.gate, &c.rate}) given.output(each->gradient, each->slope);
}

std::vector<parameter> linear_attention_parameters() {
  std::string_view const gradient = "gradient of the loss by the operand without d";
  auto all = operand_parameters(
      {{"q", "dq", "[B, N, H_q, D]", "queries; every count of heads divides H, that of o"},
       {"k", "dk", "[B, M, H_k, D]", "keys"},
       {"v", "dv", "[B, M, H_v, D_v]", "values"}},
      "[B, N, H, D_v]",
      {{"log_gate", kind::input, "[B, M, H_g]", "none", "a log gate for each token, at most 0"},
       {"log_key_gate", kind::input, "[B, M, H_g, D]", "none", "one for each feature of the key"},
       {"log_value_gate", kind::input, "[B, M, H_g, D_v]", "none",
        "one for each channel of the value"},
       {"rule", kind::choice, "add|delta|exact_delta", "add", "how values are written"},
       {"rate", kind::input, "[B, M, H_r]", "none", "of the rules delta and exact_delta"},
       {"map", kind::choice, "identity|elu1|relu|relu2|exp|silu|sigmoid", "identity",
        "the feature map of queries and keys"},
       {"normalised", kind::flag, "", "false", "divide by the sum of weights"},
       {"epsilon", kind::number, "", "1e-6", "added to the sum of weights"},
       {"at_least", kind::number, "", "unbounded", "the least that is divided by"},
       {"dense", kind::flag, "", "false", "every row reads the final state"},
       {"scale", kind::number, "", "1", "factor of the queries, before the map"},
       {"heads", kind::integer, "", "most of q and the states", "H"},
       {"initial", kind::input, "[S, H_s, D, D_v (+ 1 if normalised)]", "0",
        "the states at the start; H_s is the most of k, v, gates and rates"},
       {"final", kind::output, "[S, H_s, D, D_v (+ 1)]", "none", "the states at the end"},
       {"cu_seqlens_q", kind::input, "[S + 1]", "none", "offsets of packed sequences; B is 1"},
       {"cu_seqlens_k", kind::input, "[S + 1]", "none", "and of their keys"},
       {"dfinal", kind::input, "[S, H_s, D, D_v (+ 1)]", "0", "gradient of the loss by final"}},
      "forward|backward|decode");
  for (auto const& [name, shape] :
       {std::pair<std::string_view, std::string_view>{"dlog_gate", "[B, M, H_g]"},
        {"dlog_key_gate", "[B, M, H_g, D]"},
        {"dlog_value_gate", "[B, M, H_g, D_v]"},
        {"drate", "[B, M, H_r]"},
        {"dinitial", "[S, H_s, D, D_v (+ 1)]"}})
    all.push_back({name, kind::output, shape, "none", gradient});
  return all;
}

mechanism_registration const linear_attention{
    {"linear_attention", linear_attention_parameters(), run_linear_attention}};

}  // namespace
}  // namespace conformance
