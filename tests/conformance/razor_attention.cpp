// heed_conformance run razor_attention: sinks, recent keys, and the mean of those that were dropped.
#include "attention_call.hpp"

#include <heed/mechanism/razor_attention.hpp>

namespace conformance {
namespace {

/// Decodes row by row; before a head's query what leaves its window goes into its compensation token.
void run(arguments& given) {
  verb_of(given);
  attention_call<double> call(given);
  index_t const batches = call.batches(), heads = call.heads(), sinks = given.integer("sinks"),
                recent = given.integer("recent");
  auto const retrieves = given.input<bool, 1>("retrieval");
  require(retrieves.shape()[0] == heads, [&] {
    return "retrieval has shape " + heed::shape_text(retrieves.shape()) + "; expected [" +
           std::to_string(heads) + "] (heads)";
  });
  tensor<index_t, 2> const sinks_of({1, heads}), recent_of({1, heads});
  for (index_t h = 0; h < heads; ++h) {
    sinks_of.data()[h] = sinks;
    recent_of.data()[h] = retrieves.data()[h] ? heed::unbounded : recent;
  }
  heed::any_pattern const pattern =
      heed::streaming_heads{sinks_of.const_view(), recent_of.const_view()};
  call.attend(pattern);  // checks the whole call before parts of it are taken

  tensor<double, 4> const mean_key({batches, 1, heads, call.query.shape()[3]}),
      mean_value({batches, 1, heads, call.value.shape()[3]});
  tensor<double, 3> const log_count({batches, heads, 1});
  heed::compensation_tokens<double> const dropped{mean_key.view(), mean_value.view(),
                                                  log_count.view()};
  dropped.clear();
  index_t kept_from = sinks;
  for (index_t row = 0; row < call.rows(); ++row) {
    index_t const keys = std::max<index_t>(row + call.keys() - call.rows() + 1, 0);
    auto const key = call.key.const_view().slice(1, 0, keys);
    auto const value = call.value.const_view().slice(1, 0, keys);
    index_t const keep_from = std::max(kept_from, keys - recent);
    for (index_t b = 0; b < batches && kept_from < keep_from; ++b)
      for (index_t h = 0; h < heads; ++h)
        if (!retrieves.data()[h]) dropped.drop(key, value, b, h, {kept_from, keep_from});
    kept_from = keep_from;
    heed::attention_with_extra_keys(call.query.const_view().slice(1, row, 1), key, value,
                                    dropped.token(), call.out.view().slice(1, row, 1), pattern,
                                    heed::lse_into<double>{call.lse.view().slice(2, row, 1)},
                                    call.scale, heed::on{call.pool});
  }
  call.write_results();
}

mechanism_registration const razor_attention{{
    "razor_attention",
    attention_parameters(
        "decode",
        {{"sinks", kind::integer, "", required, "leading keys that are kept"},
         {"recent", kind::integer, "", required,
          "latest keys that are kept, the query's own included"},
         {"retrieval", kind::input, "[H]", required, "of bool: the heads that keep every key"}}),
    run,
}};

}  // namespace
}  // namespace conformance
