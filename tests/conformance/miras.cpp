// heed_conformance run moneta, yaad and memora: matrices that learn keys and values by three objectives.
#include "attention_call.hpp"

#include <heed/mechanism/memora.hpp>
#include <heed/mechanism/moneta.hpp>
#include <heed/mechanism/yaad.hpp>

namespace conformance {
namespace {

/// The operands and results of a call.
struct miras_run {
  arguments& given;
  verb what;
  tensor<double, 4> query, key, value, rate, out, initial, last;
  tensor<double, 3> retention;
  Eigen::ThreadPool pool;
  // Of the backward pass.
  tensor<double, 4> dout, dquery, dkey, dvalue, drate, dinitial;
  tensor<double, 3> dretention;

  explicit miras_run(arguments& all, std::vector<std::string_view> gradients)
      : given(all),
        what(verb_of(all, gradients)),
        query(all.input<double, 4>("q")),
        key(all.input<double, 4>("k")),
        value(all.input<double, 4>("v")),
        rate(all.input<double, 4>("rate", 3)),
        retention(all.input<double, 3>("retention")),
        pool(threads_of(all)) {
    given.set_output_type(given.array("q").type);
    auto shape = query.shape();
    shape[3] = value.shape()[3];
    out = tensor<double, 4>(shape);
    shape = {query.shape()[0], key.shape()[2], key.shape()[3], value.shape()[3]};
    initial = given.has("state") ? given.input<double, 4>("state") : tensor<double, 4>(shape);
    last = tensor<double, 4>(initial.shape());
    if (what != verb::backward) return;
    require(given.has("do"), [] { return "the backward pass needs do="; });
    dout = given.input<double, 4>("do");
    dquery = tensor<double, 4>(query.shape());
    dkey = tensor<double, 4>(key.shape());
    dvalue = tensor<double, 4>(value.shape());
    drate = tensor<double, 4>(rate.shape());
    dinitial = tensor<double, 4>(initial.shape());
    dretention = tensor<double, 3>(retention.shape());
  }

  heed::miras_gates<double> gates() const {
    return {retention.const_view(), rate.const_view(), dretention.view(), drate.view()};
  }

  /// With the functions of a mechanism, which take operands, gates and further arguments.
  template <class Forward, class Backward, class Step>
  void operator()(Forward forward, Backward backward, Step step) {
    if (what == verb::decode) {
      require(query.shape()[1] == key.shape()[1],
              [] { return "decoding needs as many rows of q as of k"; });
      tensor<double, 4> const reference(initial.shape());
      heed::miras_state<double> state{initial.view(), reference.view()};
      for (index_t t = 0; t < key.shape()[1]; ++t) {
        auto const cut = [&](auto const& view) { return view.slice(1, t, 1); };
        step(t, cut(query.const_view()), cut(key.const_view()), cut(value.const_view()),
             cut(out.view()),
             heed::miras_gates<double>(cut(retention.const_view()), cut(rate.const_view())), state,
             heed::on{pool});
      }
      given.output("o", out);
      return given.output("last", initial);
    }
    forward(query.const_view(), key.const_view(), value.const_view(), out.view(), gates(),
            heed::initial_state(initial.const_view()), heed::final_state{last.view()},
            heed::on{pool});
    given.output("o", out);
    given.output("last", last);
    if (what != verb::backward) return;
    backward(query.const_view(), key.const_view(), value.const_view(), dout.const_view(),
             dquery.view(), dkey.view(), dvalue.view(), gates(),
             heed::initial_state(initial.const_view(), dinitial.view()), heed::on{pool});
    given.output("dq", dquery);
    given.output("dk", dkey);
    given.output("dv", dvalue);
    given.output("dretention", dretention);
    auto shape = std::vector<index_t>(rate.shape().begin(), rate.shape().end());
    if (given.array("rate").shape.size() == 3) shape.pop_back();
    given.output("drate", drate, shape);
    given.output("dstate", dinitial);
  }
};

std::vector<parameter> parameters(std::vector<parameter> own) {
  std::vector<parameter> all{
      {"q", kind::input, "[B, N, H, D]", required, "queries"},
      {"k", kind::input, "[B, M, Hk, D]", required, "keys; Hk divides H"},
      {"v", kind::input, "[B, M, Hk, E]", required, "values"},
      {"retention", kind::input, "[B, M, Hk]", required, "in [0, 1]"},
      {"rate", kind::input, "[B, M, Hk, E|1]", required, "rates of learning; or [B, M, Hk]"},
      {"state", kind::input, "[B, Hk, D, E]", "0", "what the memory begins with"},
      {"chunk", kind::integer, "", "1", "tokens whose errors are taken at the same memory"}};
  all.insert(all.end(), own.begin(), own.end());
  std::vector<parameter> const rest{
      {"o", kind::output, "[B, N, H, E]", "none", "the result, in the type of q's file"},
      {"last", kind::output, "[B, Hk, D, E]", "none", "the state after the last token"},
      {"do", kind::input, "[B, N, H, E]", "none", "gradient of the loss by o"},
      {"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"},
      {"dk", kind::output, "[B, M, Hk, D]", "none", "gradient of the loss by k"},
      {"dv", kind::output, "[B, M, Hk, E]", "none", "gradient of the loss by v"},
      {"dretention", kind::output, "[B, M, Hk]", "none", "gradient of the loss by retention"},
      {"drate", kind::output, "as rate", "none", "gradient of the loss by rate"},
      {"dstate", kind::output, "[B, Hk, D, E]", "none", "gradient of the loss by state"},
      {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
      {"verb", kind::choice, "forward|backward|decode",
       "forward, or backward with do=", "what to do; decode takes one token after the other"}};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

void run_moneta(arguments& given) {
  heed::moneta_options const options{.p = given.number("p"),
                                     .q = given.number("norm"),
                                     .smooth = given.flag("smooth"),
                                     .exact = !given.flag("chunk_norm"),
                                     .chunk = given.integer("chunk")};
  miras_run call(given, {"dretention", "drate", "dstate"});
  call([&](auto q, auto k, auto v, auto o, auto const& gates,
           auto const&... all) { heed::moneta(q, k, v, o, gates, options, all...); },
       [&](auto q, auto k, auto v, auto d, auto dq, auto dk, auto dv, auto const& gates,
           auto const&... all) {
         heed::moneta_backward(q, k, v, d, dq, dk, dv, gates, options, all...);
       },
       [&](index_t, auto q, auto k, auto v, auto o, auto const& gates, auto& state,
           auto const&... all) { heed::moneta_step(q, k, v, o, gates, options, state, all...); });
}

void run_yaad(arguments& given) {
  std::string_view const beyond = given.choice("beyond");
  heed::yaad_options const options{.beyond = beyond == "unit"   ? heed::yaad_beyond::unit
                                             : beyond == "each" ? heed::yaad_beyond::each
                                                                : heed::yaad_beyond::sign,
                                   .chunk = given.integer("chunk")};
  miras_run call(given, {"dretention", "drate", "dstate", "dthreshold"});
  auto const threshold = given.input<double, 3>("threshold");
  tensor<double, 3> const dthreshold(threshold.shape());
  heed::yaad_threshold<double> const thresholds(threshold.const_view(), dthreshold.view());
  call([&](auto q, auto k, auto v, auto o, auto const& gates,
           auto const&... all) { heed::yaad(q, k, v, o, gates, thresholds, options, all...); },
       [&](auto q, auto k, auto v, auto d, auto dq, auto dk, auto dv, auto const& gates,
           auto const&... all) {
         heed::yaad_backward(q, k, v, d, dq, dk, dv, gates, thresholds, options, all...);
       },
       [&](index_t t, auto q, auto k, auto v, auto o, auto const& gates, auto& state,
           auto const&... all) {
         heed::yaad_step(q, k, v, o, gates,
                         heed::yaad_threshold<double>(threshold.const_view().slice(1, t, 1)),
                         options, state, all...);
       });
  if (call.what == verb::backward) given.output("dthreshold", dthreshold);
}

void run_memora(arguments& given) {
  heed::memora_options const options{.total = given.number("total"),
                                     .each_channel = given.flag("each_channel"),
                                     .chunk = given.integer("chunk")};
  miras_run call(given, {"dretention", "drate", "dstate"});
  call([&](auto q, auto k, auto v, auto o, auto const& gates,
           auto const&... all) { heed::memora(q, k, v, o, gates, options, all...); },
       [&](auto q, auto k, auto v, auto d, auto dq, auto dk, auto dv, auto const& gates,
           auto const&... all) {
         heed::memora_backward(q, k, v, d, dq, dk, dv, gates, options, all...);
       },
       [&](index_t, auto q, auto k, auto v, auto o, auto const& gates, auto& state,
           auto const&... all) { heed::memora_step(q, k, v, o, gates, options, state, all...); });
}

mechanism_registration const moneta{{
    "moneta",
    parameters({{"p", kind::number, "", "3", "the power of the error"},
                {"norm", kind::number, "", "4", "q, of the norm"},
                {"smooth", kind::flag, "", "false", "tanh(10 e) for sign(e)"},
                {"chunk_norm", kind::flag, "", "false",
                 "rows are read by the norm at the start of their chunk"}}),
    run_moneta,
}};

mechanism_registration const yaad{{
    "yaad",
    parameters(
        {{"threshold", kind::input, "[B, M, Hk]", required, "of the errors"},
         {"beyond", kind::choice, "sign|unit|each", "sign", "what is followed beyond it"},
         {"dthreshold", kind::output, "[B, M, Hk]", "none", "gradient of the loss by threshold"}}),
    run_yaad,
}};

mechanism_registration const memora{{
    "memora",
    parameters({{"total", kind::number, "", "1", "the sum of the weights"},
                {"each_channel", kind::flag, "", "false", "the softmax of each value channel"}}),
    run_memora,
}};

}  // namespace
}  // namespace conformance
