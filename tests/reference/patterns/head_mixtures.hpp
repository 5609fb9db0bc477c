#pragma once

#include "reference/tensor.hpp"

#include <algorithm>
#include <cmath>

/// Mixtures over heads, layers and tokens as predicates over the query's position p and a key j.
namespace reference {

inline bool streaming(index_t p, index_t j, index_t sinks, index_t recent) {
  return j <= p && (j < sinks || p - j < recent);
}

struct span {
  index_t sinks, recent;
};

/// alpha, beta: S = min(floor(alpha + beta n), n), then ceil(max(S, 128) / 64) 64; min(64, S) of it static.
inline span elastic_span(double alpha, double beta, index_t n) {
  double s = std::min(std::floor(alpha + beta * double(n)), double(n));
  s = std::ceil(std::max(s, 128.0) / 64) * 64;
  double const sink = std::min(64.0, s);
  return {static_cast<index_t>(sink), static_cast<index_t>(s - sink)};
}

inline bool elastic_span_in_blocks(index_t p, index_t j, span s) {
  index_t const b = p < 0 ? -1 : p / 64;
  return j <= p && (j / 64 < s.sinks / 64 || j / 64 > b - s.recent / 64);
}

}  // namespace reference
