#pragma once

#include "reference/attention.hpp"

#include <functional>

/// Keys beside a sequence: softmax over the keys that are kept and over the extra ones together, as plain
/// attention over both lists, one after the other, with a key and a value for each query head.
namespace reference {

template <class T>
tensor<T, 4> one_for_each_head(tensor<T, 4> const& shared, index_t heads) {
  tensor<T, 4> all({shared.extent(0), shared.extent(1), heads, shared.extent(3)});
  for (index_t b = 0; b < all.extent(0); ++b)
    for (index_t j = 0; j < all.extent(1); ++j)
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < all.extent(3); ++d)
          all(b, j, h, d) = shared(b, j, h * shared.extent(2) / heads, d);
  return all;
}

template <class T>
tensor<T, 4> one_after_the_other(tensor<T, 4> const& a, tensor<T, 4> const& b, index_t heads) {
  tensor<T, 4> const first = one_for_each_head(a, heads), second = one_for_each_head(b, heads);
  tensor<T, 4> both({a.extent(0), a.extent(1) + b.extent(1), heads, a.extent(3)});
  for (index_t n = 0; n < both.extent(0); ++n)
    for (index_t j = 0; j < both.extent(1); ++j)
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < a.extent(3); ++d)
          both(n, j, h, d) = j < a.extent(1) ? first(n, j, h, d) : second(n, j - a.extent(1), h, d);
  return both;
}

/// The gradient of rows [first, first + like.extent(1)) of a list with a row for each query head.
template <class T>
tensor<T, 4> shared_gradient(tensor<T, 4> const& all, index_t first, tensor<T, 4> const& like) {
  tensor<T, 4> sum(like.extents);
  for (index_t b = 0; b < like.extent(0); ++b)
    for (index_t j = 0; j < like.extent(1); ++j)
      for (index_t h = 0; h < all.extent(2); ++h)
        for (index_t d = 0; d < like.extent(3); ++d)
          sum(b, j, h * like.extent(2) / all.extent(2), d) += all(b, first + j, h, d);
  return sum;
}

struct extra_key_options {
  std::optional<double> scale;
  std::function<bool(index_t position, index_t key)> keep;
  std::function<bool(index_t row, index_t extra)> keep_extra;
  tensor<double, 3> log_weight;  // [batch, head, extra]
};

template <class T>
struct with_extra_keys {
  tensor<T, 4> key, value;
  options how;

  with_extra_keys(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                  tensor<T, 4> const& extra_key, tensor<T, 4> const& extra_value,
                  extra_key_options const& o)
      : key(one_after_the_other(k, extra_key, q.extent(2))),
        value(one_after_the_other(v, extra_value, q.extent(2))) {
    index_t const rows = q.extent(1), keys = k.extent(1);
    how.scale = o.scale;
    how.align = alignment::top_left;
    how.keep = [=](index_t, index_t row, index_t j) {
      return j < keys ? o.keep(row + keys - rows, j) : o.keep_extra(row, j - keys);
    };
    bias weights{tensor<double, 4>({q.extent(0), q.extent(2), 1, key.extent(1)})};
    for (index_t b = 0; b < q.extent(0); ++b)
      for (index_t h = 0; h < q.extent(2); ++h)
        for (index_t t = 0; t < extra_key.extent(1); ++t)
          weights.values(b, h, 0, keys + t) = o.log_weight(b, h, t);
    how.modifiers.push_back(weights);
  }
};

}  // namespace reference
