// heed_conformance run nystrom, and lara: attention through means of segments.
#include "composition_call.hpp"

#include <heed/mechanism/lara.hpp>
#include <heed/mechanism/nystrom.hpp>

namespace conformance {
namespace {

using call_type = attention_call<double>;

void run_nystrom(arguments& given) {
  verb const what = verb_of(given, {"dfilter"});
  call_type call(given);
  index_t const landmarks = given.integer("landmarks");
  auto const filter = input_if_given<2>(given, "filter");
  tensor<double, 2> const dfilter(filter.shape());
  auto const with_filter = [&](auto const& f) {
    given.has("filter") ? f(heed::value_filter(filter.const_view(), dfilter.view())) : f();
  };
  with_filter([&](auto const&... own) {
    heed::nystrom_attention(call.query.const_view(), call.key.const_view(), call.value.const_view(),
                            call.out.view(), landmarks, call.scale, heed::on{call.pool}, own...);
  });
  given.output("o", call.out);
  if (what != verb::backward) return;
  read_dout(call);
  with_filter([&](auto const&... own) {
    heed::nystrom_attention_backward(call.query.const_view(), call.key.const_view(),
                                     call.value.const_view(), call.dout.const_view(),
                                     call.dquery.view(), call.dkey.view(), call.dvalue.view(),
                                     landmarks, call.scale, heed::on{call.pool}, own...);
  });
  call.write_gradients();
  given.output("dfilter", dfilter);
}

void run_lara(arguments& given) {
  verb const what = verb_of(given);
  call_type call(given);
  index_t const samples = given.integer("samples");
  auto const noise = input_if_given<4>(given, "noise");
  auto const lengths = given.has("lengths")
                           ? given.integers("lengths")
                           : std::vector<index_t>(std::size_t(call.batches()), call.keys());
  auto const with_noise = [&](auto const& f) {
    given.has("noise") ? f(heed::sample_noise{noise.const_view()}) : f();
  };
  with_noise([&](auto const&... own) {
    heed::lara_attention(call.query.const_view(), call.key.const_view(), call.value.const_view(),
                         call.out.view(), samples, call.scale, heed::on{call.pool},
                         heed::key_lengths{lengths}, own...);
  });
  given.output("o", call.out);
  if (what != verb::backward) return;
  read_dout(call);
  with_noise([&](auto const&... own) {
    heed::lara_attention_backward(
        call.query.const_view(), call.key.const_view(), call.value.const_view(),
        call.dout.const_view(), call.dquery.view(), call.dkey.view(), call.dvalue.view(), samples,
        call.scale, heed::on{call.pool}, heed::key_lengths{lengths}, own...);
  });
  call.write_gradients();
}

mechanism_registration const nystrom{{
    "nystrom",
    composition_parameters(
        {{"landmarks", kind::integer, "", required, "how many segments have their means taken"},
         {"filter", kind::input, "[taps, H_v]", "none",
          "of the values along positions, an odd number of taps"},
         {"dfilter", kind::output, "[taps, H_v]", "none", "gradient of the loss by filter"}}),
    run_nystrom,
}};

mechanism_registration const lara{{
    "lara",
    composition_parameters(
        {{"samples", kind::integer, "", required, "how many segments have their means taken"},
         {"noise", kind::input, "[B, min(samples, N), H, D]", "0", "added to the samples"},
         {"lengths", kind::input, "[B]", "M", "rows of each entry; the others are padding"}}),
    run_lara,
}};

}  // namespace
}  // namespace conformance
