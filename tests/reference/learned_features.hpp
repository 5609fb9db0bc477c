#pragma once

#include "reference/tensor.hpp"

#include <cmath>
#include <vector>

/// Feature maps with parameters, for any type of number; see traced.hpp.
namespace reference {

/// y = x W + b of a row, W [1, heads or 1, dim, width], b [1, 1, heads or 1, width] or nothing.
template <class T>
std::vector<T> affine_row(tensor<T, 4> const& x, index_t b, index_t i, index_t h,
                          tensor<T, 4> const& weights, tensor<T, 4> const* bias) {
  index_t const owner = weights.extent(1) == 1 ? 0 : h;
  std::vector<T> y;
  for (index_t f = 0; f < weights.extent(3); ++f) {
    T sum = bias == nullptr ? T(0) : (*bias)(0, 0, bias->extent(2) == 1 ? 0 : h, f);
    for (index_t d = 0; d < x.extent(3); ++d) sum += x(b, i, h, d) * weights(0, owner, d, f);
    y.push_back(sum);
  }
  return y;
}

/// Rows of features(y).
template <class T, class Features>
tensor<T, 4> learned_features(tensor<T, 4> const& x, tensor<T, 4> const& weights,
                              tensor<T, 4> const* bias, index_t count, Features features) {
  tensor<T, 4> phi({x.extent(0), x.extent(1), x.extent(2), count});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < x.extent(2); ++h) {
        std::vector<T> const row = features(affine_row(x, b, i, h, weights, bias));
        for (index_t f = 0; f < count; ++f) phi(b, i, h, f) = row[static_cast<std::size_t>(f)];
      }
  return phi;
}

struct t2r_row {
  template <class T>
  std::vector<T> operator()(std::vector<T> y) const {
    for (T& each : y) each = each > T(0) ? each : T(0);
    return y;
  }
};

/// softmax([2 y, -2 y]).
struct hedgehog_row {
  template <class T>
  std::vector<T> operator()(std::vector<T> const& y) const {
    using std::exp;
    std::vector<T> both;
    for (T each : y) both.push_back(T(2) * each);
    for (T each : y) both.push_back(T(-2) * each);
    T most = both[0], sum = 0;
    for (T each : both) most = each > most ? each : most;
    for (T& each : both) {
      each = exp(each - most);
      sum += each;
    }
    for (T& each : both) each /= sum;
    return both;
  }
};

/// [e^(y - c), e^(-y - c)], c the largest |y| of a query or a number.
struct hedgehog_exponential_row {
  double shift = 0;
  bool of_query = false;

  template <class T>
  std::vector<T> operator()(std::vector<T> const& y) const {
    using std::abs, std::exp;
    T c = of_query ? abs(y[0]) : T(shift);
    for (T each : y)
      if (of_query && abs(each) > c) c = abs(each);
    std::vector<T> both;
    for (T each : y) both.push_back(exp(each - c));
    for (T each : y) both.push_back(exp(-each - c));
    return both;
  }
};

}  // namespace reference
