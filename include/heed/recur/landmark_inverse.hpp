#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/simd/product.hpp>
#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <cmath>

namespace heed::recur {

/// About the inverse Z of a softmax matrix A, by the iterations Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from
/// A^T / max_j sum_i A_ij, and its gradient. Matrices of m rows padded to whole registers, all in double; those who use it
/// fill `a` and `wide` themselves, zeros in the padding.
/// Nystroemformer: A Nystroem-Based Algorithm for Approximating Self-Attention.
class landmark_inverse {
 public:
  static constexpr int iterations = 6;

  /// `dim` is the most columns of what is multiplied with; `keeps` whether there will be a backward pass.
  landmark_inverse(arena& memory, index_t landmarks, index_t dim, bool keeps)
      : m(landmarks), stride(padded(landmarks)), wide_stride(padded(dim)), kept_(keeps) {
    a = take(memory);
    for (int n = 0; n <= (keeps ? iterations : 1); ++n) z_[n] = take(memory);
    for (double*& each : work_) each = take(memory);
    for (double*& each : wide) each = memory.take<double>(m * wide_stride);
    slope = keeps ? take(memory) : nullptr;
    turned_ = memory.take<double>(padded(dim) * stride);
  }

  index_t m, stride, wide_stride;
  double* a;        // [m][stride], zeros beyond m columns
  double* slope;    // the same, for d loss / d run(); none unless there will be a backward pass
  double* wide[3];  // [m][wide_stride]

  static index_t padded(index_t columns) {
    return simd::round_up(columns, simd::tile_shape<double, xsimd::default_arch>::lanes);
  }

  /// Rows of a tensor in one of the wide matrices, with zeros beyond its columns.
  template <class T>
  void load(int into, tensor_view<T, 4> rows, index_t b, index_t h) const {
    for (index_t c = 0; c < m; ++c)
      for (index_t d = 0; d < wide_stride; ++d)
        wide[into][c * wide_stride + d] =
            d < rows.extent(3) ? static_cast<double>(rows(b, c, h, d)) : 0;
  }

  /// a = softmax(scale x y^T) of two wide matrices.
  void weigh(double scale, double const* x, double const* y, index_t dim) {
    times_turned(x, y, dim, a);
    for (index_t c = 0; c < m; ++c) {
      double* const row = a + c * stride;
      double const top = *std::max_element(row, row + m);
      double total = 0;
      for (index_t e = 0; e < m; ++e) total += row[e] = std::exp(scale * (row[e] - top));
      for (index_t e = 0; e < m; ++e) row[e] /= total;
    }
  }

  /// The inverse of a, as far as the iterations go.
  double const* run() {
    largest_column_ = 0;
    double largest = -1;
    for (index_t e = 0; e < m; ++e) {
      double sum = 0;
      for (index_t c = 0; c < m; ++c) sum += a[c * stride + e];
      if (sum > largest) largest = sum, largest_column_ = e;
    }
    start_ = 1 / largest;
    transpose(a, z_[0]);
    for (index_t n = 0; n < m * stride; ++n) z_[0][n] *= start_;
    for (int n = 0; n < iterations; ++n) {
      factors(z(n));
      product<false>(z(n), false, work_[3], z(n + 1));
      for (index_t i = 0; i < m * stride; ++i) z(n + 1)[i] *= 0.25;
    }
    return z(iterations);
  }

  /// d loss / d a from dz, d loss / d run(), which it uses up.
  double const* differentiate(double* dz) {
    auto& [x, p, q, r, dx, dp, da, other] = work_;
    std::fill_n(da, m * stride, 0.0);
    for (int n = iterations; n-- > 0;) {
      factors(z(n));
      for (index_t i = 0; i < m * stride; ++i) dz[i] *= 0.25;
      double* const dr = other;
      product<false>(z(n), true, dz, dr);  // dR = Z^T dZ'
      transpose(r, dp);
      product<false>(dz, false, dp, dx);
      std::copy_n(dx, m * stride, dz);  // dZ = dZ' R^T
      // R = 13 I - X Q: the gradients of X and Q with the opposite sign, and so down to P.
      transpose(q, dp);
      product<false>(dr, false, dp, dx);
      product<false>(x, true, dr, r);
      transpose(p, dp);
      for (index_t i = 0; i < m * stride; ++i) r[i] = -r[i];
      product<true>(r, false, dp, dx);
      product<false>(x, true, r, dp);
      for (index_t i = 0; i < m * stride; ++i) dx[i] = -dx[i] + dp[i];
      // X = A Z.
      transpose(z(n), dp);
      product<true>(dx, false, dp, da);
      product<true>(a, true, dx, dz);
    }
    // Z_0 = A^T / c, where c is the sum of one column.
    transpose(dz, other);
    double by_start = 0;
    for (index_t i = 0; i < m * stride; ++i) by_start += other[i] * a[i];
    for (index_t i = 0; i < m * stride; ++i) da[i] += start_ * other[i];
    for (index_t c = 0; c < m; ++c) da[c * stride + largest_column_] -= start_ * start_ * by_start;
    return da;
  }

  /// to = x (transposed or not) times a wide matrix.
  void times_wide(double const* x, bool turned, double const* y, double* to) const {
    simd::product<false, xsimd::default_arch>(m, m, scalars(x, turned), y, wide_stride, wide_stride,
                                              to, wide_stride);
  }
  /// to = x y^T of wide matrices, of which `dim` columns count.
  void times_turned(double const* x, double const* y, index_t dim, double* to) const {
    std::fill_n(turned_, dim * stride, 0.0);
    for (index_t d = 0; d < dim; ++d)
      for (index_t c = 0; c < m; ++c) turned_[d * stride + c] = y[c * wide_stride + d];
    simd::product<false, xsimd::default_arch>(m, dim, simd::scalar_rows<double>{x, wide_stride, 1},
                                              turned_, stride, stride, to, stride);
  }

 private:
  double* take(arena& memory) const { return memory.take<double>(m * stride); }
  /// Without a backward pass two iterates are enough.
  double* z(int n) const { return z_[kept_ ? n : n % 2]; }

  simd::scalar_rows<double> scalars(double const* x, bool turned) const {
    return turned ? simd::scalar_rows<double>{x, 1, stride}
                  : simd::scalar_rows<double>{x, stride, 1};
  }
  template <bool Accumulate>
  void product(double const* x, bool turned, double const* y, double* to) const {
    simd::product<Accumulate, xsimd::default_arch>(m, m, scalars(x, turned), y, stride, stride, to,
                                                   stride);
  }
  void transpose(double const* x, double* to) const {
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < stride; ++j) to[i * stride + j] = j < m ? x[j * stride + i] : 0;
  }
  /// X = A Z, P = 7 I - X, Q = 15 I - X P, R = 13 I - X Q.
  void factors(double const* z) const {
    auto& [x, p, q, r, dx, dp, da, other] = work_;
    product<false>(a, false, z, x);
    for (index_t i = 0; i < m * stride; ++i) p[i] = -x[i];
    for (index_t i = 0; i < m; ++i) p[i * stride + i] += 7;
    product<false>(x, false, p, q);
    for (index_t i = 0; i < m * stride; ++i) q[i] = -q[i];
    for (index_t i = 0; i < m; ++i) q[i * stride + i] += 15;
    product<false>(x, false, q, r);
    for (index_t i = 0; i < m * stride; ++i) r[i] = -r[i];
    for (index_t i = 0; i < m; ++i) r[i * stride + i] += 13;
  }

  bool kept_;
  double* z_[iterations + 1];
  double* work_[8];
  double* turned_;
  double start_ = 0;
  index_t largest_column_ = 0;
};

}  // namespace heed::recur
