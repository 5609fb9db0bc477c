#include "reference/cab.hpp"
#include "support/compositions.hpp"

#include <heed/mechanism/lara.hpp>
#include <heed/mechanism/nystrom.hpp>

// Attention through landmarks: Nystroem and LARA, against their definitions.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::definition_check;
using support::for_each_seed;
using support::in_orders;
using support::seed_t;
using support::view_of;

namespace {

/// Matrix i, j of a view.
template <class T>
tensor_view<T, 2> as_matrix(tensor_view<T, 4> one) {
  return {one.data(), {one.extent(1), one.extent(2)}, {one.stride(1), one.stride(2)}};
}

template <class T>
struct nystrom_problem : definition_check<T> {
  index_t N, H, landmarks, taps;
  double scale;

  explicit nystrom_problem(seed_t seed) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), D = chance.between(4, 20), Dv = chance.between(4, 20);
    N = chance.between(1, 40);
    H = chance.one_in(2) ? 4 : 2;
    landmarks = chance.between(1, 11);
    taps = 2 * chance.between(0, 2) + 1;
    scale = chance.uniform(0.2, 0.7);
    auto const shared = [&] { return chance.one_of(std::array<index_t, 3>{1, 2, H}); };
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, shared(), D});
    this->input("v", {B, N, shared(), Dv});
    this->input("filter", {1, taps, this->in(2).extent(2), 1});
    this->output("out", {B, N, H, Dv});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{
          reference::filtered(reference::nystrom(x[0], x[1], x[2], landmarks, scale), x[2], x[3])};
    };
  }
  template <class... I>
  void forward_pass(I const&... more) {
    heed::nystrom_attention(this->in(0), this->in(1), this->in(2), this->out(0), landmarks,
                            heed::scale{scale}, heed::value_filter(as_matrix(this->in(3))),
                            more...);
  }
  template <class... I>
  void backward_pass(I const&... more) {
    heed::nystrom_attention_backward(
        this->in(0), this->in(1), this->in(2), this->dout(0), this->din(0), this->din(1),
        this->din(2), landmarks, heed::scale{scale},
        heed::value_filter(as_matrix(this->in(3)), as_matrix(this->din(3))), more...);
  }
};

}  // namespace

TEST_CASE("segments: short ones first, none lost", "[mechanism][landmarks]") {
  for (index_t rows = 0; rows < 40; ++rows)
    for (index_t count = 1; count < 13; ++count) {
      heed::segments const cut{rows, count};
      auto const bounds = reference::segment_bounds(rows, count);
      for (index_t c = 0; c < count; ++c) {
        CHECK(cut[c].first == bounds[std::size_t(c)]);
        CHECK(cut[c].last == bounds[std::size_t(c) + 1]);
      }
      CHECK(cut[count - 1].last == rows);
    }
}

TEMPLATE_TEST_CASE("segment means: the definition and its gradient", "[mechanism][landmarks]",
                   double, float, Eigen::half) {
  for_each_seed("segment means", 100, [](seed_t seed) {
    definition_check<TestType> p(seed);
    index_t const B = p.draw.between(1, 2), H = p.draw.between(1, 3), D = p.draw.between(1, 20),
                  N = p.draw.one_in(4) ? 400 : p.draw.between(1, 60), m = p.draw.between(1, 9);
    p.input("x", {B, N, H, D});
    p.output("means", {B, m, H, D});
    heed::segment_means(p.in(0), {N, m}, p.out(0));
    auto const dx = p.din(0);
    support::for_each_index(dx.extents(), [&](auto const& at) {
      dx.data()[support::offset(at, dx.strides())] = TestType(0);
    });
    heed::segment_means_backward(p.dout(0), {N, m}, dx);
    auto const definition = [&]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{reference::segment_means(x[0], m)};
    };
    return in_orders(definition,
                     [&](auto const&... all) { return p.forward(all...) + p.backward(all...); });
  });
}

TEMPLATE_TEST_CASE("nystroem: the definition", "[mechanism][landmarks]", double, float) {
  for_each_seed("nystroem", 150, [](seed_t seed) {
    nystrom_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("nystroem: the gradient", "[mechanism][landmarks]", double, float) {
  for_each_seed("nystroem backward", 60, [](seed_t seed) {
    nystrom_problem<TestType> p(seed);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

namespace {

template <class T>
struct lara_problem : definition_check<T> {
  index_t N, samples;
  bool noisy;
  double scale;

  explicit lara_problem(seed_t seed, index_t least = 1) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), D = chance.between(4, 20), Dv = chance.between(4, 20),
                  H = chance.one_in(2) ? 4 : 2;
    N = chance.between(least, least + 40);
    samples = chance.between(1, 11);
    noisy = chance.one_in(2);
    scale = chance.uniform(0.2, 0.5);
    auto const shared = [&] { return chance.one_of(std::array<index_t, 3>{1, 2, H}); };
    // Scores of size 1. The rounding of large ones, by which forward and backward passes differ, is none of the
    // definition's where one key has all the weight; hence `least` rows too.
    auto const small = [&] { return 0.5 * chance.normal(); };
    this->input("q", {B, N, H, D}, small);
    this->input("k", {B, N, shared(), D}, small);
    this->input("v", {B, N, shared(), Dv});
    this->output("out", {B, N, H, Dv});
    noise = support::normal<T>(chance, {B, std::min(N, samples), H, D}, 0.7);
  }

  support::guarded<T, 4> noise;

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      tensor<U, 4> drawn;
      if (noisy) {
        auto const numbers = noise.template values<T>();
        drawn = tensor<U, 4>(numbers.extents);
        for (std::size_t n = 0; n < numbers.values.size(); ++n)
          drawn.values[n] = U(numbers.values[n]);
      }
      return reference::tensors<U>{reference::lara(x[0], x[1], x[2], samples, drawn, scale)};
    };
  }
  template <class F>
  void call(F f) {
    if (noisy)
      f(heed::scale{scale}, heed::sample_noise{std::as_const(noise).view()});
    else
      f(heed::scale{scale});
  }
  template <class... I>
  void forward_pass(I const&... more) {
    call([&](auto const&... own) {
      heed::lara_attention(this->in(0), this->in(1), this->in(2), this->out(0), samples, own...,
                           more...);
    });
  }
  template <class... I>
  void backward_pass(I const&... more) {
    call([&](auto const&... own) {
      heed::lara_attention_backward(this->in(0), this->in(1), this->in(2), this->dout(0),
                                    this->din(0), this->din(1), this->din(2), samples, own...,
                                    more...);
    });
  }
};

}  // namespace

TEMPLATE_TEST_CASE("lara: the definition", "[mechanism][landmarks]", double, float) {
  for_each_seed("lara", 150, [](seed_t seed) {
    lara_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("lara: the gradient", "[mechanism][landmarks]", double, float) {
  for_each_seed(
      "lara backward", 60,
      [](seed_t seed) {
        lara_problem<TestType> p(seed, 8);
        p.backward_pass();
        return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
      },
      support::luck);
}

TEST_CASE("lara: the gradient of few rows", "[mechanism][landmarks]") {
  for_each_seed("lara backward, few rows", 80, [](seed_t seed) {
    lara_problem<double> p(seed);
    p.backward_pass();
    return support::small_gradient_complaint(p, 3, p.definition());
  });
}

TEST_CASE("nystroem: with no more rows than landmarks it is softmax attention",
          "[mechanism][landmarks]") {
  support::random draw(1);
  auto const q = support::normal<float>(draw, {2, 12, 4, 8}),
             k = support::normal<float>(draw, {2, 12, 2, 8}),
             v = support::normal<float>(draw, {2, 12, 4, 5});
  auto out = support::blank<float, 4>({2, 12, 4, 5});
  auto const whole = support::attend(q.view(), k.view(), v.view());
  heed::nystrom_attention(q.view(), k.view(), v.view(), out.view(), 12);
  CHECK(support::same_bits(out.values<float>(), whole.out));
  heed::nystrom_attention(q.view(), k.view(), v.view(), out.view(), 11);
  CHECK(support::difference(out.values<float>(), whole.out) > 1e-3);
}

TEST_CASE("nystroem: the iteration where A is singular", "[mechanism][landmarks]") {
  // All queries and all keys alike: A has rank 1, and no inverse. The iteration is what it is, and finite.
  tensor<double, 4> x({1, 20, 1, 4}, 0.5), v({1, 20, 1, 3}), out({1, 20, 1, 3});
  support::random draw(2);
  for (double& each : v.values) each = draw.normal();
  heed::nystrom_attention(view_of(std::as_const(x)), view_of(std::as_const(x)),
                          view_of(std::as_const(v)), view_of(out), 5, heed::scale{0.5});
  auto const expected = reference::nystrom(x, x, v, 5, 0.5);
  CHECK(support::difference(out, expected) < 1e-12);
  double mean = 0;
  for (index_t i = 0; i < 20; ++i) mean += v(0, i, 0, 0) / 20;
  CHECK(out(0, 7, 0, 0) == Approx(mean).epsilon(1e-3));
}

TEST_CASE("nystroem: large scores stay finite", "[mechanism][landmarks]") {
  support::random draw(3);
  auto const q = support::normal<float>(draw, {1, 40, 2, 16}, 30),
             v = support::normal<float>(draw, {1, 40, 2, 4});
  auto out = support::blank<float, 4>({1, 40, 2, 4}), dq = support::blank<float, 4>({1, 40, 2, 16}),
       dk = support::blank<float, 4>({1, 40, 2, 16}), dv = support::blank<float, 4>({1, 40, 2, 4});
  heed::nystrom_attention(q.view(), q.view(), v.view(), out.view(), 8);
  heed::nystrom_attention_backward(q.view(), q.view(), v.view(), v.view(), dq.view(), dk.view(),
                                   dv.view(), 8);
  for (auto const* each : {&out, &dq, &dk, &dv})
    for (float x : each->values<float>().values) CHECK(std::isfinite(x));
}

TEST_CASE("lara: weights sum to 1", "[mechanism][landmarks]") {
  support::random draw(4);
  auto const q = support::normal<float>(draw, {1, 50, 2, 8}),
             k = support::normal<float>(draw, {1, 50, 2, 8}),
             noise = support::normal<float>(draw, {1, 7, 2, 8});
  auto ones = support::blank<float, 4>({1, 50, 2, 3}),
       out = support::blank<float, 4>({1, 50, 2, 3});
  ones.fill([](auto const&) { return 1.f; });
  heed::lara_attention(q.view(), k.view(), ones.view(), out.view(), 7,
                       heed::sample_noise{noise.view()});
  CHECK(support::difference(out.values<float>(), ones.values<float>()) < 1e-6);
}

TEST_CASE("lara: padding is no part of anything", "[mechanism][landmarks]") {
  support::random draw(5);
  index_t const N = 30, D = 8, m = 6;
  std::vector<index_t> const lengths{30, 17, 4, 0};
  index_t const B = 4;
  auto q = support::normal<double>(draw, {B, N, 2, D}, 0.5),
       k = support::normal<double>(draw, {B, N, 1, D}, 0.5),
       v = support::normal<double>(draw, {B, N, 2, 3}),
       dout = support::normal<double>(draw, {B, N, 2, 3});
  auto const noise = support::normal<double>(draw, {B, m, 2, D});
  for (index_t b = 0; b < B; ++b)
    for (index_t i = lengths[std::size_t(b)]; i < N; ++i) {
      for (index_t h = 0; h < 2; ++h)
        for (index_t d = 0; d < 3; ++d) {
          dout.view()(b, i, h, d) = 0;
          v.view()(b, i, h, d) = support::poison<double>();
        }
      for (index_t d = 0; d < D; ++d) k.view()(b, i, 0, d) = support::poison<double>();
    }
  auto out = support::blank<double, 4>({B, N, 2, 3}), dq = support::blank<double, 4>({B, N, 2, D}),
       dk = support::blank<double, 4>({B, N, 1, D}), dv = support::blank<double, 4>({B, N, 2, 3});
  heed::sample_noise const drawn{noise.view()};
  heed::lara_attention(q.view(), k.view(), v.view(), out.view(), m, heed::key_lengths{lengths},
                       drawn);
  heed::lara_attention_backward(q.view(), k.view(), v.view(), dout.view(), dq.view(), dk.view(),
                                dv.view(), m, heed::key_lengths{lengths}, drawn);
  for (index_t b = 0; b < B; ++b) {
    index_t const n = lengths[std::size_t(b)];
    if (n == 0) continue;
    auto const alone = [&](auto const& all) { return all.view().slice(0, b, 1).slice(1, 0, n); };
    auto one = support::blank<double, 4>({1, n, 2, 3}),
         dq1 = support::blank<double, 4>({1, n, 2, D}),
         dk1 = support::blank<double, 4>({1, n, 1, D}),
         dv1 = support::blank<double, 4>({1, n, 2, 3});
    heed::sample_noise const own{noise.view().slice(0, b, 1).slice(1, 0, std::min(m, n))};
    heed::lara_attention(alone(q), alone(k), alone(v), one.view(), m, own);
    heed::lara_attention_backward(alone(q), alone(k), alone(v), alone(dout), dq1.view(), dk1.view(),
                                  dv1.view(), m, own);
    auto const near = [&](auto const& all, auto const& its) {
      return support::difference(support::read<double>(alone(all)), its.template values<double>()) <
             1e-12;
    };
    CHECK(near(out, one));
    CHECK(near(dq, dq1));
    CHECK(near(dk, dk1));
    CHECK(near(dv, dv1));
  }
  // Nothing to see: nothing.
  for (index_t i = 0; i < N; ++i) CHECK(out.view()(3, i, 1, 2) == 0);
}

TEST_CASE("landmarks: the same bits on any executor", "[mechanism][landmarks]") {
  for_each_seed("nystroem executor", 10, [](seed_t seed) {
    return support::executor_complaint<nystrom_problem<float>>(seed, 4);
  });
  for_each_seed("lara executor", 10, [](seed_t seed) {
    return support::executor_complaint<lara_problem<float>>(seed, 3);
  });
}

TEST_CASE("landmarks: what does not fit is refused", "[mechanism][landmarks]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const tokens = [&](index_t n, index_t heads = 2) {
    return heed::bnhd(numbers.data(), 1, n, heads, 3);
  };
  tensor_view<float, 2> const even(numbers.data(), {2, 2}), narrow(numbers.data(), {3, 1});
  CHECK_THROWS_WITH(heed::nystrom_attention(tokens(9), tokens(8), tokens(8), tokens(9), 4),
                    "heed: query has shape [1, 9, 2, 3], key [1, 8, 2, 3]; expected as many "
                    "positions, those of one sequence");
  CHECK_THROWS_WITH(heed::nystrom_attention(tokens(9), tokens(9), tokens(9), tokens(9), 0),
                    "heed: nystrom_attention has 0 landmarks; expected at least 1");
  for (auto const& weights : {even, narrow})
    CHECK_THROWS_AS(heed::nystrom_attention(tokens(9), tokens(9), tokens(9), tokens(9), 4,
                                            heed::value_filter(weights)),
                    heed::error);
  CHECK_THROWS_WITH(heed::lara_attention(tokens(9), tokens(9), tokens(9), tokens(9), 4,
                                         heed::sample_noise{tokens(5)}),
                    "heed: sample_noise has shape [1, 5, 2, 3]; expected that of query with a "
                    "position for each sample, [1, 4, 2, 3]");
  double slope = 0;
  CHECK_THROWS_WITH(
      heed::lara_attention(tokens(9), tokens(9), tokens(9), tokens(9), 4, heed::scale{1, &slope}),
      "heed: scale carries a gradient, which this mechanism does not have");
  std::vector<index_t> const lengths{10};
  CHECK_THROWS_WITH(heed::lara_attention(tokens(9), tokens(9), tokens(9), tokens(9), 4,
                                         heed::key_lengths{lengths}),
                    "heed: key_lengths holds 10; expected 0 to 9 (keys)");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}
