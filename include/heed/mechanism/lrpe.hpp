#pragma once

#include <heed/recur/passes.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/convert.hpp>

#include <cmath>
#include <string>

/// Linearized Relative Positional Encoding: features whose products depend on how far apart two tokens are, so that linear
/// attention needs no matrix for it. LRPE-d of TransNormerLLM along a sequence, MD-LRPE of You Only Scan Once (LightNet)
/// on a grid.
namespace heed {

/// How a channel x at coordinate c turns by its angle: into the two features [x cos(theta c), x sin(theta c)], so that a product
/// is q k cos(theta (c_q - c_k)); or adjacent channels as a pair that is rotated by theta c.
enum class lrpe_form { complex, rotating };

/// Turns queries and keys by where they stand. As a feature map it is an ingredient of linear_attention: with the complex form
/// a row of D channels has 2 D features, all cosines before all sines; with the rotating form D.
///
///   theta      [heads of queries and keys or 1, angles or more]; see lrpe_angles
///   gradient   the same shape; receives d loss / d theta from the mechanisms that say so. Optional
///   form       complex, or rotating
///   offset     is added to the position among the keys: in a step of decoding, the tokens before it
///   grid       extents of one to three axes, row-major; channels are cut in as many equal parts, of which part a turns by
///              coordinate a and the first angles. Default: along the sequence
///
/// A part of P channels has P angles in the complex form and P / 2 in the rotating one. Angles are computed in double.
template <element E>
struct lrpe {
  tensor_view<E const, 2> theta;
  tensor_view<E, 2> gradient = {};
  lrpe_form form = lrpe_form::complex;
  index_t offset = 0;
  std::span<index_t const> grid = {};

  explicit lrpe(tensor_view<E const, 2> angles, tensor_view<E, 2> d = {})
      : theta(angles), gradient(d) {}

  index_t axes() const { return std::max<index_t>(static_cast<index_t>(grid.size()), 1); }
  index_t features(index_t dim) const { return form == lrpe_form::complex ? 2 * dim : dim; }
  index_t angles(index_t dim) const { return dim / axes() / (form == lrpe_form::complex ? 1 : 2); }

  void check(recurrence_shape const& shape) const {
    index_t const unit = axes() * (form == lrpe_form::complex ? 1 : 2);
    require(grid.size() <= 3, [&] {
      return "lrpe.grid has " + std::to_string(grid.size()) + " axes; expected at most 3";
    });
    for (index_t extent : grid)
      require(extent > 0,
              [&] { return "lrpe.grid is " + shape_text(grid) + "; expected extents above 0"; });
    require(shape.query_dim % unit == 0 && shape.query_dim == shape.key_dim, [&] {
      return "lrpe of queries with " + std::to_string(shape.query_dim) + " and keys with " +
             std::to_string(shape.key_dim) + " channels; expected the same multiple of " +
             std::to_string(unit);
    });
    bool const shared = theta.extent(0) == 1;
    require(
        (shared || (theta.extent(0) == shape.query_heads && theta.extent(0) == shape.key_heads)) &&
            theta.extent(1) >= angles(shape.key_dim),
        [&] {
          return "lrpe.theta has shape " + shape_text(theta.extents()) + "; expected [1 or " +
                 std::to_string(shape.query_heads) + ", " + std::to_string(angles(shape.key_dim)) +
                 " or more] (head, angle), and " + std::to_string(shape.query_heads) +
                 " key heads unless 1";
        });
    require(gradient.data() == nullptr || gradient.extents() == theta.extents(), [&] {
      return "lrpe.gradient has shape " + shape_text(gradient.extents()) +
             "; expected that of lrpe.theta, " + shape_text(theta.extents());
    });
  }

  template <class T>
  void apply(side, feature_rows<T> const& x, T* phi, index_t stride) const {
    for_rows(x, [&](index_t r, T const* cosines, T const* sines) {
      turn(x[r], phi + r * stride, x.dim, cosines, sines);
    });
  }

  template <class T>
  void differentiate(side, feature_rows<T> const& x, T const*, T const* dphi, index_t stride, T* dx,
                     index_t dx_stride) const {
    for_rows(x, [&](index_t r, T const* cosines, T const* sines) {
      turn_back(dphi + r * stride, dx + r * dx_stride, x.dim, cosines, sines);
    });
  }

  /// Adds what rows of features, and the gradient by them, give to d loss / d theta of their head to `sums`.
  template <class T>
  void add_angle_gradient(feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                          double* sums) const {
    index_t const dim = x.dim, part = dim / axes(), count = angles(dim);
    for (index_t r = 0; r < x.count; ++r) {
      T const *const y = phi + r * stride, *const d = dphi + r * stride;
      for (index_t a = 0; a < axes(); ++a) {
        auto const c = static_cast<double>(coordinate(x.first_position + r, a));
        for (index_t i = 0; i < count; ++i) {
          // The two numbers that turn together.
          index_t const one = form == lrpe_form::complex ? a * part + i : a * part + 2 * i;
          index_t const two = form == lrpe_form::complex ? one + dim : one + 1;
          sums[i] += c * (static_cast<double>(y[one]) * static_cast<double>(d[two]) -
                          static_cast<double>(y[two]) * static_cast<double>(d[one]));
        }
      }
    }
  }

 private:
  index_t coordinate(index_t position, index_t axis) const {
    index_t at = position + offset;
    for (std::size_t a = grid.size(); a-- > static_cast<std::size_t>(axis) + 1;) at /= grid[a];
    return axis == 0 || grid.empty() ? at : at % grid[static_cast<std::size_t>(axis)];
  }

  /// Calls f(row, cosines, sines) with those of every axis' angles one after the other.
  template <class T, class F>
  void for_rows(feature_rows<T> const& x, F const& f) const {
    constexpr index_t exact_every = 32;  // turns are added up in between
    index_t const count = angles(x.dim), all = axes() * count;
    auto const lay_out = [&](arena memory) {
      double* const exact = memory.take<double>(2 * count + 2 * all);
      T* const rounded = memory.take<T>(2 * all);
      return std::tuple(exact, rounded, memory.used());
    };
    auto const memory =
        lay_out(arena(recur::feature_workspace().reserve(std::get<2>(lay_out(arena())))));
    double *const step = std::get<0>(memory), *const turned = step + 2 * count;
    T *const cosines = std::get<1>(memory), *const sines = cosines + all;
    index_t const head = theta.extent(0) == 1 ? 0 : x.head;
    auto const angle = [&](index_t i) { return convert_element<double>(theta(head, i)); };
    for (index_t i = 0; i < count; ++i) {
      step[i] = std::cos(angle(i));
      step[count + i] = std::sin(angle(i));
    }
    for (index_t r = 0; r < x.count; ++r) {
      for (index_t a = 0; a < axes(); ++a) {
        index_t const c = coordinate(x.first_position + r, a);
        bool const known = r > 0;
        index_t const before = known ? coordinate(x.first_position + r - 1, a) : 0;
        if (known && c == before) continue;
        double *const cosine = turned + 2 * a * count, *const sine = cosine + count;
        if (known && c == before + 1 && c % exact_every != 0) {
          for (index_t i = 0; i < count; ++i) {
            double const next = cosine[i] * step[i] - sine[i] * step[count + i];
            sine[i] = sine[i] * step[i] + cosine[i] * step[count + i];
            cosine[i] = next;
          }
        } else {
          for (index_t i = 0; i < count; ++i) {
            cosine[i] = std::cos(angle(i) * static_cast<double>(c));
            sine[i] = std::sin(angle(i) * static_cast<double>(c));
          }
        }
        for (index_t i = 0; i < count; ++i) {
          cosines[a * count + i] = static_cast<T>(cosine[i]);
          sines[a * count + i] = static_cast<T>(sine[i]);
        }
      }
      f(r, static_cast<T const*>(cosines), static_cast<T const*>(sines));
    }
  }

  template <class T>
  void turn(T const* x, T* phi, index_t dim, T const* cosines, T const* sines) const {
    using batch = xsimd::batch<T>;
    if (form == lrpe_form::complex) {
      auto const times = [](batch const& a, batch const& b) { return a * b; };
      recur::transform_row<xsimd::default_arch>(dim, phi, times, x, cosines);
      recur::transform_row<xsimd::default_arch>(dim, phi + dim, times, x, sines);
      return;
    }
    for (index_t i = 0; i < dim / 2; ++i) {
      T const one = x[2 * i], two = x[2 * i + 1];
      phi[2 * i] = one * cosines[i] - two * sines[i];
      phi[2 * i + 1] = two * cosines[i] + one * sines[i];
    }
  }
  template <class T>
  void turn_back(T const* dphi, T* dx, index_t dim, T const* cosines, T const* sines) const {
    using batch = xsimd::batch<T>;
    if (form == lrpe_form::complex) {
      recur::transform_row<xsimd::default_arch>(
          dim, dx, [](batch const& a, batch const& b) { return a * b; }, dphi, cosines);
      recur::transform_row<xsimd::default_arch>(
          dim, dx,
          [](batch const& a, batch const& b, batch const& sum) { return simd::fma(a, b, sum); },
          dphi + dim, sines, static_cast<T const*>(dx));
      return;
    }
    for (index_t i = 0; i < dim / 2; ++i) {
      T const one = dphi[2 * i], two = dphi[2 * i + 1];
      dx[2 * i] = one * cosines[i] + two * sines[i];
      dx[2 * i + 1] = two * cosines[i] - one * sines[i];
    }
  }
};
template <class T, class... D>
lrpe(tensor_view<T, 2>, D const&...) -> lrpe<std::remove_const_t<T>>;

/// The angles to begin with, theta(h, i) = 10000^(-2 (h dim + i) / (heads dim)); [heads, dim].
template <element E>
void lrpe_angles(tensor_view<E, 2> theta) {
  auto const heads = static_cast<double>(theta.extent(0)),
             dim = static_cast<double>(theta.extent(1));
  for (index_t h = 0; h < theta.extent(0); ++h)
    for (index_t i = 0; i < theta.extent(1); ++i)
      theta(h, i) = convert_element<E>(std::pow(
          10000.0, -2 * (static_cast<double>(h) * dim + static_cast<double>(i)) / (heads * dim)));
}

namespace recur {

/// Writes map.gradient from the features of queries and keys, [batch, position, head, features], and d loss / d features.
template <class E, class T>
void write_angle_gradient(any_executor const& run_on, lrpe<E> const& map, index_t dim,
                          index_t first_query, tensor_view<T, 4> queries,
                          tensor_view<T, 4> dqueries, tensor_view<T, 4> keys,
                          tensor_view<T, 4> dkeys) {
  index_t const owners = map.theta.extent(0), count = map.theta.extent(1);
  parallel_for(run_on, owners, [&](index_t owner, index_t) {
    double* const sums = feature_scratch<double>(count);
    std::fill_n(sums, count, 0.0);
    auto const add = [&](tensor_view<T, 4> phi, tensor_view<T, 4> dphi, index_t first) {
      for (index_t b = 0; b < phi.extent(0) && phi.extent(1) > 0; ++b)
        for (index_t h = 0; h < phi.extent(2); ++h)
          if (owners == 1 || h == owner)
            map.add_angle_gradient(feature_rows<T>{nullptr, 0, phi.extent(1), dim, b, h, first},
                                   &phi(b, 0, h, 0), &dphi(b, 0, h, 0), phi.stride(1), sums);
    };
    add(queries, dqueries, first_query);
    add(keys, dkeys, 0);
    for (index_t i = 0; i < count; ++i) map.gradient(owner, i) = convert_element<E>(sums[i]);
  });
}

}  // namespace recur
}  // namespace heed
