#pragma once

#include <heed/attend/merge.hpp>
#include <heed/score/bias.hpp>
#include <heed/softmax.hpp>

#include <tuple>

/// Keys beside a sequence, in one softmax with its own: registers and text beside a grid of tokens, summaries
/// of what is far, a token that stands for those that were dropped. Two passes, merged by their lse.
///
/// The sequence may be arranged: a neighborhood, and registers that every pixel meets, is
///
///     neighborhood_order<2> const order(around, attend::panel_lanes<float>);
///     attention_with_extra_keys(q, k, v, extra_keys(register_k, register_v), out, order, order.pattern());
namespace heed {

/// Keys without a place in the sequence.
///
///   key, value   [batch, extra, heads of their own, dim]
///   own          ingredients for them alone: a pattern, under which a query stands at the number of its row
///                (or where query_positions says) and extra key t at t; score modifiers; log_weights.
///                Without a pattern every query meets them all
template <element K, element V, class... Own>
struct extra_keys {
  tensor_view<K, 4> key;
  tensor_view<V, 4> value;
  std::tuple<Own...> own;

  extra_keys(tensor_view<K, 4> k, tensor_view<V, 4> v, Own const&... ingredients)
      : key(k), value(v), own(ingredients...) {}
};

/// Keys that count exp(weight) times; -infinity takes one away. Each key's weight is added to its scores.
///
///   weights    [batch or 1, head or 1, extra]
///   gradient   the same shape, in the type of the computation; written by the backward pass. Optional
template <class T, class G = float>
auto log_weights(tensor_view<T, 3> weights, tensor_view<G, 3> gradient = {}) {
  auto const for_any_row = []<class U>(tensor_view<U, 3> view) {
    auto const& [batch, head, extra] = view.strides();
    return tensor_view<U, 4>(view.data(), {view.extent(0), view.extent(1), 1, view.extent(2)},
                             {batch, head, 0, extra});
  };
  return bias(for_any_row(weights), for_any_row(gradient));
}

namespace detail {

inline workspace& extra_keys_workspace() {
  thread_local workspace own;
  return own;
}

inline constexpr auto is_lse_into = []<class T>() { return attend::detail::is_a<T, lse_into>; };
inline constexpr auto is_for_sequence = []<class T>() {
  return !attend::detail::is_a<T, lse_into>;
};
inline constexpr auto is_for_extra_keys = []<class T>() {
  using namespace attend::detail;
  return is_scale.template operator()<T>() || is_row_scale.template operator()<T>() ||
         is_executor.template operator()<T>() || is_scratch.template operator()<T>() ||
         is_lse_gradient.template operator()<T>() || is_positions.template operator()<T>();
};

/// Calls f with the ingredients of the sequence's keys.
template <class F, class... I>
void with_sequence_ingredients(F&& f, I const&... ingredients) {
  using namespace attend::detail;
  static_assert((true && ... &&
                 !((is_row_observer.template operator()<I>() && !is_a<I, lse_into>) ||
                   is_sweep_observer.template operator()<I>())),
                "heed: of all observers only lse_into sees the extra keys too");
  std::apply(f, attend::all_of<is_for_sequence>(ingredients...));
}

/// Calls f with the ingredients of the extra keys: their own, and those that concern every key.
template <class F, class Own, class... I>
void with_extra_ingredients(F&& f, Own const& own, I const&... ingredients) {
  auto const shared = attend::all_of<is_for_extra_keys>(ingredients...);
  if constexpr ((false || ... || attend::detail::is_positions.template operator()<I>()))
    std::apply(f, std::tuple_cat(own, shared));
  else
    std::apply(f, std::tuple_cat(own, shared, std::tuple(top_left{})));
}

/// Calls f(first row, rows) for pieces of a call's rows.
template <class Executor, class F>
void for_row_pieces(Executor const& run_on, index_t rows, F f) {
  constexpr index_t step = 128;
  parallel_for(run_on, (rows + step - 1) / step, [&](index_t piece, index_t) {
    f(piece * step, std::min(step, rows - piece * step));
  });
}

/// to += more, element by element.
template <element To, element From>
void add_to(tensor_view<To, 4> to, tensor_view<From, 4> more) {
  using T = compute_type<To, From>;
  for (index_t b = 0; b < to.extent(0); ++b)
    for (index_t i = 0; i < to.extent(1); ++i)
      for (index_t h = 0; h < to.extent(2); ++h)
        for (index_t d = 0; d < to.extent(3); ++d)
          to(b, i, h, d) = convert_element<To>(convert_element<T>(to(b, i, h, d)) +
                                               convert_element<T>(more(b, i, h, d)));
}

/// Checks both calls before either writes anything.
template <class T, class Q, class K, class V, class Extra, class O, class L, class... I>
void check_extra_keys(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      Extra const& extra, tensor_view<O, 4> out, tensor_view<L, 3> lse,
                      I const&... ingredients) {
  auto const fits = [&](char const* name, auto const& view, index_t dim) {
    require(view.extent(0) == query.extent(0) && view.extent(1) == extra.key.extent(1) &&
                view.extent(2) > 0 && query.extent(2) % view.extent(2) == 0 &&
                view.extent(3) == dim,
            [&] {
              return std::string("extra_keys.") + name + " has shape " +
                     shape_text(view.extents()) + "; expected [" + std::to_string(query.extent(0)) +
                     ", " + std::to_string(extra.key.extent(1)) + ", a divisor of " +
                     std::to_string(query.extent(2)) + ", " + std::to_string(dim) +
                     "] (batch, extra, head, dim)";
            });
  };
  fits("key", extra.key, query.extent(3));
  fits("value", extra.value, value.extent(3));
  attend::detail::expect_like("out", out,
                              {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
                              "query with the head_dim of value");
  attend::detail::expect_memory("out", out);
  with_sequence_ingredients(
      [&](auto const&... own) {
        call_shape const shape = attend::make_problem<T>(query, key, value, own...).shape();
        if (lse.data() != nullptr) check_row_view("lse", lse, shape);
      },
      ingredients...);
  with_extra_ingredients(
      [&](auto const&... own) { attend::make_problem<T>(query, extra.key, extra.value, own...); },
      extra.own, ingredients...);
}

/// Another place for the gradient of scale, which each part writes for itself.
template <class Ingredient>
Ingredient with_scale_gradient(Ingredient const& ingredient, double&) {
  return ingredient;
}
inline scale with_scale_gradient(scale const& given, double& target) {
  return {given.value, given.gradient == nullptr ? nullptr : &target};
}

}  // namespace detail

/// Softmax attention over the keys that the pattern keeps and over the extra ones:
/// out_i = (sum_j exp(s_ij) v_j + sum_t exp(s_it) value_t) / (sum_j exp(s_ij) + sum_t exp(s_it)).
/// For a step of decoding give it the views of a cache.
///
/// Ingredients are those of attention(); of observers only lse_into, which gets the lse over all keys. Scale,
/// row_scale, positions, executor and scratch concern the extra keys too, everything else the sequence's keys
/// only. The results of the parts are kept in memory of the calling thread that only grows.
template <element Q, element K, element V, element EK, element EV, class... Own, element O,
          class... Ingredients>
void attention_with_extra_keys(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, extra_keys<EK, EV, Own...> const& extra,
                               tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, EK, EV, O>;
  static_assert(std::is_same_v<T, compute_type<O>>,
                "heed: with an operand in double, out is in double");
  auto const lse = attend::one_of<detail::is_lse_into>(lse_into<T>{}, ingredients...).out;
  detail::check_extra_keys<T>(query, key, value, extra, out, lse, ingredients...);
  index_t const batches = out.extent(0), rows = out.extent(1), heads = out.extent(2),
                dim = out.extent(3);
  auto const lay_out = [&](arena memory) {
    std::array<partial_attention<T>, 2> parts;
    for (partial_attention<T>& part : parts) {
      bool const in_place = std::is_same_v<O, T> && &part == &parts[0];
      part.out = bhnd(memory.take<T>(in_place ? 0 : out.size()), batches, heads, rows, dim);
      part.lse = {memory.take<T>(batches * heads * rows), {batches, heads, rows}};
    }
    if constexpr (std::is_same_v<O, T>) parts[0].out = out;
    return std::pair(parts, memory.used());
  };
  workspace& memory = detail::extra_keys_workspace();
  auto const parts = lay_out(arena(memory.reserve(lay_out(arena()).second))).first;

  detail::with_sequence_ingredients(
      [&](auto const&... own) {
        attention(query, key, value, parts[0].out, own..., lse_into<T>{parts[0].lse});
      },
      ingredients...);
  detail::with_extra_ingredients(
      [&](auto const&... own) {
        attention(query, extra.key, extra.value, parts[1].out, own..., lse_into<T>{parts[1].lse});
      },
      extra.own, ingredients...);

  auto const run_on = attend::executor_of(ingredients...);
  detail::for_row_pieces(run_on, rows, [&](index_t first, index_t count) {
    auto const piece = [&](partial_attention<T> const& part) {
      return partial_attention<T>{part.out.slice(1, first, count), part.lse.slice(2, first, count)};
    };
    merge_attention(std::array{piece(parts[0]), piece(parts[1])}, out.slice(1, first, count),
                    lse.data() == nullptr ? lse : lse.slice(2, first, count));
  });
}

/// The gradients of attention_with_extra_keys() from its saved out and lse, with the ingredients of the forward
/// call: each part's backward pass with the result of both. dextra_key and dextra_value are shaped like the
/// extra keys and values; log_weights may carry a gradient. There is none of row_scale.
template <element Q, element K, element V, element EK, element EV, class... Own, element O, class L,
          element DO, element DQ, element DK, element DV, element DEK, element DEV,
          class... Ingredients>
void attention_with_extra_keys_backward(
    tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
    extra_keys<EK, EV, Own...> const& extra, tensor_view<O, 4> out, tensor_view<L, 3> lse,
    tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
    tensor_view<DV, 4> dvalue, tensor_view<DEK, 4> dextra_key, tensor_view<DEV, 4> dextra_value,
    Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, EK, EV, O>;
  static_assert(std::is_same_v<T, compute_type<O>>,
                "heed: with an operand in double, out is in double");
  static_assert((true && ... && !attend::detail::is_a<Ingredients, row_scale>),
                "heed: the backward pass with extra keys takes no row_scale");
  detail::check_extra_keys<T>(query, key, value, extra, out, lse, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  attend::detail::expect_like("dextra_key", dextra_key, extra.key.extents(), "extra_keys.key");
  attend::detail::expect_like("dextra_value", dextra_value, extra.value.extents(),
                              "extra_keys.value");
  attend::detail::expect_like("dout", dout, out.extents(), "out");
  workspace& memory = detail::extra_keys_workspace();
  index_t const rows = query.extent(1);
  auto const from_extra =
      bhnd(arena(memory.reserve(static_cast<std::size_t>(arena::bytes<T>(query.size()))))
               .take<T>(query.size()),
           query.extent(0), query.extent(2), rows, query.extent(3));
  double dscale = 0;
  detail::with_extra_ingredients(
      [&](auto const&... own) {
        attention_backward(query, extra.key, extra.value, out, lse, dout, from_extra, dextra_key,
                           dextra_value, detail::with_scale_gradient(own, dscale)...);
      },
      extra.own, ingredients...);
  detail::with_sequence_ingredients(
      [&](auto const&... own) {
        attention_backward(query, key, value, out, lse, dout, dquery, dkey, dvalue, own...);
      },
      ingredients...);

  double* const scale_gradient =
      attend::one_of<attend::detail::is_scale>(scale{0}, ingredients...).gradient;
  if (scale_gradient != nullptr) *scale_gradient += dscale;
  auto const run_on = attend::executor_of(ingredients...);
  detail::for_row_pieces(run_on, rows, [&](index_t first, index_t count) {
    detail::add_to(dquery.slice(1, first, count), from_extra.slice(1, first, count));
  });
}

}  // namespace heed
