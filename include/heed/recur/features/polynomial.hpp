#pragma once

#include <heed/recur/feature_map.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>
#include <string>

namespace heed {

/// The features of a Taylor polynomial of the exponential: phi(q) . phi(k) = sum_{l <= degree} s^l / l!, s = scale
/// q.k.
///
/// They are the products of up to `degree` channels, each set of channels once, with the root of how often it
/// occurs: 1; the channels y = sqrt(scale) x; and for each degree l and channel a in order, y_a^m / sqrt(m!) for m =
/// l..1 times the products of l - m channels after a. (dim + degree choose degree) of them, 1 + dim + dim (dim + 1)
/// / 2 for degree 2.
struct polynomial {
  index_t degree = 2;
  double scale = 1;

  index_t features(index_t dim) const {
    double count = 1;
    for (index_t l = 1; l <= degree; ++l)
      count *= static_cast<double>(dim + l) / static_cast<double>(l);
    return static_cast<index_t>(std::lround(std::min(count, 1e15)));
  }

  void check(recurrence_shape const& shape) const {
    require(degree >= 1 && scale > 0 && std::isfinite(scale), [&] {
      return "polynomial has degree " + std::to_string(degree) + " and scale " +
             std::to_string(scale) + "; expected at least 1, and a number above 0";
    });
    constexpr index_t limit = index_t{1} << 22;
    index_t const count = features(shape.key_dim);
    require(count <= limit, [&] {
      return "polynomial of degree " + std::to_string(degree) + " has " + std::to_string(count) +
             " features of " + std::to_string(shape.key_dim) + " channels; expected at most " +
             std::to_string(limit);
    });
  }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const {
    index_t const width = features(x.dim);
    T const root = static_cast<T>(std::sqrt(scale));
    for (index_t r = 0; r < x.count; ++r) {
      T* const to = phi + r * stride;
      to[0] = T(1);
      for (index_t c = 0; c < x.dim; ++c) to[1 + c] = root * x[r][c];
      index_t at = 1 + x.dim;
      for (index_t l = 2; l <= degree; ++l)
        for_segments_of(x.dim, l, [&](index_t channel, index_t power, index_t from, index_t count) {
          scale_row<T, Arch>(power_of<T>(to[1 + channel], power), to + from, count, to + at,
                             width - at);
          at += count;
        });
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    index_t const top = polynomial{std::max<index_t>(degree - 1, 1), scale}.features(x.dim);
    T const root = static_cast<T>(std::sqrt(scale));
    // What products of fewer channels receive from those that they are part of. Those of `degree` are part of none.
    T* const lower = recur::feature_scratch<T>(top);
    for (index_t r = 0; r < x.count; ++r) {
      T const *const value = phi + r * stride, *const slope = dphi + r * stride;
      T* const to = dx + r * dx_stride;
      std::copy_n(slope, top, lower);
      std::fill_n(to, x.dim, T(0));
      // From the highest degree down: a product passes on only what it has received itself.
      for (index_t l = degree; l >= 2; --l) {
        T const* received =
            (l == degree ? slope : lower) + polynomial{l - 1, scale}.features(x.dim);
        for_segments_of(x.dim, l, [&](index_t channel, index_t power, index_t from, index_t count) {
          T const y = value[1 + channel];
          T const sum = add_and_dot<T, Arch>(power_of<T>(y, power), received, value + from, count,
                                             lower + from);
          to[channel] += slope_of<T>(y, power) * sum;
          received += count;
        });
      }
      for (index_t c = 0; c < x.dim; ++c) to[c] = root * (to[c] + lower[1 + c]);
    }
  }

 private:
  /// How many products of `degree` of `channels` channels there are.
  static index_t products(index_t channels, index_t of_degree) {
    if (of_degree == 0) return 1;
    index_t count = channels;  // whole after every step
    for (index_t l = 2; l <= of_degree; ++l) count = count * (channels + l - 1) / l;
    return count;
  }

  /// Calls f(channel a, power m of it, first, count) for the parts of the features of one degree: each is y_a^m
  /// times a run of features of a lower degree, the products of channels after a.
  template <class F>
  static void for_segments_of(index_t dim, index_t l, F const& f) {
    for (index_t a = 0; a < dim; ++a)
      for (index_t power = l; power >= 1; --power) {
        index_t const left = l - power, count = products(dim - a - 1, left);
        index_t end = 1;
        for (index_t k = 1; k <= left; ++k) end += products(dim, k);
        if (count > 0) f(a, power, end - count, count);
      }
  }
  /// y^m / sqrt(m!), and its derivative.
  template <class T>
  static T power_of(T y, index_t power) {
    if (power == 1) return y;
    if (power == 2) return y * y * T(0.70710678118654752440);
    double product = 1;
    for (index_t m = 1; m <= power; ++m)
      product *= static_cast<double>(y) / std::sqrt(static_cast<double>(m));
    return static_cast<T>(product);
  }
  template <class T>
  static T slope_of(T y, index_t power) {
    if (power == 1) return T(1);
    return static_cast<T>(std::sqrt(static_cast<double>(power))) * power_of<T>(y, power - 1);
  }

  /// to[c] = by from[c]. Of the `room` numbers at `to` those after the row may be written to as well, as long as the
  /// row is filled in order.
  template <class T, class Arch>
  static void scale_row(T by, T const* from, index_t count, T* to, index_t room) {
    using batch = xsimd::batch<T, Arch>;
    constexpr auto lanes = static_cast<index_t>(batch::size);
    batch const factor(by);
    index_t c = 0;
    for (; c < count && c + lanes <= room; c += lanes)
      (factor * batch::load_unaligned(from + c)).store_unaligned(to + c);
    for (; c < count; ++c) to[c] = by * from[c];
  }

  /// to[c] += by a[c]; returns sum_c a[c] b[c].
  template <class T, class Arch>
  static T add_and_dot(T by, T const* a, T const* b, index_t count, T* to) {
    using batch = xsimd::batch<T, Arch>;
    constexpr auto lanes = static_cast<index_t>(batch::size);
    T total = 0;
    index_t c = 0;
    if (count >= lanes) {
      batch const factor(by);
      batch sum(T(0));
      for (; c + lanes <= count; c += lanes) {
        batch const left = batch::load_unaligned(a + c);
        sum = simd::fma(left, batch::load_unaligned(b + c), sum);
        simd::fma(factor, left, batch::load_unaligned(to + c)).store_unaligned(to + c);
      }
      alignas(64) T parts[lanes];
      sum.store_aligned(parts);
      for (T part : parts) total += part;
    }
    for (; c < count; ++c) {
      total += a[c] * b[c];
      to[c] += by * a[c];
    }
    return total;
  }
};

/// The features of BASED: [1, x / dim^1/4, vec(x x^T) / sqrt(2 dim)] with equal products once, so that phi(q) .
/// phi(k) = 1 + s + s^2 / 2 >= 1/2 with s = q.k / sqrt(dim). 1 + dim + dim (dim + 1) / 2 of them.
struct taylor {
  static index_t features(index_t dim) { return polynomial{2, 1}.features(dim); }

  static void check(recurrence_shape const& shape) { of(shape.key_dim).check(shape); }

  template <class T, class Arch = xsimd::default_arch>
  static void apply(side where, feature_rows<T> const& x, T* phi, index_t stride) {
    of(x.dim).template apply<T, Arch>(where, x, phi, stride);
  }
  template <class T, class Arch = xsimd::default_arch>
  static void differentiate(side where, feature_rows<T> const& x, T const* phi, T const* dphi,
                            index_t stride, T* dx, index_t dx_stride) {
    of(x.dim).template differentiate<T, Arch>(where, x, phi, dphi, stride, dx, dx_stride);
  }

 private:
  static polynomial of(index_t dim) {
    return {2, 1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)))};
  }
};

}  // namespace heed
