// heed_conformance run sequence_parallel: a sequence in segments whose workers tell each other states.
#include "operand_call.hpp"

#include <heed/mechanism/sequence_parallel.hpp>

#include <algorithm>

namespace conformance {
namespace {

using heed::tensor_view;

struct segments : operand_call {
  operand<4> q, k, v, gate;
  bool gated, of_features;
  std::vector<index_t> bounds;
  tensor<double, 4> out, dout, initial, final, dinitial, dfinal;
  tensor<double, 5> local, incoming;
  tensor<double, 4> decays;

  explicit segments(arguments& from)
      : operand_call(from, {"dlog_gate", "dlog_key_gate", "dinitial", "dfinal"}, "q"),
        q(take<4>("q", "dq")),
        k(take<4>("k", "dk")),
        v(take<4>("v", "dv")),
        gated(given.has("log_gate") || given.has("log_key_gate")),
        of_features(given.has("log_key_gate")),
        bounds(given.integers("bounds")) {
    auto const& shape = q.value.shape();
    require(!(given.has("log_gate") && of_features),
            [] { return "expected one of log_gate and log_key_gate"; });
    require(bounds.size() >= 2 && bounds.front() == 0 && bounds.back() == shape[1] &&
                std::is_sorted(bounds.begin(), bounds.end()) && k.value.shape()[1] == shape[1],
            [&] {
              return "bounds is " + heed::shape_text(bounds) + " and k has shape " +
                     heed::shape_text(k.value.shape()) + "; expected 0 to " +
                     std::to_string(shape[1]) + " in order, as many keys as queries";
            });
    if (of_features) gate = take<4>("log_key_gate", "dlog_key_gate");
    if (given.has("log_gate"))
      gate = {"dlog_gate", given.input<double, 4>("log_gate", 3), tensor<double, 4>()};
    if (gated) gate.slope = tensor<double, 4>(gate.value.shape());
    index_t const states =
        std::max({k.value.shape()[2], v.value.shape()[2], gated ? gate.value.shape()[2] : 0});
    std::array const one{shape[0], states, shape[3], v.value.shape()[3]};
    out = tensor<double, 4>({shape[0], shape[1], std::max(shape[2], states), one[3]});
    initial = given.has("initial") ? given.input<double, 4>("initial") : tensor<double, 4>(one);
    dfinal = given.has("dfinal") ? given.input<double, 4>("dfinal") : tensor<double, 4>(one);
    final = tensor<double, 4>(one);
    dinitial = tensor<double, 4>(one);
    local = tensor<double, 5>({workers(), one[0], one[1], one[2], one[3]});
    incoming = tensor<double, 5>(local.shape());
    if (gated)
      decays =
          tensor<double, 4>({workers(), shape[0], gate.value.shape()[2], gate.value.shape()[3]});
    if (what == verb::backward) dout = operand_call::dout();
  }

  index_t workers() const { return static_cast<index_t>(bounds.size()) - 1; }
  template <class View>
  View of(View view, index_t w) const {
    auto const n = static_cast<std::size_t>(w);
    return view.slice(1, bounds[n], bounds[n + 1] - bounds[n]);
  }
  template <int Rank>
  static tensor_view<double, Rank - 1> at(tensor_view<double, Rank> all, index_t w) {
    typename tensor_view<double, Rank - 1>::index_array extents;
    std::copy(all.extents().begin() + 1, all.extents().end(), extents.begin());
    return {all.data() + w * all.stride(0), extents};
  }
  template <class T, int Rank>
  static tensor_view<T, Rank> backwards(tensor_view<T, Rank> all) {
    if (all.data() == nullptr) return all;
    auto strides = all.strides();
    strides[0] = -strides[0];
    return {all.data() + (all.extent(0) - 1) * all.stride(0), all.extents(), strides};
  }
  /// Calls f with the gates of a worker and their gradients, the scale and the executor.
  template <class F>
  void with_gates(index_t w, F const& f) const {
    heed::scale const by{given.number("scale")};
    if (!gated) return f(by, run_on);
    auto const g = of(gate.in(), w);
    auto const dg = of(gate.to(), w);
    if (of_features)
      f(by, run_on, heed::key_decay(g, dg));
    else
      f(by, run_on,
        heed::decay(heed::recur::without_channels(g), heed::recur::without_channels(dg)));
  }
};

void run(arguments& given) {
  segments const c(given);
  for (index_t w = 0; w < c.workers(); ++w) {
    c.with_gates(w, [&](auto const&... gates) {
      heed::linear_attention(c.of(c.q.in(), w), c.of(c.k.in(), w), c.of(c.v.in(), w),
                             c.of(c.out.view(), w),
                             heed::final_state<double>{c.at(c.local.view(), w)}, gates...);
    });
    if (!c.gated) continue;
    auto const g = c.of(c.gate.in(), w);
    if (c.of_features)
      heed::segment_decay(heed::key_decay(g), c.at(c.decays.view(), w));
    else
      heed::segment_decay(heed::decay(heed::recur::without_channels(g)), c.at(c.decays.view(), w));
  }
  heed::combine_states(c.local.view(), c.decays.const_view(), c.initial.view(), c.incoming.view(),
                       c.final.view());
  for (index_t w = 0; w < c.workers(); ++w)
    c.with_gates(w, [&](auto const&... gates) {
      heed::add_incoming_state(c.of(c.q.in(), w), c.at(c.incoming.view(), w), c.of(c.out.view(), w),
                               gates...);
    });
  given.output("o", c.out);
  given.output("final", c.final);
  if (c.what != verb::backward) return;

  for (index_t w = 0; w < c.workers(); ++w)
    c.with_gates(w, [&](auto const&... gates) {
      heed::segment_gradient(c.of(c.q.in(), w), c.of(c.dout.const_view(), w),
                             c.at(c.local.view(), w), gates...);
    });
  heed::combine_states(c.backwards(c.local.view()), c.backwards(c.decays.const_view()),
                       c.dfinal.view(), c.backwards(c.local.view()), c.dinitial.view());
  for (index_t w = 0; w < c.workers(); ++w)
    c.with_gates(w, [&](auto const&... gates) {
      heed::linear_attention_backward(c.of(c.q.in(), w), c.of(c.k.in(), w), c.of(c.v.in(), w),
                                      c.of(c.out.const_view(), w), c.of(c.dout.const_view(), w),
                                      c.of(c.q.to(), w), c.of(c.k.to(), w), c.of(c.v.to(), w),
                                      gates..., heed::initial_state(c.at(c.incoming.view(), w)),
                                      heed::final_state_gradient(c.at(c.local.view(), w)));
    });
  for (auto const* each : {&c.q, &c.k, &c.v}) given.output(each->gradient, each->slope);
  given.output("dinitial", c.dinitial);
  if (c.of_features) {
    given.output("dlog_key_gate", c.gate.slope);
  } else if (c.gated) {
    auto const& e = c.gate.slope.shape();
    given.output("dlog_gate", c.gate.slope, {e[0], e[1], e[2]});
  }
}

std::vector<parameter> parameters() {
  std::string_view const state = "[B, H_s, D, D_v]", slope = "gradient of the loss by that operand";
  auto all = operand_parameters(
      {{"q", "dq", "[B, N, H_q, D]", "queries"},
       {"k", "dk", "[B, N, H_k, D]", "keys"},
       {"v", "dv", "[B, N, H_v, D_v]", "values"}},
      "[B, N, H, D_v]",
      {{"bounds", kind::input, "[workers + 1]", required, "where segments begin and end"},
       {"log_gate", kind::input, "[B, N, H_g]", "none", "a log gate for each token, at most 0"},
       {"log_key_gate", kind::input, "[B, N, H_g, D]", "none", "one for each feature of the key"},
       {"scale", kind::number, "", "1", "factor of the queries"},
       {"initial", kind::input, state, "0", "the states at the start"},
       {"final", kind::output, state, "none", "the states at the end"},
       {"dfinal", kind::input, state, "0", "gradient of the loss by final"}},
      "forward|backward");
  all.push_back({"dlog_gate", kind::output, "[B, N, H_g]", "none", slope});
  all.push_back({"dlog_key_gate", kind::output, "[B, N, H_g, D]", "none", slope});
  all.push_back({"dinitial", kind::output, state, "none", slope});
  return all;
}

mechanism_registration const sequence_parallel{{"sequence_parallel", parameters(), run}};

}  // namespace
}  // namespace conformance
