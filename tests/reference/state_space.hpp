#pragma once

#include "reference/traced.hpp"

#include <cmath>
#include <utility>
#include <vector>

/// Recurrences of channels, token by token, for any type of number. Tensors are [batch, position, head, dim], states
/// [sequence, head, row, dim].
namespace reference {

/// The sequences of a call: offsets in the only batch entry, or none for one a batch entry.
struct sequences {
  std::vector<index_t> bounds;

  index_t count(index_t batches) const {
    return bounds.empty() ? batches : static_cast<index_t>(bounds.size()) - 1;
  }
  /// Calls visit(sequence, batch, first, last, head, channel).
  template <class Visit>
  void each(std::array<index_t, 4> const& shape, Visit visit) const {
    for (index_t s = 0; s < count(shape[0]); ++s)
      for (index_t h = 0; h < shape[2]; ++h)
        for (index_t d = 0; d < shape[3]; ++d)
          if (bounds.empty())
            visit(s, s, index_t{0}, shape[1], h, d);
          else
            visit(s, index_t{0}, bounds[std::size_t(s)], bounds[std::size_t(s) + 1], h, d);
  }
};

template <class N>
N sigmoid(N x) {
  using std::exp;
  return N(1) / (N(1) + exp(-x));
}
template <class N>
N silu(N x) {
  return x * sigmoid(x);
}
/// log(1 + e^x).
template <class N>
N softplus(N x) {
  using std::exp;
  using std::log1p;
  return x > N(0) ? x + log1p(exp(-x)) : log1p(exp(x));
}

/// out_t = act(bias + sum_k w_k x_(t-k)); `initial` has the inputs before, the oldest first, and `last` those of the end.
template <class N>
tensor<N, 4> causal_convolution(sequences const& all, tensor<N, 4> const& x, tensor<N, 4> const& w,
                                tensor<N, 4> const& bias, tensor<N, 4> const& initial,
                                bool with_silu, tensor<N, 4>& last) {
  tensor<N, 4> out(x.extents);
  index_t const taps = w.extent(1), before = taps - 1;
  last = tensor<N, 4>(initial.extents);
  all.each(x.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
    auto const input = [&](index_t t) {
      return t >= first ? x(b, t, h, d) : initial(s, h, before + t - first, d);
    };
    for (index_t t = first; t < end; ++t) {
      N sum = bias(0, 0, h, d);
      for (index_t k = 0; k < taps; ++k) sum = sum + w(0, k, h, d) * input(t - k);
      out(b, t, h, d) = with_silu ? silu(sum) : sum;
    }
    for (index_t r = 0; r < before; ++r) last(s, h, r, d) = input(end - before + r);
  });
  return out;
}

/// The operands of a selective scan: A is [1, heads, dim, n], B and C [batch, position, groups, n].
template <class N>
struct selective_operands {
  tensor<N, 4> const &u, &step, &A, &B, &C, &skip, &z, &initial;
};

/// h_t = e^(step_t A) h_(t-1) + step_t u_t B_t, y_t = h_t . C_t + skip u_t.
template <class N>
tensor<N, 4> ungated_selective_scan(sequences const& all, selective_operands<N> const& x,
                                    tensor<N, 4>& last) {
  using std::exp;
  tensor<N, 4> out(x.u.extents);
  last = tensor<N, 4>(x.initial.extents);
  index_t const n = x.A.extent(3);
  all.each(x.u.extents,
           [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
             std::vector<N> state;
             for (index_t i = 0; i < n; ++i) state.push_back(x.initial(s, h, i, d));
             index_t const group = h * x.B.extent(2) / x.u.extent(2);
             for (index_t t = first; t < end; ++t) {
               N const step = x.step(b, t, h, d), u = x.u(b, t, h, d);
               N y = x.skip(0, 0, h, d) * u;
               for (index_t i = 0; i < n; ++i) {
                 N& own = state[std::size_t(i)];
                 own = exp(step * x.A(0, h, d, i)) * own + step * u * x.B(b, t, group, i);
                 y = y + own * x.C(b, t, group, i);
               }
               out(b, t, h, d) = y;
             }
             for (index_t i = 0; i < n; ++i) last(s, h, i, d) = state[std::size_t(i)];
           });
  return out;
}

/// y_t silu(z_t).
template <class N>
tensor<N, 4> selective_scan(sequences const& all, selective_operands<N> const& x,
                            tensor<N, 4>& last) {
  tensor<N, 4> out = ungated_selective_scan(all, x, last);
  for (std::size_t i = 0; i < out.values.size(); ++i)
    out.values[i] = out.values[i] * silu(x.z.values[i]);
  return out;
}

/// Token by token. Inputs: x, step [batch, N, heads, 1], B, C, skip [1, 1, heads, 1], the initial state, and a rate for each
/// token and head, so that the sizes of what is summed to the gradient of a head's rate are known.
template <class R>
tensors<R> state_space_dual(sequences const& all, tensors<R> const& in) {
  using std::exp;
  auto const &x = in[0], &step = in[1], &B = in[2], &C = in[3], &initial = in[5], &rate = in[6];
  tensors<R> out(2);
  out[0] = tensor<R, 4>(x.extents);
  out[1] = initial;
  index_t const n = B.extent(3);
  all.each(x.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
    index_t const group = h * B.extent(2) / x.extent(2);
    for (index_t t = first; t < end; ++t) {
      R sum = in[4](0, 0, h, 0) * x(b, t, h, d);
      for (index_t i = 0; i < n; ++i) {
        R& state = out[1](s, h, i, d);
        state = exp(step(b, t, h, 0) * rate(b, t, h, 0)) * state +
                step(b, t, h, 0) * x(b, t, h, d) * B(b, t, group, i);
        sum = sum + C(b, t, group, i) * state;
      }
      out[0](b, t, h, d) = sum;
    }
  });
  return out;
}

/// The same by pairs of tokens, with gates from sums of their logarithms.
template <class R>
tensors<R> state_space_dual_by_pairs(sequences const& all, tensors<R> const& in) {
  using std::exp;
  auto const &x = in[0], &step = in[1], &B = in[2], &C = in[3], &initial = in[5], &rate = in[6];
  tensors<R> out(2);
  out[0] = tensor<R, 4>(x.extents);
  out[1] = tensor<R, 4>(initial.extents);
  index_t const n = B.extent(3);
  all.each(x.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
    index_t const group = h * B.extent(2) / x.extent(2);
    std::vector<R> gates{R(0)};  // summed
    for (index_t t = first; t < end; ++t)
      gates.push_back(gates.back() + step(b, t, h, 0) * rate(b, t, h, 0));
    auto const gate = [&](index_t t) { return gates[std::size_t(t - first + 1)]; };
    for (index_t t = first; t < end; ++t) {
      R sum = in[4](0, 0, h, 0) * x(b, t, h, d);
      for (index_t j = first; j <= t; ++j) {
        R product = 0;
        for (index_t i = 0; i < n; ++i) product = product + C(b, t, group, i) * B(b, j, group, i);
        sum = sum + product * exp(gate(t) - gate(j)) * (step(b, j, h, 0) * x(b, j, h, d));
      }
      for (index_t i = 0; i < n; ++i)
        sum = sum + exp(gate(t)) * C(b, t, group, i) * initial(s, h, i, d);
      out[0](b, t, h, d) = sum;
    }
    for (index_t i = 0; i < n; ++i) {
      R sum = exp(gates.back()) * initial(s, h, i, d);
      for (index_t j = first; j < end; ++j)
        sum = sum +
              exp(gates.back() - gate(j)) * step(b, j, h, 0) * B(b, j, group, i) * x(b, j, h, d);
      out[1](s, h, i, d) = sum;
    }
  });
  return out;
}

/// One direction: y_t = sum_n gamma / sqrt(n) s_t. `initial` is s / (p beta).
template <class R>
tensor<R, 4> moving_averages(sequences const& all, tensors<R> const& in,
                             std::size_t first_parameter, tensor<R, 4> const* initial,
                             tensor<R, 4>* last, bool from_right) {
  using std::sqrt;
  auto const &x = in[0], &delta = in[first_parameter], &alpha = in[first_parameter + 1],
             &beta = in[first_parameter + 2], &gamma = in[first_parameter + 3];
  tensor<R, 4> out(x.extents);
  index_t const n = delta.extent(3);
  all.each(x.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
    for (index_t i = 0; i < n; ++i) {
      R const p = sigmoid(delta(0, h, d, i)), rho = R(1) - p * sigmoid(alpha(0, h, d, i)),
              scale = p * beta(0, h, d, i), read = gamma(0, h, d, i) / sqrt(R(n));
      R state = initial == nullptr ? R(0) : scale * (*initial)(s, h, i, d);
      R inputs = initial == nullptr ? R(0) : (*initial)(s, h, i, d);
      for (index_t step = 0; step < end - first; ++step) {
        index_t const t = from_right ? end - 1 - step : first + step;
        state = rho * state + scale * x(b, t, h, d);
        inputs = rho * inputs + x(b, t, h, d);
        out(b, t, h, d) = out(b, t, h, d) + read * state;
      }
      if (last != nullptr) (*last)(s, h, i, d) = inputs;
    }
  });
  return out;
}

/// A complex number of any type of real ones.
template <class R>
struct pair_of {
  R re, im;

  friend pair_of operator*(pair_of a, pair_of b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  friend pair_of operator/(pair_of a, pair_of b) {
    R const size = b.re * b.re + b.im * b.im;
    return {(a.re * b.re + a.im * b.im) / size, (a.im * b.re - a.re * b.im) / size};
  }
  friend pair_of operator+(pair_of a, pair_of b) { return {a.re + b.re, a.im + b.im}; }
};

/// e^(Delta A) and (e^(Delta A) - 1) / A.
template <class R>
std::pair<pair_of<R>, pair_of<R>> discrete(R log_step, R decay, R frequency) {
  using std::cos;
  using std::exp;
  using std::expm1;
  using std::sin;
  R const step = exp(log_step);
  pair_of<R> const rate{R(0) - exp(decay), frequency};
  R const x = step * rate.re, y = step * rate.im, half = sin(y / R(2));
  return {{exp(x) * cos(y), exp(x) * sin(y)},
          pair_of<R>{expm1(x) * cos(y) - R(2) * half * half, exp(x) * sin(y)} / rate};
}

/// Inputs: u, log_step, skip, decay, frequency, C real, C imaginary, initial, and of the future C real and imaginary.
template <class R>
tensors<R> s4d(sequences const& all, tensors<R> const& in) {
  auto const& u = in[0];
  tensors<R> out(2);
  out[0] = tensor<R, 4>(u.extents);
  out[1] = in[7];
  index_t const n = in[3].extent(3);
  all.each(u.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
    for (index_t t = first; t < end; ++t) out[0](b, t, h, d) = in[2](0, 0, h, d) * u(b, t, h, d);
    for (index_t i = 0; i < n; ++i) {
      auto const [factor, gain] = discrete(in[1](0, 0, h, d), in[3](0, h, d, i), in[4](0, h, d, i));
      pair_of<R> const read{in[5](0, h, d, i), in[6](0, h, d, i)};
      R &re = out[1](s, h, i, d), &im = out[1](s, h, n + i, d);
      for (index_t t = first; t < end; ++t) {
        pair_of<R> const state = factor * pair_of<R>{re, im} + pair_of<R>{u(b, t, h, d), R(0)};
        re = state.re;
        im = state.im;
        out[0](b, t, h, d) = out[0](b, t, h, d) + R(2) * (read * gain * state).re;
      }
      if (in.size() == 8) continue;
      pair_of<R> const later{in[8](0, h, d, i), in[9](0, h, d, i)};
      pair_of<R> state{R(0), R(0)};
      for (index_t t = end; t-- > first;) {
        out[0](b, t, h, d) = out[0](b, t, h, d) + R(2) * (later * gain * state).re;
        state = factor * state + pair_of<R>{u(b, t, h, d), R(0)};
      }
    }
  });
  return out;
}

/// x w / sqrt(mean(x^2) + epsilon), the mean over all heads of a token; w [1, 1, heads, dim].
template <class R>
tensor<R, 4> weighted_rms(tensor<R, 4> const& x, tensor<R, 4> const& w, double epsilon) {
  using std::sqrt;
  tensor<R, 4> out(x.extents);
  index_t const H = x.extent(2), D = x.extent(3);
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t t = 0; t < x.extent(1); ++t) {
      R squares = 0;
      for (index_t h = 0; h < H; ++h)
        for (index_t d = 0; d < D; ++d) squares = squares + x(b, t, h, d) * x(b, t, h, d);
      R const size = sqrt(squares / R(H * D) + R(epsilon));
      for (index_t h = 0; h < H; ++h)
        for (index_t d = 0; d < D; ++d) out(b, t, h, d) = x(b, t, h, d) / size * w(0, 0, h, d);
    }
  return out;
}

}  // namespace reference
