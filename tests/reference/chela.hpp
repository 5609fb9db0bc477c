#pragma once

#include <algorithm>
#include "reference/state_space.hpp"

/// CHELA in plain loops, for any type of number.
namespace reference {

/// silu of a filter, causal or centred.
template <class R>
tensor<R, 4> filtered(tensor<R, 4> const& x, tensor<R, 4> const& w, bool centred) {
  tensor<R, 4> out(x.extents);
  index_t const taps = w.extent(1), ahead = centred ? (taps - 1) / 2 : 0;
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t t = 0; t < x.extent(1); ++t)
      for (index_t h = 0; h < x.extent(2); ++h)
        for (index_t d = 0; d < x.extent(3); ++d) {
          R sum = 0;
          for (index_t k = 0; k < taps; ++k)
            if (index_t const from = t + ahead - k; from >= 0 && from < x.extent(1))
              sum = sum + w(0, k, h, d) * x(b, from, h, d);
          out(b, t, h, d) = silu(sum);
        }
  return out;
}

/// Inputs: x, short and long filter, factor and bias of queries, of keys, value. Results: z, out.
template <class R>
tensors<R> chela(tensors<R> const& in, std::vector<double> const& log_decays, bool is_dense,
                 bool newest_first) {
  using std::exp;
  auto const &x = in[0], &v = in[7];
  auto const z = filtered(filtered(x, in[1], is_dense), in[2], is_dense);
  index_t const N = x.extent(1), H = x.extent(2), D = x.extent(3), E = v.extent(3);
  tensor<R, 4> out({x.extent(0), N, H, E});
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t i = 0; i < N; ++i)
      for (index_t h = 0; h < H; ++h)
        for (index_t e = 0; e < E; ++e) {
          R sum = 0;
          index_t const last = is_dense ? N : i + 1;
          for (index_t n = 0; n < last; ++n) {
            index_t const j = newest_first ? last - 1 - n : n;
            R product = 0;
            for (index_t d = 0; d < D; ++d)
              product = product + (in[3](0, 0, h, d) * z(b, i, h, d) + in[4](0, 0, h, d)) *
                                      (in[5](0, 0, h, d) * z(b, j, h, d) + in[6](0, 0, h, d));
            if (!log_decays.empty())
              product = product * exp(R(log_decays[std::size_t(h)]) * R(i - j));
            sum = sum + product * v(b, j, h * v.extent(2) / H, e);
          }
          out(b, i, h, e) = sum;
        }
  return {z, out};
}

}  // namespace reference
