// Plain dense tensors for tests that are not about layout.
#pragma once

#include "support/guarded.hpp"

#include <heed/softmax.hpp>

#include <cmath>

namespace support {

template <class T, int Rank>
guarded<T, Rank> blank(extents_of<Rank> const& extents) {
  return {extents, packed<Rank>(extents)};
}

template <class T = float>
guarded<T, 4> normal(random& draw, extents_of<4> const& extents, double spread = 1) {
  auto tensor = blank<T, 4>(extents);
  tensor.fill(
      [&](auto const&) { return T(static_cast<heed::compute_type<T>>(spread * draw.normal())); });
  return tensor;
}

/// What attention() returns for some views, with its lse.
template <class T>
struct attended {
  reference::tensor<T, 4> out;
  reference::tensor<T, 3> lse;
};

template <class Q, class K, class V, class... Ingredients>
auto attend(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            Ingredients const&... ingredients) {
  using T = heed::compute_type<Q, K, V>;
  auto out = blank<T, 4>({query.extent(0), query.extent(1), query.extent(2), value.extent(3)});
  auto lse = blank<T, 3>({query.extent(0), query.extent(2), query.extent(1)});
  heed::attention(query, key, value, out.view(), heed::lse_into<T>{lse.view()}, ingredients...);
  return attended<T>{out.template values<T>(), lse.template values<T>()};
}

/// The gradients of attention() with the loss sum dout . out + sum dlse . lse.
template <class T>
struct gradients_of {
  reference::tensor<T, 4> query, key, value;
};

template <class T, class... Ingredients>
gradients_of<T> attend_backward(tensor_view<T const, 4> query, tensor_view<T const, 4> key,
                                tensor_view<T const, 4> value, tensor_view<T const, 4> dout,
                                tensor_view<T const, 3> dlse, Ingredients const&... ingredients) {
  auto const saved = attend(query, key, value, ingredients...);
  auto dquery = blank<T, 4>(query.extents());
  auto dkey = blank<T, 4>(key.extents());
  auto dvalue = blank<T, 4>(value.extents());
  heed::attention_backward(
      query, key, value, tensor_view<T const, 4>(saved.out.values.data(), saved.out.extents),
      tensor_view<T const, 3>(saved.lse.values.data(), saved.lse.extents), dout, dquery.view(),
      dkey.view(), dvalue.view(), heed::lse_gradient<T>(dlse), ingredients...);
  return {dquery.template values<T>(), dkey.template values<T>(), dvalue.template values<T>()};
}

/// The largest difference; infinite where shapes differ or only one is NaN or infinite.
template <class T, int Rank>
double difference(reference::tensor<T, Rank> const& a, reference::tensor<T, Rank> const& b) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (a.extents != b.extents) return infinity;
  double largest = 0;
  for (std::size_t n = 0; n < a.values.size(); ++n) {
    double const x = static_cast<double>(a.values[n]), y = static_cast<double>(b.values[n]);
    if (x == y || (std::isnan(x) && std::isnan(y))) continue;
    if (!std::isfinite(x) || !std::isfinite(y)) return infinity;
    largest = std::max(largest, std::abs(x - y));
  }
  return largest;
}

}  // namespace support
