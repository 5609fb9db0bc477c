// What tests of recurrences draw: sequences, and views of other ranks of their tensors.
#pragma once

#include "reference/state_space.hpp"
#include "support/random.hpp"

#include <heed/pattern/positions.hpp>

#include <algorithm>

namespace support {

/// One sequence a batch entry, or several packed in one.
struct drawn_sequences : reference::sequences {
  heed::index_t batches = 1;

  drawn_sequences(random& draw, heed::index_t positions) {
    if (!draw.one_in(3)) {
      batches = draw.between(1, 3);
      return;
    }
    bounds = {0, positions};
    for (heed::index_t n = draw.between(0, 3); n > 0; --n)
      bounds.push_back(draw.between(0, positions));
    std::sort(bounds.begin(), bounds.end());
  }
  heed::index_t count() const { return reference::sequences::count(batches); }

  /// Calls f with documents, if there are any.
  template <class F>
  void call(F f) const {
    if (bounds.empty())
      f();
    else
      f(heed::documents{bounds, bounds});
  }
};

/// A tensor of rank 4 whose first axes have an extent of 1 without them.
template <int Rank, class T>
heed::tensor_view<T, Rank> last_axes(heed::tensor_view<T, 4> view) {
  typename heed::tensor_view<T, Rank>::index_array extents, strides;
  std::copy_n(view.extents().end() - Rank, Rank, extents.begin());
  std::copy_n(view.strides().end() - Rank, Rank, strides.begin());
  return {view.data(), extents, strides};
}

}  // namespace support
