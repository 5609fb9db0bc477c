// heed_conformance run locality_dial: keys of other groups count 1 - lambda times.
#include "attention_call.hpp"

#include <heed/mechanism/locality_dial.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dlambda"});
  attention_call<double> call(given);
  auto const groups = given.input<int, 3>("groups", 0, 3);
  tensor<double, 1> const dlambda({1});
  heed::locality_dial const dial{groups.const_view(), given.number("lambda"),
                                 given.has("dlambda") ? dlambda.data() : nullptr};
  call.attend(dial);
  call.write_results();
  if (what != verb::backward) return;
  call.read_gradients();
  call.differentiate(dial);
  call.write_gradients();
  given.output("dlambda", dlambda);
}

mechanism_registration const locality_dial{{
    "locality_dial",
    attention_parameters(
        "forward|backward",
        {{"groups", kind::input, "[B|1, H|1, M]", required,
          "the group of each position; leading axes may be left out"},
         {"lambda", kind::number, "", required, "from 0, all keys, to 1, the query's group only"},
         {"dlambda", kind::output, "[1]", "none", "gradient of the loss by lambda, below 1"}}),
    run,
}};

}  // namespace
}  // namespace conformance
