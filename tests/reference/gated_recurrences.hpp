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

/// What a gated recurrence may have besides queries, keys and values; tensors of [batch, key, heads, channels], where one channel
/// stands for all. Empty: none.
template <class T>
struct recurrence_parts {
  tensor<T, 4> log_gate, log_value_gate, rate;
  bool exact = false;  // the rate is a time over which the delta rule acts
  T scale = 1;
  tensor<T, 4> initial;  // [sequence, heads, features, channels]
  std::vector<index_t> query_bounds, key_bounds;
};

/// S_t = diag(e^g_t) S_(t-1) diag(e^h_t) + k_t u_t^T; u_t is v_t, or the rate times v_t less what the faded state says of k_t.
/// out_i = scale q_i^T S after key i + keys - rows, S_0 where there is none.
template <class T>
tensor<T, 4> gated_recurrence(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                              recurrence_parts<T> const& with) {
  using std::exp;
  using std::expm1;
  index_t const H = std::max({q.extent(2), k.extent(2), v.extent(2)}), F = k.extent(3),
                E = v.extent(3);
  tensor<T, 4> out({q.extent(0), q.extent(1), H, E});
  auto const queries = sequences_of(q.extent(0), q.extent(1), with.query_bounds);
  auto const keys = sequences_of(k.extent(0), k.extent(1), with.key_bounds);
  for (std::size_t n = 0; n < keys.size(); ++n)
    for (index_t h = 0; h < H; ++h) {
      auto const head = [&](tensor<T, 4> const& x) { return h * x.extent(2) / H; };
      auto const at = [&](tensor<T, 4> const& x, index_t t, index_t c) {
        return x(keys[n].batch, t, head(x), x.extent(3) == 1 ? 0 : c);
      };
      std::vector<T> S(static_cast<std::size_t>(F * E), T(0));
      auto const entry = [&](index_t f, index_t e) -> T& {
        return S[static_cast<std::size_t>(f * E + e)];
      };
      if (with.initial.extent(0) > 0)
        for (index_t f = 0; f < F; ++f)
          for (index_t e = 0; e < E; ++e)
            entry(f, e) = with.initial(static_cast<index_t>(n), head(with.initial), f, e);
      index_t const rows = queries[n].last - queries[n].first;
      index_t const shift = keys[n].last - keys[n].first - rows;
      auto const read = [&](index_t i) {
        for (index_t e = 0; e < E; ++e) {
          T sum = 0;
          for (index_t f = 0; f < F; ++f)
            sum += with.scale * q(queries[n].batch, queries[n].first + i, head(q), f) * entry(f, e);
          out(queries[n].batch, queries[n].first + i, h, e) = sum;
        }
      };
      for (index_t i = 0; i < std::min(-shift, rows); ++i) read(i);
      for (index_t t = keys[n].first; t < keys[n].last; ++t) {
        for (index_t f = 0; f < F; ++f)
          for (index_t e = 0; e < E; ++e) {
            if (with.log_gate.extent(0) > 0) entry(f, e) *= exp(at(with.log_gate, t, f));
            if (with.log_value_gate.extent(0) > 0)
              entry(f, e) *= exp(at(with.log_value_gate, t, e));
          }
        std::vector<T> u;
        for (index_t e = 0; e < E; ++e) u.push_back(v(keys[n].batch, t, head(v), e));
        if (with.rate.extent(0) > 0) {
          T rate = at(with.rate, t, 0), size = 0;
          for (index_t f = 0; f < F; ++f) size += at(k, t, f) * at(k, t, f);
          if (with.exact) rate = -expm1(-rate * size) / size;
          for (index_t e = 0; e < E; ++e) {
            T said = 0;
            for (index_t f = 0; f < F; ++f) said += at(k, t, f) * entry(f, e);
            u[static_cast<std::size_t>(e)] = rate * (u[static_cast<std::size_t>(e)] - said);
          }
        }
        for (index_t f = 0; f < F; ++f)
          for (index_t e = 0; e < E; ++e)
            entry(f, e) += k(keys[n].batch, t, head(k), f) * u[static_cast<std::size_t>(e)];
        if (index_t const i = t - keys[n].first - shift; i >= 0) read(i);
      }
    }
  return out;
}

/// The same by sums over pairs of a query and a key, with the log gates summed up from the first token: what is written is the
/// solution of a triangular system. Rounding goes the ways of a chunk.
template <class T>
tensor<T, 4> gated_recurrence_by_pairs(tensor<T, 4> const& q, tensor<T, 4> const& k,
                                       tensor<T, 4> const& v, recurrence_parts<T> const& with) {
  using std::exp;
  using std::expm1;
  index_t const H = std::max({q.extent(2), k.extent(2), v.extent(2)}), F = k.extent(3),
                E = v.extent(3);
  tensor<T, 4> out({q.extent(0), q.extent(1), H, E});
  auto const queries = sequences_of(q.extent(0), q.extent(1), with.query_bounds);
  auto const keys = sequences_of(k.extent(0), k.extent(1), with.key_bounds);
  for (std::size_t n = 0; n < keys.size(); ++n)
    for (index_t h = 0; h < H; ++h) {
      auto const head = [&](tensor<T, 4> const& x) { return h * x.extent(2) / H; };
      auto const at = [&](tensor<T, 4> const& x, index_t t, index_t c) {
        return x(keys[n].batch, t, head(x), x.extent(3) == 1 ? 0 : c);
      };
      index_t const M = keys[n].last - keys[n].first, first = keys[n].first;
      // Sums of log gates; before the first key they are 0. What the first key forgets is nothing without a state.
      auto const summed = [&](tensor<T, 4> const& gate, index_t channels) {
        tensor<T, 2> G({M + 1, channels});
        for (index_t t = 0; t < M && gate.extent(0) > 0; ++t)
          for (index_t c = 0; c < channels; ++c)
            G(t + 1, c) =
                t == 0 && with.initial.extent(0) == 0 ? T(0) : G(t, c) + at(gate, first + t, c);
        return G;
      };
      tensor<T, 2> const G = summed(with.log_gate, F), G_value = summed(with.log_value_gate, E);
      tensor<T, 2> u({M, E});
      // What vector x reads after key t (-1: at the start), of what was written by the first `count` keys.
      auto const reads = [&](auto const& x, index_t t, index_t count, index_t e) {
        T sum = 0;
        if (with.initial.extent(0) > 0)
          for (index_t f = 0; f < F; ++f)
            sum += x(f) * exp(G(t + 1, f)) * exp(G_value(t + 1, e)) *
                   with.initial(static_cast<index_t>(n), head(with.initial), f, e);
        for (index_t j = 0; j < count; ++j) {
          T product = 0;
          for (index_t f = 0; f < F; ++f)
            product += x(f) * at(k, first + j, f) * exp(G(t + 1, f) - G(j + 1, f));
          sum += product * exp(G_value(t + 1, e) - G_value(j + 1, e)) * u(j, e);
        }
        return sum;
      };
      for (index_t t = 0; t < M; ++t) {
        T rate = 1, size = 0;
        if (with.rate.extent(0) > 0) {
          rate = at(with.rate, first + t, 0);
          for (index_t f = 0; f < F; ++f) size += at(k, first + t, f) * at(k, first + t, f);
          if (with.exact) rate = -expm1(-rate * size) / size;
        }
        for (index_t e = 0; e < E; ++e) {
          u(t, e) = v(keys[n].batch, first + t, head(v), e);
          if (with.rate.extent(0) > 0)
            u(t, e) =
                rate * (u(t, e) - reads([&](index_t f) { return at(k, first + t, f); }, t, t, e));
        }
      }
      index_t const rows = queries[n].last - queries[n].first;
      for (index_t i = 0; i < rows; ++i) {
        index_t const t = std::max<index_t>(i + M - rows, -1);
        for (index_t e = 0; e < E; ++e)
          out(queries[n].batch, queries[n].first + i, h, e) = reads(
              [&](index_t f) {
                return with.scale * q(queries[n].batch, queries[n].first + i, head(q), f);
              },
              t, t + 1, e);
      }
    }
  return out;
}

/// Softmax of each row.
template <class T>
tensor<T, 4> softmax_rows(tensor<T, 4> x) {
  using std::exp;
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < x.extent(2); ++h) {
        T most = x(b, i, h, 0), total = 0;
        for (index_t c = 1; c < x.extent(3); ++c)
          if (x(b, i, h, c) > most) most = x(b, i, h, c);
        for (index_t c = 0; c < x.extent(3); ++c) {
          x(b, i, h, c) = exp(x(b, i, h, c) - most);
          total += x(b, i, h, c);
        }
        for (index_t c = 0; c < x.extent(3); ++c) x(b, i, h, c) /= total;
      }
  return x;
}

/// Two recurrences with a softmax over slots between them; `with` says what the calls have besides the gates.
template <class T>
tensor<T, 4> slot_attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                            tensor<T, 4> const& strength, tensor<T, 4> const& log_gate,
                            recurrence_parts<T> const& with, bool by_pairs,
                            tensor<T, 4> const& keys = {}, tensor<T, 4> const& values = {}) {
  auto const run = [&](auto const&... x) {
    return by_pairs ? gated_recurrence_by_pairs(x...) : gated_recurrence(x...);
  };
  recurrence_parts<T> first = with, second = with;
  first.log_value_gate = second.log_gate = log_gate;
  first.initial = keys;
  second.initial = values;
  second.scale = T(1);
  return run(softmax_rows(run(q, k, strength, first)), strength, v, second);
}

/// e^(c_t - z_t) and z_(t-1) - z_t for the running logarithm z of the sum of e^c; the first gate closes.
template <class T>
std::pair<tensor<T, 4>, tensor<T, 4>> running_shares(tensor<T, 4> const& c,
                                                     std::vector<index_t> const& bounds) {
  using std::exp;
  tensor<T, 4> const z = running_log_total(c, bounds);
  std::pair all(c, c);
  for (auto const& s : sequences_of(c.extent(0), c.extent(1), bounds))
    for (index_t t = s.first; t < s.last; ++t)
      for (index_t h = 0; h < c.extent(2); ++h)
        for (index_t n = 0; n < c.extent(3); ++n) {
          all.first(s.batch, t, h, n) = exp(c(s.batch, t, h, n) - z(s.batch, t, h, n));
          // There is nothing yet to forget.
          all.second(s.batch, t, h, n) =
              t == s.first ? T(0) : z(s.batch, t - 1, h, n) - z(s.batch, t, h, n);
        }
  return all;
}

/// Attention over rows: softmax(scale q k^T) v with the heads of k and v shared.
template <class T>
tensor<T, 4> dense_attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                             double scale) {
  index_t const H = q.extent(2);
  tensor<T, 4> scores({q.extent(0), q.extent(1), H, k.extent(1)});
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t i = 0; i < q.extent(1); ++i)
      for (index_t h = 0; h < H; ++h)
        for (index_t j = 0; j < k.extent(1); ++j)
          for (index_t d = 0; d < q.extent(3); ++d)
            scores(b, i, h, j) += T(scale) * q(b, i, h, d) * k(b, j, h * k.extent(2) / H, d);
  scores = softmax_rows(scores);
  tensor<T, 4> out({q.extent(0), q.extent(1), H, v.extent(3)});
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t i = 0; i < q.extent(1); ++i)
      for (index_t h = 0; h < H; ++h)
        for (index_t e = 0; e < v.extent(3); ++e)
          for (index_t j = 0; j < k.extent(1); ++j)
            out(b, i, h, e) += scores(b, i, h, j) * v(b, j, h * v.extent(2) / H, e);
  return out;
}

/// sum_j weights(j, slot) x(j): [batch, slot, heads, dim].
template <class T>
tensor<T, 4> into_slots(tensor<T, 4> const& weights, tensor<T, 4> const& x) {
  index_t const H = std::max(weights.extent(2), x.extent(2));
  tensor<T, 4> slots({x.extent(0), weights.extent(3), H, x.extent(3)});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t j = 0; j < x.extent(1); ++j)
      for (index_t h = 0; h < H; ++h)
        for (index_t m = 0; m < weights.extent(3); ++m)
          for (index_t d = 0; d < x.extent(3); ++d)
            slots(b, m, h, d) +=
                weights(b, j, h * weights.extent(2) / H, m) * x(b, j, h * x.extent(2) / H, d);
  return slots;
}

/// Channels turned by theta times a coordinate of where a row stands: [x cos, x sin] of each, or adjacent pairs rotated. Parts of
/// the channels turn by the coordinates of a row-major grid, or all by the position plus offset.
template <class T>
tensor<T, 4> turned(tensor<T, 4> const& x, tensor<T, 4> const& theta, bool complex,
                    std::vector<index_t> grid, index_t offset) {
  using std::cos;
  using std::sin;
  index_t const D = x.extent(3), axes = std::max<index_t>(1, static_cast<index_t>(grid.size())),
                part = D / axes;
  tensor<T, 4> phi({x.extent(0), x.extent(1), x.extent(2), complex ? 2 * D : D});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < x.extent(1); ++i)
      for (index_t h = 0; h < x.extent(2); ++h)
        for (index_t a = 0; a < axes; ++a) {
          index_t c = i + offset;
          for (index_t later = axes - 1; later > a; --later)
            c /= grid[static_cast<std::size_t>(later)];
          if (a > 0) c %= grid[static_cast<std::size_t>(a)];
          auto const angle = [&](index_t n) {
            return theta(0, 0, theta.extent(2) == 1 ? 0 : h, n) * T(static_cast<double>(c));
          };
          for (index_t d = a * part; d < (a + 1) * part && complex; ++d) {
            phi(b, i, h, d) = x(b, i, h, d) * cos(angle(d - a * part));
            phi(b, i, h, d + D) = x(b, i, h, d) * sin(angle(d - a * part));
          }
          for (index_t d = a * part; d < (a + 1) * part && !complex; d += 2) {
            T const w = angle((d - a * part) / 2), one = x(b, i, h, d), two = x(b, i, h, d + 1);
            phi(b, i, h, d) = one * cos(w) - two * sin(w);
            phi(b, i, h, d + 1) = two * cos(w) + one * sin(w);
          }
        }
  return phi;
}

}  // namespace reference
