// peer/openblas_gemm: two products by OpenBLAS, see two_products.hpp. Compiled where OpenBLAS is
// found.
#include "two_products.hpp"

#include <benchmark/benchmark.h>
#include <cblas.h>

namespace heed_bench {
namespace {

struct openblas_product {
  static void scores(index_t m, index_t n, index_t k, float factor, float const* a, index_t lda,
                     float const* b, index_t ldb, float* c, index_t ldc) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blasint(m), blasint(n), blasint(k), factor,
                a, blasint(lda), b, blasint(ldb), 0, c, blasint(ldc));
  }
  static void values(index_t m, index_t n, index_t k, float const* a, index_t lda, float const* b,
                     index_t ldb, float* c, index_t ldc) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blasint(m), blasint(n), blasint(k), 1, a,
                blasint(lda), b, blasint(ldb), 0, c, blasint(ldc));
  }
};

rows const all([] {
  openblas_set_num_threads(1);
  // Which kernels it chose: an old version may not know a new processor.
  benchmark::AddCustomContext("openblas", openblas_get_config());
  add_forward_peer("openblas_gemm", attend_by_two_products<openblas_product>);
});

}  // namespace
}  // namespace heed_bench
