#include "reference/gates.hpp"
#include "reference/patterns/head_mixtures.hpp"
#include "support/attention_check.hpp"
#include "support/central_differences.hpp"
#include "support/pattern_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/all_or_here.hpp>
#include <heed/mechanism/duo_attention.hpp>
#include <heed/mechanism/layer_router.hpp>

// Gates between full and sparse attention: for each key head, row or layer. Gradients against central differences of
// the definition in double.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::gradient_complaint;
using support::guarded;
using support::seed_t;

namespace {

reference::options keeping(std::function<bool(index_t, index_t)> rule) {
  reference::options o;
  o.keep = [rule = std::move(rule)](index_t, index_t p, index_t j) { return rule(p, j); };
  return o;
}

struct gate_problem {
  support::random draw;
  index_t B = 2, N, H = 4;
  guarded<double, 4> query, key, value, dout, out, full, sparse;
  guarded<double, 3> lse;

  explicit gate_problem(seed_t seed) : draw(seed), N(draw.between(1, 14)) {
    auto const normal = [&](index_t heads, index_t dim) {
      return support::normal<double>(draw, {B, N, heads, dim});
    };
    query = normal(H, 3);
    key = normal(2, 3);
    value = normal(2, 5);
    for (auto* each : {&dout, &out, &full, &sparse}) *each = normal(H, 5);
    lse = support::blank<double, 3>({B, H, N});
  }
  tensor<double, 4> defined(reference::options const& o) const {
    return reference::attention(query.values<double>(), key.values<double>(),
                                value.values<double>(), o)
        .out;
  }
  template <class... I>
  void attend(tensor_view<double, 4> to, I const&... ingredients) {
    heed::attention(std::as_const(query).view(), std::as_const(key).view(),
                    std::as_const(value).view(), to, heed::lse_into{lse.view()}, ingredients...);
  }
};

}  // namespace

TEST_CASE("blend: the definition and its gradient", "[mechanism][gates]") {
  for_each_seed("blend", 100, [](seed_t seed) {
    gate_problem p(seed);
    auto const shared = [&](index_t full) { return p.draw.one_in(2) ? index_t{1} : full; };
    auto weight = support::blank<double, 3>({shared(p.B), shared(p.H), shared(p.N)});
    weight.fill([&](auto const&) { return p.draw.uniform(-0.5, 1.5); });
    auto const loss = [&] {
      auto const a = p.full.values<double>(), b = p.sparse.values<double>(),
                 w = p.dout.values<double>();
      auto const g = weight.values<double>();
      double sum = 0;
      for (index_t n = 0; n < p.B; ++n)
        for (index_t i = 0; i < p.N; ++i)
          for (index_t h = 0; h < p.H; ++h)
            for (index_t d = 0; d < 5; ++d) {
              double const gate = g(n % g.extent(0), h % g.extent(1), i % g.extent(2));
              sum += w(n, i, h, d) * (gate * a(n, i, h, d) + (1 - gate) * b(n, i, h, d));
            }
      return sum;
    };
    heed::blend(p.full.view(), p.sparse.view(), weight.view(), p.out.view());
    std::string complaint;
    if (std::abs(reference::weighted_sum(p.dout.values<double>(), p.out.values<double>()) -
                 loss()) > 1e-12)
      complaint += "blend differs\n";
    auto da = support::blank<double, 4>(p.out.extents()),
         db = support::blank<double, 4>(p.out.extents());
    auto dweight = support::blank<double, 3>(weight.extents());
    heed::blend_backward(p.full.view(), p.sparse.view(), weight.view(), p.dout.view(), da.view(),
                         db.view(), dweight.view());
    return complaint + gradient_complaint(p.draw, "da", p.full, da, loss) +
           gradient_complaint(p.draw, "db", p.sparse, db, loss) +
           gradient_complaint(p.draw, "dweight", weight, dweight, loss);
  });
}

TEST_CASE("duo attention: training", "[mechanism][gates]") {
  for_each_seed("duo", 40, [](seed_t seed) {
    gate_problem p(seed);
    heed::streaming const near{p.draw.between(0, 3), p.draw.between(1, 5)};
    auto gates = support::blank<double, 1>({2});
    gates.fill([&](auto const&) { return p.draw.uniform(-0.3, 1.3); });
    auto const streamed_options = keeping(
        [=](index_t q, index_t j) { return reference::streaming(q, j, near.sinks, near.recent); });
    auto const teacher = p.full.values<double>();
    auto const defined = [&] {
      auto result = p.defined(streamed_options);
      for (index_t b = 0; b < p.B; ++b)
        for (index_t i = 0; i < p.N; ++i)
          for (index_t h = 0; h < p.H; ++h)
            for (index_t d = 0; d < 5; ++d) {
              double const gate = std::min(std::max(gates.view()(h / 2), 0.0), 1.0);
              result(b, i, h, d) = gate * teacher(b, i, h, d) + (1 - gate) * result(b, i, h, d);
            }
      return result;
    };
    auto const loss = [&] { return reference::weighted_sum(p.dout.values<double>(), defined()); };

    p.attend(p.sparse.view(), near);
    heed::duo_blend(p.full.view(), p.sparse.view(), gates.view(), p.out.view());
    std::string complaint;
    if (!(support::difference(p.out.values<double>(), defined()) < 1e-12))
      complaint += "out differs\n";
    auto dstreamed = support::blank<double, 4>(p.out.extents());
    auto dquery = support::blank<double, 4>(p.query.extents()),
         dkey = support::blank<double, 4>(p.key.extents()),
         dvalue = support::blank<double, 4>(p.value.extents());
    auto dgates = support::blank<double, 1>({2});
    heed::duo_blend_backward(p.full.view(), p.sparse.view(), gates.view(), p.dout.view(),
                             dstreamed.view(), dgates.view());
    heed::attention_backward(std::as_const(p.query).view(), std::as_const(p.key).view(),
                             std::as_const(p.value).view(), p.sparse.view(), p.lse.view(),
                             dstreamed.view(), dquery.view(), dkey.view(), dvalue.view(), near);
    return complaint + gradient_complaint(p.draw, "dgates", gates, dgates, loss) +
           gradient_complaint(p.draw, "dquery", p.query, dquery, loss) +
           gradient_complaint(p.draw, "dkey", p.key, dkey, loss) +
           gradient_complaint(p.draw, "dvalue", p.value, dvalue, loss);
  });
}

TEST_CASE("duo attention: gates of 1 and 0, and deployment", "[mechanism][gates]") {
  gate_problem p(3);
  double const ends[] = {1, 0};
  heed::duo_blend(p.full.view(), p.sparse.view(), tensor_view<double const, 1>(ends, {2}),
                  p.out.view());
  for (index_t h = 0; h < 4; ++h)
    CHECK(p.out.view()(0, 0, h, 2) == (h < 2 ? p.full : p.sparse).view()(0, 0, h, 2));
  float const gates[] = {0.2f, 0.7f};
  index_t sinks[4], recent[4];
  tensor_view<index_t, 2> const sinks_of(sinks, {1, 4}), recent_of(recent, {1, 4});
  heed::duo_heads(tensor_view<float const, 1>(gates, {2}), 0.5, {2, 3}, sinks_of, recent_of);
  heed::streaming_heads const heads{sinks_of, recent_of};
  for (index_t h = 0; h < 4; ++h)
    for (index_t q = 0; q < 12; ++q)
      for (index_t j = 0; j < 12; ++j)
        CHECK(heed::bind_at(heads, {.head = h}).keep(q, j) ==
              (h < 2 ? reference::streaming(q, j, 2, 3) : j <= q));
  CHECK_THROWS_WITH(
      heed::duo_blend(p.full.view(), p.sparse.view(), tensor_view<double const, 1>(ends, {0}),
                      p.out.view()),
      "heed: gates have shape [0]; expected one for each key head, a divisor of the 4 "
      "heads");
}

TEST_CASE("duo attention: the threshold for a share", "[mechanism][gates][quick]") {
  std::vector<float> const gates{0.75f, 0.25f, 0.5f, 1.0f, 0.0f};
  auto const threshold = [&](double share) { return heed::duo_threshold<float>(gates, share); };
  CHECK(threshold(0.5) == 0.5);
  CHECK(threshold(0.25) == 0.75);
  CHECK(threshold(0.6) == Approx(0.4));
  for_each_seed("duo threshold", 200, [](seed_t seed) {
    support::random draw(seed);
    std::vector<double> some(static_cast<std::size_t>(draw.between(1, 50)));
    for (double& gate : some) gate = draw.uniform();
    double const share = draw.one_in(4) ? double(draw.between(0, 1)) : draw.uniform(),
                 count = double(some.size()), least = heed::duo_threshold<double>(some, share);
    double const full =
        double(std::count_if(some.begin(), some.end(), [&](double gate) { return gate > least; }));
    if (share == 0 || share == 1) return full == share * count ? "" : "not all or none\n";
    return std::abs(full - share * count) <= 1 ? "" : "another share is full\n";
  });
  CHECK_THROWS_WITH(threshold(1.5),
                    "heed: duo_threshold got 5 gates and a share of 1.500000; expected at least "
                    "one gate and a share of 0 to 1");
}

TEST_CASE("all or here: the pattern", "[mechanism][gates]") {
  for_each_seed("all or here", 60, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 90), recent = draw.between(1, 20), rows = draw.between(1, N);
    std::vector<float> numbers(static_cast<std::size_t>(2 * 4 * rows));
    double const share = draw.uniform();
    for (float& logit : numbers) logit = float(draw.uniform(-share, 1 - share));
    tensor_view<float const, 3> const logits(numbers.data(), {2, 4, rows});
    auto const keep = [=](index_t b, index_t h, index_t p, index_t j) {
      bool const all = 1 / (1 + std::exp(-double(logits(b, h, p - (N - rows))))) > 0.5;
      return j <= p && (all || p - j < recent);
    };
    heed::place const where{.sequence = 1, .batch = 1, .head = 2, .rows = rows, .keys = N};
    return support::check_pattern(draw, heed::all_or_here(logits, recent), where,
                                  [=](index_t p, index_t j) {
                                    if (p < N - rows || p >= N) return j <= p && p - j < recent;
                                    return keep(1, 2, p, j);
                                  }) +
           support::attention_complaint(seed, {.pattern = heed::all_or_here(logits, recent),
                                               .keep = keep,
                                               .rows = rows,
                                               .keys = N,
                                               .batches = 2,
                                               .heads = 4,
                                               .key_heads = 2,
                                               .decodes = false}) +
           support::attention_complaint(seed,
                                        {.pattern = heed::all_or_here(logits, recent, N - rows),
                                         .keep = keep,
                                         .rows = rows,
                                         .keys = N,
                                         .batches = 2,
                                         .heads = 4,
                                         .key_heads = 2});
  });
}

TEST_CASE("all or here: the gradient of the gates", "[mechanism][gates]") {
  for_each_seed("all or here gates", 60, [](seed_t seed) {
    gate_problem p(seed);
    index_t const recent = p.draw.between(1, 6);
    auto logits = support::blank<double, 3>({p.B, p.H, p.N}),
         dlogits = support::blank<double, 3>({p.B, p.H, p.N});
    logits.fill([&](auto const&) { return p.draw.normal(); });
    auto const view = std::as_const(logits).view();
    p.attend(p.out.view(), heed::any_pattern(heed::all_or_here(view, recent)));
    p.attend(p.sparse.view(), heed::any_pattern(heed::all_or_here_reversed(view, recent)));
    heed::all_or_here_gate_gradient(p.out.view(), p.sparse.view(), view, p.dout.view(),
                                    dlogits.view());
    auto const full = p.defined(keeping([](index_t i, index_t j) { return j <= i; })),
               near = p.defined(
                   keeping([=](index_t i, index_t j) { return j <= i && i - j < recent; }));
    std::string complaint;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t h = 0; h < p.H; ++h)
        for (index_t i = 0; i < p.N; ++i) {
          double sum = 0;
          for (index_t d = 0; d < 5; ++d)
            sum += p.dout.view()(b, i, h, d) * (full(b, i, h, d) - near(b, i, h, d));
          double const gate = 1 / (1 + std::exp(-view(b, h, i)));
          if (std::abs(dlogits.view()(b, h, i) - gate * (1 - gate) * sum) > 1e-12)
            complaint += "a gate's gradient differs\n";
          auto const& chosen = view(b, h, i) > 0 ? full : near;
          if (std::abs(p.out.view()(b, i, h, 1) - chosen(b, i, h, 1)) > 1e-12)
            complaint += "a gate chose the other branch\n";
          if (i < recent &&
              std::abs(p.sparse.view()(b, i, h, 1) - p.out.view()(b, i, h, 1)) > 1e-12)
            complaint += "a row with few keys depends on its gate\n";
        }
    return complaint;
  });
}

namespace {

struct router_problem {
  support::random draw;
  index_t B, D;
  std::vector<guarded<double, 2>> weights, dweights;
  std::vector<guarded<double, 1>> biases, dbiases;
  guarded<double, 2> x, logits, dlogits, dx;

  explicit router_problem(seed_t seed) : draw(seed), B(draw.between(1, 3)), D(draw.between(1, 3)) {
    index_t const widths[] = {D, 8 * D, 2 * D, 4 * D, D, 2};
    for (std::size_t n = 0; n < 5; ++n) {
      for (auto* all : {&weights, &dweights}) {
        all->push_back(support::blank<double, 2>({widths[n + 1], widths[n]}));
        all->back().fill([&](auto const&) { return all == &weights ? draw.normal() : 0.0; });
      }
      for (auto* all : {&biases, &dbiases}) {
        all->push_back(support::blank<double, 1>({widths[n + 1]}));
        all->back().fill([&](auto const&) { return all == &biases ? draw.normal() : 0.0; });
      }
    }
    x = support::blank<double, 2>({B, D});
    dx = support::blank<double, 2>({B, D});
    logits = support::blank<double, 2>({B, 2});
    dlogits = support::blank<double, 2>({B, 2});
    for (auto* each : {&x, &dlogits}) each->fill([&](auto const&) { return draw.normal(); });
  }
  static heed::router_network<double> network(std::vector<guarded<double, 2>>& w,
                                              std::vector<guarded<double, 1>>& b) {
    heed::router_network<double> all;
    for (std::size_t n = 0; n < 5; ++n) all[n] = {w[n].view(), b[n].view()};
    return all;
  }
  std::vector<double> defined(index_t b) {
    std::vector<reference::dense_map> maps;
    for (std::size_t n = 0; n < 5; ++n) {
      reference::dense_map map;
      map.bias = biases[n].values<double>().values;
      for (index_t o = 0; o < weights[n].view().extent(0); ++o) {
        map.weight.emplace_back();
        for (index_t i = 0; i < weights[n].view().extent(1); ++i)
          map.weight.back().push_back(weights[n].view()(o, i));
      }
      maps.push_back(map);
    }
    std::vector<double> row;
    for (index_t d = 0; d < D; ++d) row.push_back(x.view()(b, d));
    return reference::router(maps, row);
  }
};

}  // namespace

TEST_CASE("layer router: the network and its gradient", "[mechanism][gates]") {
  for_each_seed("router", 30, [](seed_t seed) {
    router_problem p(seed);
    auto const network = router_problem::network(p.weights, p.biases);
    heed::route(network, p.x.view(), p.logits.view());
    std::string complaint;
    for (index_t b = 0; b < p.B; ++b)
      for (index_t c = 0; c < 2; ++c) {
        double const exact = p.defined(b)[static_cast<std::size_t>(c)];
        if (std::abs(p.logits.view()(b, c) - exact) > 1e-9 * std::max(1.0, std::abs(exact)))
          complaint += "logits differ\n";
      }
    heed::route_backward(network, p.x.view(), p.dlogits.view(),
                         router_problem::network(p.dweights, p.dbiases), p.dx.view());
    // Of gradients that reach 1000 the differences are not good to 1e-7.
    auto const shrunk = [&](auto& gradient) {
      auto all = gradient.template values<double>();
      for (double& each : all.values) each *= 1e-3;
      return all;
    };
    auto const loss = [&] {
      double sum = 0;
      for (index_t b = 0; b < p.B; ++b)
        for (index_t c = 0; c < 2; ++c)
          sum += 1e-3 * p.dlogits.view()(b, c) * p.defined(b)[static_cast<std::size_t>(c)];
      return sum;
    };
    complaint += gradient_complaint(p.draw, "dx", p.x, shrunk(p.dx), loss);
    for (std::size_t n = 0; n < 5; ++n)
      complaint +=
          gradient_complaint(p.draw, "dweight", p.weights[n], shrunk(p.dweights[n]), loss) +
          gradient_complaint(p.draw, "dbias", p.biases[n], shrunk(p.dbiases[n]), loss);
    return complaint;
  });
}

TEST_CASE("layer router: what it reads", "[mechanism][gates]") {
  for_each_seed("router summary", 60, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 20), rows = draw.between(1, 15);
    auto const query = support::normal<double>(draw, {2, N, 3, 4});
    auto x = support::blank<double, 2>({2, 4});
    heed::route_summary(query.view(), rows, x.view());
    for (index_t b = 0; b < 2; ++b)
      for (index_t d = 0; d < 4; ++d)
        if (std::abs(x.view()(b, d) -
                     reference::router_summary(query.values<double>(), b,
                                               rows)[static_cast<std::size_t>(d)]) > 1e-12)
          return "the summary differs\n";
    return "";
  });
}

TEST_CASE("layer router: soft weights and their gradient", "[mechanism][gates]") {
  for_each_seed("router weights", 60, [](seed_t seed) {
    gate_problem p(seed);
    auto logits = support::blank<double, 2>({p.B, 2}), noise = support::blank<double, 2>({p.B, 2}),
         y = support::blank<double, 2>({p.B, 2}), dlogits = support::blank<double, 2>({p.B, 2});
    auto full_weight = support::blank<double, 3>({p.B, 1, 1}),
         dfull_weight = support::blank<double, 3>({p.B, 1, 1});
    for (auto* each : {&logits, &noise}) each->fill([&](auto const&) { return p.draw.normal(); });
    double const temperature = p.draw.uniform(0.3, 2);
    heed::route_weights(logits.view(), noise.view(), temperature, y.view());
    full_weight.fill([&](auto const& at) { return y.view()(at[0], index_t{1}); });
    auto const unwanted = tensor_view<double, 4>();
    heed::blend_backward(p.full.view(), p.sparse.view(), full_weight.view(), p.dout.view(),
                         unwanted, unwanted, dfull_weight.view());
    heed::route_weights_backward(y.view(), dfull_weight.view(), temperature, dlogits.view());
    auto const a = p.full.values<double>(), b = p.sparse.values<double>(),
               w = p.dout.values<double>();
    auto const loss = [&] {
      double sum = 0;
      for (index_t n = 0; n < p.B; ++n) {
        double const e0 = std::exp((logits.view()(n, 0) + noise.view()(n, 0)) / temperature),
                     e1 = std::exp((logits.view()(n, 1) + noise.view()(n, 1)) / temperature);
        for (index_t i = 0; i < p.N; ++i)
          for (index_t h = 0; h < p.H; ++h)
            for (index_t d = 0; d < 5; ++d)
              sum += 1e-2 * w(n, i, h, d) * (e1 * a(n, i, h, d) + e0 * b(n, i, h, d)) / (e0 + e1);
      }
      return sum;
    };
    auto shrunk = dlogits.values<double>();
    for (double& each : shrunk.values) each *= 1e-2;
    return gradient_complaint(p.draw, "dlogits", logits, shrunk, loss);
  });
}
