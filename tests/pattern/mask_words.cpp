#include "support/random.hpp"

#include <heed/pattern/mask_words.hpp>

#include <vector>

// Tables of bits, looked at 64 keys at a time, against the bits one by one.

using heed::index_t;
using heed::interval;

namespace {

/// Bits at random, in runs.
struct some_bits {
  std::vector<std::vector<bool>> rows;

  bool bit(index_t row, index_t key) const {
    return rows[static_cast<std::size_t>(row)][static_cast<std::size_t>(key)];
  }
  /// Ones beyond the last key, which nobody may look at.
  std::uint64_t word(index_t row, index_t key) const {
    std::uint64_t all = 0;
    for (index_t i = 0; i < 64; ++i) {
      bool const beyond = key + i >= static_cast<index_t>(rows[0].size());
      all |= std::uint64_t{beyond || bit(row, key + i)} << i;
    }
    return all;
  }
};

}  // namespace

TEST_CASE("64 words of 64 bits, turned", "[pattern][quick]") {
  support::random draw(1);
  std::array<std::uint64_t, 64> words;
  for (auto& each : words)
    each = static_cast<std::uint64_t>(draw.between(0, 1 << 30)) << 34 |
           static_cast<std::uint64_t>(draw.between(0, 1 << 30));
  auto turned = words;
  heed::detail::transpose_bits(turned);
  for (std::size_t i = 0; i < 64; ++i)
    for (std::size_t j = 0; j < 64; ++j) CHECK((turned[i] >> j & 1) == (words[j] >> i & 1));
}

TEST_CASE("tables of bits: what is kept, met, masked and counted", "[pattern][quick]") {
  support::for_each_seed("mask words", 60, [](support::seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 20), keys = draw.between(1, 200);
    some_bits bits{std::vector(static_cast<std::size_t>(rows),
                               std::vector<bool>(static_cast<std::size_t>(keys)))};
    bool const one_kind = draw.one_in(4);
    for (auto& row : bits.rows)
      for (std::size_t key = 0, end; key < row.size(); key = end) {
        end = std::min(row.size(), key + static_cast<std::size_t>(draw.between(1, 50)));
        bool const kept = one_kind ? seed % 2 == 0 : draw.one_in(2);
        std::fill(row.begin() + static_cast<index_t>(key), row.begin() + static_cast<index_t>(end),
                  kept);
      }
    heed::detail::mask_table<some_bits> const table{bits, rows, keys};
    auto const kept = [&](index_t row, index_t key) {
      return row >= 0 && row < rows && key >= 0 && key < keys && bits.bit(row, key);
    };
    auto const range = [&](index_t end) {
      index_t const first = draw.between(-3, end);
      return interval{first, draw.between(first, end + 3)};
    };
    for (int n = 0; n < 20; ++n) {
      interval const some = range(rows), among = range(keys);
      index_t ones = 0;
      for (index_t row = some.first; row < some.last; ++row)
        for (index_t key = among.first; key < among.last; ++key) {
          ones += kept(row, key);
          if (table.keep(row, key) != kept(row, key)) return "keep\n";
        }
      if (table.pairs(some, among) != ones) return "pairs\n";
      index_t const area = some.size() * among.size();
      auto const expected = ones == 0      ? heed::coverage::none
                            : ones == area ? heed::coverage::all
                                           : heed::coverage::some;
      if (table.cover(some, among) != expected) return "cover\n";

      std::vector<index_t> queries;
      for (index_t row = some.first; row < some.last && queries.size() < 64; ++row)
        queries.push_back(row);
      interval const inside = heed::intersect(among, {0, keys});
      std::vector<std::uint64_t> masks(static_cast<std::size_t>(inside.size()));
      table.mask(queries, inside, masks.data());
      for (index_t key = inside.first; key < inside.last; ++key)
        for (std::size_t q = 0; q < queries.size(); ++q)
          if ((masks[static_cast<std::size_t>(key - inside.first)] >> q & 1) !=
              kept(queries[q], key))
            return "mask\n";

      // Runs one after the other: they have every key that is met, begin and end with one, and keep their distance.
      std::vector<bool> met(static_cast<std::size_t>(keys));
      index_t from = among.first;
      for (;;) {
        interval const run = table.next_keys(some, {from, among.last});
        if (run.empty()) break;
        if (run.first < from || run.last > among.last) return "a run outside\n";
        auto const is_met = [&](index_t key) {
          for (index_t row = some.first; row < some.last; ++row)
            if (kept(row, key)) return true;
          return false;
        };
        if (!is_met(run.first) || !is_met(run.last - 1)) return "a run's ends\n";
        for (index_t key = run.first; key < run.last; ++key)
          met[static_cast<std::size_t>(key)] = true;
        from = run.last;
      }
      for (index_t row = some.first; row < some.last; ++row)
        for (index_t key = among.first; key < among.last; ++key)
          if (kept(row, key) && !met[static_cast<std::size_t>(key)])
            return "a key that is not in a run\n";
    }
    return "";
  });
}
