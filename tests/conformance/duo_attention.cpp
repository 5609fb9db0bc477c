// heed_conformance run duo_attention: full and streaming attention, mixed by a gate for each key head.
#include "attention_call.hpp"

#include <heed/mechanism/duo_attention.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dgates"});
  attention_call<double> call(given);
  heed::streaming const others{given.integer("sinks"), given.integer("recent")};
  auto const gates = given.input<double, 1>("gates");
  if (what == verb::decode || given.flag("deployed")) {
    require(what != verb::backward,
            [] { return "deployed=true is given; expected not with verb=backward"; });
    tensor<index_t, 2> const sinks({1, call.heads()}), recent({1, call.heads()});
    heed::duo_heads(gates.const_view(), given.number("threshold"), others, sinks.view(),
                    recent.view());
    heed::streaming_heads const heads{sinks.const_view(), recent.const_view()};
    call.attend(heed::any_pattern(heads));
    if (what == verb::decode)
      call.decode([&](index_t row) {
        index_t const position = row + call.keys() - call.rows();
        return decoding_step<double>{heads, position, std::max<index_t>(position + 1, 0)};
      });
    return call.write_results();
  }

  require(!given.has("lse") && !given.has("dlse"),
          [] { return "lse or dlse is given; a mixture of two results has none"; });
  tensor<double, 4> full;
  if (given.has("full")) {
    full = given.input<double, 4>("full");
  } else {
    call.attend(heed::any_pattern(heed::causal{}));
    full = std::move(call.out);
    call.out = tensor<double, 4>(full.shape());
  }
  call.attend(heed::any_pattern(others));
  tensor<double, 4> const out(call.out.shape());
  heed::duo_blend(full.const_view(), call.out.const_view(), gates.const_view(), out.view());
  given.output("o", out);
  if (what != verb::backward) return;

  call.read_gradients();
  tensor<double, 4> const dstreamed(call.out.shape());
  tensor<double, 1> const dgates(gates.shape());
  heed::duo_blend_backward(full.const_view(), call.out.const_view(), gates.const_view(),
                           call.dout.const_view(), dstreamed.view(), dgates.view());
  std::copy_n(dstreamed.data(), dstreamed.view().size(), call.dout.data());
  call.differentiate(heed::any_pattern(others));
  call.write_gradients();
  given.output("dgates", dgates);
}

mechanism_registration const duo_attention{{
    "duo_attention",
    attention_parameters(
        "forward|backward|decode",
        {{"gates", kind::input, "[H_k]", required, "of each key head, the share of full attention"},
         {"sinks", kind::integer, "", required, "leading keys that streaming heads meet"},
         {"recent", kind::integer, "", required, "latest keys that they meet, their own included"},
         {"full", kind::input, "[B, N, H, D_v]", "causal attention of q, k and v",
          "a teacher's result"},
         {"dgates", kind::output, "[H_k]", "none", "gradient of the loss by gates"},
         {"deployed", kind::flag, "", "false",
          "choose by threshold and do not mix; verb=decode always does"},
         {"threshold", kind::number, "", "0.5", "heads whose gate exceeds it are full"}}),
    run,
}};

}  // namespace
}  // namespace conformance
