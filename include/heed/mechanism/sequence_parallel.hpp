#pragma once

#include <heed/recur/fade.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/passes.hpp>

/// LASP-2: Rethinking Sequence Parallelism for Linear Attention and Its Hybrid. A sequence is cut in segments, one for each
/// worker; what workers tell each other are states, whose size does not depend on the length, and how the segments fade.
/// Each worker, in order:
///
///     linear_attention(q, k, v, out, decay(g), final_state{own});          // from no state
///     segment_decay(decay(g), own_decay);                                  // gather both from all workers
///     combine_states(states, decays, initial, incoming, final);
///     add_incoming_state(q, incoming[own], out, decay(g));
///
/// and backward, the gathered views with the last worker first:
///
///     segment_gradient(q, dout, own, decay(g));                            // gather, and combine them likewise
///     linear_attention_backward(q, k, v, out, dout, dq, dk, dv, decay(g, dg), initial_state(incoming[own]),
///                               final_state_gradient(outgoing[own]));
///
/// Without an order, all workers' segment_state are summed and read by read_state. All that is added up is linear: rows that
/// are normalised, and the delta rule, need their state at the start instead, which is initial_state(incoming[own]) alone.
namespace heed {

namespace detail {

struct incoming_page;
struct outgoing_page;

/// The gates among ingredients, [batch, position, heads, 1 or features], or a view without memory.
template <class... I>
auto segment_gates(I const&... ingredients) {
  using namespace recur::detail;
  static_assert((true && ... &&
                 (is_decay.template operator()<I>() || is_key_decay.template operator()<I>() ||
                  is_scale.template operator()<I>() || is_executor.template operator()<I>())),
                "heed: states of segments are told apart by decay or key_decay; besides, expected "
                "scale or an executor");
  if constexpr ((false || ... || is_decay.template operator()<I>()))
    return recur::detail::with_one_channel(one_of<is_decay>(nullptr, ingredients...).log_gate);
  else if constexpr ((false || ... || is_key_decay.template operator()<I>()))
    return one_of<is_key_decay>(nullptr, ingredients...).log_gate;
  else
    return tensor_view<float const, 4>();
}

/// What the state that a segment begins with is read with: scale e^(g_1 + ... + g_i) q_i, for `heads` heads.
template <class Page, class T, class Q, class... I>
tensor_view<T, 4> faded_queries(tensor_view<Q, 4> query, index_t heads, I const&... ingredients) {
  auto gates = segment_gates(ingredients...);
  index_t const N = query.extent(1), D = query.extent(3);
  bool const fades = gates.data() != nullptr;
  if (fades) {
    recurrence_shape const shape{.batches = query.extent(0), .heads = heads, .keys = N};
    gates = recur::detail::fit_tokens("log_gate", gates, shape, gates.extent(3) == 1 ? 1 : D,
                                      "1 or features of a query");
    recur::detail::expect_each("log_gate", gates, "numbers of at most 0",
                               [](auto g) { return g <= 0; });
  }
  require(heads == 0 || (query.extent(2) > 0 && heads % query.extent(2) == 0), [&] {
    return "query has shape " + shape_text(query.extents()) + "; expected a divisor of " +
           std::to_string(heads) + " heads";
  });
  auto const faded =
      recur::page_tensors<Page, T>(recur::tensor_shape{query.extent(0), N, heads, D})[0];
  auto const factor =
      static_cast<T>(one_of<recur::detail::is_scale>(scale{1, nullptr}, ingredients...).value);
  auto const run_on = recur::executor_of(ingredients...);
  source<T> const from(query);
  source<double> const logs(gates);
  parallel_for(run_on, query.extent(0) * heads, [&](index_t piece, index_t) {
    index_t const b = piece / heads, h = piece % heads, width = fades ? gates.extent(3) : 0;
    thread_local workspace own;
    index_t const bytes = 2 * arena::bytes<double>(width) + arena::bytes<T>(width);
    arena memory(own.reserve(static_cast<std::size_t>(bytes)));
    double* const sums = memory.take<double>(width);
    double* const log = memory.take<double>(width);
    T* const factors = memory.take<T>(width);
    std::fill_n(sums, width, 0.0);
    for (index_t i = 0; i < N; ++i) {
      T* const row = &faded(b, i, h, 0);
      from.copy(b, h * query.extent(2) / heads, i, 1, row, D);
      if (fades) {
        logs.copy(b, h * gates.extent(2) / heads, i, 1, log, width);
        for (index_t d = 0; d < width; ++d) sums[d] = std::max(sums[d] + log[d], -1e4);
        recur::exponentials<xsimd::default_arch>(sums, width, factors);
      }
      for (index_t d = 0; d < D; ++d)
        row[d] *= fades ? factor * factors[width == 1 ? 0 : d] : factor;
    }
  });
  return faded;
}

template <class T>
tensor_view<T const, 4> no_tokens(index_t batches, index_t heads, index_t dim) {
  return {nullptr, {batches, 0, heads, dim}};
}

}  // namespace detail

/// The log of all that fades over a segment: the sums of its gates, to [batch, heads, 1, or features for a key_decay]. A
/// fixed_decay has to be told the number of `tokens`.
template <class Gates>
void segment_decay(Gates const& by, tensor_view<double, 3> to, index_t tokens = -1) {
  auto gates = detail::segment_gates(by);
  recurrence_shape const shape{.batches = to.extent(0),
                               .heads = to.extent(1),
                               .keys = tokens >= 0 ? tokens : gates.extent(1)};
  require(shape.keys >= 0,
          [] { return std::string("a fixed_decay without the number of tokens of a segment"); });
  gates = recur::detail::fit_tokens("log_gate", gates, shape, to.extent(2), "that of the sums");
  detail::expect_extent("log_gate", gates, 2, to.extent(1), "heads, those of the sums");
  for (index_t b = 0; b < to.extent(0); ++b)
    for (index_t h = 0; h < to.extent(1); ++h)
      for (index_t d = 0; d < to.extent(2); ++d) {
        double sum = 0;
        for (index_t i = 0; i < gates.extent(1); ++i) sum += static_cast<double>(gates(b, i, h, d));
        to(b, h, d) = sum;
      }
}

/// The states that segments begin with, S_(w+1) = e^decay_w S_w + local_w from S_0 = initial; `final` receives the last.
///
///   local, incoming   [worker, batch, heads, features, columns]; they may be the same
///   log_decays        [worker, batch, heads or 1, features or 1]; none if it has no memory
///   initial, final    [batch, heads, features, columns]; initial is 0, and final not asked for, if it has no memory
template <class S, class L, class I>
void combine_states(tensor_view<L, 5> local, tensor_view<double const, 4> log_decays,
                    tensor_view<I, 4> initial, tensor_view<S, 5> incoming,
                    tensor_view<S, 4> final = {}) {
  auto const [W, B, H, F, E] = local.extents();
  std::array const one{B, H, F, E};
  require(incoming.extents() == local.extents(), [&] {
    return "incoming has shape " + shape_text(incoming.extents()) + "; expected that of local, " +
           shape_text(local.extents());
  });
  if (initial.data() != nullptr) detail::expect_like("initial", initial, one, "one of local");
  if (final.data() != nullptr) detail::expect_like("final", final, one, "one of local");
  auto const is_any_of = [](index_t n, index_t extent) { return n == 1 || n == extent; };
  require(log_decays.data() == nullptr ||
              (log_decays.extent(0) == W && log_decays.extent(1) == B &&
               is_any_of(log_decays.extent(2), H) && is_any_of(log_decays.extent(3), F)),
          [&] {
            return "log_decays has shape " + shape_text(log_decays.extents()) +
                   "; expected [worker, batch, heads or 1, features or 1] of " +
                   shape_text(local.extents());
          });
  auto const factor = [&](index_t w, index_t b, index_t h, index_t d) {
    if (log_decays.data() == nullptr) return 1.0;
    return std::exp(
        log_decays(w, b, log_decays.extent(2) == 1 ? 0 : h, log_decays.extent(3) == 1 ? 0 : d));
  };
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h)
      for (index_t d = 0; d < F; ++d)
        for (index_t e = 0; e < E; ++e) {
          S state = initial.data() == nullptr ? S(0) : static_cast<S>(initial(b, h, d, e));
          for (index_t w = 0; w < W; ++w) {
            S const before = state;
            state =
                static_cast<S>(factor(w, b, h, d)) * state + static_cast<S>(local(w, b, h, d, e));
            incoming(w, b, h, d, e) = before;
          }
          if (final.data() != nullptr) final(b, h, d, e) = state;
        }
}

/// What a segment writes from no state, linear_attention without its rows. Ingredients as there.
template <element K, element V, class S, class... Ingredients>
void segment_state(tensor_view<K, 4> key, tensor_view<V, 4> value, tensor_view<S, 4> to,
                   Ingredients const&... ingredients) {
  using T = compute_type<K, V, S>;
  index_t const B = key.extent(0), H = to.extent(1);
  linear_attention(detail::no_tokens<T>(B, key.extent(2), key.extent(3)), key, value,
                   tensor_view<T, 4>(nullptr, {B, 0, H, value.extent(3)}), final_state<S>{to},
                   ingredients...);
}

/// Every row reads one state: out_i = scale q_i^T S.
template <element Q, class S, element O, class... Ingredients>
void read_state(tensor_view<Q, 4> query, tensor_view<S, 4> state, tensor_view<O, 4> out,
                Ingredients const&... ingredients) {
  using T = compute_type<Q, std::remove_const_t<S>, O>;
  index_t const B = query.extent(0), H = state.extent(1);
  linear_attention(query, detail::no_tokens<T>(B, H, query.extent(3)),
                   detail::no_tokens<T>(B, H, out.extent(3)), out, dense{}, initial_state(state),
                   ingredients...);
}

/// Adds what rows read of the state that their segment begins with, out_i += scale (e^(g_1 + ... + g_i) q_i)^T S.
///
///   query   [batch, N, query heads, features]
///   state   [batch, state heads, features, value_dim]
///   out     [batch, N, heads, value_dim]
///
/// Ingredients: decay or key_decay, scale, an executor.
template <element Q, class S, element O, class... Ingredients>
void add_incoming_state(tensor_view<Q, 4> query, tensor_view<S, 4> state, tensor_view<O, 4> out,
                        Ingredients const&... ingredients) {
  using T = compute_type<Q, std::remove_const_t<S>, O>;
  detail::expect_extent("out", out, 0, query.extent(0), "batch, that of query");
  detail::expect_extent("out", out, 1, query.extent(1), "position, that of query");
  auto const run_on = recur::executor_of(ingredients...);
  auto const faded =
      detail::faded_queries<detail::incoming_page, T>(query, out.extent(2), ingredients...);
  auto const read = recur::page_tensors<detail::outgoing_page, T>(out.extents())[0];
  read_state(faded, state, read, run_on);
  any_executor const workers(run_on);
  recur::transform(
      workers, sink<T>(out), [](auto const& a, auto const& b) { return a + b; }, source<T>(out),
      source<T>(read));
}

/// The gradient of the loss by the state that a segment begins with, of its own rows alone:
/// sum_i scale (e^(g_1 + ... + g_i) q_i) dout_i^T. Shapes and ingredients as in add_incoming_state.
template <element Q, element DO, class S, class... Ingredients>
void segment_gradient(tensor_view<Q, 4> query, tensor_view<DO, 4> dout, tensor_view<S, 4> to,
                      Ingredients const&... ingredients) {
  using T = compute_type<Q, DO, S>;
  index_t const H = dout.extent(2), states = to.extent(1);
  detail::expect_extent("dout", dout, 0, query.extent(0), "batch, that of query");
  detail::expect_extent("dout", dout, 1, query.extent(1), "position, that of query");
  require(states > 0 && H % states == 0, [&] {
    return "the gradient of a state has shape " + shape_text(to.extents()) +
           "; expected a number of heads that divides the " + std::to_string(H) + " of dout";
  });
  auto const run_on = recur::executor_of(ingredients...);
  auto const faded = detail::faded_queries<detail::incoming_page, T>(query, H, ingredients...);
  // Queries are written as keys are: the heads that share a state one after the other.
  index_t const readers = H / states;
  auto const every = [&](auto view, index_t first) {
    auto extents = view.extents();
    auto strides = view.strides();
    auto* const data = view.data() + first * strides[2];
    extents[2] = states;
    strides[2] *= readers;
    return decltype(view)(data, extents, strides);
  };
  segment_state(every(faded, 0), every(dout, 0), to, run_on);
  for (index_t r = 1; r < readers; ++r) {
    auto const key = every(faded, r);
    auto const value = every(dout, r);
    linear_attention(detail::no_tokens<T>(key.extent(0), states, key.extent(3)), key, value,
                     tensor_view<T, 4>(nullptr, {key.extent(0), 0, states, value.extent(3)}),
                     state<S>{to}, run_on);
  }
}

}  // namespace heed
