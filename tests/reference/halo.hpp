// Blocks that look at a halo, with products of queries and vectors for places, as the specification defines them: the
// canvas is padded by the halo, and what is beyond its border are keys and values of zeros, or does not exist.
#pragma once

#include "reference/attention.hpp"
#include "reference/patterns/neighborhood.hpp"

namespace reference {

struct halo_axis {
  index_t length, block, halo, stride;

  index_t window() const { return block + 2 * halo; }
  index_t queries() const { return length / stride; }
  index_t padded() const { return length + 2 * halo; }
  /// Where in its window the query y has the padded coordinate z; anything if it is not in it.
  index_t place(index_t y, index_t z) const { return z - y * stride / block * block; }
  /// Where in its block it is.
  index_t in_block(index_t y) const { return y % (block / stride); }
};

struct halo_options {
  std::vector<halo_axis> axes;
  bool zero = true;
  bool scale_positions = false;
  double scale = 1;
  evaluation order;
};

template <class T>
struct halo_result {
  tensor<T, 4> out;
  tensor<T, 3> lse;
  tensor<T, 4> dquery, dkey, dvalue;
  std::vector<tensor<T, 2>> dvectors;
  tensor<T, 1> dscale;
  T dscale_terms{0};
};

template <class T>
halo_result<T> halo_attention(tensor<T, 4> const& query, tensor<T, 4> const& key,
                              tensor<T, 4> const& value, std::vector<tensor<T, 2>> const& vectors,
                              tensor<T, 4> const& dout, tensor<T, 3> const& dlse,
                              halo_options const& how) {
  std::size_t const d = how.axes.size();
  std::vector<index_t> queries, tokens, padded;
  for (halo_axis const& a : how.axes) {
    queries.push_back(a.queries());
    tokens.push_back(a.length);
    padded.push_back(a.padded());
  }
  index_t places = 1;
  for (index_t size : padded) places *= size;
  index_t const B = query.extent(0), N = query.extent(1), H = query.extent(2), D = query.extent(3);

  // The token at a padded place, or -1.
  auto const token_at = [&](index_t place) {
    auto const at = coordinates_of(place, padded);
    index_t token = 0;
    for (std::size_t a = 0; a < d; ++a) {
      index_t const z = at[a] - how.axes[a].halo;
      if (z < 0 || z >= tokens[a]) return index_t{-1};
      token = token * tokens[a] + z;
    }
    return token;
  };
  auto const with_border = [&](tensor<T, 4> const& inner) {
    tensor<T, 4> all({B, places, inner.extent(2), inner.extent(3)});
    for (index_t b = 0; b < B; ++b)
      for (index_t z = 0; z < places; ++z)
        if (index_t const token = token_at(z); token >= 0)
          for (index_t h = 0; h < inner.extent(2); ++h)
            for (index_t c = 0; c < inner.extent(3); ++c) all(b, z, h, c) = inner(b, token, h, c);
    return all;
  };
  auto const without_border = [&](tensor<T, 4> const& all, tensor<T, 4> const& like) {
    tensor<T, 4> inner(like.extents);
    for (index_t b = 0; b < B; ++b)
      for (index_t z = 0; z < places; ++z)
        if (index_t const token = token_at(z); token >= 0)
          for (index_t h = 0; h < inner.extent(2); ++h)
            for (index_t c = 0; c < inner.extent(3); ++c) inner(b, token, h, c) = all(b, z, h, c);
    return inner;
  };

  auto const keep = [&](index_t i, index_t z) {
    auto const y = coordinates_of(i, queries), at = coordinates_of(z, padded);
    for (std::size_t a = 0; a < d; ++a) {
      index_t const u = how.axes[a].place(y[a], at[a]);
      if (u < 0 || u >= how.axes[a].window()) return false;
    }
    return how.zero || token_at(z) >= 0;
  };
  /// Calls f(axis, row of the axis's table) for a pair that is kept.
  auto const each_vector = [&](index_t i, index_t z, auto f) {
    auto const y = coordinates_of(i, queries), at = coordinates_of(z, padded);
    for (std::size_t a = 0; a < d; ++a) {
      halo_axis const& axis = how.axes[a];
      f(a, axis.place(y[a], at[a]) - axis.in_block(y[a]) + axis.window() - 1);
    }
  };
  T const factor = how.scale_positions ? T(how.scale) : T(1);

  options o;
  o.scale = how.scale;
  o.align = alignment::top_left;
  o.order = how.order;
  o.keep = [&](index_t, index_t i, index_t z) { return keep(i, z); };
  bias scores{tensor<double, 4>({B, H, N, places})};
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h)
      for (index_t i = 0; i < N; ++i)
        for (index_t z = 0; z < places; ++z) {
          if (!keep(i, z)) continue;
          T total = 0;
          each_vector(i, z, [&](std::size_t a, index_t e) {
            total += sum<T>(D, how.order,
                            [&](index_t c) { return query(b, i, h, c) * vectors[a](e, c); });
          });
          scores.values(b, h, i, z) = double(factor * total);
        }
  o.modifiers.push_back(scores);

  tensor<T, 4> const k = with_border(key), v = with_border(value);
  auto const forward = attention(query, k, v, o);
  auto const backward = attention_backward(query, k, v, forward.out, forward.lse, dout, dlse, o);
  halo_result<T> all{forward.out,
                     forward.lse,
                     backward.query,
                     without_border(backward.key, key),
                     without_border(backward.value, value),
                     {},
                     tensor<T, 1>({1}, backward.scale),
                     backward.scale_terms};
  for (auto const& each : vectors) all.dvectors.emplace_back(each.extents);
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h)
      for (index_t i = 0; i < N; ++i)
        for (index_t n = 0; n < places; ++n) {
          index_t const z = how.order.at(n, places);
          if (!keep(i, z)) continue;
          T const g = backward.modifiers[0](b, h, i, z);
          each_vector(i, z, [&](std::size_t a, index_t e) {
            for (index_t c = 0; c < D; ++c) {
              all.dquery(b, i, h, c) += g * factor * vectors[a](e, c);
              all.dvectors[a](e, c) += g * factor * query(b, i, h, c);
            }
          });
          if (how.scale_positions) {
            T const term = g * T(scores.values(b, h, i, z)) / factor;
            all.dscale.values[0] += term;
            all.dscale_terms += std::abs(term);
          }
        }
  return all;
}

}  // namespace reference
