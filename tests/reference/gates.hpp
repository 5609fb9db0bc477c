#pragma once

#include "reference/attention.hpp"

#include <cmath>
#include <vector>

/// Gates between two results, and the router of Flux Attention, in plain loops and double.
namespace reference {

struct dense_map {
  std::vector<std::vector<double>> weight;  // [out][in]
  std::vector<double> bias;

  std::vector<double> operator()(std::vector<double> const& x) const {
    std::vector<double> y = bias;
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += weight[o][i] * x[i];
    return y;
  }
};

inline std::vector<double> silu(std::vector<double> x) {
  for (double& each : x) each = each / (1 + std::exp(-each));
  return x;
}

/// z = W5 silu(W4 silu(W3 f + b3) + b4) + b5, f = W2 silu(W1 x + b1) + b2.
inline std::vector<double> router(std::vector<dense_map> const& w, std::vector<double> const& x) {
  std::vector<double> const f = w[1](silu(w[0](x)));
  return w[4](silu(w[3](silu(w[2](f)))));
}

/// Concatenates the first P and the last P rows and takes their mean over heads and rows.
inline std::vector<double> router_summary(tensor<double, 4> const& q, index_t batch, index_t P) {
  std::vector<index_t> rows;
  for (index_t i = 0; i < q.extent(1); ++i)
    if (i < P) rows.push_back(i);
  for (index_t i = 0; i < q.extent(1); ++i)
    if (i >= q.extent(1) - P) rows.push_back(i);
  std::vector<double> x(static_cast<std::size_t>(q.extent(3)));
  for (std::size_t d = 0; d < x.size(); ++d) {
    for (index_t i : rows)
      for (index_t h = 0; h < q.extent(2); ++h) x[d] += q(batch, i, h, static_cast<index_t>(d));
    x[d] /= static_cast<double>(rows.size()) * static_cast<double>(q.extent(2));
  }
  return x;
}

}  // namespace reference
