#include "support/identity.hpp"

#include <heed/cache/ring_cache.hpp>
#include <heed/cache/rotation.hpp>

// A ring cache holds what sinks and a window need, wherever it lies.

using heed::index_t;
using support::blank;
using support::for_each_seed;
using support::normal;
using support::seed_t;

namespace {

/// Whether the query at the newest of `length` positions meets position j.
bool needed(index_t j, index_t length, index_t sinks, index_t window) {
  return j < length && (j < sinks || length - 1 - j < window);
}

auto streaming(index_t sinks, index_t window) {
  return heed::causal{} & (heed::sliding_window{.left = window - 1} | heed::first_keys{sinks});
}

}  // namespace

TEST_CASE("a ring cache holds the sinks and the window", "[cache][quick]") {
  for_each_seed("ring cache", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const sinks = draw.between(0, 5), window = draw.between(1, 9),
                  batch = draw.between(1, 2);
    index_t const heads = draw.between(1, 3), value_heads = draw.between(1, 2), total = 60;
    auto key_memory = blank<float, 4>({batch, sinks + window, heads, 2});
    auto value_memory = blank<float, 4>({batch, sinks + window, value_heads, 3});
    heed::ring_cache cache(key_memory.view(), value_memory.view(), sinks);
    auto keys = blank<double, 4>({batch, total, heads, 2});
    auto values = blank<float, 4>({batch, total, value_heads, 3});
    keys.fill([](auto const& at) { return double(1000 * at[0] + 10 * at[1] + 3 * at[2] + at[3]); });
    values.fill(
        [](auto const& at) { return float(5000 * at[0] + 20 * at[1] + 5 * at[2] + at[3]); });

    std::string complaint;
    while (cache.length() < total) {
      index_t const count =
          std::min(total - cache.length(), draw.between(0, draw.one_in(3) ? 25 : 3));
      cache.append(keys.view().slice(1, cache.length(), count),
                   values.view().slice(1, cache.length(), count));
      heed::ring_slots const slots = cache.slots();
      std::vector<bool> held(static_cast<std::size_t>(total), false);
      for (index_t slot = 0; slot < cache.keys().extent(1); ++slot) {
        index_t const p = slots.position(slot);
        if (slots.slot(p) != slot) complaint += "slot() does not invert position()\n";
        if (p < 0 || p >= total) return complaint + "a slot holds an impossible position\n";
        held[static_cast<std::size_t>(p)] = true;
        for (index_t b = 0; b < batch; ++b) {
          for (index_t h = 0; h < heads; ++h)
            if (double(cache.keys()(b, slot, h, 1)) != keys.view()(b, p, h, 1))
              complaint += "a slot holds another key than that of its position\n";
          for (index_t h = 0; h < value_heads; ++h)
            if (cache.values()(b, slot, h, 2) != values.view()(b, p, h, 2))
              complaint += "a slot holds another value than that of its position\n";
        }
        index_t rank = 0;
        for (index_t other = 0; other < cache.keys().extent(1); ++other)
          rank += slots.position(other) < p;
        if (slots.rank(slot) != rank) complaint += "rank() is wrong\n";
        using lanes = xsimd::batch<float>;
        if (slots.position(lanes(static_cast<float>(slot))).get(0) != static_cast<float>(p))
          complaint += "position() of a register is wrong\n";
      }
      for (index_t j = 0; j < total; ++j)
        if (held[static_cast<std::size_t>(j)] != needed(j, cache.length(), sinks, window))
          complaint += "position " + std::to_string(j) + " is wrongly held or forgotten\n";
      if (!complaint.empty()) return complaint;
    }
    cache.clear();
    if (cache.length() != 0 || cache.keys().extent(1) != 0) complaint += "clear() left something\n";
    return complaint;
  });
}

TEST_CASE("a step over a ring cache is attention with sinks and a window", "[cache][quick]") {
  index_t const total = 90, heads = 4, key_heads = 2, dim = 12;
  for (auto [sinks, window] : {std::pair<index_t, index_t>{4, 16}, {0, 7}, {3, 1}, {5, 200}}) {
    support::operands given(total, total, heads, key_heads, dim);
    std::vector<float> const slopes{0.5f, 0.25f, 0.125f, 0.0625f};
    heed::alibi const alibi{heed::tensor_view<float const, 1>(slopes.data(), {heads})};
    auto const plain = given(streaming(sinks, window)),
               biased = given(streaming(sinks, window), alibi);
    auto key_memory = blank<float, 4>({1, sinks + window, key_heads, dim}),
         value_memory = blank<float, 4>({1, sinks + window, key_heads, dim});
    heed::ring_cache cache(key_memory.view(), value_memory.view(), sinks);
    double error = 0;
    for (index_t i = 0; i < total; ++i) {
      cache.append(given.key.view().slice(1, i, 1), given.value.view().slice(1, i, 1));
      auto const query = given.query.view().slice(1, i, 1);
      auto const step = support::attend(query, cache.keys(), cache.values());
      auto const biased_step =
          support::attend(query, cache.keys(), cache.values(), heed::at_slots{cache.slots(), alibi},
                          heed::query_positions{heed::tensor_view<index_t const, 2>(&i, {1, 1})});
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < dim; ++d) {
          error = std::max(error, double(std::abs(step.out(0, 0, h, d) - plain.out(0, i, h, d))));
          error = std::max(error,
                           double(std::abs(biased_step.out(0, 0, h, d) - biased.out(0, i, h, d))));
        }
    }
    CAPTURE(sinks, window);
    CHECK(error < support::rounding);
  }
}

TEST_CASE("a chunk meets the ring cache and itself", "[cache]") {
  index_t const total = 96, heads = 2, dim = 8, chunk = 24, sinks = 30, window = 20;
  support::operands given(total, total, heads, heads, dim);
  auto const whole = given(streaming(sinks, window));
  auto key_memory = blank<float, 4>({1, sinks + window, heads, dim}),
       value_memory = blank<float, 4>({1, sinks + window, heads, dim});
  heed::ring_cache cache(key_memory.view(), value_memory.view(), sinks);
  double error = 0;
  for (index_t first = 0; first < total; first += chunk) {
    auto const rows = [&](auto& tensor) { return tensor.view().slice(1, first, chunk); };
    std::vector<index_t> positions;
    for (index_t i = first; i < first + chunk; ++i) positions.push_back(i);
    auto cached = support::attend(
        rows(given.query), cache.keys(), cache.values(),
        heed::at_slots{cache.slots(), streaming(sinks, window)},
        heed::query_positions{heed::tensor_view<index_t const, 2>(positions.data(), {1, chunk})});
    auto own = support::attend(rows(given.query), rows(given.key), rows(given.value),
                               streaming(std::max<index_t>(sinks - first, 0), window));
    auto out = blank<float, 4>({1, chunk, heads, dim});
    auto const part = [](auto& each) {
      return heed::partial_attention<float const>{
          heed::tensor_view<float const, 4>(each.out.values.data(), each.out.extents),
          heed::tensor_view<float const, 3>(each.lse.values.data(), each.lse.extents)};
    };
    heed::merge_attention(std::array{part(cached), part(own)}, out.view());
    for (index_t i = 0; i < chunk; ++i)
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < dim; ++d)
          error = std::max(
              error, double(std::abs(out.view()(0, i, h, d) - whole.out(0, first + i, h, d))));
    cache.append(rows(given.key), rows(given.value));
  }
  CHECK(error < support::rounding);
}

TEST_CASE("positions counted inside the cache: keys are rotated at use", "[cache]") {
  // The definition: the keys that are left, in order, rotated for 0, 1, 2, ...; the query for the last of these.
  index_t const total = 40, dim = 8, sinks = 3, window = 6;
  support::operands given(total, total, 1, 1, dim);
  auto key_memory = blank<float, 4>({1, sinks + window, 1, dim}),
       value_memory = blank<float, 4>({1, sinks + window, 1, dim});
  heed::ring_cache cache(key_memory.view(), value_memory.view(), sinks);
  heed::rotary const rotary;
  double error = 0;
  for (index_t i = 0; i < total; ++i) {
    cache.append(given.key.view().slice(1, i, 1), given.value.view().slice(1, i, 1));
    index_t const filled = cache.slots().filled();
    std::vector<index_t> ranks;
    for (index_t slot = 0; slot < filled; ++slot) ranks.push_back(cache.slots().rank(slot));
    auto turned = blank<float, 4>({1, filled, 1, dim}), query = blank<float, 4>({1, 1, 1, dim});
    heed::rotate(rotary, cache.keys(), turned.view(), ranks);
    heed::rotate(rotary, given.query.view().slice(1, i, 1), query.view(), filled - 1);
    auto const step = support::attend(query.view(), turned.view(), cache.values());

    std::vector<index_t> left;
    for (index_t j = 0; j <= i; ++j)
      if (needed(j, i + 1, sinks, window)) left.push_back(j);
    auto keys = blank<float, 4>({1, filled, 1, dim}), values = blank<float, 4>({1, filled, 1, dim});
    for (index_t n = 0; n < filled; ++n) {
      index_t const j = left[static_cast<std::size_t>(n)];
      heed::rotate(rotary, given.key.view().slice(1, j, 1), keys.view().slice(1, n, 1), n);
      heed::copy_elements(given.value.view().slice(1, j, 1), values.view().slice(1, n, 1));
    }
    auto const expected = support::attend(query.view(), keys.view(), values.view());
    error = std::max(error, support::difference(step.out, expected.out));
  }
  CHECK(error < support::rounding);
}

TEST_CASE("what does not fit into a ring is refused and changes nothing", "[cache][quick]") {
  std::vector<float> memory(2 * 4 * 2 * 3), rows(1000, 1.0f);
  auto const view = heed::bnhd(memory.data(), 2, 4, 2, 3);
  heed::ring_cache cache(view, view, 1);
  auto fresh = [&](index_t b, index_t n, index_t h, index_t d) {
    return heed::bnhd(rows.data(), b, n, h, d);
  };
  auto refused = [&](auto k, auto v) {
    CHECK_THROWS_AS(cache.append(k, v), heed::error);
    CHECK(cache.length() == 0);
    for (float x : memory) CHECK(x == 0);
  };
  refused(fresh(1, 1, 2, 3), fresh(1, 1, 2, 3));
  refused(fresh(2, 1, 1, 3), fresh(2, 1, 2, 3));
  refused(fresh(2, 1, 2, 3), fresh(2, 1, 2, 4));
  refused(fresh(2, 2, 2, 3), fresh(2, 1, 2, 3));
  CHECK_THROWS_WITH(
      heed::ring_cache(view, view, 4),
      "heed: a ring cache of 4 sinks in 4 slots; expected at least 0 and one slot more "
      "than sinks");
  CHECK_THROWS_AS(heed::ring_cache(view, view, -1), heed::error);
  CHECK_THROWS_AS(heed::ring_cache(view, view.slice(1, 0, 3), 1), heed::error);
  CHECK_THROWS_AS(heed::ring_cache(view, view.slice(0, 0, 1), 1), heed::error);

  cache.append(fresh(2, 2, 2, 3), fresh(2, 2, 2, 3));
  heed::at_slots const stale{cache.slots(), heed::causal{}};
  CHECK_THROWS_WITH(stale.check({.batches = 2, .sequences = 2, .heads = 2, .rows = 1, .keys = 3}),
                    "heed: at_slots describes 2 filled slots; expected one for each of the 3 keys");
}
