#include "support/catch.hpp"

#include <heed/cache/kv_cache.hpp>

#include <numeric>
#include <vector>

using heed::index_t;

namespace {

template <class T>
std::vector<T> counting(index_t count, float first) {
  std::vector<T> numbers(static_cast<std::size_t>(count));
  for (auto& number : numbers) number = T(first++);
  return numbers;
}

}  // namespace

TEMPLATE_TEST_CASE("appended rows come back in order", "[cache]", double, float, Eigen::half,
                   Eigen::bfloat16) {
  index_t const batch = 2, capacity = 5, key_heads = 2, value_heads = 1, dim = 3, value_dim = 4;
  std::vector<TestType> key_memory(static_cast<std::size_t>(batch * capacity * key_heads * dim));
  std::vector<TestType> value_memory(
      static_cast<std::size_t>(batch * capacity * value_heads * value_dim));
  heed::kv_cache cache(heed::bhnd(key_memory.data(), batch, key_heads, capacity, dim),
                       heed::bnhd(value_memory.data(), batch, capacity, value_heads, value_dim));
  CHECK(cache.length() == 0);
  CHECK(cache.capacity() == capacity);
  CHECK(cache.keys().extents() == std::array<index_t, 4>{batch, 0, key_heads, dim});

  auto const keys = counting<float>(batch * 4 * key_heads * dim, 0);
  auto const values = counting<float>(batch * 4 * value_heads * value_dim, 100);
  auto const k = heed::bnhd(keys.data(), batch, 4, key_heads, dim);
  auto const v = heed::bnhd(values.data(), batch, 4, value_heads, value_dim);
  cache.append(k.slice(1, 0, 3), v.slice(1, 0, 3));
  cache.append(k.slice(1, 3, 0), v.slice(1, 3, 0));
  cache.append(k.slice(1, 3, 1), v.slice(1, 3, 1));
  REQUIRE(cache.length() == 4);
  for (index_t b = 0; b < batch; ++b)
    for (index_t i = 0; i < 4; ++i) {
      for (index_t h = 0; h < key_heads; ++h)
        for (index_t d = 0; d < dim; ++d)
          CHECK(static_cast<float>(cache.keys()(b, i, h, d)) == k(b, i, h, d));
      for (index_t d = 0; d < value_dim; ++d)
        CHECK(static_cast<float>(cache.values()(b, i, 0, d)) == v(b, i, 0, d));
    }

  cache.truncate(1);
  CHECK(cache.length() == 1);
  cache.append(k.slice(1, 3, 1), v.slice(1, 3, 1));
  CHECK(static_cast<float>(cache.keys()(1, 1, 1, 2)) == k(1, 3, 1, 2));
}

TEST_CASE("rows of any strides are appended", "[cache]") {
  std::vector<float> memory(2 * 4 * 1 * 3), source = counting<float>(2 * 2 * 1 * 3, 1);
  auto const cache_view = heed::bnhd(memory.data(), 2, 4, 1, 3);
  heed::kv_cache cache(cache_view, cache_view);
  heed::tensor_view<float const, 4> const reversed(source.data() + 2, {2, 2, 1, 3}, {6, 3, 3, -1});
  cache.append(reversed, reversed);
  CHECK(cache.keys()(1, 1, 0, 0) == 12);
  CHECK(cache.keys()(0, 0, 0, 2) == 1);
}

TEST_CASE("what does not fit is refused and changes nothing", "[cache]") {
  std::vector<float> memory(2 * 4 * 2 * 3), rows(1000, 1.0f);
  auto const view = heed::bnhd(memory.data(), 2, 4, 2, 3);
  heed::kv_cache cache(view, view, 2);
  auto fresh = [&](index_t b, index_t n, index_t h, index_t d) {
    return heed::bnhd(rows.data(), b, n, h, d);
  };
  auto refused = [&](auto k, auto v) {
    CHECK_THROWS_AS(cache.append(k, v), heed::error);
    CHECK(cache.length() == 2);
    CHECK(std::accumulate(memory.begin(), memory.end(), 0.0f) == 0);
  };
  refused(fresh(2, 3, 2, 3), fresh(2, 3, 2, 3));
  refused(fresh(1, 1, 2, 3), fresh(1, 1, 2, 3));
  refused(fresh(2, 1, 1, 3), fresh(2, 1, 2, 3));
  refused(fresh(2, 1, 2, 3), fresh(2, 1, 2, 4));
  refused(fresh(2, 2, 2, 3), fresh(2, 1, 2, 3));
  CHECK_THROWS_AS(cache.truncate(3), heed::error);
  CHECK_THROWS_AS(cache.truncate(-1), heed::error);

  CHECK_THROWS_AS(heed::kv_cache(view, view, 5), heed::error);
  CHECK_THROWS_AS(heed::kv_cache(view, view, -1), heed::error);
  CHECK_THROWS_AS(heed::kv_cache(view, view.slice(1, 0, 3)), heed::error);
  CHECK_THROWS_AS(heed::kv_cache(view, view.slice(0, 0, 1)), heed::error);
}
