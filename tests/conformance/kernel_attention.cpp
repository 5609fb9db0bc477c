// heed_conformance run kernelised | based | cosformer | fast_attention | efficient_attention | performer: attention whose
// weights are products of features.
#include "attention_call.hpp"

#include <heed/mechanism/based.hpp>
#include <heed/mechanism/cosformer.hpp>
#include <heed/mechanism/efficient_attention.hpp>
#include <heed/mechanism/fast_attention.hpp>
#include <heed/mechanism/performer.hpp>
#include <heed/recur/features/dpfp.hpp>
#include <heed/recur/features/elementwise.hpp>

#include <limits>

namespace conformance {
namespace {

/// The operands of a call, and its three ways: forward and backward, over all keys if `dense`, and token by token.
struct kernel_call {
  arguments& given;
  tensor<double, 4> query, key, value, out;
  Eigen::ThreadPool pool;
  bool is_dense;

  explicit kernel_call(arguments& from)
      : given(from),
        query(given.input<double, 4>("q")),
        key(given.input<double, 4>("k")),
        value(given.input<double, 4>("v")),
        out({query.shape()[0], query.shape()[1], query.shape()[2], value.shape()[3]}),
        pool(threads_of(given)),
        is_dense(given.choice("order") == "dense") {
    given.set_output_type(given.array("q").type);
  }

  /// A state of zeros.
  tensor<double, 4> state(index_t features, index_t columns) const {
    return tensor<double, 4>(
        {query.shape()[0], std::max(key.shape()[2], value.shape()[2]), features, columns});
  }

  /// forward(query, key, value, out, executor), and so on with dense{} at the end; backward also of the gradients;
  /// step(token, query, key, value, out, executor).
  template <class Forward, class Backward, class Step>
  void run(Forward const& forward, Backward const& backward, Step const& step) {
    verb const what = verb_of(given);
    heed::on<Eigen::ThreadPool> const run_on{pool};
    auto const in_order = [&](auto const& call) {
      if (is_dense)
        call(run_on, heed::dense{});
      else
        call(run_on);
    };
    if (what == verb::decode) {
      require(!is_dense && query.shape()[1] == key.shape()[1],
              [] { return "decoding is of causal calls with as many keys as queries"; });
      for (index_t t = 0; t < query.shape()[1]; ++t) {
        auto const at = [t](auto view) { return view.slice(1, t, 1); };
        step(t, at(query.const_view()), at(key.const_view()), at(value.const_view()),
             at(out.view()), run_on);
      }
    } else {
      in_order([&](auto const&... own) {
        forward(query.const_view(), key.const_view(), value.const_view(), out.view(), own...);
      });
    }
    given.output("o", out);
    if (what != verb::backward) return;

    require(given.has("do"), [] { return "the backward pass needs do="; });
    auto const dout = given.input<double, 4>("do");
    tensor<double, 4> const dquery(query.shape()), dkey(key.shape()), dvalue(value.shape());
    in_order([&](auto const&... own) {
      backward(query.const_view(), key.const_view(), value.const_view(), out.const_view(),
               dout.const_view(), dquery.view(), dkey.view(), dvalue.view(), own...);
    });
    given.output("dq", dquery);
    given.output("dk", dkey);
    given.output("dv", dvalue);
  }
};

/// The parameters of such calls, with those of a mechanism between operands and the rest.
std::vector<parameter> kernel_parameters(std::string_view order, std::vector<parameter> own) {
  std::vector<parameter> all{
      {"q", kind::input, "[B, N, H, D]", required, "queries"},
      {"k", kind::input, "[B, M, H_k, D]", required, "keys; H_k divides H"},
      {"v", kind::input, "[B, M, H_v, D_v]", required, "values; H_v divides H"},
      {"o", kind::output, "[B, N, H, D_v]", "none", "the result, in the type of q's file"},
  };
  all.insert(all.end(), own.begin(), own.end());
  for (parameter const& each : std::vector<parameter>{
           {"order", kind::choice, "causal|dense", order, "dense: every query meets all keys"},
           {"do", kind::input, "[B, N, H, D_v]", "none", "gradient of the loss by o"},
           {"dq", kind::output, "[B, N, H, D]", "none", "gradient of the loss by q"},
           {"dk", kind::output, "[B, M, H_k, D]", "none", "gradient of the loss by k"},
           {"dv", kind::output, "[B, M, H_v, D_v]", "none", "gradient of the loss by v"},
           {"threads", kind::integer, "", "1", "threads of the pool that it runs on"},
           {"verb", kind::choice, "forward|backward|decode",
            "forward, or backward with do=", "decode: token by token, with a state"}})
    all.push_back(each);
  return all;
}

/// The feature map that was asked for, so that calls are compiled once for all of them.
struct chosen_map {
  std::string_view name;
  index_t nu;

  template <class F>
  void visit(F const& f) const {
    if (name == "elu_plus_one") f(heed::elu_plus_one{});
    if (name == "relu") f(heed::relu{});
    if (name == "squared_relu") f(heed::squared_relu{});
    if (name == "exponential") f(heed::exponential{});
    if (name == "silu") f(heed::silu{});
    if (name == "sigmoid") f(heed::sigmoid{});
    if (name == "softmax") f(heed::channel_softmax{});
    if (name == "dpfp") f(heed::dpfp{nu});
  }
  index_t features(index_t dim) const {
    return name == "dpfp" ? heed::dpfp{nu}.features(dim) : dim;
  }
  void check(heed::recurrence_shape const& shape) const {
    if (name == "dpfp") heed::dpfp{nu}.check(shape);
  }
  template <class T>
  void apply(heed::side of, heed::feature_rows<T> const& x, T* phi, index_t stride) const {
    visit([&](auto const& map) { map.apply(of, x, phi, stride); });
  }
  template <class T>
  void differentiate(heed::side of, heed::feature_rows<T> const& x, T const* phi, T const* dphi,
                     index_t stride, T* dx, index_t dx_stride) const {
    visit([&](auto const& map) { map.differentiate(of, x, phi, dphi, stride, dx, dx_stride); });
  }
};

void run_kernelised(arguments& given) {
  kernel_call call(given);
  chosen_map const map{given.choice("map"), given.integer("nu")};
  heed::normalised const by{given.number("epsilon")};
  bool const plain = given.flag("unnormalised");
  auto const state =
      call.state(map.features(call.key.shape()[3]), call.value.shape()[3] + (plain ? 0 : 1));
  if (plain)
    call.run([&](auto... all) { heed::linear_attention(all..., map); },
             [&](auto... all) { heed::linear_attention_backward(all..., map); },
             [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
               heed::linear_attention_step(q, k, v, o, state.view(), map, on);
             });
  else
    call.run([&](auto... all) { heed::linear_attention(all..., map, by); },
             [&](auto... all) { heed::linear_attention_backward(all..., map, by); },
             [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
               heed::linear_attention_step(q, k, v, o, state.view(), map, by, on);
             });
}

void run_based(arguments& given) {
  kernel_call call(given);
  auto const state =
      call.state(heed::taylor::features(call.key.shape()[3]), call.value.shape()[3] + 1);
  call.run([](auto... all) { heed::based_attention(all...); },
           [](auto... all) { heed::based_attention_backward(all...); },
           [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
             heed::based_attention_step(q, k, v, o, state.view(), on);
           });
}

void run_cosformer(arguments& given) {
  kernel_call call(given);
  index_t const longest = std::max(call.query.shape()[1], call.key.shape()[1]);
  index_t const positions =
      given.has("horizon") ? given.integer("horizon") : std::max<index_t>(longest, 1);
  auto const state = call.state(2 * call.key.shape()[3], call.value.shape()[3] + 1);
  heed::cosine_horizon const at{positions};
  call.run([&](auto... all) { heed::cosformer(all..., at); },
           [&](auto... all) { heed::cosformer_backward(all..., at); },
           [&](index_t t, auto q, auto k, auto v, auto o, auto const& on) {
             heed::cosformer_step(q, k, v, o, state.view(), heed::cosine_horizon{positions, t}, on);
           });
}

void run_fast_attention(arguments& given) {
  using enum heed::standardisation;
  kernel_call call(given);
  std::string_view const name = given.choice("standardise");
  heed::fastmax const how{given.integer("degree"),
                          name == "none"           ? none
                          : name == "by_deviation" ? by_deviation
                                                   : by_largest_norm,
                          given.number("scale")};
  auto const state = call.state(heed::polynomial{how.degree, 1}.features(call.key.shape()[3]),
                                call.value.shape()[3] + 1);
  call.run([&](auto... all) { heed::fast_attention(all..., how); },
           [&](auto... all) { heed::fast_attention_backward(all..., how); },
           [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
             heed::fast_attention_step(q, k, v, o, state.view(), how, on);
           });
}

/// Calls f with all but the last argument, dense{}, which says that the call is over all keys.
template <class F, class... All>
void without_order(F const& f, All const&... all) {
  std::apply(f, heed::all_of<[]<class T>() { return !std::same_as<T, heed::dense>; }>(all...));
}

void run_efficient_attention(arguments& given) {
  kernel_call call(given);
  bool const by_length = given.choice("normalise") == "length";
  require(!by_length || call.is_dense,
          [] { return "normalise=length is over all keys; expected order=dense"; });
  auto const state = call.state(call.key.shape()[3], call.value.shape()[3]);
  tensor<double, 3> const total({call.key.shape()[0], call.key.shape()[2], call.key.shape()[3]});
  std::fill_n(total.data(), total.view().size(), -std::numeric_limits<double>::infinity());
  call.run(
      [&](auto... all) {
        without_order(
            [&](auto const&... own) {
              by_length       ? heed::efficient_attention_by_length(own...)
              : call.is_dense ? heed::efficient_attention(own...)
                              : heed::causal_efficient_attention(own...);
            },
            all...);
      },
      [&](auto... all) {
        without_order(
            [&](auto const&... own) {
              by_length       ? heed::efficient_attention_by_length_backward(own...)
              : call.is_dense ? heed::efficient_attention_backward(own...)
                              : heed::causal_efficient_attention_backward(own...);
            },
            all...);
      },
      [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
        heed::causal_efficient_attention_step(q, k, v, o, state.view(),
                                              heed::running_log_total{total.view()}, on);
      });
}

void run_performer(arguments& given) {
  kernel_call call(given);
  heed::favor_projection const omega(given.input<double, 2>("omega").const_view());
  heed::favor const features{omega, given.number("epsilon")};
  auto const state = call.state(omega.features(), call.value.shape()[3] + 1);
  tensor<double, 2> const largest({call.key.shape()[0], call.key.shape()[2]});
  std::fill_n(largest.data(), largest.view().size(), -std::numeric_limits<double>::infinity());
  call.run(
      [&](auto... all) {
        without_order(
            [&](auto const& q, auto const& k, auto const& v, auto const& o, auto const& on) {
              if (call.is_dense)
                heed::performer(q, k, v, o, features, on);
              else
                heed::causal_performer(q, k, v, o, omega, on);
            },
            all...);
      },
      [&](auto... all) {
        without_order(
            [&](auto const& q, auto const& k, auto const& v, auto const& o, auto const& d,
                auto const& dq, auto const& dk, auto const& dv, auto const& on) {
              if (call.is_dense)
                heed::performer_backward(q, k, v, o, d, dq, dk, dv, features, on);
              else
                heed::causal_performer_backward(q, k, v, o, d, dq, dk, dv, omega, on);
            },
            all...);
      },
      [&](index_t, auto q, auto k, auto v, auto o, auto const& on) {
        heed::causal_performer_step(q, k, v, o, state.view(), heed::running_maximum{largest.view()},
                                    omega, on);
      });
}

mechanism_registration const kernelised{{
    "kernelised",
    kernel_parameters("causal",
                      {{"map", kind::choice,
                        "elu_plus_one|relu|squared_relu|exponential|silu|sigmoid|softmax|dpfp",
                        "elu_plus_one", "the features of queries and keys"},
                       {"nu", kind::integer, "", "1", "the rolls of dpfp"},
                       {"epsilon", kind::number, "", "1e-6", "added to the sum of weights"},
                       {"unnormalised", kind::flag, "", "false", "sums, not averages"}}),
    run_kernelised,
}};
mechanism_registration const based{{"based", kernel_parameters("causal", {}), run_based}};
mechanism_registration const cosformer{{
    "cosformer",
    kernel_parameters("causal", {{"horizon", kind::integer, "", "max(N, M)",
                                  "the distance at which a weight would be 0"}}),
    run_cosformer,
}};
mechanism_registration const fast_attention{{
    "fast_attention",
    kernel_parameters("causal", {{"degree", kind::integer, "", "2", "of the polynomial"},
                                 {"standardise", kind::choice, "none|by_deviation|by_largest_norm",
                                  "by_deviation", "queries and keys"},
                                 {"scale", kind::number, "", "1", "factor of their product"}}),
    run_fast_attention,
}};
mechanism_registration const efficient_attention{{
    "efficient_attention",
    kernel_parameters("dense", {{"normalise", kind::choice, "softmax|length", "softmax",
                                 "channels and positions, or q.k / sqrt(N M)"}}),
    run_efficient_attention,
}};
mechanism_registration const performer{{
    "performer",
    kernel_parameters("dense",
                      {{"omega", kind::input, "[features, D]", required, "the projection"},
                       {"epsilon", kind::number, "", "1e-4", "added to the features; not causal"}}),
    run_performer,
}};

}  // namespace
}  // namespace conformance
