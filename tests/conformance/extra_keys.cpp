// heed_conformance run extra_keys: keys without a place in the sequence, in one softmax with its own.
#include "attention_call.hpp"

#include <heed/mechanism/extra_keys.hpp>
#include <heed/neighborhood.hpp>

namespace conformance {
namespace {

/// The sequence's pattern: a window, or a neighborhood on a canvas.
template <class F>
void with_pattern(arguments const& given, F const& f) {
  if (!given.has("canvas"))
    return f(
        heed::any_pattern(heed::sliding_window{given.integer("left"), given.integer("right")}));
  given.with_axes("canvas", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
    heed::neighborhood_order<d> const order({given.point<d>("canvas"), given.point<d>("window")},
                                            heed::attend::panel_lanes<double>);
    f(heed::any_pattern(order.pattern()), heed::any_arrangement(order));
  });
}

void run(arguments& given) {
  verb const what = verb_of(given, {"dextra_k", "dextra_v", "dlog_weights"});
  attention_call<double> call(given);
  auto const key = given.input<double, 4>("extra_k"), value = given.input<double, 4>("extra_v");
  tensor<double, 3> const weights = given.has("log_weights")
                                        ? given.input<double, 3>("log_weights")
                                        : tensor<double, 3>({1, 1, key.shape()[1]});
  tensor<double, 3> const dweights(weights.shape());
  heed::extra_keys const extra(key.const_view(), value.const_view(),
                               heed::log_weights(weights.const_view(), dweights.view()));
  with_pattern(given, [&](auto const&... sequence) {
    heed::attention_with_extra_keys(call.query.const_view(), call.key.const_view(),
                                    call.value.const_view(), extra, call.out.view(),
                                    heed::lse_into<double>{call.lse.view()}, call.scale,
                                    heed::on{call.pool}, sequence...);
    call.write_results();
    if (what != verb::backward) return;
    call.read_gradients();
    tensor<double, 4> const dkey(key.shape()), dvalue(value.shape());
    heed::attention_with_extra_keys_backward(
        call.query.const_view(), call.key.const_view(), call.value.const_view(), extra,
        call.out.const_view(), call.lse.const_view(), call.dout.const_view(), call.dquery.view(),
        call.dkey.view(), call.dvalue.view(), dkey.view(), dvalue.view(),
        heed::lse_gradient<double>(call.dlse.const_view()), call.scale, heed::on{call.pool},
        sequence...);
    call.write_gradients();
    given.output("dextra_k", dkey);
    given.output("dextra_v", dvalue);
    given.output("dlog_weights", dweights);
  });
}

mechanism_registration const extra_keys{{
    "extra_keys",
    attention_parameters(
        "forward|backward",
        {{"extra_k", kind::input, "[B, E, H_e, D]", required, "keys beside the sequence"},
         {"extra_v", kind::input, "[B, E, H_e, D_v]", required, "their values"},
         {"log_weights", kind::input, "[B|1, H|1, E]", "0", "added to their scores"},
         {"left", kind::integer, "", "-1", "keys before the query's position; -1: all"},
         {"right", kind::integer, "", "-1", "keys after the query's position; -1: all"},
         {"canvas", kind::integers, "", "none",
          "instead of left and right: the sequence's keys are a neighborhood on this canvas"},
         {"window", kind::integers, "", required, "with canvas: its keys along each axis"},
         {"dextra_k", kind::output, "[B, E, H_e, D]", "none", "gradient of the loss by extra_k"},
         {"dextra_v", kind::output, "[B, E, H_e, D_v]", "none", "gradient of the loss by extra_v"},
         {"dlog_weights", kind::output, "[B|1, H|1, E]", "none",
          "gradient of the loss by log_weights"}}),
    run,
}};

}  // namespace
}  // namespace conformance
