// heed_conformance run long_short: near keys, and positions compressed to a few rows.
#include "attention_call.hpp"

#include <heed/mechanism/long_short.hpp>

namespace conformance {
namespace {

using call_type = attention_call<double>;

void decode(call_type& call, heed::causal_long_short const& how, tensor<double, 4> const& logits,
            index_t compressed_rows) {
  index_t const batches = call.batches(), heads = logits.shape()[2], dim = call.key.shape()[3],
                value_dim = call.value.shape()[3];
  tensor<double, 4> const near_keys({batches, how.window, heads, dim}),
      near_values({batches, how.window, heads, value_dim}),
      far_keys({batches, compressed_rows, heads, dim}),
      far_values({batches, compressed_rows, heads, value_dim}),
      open({batches, heads, how.rows, 2 + dim + value_dim});
  heed::long_short_cache<double> cache(
      how, heed::ring_cache(near_keys.view(), near_values.view(), 0),
      heed::kv_cache(far_keys.view(), far_values.view()), open.view());
  for (index_t i = 0; i < call.rows(); ++i)
    cache.step(call.query.const_view().slice(1, i, 1), call.key.const_view().slice(1, i, 1),
               call.value.const_view().slice(1, i, 1), logits.const_view().slice(1, i, 1),
               call.out.view().slice(1, i, 1), call.scale, heed::on{call.pool},
               heed::lse_into<double>{call.lse.view().slice(2, i, 1)});
}

template <class How>
void run_as(call_type& call, verb what, How const& how, index_t length) {
  arguments& given = call.given;
  auto const logits = given.input<double, 4>("logits");
  require(length > 0,
          [&] { return "length is " + std::to_string(length) + "; expected at least 1"; });
  auto const compressed = [&](tensor<double, 4> const& like) {
    return tensor<double, 4>({like.shape()[0], call.keys() / length * logits.shape()[3],
                              like.shape()[2], like.shape()[3]});
  };
  auto const key = compressed(call.key), value = compressed(call.value);
  heed::compress_positions(logits.const_view(), call.key.const_view(), call.value.const_view(),
                           length, key.view(), value.view(), heed::on{call.pool});
  heed::long_short_attention(how, call.query.const_view(), call.key.const_view(),
                             call.value.const_view(), key.const_view(), value.const_view(),
                             call.out.view(), call.scale, heed::on{call.pool},
                             heed::lse_into<double>{call.lse.view()});
  if (what == verb::backward) {
    call.read_gradients();
    tensor<double, 4> const dkey(key.shape()), dvalue(value.shape()), dlogits(logits.shape());
    heed::long_short_attention_backward(
        how, call.query.const_view(), call.key.const_view(), call.value.const_view(),
        key.const_view(), value.const_view(), call.out.const_view(), call.lse.const_view(),
        call.dout.const_view(), call.dquery.view(), call.dkey.view(), call.dvalue.view(),
        dkey.view(), dvalue.view(), call.scale, heed::on{call.pool},
        heed::lse_gradient<double>(call.dlse.const_view()));
    heed::compress_positions_backward(
        logits.const_view(), call.key.const_view(), call.value.const_view(), length,
        key.const_view(), value.const_view(), dkey.const_view(), dvalue.const_view(),
        dlogits.view(), call.dkey.view(), call.dvalue.view(), heed::on{call.pool});
    call.write_gradients();
    given.output("dlogits", dlogits);
  }
  if constexpr (std::is_same_v<How, heed::causal_long_short>)
    if (what == verb::decode) decode(call, how, logits, key.shape()[1]);
  call.write_results();
}

void run(arguments& given) {
  verb const what = verb_of(given, {"dlogits"});
  call_type call(given);
  index_t const window = given.integer("window");
  if (given.flag("causal")) {
    index_t const length = given.integer("length");
    return run_as(call, what,
                  heed::causal_long_short{window, length, given.array("logits").shape.back()},
                  length);
  }
  require(what != verb::decode, [] { return "verb=decode is given; it needs causal=true"; });
  run_as(call, what, heed::long_short{window}, call.keys());
}

mechanism_registration const long_short{{
    "long_short",
    attention_parameters(
        "forward|backward|decode",
        {{"logits", kind::input, "[B, M, H_k, rows]", required,
          "over positions their softmax compresses keys and values"},
         {"window", kind::integer, "", required, "near keys; not causal: queries of a block"},
         {"causal", kind::flag, "", "false", "hide later keys and chunks"},
         {"length", kind::integer, "", required, "causal: positions of a chunk"},
         {"dlogits", kind::output, "[B, M, H_k, rows]", "none", "gradient of the loss by logits"}}),
    run,
}};

}  // namespace
}  // namespace conformance
