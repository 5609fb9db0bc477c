#pragma once

#include <heed/parallel/executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/pattern/interval.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/lanes.hpp>
#include <heed/simd/load.hpp>
#include <heed/view/convert.hpp>

/// UniFormer: Unifying Convolution and Self-attention for Visual Recognition, its local relation aggregator.
///
/// A token gathers its neighbours with weights that belong to their offsets and not to what they hold:
///
///     out(i, c) = sum over the offsets d of a box: weights(d, c) value(i + d, c)
///
/// No scores and no softmax. Offsets that leave the grid add nothing. The maps before and after are the model's.
namespace heed {

/// A grid of tokens, row-major along the position axis, and the box of odd extents around each of them.
template <int Axes>
struct token_box {
  using sizes = std::array<index_t, static_cast<std::size_t>(Axes)>;
  sizes grid;
  sizes window;
};

namespace detail {

/// Tokens of one head from a channel on.
template <class E>
struct run_of_tokens {
  E const* first;
  index_t token, channel;

  template <class U>
  run_of_tokens(tensor_view<U, 4> const& all, index_t b, index_t i, index_t h, index_t c)
      : first(&all(b, i, h, c)), token(all.stride(1)), channel(all.stride(3)) {}
};
template <class U>
run_of_tokens(tensor_view<U, 4> const&, index_t, index_t, index_t, index_t)
    -> run_of_tokens<std::remove_const_t<U>>;

/// The work of local_aggregation and its gradients on a grid of three axes.
template <class T, class Arch = xsimd::default_arch>
class aggregator {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr index_t lanes = static_cast<index_t>(batch::size);

  template <int Axes>
  explicit aggregator(token_box<Axes> const& box) {
    static_assert(Axes >= 1 && Axes <= 3, "heed: token_box has one to three axes");
    for (std::size_t axis = 0; axis < box.grid.size(); ++axis) {
      grid_[axis + grid_.size() - box.grid.size()] = box.grid[axis];
      window_[axis + window_.size() - box.window.size()] = box.window[axis];
    }
    for (index_t extent : box.window)
      require(extent > 0 && extent % 2 == 1, [&] {
        return "token_box has the window " + shape_text(box.window) + "; expected odd extents";
      });
  }

  index_t positions() const { return grid_[0] * grid_[1] * grid_[2]; }
  index_t taps() const { return window_[0] * window_[1] * window_[2]; }
  /// Rows along the last axis.
  index_t lines() const { return grid_[0] * grid_[1]; }

  /// One row along the last axis, of one head: out(x) = sum_d packed[d] value(x + d).
  template <class V, class O>
  void gather(tensor_view<V, 4> value, T const* packed, index_t padded, index_t b, index_t line,
              index_t h, tensor_view<O, 4> out) const {
    // All channels of a few tokens, so that the rows around them stay near.
    index_t const width = grid_[2], reach = window_[2] / 2;
    line_place const at{line, line / grid_[1], line % grid_[1]};
    for (index_t x = 0; x < width;) {
      bool const inside = x >= reach && x + together - 1 + reach < width;
      if (inside)
        gather_tokens<together>(value, packed, padded, b, at, h, x, out);
      else
        gather_tokens<1>(value, packed, padded, b, at, h, x, out);
      x += inside ? together : 1;
    }
  }

  /// sums[t * dim + c] += sum_i dout(i, c) value(i + offset, c) over a batch entry and head, for the taps t of one
  /// row of the box, those of the same offset along the first two axes.
  template <class V, class DO>
  void correlate(tensor_view<V, 4> value, tensor_view<DO, 4> dout, index_t tap_row, index_t b,
                 index_t h, double* sums) const {
    index_t const dim = value.extent(3);
    for (index_t line = 0; line < lines(); ++line) {
      index_t const other = line_at(line, tap_row);
      if (other < 0) continue;
      for (index_t t = 0; t < window_[2]; ++t) {
        index_t const dx = t - window_[2] / 2;
        interval const along{std::max<index_t>(0, -dx), std::min(grid_[2], grid_[2] - dx)};
        for (index_t c = 0; c < dim && !along.empty(); c += lanes) {
          index_t const left = std::min(lanes, dim - c);
          run_of_tokens const from(value, b, other * grid_[2] + along.first + dx, h, c),
              with(dout, b, line * grid_[2] + along.first, h, c);
          bool const whole = left == lanes && value.stride(3) == 1 && dout.stride(3) == 1;
          alignas(64) T products[lanes];
          (whole ? line_product<true>(from, with, along.size(), left)
                 : line_product<false>(from, with, along.size(), left))
              .store_aligned(products);
          for (index_t lane = 0; lane < left; ++lane)
            sums[t * dim + c + lane] += static_cast<double>(products[lane]);
        }
      }
    }
  }

  index_t tap_rows() const { return window_[0] * window_[1]; }
  index_t taps_per_row() const { return window_[2]; }

 private:
  static constexpr int together = 4;  // tokens that share a load of the weights

  struct line_place {
    index_t number, z, y;
  };
  /// The taps of an axis that stay on the grid from a coordinate.
  interval taps_inside(std::size_t axis, index_t from) const {
    index_t const reach = window_[axis] / 2;
    return intersect({0, window_[axis]}, {reach - from, grid_[axis] + reach - from});
  }

  /// The line that a pair of taps of the first two axes leads to, or -1.
  index_t line_at(index_t line, index_t tap) const {
    index_t const z = line / grid_[1] + tap / window_[1] - window_[0] / 2;
    index_t const y = line % grid_[1] + tap % window_[1] - window_[1] / 2;
    return z >= 0 && z < grid_[0] && y >= 0 && y < grid_[1] ? z * grid_[1] + y : -1;
  }

  /// The products of `count` tokens, summed.
  template <bool Whole, class A, class B>
  static batch line_product(run_of_tokens<A> a, run_of_tokens<B> b, index_t count, index_t left) {
    batch sum[together];
    for (batch& each : sum) each = batch(T(0));
    auto const add = [&](index_t x, batch& to) {
      to = simd::fma(load<Whole>(a.first + x * a.token, a.channel, left),
                     load<Whole>(b.first + x * b.token, b.channel, left), to);
    };
    index_t x = 0;
    for (; x + together <= count; x += together)
#pragma GCC unroll 4
      for (index_t n = 0; n < together; ++n) add(x + n, sum[n]);
    for (; x < count; ++x) add(x, sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  template <int Count, class V, class O>
  void gather_tokens(tensor_view<V, 4> value, T const* packed, index_t padded, index_t b,
                     line_place const& at, index_t h, index_t x, tensor_view<O, 4> out) const {
    index_t const dim = value.extent(3);
    index_t c = 0;
    if (value.stride(3) == 1) {
      for (; c + 2 * lanes <= dim; c += 2 * lanes)
        gather_at<Count, 2>(value, packed + c, padded, b, at, h, c, x, out);
      for (; c + lanes <= dim; c += lanes)
        gather_at<Count, 1>(value, packed + c, padded, b, at, h, c, x, out);
    }
    for (; c < dim; c += lanes) gather_at<Count, 0>(value, packed + c, padded, b, at, h, c, x, out);
  }

  /// Some registers of channels of some tokens; 0 for a register that is not whole.
  template <int Count, int Registers, class V, class O>
  void gather_at(tensor_view<V, 4> value, T const* packed, index_t padded, index_t b,
                 line_place const& at, index_t h, index_t c, index_t x,
                 tensor_view<O, 4> out) const {
    constexpr bool whole = Registers > 0;
    constexpr int registers = whole ? Registers : 1;
    index_t const left = std::min(lanes, value.extent(3) - c), token = value.stride(1),
                  channel = value.stride(3);
    interval const along = taps_inside(2, x);
    batch sum[Count][registers];
    for (auto& of_token : sum)
      for (batch& each : of_token) each = batch(T(0));
    interval const down = taps_inside(1, at.y), deep = taps_inside(0, at.z);
    for (index_t u = deep.first; u < deep.last; ++u)
      for (index_t v = down.first; v < down.last; ++v) {
        index_t const other = at.number + (u - window_[0] / 2) * grid_[1] + v - window_[1] / 2;
        V const* from = &value(b, other * grid_[2] + x + along.first - window_[2] / 2, h, c);
        T const* weights = packed + ((u * window_[1] + v) * window_[2] + along.first) * padded;
        for (index_t t = along.first; t < along.last; ++t, from += token, weights += padded) {
#pragma GCC unroll 2
          for (int r = 0; r < registers; ++r) {
            batch const weight = batch::load_aligned(weights + r * lanes);
#pragma GCC unroll 4
            for (int n = 0; n < Count; ++n)
              sum[n][r] = simd::fma(
                  weight, load<whole>(from + n * token + r * lanes, channel, left), sum[n][r]);
          }
        }
      }
    for (int n = 0; n < Count; ++n)
      for (int r = 0; r < registers; ++r)
        store(sum[n][r], out, b, at.number * grid_[2] + x + n, h, c + r * lanes);
  }

  /// The `left` elements, at most a register, that begin at `from`; `Whole` ones lie together.
  template <bool Whole, class E>
  static batch load(E const* from, index_t stride, index_t left) {
    if constexpr (Whole) return simd::load_stored<T, Arch>(from);
    alignas(64) T numbers[lanes] = {};
    for (index_t lane = 0; lane < left; ++lane)
      numbers[lane] = convert_element<T>(from[lane * stride]);
    return batch::load_aligned(numbers);
  }
  template <class E>
  static void store(batch numbers, tensor_view<E, 4> const& to, index_t b, index_t i, index_t h,
                    index_t c) {
    E* const at = &to(b, i, h, c);
    if constexpr (std::is_same_v<E, T>)
      if (to.stride(3) == 1 && c + lanes <= to.extent(3)) return numbers.store_unaligned(at);
    alignas(64) T lane_numbers[lanes];
    numbers.store_aligned(lane_numbers);
    for (index_t lane = 0; lane < std::min(lanes, to.extent(3) - c); ++lane)
      at[lane * to.stride(3)] = convert_element<E>(lane_numbers[lane]);
  }

  std::array<index_t, 3> grid_{1, 1, 1};
  std::array<index_t, 3> window_{1, 1, 1};
};

template <class T, class V, class W, class O>
void check_aggregation(aggregator<T> const& box, tensor_view<V, 4> value, tensor_view<W, 3> weights,
                       tensor_view<O, 4> out, char const* out_name) {
  require(value.extent(1) == box.positions(), [&] {
    return "value has shape " + shape_text(value.extents()) + "; expected " +
           std::to_string(box.positions()) + " positions, those of the grid";
  });
  require(weights.extent(0) == box.taps() &&
              (weights.extent(1) == 1 || weights.extent(1) == value.extent(2)) &&
              (weights.extent(2) == 1 || weights.extent(2) == value.extent(3)),
          [&] {
            return "weights have shape " + shape_text(weights.extents()) + "; expected [" +
                   std::to_string(box.taps()) + ", 1 or " + std::to_string(value.extent(2)) +
                   ", 1 or " + std::to_string(value.extent(3)) + "] (offset, head, dim)";
          });
  require(out.extents() == value.extents(), [&] {
    return std::string(out_name) + " has shape " + shape_text(out.extents()) +
           "; expected that of value, " + shape_text(value.extents());
  });
}

/// out = the aggregation of value, with the weights of the opposite offsets if `flipped`.
template <class T, class V, class W, class O, class Executor>
void aggregate(aggregator<T> const& box, tensor_view<V, 4> value, tensor_view<W, 3> weights,
               tensor_view<O, 4> out, bool flipped, Executor const& run_on) {
  index_t const heads = value.extent(2), dim = value.extent(3), taps = box.taps();
  index_t const padded = simd::round_up(dim, aggregator<T>::lanes), of_head = taps * padded;
  T* const packed =
      arena(thread_workspace().reserve(static_cast<std::size_t>(arena::bytes<T>(heads * of_head))))
          .take<T>(heads * of_head);
  for (index_t h = 0; h < heads; ++h)
    for (index_t tap = 0; tap < taps; ++tap)
      for (index_t c = 0; c < padded; ++c)
        packed[h * of_head + tap * padded + c] =
            c < dim ? convert_element<T>(weights(flipped ? taps - 1 - tap : tap,
                                                 weights.extent(1) == 1 ? 0 : h,
                                                 weights.extent(2) == 1 ? 0 : c))
                    : T(0);
  parallel_for(run_on, value.extent(0) * heads * box.lines(), [&](index_t piece, index_t) {
    index_t const line = piece % box.lines(), h = piece / box.lines() % heads;
    box.gather(value, packed + h * of_head, padded, piece / box.lines() / heads, line, h, out);
  });
}

}  // namespace detail

/// Gathers the box around every token of a grid.
///
///   value, out   [batch, position, heads, dim], the positions those of the grid, row-major
///   weights      [offset, heads, dim], the offsets row-major from the lowest to the highest along each axis;
///                an extent of 1 shares weights among heads or channels
///
/// Elements are double, float, half or bfloat16, each tensor its own.
template <int Axes, element V, element W, element O, class Executor = serial>
void local_aggregation(tensor_view<V, 4> value, tensor_view<W, 3> weights,
                       token_box<Axes> const& box, tensor_view<O, 4> out,
                       Executor const& run_on = {}) {
  detail::aggregator<compute_type<V, W, O>> const work(box);
  detail::check_aggregation(work, value, weights, out, "out");
  detail::aggregate(work, value, weights, out, false, run_on);
}

/// The gradients of local_aggregation: dvalue shaped like value, dweights like weights.
template <int Axes, element V, element W, element DO, element DV, element DW,
          class Executor = serial>
void local_aggregation_backward(tensor_view<V, 4> value, tensor_view<W, 3> weights,
                                token_box<Axes> const& box, tensor_view<DO, 4> dout,
                                tensor_view<DV, 4> dvalue, tensor_view<DW, 3> dweights,
                                Executor const& run_on = {}) {
  using T = compute_type<V, W, DO>;
  detail::aggregator<T> const work(box);
  detail::check_aggregation(work, value, weights, dout, "dout");
  detail::check_aggregation(work, value, weights, dvalue, "dvalue");
  require(dweights.extents() == weights.extents(), [&] {
    return "dweights have shape " + shape_text(dweights.extents()) +
           "; expected that of weights, " + shape_text(weights.extents());
  });
  detail::aggregate(work, dout, weights, dvalue, true, run_on);

  // A piece owns a row of offsets and, unless they share weights, a head.
  index_t const heads = dweights.extent(1), dim = value.extent(3), row = work.taps_per_row();
  auto const bytes = arena::bytes<double>(row * dim);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, work.tap_rows() * heads, [&](index_t piece, index_t worker) {
    index_t const tap_row = piece / heads, owner = piece % heads;
    double* const sums = arena(memory + worker * bytes).template take<double>(row * dim);
    std::fill_n(sums, row * dim, 0.0);
    for (index_t b = 0; b < value.extent(0); ++b)
      for (index_t h = 0; h < value.extent(2); ++h)
        if (heads == 1 || h == owner) work.correlate(value, dout, tap_row, b, h, sums);
    for (index_t t = 0; t < row; ++t) {
      double* const of_tap = sums + t * dim;
      if (dweights.extent(2) == 1)
        for (index_t c = 1; c < dim; ++c) of_tap[0] += of_tap[c];
      for (index_t c = 0; c < dweights.extent(2); ++c)
        dweights(tap_row * row + t, owner, c) =
            convert_element<DW>(static_cast<T>(dim > 0 ? of_tap[c] : 0));
    }
  });
}

}  // namespace heed
