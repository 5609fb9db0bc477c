// heed_conformance run adaptive_heads: near keys, and all of them where the others are estimated to matter.
#include "attention_call.hpp"

#include <heed/mechanism/adaptive_heads.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given);
  attention_call<double> call(given);
  index_t const batches = call.batches(), key_heads = call.key.shape()[2],
                dim = call.key.shape()[3];
  tensor<double, 3> mean({batches, key_heads, dim});
  tensor<double, 4> covariance({batches, key_heads, dim, dim});
  require(given.has("mean") == given.has("covariance"),
          [] { return "one of mean and covariance is given; expected both or none"; });
  if (given.has("mean")) {
    mean = given.input<double, 3>("mean");
    covariance = given.input<double, 4>("covariance");
  } else {
    heed::measure_key_moments(call.key.const_view(),
                              heed::key_moments<double>{mean.view(), covariance.view()});
  }
  heed::key_moments<double> const moments{mean.view(), covariance.view()};
  heed::adaptive_heads const how{given.integer("sinks"), given.integer("recent"),
                                 given.number("threshold")};
  tensor<double, 3> const reaches_far(call.lse.shape());
  auto const attend = [&](index_t row, index_t rows, index_t keys) {
    heed::adaptive_attention(
        call.query.const_view().slice(1, row, rows), call.key.const_view().slice(1, 0, keys),
        call.value.const_view().slice(1, 0, keys), call.out.view().slice(1, row, rows), moments,
        how, reaches_far.view().slice(2, row, rows), call.scale, heed::on{call.pool},
        heed::lse_into<double>{call.lse.view().slice(2, row, rows)});
  };
  attend(0, call.rows(), call.keys());
  if (what == verb::decode)
    for (index_t row = 0; row < call.rows(); ++row)
      attend(row, 1, std::max<index_t>(row + call.keys() - call.rows() + 1, 0));
  call.write_results();
  given.output("reaches_far", reaches_far);
  if (what != verb::backward) return;
  call.read_gradients();
  call.differentiate(heed::any_pattern(heed::causal{} &
                                       (how.near() | heed::chosen_rows{reaches_far.const_view()})));
  call.write_gradients();
}

mechanism_registration const adaptive_heads{{
    "adaptive_heads",
    attention_parameters(
        "forward|backward|decode",
        {{"sinks", kind::integer, "", "16", "leading keys that are always met"},
         {"recent", kind::integer, "", "1024",
          "latest keys that are always met, the query's own included"},
         {"threshold", kind::number, "", "0.9",
          "the share of the estimated weight with which these are enough"},
         {"mean", kind::input, "[B|1, H_k, D]", "that of k", "of the keys"},
         {"covariance", kind::input, "[B|1, H_k, D, D]", "that of k", "of the keys"},
         {"reaches_far", kind::output, "[B, H, N]", "none", "1 where all keys were met"}}),
    run,
}};

}  // namespace
}  // namespace conformance
