// heed_conformance run titans: a memory of one to three layers that learns keys and values while it is read.
#include "attention_call.hpp"

#include <heed/mechanism/titans.hpp>

namespace conformance {
namespace {

using layers = std::vector<tensor<double, 4>>;

heed::memory_layers<double> views_of(layers const& all) {
  if (all.size() == 1) return {all[0].view()};
  if (all.size() == 2) return {all[0].view(), all[1].view()};
  return {all[0].view(), all[1].view(), all[2].view()};
}

layers like(layers const& all) {
  layers result;
  for (auto const& each : all) result.emplace_back(each.shape());
  return result;
}

void run(arguments& given) {
  verb const what =
      verb_of(given, {"drate", "dmomentum", "dforget", "dw1", "dw2", "dw3", "dm1", "dm2", "dm3"});
  auto const query = given.input<double, 4>("q"), key = given.input<double, 4>("k"),
             value = given.input<double, 4>("v");
  auto const rate = given.input<double, 3>("rate"), momentum = given.input<double, 3>("momentum"),
             forget = given.input<double, 3>("forget");
  given.set_output_type(given.array("q").type);
  index_t const chunk = given.integer("chunk");
  layers weights, moving;
  for (std::string_view name : {"w1", "w2", "w3"})
    if (given.has(name)) weights.push_back(given.input<double, 4>(name));
  moving = like(weights);
  std::string_view const momenta[] = {"m1", "m2", "m3"};
  for (std::size_t l = 0; l < weights.size(); ++l)
    if (given.has(momenta[l])) {
      moving[l] = given.input<double, 4>(momenta[l]);
      require(moving[l].shape() == weights[l].shape(), [&] {
        return std::string(momenta[l]) + " has another shape than the weights of its layer";
      });
    }
  Eigen::ThreadPool pool(threads_of(given));
  heed::titans_gates<double> const gates(rate.const_view(), momentum.const_view(),
                                         forget.const_view());
  heed::titans_memory<double> const start(views_of(weights), views_of(moving));
  auto shape = query.shape();
  shape[3] = value.shape()[3];
  tensor<double, 4> const out(shape);
  layers const last_weights = like(weights), last_moving = like(weights);
  auto const store_memory = [&](layers const& w, layers const& m) {
    static constexpr std::string_view names[2][3] = {{"last_w1", "last_w2", "last_w3"},
                                                     {"last_m1", "last_m2", "last_m3"}};
    for (std::size_t l = 0; l < w.size(); ++l) {
      given.output(names[0][l], w[l]);
      given.output(names[1][l], m[l]);
    }
  };
  if (what == verb::decode) {
    require(query.shape()[1] == key.shape()[1],
            [] { return "decoding needs as many rows of q as of k"; });
    layers const reference = like(weights);
    heed::titans_state<double> state{start, views_of(reference)};
    for (index_t t = 0; t < key.shape()[1]; ++t)
      heed::titans_step(query.const_view().slice(1, t, 1), key.const_view().slice(1, t, 1),
                        value.const_view().slice(1, t, 1), out.view().slice(1, t, 1),
                        heed::titans_gates<double>(rate.const_view().slice(1, t, 1),
                                                   momentum.const_view().slice(1, t, 1),
                                                   forget.const_view().slice(1, t, 1)),
                        state, chunk, heed::on{pool});
    given.output("o", out);
    return store_memory(weights, moving);
  }
  heed::titans(query.const_view(), key.const_view(), value.const_view(), out.view(), gates, start,
               chunk,
               heed::final_memory{
                   heed::titans_memory<double>(views_of(last_weights), views_of(last_moving))},
               heed::on{pool});
  given.output("o", out);
  store_memory(last_weights, last_moving);
  if (what != verb::backward) return;

  require(given.has("do"), [] { return "the backward pass needs do="; });
  auto const dout = given.input<double, 4>("do");
  tensor<double, 4> const dquery(query.shape()), dkey(key.shape()), dvalue(value.shape());
  tensor<double, 3> const drate(rate.shape()), dmomentum(rate.shape()), dforget(rate.shape());
  layers const dweights = like(weights), dmoving = like(weights);
  heed::titans_backward(
      query.const_view(), key.const_view(), value.const_view(), dout.const_view(), dquery.view(),
      dkey.view(), dvalue.view(),
      heed::titans_gates<double>(rate.const_view(), momentum.const_view(), forget.const_view(),
                                 drate.view(), dmomentum.view(), dforget.view()),
      start, heed::titans_memory<double>(views_of(dweights), views_of(dmoving)), chunk,
      heed::on{pool});
  given.output("dq", dquery);
  given.output("dk", dkey);
  given.output("dv", dvalue);
  given.output("drate", drate);
  given.output("dmomentum", dmomentum);
  given.output("dforget", dforget);
  static constexpr std::string_view names[2][3] = {{"dw1", "dw2", "dw3"}, {"dm1", "dm2", "dm3"}};
  for (std::size_t l = 0; l < weights.size(); ++l) {
    given.output(names[0][l], dweights[l]);
    given.output(names[1][l], dmoving[l]);
  }
}

mechanism_registration const titans{{
    "titans",
    {
        {"q", kind::input, "[B, N, H, D]", required, "queries"},
        {"k", kind::input, "[B, M, Hk, D]", required, "keys; Hk divides H"},
        {"v", kind::input, "[B, M, Hk, E]", required, "values"},
        {"rate", kind::input, "[B, M, Hk]", required, "rates of learning"},
        {"momentum", kind::input, "[B, M, Hk]", required, "in [0, 1]"},
        {"forget", kind::input, "[B, M, Hk]", required, "in [0, 1]"},
        {"w1", kind::input, "[B, Hk, D, F or E]", required, "the first layer of the memory"},
        {"w2", kind::input, "[B, Hk, F, F2 or E]", "none", "the second layer"},
        {"w3", kind::input, "[B, Hk, F2, E]", "none", "the third layer"},
        {"m1", kind::input, "[B, Hk, D, F or E]", "0", "what moves w1"},
        {"m2", kind::input, "[B, Hk, F, F2 or E]", "0", "what moves w2"},
        {"m3", kind::input, "[B, Hk, F2, E]", "0", "what moves w3"},
        {"chunk", kind::integer, "", "1", "tokens whose gradients are taken at the same memory"},
        {"o", kind::output, "[B, N, H, E]", "none", "the result, in the type of q's file"},
        {"last_w1", kind::output, "[B, Hk, D, F or E]", "none", "w1 after the last token"},
        {"last_w2", kind::output, "[B, Hk, F, F2 or E]", "none", "w2 after the last token"},
        {"last_w3", kind::output, "[B, Hk, F2, E]", "none", "w3 after the last token"},
        {"last_m1", kind::output, "[B, Hk, D, F or E]", "none", "m1 after the last token"},
        {"last_m2", kind::output, "[B, Hk, F, F2 or E]", "none", "m2 after the last token"},
        {"last_m3", kind::output, "[B, Hk, F2, E]", "none", "m3 after the last token"},
        {"do", kind::input, "[B, N, H, E]", "none", "gradient of the loss by o"},
        {"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"},
        {"dk", kind::output, "[B, M, Hk, D]", "none", "gradient of the loss by k"},
        {"dv", kind::output, "[B, M, Hk, E]", "none", "gradient of the loss by v"},
        {"drate", kind::output, "[B, M, Hk]", "none", "gradient of the loss by rate"},
        {"dmomentum", kind::output, "[B, M, Hk]", "none", "gradient of the loss by momentum"},
        {"dforget", kind::output, "[B, M, Hk]", "none", "gradient of the loss by forget"},
        {"dw1", kind::output, "[B, Hk, D, F or E]", "none", "gradient of the loss by w1"},
        {"dw2", kind::output, "[B, Hk, F, F2 or E]", "none", "gradient of the loss by w2"},
        {"dw3", kind::output, "[B, Hk, F2, E]", "none", "gradient of the loss by w3"},
        {"dm1", kind::output, "[B, Hk, D, F or E]", "none", "gradient of the loss by m1"},
        {"dm2", kind::output, "[B, Hk, F, F2 or E]", "none", "gradient of the loss by m2"},
        {"dm3", kind::output, "[B, Hk, F2, E]", "none", "gradient of the loss by m3"},
        {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
        {"verb", kind::choice, "forward|backward|decode",
         "forward, or backward with do=", "what to do; decode takes one token after the other"},
    },
    run,
}};

}  // namespace
}  // namespace conformance
