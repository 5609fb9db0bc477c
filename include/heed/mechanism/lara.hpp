#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/recur/segments.hpp>

/// Linear Complexity Randomized Self-attention Mechanism (LARA), as in CAB. With q', k' the means of m segments, mu_c = q'_c + k'_c
/// and samples w_c = mu_c + noise_c (evaluation: mu_c), kappa the scale and l_x(c) = kappa (w_c.x - |x|^2 / 2),
///
///     V_c = sum_j softmax_j(l_(k_j)(c)) v_j,     L_c = log sum_j exp l_(k_j)(c)
///     r_i(c) = kappa mu_c.q_i + l_(q_i)(c) + L_c - kappa (mu_c.w_c - |mu_c|^2 / 2)
///     out_i = sum_c softmax_c(r_i(c)) V_c
///
/// Two calls of attention: queries w on the keys, biased by -kappa |k|^2 / 2; then the queries on the keys mu + w with values V,
/// biased by L_c - kappa (mu_c.w_c - |mu_c|^2 / 2). |q|^2 is the same for all c and cancels. Not causal: every row goes into the
/// means.
namespace heed {

/// Noise for the samples of lara_attention: standard normal numbers [batch, samples, heads, head_dim]. Default none.
template <class T>
struct sample_noise {
  tensor_view<T, 4> numbers;
};
template <class T>
sample_noise(tensor_view<T, 4>) -> sample_noise<T>;

namespace detail {

struct lara_memory;

inline constexpr auto is_sample_noise = []<class T>() {
  return attend::detail::is_a<T, sample_noise>;
};
inline constexpr auto is_key_lengths = []<class T>() { return std::same_as<T, key_lengths>; };
inline constexpr auto is_for_keys = []<class T>() {
  return is_key_lengths.template operator()<T>() || is_for_every_call.template operator()<T>();
};

/// The means of a call and what they found.
template <class T>
struct lara_samples {
  tensor_view<T, 4> query, key;  // means, then mu and w of each query head
  tensor_view<T, 4> mean, sample, both;
  tensor_view<T, 4> key_bias;     // [batch, heads, 1, keys]
  tensor_view<T, 4> sample_bias;  // [batch, heads, 1, samples]
  partial_attention<T> seen;

  lara_samples(arena& memory, index_t batches, index_t rows, index_t m, index_t heads,
               index_t key_heads, index_t dim, index_t value_dim)
      : query(take_rows<T>(memory, batches, m, heads, dim)),
        key(take_rows<T>(memory, batches, m, key_heads, dim)),
        mean(take_rows<T>(memory, batches, m, heads, dim)),
        sample(take_rows<T>(memory, batches, m, heads, dim)),
        both(take_rows<T>(memory, batches, m, heads, dim)),
        key_bias(memory.take<T>(batches * heads * rows), {batches, heads, 1, rows}),
        sample_bias(memory.take<T>(batches * heads * m), {batches, heads, 1, m}),
        seen(take_result<T>(memory, batches, m, heads, value_dim)) {}
};

/// How a batch entry is cut: no more segments than it has rows.
template <class... I>
auto lara_segments(index_t rows, index_t samples, I const&... ingredients) {
  auto const lengths = attend::one_of<is_key_lengths>(key_lengths{}, ingredients...).lengths;
  return [=](index_t b) {
    index_t const own = lengths.empty() ? rows : lengths[static_cast<std::size_t>(b)];
    return segments{own, std::min(own, samples)};
  };
}

template <class T, class Q, class K, class V, class... I>
void draw_samples(lara_samples<T> const& at, double kappa, tensor_view<Q, 4> query,
                  tensor_view<K, 4> key, tensor_view<V, 4> value, index_t samples,
                  I const&... ingredients) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  index_t const m = at.mean.extent(1), heads = query.extent(2), key_heads = key.extent(2),
                dim = query.extent(3);
  auto const run_on = executor_of(ingredients...);
  auto const cut_of = lara_segments(query.extent(1), samples, ingredients...);
  segment_means_of(query, cut_of, at.query, run_on);
  segment_means_of(key, cut_of, at.key, run_on);
  source<T> const keys(key);
  auto const bytes = arena::bytes<T>(dim);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, query.extent(0) * heads, [&](index_t piece, index_t worker) {
    T* const row = arena(memory + worker * bytes).template take<T>(dim);
    index_t const b = piece / heads, h = piece % heads,
                  key_head = h * key_heads / std::max<index_t>(heads, 1);
    for (index_t c = 0; c < m; ++c)
      for (index_t d = 0; d < dim; ++d) {
        T const mean = at.query(b, c, h, d) + at.key(b, c, key_head, d);
        T noise = 0;
        if constexpr ((false || ... || is_sample_noise.template operator()<I>()))
          noise = convert_element<T>(
              attend::one_of<is_sample_noise>(nullptr, ingredients...).numbers(b, c, h, d));
        at.mean(b, c, h, d) = mean;
        at.sample(b, c, h, d) = mean + noise;
        at.both(b, c, h, d) = mean + (mean + noise);
      }
    index_t const known = cut_of(b).rows;
    for (index_t j = 0; j < key.extent(1); ++j) {
      T const* const k = keys.rows(b, key_head, j, 1, row).data;
      T square = 0;
      for (index_t d = 0; d < dim; ++d) square += k[d] * k[d];
      at.key_bias(b, h, index_t{0}, j) = j < known ? static_cast<T>(-kappa / 2) * square : T(0);
    }
  });
  std::apply(
      [&](auto const&... own) {
        attention(at.sample, key, value, at.seen.out, scale{kappa}, bias(at.key_bias),
                  lse_into<T>{at.seen.lse}, own...);
      },
      attend::all_of<is_for_keys>(ingredients...));
  for (index_t b = 0; b < query.extent(0); ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t c = 0; c < m; ++c) {
        double sum = 0;  // mu.w - |mu|^2 / 2
        for (index_t d = 0; d < dim; ++d)
          sum += static_cast<double>(at.mean(b, c, h, d)) *
                 (static_cast<double>(at.sample(b, c, h, d)) -
                  static_cast<double>(at.mean(b, c, h, d)) / 2);
        at.sample_bias(b, h, index_t{0}, c) =
            c < cut_of(b).count
                ? static_cast<T>(static_cast<double>(at.seen.lse(b, h, c)) - kappa * sum)
                : -infinity;
      }
}

template <class T, class Q, class K, class V, class O, class... I>
void check_lara(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                char const* out_name, tensor_view<O, 4> out, index_t samples,
                I const&... ingredients) {
  static_assert(
      (true && ... &&
       (is_for_keys.template operator()<I>() || attend::detail::is_scale.template operator()<I>() ||
        is_sample_noise.template operator()<I>())),
      "heed: lara_attention takes scale, sample_noise, key_lengths, an executor and scratch");
  check_self<T>(query, key, value, out_name, out);
  scale_of(query.extent(3), ingredients...);
  require(samples > 0, [&] {
    return "lara_attention has " + std::to_string(samples) + " samples; expected at least 1";
  });
  if constexpr ((false || ... || is_key_lengths.template operator()<I>()))
    attend::one_of<is_key_lengths>(key_lengths{}, ingredients...)
        .check({query.extent(0), query.extent(0), query.extent(2), query.extent(1), key.extent(1)});
  if constexpr ((false || ... || is_sample_noise.template operator()<I>()))
    expect_like(
        "sample_noise", attend::one_of<is_sample_noise>(nullptr, ingredients...).numbers,
        {query.extent(0), std::min(samples, query.extent(1)), query.extent(2), query.extent(3)},
        "query with a position for each sample");
}

}  // namespace detail

/// Attention through `samples` samples, or as many as there are rows if those are fewer. Shapes as in attention(), with as many
/// queries as keys.
///
/// Ingredients: scale, by default 1 / sqrt(head_dim); sample_noise; key_lengths, where rows from there on are padding: no keys,
/// and no part of the means; an executor; scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void lara_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, index_t samples, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_lara<T>(query, key, value, "out", out, samples, ingredients...);
  double const kappa = detail::scale_of(query.extent(3), ingredients...);
  auto const at = detail::laid_out<detail::lara_memory>([&](arena& memory) {
    return detail::lara_samples<T>(memory, query.extent(0), query.extent(1),
                                   std::min(samples, query.extent(1)), query.extent(2),
                                   key.extent(2), query.extent(3), value.extent(3));
  });
  detail::draw_samples(at, kappa, query, key, value, samples, ingredients...);
  detail::with_machine(
      [&](auto const&... machine) {
        attention(query, at.both, at.seen.out, out, scale{kappa}, bias(at.sample_bias), machine...);
      },
      ingredients...);
}

/// The gradients of lara_attention, those through the means included, with the ingredients of the forward call, which it computes
/// again. Where rows are padding, dout is expected to be 0.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          class... Ingredients>
void lara_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<DO, 4> dout,
                             tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                             tensor_view<DV, 4> dvalue, index_t samples,
                             Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, DO, DQ, DK, DV>;
  detail::check_lara<T>(query, key, value, "dout", dout, samples, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  index_t const batches = query.extent(0), rows = query.extent(1), heads = query.extent(2),
                key_heads = key.extent(2), dim = query.extent(3), value_dim = value.extent(3),
                m = std::min(samples, rows), group = heads / std::max<index_t>(key_heads, 1);
  double const kappa = detail::scale_of(dim, ingredients...);
  auto const run_on = detail::executor_of(ingredients...);
  struct layout {
    detail::lara_samples<T> at, gradient;
    partial_attention<T> result;
  };
  layout const own = detail::laid_out<detail::lara_memory>([&](arena& memory) {
    auto const take = [&] {
      return detail::lara_samples<T>(memory, batches, rows, m, heads, key_heads, dim, value_dim);
    };
    return layout{take(), take(), detail::take_result<T>(memory, batches, rows, heads, value_dim)};
  });
  auto const& at = own.at;
  auto const& gradient = own.gradient;
  detail::draw_samples(at, kappa, query, key, value, samples, ingredients...);
  detail::with_machine(
      [&](auto const&... machine) {
        attention(query, at.both, at.seen.out, own.result.out, scale{kappa}, bias(at.sample_bias),
                  lse_into<T>{own.result.lse}, machine...);
        attention_backward(query, at.both, at.seen.out, own.result.out, own.result.lse, dout,
                           dquery, gradient.both, gradient.seen.out, scale{kappa},
                           bias(at.sample_bias, gradient.sample_bias), machine...);
      },
      ingredients...);
  tensor_view<T const, 3> const dlse(gradient.sample_bias.data(), {batches, heads, m});
  std::apply(
      [&](auto const&... of_keys) {
        attention_backward(at.sample, key, value, at.seen.out, at.seen.lse, gradient.seen.out,
                           gradient.sample, dkey, dvalue, scale{kappa},
                           bias(at.key_bias, gradient.key_bias), lse_gradient<T>(dlse), of_keys...);
      },
      attend::all_of<detail::is_for_keys>(ingredients...));

  // Through the biases, to the means and the keys.
  auto const factor = static_cast<T>(kappa);
  auto const cut_of = detail::lara_segments(rows, samples, ingredients...);
  parallel_for(run_on, batches * key_heads, [&](index_t piece, index_t) {
    index_t const b = piece / key_heads, key_head = piece % key_heads;
    for (index_t c = 0; c < m; ++c)
      for (index_t d = 0; d < dim; ++d) {
        T of_key = 0;
        for (index_t h = key_head * group; h < (key_head + 1) * group; ++h) {
          // Of both = mu + w and w = mu + noise: mu counts twice. The bias is - kappa (mu.w - |mu|^2 / 2).
          T const db = factor * gradient.sample_bias(b, h, index_t{0}, c);
          T const dmean = 2 * gradient.both(b, c, h, d) + gradient.sample(b, c, h, d) -
                          db * at.sample(b, c, h, d);
          gradient.query(b, c, h, d) = dmean;
          of_key += dmean;
        }
        gradient.key(b, c, key_head, d) = of_key;
      }
    for (index_t j = 0; j < cut_of(b).rows; ++j) {
      T slope = 0;
      for (index_t h = key_head * group; h < (key_head + 1) * group; ++h)
        slope -= factor * gradient.key_bias(b, h, index_t{0}, j);
      for (index_t d = 0; d < dim; ++d)
        dkey(b, j, key_head, d) =
            convert_element<DK>(convert_element<T>(dkey(b, j, key_head, d)) +
                                slope * convert_element<T>(key(b, j, key_head, d)));
    }
  });
  detail::segment_means_of_backward(gradient.query, cut_of, dquery, run_on);
  detail::segment_means_of_backward(gradient.key, cut_of, dkey, run_on);
}

}  // namespace heed
