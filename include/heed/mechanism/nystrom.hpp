#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/mechanism/value_filter.hpp>
#include <heed/recur/landmark_inverse.hpp>
#include <heed/recur/segments.hpp>

/// Nystroemformer: A Nystroem-Based Algorithm for Approximating Self-Attention, as in CAB. With landmarks Q', K', the means of
/// m segments of the queries and of the keys,
///
///     out = softmax(scale Q K'^T) Z softmax(scale Q' K^T) V,     Z about the inverse of A = softmax(scale Q' K'^T)
///
/// by six iterations Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from A^T / max_j sum_i A_ij, for each head on its own and in
/// double. Where A is near singular six do not reach the inverse; the mechanism is what they do reach. With no more rows than
/// landmarks it is softmax attention. Not causal: every row goes into the landmarks.
namespace heed {

namespace detail {

struct nystrom_memory;

/// The landmarks of a call and what they found: W = softmax(scale Q' K^T) V with its lse, and Z W.
template <class T>
struct nystrom_landmarks {
  tensor_view<T, 4> query, key, found;
  partial_attention<T> seen;

  nystrom_landmarks(arena& memory, index_t batches, index_t m, index_t heads, index_t key_heads,
                    index_t dim, index_t value_dim)
      : query(take_rows<T>(memory, batches, m, heads, dim)),
        key(take_rows<T>(memory, batches, m, key_heads, dim)),
        found(take_rows<T>(memory, batches, m, heads, value_dim)),
        seen(take_result<T>(memory, batches, m, heads, value_dim)) {}
};

/// Calls f(inverse, batch entry, key head) for every key head, each with the memory of its worker.
template <class Executor, class F>
void for_landmark_heads(Executor const& run_on, index_t batches, index_t key_heads, index_t m,
                        index_t dim, bool keeps, F f) {
  arena size;
  recur::landmark_inverse const measured(size, m, dim, keeps);
  auto const bytes = static_cast<index_t>(size.used());
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, batches * key_heads, [&](index_t piece, index_t worker) {
    arena own(memory + worker * bytes);
    recur::landmark_inverse inverse(own, m, dim, keeps);
    f(inverse, piece / key_heads, piece % key_heads);
  });
}

template <class T, class Q, class K, class V, class... I>
void find_landmarks(nystrom_landmarks<T> const& at, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                    tensor_view<V, 4> value, I const&... ingredients) {
  index_t const m = at.query.extent(1), heads = query.extent(2), key_heads = key.extent(2),
                dim = query.extent(3), value_dim = value.extent(3),
                group = heads / std::max<index_t>(key_heads, 1);
  double const factor = scale_of(dim, ingredients...);
  auto const run_on = executor_of(ingredients...);
  segment_means(query, {query.extent(1), m}, at.query, run_on);
  segment_means(key, {key.extent(1), m}, at.key, run_on);
  with_machine(
      [&](auto const&... machine) {
        attention(at.query, key, value, at.seen.out, scale{factor}, lse_into<T>{at.seen.lse},
                  machine...);
      },
      ingredients...);
  for_landmark_heads(run_on, query.extent(0), key_heads, m, std::max(dim, value_dim), false,
                     [&](recur::landmark_inverse& inverse, index_t b, index_t key_head) {
                       for (index_t h = key_head * group; h < (key_head + 1) * group; ++h) {
                         auto& [x, y, product] = inverse.wide;
                         inverse.load(0, at.query, b, h);
                         inverse.load(1, at.key, b, key_head);
                         inverse.weigh(factor, x, y, dim);
                         double const* const z = inverse.run();
                         inverse.load(0, at.seen.out, b, h);
                         inverse.times_wide(z, false, x, product);
                         for (index_t c = 0; c < m; ++c)
                           for (index_t d = 0; d < value_dim; ++d)
                             at.found(b, c, h, d) =
                                 static_cast<T>(product[c * inverse.wide_stride + d]);
                       }
                     });
}

/// Through Z and A: from the gradient of what the landmarks found, those of what they saw and of the landmarks.
template <class T>
void find_landmark_gradients(nystrom_landmarks<T> const& at, nystrom_landmarks<T> const& gradient,
                             double factor, any_executor const& run_on) {
  index_t const batches = at.query.extent(0), m = at.query.extent(1), heads = at.query.extent(2),
                key_heads = at.key.extent(2), dim = at.query.extent(3),
                value_dim = at.found.extent(3), group = heads / std::max<index_t>(key_heads, 1);
  for_landmark_heads(
      run_on, batches, key_heads, m, std::max(dim, value_dim), true,
      [&](recur::landmark_inverse& inverse, index_t b, index_t key_head) {
        index_t const stride = inverse.stride, wide = inverse.wide_stride;
        auto& [x, y, product] = inverse.wide;
        for (index_t h = key_head * group; h < (key_head + 1) * group; ++h) {
          inverse.load(0, at.query, b, h);
          inverse.load(1, at.key, b, key_head);
          inverse.weigh(factor, x, y, dim);
          double const* const z = inverse.run();
          inverse.load(0, gradient.found, b, h);
          inverse.times_wide(z, true, x, product);  // of what the landmarks saw
          for (index_t c = 0; c < m; ++c)
            for (index_t d = 0; d < value_dim; ++d)
              gradient.seen.out(b, c, h, d) = static_cast<T>(product[c * wide + d]);
          inverse.load(1, at.seen.out, b, h);
          double* const dz = inverse.slope;
          inverse.times_turned(x, y, value_dim, dz);
          double const* const da = inverse.differentiate(dz);
          // Of the scores, scaled.
          for (index_t c = 0; c < m; ++c) {
            double sum = 0;
            for (index_t e = 0; e < m; ++e) sum += da[c * stride + e] * inverse.a[c * stride + e];
            for (index_t e = 0; e < stride; ++e)
              dz[c * stride + e] = factor * inverse.a[c * stride + e] * (da[c * stride + e] - sum);
          }
          inverse.load(1, at.key, b, key_head);
          inverse.times_wide(dz, false, y, product);
          for (index_t c = 0; c < m; ++c)
            for (index_t d = 0; d < dim; ++d)
              gradient.query(b, c, h, d) = static_cast<T>(product[c * wide + d]);
          inverse.load(0, at.query, b, h);
          inverse.times_wide(dz, true, x, product);
          for (index_t c = 0; c < m; ++c)
            for (index_t d = 0; d < dim; ++d)
              gradient.key(b, c, key_head, d) += static_cast<T>(product[c * wide + d]);
        }
      });
}

template <class T, class Q, class K, class V, class O, class... I>
void check_nystrom(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                   char const* out_name, tensor_view<O, 4> out, index_t landmarks,
                   I const&... ingredients) {
  static_assert((true && ... &&
                 (is_for_every_call.template operator()<I>() ||
                  attend::detail::is_scale.template operator()<I>() ||
                  is_value_filter.template operator()<I>())),
                "heed: nystrom_attention takes scale, value_filter, an executor and scratch");
  check_self<T>(query, key, value, out_name, out);
  scale_of(query.extent(3), ingredients...);
  require(landmarks > 0, [&] {
    return "nystrom_attention has " + std::to_string(landmarks) + " landmarks; expected at least 1";
  });
  check_value_filter(value.extent(2), ingredients...);
}

}  // namespace detail

/// Attention through landmarks. Shapes as in attention(), with as many queries as keys.
///
/// Ingredients: scale, by default 1 / sqrt(head_dim); value_filter; an executor; scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void nystrom_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                       tensor_view<O, 4> out, index_t landmarks,
                       Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_nystrom<T>(query, key, value, "out", out, landmarks, ingredients...);
  double const factor = detail::scale_of(query.extent(3), ingredients...);
  auto const attend_to = [&](auto const& keys, auto const& values) {
    detail::with_machine(
        [&](auto const&... machine) {
          attention(query, keys, values, out, scale{factor}, machine...);
        },
        ingredients...);
  };
  if (query.extent(1) <= landmarks) {
    attend_to(key, value);
  } else {
    auto const at = detail::laid_out<detail::nystrom_memory>([&](arena& memory) {
      return detail::nystrom_landmarks<T>(memory, query.extent(0), landmarks, query.extent(2),
                                          key.extent(2), query.extent(3), value.extent(3));
    });
    detail::find_landmarks(at, query, key, value, ingredients...);
    attend_to(at.key, at.found);
  }
  detail::add_value_filter<T>(value, out, ingredients...);
}

/// The gradients of nystrom_attention, through the iterations and the means, with the ingredients of the forward call, which
/// it computes again.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          class... Ingredients>
void nystrom_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                tensor_view<V, 4> value, tensor_view<DO, 4> dout,
                                tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                tensor_view<DV, 4> dvalue, index_t landmarks,
                                Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, DO, DQ, DK, DV>;
  detail::check_nystrom<T>(query, key, value, "dout", dout, landmarks, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  index_t const batches = query.extent(0), rows = query.extent(1), heads = query.extent(2),
                key_heads = key.extent(2), dim = query.extent(3), value_dim = value.extent(3),
                m = landmarks;
  double const factor = detail::scale_of(dim, ingredients...);
  auto const run_on = detail::executor_of(ingredients...);
  bool const exact = rows <= landmarks;

  struct layout {
    detail::nystrom_landmarks<T> at, gradient;
    tensor_view<T, 4> dquery_by_keys;
    partial_attention<T> result;
  };
  layout const own = detail::laid_out<detail::nystrom_memory>([&](arena& memory) {
    auto const take = [&] {
      return detail::nystrom_landmarks<T>(memory, batches, exact ? 0 : m, heads, key_heads, dim,
                                          value_dim);
    };
    return layout{take(), take(), detail::take_rows<T>(memory, batches, exact ? 0 : m, heads, dim),
                  detail::take_result<T>(memory, batches, rows, heads, value_dim)};
  });
  auto const& at = own.at;
  auto const& gradient = own.gradient;
  // The second softmax, or the only one.
  auto const attend_and_back = [&](auto const& keys, auto const& values, auto const& dkeys,
                                   auto const& dvalues) {
    detail::with_machine(
        [&](auto const&... machine) {
          attention(query, keys, values, own.result.out, scale{factor}, lse_into<T>{own.result.lse},
                    machine...);
          attention_backward(query, keys, values, own.result.out, own.result.lse, dout, dquery,
                             dkeys, dvalues, scale{factor}, machine...);
        },
        ingredients...);
  };
  if (exact) {
    attend_and_back(key, value, dkey, dvalue);
    return detail::add_value_filter_gradient<T>(value, dout, dvalue, ingredients...);
  }
  detail::find_landmarks(at, query, key, value, ingredients...);
  attend_and_back(at.key, at.found, gradient.key, gradient.found);

  detail::find_landmark_gradients(at, gradient, factor, any_executor(run_on));
  detail::with_machine(
      [&](auto const&... machine) {
        attention_backward(at.query, key, value, at.seen.out, at.seen.lse, gradient.seen.out,
                           own.dquery_by_keys, dkey, dvalue, scale{factor}, machine...);
      },
      ingredients...);
  detail::add_scaled(run_on, T(1), own.dquery_by_keys, gradient.query);
  segment_means_backward(gradient.query, {rows, m}, dquery, run_on);
  segment_means_backward(gradient.key, {rows, m}, dkey, run_on);
  detail::add_value_filter_gradient<T>(value, dout, dvalue, ingredients...);
}

}  // namespace heed
