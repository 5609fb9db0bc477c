// heed_conformance run key_alignment: causal attention with the keys of images aligned with the text.
#include "attention_call.hpp"

#include <heed/mechanism/modality.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"drho", "dmix"});
  attention_call<double> call(given);
  auto const visual = given.input<bool, 2>("visual", 0);
  auto const rho = given.input<double, 1>("rho");
  auto const mix = given.input<double, 2>("mix");
  heed::key_alignment const how(rho.const_view(), mix.const_view());
  tensor<double, 4> const key = std::move(call.key);
  call.key = tensor<double, 4>(key.shape());
  heed::align_keys(key.const_view(), call.value.const_view(), visual.const_view(), how,
                   call.key.view());
  given.output("aligned", call.key);
  heed::any_pattern const pattern = heed::causal{};
  call.attend(pattern);
  if (what == verb::decode)
    call.decode([&](index_t row) {
      index_t const position = row + call.keys() - call.rows();
      return decoding_step<double>{pattern, position, std::max<index_t>(position + 1, 0)};
    });
  call.write_results();
  if (what != verb::backward) return;

  call.read_gradients();
  call.differentiate(pattern);
  tensor<double, 1> const drho(rho.shape());
  tensor<double, 2> const dmix(mix.shape());
  heed::align_keys_backward(key.const_view(), call.value.const_view(), visual.const_view(), how,
                            call.dkey.const_view(), call.dkey.view(), call.dvalue.view(),
                            drho.view(), dmix.view());
  call.write_gradients();
  given.output("drho", drho);
  given.output("dmix", dmix);
}

mechanism_registration const key_alignment{{
    "key_alignment",
    attention_parameters(
        "forward|backward|decode",
        {{"visual", kind::input, "[B|1, M]", required, "of bool: the visual tokens"},
         {"rho", kind::input, "[D]", required, "how much of the text each channel takes"},
         {"mix", kind::input, "[D, D]", required, "the map of visual keys, a row by output"},
         {"aligned", kind::output, "[B, M, H_k, D]", "none", "the aligned keys"},
         {"drho", kind::output, "[D]", "none", "gradient of the loss by rho"},
         {"dmix", kind::output, "[D, D]", "none", "gradient of the loss by mix"}}),
    run,
}};

}  // namespace
}  // namespace conformance
