#pragma once

#include "reference/attention.hpp"
#include "reference/traced.hpp"

#include <cmath>
#include <vector>

/// Softmax attention over any scores and any type of number, traced ones included, in plain loops.
namespace reference {

/// The number itself, as a constant.
template <class T>
T untraced(T x) {
  return x;
}
template <class T>
traced<T> untraced(traced<T> x) {
  return traced<T>(x.value());
}

/// The order in which the definitions below sum: that of the scope of the latest in_order.
inline evaluation& current_order() {
  static evaluation order;
  return order;
}
template <class Definition>
auto in_order(evaluation order, Definition const& definition) {
  return [order, definition](auto const& inputs) {
    current_order() = order;
    auto result = definition(inputs);
    current_order() = {};
    return result;
  };
}
/// sum of f(0) to f(count - 1).
template <class T, class F>
T ordered_sum(index_t count, F f) {
  return sum<T>(count, current_order(), f);
}

/// q_i . k_j of query head h, unscaled.
template <class T>
T product(tensor<T, 4> const& q, tensor<T, 4> const& k, index_t b, index_t h, index_t i, index_t j,
          index_t heads) {
  return ordered_sum<T>(q.extent(3), [&](index_t d) {
    return q(b, i, h * q.extent(2) / heads, d) * k(b, j, h * k.extent(2) / heads, d);
  });
}

/// exp(s_j) / sum_j exp(s_j); without scores, nothing. `lse` receives the logarithm of the sum. Where it is differentiated
/// the weights are exp(s_j - lse), since backward passes start from a saved lse.
template <class T>
std::vector<T> softmax_of(std::vector<T> const& scores, T* lse = nullptr) {
  using std::exp, std::log;
  std::vector<T> weights;
  if (scores.empty()) return weights;
  T top = scores[0];
  for (T const& s : scores)
    if (top < s) top = s;
  top = untraced(top);
  for (T const& s : scores) weights.push_back(exp(s - top));
  T const total = ordered_sum<T>(static_cast<index_t>(scores.size()),
                                 [&](index_t n) { return weights[static_cast<std::size_t>(n)]; });
  // Of size |s| epsilon are the errors of a unit of scores that is not their own, the binary logarithm's.
  T const unit_of_scores = T(unit<double>(current_order()));
  T const whole = (top * unit_of_scores + log(total) * unit_of_scores) / unit_of_scores;
  for (std::size_t n = 0; n < weights.size(); ++n)
    if constexpr (std::is_floating_point_v<T>)
      weights[n] /= total;
    else
      weights[n] = exp((scores[n] * unit_of_scores - whole * unit_of_scores) / unit_of_scores);
  if (lse != nullptr) *lse = whole;
  return weights;
}

/// out_i = sum_j softmax_j(score(b, h, i, j)) v_j over the j that keep(b, h, i, j) keeps: [batches, rows, heads, dim of v].
template <class T, class Score, class Keep>
tensor<T, 4> soft_attend(index_t rows, index_t heads, tensor<T, 4> const& v, Score score,
                         Keep keep) {
  tensor<T, 4> out({v.extent(0), rows, heads, v.extent(3)});
  for (index_t b = 0; b < v.extent(0); ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < rows; ++i) {
        std::vector<index_t> keys;
        std::vector<T> scores;
        for (index_t j = 0; j < v.extent(1); ++j)
          if (keep(b, h, i, j)) {
            keys.push_back(j);
            scores.push_back(score(b, h, i, j));
          }
        std::vector<T> const weights = softmax_of(scores);
        for (index_t d = 0; d < v.extent(3); ++d)
          out(b, i, h, d) = ordered_sum<T>(static_cast<index_t>(keys.size()), [&](index_t n) {
            auto const at = static_cast<std::size_t>(n);
            return weights[at] * v(b, keys[at], h * v.extent(2) / heads, d);
          });
      }
  return out;
}
template <class T, class Score>
tensor<T, 4> soft_attend(index_t rows, index_t heads, tensor<T, 4> const& v, Score score) {
  return soft_attend(rows, heads, v, score,
                     [](index_t, index_t, index_t, index_t) { return true; });
}

/// Plain softmax attention, out_i = sum_j softmax_j(scale q_i . k_j) v_j over what keep(i, j) keeps.
template <class T, class Keep>
tensor<T, 4> scaled_attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                              double scale, Keep keep) {
  index_t const heads = q.extent(2);
  return soft_attend(
      q.extent(1), heads, v,
      [&](index_t b, index_t h, index_t i, index_t j) {
        return T(scale) * product(q, k, b, h, i, j, heads);
      },
      [&](index_t, index_t, index_t i, index_t j) { return keep(i, j); });
}
template <class T>
tensor<T, 4> scaled_attention(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                              double scale) {
  return scaled_attention(q, k, v, scale, [](index_t, index_t) { return true; });
}

}  // namespace reference
