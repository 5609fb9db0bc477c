#pragma once

#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/passes.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>
#include <string>

/// Rows divided by their size, and gates on them: what stands before and after a recurrence. Squares of numbers of any
/// finite size are summed without overflow.
namespace heed {

/// x / max(|x|_2, floor), of each head. A row of 0 stays 0.
struct unit_norm {
  double floor = 1e-12;
};

/// x / sqrt(mean(x^2) + epsilon), of each head or of a token's heads together. The latter is TransNormer's SRMSNorm.
struct rms_norm {
  double epsilon = 1e-6;
  bool across_heads = false;
};

namespace recur {

/// A norm takes a row to y = factor x, and its gradient to dx = factor (dy - projection (y.dy) y).
struct row_factor {
  double factor;
  double projection;
};
inline row_factor factor_of(unit_norm const& norm, double size, index_t) {
  if (size > norm.floor) return {1 / size, 1};
  return {norm.floor > 0 ? 1 / norm.floor : 0, 0};
}
inline row_factor factor_of(rms_norm const& norm, double size, index_t width) {
  auto const n = static_cast<double>(width);
  double const rms = std::hypot(size / std::sqrt(n), std::sqrt(norm.epsilon));
  return {rms > 0 ? 1 / rms : 0, 1 / n};
}

inline bool joins_heads(unit_norm const&) {
  return false;
}
inline bool joins_heads(rms_norm const& norm) {
  return norm.across_heads;
}

/// |x|_2, also where the sum of squares is no number of type T.
template <class T, class Arch = xsimd::default_arch>
double size_of_row(T const* x, index_t count) {
  constexpr double least = std::is_same_v<T, float> ? 1e-30 : 1e-290;
  double const squares = static_cast<double>(dot_row<Arch>(count, x, x));
  if (squares > least && squares <= static_cast<double>(std::numeric_limits<T>::max()))
    return std::sqrt(squares);
  double largest = 0, sum = 0;
  for (index_t c = 0; c < count; ++c) {
    double const size = std::abs(static_cast<double>(x[c]));
    if (!(size <= largest)) largest = size;
  }
  if (largest == 0 || !std::isfinite(largest)) return largest;
  for (index_t c = 0; c < count; ++c) {
    double const part = static_cast<double>(x[c]) / largest;
    sum += part * part;
  }
  return largest * std::sqrt(sum);
}

/// No gate: the row as it is.
struct open_gate {
  template <class Batch>
  static Batch value(Batch const&) {
    return Batch(1);
  }
  template <class Batch>
  static Batch slope(Batch const&, Batch const&) {
    return Batch(0);
  }
};

/// Rows through a norm and a gate, y = norm(x) * Gate(gate), and back. Without a gate `gate` is `x`.
template <class T, class Norm, class Gate, class Arch = xsimd::default_arch>
class normed_rows {
 public:
  using batch = xsimd::batch<T, Arch>;

  normed_rows(Norm const& norm, source<T> const& x, source<T> const& gate)
      : norm_(norm), x_(x), gate_(gate), joined_(joins_heads(norm) ? x.heads() : 1) {}

  void forward(any_executor const& run_on, sink<T> const& out) const {
    for_groups(run_on, 3, [&](group const& at, T* scratch) {
      for_heads(at, [&](index_t h) {
        auto const [x, gate] = read(at, h, scratch);
        T* const to = scratch + 2 * at.count * x_.dim();
        for (index_t r = 0; r < at.count; ++r) {
          batch const factor(static_cast<T>(at.factors[r].factor));
          transform_row<Arch>(
              x_.dim(), to + r * x_.dim(),
              [&](batch const& a, batch const& g) { return a * factor * Gate::value(g); }, x[r],
              gate[r]);
        }
        out.store(at.batch, h, at.first, at.count, to, x_.dim());
      });
    });
  }

  /// dgate may be null.
  void backward(any_executor const& run_on, source<T> const& dout, sink<T> const& dx,
                sink<T> const* dgate) const {
    for_groups(run_on, 5, [&](group& at, T* scratch) {
      index_t const dim = x_.dim(), block = at.count * dim;
      T *const dy = scratch + 2 * block, *const room = dy + block, *const to = room + block;
      auto const slopes = [&](index_t h, row_block<T> const& gate) {
        row_block<T> const given = dout.rows(at.batch, h, at.first, at.count, room);
        for (index_t r = 0; r < at.count; ++r)
          transform_row<Arch>(
              dim, dy + r * dim, [](batch const& d, batch const& g) { return d * Gate::value(g); },
              given[r], gate[r]);
        return given;
      };
      for (index_t r = 0; r < at.count; ++r) at.products[r] = 0;
      for_heads(at, [&](index_t h) {
        auto const [x, gate] = read(at, h, scratch);
        slopes(h, gate);
        for (index_t r = 0; r < at.count; ++r) {
          // y.dy, and not x.dy, which may be too large a number.
          batch const factor(static_cast<T>(at.factors[r].factor));
          batch sum(T(0));
          for_registers<Arch, T>(
              dim,
              [&](batch const& a, batch const& d, index_t, index_t) {
                sum = simd::fma(a * factor, d, sum);
              },
              x[r], dy + r * dim);
          alignas(64) T lanes[batch::size];
          sum.store_aligned(lanes);
          for (T lane : lanes) at.products[r] += static_cast<double>(lane);
        }
      });
      for_heads(at, [&](index_t h) {
        auto const [x, gate] = read(at, h, scratch);
        row_block<T> const given = slopes(h, gate);
        if (dgate != nullptr) {
          for (index_t r = 0; r < at.count; ++r) {
            batch const factor(static_cast<T>(at.factors[r].factor));
            transform_row<Arch>(
                dim, to + r * dim,
                [&](batch const& a, batch const& g, batch const& d) {
                  return a * factor * d * Gate::slope(g, Gate::value(g));
                },
                x[r], gate[r], given[r]);
          }
          dgate->store(at.batch, h, at.first, at.count, to, dim);
        }
        for (index_t r = 0; r < at.count; ++r) {
          batch const factor(static_cast<T>(at.factors[r].factor));
          batch const along(static_cast<T>(at.factors[r].projection * at.products[r]));
          transform_row<Arch>(
              dim, to + r * dim,
              [&](batch const& a, batch const& d) {
                return factor * simd::fnma(a * factor, along, d);
              },
              x[r], dy + r * dim);
        }
        dx.store(at.batch, h, at.first, at.count, to, dim);
      });
    });
  }

 private:
  static constexpr index_t together = 32;

  /// Some rows of the heads that are divided by one size.
  struct group {
    index_t batch, head, first, count;
    row_factor factors[together];
    double products[together];
  };

  template <class F>
  void for_groups(any_executor const& run_on, index_t blocks_of_scratch, F const& f) const {
    tensor_shape shape = x_.extents();
    shape[2] /= std::max<index_t>(joined_, 1);
    for_row_blocks(run_on, shape, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const scratch = feature_scratch<T>(blocks_of_scratch * count * x_.dim());
      group at{b, h * joined_, first, count, {}, {}};
      double sizes[together] = {};
      for_heads(at, [&](index_t head) {
        row_block<T> const x = x_.rows(b, head, first, count, scratch);
        for (index_t r = 0; r < count; ++r)
          sizes[r] = std::hypot(sizes[r], size_of_row<T, Arch>(x[r], x_.dim()));
      });
      for (index_t r = 0; r < count; ++r)
        at.factors[r] = factor_of(norm_, sizes[r], joined_ * x_.dim());
      f(at, scratch);
    });
  }
  template <class F>
  void for_heads(group const& at, F const& f) const {
    for (index_t h = at.head; h < at.head + joined_; ++h) f(h);
  }
  std::pair<row_block<T>, row_block<T>> read(group const& at, index_t h, T* scratch) const {
    return {x_.rows(at.batch, h, at.first, at.count, scratch),
            gate_.rows(at.batch, h, at.first, at.count, scratch + at.count * x_.dim())};
  }

  Norm norm_;
  source<T> x_, gate_;
  index_t joined_;
};

inline void check_norm(unit_norm const& norm) {
  require(norm.floor >= 0, [&] {
    return "unit_norm.floor is " + std::to_string(norm.floor) + "; expected at least 0";
  });
}
inline void check_norm(rms_norm const& norm) {
  require(norm.epsilon >= 0, [&] {
    return "rms_norm.epsilon is " + std::to_string(norm.epsilon) + "; expected at least 0";
  });
}

}  // namespace recur

/// out = norm(x); all [batch, position, heads, dim], of any element types and strides. `norm` is unit_norm or rms_norm.
template <element X, element O, class Norm, class Executor = serial>
void normalise_rows(tensor_view<X, 4> x, tensor_view<O, 4> out, Norm const& norm,
                    Executor const& run_on = {}) {
  using T = compute_type<X, O>;
  recur::check_norm(norm);
  detail::expect_like("out", out, x.extents(), "x");
  recur::normed_rows<T, Norm, recur::open_gate>(norm, source<T>(x), source<T>(x))
      .forward(any_executor(run_on), sink<T>(out));
}

/// The gradient of normalise_rows, from d loss / d out to d loss / d x.
template <element X, element DO, element DX, class Norm, class Executor = serial>
void normalise_rows_backward(tensor_view<X, 4> x, tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                             Norm const& norm, Executor const& run_on = {}) {
  using T = compute_type<X, DO, DX>;
  recur::check_norm(norm);
  detail::expect_like("dout", dout, x.extents(), "x");
  detail::expect_like("dx", dx, x.extents(), "x");
  recur::normed_rows<T, Norm, recur::open_gate>(norm, source<T>(x), source<T>(x))
      .backward(any_executor(run_on), source<T>(dout), sink<T>(dx), nullptr);
}

/// out = norm(x) * Gate(gate): the end of a layer before its output projection. Gate is a function of numbers: silu,
/// sigmoid, or linear_gate, which takes them as they are.
template <class Gate, element X, element G, element O, class Norm, class Executor = serial>
void normalise_and_gate(tensor_view<X, 4> x, tensor_view<G, 4> gate, tensor_view<O, 4> out,
                        Norm const& norm, Executor const& run_on = {}) {
  using T = compute_type<X, G, O>;
  recur::check_norm(norm);
  detail::expect_like("gate", gate, x.extents(), "x");
  detail::expect_like("out", out, x.extents(), "x");
  recur::normed_rows<T, Norm, Gate>(norm, source<T>(x), source<T>(gate))
      .forward(any_executor(run_on), sink<T>(out));
}

/// Its gradients by x and gate.
template <class Gate, element X, element G, element DO, element DX, element DG, class Norm,
          class Executor = serial>
void normalise_and_gate_backward(tensor_view<X, 4> x, tensor_view<G, 4> gate,
                                 tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                                 tensor_view<DG, 4> dgate, Norm const& norm,
                                 Executor const& run_on = {}) {
  using T = compute_type<X, G, DO, DX, DG>;
  recur::check_norm(norm);
  detail::expect_like("gate", gate, x.extents(), "x");
  detail::expect_like("dout", dout, x.extents(), "x");
  detail::expect_like("dx", dx, x.extents(), "x");
  detail::expect_like("dgate", dgate, x.extents(), "x");
  sink<T> const to_gate(dgate);
  recur::normed_rows<T, Norm, Gate>(norm, source<T>(x), source<T>(gate))
      .backward(any_executor(run_on), source<T>(dout), sink<T>(dx), &to_gate);
}

/// A gate that is multiplied as it is.
struct linear_gate {
  template <class Batch>
  static Batch value(Batch const& x) {
    return x;
  }
  template <class Batch>
  static Batch slope(Batch const&, Batch const&) {
    return Batch(1);
  }
};

}  // namespace heed
