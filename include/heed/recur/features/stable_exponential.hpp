#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/view/rows.hpp>

#include <string>

namespace heed {

/// The largest number of each batch entry and head of the keys, for stable_exponential; [batch, heads]. 0 where
/// there are no keys.
template <element K, element T>
void largest_of_keys(tensor_view<K, 4> key, tensor_view<T, 2> largest) {
  require(largest.extent(0) == key.extent(0) && largest.extent(1) == key.extent(2), [&] {
    return "largest has shape " + shape_text(largest.extents()) + "; expected [" +
           std::to_string(key.extent(0)) + ", " + std::to_string(key.extent(2)) +
           "] (batch, heads), those of key of shape " + shape_text(key.extents());
  });
  using C = compute_type<K, T>;
  for (index_t b = 0; b < key.extent(0); ++b)
    for (index_t h = 0; h < key.extent(2); ++h) {
      C most = key.extent(1) * key.extent(3) == 0 ? C(0) : convert_element<C>(key(b, 0, h, 0));
      for (index_t j = 0; j < key.extent(1); ++j)
        for (index_t d = 0; d < key.extent(3); ++d)
          most = std::max(most, convert_element<C>(key(b, j, h, d)));
      largest(b, h) = convert_element<T>(most);
    }
}

/// e^x for normalised attention over numbers of any size: a query is e^(q - max q), a key e^(k - shift), since
/// a factor of a row and one of all keys of a head cancel. (With normalised{epsilon} only as far as epsilon is small
/// against the sum.)
///
///   shift   [batch or 1, heads of the keys or 1], at least about the largest number of the keys, at which e^(k -
///           shift) is 1; see largest_of_keys. The states of a sequence have one shift, which a causal call fixes
///           beforehand. Default 0
template <element S = float>
struct stable_exponential {
  tensor_view<S const, 2> shift;

  stable_exponential() = default;
  explicit stable_exponential(tensor_view<S const, 2> of_keys) : shift(of_keys) {}

  static index_t features(index_t dim) { return dim; }

  void check(recurrence_shape const& shape) const {
    require(
        shift.data() == nullptr || ((shift.extent(0) == 1 || shift.extent(0) == shape.batches) &&
                                    (shift.extent(1) == 1 || shift.extent(1) == shape.key_heads)),
        [&] {
          return "stable_exponential.shift has shape " + shape_text(shift.extents()) +
                 "; expected [1 or " + std::to_string(shape.batches) + ", 1 or " +
                 std::to_string(shape.key_heads) + "] (batch, heads of the keys)";
        });
  }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count && x.dim > 0; ++r) {
      batch const least(of == side::query ? recur::largest_of_row<Arch>(x.dim, x[r])
                                          : shift_of<T>(x.batch, x.head));
      recur::transform_row<Arch>(
          x.dim, phi + r * stride, [&](batch const& each) { return simd::exp(each - least); },
          x[r]);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r) {
      T const *const value = phi + r * stride, *const slope = dphi + r * stride;
      T* const to = dx + r * dx_stride;
      recur::transform_row<Arch>(
          x.dim, to, [](batch const& a, batch const& b) { return a * b; }, value, slope);
      if (of == side::query && x.dim > 0)
        to[std::max_element(x[r], x[r] + x.dim) - x[r]] -=
            recur::dot_row<Arch>(x.dim, value, slope);
    }
  }

 private:
  template <class T>
  T shift_of(index_t b, index_t h) const {
    if (shift.data() == nullptr) return T(0);
    return convert_element<T>(shift(shift.extent(0) == 1 ? 0 : b, shift.extent(1) == 1 ? 0 : h));
  }
};
template <class S>
stable_exponential(tensor_view<S, 2>) -> stable_exponential<std::remove_const_t<S>>;

}  // namespace heed
