// heed_conformance run local_predictive: keys around a centre of each row, weighted by their distance.
#include "attention_call.hpp"

#include <heed/mechanism/local_alignment.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dcentres"});
  attention_call<double> call(given);
  auto const centres = given.input<double, 3>("centres", 0, 3);
  heed::local_predictive<double> const around(centres.const_view(), given.number("radius"));
  heed::local_predictive_attention(
      call.query.const_view(), call.key.const_view(), call.value.const_view(), call.out.view(),
      around, heed::lse_into<double>{call.lse.view()}, call.scale, heed::on{call.pool});
  call.write_results();
  if (what != verb::backward) return;

  call.read_gradients();
  require(!given.has("dlse"), [] { return "dlse is given; local_predictive takes none"; });
  tensor<double, 3> const dcentres(centres.shape());
  heed::local_predictive_attention_backward(
      call.query.const_view(), call.key.const_view(), call.value.const_view(),
      call.out.const_view(), call.lse.const_view(), call.dout.const_view(), call.dquery.view(),
      call.dkey.view(), call.dvalue.view(), dcentres.view(), around, call.scale,
      heed::on{call.pool});
  call.write_gradients();
  given.output("dcentres", dcentres);
}

mechanism_registration const local_predictive{{
    "local_predictive",
    attention_parameters(
        "forward|backward",
        {{"centres", kind::input, "[B|1, H|1, N]", required,
          "where each row looks, from 0; leading axes may be left out"},
         {"radius", kind::number, "", "10", "how far it looks; weights fall with radius / 2"},
         {"dcentres", kind::output, "[B|1, H|1, N]", "none", "gradient of the loss by centres"}}),
    run,
}};

}  // namespace
}  // namespace conformance
