#pragma once

#include <heed/view/convert.hpp>

#include <array>
#include <string>

/// Two results of the same queries, mixed: gates between full and sparse attention while a model is trained.
namespace heed {

namespace detail {

template <class A, class B>
void require_same_shape(char const* name, A const& view, char const* like, B const& other) {
  require(view.extents() == other.extents(), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected that of " +
           like + ", " + shape_text(other.extents());
  });
}

/// out = w a + (1 - w) b, with w = weight(batch, head, row).
template <class A, class B, class O, class Weight>
void blend(tensor_view<A, 4> a, tensor_view<B, 4> b, tensor_view<O, 4> out, Weight weight) {
  using T = compute_type<A, B, O>;
  require_same_shape("b", b, "a", a);
  require_same_shape("out", out, "a", a);
  for (index_t n = 0; n < out.extent(0); ++n)
    for (index_t i = 0; i < out.extent(1); ++i)
      for (index_t h = 0; h < out.extent(2); ++h) {
        T const w = static_cast<T>(weight(n, h, i));
        for (index_t d = 0; d < out.extent(3); ++d)
          out(n, i, h, d) = convert_element<O>(w * convert_element<T>(a(n, i, h, d)) +
                                               (1 - w) * convert_element<T>(b(n, i, h, d)));
      }
}

/// da = w dout, db = (1 - w) dout, each unless its view is empty, and add_weight(batch, head, row, dout.(a - b)).
template <class A, class B, class DO, class DA, class DB, class Weight, class AddWeight>
void blend_backward(tensor_view<A, 4> a, tensor_view<B, 4> b, tensor_view<DO, 4> dout,
                    tensor_view<DA, 4> da, tensor_view<DB, 4> db, Weight weight,
                    AddWeight add_weight) {
  using T = compute_type<A, B, DO>;
  require_same_shape("b", b, "a", a);
  require_same_shape("dout", dout, "a", a);
  if (da.data() != nullptr) require_same_shape("da", da, "a", a);
  if (db.data() != nullptr) require_same_shape("db", db, "a", a);
  for (index_t n = 0; n < dout.extent(0); ++n)
    for (index_t i = 0; i < dout.extent(1); ++i)
      for (index_t h = 0; h < dout.extent(2); ++h) {
        T const w = static_cast<T>(weight(n, h, i));
        double sum = 0;
        for (index_t d = 0; d < dout.extent(3); ++d) {
          T const gradient = convert_element<T>(dout(n, i, h, d));
          sum += static_cast<double>(gradient) *
                 (static_cast<double>(convert_element<T>(a(n, i, h, d))) -
                  static_cast<double>(convert_element<T>(b(n, i, h, d))));
          if (da.data() != nullptr) da(n, i, h, d) = convert_element<DA>(w * gradient);
          if (db.data() != nullptr) db(n, i, h, d) = convert_element<DB>((1 - w) * gradient);
        }
        add_weight(n, h, i, sum);
      }
}

/// weights(b, h, i) of [batch, head, row], extents of 1 shared.
template <class T>
T& shared_at(tensor_view<T, 3> const& weights, index_t b, index_t h, index_t i) {
  return weights(weights.extent(0) == 1 ? 0 : b, weights.extent(1) == 1 ? 0 : h,
                 weights.extent(2) == 1 ? 0 : i);
}
template <class T, class O>
void check_blend_weights(char const* name, tensor_view<T, 3> weights, tensor_view<O, 4> out) {
  std::array<index_t, 3> const full{out.extent(0), out.extent(2), out.extent(1)};
  for (int axis = 0; axis < 3; ++axis)
    require(
        weights.extent(axis) == 1 || weights.extent(axis) == full[static_cast<std::size_t>(axis)],
        [&] {
          return std::string(name) + " has shape " + shape_text(weights.extents()) + "; expected " +
                 shape_text(full) + " (batch, head, row), each 1 or in full";
        });
}

}  // namespace detail

/// out = w a + (1 - w) b. a, b, out: [batch, row, heads, dim]; weight: [batch, head, row], each 1 to share.
template <element A, element B, class W, element O>
void blend(tensor_view<A, 4> a, tensor_view<B, 4> b, tensor_view<W, 3> weight,
           tensor_view<O, 4> out) {
  detail::check_blend_weights("weight", weight, out);
  detail::blend(a, b, out, [&](index_t n, index_t h, index_t i) {
    return detail::shared_at(weight, n, h, i);
  });
}

/// The gradients of blend: da, db shaped like a and either of them empty if it is not wanted; dweight shaped like
/// weight, summed over the axes that were shared.
template <element A, element B, class W, element DO, element DA, element DB, class DW>
void blend_backward(tensor_view<A, 4> a, tensor_view<B, 4> b, tensor_view<W, 3> weight,
                    tensor_view<DO, 4> dout, tensor_view<DA, 4> da, tensor_view<DB, 4> db,
                    tensor_view<DW, 3> dweight) {
  detail::check_blend_weights("weight", weight, dout);
  detail::require_same_shape("dweight", dweight, "weight", weight);
  for (index_t n = 0; n < dweight.extent(0); ++n)
    for (index_t h = 0; h < dweight.extent(1); ++h)
      for (index_t i = 0; i < dweight.extent(2); ++i) dweight(n, h, i) = 0;
  detail::blend_backward(
      a, b, dout, da, db,
      [&](index_t n, index_t h, index_t i) { return detail::shared_at(weight, n, h, i); },
      [&](index_t n, index_t h, index_t i, double sum) {
        DW& total = detail::shared_at(dweight, n, h, i);
        total = static_cast<DW>(static_cast<double>(total) + sum);
      });
}

}  // namespace heed
