#pragma once

#include "peer.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace heed_bench {

/// Attention as a user with a fast matrix product would write it: the scores of a block of rows as
/// a matrix, its softmax, its product with the values. Blocks are small enough for the scores to
/// stay in the second-level cache, and a causal block stops at its last row's key.
///
/// Product is a type with two functions on row-major matrices of leading dimensions lda, ldb, ldc:
///   scores(m, n, k, factor, a, lda, b, ldb, c, ldc)   c = factor a b^T
///   values(m, n, k, a, lda, b, ldb, c, ldc)           c = a b
template <class Product>
void attend_by_two_products(peer_problem const& p) {
  using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  index_t const most_rows = std::clamp<index_t>((index_t{1} << 17) / p.positions, 32, 128);
  thread_local row_matrix scores;
  scores.resize(most_rows, p.positions);
  float const scale = 1 / std::sqrt(static_cast<float>(p.dim));

  for (index_t head = 0; head < p.heads; ++head) {
    index_t const offset = head * p.positions * p.dim;
    for (index_t first = 0; first < p.positions; first += most_rows) {
      index_t const rows = std::min(most_rows, p.positions - first);
      index_t const keys = p.causal ? first + rows : p.positions;
      Product::scores(rows, keys, p.dim, scale, p.query + offset + first * p.dim, p.dim,
                      p.key + offset, p.dim, scores.data(), p.positions);
      for (index_t i = 0; i < rows; ++i) {
        index_t const kept = p.causal ? first + i + 1 : keys;
        auto row = scores.row(i).head(kept).array();
        row = (row - row.maxCoeff()).exp();
        row *= 1 / row.sum();
        scores.row(i).segment(kept, keys - kept).setZero();
      }
      Product::values(rows, p.dim, keys, scores.data(), p.positions, p.value + offset, p.dim,
                      p.out + offset + first * p.dim, p.dim);
    }
  }
}

}  // namespace heed_bench
