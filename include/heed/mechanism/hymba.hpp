#pragma once

#include <heed/mechanism/selective_scan.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/recur/row_norms.hpp>
#include <heed/simd/fma.hpp>
#include <heed/sliding_window.hpp>

/// Hymba: A Hybrid-head Architecture for Small Language Models.
///
/// Attention and a state space side by side in one layer, fused after a norm of each:
///
///     out = (rms(attention) w_1 + rms(state space) w_2) / 2
///
/// The attention is attention() under hymba_mask. The state space is causal_convolution with_silu, the model's maps to a step of
/// low rank, B and C, weighted_rms_norm of each of the three, the map from the step's rank to the channels, and selective_scan with
/// softplus_step and silu_gate. A layer that shares keys and values attends to the cache of an earlier one.
namespace heed {

/// Meta tokens, which stand before the sequence and are always seen, and a window: j <= i and (i - j <= window or j < meta).
/// The window counts as in the published code, which sees window + 1 keys.
inline auto hymba_mask(index_t window, index_t meta) {
  require(window >= 0 && meta >= 0, [&] {
    return "hymba_mask has a window of " + std::to_string(window) + " and " + std::to_string(meta) +
           " meta tokens; expected at least 0 of both";
  });
  return causal{} & (sliding_window{.left = window} | first_keys{meta});
}

namespace recur {

/// out = share sum_k rms(x_k) w_k over one or two tensors, the norm being that of all heads of a token together.
template <class T, int Inputs>
class weighted_norms {
 public:
  using arch = xsimd::default_arch;
  using batch = xsimd::batch<T, arch>;
  using rows_type = scan::channel_rows<T>;

  std::array<rows_type, Inputs> x, weights;
  rms_norm norm;
  T share = 1;
  tensor_shape shape{};

  void forward(any_executor const& run_on, rows_type const& out) const {
    each_block(run_on, [&](index_t b, index_t first, index_t count, index_t, T* scratch) {
      operands const in = take(b, first, count, scratch);
      auto const to = out.open(b, first, tile(), scratch);
      for (index_t i = 0; i < count; ++i)
        for (std::size_t k = 0; k < Inputs; ++k) {
          batch const factor(share * static_cast<T>(factor_at(in, k, i).factor));
          if (k == 0)
            transform_row<arch>(
                width(), to[i], [&](batch const& a, batch const& w) { return a * factor * w; },
                in.x[k][i], in.w[k].data);
          else
            transform_row<arch>(
                width(), to[i],
                [&](batch const& a, batch const& w, batch const& sum) {
                  return simd::fma(a * factor, w, sum);
                },
                in.x[k][i], in.w[k].data, to[i]);
        }
      out.finish(to, b, first, count, tile());
    });
  }

  void backward(any_executor const& run_on, rows_type const& dout,
                std::array<rows_type, Inputs> const& dx,
                std::array<rows_type, Inputs> const& dweights) const {
    // What each block of tokens adds to the gradients of weights, summed in their order.
    struct page {};
    auto const partial =
        page_tensors<page, T>(tensor_shape{1, shape[0] * blocks(), Inputs, width()})[0];
    each_block(run_on, [&](index_t b, index_t first, index_t count, index_t block, T* scratch) {
      operands const in = take(b, first, count, scratch);
      row_block<T> const slope = dout.read(b, first, count, tile(), scratch);
      scratch += together * padded();
      T* const dy = scratch + together * padded();
      for (std::size_t k = 0; k < Inputs; ++k) {
        T* const dw = &partial(0, block, static_cast<index_t>(k), 0);
        std::fill_n(dw, width(), T(0));
        auto const to = dx[k].open(b, first, tile(), scratch);
        for (index_t i = 0; i < count; ++i) {
          row_factor const by = factor_at(in, k, i);
          batch const factor(static_cast<T>(by.factor)), part(share);
          transform_row<arch>(
              width(), dy, [&](batch const& d, batch const& w) { return part * d * w; }, slope[i],
              in.w[k].data);
          transform_row<arch>(
              width(), dw,
              [&](batch const& sum, batch const& d, batch const& a) {
                return simd::fma(part * d, a * factor, sum);
              },
              dw, slope[i], in.x[k][i]);
          T const along = static_cast<T>(by.factor) * dot_row<arch>(width(), dy, in.x[k][i]);
          batch const less(static_cast<T>(by.projection * by.factor) * along);
          transform_row<arch>(
              width(), to[i],
              [&](batch const& d, batch const& a) { return factor * simd::fnma(less, a, d); }, dy,
              in.x[k][i]);
        }
        dx[k].finish(to, b, first, count, tile());
      }
    });
    T* const total = feature_scratch<T>(padded());
    for (std::size_t k = 0; k < Inputs; ++k) {
      for (index_t c = 0; c < width(); ++c) {
        double sum = 0;
        for (index_t block = 0; block < shape[0] * blocks(); ++block)
          sum += double(partial(0, block, static_cast<index_t>(k), c));
        total[c] = static_cast<T>(sum);
      }
      dweights[k].write(0, 0, 1, tile(), total, padded());
    }
  }

 private:
  static constexpr index_t together = 16;

  struct operands {
    std::array<row_block<T>, Inputs> x, w;
  };

  index_t width() const { return shape[2] * shape[3]; }
  index_t padded() const { return simd::round_up(width(), static_cast<index_t>(batch::size)); }
  index_t blocks() const { return (shape[1] + together - 1) / together; }
  scan::channel_tile tile() const { return {0, width(), padded()}; }

  row_factor factor_at(operands const& in, std::size_t k, index_t i) const {
    return factor_of(norm, size_of_row<T, arch>(in.x[k][i], width()), width());
  }
  operands take(index_t b, index_t first, index_t count, T*& scratch) const {
    operands in;
    for (std::size_t k = 0; k < Inputs; ++k) {
      in.x[k] = x[k].read(b, first, count, tile(), scratch);
      scratch += together * padded();
      in.w[k] = weights[k].read(0, 0, 1, tile(), scratch);
      scratch += padded();
    }
    return in;
  }
  template <class F>
  void each_block(any_executor const& run_on, F const& f) const {
    if (width() == 0) return;
    parallel_for(run_on, shape[0] * blocks(), [&](index_t piece, index_t) {
      index_t const first = piece % blocks() * together;
      f(piece / blocks(), first, std::min(together, shape[1] - first), piece,
        feature_scratch<T>(((Inputs + 2) * (together + 1) + 1) * padded()));
    });
  }
};

/// Checks tensors of the shape of `x`, and numbers of its channels.
template <class X, class... Same>
void expect_alike(tensor_view<X, 4> x, std::pair<char const*, Same> const&... others) {
  detail::expect_memory("x", x);
  auto const fits = [&](char const* name, auto const& view) {
    if constexpr (std::remove_cvref_t<decltype(view)>::rank == 2) {
      require(view.extents() == std::array{x.extent(2), x.extent(3)}, [&] {
        return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
               shape_text(std::array{x.extent(2), x.extent(3)}) + " (head, dim)";
      });
    } else {
      detail::expect_like(name, view, x.extents(), "the first");
    }
    detail::expect_memory(name, view);
  };
  (fits(others.first, others.second), ...);
}

}  // namespace recur

/// x w / sqrt(mean(x^2) + epsilon), the mean over all heads of a token together.
///
///   x, out    [batch, position, heads, dim]
///   weight    [heads, dim]
template <element X, element W, element O, class Executor = serial>
void weighted_rms_norm(tensor_view<X, 4> x, tensor_view<W, 2> weight, tensor_view<O, 4> out,
                       double epsilon = 1e-6, Executor const& run_on = {}) {
  using T = compute_type<X, W, O>;
  recur::expect_alike(x, std::pair{"weight", weight}, std::pair{"out", out});
  recur::check_norm(rms_norm{epsilon, true});
  recur::weighted_norms<T, 1>{{recur::scan::channel_rows<T>(x)},
                              {recur::scan::as_row<T>(weight)},
                              {epsilon, true},
                              T(1),
                              x.extents()}
      .forward(any_executor(run_on), recur::scan::channel_rows<T>(out));
}

/// The gradients of weighted_rms_norm.
template <element X, element W, element DO, element DX, element DW, class Executor = serial>
void weighted_rms_norm_backward(tensor_view<X, 4> x, tensor_view<W, 2> weight,
                                tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                                tensor_view<DW, 2> dweight, double epsilon = 1e-6,
                                Executor const& run_on = {}) {
  using T = compute_type<X, W, DO>;
  recur::expect_alike(x, std::pair{"weight", weight}, std::pair{"dout", dout}, std::pair{"dx", dx},
                      std::pair{"dweight", dweight});
  recur::check_norm(rms_norm{epsilon, true});
  using rows = recur::scan::channel_rows<T>;
  recur::weighted_norms<T, 1>{
      {rows(x)}, {recur::scan::as_row<T>(weight)}, {epsilon, true}, T(1), x.extents()}
      .backward(any_executor(run_on), rows(dout), {rows(dx)}, {recur::scan::as_row<T>(dweight)});
}

/// Hymba's fusion of two branches, (rms(first) w_1 + rms(second) w_2) / 2, with norms over all heads of a token together.
///
///   first, second, out           [batch, position, heads, dim]
///   first_weight, second_weight  [heads, dim]
template <element A, element S, element W1, element W2, element O, class Executor = serial>
void hymba_fusion(tensor_view<A, 4> first, tensor_view<S, 4> second,
                  tensor_view<W1, 2> first_weight, tensor_view<W2, 2> second_weight,
                  tensor_view<O, 4> out, double epsilon = 1e-6, Executor const& run_on = {}) {
  using T = compute_type<A, S, W1, W2, O>;
  recur::expect_alike(first, std::pair{"second", second}, std::pair{"first_weight", first_weight},
                      std::pair{"second_weight", second_weight}, std::pair{"out", out});
  recur::check_norm(rms_norm{epsilon, true});
  using rows = recur::scan::channel_rows<T>;
  recur::weighted_norms<T, 2>{
      {rows(first), rows(second)},
      {recur::scan::as_row<T>(first_weight), recur::scan::as_row<T>(second_weight)},
      {epsilon, true},
      T(0.5),
      first.extents()}
      .forward(any_executor(run_on), rows(out));
}

/// The gradients of hymba_fusion.
template <element A, element S, element W1, element W2, element DO, element DA, element DS,
          element DW1, element DW2, class Executor = serial>
void hymba_fusion_backward(tensor_view<A, 4> first, tensor_view<S, 4> second,
                           tensor_view<W1, 2> first_weight, tensor_view<W2, 2> second_weight,
                           tensor_view<DO, 4> dout, tensor_view<DA, 4> dfirst,
                           tensor_view<DS, 4> dsecond, tensor_view<DW1, 2> dfirst_weight,
                           tensor_view<DW2, 2> dsecond_weight, double epsilon = 1e-6,
                           Executor const& run_on = {}) {
  using T = compute_type<A, S, W1, W2, DO>;
  recur::expect_alike(first, std::pair{"second", second}, std::pair{"first_weight", first_weight},
                      std::pair{"second_weight", second_weight}, std::pair{"dout", dout},
                      std::pair{"dfirst", dfirst}, std::pair{"dsecond", dsecond},
                      std::pair{"dfirst_weight", dfirst_weight},
                      std::pair{"dsecond_weight", dsecond_weight});
  recur::check_norm(rms_norm{epsilon, true});
  using rows = recur::scan::channel_rows<T>;
  recur::weighted_norms<T, 2>{
      {rows(first), rows(second)},
      {recur::scan::as_row<T>(first_weight), recur::scan::as_row<T>(second_weight)},
      {epsilon, true},
      T(0.5),
      first.extents()}
      .backward(any_executor(run_on), rows(dout), {rows(dfirst), rows(dsecond)},
                {recur::scan::as_row<T>(dfirst_weight), recur::scan::as_row<T>(dsecond_weight)});
}

}  // namespace heed
