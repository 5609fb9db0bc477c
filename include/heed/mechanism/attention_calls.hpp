#pragma once

#include <heed/softmax.hpp>

#include <cmath>
#include <tuple>

/// What mechanisms share that are made of several calls of attention: their ingredients and their memory.
namespace heed::detail {

inline constexpr auto is_for_every_call = []<class T>() {
  using namespace attend::detail;
  return is_executor.template operator()<T>() || is_scratch.template operator()<T>();
};

/// The factor of the products; there is no gradient of it.
template <class... I>
double scale_of(index_t dim, I const&... ingredients) {
  scale const given = attend::one_of<attend::detail::is_scale>(
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)))}, ingredients...);
  require(given.gradient == nullptr,
          [] { return "scale carries a gradient, which this mechanism does not have"; });
  return given.value;
}

/// Calls f with the executor and the scratch memory of a call, as far as they are given.
template <class F, class... I>
void with_machine(F&& f, I const&... ingredients) {
  std::apply(f, attend::all_of<is_for_every_call>(ingredients...));
}

/// The memory of a thread for the compositions of one kind, which hold it while they call others.
template <class Kind>
workspace& workspace_of() {
  thread_local workspace own;
  return own;
}

/// What lay_out(arena&) makes, in memory of this kind.
template <class Kind, class LayOut>
auto laid_out(LayOut lay_out) {
  arena size;
  lay_out(size);
  arena memory(workspace_of<Kind>().reserve(size.used()));
  return lay_out(memory);
}

/// A tensor of a composition, heads outside positions.
template <class T>
tensor_view<T, 4> take_rows(arena& memory, index_t batches, index_t rows, index_t heads,
                            index_t dim) {
  return bhnd(memory.take<T>(batches * rows * heads * dim), batches, heads, rows, dim);
}

/// out and lse of a call of attention.
template <class T>
partial_attention<T> take_result(arena& memory, index_t batches, index_t rows, index_t heads,
                                 index_t dim) {
  return {take_rows<T>(memory, batches, rows, heads, dim),
          {memory.take<T>(batches * heads * rows), {batches, heads, rows}}};
}

/// Heads r, r + group, r + 2 group, ... of a tensor: of every group of heads the r-th.
template <class E>
tensor_view<E, 4> every_head(tensor_view<E, 4> all, index_t r, index_t group) {
  return {all.data() + r * all.stride(2),
          {all.extent(0), all.extent(1), all.extent(2) / group, all.extent(3)},
          {all.stride(0), all.stride(1), all.stride(2) * group, all.stride(3)}};
}

template <class E>
void fill_zero(tensor_view<E, 4> all) {
  for (index_t b = 0; b < all.extent(0); ++b)
    for (index_t i = 0; i < all.extent(1); ++i)
      for (index_t h = 0; h < all.extent(2); ++h)
        for (index_t d = 0; d < all.extent(3); ++d) all(b, i, h, d) = E(0);
}

/// Checks queries, keys and values of one sequence against each other, and what is written from them.
template <class T, class Q, class K, class V, class O>
void check_self(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                char const* out_name, tensor_view<O, 4> out) {
  attend::make_problem<T>(query, key, value);
  require(query.extent(1) == key.extent(1), [&] {
    return "query has shape " + shape_text(query.extents()) + ", key " + shape_text(key.extents()) +
           "; expected as many positions, those of one sequence";
  });
  expect_like(out_name, out, {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
              "query with the head_dim of value");
  expect_memory(out_name, out);
}

}  // namespace heed::detail
