#include "support/identity.hpp"

using heed::index_t;
using heed::tensor_view;
using support::attend;
using support::blank;
using support::difference;
using support::normal;
using support::operands;
using support::rounding;
using support::same;

TEST_CASE("identity: sink logits", "[attend][quick]") {
  operands x(30, 80);
  auto const plain = x();
  float const infinity = std::numeric_limits<float>::infinity();
  std::vector<float> none{-infinity, -infinity}, zero{0, 0}, several{0.5f, -1, 2, -infinity};
  CHECK(same(x(heed::softmax_with_sinks{tensor_view<float, 1>(none.data(), {2})}), plain));

  // A zero logit is a zero key with a zero value.
  auto key = blank<float, 4>({1, 81, 2, 20}), value = blank<float, 4>({1, 81, 2, 20});
  key.fill(
      [&](auto const& at) { return at[1] == 0 ? 0.f : x.key.view()(0, at[1] - 1, at[2], at[3]); });
  value.fill([&](auto const& at) {
    return at[1] == 0 ? 0.f : x.value.view()(0, at[1] - 1, at[2], at[3]);
  });
  CHECK(same(x(heed::softmax_with_sinks{tensor_view<float, 1>(zero.data(), {2})}),
             attend(x.query.view(), key.view(), value.view())));

  // o' = o sigmoid(lse - z), lse' = log(e^lse + e^z), with z = log sum_t e^z_t.
  auto const sunk = x(heed::softmax_with_sinks{tensor_view<float, 2>(several.data(), {2, 2})});
  for (index_t h = 0; h < 2; ++h) {
    double const z = h == 0 ? std::log(std::exp(0.5) + std::exp(-1.)) : 2;
    for (index_t i = 0; i < 30; ++i) {
      double const lse = double(plain.lse(0, h, i)), share = 1 / (1 + std::exp(z - lse));
      CHECK(double(sunk.lse(0, h, i)) ==
            Approx(std::log(std::exp(lse) + std::exp(z))).margin(rounding));
      for (index_t d = 0; d < 20; ++d)
        CHECK(double(sunk.out(0, i, h, d)) ==
              Approx(share * double(plain.out(0, i, h, d))).margin(rounding));
    }
  }
}

TEST_CASE("identity: what is added to a row of scores moves only its lse", "[attend][quick]") {
  operands x(70, 90);
  auto by_row = blank<float, 4>({1, 1, 70, 1});
  by_row.fill([&](auto const& at) { return static_cast<float>(at[2] % 7 - 3); });
  auto const moved = x(heed::bias{by_row.view()}), plain = x();
  CHECK(difference(moved.out, plain.out) < rounding);
  for (index_t i = 0; i < 70; ++i)
    CHECK(moved.lse(0, 1, i) == Approx(plain.lse(0, 1, i) + float(i % 7 - 3)).margin(rounding));
}

TEST_CASE("identity: causal alibi is a bias by column up to a row term", "[attend][quick]") {
  operands x(60, 60);
  std::vector<float> slopes{0.25f, 0.0625f};
  auto by_column = blank<float, 4>({1, 2, 1, 60});
  by_column.fill([&](auto const& at) {
    return slopes[static_cast<std::size_t>(at[1])] * static_cast<float>(at[3]);
  });
  auto const linear = x(heed::causal{}, heed::alibi{tensor_view<float, 1>(slopes.data(), {2})});
  auto const column = x(heed::causal{}, heed::bias{by_column.view()});
  CHECK(difference(linear.out, column.out) < rounding);
}

TEST_CASE("identity: uniform weights", "[attend][quick]") {
  operands x(40, 70);
  auto out = blank<float, 4>({1, 40, 2, 20});
  auto entropy = blank<float, 3>({1, 2, 40}), row_max = blank<float, 3>({1, 2, 40});
  heed::attention(x.query.view(), x.key.view(), x.value.view(), out.view(), heed::scale{0},
                  heed::causal{}, heed::entropy_into<float>{entropy.view()},
                  heed::row_max_into<float>{row_max.view()});
  auto const v = x.value.view();
  for (index_t h = 0; h < 2; ++h)
    for (index_t i = 0; i < 40; ++i) {
      index_t const keys = i + 31;
      CHECK(entropy.view()(0, h, i) == Approx(std::log(double(keys))).margin(rounding));
      CHECK(row_max.view()(0, h, i) == 0);
      for (index_t d = 0; d < 20; ++d) {
        double mean = 0;
        for (index_t j = 0; j < keys; ++j) mean += double(v(0, j, h, d)) / double(keys);
        CHECK(out.view()(0, i, h, d) == Approx(mean).margin(rounding));
      }
    }
}

TEST_CASE("identity: scale, row scale and softcap", "[attend][quick]") {
  operands x(40, 70);
  auto rows = blank<float, 3>({1, 2, 40});
  rows.fill([](auto const&) { return 0.5f; });
  CHECK(
      same(x(heed::scale{0.3}, heed::row_scale{std::as_const(rows).view()}), x(heed::scale{0.15})));
  CHECK(same(x(heed::softcap{1e9}), x()));
  auto out = blank<float, 4>({1, 40, 2, 20});
  auto row_max = blank<float, 3>({1, 2, 40});
  heed::attention(x.query.view(), x.key.view(), x.value.view(), out.view(), heed::scale{50},
                  heed::softcap{3}, heed::row_max_into<float>{row_max.view()});
  for (float top : row_max.values<float>().values) CHECK(top <= 3.f + float(rounding));
}

TEST_CASE("identity: column sums add up to the number of rows that see a key", "[attend][quick]") {
  operands x(80, 50);
  auto out = blank<float, 4>({1, 80, 2, 20});
  auto sums = blank<float, 3>({1, 2, 50});
  heed::attention(x.query.view(), x.key.view(), x.value.view(), out.view(), heed::causal{},
                  heed::column_sums_into{sums.view()});
  for (index_t h = 0; h < 2; ++h) {
    double total = 0;
    for (index_t j = 0; j < 50; ++j) total += double(sums.view()(0, h, j));
    CHECK(total == Approx(50).epsilon(1e-6));  // the first 30 rows see none
  }
}

TEST_CASE("identity: top keys among equals are the first ones", "[attend][quick]") {
  // Few whole numbers: scores are exact even in base 2, and many are equal.
  support::random draw(1);
  auto query = blank<float, 4>({1, 37, 1, 2}), key = blank<float, 4>({1, 90, 1, 2});
  for (auto* each : {&query, &key})
    each->fill([&](auto const&) { return static_cast<float>(draw.between(-1, 1)); });
  auto out = blank<float, 4>({1, 37, 1, 2});
  auto indices = blank<index_t, 4>({1, 1, 37, 5});
  heed::attention(query.view(), key.view(), key.view(), out.view(), heed::scale{1}, heed::causal{},
                  heed::top_keys_into<float>{indices.view()});
  for (index_t i = 0; i < 37; ++i) {
    std::vector<std::pair<float, index_t>> scores;
    for (index_t j = 0; j <= i + 53; ++j) {
      float s = 0;
      for (index_t d = 0; d < 2; ++d) s -= query.view()(0, i, 0, d) * key.view()(0, j, 0, d);
      scores.emplace_back(s, j);
    }
    std::sort(scores.begin(), scores.end());
    for (index_t t = 0; t < 5; ++t)
      CHECK(indices.view()(0, 0, i, t) == scores[static_cast<std::size_t>(t)].second);
  }
}

TEST_CASE("identity: gradients", "[attend][quick]") {
  operands x(50, 40);
  auto const q = std::as_const(x.query).view(), k = std::as_const(x.key).view(),
             v = std::as_const(x.value).view();
  auto const dout = normal(x.draw, {1, 50, 2, 20});
  auto dlse = blank<float, 3>({1, 2, 50});
  dlse.fill([&](auto const&) { return static_cast<float>(x.draw.normal()); });
  auto row_bias = blank<float, 4>({1, 2, 50, 1}), row_gradient = blank<float, 4>({1, 2, 50, 1});
  row_bias.fill([](auto const&) { return 0.f; });
  double dscale = 0;
  // Causal with more rows than keys: the first ten rows see nothing. And nobody sees the last five
  // keys.
  std::vector<index_t> const lengths{35};
  auto const gradient = support::attend_backward<float>(
      q, k, v, dout.view(), std::as_const(dlse).view(), heed::causal{} & heed::key_lengths{lengths},
      heed::scale{0.3, &dscale}, heed::bias{std::as_const(row_bias).view(), row_gradient.view()});

  double with_query = 0, with_key = 0;
  for (index_t h = 0; h < 2; ++h) {
    for (index_t i = 0; i < 50; ++i) {
      // The scores of a row have the gradient of its lse in sum.
      CHECK(row_gradient.view()(0, h, i, 0) ==
            Approx(i < 10 ? 0.f : std::as_const(dlse).view()(0, h, i)).margin(2e-5));
      for (index_t d = 0; d < 20; ++d) {
        if (i < 10) CHECK(gradient.query(0, i, h, d) == 0);
        with_query += double(q(0, i, h, d)) * double(gradient.query(0, i, h, d));
      }
    }
    for (index_t j = 0; j < 40; ++j)
      for (index_t d = 0; d < 20; ++d) {
        if (j >= 35) CHECK((gradient.key(0, j, h, d) == 0 && gradient.value(0, j, h, d) == 0));
        with_key += double(k(0, j, h, d)) * double(gradient.key(0, j, h, d));
      }
  }
  CHECK(0.3 * dscale == Approx(with_query).epsilon(1e-4).margin(1e-4));
  CHECK(with_key == Approx(with_query).epsilon(1e-4).margin(1e-4));
}
