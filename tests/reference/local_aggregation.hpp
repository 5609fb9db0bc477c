#pragma once

#include "reference/tensor.hpp"

/// Depthwise sums over a box, in plain loops: out(i, c) = sum_d A(d, c) v(i + d, c), zero outside the grid.
namespace reference {

struct aggregation {
  std::array<index_t, 3> grid, window;

  /// Calls visit(i, d, i + d) for every token and offset whose neighbour lies on the grid.
  template <class Visit>
  void each(Visit visit) const {
    index_t const Z = grid[0], Y = grid[1], X = grid[2];
    for (index_t z = 0; z < Z; ++z)
      for (index_t y = 0; y < Y; ++y)
        for (index_t x = 0; x < X; ++x)
          for (index_t c = 0; c < window[0]; ++c)
            for (index_t b = 0; b < window[1]; ++b)
              for (index_t a = 0; a < window[2]; ++a) {
                index_t const w = z + c - (window[0] - 1) / 2, v = y + b - (window[1] - 1) / 2,
                              u = x + a - (window[2] - 1) / 2;
                if (w < 0 || w >= Z || v < 0 || v >= Y || u < 0 || u >= X) continue;
                visit((z * Y + y) * X + x, (c * window[1] + b) * window[2] + a,
                      (w * Y + v) * X + u);
              }
  }

  template <class T>
  tensor<T, 4> forward(tensor<T, 4> const& value, tensor<T, 3> const& weights) const {
    tensor<T, 4> out(value.extents);
    each([&](index_t i, index_t d, index_t j) {
      channels(value, weights, [&](index_t b, index_t h, index_t c, index_t wh, index_t wc) {
        out(b, i, h, c) += weights(d, wh, wc) * value(b, j, h, c);
      });
    });
    return out;
  }

  template <class T>
  void backward(tensor<T, 4> const& value, tensor<T, 3> const& weights, tensor<T, 4> const& dout,
                tensor<T, 4>& dvalue, tensor<T, 3>& dweights) const {
    dvalue = tensor<T, 4>(value.extents);
    dweights = tensor<T, 3>(weights.extents);
    each([&](index_t i, index_t d, index_t j) {
      channels(value, weights, [&](index_t b, index_t h, index_t c, index_t wh, index_t wc) {
        dvalue(b, j, h, c) += weights(d, wh, wc) * dout(b, i, h, c);
        dweights(d, wh, wc) += value(b, j, h, c) * dout(b, i, h, c);
      });
    });
  }

 private:
  template <class T, class Visit>
  static void channels(tensor<T, 4> const& value, tensor<T, 3> const& weights, Visit visit) {
    for (index_t b = 0; b < value.extent(0); ++b)
      for (index_t h = 0; h < value.extent(2); ++h)
        for (index_t c = 0; c < value.extent(3); ++c)
          visit(b, h, c, weights.extent(1) == 1 ? 0 : h, weights.extent(2) == 1 ? 0 : c);
  }
};

}  // namespace reference
