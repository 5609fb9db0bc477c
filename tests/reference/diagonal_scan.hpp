#pragma once

#include "reference/tensor.hpp"

#include <cmath>
#include <complex>
#include <vector>

/// h_t = a_t h_(t-1) + x_t and its gradients, step by step. Numbers may be complex.
namespace reference {

template <class C>
struct scan_gradients {
  tensor<C, 4> da, dx;
  tensor<C, 3> dh0;  // [sequence, head, dim]
};

/// `bounds` are the offsets of the sequences packed in the only batch entry; empty for one a batch entry.
struct diagonal_scan {
  std::vector<index_t> bounds;

  template <class Visit>
  void each(std::array<index_t, 4> const& shape, Visit visit) const {
    index_t const count = bounds.empty() ? shape[0] : static_cast<index_t>(bounds.size()) - 1;
    for (index_t s = 0; s < count; ++s)
      for (index_t h = 0; h < shape[2]; ++h)
        for (index_t d = 0; d < shape[3]; ++d)
          if (bounds.empty())
            visit(s, s, index_t{0}, shape[1], h, d);
          else
            visit(s, index_t{0}, bounds[std::size_t(s)], bounds[std::size_t(s) + 1], h, d);
  }

  template <class C>
  tensor<C, 4> forward(tensor<C, 4> const& a, tensor<C, 4> const& x, tensor<C, 3> const& h0,
                       tensor<C, 3>& last) const {
    tensor<C, 4> out(x.extents);
    last = h0;
    each(x.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
      C state = h0(s, h, d);
      for (index_t t = first; t < end; ++t)
        out(b, t, h, d) = state = a(b, t, h, d) * state + x(b, t, h, d);
      last(s, h, d) = state;
    });
    return out;
  }

  template <class C>
  scan_gradients<C> backward(tensor<C, 4> const& a, tensor<C, 4> const& out, tensor<C, 3> const& h0,
                             tensor<C, 4> const& dh, tensor<C, 3> const& dlast) const {
    scan_gradients<C> all{tensor<C, 4>(a.extents), tensor<C, 4>(a.extents),
                          tensor<C, 3>(h0.extents)};
    each(a.extents, [&](index_t s, index_t b, index_t first, index_t end, index_t h, index_t d) {
      C r = dlast(s, h, d);
      for (index_t t = end; t-- > first;) {
        r += dh(b, t, h, d);
        C const before = t > first ? out(b, t - 1, h, d) : h0(s, h, d);
        all.dx(b, t, h, d) = r;
        all.da(b, t, h, d) = r * conjugate(before);
        r *= conjugate(a(b, t, h, d));
      }
      all.dh0(s, h, d) = r;
    });
    return all;
  }

 private:
  template <class R>
  static R conjugate(R x) {
    return x;
  }
  template <class R>
  static std::complex<R> conjugate(std::complex<R> x) {
    return std::conj(x);
  }
};

}  // namespace reference
