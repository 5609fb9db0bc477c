#pragma once

#include "reference/gated_recurrences.hpp"

/// Flow-Attention in plain loops for any type of number.
namespace reference {

struct flow {
  double clamp = 1;
  bool relu = false;
  static constexpr double epsilon = 1e-6;

  template <class T>
  tensor<T, 4> features(tensor<T, 4> const& x) const {
    return each(x, [&](T const& number) {
      return relu ? (number > T(0) ? number : T(0)) + T(epsilon) : sigmoid(number);
    });
  }

  /// One row of one head.
  template <class T>
  static std::vector<T> row(tensor<T, 4> const& x, index_t b, index_t i, index_t h) {
    std::vector<T> all;
    for (index_t d = 0; d < x.extent(3); ++d) all.push_back(x(b, i, h, d));
    return all;
  }
  template <class T>
  static T product(std::vector<T> const& a, std::vector<T> const& b) {
    T sum = 0;
    for (std::size_t d = 0; d < a.size(); ++d) sum += (a[d] + T(epsilon)) * (b[d] + T(epsilon));
    return sum;
  }
  template <class T>
  static void add(std::vector<T>& to, std::vector<T> const& x, T const& factor) {
    for (std::size_t d = 0; d < x.size(); ++d) to[d] += x[d] * factor;
  }
  template <class T>
  T clamped(T const& x) const {
    return x > T(clamp) ? T(clamp) : x < T(-clamp) ? T(-clamp) : x;
  }

  template <class T>
  tensor<T, 4> normal(tensor<T, 4> const& query, tensor<T, 4> const& key,
                      tensor<T, 4> const& v) const {
    using std::exp;
    tensor<T, 4> const qs = features(query), ks = features(key);
    index_t const N = qs.extent(1), M = ks.extent(1), D = qs.extent(3), E = v.extent(3);
    tensor<T, 4> out({qs.extent(0), N, qs.extent(2), E});
    for (index_t b = 0; b < qs.extent(0); ++b)
      for (index_t h = 0; h < qs.extent(2); ++h) {
        std::vector<T> const zero(static_cast<std::size_t>(D), T(0));
        std::vector<T> sum_q = zero, sum_k = zero, sum_qi = zero, sum_ko = zero;
        std::vector<T> in, conserved;
        for (index_t i = 0; i < N; ++i) add(sum_q, row(qs, b, i, h), T(1));
        for (index_t j = 0; j < M; ++j) add(sum_k, row(ks, b, j, h), T(1));
        for (index_t i = 0; i < N; ++i) {
          in.push_back(product(row(qs, b, i, h), sum_k));
          add(sum_qi, row(qs, b, i, h), T(1) / in.back());
        }
        for (index_t j = 0; j < M; ++j)
          add(sum_ko, row(ks, b, j, h), T(1) / product(row(ks, b, j, h), sum_q));
        T total = 0;
        for (index_t j = 0; j < M; ++j) {
          conserved.push_back(exp(clamped(product(row(ks, b, j, h), sum_qi))));
          total += conserved.back();
        }
        for (index_t e = 0; e < E; ++e) {
          std::vector<T> state = zero;
          for (index_t j = 0; j < M; ++j)
            add(state, row(ks, b, j, h),
                T(double(M)) * conserved[static_cast<std::size_t>(j)] / total * v(b, j, h, e));
          for (index_t i = 0; i < N; ++i) {
            T sum = 0;
            for (index_t d = 0; d < D; ++d)
              sum += qs(b, i, h, d) / in[static_cast<std::size_t>(i)] *
                     state[static_cast<std::size_t>(d)];
            out(b, i, h, e) =
                sigmoid(product(row(qs, b, i, h), sum_ko) * T(double(N) / double(M))) * sum;
          }
        }
      }
    return out;
  }

  template <class T>
  tensor<T, 4> causal(tensor<T, 4> const& query, tensor<T, 4> const& key, tensor<T, 4> const& v,
                      bool by_pairs) const {
    using std::exp;
    tensor<T, 4> const qs = features(query), ks = features(key);
    index_t const N = qs.extent(1), D = qs.extent(3), E = v.extent(3);
    tensor<T, 4> flowing = qs, weighted = v, gate = v;
    for (index_t b = 0; b < qs.extent(0); ++b)
      for (index_t h = 0; h < qs.extent(2); ++h) {
        std::vector<T> const zero(static_cast<std::size_t>(D), T(0));
        std::vector<T> sum_q = zero, sum_k = zero, sum_qi = zero, sum_ko = zero;
        T total = 0;
        for (index_t i = 0; i < N; ++i) {
          T const t = T(static_cast<double>(i + 1));
          std::vector<T> const q = row(qs, b, i, h), k = row(ks, b, i, h);
          add(sum_k, k, T(1));
          add(sum_q, q, T(1));
          T const in = product(q, sum_k), outflow = product(k, sum_q);
          add(sum_ko, k, t / outflow);
          add(sum_qi, q, t / in);
          T const share = exp(clamped(product(k, sum_qi) / t));
          total += share;
          for (index_t d = 0; d < D; ++d) flowing(b, i, h, d) /= in;
          for (index_t e = 0; e < E; ++e) {
            weighted(b, i, h, e) *= t * share / total;
            gate(b, i, h, e) = sigmoid(product(q, sum_ko) / t);
          }
        }
      }
    auto const attended =
        by_pairs ? gated_recurrence_by_pairs(flowing, ks, weighted, recurrence_parts<T>{})
                 : gated_recurrence(flowing, ks, weighted, recurrence_parts<T>{});
    return each(attended, gate, [](T const& x, T const& g) { return x * g; });
  }
};

}  // namespace reference
