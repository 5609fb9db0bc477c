#pragma once

#include <heed/mechanism/streaming.hpp>
#include <heed/pattern/by_blocks.hpp>

#include <cmath>

/// MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression. Each head has a span that grows
/// with the input in its own way, alpha + beta n; both numbers come from a search that is not part of heed.
namespace heed {

/// The sinks and recent keys of a head for inputs of `length` tokens, those to be generated included: a span of
/// alpha + beta length, at most `length`, at least 128 and a multiple of 64, of which 64 are sinks.
inline streaming elastic_span(double alpha, double beta, index_t length) {
  constexpr index_t block = 64, least = 128;
  auto const wanted = static_cast<index_t>(std::floor(alpha + beta * static_cast<double>(length)));
  index_t const span = (std::max(std::min(wanted, length), least) + block - 1) / block * block;
  return {.sinks = block, .recent = span - block};
}

/// The same for all heads, into the numbers of streaming_heads: [1, head].
inline void elastic_spans(tensor_view<double const, 1> alpha, tensor_view<double const, 1> beta,
                          index_t length, tensor_view<index_t, 2> sinks,
                          tensor_view<index_t, 2> recent) {
  std::array<index_t, 2> const expected{1, alpha.extent(0)};
  require(beta.extents() == alpha.extents() && sinks.extents() == expected &&
              recent.extents() == expected,
          [&] {
            return "elastic_spans got alpha of shape " + shape_text(alpha.extents()) + ", beta " +
                   shape_text(beta.extents()) + ", sinks " + shape_text(sinks.extents()) +
                   ", recent " + shape_text(recent.extents()) +
                   "; expected [heads], [heads], [1, heads], [1, heads]";
          });
  for (index_t head = 0; head < alpha.extent(0); ++head) {
    streaming const span = elastic_span(alpha(head), beta(head), length);
    sinks(0, head) = span.sinks;
    recent(0, head) = span.recent;
  }
}

/// The form of a prefill kernel, in blocks of 64: never wider than the token form, and equal to it for the last row of
/// each block. The other rows of a block leave out what its last row does not see.
inline auto elastic_span_in_blocks(streaming span) {
  constexpr index_t block = 64;
  return causal{} & by_blocks{streaming{span.sinks / block, span.recent / block}, block};
}

}  // namespace heed
