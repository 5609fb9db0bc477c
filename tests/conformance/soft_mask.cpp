// heed_conformance run soft_mask: faithful attention maps while they are trained, keys weighted by a mask.
#include "attention_call.hpp"

#include <heed/mechanism/faithful_maps.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dm"});
  attention_call<double> call(given);
  auto const m = given.input<double, 2>("m");
  tensor<double, 4> const numbers({m.shape()[0], 1, 1, m.shape()[1]}), dnumbers(numbers.shape());
  heed::soft_mask(m.const_view(), numbers.view());
  heed::bias const added(numbers.const_view(), dnumbers.view());
  call.attend(added);
  call.write_results();
  if (what != verb::backward) return;
  call.read_gradients();
  call.differentiate(added);
  call.write_gradients();
  tensor<double, 2> const dm(m.shape());
  heed::soft_mask_backward(m.const_view(), dnumbers.const_view(), dm.view());
  given.output("dm", dm);
}

mechanism_registration const soft_mask{{
    "soft_mask",
    attention_parameters("forward|backward",
                         {{"m", kind::input, "[B, M]", required,
                           "from 0 to 1, 1 for the prefix: log(m + 1e-10) is added to scores"},
                          {"dm", kind::output, "[B, M]", "none", "gradient of the loss by m"}}),
    run,
}};

}  // namespace
}  // namespace conformance
