#pragma once

#include <heed/recur/features/row_functions.hpp>
#include <heed/recur/problem.hpp>
#include <heed/view/copy.hpp>

#include <array>
#include <cmath>
#include <tuple>
#include <utility>

/// What mechanisms of several passes share: tensors between the passes, and functions of all numbers of a tensor.
namespace heed::recur {

using tensor_shape = std::array<index_t, 4>;

/// Tensors [batch, position, head, dim] between the passes of one mechanism, heads outside positions, in memory of the
/// calling thread that only grows. They last until the next call for the same `Page`, a type of the page's own.
template <class Page, class T, class... Shapes>
std::array<tensor_view<T, 4>, sizeof...(Shapes)> page_tensors(Shapes const&... shapes) {
  thread_local workspace own;
  auto const lay_out = [&](arena memory) {
    auto const make = [&](tensor_shape const& e) {
      return bhnd(memory.take<T>(e[0] * e[1] * e[2] * e[3]), e[0], e[2], e[1], e[3]);
    };
    std::array<tensor_view<T, 4>, sizeof...(Shapes)> const tensors{make(shapes)...};
    return std::pair(tensors, memory.used());
  };
  return lay_out(arena(own.reserve(lay_out(arena()).second))).first;
}

/// Numbers of tokens, [batch, position, head], as rows of all heads: [batch, position, 1, head].
template <class E>
tensor_view<E, 4> heads_in_row(tensor_view<E, 3> view) {
  auto const& e = view.extents();
  auto const& s = view.strides();
  return {view.data(), {e[0], e[1], 1, e[2]}, {s[0], s[1], 0, s[2]}};
}

/// A tensor with one number a head, [batch, position, head, 1], as numbers of tokens.
template <class E>
tensor_view<E, 3> without_channels(tensor_view<E, 4> view) {
  auto const& e = view.extents();
  auto const& s = view.strides();
  return {view.data(), {e[0], e[1], e[2]}, {s[0], s[1], s[2]}};
}

/// A tensor [batch, position, head, dim] whose first axes have an extent of 1 for those that it lacks.
template <class E, int Rank>
tensor_view<E, 4> with_first_axes(tensor_view<E, Rank> view) {
  tensor_shape extents{1, 1, 1, 1}, strides{};
  std::copy_n(view.extents().begin(), Rank, extents.end() - Rank);
  std::copy_n(view.strides().begin(), Rank, strides.end() - Rank);
  return {view.data(), extents, strides};
}

/// A copy of the numbers of a state, to work with until nothing can be refused any more; null of null.
template <class Page, int Rank>
tensor_view<double, Rank> page_copy(tensor_view<double, Rank> from) {
  if (from.data() == nullptr) return {};
  auto const all = with_first_axes(from);
  auto const copy = page_tensors<Page, double>(all.extents())[0];
  copy_elements(all, copy);
  typename tensor_view<double, Rank>::index_array strides;
  std::copy_n(copy.strides().end() - Rank, Rank, strides.begin());
  return {copy.data(), from.extents(), strides};
}

/// The sequences of a call; of a tensor that has a row for each key those of the keys.
inline sequence_list sequences_of(tensor_shape const& query, tensor_shape const& key,
                                  documents const& packed) {
  return {packed.keys.empty() ? key[0] : static_cast<index_t>(packed.keys.size()) - 1, query[1],
          key[1], packed};
}
/// The same of the ingredients of a call, checked.
template <class... I>
sequence_list sequences_among(tensor_shape const& query, tensor_shape const& key,
                              I const&... ingredients) {
  documents const packed = one_of<detail::is_documents>(documents{}, ingredients...);
  if constexpr ((false || ... || std::same_as<I, documents>))
    packed.check(key[0], query[1], key[1]);
  return sequences_of(query, key, packed);
}

/// Calls f(ingredients...), with the scale dim^-1/2 unless they name one.
template <class F, class... I>
void with_default_scale(index_t dim, F const& f, I const&... ingredients) {
  if constexpr ((false || ... || detail::is_scale.template operator()<I>()))
    f(ingredients...);
  else
    f(ingredients...,
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1))), nullptr});
}

/// Calls f(batch, head, first row, rows) for blocks of the rows of a tensor of this shape.
template <class F>
void for_row_blocks(any_executor const& run_on, tensor_shape const& shape, F const& f) {
  constexpr index_t together = 32;
  index_t const rows = shape[1], heads = shape[2], blocks = (rows + together - 1) / together;
  parallel_for(run_on, shape[0] * heads * blocks, [&](index_t piece, index_t) {
    index_t const first = piece % blocks * together;
    f(piece / blocks / heads, piece / blocks % heads, first, std::min(together, rows - first));
  });
}

/// to = a . b of each row, summed in double; [batch, row, head].
template <class T>
void dot_rows(any_executor const& run_on, source<double> const& a, source<double> const& b,
              tensor_view<T, 3> to) {
  index_t const dim = a.dim();
  for_row_blocks(run_on, {to.extent(0), to.extent(1), to.extent(2), dim},
                 [&](index_t n, index_t h, index_t first, index_t count) {
                   double* const scratch = feature_scratch<double>(2 * count * dim);
                   auto const x = a.rows(n, h, first, count, scratch);
                   auto const y = b.rows(n, h, first, count, scratch + count * dim);
                   for (index_t i = 0; i < count; ++i)
                     to(n, first + i, h) =
                         static_cast<T>(dot_row<xsimd::default_arch>(dim, x[i], y[i]));
                 });
}

/// to = f(from...), number by number in whole registers; `to` may be one of the one to three `from`.
template <class T, class F, class... From>
void transform(any_executor const& run_on, sink<T> const& to, F const& f, From const&... from) {
  for_row_blocks(run_on, to.extents(), [&](index_t b, index_t h, index_t first, index_t count) {
    index_t const dim = to.extents()[3];
    T* scratch = feature_scratch<T>((1 + static_cast<index_t>(sizeof...(From))) * count * dim);
    auto const room = [&] { return std::exchange(scratch, scratch + count * dim); };
    T* const target = to.in_place() ? to.row(b, h, first) : room();
    index_t const stride = to.in_place() ? to.row_stride() : dim;
    std::tuple const blocks{from.rows(b, h, first, count, room())...};
    for (index_t r = 0; r < count; ++r)
      std::apply(
          [&](auto const&... block) {
            transform_row<xsimd::default_arch>(dim, target + r * stride, f, block[r]...);
          },
          blocks);
    if (!to.in_place()) to.store(b, h, first, count, target, dim);
  });
}

/// Some rows of a tensor for a feature map; row 0 of the tensor stands at `first_position`.
template <class T>
feature_rows<T> rows_for_map(source<T> const& x, index_t b, index_t h, index_t first, index_t count,
                             index_t first_position) {
  // Maps have scratch of their own.
  thread_local workspace own;
  auto const bytes = arena::bytes<T>(count * x.dim());
  row_block<T> const block =
      x.rows(b, h, first, count,
             arena(own.reserve(static_cast<std::size_t>(bytes))).take<T>(count * x.dim()));
  return {block.data, block.stride, count, x.dim(), b, h, first_position + first};
}

/// The features of all rows of a tensor, where a map is not fused because they are needed again.
template <class T>
void write_features(any_executor const& run_on, feature_map_view<T> const& map, side of,
                    source<T> const& x, index_t first_position, tensor_view<T, 4> phi) {
  for_row_blocks(run_on, x.extents(), [&](index_t b, index_t h, index_t first, index_t count) {
    map.apply(of, rows_for_map(x, b, h, first, count, first_position), &phi(b, first, h, 0),
              phi.stride(1));
  });
}

/// d loss / d x from d loss / d phi, which is as large as phi and lies like it.
template <class T>
void write_feature_gradient(any_executor const& run_on, feature_map_view<T> const& map, side of,
                            source<T> const& x, index_t first_position, tensor_view<T, 4> phi,
                            tensor_view<T, 4> dphi, sink<T> const& dx) {
  for_row_blocks(run_on, x.extents(), [&](index_t b, index_t h, index_t first, index_t count) {
    thread_local workspace own;
    index_t const dim = x.dim();
    T* const room = arena(own.reserve(static_cast<std::size_t>(arena::bytes<T>(count * dim))))
                        .take<T>(count * dim);
    map.differentiate(of, rows_for_map(x, b, h, first, count, first_position), &phi(b, first, h, 0),
                      &dphi(b, first, h, 0), phi.stride(1), room, dim);
    dx.store(b, h, first, count, room, dim);
  });
}

}  // namespace heed::recur
