#pragma once

#include <heed/view/convert.hpp>

#include <algorithm>

namespace heed {

/// Copies a tensor [batch, position, head, dim] to one of the same extents, converting its elements.
template <element From, element To>
void copy_elements(tensor_view<From, 4> from, tensor_view<To, 4> to) {
  bool const contiguous = from.stride(3) == 1 && to.stride(3) == 1;
  index_t const dim = to.extent(3);
  if (dim == 0) return;
  for (index_t b = 0; b < to.extent(0); ++b)
    for (index_t i = 0; i < to.extent(1); ++i)
      for (index_t h = 0; h < to.extent(2); ++h)
        if (contiguous)
          std::transform(&from(b, i, h, 0), &from(b, i, h, 0) + dim, &to(b, i, h, 0),
                         convert_element<To, std::remove_const_t<From>>);
        else
          for (index_t d = 0; d < dim; ++d) to(b, i, h, d) = convert_element<To>(from(b, i, h, d));
}

}  // namespace heed
