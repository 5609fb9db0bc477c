// Calls of linear_attention with their clauses chosen at run time, compiled once for all tests.
#pragma once

#include "reference/recurrence.hpp"

#include <heed/parallel/any_executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/recur/clauses.hpp>
#include <heed/recur/feature_map.hpp>
#include <heed/view/element.hpp>

#include <optional>

namespace support {

using heed::index_t;
using heed::tensor_view;

/// Feature maps, for the engine and for the definition. All but `waves` give the same features wherever a row stands.
struct test_features {
  enum kinds { elu_plus_one, relu_squared, waves } kind = elu_plus_one;

  bool positive() const { return kind != waves; }

  index_t count(index_t dim) const { return kind == waves ? 2 * dim : dim; }
  template <class T>
  std::vector<T> features(reference::feature_place const& at, std::vector<T> const& x) const {
    using std::exp, std::sin;
    std::vector<T> phi;
    for (T each : x)
      phi.push_back(kind == waves          ? sin(each + T(shift(at)))
                    : kind == relu_squared ? std::max(each, T(0)) * std::max(each, T(0))
                    : each > T(0)          ? each + T(1)
                                           : exp(each));
    if (kind == waves)
      for (T each : x) phi.push_back(each * T(std::cos(shift(at))));
    return phi;
  }
  template <class T>
  std::vector<T> gradient(reference::feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    std::vector<T> dx;
    for (std::size_t d = 0; d < x.size(); ++d)
      dx.push_back(kind == waves ? dphi[d] * std::cos(x[d] + T(shift(at))) +
                                       dphi[d + x.size()] * T(std::cos(shift(at)))
                   : kind == relu_squared ? dphi[d] * 2 * std::max(x[d], T(0))
                                          : dphi[d] * (x[d] > 0 ? T(1) : std::exp(x[d])));
    return dx;
  }

  index_t features(index_t dim) const { return count(dim); }
  template <class T>
  void apply(heed::side of, heed::feature_rows<T> const& x, T* phi, index_t stride) const {
    for (index_t r = 0; r < x.count; ++r) {
      auto const row = features(place(of, x, r), std::vector<T>(x[r], x[r] + x.dim));
      std::copy(row.begin(), row.end(), phi + r * stride);
    }
  }
  template <class T>
  void differentiate(heed::side of, heed::feature_rows<T> const& x, T const*, T const* dphi,
                     index_t stride, T* dx, index_t dx_stride) const {
    for (index_t r = 0; r < x.count; ++r) {
      T const* const from = dphi + r * stride;
      auto const row = gradient(place(of, x, r), std::vector<T>(x[r], x[r] + x.dim),
                                std::vector<T>(from, from + count(x.dim)));
      std::copy(row.begin(), row.end(), dx + r * dx_stride);
    }
  }

 private:
  /// What tells places apart: a number that every type holds exactly.
  static float shift(reference::feature_place const& at) {
    return 0.125f * static_cast<float>(at.position % 16) + static_cast<float>(at.head % 4) +
           0.5f * static_cast<float>(at.batch) + (at.of_query ? 0.25f : 0);
  }
  template <class T>
  static reference::feature_place place(heed::side of, heed::feature_rows<T> const& x, index_t r) {
    return {of == heed::side::query, x.batch, x.head, x.first_position + r};
  }
};

/// The executor of calls that name none.
inline heed::any_executor on_this_thread() {
  static constexpr heed::serial here;
  return heed::any_executor(here);
}

/// A call. What has no memory is left out; not every combination is compiled, see recurrence_clauses.hpp.
template <class Q, class K = Q, class V = Q, class O = Q>
struct recurrence_call {
  using compute = heed::compute_type<Q, K, V, O>;
  static constexpr bool few_combinations = !std::is_same_v<Q, float>;

  tensor_view<Q const, 4> query;
  tensor_view<K const, 4> key;
  tensor_view<V const, 4> value;
  tensor_view<O, 4> out;
  tensor_view<compute const, 3> log_gate, rate;
  tensor_view<compute const, 4> log_key_gate, log_value_gate, initial;
  tensor_view<compute, 4> final;
  bool exact = false;  // the delta rule, if there is a rate
  bool dense = false;
  std::optional<heed::normalised> normaliser;
  std::optional<test_features> map;
  std::optional<heed::documents> documents;
  double scale = 1;
  index_t chunk = 0;  // the usual one
  heed::any_executor executor = on_this_thread();
  heed::workspace* scratch = nullptr;

  // What the backward pass reads and writes besides.
  tensor_view<O const, 4> dout;
  tensor_view<Q, 4> dquery;
  tensor_view<K, 4> dkey;
  tensor_view<V, 4> dvalue;
  tensor_view<compute, 3> dlog_gate, drate;
  tensor_view<compute, 4> dlog_key_gate, dlog_value_gate, dinitial;
  tensor_view<compute const, 4> dfinal;

  void forward() const;
  void backward() const;
  /// One token; `state` is updated.
  void step(tensor_view<compute, 4> state) const;
};

}  // namespace support
