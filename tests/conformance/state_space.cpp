// heed_conformance run diagonal_scan | causal_convolution | selective_scan | state_space_dual | s4d: recurrences of channels.
#include "operand_call.hpp"

#include <heed/mechanism/s4d.hpp>
#include <heed/mechanism/selective_scan.hpp>
#include <heed/mechanism/state_space_dual.hpp>

namespace conformance {
namespace {

constexpr std::string_view tokens = "[B, N, H, D]";
constexpr std::string_view all_verbs = "forward|backward|decode";

void run_scan(arguments& given) {
  operand_call call(given, {"da", "dx"}, "x");
  auto const a = call.take<4>("a", "da"), x = call.take<4>("x", "dx");
  tensor<double, 4> const out(x.value.shape());
  auto const with = [&](auto const&... how) {
    if (call.what == verb::decode) {
      auto const& e = x.value.shape();
      tensor<double, 4> const state({e[0], e[2], 1, e[3]});
      for (index_t t = 0; t < e[1]; ++t)
        heed::diagonal_scan(a.at(t), x.at(t), out.view().slice(1, t, 1), how...,
                            heed::state{state.view()});
      return;
    }
    heed::diagonal_scan(a.in(), x.in(), out.view(), how..., call.run_on);
    if (call.what == verb::backward)
      heed::diagonal_scan_backward(a.in(), out.const_view(), call.dout().const_view(), a.to(),
                                   x.to(), how..., call.run_on);
  };
  if (given.flag("in_logs"))
    with(heed::in_logs{});
  else
    with();
  given.output("o", out);
  if (call.what == verb::backward) call.write(a, x);
}

mechanism_registration const diagonal_scan{{
    "diagonal_scan",
    operand_parameters(
        {{"a", "da", tokens, "factors, or their logarithms"}, {"x", "dx", tokens, "what is added"}},
        tokens, {{"in_logs", kind::flag, "", "false", "a holds logarithms"}}, all_verbs),
    run_scan,
}};

void run_convolution(arguments& given) {
  operand_call call(given, {"dx", "dweights", "dbias"}, "x");
  auto const x = call.take<4>("x", "dx");
  auto const weights = call.take<3>("weights", "dweights");
  auto const bias = call.take<2>("bias", "dbias");
  tensor<double, 4> const out(x.value.shape());
  auto const with = [&](auto const&... how) {
    heed::channel_bias const add(bias.in(), bias.to());
    if (call.what == verb::decode) {
      auto const& e = x.value.shape();
      tensor<double, 4> const state({e[0], e[2], weights.value.shape()[0] - 1, e[3]});
      for (index_t t = 0; t < e[1]; ++t)
        heed::causal_convolution(x.at(t), weights.in(), out.view().slice(1, t, 1), add, how...,
                                 heed::state{state.view()});
      return;
    }
    heed::causal_convolution(x.in(), weights.in(), out.view(), add, how..., call.run_on);
    if (call.what == verb::backward)
      heed::causal_convolution_backward(x.in(), weights.in(), call.dout().const_view(), x.to(),
                                        weights.to(), add, how..., call.run_on);
  };
  if (given.flag("silu"))
    with(heed::with_silu{});
  else
    with();
  given.output("o", out);
  if (call.what == verb::backward) call.write(x, weights, bias);
}

mechanism_registration const convolution{{
    "causal_convolution",
    operand_parameters({{"x", "dx", tokens, "inputs"},
                        {"weights", "dweights", "[taps, H, D]", "tap 0 that of the token itself"},
                        {"bias", "dbias", "[H, D]", "added before silu"}},
                       tokens, {{"silu", kind::flag, "", "false", "x sigmoid(x) of the result"}},
                       all_verbs),
    run_convolution,
}};

void run_selective(arguments& given) {
  operand_call call(given, {"du", "dstep", "da", "db", "dc", "dskip", "dz", "dbias"}, "u");
  auto const u = call.take<4>("u", "du"), step = call.take<4>("step", "dstep"),
             b = call.take<4>("b", "db"), c = call.take<4>("c", "dc"), z = call.take<4>("z", "dz");
  auto const a = call.take<3>("a", "da");
  auto const skip = call.take<2>("skip", "dskip"), bias = call.take<2>("bias", "dbias");
  tensor<double, 4> const out(u.value.shape());
  heed::skip_input const add(skip.in(), skip.to());
  heed::softplus_step const soft(bias.in(), bias.to());
  if (call.what == verb::decode) {
    auto const& e = u.value.shape();
    tensor<double, 4> const state({e[0], e[2], a.value.shape()[2], e[3]});
    for (index_t t = 0; t < e[1]; ++t)
      heed::selective_scan(u.at(t), step.at(t), a.in(), b.at(t), c.at(t), out.view().slice(1, t, 1),
                           add, soft, heed::silu_gate(z.at(t)), heed::state{state.view()});
  } else {
    heed::selective_scan(u.in(), step.in(), a.in(), b.in(), c.in(), out.view(), add, soft,
                         heed::silu_gate(z.in()), call.run_on);
  }
  given.output("o", out);
  if (call.what != verb::backward) return;
  heed::selective_scan_backward(u.in(), step.in(), a.in(), b.in(), c.in(), call.dout().const_view(),
                                u.to(), step.to(), a.to(), b.to(), c.to(), add, soft,
                                heed::silu_gate(z.in(), z.to()), call.run_on);
  call.write(u, step, a, b, c, skip, z, bias);
}

mechanism_registration const selective{{
    "selective_scan",
    operand_parameters({{"u", "du", tokens, "inputs"},
                        {"step", "dstep", tokens, "steps before softplus"},
                        {"a", "da", "[H, D, n]", "rates, at most 0"},
                        {"b", "db", "[B, N, G, n]", "what a token writes with"},
                        {"c", "dc", "[B, N, G, n]", "what a token reads with"},
                        {"skip", "dskip", "[H, D]", "the factor of u in the result"},
                        {"z", "dz", tokens, "the result is multiplied by silu(z)"},
                        {"bias", "dbias", "[H, D]", "added to the steps before softplus"}},
                       tokens, {}, all_verbs),
    run_selective,
}};

void run_dual(arguments& given) {
  operand_call call(given, {"dx", "dstep", "drate", "db", "dc", "dskip"}, "x");
  auto const x = call.take<4>("x", "dx"), b = call.take<4>("b", "db"), c = call.take<4>("c", "dc");
  auto const step = call.take<3>("step", "dstep");
  auto const rate = call.take<1>("rate", "drate"), skip = call.take<1>("skip", "dskip");
  tensor<double, 4> const out(x.value.shape());
  heed::head_skip const add(skip.in(), skip.to());
  if (call.what == verb::decode) {
    auto const& e = x.value.shape();
    tensor<double, 4> const state({e[0], e[2], b.value.shape()[3], e[3]});
    for (index_t t = 0; t < e[1]; ++t)
      heed::state_space_dual_step(x.at(t), step.at(t), rate.in(), b.at(t), c.at(t),
                                  out.view().slice(1, t, 1), state.view(), add);
  } else {
    heed::state_space_dual(x.in(), step.in(), rate.in(), b.in(), c.in(), out.view(), add,
                           call.run_on);
  }
  given.output("o", out);
  if (call.what != verb::backward) return;
  heed::state_space_dual_backward(x.in(), step.in(), rate.in(), b.in(), c.in(),
                                  call.dout().const_view(), x.to(), step.to(), rate.to(), b.to(),
                                  c.to(), add, call.run_on);
  call.write(x, step, rate, b, c, skip);
}

mechanism_registration const dual{{
    "state_space_dual",
    operand_parameters({{"x", "dx", tokens, "inputs"},
                        {"step", "dstep", "[B, N, H]", "steps, at least 0"},
                        {"rate", "drate", "[H]", "rates, at most 0"},
                        {"b", "db", "[B, N, G, n]", "what a token writes with"},
                        {"c", "dc", "[B, N, G, n]", "what a token reads with"},
                        {"skip", "dskip", "[H]", "the factor of x in the result"}},
                       tokens, {}, all_verbs),
    run_dual,
}};

void run_s4d(arguments& given) {
  operand_call call(given, {"du", "dlog_step", "dskip", "ddecay", "dfrequency", "dc_re", "dc_im"},
                    "u");
  auto const u = call.take<4>("u", "du");
  auto const log_step = call.take<2>("log_step", "dlog_step"), skip = call.take<2>("skip", "dskip");
  auto const decay = call.take<3>("decay", "ddecay"),
             frequency = call.take<3>("frequency", "dfrequency"),
             re = call.take<3>("c_re", "dc_re"), im = call.take<3>("c_im", "dc_im");
  tensor<double, 4> const out(u.value.shape());
  heed::s4d_parameters<double const> const parameters{log_step.in(),  skip.in(), decay.in(),
                                                      frequency.in(), re.in(),   im.in()};
  if (call.what == verb::decode) {
    auto const& e = u.value.shape();
    tensor<double, 4> const state({e[0], e[2], 2 * decay.value.shape()[2], e[3]});
    for (index_t t = 0; t < e[1]; ++t)
      heed::s4d(u.at(t), parameters, out.view().slice(1, t, 1), heed::state{state.view()});
  } else {
    heed::s4d(u.in(), parameters, out.view(), call.run_on);
  }
  given.output("o", out);
  if (call.what != verb::backward) return;
  heed::s4d_backward(u.in(), parameters, call.dout().const_view(), u.to(),
                     heed::s4d_parameters<double>{log_step.to(), skip.to(), decay.to(),
                                                  frequency.to(), re.to(), im.to()},
                     call.run_on);
  call.write(u, log_step, skip, decay, frequency, re, im);
}

mechanism_registration const s4d{{
    "s4d",
    operand_parameters({{"u", "du", tokens, "inputs"},
                        {"log_step", "dlog_step", "[H, D]", "logarithms of steps"},
                        {"skip", "dskip", "[H, D]", "the factor of u in the result"},
                        {"decay", "ddecay", "[H, D, n]", "log(-Re A)"},
                        {"frequency", "dfrequency", "[H, D, n]", "Im A"},
                        {"c_re", "dc_re", "[H, D, n]", "Re C"},
                        {"c_im", "dc_im", "[H, D, n]", "Im C"}},
                       tokens, {}, all_verbs),
    run_s4d,
}};

}  // namespace
}  // namespace conformance
