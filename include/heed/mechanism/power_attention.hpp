#pragma once

#include <heed/mechanism/streaming.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/key_offsets.hpp>

#include <array>

/// PowerAttention: Exponentially Scaling of Receptive Fields for Effective Sparse Attention; its token form is
/// LogSparse's. A query meets itself and the keys 1, 2, 4, 8, … before it, so that d layers reach every distance
/// below 2^d and ceil(log2 N) layers every earlier token.
namespace heed {

namespace detail {

/// The differences 0, -1, -2, -4, … -2^23 as sorted intervals that do not touch.
inline constexpr auto power_of_two_offsets = [] {
  constexpr std::size_t longest = 23;
  std::array<interval, longest> all{};
  for (std::size_t n = 0; n + 1 < longest; ++n) {
    index_t const distance = index_t{1} << (longest - n);
    all[n] = {-distance, -distance + 1};
  }
  all[longest - 1] = {-2, 1};
  return all;
}();

}  // namespace detail

/// The token form: key = p, or p - key a power of two. N queries and keys keep N + (E + 1) N - (2^(E + 1) - 1)
/// pairs, E = floor(log2(N - 1)).
inline constexpr key_offsets power_of_two_keys{detail::power_of_two_offsets};

/// The published form, in blocks: a query meets, up to itself, the blocks whose distance to its own is 0 or a
/// power of two or less than `window`, and the first `sinks` blocks. With window = 1, sinks = 0 and blocks of one
/// token it is the token form; a window of all blocks is causal.
constexpr auto power_attention(index_t block = 256, index_t window = 5, index_t sinks = 1) {
  return causal{} & by_blocks{power_of_two_keys | streaming{sinks, window}, block};
}

}  // namespace heed
