#pragma once

#include <heed/parallel/any_executor.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/product.hpp>
#include <heed/view/convert.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/rows.hpp>

#include <string>

/// Feature maps with learned parameters: T2R (Kasai et al.: Finetuning Pretrained Transformers into RNNs) and
/// Hedgehog (Zhang et al.: The Hedgehog & the Porcupine). They are functions from rows to rows of features, which
/// linear_attention then takes for its queries and keys:
///
///     t2r_features(q, weights, bias, phi_q);
///     t2r_features(k, weights, bias, phi_k);
///     linear_attention(phi_q, phi_k, v, out, normalised{});
///
///   x         [batch, position, heads, dim]
///   weights   [heads or 1, dim, width], bias [heads or 1, width]; an extent of 1 is for all heads
///   phi       [batch, position, heads, features]: width of them for T2R, 2 width for Hedgehog
///
/// Elements are double, float, half or bfloat16, each tensor its own. A backward pass writes dx, dweights and dbias,
/// shaped as x, weights and bias, from dphi; its sums have the same order for every executor.
namespace heed {

/// Maps y = x W + b to features: relu(y).
struct t2r_activation {
  static index_t features(index_t width) { return width; }
  template <class Arch, class T>
  static void apply(index_t width, T const* y, T* phi) {
    using batch = xsimd::batch<T, Arch>;
    recur::transform_row<Arch>(
        width, phi, [](batch const& each) { return simd::detail::at_least(each, 0); }, y);
  }
  template <class Arch, class T>
  static void differentiate(index_t width, T const* y, T const*, T const* dphi, T* dy) {
    using batch = xsimd::batch<T, Arch>;
    recur::transform_row<Arch>(
        width, dy,
        [](batch const& each, batch const& slope) {
          return xsimd::select(each > batch(0), slope, batch(0));
        },
        y, dphi);
  }
};

/// softmax([2 y, -2 y]) over all of it: positive features of sum 1.
struct hedgehog_softmax {
  static index_t features(index_t width) { return 2 * width; }
  template <class Arch, class T>
  static void apply(index_t width, T const* y, T* phi) {
    using batch = xsimd::batch<T, Arch>;
    if (width == 0) return;
    T* const negated = phi + width;
    recur::transform_row<Arch>(
        width, negated, [](batch const& each) { return xsimd::abs(each); }, y);
    batch const most(2 * recur::largest_of_row<Arch>(width, negated));
    recur::transform_row<Arch>(
        width, phi, [&](batch const& each) { return simd::exp(each + each - most); }, y);
    recur::transform_row<Arch>(
        width, negated, [&](batch const& each) { return simd::exp(-(each + each) - most); }, y);
    batch const sum(recur::sum_row<Arch>(2 * width, phi));
    recur::transform_row<Arch>(
        2 * width, phi, [&](batch const& each) { return each / sum; }, phi);
  }
  template <class Arch, class T>
  static void differentiate(index_t width, T const*, T const* phi, T const* dphi, T* dy) {
    using batch = xsimd::batch<T, Arch>;
    T const mean = recur::dot_row<Arch>(2 * width, phi, dphi);
    recur::for_registers<Arch, T>(
        width,
        [&](batch const& up, batch const& down, batch const& dup, batch const& ddown, index_t c,
            index_t left) {
          recur::store_lanes(batch(2) * (up * (dup - batch(mean)) - down * (ddown - batch(mean))),
                             left, dy + c);
        },
        phi, phi + width, dphi, dphi + width);
  }
};

/// [e^(y - c), e^(-y - c)] for normalised attention, where c cancels: the largest |y| of a row of queries, and of
/// keys `shift`, which all keys of a head have in common.
struct hedgehog_exponential {
  double shift = 0;
  bool of_queries = false;

  static hedgehog_exponential queries() { return {0, true}; }
  static hedgehog_exponential keys(double shift = 0) { return {shift, false}; }

  static index_t features(index_t width) { return 2 * width; }
  template <class Arch, class T>
  void apply(index_t width, T const* y, T* phi) const {
    using batch = xsimd::batch<T, Arch>;
    if (width == 0) return;
    recur::transform_row<Arch>(
        width, phi, [](batch const& each) { return xsimd::abs(each); }, y);
    batch const most(of_queries ? recur::largest_of_row<Arch>(width, phi) : static_cast<T>(shift));
    recur::transform_row<Arch>(
        width, phi, [&](batch const& each) { return simd::exp(each - most); }, y);
    recur::transform_row<Arch>(
        width, phi + width, [&](batch const& each) { return simd::exp(-each - most); }, y);
  }
  template <class Arch, class T>
  void differentiate(index_t width, T const* y, T const* phi, T const* dphi, T* dy) const {
    using batch = xsimd::batch<T, Arch>;
    recur::for_registers<Arch, T>(
        width,
        [&](batch const& up, batch const& down, batch const& dup, batch const& ddown, index_t c,
            index_t left) { recur::store_lanes(up * dup - down * ddown, left, dy + c); },
        phi, phi + width, dphi, dphi + width);
    if (!of_queries || width == 0) return;
    index_t largest = 0;
    for (index_t c = 1; c < width; ++c)
      if (std::abs(y[c]) > std::abs(y[largest])) largest = c;
    T const sum = recur::dot_row<Arch>(2 * width, phi, dphi);
    dy[largest] -= y[largest] < 0 ? -sum : sum;
  }
};

namespace detail {

inline workspace& learned_features_workspace() {
  thread_local workspace own;
  return own;
}

/// y = x W + b, its features, and the way back, of blocks of rows of one head.
template <class T, class Arch = xsimd::default_arch>
class learned_rows {
 public:
  static constexpr index_t together = 32;
  static constexpr index_t channels_together = 16;

  template <class X, class W, class B>
  learned_rows(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<B, 2> bias)
      : x_(x),
        dim_(x.extent(3)),
        width_(weights.extent(2)),
        padded_dim_(simd::round_up(dim_, 16)),
        padded_(simd::round_up(width_, 16)),
        weight_heads_(weights.extent(0)),
        bias_heads_(bias.data() == nullptr ? 0 : bias.extent(0)) {
    require((weight_heads_ == 1 || weight_heads_ == x.extent(2)) && weights.extent(1) == dim_, [&] {
      return "weights have shape " + shape_text(weights.extents()) + "; expected [1 or " +
             std::to_string(x.extent(2)) + ", " + std::to_string(dim_) +
             ", width] (heads, dim, width) for x of shape " + shape_text(x.extents());
    });
    require(bias_heads_ == 0 ||
                ((bias_heads_ == 1 || bias_heads_ == x.extent(2)) && bias.extent(1) == width_),
            [&] {
              return "bias has shape " + shape_text(bias.extents()) + "; expected [1 or " +
                     std::to_string(x.extent(2)) + ", " + std::to_string(width_) +
                     "] (heads, width)";
            });
  }

  index_t width() const { return width_; }
  index_t padded() const { return padded_; }

  /// Takes memory for the parameters, ready to multiply by.
  void take_parameters(arena& memory, bool backward) {
    forward_ = memory.take<T>(weight_heads_ * dim_ * padded_);
    back_ = memory.take<T>(backward ? weight_heads_ * width_ * padded_dim_ : 0);
    bias_ = memory.take<T>(std::max<index_t>(bias_heads_, 1) * padded_);
  }
  template <class W, class B>
  void pack_parameters(tensor_view<W, 3> weights, tensor_view<B, 2> bias, bool backward) {
    std::fill_n(forward_, weight_heads_ * dim_ * padded_, T(0));
    std::fill_n(back_, backward ? weight_heads_ * width_ * padded_dim_ : 0, T(0));
    std::fill_n(bias_, std::max<index_t>(bias_heads_, 1) * padded_, T(0));
    for (index_t h = 0; h < weight_heads_; ++h)
      for (index_t d = 0; d < dim_; ++d)
        for (index_t f = 0; f < width_; ++f) {
          T const number = convert_element<T>(weights(h, d, f));
          forward_[(h * dim_ + d) * padded_ + f] = number;
          if (backward) back_[(h * width_ + f) * padded_dim_ + d] = number;
        }
    for (index_t h = 0; h < bias_heads_; ++h)
      for (index_t f = 0; f < width_; ++f) bias_[h * padded_ + f] = convert_element<T>(bias(h, f));
  }

  /// Calls f(batch, head, first row, rows, worker) for every block.
  template <class Executor, class F>
  void for_blocks(Executor const& run_on, F const& f) const {
    index_t const rows = x_.positions(), blocks = (rows + together - 1) / together;
    parallel_for(run_on, x_.batches() * x_.heads() * blocks, [&](index_t piece, index_t worker) {
      index_t const first = piece % blocks * together;
      f(piece / blocks / x_.heads(), piece / blocks % x_.heads(), first,
        std::min(together, rows - first), worker);
    });
  }

  /// y of some rows, in rows of padded() numbers; `room` holds together * dim numbers.
  void project(index_t b, index_t h, index_t first, index_t rows, T* room, T* y) const {
    using batch = xsimd::batch<T, Arch>;
    row_block<T> const x = x_.rows(b, h, first, rows, room);
    simd::product<false, Arch>(rows, dim_, {x.data, x.stride, 1},
                               forward_ + (weight_heads_ == 1 ? 0 : h) * dim_ * padded_, padded_,
                               padded_, y, padded_);
    if (bias_heads_ == 0) return;
    T const* const add = bias_ + (bias_heads_ == 1 ? 0 : h) * padded_;
    for (index_t r = 0; r < rows; ++r)
      recur::transform_row<Arch>(
          padded_, y + r * padded_, [](batch const& a, batch const& c) { return a + c; },
          y + r * padded_, add);
  }
  /// dx of some rows from dy, in rows of round_up(dim, 16) numbers.
  void project_back(index_t h, index_t rows, T const* dy, T* dx) const {
    simd::product<false, Arch>(rows, width_, {dy, padded_, 1},
                               back_ + (weight_heads_ == 1 ? 0 : h) * width_ * padded_dim_,
                               padded_dim_, padded_dim_, dx, padded_dim_);
  }
  index_t padded_dim() const { return padded_dim_; }

  /// The gradients of the parameters, from dy [batch, head, position, padded()]. A piece owns some channels of a
  /// head's weights.
  template <class Executor, class DW, class DB>
  void write_parameter_gradients(Executor const& run_on, T const* dy, std::byte* memory,
                                 index_t bytes, tensor_view<DW, 3> dweights,
                                 tensor_view<DB, 2> dbias) const {
    index_t const parts = (dim_ + channels_together - 1) / channels_together;
    parallel_for(run_on, weight_heads_ * parts, [&](index_t piece, index_t worker) {
      index_t const owner = piece / parts, channel = piece % parts * channels_together;
      index_t const channels = std::min(channels_together, dim_ - channel);
      arena own(memory + worker * bytes);
      T* const room = own.take<T>(together * dim_);
      T* const part = own.take<T>(channels_together * padded_);
      T* const sum = own.take<T>(channels_together * padded_);
      std::fill_n(sum, channels_together * padded_, T(0));
      // Block by block, so that sums of many rows are sums of sums.
      for_rows_of(owner, weight_heads_, [&](index_t b, index_t h, index_t first, index_t rows) {
        row_block<T> const x = x_.rows(b, h, first, rows, room);
        simd::product<false, Arch>(channels, rows, {x.data + channel, 1, x.stride},
                                   at(dy, b, h, first), padded_, padded_, part, padded_);
        add_rows(channels * padded_, part, sum);
      });
      for (index_t d = 0; d < channels; ++d)
        for (index_t f = 0; f < width_; ++f)
          dweights(owner, channel + d, f) = convert_element<DW>(sum[d * padded_ + f]);
    });
    parallel_for(run_on, bias_heads_, [&](index_t owner, index_t worker) {
      arena own(memory + worker * bytes);
      own.take<T>(together * dim_);
      T* const part = own.take<T>(channels_together * padded_);
      T* const sum = own.take<T>(channels_together * padded_);
      std::fill_n(sum, padded_, T(0));
      for_rows_of(owner, bias_heads_, [&](index_t b, index_t h, index_t first, index_t rows) {
        std::fill_n(part, padded_, T(0));
        for (index_t r = 0; r < rows; ++r) add_rows(padded_, at(dy, b, h, first + r), part);
        add_rows(padded_, part, sum);
      });
      for (index_t f = 0; f < width_; ++f) dbias(owner, f) = convert_element<DB>(sum[f]);
    });
  }

  T* dy_of(T* all, index_t b, index_t h, index_t first) const {
    return all + ((b * x_.heads() + h) * x_.positions() + first) * padded_;
  }
  index_t tokens() const { return x_.batches() * x_.heads() * x_.positions(); }

  /// The scratch of a worker.
  index_t worker_bytes(index_t features) const {
    return arena::bytes<T>(together * dim_) + arena::bytes<T>(together * padded_) +
           2 * arena::bytes<T>(together * features) + arena::bytes<T>(together * padded_dim_) +
           2 * arena::bytes<T>(channels_together * padded_);
  }

 private:
  T const* at(T const* all, index_t b, index_t h, index_t first) const {
    return all + ((b * x_.heads() + h) * x_.positions() + first) * padded_;
  }
  /// The rows whose parameters are those of `owner` among `owners` heads, in order.
  template <class F>
  void for_rows_of(index_t owner, index_t owners, F const& f) const {
    for (index_t b = 0; b < x_.batches(); ++b)
      for (index_t h = 0; h < x_.heads(); ++h)
        for (index_t first = 0; (owners == 1 || h == owner) && first < x_.positions();
             first += together)
          f(b, h, first, std::min(together, x_.positions() - first));
  }
  static void add_rows(index_t count, T const* more, T* to) {
    using batch = xsimd::batch<T, Arch>;
    recur::transform_row<Arch>(
        count, to, [](batch const& a, batch const& c) { return a + c; }, to, more);
  }

  source<T> x_;
  index_t dim_, width_, padded_dim_, padded_, weight_heads_, bias_heads_;
  T *forward_ = nullptr, *back_ = nullptr, *bias_ = nullptr;
};

template <class Activation, class X, class W, class B, class P, class Executor>
void learned_features(Activation const& activation, tensor_view<X, 4> x, tensor_view<W, 3> weights,
                      tensor_view<B, 2> bias, tensor_view<P, 4> phi, Executor const& run_on) {
  using T = compute_type<X, W, B, P>;
  using Arch = xsimd::default_arch;
  learned_rows<T> work(x, weights, bias);
  index_t const features = activation.features(work.width());
  expect_like("phi", phi, {x.extent(0), x.extent(1), x.extent(2), features}, "x with its features");
  expect_distinct_elements("phi", phi);
  arena measure;
  work.take_parameters(measure, false);
  index_t const bytes = work.worker_bytes(features);
  std::byte* const memory = learned_features_workspace().reserve(
      measure.used() +
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  arena parameters(memory);
  work.take_parameters(parameters, false);
  work.pack_parameters(weights, bias, false);
  sink<T> const to(phi);
  work.for_blocks(run_on, [&](index_t b, index_t h, index_t first, index_t rows, index_t worker) {
    arena own(memory + static_cast<index_t>(measure.used()) + worker * bytes);
    T* const room = own.take<T>(learned_rows<T>::together * x.extent(3));
    T* const y = own.take<T>(learned_rows<T>::together * work.padded());
    T* const made = own.take<T>(learned_rows<T>::together * features);
    work.project(b, h, first, rows, room, y);
    for (index_t r = 0; r < rows; ++r)
      activation.template apply<Arch>(work.width(), y + r * work.padded(), made + r * features);
    to.store(b, h, first, rows, made, features);
  });
}

template <class Activation, class X, class W, class B, class DP, class DX, class DW, class DB,
          class Executor>
void learned_features_backward(Activation const& activation, tensor_view<X, 4> x,
                               tensor_view<W, 3> weights, tensor_view<B, 2> bias,
                               tensor_view<DP, 4> dphi, tensor_view<DX, 4> dx,
                               tensor_view<DW, 3> dweights, tensor_view<DB, 2> dbias,
                               Executor const& run_on) {
  using T = compute_type<X, W, B, DP>;
  using Arch = xsimd::default_arch;
  learned_rows<T> work(x, weights, bias);
  index_t const features = activation.features(work.width());
  expect_like("dphi", dphi, {x.extent(0), x.extent(1), x.extent(2), features},
              "x with its features");
  expect_like("dx", dx, x.extents(), "x");
  require(dweights.extents() == weights.extents() && dbias.extents() == bias.extents(), [&] {
    return "dweights have shape " + shape_text(dweights.extents()) + ", dbias " +
           shape_text(dbias.extents()) + "; expected those of weights and bias, " +
           shape_text(weights.extents()) + " and " + shape_text(bias.extents());
  });
  expect_distinct_elements("dx", dx);
  expect_distinct_elements("dweights", dweights);
  expect_distinct_elements("dbias", dbias);
  T* dy = nullptr;
  auto const lay_out = [&](arena memory) {
    work.take_parameters(memory, true);
    dy = memory.take<T>(work.tokens() * work.padded());
    return static_cast<index_t>(memory.used());
  };
  index_t const shared = lay_out(arena()), bytes = work.worker_bytes(features);
  std::byte* const memory = learned_features_workspace().reserve(
      static_cast<std::size_t>(shared + bytes * static_cast<index_t>(run_on.concurrency())));
  lay_out(arena(memory));
  work.pack_parameters(weights, bias, true);
  source<T> const slopes(dphi);
  sink<T> const to(dx);
  constexpr index_t together = learned_rows<T>::together;
  work.for_blocks(run_on, [&](index_t b, index_t h, index_t first, index_t rows, index_t worker) {
    arena own(memory + shared + worker * bytes);
    T* const room = own.take<T>(together * x.extent(3));
    T* const y = own.take<T>(together * work.padded());
    T* const made = own.take<T>(features);
    T* const slope_room = own.take<T>(together * features);
    T* const back = own.take<T>(together * work.padded_dim());
    T* const dy_rows = work.dy_of(dy, b, h, first);
    work.project(b, h, first, rows, room, y);
    row_block<T> const slope = slopes.rows(b, h, first, rows, slope_room);
    std::fill_n(dy_rows, rows * work.padded(), T(0));
    for (index_t r = 0; r < rows; ++r) {
      activation.template apply<Arch>(work.width(), y + r * work.padded(), made);
      activation.template differentiate<Arch>(work.width(), y + r * work.padded(), made, slope[r],
                                              dy_rows + r * work.padded());
    }
    work.project_back(h, rows, dy_rows, back);
    to.store(b, h, first, rows, back, work.padded_dim());
  });
  work.write_parameter_gradients(run_on, dy, memory + shared, bytes, dweights, dbias);
}

}  // namespace detail

/// T2R: phi = max(x W + b, 0).
template <element X, element W, element B, element P, class Executor = serial>
void t2r_features(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<B, 2> bias,
                  tensor_view<P, 4> phi, Executor const& run_on = {}) {
  detail::learned_features(t2r_activation{}, x, weights, bias, phi, run_on);
}
template <element X, element W, element B, element DP, element DX, element DW, element DB,
          class Executor = serial>
void t2r_features_backward(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<B, 2> bias,
                           tensor_view<DP, 4> dphi, tensor_view<DX, 4> dx,
                           tensor_view<DW, 3> dweights, tensor_view<DB, 2> dbias,
                           Executor const& run_on = {}) {
  detail::learned_features_backward(t2r_activation{}, x, weights, bias, dphi, dx, dweights, dbias,
                                    run_on);
}

/// Hedgehog: phi = softmax([y, -y]) over all 2 width features, y = 2 (x W + b).
template <element X, element W, element B, element P, class Executor = serial>
void hedgehog_features(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<B, 2> bias,
                       tensor_view<P, 4> phi, Executor const& run_on = {}) {
  detail::learned_features(hedgehog_softmax{}, x, weights, bias, phi, run_on);
}
template <element X, element W, element B, element DP, element DX, element DW, element DB,
          class Executor = serial>
void hedgehog_features_backward(tensor_view<X, 4> x, tensor_view<W, 3> weights,
                                tensor_view<B, 2> bias, tensor_view<DP, 4> dphi,
                                tensor_view<DX, 4> dx, tensor_view<DW, 3> dweights,
                                tensor_view<DB, 2> dbias, Executor const& run_on = {}) {
  detail::learned_features_backward(hedgehog_softmax{}, x, weights, bias, dphi, dx, dweights, dbias,
                                    run_on);
}

/// Hedgehog with plain exponentials, phi = [e^(x W), e^(-x W)], for normalised attention over numbers of any size:
/// `stabiliser`, hedgehog_exponential::queries() or ::keys(shift), says what is taken from the exponents.
template <element X, element W, element P, class Executor = serial>
void hedgehog_exponential_features(tensor_view<X, 4> x, tensor_view<W, 3> weights,
                                   tensor_view<P, 4> phi, hedgehog_exponential stabiliser = {},
                                   Executor const& run_on = {}) {
  detail::learned_features(stabiliser, x, weights, tensor_view<W, 2>(), phi, run_on);
}
template <element X, element W, element DP, element DX, element DW, class Executor = serial>
void hedgehog_exponential_features_backward(tensor_view<X, 4> x, tensor_view<W, 3> weights,
                                            tensor_view<DP, 4> dphi, tensor_view<DX, 4> dx,
                                            tensor_view<DW, 3> dweights,
                                            hedgehog_exponential stabiliser = {},
                                            Executor const& run_on = {}) {
  detail::learned_features_backward(stabiliser, x, weights, tensor_view<W, 2>(), dphi, dx, dweights,
                                    tensor_view<DW, 2>(), run_on);
}

}  // namespace heed
