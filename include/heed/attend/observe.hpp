#pragma once

#include <heed/pattern/pattern.hpp>

#include <limits>
#include <tuple>

/// Observers: what else a pass over the scores returns.
///
/// A row observer sees each finished row once:
///
///     template <class T> void observe(place const& where, index_t row, row_summary<T> const&) const;
///
/// The row is that of the sequence; where.row(row) is its place in the tensors.
/// `static constexpr bool needs_mean_score = true` asks for the mean score, which costs a
/// multiply-add a pair.
namespace heed {

/// What a pass knows of a finished row, in natural units. For a row that met no key, lse and
/// row_max are -infinity and mean_score is 0.
template <class T>
struct row_summary {
  T lse;
  T lse_rest;  ///< what rounding took from lse
  T row_max;
  T mean_score;  ///< sum_j a_ij s_ij
};

template <class O>
concept row_observer = requires(O const& o, place const& where, row_summary<float> const& f) {
  o.observe(where, index_t{}, f);
}
|| requires(O const& o, place const& where, row_summary<double> const& d) {
  o.observe(where, index_t{}, d);
};

/// Shows a finished row to observers.
template <class... Observers, class T>
void show_row(std::tuple<Observers...> const& observers, place const& where, index_t row,
              row_summary<T> const& summary) {
  std::apply([&](auto const&... observer) { (observer.observe(where, row, summary), ...); },
             observers);
}

template <class O>
concept wants_mean_score = requires {
  requires O::needs_mean_score;
};

namespace detail {

template <class T>
void check_row_view(char const* name, tensor_view<T, 3> const& view, call_shape const& shape) {
  std::array<index_t, 3> const expected{shape.batches, shape.heads, shape.rows};
  require(view.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           shape_text(expected) + " (batch, head, row)";
  });
  require(view.data() != nullptr || view.size() == 0, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + " and no memory";
  });
}

}  // namespace detail

/// lse_i = log sum_j exp(s_ij) over the keys that row i meets: what attention_backward and
/// merge_attention ask for. out: [batch, head, row], in the type of the computation.
template <class T>
struct lse_into {
  tensor_view<T, 3> out;

  void observe(place const& where, index_t row, row_summary<T> const& summary) const {
    out(where.batch, where.head, where.row(row)) = summary.lse;
  }
  void check(call_shape const& shape) const { detail::check_row_view("lse_into", out, shape); }
};
template <class T>
lse_into(tensor_view<T, 3>) -> lse_into<T>;

/// The largest score of each row, -infinity for a row that meets no key. out: [batch, head, row].
template <class T>
struct row_max_into {
  tensor_view<T, 3> out;

  void observe(place const& where, index_t row, row_summary<T> const& summary) const {
    out(where.batch, where.head, where.row(row)) = summary.row_max;
  }
  void check(call_shape const& shape) const { detail::check_row_view("row_max_into", out, shape); }
};
template <class T>
row_max_into(tensor_view<T, 3>) -> row_max_into<T>;

/// The entropy of each row's weights in nats, lse_i - sum_j a_ij s_ij, which without sinks is
/// -sum_j a_ij log a_ij; 0 for a row that meets no key. out: [batch, head, row].
template <class T>
struct entropy_into {
  tensor_view<T, 3> out;
  static constexpr bool needs_mean_score = true;

  void observe(place const& where, index_t row, row_summary<T> const& summary) const {
    bool const empty = summary.row_max == -std::numeric_limits<T>::infinity();
    out(where.batch, where.head, where.row(row)) = empty ? T(0) : summary.lse - summary.mean_score;
  }
  void check(call_shape const& shape) const { detail::check_row_view("entropy_into", out, shape); }
};
template <class T>
entropy_into(tensor_view<T, 3>) -> entropy_into<T>;

/// d loss / d lse for attention_backward, where the loss depends on the lse that attention
/// returned. values: [batch, head, row].
template <class T>
struct lse_gradient {
  tensor_view<T const, 3> values;

  template <class U>
    requires std::is_same_v<T, std::remove_const_t<U>>
  explicit lse_gradient(tensor_view<U, 3> v) : values(v) {}

  void check(call_shape const& shape) const {
    detail::check_row_view("lse_gradient", values, shape);
  }
};
template <class U>
lse_gradient(tensor_view<U, 3>) -> lse_gradient<std::remove_const_t<U>>;

/// The mass that each key receives: out(b, h, j) = sum_i r_i a_ij, with r_i from row_weights or 1.
///   out          [batch, head, key]
///   row_weights  [batch, head, row]; default all 1
template <class T>
struct column_sums_into {
  tensor_view<T, 3> out;
  tensor_view<T const, 3> row_weights = {};

  explicit column_sums_into(tensor_view<T, 3> o, tensor_view<T const, 3> r = {})
      : out(o), row_weights(r) {}

  void check(call_shape const& shape) const {
    std::array<index_t, 3> const expected{shape.batches, shape.heads, shape.keys};
    require(out.extents() == expected, [&] {
      return "column_sums_into has shape " + shape_text(out.extents()) + "; expected " +
             shape_text(expected) + " (batch, head, key)";
    });
    if (row_weights.data() != nullptr)
      detail::check_row_view("the row weights of column_sums_into", row_weights, shape);
  }
};
template <class T, class... Weights>
column_sums_into(tensor_view<T, 3>, Weights...) -> column_sums_into<T>;

/// The k keys of largest weight in each row, largest first, the lower index first among equals.
///   indices  [batch, head, row, k]: rows of the key tensor; -1 where a row meets fewer than k keys
///   weights  the same shape: their weights, 0 where there is no key; optional
template <class T>
struct top_keys_into {
  tensor_view<index_t, 4> indices;
  tensor_view<T, 4> weights = {};

  void check(call_shape const& shape) const {
    std::array<index_t, 4> const expected{shape.batches, shape.heads, shape.rows,
                                          indices.extent(3)};
    require(indices.extents() == expected, [&] {
      return "top_keys_into indices have shape " + shape_text(indices.extents()) + "; expected " +
             shape_text(expected) + " (batch, head, row, k)";
    });
    require(weights.data() == nullptr || weights.extents() == expected, [&] {
      return "top_keys_into weights have shape " + shape_text(weights.extents()) + "; expected " +
             shape_text(expected) + " (batch, head, row, k)";
    });
  }
};
template <class T>
top_keys_into(tensor_view<index_t, 4>, tensor_view<T, 4>) -> top_keys_into<T>;

}  // namespace heed
