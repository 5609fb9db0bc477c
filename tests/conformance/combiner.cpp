// heed_conformance run combiner: some keys directly and the others through summaries.
#include "attention_call.hpp"

#include <heed/mechanism/combiner.hpp>
#include <heed/mechanism/combiner_axial.hpp>
#include <heed/mechanism/combiner_axial_cache.hpp>
#include <heed/mechanism/combiner_cache.hpp>

namespace conformance {
namespace {

using call_type = attention_call<double>;

template <class How>
void attend(call_type& call, How const& how) {
  heed::combiner_attention(
      how, call.query.const_view(), call.key.const_view(), call.value.const_view(), call.out.view(),
      heed::lse_into<double>{call.lse.view()}, call.scale, heed::on{call.pool});
}

template <class How>
void differentiate(call_type& call, How const& how) {
  call.read_gradients();
  require(!call.given.has("dlse"), [] { return "dlse is given; combiner has no gradient by lse"; });
  heed::combiner_attention_backward(
      how, call.query.const_view(), call.key.const_view(), call.value.const_view(),
      call.out.const_view(), call.lse.const_view(), call.dout.const_view(), call.dquery.view(),
      call.dkey.view(), call.dvalue.view(), call.scale, heed::on{call.pool});
  call.write_gradients();
}

/// Row by row, from a cache of the open block or row and of summaries.
template <class Cache>
void decode(call_type& call, Cache cache) {
  for (index_t row = 0; row < call.rows(); ++row)
    cache.step(call.query.const_view().slice(1, row, 1), call.key.const_view().slice(1, row, 1),
               call.value.const_view().slice(1, row, 1), call.out.view().slice(1, row, 1),
               call.scale, heed::on{call.pool},
               heed::lse_into<double>{call.lse.view().slice(2, row, 1)});
}

/// Room for some positions of `heads` like those of another tensor.
tensor<double, 4> room(tensor<double, 4> const& like, index_t positions, index_t heads) {
  return tensor<double, 4>({like.shape()[0], positions, heads, like.shape()[3]});
}

void decode_blocks(call_type& call, heed::combiner_fixed const& how) {
  index_t const blocks = call.rows() / how.block + 1, key_heads = call.key.shape()[2];
  auto const open_keys = room(call.key, how.block, key_heads),
             open_values = room(call.value, how.block, call.value.shape()[2]),
             summary_keys = room(call.key, blocks, key_heads),
             summary_values = room(call.value, blocks, call.heads()),
             pooled = room(call.query, 1, call.heads());
  decode(call, heed::combiner_cache<double>(
                   how, heed::kv_cache(open_keys.view(), open_values.view()),
                   heed::kv_cache(summary_keys.view(), summary_values.view()), pooled.view()));
}

void decode_grid(call_type& call, heed::combiner_grid const& grid) {
  bool const own = grid.key == heed::summary_key::own;
  index_t const closed = (grid.rows - 1) * grid.columns, key_heads = call.key.shape()[2];
  auto const queries = room(call.query, grid.columns, call.heads()),
             open_keys = room(call.key, grid.columns, key_heads),
             open_values = room(call.value, grid.columns, call.value.shape()[2]),
             summary_keys = room(call.key, closed, own ? key_heads : call.heads()),
             summary_values = room(call.value, closed, call.heads());
  decode(call, heed::combiner_axial_cache<double>(
                   grid, queries.view(), heed::kv_cache(open_keys.view(), open_values.view()),
                   heed::kv_cache(summary_keys.view(), summary_values.view())));
}

void run(arguments& given) {
  verb const what = verb_of(given);
  std::string_view const variant = given.choice("variant"), pool = given.choice("pool");
  heed::pooling const pooling = pool == "max"   ? heed::pooling::max
                                : pool == "sum" ? heed::pooling::sum
                                                : heed::pooling::mean;
  call_type call(given);
  if (variant == "fixed") {
    heed::combiner_fixed const how{given.integer("block"), given.flag("causal"), pooling};
    attend(call, how);
    if (what == verb::backward) differentiate(call, how);
    if (what == verb::decode) decode_blocks(call, how);
  } else if (variant == "log_sparse") {
    heed::combiner_log_sparse const how{pooling};
    require(what != verb::decode, [] { return "variant=log_sparse is given; it is not decoded"; });
    attend(call, how);
    if (what == verb::backward) differentiate(call, how);
  } else {
    heed::combiner_grid const grid{given.integer("rows"), given.integer("columns"),
                                   variant == "row_major"    ? heed::combiner_axis::row_major
                                   : variant == "vertical"   ? heed::combiner_axis::vertical
                                   : variant == "horizontal" ? heed::combiner_axis::horizontal
                                                             : heed::combiner_axis::mixture,
                                   pooling,
                                   given.choice("summary_key") == "own"
                                       ? heed::summary_key::own
                                       : heed::summary_key::weighted_sum};
    attend(call, grid);
    if (what == verb::backward) differentiate(call, grid);
    if (what == verb::decode) decode_grid(call, grid);
  }
  call.write_results();
}

mechanism_registration const combiner{{
    "combiner",
    attention_parameters(
        "forward|backward|decode",
        {{"variant", kind::choice, "fixed|log_sparse|row_major|vertical|horizontal|mixture",
          required, "which keys are met directly, and what is summarised"},
         {"block", kind::integer, "", "1", "fixed: keys of a block"},
         {"causal", kind::flag, "", "true", "fixed: hide later keys and blocks"},
         {"pool", kind::choice, "max|sum|mean", "max", "how queries and keys of a span become one"},
         {"rows", kind::integer, "", "1", "row_major to mixture: of the grid"},
         {"columns", kind::integer, "", "1", "row_major to mixture: of the grid"},
         {"summary_key", kind::choice, "own|weighted_sum", "own",
          "row_major: where the key of a summary comes from"}}),
    run,
}};

}  // namespace
}  // namespace conformance
