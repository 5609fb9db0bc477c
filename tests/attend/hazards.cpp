#include "support/tensors.hpp"

// Where other libraries give NaN, overflow, or the mean of the values.

using heed::index_t;
using heed::tensor_view;
using support::attend;
using support::blank;
using support::normal;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

bool is_empty_row(support::attended<float> const& r, index_t i) {
  for (index_t b = 0; b < r.out.extent(0); ++b)
    for (index_t h = 0; h < r.out.extent(2); ++h) {
      if (r.lse(b, h, i) != -infinity) return false;
      for (index_t d = 0; d < r.out.extent(3); ++d)
        if (r.out(b, i, h, d) != 0) return false;
    }
  return true;
}

}  // namespace

TEST_CASE("hazard: rows that meet no key, at and around every tile boundary", "[attend][quick]") {
  support::random draw(1);
  for (index_t N : {1, 7, 8, 9, 16, 23, 24, 25, 47, 48, 49, 64, 65, 130})
    for (index_t M : {1, 8, 63, 64, 65, 128, 129}) {
      auto const q = normal(draw, {1, N, 2, 9}), k = normal(draw, {1, M, 2, 9});
      auto const causal = attend(q.view(), k.view(), k.view(), heed::causal{});
      auto const nothing = attend(q.view(), k.view(), k.view(), heed::first_keys{0});
      auto const beyond = attend(
          q.view(), k.view(), k.view(),
          heed::sliding_window{.left = heed::unbounded, .right = 0} & ~heed::first_keys{M - 1});
      CAPTURE(N, M);
      bool right = true;
      for (index_t i = 0; i < N; ++i) {
        right &= is_empty_row(causal, i) == (i + M - N < 0);
        right &= is_empty_row(nothing, i);
        right &=
            is_empty_row(beyond, i) == (i < N - 1);  // the last key is there for the last row only
      }
      CHECK(right);
    }
}

TEST_CASE("hazard: whole tiles hidden by a tensor", "[attend][quick]") {
  support::random draw(1);
  index_t const N = 70, M = 200;
  auto const q = normal(draw, {1, N, 1, 16}), k = normal(draw, {1, M, 1, 16});
  auto mask = blank<bool, 4>({1, 1, N, M});
  // Row i sees keys from 64 (i % 4) on: whole tiles of nothing come first; every fifth row sees
  // nothing.
  auto const kept = [](index_t i, index_t j) { return i % 5 != 0 && j >= 64 * (i % 4); };
  mask.fill([&](auto const& at) { return kept(at[2], at[3]); });
  auto const result = attend(q.view(), k.view(), k.view(), heed::bias{mask.view()});
  for (index_t i = 0; i < N; ++i) {
    CAPTURE(i);
    CHECK(is_empty_row(result, i) == (i % 5 == 0));
    if (i % 5 == 0) continue;
    auto const one =
        attend(q.view().slice(1, i, 1), k.view().slice(1, 64 * (i % 4), M - 64 * (i % 4)),
               k.view().slice(1, 64 * (i % 4), M - 64 * (i % 4)));
    CHECK(result.lse(0, 0, i) == Approx(one.lse(0, 0, 0)).epsilon(1e-5));
    CHECK(result.out(0, i, 0, 3) == Approx(one.out(0, 0, 0, 3)).margin(1e-5));
  }
}

TEST_CASE("hazard: a bias of the lowest number hides a row as -infinity does", "[attend][quick]") {
  support::random draw(1);
  for (index_t N : {3, 30}) {
    auto const q = normal(draw, {1, N, 1, 16}), k = normal(draw, {1, 40, 1, 16});
    auto bias = blank<float, 4>({1, 1, N, 1});
    bias.fill(
        [](auto const& at) { return at[2] % 2 == 0 ? std::numeric_limits<float>::lowest() : 0.f; });
    auto const result = attend(q.view(), k.view(), k.view(), heed::bias{bias.view()});
    for (index_t i = 0; i < N; ++i) CHECK(is_empty_row(result, i) == (i % 2 == 0));
  }
}

TEST_CASE("hazard: scores of 10000", "[attend][quick]") {
  support::random draw(1);
  for (float sign : {1.f, -1.f})
    for (index_t N : {2, 40}) {
      auto query = blank<float, 4>({1, N, 1, 4}), key = blank<float, 4>({1, 100, 1, 4});
      query.fill([&](auto const& at) { return at[3] == 0 ? sign * 100 : 0.f; });
      key.fill([&](auto const& at) {
        return at[3] == 0 ? 100 - static_cast<float>(at[1]) * 0x1p-10f : 0.f;
      });
      auto const value = normal(draw, {1, 100, 1, 4});
      auto const result = attend(query.view(), key.view(), value.view(), heed::scale{1});
      double total = 0;  // of the weights relative to the first key's
      for (int j = 0; j < 100; ++j) total += std::exp(-double(sign) * 100 * j / 1024);
      CHECK(result.lse(0, 0, 0) == Approx(double(sign) * 10000 + std::log(total)).epsilon(1e-6));
      for (float x : result.out.values) CHECK(std::isfinite(x));
      for (float x : result.out.values) CHECK(std::abs(x) < 6);
    }
}

TEST_CASE("hazard: one key outweighs all others, early or late", "[attend][quick]") {
  for (index_t N : {1, 20})
    for (index_t place : {0, 63, 64, 199}) {
      auto query = blank<float, 4>({1, N, 1, 1}), key = blank<float, 4>({1, 200, 1, 1}),
           value = blank<float, 4>({1, 200, 1, 1});
      query.fill([](auto const&) { return 1.f; });
      key.fill([&](auto const& at) { return at[1] == place ? 500.f : -500.f; });
      value.fill([&](auto const& at) { return static_cast<float>(at[1]); });
      auto const result = attend(query.view(), key.view(), value.view());
      for (index_t i = 0; i < N; ++i) {
        CHECK(result.out(0, i, 0, 0) == Approx(double(place)).margin(1e-6));
        CHECK(result.lse(0, 0, i) == Approx(500));
      }
    }
}

TEST_CASE("hazard: infinite and NaN queries stay in their rows", "[attend][quick]") {
  support::random draw(1);
  for (index_t N : {4, 60}) {
    auto q = normal(draw, {1, N, 1, 8});
    auto const k = normal(draw, {1, 90, 1, 8});
    auto const clean = attend(q.view(), k.view(), k.view());
    q.view()(0, 1, 0, 3) = infinity;
    q.view()(0, 2, 0, 5) = std::numeric_limits<float>::quiet_NaN();
    auto const result = attend(q.view(), k.view(), k.view());
    for (index_t i = 0; i < N; ++i)
      for (index_t d = 0; d < 8; ++d) {
        if (i == 1 || i == 2)
          CHECK(std::isnan(result.out(0, i, 0, d)));
        else
          CHECK(result.out(0, i, 0, d) == clean.out(0, i, 0, d));
      }
  }
}
