#pragma once

#include <heed/recur/passes.hpp>
#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/convert.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

namespace heed {

/// What the published variants differ in.
///
///   clamp   O' is kept within [-clamp, clamp]: 1 here, 5 for language, 10 for decisions, infinity for none
///   relu    phi(x) = max(x, 0) + 1e-6 instead of sigmoid(x)
struct flow_options {
  double clamp = 1;
  bool relu = false;
};

/// The flows of Flow-Attention (mechanism/flow_attention.hpp): what makes of its operands those of linear attention, and of
/// the gradients by these the ones by those. Here over all positions, in causal_flows.hpp token by token.
namespace recur {

/// Rows of one head in double; whatever the tensors hold, flows are long sums.
struct flow_row {
  using arch = xsimd::default_arch;
  using batch = xsimd::batch<double>;
  static constexpr double epsilon = 1e-6;

  /// (a + epsilon).(b + epsilon).
  static double product(double const* a, double const* b, index_t dim) {
    batch sum(0);
    for_registers<arch, double>(
        dim,
        [&](batch const& x, batch const& y, index_t, index_t) {
          sum = simd::fma(x, y, simd::fma(x + y, batch(epsilon), sum));
        },
        a, b);
    alignas(64) double lanes[batch::size];
    sum.store_aligned(lanes);
    double total = static_cast<double>(dim) * epsilon * epsilon;
    for (double lane : lanes) total += lane;
    return total;
  }
  static double dot(double const* a, double const* b, index_t dim) {
    return dot_row<arch>(dim, a, b);
  }
  /// to += factor (x + shift).
  static void add(double factor, double const* x, double shift, double* to, index_t dim) {
    batch const by(factor), more(shift);
    transform_row<arch>(
        dim, to, [&](batch const& a, batch const& sum) { return simd::fma(by, a + more, sum); }, x,
        static_cast<double const*>(to));
  }
  static void scale(double factor, double const* x, double* to, index_t dim) {
    batch const by(factor);
    transform_row<arch>(
        dim, to, [&](batch const& a) { return a * by; }, x);
  }
  static void features(bool relu, double const* x, double* to, index_t count) {
    transform_row<arch>(
        count, to,
        [&](batch const& a) {
          return relu ? simd::detail::at_least(a, 0) + batch(epsilon) : simd::sigmoid(a);
        },
        x);
  }
  /// to = slope of the features times dphi.
  static void differentiate(bool relu, double const* x, double const* dphi, double* to,
                            index_t count) {
    transform_row<arch>(
        count, to,
        [&](batch const& a, batch const& d) {
          return relu ? xsimd::select(a > batch(0), d, batch(0)) : d * simd::sigmoid_slope(a);
        },
        x, dphi);
  }
};

inline double flow_gate(double x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

/// Operands of both forms: rows in, and the tensors of linear attention out.
template <class T>
struct flow_call {
  source<double> query, key, value;
  flow_options how;
  sequence_list sequences;
  tensor_view<T, 4> q, k, v;   // q^ / I, k^, w v
  tensor_view<T, 4> gate;      // [batch, row, head, 1]
  tensor_view<T, 4> attended;  // before the gate

  index_t dim() const { return query.dim(); }
  index_t rows() const { return query.positions(); }
  index_t keys() const { return key.positions(); }
  index_t heads() const { return query.heads(); }
};

template <class T>
void put_row(double const* from, double factor, tensor_view<T, 4> to, index_t b, index_t i,
             index_t h) {
  T* const row = &to(b, i, h, 0);
  for (index_t d = 0; d < to.extent(3); ++d) row[d] = static_cast<T>(factor * from[d]);
}

inline constexpr index_t flow_rows = 32;  // that are read at once

/// Rows of double, and their features.
class flow_block {
 public:
  flow_block(double* memory, index_t dim) : raw(memory), phi(memory + flow_rows * dim), dim_(dim) {}
  static index_t numbers(index_t dim) { return 2 * flow_rows * dim; }

  void read(source<double> const& x, bool relu, index_t b, index_t h, index_t first,
            index_t count) {
    x.copy(b, h, first, count, raw, dim_);
    flow_row::features(relu, raw, phi, count * dim_);
  }
  double* row(index_t r) const { return phi + r * dim_; }

  double* raw;
  double* phi;

 private:
  index_t dim_;
};

/// Calls f(first, count) for blocks of rows, from the front.
template <class F>
void for_flow_blocks(index_t rows, F const& f) {
  for (index_t first = 0; first < rows; first += flow_rows)
    f(first, std::min(flow_rows, rows - first));
}

inline workspace& flow_workspace() {
  thread_local workspace own;
  return own;
}
inline double* flow_memory(index_t numbers) {
  return arena(flow_workspace().reserve(static_cast<std::size_t>(arena::bytes<double>(numbers))))
      .take<double>(numbers);
}

/// The gradients that the backward pass of linear attention leaves, by q^ / I, k^, w v and by the gate, and where they go.
template <class T>
struct flow_gradient {
  tensor_view<T, 4> q, k, v, gate;
  sink<double> query, key, value;
};

/// The sums of a head over all positions, in the order in which they become known.
struct flow_totals {
  double *k, *q, *ko, *qi;   // sums over rows of dim numbers
  double *inflow, *outflow;  // of each row and each key
  double* conserved;         // O' of each key
  double top, total;         // of e^O', clamped: e^top total

  static index_t numbers(index_t dim, index_t rows, index_t keys) {
    return 4 * dim + rows + 2 * keys;
  }
};

template <class T>
flow_totals total_flows(flow_call<T> const& c, index_t b, index_t h, double* memory,
                        flow_block& x) {
  index_t const dim = c.dim();
  auto const take = [&](index_t numbers) { return std::exchange(memory, memory + numbers); };
  flow_totals all{};
  for (double** each : {&all.k, &all.q, &all.ko, &all.qi}) {
    *each = take(dim);
    std::fill_n(*each, dim, 0.0);
  }
  all.inflow = take(c.rows());
  all.outflow = take(c.keys());
  all.conserved = take(c.keys());
  auto const queries = [&](auto const& f) {
    for_flow_blocks(c.rows(), [&](index_t first, index_t count) {
      x.read(c.query, c.how.relu, b, h, first, count);
      for (index_t r = 0; r < count; ++r) f(first + r, x.row(r));
    });
  };
  auto const keys = [&](auto const& f) {
    for_flow_blocks(c.keys(), [&](index_t first, index_t count) {
      x.read(c.key, c.how.relu, b, h, first, count);
      for (index_t r = 0; r < count; ++r) f(first + r, x.row(r));
    });
  };
  queries([&](index_t, double const* q) { flow_row::add(1, q, 0, all.q, dim); });
  keys([&](index_t j, double const* k) {
    flow_row::add(1, k, 0, all.k, dim);
    all.outflow[j] = flow_row::product(k, all.q, dim);
    flow_row::add(1 / all.outflow[j], k, 0, all.ko, dim);
  });
  queries([&](index_t i, double const* q) {
    all.inflow[i] = flow_row::product(q, all.k, dim);
    flow_row::add(1 / all.inflow[i], q, 0, all.qi, dim);
  });
  all.top = -std::numeric_limits<double>::infinity();
  keys([&](index_t j, double const* k) {
    all.conserved[j] = flow_row::product(k, all.qi, dim);
    all.top = std::max(all.top, std::clamp(all.conserved[j], -c.how.clamp, c.how.clamp));
  });
  for (index_t j = 0; j < c.keys(); ++j)
    all.total += std::exp(std::clamp(all.conserved[j], -c.how.clamp, c.how.clamp) - all.top);
  return all;
}

template <class T>
double flow_share(flow_call<T> const& c, flow_totals const& all, index_t j) {
  return std::exp(std::clamp(all.conserved[j], -c.how.clamp, c.how.clamp) - all.top) / all.total;
}
template <class T>
double flow_ratio(flow_call<T> const& c) {
  return static_cast<double>(c.rows()) / static_cast<double>(c.keys());
}

/// The flows over all positions: fills the tensors of linear attention.
template <class T>
void dense_flows(any_executor const& run_on, flow_call<T> const& c) {
  index_t const dim = c.dim(), width = c.value.dim();
  parallel_for(run_on, c.query.batches() * c.heads(), [&](index_t piece, index_t) {
    index_t const b = piece / c.heads(), h = piece % c.heads();
    double* const memory = flow_memory(flow_block::numbers(dim) + flow_rows * width +
                                       flow_totals::numbers(dim, c.rows(), c.keys()));
    flow_block x(memory, dim);
    double* const v = memory + flow_block::numbers(dim);
    flow_totals const all = total_flows(c, b, h, v + flow_rows * width, x);
    for_flow_blocks(c.rows(), [&](index_t first, index_t count) {
      x.read(c.query, c.how.relu, b, h, first, count);
      for (index_t r = 0; r < count; ++r) {
        put_row(x.row(r), 1 / all.inflow[first + r], c.q, b, first + r, h);
        c.gate(b, first + r, h, 0) =
            static_cast<T>(flow_gate(flow_row::product(x.row(r), all.ko, dim) * flow_ratio(c)));
      }
    });
    for_flow_blocks(c.keys(), [&](index_t first, index_t count) {
      x.read(c.key, c.how.relu, b, h, first, count);
      c.value.copy(b, h, first, count, v, width);
      for (index_t r = 0; r < count; ++r) {
        put_row(x.row(r), 1, c.k, b, first + r, h);
        put_row(v + r * width, static_cast<double>(c.keys()) * flow_share(c, all, first + r), c.v,
                b, first + r, h);
      }
    });
  });
}

template <class T>
void dense_flows_backward(any_executor const& run_on, flow_call<T> const& c,
                          flow_gradient<T> const& d) {
  index_t const dim = c.dim(), width = c.value.dim(), N = c.rows(), M = c.keys();
  parallel_for(run_on, c.query.batches() * c.heads(), [&](index_t piece, index_t) {
    index_t const b = piece / c.heads(), h = piece % c.heads();
    double* memory = flow_memory(flow_block::numbers(dim) + 2 * flow_rows * (width + dim) +
                                 flow_totals::numbers(dim, N, M) + 4 * dim + 2 * N + 2 * M);
    auto const take = [&](index_t numbers) { return std::exchange(memory, memory + numbers); };
    flow_block x(take(flow_block::numbers(dim)), dim);
    double *const v = take(flow_rows * width), *const dv = take(flow_rows * width),
                  *const given = take(flow_rows * dim), *const dx = take(flow_rows * dim);
    flow_totals const all = total_flows(c, b, h, take(flow_totals::numbers(dim, N, M)), x);
    double *const dk = take(dim), *const dq = take(dim), *const dko = take(dim),
                  *const dqi = take(dim);  // by the sums
    for (double* each : {dk, dq, dko, dqi}) std::fill_n(each, dim, 0.0);
    double *const dgate = take(N), *const dinflow = take(N), *const dconserved = take(M),
                  *const doutflow = take(M);
    double const e = flow_row::epsilon;
    auto const blocks = [&](source<double> const& of, tensor_view<T, 4> gradient, index_t rows,
                            auto const& before, auto const& f) {
      for_flow_blocks(rows, [&](index_t first, index_t count) {
        x.read(of, c.how.relu, b, h, first, count);
        for (index_t r = 0; r < count; ++r)
          for (index_t n = 0; n < dim; ++n)
            given[r * dim + n] = static_cast<double>(gradient(b, first + r, h, n));
        before(first, count);
        for (index_t r = 0; r < count; ++r) f(first, r, x.row(r), given + r * dim);
      });
    };
    auto const nothing = [](index_t, index_t) {};
    // Through w v.
    double mean = 0;
    for_flow_blocks(M, [&](index_t first, index_t count) {
      c.value.copy(b, h, first, count, v, width);
      for (index_t r = 0; r < count; ++r) {
        double product = 0;
        double const share = flow_share(c, all, first + r), weight = static_cast<double>(M) * share;
        for (index_t n = 0; n < width; ++n) {
          auto const slope = static_cast<double>(d.v(b, first + r, h, n));
          product += slope * v[r * width + n];
          dv[r * width + n] = weight * slope;
        }
        dconserved[first + r] = weight * product;
        mean += weight * product;
      }
      d.value.store(b, h, first, count, dv, width);
    });
    for (index_t j = 0; j < M; ++j) {
      bool const free = std::abs(all.conserved[j]) <= c.how.clamp;
      dconserved[j] = free ? dconserved[j] - flow_share(c, all, j) * mean : 0;
    }
    // Through the conserved flows, and then those as they are: first by their sums, ...
    blocks(
        c.query, d.q, N, nothing, [&](index_t first, index_t r, double const* q, double const* g) {
          double const gate = flow_gate(flow_row::product(q, all.ko, dim) * flow_ratio(c));
          dgate[first + r] =
              static_cast<double>(d.gate(b, first + r, h, 0)) * gate * (1 - gate) * flow_ratio(c);
          flow_row::add(dgate[first + r], q, e, dko, dim);
          dinflow[first + r] = flow_row::dot(g, q, dim);
        });
    blocks(c.key, d.k, M, nothing, [&](index_t first, index_t r, double const* k, double const*) {
      flow_row::add(dconserved[first + r], k, e, dqi, dim);
      double const out = all.outflow[first + r];
      doutflow[first + r] = -flow_row::dot(dko, k, dim) / (out * out);
      flow_row::add(doutflow[first + r], k, e, dq, dim);
    });
    blocks(c.query, d.q, N, nothing, [&](index_t first, index_t r, double const* q, double const*) {
      double const in = all.inflow[first + r];
      dinflow[first + r] = -(dinflow[first + r] + flow_row::dot(dqi, q, dim)) / (in * in);
      flow_row::add(dinflow[first + r], q, e, dk, dim);
    });
    // ... then by the rows.
    auto const store = [&](sink<double> const& to, index_t first, index_t count) {
      flow_row::differentiate(c.how.relu, x.raw, dx, dx, count * dim);
      to.store(b, h, first, count, dx, dim);
    };
    for_flow_blocks(N, [&](index_t first, index_t count) {
      x.read(c.query, c.how.relu, b, h, first, count);
      for (index_t r = 0; r < count; ++r) {
        double* const to = dx + r * dim;
        for (index_t n = 0; n < dim; ++n)
          to[n] = (static_cast<double>(d.q(b, first + r, h, n)) + dqi[n]) / all.inflow[first + r] +
                  dq[n];
        flow_row::add(dgate[first + r], all.ko, e, to, dim);
        flow_row::add(dinflow[first + r], all.k, e, to, dim);
      }
      store(d.query, first, count);
    });
    for_flow_blocks(M, [&](index_t first, index_t count) {
      x.read(c.key, c.how.relu, b, h, first, count);
      for (index_t r = 0; r < count; ++r) {
        double* const to = dx + r * dim;
        for (index_t n = 0; n < dim; ++n)
          to[n] = static_cast<double>(d.k(b, first + r, h, n)) + dko[n] / all.outflow[first + r] +
                  dk[n];
        flow_row::add(dconserved[first + r], all.qi, e, to, dim);
        flow_row::add(doutflow[first + r], all.q, e, to, dim);
      }
      store(d.key, first, count);
    });
  });
}

}  // namespace recur
}  // namespace heed
