#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/pattern/key_set.hpp>

namespace heed {

/// Language Modeling with Learned Meta-Tokens: a layer of attention among the meta tokens alone, causal. Other
/// tokens meet nothing, so that their rows are 0 and a residual passes them on.
/// meta: [batch, head, token], the first two 1 to share; true for a meta token. A call may have the last tokens alone
/// as queries, in decoding or in a chunk of a prompt.
inline auto meta_tokens(tensor_view<bool const, 3> meta) {
  return causal{} & chosen_rows{meta, 0} & key_set{meta};
}

}  // namespace heed
