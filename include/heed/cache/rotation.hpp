#pragma once

#include <heed/view/convert.hpp>

#include <algorithm>
#include <cmath>
#include <span>

/// Rotary positions of keys that are cached: R(by) k, where R(a) R(b) = R(a + b), so that a key rotated for
/// position t and rotated by p stands at t + p.
///
/// Rounding adds up where rows are rotated again and again in few bits: rotate from the rows as they were
/// cached, into other memory, each time.
namespace heed {

/// Pair m of the first `dims` numbers of a row is turned by the angle p base^(-2m / dims) for position p:
/// (a, b) -> (a cos - b sin, a sin + b cos). The rest of the row stays.
struct rotary {
  double base = 10000;
  index_t dims = 0;          // even; 0 is all of the row
  bool interleaved = false;  // pair m is (2m, 2m + 1) instead of (m, m + dims / 2)
};

namespace detail {

template <element From, element To, class By>
void rotate_rows(rotary const& how, tensor_view<From, 4> from, tensor_view<To, 4> to, bool alike,
                 By by) {
  using number = compute_type<From, To>;
  index_t const dims = how.dims == 0 ? from.extent(3) : how.dims;
  require(from.extents() == to.extents(), [&] {
    return "the rotated rows have shape " + shape_text(to.extents()) +
           "; expected that of the rows, " + shape_text(from.extents());
  });
  require(dims >= 0 && dims % 2 == 0 && dims <= from.extent(3), [&] {
    return "rotary.dims is " + std::to_string(dims) + "; expected an even number up to " +
           std::to_string(from.extent(3)) + " (head_dim)";
  });
  require(how.base > 0, [&] {
    return "rotary.base is " + std::to_string(how.base) + "; expected a positive number";
  });

  // Angles are formed in double: a product of floats would be off by hundredths far from the start.
  constexpr index_t width = 64;
  std::array<number, width> cosine, sine;
  index_t const pairs = dims / 2, step = how.interleaved ? 2 : 1,
                apart = how.interleaved ? 1 : pairs;
  for (index_t first = 0; first < pairs; first += width) {
    index_t const count = std::min(width, pairs - first);
    for (index_t i = 0; i < from.extent(1); ++i) {
      if (i == 0 || !alike)
        for (index_t m = 0; m < count; ++m) {
          double const angle = static_cast<double>(by(i)) *
                               std::pow(how.base, -2.0 * double(first + m) / double(dims));
          cosine[static_cast<std::size_t>(m)] = static_cast<number>(std::cos(angle));
          sine[static_cast<std::size_t>(m)] = static_cast<number>(std::sin(angle));
        }
      for (index_t b = 0; b < from.extent(0); ++b)
        for (index_t h = 0; h < from.extent(2); ++h)
          for (index_t m = 0; m < count; ++m) {
            index_t const at = (first + m) * step;
            auto const x = convert_element<number>(from(b, i, h, at));
            auto const y = convert_element<number>(from(b, i, h, at + apart));
            number const c = cosine[static_cast<std::size_t>(m)],
                         s = sine[static_cast<std::size_t>(m)];
            to(b, i, h, at) = convert_element<To>(x * c - y * s);
            to(b, i, h, at + apart) = convert_element<To>(x * s + y * c);
          }
    }
  }
  for (index_t b = 0; b < from.extent(0); ++b)
    for (index_t i = 0; i < from.extent(1); ++i)
      for (index_t h = 0; h < from.extent(2); ++h)
        for (index_t d = dims; d < from.extent(3); ++d)
          to(b, i, h, d) = convert_element<To>(from(b, i, h, d));
}

}  // namespace detail

/// Rotates every row by the same number of positions: a block of keys that is placed elsewhere. Rows are
/// [batch, position, head, head_dim]; `to` may be `from`. A rotation by -by takes it back, and takes gradients
/// through it. Throws heed::error if shapes do not fit.
template <element From, element To>
void rotate(rotary const& how, tensor_view<From, 4> from, tensor_view<To, 4> to, index_t by) {
  detail::rotate_rows(how, from, to, true, [by](index_t) { return by; });
}

/// Rotates the row of position i by by[i] positions: rows that are not rotated yet, or that go different ways.
template <element From, element To>
void rotate(rotary const& how, tensor_view<From, 4> from, tensor_view<To, 4> to,
            std::span<index_t const> by) {
  require(static_cast<index_t>(by.size()) == from.extent(1), [&] {
    return "rotate is given " + std::to_string(by.size()) +
           " distances; expected one for each of " + std::to_string(from.extent(1)) + " positions";
  });
  detail::rotate_rows(how, from, to, false,
                      [by](index_t i) { return by[static_cast<std::size_t>(i)]; });
}

}  // namespace heed
