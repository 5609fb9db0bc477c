#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/simd/math.hpp>
#include <heed/softmax.hpp>

#include <cmath>

/// Effective Approaches to Attention-based Neural Machine Translation: a decoder state looks at the source around one
/// place, its own number (local-m) or one that it predicts (local-p). Queries count from the first key.
namespace heed {

/// local-m: the keys within `radius` of the row's own number. Goes with top_left{}.
constexpr sliding_window local_monotone(index_t radius) {
  return {.left = radius, .right = radius};
}

/// local-p: the keys within `radius` of the row's centre p; softmax over their scores, and then each weight times
/// exp(-(key - p)^2 / (2 rho^2)), rho = radius / 2. Weights are not normalised again.
///
///   centres   [batch, head, row], the first two 1 to share; any real numbers, the model's
///             keys * sigmoid(v.tanh(W h)) among them
///
/// A pattern and a numerator factor in one; local_predictive_attention has queries count from the first key.
template <class T>
struct local_predictive {
  tensor_view<T const, 3> centres;
  double radius = 10;

  template <class U>
    requires std::same_as<T, std::remove_const_t<U>>
  explicit local_predictive(tensor_view<U, 3> c, double r = 10) : centres(c), radius(r) {}

  struct bound : detail::interval_rows<bound> {
    detail::table<T> centres;
    double radius;
    bool slope = false;  // gives d factor / d centre in place of the factor

    interval row(index_t position) const {
      double const centre = static_cast<double>(centres(position, T(0)));
      return position < 0 || position >= centres.size()
                 ? interval{}
                 : interval{static_cast<index_t>(std::ceil(centre - radius)),
                            static_cast<index_t>(std::floor(centre + radius)) + 1};
    }
    template <class Batch>
    Batch factor(Batch row, Batch key) const {
      using number = typename Batch::value_type;
      alignas(64) number centre[Batch::size];
      row.store_aligned(centre);
      for (number& each : centre)
        each = static_cast<number>(centres(static_cast<index_t>(each), T(0)));
      Batch const distance = key - Batch::load_aligned(centre);
      double const rho = radius / 2, inverse = 1 / (rho * rho);
      constexpr double log2_e = 1.4426950408889634074;
      Batch const near =
          simd::exp2(distance * distance * Batch(static_cast<number>(-log2_e / 2 * inverse)));
      return slope ? near * distance * Batch(static_cast<number>(inverse)) : near;
    }
  };
  bound bind(place const& where) const {
    return {{}, detail::table<T>::of_rows(centres, where, false), radius};
  }
  void check(call_shape const& shape) const {
    detail::check_table("local_predictive.centres", centres, shape, shape.rows, "row");
    require(radius > 0, [&] {
      return "the radius of local_predictive is " + std::to_string(radius) +
             "; expected a positive number";
    });
    constexpr double limit = 1 << 24;
    detail::each_number(centres, [&](T centre) {
      require(std::abs(static_cast<double>(centre)) < limit, [&] {
        return "local_predictive.centres holds " + std::to_string(static_cast<double>(centre)) +
               "; expected numbers less than 2^24 in size";
      });
    });
  }
};
template <class U>
local_predictive(tensor_view<U, 3>) -> local_predictive<std::remove_const_t<U>>;
template <class U>
local_predictive(tensor_view<U, 3>, double) -> local_predictive<std::remove_const_t<U>>;

namespace detail {

template <class T>
struct local_predictive_slope {
  local_predictive<T> of;

  auto bind(place const& where) const {
    auto here = of.bind(where);
    here.slope = true;
    return here;
  }
  void check(call_shape const& shape) const { of.check(shape); }
};

inline workspace& local_predictive_workspace() {
  thread_local workspace own;
  return own;
}

}  // namespace detail

/// Attention around predicted centres, with further ingredients as in attention().
template <element Q, element K, element V, element O, class T, class... Ingredients>
void local_predictive_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                tensor_view<V, 4> value, tensor_view<O, 4> out,
                                local_predictive<T> const& around,
                                Ingredients const&... ingredients) {
  attention(query, key, value, out, around, top_left{}, ingredients...);
}

/// Its gradients, from the saved out and lse. dcentres is shaped like the centres:
/// dcentre = sum_s (dout.v_s) a_s (s - centre) / rho^2, the range of keys being constant.
template <element Q, element K, element V, element O, class L, element DO, element DQ, element DK,
          element DV, class T, class DT, class... Ingredients>
void local_predictive_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                         tensor_view<V, 4> value, tensor_view<O, 4> out,
                                         tensor_view<L, 3> lse, tensor_view<DO, 4> dout,
                                         tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                         tensor_view<DV, 4> dvalue, tensor_view<DT, 3> dcentres,
                                         local_predictive<T> const& around,
                                         Ingredients const&... ingredients) {
  using number = compute_type<Q, K, V, O>;
  require(dcentres.extents() == around.centres.extents(), [&] {
    return "dcentres have shape " + shape_text(dcentres.extents()) +
           "; expected that of the centres, " + shape_text(around.centres.extents());
  });
  attention_backward(query, key, value, out, lse, dout, dquery, dkey, dvalue, around, top_left{},
                     ingredients...);
  // A row's sum is dout times the result with the factor's derivative in place of the factor.
  index_t const batches = out.extent(0), rows = out.extent(1), heads = out.extent(2);
  workspace& memory = detail::local_predictive_workspace();
  auto const moved =
      bhnd(arena(memory.reserve(static_cast<std::size_t>(arena::bytes<number>(out.size()))))
               .take<number>(out.size()),
           batches, heads, rows, out.extent(3));
  attention(query, key, value, moved, detail::local_predictive_slope<T>{around}, top_left{},
            ingredients...);
  for (index_t b = 0; b < dcentres.extent(0); ++b)
    for (index_t h = 0; h < dcentres.extent(1); ++h)
      for (index_t i = 0; i < dcentres.extent(2); ++i) dcentres(b, h, i) = 0;
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < rows; ++i) {
        number sum = 0;
        for (index_t d = 0; d < out.extent(3); ++d)
          sum += convert_element<number>(dout(b, i, h, d)) * moved(b, i, h, d);
        dcentres(dcentres.extent(0) == 1 ? 0 : b, dcentres.extent(1) == 1 ? 0 : h, i) +=
            static_cast<DT>(sum);
      }
}

}  // namespace heed
