#include "reference/extra_keys.hpp"
#include "reference/patterns/neighborhood.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/extra_keys.hpp>
#include <heed/neighborhood.hpp>
#include <heed/parallel/eigen_pool.hpp>

// Neighborhoods with keys beside the canvas, registers or text, in one softmax: as attention over both lists.

using heed::index_t;
using reference::tensor;
using support::for_each_seed;
using support::seed_t;

TEST_CASE("neighborhoods with extra keys", "[mechanism][neighborhood][extra_keys]") {
  for_each_seed("neighborhoods and registers", 40, [](seed_t seed) {
    support::random draw(seed);
    std::vector<reference::axis> axes;
    heed::neighborhood<2> around;
    for (std::size_t a = 0; a < 2; ++a) {
      around.canvas[a] = draw.between(1, 10);
      around.dilation[a] = draw.between(1, std::min<index_t>(around.canvas[a], 2));
      around.window[a] = draw.between(1, around.canvas[a] / around.dilation[a]);
      around.stride[a] = draw.between(1, around.window[a]);
      around.causal[a] = draw.one_in(4);
      axes.push_back({around.canvas[a], around.window[a], around.stride[a], around.dilation[a],
                      around.causal[a]});
    }
    heed::neighborhood_order<2> const order(around, heed::attend::panel_lanes<float>);
    index_t const B = draw.between(1, 2), N = heed::grid_size(around.canvas), H = 2,
                  D = draw.between(1, 20), A = draw.between(1, 9);
    auto const make = [&](index_t tokens, index_t heads) {
      return support::normal(draw, {B, tokens, heads, D});
    };
    auto const query = make(N, H), key = make(N, 1), value = make(N, H), extra_key = make(A, H),
               extra_value = make(A, 1), dout = make(N, H);
    auto dlse = support::blank<float, 3>({B, H, N});
    dlse.fill([&](auto const&) { return float(draw.normal()); });
    reference::extra_key_options definition;
    definition.scale = 0.3;
    definition.keep = [&](index_t q, index_t k) {
      return reference::neighborhood_keeps(axes, q, k);
    };
    definition.keep_extra = [](index_t, index_t) { return true; };
    definition.log_weight = tensor<double, 3>({B, H, A});

    auto const define = [&]<class T>(T, reference::evaluation how) {
      reference::with_extra_keys<T> joint(query.values<T>(), key.values<T>(), value.values<T>(),
                                          extra_key.values<T>(), extra_value.values<T>(),
                                          definition);
      joint.how.order = how;
      auto const f = reference::attention(query.values<T>(), joint.key, joint.value, joint.how);
      auto const g =
          reference::attention_backward(query.values<T>(), joint.key, joint.value, f.out, f.lse,
                                        dout.values<T>(), dlse.values<T>(), joint.how);
      return std::tuple(f.out, f.lse, g.query,
                        reference::shared_gradient(g.key, 0, key.values<T>()),
                        reference::shared_gradient(g.value, 0, value.values<T>()),
                        reference::shared_gradient(g.key, N, extra_key.values<T>()),
                        reference::shared_gradient(g.value, N, extra_value.values<T>()));
    };
    auto const run = [&](int threads) {
      Eigen::ThreadPool pool(threads);
      heed::extra_keys const extra(extra_key.view(), extra_value.view());
      auto out = support::blank<float, 4>(dout.extents());
      auto lse = support::blank<float, 3>({B, H, N});
      auto const like = [](auto const& tensor) {
        return support::blank<float, 4>(tensor.extents());
      };
      auto dquery = like(query), dkey = like(key), dvalue = like(value),
           dextra_key = like(extra_key), dextra_value = like(extra_value);
      heed::attention_with_extra_keys(query.view(), key.view(), value.view(), extra, out.view(),
                                      order, order.pattern(), heed::scale{*definition.scale},
                                      heed::lse_into{lse.view()}, heed::on{pool});
      heed::attention_with_extra_keys_backward(
          query.view(), key.view(), value.view(), extra, std::as_const(out).view(),
          std::as_const(lse).view(), dout.view(), dquery.view(), dkey.view(), dvalue.view(),
          dextra_key.view(), dextra_value.view(), order, order.pattern(),
          heed::scale{*definition.scale}, heed::lse_gradient{std::as_const(dlse).view()},
          heed::on{pool});
      return std::tuple(out.values<float>(), lse.values<float>(), dquery.values<float>(),
                        dkey.values<float>(), dvalue.values<float>(), dextra_key.values<float>(),
                        dextra_value.values<float>());
    };
    auto const got = run(1), again = run(3);
    auto const exact = define(0.0, {});
    std::vector<decltype(define(0.0f, {}))> naive;
    for (auto each : reference::evaluations) naive.push_back(define(0.0f, each));
    char const* const names[] = {"out",    "lse",        "dquery",      "dkey",
                                 "dvalue", "dextra_key", "dextra_value"};
    std::string complaint;
    [&]<std::size_t... n>(std::index_sequence<n...>) {
      auto const one = [&](auto which) {
        constexpr std::size_t at = decltype(which)::value;
        std::vector<std::decay_t<decltype(std::get<at>(got))>> each;
        for (auto const& x : naive) each.push_back(std::get<at>(x));
        complaint += support::two_times_rule(names[at], std::get<at>(got), std::get<at>(exact),
                                             each, support::epsilon<float>(), at == 1 ? 1 : 0);
        if (!support::same_bits(std::get<at>(got), std::get<at>(again)))
          complaint += std::string(names[at]) + ": three threads give other bits than one\n";
      };
      (one(std::integral_constant<std::size_t, n>{}), ...);
    }
    (std::make_index_sequence<7>{});
    return complaint;
  });
}
