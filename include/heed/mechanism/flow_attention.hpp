#pragma once

#include <heed/recur/causal_flows.hpp>
#include <heed/recur/linear_attention.hpp>

/// Flowformer: Linearizing Transformers with Conservation Flows. Queries are sinks and keys sources of a flow with capacities
/// phi(q_i).phi(k_j); each source's outflow and each sink's inflow is 1. With q^ = phi(q), k^ = phi(k), epsilon = 1e-6 added to
/// every element of both factors of a product in parentheses:
///
///     I_i = (q^_i).(sum_j k^_j)            O_j = (k^_j).(sum_i q^_i)              flows as they are
///     I'_i = (q^_i).(sum_j k^_j / O_j)     O'_j = (k^_j).(sum_i q^_i / I_i)       and conserved
///     w = M softmax(clamp(O'))             out_i = sigmoid(I'_i N / M) (q^_i / I_i)^T sum_j k^_j (w_j v_j)^T
///
/// The causal form takes all sums over s <= t, s / O_s for 1 / O_j, I'_t and O'_t divided by t, w_t = t e^O'_t / sum_s e^O'_s.
/// Both are linear attention of q^ / I, k^ and w v once the flows are known.
namespace heed {

/// What a causal sequence carries on, in memory of the caller; a call begins with it and leaves there what it ends with. clear()
/// is the state before the first token.
///
///   memory   [sequences, heads, head_dim, value_dim], float or double
///   sums     [sequences, heads, 4, head_dim]: of k^, q^, k^ s / O_s and q^ s / I_s
///   counts   [sequences, heads, 2]: tokens so far, and log sum e^O'
template <class T>
struct flow_state {
  tensor_view<T, 4> memory;
  tensor_view<double, 4> sums;
  tensor_view<double, 3> counts;

  void clear() const {
    for (index_t b = 0; b < memory.extent(0); ++b)
      for (index_t h = 0; h < memory.extent(1); ++h) {
        for (index_t d = 0; d < memory.extent(2); ++d) {
          for (index_t e = 0; e < memory.extent(3); ++e) memory(b, h, d, e) = T(0);
          for (index_t n = 0; n < 4; ++n) sums(b, h, n, d) = 0;
        }
        counts(b, h, 0) = 0;
        counts(b, h, 1) = -std::numeric_limits<double>::infinity();
      }
  }
};
template <class T>
flow_state(tensor_view<T, 4>, tensor_view<double, 4>, tensor_view<double, 3>) -> flow_state<T>;

/// Where the backward pass writes d loss / d the state that a call began with: memory and sums shaped like its, log_total, that
/// by log sum e^O', [sequences, heads].
template <class T>
struct flow_state_gradient {
  tensor_view<T, 4> memory;
  tensor_view<double, 4> sums;
  tensor_view<double, 2> log_total;
};
template <class T>
flow_state_gradient(tensor_view<T, 4>, tensor_view<double, 4>, tensor_view<double, 2>)
    -> flow_state_gradient<T>;

/// For the backward pass, d loss / d the state that a call ended with; shaped like flow_state_gradient.
template <class T>
struct flow_final_gradient {
  tensor_view<T, 4> memory;
  tensor_view<double, 4> sums;
  tensor_view<double, 2> log_total;
};
template <class T>
flow_final_gradient(tensor_view<T, 4>, tensor_view<double, 4>, tensor_view<double, 2>)
    -> flow_final_gradient<T>;

namespace detail {

struct flow_page;
struct flow_gradient_page;
struct flow_sums_page;
struct flow_counts_page;

inline constexpr auto is_flow_options = []<class T>() { return std::same_as<T, flow_options>; };
inline constexpr auto is_flow_state = []<class T>() { return is_a<T, flow_state>; };
inline constexpr auto is_flow_gradient = []<class T>() { return is_a<T, flow_state_gradient>; };
inline constexpr auto is_flow_final = []<class T>() { return is_a<T, flow_final_gradient>; };
/// What the engine is given as it is.
inline constexpr auto is_for_flow_engine = []<class T>() {
  using namespace recur::detail;
  return is_executor.template operator()<T>() || is_documents.template operator()<T>();
};
template <class... I>
inline constexpr bool has_flow_state = (false || ... || is_flow_state.template operator()<I>());

/// The type of the numbers of the state among the ingredients; float without one.
template <class... I>
using flow_state_type =
    typename decltype(one_of<is_flow_state>(flow_state<float>{}, std::declval<I const&>()...)
                          .memory)::value_type;

template <bool causal, class I>
constexpr bool check_flow_ingredient() {
  constexpr bool known =
      is_flow_options.template operator()<I>() ||
      recur::detail::is_executor.template operator()<I>() ||
      (causal &&
       (std::same_as<I, documents> || is_flow_state.template operator()<I>() ||
        is_flow_gradient.template operator()<I>() || is_flow_final.template operator()<I>()));
  static_assert(known,
                "heed: this is no ingredient of Flow-Attention: expected flow_options or an "
                "executor, and if causal documents, flow_state, flow_state_gradient or "
                "flow_final_gradient");
  return known;
}

template <class Q, class K, class V, class O>
void check_flow(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                tensor_view<O, 4> out, flow_options const& how, bool causal) {
  index_t const heads = query.extent(2);
  expect_like("key", key,
              {query.extent(0), causal ? query.extent(1) : key.extent(1), heads, query.extent(3)},
              causal ? "query" : "query, with positions of its own");
  expect_like("value", value, {query.extent(0), key.extent(1), heads, value.extent(3)},
              "key with a value_dim of its own");
  expect_like("out", out, {query.extent(0), query.extent(1), heads, value.extent(3)},
              "query with the value_dim of value");
  expect_memory("query", query);
  expect_memory("key", key);
  expect_memory("value", value);
  expect_memory("out", out);
  require(how.clamp >= 0, [&] {
    return "flow_options.clamp is " + std::to_string(how.clamp) + "; expected at least 0";
  });
}

/// A state, or a gradient by it, against the shapes of a call.
template <class Held, class T>
void check_flow_state(char const* name, Held const& held, recur::flow_call<T> const& c) {
  index_t const S = c.sequences.count, H = c.heads(), D = c.dim();
  auto const fits = [&](char const* part, auto const& view, auto const& expected) {
    require(view.extents() == expected && (view.size() == 0 || view.data() != nullptr), [&] {
      return std::string(name) + part + " has shape " + shape_text(view.extents()) + "; expected " +
             shape_text(expected);
    });
  };
  fits(".memory", held.memory, recur::tensor_shape{S, H, D, c.value.dim()});
  fits(".sums", held.sums, recur::tensor_shape{S, H, 4, D});
  if constexpr (requires { held.counts; })
    fits(".counts", held.counts, std::array<index_t, 3>{S, H, 2});
  else
    fits(".log_total", held.log_total, std::array<index_t, 2>{S, H});
}

/// Operands checked, and room for those of linear attention.
template <bool causal, class T, class Q, class K, class V, class O, class... I>
recur::flow_call<T> make_flow_call(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<O, 4> out,
                                   I const&... ingredients) {
  static_assert((true && ... && check_flow_ingredient<causal, I>()));
  auto const how = one_of<is_flow_options>(flow_options{}, ingredients...);
  check_flow(query, key, value, out, how, causal);
  auto const sequences = recur::sequences_among(query.extents(), key.extents(), ingredients...);
  auto const& packed = sequences.packed;
  require(std::equal(packed.queries.begin(), packed.queries.end(), packed.keys.begin(),
                     packed.keys.end()),
          [] {
            return std::string(
                "documents.queries and documents.keys differ; expected the same offsets twice");
          });
  recur::tensor_shape gate = out.extents();
  gate[3] = 1;
  auto const t = recur::page_tensors<flow_page, T>(query.extents(), key.extents(), value.extents(),
                                                   gate, out.extents());
  recur::flow_call<T> const c{source<double>(query),
                              source<double>(key),
                              source<double>(value),
                              how,
                              sequences,
                              t[0],
                              t[1],
                              t[2],
                              t[3],
                              t[4]};
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_flow_state.template operator()<One>())
      check_flow_state("flow_state", ingredient, c);
    if constexpr (is_flow_gradient.template operator()<One>())
      check_flow_state("flow_state_gradient", ingredient, c);
    if constexpr (is_flow_final.template operator()<One>())
      check_flow_state("flow_final_gradient", ingredient, c);
  };
  (look(ingredients), ...);
  return c;
}

/// The sums of the state among the ingredients, or of its gradients; empty without one.
template <class... I>
recur::flow_carried flow_held(I const&... ingredients) {
  auto const held = one_of<is_flow_state>(flow_state<double>{}, ingredients...);
  return {held.sums, held.counts};
}
template <class Given>
recur::flow_carried_gradient flow_slopes(Given const& given) {
  return {given.sums, given.log_total};
}

/// The gate of a row for each of its channels.
template <class T>
source<T> flow_gate_of_rows(recur::flow_call<T> const& c) {
  return source<T>(tensor_view<T, 4>(c.gate.data(), c.attended.extents(),
                                     {c.gate.stride(0), c.gate.stride(1), c.gate.stride(2), 0}));
}

/// to = gate * rows.
template <class T>
void apply_flow_gate(any_executor const& run_on, recur::flow_call<T> const& c,
                     source<T> const& rows, sink<T> const& to) {
  recur::transform(
      run_on, to, [](auto const& g, auto const& x) { return g * x; }, flow_gate_of_rows(c), rows);
}

/// Both backward passes but for the flows: attend(linear attention's ingredients...) is called once the flows are known, forward
/// and backward.
template <bool causal, class Q, class K, class V, class O, class DO, class DQ, class DK, class DV,
          class... I>
void flow_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                   tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue, I const&... ingredients) {
  using T = compute_type<Q, K, V, O, DO, DQ, DK, DV, flow_state_type<I...>>;
  auto const c = make_flow_call<causal, T>(query, key, value, out, ingredients...);
  expect_like("dout", dout, out.extents(), "out");
  expect_like("dquery", dquery, query.extents(), "query");
  expect_like("dkey", dkey, key.extents(), "key");
  expect_like("dvalue", dvalue, value.extents(), "value");
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const t = recur::page_tensors<flow_gradient_page, T>(
      query.extents(), key.extents(), value.extents(), c.gate.extents(), out.extents());
  recur::flow_gradient<T> const d{
      t[0], t[1], t[2], t[3], sink<double>(dquery), sink<double>(dkey), sink<double>(dvalue)};
  auto const attend = [&](auto const& begins, auto const& ends) {
    auto const shared = all_of<is_for_flow_engine>(ingredients...);
    auto const order = [] {
      if constexpr (causal)
        return std::tuple<>();
      else
        return std::tuple(dense{});
    }();
    std::apply([&](auto const&... all) { linear_attention(c.q, c.k, c.v, c.attended, all...); },
               std::tuple_cat(shared, order, begins));
    apply_flow_gate(run_on, c, source<T>(dout), sink<T>(t[4]));
    std::apply(
        [&](auto const&... all) {
          linear_attention_backward(c.q, c.k, c.v, c.attended, t[4], d.q, d.k, d.v, all...);
        },
        std::tuple_cat(shared, order, begins, ends));
    recur::dot_rows(run_on, source<double>(dout), source<double>(c.attended),
                    recur::without_channels(d.gate));
  };
  if constexpr (causal) {
    auto const after = one_of<is_flow_final>(flow_final_gradient<T>{}, ingredients...);
    auto const ends = [&] {
      using E = typename decltype(after.memory)::value_type;
      if constexpr ((false || ... || is_flow_final.template operator()<I>()))
        return std::tuple(final_state_gradient<E>(after.memory));
      else
        return std::tuple<>();
    }();
    // The flows begin from a copy: the state stays as it is.
    auto const given = flow_held(ingredients...);
    recur::flow_carried const held{recur::page_copy<flow_sums_page>(given.sums),
                                   recur::page_copy<flow_counts_page>(given.counts)};
    causal_flows(run_on, c, held);
    if constexpr (has_flow_state<I...>) {
      auto const memory = std::get<0>(all_of<is_flow_state>(ingredients...)).memory;
      using E = typename decltype(memory)::value_type;
      flow_state_gradient<E> const to =
          one_of<is_flow_gradient>(flow_state_gradient<E>{}, ingredients...);
      attend(std::tuple(initial_state<E>(memory, to.memory)), ends);
      causal_flows_backward(run_on, c, d, given, flow_slopes(after), flow_slopes(to));
    } else {
      static_assert((true && ... && !is_flow_gradient.template operator()<I>()),
                    "heed: flow_state_gradient without flow_state");
      attend(std::tuple<>(), ends);
      causal_flows_backward(run_on, c, d, {}, flow_slopes(after), {});
    }
  } else {
    dense_flows(run_on, c);
    attend(std::tuple<>(), std::tuple<>());
    dense_flows_backward(run_on, c, d);
  }
}

}  // namespace detail

/// Flow-Attention over all positions, of the same sequence or another.
///
///   query [batch, N, heads, head_dim], key [batch, M, heads, head_dim], value [batch, M, heads, value_dim],
///   out [batch, N, heads, value_dim]; any element types and strides
///
/// Ingredients: flow_options, an executor. Flows are kept in memory of the calling thread.
template <element Q, element K, element V, element O, class... Ingredients>
void flow_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  auto const c = detail::make_flow_call<false, T>(query, key, value, out, ingredients...);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  dense_flows(run_on, c);
  linear_attention(c.q, c.k, c.v, c.attended, dense{}, runs);
  detail::apply_flow_gate(run_on, c, source<T>(c.attended), sink<T>(out));
}

/// The gradients of flow_attention, with its ingredients.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void flow_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<O, 4> out,
                             tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                             tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                             Ingredients const&... ingredients) {
  detail::flow_backward<false>(query, key, value, out, dout, dquery, dkey, dvalue, ingredients...);
}

/// Causal Flow-Attention, where token t competes with those before it; key and value have query's positions.
///
/// Ingredients: flow_options, documents (the same offsets twice), an executor, flow_state: a part of a sequence, of one token or
/// more, goes on from it and leaves there what it ends with.
template <element Q, element K, element V, element O, class... Ingredients>
void causal_flow_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, detail::flow_state_type<Ingredients...>>;
  auto const c = detail::make_flow_call<true, T>(query, key, value, out, ingredients...);
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  causal_flows(run_on, c, detail::flow_held(ingredients...));
  auto const shared = all_of<detail::is_for_flow_engine>(ingredients...);
  constexpr bool is_packed = (false || ... || std::same_as<Ingredients, documents>);
  auto const call = [&](auto const&... all) {
    linear_attention(c.q, c.k, c.v, c.attended, all...);
  };
  if constexpr (detail::has_flow_state<Ingredients...>) {
    auto const memory = std::get<0>(all_of<detail::is_flow_state>(ingredients...)).memory;
    if (query.extent(1) == 1 && !is_packed)
      linear_attention_step(c.q, c.k, c.v, c.attended, memory, runs);
    else
      std::apply(call, std::tuple_cat(shared, std::tuple(state{memory})));
  } else {
    std::apply(call, shared);
  }
  detail::apply_flow_gate(run_on, c, source<T>(c.attended), sink<T>(out));
}

/// The gradients of causal_flow_attention. Further ingredients: the flow_state that the forward call began with,
/// flow_state_gradient, which receives its gradient, and flow_final_gradient.
template <element Q, element K, element V, element O, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void causal_flow_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                    tensor_view<V, 4> value, tensor_view<O, 4> out,
                                    tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                    tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                    Ingredients const&... ingredients) {
  detail::flow_backward<true>(query, key, value, out, dout, dquery, dkey, dvalue, ingredients...);
}

}  // namespace heed
