#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/by_segments.hpp>
#include <heed/pattern/queries_from.hpp>

namespace heed {

/// Block-Attention for Efficient RAG: the blocks of a prompt are causal inside and blind to each other; the last
/// one, the question, meets everything before it. starts: [batch, block], the first 1 to share.
///
/// Blocks are computed alone, rotated at positions from 0 on, and kept. A prompt is laid out by appending them to a cache
/// with their keys rotated to where they lie,
///
///     cache.append(keys, values, rotary, cache.length());
///
/// always from the block as it was kept, so that rounding happens once. The question, and what is decoded after
/// it, then attends with causal{}: it is the last block.
inline auto block_attention(tensor_view<index_t const, 2> starts) {
  return causal{} & by_segments{sliding_window{0, 0} | queries_from{starts.extent(1) - 1}, starts};
}

}  // namespace heed
