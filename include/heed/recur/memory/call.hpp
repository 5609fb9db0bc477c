#pragma once

#include <heed/parallel/ingredients.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/recur/memory/products.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/rows.hpp>

#include <string>

/// What every memory that learns while it reads needs of a call: operands, sequences, ingredients.
namespace heed::recur::memory {

using heed::detail::executor_of;
using heed::detail::is_documents;
using heed::detail::is_executor;
using heed::detail::is_scratch;
using heed::detail::scratch_of;

/// The rows and keys of a sequence: of a batch entry, or a document packed in the only one.
struct sequence_place {
  index_t sequence, batch, first_row, rows, first_key, keys;
};

struct sequences {
  index_t batches = 0, rows = 0, keys = 0;
  documents packed;

  index_t count() const {
    return packed.queries.empty() ? batches : static_cast<index_t>(packed.queries.size()) - 1;
  }
  sequence_place operator[](index_t s) const {
    if (packed.queries.empty()) return {s, s, 0, rows, 0, keys};
    auto const g = static_cast<std::size_t>(s);
    return {s,
            0,
            packed.queries[g],
            packed.queries[g + 1] - packed.queries[g],
            packed.keys[g],
            packed.keys[g + 1] - packed.keys[g]};
  }
  index_t most_rows() const {
    index_t most = 0;
    for (index_t s = 0; s < count(); ++s) most = std::max(most, (*this)[s].rows);
    return most;
  }
  index_t most_keys() const {
    index_t most = 0;
    for (index_t s = 0; s < count(); ++s) most = std::max(most, (*this)[s].keys);
    return most;
  }
};

/// A tensor [batch, position, head] as one with numbers for channels.
template <class T>
tensor_view<T, 4> with_channel(tensor_view<T, 3> view) {
  return {view.data(),
          {view.extent(0), view.extent(1), view.extent(2), 1},
          {view.stride(0), view.stride(1), view.stride(2), 1}};
}

/// The operands of a call with their element types erased. Heads of keys and values have a memory each, which the
/// heads of queries share in groups.
template <class T>
struct operands {
  source<T> query, key, value;
  sequences sequence;
  index_t heads = 0, query_heads = 0, dim = 0, value_dim = 0;

  index_t group() const { return heads == 0 ? 0 : query_heads / heads; }
};

/// Checks the operands of a call against each other and gathers them.
template <class T, element Q, element K, element V, class... I>
operands<T> operands_of(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        I const&... ingredients) {
  using namespace heed::detail;
  expect_operands(query, key, value);
  expect_extent("key", key, 3, query.extent(3), "head_dim, that of query");
  expect_extent("value", value, 2, key.extent(2), "heads, those of key");
  expect_divisor("key", key, query.extent(2), "query");
  operands<T> all;
  all.query = source<T>(query);
  all.key = source<T>(key);
  all.value = source<T>(value);
  all.heads = key.extent(2);
  all.query_heads = query.extent(2);
  all.dim = key.extent(3);
  all.value_dim = value.extent(3);
  all.sequence = {query.extent(0), query.extent(1), key.extent(1), {}};
  if constexpr ((false || ... || is_documents.template operator()<I>())) {
    all.sequence.packed = one_of<is_documents>(documents{}, ingredients...);
    all.sequence.packed.check(query.extent(0), query.extent(1), key.extent(1));
  }
  return all;
}

/// Checks a tensor that has a row for each query and one that has one for each key.
template <class V>
void expect_rows(char const* name, V const& view, std::array<index_t, 4> const& expected) {
  heed::detail::expect_memory(name, view);
  require(view.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           shape_text(expected);
  });
  if constexpr (!std::is_const_v<typename V::element_type>)
    heed::detail::expect_distinct_elements(name, view);
}

/// The rows that are read after some keys of a sequence: the last query is read after the last key.
struct row_span {
  index_t first, count;
};
inline row_span rows_after(sequence_place const& at, index_t first_key, index_t keys) {
  index_t const shift = at.keys - at.rows;
  index_t const first = std::max<index_t>(0, first_key - shift);
  return {first, std::max<index_t>(0, first_key + keys - shift - first)};
}

/// Some rows of a tensor into padded ones.
template <class T, class Arch>
void load_rows(source<T> const& from, index_t batch, index_t head, index_t first, index_t count,
               panel<T> to) {
  using math = products<T, Arch>;
  if (count == 0) return;
  from.copy(batch, head, first, count, to.data, to.stride);
  index_t const dim = from.dim();
  if (dim < math::padded(dim))
    for (index_t r = 0; r < count; ++r) std::fill(to[r] + dim, to[r] + math::padded(dim), T(0));
}

/// A matrix of a state into padded rows; zeros if there is no state.
template <class T, class S, class Arch>
void load_state(tensor_view<S, 4> from, index_t sequence, index_t head, index_t rows,
                index_t columns, panel<T> to) {
  using math = products<T, Arch>;
  if (from.data() == nullptr) return math::fill(rows, columns, to);
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < columns; ++c) to[r][c] = static_cast<T>(from(sequence, head, r, c));
    std::fill(to[r] + columns, to[r] + math::padded(columns), T(0));
  }
}
template <class T>
void store_state(panel<T> from, tensor_view<T, 4> to, index_t sequence, index_t head) {
  if (to.data() == nullptr) return;
  for (index_t r = 0; r < to.extent(2); ++r)
    for (index_t c = 0; c < to.extent(3); ++c) to(sequence, head, r, c) = from[r][c];
}

/// The most tokens that are worked on at once.
inline constexpr index_t most_together = 64;

}  // namespace heed::recur::memory
