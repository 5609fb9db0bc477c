#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>

#include <string>

namespace heed {

/// Deterministic parameter-free projection (Schlag, Irie, Schmidhuber: Linear Transformers Are Secretly Fast Weight
/// Programmers): with r = [relu(x), relu(-x)], the products r_i r_(i - s) around the 2 dim of them, for s = 1..nu; 2
/// dim nu features.
struct dpfp {
  index_t nu = 1;

  index_t features(index_t dim) const { return 2 * dim * nu; }

  void check(recurrence_shape const&) const {
    require(nu >= 1, [&] { return "dpfp.nu is " + std::to_string(nu) + "; expected at least 1"; });
  }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = 2 * x.dim;
    T* const halves = recur::feature_scratch<T>(2 * width);
    for (index_t r = 0; r < x.count && x.dim > 0; ++r) {
      split<T, Arch>(x[r], x.dim, halves);
      for (index_t s = 1; s <= nu; ++s)
        recur::transform_row<Arch>(
            width, phi + r * stride + (s - 1) * width,
            [](batch const& a, batch const& b) { return a * b; }, halves,
            halves + width - s % width);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side, feature_rows<T> const& x, T const*, T const* dphi, index_t stride, T* dx,
                     index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = 2 * x.dim;
    T* const halves = recur::feature_scratch<T>(3 * width);
    T* const dhalves = halves + 2 * width;
    for (index_t r = 0; r < x.count && x.dim > 0; ++r) {
      split<T, Arch>(x[r], x.dim, halves);
      std::fill_n(dhalves, width, T(0));
      for (index_t s = 1; s <= nu; ++s) {
        // Half i is in product i, with half i - s, and in product i + s; the two that go around are done apart.
        T const* const slope = dphi + r * stride + (s - 1) * width;
        index_t const by = s % width;
        auto const add = [](batch const& sum, batch const& a, batch const& b) {
          return simd::fma(a, b, sum);
        };
        recur::transform_row<Arch>(width, dhalves, add, dhalves, slope, halves + width - by);
        recur::transform_row<Arch>(width - by, dhalves, add, dhalves, slope + by, halves + by);
        recur::transform_row<Arch>(by, dhalves + width - by, add, dhalves + width - by, slope,
                                   halves);
      }
      recur::transform_row<Arch>(
          x.dim, dx + r * dx_stride,
          [](batch const& each, batch const& up, batch const& down) {
            return xsimd::select(each > batch(0), up,
                                 xsimd::select(each < batch(0), -down, batch(0)));
          },
          x[r], dhalves, dhalves + x.dim);
    }
  }

 private:
  /// [relu(x), relu(-x)], twice.
  template <class T, class Arch>
  static void split(T const* x, index_t dim, T* halves) {
    using batch = xsimd::batch<T, Arch>;
    recur::transform_row<Arch>(
        dim, halves, [](batch const& each) { return simd::detail::at_least(each, 0); }, x);
    recur::transform_row<Arch>(
        dim, halves + dim, [](batch const& each) { return simd::detail::at_least(-each, 0); }, x);
    std::copy_n(halves, 2 * dim, halves + 2 * dim);
  }
};

}  // namespace heed
