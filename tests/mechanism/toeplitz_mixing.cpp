#include <heed/mechanism/toeplitz_mixing.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

// TPE and MD-TPE against sums over pairs.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::blank;
using support::definition_check;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class View>
auto of_heads(View view) {
  return tensor_view<typename View::element_type, 2>(view.data(), {view.extent(2), view.extent(3)},
                                                     {view.stride(2), view.stride(3)});
}

template <class T>
struct mixing_problem : definition_check<T> {
  index_t B, N, H, n, E;

  explicit mixing_problem(seed_t seed) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = dice.between(1, 2), N = dice.between(4, 40), H = dice.between(1, 2), n = dice.between(2, 8);
    E = dice.between(2, 9);
    this->input("x", {B, N, H, E});
    this->input("read", {1, 1, H, n});
    this->input("write", {1, 1, H, n});
    this->input("logits", {1, 1, H, dice.one_in(2) ? 1 : n});
    this->output("out", {B, N, H, E});
  }
  heed::toeplitz_mixer<T> mixer() const {
    return {of_heads(this->in(1)), of_heads(this->in(2)), of_heads(this->in(3))};
  }
  template <class U>
  static tensor<U, 4> mixed(tensors<U> const& in) {
    using std::exp;
    tensor<U, 4> out(in[0].extents);
    index_t const n = in[1].extent(3);
    for (index_t b = 0; b < out.extent(0); ++b)
      for (index_t h = 0; h < out.extent(2); ++h)
        for (index_t t = 0; t < out.extent(1); ++t)
          for (index_t s = 0; s <= t; ++s) {
            U weight = 0;
            for (index_t c = 0; c < n; ++c)
              weight += in[1](0, 0, h, c) * in[2](0, 0, h, c) *
                        exp(-reference::softplus(-in[3](0, 0, h, c % in[3].extent(3))) *
                            U(double(t - s)));
            for (index_t e = 0; e < out.extent(3); ++e)
              out(b, t, h, e) += weight * in[0](b, s, h, e);
          }
    return out;
  }
};

auto const definition = []<class U>(tensors<U> const& in) {
  return tensors<U>{mixing_problem<float>::mixed(in)};
};
/// The recurrence that it is.
auto const recurrence = []<class U>(tensors<U> const& in) {
  auto const everywhere = [&](tensor<U, 4> const& row, index_t width) {
    tensor<U, 4> all({in[0].extent(0), in[0].extent(1), in[0].extent(2), width});
    for (index_t b = 0; b < all.extent(0); ++b)
      for (index_t t = 0; t < all.extent(1); ++t)
        for (index_t h = 0; h < all.extent(2); ++h)
          for (index_t c = 0; c < width; ++c) all(b, t, h, c) = row(0, 0, h, c % row.extent(3));
    return all;
  };
  index_t const n = in[1].extent(3);
  reference::recurrence_parts<U> parts;
  parts.log_gate = everywhere(each(in[3], [](U const& l) { return -reference::softplus(-l); }), n);
  return tensors<U>{reference::gated_recurrence_by_pairs(everywhere(in[1], n), everywhere(in[2], n),
                                                         in[0], parts)};
};

}  // namespace

TEMPLATE_TEST_CASE("toeplitz mixing: the definition and its gradients", "[mechanism][toeplitz]",
                   double, float) {
  for_each_seed(
      "toeplitz", 40,
      [](seed_t seed) {
        mixing_problem<TestType> p(seed);
        heed::toeplitz_mix(p.in(0), p.mixer(), p.out(0));
        heed::toeplitz_mix_backward(
            p.in(0), p.mixer(), p.saved(0), p.dout(0), p.din(0),
            heed::toeplitz_gradients<TestType>{of_heads(p.din(1)), of_heads(p.din(2)),
                                               of_heads(p.din(3))});
        return p.forward(definition, recurrence) + p.backward(definition, recurrence);
      },
      support::luck);
}

TEST_CASE("toeplitz mixing: steps are the whole", "[mechanism][toeplitz]") {
  for_each_seed("toeplitz step", 30, [](seed_t seed) {
    mixing_problem<float> p(seed);
    auto state = blank<float, 4>({p.B, p.H, p.n, p.E});
    state.fill([](auto const&) { return 0.0f; });
    for (index_t t = 0; t < p.N; ++t)
      heed::toeplitz_mix_step(p.in(0).slice(1, t, 1), p.mixer(), p.out(0).slice(1, t, 1),
                              state.view());
    return p.forward(definition, recurrence);
  });
}

TEST_CASE("toeplitz mixing: on a grid the axes' results are added", "[mechanism][toeplitz]") {
  support::random draw(4);
  for (std::vector<index_t> const& grid :
       {std::vector<index_t>{6}, {3, 5}, {5, 3}, {2, 3, 4}, {4, 3, 2}}) {
    index_t N = 1;
    for (index_t extent : grid) N *= extent;
    auto const x = support::normal<double>(draw, {2, N, 2, 3});
    std::vector<support::guarded<double, 4>> numbers;
    std::vector<heed::toeplitz_mixer<double>> mixers;
    for (std::size_t axis = 0; axis < 3 * grid.size(); ++axis)
      numbers.push_back(support::normal<double>(draw, {1, 1, 2, 4}));
    for (std::size_t axis = 0; axis < grid.size(); ++axis)
      mixers.push_back({of_heads(numbers[3 * axis].view()), of_heads(numbers[3 * axis + 1].view()),
                        of_heads(numbers[3 * axis + 2].view())});
    auto out = blank<double, 4>({2, N, 2, 3});
    heed::toeplitz_mix_grid(x.view(), std::span<heed::toeplitz_mixer<double> const>(mixers),
                            std::span<index_t const>(grid), out.view());
    // Each pair of tokens of one line along some axis.
    tensor<double, 4> expected({2, N, 2, 3});
    index_t stride = N;
    for (std::size_t axis = 0; axis < grid.size(); ++axis) {
      stride /= grid[axis];
      auto const& m = mixers[axis];
      for (index_t b = 0; b < 2; ++b)
        for (index_t t = 0; t < N; ++t)
          for (index_t back = 0; back <= t / stride % grid[axis]; ++back)
            for (index_t h = 0; h < 2; ++h) {
              double weight = 0;
              for (index_t c = 0; c < 4; ++c)
                weight += m.read(h, c) * m.write(h, c) *
                          std::pow(reference::sigmoid(m.logits(h, c)), double(back));
              for (index_t e = 0; e < 3; ++e)
                expected(b, t, h, e) += weight * x.view()(b, t - back * stride, h, e);
            }
    }
    CHECK(support::difference(out.values<double>(), expected) < 1e-12);

    // The gradients of a weighted sum of out, which is linear in x and quadratic in each parameter but the logits.
    auto const dout = support::normal<double>(draw, out.extents());
    auto dx = blank<double, 4>(out.extents());
    std::vector<support::guarded<double, 4>> slopes;
    std::vector<heed::toeplitz_gradients<double>> to;
    for (std::size_t n = 0; n < numbers.size(); ++n)
      slopes.push_back(blank<double, 4>({1, 1, 2, 4}));
    for (std::size_t axis = 0; axis < grid.size(); ++axis)
      to.push_back({of_heads(slopes[3 * axis].view()), of_heads(slopes[3 * axis + 1].view()),
                    of_heads(slopes[3 * axis + 2].view())});
    heed::toeplitz_mix_grid_backward(x.view(),
                                     std::span<heed::toeplitz_mixer<double> const>(mixers),
                                     std::span<index_t const>(grid), dout.view(), dx.view(),
                                     std::span<heed::toeplitz_gradients<double> const>(to));
    auto const loss = [&] {
      heed::toeplitz_mix_grid(x.view(), std::span<heed::toeplitz_mixer<double> const>(mixers),
                              std::span<index_t const>(grid), out.view());
      return reference::weighted_sum(dout.values<double>(), out.values<double>());
    };
    CHECK(reference::weighted_sum(dx.values<double>(), x.values<double>()) ==
          Approx(loss()).epsilon(1e-11));
    for (std::size_t n = 0; n < numbers.size(); ++n)
      for (index_t h = 0; h < 2; ++h)
        for (index_t c = 0; c < 4; ++c) {
          double& number = numbers[n].view()(0, 0, h, c);
          double const before = number;
          number = before + 1e-5;
          double const above = loss();
          number = before - 1e-5;
          double const slope = (above - loss()) / 2e-5;
          number = before;
          CHECK(slopes[n].view()(0, 0, h, c) == Approx(slope).epsilon(1e-7).margin(1e-7));
        }
  }
}

TEST_CASE("toeplitz mixing: what does not fit is refused", "[mechanism][toeplitz]") {
  float numbers[60] = {};
  auto const x = heed::bnhd(numbers, 1, 4, 2, 3);
  auto const of = [&](index_t h, index_t n) {
    return tensor_view<float const, 2>(numbers, {h, n});
  };
  CHECK_THROWS_WITH(
      heed::toeplitz_mix(x, heed::toeplitz_mixer<float>{of(2, 3), of(2, 2), of(2, 1)}, x),
      "heed: toeplitz_mixer.write has shape [2, 2]; expected [2, 3]");
  heed::toeplitz_mixer<float> const one[] = {{of(2, 3), of(2, 3), of(2, 1)}};
  index_t const grid[] = {2, 2};
  CHECK_THROWS_WITH(heed::toeplitz_mix_grid(x, std::span<heed::toeplitz_mixer<float> const>(one),
                                            std::span<index_t const>(grid), x),
                    "heed: a grid [2, 2] with 1 mixers for x of shape [1, 4, 2, 3]; expected a "
                    "mixer for each axis, and the positions of x");
}
