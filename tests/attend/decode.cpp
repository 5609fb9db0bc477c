#include "support/problem.hpp"

#include <cstring>

// Few queries against many keys: another kernel, which splits the keys.

using support::for_each_seed;
using support::problem;
using support::seed_t;

namespace {

support::shape_limits few_queries(std::ptrdiff_t keys) {
  return {.positions = keys, .dim = 80, .pairs_times_dim = 2e6, .queries = 8};
}

}  // namespace

TEST_CASE("decode: float", "[attend][quick]") {
  for_each_seed("decode float", 300, [](seed_t seed) {
    problem<float> p(seed, few_queries(1500));
    return p.forward(std::tuple{p.causal()});
  });
}

TEST_CASE("decode: half cache, sinks and a window, softcap, row statistics", "[attend]") {
  for_each_seed("decode half", 200, [](seed_t seed) {
    problem<float, Eigen::half, Eigen::half, float> p(seed, few_queries(1500));
    return p.forward(std::tuple{p.streaming(), p.softcap(), p.row_max(), p.entropy()});
  });
}

TEST_CASE("decode: bfloat16 cache, padded keys, alibi, bias, sink logits", "[attend]") {
  for_each_seed("decode bfloat16", 200, [](seed_t seed) {
    problem<float, Eigen::bfloat16> p(seed, few_queries(1500));
    auto const lengths = p.key_lengths();
    return p.forward(std::tuple{lengths & p.window(), p.alibi(), p.bias<float>(), p.sinks()});
  });
}

TEST_CASE("decode: documents, double", "[attend]") {
  for_each_seed("decode documents", 150, [](seed_t seed) {
    auto limits = few_queries(1500);
    limits.packed = true;
    problem<double> p(seed, limits);
    return p.forward(std::tuple{p.documents(), p.causal(), p.column_sums(), p.top_keys()});
  });
}

TEST_CASE("decode: from a cache that grows", "[attend][quick]") {
  using heed::index_t;
  index_t const capacity = 70, heads = 4, key_heads = 2, dim = 24;
  support::random draw(1);
  std::vector<float> query(static_cast<std::size_t>(capacity * heads * dim)), key(query.size()),
      value(query.size()), out(query.size()), whole(query.size());
  for (auto* each : {&query, &key, &value})
    for (float& x : *each) x = static_cast<float>(draw.normal());
  auto const all = [&](std::vector<float>& t, index_t h) {
    return heed::bnhd(t.data(), 1, capacity, h, dim);
  };
  heed::attention(all(query, heads), all(key, key_heads), all(value, key_heads), all(whole, heads),
                  heed::causal{});

  std::vector<float> key_memory(key.size()), value_memory(key.size());
  heed::kv_cache<float> cache(all(key_memory, key_heads), all(value_memory, key_heads));
  for (index_t first = 0; first < capacity;) {
    index_t const count = std::min<index_t>(first == 0 ? 40 : draw.between(1, 5), capacity - first);
    auto const rows = [&](std::vector<float>& t, index_t h) {
      return all(t, h).slice(1, first, count);
    };
    cache.append(rows(key, key_heads), rows(value, key_heads));
    first += count;
    CHECK(cache.length() == first);
    heed::attention(all(query, heads).slice(1, first - count, count), cache,
                    all(out, heads).slice(1, first - count, count), heed::causal{});
  }
  for (std::size_t n = 0; n < out.size(); ++n) CHECK(out[n] == Approx(whole[n]).margin(1e-6));
}

TEST_CASE("decode: 65536 keys", "[attend]") {
  // Long enough that an accumulator that drifts is seen. The definition in float drifts itself, so
  // the bound is one of its own: a weight is off by the rounding of its score, some eps, and sums
  // are in float.
  using heed::index_t;
  index_t const keys = 65536, dim = 32;
  support::random draw(1);
  std::vector<float> query(8 * dim), key(static_cast<std::size_t>(keys * dim)), value(key.size()),
      out(query.size()), lse(8);
  for (auto* each : {&query, &key, &value})
    for (float& x : *each) x = static_cast<float>(draw.normal());
  for (index_t count : {1, 2, 8}) {
    reference::tensor<double, 4> const q = support::read<double>(
                                           heed::bnhd(query.data(), 1, count, 1, dim)),
                                       k = support::read<double>(
                                           heed::bnhd(key.data(), 1, keys, 1, dim)),
                                       v = support::read<double>(
                                           heed::bnhd(value.data(), 1, keys, 1, dim));
    auto const exact = reference::attention(q, k, v, {});
    heed::attention(
        heed::bnhd(query.data(), 1, count, 1, dim), heed::bnhd(key.data(), 1, keys, 1, dim),
        heed::bnhd(value.data(), 1, keys, 1, dim), heed::bnhd(out.data(), 1, count, 1, dim),
        heed::lse_into{heed::tensor_view<float, 3>(lse.data(), {1, 1, count})});
    double error = 0, lse_error = 0;
    for (std::size_t n = 0; n < exact.out.values.size(); ++n)
      error = std::max(error, std::abs(exact.out.values[n] - double(out[n])));
    for (std::size_t n = 0; n < exact.lse.values.size(); ++n)
      lse_error = std::max(lse_error, std::abs(exact.lse.values[n] - double(lse[n])));
    CAPTURE(count);
    CHECK(error <= 2e-7);      // |out| is about 0.02 here, and |v| 4
    CHECK(lse_error <= 4e-6);  // lse is about 12: 4 eps
  }
}

TEMPLATE_TEST_CASE("decode: heads side by side are read in another order, to the same bits",
                   "[attend][quick]", float, Eigen::half) {
  using heed::index_t;
  index_t const heads = 17, keys = 300;
  for (index_t dim : {32, 128}) {
    support::random draw(1);
    auto const size = static_cast<std::size_t>(keys * heads * dim);
    std::vector<TestType> key(size), value(size), turned_key(size), turned_value(size);
    std::vector<float> query(static_cast<std::size_t>(heads * dim)), out(query.size()),
        expected(query.size());
    for (float& x : query) x = static_cast<float>(draw.normal());
    for (auto* each : {&key, &value})
      for (TestType& x : *each) x = TestType(static_cast<float>(draw.normal()));
    auto const by_position = [&](auto& t) { return heed::bnhd(t.data(), 1, keys, heads, dim); };
    auto const by_head = [&](auto& t) { return heed::bhnd(t.data(), 1, heads, keys, dim); };
    heed::copy_elements(by_position(key), by_head(turned_key));
    heed::copy_elements(by_position(value), by_head(turned_value));
    auto const row = [&](auto& t) { return heed::bnhd(t.data(), 1, 1, heads, dim); };
    // One that meets all keys of its tiles, and one that hides some.
    auto const both = [&](auto const& pattern) {
      heed::attention(row(query), by_position(key), by_position(value), row(out), pattern);
      heed::attention(row(query), by_head(turned_key), by_head(turned_value), row(expected),
                      pattern);
      CHECK(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0);
    };
    both(heed::dense{});
    both(heed::first_keys{5} | heed::sliding_window{.left = 200});
  }
}
