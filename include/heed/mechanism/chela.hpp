#pragma once

#include <heed/recur/causal_convolution.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/passes.hpp>
#include <heed/recur/row_norms.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/copy.hpp>

/// Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long Sequences (CHELA).
///
/// Queries and keys of a linear attention are made by a short and a long causal filter of each channel:
///
///     z = silu(long * silu(short * x)),   q = a_q z + b_q,   k = a_k z + b_k,   out = linear attention(q, k, v)
///
/// The layer ends with normalise_and_gate<silu>(out, z W_g, ..., rms_norm{.across_heads = true}), a map and x; v is silu(x W_v).
/// The paper leaves open where the norm and the gate stand, and what q and k take of z.
namespace heed {

/// What queries and keys take of z, [heads, dim] each; for gradients, where those go.
template <class T>
struct chela_affine {
  tensor_view<T, 2> query_factor, query_bias, key_factor, key_bias;
};
template <class T>
chela_affine(tensor_view<T, 2>, tensor_view<T, 2>, tensor_view<T, 2>, tensor_view<T, 2>)
    -> chela_affine<T>;

/// What chela keeps between calls: the last inputs of both filters, [sequences, heads, taps - 1, dim], and the state of the linear
/// attention, [sequences, heads, dim, value_dim]. Read at the beginning of a call and written at its end.
template <class T>
struct chela_state {
  tensor_view<T, 4> short_inputs, long_inputs, memory;
};
template <class T>
chela_state(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>) -> chela_state<T>;

/// Where the backward pass writes d loss / d the chela_state that a call began with; shaped like it.
template <class T>
struct chela_state_gradient {
  tensor_view<T, 4> short_inputs, long_inputs, memory;
};
template <class T>
chela_state_gradient(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>)
    -> chela_state_gradient<T>;

/// For the backward pass, d loss / d the chela_state that a call ended with; shaped like it.
template <class T>
struct chela_final_gradient {
  tensor_view<T, 4> short_inputs, long_inputs, memory;
};
template <class T>
chela_final_gradient(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>)
    -> chela_final_gradient<T>;

namespace recur {

inline constexpr auto is_chela_state = []<class T>() { return detail::is_a<T, chela_state>; };
inline constexpr auto is_chela_gradient = []<class T>() {
  return detail::is_a<T, chela_state_gradient>;
};
inline constexpr auto is_chela_final = []<class T>() {
  return detail::is_a<T, chela_final_gradient>;
};
/// What linear_attention is given as it is, and what the filters are.
inline constexpr auto is_for_chela_engine = []<class T>() {
  return !is_chela_state.template operator()<T>() && !is_chela_gradient.template operator()<T>() &&
         !is_chela_final.template operator()<T>();
};
inline constexpr auto is_for_chela_filters = []<class T>() {
  return detail::is_executor.template operator()<T>() ||
         detail::is_documents.template operator()<T>();
};

/// Calls f(what each of the three states of a forward call is given as).
template <class F, class... I>
void with_chela_states(F const& f, I const&... ingredients) {
  if constexpr ((false || ... || is_chela_state.template operator()<I>())) {
    auto const kept = one_of<is_chela_state>(nullptr, ingredients...);
    f(std::tuple(state{kept.short_inputs}), std::tuple(state{kept.long_inputs}),
      std::tuple(state{kept.memory}));
  } else {
    f(std::tuple<>(), std::tuple<>(), std::tuple<>());
  }
}
/// The same of a backward call.
template <class F, class... I>
void with_chela_slopes(F const& f, I const&... ingredients) {
  constexpr bool begins = (false || ... || is_chela_state.template operator()<I>());
  static_assert(begins || (true && ... && !is_chela_gradient.template operator()<I>()),
                "heed: chela_state_gradient without chela_state");
  auto const each = [&](auto member_of) {
    auto const before = [&] {
      if constexpr (begins) {
        auto const view = member_of(one_of<is_chela_state>(nullptr, ingredients...));
        using E = typename decltype(view)::value_type;
        return std::tuple(initial_state<E>(
            view, member_of(one_of<is_chela_gradient>(chela_state_gradient<E>{}, ingredients...))));
      } else {
        return std::tuple<>();
      }
    }();
    if constexpr ((false || ... || is_chela_final.template operator()<I>())) {
      auto const view = member_of(one_of<is_chela_final>(nullptr, ingredients...));
      return std::tuple_cat(
          before, std::tuple(final_state_gradient<typename decltype(view)::value_type>(view)));
    } else {
      return before;
    }
  };
  f(each([](auto const& all) { return all.short_inputs; }),
    each([](auto const& all) { return all.long_inputs; }),
    each([](auto const& all) { return all.memory; }));
}

/// Numbers of channels, [heads, dim], at every token.
template <class T, class E>
source<T> at_every_token(tensor_view<E, 2> numbers, tensor_shape const& shape) {
  return source<T>(
      tensor_view<E, 4>(numbers.data(), shape, {0, 0, numbers.stride(0), numbers.stride(1)}));
}

template <class E>
void check_chela(char const* name, chela_affine<E> const& given, tensor_shape const& x) {
  std::array<index_t, 2> const expected{x[2], x[3]};
  for (auto const* each :
       {&given.query_factor, &given.query_bias, &given.key_factor, &given.key_bias})
    require(each->extents() == expected && each->data() != nullptr, [&] {
      return std::string(name) + " has numbers of shape " + shape_text(each->extents()) +
             "; expected " + shape_text(expected) + " (head, dim), and memory";
    });
}

/// Before anything is written.
template <class S, class L, class V, class... I>
void check_chela_shapes(tensor_view<S, 3> short_filter, tensor_view<L, 3> long_filter,
                        tensor_view<V, 4> value, tensor_shape const& x, I const&... ingredients) {
  auto const taps = [&](char const* name, auto const& filter) {
    require(filter.extent(0) > 0 && filter.extent(1) == x[2] && filter.extent(2) == x[3], [&] {
      return std::string(name) + " has shape " + shape_text(filter.extents()) +
             "; expected [taps, " + std::to_string(x[2]) + ", " + std::to_string(x[3]) +
             "] (tap, head, dim)";
    });
  };
  taps("short_filter", short_filter);
  taps("long_filter", long_filter);
  index_t const value_heads = value.extent(2);
  require(value.extent(0) == x[0] && value.extent(1) == x[1] && value_heads > 0 &&
              x[2] % value_heads == 0,
          [&] {
            return "value has shape " + shape_text(value.extents()) + "; expected [" +
                   std::to_string(x[0]) + ", " + std::to_string(x[1]) + ", a divisor of " +
                   std::to_string(x[2]) + ", any] (batch, position, head, dim)";
          });
  index_t const count = sequences_among(x, x, ingredients...).count;
  [[maybe_unused]] auto const fits = [&](char const* name, auto const& kept) {
    auto const expect = [&](char const* part, auto const& view, tensor_shape const& shape,
                            char const* like) {
      require(view.extents() == shape, [&] {
        return std::string(name) + part + " has shape " + shape_text(view.extents()) +
               "; expected that of " + like + ", " + shape_text(shape);
      });
    };
    expect(".short_inputs", kept.short_inputs, {count, x[2], short_filter.extent(0) - 1, x[3]},
           "the filter's history");
    expect(".long_inputs", kept.long_inputs, {count, x[2], long_filter.extent(0) - 1, x[3]},
           "the filter's history");
    expect(".memory", kept.memory, {count, x[2], x[3], value.extent(3)},
           "the linear attention's state");
  };
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_chela_state.template operator()<One>()) fits("chela_state", ingredient);
    if constexpr (is_chela_gradient.template operator()<One>())
      fits("chela_state_gradient", ingredient);
    if constexpr (is_chela_final.template operator()<One>())
      fits("chela_final_gradient", ingredient);
  };
  (look(ingredients), ...);
}

/// to[head][channel] = sum over all tokens of x y, or of x.
template <class T, class E>
void sum_over_tokens(any_executor const& run_on, tensor_view<T, 4> x, source<T> const* y,
                     tensor_view<E, 2> to) {
  index_t const dim = x.extent(3);
  struct page {};
  auto const sums = page_tensors<page, double>(tensor_shape{1, 1, x.extent(2), dim})[0];
  parallel_for(run_on, x.extent(2), [&](index_t h, index_t) {
    double* const sum = &sums(0, 0, h, 0);
    std::fill_n(sum, dim, 0.0);
    for (index_t b = 0; b < x.extent(0); ++b)
      for (index_t i = 0; i < x.extent(1); ++i) {
        T const* const row = &x(b, i, h, 0);
        T const* const other =
            y == nullptr ? nullptr : y->rows(b, h, i, 1, feature_scratch<T>(dim)).data;
        for (index_t d = 0; d < dim; ++d)
          sum[d] += double(row[d]) * (other == nullptr ? 1.0 : double(other[d]));
      }
    for (index_t d = 0; d < dim; ++d) to(h, d) = convert_element<E>(sum[d]);
  });
}

inline constexpr auto affine = [](auto const& a, auto const& z, auto const& b) {
  return simd::fma(a, z, b);
};

/// The two convolutions, with states or centred.
template <class... I>
auto chela_filter_ingredients(I const&... ingredients) {
  auto const shared = all_of<is_for_chela_filters>(ingredients...);
  if constexpr ((false || ... || std::same_as<I, dense>))
    return std::tuple_cat(std::tuple(with_silu{}, centred{}), shared);
  else
    return std::tuple_cat(std::tuple(with_silu{}), shared);
}

}  // namespace recur

/// CHELA's token mixing. Causal; with `dense`, filters are centred and every row reads the sum over all tokens.
///
///   x, z, out       [batch, N, heads, dim] twice, [batch, N, heads, value_dim]; z is a result, for the gate and the backward pass
///   value           [batch, N, value heads, value_dim]
///   short_filter, long_filter   [tap, heads, dim], tap 0 that of the token itself
///
/// Ingredients, in any order: chela_state, documents (the same offsets twice), fixed_decay (default none), dense, chunk_size, an
/// executor. With one position and a chela_state a step of decoding. The same bits for every executor.
template <element X, element S, element L, element P, element V, element Z, element O,
          class... Ingredients>
void chela(tensor_view<X, 4> x, tensor_view<S, 3> short_filter, tensor_view<L, 3> long_filter,
           chela_affine<P> const& parameters, tensor_view<V, 4> value, tensor_view<Z, 4> z,
           tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<X, S, L, P, V, Z, O>;
  auto const& shape = x.extents();
  detail::expect_like("z", z, shape, "x");
  detail::expect_memory("z", z);
  recur::check_chela("chela_affine", parameters, shape);
  detail::expect_like("out", out, {shape[0], shape[1], shape[2], value.extent(3)},
                      "x with the dim of value");
  recur::check_chela_shapes(short_filter, long_filter, value, shape, ingredients...);
  auto const runs = recur::scan::executor_of(ingredients...);
  any_executor const run_on(runs);
  struct page {};
  auto const own = recur::page_tensors<page, T>(shape, shape, shape, shape);
  auto const filters = recur::chela_filter_ingredients(ingredients...);
  recur::with_chela_states(
      [&](auto const& before_short, auto const& before_long, auto const& memory) {
        std::apply([&](auto const&... all) { causal_convolution(x, short_filter, own[0], all...); },
                   std::tuple_cat(filters, before_short));
        std::apply(
            [&](auto const&... all) { causal_convolution(own[0], long_filter, own[1], all...); },
            std::tuple_cat(filters, before_long));
        recur::transform<T>(run_on, sink<T>(own[2]), recur::affine,
                            recur::at_every_token<T>(parameters.query_factor, shape),
                            source<T>(own[1]),
                            recur::at_every_token<T>(parameters.query_bias, shape));
        recur::transform<T>(run_on, sink<T>(own[3]), recur::affine,
                            recur::at_every_token<T>(parameters.key_factor, shape),
                            source<T>(own[1]),
                            recur::at_every_token<T>(parameters.key_bias, shape));
        std::apply(
            [&](auto const&... all) { linear_attention(own[2], own[3], value, out, all...); },
            std::tuple_cat(all_of<recur::is_for_chela_engine>(ingredients...), memory));
      },
      ingredients...);
  copy_elements(own[1], z);
}

/// The gradients of chela with its ingredients, from its result z. Further ones: the chela_state that the forward call began with,
/// chela_state_gradient, which receives its gradient, and chela_final_gradient.
///
///   dout, dz   d loss / d out; and d loss / d z from elsewhere, as from the gate, or an empty view
///   dx, dshort, dlong, dparameters, dvalue   receive the gradients, shaped like what they are the gradients of
template <element X, element S, element L, element P, element V, element Z, element DO, element DZ,
          element DX, element DS, element DL, element DP, element DV, class... Ingredients>
void chela_backward(tensor_view<X, 4> x, tensor_view<S, 3> short_filter,
                    tensor_view<L, 3> long_filter, chela_affine<P> const& parameters,
                    tensor_view<V, 4> value, tensor_view<Z, 4> z, tensor_view<DO, 4> dout,
                    tensor_view<DZ, 4> dz, tensor_view<DX, 4> dx, tensor_view<DS, 3> dshort,
                    tensor_view<DL, 3> dlong, chela_affine<DP> const& dparameters,
                    tensor_view<DV, 4> dvalue, Ingredients const&... ingredients) {
  using T = compute_type<X, S, L, P, V, Z, DO>;
  auto const& shape = x.extents();
  detail::expect_like("z", z, shape, "x");
  if (dz.data() != nullptr) detail::expect_like("dz", dz, shape, "x");
  recur::check_chela("chela_affine", parameters, shape);
  recur::check_chela("the gradient of chela_affine", dparameters, shape);
  recur::check_chela_shapes(short_filter, long_filter, value, shape, ingredients...);
  detail::expect_like("dout", dout, {shape[0], shape[1], shape[2], value.extent(3)},
                      "x with the dim of value");
  detail::expect_like("dx", dx, shape, "x");
  auto const runs = recur::scan::executor_of(ingredients...);
  any_executor const run_on(runs);
  struct page {};
  auto const own = recur::page_tensors<page, T>(shape, shape, shape, shape, shape, shape);
  auto const &once = own[0], &q = own[1], &k = own[2], &dq = own[3], &dk = own[4], &by_z = own[5];
  source<T> const at_z(z);
  auto const of = [&](auto const& numbers) { return recur::at_every_token<T>(numbers, shape); };
  recur::transform<T>(run_on, sink<T>(q), recur::affine, of(parameters.query_factor), at_z,
                      of(parameters.query_bias));
  recur::transform<T>(run_on, sink<T>(k), recur::affine, of(parameters.key_factor), at_z,
                      of(parameters.key_bias));
  auto const filters = recur::chela_filter_ingredients(ingredients...);
  recur::with_chela_slopes(
      [&](auto const& of_short, auto const& of_long, auto const& of_memory) {
        std::apply(
            [&](auto const&... all) {
              linear_attention_backward(q, k, value, dout, dout, dq, dk, dvalue, all...);
            },
            std::tuple_cat(all_of<recur::is_for_chela_engine>(ingredients...), of_memory));
        recur::sum_over_tokens<T>(run_on, dq, &at_z, dparameters.query_factor);
        recur::sum_over_tokens<T>(run_on, dq, nullptr, dparameters.query_bias);
        recur::sum_over_tokens<T>(run_on, dk, &at_z, dparameters.key_factor);
        recur::sum_over_tokens<T>(run_on, dk, nullptr, dparameters.key_bias);
        if (dz.data() == nullptr)
          recur::transform<T>(
              run_on, sink<T>(by_z), [](auto const& a, auto const& d) { return a * d; },
              of(parameters.query_factor), source<T>(dq));
        else
          recur::transform<T>(run_on, sink<T>(by_z), recur::affine, of(parameters.query_factor),
                              source<T>(dq), source<T>(dz));
        recur::transform<T>(run_on, sink<T>(by_z), recur::affine, of(parameters.key_factor),
                            source<T>(dk), source<T>(by_z));
        // What the short filter gave is made again, and its gradient takes the place of dq.
        std::apply([&](auto const&... all) { causal_convolution(x, short_filter, once, all...); },
                   std::tuple_cat(filters, of_short));
        std::apply(
            [&](auto const&... all) {
              causal_convolution_backward(once, long_filter, by_z, dq, dlong, all...);
            },
            std::tuple_cat(filters, of_long));
        std::apply(
            [&](auto const&... all) {
              causal_convolution_backward(x, short_filter, dq, dx, dshort, all...);
            },
            std::tuple_cat(filters, of_short));
      },
      ingredients...);
}

/// Parallel branches as one filter, as at inference: out = first + second, the shorter one going on with zeros.
template <element A, element B, element O>
void merge_filters(tensor_view<A, 3> first, tensor_view<B, 3> second, tensor_view<O, 3> out) {
  require(out.extent(0) >= std::max(first.extent(0), second.extent(0)) &&
              first.extent(1) == out.extent(1) && second.extent(1) == out.extent(1) &&
              first.extent(2) == out.extent(2) && second.extent(2) == out.extent(2),
          [&] {
            return "the filters have shapes " + shape_text(first.extents()) + " and " +
                   shape_text(second.extents()) + ", the merged one " + shape_text(out.extents()) +
                   "; expected the same heads and dim, and as many taps as the longer one or more";
          });
  using T = compute_type<A, B, O>;
  for (index_t j = 0; j < out.extent(0); ++j)
    for (index_t h = 0; h < out.extent(1); ++h)
      for (index_t d = 0; d < out.extent(2); ++d)
        out(j, h, d) =
            convert_element<O>((j < first.extent(0) ? convert_element<T>(first(j, h, d)) : T(0)) +
                               (j < second.extent(0) ? convert_element<T>(second(j, h, d)) : T(0)));
}

}  // namespace heed
