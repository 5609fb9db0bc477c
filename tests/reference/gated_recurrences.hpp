#pragma once

#include "reference/traced.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

/// Row norms, gates and the published mechanisms with gated recurrences, in plain loops for any type of number.
namespace reference {

template <class T>
T sigmoid(T x) {
  using std::exp;
  return x < T(0) ? exp(x) / (T(1) + exp(x)) : T(1) / (T(1) + exp(-x));
}
template <class T>
T silu(T x) {
  return x * sigmoid(x);
}
template <class T>
T softplus(T x) {
  using std::exp;
  using std::log1p;
  return x > T(0) ? x + log1p(exp(-x)) : log1p(exp(x));
}

/// f of every number.
template <class T, class F>
tensor<T, 4> each(tensor<T, 4> x, F f) {
  for (T& number : x.values) number = f(number);
  return x;
}
/// f of every number and its partner in b.
template <class T, class F>
tensor<T, 4> each(tensor<T, 4> x, tensor<T, 4> const& b, F f) {
  for (std::size_t n = 0; n < x.values.size(); ++n) x.values[n] = f(x.values[n], b.values[n]);
  return x;
}

/// Rows divided by max(|x|, floor).
template <class T>
tensor<T, 4> unit_rows(tensor<T, 4> x, double floor) {
  using std::sqrt;
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < x.extent(2); ++h) {
        T sum = 0;
        for (index_t d = 0; d < x.extent(3); ++d) sum += x(b, i, h, d) * x(b, i, h, d);
        T const size = sum == T(0) ? T(0) : sqrt(sum);
        for (index_t d = 0; d < x.extent(3); ++d)
          x(b, i, h, d) /= size > T(floor) ? size : T(floor);
      }
  return x;
}

/// Rows divided by sqrt(mean(x^2) + epsilon), the mean over a head or over all heads.
template <class T>
tensor<T, 4> rms_rows(tensor<T, 4> const& x, double epsilon, bool across_heads) {
  using std::sqrt;
  tensor<T, 4> y(x.extents);
  index_t const H = x.extent(2), D = x.extent(3);
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < H; ++h) {
        T sum = 0;
        for (index_t g = across_heads ? 0 : h; g < (across_heads ? H : h + 1); ++g)
          for (index_t d = 0; d < D; ++d) sum += x(b, i, g, d) * x(b, i, g, d);
        T const mean = sum / T(across_heads ? H * D : D);
        for (index_t d = 0; d < D; ++d) y(b, i, h, d) = x(b, i, h, d) / sqrt(mean + T(epsilon));
      }
  return y;
}

/// The sequences of a tensor: [first, last) for each batch entry, or the documents packed in the only one.
struct sequence_bounds {
  index_t batch, first, last;
};
inline std::vector<sequence_bounds> sequences_of(index_t batches, index_t positions,
                                                 std::vector<index_t> const& bounds) {
  std::vector<sequence_bounds> all;
  if (bounds.empty())
    for (index_t b = 0; b < batches; ++b) all.push_back({b, 0, positions});
  for (std::size_t n = 1; n < bounds.size(); ++n) all.push_back({0, bounds[n - 1], bounds[n]});
  return all;
}

/// log(e^a + e^b).
template <class T>
T log_add(T a, T b) {
  using std::exp;
  using std::log1p;
  return a > b ? a + log1p(exp(b - a)) : b + log1p(exp(a - b));
}

/// z_t = log sum_(s <= t) e^x_s for each position of a sequence, channel by channel.
template <class T>
tensor<T, 4> running_log_total(tensor<T, 4> const& x, std::vector<index_t> const& bounds) {
  tensor<T, 4> z(x.extents);
  for (auto const& s : sequences_of(x.extent(0), x.extent(1), bounds))
    for (index_t h = 0; h < x.extent(2); ++h)
      for (index_t c = 0; c < x.extent(3); ++c)
        for (index_t t = s.first; t < s.last; ++t)
          z(s.batch, t, h, c) = t == s.first
                                    ? x(s.batch, t, h, c)
                                    : log_add(z(s.batch, t - 1, h, c), x(s.batch, t, h, c));
  return z;
}

/// S_t = e^(z_(t-1) - z_t) S_(t-1) + e^(x_t - z_t) value_t, channel by channel: the average of the values so far with
/// weights e^x.
template <class T>
tensor<T, 4> running_average(tensor<T, 4> const& x, tensor<T, 4> const& value,
                             std::vector<index_t> const& bounds) {
  using std::exp;
  tensor<T, 4> const z = running_log_total(x, bounds);
  tensor<T, 4> out(x.extents);
  for (auto const& s : sequences_of(x.extent(0), x.extent(1), bounds))
    for (index_t h = 0; h < x.extent(2); ++h)
      for (index_t c = 0; c < x.extent(3); ++c) {
        T state = 0;
        for (index_t t = s.first; t < s.last; ++t) {
          if (t > s.first) state *= exp(z(s.batch, t - 1, h, c) - z(s.batch, t, h, c));
          state += exp(x(s.batch, t, h, c) - z(s.batch, t, h, c)) * value(s.batch, t, h, c);
          out(s.batch, t, h, c) = state;
        }
      }
  return out;
}

/// e^(x - z) with the z of the whole sequence, channel by channel.
template <class T>
tensor<T, 4> position_softmax(tensor<T, 4> const& x, std::vector<index_t> const& bounds) {
  using std::exp;
  tensor<T, 4> const z = running_log_total(x, bounds);
  tensor<T, 4> out(x.extents);
  for (auto const& s : sequences_of(x.extent(0), x.extent(1), bounds))
    for (index_t h = 0; h < x.extent(2); ++h)
      for (index_t c = 0; c < x.extent(3); ++c)
        for (index_t t = s.first; t < s.last; ++t)
          out(s.batch, t, h, c) = exp(x(s.batch, t, h, c) - z(s.batch, s.last - 1, h, c));
  return out;
}

}  // namespace reference
