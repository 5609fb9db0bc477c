#pragma once

#include <heed/attend/ingredients.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/rows.hpp>

#include <cmath>
#include <numeric>
#include <type_traits>

/// The shape of a call: what is read and written, which sequences there are, where queries stand.
namespace heed::attend {

/// The sequences of a call: the batch entries, the documents packed in the only one, or the groups of an arrangement in
/// each.
struct sequences {
  index_t count = 0;
  index_t rows = 0;
  index_t keys = 0;
  documents packed;
  any_arrangement order;
  index_t groups = 1;
  index_t panel_rows = 0;  // as of a place

  place at(index_t sequence, index_t head) const {
    if (order) {
      index_t const group = sequence % groups;
      return {.sequence = sequence,
              .batch = sequence / groups,
              .head = head,
              .rows = order.rows(group),
              .keys = order.keys(group),
              .order = &order,
              .group = group,
              .panel_rows = panel_rows};
    }
    if (packed.queries.empty())
      return {.sequence = sequence,
              .batch = sequence,
              .head = head,
              .rows = rows,
              .keys = keys,
              .panel_rows = panel_rows};
    auto const g = static_cast<std::size_t>(sequence);
    return {.sequence = sequence,
            .batch = 0,
            .head = head,
            .rows = packed.queries[g + 1] - packed.queries[g],
            .keys = packed.keys[g + 1] - packed.keys[g],
            .first_row = packed.queries[g],
            .first_key = packed.keys[g],
            .panel_rows = panel_rows};
  }

  index_t max_keys() const {
    index_t most = 0;
    for (index_t g = 0; g < count; ++g) most = std::max(most, at(g, 0).keys);
    return most;
  }
};

/// Where the query rows stand among the keys.
struct standing {
  bool top_left_aligned = false;
  query_positions explicit_positions;

  index_t operator()(place const& where, index_t row) const {
    auto const& given = explicit_positions.rows;
    if (given.data() != nullptr)
      return given(given.extent(0) == 1 ? 0 : where.sequence, where.row(row));
    return top_left_aligned || where.order != nullptr ? row : row + where.keys - where.rows;
  }

  /// The positions of rows [rows.first, rows.last), one after the other.
  void list(place const& where, interval rows, index_t* to) const {
    if (explicit_positions.rows.data() == nullptr)
      std::iota(to, to + rows.size(), (*this)(where, rows.first));
    else
      for (index_t row = rows.first; row < rows.last; ++row) *to++ = (*this)(where, row);
  }

  /// The smallest interval around the positions of rows [rows.first, rows.last).
  interval hull(place const& where, interval rows) const {
    if (rows.empty()) return {};
    if (explicit_positions.rows.data() == nullptr)
      return {(*this)(where, rows.first), (*this)(where, rows.last - 1) + 1};
    interval around{(*this)(where, rows.first), (*this)(where, rows.first) + 1};
    for (index_t row = rows.first + 1; row < rows.last; ++row) {
      index_t const position = (*this)(where, row);
      around = {std::min(around.first, position), std::max(around.last, position + 1)};
    }
    return around;
  }
};

inline standing make_standing(top_left) {
  return {.top_left_aligned = true, .explicit_positions = {}};
}
inline standing make_standing(query_positions const& positions) {
  return {.top_left_aligned = false, .explicit_positions = positions};
}
inline standing make_standing(std::nullptr_t) {
  return {};
}

/// The operands of a forward call with their element types erased, and everything about their
/// shape.
template <class T>
struct problem {
  source<T> query, key, value;
  sequences sequence;
  standing position;
  index_t heads = 0;
  index_t key_heads = 0;
  index_t value_heads = 0;
  index_t dim = 0;
  index_t value_dim = 0;
  T scale = 0;
  tensor_view<T const, 3> row_scale;

  index_t key_head(index_t head) const { return head * key_heads / heads; }
  index_t value_head(index_t head) const { return head * value_heads / heads; }
  call_shape shape() const {
    return {query.batches(), sequence.count, heads, query.positions(), key.positions()};
  }
  /// Of a row of the tensors; anything for padding.
  T score_scale(place const& where, index_t row) const {
    if (row_scale.data() == nullptr || row < 0) return scale;
    return scale * row_scale(where.batch, where.head, row);
  }
};

namespace detail {

using heed::detail::any_tensor;
using heed::detail::expect_distinct_elements;
using heed::detail::expect_divisor;
using heed::detail::expect_extent;
using heed::detail::expect_like;
using heed::detail::expect_memory;
using heed::detail::expect_operands;

/// How many rows had better be worked on together, by the pattern of a call; 0 if it does not matter.
template <class... I>
index_t wanted_panel_rows(I const&... ingredients) {
  index_t rows = 0;
  [[maybe_unused]] auto const look = [&](auto const& ingredient) {
    if constexpr (pattern<std::remove_cvref_t<decltype(ingredient)>>)
      rows = panel_rows_of(ingredient);
  };
  (look(ingredients), ...);
  // Panels of fewer rows leave registers empty, which costs more than a few keys that not every row meets.
  constexpr index_t fewest = 16;
  return rows >= fewest ? rows : 0;
}

inline any_arrangement view_of_arrangement() {
  return {};
}
template <class First, class... I>
any_arrangement view_of_arrangement(First const& first, I const&... rest) {
  if constexpr (arrangement<First>)
    return any_arrangement(first);
  else
    return view_of_arrangement(rest...);
}

inline void check_operands(any_tensor const& query, any_tensor const& key,
                           any_tensor const& value) {
  expect_operands(query, key, value);
  expect_extent("key", key, 3, query.extent(3), "head_dim, that of query");
  expect_divisor("key", key, query.extent(2), "query");
  expect_divisor("value", value, query.extent(2), "query");
  constexpr index_t limit = index_t{1} << 24;
  require(key.extent(1) < limit && query.extent(1) < limit, [&] {
    return "query has shape " + shape_text(query.extents()) + ", key " + shape_text(key.extents()) +
           "; expected fewer than 2^24 positions";
  });
}

}  // namespace detail

/// Checks the operands and ingredients of a call against each other and gathers them.
template <class T, element Q, element K, element V, class... I>
problem<T> make_problem(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        I const&... ingredients) {
  using namespace detail;
  static_assert((true && ... && check_ingredient<I>()));
  check_operands(query, key, value);
  problem<T> p;
  p.query = source<T>(query);
  p.key = source<T>(key);
  p.value = source<T>(value);
  p.heads = query.extent(2);
  p.key_heads = key.extent(2);
  p.value_heads = value.extent(2);
  p.dim = query.extent(3);
  p.value_dim = value.extent(3);
  p.sequence = {.count = query.extent(0),
                .rows = query.extent(1),
                .keys = key.extent(1),
                .packed = {},
                .order = {},
                .panel_rows = wanted_panel_rows(ingredients...)};
  documents const packed = one_of<is_documents>(documents{}, ingredients...);
  if ((false || ... || std::is_same_v<I, documents>)) {
    packed.check(query.extent(0), query.extent(1), key.extent(1));
    p.sequence.count = static_cast<index_t>(packed.queries.size()) - 1;
    p.sequence.packed = packed;
  }
  p.position = make_standing(one_of<is_positions>(nullptr, ingredients...));
  if constexpr ((false || ... || arrangement<I>)) {
    static_assert((0 + ... + int(arrangement<I>)) == 1, "heed: a call takes one arrangement");
    static_assert(
        !(false || ... || is_documents.template operator()<I>()) &&
            !(false || ... || is_positions.template operator()<I>()),
        "heed: an arrangement says itself which sequences there are and where rows stand");
    p.sequence.order = view_of_arrangement(ingredients...);
    p.sequence.groups = p.sequence.order.groups();
    p.sequence.panel_rows = p.sequence.order.panel_rows();
    p.sequence.count = query.extent(0) * p.sequence.groups;
  }

  scale const the_scale = one_of<is_scale>(
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(p.dim, 1)))}, ingredients...);
  p.scale = static_cast<T>(the_scale.value);
  if constexpr ((false || ... || is_a<I, row_scale>)) {
    auto const factors = one_of<is_row_scale>(nullptr, ingredients...);
    heed::detail::check_row_view("row_scale", factors.factors, p.shape());
    if (factors.gradient.data() != nullptr)
      heed::detail::check_row_view("the gradient of row_scale", factors.gradient, p.shape());
    p.row_scale = factors.factors;
  }
  (check_against(ingredients, p.shape()), ...);
  return p;
}

}  // namespace heed::attend
