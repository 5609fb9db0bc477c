#include "reference/cab.hpp"
#include "support/compositions.hpp"

#include <heed/mechanism/probsparse.hpp>

// ProbSparse attention, against its definition.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::in_orders;
using support::seed_t;
using support::view_of;

namespace {

/// Some rows of every head in increasing order.
tensor<index_t, 3> some_rows(support::random& draw, index_t batches, index_t heads, index_t rows,
                             index_t count) {
  tensor<index_t, 3> chosen({batches, heads, count});
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h) {
      index_t row = 0;
      for (index_t n = 0; n < count; ++n, ++row) {
        while (draw.between(1, rows - row) > count - n) ++row;
        chosen(b, h, n) = row;
      }
    }
  return chosen;
}

template <class T>
struct probsparse_problem : definition_check<T> {
  index_t N, M, H, count;
  bool causal;
  double scale;
  tensor<index_t, 3> rows;

  explicit probsparse_problem(seed_t seed, index_t least = 1) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), D = chance.between(4, 20), Dv = chance.between(4, 20);
    causal = chance.one_in(2);
    N = chance.one_in(6) ? chance.between(100, 160) : chance.between(least, 40);
    M = causal || chance.one_in(2) ? N : chance.between(least, 60);
    H = chance.one_in(2) ? 4 : 2;
    count = chance.one_in(5) ? 0 : chance.one_in(4) ? N : chance.between(0, N);
    scale = chance.uniform(0.1, 0.3);
    rows = some_rows(chance, B, H, N, count);
    auto const shared = [&] { return chance.one_of(std::array<index_t, 3>{1, 2, H}); };
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, shared(), D});
    this->input("v", {B, M, shared(), Dv});
    this->output("out", {B, N, H, Dv});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{reference::probsparse(x[0], x[1], x[2], rows, causal, scale)};
    };
  }
  template <class... I>
  void forward_pass(I const&... more) {
    auto const call = [&](auto const&... own) {
      heed::probsparse_attention(this->in(0), this->in(1), this->in(2),
                                 view_of(std::as_const(rows)), this->out(0), heed::scale{scale},
                                 own..., more...);
    };
    causal ? call(heed::causal{}) : call();
  }
  template <class... I>
  void backward_pass(I const&... more) {
    auto const call = [&](auto const&... own) {
      heed::probsparse_attention_backward(
          this->in(0), this->in(1), this->in(2), view_of(std::as_const(rows)), this->dout(0),
          this->din(0), this->din(1), this->din(2), heed::scale{scale}, own..., more...);
    };
    causal ? call(heed::causal{}) : call();
  }
};

}  // namespace

TEMPLATE_TEST_CASE("probsparse: the definition", "[mechanism][probsparse]", double, float) {
  for_each_seed("probsparse", 200, [](seed_t seed) {
    probsparse_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("probsparse: the gradient", "[mechanism][probsparse]", double, float) {
  for_each_seed("probsparse backward", 40, [](seed_t seed) {
    probsparse_problem<TestType> p(seed, 8);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("probsparse: the gradient of few rows", "[mechanism][probsparse]") {
  for_each_seed("probsparse backward, few rows", 80, [](seed_t seed) {
    probsparse_problem<double> p(seed);
    p.backward_pass();
    return support::small_gradient_complaint(p, 3, p.definition());
  });
}

TEST_CASE("probsparse: the rows of the largest measures", "[mechanism][probsparse]") {
  for_each_seed("probsparse select", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), H = draw.one_in(2) ? 4 : 2, N = draw.between(1, 50),
                  M = draw.between(1, 50), D = draw.between(1, 20), U = draw.between(1, M),
                  count = draw.between(0, N);
    // Small whole numbers, so that sums are exact and many measures are equal: then the order counts.
    bool const whole = draw.one_in(2);
    auto const number = [&] { return whole ? double(draw.between(-1, 1)) : draw.normal(); };
    tensor<double, 4> q({B, N, H, D}), k({B, M, draw.one_in(2) ? H : 1, D});
    for (double& x : q.values) x = number();
    for (double& x : k.values) x = number();
    if (whole && M > 1) {
      // A division by M that is exact.
      k = tensor<double, 4>({B, draw.one_in(2) ? 32 : 8, k.extent(2), D});
      for (double& x : k.values) x = number();
    }
    index_t const keys = k.extent(1);
    tensor<index_t, 4> samples({draw.one_in(2) ? 1 : B, draw.one_in(2) ? 1 : H, N, U});
    for (index_t& each : samples.values) each = draw.between(0, keys - 1);
    tensor<index_t, 3> rows({B, H, count}, -1);
    heed::probsparse_select(view_of(std::as_const(q)), view_of(std::as_const(k)),
                            view_of(std::as_const(samples)), view_of(rows));
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h) {
        auto const expected = reference::probsparse_rows(q, k, samples, count, b, h);
        for (index_t n = 0; n < count; ++n)
          if (rows(b, h, n) != expected[std::size_t(n)])
            return "row " + std::to_string(n) + " of " + std::to_string(count) + " is " +
                   std::to_string(rows(b, h, n)) + ", not " +
                   std::to_string(expected[std::size_t(n)]) + "\n";
      }
    return std::string();
  });
}

TEST_CASE("probsparse: equal measures go by the lowest index", "[mechanism][probsparse]") {
  tensor<float, 4> const q({1, 6, 1, 2}, 1), k({1, 4, 1, 2}, 1);
  tensor<index_t, 4> const samples({1, 1, 6, 3}, 2);
  tensor<index_t, 3> rows({1, 1, 3});
  heed::probsparse_select(view_of(q), view_of(k), view_of(samples), view_of(rows));
  CHECK(rows.values == std::vector<index_t>{0, 1, 2});
}

TEST_CASE("probsparse: half keys, and a query with NaN is seen", "[mechanism][probsparse]") {
  support::random draw(3);
  auto q = support::normal<Eigen::half>(draw, {1, 9, 2, 8}),
       k = support::normal<Eigen::half>(draw, {1, 5, 1, 8});
  tensor<index_t, 4> samples({1, 1, 9, 4});
  for (index_t& each : samples.values) each = draw.between(0, 4);
  tensor<index_t, 3> rows({1, 2, 3});
  auto const select = [&] {
    heed::probsparse_select(std::as_const(q).view(), std::as_const(k).view(),
                            view_of(std::as_const(samples)), view_of(rows));
  };
  select();
  for (index_t h = 0; h < 2; ++h) {
    auto const expected =
        reference::probsparse_rows(q.values<double>(), k.values<double>(), samples, 3, 0, h);
    for (index_t n = 0; n < 3; ++n) CHECK(rows(0, h, n) == expected[std::size_t(n)]);
  }
  q.view()(0, 7, 0, 3) = support::poison<Eigen::half>();
  select();
  CHECK(std::count(rows.values.begin(), rows.values.begin() + 3, 7) == 1);
}

TEST_CASE("probsparse: all rows chosen is full attention", "[mechanism][probsparse]") {
  support::random draw(5);
  auto const q = support::normal<float>(draw, {2, 40, 4, 16}),
             k = support::normal<float>(draw, {2, 40, 2, 16}),
             v = support::normal<float>(draw, {2, 40, 4, 8});
  auto out = support::blank<float, 4>({2, 40, 4, 8});
  tensor<index_t, 3> rows({2, 4, 40});
  for (std::size_t n = 0; n < rows.values.size(); ++n) rows.values[n] = index_t(n) % 40;
  heed::probsparse_attention(q.view(), k.view(), v.view(), view_of(std::as_const(rows)),
                             out.view());
  CHECK(support::difference(out.values<float>(),
                            support::attend(q.view(), k.view(), v.view()).out) < 1e-6);
  heed::probsparse_attention(q.view(), k.view(), v.view(), view_of(std::as_const(rows)), out.view(),
                             heed::causal{});
  CHECK(support::difference(out.values<float>(),
                            support::attend(q.view(), k.view(), v.view(), heed::causal{}).out) <
        1e-6);
}

TEST_CASE("probsparse: running sums of a million rows", "[mechanism][probsparse]") {
  index_t const N = 1000000;
  tensor<float, 4> const q({1, N, 1, 1}, 1);
  tensor<float, 4> v({1, N, 1, 1}), out({1, N, 1, 1});
  support::random draw(1);
  for (float& x : v.values) x = float(draw.uniform());
  tensor<index_t, 3> const none({1, 1, 0});
  heed::probsparse_attention(view_of(q), view_of(q), view_of(std::as_const(v)), view_of(none),
                             view_of(out), heed::causal{});
  double sum = 0, worst = 0;
  for (std::size_t n = 0; n < v.values.size(); ++n) {
    sum += double(v.values[n]);
    worst = std::max(worst, std::abs(double(out.values[n]) - sum) / sum);
  }
  CHECK(worst < 4e-7);
}

TEST_CASE("probsparse: how many rows", "[mechanism][probsparse]") {
  CHECK(heed::probsparse_count(5, 1) == 0);
  CHECK(heed::probsparse_count(5, 2) == 2);
  CHECK(heed::probsparse_count(5, 100) == 25);
  CHECK(heed::probsparse_count(5, 0) == 0);
  CHECK(heed::probsparse_count(1, 3) == 2);
}

TEST_CASE("probsparse: the same bits on any executor", "[mechanism][probsparse]") {
  for_each_seed("probsparse executor", 20, [](seed_t seed) {
    return support::executor_complaint<probsparse_problem<float>>(seed, 3);
  });
}

TEST_CASE("probsparse: what does not fit is refused", "[mechanism][probsparse]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const tokens = [&](index_t n) { return heed::bnhd(numbers.data(), 1, n, 2, 3); };
  tensor<index_t, 4> const samples({1, 1, 5, 2}, 6);
  tensor<index_t, 3> rows({1, 2, 2}, 3), more({1, 2, 6});
  CHECK_THROWS_WITH(heed::probsparse_select(tokens(5), tokens(6), view_of(samples), view_of(rows)),
                    "heed: samples holds 6; expected 0 to 5 (keys)");
  CHECK_THROWS_WITH(heed::probsparse_select(tokens(4), tokens(7), view_of(samples), view_of(rows)),
                    "heed: samples has shape [1, 1, 5, 2]; expected [1 or 1, 1 or 2, 4, at least "
                    "1] (batch, head, "
                    "row, sample)");
  CHECK_THROWS_WITH(heed::probsparse_select(tokens(5), tokens(7), view_of(samples), view_of(more)),
                    "heed: rows has shape [1, 2, 6]; expected [1, 2, up to 5] (batch, head, row)");
  CHECK_THROWS_WITH(heed::probsparse_attention(tokens(5), tokens(7), tokens(7),
                                               view_of(std::as_const(rows)), tokens(5)),
                    "heed: rows holds 3; expected rows from 0 to 4, each list in increasing order");
  CHECK_THROWS_WITH(
      heed::probsparse_attention(tokens(5), tokens(7), tokens(7), view_of(std::as_const(rows)),
                                 tokens(5), heed::causal{}),
      "heed: query has shape [1, 5, 2, 3], key [1, 7, 2, 3]; expected as many positions, those of "
      "one sequence");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
  CHECK(rows.values == std::vector<index_t>(4, 3));
}
