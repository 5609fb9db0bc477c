// The masks of the benchmark, each as its predicate and its work.
#pragma once

#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace reference {

using heed::index_t;

inline index_t triangle(index_t n) {
  return n > 0 ? n * (n + 1) / 2 : 0;
}

/// Documents by their boundaries c_0 … c_G.
struct document_list {
  std::vector<index_t> c;

  index_t count() const { return static_cast<index_t>(c.size()) - 1; }
  index_t start(index_t g) const { return c[static_cast<std::size_t>(g)]; }
  index_t length(index_t g) const { return start(g + 1) - start(g); }
  index_t total() const { return c.back(); }
  index_t doc(index_t i) const {
    index_t g = 0;
    while (i >= start(g + 1)) ++g;
    return g;
  }
  template <class F>
  index_t sum(F of_length) const {
    index_t total_sum = 0;
    for (index_t g = 0; g < count(); ++g) total_sum += of_length(length(g));
    return total_sum;
  }
};

struct benchmark_mask {
  std::string name;
  std::function<bool(index_t, index_t)> keep;
  index_t work;
};

/// All rows of the table that documents, a prefix, a reach and a block describe; n is a multiple of the block.
inline std::vector<benchmark_mask> benchmark_masks(document_list const& docs, index_t prefix,
                                                   index_t W) {
  index_t const N = docs.total(), G = docs.count(), P = std::min(prefix, N);
  auto const T = triangle;
  auto const same = [=](index_t i, index_t j) { return docs.doc(i) == docs.doc(j); };
  index_t const own = docs.sum([=](index_t n) { return T(n); });
  // Where the window is wider than the sequence it is the whole of it.
  index_t const w = std::min(W, N - 1), g = std::min(2 * W, N);
  auto const window = [](index_t n, index_t reach) {
    return reach < n ? n * (2 * reach + 1) - reach * (reach + 1) : n * n;
  };
  return {
      {"full", [](index_t, index_t) { return true; }, N * N},
      {"causal", [](index_t i, index_t j) { return j <= i; }, T(N)},
      {"full document", same, docs.sum([](index_t n) { return n * n; })},
      {"causal document", [=](index_t i, index_t j) { return same(i, j) && j <= i; }, own},
      {"share question",
       [=](index_t i, index_t j) {
         return (same(i, j) && j <= i) || (docs.doc(i) != 0 && docs.doc(j) == 0);
       },
       own + docs.length(0) * (N - docs.length(0))},
      {"causal blockwise",
       [=](index_t i, index_t j) { return j <= i && (same(i, j) || docs.doc(i) == G - 1); },
       own + docs.length(G - 1) * (N - docs.length(G - 1))},
      {"prefix-LM causal", [=](index_t i, index_t j) { return j <= i || j < P; },
       P * P + T(N) - T(P)},
      {"prefix-LM document",
       [=](index_t i, index_t j) {
         return same(i, j) && (j <= i || j - docs.start(docs.doc(j)) < prefix);
       },
       docs.sum([=](index_t n) {
         index_t const own_prefix = std::min(prefix, n);
         return own_prefix * own_prefix + T(n) - T(own_prefix);
       })},
      {"sliding window", [=](index_t i, index_t j) { return std::abs(i - j) <= W; }, window(N, W)},
      {"sliding window causal", [=](index_t i, index_t j) { return 0 <= i - j && i - j <= W; },
       (w + 1) * N - w * (w + 1) / 2},
      {"global sliding window",
       [=](index_t i, index_t j) { return std::abs(i - j) <= W || i < 2 * W || j < 2 * W; },
       g * N + (N - g) * g + window(N - g, W)},
  };
}

/// The row for documents of whole blocks.
inline benchmark_mask block_causal_document(document_list const& docs, index_t B) {
  return {"block-causal document",
          [=](index_t i, index_t j) { return docs.doc(i) == docs.doc(j) && j < (i / B + 1) * B; },
          docs.sum([=](index_t n) { return B * B * triangle(n / B); })};
}

}  // namespace reference
