#pragma once

#include "reference/soft_attend.hpp"

/// Agent Attention and its parts for pictures, in plain loops and for any type of number.
namespace reference {

/// V_A = softmax(scale A K^T + B1) V and softmax(second_scale Q A^T + B2) V_A; b1 [1, heads, n, M] and b2 [1, heads, N, n] may be
/// empty.
template <class T>
tensor<T, 4> agent_attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                             tensor<T, 4> const& a, tensor<T, 4> const& b1, tensor<T, 4> const& b2,
                             double scale, double second_scale) {
  index_t const agent_heads = a.extent(2), heads = q.extent(2);
  auto const biased = [](T score, tensor<T, 4> const& bias, index_t h, index_t i, index_t j) {
    return bias.values.empty() ? score : score + bias(0, h, i, j);
  };
  tensor<T, 4> const seen =
      soft_attend(a.extent(1), agent_heads, v, [&](index_t b, index_t h, index_t i, index_t j) {
        return biased(T(scale) * product(a, k, b, h, i, j, agent_heads), b1, h, i, j);
      });
  return soft_attend(q.extent(1), heads, seen, [&](index_t b, index_t h, index_t i, index_t j) {
    return biased(T(second_scale) * product(q, a, b, h, i, j, heads), b2, h, i, j);
  });
}

/// Means of queries over the bins of a p x r grid, the first `skipped` tokens left out.
template <class T>
tensor<T, 4> pooled_agents(tensor<T, 4> const& q, index_t height, index_t width, index_t p,
                           index_t r, index_t skipped) {
  tensor<T, 4> agents({q.extent(0), p * r, q.extent(2), q.extent(3)});
  for (index_t b = 0; b < q.extent(0); ++b)
    for (index_t i = 0; i < p; ++i)
      for (index_t j = 0; j < r; ++j)
        for (index_t h = 0; h < q.extent(2); ++h)
          for (index_t d = 0; d < q.extent(3); ++d) {
            std::vector<T> bin;
            for (index_t y = 0; y < height; ++y)
              for (index_t x = 0; x < width; ++x)
                if (y * p >= i * height - (i * height) % p && y * p < (i + 1) * height &&
                    x * r >= j * width - (j * width) % r && x * r < (j + 1) * width)
                  bin.push_back(q(b, skipped + y * width + x, h, d));
            auto const count = static_cast<index_t>(bin.size());
            agents(b, i * r + j, h, d) =
                ordered_sum<T>(count, [&](index_t n) { return bin[std::size_t(n)]; }) /
                T(static_cast<double>(count));
          }
  return agents;
}

/// table [heads, n, any, any] enlarged to the grid, + rows [1, heads, n, height] + columns [1, heads, n, width]; of_class
/// [1, 1, heads, n] in front, if it is not empty. [1, heads, n, tokens].
template <class T>
tensor<T, 4> agent_bias(tensor<T, 4> const& table, tensor<T, 4> const& rows,
                        tensor<T, 4> const& columns, tensor<T, 4> const& of_class) {
  index_t const H = table.extent(0), n = table.extent(1), h = rows.extent(3), w = columns.extent(3),
                skipped = of_class.values.empty() ? 0 : 1;
  auto const place = [](index_t i, index_t in, index_t out) {
    double const at =
        (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
    return at < 0 ? 0.0 : at;
  };
  tensor<T, 4> bias({1, H, n, skipped + h * w});
  for (index_t g = 0; g < H; ++g)
    for (index_t a = 0; a < n; ++a) {
      if (skipped != 0) bias(0, g, a, 0) = of_class(0, 0, g, a);
      for (index_t y = 0; y < h; ++y)
        for (index_t x = 0; x < w; ++x) {
          double const v = place(y, table.extent(2), h), u = place(x, table.extent(3), w);
          T sum = rows(0, g, a, y) + columns(0, g, a, x);
          for (index_t dy = 0; dy < 2; ++dy)
            for (index_t dx = 0; dx < 2; ++dx) {
              double const part_y = dy == 1 ? v - std::floor(v) : 1 - (v - std::floor(v)),
                           part_x = dx == 1 ? u - std::floor(u) : 1 - (u - std::floor(u));
              index_t const from_y = std::min(static_cast<index_t>(v) + dy, table.extent(2) - 1),
                            from_x = std::min(static_cast<index_t>(u) + dx, table.extent(3) - 1);
              sum += T(part_y * part_x) * table(g, a, from_y, from_x);
            }
          bias(0, g, a, skipped + y * w + x) = sum;
        }
    }
  return bias;
}

/// The last two axes swapped.
template <class T>
tensor<T, 4> turned(tensor<T, 4> const& x) {
  tensor<T, 4> y({x.extent(0), x.extent(1), x.extent(3), x.extent(2)});
  for (index_t a = 0; a < x.extent(0); ++a)
    for (index_t b = 0; b < x.extent(1); ++b)
      for (index_t c = 0; c < x.extent(2); ++c)
        for (index_t d = 0; d < x.extent(3); ++d) y(a, b, d, c) = x(a, b, c, d);
  return y;
}

/// out + the 3x3 depthwise convolution of v with kernel [1, 9, heads, dim] + offset [1, 1, heads, dim].
template <class T>
tensor<T, 4> with_depthwise(tensor<T, 4> out, tensor<T, 4> const& v, tensor<T, 4> const& kernel,
                            tensor<T, 4> const& offset, index_t height, index_t width,
                            index_t skipped) {
  for (index_t b = 0; b < v.extent(0); ++b)
    for (index_t y = 0; y < height; ++y)
      for (index_t x = 0; x < width; ++x)
        for (index_t h = 0; h < v.extent(2); ++h)
          for (index_t d = 0; d < v.extent(3); ++d) {
            T sum = offset(0, 0, h, d);
            for (index_t dy = -1; dy <= 1; ++dy)
              for (index_t dx = -1; dx <= 1; ++dx)
                if (y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width)
                  sum += kernel(0, (dy + 1) * 3 + dx + 1, h, d) *
                         v(b, skipped + (y + dy) * width + x + dx, h, d);
            out(b, skipped + y * width + x, h, d) += sum;
          }
  return out;
}

}  // namespace reference
