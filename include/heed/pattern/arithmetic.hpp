#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <cstdint>
#include <span>

/// What the closed forms of patterns are made of: sums over rows, and masks as ranges of bits.
namespace heed::detail {

/// 1 + 2 + … + n, and 0 for n <= 0: the pairs of a causal square.
constexpr index_t triangle(index_t n) {
  return n > 0 ? n * (n + 1) / 2 : 0;
}

/// The sum over the rows i of clamp(i + shift, 0, keys): the pairs with key < i + shift.
constexpr index_t clamped_sum(index_t shift, index_t rows, index_t keys) {
  index_t const first = std::clamp<index_t>(-shift, 0, rows);           // rows before have none
  index_t const last = std::clamp<index_t>(keys - shift, first, rows);  // rows from here have all
  return (last - first) * (first + shift) + triangle(last - first - 1) + (rows - last) * keys;
}

/// The bits [first, last) of a word, whatever is inside it.
constexpr std::uint64_t bit_range(index_t first, index_t last) {
  first = std::clamp<index_t>(first, 0, 64);
  last = std::clamp<index_t>(last, 0, 64);
  return first < last ? ~std::uint64_t{0} >> (64 - (last - first)) << first : 0;
}

/// Whether each position is the one before plus 1.
constexpr bool consecutive(std::span<index_t const> positions) {
  for (std::size_t q = 1; q < positions.size(); ++q)
    if (positions[q] != positions[0] + static_cast<index_t>(q)) return false;
  return true;
}

/// Bit q says whether keep(queries[q]).
template <class Keep>
constexpr std::uint64_t bits_of(std::span<index_t const> queries, Keep keep) {
  std::uint64_t bits = 0;
  for (std::size_t q = 0; q < queries.size(); ++q) bits |= std::uint64_t{keep(queries[q])} << q;
  return bits;
}

}  // namespace heed::detail
