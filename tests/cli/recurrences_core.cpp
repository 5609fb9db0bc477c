#include "cli/attention_files.hpp"
#include "reference/recurrence.hpp"

// heed_conformance run linear_attention and sequence_parallel, against the definition of recurrences.

using cli::expected;
using cli::sandbox;
using heed::index_t;
using reference::tensor;
using reference::update_rule;
using support::for_each_seed;
using support::seed_t;

namespace {

/// max(x, 0)^2, or x.
struct some_features {
  bool squared = false;

  index_t count(index_t dim) const { return dim; }
  template <class T>
  std::vector<T> features(reference::feature_place const&, std::vector<T> x) const {
    if (squared)
      for (T& each : x) each = std::max(each, T(0)) * std::max(each, T(0));
    return x;
  }
  template <class T>
  std::vector<T> gradient(reference::feature_place const&, std::vector<T> const& x,
                          std::vector<T> dphi) const {
    if (squared)
      for (std::size_t d = 0; d < x.size(); ++d) dphi[d] *= 2 * std::max(x[d], T(0));
    return dphi;
  }
};

struct recurrence_files : cli::attention_files {
  reference::recurrence<some_features> definition;
  reference::recurrence_operands<double> x;

  recurrence_files(sandbox const& where, seed_t seed)
      : attention_files(where, seed, "linear_attention") {
    index_t const B = draw.between(1, 2), N = draw.between(1, 12),
                  M = draw.one_in(2) ? N : draw.between(1, 12), D = draw.between(1, 6),
                  E = draw.between(1, 6);
    bool const documents = B == 1 && draw.one_in(2);
    definition.heads = 4;
    set("heads", index_t{4});
    if (draw.one_in(3)) set("threads", index_t{2});
    if (draw.one_in(2)) set("scale", definition.scale = draw.uniform(0.5, 1.5));
    auto const add = [&]<int Rank>(char const* name, tensor<double, Rank>& to,
                                   typename tensor<double, Rank>::index_array const& shape,
                                   auto number) {
      to = tensor<double, Rank>(shape);
      for (double& each : to.values) each = number();
      save(name, to);
    };
    auto const normal = [&] { return 0.6 * draw.normal(); };
    add("q", x.query, {B, N, 4, D}, normal);
    add("k", x.key, {B, M, 2, D}, normal);
    add("v", x.value, {B, M, 1, E}, normal);
    definition.normalised = draw.one_in(3);
    if (definition.normalised) {
      definition.map.squared = true;
      definition.epsilon = 0.5;
      definition.at_least = 0.25;
      call += " normalised=true epsilon=0.5 at_least=0.25";
    } else {
      definition.map.squared = draw.one_in(3);
    }
    if (definition.map.squared) set("map", std::string("relu2"));
    definition.dense = draw.one_in(5);
    if (definition.dense) call += " dense=true";
    auto const gate = [&] { return draw.one_in(9) ? -300 : draw.uniform(-1, 0); };
    if (!definition.dense) {
      switch (draw.between(0, 2)) {
        case 0:
          add("log_gate", x.log_gate, {B, M, 2}, gate);
          break;
        case 1:
          add("log_key_gate", x.log_key_gate, {B, M, 1, D}, gate);
      }
      if (draw.one_in(2)) {
        definition.rule = draw.one_in(2) ? update_rule::delta : update_rule::exact_delta;
        set("rule", std::string(definition.rule == update_rule::delta ? "delta" : "exact_delta"));
        add("rate", x.rate, {B, M, 2}, [&] { return draw.uniform(0, 0.3); });
      } else if (!definition.normalised && draw.one_in(2)) {
        add("log_value_gate", x.log_value_gate, {B, M, 1, E}, gate);
      }
    }
    if (documents) {
      definition.query_offsets = {0, draw.between(0, N), N};
      definition.key_offsets = {0, draw.between(0, M), M};
      save("cu_seqlens_q", {3}, definition.query_offsets);
      save("cu_seqlens_k", {3}, definition.key_offsets);
    }
    auto const states = definition.forward(x).state.extents;
    if (draw.one_in(2)) add("initial", x.initial, states, [&] { return std::abs(normal()); });
    steps = N == M && !documents && !definition.dense;
  }

  bool steps;
};

}  // namespace

TEST_CASE("heed_conformance: linear_attention", "[cli][recurrences]") {
  sandbox const box;
  for_each_seed("conformance of linear_attention", 40, [&](seed_t seed) {
    recurrence_files c(box, seed);
    auto const golden = c.definition.forward(c.x);
    auto const results = [&](std::string const& how) {
      return c.complaint(how, expected{"o", golden.out}, expected{"final", golden.state});
    };
    std::string complaint = results("") + (c.steps ? results(" verb=decode") : "");
    auto const dout = cli::normal<4>(c.draw, golden.out.extents),
               dfinal = cli::normal<4>(c.draw, golden.state.extents);
    c.save("do", dout);
    c.save("dfinal", dfinal);
    auto const d = c.definition.backward(c.x, golden.out, dout, dfinal);
    complaint += c.complaint(" verb=backward", expected{"dq", d.query}, expected{"dk", d.key},
                             expected{"dv", d.value}, expected{"dinitial", d.initial});
    if (!c.x.log_gate.values.empty())
      complaint += c.complaint("", expected{"dlog_gate", d.log_gate});
    if (!c.x.log_key_gate.values.empty())
      complaint += c.complaint("", expected{"dlog_key_gate", d.log_key_gate});
    if (!c.x.log_value_gate.values.empty())
      complaint += c.complaint("", expected{"dlog_value_gate", d.log_value_gate});
    if (!c.x.rate.values.empty()) complaint += c.complaint("", expected{"drate", d.rate});
    return complaint;
  });
}

TEST_CASE("heed_conformance: sequence_parallel", "[cli][recurrences]") {
  sandbox const box;
  for_each_seed("conformance of sequence_parallel", 20, [&](seed_t seed) {
    cli::attention_files c(box, seed, "sequence_parallel");
    index_t const N = c.draw.between(1, 30), D = c.draw.between(1, 6), E = c.draw.between(1, 6);
    reference::recurrence<some_features> definition;
    reference::recurrence_operands<double> x;
    x.query = cli::normal<4>(c.draw, {2, N, 4, D});
    x.key = cli::normal<4>(c.draw, {2, N, 2, D});
    x.value = cli::normal<4>(c.draw, {2, N, 2, E});
    x.initial = cli::normal<4>(c.draw, {2, 2, D, E});
    c.save("q", x.query);
    c.save("k", x.key);
    c.save("v", x.value);
    c.save("initial", x.initial);
    std::vector<index_t> bounds{0, c.draw.between(0, N), N};
    c.save("bounds", {3}, bounds);
    index_t const gates = c.draw.between(0, 2);
    if (gates == 1) {
      x.log_gate = tensor<double, 3>({2, N, 2});
      for (double& each : x.log_gate.values) each = c.draw.uniform(-1, 0);
      c.save("log_gate", x.log_gate);
    } else if (gates == 2) {
      x.log_key_gate = tensor<double, 4>({2, N, 1, D});
      for (double& each : x.log_key_gate.values) each = c.draw.uniform(-1, 0);
      c.save("log_key_gate", x.log_key_gate);
    }
    auto const golden = definition.forward(x);
    auto const dout = cli::normal<4>(c.draw, golden.out.extents),
               dfinal = cli::normal<4>(c.draw, golden.state.extents);
    c.save("do", dout);
    c.save("dfinal", dfinal);
    auto const d = definition.backward(x, golden.out, dout, dfinal);
    std::string complaint = c.complaint("", expected{"o", golden.out},
                                        expected{"final", golden.state}, expected{"dq", d.query}) +
                            c.complaint("", expected{"dk", d.key}, expected{"dv", d.value},
                                        expected{"dinitial", d.initial});
    if (gates == 1) complaint += c.complaint("", expected{"dlog_gate", d.log_gate});
    if (gates == 2) complaint += c.complaint("", expected{"dlog_key_gate", d.log_key_gate});
    return complaint;
  });
}
