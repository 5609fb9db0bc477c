#include "support/identity.hpp"

#include <heed/cache/evicting_cache.hpp>
#include <heed/pattern/key_set.hpp>

#include <map>
#include <memory>

// A cache of which each head forgets other positions, against a map of what it should hold.

using heed::index_t;
using support::blank;
using support::for_each_seed;
using support::seed_t;

TEST_CASE("each head keeps what it has not forgotten", "[cache][quick]") {
  for_each_seed("evicting cache", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), H = draw.between(1, 3), slots = draw.between(6, 20),
                  N = 60;
    auto key_memory = blank<float, 4>({B, slots, H, 2}),
         value_memory = blank<float, 4>({B, slots, H, 1});
    heed::evicting_cache cache(key_memory.view(), value_memory.view());
    auto keys = blank<float, 4>({B, N, H, 2}), values = blank<float, 4>({B, N, H, 1});
    keys.fill([](auto const& at) { return float(at[0] * 1000 + at[1] * 10 + at[2] * 3 + at[3]); });
    values.fill([](auto const& at) { return float(-at[0] * 1000 - at[1] * 10 - at[2]); });
    std::map<std::pair<index_t, index_t>, std::map<index_t, index_t>> expected;  // position: note

    std::string complaint;
    while (cache.length() < N && complaint.empty()) {
      index_t const first = cache.length(), count = std::min(N - first, draw.between(0, 3));
      bool full = false;
      for (index_t b = 0; b < B; ++b)
        for (index_t h = 0; h < H; ++h)
          full |= static_cast<index_t>(expected[{b, h}].size()) + count > slots;
      auto notes = blank<index_t, 3>({B, H, count});
      notes.fill([&](auto const&) { return draw.between(0, 5); });
      auto const append = [&] {
        cache.append(keys.view().slice(1, first, count), values.view().slice(1, first, count),
                     notes.view());
      };
      if (full) {
        CHECK_THROWS_AS(append(), heed::error);
      } else {
        append();
        for (index_t b = 0; b < B; ++b)
          for (index_t h = 0; h < H; ++h)
            for (index_t i = 0; i < count; ++i) expected[{b, h}][first + i] = notes.view()(b, h, i);
      }
      for (index_t b = 0; b < B; ++b)
        for (index_t h = 0; h < H; ++h) {
          index_t const modulus = draw.between(full ? 1 : 2, 4), note = draw.between(0, 5);
          auto const forget = [&](index_t position, index_t its_note) {
            return position % modulus == 0 || its_note == note;
          };
          cache.forget_if(b, h, forget);
          std::erase_if(expected[{b, h}],
                        [&](auto const& each) { return forget(each.first, each.second); });

          auto const positions = cache.positions(b, h), its_notes = cache.notes(b, h);
          std::map<index_t, index_t> held;
          for (std::size_t slot = 0; slot < positions.size(); ++slot) {
            held[positions[slot]] = its_notes[slot];
            auto const s = static_cast<index_t>(slot);
            if (cache.keys()(b, s, h, 1) != keys.view()(b, positions[slot], h, 1) ||
                cache.values()(b, s, h, 0) != values.view()(b, positions[slot], h, 0))
              complaint += "a slot holds what belongs to another position\n";
          }
          if (held != expected[{b, h}] || held.size() != positions.size())
            complaint += "a head keeps other positions than it should\n";
          if (heed::bind_at(cache.filled(2 * H), heed::place{.batch = b, .head = 2 * h + 1})
                  .count != static_cast<index_t>(held.size()))
            complaint += "filled() is wrong\n";
        }
    }
    return complaint;
  });
}

TEST_CASE("heads that keep different keys meet their own", "[cache][quick]") {
  index_t const total = 30, heads = 4, key_heads = 2, dim = 8;
  support::operands given(1, total, heads, key_heads, dim);
  auto key_memory = blank<float, 4>({1, total, key_heads, dim}),
       value_memory = blank<float, 4>({1, total, key_heads, dim});
  heed::evicting_cache cache(key_memory.view(), value_memory.view());
  cache.append(given.key.view(), given.value.view());
  cache.forget_if(0, 0, [](index_t position, index_t) { return position % 3 != 0; });
  cache.forget_if(0, 1, [](index_t position, index_t) { return position < 11; });
  auto const step =
      support::attend(given.query.view(), cache.keys(), cache.values(), cache.filled(heads));

  auto const marks = std::make_unique<bool[]>(static_cast<std::size_t>(heads * total));
  heed::tensor_view<bool, 3> const kept(marks.get(), {1, heads, total});
  for (index_t h = 0; h < heads; ++h)
    for (index_t j = 0; j < total; ++j) kept(0, h, j) = h < 2 ? j % 3 == 0 : j >= 11;
  auto const expected = given(heed::key_set{kept});
  CHECK(support::same(step, expected));

  cache.clear();
  CHECK(cache.length() == 0);
  CHECK(cache.keys().extent(1) == 0);
}

TEST_CASE("what an evicting cache cannot take is refused", "[cache][quick]") {
  std::vector<float> memory(100);
  auto const view = heed::bnhd(memory.data(), 1, 4, 2, 3);
  heed::evicting_cache cache(view, view);
  CHECK_THROWS_WITH(
      heed::evicting_cache(view, heed::bnhd(memory.data(), 1, 4, 1, 3)),
      "heed: the values of an evicting cache have shape [1, 4, 1, 3], its keys [1, 4, 2, "
      "3]; expected the same batch, slots and heads");
  CHECK_THROWS_AS(cache.append(heed::bnhd(memory.data(), 1, 1, 1, 3), view.slice(1, 0, 1)),
                  heed::error);
  CHECK_THROWS_AS(cache.append(view.slice(1, 0, 1), view.slice(1, 0, 2)), heed::error);
  std::vector<index_t> notes(3);
  CHECK_THROWS_WITH(
      cache.append(view.slice(1, 0, 1), view.slice(1, 0, 1),
                   heed::tensor_view<index_t, 3>(notes.data(), {1, 1, 1})),
      "heed: the notes of appended positions have shape [1, 1, 1]; expected [1, 2, 1] "
      "(batch, key head, position)");
  cache.append(view.slice(1, 0, 3), view.slice(1, 0, 3));
  CHECK_THROWS_WITH(
      cache.append(view.slice(1, 0, 2), view.slice(1, 0, 2)),
      "heed: 2 positions appended to head 0 of batch entry 0, which has room for 1 more of "
      "its 4");
  CHECK(cache.length() == 3);
  CHECK_THROWS_WITH(
      cache.filled(3).check({.batches = 1, .sequences = 1, .heads = 3, .rows = 1, .keys = 3}),
      "heed: filled_slots has shape [1, 2] and groups of 1 heads; expected [1, n] (batch, "
      "key head) for 3 query heads");
}
