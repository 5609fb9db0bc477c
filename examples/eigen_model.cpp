// A transformer encoder block in Eigen, its attention by heed.
//
// Eigen's matrices are used where they lie: heed::view reads the columns of one as heads side by
// side. The same block with attention as Eigen alone would compute it, two products and the N x N
// matrix between them, checks the result.

#include <heed/heed.hpp>
#include <heed/view/eigen.hpp>

#include <Eigen/Dense>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>

using Eigen::ArrayXf;
using Eigen::Index;
using Eigen::VectorXf;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct linear {
  matrix weight;
  VectorXf bias;

  linear(Index inputs, Index outputs, std::mt19937& random)
      : weight(inputs, outputs), bias(VectorXf::Zero(outputs)) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(inputs)));
    for (float& number : weight.reshaped()) number = normal(random);
  }

  matrix operator()(matrix const& x) const { return (x * weight).rowwise() + bias.transpose(); }
};

/// Every row to mean 0 and variance 1. (Its trained factors and offsets start as 1 and 0.)
matrix layer_norm(matrix const& x) {
  matrix const centred = x.colwise() - x.rowwise().mean();
  ArrayXf const variance = centred.rowwise().squaredNorm() / static_cast<float>(x.cols());
  return (variance + 1e-5f).rsqrt().matrix().asDiagonal() * centred;
}

matrix gelu(matrix const& x) {
  return x.unaryExpr([](float t) { return 0.5f * t * (1 + std::erf(t * 0.70710678f)); });
}

matrix attention_by_heed(matrix& query, matrix& key, matrix& value, Index heads) {
  matrix out(query.rows(), value.cols());
  heed::attention(heed::view(query, heads), heed::view(key, heads), heed::view(value, heads),
                  heed::view(out, heads));
  return out;
}

matrix attention_by_two_products(matrix& query, matrix& key, matrix& value, Index heads) {
  Index const dim = query.cols() / heads;
  matrix out(query.rows(), value.cols());
  for (Index head = 0; head < heads; ++head) {
    auto columns = [&](matrix& all) { return all.middleCols(head * dim, dim); };
    matrix scores = columns(query) * columns(key).transpose() / std::sqrt(static_cast<float>(dim));
    scores = (scores.colwise() - scores.rowwise().maxCoeff()).array().exp();
    scores.array().colwise() /= scores.rowwise().sum().array().eval();
    columns(out).noalias() = scores * columns(value);
  }
  return out;
}

/// x + attention(norm(x)), then x + feed_forward(norm(x)).
struct encoder_block {
  Index heads;
  linear to_query, to_key, to_value, to_out, widen, narrow;

  encoder_block(Index width, Index head_count, std::mt19937& random)
      : heads(head_count),
        to_query(width, width, random),
        to_key(width, width, random),
        to_value(width, width, random),
        to_out(width, width, random),
        widen(width, 4 * width, random),
        narrow(4 * width, width, random) {}

  template <class Attention>
  matrix operator()(matrix x, Attention attention, double& attention_seconds) const {
    matrix const normed = layer_norm(x);
    matrix query = to_query(normed), key = to_key(normed), value = to_value(normed);

    auto const start = std::chrono::steady_clock::now();
    matrix const mixed = attention(query, key, value, heads);
    attention_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    x += to_out(mixed);
    x += narrow(gelu(widen(layer_norm(x))));
    return x;
  }
};

int main() {
  Index const positions = 1000, width = 256, heads = 4;
  std::mt19937 random(1);
  encoder_block const block(width, heads, random);
  matrix const x =
      linear(positions, width, random).weight * std::sqrt(static_cast<float>(positions));

  double heed_seconds = 0, eigen_seconds = 0;
  matrix by_heed, by_eigen;
  // The first of two rounds warms up.
  for (int round = 0; round < 2; ++round) {
    by_heed = block(x, attention_by_heed, heed_seconds);
    by_eigen = block(x, attention_by_two_products, eigen_seconds);
  }

  float const difference = (by_heed - by_eigen).cwiseAbs().maxCoeff();
  std::printf("An encoder block of %d positions, width %d, %d heads.\n", int(positions), int(width),
              int(heads));
  std::printf("attention by heed          %7.2f ms\n", 1e3 * heed_seconds);
  std::printf("attention by two products  %7.2f ms\n", 1e3 * eigen_seconds);
  std::printf("largest difference between the two outputs: %.1e\n",
              static_cast<double>(difference));
  return difference < 1e-4f ? 0 : 1;
}
