#pragma once

#include <heed/recur/flows.hpp>

#include <limits>

namespace heed::recur {

/// The numbers of one token's flows.
struct flow_numbers {
  double inflow, outflow;  // I, O
  double gate;             // sigmoid(I')
  double conserved, kept;  // O', and clamped
  double share, weight;    // of the sources so far; times their number
};

/// What a sequence carries on besides the memory: its sums, [sequence, head, 4, dim], and how many tokens there were and
/// log sum e^O', [sequence, head, 2].
struct flow_carried {
  tensor_view<double, 4> sums;
  tensor_view<double, 3> counts;
};
/// d loss / d these; that by log sum e^O' is [sequence, head].
struct flow_carried_gradient {
  tensor_view<double, 4> sums;
  tensor_view<double, 2> log_total;
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

  /// From a state and back to it, if there is one.
  void begin(flow_carried const& held, index_t s, index_t h) {
    if (held.sums.data() == nullptr) return;
    for (index_t n = 0; n < 4; ++n)
      for (index_t d = 0; d < dim_; ++d) sum[n][d] = held.sums(s, h, n, d);
    count = held.counts(s, h, 0);
    log_total = held.counts(s, h, 1);
  }
  void end(flow_carried const& held, index_t s, index_t h) const {
    if (held.sums.data() == nullptr) return;
    for (index_t n = 0; n < 4; ++n)
      for (index_t d = 0; d < dim_; ++d) held.sums(s, h, n, d) = sum[n][d];
    held.counts(s, h, 0) = count;
    held.counts(s, h, 1) = log_total;
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

/// The causal flows: fills the tensors of linear attention. `held`, where it is given, begins and ends the sequences.
template <class T>
void causal_flows(any_executor const& run_on, flow_call<T> const& c, flow_carried const& held) {
  index_t const dim = c.dim(), width = c.value.dim();
  parallel_for(run_on, c.sequences.count * c.heads(), [&](index_t piece, index_t) {
    place const where = c.sequences.at(piece / c.heads());
    index_t const b = where.batch, h = piece % c.heads();
    double* const memory =
        flow_memory(flow_sums::numbers(dim) + 2 * flow_block::numbers(dim) + flow_rows * width);
    flow_sums sums(memory, dim, c.how);
    flow_block q(memory + flow_sums::numbers(dim), dim), k(q.raw + flow_block::numbers(dim), dim);
    double* const v = k.raw + flow_block::numbers(dim);
    sums.begin(held, where.sequence, h);
    for_flow_blocks(where.rows, [&](index_t start, index_t count) {
      index_t const first = where.first_row + start;
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
    sums.end(held, where.sequence, h);
  });
}

/// From the gradients that linear attention leaves to d loss / d query, key and value: each sum's adjoint is a sum from the other
/// end. The sequences begin with `held`; `after` is d loss / d what they end with, and `before` receives that by `held`. Any of
/// these may be empty.
template <class T>
void causal_flows_backward(any_executor const& run_on, flow_call<T> const& c,
                           flow_gradient<T> const& d, flow_carried const& held,
                           flow_carried_gradient const& after,
                           flow_carried_gradient const& before) {
  index_t const dim = c.dim(), width = c.value.dim(), kept = flow_sums::numbers(dim);
  parallel_for(run_on, c.sequences.count * c.heads(), [&](index_t piece, index_t) {
    place const where = c.sequences.at(piece / c.heads());
    index_t const b = where.batch, h = piece % c.heads(), N = where.rows;
    index_t const blocks = (N + flow_rows - 1) / flow_rows;
    double* memory = flow_memory((1 + blocks + flow_rows) * kept + 2 * flow_block::numbers(dim) +
                                 3 * flow_rows * width + 2 * flow_rows * dim + 4 * dim);
    auto const take = [&](index_t numbers) { return std::exchange(memory, memory + numbers); };
    flow_sums sums(take(kept), dim, c.how);
    double *const checkpoints = take(blocks * kept), *const reached = take(flow_rows * kept);
    flow_block q(take(flow_block::numbers(dim)), dim), k(take(flow_block::numbers(dim)), dim);
    double *const v = take(flow_rows * width), *const dwv = take(flow_rows * width),
                  *const dv = take(flow_rows * width);
    double *const dq = take(flow_rows * dim), *const dk = take(flow_rows * dim);
    double *const later_k = take(dim), *const later_q = take(dim), *const later_ko = take(dim),
                  *const later_qi = take(dim);  // gradients by the sums
    auto const read = [&](index_t block) {
      index_t const first = block * flow_rows, count = std::min(flow_rows, N - first);
      q.read(c.query, c.how.relu, b, h, where.first_row + first, count);
      k.read(c.key, c.how.relu, b, h, where.first_row + first, count);
      return count;
    };
    sums.begin(held, where.sequence, h);
    for (index_t block = 0; block < blocks; ++block) {
      sums.save(checkpoints + block * kept);
      index_t const count = read(block);
      for (index_t r = 0; r < count; ++r) sums.advance(q.row(r), k.row(r));
    }
    double* const later[] = {later_k, later_q, later_ko, later_qi};
    for (index_t n = 0; n < 4; ++n)
      for (index_t i = 0; i < dim; ++i)
        later[n][i] = after.sums.data() == nullptr ? 0 : after.sums(where.sequence, h, n, i);
    // The share of the next token, and what it carries: less d loss / d log sum e^O'.
    double later_share = 0, later_weights = 0;
    if (after.log_total.data() != nullptr) later_weights = -after.log_total(where.sequence, h);
    flow_numbers numbers[flow_rows];
    for (index_t block = blocks; block-- > 0;) {
      index_t const count = read(block), first = where.first_row + block * flow_rows;
      sums.restore(checkpoints + block * kept);
      for (index_t r = 0; r < count; ++r) {
        numbers[r] = sums.advance(q.row(r), k.row(r));
        sums.save(reached + r * kept);
      }
      c.value.copy(b, h, first, count, v, width);
      for (index_t r = count; r-- > 0;) {
        flow_numbers const& at = numbers[r];
        double const *const sum_k = reached + r * kept, *const sum_q = sum_k + dim,
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
    if (before.sums.data() != nullptr)
      for (index_t n = 0; n < 4; ++n)
        for (index_t i = 0; i < dim; ++i) before.sums(where.sequence, h, n, i) = later[n][i];
    if (before.log_total.data() != nullptr)
      before.log_total(where.sequence, h) = -(1 - later_share) * later_weights;
  });
}

}  // namespace heed::recur
