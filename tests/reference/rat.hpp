#pragma once

#include <algorithm>
#include <cmath>
#include "reference/traced.hpp"

/// RAT in plain loops, for any type of number.
namespace reference {

template <class N>
struct plain {
  using type = N;
};
template <class T>
struct plain<traced<T>> {
  using type = T;
};

/// q, k, v, g, z: every token sees the last average of each earlier chunk and the running one of its own.
template <class R>
tensor<R, 4> rat(tensors<R> const& in, index_t size, bool newest_first) {
  using std::exp;
  using std::sqrt;
  using real = typename plain<R>::type;
  auto const &q = in[0], &g = in[3], &z = in[4];
  index_t const N = q.extent(1), H = q.extent(2), D = q.extent(3);
  auto const average = [&](tensor<R, 4> const& x) {
    tensor<R, 4> all(q.extents);
    for (index_t b = 0; b < q.extent(0); ++b)
      for (index_t t = 0; t < N; ++t)
        for (index_t h = 0; h < H; ++h)
          for (index_t d = 0; d < D; ++d) {
            R const gate = g(b, t, h, d), now = x(b, t, h * x.extent(2) / H, d);
            R const before = t % size == 0 ? R(0) : all(b, t - 1, h, d);
            all(b, t, h, d) = gate * before + (R(1) - gate) * now;
          }
    return all;
  };
  // Halves rotated, by the number of the chunk.
  auto const turned = [&](tensor<R, 4> const& x) {
    tensor<R, 4> all(x.extents);
    for (index_t b = 0; b < x.extent(0); ++b)
      for (index_t t = 0; t < N; ++t)
        for (index_t h = 0; h < H; ++h)
          for (index_t m = 0; m < D / 2; ++m) {
            real const angle = real(t / size) * std::pow(real(10000), -real(m) / real(D / 2));
            R const c = R(std::cos(angle)), s = R(std::sin(angle));
            R const first = x(b, t, h, m), second = x(b, t, h, D / 2 + m);
            all(b, t, h, m) = first * c - second * s;
            all(b, t, h, D / 2 + m) = first * s + second * c;
          }
    return all;
  };
  auto const keys = turned(average(in[1])), values = average(in[2]), queries = turned(q);
  tensor<R, 4> out(q.extents);
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t t = 0; t < N; ++t)
      for (index_t h = 0; h < H; ++h) {
        std::vector<index_t> rows{t};
        for (index_t c = t / size; c-- > 0;) rows.push_back((c + 1) * size - 1);
        if (!newest_first) std::reverse(rows.begin(), rows.end());
        std::vector<R> scores;
        R top = 0, total = 0;
        for (index_t row : rows) {
          R score = 0;
          for (index_t d = 0; d < D; ++d) score = score + queries(b, t, h, d) * keys(b, row, h, d);
          scores.push_back(score / sqrt(R(D)));
          if (scores.size() == 1 || scores.back() > top) top = scores.back();
        }
        for (R& score : scores) total = total + (score = exp(score - top));
        for (index_t d = 0; d < D; ++d) {
          R sum = 0;
          for (std::size_t n = 0; n < rows.size(); ++n)
            sum = sum + scores[n] * values(b, rows[n], h, d);
          out(b, t, h, d) = z(b, t, h, d) * (sum / total);
        }
      }
  return out;
}

}  // namespace reference
