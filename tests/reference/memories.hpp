#pragma once

#include "reference/tensor.hpp"
#include "reference/traced.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

/// Memories that learn by gradient descent while they are read, token by token in plain loops. T is any number, so that
/// traced numbers give the gradients.
namespace reference {

/// Ways to compute that are all the definition: what they differ by is rounding. `backwards` also has powers by logarithms
/// and exponentials as squares; with the last one a memory is made of that at the start of the chunk and all gradients since.
enum class summed { forwards, backwards, in_pairs, from_chunk_start };

/// The rows and keys of one sequence; row i is read after key i + keys - rows.
struct memory_sequence {
  index_t batch, first_row, rows, first_key, keys;
};

namespace detail {

template <class T>
using matrix = std::vector<std::vector<T>>;

template <class T>
T exponential(T const& x) {
  using std::exp;
  return exp(x);
}
/// e^x as the square of a power of two.
template <class T>
T squared_root_of_exponential(T x) {
  T const root = std::exp2(x * T(0.72134752044448170368L));
  return root * root;
}
template <class T>
traced<T> squared_root_of_exponential(traced<T> x) {
  T const y = squared_root_of_exponential(x.value());
  return x.then(y, y);
}
template <class T>
T silu_of(T const& x) {
  return x / (T(1) + exponential(-x));
}
template <class T>
T silu_slope(T const& x) {
  T const gate = T(1) / (T(1) + exponential(-x));
  return gate * (T(1) + x * (T(1) - gate));
}

template <class T>
T number_of(T x) {
  return x;
}
template <class T>
T number_of(traced<T> x) {
  return x.value();
}

/// x^exponent for x >= 0; its slope at 0 is taken to be 0.
template <class T>
T power(T x, double exponent, summed order) {
  T const n = static_cast<T>(exponent);
  return order == summed::backwards && x > 0 ? std::exp(n * std::log(x)) : std::pow(x, n);
}
template <class T>
traced<T> power(traced<T> x, double exponent, summed order) {
  T const n = static_cast<T>(exponent), v = x.value();
  return x.then(power(v, exponent, order), v == T(0) ? T(0) : n * power(v, exponent - 1, order));
}
template <class T>
T hyperbolic_tangent(T x) {
  return std::tanh(x);
}
template <class T>
traced<T> hyperbolic_tangent(traced<T> x) {
  T const y = std::tanh(x.value());
  return x.then(y, 1 - y * y);
}

template <class T>
std::vector<T> row_of(tensor<T, 4> const& from, index_t b, index_t i, index_t h) {
  std::vector<T> row;
  for (index_t d = 0; d < from.extent(3); ++d) row.push_back(from(b, i, h, d));
  return row;
}
template <class T>
matrix<T> state_of(tensor<T, 4> const& from, index_t s, index_t h) {
  matrix<T> all;
  for (index_t d = 0; d < from.extent(2); ++d) all.push_back(row_of(from, s, h, d));
  return all;
}

/// The sum of f(0) to f(count - 1).
template <class T, class F>
T sum_of(std::size_t count, summed order, F f) {
  T sum(0), odd(0);
  for (std::size_t n = 0; n < count; ++n) {
    std::size_t const at = order == summed::backwards ? count - 1 - n : n;
    T& to = order == summed::in_pairs && n % 2 == 1 ? odd : sum;
    to += f(at);
  }
  return sum + odd;
}

/// W^T x
template <class T>
std::vector<T> read(matrix<T> const& w, std::vector<T> const& x, index_t outputs, summed order) {
  std::vector<T> y;
  for (std::size_t e = 0; e < static_cast<std::size_t>(outputs); ++e)
    y.push_back(sum_of<T>(x.size(), order, [&](std::size_t d) { return w[d][e] * x[d]; }));
  return y;
}

template <class T>
std::vector<T> read(std::vector<matrix<T>> const& layers, std::vector<index_t> const& widths,
                    std::vector<T> x, summed order) {
  for (std::size_t l = 0; l < layers.size(); ++l) {
    x = read(layers[l], x, widths[l + 1], order);
    if (l + 1 < layers.size())
      for (T& each : x) each = silu_of(each);
  }
  return x;
}

/// The gradients of |M(k) - v|^2 / 2 by all layers.
template <class T>
std::vector<matrix<T>> learn(std::vector<matrix<T>> const& layers,
                             std::vector<index_t> const& widths, std::vector<T> const& k,
                             std::vector<T> const& v, summed order) {
  std::vector<std::vector<T>> input{k}, y;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    y.push_back(read(layers[l], input[l], widths[l + 1], order));
    input.push_back(y[l]);
    for (T& each : input.back()) each = silu_of(each);
  }
  std::vector<T> error = y.back();
  for (std::size_t e = 0; e < error.size(); ++e) error[e] -= v[e];
  std::vector<matrix<T>> gradient(layers.size());
  for (std::size_t l = layers.size(); l-- > 0;) {
    for (T const& in : input[l]) {
      gradient[l].emplace_back();
      for (T const& e : error) gradient[l].back().push_back(in * e);
    }
    if (l == 0) break;
    std::vector<T> before;
    for (std::size_t d = 0; d < input[l].size(); ++d) {
      T const sum =
          sum_of<T>(error.size(), order, [&](std::size_t e) { return layers[l][d][e] * error[e]; });
      before.push_back(sum * silu_slope(y[l - 1][d]));
    }
    error = before;
  }
  return gradient;
}

}  // namespace detail

/// Titans' memory: inputs query, key, value, rate, momentum, forget [batch, position, head, 1], the layers' weights and
/// their momenta [sequence, head, in, out]. Returns out, and weights and momenta after the last token.
template <class T>
tensors<T> titans(tensors<T> const& given, std::vector<memory_sequence> const& sequences,
                  index_t chunk, summed order = summed::forwards) {
  using namespace detail;
  tensor<T, 4> const &query = given[0], &key = given[1], &value = given[2];
  std::size_t const depth = (given.size() - 6) / 2;
  index_t const group = key.extent(2) == 0 ? 0 : query.extent(2) / key.extent(2);
  tensors<T> result{
      tensor<T, 4>({query.extent(0), query.extent(1), query.extent(2), value.extent(3)}, T(0))};
  for (std::size_t l = 6; l < given.size(); ++l) result.push_back(given[l]);
  std::vector<index_t> widths{key.extent(3)};
  for (std::size_t l = 0; l < depth; ++l) widths.push_back(given[6 + l].extent(3));
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (index_t h = 0; h < key.extent(2); ++h) {
      memory_sequence const& at = sequences[s];
      auto const n = static_cast<index_t>(s);
      std::vector<matrix<T>> w, moving;
      for (std::size_t l = 0; l < depth; ++l) {
        w.push_back(state_of(given[6 + l], n, h));
        moving.push_back(state_of(given[6 + depth + l], n, h));
      }
      auto reference = w, first_w = w, first_moving = moving;
      std::vector<std::vector<matrix<T>>> gradients;
      std::vector<T> G, N;
      T b(1), f(0), m(1);
      auto const read_row = [&](index_t i) {
        if (i < 0 || i >= at.rows) return;
        for (index_t g = h * group; g < (h + 1) * group; ++g) {
          auto const y = read(w, widths, row_of(query, at.batch, at.first_row + i, g), order);
          for (std::size_t e = 0; e < y.size(); ++e)
            result[0](at.batch, at.first_row + i, g, static_cast<index_t>(e)) = y[e];
        }
      };
      for (index_t i = 0; i < at.rows - at.keys; ++i) read_row(i);
      for (index_t t = 0; t < at.keys; ++t) {
        if (t % chunk == 0) reference = w;
        index_t const j = at.first_key + t;
        T const theta = given[3](at.batch, j, h, 0), eta = given[4](at.batch, j, h, 0),
                alpha = given[5](at.batch, j, h, 0);
        auto const gradient = learn(reference, widths, row_of(key, at.batch, j, h),
                                    row_of(value, at.batch, j, h), order);
        if (order == summed::from_chunk_start) {
          if (t % chunk == 0) {
            first_w = w;
            first_moving = moving;
            gradients.clear();
            G.clear();
            N.clear();
            b = T(1), f = T(0), m = T(1);
          }
          gradients.push_back(gradient);
          G.push_back(T(0));
          N.push_back(T(0));
          b = (T(1) - alpha) * b;
          m = eta * m;
          f = (T(1) - alpha) * f + m;
          for (std::size_t i = 0; i < G.size(); ++i) {
            N[i] = i + 1 == G.size() ? theta : eta * N[i];
            G[i] = (T(1) - alpha) * G[i] + N[i];
          }
        }
        // Gates of their own for every second row, so that their gradients are sums of sums.
        T const thetas[2] = {T(theta + T(0)), T(theta + T(0))},
                etas[2] = {T(eta + T(0)), T(eta + T(0))},
                alphas[2] = {T(alpha + T(0)), T(alpha + T(0))};
        for (std::size_t l = 0; l < depth; ++l)
          for (std::size_t i_d = 0; i_d < w[l].size(); ++i_d)
            for (std::size_t e = 0; e < w[l][i_d].size(); ++e) {
              std::size_t const d = order == summed::backwards ? w[l].size() - 1 - i_d : i_d,
                                twin = order == summed::in_pairs ? d % 2 : 0;
              T &each = w[l][d][e], &moves = moving[l][d][e];
              if (order == summed::from_chunk_start) {
                each = b * first_w[l][d][e] + f * first_moving[l][d][e];
                moves = m * first_moving[l][d][e];
                for (std::size_t i = 0; i < G.size(); ++i) {
                  each -= G[i] * gradients[i][l][d][e];
                  moves -= N[i] * gradients[i][l][d][e];
                }
                continue;
              }
              moves = etas[twin] * moves - thetas[twin] * gradient[l][d][e];
              each = order == summed::forwards ? (T(1) - alpha) * each + moves
                                               : each + (moves - alphas[twin] * each);
            }
        read_row(t - (at.keys - at.rows));
      }
      for (std::size_t l = 0; l < depth; ++l)
        for (std::size_t d = 0; d < w[l].size(); ++d)
          for (std::size_t e = 0; e < w[l][d].size(); ++e) {
            auto const in = static_cast<index_t>(d), out = static_cast<index_t>(e);
            result[1 + l](n, h, in, out) = w[l][d][e];
            result[1 + depth + l](n, h, in, out) = moving[l][d][e];
          }
    }
  return result;
}

/// rms(y) w_y silu(rms(m) w_m): inputs y, m [batch, position, head, dim], w_y, w_m [1, 1, head or 1, dim].
template <class T>
tensors<T> titans_gate(tensors<T> const& given, double epsilon) {
  using std::sqrt;
  tensor<T, 4> const &y = given[0], &m = given[1], &wy = given[2], &wm = given[3];
  tensor<T, 4> result(y.extents);
  for (index_t b = 0; b < y.extent(0); ++b)
    for (index_t i = 0; i < y.extent(1); ++i)
      for (index_t h = 0; h < y.extent(2); ++h) {
        T square_y(0), square_m(0);
        for (index_t d = 0; d < y.extent(3); ++d) {
          square_y += y(b, i, h, d) * y(b, i, h, d);
          square_m += m(b, i, h, d) * m(b, i, h, d);
        }
        T const size_y = sqrt(square_y / T(y.extent(3)) + T(epsilon)),
                size_m = sqrt(square_m / T(y.extent(3)) + T(epsilon));
        for (index_t d = 0; d < y.extent(3); ++d)
          result(b, i, h, d) =
              y(b, i, h, d) / size_y * wy(0, 0, h % wy.extent(2), d) *
              detail::silu_of(m(b, i, h, d) / size_m * wm(0, 0, h % wm.extent(2), d));
      }
  return {result};
}

/// What tells Moneta, Yaad and Memora apart.
struct miras {
  enum objective { squares, power, smooth_power, huber, huber_unit, huber_each } error = squares;
  enum retention { none, norm, softmax, softmax_rows } read = none;
  double p = 3, q = 4, total = 1;
  bool exact = true;  // the norm of each token, not that of the chunk's start
  index_t chunk = 1;
};

/// Inputs query, key, value, retention [batch, position, head, 1], rate [batch, position, head, 1 or E], threshold
/// [batch, position, head, 1], state [sequence, head, D, E] (the transposed of the papers'). Returns out and state.
template <class T>
tensors<T> memorise(tensors<T> const& given, std::vector<memory_sequence> const& sequences,
                    miras const& how, summed order = summed::forwards) {
  using namespace detail;
  using std::sqrt;
  tensor<T, 4> const &query = given[0], &key = given[1], &value = given[2], &alpha = given[3],
                     &eta = given[4], &threshold = given[5];
  index_t const group = query.extent(2) / key.extent(2), D = key.extent(3), E = value.extent(3);
  tensors<T> result{tensor<T, 4>({query.extent(0), query.extent(1), query.extent(2), E}, T(0)),
                    given[6]};
  auto const size_of = [&](matrix<T> const& a) {
    T sum(0);
    for (auto const& row : a)
      for (T const& x : row) sum += power(x < T(0) ? -x : x, how.q, order);
    return power(sum, 1 / how.q, order);
  };
  auto const divided = [&](matrix<T> a, T const& size) {
    if (number_of(size) > 0)
      for (auto& row : a)
        for (T& x : row) x = x / power(size, how.q - 2, order);
    return a;
  };
  auto const weights_of = [&](matrix<T> const& x) {
    if (how.read == miras::none) return x;
    if (how.read == miras::norm) return divided(x, size_of(x));
    matrix<T> w = x;
    auto const normalise = [&](index_t first, index_t last) {
      auto most = number_of(x[0][static_cast<std::size_t>(first)]);
      for (auto const& row : x)
        for (index_t e = first; e < last; ++e)
          most = std::max(most, number_of(row[static_cast<std::size_t>(e)]));
      T sum(0);
      for (auto& row : w)
        for (index_t e = first; e < last; ++e) {
          T& each = row[static_cast<std::size_t>(e)];
          each = each - T(most);
          each = order == summed::backwards ? squared_root_of_exponential(each) : exponential(each);
          sum += each;
        }
      for (auto& row : w)
        for (index_t e = first; e < last; ++e)
          row[static_cast<std::size_t>(e)] = T(how.total) * row[static_cast<std::size_t>(e)] / sum;
    };
    if (how.read == miras::softmax) normalise(0, E);
    if (how.read == miras::softmax_rows)
      for (index_t e = 0; e < E; ++e) normalise(e, e + 1);
    return w;
  };
  auto const psi = [&](std::vector<T> e, T const& delta) {
    T square(0);
    for (T const& each : e) square += each * each;
    T const length = number_of(square) > 0 ? sqrt(square) : T(0);
    for (T& x : e) {
      T const size = x < T(0) ? -x : x, sign = x > T(0) ? T(1) : x < T(0) ? T(-1) : T(0);
      if (how.error == miras::power) x = T(how.p) * sign * power(size, how.p - 1, order);
      if (how.error == miras::smooth_power)
        x = T(how.p) * hyperbolic_tangent(T(10) * x) *
            power(T(sqrt(x * x + T(1e-6))), how.p - 1, order);
      if (how.error == miras::huber && length > delta) x = delta * sign;
      if (how.error == miras::huber_unit && length > delta) x = delta * x / length;
      if (how.error == miras::huber_each && size > delta) x = delta * sign;
    }
    return e;
  };
  for (std::size_t s = 0; s < sequences.size(); ++s)
    for (index_t h = 0; h < key.extent(2); ++h) {
      memory_sequence const& at = sequences[s];
      auto const n = static_cast<index_t>(s);
      matrix<T> x = state_of(given[6], n, h);
      matrix<T> reference = weights_of(x);
      matrix<T> first = x;
      std::vector<matrix<T>> steps;
      std::vector<T> weights;
      T b(1);
      T start_size(0);
      if (how.read == miras::norm) start_size = size_of(x);
      auto const read_row = [&](index_t i) {
        if (i < 0 || i >= at.rows) return;
        bool const by_start = how.read == miras::norm && !how.exact;
        matrix<T> const w = by_start ? divided(x, start_size) : weights_of(x);
        for (index_t g = h * group; g < (h + 1) * group; ++g) {
          auto const y = read(w, row_of(query, at.batch, at.first_row + i, g), E, order);
          for (index_t e = 0; e < E; ++e)
            result[0](at.batch, at.first_row + i, g, e) = y[static_cast<std::size_t>(e)];
        }
      };
      for (index_t i = 0; i < at.rows - at.keys; ++i) read_row(i);
      for (index_t t = 0; t < at.keys; ++t) {
        if (t % how.chunk == 0) {
          reference = weights_of(x);
          if (how.read == miras::norm) start_size = size_of(x);
        }
        index_t const j = at.first_key + t;
        auto const k = row_of(key, at.batch, j, h), v = row_of(value, at.batch, j, h);
        auto e = read(reference, k, E, order);
        for (std::size_t c = 0; c < e.size(); ++c) e[c] -= v[c];
        e = psi(e, threshold(at.batch, j, h, 0));
        T const keep = alpha(at.batch, j, h, 0);
        if (t % how.chunk == 0) {
          first = x;
          steps.clear();
          weights.clear();
          b = T(1);
        }
        b = b * keep;
        for (T& each : weights) each = keep * each;
        weights.push_back(T(1));
        matrix<T> step = x;
        for (std::size_t d = 0; d < k.size(); ++d)
          for (std::size_t c = 0; c < e.size(); ++c)
            step[d][c] = eta(at.batch, j, h, static_cast<index_t>(c) % eta.extent(3)) * e[c] * k[d];
        steps.push_back(step);
        for (std::size_t d = 0; d < k.size(); ++d)
          for (std::size_t c = 0; c < e.size(); ++c) {
            x[d][c] = keep * x[d][c] - step[d][c];
            if (order != summed::from_chunk_start) continue;
            x[d][c] = b * first[d][c];
            for (std::size_t i = 0; i < steps.size(); ++i) x[d][c] -= weights[i] * steps[i][d][c];
          }
        read_row(t - (at.keys - at.rows));
      }
      for (index_t d = 0; d < D; ++d)
        for (index_t c = 0; c < E; ++c)
          result[1](n, h, d, c) = x[static_cast<std::size_t>(d)][static_cast<std::size_t>(c)];
    }
  return result;
}

}  // namespace reference
