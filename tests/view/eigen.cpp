#include "support/catch.hpp"

#include <heed/view/eigen.hpp>

#include <vector>

using heed::index_t;

namespace {

// Element (i, h, d) of the view is element (i, h * dim + d) of the matrix.
template <class View, class Matrix>
bool agrees(View const& view, Matrix const& matrix) {
  index_t const dim = view.extent(3);
  for (index_t i = 0; i < view.extent(1); ++i)
    for (index_t h = 0; h < view.extent(2); ++h)
      for (index_t d = 0; d < dim; ++d)
        if (view(0, i, h, d) != matrix(i, h * dim + d)) return false;
  return view.extent(0) == 1 && view.extent(1) == matrix.rows() &&
         view.extent(2) * dim == matrix.cols();
}

using row_major = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

}  // namespace

TEST_CASE("matrices of either storage order are viewed in place", "[view][eigen]") {
  Eigen::MatrixXf columns = Eigen::MatrixXf::Random(5, 12);
  row_major rows = row_major::Random(5, 12);
  auto a = heed::view(columns, 3);
  auto b = heed::view(rows, 4);
  STATIC_REQUIRE(std::is_same_v<decltype(a), heed::tensor_view<float, 4>>);
  CHECK(agrees(a, columns));
  CHECK(agrees(b, rows));
  CHECK(b.stride(3) == 1);
  CHECK(agrees(heed::view(columns), columns));

  a(0, 4, 2, 3) = 7;
  CHECK(columns(4, 11) == 7);
}

TEST_CASE("constness follows the matrix", "[view][eigen]") {
  Eigen::MatrixXf const constant = Eigen::MatrixXf::Random(2, 4);
  STATIC_REQUIRE(
      std::is_same_v<decltype(heed::view(constant, 2)), heed::tensor_view<float const, 4>>);
  Eigen::Ref<Eigen::MatrixXf const> const ref(constant);
  STATIC_REQUIRE(std::is_same_v<decltype(heed::view(ref, 2)), heed::tensor_view<float const, 4>>);
  CHECK(agrees(heed::view(ref, 2), constant));
}

TEST_CASE("maps, refs and blocks keep their strides", "[view][eigen]") {
  std::vector<float> memory(200);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<float>(i);
  using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  Eigen::Map<Eigen::MatrixXf, 0, strides> map(memory.data(), 4, 6, strides(20, 3));
  CHECK(agrees(heed::view(map, 2), map));

  Eigen::MatrixXf packed = Eigen::MatrixXf::Random(5, 18);  // queries, keys, values side by side
  CHECK(agrees(heed::view(packed.middleCols(6, 6), 3), packed.middleCols(6, 6)));
  STATIC_REQUIRE(
      std::is_same_v<decltype(heed::view(packed.leftCols(6), 3)), heed::tensor_view<float, 4>>);

  row_major rows = row_major::Random(7, 6);
  Eigen::Ref<row_major> ref(rows.middleRows(2, 3));
  CHECK(agrees(heed::view(ref, 6), rows.middleRows(2, 3)));

  Eigen::RowVectorXf one = Eigen::RowVectorXf::Random(8);
  CHECK(agrees(heed::view(one, 2), one));
}

TEST_CASE("heads must divide the columns", "[view][eigen]") {
  Eigen::MatrixXf matrix(3, 10);
  CHECK_THROWS_AS(heed::view(matrix, 3), heed::error);
  CHECK_THROWS_AS(heed::view(matrix, 0), heed::error);
}
