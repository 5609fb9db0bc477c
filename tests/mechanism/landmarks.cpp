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
  for_each_seed("lara backward", 60, [](seed_t seed) {
    lara_problem<TestType> p(seed, 8);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("lara: the gradient of few rows", "[mechanism][landmarks]") {
  for_each_seed("lara backward, few rows", 80, [](seed_t seed) {
    lara_problem<double> p(seed);
    p.backward_pass();
    return support::small_gradient_complaint(p, 3, p.definition());
  });
}
