#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/recur/segments.hpp>

/// Agent Attention: On the Integration of Softmax and Linear Attention. A few agents attend to the keys, and the queries to the
/// agents:
///
///     V_A = softmax(scale A K^T + B_1) V,      out = softmax(scale Q A^T + B_2) V_A
///
/// That is linear attention with the features softmax(scale Q A^T) of queries and softmax(scale A K^T) of keys, the latter over
/// positions. Not causal. Agents pooled from the queries of a grid, biases and the convolution of values: agent_grid.hpp.
///
/// Of a stream of keys only V_A and its lse need be kept, n (value_dim + 1) numbers a head: agent_absorb, then agent_read.
namespace heed {

/// Ingredients of the softmax of the agents over the keys alone: bias(B_1), or a scale or a pattern of its own.
template <class... Own>
struct agent_aggregation {
  std::tuple<Own...> own;

  explicit agent_aggregation(Own const&... ingredients) : own(ingredients...) {}
};

/// Ingredients of the softmax of the queries over the agents alone: bias(B_2), or a scale of its own.
template <class... Own>
struct agent_broadcast {
  std::tuple<Own...> own;

  explicit agent_broadcast(Own const&... ingredients) : own(ingredients...) {}
};

namespace detail {

struct agent_memory;

inline constexpr auto is_agent_aggregation = []<class T>() {
  return attend::detail::is_a<T, agent_aggregation>;
};
inline constexpr auto is_agent_broadcast = []<class T>() {
  return attend::detail::is_a<T, agent_broadcast>;
};

/// Calls f with a softmax's own ingredients, the executor and scratch, and the scale unless it has one of its own.
template <class F, class... Own, class... I>
void with_agent_ingredients(F&& f, std::tuple<Own...> const& own, I const&... ingredients) {
  static_assert(
      (true && ... &&
       (is_for_every_call.template operator()<I>() ||
        attend::detail::is_scale.template operator()<I>() ||
        is_agent_aggregation.template operator()<I>() ||
        is_agent_broadcast.template operator()<I>())),
      "heed: agent attention takes scale, agent_aggregation, agent_broadcast, an executor "
      "and scratch");
  auto const machine = attend::all_of<is_for_every_call>(ingredients...);
  if constexpr ((false || ... || attend::detail::is_scale.template operator()<Own>()))
    std::apply(f, std::tuple_cat(own, machine));
  else
    std::apply(
        f, std::tuple_cat(own, machine, attend::all_of<attend::detail::is_scale>(ingredients...)));
}
template <class F, class... I>
void with_aggregation(F&& f, I const&... ingredients) {
  with_agent_ingredients(
      f, attend::one_of<is_agent_aggregation>(agent_aggregation<>(), ingredients...).own,
      ingredients...);
}
template <class F, class... I>
void with_broadcast(F&& f, I const&... ingredients) {
  with_agent_ingredients(
      f, attend::one_of<is_agent_broadcast>(agent_broadcast<>(), ingredients...).own,
      ingredients...);
}

/// Another place for the gradient of the scale that both softmaxes share.
template <class Ingredient>
Ingredient const& scale_gradient_of(Ingredient const& ingredient, double*, double&) {
  return ingredient;
}
inline scale scale_gradient_of(scale const& given, double* shared, double& target) {
  return given.gradient != nullptr && given.gradient == shared ? scale{given.value, &target}
                                                               : given;
}

inline scale diffusion_scale(index_t dim) {
  return {std::pow(static_cast<double>(std::max<index_t>(dim, 1)), -0.15)};
}
inline constexpr double diffusion_value_share = 0.075;

template <class T, class Q, class K, class V, class A, class O, class... I>
void check_agents(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                  tensor_view<A, 4> agents, char const* out_name, tensor_view<O, 4> out,
                  I const&... ingredients) {
  index_t const heads = agents.extent(2);
  require(agents.extent(0) == query.extent(0) && agents.extent(3) == query.extent(3) && heads > 0 &&
              query.extent(2) % heads == 0 && heads % key.extent(2) == 0 &&
              heads % value.extent(2) == 0,
          [&] {
            return "agents has shape " + shape_text(agents.extents()) + "; expected [" +
                   std::to_string(query.extent(0)) + ", agents, heads, " +
                   std::to_string(query.extent(3)) + "], the heads a divisor of the " +
                   std::to_string(query.extent(2)) +
                   " of query and a multiple of those of key and value";
          });
  with_aggregation([&](auto const&... own) { attend::make_problem<T>(agents, key, value, own...); },
                   ingredients...);
  tensor_view<A, 4> const values = agents;  // of the shape that counts, but for the dim
  with_broadcast(
      [&](auto const&... own) { attend::make_problem<T>(query, agents, values, own...); },
      ingredients...);
  expect_like(out_name, out, {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
              "query with the head_dim of value");
  expect_memory(out_name, out);
}

}  // namespace detail

/// Attention through agents.
///
///   query [batch, N, heads, dim], key [batch, M, key_heads, dim], value [batch, M, value_heads, value_dim]
///   agents   [batch, n, agent_heads, dim], the heads usually those of query: a divisor of them, a multiple of those of key and
///            value
///   out      [batch, N, heads, value_dim]
///
/// Ingredients: scale, by default 1 / sqrt(head_dim), of both softmaxes; agent_aggregation; agent_broadcast; an executor; scratch.
template <element Q, element K, element V, element A, element O, class... Ingredients>
void agent_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<A, 4> agents, tensor_view<O, 4> out,
                     Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, A, O>;
  detail::check_agents<T>(query, key, value, agents, "out", out, ingredients...);
  auto const seen = detail::laid_out<detail::agent_memory>([&](arena& memory) {
    return detail::take_rows<T>(memory, agents.extent(0), agents.extent(1), agents.extent(2),
                                value.extent(3));
  });
  detail::with_aggregation([&](auto const&... own) { attention(agents, key, value, seen, own...); },
                           ingredients...);
  detail::with_broadcast([&](auto const&... own) { attention(query, agents, seen, out, own...); },
                         ingredients...);
}

/// The gradients of agent_attention with the ingredients of the forward call, which it computes again; those of scale and of the
/// biases are written where they carry a `gradient`. Agents pooled from queries pass dagents on to pool_agents_backward.
template <element Q, element K, element V, element A, element DO, element DQ, element DK,
          element DV, element DA, class... Ingredients>
void agent_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                              tensor_view<V, 4> value, tensor_view<A, 4> agents,
                              tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                              tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                              tensor_view<DA, 4> dagents, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, A, DO, DQ, DK, DV, DA>;
  detail::check_agents<T>(query, key, value, agents, "dout", dout, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  detail::expect_like("dagents", dagents, agents.extents(), "agents");
  detail::expect_distinct_elements("dagents", dagents);
  index_t const batches = query.extent(0), n = agents.extent(1), agent_heads = agents.extent(2);
  struct layout {
    partial_attention<T> seen, result;
    tensor_view<T, 4> dseen, dagents;
  };
  layout const own = detail::laid_out<detail::agent_memory>([&](arena& memory) {
    return layout{
        detail::take_result<T>(memory, batches, n, agent_heads, value.extent(3)),
        detail::take_result<T>(memory, batches, query.extent(1), query.extent(2), value.extent(3)),
        detail::take_rows<T>(memory, batches, n, agent_heads, value.extent(3)),
        detail::take_rows<T>(memory, batches, n, agent_heads, query.extent(3))};
  });
  // Either softmax writes the gradient of the scale for itself.
  double dscale = 0;
  detail::with_aggregation(
      [&](auto const&... mine) {
        attention(agents, key, value, own.seen.out, lse_into<T>{own.seen.lse}, mine...);
      },
      ingredients...);
  detail::with_broadcast(
      [&](auto const&... mine) {
        attention(query, agents, own.seen.out, own.result.out, lse_into<T>{own.result.lse},
                  mine...);
        attention_backward(query, agents, own.seen.out, own.result.out, own.result.lse, dout,
                           dquery, dagents, own.dseen, mine...);
      },
      ingredients...);
  double* const shared =
      attend::one_of<attend::detail::is_scale>(scale{0}, ingredients...).gradient;
  detail::with_aggregation(
      [&](auto const&... mine) {
        attention_backward(agents, key, value, own.seen.out, own.seen.lse, own.dseen, own.dagents,
                           dkey, dvalue, detail::scale_gradient_of(mine, shared, dscale)...);
      },
      ingredients...);
  if (shared != nullptr) *shared += dscale;
  detail::add_scaled(detail::executor_of(ingredients...), T(1), own.dagents, dagents);
}

/// The agents of a stream so far: V_A, and the lse that says how much they have seen. Begin with clear_agents.
template <element T>
using agent_state = partial_attention<T>;

template <element T>
void clear_agents(agent_state<T> const& state) {
  detail::fill_zero(state.out);
  for (index_t b = 0; b < state.lse.extent(0); ++b)
    for (index_t h = 0; h < state.lse.extent(1); ++h)
      for (index_t a = 0; a < state.lse.extent(2); ++a)
        state.lse(b, h, a) = -std::numeric_limits<compute_type<T>>::infinity();
}

/// Has the agents see more keys. state: out [batch, n, agent_heads, value_dim], lse [batch, agent_heads, n]. Ingredients as those
/// of agent_attention; biases have the columns of these keys.
template <element A, element K, element V, element S, class... Ingredients>
void agent_absorb(tensor_view<A, 4> agents, tensor_view<K, 4> key, tensor_view<V, 4> value,
                  agent_state<S> const& state, Ingredients const&... ingredients) {
  using T = compute_type<A, K, V, S>;
  detail::expect_like("the state of the agents", state.out,
                      {agents.extent(0), agents.extent(1), agents.extent(2), value.extent(3)},
                      "agents with the head_dim of value");
  detail::require_lse(state.lse.extents(), "the lse of the agents", state.out.extents());
  struct layout {
    std::array<partial_attention<T>, 2> parts;
  };
  auto const own = detail::laid_out<detail::agent_memory>([&](arena& memory) {
    auto const take = [&] {
      return detail::take_result<T>(memory, agents.extent(0), agents.extent(1), agents.extent(2),
                                    value.extent(3));
    };
    return layout{{take(), take()}};
  });
  detail::with_aggregation(
      [&](auto const&... mine) {
        attention(agents, key, value, own.parts[1].out, lse_into<T>{own.parts[1].lse}, mine...);
      },
      ingredients...);
  copy_elements(state.out, own.parts[0].out);
  for (index_t b = 0; b < state.lse.extent(0); ++b)
    for (index_t h = 0; h < state.lse.extent(1); ++h)
      for (index_t a = 0; a < state.lse.extent(2); ++a)
        own.parts[0].lse(b, h, a) = static_cast<T>(state.lse(b, h, a));
  merge_attention(own.parts, state.out, state.lse);
}

/// What queries learn from the agents, after which they are done: rows do not depend on one another.
template <element Q, element A, element S, element O, class... Ingredients>
void agent_read(tensor_view<Q, 4> query, tensor_view<A, 4> agents, agent_state<S> const& state,
                tensor_view<O, 4> out, Ingredients const&... ingredients) {
  detail::with_broadcast(
      [&](auto const&... own) { attention(query, agents, state.out, out, own...); },
      ingredients...);
}

/// The variant for diffusion models, AgentSD: the second softmax has the scale head_dim^(-0.15), and 0.075 V is added. With as
/// many queries as keys and as many value heads as heads.
template <element Q, element K, element V, element A, element O, class Executor = serial>
void agent_diffusion_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<A, 4> agents,
                               tensor_view<O, 4> out, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, A, O>;
  detail::expect_like("value", value, out.extents(), "out");
  agent_attention(query, key, value, agents, out,
                  agent_broadcast(detail::diffusion_scale(query.extent(3))), run_on);
  detail::add_scaled(run_on, static_cast<T>(detail::diffusion_value_share), value, out);
}

/// The gradients of agent_diffusion_attention.
template <element Q, element K, element V, element A, element DO, element DQ, element DK,
          element DV, element DA, class Executor = serial>
void agent_diffusion_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                        tensor_view<V, 4> value, tensor_view<A, 4> agents,
                                        tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                        tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                        tensor_view<DA, 4> dagents, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, A, DO, DQ, DK, DV, DA>;
  detail::expect_like("value", value, dout.extents(), "dout");
  agent_attention_backward(query, key, value, agents, dout, dquery, dkey, dvalue, dagents,
                           agent_broadcast(detail::diffusion_scale(query.extent(3))), run_on);
  detail::add_scaled(run_on, static_cast<T>(detail::diffusion_value_share), dout, dvalue);
}

}  // namespace heed
