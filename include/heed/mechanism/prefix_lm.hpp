#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>

namespace heed {

/// Prefix language models: the first `prefix` keys are met by all queries, the others causally. keep = key < prefix or
/// key <= p. A prefix of 0 or 1 is causal for as many queries as keys, one of all keys is dense.
constexpr auto prefix_lm(index_t prefix) {
  return first_keys{prefix} | causal{};
}

/// The same with a prefix for each sequence, in [0, keys].
inline auto prefix_lm(std::span<index_t const> prefixes) {
  return key_lengths{prefixes} | causal{};
}

}  // namespace heed
