#pragma once

#include "reference/soft_attend.hpp"

/// SEA's linear estimator in plain loops and for any type of number.
namespace reference {

/// Row t of the identity matrix interpolated to `count` rows with aligned corners.
template <class T>
tensor<T, 2> stretched_identity(index_t count, index_t dim) {
  tensor<T, 2> rows({count, dim});
  for (index_t t = 0; t < count; ++t)
    for (index_t d = 0; d < dim; ++d) {
      double const y =
          count == 1 ? 0 : static_cast<double>(t * (dim - 1)) / static_cast<double>(count - 1);
      rows(t, d) = static_cast<T>(std::max(0.0, 1 - std::abs(y - static_cast<double>(d))));
    }
  return rows;
}

/// Rows of weights phi(q_i) . phi(k_j), normalised, times [e, v]. e is [1, N, 1, any], omega [features, dim].
template <class T>
tensor<T, 4> sea_context(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                         tensor<T, 4> const& e, tensor<double, 2> const& omega, bool causal) {
  using std::exp, std::sqrt;
  index_t const N = q.extent(1), H = q.extent(2), D = q.extent(3), m = omega.extent(0),
                wide = e.extent(3) + v.extent(3);
  T const shrink = T(std::pow(static_cast<double>(D), -0.25));
  auto const projected = [&](tensor<T, 4> const& x, index_t b, index_t i, index_t h) {
    std::vector<T> all;
    for (index_t f = 0; f < m; ++f)
      all.push_back(
          ordered_sum<T>(D, [&](index_t d) { return T(omega(f, d)) * (shrink * x(b, i, h, d)); }));
    return all;
  };
  auto const features = [&](tensor<T, 4> const& x, index_t b, index_t i, index_t h, T largest) {
    std::vector<T> phi = projected(x, b, i, h);
    T const square = ordered_sum<T>(
        D, [&](index_t d) { return (shrink * x(b, i, h, d)) * (shrink * x(b, i, h, d)); });
    for (T& each : phi)
      each = causal ? (T(0) < each ? each : T(0)) + T(1e-3)
                    : T(1 / std::sqrt(static_cast<double>(m))) *
                          (exp(each - square / T(2) - largest) + T(1e-4));
    return phi;
  };
  auto const largest_of = [](std::vector<T> const& all) {
    T most = all[0];
    for (T const& each : all)
      if (most < each) most = each;
    return untraced(most);
  };
  tensor<T, 4> out({q.extent(0), N, H, wide});
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t h = 0; h < H; ++h) {
      index_t const kh = h * k.extent(2) / H, vh = h * v.extent(2) / H;
      T largest(0);
      for (index_t j = 0; j < N; ++j) {
        T const most = largest_of(projected(k, b, j, kh));
        if (j == 0 || largest < most) largest = most;
      }
      std::vector<std::vector<T>> keys;
      for (index_t j = 0; j < N; ++j) keys.push_back(features(k, b, j, kh, largest));
      for (index_t i = 0; i < N; ++i) {
        std::vector<T> const query = features(q, b, i, h, largest_of(projected(q, b, i, h)));
        index_t const seen = causal ? i + 1 : N;
        std::vector<T> weights;
        for (index_t j = 0; j < seen; ++j)
          weights.push_back(ordered_sum<T>(m, [&](index_t f) {
            return query[std::size_t(f)] * keys[std::size_t(j)][std::size_t(f)];
          }));
        T const total = ordered_sum<T>(seen, [&](index_t j) { return weights[std::size_t(j)]; });
        for (index_t d = 0; d < wide; ++d)
          out(b, i, h, d) =
              ordered_sum<T>(
                  seen,
                  [&](index_t j) {
                    return weights[std::size_t(j)] *
                           (d < e.extent(3) ? e(0, j, 0, d) : v(b, j, vh, d - e.extent(3)));
                  }) /
              total;
      }
    }
  return out;
}

}  // namespace reference
