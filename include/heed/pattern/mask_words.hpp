#pragma once

#include <heed/pattern/placed_table.hpp>

#include <bit>

/// Masks with a bit for each pair, looked at 64 keys at a time.
namespace heed::detail {

/// Bit i of word j becomes bit j of word i.
constexpr void transpose_bits(std::array<std::uint64_t, 64>& words) {
  std::uint64_t low = 0x00000000ffffffff;
  for (std::size_t half = 32; half != 0; half /= 2, low ^= low << half)
    for (std::size_t first = 0; first < 64; first += 2 * half)
      for (std::size_t i = first; i < first + half; ++i) {
        std::uint64_t const swapped = (words[i] >> half ^ words[i + half]) & low;
        words[i] ^= swapped << half;
        words[i + half] ^= swapped;
      }
}

/// A table (placed_table.hpp) of `rows` x `keys` bits. Words has
///
///     bool bit(index_t row, index_t key) const;
///     std::uint64_t word(index_t row, index_t key) const;  // of the keys from `key` on; whatever beyond the last
template <class Words>
struct mask_table {
  Words words;
  index_t rows;
  index_t columns;

  constexpr bool keep(index_t row, index_t key) const {
    return row >= 0 && row < rows && key >= 0 && key < columns && words.bit(row, key);
  }
  /// Exact.
  constexpr coverage cover(interval some, interval keys) const {
    interval const inside = intersect(some, {0, rows});
    bool all = inside.size() == some.size() && keys.first >= 0 && keys.last <= columns, none = true;
    keys = intersect(keys, {0, columns});
    for (index_t row = inside.first; row < inside.last && (all || none); ++row)
      for (index_t key = keys.first; key < keys.last; key += 64) {
        std::uint64_t const there = bit_range(0, keys.last - key);
        std::uint64_t const kept = words.word(row, key) & there;
        all = all && kept == there;
        none = none && kept == 0;
      }
    return none ? coverage::none : all ? coverage::all : coverage::some;
  }
  /// The union of the rows, with gaps of fewer than 16 keys taken along: gathering is dearer than they are.
  constexpr interval next_keys(interval some, interval among) const {
    constexpr index_t gap = 16;
    some = intersect(some, {0, rows});
    interval run{among.last, among.last};
    among = intersect(among, {0, columns});
    for (index_t key = among.first; key < among.last; key += 64) {
      std::uint64_t met = 0;
      for (index_t row = some.first; row < some.last; ++row) met |= words.word(row, key);
      met &= bit_range(0, among.last - key);
      while (met != 0) {
        int const first = std::countr_zero(met), ones = std::countr_one(met >> first);
        if (run.empty()) run = {key + first, key + first};
        if (key + first - run.last >= gap) return run;
        run.last = key + first + ones;
        met &= ~bit_range(first, first + ones);
      }
      if (!run.empty() && key + 64 - run.last >= gap) return run;
    }
    return run;
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* bits) const {
    for (index_t key = keys.first; key < keys.last; key += 64) {
      std::array<std::uint64_t, 64> kept{};
      for (std::size_t q = 0; q < queries.size(); ++q)
        if (queries[q] >= 0 && queries[q] < rows && key < columns)
          kept[q] = words.word(queries[q], key) & bit_range(0, columns - key);
      transpose_bits(kept);
      std::copy_n(kept.data(), std::min<index_t>(64, keys.last - key), bits + (key - keys.first));
    }
  }
  constexpr index_t pairs(interval some, interval keys) const {
    some = intersect(some, {0, rows});
    keys = intersect(keys, {0, columns});
    index_t sum = 0;
    for (index_t row = some.first; row < some.last; ++row)
      for (index_t key = keys.first; key < keys.last; key += 64)
        sum += std::popcount(words.word(row, key) & bit_range(0, keys.last - key));
    return sum;
  }
};

}  // namespace heed::detail
