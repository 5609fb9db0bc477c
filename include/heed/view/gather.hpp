#pragma once

#include <heed/view/copy.hpp>

#include <span>
#include <string>

namespace heed {

namespace detail {

template <class From, class To>
void check_gather(tensor_view<From, 4> from, std::span<index_t const> rows, tensor_view<To, 4> to) {
  require(to.extents() == std::array{from.extent(0), static_cast<index_t>(rows.size()),
                                     from.extent(2), from.extent(3)},
          [&] {
            return "gathering " + std::to_string(rows.size()) + " rows of a tensor of shape " +
                   shape_text(from.extents()) + " into one of shape " + shape_text(to.extents()) +
                   "; expected that many positions, and the other extents alike";
          });
  for (index_t row : rows)
    require(row >= -1 && row < from.extent(1), [&] {
      return "a list of rows holds " + std::to_string(row) + "; expected 0 to " +
             std::to_string(from.extent(1) - 1) + ", or -1 for a row of zeros";
    });
}

}  // namespace detail

/// Row i of `to` is row rows[i] of `from`, zeros where that is -1. Both are [batch, position, head, dim].
template <element From, element To>
void gather_rows(tensor_view<From, 4> from, std::span<index_t const> rows, tensor_view<To, 4> to) {
  detail::check_gather(from, rows, to);
  for (index_t i = 0; i < to.extent(1); ++i) {
    index_t const row = rows[static_cast<std::size_t>(i)];
    if (row >= 0)
      copy_elements(from.slice(1, row, 1), to.slice(1, i, 1));
    else
      for (index_t b = 0; b < to.extent(0); ++b)
        for (index_t h = 0; h < to.extent(2); ++h)
          for (index_t d = 0; d < to.extent(3); ++d) to(b, i, h, d) = To(0);
  }
}

/// The gradient of gather_rows: row rows[i] of `dfrom` receives row i of `dto`, and the sum of all that it gave to.
template <element DTo, element DFrom>
void gather_rows_backward(tensor_view<DTo, 4> dto, std::span<index_t const> rows,
                          tensor_view<DFrom, 4> dfrom) {
  using T = compute_type<DTo, DFrom>;
  detail::check_gather(dfrom, rows, dto);
  for (index_t b = 0; b < dfrom.extent(0); ++b)
    for (index_t h = 0; h < dfrom.extent(2); ++h) {
      for (index_t i = 0; i < dfrom.extent(1); ++i)
        for (index_t d = 0; d < dfrom.extent(3); ++d) dfrom(b, i, h, d) = DFrom(0);
      for (index_t i = 0; i < dto.extent(1); ++i) {
        index_t const row = rows[static_cast<std::size_t>(i)];
        if (row < 0) continue;
        for (index_t d = 0; d < dfrom.extent(3); ++d)
          dfrom(b, row, h, d) = convert_element<DFrom>(convert_element<T>(dfrom(b, row, h, d)) +
                                                       convert_element<T>(dto(b, i, h, d)));
      }
    }
}

}  // namespace heed
