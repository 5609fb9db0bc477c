#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/moved.hpp>
#include <heed/pattern/queries_from.hpp>

namespace heed {

/// Causal attention inside groups of tokens that in some heads are shifted by half a group, so that neighbours exchange
/// what they know. For training; models decode with causal{}.
///
/// LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models (S²-Attn): of H heads those from H / 2 on are
/// shifted. SinkLoRA: Enhanced Efficiency and Chat Capabilities for Long-Context Large Language Models (SF-Attn):
/// those from 3 H / 4 on, and every query also meets the first 4 tokens.
///
///     heed::shifted_groups{.size = n / 4, .shifted_from = heads / 2}
///     heed::shifted_groups{.size = n / 4, .shifted_from = heads * 3 / 4, .sinks = 4}
///
/// A shifted head has half groups at both ends. With `wrap` these are one group, as where the tokens are rolled by half
/// a group and back: its first half then meets the sequence's last tokens, which lie in the future.
struct shifted_groups {
  index_t size;          // even, a divisor of the number of tokens
  index_t shifted_from;  // heads from this one on are shifted
  index_t sinks = 0;     // leading tokens that all queries meet
  bool wrap = false;
  std::span<bool const> shifted = {};  // instead of shifted_from, for each head

  auto bind(place const& where) const {
    bool const shift = shifted.empty() ? where.head >= shifted_from
                                       : shifted[static_cast<std::size_t>(where.head)];
    index_t const half = shift ? size / 2 : 0, wrapped = wrap ? half : 0;
    return (causal{} & (moved{by_blocks{sliding_window{0, 0}, size}, half} | first_keys{sinks})) |
           (~queries_from{wrapped} & ~first_keys{where.keys - wrapped});
  }
  void check(call_shape const& shape) const {
    require(size > 0 && size % 2 == 0, [&] {
      return "shifted_groups.size is " + std::to_string(size) + "; expected an even number above 0";
    });
    require(shape.rows == shape.keys, [&] {
      return "shifted_groups is given " + std::to_string(shape.rows) + " rows and " +
             std::to_string(shape.keys) + " keys; expected as many";
    });
    require(shape.keys % size == 0, [&] {
      return "shifted_groups.size is " + std::to_string(size) + "; expected a divisor of the " +
             std::to_string(shape.keys) + " tokens";
    });
    require(shifted.empty() || static_cast<index_t>(shifted.size()) == shape.heads, [&] {
      return "shifted_groups.shifted has shape " + shape_text(std::array{shifted.size()}) +
             "; expected [" + std::to_string(shape.heads) + "] (heads)";
    });
  }
};

}  // namespace heed
