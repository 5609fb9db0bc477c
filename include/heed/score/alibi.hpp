#pragma once

#include <heed/score/modifier.hpp>
#include <heed/simd/fma.hpp>

#include <bit>
#include <cmath>

namespace heed {

/// Attention with linear biases: s -> s - slopes[h] * |key - query|, in positions.
/// slopes: [head]. `gradient`, if given, has the same shape and is written by attention_backward.
/// Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation.
template <class T>
struct alibi {
  tensor_view<T const, 1> slopes;
  tensor_view<T, 1> gradient = {};

  template <class U>
    requires std::is_same_v<T, std::remove_const_t<U>>
  explicit alibi(tensor_view<U, 1> s, tensor_view<T, 1> g = {}) : slopes(s), gradient(g) {}

  struct bound {
    T slope_of_head;

    template <class Batch>
    Batch apply(Batch score, Batch query, Batch key) const {
      Batch const slope(static_cast<typename Batch::value_type>(slope_of_head));
      return simd::fnma(slope, xsimd::abs(key - query), score);
    }
    /// d (modified score) / d slope.
    double parameter_slope(double, double, index_t query, index_t key) const {
      return -static_cast<double>(key > query ? key - query : query - key);
    }
  };
  bound bind(place const& where) const { return {slopes(where.head)}; }

  bool wants_gradient() const { return gradient.data() != nullptr; }
  void set_gradient(double const* sum_of_head, index_t heads) const {
    for (index_t h = 0; h < heads; ++h) gradient(h) = static_cast<T>(sum_of_head[h]);
  }

  /// The published slope of a head, with n the largest power of two that is <= heads: 2^(-8 (h + 1) / n)
  /// for the first n heads, and for head n + t the odd step 2^(-4 (2 t + 1) / n).
  static T slope(index_t head, index_t heads) {
    auto const n = static_cast<index_t>(std::bit_floor(static_cast<std::size_t>(heads)));
    double const steps = head < n ? -8.0 * double(head + 1) : -4.0 * double(2 * (head - n) + 1);
    return static_cast<T>(std::exp2(steps / double(n)));
  }

  void check(call_shape const& shape) const {
    require(slopes.extent(0) == shape.heads, [&] {
      return "alibi slopes have shape " + shape_text(slopes.extents()) + "; expected [" +
             std::to_string(shape.heads) + "] (heads)";
    });
    require(gradient.data() == nullptr || gradient.extents() == slopes.extents(), [&] {
      return "the gradient of the alibi slopes has shape " + shape_text(gradient.extents()) +
             "; expected that of the slopes, " + shape_text(slopes.extents());
    });
  }
};
template <class U>
alibi(tensor_view<U, 1>) -> alibi<std::remove_const_t<U>>;
template <class U, class G>
alibi(tensor_view<U, 1>, tensor_view<G, 1>) -> alibi<std::remove_const_t<U>>;

}  // namespace heed
