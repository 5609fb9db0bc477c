#pragma once

#include <heed/view/tensor_view.hpp>

/// TLOB: attention over the two axes of a table in turn, time steps with features as channels, and features with time
/// steps as channels. A matter of layout: the second reads the transposed table, and no element moves.
///
///     attention(q, k, v, out);                                     // q = x Wq, …: [batch, time, head, features]
///     auto const y = exchanged(x);                                 // [batch, features, 1, time]
///     attention(q, k, v, out);                                     // q = y Wq, …: [batch, features, head, time]
///
/// No mask in either direction. Heads are as wide as the table: each projects all channels to as many.
namespace heed {

/// A table [batch, time, 1, feature] as [batch, feature, 1, time], and back.
template <class T>
constexpr tensor_view<T, 4> exchanged(tensor_view<T, 4> table) {
  return table.swap_axes(1, 3);
}

}  // namespace heed
