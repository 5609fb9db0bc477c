#include "reference/sea.hpp"
#include "support/compositions.hpp"

#include <heed/mechanism/sea_estimator.hpp>

// SEA's linear estimator, against its definition.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::definition_check;
using support::for_each_seed;
using support::in_orders;
using support::seed_t;
using support::view_of;

namespace {

template <class T>
tensor_view<T, 2> as_rows(tensor_view<T, 4> x) {
  return {x.data(), {x.extent(1), x.extent(3)}, {x.stride(1), x.stride(3)}};
}

template <class T>
struct sea_problem : definition_check<T> {
  bool causal;
  std::mt19937_64 bits;
  heed::favor_projection omega;

  explicit sea_problem(seed_t seed, index_t least = 1)
      : definition_check<T>(seed),
        bits(seed),
        omega(heed::favor_projection::orthogonal(this->draw.between(5, 12), 6, bits)) {
    support::random& chance = this->draw;
    causal = chance.one_in(2);
    index_t const B = chance.between(1, 2), N = chance.between(least, 30), E = chance.between(1, 8),
                  heads = chance.one_in(2) ? 4 : 2;
    auto const small = [&] { return 0.7 * chance.normal(); };
    this->input("q", {B, N, 4, 6}, small);
    this->input("k", {B, N, heads, 6}, small);
    this->input("v", {B, N, chance.one_in(2) ? 4 : heads, E});
    this->input("e", {1, N, 1, chance.between(1, 8)});
    this->output("context", {B, N, 4, this->in(3).extent(3) + E});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{reference::sea_context(
          x[0], x[1], x[2], x[3], support::read<double>(omega.matrix()), causal)};
    };
  }
  template <class... I>
  void forward_pass(I const&... more) {
    if (causal)
      heed::causal_sea_context(this->in(0), this->in(1), this->in(2), as_rows(this->in(3)),
                               this->out(0), omega, more...);
    else
      heed::sea_context(this->in(0), this->in(1), this->in(2), as_rows(this->in(3)), this->out(0),
                        heed::favor{omega}, more...);
  }
  template <class... I>
  void backward_pass(I const&... more) {
    forward_pass();
    if (causal)
      return heed::causal_sea_context_backward(this->in(0), this->in(1), this->in(2),
                                               as_rows(this->in(3)), this->saved(0), this->dout(0),
                                               this->din(0), this->din(1), this->din(2),
                                               as_rows(this->din(3)), omega, more...);
    heed::sea_context_backward(this->in(0), this->in(1), this->in(2), as_rows(this->in(3)),
                               this->saved(0), this->dout(0), this->din(0), this->din(1),
                               this->din(2), heed::favor{omega}, more...);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("sea estimator: the definition", "[mechanism][sea]", double, float) {
  for_each_seed("sea estimator", 60, [](seed_t seed) {
    sea_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEST_CASE("sea estimator: the gradient", "[mechanism][sea]") {
  for_each_seed("sea estimator backward", 40, [](seed_t seed) {
    sea_problem<double> p(seed);
    p.backward_pass();
    // The identity is a constant.
    return support::small_gradient_complaint(p, 4, p.definition(), 1, p.causal ? 0 : 1);
  });
}

TEST_CASE("sea estimator: decoding says what reading says", "[mechanism][sea]") {
  for_each_seed("sea estimator decoding", 20, [](seed_t seed) {
    sea_problem<float> p(seed);
    p.causal = true;
    p.forward_pass();
    auto const shape = p.out(0).extents();
    index_t const heads = std::max(p.in(1).extent(2), p.in(2).extent(2));
    tensor<double, 4> state({shape[0], heads, p.omega.features(), shape[3] + 1});
    auto out = support::blank<float, 4>(shape);
    for (index_t i = 0; i < shape[1]; ++i)
      heed::causal_sea_context_step(p.in(0).slice(1, i, 1), p.in(1).slice(1, i, 1),
                                    p.in(2).slice(1, i, 1), as_rows(p.in(3)).slice(0, i, 1),
                                    out.view().slice(1, i, 1), view_of(state), p.omega);
    double const off = support::difference(out.values<float>(), support::read<float>(p.saved(0)));
    return off < 1e-5 ? "" : "decoding is off by " + std::to_string(off) + "\n";
  });
}

TEST_CASE("sea estimator: the stretched identity", "[mechanism][sea]") {
  for (index_t count : {1, 2, 5, 16, 33})
    for (index_t dim : {1, 2, 8}) {
      tensor<double, 2> rows({count, dim}, 7);
      heed::interpolated_identity(view_of(rows));
      CHECK(support::difference(rows, reference::stretched_identity<double>(count, dim)) < 1e-14);
      for (index_t t = 0; t < count; ++t) {
        double sum = 0;
        for (index_t d = 0; d < dim; ++d) sum += rows(t, d);
        CHECK(sum == Approx(1));
      }
    }
  // As many rows as columns: the identity.
  tensor<float, 2> rows({4, 4}, 7);
  heed::interpolated_identity(view_of(rows));
  CHECK(rows.values == std::vector<float>{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1});
  CHECK(heed::sea_features(64) == 266);
}

TEST_CASE("sea estimator: the same bits on any executor", "[mechanism][sea]") {
  for_each_seed("sea executor", 10, [](seed_t seed) {
    return support::executor_complaint<sea_problem<float>>(seed, 3);
  });
}

TEST_CASE("sea estimator: what does not fit is refused", "[mechanism][sea]") {
  std::vector<float> numbers(1000, 7.0f);
  std::mt19937_64 bits(1);
  auto const omega = heed::favor_projection::orthogonal(5, 3, bits);
  auto const tokens = [&](index_t n, index_t dim = 3) {
    return heed::bnhd(numbers.data(), 1, n, 2, dim);
  };
  tensor_view<float, 2> const e(numbers.data(), {8, 3});
  CHECK_THROWS_WITH(
      heed::sea_context(tokens(9), tokens(9), tokens(9), e, tokens(9, 6), heed::favor{omega}),
      "heed: query has shape [1, 9, 2, 3], key [1, 9, 2, 3], value [1, 9, 2, 3], positions [8, 3]; "
      "expected as many positions of each");
  CHECK_THROWS_WITH(
      heed::causal_sea_context(tokens(8), tokens(8), tokens(8), e, tokens(8, 5), omega),
      "heed: context has shape [1, 8, 2, 5]; expected that of query with a row of positions and "
      "one "
      "of value, [1, 8, 2, 6]");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}
