#pragma once

#include <heed/view/tensor_view.hpp>

#include <Eigen/Core>

#include <string>
#include <type_traits>

namespace heed {

namespace detail {

template <class M>
concept eigen_in_memory = std::is_base_of_v<Eigen::MatrixBase<std::decay_t<M>>, std::decay_t<M>> &&
    requires(M&& m) {
  m.data(), m.rowStride(), m.colStride();
};

}  // namespace detail

/// Views an Eigen matrix whose rows are positions and whose columns are heads side by side, each
/// columns / heads wide: [1, rows, heads, columns / heads]. A matrix, Map, Ref or block of one, in
/// either storage order; it must outlive the view. Throws heed::error unless heads divides columns.
template <class Matrix>
  requires detail::eigen_in_memory<Matrix>
auto view(Matrix&& matrix, index_t heads = 1) {
  static_assert(
      std::is_lvalue_reference_v<Matrix> ||
          !std::is_base_of_v<Eigen::PlainObjectBase<std::decay_t<Matrix>>, std::decay_t<Matrix>>,
      "the matrix would be gone before its view is used: give it a name");
  using element = std::remove_pointer_t<decltype(matrix.data())>;
  index_t const rows = matrix.rows(), columns = matrix.cols();
  require(heads > 0 && columns % heads == 0, [&] {
    return "a matrix of shape " + shape_text(std::array{rows, columns}) + " cannot be viewed as " +
           std::to_string(heads) + " heads; expected a divisor of its columns";
  });
  index_t const dim = columns / heads, row_stride = matrix.rowStride(), stride = matrix.colStride();
  return tensor_view<element, 4>(matrix.data(), {1, rows, heads, dim},
                                 {rows * row_stride, row_stride, dim * stride, stride});
}

}  // namespace heed
