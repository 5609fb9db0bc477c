#pragma once

#include <heed/view/ingredients.hpp>
#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <concepts>

/// Feature maps: what a recurrence makes of a row of queries or keys before it multiplies them.
///
/// A feature map is any class with
///
///     index_t features(index_t dim) const;  // how many a row of `dim` numbers has
///     template <class T> void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const;
///     template <class T> void differentiate(side, feature_rows<T> const& x, T const* phi, T const* dphi,
///                                           index_t stride, T* dx, index_t dx_stride) const;
///
/// Row r of the features is at phi + r * stride. `differentiate` overwrites dx with phi'(x)^T dphi. A map of several heads
/// or of positions finds them in feature_rows; `check(recurrence_shape const&)`, optional, throws if they do not fit.
namespace heed {

/// The side of a product that a row stands on.
enum class side { query, key };

/// Consecutive rows of the queries or the keys of one head.
template <class T>
struct feature_rows {
  T const* data;  // row r at data + r * stride
  index_t stride;
  index_t count;
  index_t dim;
  index_t batch;
  index_t head;  // of this tensor
  // Of row 0 among the keys of its sequence: a query stands at its last key, with `dense` at its own row.
  index_t first_position;

  T const* operator[](index_t row) const { return data + row * stride; }
};

/// The shape of a call of linear_attention, for ingredients that check themselves against it.
struct recurrence_shape {
  index_t batches = 0;
  index_t sequences = 0;
  index_t heads = 0;  // of the output
  index_t query_heads = 0;
  index_t key_heads = 0;
  index_t value_heads = 0;
  index_t state_heads = 0;
  index_t rows = 0;
  index_t keys = 0;
  index_t query_dim = 0;
  index_t key_dim = 0;
  index_t value_dim = 0;
};

template <class M>
concept feature_map = requires(M const& m, feature_rows<float> const& x, float* to,
                               float const* from, index_t n) {
  m.apply(side::query, x, to, n);
  m.differentiate(side::query, x, from, from, n, to, n);
};

/// phi(x) = x.
struct identity {
  static index_t features(index_t dim) { return dim; }
  template <class T>
  static void apply(side, feature_rows<T> const& x, T* phi, index_t stride) {
    for (index_t r = 0; r < x.count; ++r) std::copy_n(x[r], x.dim, phi + r * stride);
  }
  template <class T>
  static void differentiate(side, feature_rows<T> const& x, T const*, T const* dphi, index_t stride,
                            T* dx, index_t dx_stride) {
    for (index_t r = 0; r < x.count; ++r) std::copy_n(dphi + r * stride, x.dim, dx + r * dx_stride);
  }
};

namespace detail {

/// How many features a row of `dim` numbers has on one side.
template <feature_map M>
index_t features_of(M const& map, side of, index_t dim) {
  if constexpr (requires { map.features(of, dim); })
    return map.features(of, dim);
  else
    return map.features(dim);
}

}  // namespace detail

/// A map of one side's rows; those of the other side stay as they are.
template <feature_map M, side Side>
struct one_sided {
  M map;

  index_t features(side of, index_t dim) const {
    return of == Side ? detail::features_of(map, of, dim) : dim;
  }
  void check(recurrence_shape const& shape) const {
    if constexpr (requires { map.check(shape); }) map.check(shape);
  }
  template <class T>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    of == Side ? map.apply(of, x, phi, stride) : identity::apply(of, x, phi, stride);
  }
  template <class T>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    of == Side ? map.differentiate(of, x, phi, dphi, stride, dx, dx_stride)
               : identity::differentiate(of, x, phi, dphi, stride, dx, dx_stride);
  }
};

template <feature_map M>
one_sided<M, side::query> for_queries(M const& map) {
  return {map};
}
template <feature_map M>
one_sided<M, side::key> for_keys(M const& map) {
  return {map};
}

/// A feature map of any type, not owned, for rows of T.
template <class T>
class feature_map_view {
 public:
  feature_map_view() : feature_map_view(everything_as_it_is) {}
  template <feature_map M>
  explicit feature_map_view(M const& map)
      : map_(&map),
        is_identity_(std::same_as<M, identity>),
        features_([](void const* m, side of, index_t dim) {
          return detail::features_of(*static_cast<M const*>(m), of, dim);
        }),
        apply_([](void const* m, side of, feature_rows<T> const& x, T* phi, index_t stride) {
          static_cast<M const*>(m)->apply(of, x, phi, stride);
        }),
        differentiate_([](void const* m, side of, feature_rows<T> const& x, T const* phi,
                          T const* dphi, index_t stride, T* dx, index_t dx_stride) {
          static_cast<M const*>(m)->differentiate(of, x, phi, dphi, stride, dx, dx_stride);
        }) {}

  bool is_identity() const { return is_identity_; }
  index_t features(side of, index_t dim) const { return features_(map_, of, dim); }
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    apply_(map_, of, x, phi, stride);
  }
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    differentiate_(map_, of, x, phi, dphi, stride, dx, dx_stride);
  }

 private:
  static constexpr identity everything_as_it_is{};

  void const* map_;
  bool is_identity_;
  index_t (*features_)(void const*, side, index_t);
  void (*apply_)(void const*, side, feature_rows<T> const&, T*, index_t);
  void (*differentiate_)(void const*, side, feature_rows<T> const&, T const*, T const*, index_t, T*,
                         index_t);
};

}  // namespace heed
