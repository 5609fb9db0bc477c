// heed_conformance run ema | mega | rat | chela | hymba: layers that put averages, filters or state spaces beside attention.
#include "operand_call.hpp"

#include <heed/mechanism/chela.hpp>
#include <heed/mechanism/ema.hpp>
#include <heed/mechanism/hymba.hpp>
#include <heed/mechanism/mega.hpp>
#include <heed/mechanism/rat.hpp>

namespace conformance {
namespace {

constexpr std::string_view tokens = "[B, N, H, D]";
constexpr std::string_view all_verbs = "forward|backward|decode";

void run_ema(arguments& given) {
  operand_call call(given, {"dx", "ddelta", "dalpha", "dbeta", "dgamma", "domega"}, "x");
  auto const x = call.take<4>("x", "dx");
  auto const delta = call.take<3>("delta", "ddelta"), alpha = call.take<3>("alpha", "dalpha"),
             beta = call.take<3>("beta", "dbeta"), gamma = call.take<3>("gamma", "dgamma");
  auto const omega = call.take<2>("omega", "domega");
  tensor<double, 4> const out(x.value.shape());
  heed::ema_parameters const parameters{delta.in(), alpha.in(), beta.in(), gamma.in()};
  auto const with = [&](auto const&... how) {
    if (call.what == verb::decode) {
      auto const& e = x.value.shape();
      tensor<double, 4> const state({e[0], e[2], delta.value.shape()[2], e[3]});
      for (index_t t = 0; t < e[1]; ++t)
        heed::exponential_moving_average(x.at(t), parameters, omega.in(), out.view().slice(1, t, 1),
                                         how..., heed::state{state.view()});
      return;
    }
    heed::exponential_moving_average(x.in(), parameters, omega.in(), out.view(), how...,
                                     call.run_on);
    if (call.what == verb::backward)
      heed::exponential_moving_average_backward(
          x.in(), parameters, omega.in(), call.dout().const_view(), x.to(),
          heed::ema_parameters{delta.to(), alpha.to(), beta.to(), gamma.to()}, omega.to(), how...,
          call.run_on);
  };
  if (given.flag("silu"))
    with(heed::with_silu{});
  else
    with();
  given.output("o", out);
  if (call.what == verb::backward) call.write(x, delta, alpha, beta, gamma, omega);
}

mechanism_registration const ema{{
    "ema",
    operand_parameters({{"x", "dx", tokens, "inputs"},
                        {"delta", "ddelta", "[H, D, n]", "p = sigmoid(delta)"},
                        {"alpha", "dalpha", "[H, D, n]", "decay 1 - p sigmoid(alpha)"},
                        {"beta", "dbeta", "[H, D, n]", "p beta x is added"},
                        {"gamma", "dgamma", "[H, D, n]", "gamma / sqrt(n) reads"},
                        {"omega", "domega", "[H, D]", "the factor of x in the result"}},
                       tokens, {{"silu", kind::flag, "", "false", "x sigmoid(x) of the result"}},
                       all_verbs),
    run_ema,
}};

void run_mega(arguments& given) {
  operand_call call(given, {"dtable"}, "q");
  auto const q = call.take<4>("q", "dq"), k = call.take<4>("k", "dk"), v = call.take<4>("v", "dv");
  auto const table = call.take<1>("table", "dtable");
  auto const& e = q.value.shape();
  tensor<double, 4> const out({e[0], e[1], e[2], v.value.shape()[3]});
  tensor<double, 3> const lse({e[0], e[2], e[1]});
  heed::mega_context const context{.causal = given.flag("causal"), .block = given.integer("block")};
  heed::distance_bias const bias(table.in(), table.to());
  auto const with = [&](auto const& function) {
    heed::mega_attention(q.in(), k.in(), v.in(), out.view(), lse.view(), function, context, bias,
                         call.run_on);
    if (call.what == verb::backward)
      heed::mega_attention_backward(q.in(), k.in(), v.in(), out.const_view(), lse.const_view(),
                                    call.dout().const_view(), q.to(), k.to(), v.to(), function,
                                    context, bias, call.run_on);
  };
  std::string_view const function = given.choice("function");
  if (function == "softmax")
    with(heed::softmax{});
  else if (function == "laplace")
    with(heed::mega_laplace{});
  else
    with(heed::mega_relu_squared{});
  given.output("o", out);
  if (call.what == verb::backward) call.write(q, k, v, table);
}

mechanism_registration const mega{{
    "mega",
    operand_parameters(
        {{"q", "dq", "[B, N, H, z]", "queries"},
         {"k", "dk", "[B, M, H', z]", "keys"},
         {"v", "dv", "[B, M, H'', E]", "values"},
         {"table", "dtable", "[2 P - 1]", "a bias for each distance key - query"}},
        "[B, N, H, E]",
        {{"function", kind::choice, "softmax|laplace|relu_squared", "softmax", "of the scores"},
         {"causal", kind::flag, "", "false", "keys after the query are not met"},
         {"block", kind::integer, "", "0", "positions that meet each other alone; 0 for all"}},
        "forward|backward"),
    run_mega,
}};

void run_rat(arguments& given) {
  operand_call call(given, {"dforget", "dgate"}, "q");
  auto const q = call.take<4>("q", "dq"), k = call.take<4>("k", "dk"), v = call.take<4>("v", "dv"),
             forget = call.take<4>("forget", "dforget"), gate = call.take<4>("gate", "dgate");
  index_t const size = given.integer("chunk");
  auto const& e = q.value.shape();
  tensor<double, 4> const out(e);
  if (call.what == verb::decode) {
    require(size > 0, [&] { return "chunk is " + std::to_string(size) + "; expected at least 1"; });
    std::array<index_t, 4> const cached{e[0], e[1] / size + 1, e[2], e[3]};
    tensor<double, 4> const keys(cached), values(cached), running({e[0], 1, e[2], e[3]});
    heed::rat_cache cache{keys.view(), values.view(), running.view()};
    for (index_t t = 0; t < e[1]; ++t)
      heed::rat_step(q.at(t), k.at(t), v.at(t), forget.at(t), gate.at(t), out.view().slice(1, t, 1),
                     cache, size);
  } else {
    heed::rat(q.in(), k.in(), v.in(), forget.in(), gate.in(), out.view(), size, call.run_on);
  }
  given.output("o", out);
  if (call.what != verb::backward) return;
  heed::rat_backward(q.in(), k.in(), v.in(), forget.in(), gate.in(), call.dout().const_view(),
                     q.to(), k.to(), v.to(), forget.to(), gate.to(), size, call.run_on);
  call.write(q, k, v, forget, gate);
}

mechanism_registration const rat{{
    "rat",
    operand_parameters({{"q", "dq", tokens, "queries, D even"},
                        {"k", "dk", "[B, N, H', D]", "keys"},
                        {"v", "dv", "[B, N, H'', D]", "values"},
                        {"forget", "dforget", tokens, "g of the averages, in [0, 1]"},
                        {"gate", "dgate", tokens, "z of the result, in [0, 1]"}},
                       tokens, {{"chunk", kind::integer, "", required, "tokens of a chunk"}},
                       all_verbs),
    run_rat,
}};

void run_chela(arguments& given) {
  operand_call call(given, {"dx", "dshort", "dlong", "da_q", "db_q", "da_k", "db_k"}, "x");
  auto const x = call.take<4>("x", "dx"), v = call.take<4>("v", "dv");
  auto const brief = call.take<3>("short", "dshort"), lasting = call.take<3>("long", "dlong");
  auto const aq = call.take<2>("a_q", "da_q"), bq = call.take<2>("b_q", "db_q"),
             ak = call.take<2>("a_k", "da_k"), bk = call.take<2>("b_k", "db_k");
  auto const& e = x.value.shape();
  tensor<double, 4> const z(e), out({e[0], e[1], e[2], v.value.shape()[3]});
  heed::chela_affine const affine{aq.in(), bq.in(), ak.in(), bk.in()};
  auto const with = [&](auto const&... how) {
    heed::chela(x.in(), brief.in(), lasting.in(), affine, v.in(), z.view(), out.view(), how...,
                call.run_on);
    if (call.what == verb::backward)
      heed::chela_backward(x.in(), brief.in(), lasting.in(), affine, v.in(), z.const_view(),
                           call.dout().const_view(), heed::tensor_view<double const, 4>(), x.to(),
                           brief.to(), lasting.to(),
                           heed::chela_affine{aq.to(), bq.to(), ak.to(), bk.to()}, v.to(), how...,
                           call.run_on);
  };
  if (call.what == verb::decode) {
    tensor<double, 4> const first({e[0], e[2], brief.value.shape()[0] - 1, e[3]}),
        second({e[0], e[2], lasting.value.shape()[0] - 1, e[3]}),
        memory({e[0], e[2], e[3], v.value.shape()[3]});
    for (index_t t = 0; t < e[1]; ++t)
      heed::chela(x.at(t), brief.in(), lasting.in(), affine, v.at(t), z.view().slice(1, t, 1),
                  out.view().slice(1, t, 1),
                  heed::chela_state{first.view(), second.view(), memory.view()});
  } else if (given.flag("dense")) {
    with(heed::dense{});
  } else {
    with();
  }
  given.output("z", z);
  given.output("o", out);
  if (call.what == verb::backward) call.write(x, brief, lasting, aq, bq, ak, bk, v);
}

mechanism_registration const chela{{
    "chela",
    operand_parameters({{"x", "dx", tokens, "inputs"},
                        {"short", "dshort", "[taps, H, D]", "the short filter, tap 0 the token's"},
                        {"long", "dlong", "[taps', H, D]", "the long filter"},
                        {"a_q", "da_q", "[H, D]", "queries are a_q z + b_q"},
                        {"b_q", "db_q", "[H, D]", "their bias"},
                        {"a_k", "da_k", "[H, D]", "keys are a_k z + b_k"},
                        {"b_k", "db_k", "[H, D]", "their bias"},
                        {"v", "dv", "[B, N, H', E]", "values"}},
                       "[B, N, H, E]",
                       {{"dense", kind::flag, "", "false", "centred filters, all tokens"},
                        {"z", kind::output, tokens, "none", "what queries and keys are made of"}},
                       all_verbs),
    run_chela,
}};

void run_hymba(arguments& given) {
  operand_call call(given, {"dattention", "dstate_space", "dw1", "dw2"}, "attention");
  auto const attention = call.take<4>("attention", "dattention"),
             state_space = call.take<4>("state_space", "dstate_space");
  auto const w1 = call.take<2>("w1", "dw1"), w2 = call.take<2>("w2", "dw2");
  double const epsilon = given.number("epsilon");
  tensor<double, 4> const out(attention.value.shape());
  heed::hymba_fusion(attention.in(), state_space.in(), w1.in(), w2.in(), out.view(), epsilon,
                     call.run_on);
  given.output("o", out);
  if (call.what != verb::backward) return;
  heed::hymba_fusion_backward(attention.in(), state_space.in(), w1.in(), w2.in(),
                              call.dout().const_view(), attention.to(), state_space.to(), w1.to(),
                              w2.to(), epsilon, call.run_on);
  call.write(attention, state_space, w1, w2);
}

mechanism_registration const hymba{{
    "hymba_fusion",
    operand_parameters({{"attention", "dattention", tokens, "what the attention heads return"},
                        {"state_space", "dstate_space", tokens, "what the state space returns"},
                        {"w1", "dw1", "[H, D]", "weights of the first"},
                        {"w2", "dw2", "[H, D]", "weights of the second"}},
                       tokens, {{"epsilon", kind::number, "", "1e-6", "of the norms"}},
                       "forward|backward"),
    run_hymba,
}};

}  // namespace
}  // namespace conformance
