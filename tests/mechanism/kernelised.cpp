#include "reference/feature_maps.hpp"

#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/linear.hpp>
#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/features/cosine_reweighted.hpp>
#include <heed/recur/features/dpfp.hpp>
#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/features/favor.hpp>
#include <heed/recur/features/polynomial.hpp>
#include <heed/recur/features/stable_exponential.hpp>

#include <functional>

// Kernelised linear attention: every feature map in the engine, against the definition token by token, and what must
// hold for all of them.

using heed::index_t;
using heed::normalised;
using heed::tensor_view;
using support::blank;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// The definition of any map, in float and double: the recurrence is compiled once for all of them.
class any_definition {
 public:
  any_definition() = default;
  template <class Definition>
  explicit any_definition(Definition const& of)
      : count_([of](index_t dim) { return of.count(dim); }),
        single_(functions_of<float>(of)),
        double_(functions_of<double>(of)) {}

  index_t count(index_t dim) const { return count_(dim); }
  template <class T>
  std::vector<T> features(reference::feature_place const& at, std::vector<T> const& x) const {
    return in<T>().first(at, x);
  }
  template <class T>
  std::vector<T> gradient(reference::feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    return in<T>().second(at, x, dphi);
  }

 private:
  template <class T>
  using functions = std::pair<
      std::function<std::vector<T>(reference::feature_place const&, std::vector<T> const&)>,
      std::function<std::vector<T>(reference::feature_place const&, std::vector<T> const&,
                                   std::vector<T> const&)>>;
  template <class T, class Definition>
  static functions<T> functions_of(Definition const& of) {
    return {[of](auto const& at, auto const& x) { return of.features(at, x); },
            [of](auto const& at, auto const& x, auto const& d) { return of.gradient(at, x, d); }};
  }
  template <class T>
  functions<T> const& in() const {
    if constexpr (std::is_same_v<T, float>)
      return single_;
    else
      return double_;
  }

  std::function<index_t(index_t)> count_;
  functions<float> single_;
  functions<double> double_;
};

using any_map = heed::feature_map_view<float>;

/// A call with a feature map: causal, over all keys or of documents, with or without a normaliser and states.
struct kernelised {
  support::random draw;
  any_map map;
  reference::recurrence<any_definition> definition;
  index_t B, N, M, H, D, E;
  guarded<float, 4> q, k, v, out, dout, dq, dk, dv, state, dstate, final;
  std::vector<index_t> offsets;

  kernelised(seed_t seed, any_map const& m, any_definition const& of_map, bool positive, bool steps)
      : draw(seed), map(m) {
    definition.map = of_map;
    bool const documents = !steps && draw.one_in(3);
    B = documents ? 1 : draw.between(1, 2);
    N = draw.between(12, draw.one_in(6) ? 150 : 40);
    M = steps || documents || draw.one_in(2) ? N : draw.between(5, 40);
    H = draw.one_in(2) ? 1 : 2;
    D = draw.between(4, 10);
    E = draw.between(3, 12);
    definition.heads = H;
    definition.scale = draw.one_in(2) ? 1 : 0.7;
    definition.normalised = positive && draw.one_in(2);
    definition.epsilon = draw.one_of(std::array{1e-6, 0.1});
    definition.dense = !steps && draw.one_in(4);
    if (documents) {
      offsets = {0, draw.between(0, N), N, N};
      definition.query_offsets = definition.key_offsets = offsets;
    }
    index_t const key_heads = draw.one_in(2) ? H : 1, value_heads = draw.one_in(2) ? H : 1;
    q = support::normal(draw, {B, N, H, D});
    k = support::normal(draw, {B, M, key_heads, D});
    v = support::normal(draw, {B, M, value_heads, E});
    out = blank<float, 4>({B, N, H, E});
    dout = support::normal(draw, {B, N, H, E});
    dq = blank<float, 4>(q.extents());
    dk = blank<float, 4>(k.extents());
    dv = blank<float, 4>(v.extents());
    support::extents_of<4> const states{documents ? 3 : B, std::max(key_heads, value_heads),
                                        definition.map.count(D),
                                        E + (definition.normalised ? 1 : 0)};
    state = support::normal(draw, states);
    // What rows are divided by stays away from 0.
    for (index_t f = 0; positive && f < states[2]; ++f)
      for (index_t s = 0; s < states[0]; ++s)
        for (index_t h = 0; h < states[1]; ++h) {
          float& sum = state.view()(s, h, f, states[3] - 1);
          sum = std::abs(sum) + 0.5f;
        }
    dstate = blank<float, 4>(states);
    final = blank<float, 4>(states);
  }

  template <class F>
  void with_ingredients(F const& f) {
    auto const with_order = [&](auto const&... more) {
      if (definition.dense)
        f(map, heed::scale{definition.scale, nullptr}, heed::dense{}, more...);
      else
        f(map, heed::scale{definition.scale, nullptr}, more...);
    };
    auto const with_divisor = [&](auto const&... more) {
      if (definition.normalised)
        with_order(normalised{.epsilon = definition.epsilon}, more...);
      else
        with_order(more...);
    };
    if (offsets.empty())
      with_divisor();
    else
      with_divisor(heed::documents{offsets, offsets});
  }

  template <class T>
  reference::recurrence_operands<T> operands() const {
    reference::recurrence_operands<T> x;
    x.query = q.template values<T>();
    x.key = k.template values<T>();
    x.value = v.template values<T>();
    x.initial = state.template values<T>();
    return x;
  }

  std::string compare() {
    auto const begin = heed::initial_state(std::as_const(state).view(), dstate.view());
    with_ingredients([&](auto const&... own) {
      heed::linear_attention(q.view(), k.view(), v.view(), out.view(), begin,
                             heed::final_state{final.view()}, own...);
      heed::linear_attention_backward(q.view(), k.view(), v.view(), out.view(), dout.view(),
                                      dq.view(), dk.view(), dv.view(), begin, own...);
    });
    auto const exact = definition.forward(operands<double>());
    auto const naive = definition.forward(operands<float>());
    auto const slopes = definition.backward(operands<double>(), exact.out, dout.values<double>());
    auto const naive_slopes =
        definition.backward(operands<float>(), naive.out, dout.values<float>());
    auto const close = [&](char const* name, auto const& got, auto const& right,
                           auto const& other) {
      return support::two_times_rule(name, got.template values<double>(), right, std::vector{other},
                                     support::epsilon<float>());
    };
    return close("out", out, exact.out, naive.out) +
           close("state", final, exact.state, naive.state) +
           close("dq", dq, slopes.query, naive_slopes.query) +
           close("dk", dk, slopes.key, naive_slopes.key) +
           close("dv", dv, slopes.value, naive_slopes.value) +
           close("dstate", dstate, slopes.initial, naive_slopes.initial);
  }

  /// Token by token; maps of positions are those of a token's position.
  template <class MapAt>
  std::string steps(MapAt map_at) {
    auto const exact = definition.forward(operands<double>());
    auto const naive = definition.forward(operands<float>());
    for (index_t t = 0; t < N; ++t) {
      auto const at = [t](auto& tensor) { return tensor.view().slice(1, t, 1); };
      heed::scale const scale{definition.scale, nullptr};
      if (definition.normalised)
        heed::linear_attention_step(at(q), at(k), at(v), at(out), state.view(), map_at(t), scale,
                                    normalised{.epsilon = definition.epsilon});
      else
        heed::linear_attention_step(at(q), at(k), at(v), at(out), state.view(), map_at(t), scale);
    }
    return support::two_times_rule("out", out.template values<double>(), exact.out,
                                   std::vector{naive.out}, support::epsilon<float>()) +
           support::two_times_rule("state", state.template values<double>(), exact.state,
                                   std::vector{naive.state}, support::epsilon<float>());
  }
};

template <class Map, class Definition>
void check(char const* name, Map const& map, Definition const& definition, bool positive) {
  for_each_seed(name, 40, [&](seed_t seed) {
    any_map const any(map);
    any_definition const of(definition);
    return kernelised(seed, any, of, positive, false).compare() +
           kernelised(seed, any, of, positive, true).steps([&](index_t) { return map; });
  });
}

/// linear_attention of one head with a map.
struct plain {
  support::random draw{3};
  guarded<float, 4> q, k, v, out;

  plain(index_t N, index_t M, index_t D, index_t E)
      : q(support::normal(draw, {1, N, 1, D})),
        k(support::normal(draw, {1, M, 1, D})),
        v(support::normal(draw, {1, M, 1, E})),
        out(blank<float, 4>({1, N, 1, E})) {}

  template <class... I>
  reference::tensor<float, 4> operator()(I const&... ingredients) {
    heed::linear_attention(q.view(), k.view(), v.view(), out.view(), ingredients...);
    return out.values<float>();
  }
};

}  // namespace

TEST_CASE("kernelised attention: maps of one number", "[mechanism][features]") {
  check("kernelised elu", heed::elu_plus_one{}, reference::elu_plus_one{}, true);
  check("kernelised relu", heed::relu{}, reference::relu{}, true);
  check("kernelised squared relu", heed::squared_relu{}, reference::squared_relu{}, true);
  check("kernelised exponential", heed::exponential{}, reference::exponential{}, true);
  check("kernelised silu", heed::silu{}, reference::silu{}, false);
  check("kernelised sigmoid", heed::sigmoid{}, reference::sigmoid{}, true);
}

TEST_CASE("kernelised attention: maps of rows", "[mechanism][features]") {
  check("kernelised softmax", heed::channel_softmax{}, reference::channel_softmax{}, true);
  check("kernelised dpfp", heed::dpfp{2}, reference::dpfp{2}, true);
  check("kernelised taylor", heed::taylor{}, reference::taylor{}, false);
  std::vector<float> shift{1.5f};
  check("kernelised stable exponential",
        heed::stable_exponential(tensor_view<float const, 2>(shift.data(), {1, 1})),
        reference::stable_exponential{[](index_t, index_t) { return 1.5; }}, true);
}

TEST_CASE("kernelised attention: maps of positions", "[mechanism][features]") {
  for_each_seed("kernelised cosine", 40, [](seed_t seed) {
    heed::cosine_reweighted const map{200};
    reference::cosine_reweighted const definition{200};
    any_map const any(map);
    any_definition const of(definition);
    return kernelised(seed, any, of, false, false).compare() +
           kernelised(seed, any, of, false, true).steps([](index_t t) {
             return heed::cosine_reweighted{200, t};
           });
  });
}

TEST_CASE("kernelised attention: values of 1 give 1", "[mechanism][features]") {
  plain p(50, 50, 6, 4);
  p.v.fill([](auto const&) { return 1.f; });
  auto const all_one = [](reference::tensor<float, 4> const& out) {
    for (float x : out.values)
      if (!(std::abs(x - 1) < 2e-6f)) return false;
    return true;
  };
  normalised const exactly{.epsilon = 0};
  CHECK(all_one(p(heed::elu_plus_one{}, exactly)));
  CHECK(all_one(p(heed::elu_plus_one{}, exactly, heed::dense{})));
  CHECK(all_one(p(heed::exponential{}, exactly)));
  CHECK(all_one(p(heed::sigmoid{}, exactly)));
  CHECK(all_one(p(heed::channel_softmax{}, exactly)));
  CHECK(all_one(p(heed::taylor{}, exactly)));
}

TEST_CASE("kernelised attention: factors common to all keys cancel", "[mechanism][features]") {
  plain p(40, 40, 6, 4);
  normalised const exactly{.epsilon = 0};
  auto const before = p(heed::exponential{}, exactly);
  std::vector<float> shift(1);
  heed::largest_of_keys(p.k.view(), tensor_view<float, 2>(shift.data(), {1, 1}));
  heed::stable_exponential const stable(tensor_view<float const, 2>(shift.data(), {1, 1}));
  CHECK(support::difference(p(stable, exactly), before) < 5e-6);
  // And far beyond what e^x can hold.
  for (auto* tensor : {&p.q, &p.k})
    tensor->fill([&](auto const& at) {
      return std::as_const(*tensor).view()(at[0], at[1], at[2], at[3]) + 500;
    });
  heed::largest_of_keys(p.k.view(), tensor_view<float, 2>(shift.data(), {1, 1}));
  CHECK(support::difference(p(stable, exactly), before) < 2e-4);
}

TEST_CASE("kernelised attention: the order of keys matters to no one who sees them all",
          "[mechanism][features]") {
  plain p(20, 30, 6, 4);
  auto const before = p(heed::elu_plus_one{}, normalised{}, heed::dense{});
  for (auto* tensor : {&p.k, &p.v}) {
    auto const old = tensor->values<float>();
    tensor->fill([&](auto const& at) { return old(0, 29 - at[1], 0, at[3]); });
  }
  CHECK(support::difference(p(heed::elu_plus_one{}, normalised{}, heed::dense{}), before) < 2e-6);
}

TEST_CASE("kernelised attention: rows without features give 0", "[mechanism][features]") {
  plain p(20, 20, 6, 4);
  p.q.fill([&](auto const& at) {
    float const x = std::as_const(p.q).view()(at[0], at[1], at[2], at[3]);
    return at[1] == 7 ? -std::abs(x) : x;
  });
  for (double epsilon : {0.0, 1e-6}) {
    auto const out = p(heed::relu{}, normalised{.epsilon = epsilon});
    for (index_t e = 0; e < 4; ++e) CHECK(out(0, 7, 0, e) == 0);
    for (float x : out.values) CHECK(std::isfinite(x));
  }
}
