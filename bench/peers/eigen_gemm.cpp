// peer/eigen_gemm: two products by Eigen, see two_products.hpp.
#include "two_products.hpp"

namespace heed_bench {
namespace {

struct eigen_product {
  using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using input = Eigen::Map<matrix const, 0, Eigen::OuterStride<>>;
  using output = Eigen::Map<matrix, 0, Eigen::OuterStride<>>;

  static void scores(index_t m, index_t n, index_t k, float factor, float const* a, index_t lda,
                     float const* b, index_t ldb, float* c, index_t ldc) {
    output(c, m, n, Eigen::OuterStride<>(ldc)).noalias() =
        (factor * input(a, m, k, Eigen::OuterStride<>(lda))) *
        input(b, n, k, Eigen::OuterStride<>(ldb)).transpose();
  }
  static void values(index_t m, index_t n, index_t k, float const* a, index_t lda, float const* b,
                     index_t ldb, float* c, index_t ldc) {
    output(c, m, n, Eigen::OuterStride<>(ldc)).noalias() =
        input(a, m, k, Eigen::OuterStride<>(lda)) * input(b, k, n, Eigen::OuterStride<>(ldb));
  }
};

rows const all([] {
  Eigen::setNbThreads(1);  // compiled with OpenMP, it would take them all
  add_forward_peer("eigen_gemm", attend_by_two_products<eigen_product>);
});

}  // namespace
}  // namespace heed_bench
