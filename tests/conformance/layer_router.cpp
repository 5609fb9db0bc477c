// heed_conformance run layer_router: a network chooses full or streaming attention for the layer.
#include "attention_call.hpp"

#include <heed/mechanism/layer_router.hpp>
#include <heed/mechanism/streaming.hpp>

namespace conformance {
namespace {

constexpr std::array<std::string_view, 5> weight_names{"w1", "w2", "w3", "w4", "w5"};
constexpr std::array<std::string_view, 5> bias_names{"b1", "b2", "b3", "b4", "b5"};

void run(arguments& given) {
  verb const what = verb_of(given, {"dlogits"});
  attention_call<double> call(given);
  std::array<tensor<double, 2>, 5> weights;
  std::array<tensor<double, 1>, 5> biases;
  heed::router_network<double> network;
  for (std::size_t n = 0; n < 5; ++n) {
    weights[n] = given.input<double, 2>(weight_names[n]);
    biases[n] = given.input<double, 1>(bias_names[n]);
    network[n] = {weights[n].view(), biases[n].view()};
  }
  index_t const batches = call.batches();
  tensor<double, 2> const x({batches, call.query.shape()[3]}), logits({batches, 2}),
      soft({batches, 2});
  heed::route_summary(call.query.const_view(), given.integer("ends"), x.view());
  heed::route(network, x.view(), logits.view());
  tensor<double, 2> noise;
  if (given.has("noise")) noise = given.input<double, 2>("noise");
  double const temperature = given.number("temperature");
  heed::route_weights(logits.view(), noise.view(), temperature, soft.view());
  tensor<double, 3> const hard({batches, 1, 1}), dhard({batches, 1, 1});
  for (index_t b = 0; b < batches; ++b) hard.view()(b, 0, 0) = soft.view()(b, 1) > 0.5 ? 1 : 0;
  given.output("logits", logits);
  given.output("weights", soft);

  heed::any_pattern const sparse = heed::streaming{given.integer("sinks"), given.integer("recent")};
  call.attend(heed::any_pattern(heed::causal{}));
  tensor<double, 4> const full = std::move(call.out);
  call.out = tensor<double, 4>(full.shape());
  call.attend(sparse);
  tensor<double, 4> const out(full.shape());
  heed::blend(full.const_view(), call.out.const_view(), hard.const_view(), out.view());
  given.output("o", out);
  if (what != verb::backward) return;

  require(given.has("do"), [] { return "the backward pass needs do="; });
  auto const dout = given.input<double, 4>("do");
  tensor<double, 2> const dlogits({batches, 2});
  heed::tensor_view<double, 4> const unwanted;
  heed::blend_backward(full.const_view(), call.out.const_view(), hard.const_view(),
                       dout.const_view(), unwanted, unwanted, dhard.view());
  heed::route_weights_backward(soft.const_view(), dhard.const_view(), temperature, dlogits.view());
  given.output("dlogits", dlogits);
}

std::vector<parameter> parameters() {
  std::vector<parameter> all{
      {"q", kind::input, "[B, N, H, D]", required, "queries; the router reads them too"},
      {"k", kind::input, "[B, M, H_k, D]", required, "keys; H_k divides H"},
      {"v", kind::input, "[B, M, H_v, D_v]", required, "values; H_v divides H"},
      {"o", kind::output, "[B, N, H, D_v]", "none", "the result, in the type of q's file"},
      {"ends", kind::integer, "", "100", "rows at each end of the queries that the router reads"},
      {"noise", kind::input, "[B, 2]", "0", "added to the logits"},
      {"temperature", kind::number, "", "1", "of the weights"},
      {"sinks", kind::integer, "", required, "leading keys that sparse attention meets"},
      {"recent", kind::integer, "", required, "latest keys that it meets"},
      {"logits", kind::output, "[B, 2]", "none", "of sparse and of full attention"},
      {"weights", kind::output, "[B, 2]", "none", "softmax of logits and noise by temperature"},
      {"do", kind::input, "[B, N, H, D_v]", "none", "gradient of the loss by o"},
      {"dlogits", kind::output, "[B, 2]", "none",
       "gradient of the loss by logits, straight through"},
      {"scale", kind::number, "", "1/sqrt(D)", "factor of q.k"},
      {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
      {"verb", kind::choice, "forward|backward", "forward, or backward with do=", "what to do"}};
  for (std::size_t n = 0; n < 5; ++n) {
    all.push_back({weight_names[n], kind::input, "[out, in]", required, "a map of the router"});
    all.push_back({bias_names[n], kind::input, "[out]", required, "its bias"});
  }
  return all;
}

mechanism_registration const layer_router{{"layer_router", parameters(), run}};

}  // namespace
}  // namespace conformance
