#pragma once

#include <heed/pattern/pattern.hpp>

#include <array>
#include <bit>

namespace heed {

namespace detail {

/// The pairs of a tile of at most 64 query positions. Tiles that are kept whole or not at all are not looked
/// into; others are halved, and small ones counted pair by pair.
template <bound_pattern P>
index_t pairs_of_tile(P const& pattern, interval queries, interval keys) {
  switch (pattern_cover(pattern, queries, keys)) {
    case coverage::none:
      return 0;
    case coverage::all:
      return queries.size() * keys.size();
    default:
      break;
  }
  if (keys.size() > 64) {
    index_t const middle = keys.first + keys.size() / 2;
    return pairs_of_tile(pattern, queries, {keys.first, middle}) +
           pairs_of_tile(pattern, queries, {middle, keys.last});
  }
  std::array<index_t, 64> positions;
  auto const count = static_cast<std::size_t>(queries.size());
  for (std::size_t q = 0; q < count; ++q) positions[q] = queries.first + static_cast<index_t>(q);
  std::array<std::uint64_t, 64> rows;
  pattern_mask(pattern, std::span(positions).first(count), keys, rows.data());
  index_t pairs = 0;
  for (index_t k = 0; k < keys.size(); ++k)
    pairs += std::popcount(rows[static_cast<std::size_t>(k)] << (64 - count));
  return pairs;
}

template <bound_pattern P>
index_t pairs_of_place(P const& pattern, index_t rows, index_t keys) {
  if constexpr (requires { pattern.pairs(rows, keys); }) {
    return pattern.pairs(rows, keys);
  } else {
    constexpr index_t panel = 64;
    index_t pairs = 0;
    for (index_t row = 0; row < rows; row += panel) {
      index_t const first = row + keys - rows;
      interval const queries{first, first + std::min(panel, rows - row)};
      interval run = next_run(pattern, queries, 0, keys);
      for (; !run.empty(); run = next_run(pattern, queries, run.last, keys))
        pairs += pairs_of_tile(pattern, queries, run);
    }
    return pairs;
  }
}

}  // namespace detail

/// The number of pairs that a pattern keeps at one place, the last query at the last key: in closed form if the
/// pattern has one, otherwise tile by tile. Attention costs 2 (head_dim + value_dim) operations for each.
template <pattern P>
index_t kept_pairs(P const& pattern, place const& where) {
  if constexpr (requires { pattern.bind(where); })
    return detail::pairs_of_place(pattern.bind(where), where.rows, where.keys);
  else
    return detail::pairs_of_place(pattern, where.rows, where.keys);
}

/// The same for a pattern without parameters by batch or head, or for the first of each.
template <pattern P>
index_t kept_pairs(P const& pattern, index_t rows, index_t keys) {
  return kept_pairs(pattern, place{.rows = rows, .keys = keys});
}

/// Summed over the batch entries and heads of a call.
template <pattern P>
index_t kept_pairs(P const& pattern, call_shape const& shape) {
  check_against(pattern, shape);
  index_t pairs = 0;
  for (index_t batch = 0; batch < shape.batches; ++batch)
    for (index_t head = 0; head < shape.heads; ++head)
      pairs += kept_pairs(pattern, place{.sequence = batch,
                                         .batch = batch,
                                         .head = head,
                                         .rows = shape.rows,
                                         .keys = shape.keys});
  return pairs;
}

}  // namespace heed
