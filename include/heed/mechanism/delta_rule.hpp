#pragma once

#include <heed/recur/gate_functions.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/row_norms.hpp>
#include <heed/simd/fma.hpp>

#include <span>

/// The delta rule (Parallelizing Linear Transformers with the Delta Rule over Sequence Length) and the gated delta rule (Gated
/// Delta Networks):
///
///     u_t = v_t - e^g_t S_(t-1)^T k_t       S_t = e^g_t S_(t-1) + rate_t k_t u_t^T       out_t = scale q_t^T S_t
///
/// with keys and queries of size 1. It is linear_attention with delta, decay and the feature map below:
///
///     unit_features const unit{.after_silu = true, .query_scale = 1 / std::sqrt(head_dim)};
///     delta_rate(x, rate); delta_decay(a, log_scale, shift, log_gate);
///     linear_attention(q, k, v, out, unit, delta{rate}, decay{log_gate});
///
/// and so are its gradients and its step. A rate above 1 overshoots: the key's direction comes back with the other sign, a
/// negative eigenvalue. Above 2 the state would grow.
namespace heed {

/// x / max(|x|, floor) of each row x, or of silu(x); times `query_scale` for a query. A row of 0 stays 0.
struct unit_features {
  bool after_silu = false;
  double query_scale = 1;
  double floor = 1e-12;

  static index_t features(index_t dim) { return dim; }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    for (index_t r = 0; r < x.count; ++r) {
      T* const to = phi + r * stride;
      activate<Arch>(x[r], x.dim, to);
      batch const factor(static_cast<T>(factor_of_row<Arch>(to, x.dim).factor * scale_of(of)));
      recur::transform_row<Arch>(
          x.dim, to, [&](batch const& each) { return each * factor; }, static_cast<T const*>(to));
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const*, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    T* const unit = recur::feature_scratch<T>(x.dim);
    for (index_t r = 0; r < x.count; ++r) {
      T const* const slope = dphi + r * stride;
      T* const to = dx + r * dx_stride;
      activate<Arch>(x[r], x.dim, unit);
      auto const how = factor_of_row<Arch>(unit, x.dim);
      batch const factor(static_cast<T>(how.factor));
      recur::transform_row<Arch>(
          x.dim, unit, [&](batch const& each) { return each * factor; },
          static_cast<T const*>(unit));
      batch const along(static_cast<T>(how.projection) * recur::dot_row<Arch>(x.dim, unit, slope));
      batch const size(static_cast<T>(how.factor * scale_of(of)));
      recur::transform_row<Arch>(
          x.dim, to,
          [&](batch const& each, batch const& u, batch const& d) {
            batch const before = size * simd::fnma(u, along, d);
            return after_silu ? before * silu::slope(each, each) : before;
          },
          x[r], static_cast<T const*>(unit), slope);
    }
  }

 private:
  double scale_of(side of) const { return of == side::query ? query_scale : 1; }
  template <class Arch, class T>
  void activate(T const* x, index_t dim, T* to) const {
    using batch = xsimd::batch<T, Arch>;
    recur::transform_row<Arch>(
        dim, to, [&](batch const& each) { return after_silu ? silu::value(each) : each; }, x);
  }
  template <class Arch, class T>
  recur::row_factor factor_of_row(T const* x, index_t dim) const {
    return recur::factor_of(unit_norm{floor}, recur::size_of_row<T, Arch>(x, dim), dim);
  }
};

/// rate = most sigmoid(x); [batch, position, heads]. With `most` 2 eigenvalues can be negative.
template <element X, element R, class Executor = serial>
void delta_rate(tensor_view<X, 3> x, tensor_view<R, 3> rate, double most = 1,
                Executor const& run_on = {}) {
  using T = compute_type<X, R>;
  recur::expect_same_shape("rate", rate, x, "x");
  recur::transform(
      any_executor(run_on), sink<T>(recur::token_rows(rate)),
      [&](auto const& each) {
        return simd::sigmoid(each) * std::remove_cvref_t<decltype(each)>(static_cast<T>(most));
      },
      source<T>(recur::token_rows(x)));
}

/// From d loss / d rate to d loss / d x.
template <element X, element DR, element DX, class Executor = serial>
void delta_rate_backward(tensor_view<X, 3> x, tensor_view<DR, 3> drate, tensor_view<DX, 3> dx,
                         double most = 1, Executor const& run_on = {}) {
  using T = compute_type<X, DR, DX>;
  recur::expect_same_shape("drate", drate, x, "x");
  recur::expect_same_shape("dx", dx, x, "x");
  recur::transform(
      any_executor(run_on), sink<T>(recur::token_rows(dx)),
      [&](auto const& each, auto const& slope) {
        return slope * simd::sigmoid_slope(each) *
               std::remove_cvref_t<decltype(each)>(static_cast<T>(most));
      },
      source<T>(recur::token_rows(x)), source<T>(recur::token_rows(drate)));
}

namespace detail {

/// Numbers of heads as a tensor of tokens.
template <class E, class View>
tensor_view<E, 4> for_every_token(std::span<E> numbers, View const& like) {
  return {numbers.data(), {like.extent(0), like.extent(1), 1, like.extent(2)}, {0, 0, 0, 1}};
}

template <class A, class P>
void check_delta_decay(tensor_view<A, 3> a, std::span<P> log_scale, std::span<P> shift) {
  auto const fits = [&](char const* name, std::span<P> numbers) {
    require(static_cast<index_t>(numbers.size()) == a.extent(2), [&] {
      return std::string(name) + " has " + std::to_string(numbers.size()) +
             " numbers; expected one for each of " + std::to_string(a.extent(2)) + " heads";
    });
  };
  fits("log_scale", log_scale);
  fits("shift", shift);
}

}  // namespace detail

/// The gated delta rule's log gate, -e^log_scale softplus(a + shift); a and log_gate [batch, position, heads], log_scale and
/// shift learned, one for each head.
template <element A, element P, element G, class Executor = serial>
void delta_decay(tensor_view<A, 3> a, std::span<P> log_scale, std::span<P> shift,
                 tensor_view<G, 3> log_gate, Executor const& run_on = {}) {
  using T = compute_type<A, P, G>;
  detail::check_delta_decay(a, log_scale, shift);
  recur::expect_same_shape("log_gate", log_gate, a, "a");
  recur::transform(
      any_executor(run_on), sink<T>(recur::token_rows(log_gate)),
      [](auto const& each, auto const& scale, auto const& by) {
        return -(simd::exp(scale) * simd::softplus(each + by));
      },
      source<T>(recur::token_rows(a)), source<T>(detail::for_every_token(log_scale, a)),
      source<T>(detail::for_every_token(shift, a)));
}

/// From d loss / d log_gate to d loss / d a, d log_scale and d shift, the latter summed over tokens.
template <element A, element P, element DG, element DA, element DP, class Executor = serial>
void delta_decay_backward(tensor_view<A, 3> a, std::span<P> log_scale, std::span<P> shift,
                          tensor_view<DG, 3> dlog_gate, tensor_view<DA, 3> da,
                          std::span<DP> dlog_scale, std::span<DP> dshift,
                          Executor const& run_on = {}) {
  using T = compute_type<A, P, DG, DA, DP>;
  detail::check_delta_decay(a, log_scale, shift);
  detail::check_delta_decay(a, dlog_scale, dshift);
  recur::expect_same_shape("dlog_gate", dlog_gate, a, "a");
  recur::expect_same_shape("da", da, a, "a");
  any_executor const run(run_on);
  struct delta_decay_page;
  recur::tensor_shape const shape{a.extent(0), a.extent(1), a.extent(2), 1};
  auto const tensors = recur::page_tensors<delta_decay_page, T>(shape, shape);
  auto const log_gate = recur::without_channels(tensors[0]);
  auto const slope = recur::without_channels(tensors[1]);
  delta_decay(a, log_scale, shift, log_gate, run_on);
  recur::transform(
      run, sink<T>(recur::token_rows(slope)),
      [](auto const& each, auto const& scale, auto const& by) {
        return -(simd::exp(scale) * simd::sigmoid(each + by));
      },
      source<T>(recur::token_rows(a)), source<T>(detail::for_every_token(log_scale, a)),
      source<T>(detail::for_every_token(shift, a)));
  recur::transform(
      run, sink<T>(recur::token_rows(slope)),
      [](auto const& by_a, auto const& d) { return by_a * d; }, source<T>(recur::token_rows(slope)),
      source<T>(recur::token_rows(dlog_gate)));
  recur::sums_over_tokens(run, log_gate, dlog_gate, dlog_scale);
  static constexpr T one = 1;
  recur::sums_over_tokens(run, slope, tensor_view<T const, 3>(&one, a.extents(), {0, 0, 0}),
                          dshift);
  recur::transform(
      run, sink<T>(recur::token_rows(da)), [](auto const& each) { return each; },
      source<T>(recur::token_rows(slope)));
}

}  // namespace heed
