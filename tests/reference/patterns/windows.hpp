// Windows and their relatives, as the specification defines them: which pair (p, j) of a query position and a key is
// kept, which queries see a key, how many pairs there are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <utility>

namespace reference {

using std::ptrdiff_t;

/// The queries [first, second) that see a key, none if that is empty.
using query_range = std::pair<ptrdiff_t, ptrdiff_t>;

inline constexpr ptrdiff_t infinite = -1;  // a reach

inline bool band(ptrdiff_t left, ptrdiff_t right, ptrdiff_t p, ptrdiff_t j) {
  return (left == infinite || p - left <= j) && (right == infinite || j <= p + right);
}
inline bool prefix_lm(ptrdiff_t prefix, ptrdiff_t p, ptrdiff_t j) {
  return j < prefix || j <= p;
}
inline bool streaming(ptrdiff_t sinks, ptrdiff_t recent, ptrdiff_t p, ptrdiff_t j) {
  return j <= p && (j < sinks || recent == infinite || p - j < recent);
}
inline bool global_tokens(ptrdiff_t count, ptrdiff_t reach, ptrdiff_t p, ptrdiff_t j) {
  return p < count || j < count || std::abs(p - j) <= reach;
}
inline bool dilated(ptrdiff_t left, ptrdiff_t right, ptrdiff_t step, ptrdiff_t p, ptrdiff_t j) {
  return band(left, right, p, j) && std::abs(j - p) % step == 0;
}

// Rows of square problems, or of N rows and M keys with off = M - N.

inline query_range clip(query_range q, ptrdiff_t N) {
  return {std::max<ptrdiff_t>(q.first, 0), std::min(q.second, N)};
}
inline query_range seen_by_band(ptrdiff_t left, ptrdiff_t right, ptrdiff_t j, ptrdiff_t N,
                                ptrdiff_t M) {
  ptrdiff_t const off = M - N;
  return clip({right == infinite ? 0 : j - right - off, left == infinite ? N : j + left - off + 1},
              N);
}
inline query_range seen_by_prefix_lm(ptrdiff_t prefix, ptrdiff_t j, ptrdiff_t N, ptrdiff_t M) {
  return clip({j < prefix ? 0 : j - (M - N), N}, N);
}
inline query_range seen_by_streaming(ptrdiff_t sinks, ptrdiff_t recent, ptrdiff_t j, ptrdiff_t N,
                                     ptrdiff_t M) {
  ptrdiff_t const off = M - N;
  return clip({j - off, j < sinks ? N : j + recent - off}, N);
}

/// The pairs that some list of Q(j) makes.
template <class Seen>
ptrdiff_t pairs_by_keys(ptrdiff_t M, Seen seen) {
  ptrdiff_t pairs = 0;
  for (ptrdiff_t j = 0; j < M; ++j) {
    query_range const q = seen(j);
    pairs += std::max<ptrdiff_t>(q.second - q.first, 0);
  }
  return pairs;
}

// Closed forms, as the specification writes them.

inline ptrdiff_t T(ptrdiff_t n) {
  return n > 0 ? n * (n + 1) / 2 : 0;
}
inline ptrdiff_t F(ptrdiff_t x, ptrdiff_t M) {
  return x <= 0 ? 0 : x <= M + 1 ? x * (x - 1) / 2 : T(M) + (x - M - 1) * M;
}
inline ptrdiff_t S(ptrdiff_t c, ptrdiff_t N, ptrdiff_t M) {
  return F(c + N, M) - F(c, M);
}

inline ptrdiff_t band_pairs(ptrdiff_t left, ptrdiff_t right, ptrdiff_t N, ptrdiff_t M) {
  ptrdiff_t const off = M - N;
  return (right == infinite ? N * M : S(off + right + 1, N, M)) -
         (left == infinite ? 0 : S(off - left, N, M));
}
inline ptrdiff_t causal_pairs(ptrdiff_t N, ptrdiff_t M) {
  return M >= N ? N * (M - N) + T(N) : T(M);
}
inline ptrdiff_t square_window_pairs(ptrdiff_t w, ptrdiff_t n) {
  return w < n ? n * (2 * w + 1) - w * (w + 1) : n * n;
}
inline ptrdiff_t prefix_lm_pairs(ptrdiff_t prefix, ptrdiff_t N) {
  return prefix * prefix + T(N) - T(prefix);
}
inline ptrdiff_t streaming_pairs(ptrdiff_t sinks, ptrdiff_t recent, ptrdiff_t N, ptrdiff_t M) {
  ptrdiff_t const c = sinks + recent, off = M - N;
  auto const G = [c](ptrdiff_t x) { return x < 0 ? 0 : x <= c ? T(x) : T(c) + (x - c) * c; };
  return G(off + N) - G(off);
}
inline ptrdiff_t global_tokens_pairs(ptrdiff_t count, ptrdiff_t reach, ptrdiff_t N) {
  return count * N + (N - count) * count + square_window_pairs(reach, N - count);
}
inline ptrdiff_t strided_pairs(ptrdiff_t step, ptrdiff_t N) {
  ptrdiff_t const a = N / step, b = N % step;
  return step * T(a) + b * (a + 1);
}

}  // namespace reference
