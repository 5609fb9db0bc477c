#include "reference/extra_keys.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/extra_keys.hpp>
#include <heed/parallel/eigen_pool.hpp>

#include <functional>

// Keys beside a sequence, against the definition: one softmax over both.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

/// Any pattern, so that the engine is compiled for one.
struct chosen_pattern {
  std::function<bool(index_t, index_t)> rule;
  bool keep(index_t query, index_t key) const { return rule(query, key); }
};

struct extra_key_problem {
  support::random draw;
  index_t B, N, M, A, H, D, Dv;
  guarded<float, 4> query, key, value, extra_key, extra_value, out, dout;
  guarded<float, 3> weights, lse, dlse;
  reference::extra_key_options definition;
  double scale;

  explicit extra_key_problem(seed_t seed)
      : draw(seed),
        B(draw.between(1, 2)),
        N(draw.one_in(3) ? draw.between(1, 4) : draw.between(5, 60)),
        M(draw.between(1, 90)),
        A(draw.between(1, 20)),
        H(draw.one_in(2) ? 4 : 6),
        D(draw.between(1, 24)),
        Dv(draw.between(4, 24)) {
    auto const shared = [&] { return draw.one_of(std::array<index_t, 3>{1, 2, H}); };
    query = make({B, N, H, D});
    key = make({B, M, shared(), D});
    value = make({B, M, shared(), Dv});
    extra_key = make({B, A, shared(), D});
    extra_value = make({B, A, shared(), Dv});
    out = make({B, N, H, Dv});
    dout = make({B, N, H, Dv});
    lse = support::blank<float, 3>({B, H, N});
    dlse = support::blank<float, 3>({B, H, N});
    dlse.fill([&](auto const&) { return float(draw.normal()); });
    weights = support::blank<float, 3>({draw.one_in(2) ? 1 : B, draw.one_in(2) ? 1 : H, A});
    double const infinity = std::numeric_limits<double>::infinity();
    weights.fill([&](auto const&) {
      return draw.one_in(6) ? float(-infinity) : float(draw.uniform(-1, 4));
    });
    definition.log_weight = tensor<double, 3>({B, H, A});
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t t = 0; t < A; ++t)
          definition.log_weight(b, h, t) =
              double(weights.view()(b % weights.view().extent(0), h % weights.view().extent(1), t));
    definition.scale = scale = draw.uniform(0.1, 0.6);
    definition.keep = [](index_t, index_t) { return true; };
    definition.keep_extra = definition.keep;
    if (draw.one_in(2)) {
      definition.keep = [](index_t p, index_t j) { return j <= p; };
    }
    if (draw.one_in(2)) {
      index_t const left = draw.between(0, 9);
      definition.keep_extra = [=](index_t row, index_t t) { return t <= row && t >= row - left; };
    }
  }

  guarded<float, 4> make(support::extents_of<4> const& extents) {
    guarded<float, 4> tensor(extents, support::random_layout<4>(draw, extents, false));
    tensor.fill([&](auto const&) { return float(draw.normal()); });
    return tensor;
  }

  template <class T>
  reference::with_extra_keys<T> both() const {
    return {query.values<T>(),     key.values<T>(),         value.values<T>(),
            extra_key.values<T>(), extra_value.values<T>(), definition};
  }
  template <class T>
  reference::result<T> defined(reference::evaluation order = {}) const {
    auto joint = both<T>();
    joint.how.order = order;
    return reference::attention(query.values<T>(), joint.key, joint.value, joint.how);
  }

  auto extra(guarded<float, 3>* gradient = nullptr) {
    return heed::extra_keys(
        std::as_const(extra_key).view(), std::as_const(extra_value).view(),
        chosen_pattern{definition.keep_extra},
        heed::log_weights(std::as_const(weights).view(),
                          gradient == nullptr ? tensor_view<float, 3>() : gradient->view()));
  }

  std::string forward() {
    heed::attention_with_extra_keys(std::as_const(query).view(), std::as_const(key).view(),
                                    std::as_const(value).view(), extra(), out.view(),
                                    chosen_pattern{definition.keep}, heed::scale{scale},
                                    heed::lse_into{lse.view()});
    auto const exact = defined<double>();
    std::vector<tensor<float, 4>> outs;
    std::vector<tensor<float, 3>> lses;
    for (auto order : reference::evaluations) {
      auto const naive = defined<float>(order);
      outs.push_back(naive.out);
      lses.push_back(naive.lse);
    }
    return support::two_times_rule("out", out.values<double>(), exact.out, outs,
                                   support::epsilon<float>()) +
           support::two_times_rule("lse", lse.values<double>(), exact.lse, lses,
                                   support::epsilon<float>(), 1);
  }

  std::string backward() {
    auto const saved = defined<double>();
    out.fill([&](auto const& at) { return float(saved.out(at[0], at[1], at[2], at[3])); });
    lse.fill([&](auto const& at) { return float(saved.lse(at[0], at[1], at[2])); });
    guarded<float, 4> dquery = make(query.extents()), dkey = make(key.extents()),
                      dvalue = make(value.extents()), dextra_key = make(extra_key.extents()),
                      dextra_value = make(extra_value.extents());
    auto dweights = support::blank<float, 3>(weights.extents());
    double dscale = 0;
    heed::attention_with_extra_keys_backward(
        std::as_const(query).view(), std::as_const(key).view(), std::as_const(value).view(),
        extra(&dweights), std::as_const(out).view(), std::as_const(lse).view(),
        std::as_const(dout).view(), dquery.view(), dkey.view(), dvalue.view(), dextra_key.view(),
        dextra_value.view(), chosen_pattern{definition.keep}, heed::scale{scale, &dscale},
        heed::lse_gradient{std::as_const(dlse).view()});

    struct all_gradients {
      std::vector<tensor<float, 4>> floats;
      std::vector<tensor<double, 4>> doubles;
    };
    auto const parts = [&]<class T>(reference::gradients<T> const& g, T) {
      tensor<T, 4> dweight({weights.view().extent(0), weights.view().extent(1), 1, A});
      for (index_t b = 0; b < B; ++b)
        for (index_t h = 0; h < H; ++h)
          for (index_t t = 0; t < A; ++t)
            dweight(b % dweight.extent(0), h % dweight.extent(1), 0, t) +=
                g.modifiers[0](b, h, 0, M + t);
      return std::array{g.query,
                        reference::shared_gradient(g.key, 0, key.values<T>()),
                        reference::shared_gradient(g.value, 0, value.values<T>()),
                        reference::shared_gradient(g.key, M, extra_key.values<T>()),
                        reference::shared_gradient(g.value, M, extra_value.values<T>()),
                        dweight,
                        tensor<T, 4>({1, 1, 1, 1}, g.scale)};
    };
    auto const gradient = [&]<class T>(T zero, reference::evaluation order) {
      auto joint = both<T>();
      joint.how.order = order;
      return parts(reference::attention_backward(query.values<T>(), joint.key, joint.value,
                                                 out.values<T>(), lse.values<T>(), dout.values<T>(),
                                                 dlse.values<T>(), joint.how),
                   zero);
    };
    auto const exact = gradient(0.0, {});
    std::vector<std::array<tensor<float, 4>, 7>> naive;
    for (auto order : reference::evaluations) naive.push_back(gradient(0.0f, order));
    tensor<double, 4> dweight({weights.view().extent(0), weights.view().extent(1), 1, A});
    dweight.values = dweights.values<double>().values;
    std::array const got{dquery.values<double>(),
                         dkey.values<double>(),
                         dvalue.values<double>(),
                         dextra_key.values<double>(),
                         dextra_value.values<double>(),
                         dweight,
                         tensor<double, 4>({1, 1, 1, 1}, dscale)};
    char const* const names[] = {"dquery",       "dkey",    "dvalue", "dextra_key",
                                 "dextra_value", "dweight", "dscale"};
    std::string complaint;
    for (std::size_t n = 0; n < got.size(); ++n) {
      std::vector<tensor<float, 4>> each;
      for (auto const& evaluation : naive) each.push_back(evaluation[n]);
      complaint += support::two_times_rule(names[n], got[n], exact[n], each,
                                           support::epsilon<float>(), n >= 5 ? 1 : 0);
    }
    return complaint;
  }
};

}  // namespace

TEST_CASE("extra keys: one softmax over both lists", "[mechanism][extra_keys]") {
  for_each_seed("extra keys", 200, [](seed_t seed) { return extra_key_problem(seed).forward(); });
}

TEST_CASE("extra keys: the gradient", "[mechanism][extra_keys]") {
  for_each_seed("extra keys backward", 200,
                [](seed_t seed) { return extra_key_problem(seed).backward(); });
}

TEST_CASE("extra keys: a weight of log n is n equal keys", "[mechanism][extra_keys]") {
  extra_key_problem p(3);
  guarded<float, 4> many_keys =
                        support::blank<float, 4>({p.B, 5, p.extra_key.view().extent(2), p.D}),
                    many_values =
                        support::blank<float, 4>({p.B, 5, p.extra_value.view().extent(2), p.Dv});
  many_keys.fill(
      [&](auto const& at) { return p.extra_key.view()(at[0], index_t{0}, at[2], at[3]); });
  many_values.fill(
      [&](auto const& at) { return p.extra_value.view()(at[0], index_t{0}, at[2], at[3]); });
  float const log_5 = std::log(5.0f), nothing[5] = {};
  auto const weigh = [](float const* weights, index_t count) {
    return heed::log_weights(tensor_view<float const, 3>(weights, {1, 1, count}));
  };
  auto other = support::blank<float, 4>(p.out.extents());
  chosen_pattern const causal{[](index_t query, index_t j) { return j <= query; }},
      every{[](index_t, index_t) { return true; }};
  auto const views = [&](auto const& extra, auto out) {
    heed::attention_with_extra_keys(std::as_const(p.query).view(), std::as_const(p.key).view(),
                                    std::as_const(p.value).view(), extra, out, causal,
                                    heed::scale{p.scale}, heed::lse_into{p.lse.view()});
  };
  views(heed::extra_keys(std::as_const(many_keys).view(), std::as_const(many_values).view(), every,
                         weigh(nothing, 5)),
        p.out.view());
  views(
      heed::extra_keys(std::as_const(p.extra_key).view().slice(1, 0, 1),
                       std::as_const(p.extra_value).view().slice(1, 0, 1), every, weigh(&log_5, 1)),
      other.view());
  CHECK(support::difference(p.out.values<float>(), other.values<float>()) < 4e-6);
}

TEST_CASE("extra keys: the same bits with threads", "[mechanism][extra_keys]") {
  Eigen::ThreadPool pool(3);
  for_each_seed("extra keys threads", 10, [&](seed_t seed) {
    extra_key_problem p(seed);
    auto const run = [&](auto const&... ingredients) {
      heed::attention_with_extra_keys(std::as_const(p.query).view(), std::as_const(p.key).view(),
                                      std::as_const(p.value).view(), p.extra(), p.out.view(),
                                      chosen_pattern{p.definition.keep}, heed::scale{p.scale},
                                      heed::lse_into{p.lse.view()}, ingredients...);
      return std::pair(p.out.values<float>().values, p.lse.values<float>().values);
    };
    return run() == run(heed::on{pool}) ? "" : "the bits differ\n";
  });
}

TEST_CASE("extra keys: half and bfloat16 are storage", "[mechanism][extra_keys]") {
  extra_key_problem p(9);
  auto const half = [&](guarded<float, 4> const& from) {
    auto to = support::blank<Eigen::half, 4>(from.extents());
    auto const view = from.view();
    to.fill([&](auto const& at) { return Eigen::half(view(at[0], at[1], at[2], at[3])); });
    return to;
  };
  auto const key = half(p.key), value = half(p.value), query = half(p.query);
  auto const back = [](guarded<Eigen::half, 4> const& from, guarded<float, 4>& to) {
    auto const view = from.view();
    to.fill([&](auto const& at) { return float(view(at[0], at[1], at[2], at[3])); });
  };
  back(key, p.key);
  back(value, p.value);
  back(query, p.query);
  auto out = support::blank<Eigen::half, 4>(p.out.extents());
  heed::attention_with_extra_keys(query.view(), key.view(), value.view(), p.extra(), out.view(),
                                  chosen_pattern{p.definition.keep}, heed::scale{p.scale});
  auto const exact = p.defined<double>().out;
  double largest = 0, error = 0;
  auto const got = out.values<double>();
  for (std::size_t n = 0; n < exact.values.size(); ++n) {
    largest = std::max(largest, std::abs(exact.values[n]));
    error = std::max(error, std::abs(got.values[n] - exact.values[n]));
  }
  CHECK(error <= support::epsilon<Eigen::half>() * largest);
}

TEST_CASE("extra keys: what is taken away is not read", "[mechanism][extra_keys]") {
  extra_key_problem p(12);
  float const nan = std::numeric_limits<float>::quiet_NaN(),
              none = -std::numeric_limits<float>::infinity();
  p.weights.fill([&](auto const& at) { return at[2] == 0 ? none : 1.0f; });
  for (index_t b = 0; b < p.B; ++b)
    for (index_t h = 0; h < p.H; ++h) p.definition.log_weight(b, h, 0) = double(none);
  for (auto* each : {&p.extra_key, &p.extra_value})
    each->fill([&](auto const& at) { return at[1] == 0 ? nan : 0.5f; });
  heed::attention_with_extra_keys(std::as_const(p.query).view(), std::as_const(p.key).view(),
                                  std::as_const(p.value).view(), p.extra(), p.out.view(),
                                  chosen_pattern{p.definition.keep}, heed::scale{p.scale},
                                  heed::lse_into{p.lse.view()});
  for (float x : p.out.values<float>().values) CHECK(std::isfinite(x));
  for (float x : p.lse.values<float>().values) CHECK(!std::isnan(x));
}

TEST_CASE("extra keys: what does not fit is refused before anything is written",
          "[mechanism][extra_keys]") {
  std::vector<float> memory(2000, 7.0f);
  auto const tokens = [&](index_t n, index_t heads, index_t dim) {
    return heed::bnhd(memory.data(), 2, n, heads, dim);
  };
  auto const weights = [&](index_t n) {
    return heed::log_weights(tensor_view<float, 3>(memory.data(), {1, 1, n}));
  };
  chosen_pattern const every{[](index_t, index_t) { return true; }};
  auto const run = [&](auto key, auto value, index_t weight_count) {
    heed::attention_with_extra_keys(tokens(3, 4, 5), tokens(6, 2, 5), tokens(6, 2, 8),
                                    heed::extra_keys(key, value, every, weights(weight_count)),
                                    tokens(3, 4, 8), every, heed::scale{1});
  };
  CHECK_THROWS_WITH(run(tokens(7, 3, 5), tokens(7, 2, 8), 7),
                    "heed: extra_keys.key has shape [2, 7, 3, 5]; expected [2, 7, a divisor of 4, "
                    "5] (batch, extra, head, dim)");
  CHECK_THROWS_WITH(run(tokens(7, 2, 5), tokens(6, 2, 8), 7),
                    "heed: extra_keys.value has shape [2, 6, 2, 8]; expected [2, 7, a divisor of "
                    "4, 8] (batch, extra, head, dim)");
  CHECK_THROWS_AS(run(tokens(7, 2, 5), tokens(7, 2, 8), 6), heed::error);
  CHECK(memory == std::vector<float>(2000, 7.0f));
}
