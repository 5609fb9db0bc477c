#pragma once

#include <heed/recur/composition.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/view/convert.hpp>

#include <string>

/// Flowformer: Linearizing Transformers with Conservation Flows. Queries are sinks and keys sources of a flow with capacities
/// phi(q_i).phi(k_j); each source's outflow and each sink's inflow is 1. With q^ = phi(q), k^ = phi(k), epsilon = 1e-6 added to
/// every element of both factors of a product in parentheses:
///
///     I_i = (q^_i).(sum_j k^_j)            O_j = (k^_j).(sum_i q^_i)              flows as they are
///     I'_i = (q^_i).(sum_j k^_j / O_j)     O'_j = (k^_j).(sum_i q^_i / I_i)       and conserved
///     w = M softmax(clamp(O'))             out_i = sigmoid(I'_i N / M) (q^_i / I_i)^T sum_j k^_j (w_j v_j)^T
///
/// The causal form takes all sums over s <= t, s / O_s for 1 / O_j, I'_t and O'_t divided by t, w_t = t e^O'_t / sum_s e^O'_s.
/// Both are linear attention of q^ / I, k^ and w v once the flows are known.
namespace heed {

/// What the published variants differ in.
///
///   clamp   O' is kept within [-clamp, clamp]: 1 here, 5 for language, 10 for decisions, infinity for none
///   relu    phi(x) = max(x, 0) + 1e-6 instead of sigmoid(x)
struct flow_options {
  double clamp = 1;
  bool relu = false;
};

/// What a causal sequence carries on, in memory of the caller; a call begins with it and leaves there what it ends with. clear()
/// is the state before the first token.
///
///   memory   [batch, heads, head_dim, value_dim], float or double
///   sums     [batch, heads, 4, head_dim]: of k^, q^, k^ s / O_s and q^ s / I_s
///   counts   [batch, heads, 2]: tokens so far, and log sum e^O'
template <class T>
struct flow_state {
  tensor_view<T, 4> memory;
  tensor_view<double, 4> sums;
  tensor_view<double, 3> counts;

  void clear() const {
    for (index_t b = 0; b < memory.extent(0); ++b)
      for (index_t h = 0; h < memory.extent(1); ++h) {
        for (index_t d = 0; d < memory.extent(2); ++d) {
          for (index_t e = 0; e < memory.extent(3); ++e) memory(b, h, d, e) = T(0);
          for (index_t n = 0; n < 4; ++n) sums(b, h, n, d) = 0;
        }
        counts(b, h, 0) = 0;
        counts(b, h, 1) = -std::numeric_limits<double>::infinity();
      }
  }
};
template <class T>
flow_state(tensor_view<T, 4>, tensor_view<double, 4>, tensor_view<double, 3>) -> flow_state<T>;

namespace detail {

struct flow_page;
struct flow_gradient_page;

/// Rows of one head in double; whatever the tensors hold, flows are long sums.
struct flow_row {
  using arch = xsimd::default_arch;
  using batch = xsimd::batch<double>;
  static constexpr double epsilon = 1e-6;

  /// (a + epsilon).(b + epsilon).
  static double product(double const* a, double const* b, index_t dim) {
    batch sum(0);
    recur::for_registers<arch, double>(
        dim,
        [&](batch const& x, batch const& y, index_t, index_t) {
          sum = xsimd::fma(x, y, xsimd::fma(x + y, batch(epsilon), sum));
        },
        a, b);
    alignas(64) double lanes[batch::size];
    sum.store_aligned(lanes);
    double total = static_cast<double>(dim) * epsilon * epsilon;
    for (double lane : lanes) total += lane;
    return total;
  }
  static double dot(double const* a, double const* b, index_t dim) {
    return recur::dot_row<arch>(dim, a, b);
  }
  /// to += factor (x + shift).
  static void add(double factor, double const* x, double shift, double* to, index_t dim) {
    batch const by(factor), more(shift);
    recur::transform_row<arch>(
        dim, to, [&](batch const& a, batch const& sum) { return xsimd::fma(by, a + more, sum); }, x,
        static_cast<double const*>(to));
  }
  static void scale(double factor, double const* x, double* to, index_t dim) {
    batch const by(factor);
    recur::transform_row<arch>(
        dim, to, [&](batch const& a) { return a * by; }, x);
  }
  static void features(bool relu, double const* x, double* to, index_t count) {
    recur::transform_row<arch>(
        count, to,
        [&](batch const& a) {
          return relu ? simd::detail::at_least(a, 0) + batch(epsilon) : simd::sigmoid(a);
        },
        x);
  }
  /// to = slope of the features times dphi.
  static void differentiate(bool relu, double const* x, double const* dphi, double* to,
                            index_t count) {
    recur::transform_row<arch>(
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

/// The numbers of one token's flows.
struct flow_numbers {
  double inflow, outflow;  // I, O
  double gate;             // sigmoid(I')
  double conserved, kept;  // O', and clamped
  double share, weight;    // of the sources so far; times their number
};

/// The sums of a causal head after some tokens.
class flow_sums {
 public:
  flow_sums(double* memory, index_t dim, flow_options const& how) : dim_(dim), how_(how) {
    for (int n = 0; n < 4; ++n) sum[n] = memory + n * dim;
    reset();
  }
  static index_t numbers(index_t dim) { return 4 * dim + 2; }

  void reset() {
    for (double* each : sum) std::fill_n(each, dim_, 0.0);
    count = 0;
    log_total = -std::numeric_limits<double>::infinity();
  }
  void save(double* to) const {
    for (int n = 0; n < 4; ++n) std::copy_n(sum[n], dim_, to + n * dim_);
    to[4 * dim_] = count;
    to[4 * dim_ + 1] = log_total;
  }
  void restore(double const* from) {
    for (int n = 0; n < 4; ++n) std::copy_n(from + n * dim_, dim_, sum[n]);
    count = from[4 * dim_];
    log_total = from[4 * dim_ + 1];
  }

  /// Takes in a token.
  flow_numbers advance(double const* q, double const* k) {
    flow_numbers at{};
    count += 1;
    flow_row::add(1, k, 0, sum[0], dim_);
    flow_row::add(1, q, 0, sum[1], dim_);
    at.inflow = flow_row::product(q, sum[0], dim_);
    at.outflow = flow_row::product(k, sum[1], dim_);
    flow_row::add(count / at.outflow, k, 0, sum[2], dim_);
    flow_row::add(count / at.inflow, q, 0, sum[3], dim_);
    at.gate = flow_gate(flow_row::product(q, sum[2], dim_) / count);
    at.conserved = flow_row::product(k, sum[3], dim_) / count;
    at.kept = std::clamp(at.conserved, -how_.clamp, how_.clamp);
    double const most = std::max(log_total, at.kept);
    log_total = most + std::log(std::exp(log_total - most) + std::exp(at.kept - most));
    at.share = std::exp(at.kept - log_total);
    at.weight = count * at.share;
    return at;
  }

  double* sum[4];  // of k^, q^, k^ s / O_s, q^ s / I_s
  double count;
  double log_total;

 private:
  index_t dim_;
  flow_options how_;
};

/// Operands of both forms: rows in, and the tensors of linear attention out.
template <class T>
struct flow_call {
  source<double> query, key, value;
  flow_options how;
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

/// The causal flows: fills the tensors of linear attention. `state` begins and ends the sequences where it is given.
template <class T, class S>
void causal_flows(any_executor const& run_on, flow_call<T> const& c, flow_state<S> const* state) {
  index_t const dim = c.dim(), width = c.value.dim();
  parallel_for(run_on, c.query.batches() * c.heads(), [&](index_t piece, index_t) {
    index_t const b = piece / c.heads(), h = piece % c.heads();
    double* const memory =
        flow_memory(flow_sums::numbers(dim) + 2 * flow_block::numbers(dim) + flow_rows * width);
    flow_sums sums(memory, dim, c.how);
    flow_block q(memory + flow_sums::numbers(dim), dim), k(q.raw + flow_block::numbers(dim), dim);
    double* const v = k.raw + flow_block::numbers(dim);
    if (state != nullptr) {
      for (index_t n = 0; n < 4; ++n)
        for (index_t d = 0; d < dim; ++d) sums.sum[n][d] = state->sums(b, h, n, d);
      sums.count = state->counts(b, h, 0);
      sums.log_total = state->counts(b, h, 1);
    }
    for_flow_blocks(c.rows(), [&](index_t first, index_t count) {
      q.read(c.query, c.how.relu, b, h, first, count);
      k.read(c.key, c.how.relu, b, h, first, count);
      c.value.copy(b, h, first, count, v, width);
      for (index_t r = 0; r < count; ++r) {
        flow_numbers const at = sums.advance(q.row(r), k.row(r));
        put_row(q.row(r), 1 / at.inflow, c.q, b, first + r, h);
        put_row(k.row(r), 1, c.k, b, first + r, h);
        put_row(v + r * width, at.weight, c.v, b, first + r, h);
        c.gate(b, first + r, h, 0) = static_cast<T>(at.gate);
      }
    });
    if (state != nullptr) {
      for (index_t n = 0; n < 4; ++n)
        for (index_t d = 0; d < dim; ++d) state->sums(b, h, n, d) = sums.sum[n][d];
      state->counts(b, h, 0) = sums.count;
      state->counts(b, h, 1) = sums.log_total;
    }
  });
}

/// The gradients that the backward pass of linear attention leaves, by q^ / I, k^, w v and by the gate, and where they go.
template <class T>
struct flow_gradient {
  tensor_view<T, 4> q, k, v, gate;
  sink<double> query, key, value;
};

/// From there to d loss / d query, key and value, causal: each sum's adjoint is a sum from the other end.
template <class T>
void causal_flows_backward(any_executor const& run_on, flow_call<T> const& c,
                           flow_gradient<T> const& d) {
  index_t const dim = c.dim(), width = c.value.dim(), N = c.rows();
  index_t const blocks = (N + flow_rows - 1) / flow_rows, kept = flow_sums::numbers(dim);
  parallel_for(run_on, c.query.batches() * c.heads(), [&](index_t piece, index_t) {
    index_t const b = piece / c.heads(), h = piece % c.heads();
    double* memory = flow_memory((1 + blocks + flow_rows) * kept + 2 * flow_block::numbers(dim) +
                                 3 * flow_rows * width + 2 * flow_rows * dim + 4 * dim);
    auto const take = [&](index_t numbers) { return std::exchange(memory, memory + numbers); };
    flow_sums sums(take(kept), dim, c.how);
    double *const checkpoints = take(blocks * kept), *const after = take(flow_rows * kept);
    flow_block q(take(flow_block::numbers(dim)), dim), k(take(flow_block::numbers(dim)), dim);
    double *const v = take(flow_rows * width), *const dwv = take(flow_rows * width),
                  *const dv = take(flow_rows * width);
    double *const dq = take(flow_rows * dim), *const dk = take(flow_rows * dim);
    double *const later_k = take(dim), *const later_q = take(dim), *const later_ko = take(dim),
                  *const later_qi = take(dim);  // gradients by the sums
    auto const read = [&](index_t block) {
      index_t const first = block * flow_rows, count = std::min(flow_rows, N - first);
      q.read(c.query, c.how.relu, b, h, first, count);
      k.read(c.key, c.how.relu, b, h, first, count);
      return count;
    };
    for (index_t block = 0; block < blocks; ++block) {
      sums.save(checkpoints + block * kept);
      index_t const count = read(block);
      for (index_t r = 0; r < count; ++r) sums.advance(q.row(r), k.row(r));
    }
    for (double* each : {later_k, later_q, later_ko, later_qi}) std::fill_n(each, dim, 0.0);
    double later_share = 0, later_weights = 0;  // the share of the next token, and what it carries
    flow_numbers numbers[flow_rows];
    for (index_t block = blocks; block-- > 0;) {
      index_t const count = read(block), first = block * flow_rows;
      sums.restore(checkpoints + block * kept);
      for (index_t r = 0; r < count; ++r) {
        numbers[r] = sums.advance(q.row(r), k.row(r));
        sums.save(after + r * kept);
      }
      c.value.copy(b, h, first, count, v, width);
      for (index_t r = count; r-- > 0;) {
        flow_numbers const& at = numbers[r];
        double const *const sum_k = after + r * kept, *const sum_q = sum_k + dim,
                            *const sum_ko = sum_q + dim, *const sum_qi = sum_ko + dim;
        double const t = sum_k[4 * dim];
        double const *const q_row = q.row(r), *const k_row = k.row(r);
        double *const dq_row = dq + r * dim, *const dk_row = dk + r * dim;
        for (index_t n = 0; n < dim; ++n) {
          dq_row[n] = static_cast<double>(d.q(b, first + r, h, n));
          dk_row[n] = static_cast<double>(d.k(b, first + r, h, n));
        }
        for (index_t n = 0; n < width; ++n)
          dwv[r * width + n] = static_cast<double>(d.v(b, first + r, h, n));
        // Through q^ / I and w v.
        double dinflow = -flow_row::dot(dq_row, q_row, dim) / (at.inflow * at.inflow);
        flow_row::scale(1 / at.inflow, dq_row, dq_row, dim);
        double const weighted = at.weight * flow_row::dot(dwv + r * width, v + r * width, width);
        flow_row::scale(at.weight, dwv + r * width, dv + r * width, width);
        // Through the competition among the sources so far.
        later_weights = weighted + (1 - later_share) * later_weights;
        later_share = at.share;
        bool const free = at.kept == at.conserved;
        double const dconserved = free ? (weighted - at.share * later_weights) / t : 0;
        double const dgate =
            static_cast<double>(d.gate(b, first + r, h, 0)) * at.gate * (1 - at.gate) / t;
        // Through the conserved flows.
        double const e = flow_row::epsilon;
        flow_row::add(dconserved, sum_qi, e, dk_row, dim);
        flow_row::add(dconserved, k_row, e, later_qi, dim);
        flow_row::add(dgate, sum_ko, e, dq_row, dim);
        flow_row::add(dgate, q_row, e, later_ko, dim);
        flow_row::add(t / at.inflow, later_qi, 0, dq_row, dim);
        dinflow -= flow_row::dot(later_qi, q_row, dim) * t / (at.inflow * at.inflow);
        flow_row::add(t / at.outflow, later_ko, 0, dk_row, dim);
        double const doutflow =
            -flow_row::dot(later_ko, k_row, dim) * t / (at.outflow * at.outflow);
        // Through the flows as they are.
        flow_row::add(dinflow, sum_k, e, dq_row, dim);
        flow_row::add(dinflow, q_row, e, later_k, dim);
        flow_row::add(1, later_k, 0, dk_row, dim);
        flow_row::add(doutflow, sum_q, e, dk_row, dim);
        flow_row::add(doutflow, k_row, e, later_q, dim);
        flow_row::add(1, later_q, 0, dq_row, dim);
      }
      flow_row::differentiate(c.how.relu, q.raw, dq, dq, count * dim);
      flow_row::differentiate(c.how.relu, k.raw, dk, dk, count * dim);
      d.query.store(b, h, first, count, dq, dim);
      d.key.store(b, h, first, count, dk, dim);
      d.value.store(b, h, first, count, dv, width);
    }
  });
}

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

template <class Q, class K, class V, class O>
void check_flow(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                tensor_view<O, 4> out, flow_options const& how, bool causal) {
  index_t const heads = query.extent(2);
  expect_like("key", key,
              {query.extent(0), causal ? query.extent(1) : key.extent(1), heads, query.extent(3)},
              causal ? "query" : "query, with positions of its own");
  expect_like("value", value, {query.extent(0), key.extent(1), heads, value.extent(3)},
              "key with a value_dim of its own");
  expect_like("out", out, {query.extent(0), query.extent(1), heads, value.extent(3)},
              "query with the value_dim of value");
  expect_memory("query", query);
  expect_memory("key", key);
  expect_memory("value", value);
  expect_memory("out", out);
  require(how.clamp >= 0, [&] {
    return "flow_options.clamp is " + std::to_string(how.clamp) + "; expected at least 0";
  });
}

template <class T, class Q, class K, class V, class O>
flow_call<T> make_flow_call(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                            tensor_view<O, 4> out, flow_options const& how) {
  recur::tensor_shape gate = out.extents();
  gate[3] = 1;
  auto const t = recur::page_tensors<flow_page, T>(query.extents(), key.extents(), value.extents(),
                                                   gate, out.extents());
  return {source<double>(query),
          source<double>(key),
          source<double>(value),
          how,
          t[0],
          t[1],
          t[2],
          t[3],
          t[4]};
}

/// out = gate * attended.
template <class T, class O>
void apply_flow_gate(any_executor const& run_on, flow_call<T> const& c, tensor_view<O, 4> out) {
  tensor_view<T, 4> const gate(c.gate.data(), c.attended.extents(),
                               {c.gate.stride(0), c.gate.stride(1), c.gate.stride(2), 0});
  recur::transform(
      run_on, sink<T>(out), [](auto const& g, auto const& x) { return g * x; }, source<T>(gate),
      source<T>(c.attended));
}

template <bool causal, class Q, class K, class V, class O, class DO, class DQ, class DK, class DV,
          class Executor>
void flow_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                   tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, flow_options const& how,
                   Executor const& runs) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV>;
  check_flow(query, key, value, out, how, causal);
  expect_like("dout", dout, out.extents(), "out");
  expect_like("dquery", dquery, query.extents(), "query");
  expect_like("dkey", dkey, key.extents(), "key");
  expect_like("dvalue", dvalue, value.extents(), "value");
  any_executor const run_on(runs);
  auto const c = make_flow_call<T>(query, key, value, out, how);
  recur::tensor_shape gates = out.extents();
  gates[3] = 1;
  auto const t = recur::page_tensors<flow_gradient_page, T>(query.extents(), key.extents(),
                                                            value.extents(), gates, out.extents());
  flow_gradient<T> const d{
      t[0], t[1], t[2], t[3], sink<double>(dquery), sink<double>(dkey), sink<double>(dvalue)};
  // The gate broadcasts over channels; d loss / d attended is the gate times dout.
  tensor_view<T, 4> const gate(c.gate.data(), out.extents(),
                               {c.gate.stride(0), c.gate.stride(1), c.gate.stride(2), 0});
  auto const attend = [&](auto const&... all) {
    linear_attention(c.q, c.k, c.v, c.attended, runs, all...);
    recur::transform(
        run_on, sink<T>(t[4]), [](auto const& g, auto const& x) { return g * x; }, source<T>(gate),
        source<T>(dout));
    linear_attention_backward(c.q, c.k, c.v, c.attended, t[4], d.q, d.k, d.v, runs, all...);
  };
  if constexpr (causal)
    causal_flows<T>(run_on, c, static_cast<flow_state<T> const*>(nullptr));
  else
    dense_flows(run_on, c);
  // d loss / d gate needs what was attended, which comes first.
  auto const finish = [&] {
    recur::for_row_blocks(run_on, gates, [&](index_t b, index_t h, index_t first, index_t count) {
      for (index_t i = first; i < first + count; ++i) {
        double sum = 0;
        for (index_t n = 0; n < out.extent(3); ++n)
          sum += convert_element<double>(dout(b, i, h, n)) *
                 static_cast<double>(c.attended(b, i, h, n));
        d.gate(b, i, h, 0) = static_cast<T>(sum);
      }
    });
  };
  if constexpr (causal) {
    attend();
    finish();
    causal_flows_backward(run_on, c, d);
  } else {
    attend(dense{});
    finish();
    dense_flows_backward(run_on, c, d);
  }
}

}  // namespace detail

/// Flow-Attention over all positions, of the same sequence or another.
///
///   query [batch, N, heads, head_dim], key [batch, M, heads, head_dim], value [batch, M, heads, value_dim],
///   out [batch, N, heads, value_dim]; any element types and strides
///
/// Flows are kept in memory of the calling thread.
template <element Q, element K, element V, element O, class Executor = serial>
void flow_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, flow_options const& how = {},
                    Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, O>;
  detail::check_flow(query, key, value, out, how, false);
  auto const c = detail::make_flow_call<T>(query, key, value, out, how);
  any_executor const runs(run_on);
  detail::dense_flows(runs, c);
  linear_attention(c.q, c.k, c.v, c.attended, dense{}, run_on);
  detail::apply_flow_gate(runs, c, out);
}

/// The gradients of flow_attention.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class Executor = serial>
void flow_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<O, 4> out,
                             tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                             tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                             flow_options const& how = {}, Executor const& run_on = {}) {
  detail::flow_backward<false>(query, key, value, out, dout, dquery, dkey, dvalue, how, run_on);
}

/// Causal Flow-Attention, where token t competes with those before it; key and value have query's positions.
template <element Q, element K, element V, element O, class Executor = serial>
void causal_flow_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<O, 4> out, flow_options const& how = {},
                           Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, O>;
  detail::check_flow(query, key, value, out, how, true);
  auto const c = detail::make_flow_call<T>(query, key, value, out, how);
  any_executor const runs(run_on);
  detail::causal_flows<T>(runs, c, static_cast<flow_state<T> const*>(nullptr));
  linear_attention(c.q, c.k, c.v, c.attended, run_on);
  detail::apply_flow_gate(runs, c, out);
}

/// A part of a causal sequence, of one token or more, which goes on from `held` and leaves there what it ends with.
template <element Q, element K, element V, element O, class S, class Executor = serial>
void causal_flow_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<O, 4> out, flow_state<S> const& held,
                           flow_options const& how = {}, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, O, S>;
  detail::check_flow(query, key, value, out, how, true);
  index_t const B = query.extent(0), H = query.extent(2), D = query.extent(3);
  require(held.memory.extents() == recur::tensor_shape({B, H, D, value.extent(3)}) &&
              held.sums.extents() == recur::tensor_shape({B, H, 4, D}) &&
              held.counts.extents() == std::array<index_t, 3>({B, H, 2}),
          [&] {
            return "flow_state has memory of shape " + shape_text(held.memory.extents()) +
                   ", sums " + shape_text(held.sums.extents()) + " and counts " +
                   shape_text(held.counts.extents()) + "; expected " +
                   shape_text(recur::tensor_shape({B, H, D, value.extent(3)})) + ", " +
                   shape_text(recur::tensor_shape({B, H, 4, D})) + " and " +
                   shape_text(std::array<index_t, 3>({B, H, 2}));
          });
  auto const c = detail::make_flow_call<T>(query, key, value, out, how);
  any_executor const runs(run_on);
  detail::causal_flows<T>(runs, c, &held);
  if (query.extent(1) == 1)
    linear_attention_step(c.q, c.k, c.v, c.attended, held.memory, run_on);
  else
    linear_attention(c.q, c.k, c.v, c.attended, state{held.memory}, run_on);
  detail::apply_flow_gate(runs, c, out);
}

/// The gradients of causal_flow_attention without a state.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class Executor = serial>
void causal_flow_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                    tensor_view<V, 4> value, tensor_view<O, 4> out,
                                    tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                    tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                    flow_options const& how = {}, Executor const& run_on = {}) {
  detail::flow_backward<true>(query, key, value, out, dout, dquery, dkey, dvalue, how, run_on);
}

}  // namespace heed
