// heed_conformance run sea_estimator: a Performer whose values are widened by what tells positions apart.
#include "attention_call.hpp"

#include <heed/mechanism/sea_estimator.hpp>

namespace conformance {
namespace {

void run(arguments& given) {
  verb const what = verb_of(given, {"dpositions"});
  auto const query = given.input<double, 4>("q"), key = given.input<double, 4>("k"),
             value = given.input<double, 4>("v");
  auto const omega = given.input<double, 2>("omega");
  bool const causal = given.has("positions");
  tensor<double, 2> positions;
  if (causal) {
    positions = given.input<double, 2>("positions");
  } else {
    positions = tensor<double, 2>({key.shape()[1], key.shape()[3]});
    heed::interpolated_identity(positions.view());
  }
  given.set_output_type(given.array("q").type);
  Eigen::ThreadPool pool(threads_of(given));
  heed::favor_projection const projection(omega.const_view());
  tensor<double, 4> const out({query.shape()[0], query.shape()[1], query.shape()[2],
                               positions.shape()[1] + value.shape()[3]});
  auto const q = query.const_view(), k = key.const_view(), v = value.const_view();
  auto const e = positions.const_view();
  if (what == verb::decode) {
    require(causal, [] { return "verb=decode is given; it needs positions="; });
    tensor<double, 4> const state({q.extent(0), std::max(k.extent(2), v.extent(2)),
                                   projection.features(), out.shape()[3] + 1});
    for (index_t i = 0; i < q.extent(1); ++i)
      heed::causal_sea_context_step(q.slice(1, i, 1), k.slice(1, i, 1), v.slice(1, i, 1),
                                    e.slice(0, i, 1), out.view().slice(1, i, 1), state.view(),
                                    projection, heed::on{pool});
  } else if (causal) {
    heed::causal_sea_context(q, k, v, e, out.view(), projection, heed::on{pool});
  } else {
    heed::sea_context(q, k, v, e, out.view(), heed::favor{projection}, heed::on{pool});
  }
  given.output("o", out);
  if (what != verb::backward) return;

  require(given.has("do"), [] { return "the backward pass needs do="; });
  auto const dout = given.input<double, 4>("do");
  tensor<double, 4> const dquery(query.shape()), dkey(key.shape()), dvalue(value.shape());
  tensor<double, 2> const dpositions(positions.shape());
  if (causal)
    heed::causal_sea_context_backward(q, k, v, e, out.const_view(), dout.const_view(),
                                      dquery.view(), dkey.view(), dvalue.view(), dpositions.view(),
                                      projection, heed::on{pool});
  else
    heed::sea_context_backward(q, k, v, e, out.const_view(), dout.const_view(), dquery.view(),
                               dkey.view(), dvalue.view(), heed::favor{projection}, heed::on{pool});
  given.output("dq", dquery);
  given.output("dk", dkey);
  given.output("dv", dvalue);
  given.output("dpositions", dpositions);
}

mechanism_registration const sea_estimator{{
    "sea_estimator",
    {
        {"q", kind::input, "[B, N, H, D]", required, "queries"},
        {"k", kind::input, "[B, N, H_k, D]", required, "keys; H_k divides H"},
        {"v", kind::input, "[B, N, H_v, D_v]", required, "values; H_v divides H"},
        {"omega", kind::input, "[features, D]", required, "the projection"},
        {"positions", kind::input, "[N, any]", "the identity, stretched",
         "learned rows; then it is causal, with features of a relu"},
        {"o", kind::output, "[B, N, H, D + D_v]", "none", "the context, in the type of q's file"},
        {"do", kind::input, "[B, N, H, D + D_v]", "none", "gradient of the loss by o"},
        {"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"},
        {"dk", kind::output, "[B, N, H_k, D]", "none", "gradient of the loss by k"},
        {"dv", kind::output, "[B, N, H_v, D_v]", "none", "gradient of the loss by v"},
        {"dpositions", kind::output, "[N, any]", "none", "gradient of the loss by positions"},
        {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
        {"verb", kind::choice, "forward|backward|decode",
         "forward, or backward with do=", "decode: position by position, from a state"},
    },
    run,
}};

}  // namespace
}  // namespace conformance
