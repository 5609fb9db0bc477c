#pragma once

#include "reference/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <variant>
#include <vector>

/// The definition of softmax attention and of its gradient, in plain loops. With T = double it
/// gives the golden values; with T = float, the error that the definition itself makes in float.
/// That error is a matter of luck where there is little to sum, so there are several ways to
/// evaluate the definition: sums from front to back with e, or from back to front with powers of
/// two and scaled queries; and sums that begin elsewhere than at an end.
///
///   s_ij = scale row_scale_i q_i.k_j, then the modifiers in order; pairs that `keep` rejects or
///   whose score is -infinity do not exist. lse_i = log(sum_j exp(s_ij) + sum_t exp(z_t)),  a_ij =
///   exp(s_ij - lse_i),  o_i = sum_j a_ij f_ij v_j.
namespace reference {

struct softcap {
  double cap;
};
struct alibi {
  std::vector<double> slopes;
};
/// [batch|1, head|1, row|1, key|1]
struct bias {
  tensor<double, 4> values;
};
using modifier = std::variant<softcap, alibi, bias>;

enum class alignment { bottom_right, top_left };

struct evaluation {
  bool backwards = false;
  index_t quarter = 0;  // where sums begin

  /// The n-th of `count` terms.
  index_t at(index_t n, index_t count) const {
    index_t const turned = backwards ? count - 1 - n : n;
    return (turned + quarter * count / 4) % count;
  }
};
inline constexpr evaluation evaluations[] = {{false, 0}, {true, 0}, {false, 1}, {true, 1},
                                             {false, 2}, {true, 2}, {false, 3}, {true, 3}};

struct options {
  std::optional<double> scale;
  tensor<double, 3> row_scale;  // [batch, head, row]
  std::vector<modifier> modifiers;
  std::function<bool(index_t sequence, index_t query, index_t key)> keep;
  std::function<bool(index_t sequence, index_t head, index_t query, index_t key)> keep_in_head;
  std::function<double(index_t query, index_t key)> factor;
  alignment align = alignment::bottom_right;
  tensor<index_t, 2> positions;            // [sequence|1, row]
  std::vector<index_t> documents_of_rows;  // cumulative lengths: packed sequences, batch extent 1
  std::vector<index_t> documents_of_keys;
  tensor<double, 2> sinks;        // [head, sink]
  tensor<double, 3> row_weights;  // [batch, head, row], of the column sums
  evaluation order;
};

template <class T>
struct result {
  tensor<T, 4> out;                    // [batch, row, head, value_dim]
  tensor<T, 3> lse, row_max, entropy;  // [batch, head, row]
  tensor<T, 3> column_sums;            // [batch, head, key]
};

template <class T>
struct gradients {
  tensor<T, 4> query, key, value;
  std::vector<tensor<T, 4>>
      modifiers;  // of the parameter of each modifier: [1,1,1,1] for a cap, [H,1,1,1]
  tensor<T, 2> sinks;
  T scale{0};
  tensor<T, 3> row_scale;
  std::vector<T>
      modifier_terms;  // sum of |terms| of a parameter's gradient: what its rounding is measured by
  T scale_terms{0};
};

/// A row of scores: where it lies and which keys it meets.
struct row {
  index_t sequence, batch, head, index;  // `index` is the row of the tensor
  index_t position;
  index_t first_key, keys;  // of the sequence, in the tensor
};

/// Calls visit(row) for every row of every sequence and head.
template <class Visit>
void for_each_row(index_t batches, index_t rows, index_t keys, index_t heads, options const& o,
                  Visit visit) {
  bool const packed = !o.documents_of_rows.empty();
  index_t const sequences = packed ? static_cast<index_t>(o.documents_of_rows.size()) - 1 : batches;
  for (index_t sequence = 0; sequence < sequences; ++sequence) {
    auto const at = static_cast<std::size_t>(sequence);
    index_t const first_row = packed ? o.documents_of_rows[at] : 0;
    index_t const last_row = packed ? o.documents_of_rows[at + 1] : rows;
    index_t const first_key = packed ? o.documents_of_keys[at] : 0;
    index_t const last_key = packed ? o.documents_of_keys[at + 1] : keys;
    index_t const batch = packed ? 0 : sequence;
    for (index_t head = 0; head < heads; ++head)
      for (index_t i = first_row; i < last_row; ++i) {
        index_t position = i - first_row;
        if (o.align == alignment::bottom_right)
          position += (last_key - first_key) - (last_row - first_row);
        if (!o.positions.values.empty())
          position = o.positions(std::min(sequence, o.positions.extent(0) - 1), i);
        visit(row{sequence, batch, head, i, position, first_key, last_key - first_key});
      }
  }
}

inline double broadcast(tensor<double, 4> const& t, index_t b, index_t h, index_t i, index_t j) {
  return t(std::min(b, t.extent(0) - 1), std::min(h, t.extent(1) - 1), std::min(i, t.extent(2) - 1),
           std::min(j, t.extent(3) - 1));
}

/// sum of f(0) to f(count - 1).
template <class T, class F>
T sum(index_t count, evaluation order, F f) {
  T total = 0;
  for (index_t n = 0; n < count; ++n) total += f(order.at(n, count));
  return total;
}

/// The unit of scores, exp(x) and its inverse in that unit.
template <class T>
T unit(evaluation order) {
  return order.backwards ? T(1.442695040888963407359924681L) : T(1);
}
template <class T>
T power(T x, evaluation order) {
  return order.backwards ? std::exp2(x) : std::exp(x);
}
template <class T>
T logarithm(T x, evaluation order) {
  return order.backwards ? std::log2(x) : std::log(x);
}

/// The scaled product of a pair, and the score after each modifier.
template <class T>
std::vector<T> score_steps(tensor<T, 4> const& q, tensor<T, 4> const& k, options const& o,
                           row const& r, index_t j) {
  index_t const head = r.head * k.extent(2) / q.extent(2);
  T scale = o.scale ? T(*o.scale) : T(1) / std::sqrt(T(q.extent(3)));
  if (!o.row_scale.values.empty()) scale *= T(o.row_scale(r.batch, r.head, r.index));
  bool const first = o.order.backwards;  // the query is scaled, and not the product
  T product = sum<T>(q.extent(3), o.order, [&](index_t d) {
    return (first ? scale : T(1)) * q(r.batch, r.index, r.head, d) *
           k(r.batch, r.first_key + j, head, d);
  });
  if (!first) product *= scale;

  std::vector<T> steps{product};
  for (modifier const& each : o.modifiers) {
    T s = steps.back();
    if (auto* cap = std::get_if<softcap>(&each)) s = T(cap->cap) * std::tanh(s / T(cap->cap));
    if (auto* linear = std::get_if<alibi>(&each))
      s -= T(linear->slopes[static_cast<std::size_t>(r.head)]) * T(std::abs(j - r.position));
    if (auto* added = std::get_if<bias>(&each))
      s += T(broadcast(added->values, r.batch, r.head, r.index, r.first_key + j));
    steps.push_back(s);
  }
  return steps;
}

inline bool kept(options const& o, row const& r, index_t j) {
  return (!o.keep || o.keep(r.sequence, r.position, j)) &&
         (!o.keep_in_head || o.keep_in_head(r.sequence, r.head, r.position, j));
}

template <class T>
T factor(options const& o, row const& r, index_t j) {
  return o.factor ? T(o.factor(r.position, j)) : T(1);
}

template <class T>
result<T> attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                    options const& o) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  index_t const B = q.extent(0), N = q.extent(1), H = q.extent(2), M = k.extent(1),
                Dv = v.extent(3);
  result<T> all{tensor<T, 4>({B, N, H, Dv}), tensor<T, 3>({B, H, N}), tensor<T, 3>({B, H, N}),
                tensor<T, 3>({B, H, N}), tensor<T, 3>({B, H, M})};

  T const to_units = unit<T>(o.order);

  for_each_row(B, N, M, H, o, [&](row const& r) {
    std::vector<index_t> keys;
    std::vector<T> scores;
    for (index_t j = 0; j < r.keys; ++j) {
      if (!kept(o, r, j)) continue;
      T const s = score_steps(q, k, o, r, j).back() * to_units;
      if (s == -infinity) continue;
      keys.push_back(j);
      scores.push_back(s);
    }
    auto const count = static_cast<index_t>(keys.size());
    auto const sink = [&](index_t t) { return T(o.sinks(r.head, t)) * to_units; };

    T top = -infinity;
    for (T s : scores) top = std::max(top, s);
    T reference = top;
    for (index_t t = 0; t < o.sinks.extent(1); ++t) reference = std::max(reference, sink(t));
    if (reference == -infinity) reference = 0;

    std::vector<T> weights;
    for (T s : scores) weights.push_back(power(s - reference, o.order));
    T const total =
        sum<T>(count, o.order, [&](index_t n) { return weights[static_cast<std::size_t>(n)]; }) +
        sum<T>(o.sinks.extent(1), o.order,
               [&](index_t t) { return power(sink(t) - reference, o.order); });
    for (T& weight : weights) weight /= total;

    T const lse = (reference + logarithm(total, o.order)) / to_units;
    T const mean_score = sum<T>(count, o.order, [&](index_t n) {
      auto const at = static_cast<std::size_t>(n);
      return weights[at] * scores[at] / to_units;
    });
    for (index_t d = 0; d < Dv; ++d)
      all.out(r.batch, r.index, r.head, d) = sum<T>(count, o.order, [&](index_t n) {
        auto const at = static_cast<std::size_t>(n);
        return weights[at] * factor<T>(o, r, keys[at]) *
               v(r.batch, r.first_key + keys[at], r.head * v.extent(2) / H, d);
      });
    T const row_weight =
        o.row_weights.values.empty() ? T(1) : T(o.row_weights(r.batch, r.head, r.index));
    for (std::size_t n = 0; n < keys.size(); ++n)
      all.column_sums(r.batch, r.head, r.first_key + keys[n]) +=
          row_weight * power(scores[n] - lse * to_units, o.order);

    all.lse(r.batch, r.head, r.index) = lse;
    all.row_max(r.batch, r.head, r.index) = top / to_units;
    all.entropy(r.batch, r.head, r.index) = keys.empty() ? T(0) : lse - mean_score;
  });
  return all;
}

/// The gradient from the saved out and lse, and the gradients of both. `dlse` may be empty.
template <class T>
gradients<T> attention_backward(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                                tensor<T, 4> const& out, tensor<T, 3> const& lse,
                                tensor<T, 4> const& dout, tensor<T, 3> const& dlse,
                                options const& o) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  index_t const B = q.extent(0), N = q.extent(1), H = q.extent(2), D = q.extent(3), M = k.extent(1);
  T const scale = o.scale ? T(*o.scale) : T(1) / std::sqrt(T(D));
  gradients<T> all{tensor<T, 4>(q.extents),
                   tensor<T, 4>(k.extents),
                   tensor<T, 4>(v.extents),
                   {},
                   tensor<T, 2>(o.sinks.extents),
                   T(0),
                   tensor<T, 3>(o.row_scale.extents),
                   std::vector<T>(o.modifiers.size(), T(0)),
                   T(0)};
  for (modifier const& each : o.modifiers) {
    tensor<double, 4>::index_array shape{1, 1, 1, 1};
    if (std::holds_alternative<alibi>(each)) shape[0] = H;
    if (auto* added = std::get_if<bias>(&each)) shape = added->values.extents;
    all.modifiers.emplace_back(shape);
  }

  for_each_row(B, N, M, H, o, [&](row const& r) {
    index_t const b = r.batch, i = r.index, h = r.head;
    index_t const key_head = h * k.extent(2) / H, value_head = h * v.extent(2) / H;
    T const row_lse = lse(b, h, i);
    if (row_lse == -infinity) return;
    T const delta =
        sum<T>(v.extent(3), {}, [&](index_t d) { return dout(b, i, h, d) * out(b, i, h, d); }) -
        (dlse.values.empty() ? T(0) : dlse(b, h, i));
    for (index_t t = 0; t < o.sinks.extent(1); ++t)
      all.sinks(h, t) -= std::exp(T(o.sinks(h, t)) - row_lse) * delta;

    for (index_t n = 0; n < r.keys; ++n) {
      index_t const j = o.order.at(n, r.keys);
      if (!kept(o, r, j)) continue;
      std::vector<T> const steps = score_steps(q, k, o, r, j);
      if (steps.back() == -infinity) continue;
      index_t const key = r.first_key + j;
      T const to_units = unit<T>(o.order);
      T const a = power(steps.back() * to_units - row_lse * to_units, o.order),
              f = factor<T>(o, r, j);
      T const da = f * sum<T>(v.extent(3), o.order, [&](index_t d) {
                     return dout(b, i, h, d) * v(b, key, value_head, d);
                   });
      for (index_t d = 0; d < v.extent(3); ++d)
        all.value(b, key, value_head, d) += a * f * dout(b, i, h, d);
      T ds = a * (da - delta);

      for (std::size_t m = o.modifiers.size(); m-- > 0;) {
        auto& parameter = all.modifiers[m];
        if (auto* capped = std::get_if<softcap>(&o.modifiers[m])) {
          T const x = steps[m] / T(capped->cap), tanh = std::tanh(x), slope = 1 - tanh * tanh;
          parameter(0, 0, 0, 0) += ds * (tanh - x * slope);
          all.modifier_terms[m] += std::abs(a * da) + std::abs(a * delta);
          ds *= slope;
        } else if (std::holds_alternative<alibi>(o.modifiers[m])) {
          parameter(h, 0, 0, 0) -= ds * T(std::abs(j - r.position));
          all.modifier_terms[m] +=
              (std::abs(a * da) + std::abs(a * delta)) * T(std::abs(j - r.position));
        } else {
          parameter(std::min(b, parameter.extent(0) - 1), std::min(h, parameter.extent(1) - 1),
                    std::min(i, parameter.extent(2) - 1), std::min(key, parameter.extent(3) - 1)) +=
              ds;
        }
      }

      T const product =
          sum<T>(D, o.order, [&](index_t d) { return q(b, i, h, d) * k(b, key, key_head, d); });
      T const row_scale = o.row_scale.values.empty() ? T(1) : T(o.row_scale(b, h, i));
      all.scale += ds * row_scale * product;
      all.scale_terms += (std::abs(a * da) + std::abs(a * delta)) * std::abs(row_scale * product);
      if (!o.row_scale.values.empty()) all.row_scale(b, h, i) += ds * scale * product;
      for (index_t d = 0; d < D; ++d) {
        all.query(b, i, h, d) += ds * scale * row_scale * k(b, key, key_head, d);
        all.key(b, key, key_head, d) += ds * scale * row_scale * q(b, i, h, d);
      }
    }
  });
  return all;
}

/// Results over disjoint sets of keys: lse = log sum_A exp(lse_A), o = sum_A exp(lse_A - lse) o_A.
template <class T>
struct part {
  tensor<T, 4> out;  // [batch, row, head, dim]
  tensor<T, 3> lse;  // [batch, head, row]
};

template <class T>
part<T> merge(std::vector<part<T>> const& parts) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  part<T> whole{tensor<T, 4>(parts.at(0).out.extents),
                tensor<T, 3>(parts.at(0).lse.extents, -infinity)};
  auto const [B, N, H, D] = whole.out.extents;
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h)
      for (index_t i = 0; i < N; ++i) {
        T top = -infinity;
        for (auto const& p : parts) top = std::max(top, p.lse(b, h, i));
        if (top == -infinity) continue;
        T total = 0;
        for (auto const& p : parts) total += std::exp(p.lse(b, h, i) - top);
        whole.lse(b, h, i) = top + std::log(total);
        for (auto const& p : parts)
          if (p.lse(b, h, i) != -infinity)
            for (index_t d = 0; d < D; ++d)
              whole.out(b, i, h, d) += std::exp(p.lse(b, h, i) - top) / total * p.out(b, i, h, d);
      }
  return whole;
}

/// do_A = w_A do,  dlse_A = w_A (dlse + do.(o_A - o)),  w_A = exp(lse_A - lse).
template <class T>
std::vector<part<T>> merge_backward(std::vector<part<T>> const& parts, part<T> const& whole,
                                    tensor<T, 4> const& dout, tensor<T, 3> const& dlse,
                                    evaluation order = {}) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  std::vector<part<T>> all;
  index_t const B = whole.out.extent(0), N = whole.out.extent(1), H = whole.out.extent(2);
  for (auto const& p : parts) {
    part<T> gradient{tensor<T, 4>(p.out.extents), tensor<T, 3>(p.lse.extents)};
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t i = 0; i < N; ++i) {
          if (p.lse(b, h, i) == -infinity) continue;
          T const w = std::exp(p.lse(b, h, i) - whole.lse(b, h, i));
          T const slope = sum<T>(p.out.extent(3), order, [&](index_t d) {
            return dout(b, i, h, d) * (p.out(b, i, h, d) - whole.out(b, i, h, d));
          });
          for (index_t d = 0; d < p.out.extent(3); ++d)
            gradient.out(b, i, h, d) = w * dout(b, i, h, d);
          gradient.lse(b, h, i) = w * (slope + (dlse.values.empty() ? T(0) : dlse(b, h, i)));
        }
    all.push_back(std::move(gradient));
  }
  return all;
}

}  // namespace reference
