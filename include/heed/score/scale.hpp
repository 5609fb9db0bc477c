#pragma once

#include <heed/view/tensor_view.hpp>

namespace heed {

/// The factor of the raw product: s = value * q.k, before any modifier. Default 1 / sqrt(head_dim).
/// `gradient`, if given, receives d loss / d value from attention_backward.
struct scale {
  double value;
  double* gradient = nullptr;
};

/// A temperature for each row: s = scale * factors(b, h, i) * q.k.
/// factors: [batch, head, position]. `gradient`, if given, has the same shape and is written by
/// attention_backward.
template <class T>
struct row_scale {
  tensor_view<T const, 3> factors;
  tensor_view<T, 3> gradient = {};

  row_scale(tensor_view<T const, 3> f, tensor_view<T, 3> g = {}) : factors(f), gradient(g) {}
};
template <class T>
row_scale(tensor_view<T, 3>) -> row_scale<std::remove_const_t<T>>;
template <class T, class U>
row_scale(tensor_view<T, 3>, tensor_view<U, 3>) -> row_scale<U>;

}  // namespace heed
