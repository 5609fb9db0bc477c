#pragma once

#include <heed/view/convert.hpp>
#include <heed/view/element.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ranges>
#include <string>
#include <type_traits>

/// Attention over a set of keys from its results over disjoint parts of them: splits of a long
/// cache, a prefix shared by many sequences, shards of other machines, memories beside a context.
///
///     lse = log sum_p exp(lse_p),   w_p = exp(lse_p - lse),   out = sum_p w_p out_p
///
/// A part that met no key (lse_p = -infinity) has weight 0 and its out_p is not read; where every
/// part is such, out = 0 and lse = -infinity. Parts are summed in the order given, in float, and in
/// double for double: the same parts give the same bits.
namespace heed {

/// What attention over some of the keys returned: out [batch, N, heads, value_dim] and
/// lse [batch, heads, N]. Adding c to an lse makes its keys exp(c) times as heavy.
template <element T>
struct partial_attention {
  using lse_type = std::conditional_t<std::is_const_v<T>, compute_type<T> const, compute_type<T>>;

  tensor_view<T, 4> out;
  tensor_view<lse_type, 3> lse;
};
template <element T, class L>
partial_attention(tensor_view<T, 4>, tensor_view<L, 3>) -> partial_attention<T>;

namespace detail {

template <class P>
inline constexpr bool is_partial = false;
template <class T>
inline constexpr bool is_partial<partial_attention<T>> = true;

}  // namespace detail

/// A std::span, vector or array of partial_attention.
template <class Parts>
concept partial_attentions =
    std::ranges::random_access_range<Parts const> && std::ranges::sized_range<Parts const> &&
    detail::is_partial<std::ranges::range_value_t<Parts const>>;

namespace detail {

template <class Parts>
using part_element = typename decltype(std::ranges::range_value_t<Parts const>::out)::value_type;

template <class Parts>
void require_parts(Parts const& parts, char const* name, std::array<index_t, 4> const& out) {
  std::array<index_t, 3> const lse{out[0], out[2], out[1]};
  for (index_t p = 0; auto const& part : parts) {
    require(part.out.extents() == out && part.lse.extents() == lse, [&] {
      return std::string(name) + "[" + std::to_string(p) + "] has out of shape " +
             shape_text(part.out.extents()) + " and lse of shape " +
             shape_text(part.lse.extents()) + "; expected " + shape_text(out) + " and " +
             shape_text(lse);
    });
    ++p;
  }
}

inline void require_lse(std::array<index_t, 3> const& lse, char const* name,
                        std::array<index_t, 4> const& out) {
  std::array<index_t, 3> const expected{out[0], out[2], out[1]};
  require(lse == expected, [&] {
    return std::string(name) + " has shape " + shape_text(lse) + "; expected " +
           shape_text(expected);
  });
}

}  // namespace detail

/// Merges any number of parts. `lse` may be an empty view; out and lse may be those of one of the
/// parts.
template <partial_attentions Parts, element T>
void merge_attention(Parts const& parts, tensor_view<T, 4> out,
                     tensor_view<compute_type<T>, 3> lse = {}) {
  using number = compute_type<T, detail::part_element<Parts>>;
  constexpr number empty = -std::numeric_limits<number>::infinity();
  detail::require_parts(parts, "parts", out.extents());
  if (lse.data() != nullptr) detail::require_lse(lse.extents(), "lse", out.extents());

  for (index_t b = 0; b < out.extent(0); ++b)
    for (index_t i = 0; i < out.extent(1); ++i)
      for (index_t h = 0; h < out.extent(2); ++h) {
        // Weights relative to the largest, so that nothing overflows.
        number top = empty;
        for (auto const& part : parts) top = std::max(top, number(part.lse(b, h, i)));
        auto const weigh = [&](auto const& part) {
          number const part_lse = number(part.lse(b, h, i));
          return part_lse == empty ? number(0) : std::exp(part_lse - top);
        };
        number total = 0;
        for (auto const& part : parts) total += weigh(part);

        // A few columns at a time keeps the sums in the type of the computation without scratch.
        constexpr index_t width = 64;
        std::array<number, width> sums;
        for (index_t first = 0; first < out.extent(3); first += width) {
          index_t const count = std::min(width, out.extent(3) - first);
          sums.fill(0);
          for (auto const& part : parts) {
            if (part.lse(b, h, i) == empty) continue;
            number const weight = weigh(part) / total;
            auto const* values = &part.out(b, i, h, first);
            index_t const stride = part.out.stride(3);
            for (index_t d = 0; d < count; ++d)
              sums[static_cast<std::size_t>(d)] +=
                  weight * convert_element<number>(values[d * stride]);
          }
          for (index_t d = 0; d < count; ++d)
            out(b, i, h, first + d) = convert_element<T>(sums[static_cast<std::size_t>(d)]);
        }
        if (lse.data() != nullptr)
          lse(b, h, i) = static_cast<compute_type<T>>(total == 0 ? empty : top + std::log(total));
      }
}

/// The gradients of merge_attention from its result: gradients[p].out and .lse receive
/// d loss / d parts[p], with do_p = w_p do and dlse_p = w_p (dlse + do.(out_p - out)). `dlse` may
/// be an empty view where the loss does not depend on lse. What gradients[p].lse receives goes into
/// the backward pass of part p as lse_gradient.
template <partial_attentions Parts, element T, element DO, partial_attentions Gradients>
void merge_attention_backward(Parts const& parts, tensor_view<T, 4> out,
                              tensor_view<compute_type<T> const, 3> lse, tensor_view<DO, 4> dout,
                              tensor_view<compute_type<T> const, 3> dlse,
                              Gradients const& gradients) {
  using number = compute_type<T, DO, detail::part_element<Parts>>;
  constexpr number empty = -std::numeric_limits<number>::infinity();
  detail::require_parts(parts, "parts", out.extents());
  detail::require_parts(gradients, "gradients", out.extents());
  detail::require_lse(lse.extents(), "lse", out.extents());
  if (dlse.data() != nullptr) detail::require_lse(dlse.extents(), "dlse", out.extents());
  require(dout.extents() == out.extents(), [&] {
    return "dout has shape " + shape_text(dout.extents()) + "; expected that of out, " +
           shape_text(out.extents());
  });
  require(std::ranges::size(parts) == std::ranges::size(gradients), [&] {
    return "there are " + std::to_string(std::ranges::size(gradients)) +
           " gradients; expected one for each of " + std::to_string(std::ranges::size(parts)) +
           " parts";
  });

  auto gradient = std::ranges::begin(gradients);
  for (auto const& part : parts) {
    auto const& [dpart_out, dpart_lse] = *gradient++;
    using dpart_element = typename std::decay_t<decltype(dpart_out)>::value_type;
    using dpart_number = typename std::decay_t<decltype(dpart_lse)>::value_type;
    for (index_t b = 0; b < out.extent(0); ++b)
      for (index_t i = 0; i < out.extent(1); ++i)
        for (index_t h = 0; h < out.extent(2); ++h) {
          number const part_lse = part.lse(b, h, i);
          if (part_lse == empty) {
            for (index_t d = 0; d < out.extent(3); ++d) dpart_out(b, i, h, d) = dpart_element(0);
            dpart_lse(b, h, i) = 0;
            continue;
          }
          number const weight = std::exp(part_lse - lse(b, h, i));
          number sum = dlse.data() != nullptr ? dlse(b, h, i) : 0;
          for (index_t d = 0; d < out.extent(3); ++d) {
            number const dout_d = convert_element<number>(dout(b, i, h, d));
            number const difference = convert_element<number>(part.out(b, i, h, d)) -
                                      convert_element<number>(out(b, i, h, d));
            dpart_out(b, i, h, d) = convert_element<dpart_element>(weight * dout_d);
            sum += dout_d * difference;
          }
          dpart_lse(b, h, i) = static_cast<dpart_number>(weight * sum);
        }
  }
}

}  // namespace heed
