#pragma once

#include "reference/soft_attend.hpp"

#include <algorithm>

/// The mechanisms of CAB that work with landmarks, samples and compressed positions, in plain loops and for any type of
/// number.
namespace reference {

/// Where segments begin and end: the first (s + 1) m - N have s = floor(N / m) rows, the others s + 1.
inline std::vector<index_t> segment_bounds(index_t rows, index_t count) {
  std::vector<index_t> bounds{0};
  index_t const s = rows / count;
  for (index_t c = 0; c < count; ++c)
    bounds.push_back(bounds.back() + (c < (s + 1) * count - rows ? s : s + 1));
  return bounds;
}

template <class T>
tensor<T, 4> segment_means(tensor<T, 4> const& x, index_t count) {
  std::vector<index_t> const bounds = segment_bounds(x.extent(1), count);
  tensor<T, 4> means({x.extent(0), count, x.extent(2), x.extent(3)});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t c = 0; c < count; ++c)
      for (index_t h = 0; h < x.extent(2); ++h)
        for (index_t d = 0; d < x.extent(3); ++d) {
          index_t const first = bounds[std::size_t(c)], last = bounds[std::size_t(c) + 1];
          means(b, c, h, d) =
              ordered_sum<T>(last - first, [&](index_t i) { return x(b, first + i, h, d); });
          if (last > first) means(b, c, h, d) /= T(static_cast<double>(last - first));
        }
  return means;
}

/// A square matrix.
template <class T>
struct square {
  index_t size;
  std::vector<T> values;

  explicit square(index_t n, double diagonal = 0) : size(n), values(std::size_t(n * n), T(0)) {
    for (index_t i = 0; i < n; ++i) (*this)(i, i) = T(diagonal);
  }
  T& operator()(index_t i, index_t j) { return values[std::size_t(i * size + j)]; }
  T operator()(index_t i, index_t j) const { return values[std::size_t(i * size + j)]; }
  friend square operator*(square const& a, square const& b) {
    square c(a.size);
    for (index_t i = 0; i < a.size; ++i)
      for (index_t j = 0; j < a.size; ++j)
        c(i, j) = ordered_sum<T>(a.size, [&](index_t k) { return a(i, k) * b(k, j); });
    return c;
  }
  friend square operator-(square const& a, square const& b) {
    square c(a.size);
    for (std::size_t n = 0; n < c.values.size(); ++n) c.values[n] = a.values[n] - b.values[n];
    return c;
  }
};

/// Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, six times from A^T / max_j sum_i A_ij.
template <class T>
square<T> inverse_by_iteration(square<T> const& a) {
  index_t const m = a.size;
  T most(0);
  for (index_t j = 0; j < m; ++j) {
    T sum(0);
    for (index_t i = 0; i < m; ++i) sum += a(i, j);
    if (most < sum) most = sum;
  }
  square<T> z(m);
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < m; ++j) z(i, j) = a(j, i) / most;
  for (int n = 0; n < 6; ++n) {
    square<T> const az = a * z;
    z = z * (square<T>(m, 13) - az * (square<T>(m, 15) - az * (square<T>(m, 7) - az)));
    for (T& each : z.values) each /= T(4);
  }
  return z;
}

template <class T>
tensor<T, 4> nystrom(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v, index_t m,
                     double scale) {
  index_t const heads = q.extent(2);
  if (q.extent(1) <= m) return scaled_attention(q, k, v, scale);
  tensor<T, 4> const ql = segment_means(q, m), kl = segment_means(k, m),
                     w = scaled_attention(ql, k, v, scale);
  tensor<T, 4> zw(w.extents);
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t h = 0; h < heads; ++h) {
      square<T> a(m);
      for (index_t c = 0; c < m; ++c) {
        std::vector<T> scores;
        for (index_t e = 0; e < m; ++e)
          scores.push_back(T(scale) * product(ql, kl, b, h, c, e, heads));
        scores = softmax_of(scores);
        for (index_t e = 0; e < m; ++e) a(c, e) = scores[std::size_t(e)];
      }
      square<T> const z = inverse_by_iteration(a);
      for (index_t c = 0; c < m; ++c)
        for (index_t e = 0; e < m; ++e)
          for (index_t d = 0; d < v.extent(3); ++d) zw(b, c, h, d) += z(c, e) * w(b, e, h, d);
    }
  return scaled_attention(q, kl, zw, scale);
}

/// + a depthwise filter of V along positions, one for each value head: filter [1, taps, value heads, 1], zeros outside.
template <class T>
tensor<T, 4> filtered(tensor<T, 4> out, tensor<T, 4> const& v, tensor<T, 4> const& filter) {
  index_t const taps = filter.extent(1), heads = out.extent(2);
  for (index_t b = 0; b < out.extent(0); ++b)
    for (index_t i = 0; i < out.extent(1); ++i)
      for (index_t t = 0; t < taps; ++t) {
        index_t const j = i + t - taps / 2;
        if (j < 0 || j >= v.extent(1)) continue;
        for (index_t h = 0; h < heads; ++h)
          for (index_t d = 0; d < out.extent(3); ++d) {
            index_t const from = h * v.extent(2) / heads;
            out(b, i, h, d) += filter(0, t, from, 0) * v(b, j, from, d);
          }
      }
  return out;
}

/// LARA of one sequence; noise [batch, landmarks, heads, dim], or empty for evaluation.
template <class T>
tensor<T, 4> lara(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v, index_t most,
                  tensor<T, 4> const& noise, double kappa) {
  index_t const B = q.extent(0), N = q.extent(1), H = q.extent(2), D = q.extent(3),
                m = std::min(most, N);
  tensor<T, 4> const ql = N < most ? q : segment_means(q, m),
                     kl = N < most ? k : segment_means(k, m);
  tensor<T, 4> mu({B, m, H, D}), omega;
  for (index_t b = 0; b < B; ++b)
    for (index_t c = 0; c < m; ++c)
      for (index_t h = 0; h < H; ++h)
        for (index_t d = 0; d < D; ++d)
          mu(b, c, h, d) = ql(b, c, h, d) + kl(b, c, h * k.extent(2) / H, d);
  omega = mu;
  if (!noise.values.empty())
    for (index_t b = 0; b < B; ++b)
      for (index_t c = 0; c < m; ++c)
        for (index_t h = 0; h < H; ++h)
          for (index_t d = 0; d < D; ++d) omega(b, c, h, d) += noise(b, c, h, d);
  // l_x(c) = kappa omega_c . x - kappa |x|^2 / 2
  auto const l = [&](tensor<T, 4> const& x, index_t b, index_t h, index_t c, index_t i) {
    return T(kappa) * product(omega, x, b, h, c, i, H) -
           T(kappa / 2) * product(x, x, b, h, i, i, H);
  };
  tensor<T, 4> out({B, N, H, v.extent(3)});
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h) {
      tensor<T, 2> values({m, v.extent(3)});
      std::vector<T> lse(static_cast<std::size_t>(m), T(0));
      for (index_t c = 0; c < m; ++c) {
        std::vector<T> scores;
        for (index_t j = 0; j < N; ++j) scores.push_back(l(k, b, h, c, j));
        std::vector<T> const weights = softmax_of(scores, &lse[std::size_t(c)]);
        for (index_t j = 0; j < N; ++j)
          for (index_t d = 0; d < v.extent(3); ++d)
            values(c, d) += weights[std::size_t(j)] * v(b, j, h * v.extent(2) / H, d);
      }
      for (index_t i = 0; i < N; ++i) {
        std::vector<T> r;
        for (index_t c = 0; c < m; ++c)
          r.push_back(T(kappa) * product(mu, q, b, h, c, i, H) + l(q, b, h, c, i) +
                      lse[std::size_t(c)] -
                      (T(kappa) * product(mu, omega, b, h, c, c, H) -
                       T(kappa / 2) * product(mu, mu, b, h, c, c, H)));
        std::vector<T> const weights = softmax_of(r);
        for (index_t c = 0; c < m; ++c)
          for (index_t d = 0; d < v.extent(3); ++d)
            out(b, i, h, d) += weights[std::size_t(c)] * values(c, d);
      }
    }
  return out;
}

/// The `count` rows of the largest max_s(q_i . k_s) - sum_s(q_i . k_s) / M, of equals the first, in order.
/// samples(b, h, i, s), its first two extents 1 to share.
template <class T>
std::vector<index_t> probsparse_rows(tensor<T, 4> const& q, tensor<T, 4> const& k,
                                     tensor<index_t, 4> const& samples, index_t count, index_t b,
                                     index_t h) {
  std::vector<std::pair<T, index_t>> measures;
  for (index_t i = 0; i < q.extent(1); ++i) {
    T most(0), sum(0);
    for (index_t s = 0; s < samples.extent(3); ++s) {
      T const x = product(q, k, b, h, i,
                          samples(b % samples.extent(0), h % samples.extent(1), i, s), q.extent(2));
      if (s == 0 || most < x) most = x;
      sum += x;
    }
    measures.emplace_back(-(most - sum / T(static_cast<double>(k.extent(1)))), i);
  }
  std::sort(measures.begin(), measures.end());
  std::vector<index_t> rows;
  for (index_t n = 0; n < count; ++n) rows.push_back(measures[std::size_t(n)].second);
  std::sort(rows.begin(), rows.end());
  return rows;
}

/// Exact attention for the rows selected(b, h, n), the mean or the running sum of V for the others.
template <class T>
tensor<T, 4> probsparse(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                        tensor<index_t, 3> const& selected, bool causal, double scale) {
  index_t const N = q.extent(1), M = k.extent(1), H = q.extent(2);
  tensor<T, 4> out =
      scaled_attention(q, k, v, scale, [&](index_t i, index_t j) { return !causal || j <= i; });
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t h = 0; h < H; ++h)
      for (index_t i = 0; i < N; ++i) {
        bool chosen = false;
        for (index_t n = 0; n < selected.extent(2); ++n) chosen |= selected(b, h, n) == i;
        if (chosen) continue;
        for (index_t d = 0; d < v.extent(3); ++d) {
          T sum(0);
          for (index_t j = 0; j < (causal ? i + 1 : M); ++j) sum += v(b, j, h * v.extent(2) / H, d);
          out(b, i, h, d) = causal ? sum : sum / T(static_cast<double>(M));
        }
      }
  return out;
}

/// Softmax over the positions of each whole chunk of `length`, and what it makes of x: r rows for each chunk.
template <class T>
tensor<T, 4> compressed(tensor<T, 4> const& logits, tensor<T, 4> const& x, index_t length) {
  index_t const r = logits.extent(3), chunks = x.extent(1) / length;
  tensor<T, 4> rows({x.extent(0), chunks * r, x.extent(2), x.extent(3)});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t h = 0; h < x.extent(2); ++h)
      for (index_t g = 0; g < chunks; ++g)
        for (index_t c = 0; c < r; ++c) {
          std::vector<T> scores;
          for (index_t i = 0; i < length; ++i) scores.push_back(logits(b, g * length + i, h, c));
          std::vector<T> const weights = softmax_of(scores);
          for (index_t i = 0; i < length; ++i)
            for (index_t d = 0; d < x.extent(3); ++d)
              rows(b, g * r + c, h, d) += weights[std::size_t(i)] * x(b, g * length + i, h, d);
        }
  return rows;
}

/// One softmax over compressed and near keys. Non-causal: near are the keys of the row's block of `window` and
/// max(1, window / 2) more on each side, and all compressed ones count; causal: the last `window`, and the compressed rows of
/// chunks before the row's own.
template <class T>
tensor<T, 4> long_short(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                        tensor<T, 4> const& kc, tensor<T, 4> const& vc, index_t window, bool causal,
                        index_t length, index_t r, double scale) {
  index_t const N = q.extent(1), H = q.extent(2), C = kc.extent(1);
  tensor<T, 4> values({v.extent(0), N + C, v.extent(2), v.extent(3)});
  for (index_t b = 0; b < v.extent(0); ++b)
    for (index_t j = 0; j < N + C; ++j)
      for (index_t h = 0; h < v.extent(2); ++h)
        for (index_t d = 0; d < v.extent(3); ++d)
          values(b, j, h, d) = j < N ? v(b, j, h, d) : vc(b, j - N, h, d);
  index_t const more = std::max<index_t>(1, window / 2);
  return soft_attend(
      N, H, values,
      [&](index_t b, index_t h, index_t i, index_t j) {
        return T(scale) *
               (j < N ? product(q, k, b, h, i, j, H) : product(q, kc, b, h, i, j - N, H));
      },
      [&](index_t, index_t, index_t i, index_t j) {
        if (causal) return j < N ? j <= i && j > i - window : (j - N) / r < i / length;
        index_t const first = i / window * window;
        return j >= N || (j >= first - more && j < first + window + more);
      });
}

/// LayerNorm over all heads of a token; gain and shift [1, 1, heads, dim].
template <class T>
tensor<T, 4> layer_norm(tensor<T, 4> const& x, tensor<T, 4> const& gain,
                        tensor<T, 4> const& shift) {
  using std::sqrt;
  index_t const H = x.extent(2), D = x.extent(3);
  T const width = T(static_cast<double>(H * D));
  tensor<T, 4> y(x.extents);
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i) {
      auto const sum = [&](auto f) {
        return ordered_sum<T>(H * D, [&](index_t n) { return f(x(b, i, n / D, n % D)); });
      };
      T const mean = sum([](T each) { return each; }) / width;
      T const variance = sum([&](T each) { return (each - mean) * (each - mean); }) / width;
      for (index_t h = 0; h < H; ++h)
        for (index_t d = 0; d < D; ++d)
          y(b, i, h, d) = gain(0, 0, h, d) * ((x(b, i, h, d) - mean) / sqrt(variance + T(1e-5))) +
                          shift(0, 0, h, d);
    }
  return y;
}

}  // namespace reference
