#include "support/identity.hpp"

#include <heed/pattern/any_pattern.hpp>
#include <heed/pattern/block_lists.hpp>
#include <heed/score/score_of.hpp>

// FlexAttention: score functions and mask functions as ingredients, and what the paper's definition says of them.

using heed::index_t;
using support::operands;

namespace {

constexpr index_t rows = 37, keys = 53;

template <class... I>
support::gradients_of<float> gradients(operands& x, I const&... ingredients) {
  auto dout = support::blank<float, 4>({1, rows, 2, 20});
  auto dlse = support::blank<float, 3>({1, 2, rows});
  dout.fill(
      [](auto const& at) { return 0.5f - 0.25f * static_cast<float>(at[3] % 4 + at[1] % 3); });
  dlse.fill([](auto const& at) { return 0.25f * static_cast<float>(at[2] % 3); });
  return support::attend_backward<float>(x.query.view(), x.key.view(), x.value.view(), dout.view(),
                                         dlse.view(), ingredients...);
}

bool same(support::gradients_of<float> const& a, support::gradients_of<float> const& b) {
  return support::difference(a.query, b.query) < support::rounding &&
         support::difference(a.key, b.key) < support::rounding &&
         support::difference(a.value, b.value) < support::rounding;
}
using support::same;

/// Calls f for each lane of a register.
template <class Batch, class F>
void each_lane(Batch const& batch, F f) {
  std::array<typename Batch::value_type, Batch::size> lanes;
  batch.store_unaligned(lanes.data());
  for (auto lane : lanes) f(static_cast<index_t>(lane));
}

}  // namespace

TEST_CASE("a score function that adds is an additive bias", "[mechanism][quick]") {
  operands x(rows, keys);
  auto beta = support::blank<float, 4>({1, 1, rows, keys});
  auto const at = [](index_t query, index_t key) {
    return 0.01f * static_cast<float>(query - key) + 0.5f * static_cast<float>(key % 2);
  };
  beta.fill([&](auto const& i) { return at(i[2] + keys - rows, i[3]); });
  heed::bias const bias{heed::tensor_view<float const, 4>(beta.view())};
  auto const function = heed::score_of([](auto score, auto query, auto key) {
    decltype(score) const half = key * 0.5f, odd = key - xsimd::floor(half) * 2.0f;
    return score + (query - key) * 0.01f + odd * 0.5f;
  });
  CHECK(same(x(function), x(bias)));
  CHECK(same(x(function, heed::causal{}), x(bias, heed::causal{})));
  CHECK(same(gradients(x, function, heed::causal{}), gradients(x, bias, heed::causal{})));
}

TEST_CASE("a score function with its slope", "[mechanism][quick]") {
  operands x(rows, keys);
  heed::softcap const cap{1.5};
  auto const function =
      heed::score_of([](auto score, auto, auto) { return heed::simd::tanh(score / 1.5f) * 1.5f; },
                     [](auto, auto capped) { return 1.0f - capped * capped / (1.5f * 1.5f); });
  CHECK(same(x(function), x(cap)));
  CHECK(same(gradients(x, function), gradients(x, cap)));
  // Score functions compose in the order they are given.
  auto const twice = heed::score_of([](auto score, auto, auto) { return score * 2.0f; },
                                    [](auto score, auto) { return score * 0.0f + 2.0f; });
  auto const shifted =
      heed::score_of([](auto score, auto, auto key) { return score + key * 0.1f; });
  auto const both =
      heed::score_of([](auto score, auto, auto key) { return (score + key * 0.1f) * 2.0f; },
                     [](auto score, auto) { return score * 0.0f + 2.0f; });
  CHECK(same(x(shifted, twice), x(both)));
  CHECK(same(gradients(x, shifted, twice), gradients(x, both)));
  CHECK(!same(x(twice, shifted), x(both)));
}

TEST_CASE("a score function of batch and head", "[mechanism][quick]") {
  operands x(rows, keys);
  std::array<float, 2> const slopes{0.5f, 0.0625f};
  heed::alibi const linear{heed::tensor_view<float const, 1>(slopes.data(), {2})};
  auto const function =
      heed::score_of([=](auto score, index_t, index_t head, auto query, auto key) {
        return score - xsimd::abs(query - key) * slopes[static_cast<std::size_t>(head)];
      });
  CHECK(same(x(function), x(linear)));
  CHECK(same(gradients(x, function), gradients(x, linear)));
}

TEST_CASE("a score function that returns -infinity for a whole row", "[mechanism][quick]") {
  operands x(rows, keys);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  // Rows at even positions meet nothing, by the function or by a mask.
  auto const function = heed::score_of([](auto score, auto query, auto) {
    using batch = decltype(score);
    batch const half = query * 0.5f;
    return xsimd::select(xsimd::floor(half) == half, batch(-infinity), score);
  });
  heed::any_pattern const odd = heed::mask_of([](index_t p, index_t) { return p % 2 != 0; });
  auto const got = x(function), expected = x(odd);
  CHECK(same(got, expected));
  for (index_t i = 0; i < rows; ++i)
    for (index_t h = 0; h < 2; ++h) {
      bool const empty = (i + keys - rows) % 2 == 0;
      CHECK((got.lse(0, h, i) == -infinity) == empty);
      for (index_t d = 0; d < 20 && empty; ++d) CHECK(got.out(0, i, h, d) == 0);
    }
  CHECK(same(gradients(x, function), gradients(x, odd)));
}

TEST_CASE("functions are asked of pairs that exist, and may read memory by position",
          "[mechanism][quick]") {
  operands x(rows, keys);
  std::vector<float> const by_query(keys, 0.25f),
      by_key(keys, -0.5f);  // positions are below `keys`
  bool strayed = false;
  auto const exists = [&](index_t query, index_t key) {
    return query >= keys - rows && query < keys && key >= 0 && key < keys;
  };
  auto const function = heed::score_of([&](auto score, auto query, auto key) {
    index_t const j = [&] {
      index_t first = -1;
      each_lane(key, [&](index_t lane) { first = lane; });
      return first;
    }();
    each_lane(query, [&](index_t p) { strayed = strayed || !exists(p, j); });
    if (strayed) return score;
    std::array<typename decltype(score)::value_type, decltype(score)::size> sums;
    std::size_t n = 0;
    each_lane(query, [&](index_t p) {
      sums[n++] = by_query[static_cast<std::size_t>(p)] + by_key[static_cast<std::size_t>(j)];
    });
    return score + decltype(score)::load_unaligned(sums.data());
  });
  heed::any_pattern const mask = heed::mask_of([&](index_t query, index_t key) {
    strayed = strayed || !exists(query, key);
    return (query + key) % 3 != 0;
  });
  auto const got = x(function, mask);
  // What is added is the same for all keys.
  auto const expected = x(mask);
  CHECK(support::difference(got.out, expected.out) < support::rounding);
  CHECK(got.lse(0, 0, 5) == Approx(expected.lse(0, 0, 5) - 0.25f).epsilon(1e-5));
  gradients(x, function, mask);
  CHECK(!strayed);
}

TEST_CASE("block lists from tile classes reproduce a mask at any block size",
          "[mechanism][quick]") {
  operands x(rows, keys);
  auto const keep = heed::mask_of([](index_t, index_t head, index_t p, index_t j) {
    return j <= p && (p / 7 + j / 5 + head) % 3 != 0 && p / 7 != 4;  // some rows meet no key
  });
  auto const expected = x(heed::any_pattern(keep));
  for (heed::block_size size : {heed::block_size{1, 1}, {7, 5}, {16, 16}, {64, 3}, {128, 128}}) {
    auto const classes = heed::classify(keep, rows, keys, size, 1, 2);
    heed::block_lists const lists = heed::list_key_blocks(classes);
    auto const again = heed::classes_of(lists.views(), rows, keys, size);
    CHECK(same(x(heed::any_pattern(heed::classified(keep, classes))), expected));
    CHECK(same(x(heed::any_pattern(heed::classified(keep, again))), expected));
  }
}
