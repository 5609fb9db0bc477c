// heed_conformance run local_aggregation: sums over a box around each token, weighted by offset.
#include "attention_call.hpp"

#include <heed/mechanism/local_aggregation.hpp>

namespace conformance {
namespace {

template <std::size_t d>
void run_on(arguments& given, verb what) {
  heed::token_box<static_cast<int>(d)> const box{given.point<d>("grid"), given.point<d>("window")};
  auto const value = given.input<double, 4>("v");
  auto const weights = given.input<double, 3>("weights");
  given.set_output_type(given.array("v").type);
  Eigen::ThreadPool pool(threads_of(given));
  tensor<double, 4> const out(value.shape());
  heed::local_aggregation(value.const_view(), weights.const_view(), box, out.view(),
                          heed::on{pool});
  given.output("o", out);
  if (what != verb::backward) return;

  require(given.has("do"), [] { return "the backward pass needs do="; });
  auto const dout = given.input<double, 4>("do");
  tensor<double, 4> const dvalue(value.shape());
  tensor<double, 3> const dweights(weights.shape());
  heed::local_aggregation_backward(value.const_view(), weights.const_view(), box, dout.const_view(),
                                   dvalue.view(), dweights.view(), heed::on{pool});
  given.output("dv", dvalue);
  given.output("dweights", dweights);
}

void run(arguments& given) {
  verb const what = verb_of(given, {"dweights"});
  given.with_axes("grid", [&]<std::size_t d>(std::integral_constant<std::size_t, d>) {
    run_on<d>(given, what);
  });
}

mechanism_registration const local_aggregation{{
    "local_aggregation",
    {
        {"v", kind::input, "[B, N, H, D]", required, "values on a grid, row-major"},
        {"weights", kind::input, "[offsets, H|1, D|1]", required,
         "of the offsets of the box, row-major from the lowest"},
        {"grid", kind::integers, "", required, "the extents of one to three axes"},
        {"window", kind::integers, "", required, "the odd extents of the box"},
        {"o", kind::output, "[B, N, H, D]", "none", "the result, in the type of v's file"},
        {"do", kind::input, "[B, N, H, D]", "none", "gradient of the loss by o"},
        {"dv", kind::output, "[B, N, H, D]", "none", "gradient of the loss by v"},
        {"dweights", kind::output, "[offsets, H|1, D|1]", "none",
         "gradient of the loss by weights"},
        {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
        {"verb", kind::choice, "forward|backward", "forward, or backward with do=", "what to do"},
    },
    run,
}};

}  // namespace
}  // namespace conformance
