// heed_conformance run probsparse: attention for the queries that are measured to need it.
#include "composition_call.hpp"

#include <heed/mechanism/probsparse.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given);
  attention_call<double> call(given);
  auto const samples = given.input<index_t, 4>("samples", 0, 2);
  tensor<index_t, 3> const rows({call.batches(), call.heads(), given.integer("rows")});
  heed::probsparse_select(call.query.const_view(), call.key.const_view(), samples.const_view(),
                          rows.view(), heed::on{call.pool});
  auto const with_pattern = [&](auto const& f) { given.flag("causal") ? f(heed::causal{}) : f(); };
  with_pattern([&](auto const&... own) {
    heed::probsparse_attention(call.query.const_view(), call.key.const_view(),
                               call.value.const_view(), rows.const_view(), call.out.view(),
                               call.scale, heed::on{call.pool}, own...);
  });
  given.output("o", call.out);
  given.output("selected", rows);
  if (what != verb::backward) return;
  read_dout(call);
  with_pattern([&](auto const&... own) {
    heed::probsparse_attention_backward(
        call.query.const_view(), call.key.const_view(), call.value.const_view(), rows.const_view(),
        call.dout.const_view(), call.dquery.view(), call.dkey.view(), call.dvalue.view(),
        call.scale, heed::on{call.pool}, own...);
  });
  call.write_gradients();
}

mechanism_registration const probsparse{{
    "probsparse",
    composition_parameters(
        {{"samples", kind::input, "[B|1, H|1, N, U]", required,
          "keys that each query is measured on"},
         {"rows", kind::integer, "", required, "how many queries of each head attend"},
         {"causal", kind::flag, "", "false", "hide later keys; others get running sums of v"},
         {"selected", kind::output, "[B, H, rows]", "none", "the queries that attend"}}),
    run,
}};

}  // namespace
}  // namespace conformance
