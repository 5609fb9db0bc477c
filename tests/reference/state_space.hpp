#pragma once

#include "reference/tensor.hpp"

#include <cmath>
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

}  // namespace reference
