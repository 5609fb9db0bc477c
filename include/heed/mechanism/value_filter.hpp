#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/mechanism/local_aggregation.hpp>

namespace heed {

/// An ingredient: adds a filter of the values along positions, out_i += sum_t weights(t, h) v_(i + t - taps / 2), with zeros
/// around them. Heads of `out` that share a value head share its filter. The depthwise convolution of Nystroemformer.
///
///   weights    [taps, value heads], the number of taps odd
///   gradient   the same shape, written by the backward pass. Optional
///
/// The call throws if a shape does not fit.
template <element T>
struct value_filter {
  tensor_view<T const, 2> weights;
  tensor_view<T, 2> gradient;

  value_filter(tensor_view<T const, 2> w, tensor_view<T, 2> dw = {}) : weights(w), gradient(dw) {}
};
template <class T, class... G>
value_filter(tensor_view<T, 2>, G const&...) -> value_filter<std::remove_const_t<T>>;

namespace detail {

struct value_filter_memory;

inline constexpr auto is_value_filter = []<class T>() {
  return attend::detail::is_a<T, value_filter>;
};

/// Checks the filter among the ingredients, if there is one.
template <class... I>
void check_value_filter([[maybe_unused]] index_t value_heads, I const&... ingredients) {
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    require(filter.weights.extent(0) % 2 == 1 && filter.weights.extent(1) == value_heads, [&] {
      return "value_filter has weights of shape " + shape_text(filter.weights.extents()) +
             "; expected [an odd number, " + std::to_string(value_heads) + "] (taps, value heads)";
    });
    require(
        filter.gradient.data() == nullptr || filter.gradient.extents() == filter.weights.extents(),
        [&] {
          return "the gradient of value_filter has shape " + shape_text(filter.gradient.extents()) +
                 "; expected that of the weights, " + shape_text(filter.weights.extents());
        });
  }
}

/// The filter's box and weights as local_aggregation takes them.
template <class W>
tensor_view<W, 3> as_taps(tensor_view<W, 2> weights) {
  return {weights.data(),
          {weights.extent(0), weights.extent(1), 1},
          {weights.stride(0), weights.stride(1), 1}};
}

/// out += the filtered values, if there is a filter among the ingredients.
template <class T, class V, class O, class... I>
void add_value_filter(tensor_view<V, 4> value, tensor_view<O, 4> out, I const&... ingredients) {
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    auto const run_on = executor_of(ingredients...);
    auto const filtered = laid_out<value_filter_memory>([&](arena& memory) {
      return take_rows<T>(memory, value.extent(0), value.extent(1), value.extent(2),
                          value.extent(3));
    });
    local_aggregation(value, as_taps(filter.weights),
                      token_box<1>{{value.extent(1)}, {filter.weights.extent(0)}}, filtered,
                      run_on);
    index_t const group = out.extent(2) / value.extent(2);
    for (index_t r = 0; r < group; ++r)
      add_scaled(run_on, T(1), filtered, every_head(out, r, group));
  }
}

/// dvalue += the gradient that comes through the filter, and the filter's own, if there is one.
template <class T, class V, class DO, class DV, class... I>
void add_value_filter_gradient(tensor_view<V, 4> value, tensor_view<DO, 4> dout,
                               tensor_view<DV, 4> dvalue, I const&... ingredients) {
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    auto const run_on = executor_of(ingredients...);
    using W = typename decltype(filter.weights)::value_type;
    auto const [slope, back, dweights] = laid_out<value_filter_memory>([&](arena& memory) {
      auto const take = [&] {
        return take_rows<T>(memory, value.extent(0), value.extent(1), value.extent(2),
                            value.extent(3));
      };
      tensor_view<T, 4> const a = take(), b = take();
      return std::tuple(a, b, memory.take<W>(filter.weights.size()));
    });
    index_t const group = dout.extent(2) / value.extent(2);
    fill_zero(slope);
    for (index_t r = 0; r < group; ++r) add_scaled(run_on, T(1), every_head(dout, r, group), slope);
    auto const gradient = filter.gradient.data() != nullptr
                              ? filter.gradient
                              : tensor_view<W, 2>(dweights, filter.weights.extents());
    local_aggregation_backward(value, as_taps(filter.weights),
                               token_box<1>{{value.extent(1)}, {filter.weights.extent(0)}}, slope,
                               back, as_taps(gradient), run_on);
    add_scaled(run_on, T(1), back, dvalue);
  }
}

}  // namespace detail

}  // namespace heed
