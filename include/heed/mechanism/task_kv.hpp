#pragma once

#include <heed/mechanism/streaming.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/view/convert.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

/// Task-KV: Task-aware KV Cache Optimization via Semantic Differentiation of Attention Heads. After the prefill, the
/// heads whose mean output lies farthest from that of all heads keep every key. The others keep sinks, recent keys and,
/// between them, the keys to which the last queries gave most weight.
namespace heed {

/// Which key heads are far from the others: z_h is a head's mean output over all rows of `out` and its batch entries,
/// d_h = |z_h - mean of all z|, a key head's distance the mean of its query heads', and the `count` farthest are
/// marked, the lower index first among equals.
///
///   out   [batch, row, heads, dim]: the rows of the last window of the prefill
///   far   [key_heads], a divisor of heads
template <element O>
void distant_heads(tensor_view<O, 4> out, index_t count, std::span<bool> far) {
  index_t const heads = out.extent(2), dim = out.extent(3),
                groups = static_cast<index_t>(far.size()),
                rows = std::max<index_t>(out.extent(0) * out.extent(1), 1);
  require(groups > 0 && heads % groups == 0 && count >= 0 && count <= groups, [&] {
    return "distant_heads marks " + std::to_string(count) + " of " + std::to_string(groups) +
           " key heads for " + std::to_string(heads) +
           " heads; expected a divisor of the heads, and no more than that";
  });
  std::vector<double> means(static_cast<std::size_t>(heads * dim)),
      centre(static_cast<std::size_t>(dim)), distance(static_cast<std::size_t>(groups));
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d) {
      double sum = 0;
      for (index_t b = 0; b < out.extent(0); ++b)
        for (index_t i = 0; i < out.extent(1); ++i)
          sum += convert_element<double>(convert_element<compute_type<O>>(out(b, i, h, d)));
      means[static_cast<std::size_t>(h * dim + d)] = sum / static_cast<double>(rows);
      centre[static_cast<std::size_t>(d)] += sum / static_cast<double>(rows * heads);
    }
  for (index_t h = 0; h < heads; ++h) {
    double square = 0;
    for (index_t d = 0; d < dim; ++d)
      square += std::pow(
          means[static_cast<std::size_t>(h * dim + d)] - centre[static_cast<std::size_t>(d)], 2);
    distance[static_cast<std::size_t>(h * groups / heads)] += std::sqrt(square);
  }
  std::fill(far.begin(), far.end(), false);
  for (index_t n = 0; n < count; ++n) {
    std::size_t farthest = 0;
    while (far[farthest]) ++farthest;
    for (std::size_t g = farthest + 1; g < far.size(); ++g)
      if (!far[g] && distance[g] > distance[farthest]) farthest = g;
    far[farthest] = true;
  }
}

/// The middle keys of a head that is not far: of the keys [sinks, keys - recent) the `count` with the largest weight from
/// the last queries, the lower index first among equals, in ascending order; -1 behind them if there are fewer.
///
///   weights   [batch, head, key]: what column_sums_into gives for the last window of queries
///   chosen    [batch, head, count], as key_list takes it
template <class T>
void middle_activations(tensor_view<T, 3> weights, streaming const& others,
                        tensor_view<index_t, 3> chosen) {
  require(chosen.extent(0) == weights.extent(0) && chosen.extent(1) == weights.extent(1) &&
              (chosen.stride(2) == 1 || chosen.extent(2) <= 1),
          [&] {
            return "chosen has shape " + shape_text(chosen.extents()) + ", the weights " +
                   shape_text(weights.extents()) +
                   "; expected the same batch entries and heads, and contiguous lists";
          });
  index_t const count = chosen.extent(2), end = weights.extent(2) - others.recent;
  for (index_t b = 0; b < chosen.extent(0); ++b)
    for (index_t h = 0; h < chosen.extent(1); ++h) {
      index_t* const list = count > 0 ? &chosen(b, h, index_t{0}) : nullptr;
      index_t kept = 0;
      auto const heavier = [&](index_t i, index_t j) {
        return weights(b, h, i) > weights(b, h, j) ||
               (weights(b, h, i) == weights(b, h, j) && i < j);
      };
      // A heap of those kept so far, the lightest on top.
      for (index_t j = others.sinks; j < end && count > 0; ++j) {
        if (kept == count) {
          if (!heavier(j, list[0])) continue;
          std::pop_heap(list, list + kept--, heavier);
        }
        list[kept++] = j;
        std::push_heap(list, list + kept, heavier);
      }
      std::sort(list, list + kept);
      std::fill(list + kept, list + count, index_t{-1});
    }
}

/// What a head meets: the far ones all keys up to the query's own, the others sinks, recent keys and the chosen ones.
///
///   middle        of middle_activations, [batch, head, count]
///   far           [batch or 1, head], true for heads that keep every key
struct task_kv {
  streaming others;
  tensor_view<index_t const, 3> middle;
  tensor_view<bool const, 2> far;

  auto bind(place const& where) const {
    bool const all = far(far.extent(0) == 1 ? 0 : where.batch, where.head);
    streaming const near{others.sinks, all ? unbounded : others.recent};
    return near | (causal{} & key_list{middle}.bind(where));
  }
  void check(call_shape const& shape) const {
    others.check(shape);
    key_list{middle}.check(shape);
    require((far.extent(0) == 1 || far.extent(0) == shape.batches) && far.extent(1) == shape.heads,
            [&] {
              return "task_kv.far has shape " + shape_text(far.extents()) + "; expected [1 or " +
                     std::to_string(shape.batches) + ", " + std::to_string(shape.heads) +
                     "] (batch, head)";
            });
  }
};

}  // namespace heed
