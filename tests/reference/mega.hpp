#pragma once

#include <algorithm>
#include <cmath>
#include "reference/traced.hpp"

/// Mega's attention in plain loops, for any type of number.
namespace reference {

template <class R>
R erf_of(R x) {
  return std::erf(x);
}
template <class T>
traced<T> erf_of(traced<T> x) {
  T const at = x.value();
  return x.then(std::erf(at),
                T(2 / std::sqrt(3.14159265358979323846264338327950288L)) * std::exp(-at * at));
}

enum class mega_function { softmax, laplace, relu_squared };

struct mega_context {
  bool causal = true;
  index_t block = 0;
  std::vector<index_t> lengths;

  bool meets(index_t b, index_t i, index_t j) const {
    if (causal && j > i) return false;
    if (block > 0 && i / block != j / block) return false;
    return lengths.empty() || j < lengths[std::size_t(b)];
  }
};

/// Inputs: q [batch, N, heads, z], k, v, and a table of biases [1, 1, 1, 2 P - 1]. Keys in their order, or backwards.
template <class R>
tensor<R, 4> mega(mega_function what, mega_context const& where, tensors<R> const& in,
                  bool backwards) {
  using std::exp;
  using std::sqrt;
  auto const &q = in[0], &k = in[1], &v = in[2], &table = in[3];
  index_t const N = q.extent(1), H = q.extent(2), M = k.extent(1), shift = M - N;
  tensor<R, 4> out({q.extent(0), N, H, v.extent(3)});
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t i = 0; i < N; ++i)
      for (index_t h = 0; h < H; ++h) {
        std::vector<index_t> keys;
        for (index_t j = 0; j < M; ++j)
          if (where.meets(b, i + shift, j)) keys.push_back(j);
        if (keys.empty()) continue;
        if (backwards) std::reverse(keys.begin(), keys.end());
        std::vector<R> weights;
        R total = 0, top = 0;
        for (index_t j : keys) {
          R product = 0;
          for (index_t d = 0; d < q.extent(3); ++d)
            product = product + q(b, i, h, d) * k(b, j, h * k.extent(2) / H, d);
          R const bias = table(0, 0, 0, j - i - shift + table.extent(3) / 2);
          R s = what == mega_function::softmax ? product / sqrt(R(q.extent(3))) + bias
                                               : product / R(keys.size()) + bias;
          if (what == mega_function::laplace)
            s = (R(1) + erf_of((s - R(0.707107L)) / (R(0.282095L) * sqrt(R(2))))) / R(2);
          if (what == mega_function::relu_squared) s = s > R(0) ? s * s : R(0);
          if (weights.empty() || s > top) top = s;
          weights.push_back(s);
        }
        if (what == mega_function::softmax)
          for (R& weight : weights) total = total + (weight = exp(weight - top));
        for (index_t e = 0; e < v.extent(3); ++e) {
          R sum = 0;
          for (std::size_t n = 0; n < keys.size(); ++n)
            sum = sum + weights[n] * v(b, keys[n], h * v.extent(2) / H, e);
          out(b, i, h, e) = what == mega_function::softmax ? sum / total : sum;
        }
      }
  return out;
}

}  // namespace reference
