#pragma once

#include "reference/tensor.hpp"

#include <cmath>
#include <vector>

/// Attention whose weights are a product of features, from its weights, pair by pair: for any type of number, so
/// that gradients can be traced.
namespace reference {

/// The number that a traced number has now.
template <class T>
T number_of(T x) {
  return x;
}
template <class T>
  requires requires(T x) {
    x.value();
  }
auto number_of(T x) {
  return x.value();
}

template <class T>
std::vector<T> row_of(tensor<T, 4> const& x, index_t b, index_t i, index_t h) {
  std::vector<T> row;
  for (index_t d = 0; d < x.extent(3); ++d) row.push_back(x(b, i, h, d));
  return row;
}
template <class T>
T dot_of(std::vector<T> const& a, std::vector<T> const& b) {
  T sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

struct kernel_call {
  index_t heads;
  bool causal = true;
  double epsilon = 0;
  double at_least = -1e300;

  /// The same for weights that are products of features, phi(q_i) . phi(k_j), by sums over keys: rounded otherwise.
  template <class T>
  tensor<T, 4> average_of_features(tensor<T, 4> const& query, tensor<T, 4> const& key,
                                   tensor<T, 4> const& value) const {
    index_t const N = query.extent(1), M = key.extent(1), F = key.extent(3), E = value.extent(3);
    tensor<T, 4> out({query.extent(0), N, heads, E});
    for (index_t b = 0; b < query.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h) {
        tensor<T, 2> sums({F, E + 1});
        index_t j = 0;
        for (index_t i = 0; i < N; ++i) {
          for (; j < (causal ? std::min(M, i + M - N + 1) : M); ++j)
            for (index_t f = 0; f < F; ++f)
              for (index_t e = 0; e <= E; ++e) {
                T const k = key(b, j, h * key.extent(2) / heads, f);
                sums(f, e) += e == E ? k : k * value(b, j, h * value.extent(2) / heads, e);
              }
          auto const read = [&](index_t e) {
            T sum = 0;
            for (index_t f = 0; f < F; ++f)
              sum += query(b, i, h * query.extent(2) / heads, f) * sums(f, e);
            return sum;
          };
          T total = read(E) + T(epsilon);
          if (total < T(at_least)) total = T(at_least);
          for (index_t e = 0; e < E; ++e) out(b, i, h, e) = total == T(0) ? T(0) : read(e) / total;
        }
      }
    return out;
  }

  /// out_i = sum_j w_ij v_j / max(sum_j w_ij + epsilon, at_least), where weight(b, query head, i, key head, j) is
  /// w_ij; 0 if that is 0 / 0. Causal over j <= i + M - N.
  template <class T, class Weight>
  tensor<T, 4> average(tensor<T, 4> const& query, tensor<T, 4> const& key,
                       tensor<T, 4> const& value, Weight weight) const {
    index_t const N = query.extent(1), M = key.extent(1), E = value.extent(3);
    tensor<T, 4> out({query.extent(0), N, heads, E});
    for (index_t b = 0; b < query.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < N; ++i) {
          std::vector<T> sums(static_cast<std::size_t>(E), T(0));
          T total = T(epsilon);
          for (index_t j = 0; j < (causal ? std::min(M, i + M - N + 1) : M); ++j) {
            T const w = weight(b, h * query.extent(2) / heads, i, h * key.extent(2) / heads, j);
            total += w;
            for (index_t e = 0; e < E; ++e)
              sums[static_cast<std::size_t>(e)] += w * value(b, j, h * value.extent(2) / heads, e);
          }
          if (total < T(at_least)) total = T(at_least);
          for (index_t e = 0; e < E; ++e)
            out(b, i, h, e) = total == T(0) ? T(0) : sums[static_cast<std::size_t>(e)] / total;
        }
    return out;
  }
};

/// sum_(l <= degree) s^l / l!.
template <class T>
T cut_exponential(T s, index_t degree) {
  T sum = 1, term = 1;
  for (index_t l = 1; l <= degree; ++l) {
    term *= s / T(l);
    sum += term;
  }
  return sum;
}

/// Its features of a row: products of up to `degree` channels of sqrt(scale) x, each set of channels once.
template <class T>
std::vector<T> cut_exponential_features(std::vector<T> const& x, double scale, index_t degree) {
  struct product {
    T value;
    double weight;
    std::size_t last, repeats;
  };
  std::vector<T> phi{T(1)};
  std::vector<product> of_degree{{T(1), 1, 0, 0}};
  for (index_t l = 1; l <= degree; ++l) {
    std::vector<product> next;
    for (product const& each : of_degree)
      for (std::size_t d = each.last; d < x.size(); ++d) {
        std::size_t const repeats = d == each.last ? each.repeats + 1 : 1;
        next.push_back({each.value * (T(std::sqrt(scale)) * x[d]),
                        each.weight / std::sqrt(static_cast<double>(repeats)), d, repeats});
      }
    of_degree = next;
    for (product const& each : of_degree) phi.push_back(each.value * T(each.weight));
  }
  return phi;
}

/// f(row, position) of every row.
template <class T, class F>
tensor<T, 4> rows_of_features(tensor<T, 4> const& x, index_t count, F f) {
  tensor<T, 4> phi({x.extent(0), x.extent(1), x.extent(2), count});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < x.extent(2); ++h) {
        auto const row = f(row_of(x, b, i, h), i);
        for (index_t n = 0; n < count; ++n) phi(b, i, h, n) = row[static_cast<std::size_t>(n)];
      }
  return phi;
}

/// A row less its mean, divided by sqrt(variance + 1e-6).
template <class T>
std::vector<T> by_deviation(std::vector<T> x) {
  using std::sqrt;
  T mean = 0, squares = 0;
  for (T each : x) mean += each;
  mean /= T(x.size());
  for (T& each : x) {
    each -= mean;
    squares += each * each;
  }
  for (T& each : x) each /= sqrt(squares / T(x.size()) + T(1e-6));
  return x;
}

/// All rows of a batch entry and head divided by the largest of their norms, if it is not 0.
template <class T>
tensor<T, 4> by_largest_norm(tensor<T, 4> x) {
  using std::sqrt;
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t h = 0; h < x.extent(2); ++h) {
      T most = 0;
      for (index_t i = 0; i < x.extent(1); ++i) {
        T const squares = dot_of(row_of(x, b, i, h), row_of(x, b, i, h));
        if (squares > most) most = squares;
      }
      if (most == T(0)) continue;
      T const norm = sqrt(most);
      for (index_t i = 0; i < x.extent(1); ++i)
        for (index_t d = 0; d < x.extent(3); ++d) x(b, i, h, d) /= norm;
    }
  return x;
}

/// relu(q) . relu(k) cos(pi (i - j) / 2 horizon).
template <class T>
T cosine_weight(std::vector<T> const& q, std::vector<T> const& k, index_t apart, double horizon) {
  T sum = 0;
  for (std::size_t d = 0; d < q.size(); ++d)
    if (q[d] > T(0) && k[d] > T(0)) sum += q[d] * k[d];
  return sum * T(std::cos(1.57079632679489661923 * static_cast<double>(apart) / horizon));
}
/// Its features.
template <class T>
std::vector<T> cosine_features(std::vector<T> const& x, index_t position, double horizon) {
  double const angle = 1.57079632679489661923 * static_cast<double>(position + 1) / horizon;
  std::vector<T> phi;
  for (double factor : {std::sin(angle), std::cos(angle)})
    for (T each : x) phi.push_back(each > T(0) ? each * T(factor) : T(0));
  return phi;
}

/// softmax over channels of queries times the average of values by the softmax over positions of each channel of
/// keys.
template <class T>
tensor<T, 4> efficient_attention(tensor<T, 4> const& query, tensor<T, 4> const& key,
                                 tensor<T, 4> const& value, index_t heads, bool causal) {
  using std::exp;
  index_t const N = query.extent(1), M = key.extent(1), D = key.extent(3), E = value.extent(3);
  tensor<T, 4> out({query.extent(0), N, heads, E});
  for (index_t b = 0; b < query.extent(0); ++b)
    for (index_t h = 0; h < heads; ++h) {
      index_t const hk = h * key.extent(2) / heads, hv = h * value.extent(2) / heads;
      for (index_t i = 0; i < N; ++i) {
        std::vector<T> a = row_of(query, b, i, h * query.extent(2) / heads);
        T most = a[0], sum = 0;
        for (T each : a) most = each > most ? each : most;
        for (T& each : a) {
          each = exp(each - most);
          sum += each;
        }
        index_t const keys = causal ? std::max<index_t>(0, std::min(M, i + M - N + 1)) : M;
        for (index_t d = 0; d < D && keys > 0; ++d) {
          T top = key(b, 0, hk, d), total = 0;
          for (index_t j = 0; j < keys; ++j) top = key(b, j, hk, d) > top ? key(b, j, hk, d) : top;
          for (index_t j = 0; j < keys; ++j) total += exp(key(b, j, hk, d) - top);
          for (index_t e = 0; e < E; ++e) {
            T average = 0;
            for (index_t j = 0; j < keys; ++j)
              average += exp(key(b, j, hk, d) - top) / total * value(b, j, hv, e);
            out(b, i, h, e) += a[static_cast<std::size_t>(d)] / sum * average;
          }
        }
      }
    }
  return out;
}

/// Omega x / dim^1/4, a row for each feature.
template <class T>
std::vector<T> projected(tensor<double, 2> const& omega, std::vector<T> const& x) {
  T const shrink = T(1 / std::sqrt(std::sqrt(static_cast<double>(x.size()))));
  std::vector<T> products;
  for (index_t f = 0; f < omega.extent(0); ++f) {
    T sum = 0;
    for (std::size_t d = 0; d < x.size(); ++d)
      sum += T(omega(f, static_cast<index_t>(d))) * (shrink * x[d]);
    products.push_back(sum);
  }
  return products;
}

/// m^-1/2 (exp(omega x' - |x'|^2 / 2 - c) + epsilon).
template <class T>
std::vector<T> positive_features(tensor<double, 2> const& omega, std::vector<T> const& x, T c,
                                 double epsilon) {
  using std::exp;
  std::vector<T> phi = projected(omega, x);
  T const square = dot_of(x, x) / T(2 * std::sqrt(static_cast<double>(x.size())));
  T const root = T(std::sqrt(static_cast<double>(phi.size())));
  for (T& each : phi) each = (exp(each - square - c) + T(epsilon)) / root;
  return phi;
}

/// Performer: the constants, over all keys or, in the causal form, 0, are no variables. By pairs, or by sums of
/// features over keys, with constants always.
template <class T>
tensor<T, 4> performer(tensor<T, 4> const& query, tensor<T, 4> const& key,
                       tensor<T, 4> const& value, tensor<double, 2> const& omega,
                       kernel_call const& call, double epsilon, bool by_features) {
  auto const features = [&](tensor<T, 4> const& x, bool of_keys) {
    tensor<T, 4> phi({x.extent(0), x.extent(1), x.extent(2), omega.extent(0)});
    for (index_t b = 0; b < x.extent(0); ++b)
      for (index_t h = 0; h < x.extent(2); ++h) {
        auto const largest_of = [&](index_t first, index_t count) {
          auto most = number_of(T(-1e300));
          for (index_t i = first; i < first + count; ++i)
            for (T each : projected(omega, row_of(x, b, i, h)))
              most = std::max(most, number_of(each));
          return T(most);
        };
        bool const without = call.causal && !by_features;
        T const of_head = of_keys && !without ? largest_of(0, x.extent(1)) : T(0);
        for (index_t i = 0; i < x.extent(1); ++i) {
          T const c = of_keys || without ? of_head : largest_of(i, 1);
          auto const row = positive_features(omega, row_of(x, b, i, h), c, epsilon);
          for (index_t f = 0; f < omega.extent(0); ++f)
            phi(b, i, h, f) = row[static_cast<std::size_t>(f)];
        }
      }
    return phi;
  };
  auto const q = features(query, false), k = features(key, true);
  if (by_features) return call.average_of_features(q, k, value);
  return call.average(q, k, value, [&](index_t b, index_t hq, index_t i, index_t hk, index_t j) {
    T sum = 0;
    for (index_t f = 0; f < omega.extent(0); ++f) sum += q(b, i, hq, f) * k(b, j, hk, f);
    return sum;
  });
}

}  // namespace reference
