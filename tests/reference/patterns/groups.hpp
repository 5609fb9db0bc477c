#pragma once

#include "reference/tensor.hpp"

#include <vector>

/// Groups of tokens in language models, pair by pair: i is the query's position, j the key's.
namespace reference {

/// S²-Attn without wrapping: boundaries 0, G, 2G, … for heads that are not shifted; 0, G/2, 3G/2, …, N for those
/// that are.
inline bool same_group(index_t i, index_t j, index_t group, bool shifted) {
  auto const boundary_before = [&](index_t x) {
    index_t last = 0;
    for (index_t at = shifted ? group / 2 : group; at <= x; at += group) last = at;
    return last;
  };
  return boundary_before(i) == boundary_before(j);
}

inline bool shifted_groups(index_t i, index_t j, index_t group, bool shifted, index_t sinks = 0) {
  return j <= i && (same_group(i, j, group, shifted) || i < sinks || j < sinks);
}

/// The rolling form: tokens rolled by -ceil(G/2), grouped, causal in rolled order, rolled back.
inline bool rolled_groups(index_t i, index_t j, index_t N, index_t group) {
  std::vector<index_t> rolled(static_cast<std::size_t>(N));  // token at each rolled place
  for (index_t place = 0; place < N; ++place)
    rolled[static_cast<std::size_t>(place)] = (place + (group + 1) / 2) % N;
  index_t place_of_i = 0, place_of_j = 0;
  for (index_t place = 0; place < N; ++place) {
    if (rolled[static_cast<std::size_t>(place)] == i) place_of_i = place;
    if (rolled[static_cast<std::size_t>(place)] == j) place_of_j = place;
  }
  return place_of_i / group == place_of_j / group && place_of_j <= place_of_i;
}

/// The block, of consecutive blocks of these lengths, that a position lies in. What follows belongs to the last.
inline index_t block_of(std::vector<index_t> const& lengths, index_t position) {
  for (index_t block = 0;; ++block) {
    index_t const length = lengths[static_cast<std::size_t>(block)];
    if (position < length || block + 1 == static_cast<index_t>(lengths.size())) return block;
    position -= length;
  }
}

/// Block-Attention: blind to other blocks, but for the last block, which sees everything before it.
inline bool block_attention(index_t i, index_t j, std::vector<index_t> const& lengths) {
  auto const last = static_cast<index_t>(lengths.size()) - 1;
  return j <= i && (block_of(lengths, i) == block_of(lengths, j) || block_of(lengths, i) == last);
}

/// Parallel contexts: label 0 the shared leading tokens, 1 … G the pieces, G + 1 the tail.
inline bool parallel_contexts(index_t i, index_t j, index_t shared, std::vector<index_t> lengths,
                              std::vector<bool> const& selected) {
  lengths.push_back(1);  // the tail, which goes on
  auto const label = [&](index_t x) {
    return x < shared ? index_t{0} : 1 + block_of(lengths, x - shared);
  };
  auto const tail = static_cast<index_t>(lengths.size());
  index_t const a = label(i), b = label(j);
  bool const seen =
      b == 0 || a == b || (a == tail && b < tail && selected[static_cast<std::size_t>(b - 1)]);
  return seen && j <= i;
}

/// Dynamic block-sparse attention over demonstrations.
inline bool demonstration_blocks(index_t i, index_t j, std::vector<index_t> const& lengths,
                                 index_t anchors, index_t reach) {
  index_t const a = block_of(lengths, i), b = block_of(lengths, j);
  return j <= i && (b < anchors || (0 <= a - b && a - b <= reach));
}

/// Chunks with a memory of the last `memory` rows before the chunk: key t of [gated rows; own rows], N each.
inline bool chunk_sees_memory(index_t i, index_t t, index_t chunk, index_t memory) {
  index_t const start = i / chunk * chunk;
  return t < start && t >= start - memory;
}
inline bool chunk_sees_itself(index_t i, index_t j, index_t chunk) {
  return j <= i && i / chunk == j / chunk;
}

}  // namespace reference
