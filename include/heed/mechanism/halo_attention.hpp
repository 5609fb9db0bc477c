#pragma once

#include <heed/neighborhood.hpp>
#include <heed/score/halo_scores.hpp>

#include <cmath>

/// Scaling Local Self-Attention for Parameter Efficient Visual Backbones (HaloNet).
///
/// A picture is cut into blocks, and the queries of a block meet its keys and those of a halo around it. A query adds to
/// the score of each place of its window its product with a learned vector for the row and one for the column, relative
/// to where in its block it stands:
///
///     s = scale q.k + q.(rows[u_y - a_y + w_y - 1] + columns[u_x - a_x + w_x - 1]),   w = block + 2 halo,
///
/// with the query at a in its block and the key at u in the window.
namespace heed {

/// What a window meets where it leaves the canvas. `zero`, as published: keys and values of zeros, which take part with
/// the score of their place, so that they take weight and give nothing. `mask`: nothing.
enum class halo_border { zero, mask };

/// The parameters of halo_attention().
///
///   blocks           canvas, block, halo, query_stride
///   vectors          for each axis [2 w - 1, head_dim], shared by the heads
///   scale_positions  whether scale multiplies the products with vectors too
template <std::size_t d, element R = float>
struct halo {
  halo_blocks<d> blocks;
  std::array<tensor_view<R const, 2>, d> vectors;
  halo_border border = halo_border::zero;
  bool scale_positions = false;
};

namespace detail {

inline workspace& halo_workspace() {
  thread_local workspace own;
  return own;
}

template <std::size_t d, class R>
void check_halo_vectors(char const* name, halo_blocks<d> const& blocks,
                        std::array<tensor_view<R, 2>, d> const& vectors, index_t dim) {
  for (std::size_t a = 0; a < d; ++a)
    require(vectors[a].extent(0) == 2 * blocks.window()[a] - 1 && vectors[a].extent(1) == dim, [&] {
      return std::string(name) + "[" + std::to_string(a) + "] has shape " +
             shape_text(vectors[a].extents()) + "; expected [" +
             std::to_string(2 * blocks.window()[a] - 1) + ", " + std::to_string(dim) +
             "] (relative position, head_dim)";
    });
}

inline constexpr auto is_halo_lse = []<class T>() { return attend::detail::is_a<T, lse_into>; };
inline constexpr auto is_for_engine = []<class T>() { return !attend::detail::is_a<T, lse_into>; };

/// Checks a call, computes the products of its queries and calls f(scores, room for its lse).
template <class T, std::size_t d, class R, class Q, class K, class V, class F, class... I>
void with_halo_scores(halo<d, R> const& how,
                      std::type_identity_t<halo_order<d> const*> for_gradients, T factor,
                      tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value, F f,
                      I const&... ingredients) {
  using namespace attend::detail;
  static_assert((true && ... &&
                 (is_scale.template operator()<I>() || is_executor.template operator()<I>() ||
                  is_scratch.template operator()<I>() || is_a<I, lse_into> ||
                  is_lse_gradient.template operator()<I>())),
                "heed: halo attention takes scale, lse_into, lse_gradient, executor and scratch");
  auto const run_on = attend::executor_of(ingredients...);
  halo_order<d> const order(how.blocks, 1);
  call_shape const shape = attend::make_problem<T>(query, key, value, order).shape();
  check_halo_vectors("halo.vectors", how.blocks, how.vectors, query.extent(3));
  auto const lay_out = [&](arena& memory, auto then) {
    tensor_view<T, 3> const lse(memory.take<T>(shape.batches * shape.heads * shape.rows),
                                {shape.batches, shape.heads, shape.rows});
    halo_scores<T, d> scores(memory, how.blocks, for_gradients, shape, query.extent(3),
                             run_on.concurrency());
    then(scores, lse);
  };
  arena total;
  lay_out(total, [](auto&, auto const&) {});
  arena memory(halo_workspace().reserve(total.used()));
  lay_out(memory, [&](auto& scores, auto const& lse) {
    scores.multiply(source<T>(query), how.vectors, factor, run_on);
    f(scores, lse);
  });
}

template <class T, std::size_t d, class R, class... I>
T halo_factor(halo<d, R> const& how, index_t dim, I const&... ingredients) {
  double const usual = 1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)));
  return how.scale_positions
             ? static_cast<T>(
                   attend::one_of<attend::detail::is_scale>(scale{usual}, ingredients...).value)
             : T(1);
}

}  // namespace detail

/// Softmax attention of every block of queries to the block and its halo.
///
///     halo_attention(q, k, v, out, halo<2>{.blocks = {.canvas = {64, 64}, .block = {8, 8}, .halo = {3, 3}},
///                                          .vectors = {rows, columns}});
///
///   query, out    [batch, queries, heads, …], row-major on the canvas, or on one that is smaller by query_stride
///   key, value    [batch, tokens, heads of their own, …], row-major on the canvas
///
/// Takes scale, lse_into (zeros beyond the border count), an executor and scratch. The products with vectors are kept in
/// memory of the calling thread that only grows.
template <std::size_t d, element R, element Q, element K, element V, element O,
          class... Ingredients>
void halo_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, halo<d, R> const& how,
                    Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, R, O>;
  static_assert(std::is_same_v<T, compute_type<O>>,
                "heed: with an operand in double, out is in double");
  auto const run_on = attend::executor_of(ingredients...);
  auto const lse = attend::one_of<detail::is_halo_lse>(lse_into<T>{}, ingredients...).out;
  T const factor = detail::halo_factor<T>(how, query.extent(3), ingredients...);
  detail::with_halo_scores<T>(
      how, nullptr, factor, query, key, value,
      [&](auto const& scores, auto const& own_lse) {
        if (lse.data() != nullptr)
          detail::check_row_view(
              "lse", lse,
              {.batches = query.extent(0), .heads = query.extent(2), .rows = query.extent(1)});
        std::apply(
            [&](auto const&... for_engine) {
              attention(query, key, value, out, scores.groups(), scores.added_in_groups(),
                        lse_into<T>{own_lse}, for_engine...);
            },
            attend::all_of<detail::is_for_engine>(ingredients...));
        if (how.border == halo_border::zero)
          scores.each_phantom_lse(run_on, [&](index_t b, index_t h, index_t i, T phantoms) {
            T const keys = own_lse(b, h, i);
            T const share = 1 / (1 + std::exp(phantoms - keys));
            own_lse(b, h, i) =
                std::max(phantoms, keys) + std::log1p(std::exp(-std::abs(phantoms - keys)));
            for (index_t c = 0; c < out.extent(3); ++c)
              out(b, i, h, c) = convert_element<O>(share * convert_element<T>(out(b, i, h, c)));
          });
        if (lse.data() == nullptr) return;
        for (index_t b = 0; b < lse.extent(0); ++b)
          for (index_t h = 0; h < lse.extent(1); ++h)
            for (index_t i = 0; i < lse.extent(2); ++i) lse(b, h, i) = own_lse(b, h, i);
      },
      ingredients...);
}

/// The gradients of halo_attention() from its saved out and lse; see attention_backward(). dvectors are shaped like
/// halo.vectors. Takes lse_gradient too; of a scale that has a gradient it is written.
template <std::size_t d, element R, element Q, element K, element V, element O, class L, element DO,
          element DQ, element DK, element DV, element DR, class... Ingredients>
void halo_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<O, 4> out, tensor_view<L, 3> lse,
                             tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                             tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                             std::array<tensor_view<DR, 2>, d> const& dvectors,
                             halo<d, R> const& how, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, R, O>;
  static_assert(std::is_same_v<T, compute_type<O>>,
                "heed: with an operand in double, out is in double");
  auto const run_on = attend::executor_of(ingredients...);
  T const factor = detail::halo_factor<T>(how, query.extent(3), ingredients...);
  halo_order<d> const order(how.blocks, attend::panel_lanes<T>);
  detail::with_halo_scores<T>(
      how, &order, factor, query, key, value,
      [&](auto& scores, auto const&) {
        detail::check_halo_vectors("dvectors", how.blocks, dvectors, query.extent(3));
        attention_backward(query, key, value, out, lse, dout, dquery, dkey, dvalue, order,
                           order.pattern(), scores.added_in_order(), ingredients...);
        auto const added = scores.added_in_groups();
        attend::problem<T> const p =
            attend::make_problem<T>(query, key, value, scores.groups(), added, ingredients...);
        auto const saved =
            attend::make_saved_result<T>(p, query, value, out, lse, dout, ingredients...);
        scores.sum_gradients(p, saved, attend::make_sentence(added), run_on,
                             attend::scratch_of(ingredients...));
        if (how.border == halo_border::zero)
          scores.add_phantom_gradients(run_on, [&](index_t b, index_t h, index_t i) {
            T slope = saved.dlse.data() == nullptr ? T(0) : saved.dlse(b, h, i);
            // Rounded once by name: what a compiler makes of a product and a sum differs between executors.
            for (index_t c = 0; c < out.extent(3); ++c)
              slope = std::fma(-convert_element<T>(dout(b, i, h, c)),
                               convert_element<T>(out(b, i, h, c)), slope);
            return std::pair(saved.lse(b, h, i), slope);
          });
        scores.finish(source<T>(query), factor, dquery, dvectors, run_on);
        double* const dscale =
            attend::one_of<attend::detail::is_scale>(scale{0}, ingredients...).gradient;
        if (dscale != nullptr && how.scale_positions) *dscale += scores.dfactor(how.vectors);
      },
      ingredients...);
}

}  // namespace heed
