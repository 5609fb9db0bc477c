#pragma once

#include <heed/cache/kv_cache.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/by_segments.hpp>
#include <heed/pattern/columns.hpp>

#include <algorithm>
#include <span>
#include <vector>

/// Efficient Many-Shot In-Context Learning with Dynamic Block-Sparse Attention: demonstrations are encoded once, each
/// block with the anchors and the blocks before it; a test query is answered from the blocks chosen for it.
namespace heed {

/// How demonstrations are encoded: a block meets the first `anchors` blocks, the `reach` blocks before it, and itself,
/// causally. starts: [batch, block], the first 1 to share.
inline auto demonstration_blocks(tensor_view<index_t const, 2> starts, index_t anchors = 1,
                                 index_t reach = 2) {
  return causal{} &
         by_segments{first_keys{anchors} | sliding_window{.left = reach, .right = 0}, starts};
}

/// The blocks for a test query, in order: the anchors and the `count` others of highest score, the lower
/// number first among equals.
template <class Score>
std::vector<index_t> choose_demonstrations(std::span<Score const> scores, index_t count,
                                           index_t anchors = 1) {
  auto const blocks = static_cast<index_t>(scores.size());
  anchors = std::clamp<index_t>(anchors, 0, blocks);
  count = std::clamp<index_t>(count, 0, blocks - anchors);
  std::vector<index_t> chosen(static_cast<std::size_t>(blocks));
  for (index_t b = 0; b < blocks; ++b) chosen[static_cast<std::size_t>(b)] = b;
  std::stable_sort(chosen.begin() + anchors, chosen.end(), [&](index_t a, index_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  chosen.resize(static_cast<std::size_t>(anchors + count));
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

/// Appends the keys and values of the chosen blocks, in the order given, as if nothing lay between them: their keys,
/// kept unrotated, are rotated for the positions they get. keys, values: [batch, position, head, dim] of all
/// demonstrations, block b from starts[b] on. The query's tokens follow, and attend with causal{}.
template <element T, element K, element V>
void append_demonstrations(kv_cache<T>& cache, tensor_view<K, 4> keys, tensor_view<V, 4> values,
                           std::span<index_t const> starts, std::span<index_t const> chosen,
                           rotary const& how) {
  auto const blocks = static_cast<index_t>(starts.size());
  auto const start = [&](index_t b) {
    return b == blocks ? keys.extent(1) : starts[static_cast<std::size_t>(b)];
  };
  index_t total = 0;
  for (index_t block : chosen) {
    require(block >= 0 && block < blocks, [&] {
      return "append_demonstrations is given block " + std::to_string(block) + "; expected 0 to " +
             std::to_string(blocks - 1);
    });
    total += start(block + 1) - start(block);
  }
  require(total <= cache.capacity() - cache.length(), [&] {
    return "the chosen demonstrations have " + std::to_string(total) +
           " positions; the cache has room for " +
           std::to_string(cache.capacity() - cache.length()) + " more";
  });
  std::vector<index_t> positions;
  for (index_t block : chosen) {
    index_t const count = start(block + 1) - start(block);
    positions.resize(static_cast<std::size_t>(count));
    for (index_t i = 0; i < count; ++i) positions[static_cast<std::size_t>(i)] = cache.length() + i;
    cache.append(keys.slice(1, start(block), count), values.slice(1, start(block), count), how,
                 positions);
  }
}

}  // namespace heed
