// heed_conformance run all_or_here: rows that meet all keys and rows that meet the latest, by gates.
#include "attention_call.hpp"

#include <heed/mechanism/all_or_here.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dlogits"});
  attention_call<double> call(given);
  index_t const recent = given.integer("recent");
  require(recent >= 1, [&] {
    return "recent is " + std::to_string(recent) + "; expected 1 (the query's own) or more";
  });
  auto const logits = given.input<double, 3>("logits");
  call.attend(heed::any_pattern(heed::all_or_here(logits.const_view(), recent)));
  if (what == verb::decode)
    call.decode([&](index_t row) {
      index_t const position = row + call.keys() - call.rows();
      return decoding_step<double>{heed::all_or_here(logits.const_view().slice(2, row, 1), recent),
                                   position, std::max<index_t>(position + 1, 0)};
    });
  call.write_results();
  if (what != verb::backward) return;

  call.read_gradients();
  call.differentiate(heed::any_pattern(heed::all_or_here(logits.const_view(), recent)));
  call.write_gradients();
  if (!given.has("dlogits")) return;
  tensor<double, 4> const chosen = std::move(call.out);
  call.out = tensor<double, 4>(chosen.shape());
  tensor<double, 3> const dlogits(logits.shape());
  call.attend(heed::any_pattern(heed::all_or_here_reversed(logits.const_view(), recent)));
  heed::all_or_here_gate_gradient(chosen.const_view(), call.out.const_view(), logits.const_view(),
                                  call.dout.const_view(), dlogits.view());
  given.output("dlogits", dlogits);
}

mechanism_registration const all_or_here{{
    "all_or_here",
    attention_parameters("forward|backward|decode",
                         {{"logits", kind::input, "[B|1, H|1, N]", required,
                           "rows of positive ones meet all keys up to their own"},
                          {"recent", kind::integer, "", required,
                           "latest keys that the others meet, their own included"},
                          {"dlogits", kind::output, "[B, H, N]", "none",
                           "straight-through gradient of the loss by logits"}}),
    run,
}};

}  // namespace
}  // namespace conformance
