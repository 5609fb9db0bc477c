#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/pattern/positions.hpp>

#include <algorithm>
#include <span>
#include <vector>

/// NAAViT, of SAISA: Towards Multimodal Large Language Models with Both Training and Inference Efficiency: visual tokens
/// do not attend to each other, they are keys only.
namespace heed {

/// Text rows are causal over text and visual tokens, visual rows meet nothing.
/// visual: [batch, head, token], the first two 1 to share. A call may have the last tokens alone as queries.
inline auto text_queries(tensor_view<bool const, 3> visual) {
  return causal{} & ~chosen_rows{visual, 0};
}

/// Where the text tokens stand: with the rows of visual tokens left out of `query` altogether,
///
///     heed::attention(query, key, value, out, heed::causal{}, heed::query_positions{rows});
///
/// computes the same for those that are left, rows being these positions as [1, text tokens].
inline std::vector<index_t> text_positions(std::span<bool const> visual) {
  std::vector<index_t> positions;
  for (std::size_t i = 0; i < visual.size(); ++i)
    if (!visual[i]) positions.push_back(static_cast<index_t>(i));
  return positions;
}

/// The form for models that were trained with all rows: visual rows meet text and themselves.
inline auto blind_visual_tokens(tensor_view<bool const, 3> visual) {
  return (causal{} & ~(chosen_rows{visual, 0} & key_set{visual})) | sliding_window{0, 0};
}

}  // namespace heed
