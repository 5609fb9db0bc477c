#pragma once

#include <heed/mechanism/extra_keys.hpp>
#include <heed/mechanism/streaming.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/softmax.hpp>

#include <cmath>

/// Unveiling Simplicities of Attention: Adaptive Long-Context Head Identification (QAdA). Each query of each head first
/// meets sinks and recent keys. How much weight the other keys would have is estimated from their mean and covariance;
/// where it is little they are left out, elsewhere a second pass meets them and is merged.
namespace heed {

/// The first two moments of the keys of each key head, as the estimate needs them.
///
///   mean         [batch or 1, key_heads, dim]
///   covariance   [batch or 1, key_heads, dim, dim]
///   factor       [batch or 1, key_heads, rank, dim], optional: factor' factor serves for the covariance, which may then
///                be an empty view; of a low rank it costs less
template <class T>
struct key_moments {
  tensor_view<T, 3> mean;
  tensor_view<T, 4> covariance;
  tensor_view<T, 4> factor = {};

  bool is_factored() const { return factor.data() != nullptr; }
};

/// Measures the moments of the keys of a prefill, rotated if the keys are.
template <element K, class T>
void measure_key_moments(tensor_view<K, 4> key, key_moments<T> const& to) {
  index_t const count = key.extent(1), dim = key.extent(3);
  std::array<index_t, 3> const mean_shape{key.extent(0), key.extent(2), dim};
  std::array<index_t, 4> const shape{key.extent(0), key.extent(2), dim, dim};
  require(to.mean.extents() == mean_shape && to.covariance.extents() == shape, [&] {
    return "key moments have shapes " + shape_text(to.mean.extents()) + " and " +
           shape_text(to.covariance.extents()) + "; expected " + shape_text(mean_shape) + " and " +
           shape_text(shape);
  });
  auto const number = [&](index_t b, index_t j, index_t h, index_t d) {
    return convert_element<double>(convert_element<compute_type<K>>(key(b, j, h, d)));
  };
  double const share = count > 0 ? 1 / static_cast<double>(count) : 0;
  for (index_t b = 0; b < key.extent(0); ++b)
    for (index_t h = 0; h < key.extent(2); ++h) {
      for (index_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (index_t j = 0; j < count; ++j) sum += number(b, j, h, d);
        to.mean(b, h, d) = static_cast<T>(share * sum);
      }
      for (index_t d = 0; d < dim; ++d)
        for (index_t e = 0; e <= d; ++e) {
          double sum = 0;
          for (index_t j = 0; j < count; ++j)
            sum += (number(b, j, h, d) - static_cast<double>(to.mean(b, h, d))) *
                   (number(b, j, h, e) - static_cast<double>(to.mean(b, h, e)));
          to.covariance(b, h, d, e) = to.covariance(b, h, e, d) = static_cast<T>(share * sum);
        }
    }
}

/// log of the weight of `count` keys with these moments, for a query of head `head`:
/// log count + scale q.mean + scale^2 q.covariance q / 2, the last q.covariance q = |factor q|^2; -infinity for none.
template <element Q, class T>
double estimated_log_mass(tensor_view<Q, 4> query, index_t b, index_t i, index_t head, double scale,
                          key_moments<T> const& moments, index_t count) {
  if (count <= 0) return -std::numeric_limits<double>::infinity();
  index_t const dim = query.extent(3), entry = moments.mean.extent(0) == 1 ? 0 : b,
                key_head = head * moments.mean.extent(1) / query.extent(2);
  auto const q = [&](index_t d) {
    return convert_element<double>(convert_element<compute_type<Q>>(query(b, i, head, d)));
  };
  double mean = 0, spread = 0;
  for (index_t d = 0; d < dim; ++d)
    mean += q(d) * static_cast<double>(moments.mean(entry, key_head, d));
  auto const& matrix = moments.is_factored() ? moments.factor : moments.covariance;
  for (index_t n = 0; n < matrix.extent(2); ++n) {
    double row = 0;
    for (index_t d = 0; d < dim; ++d)
      row += static_cast<double>(matrix(entry, key_head, n, d)) * q(d);
    spread += row * (moments.is_factored() ? row : q(n));
  }
  return std::log(static_cast<double>(count)) + scale * mean + scale * scale * spread / 2;
}

/// Who is local: a head for a query, if sinks and recent keys have at least `threshold` of the estimated whole weight.
/// 0 makes all local; 1 none, of those that have other keys.
struct adaptive_heads {
  index_t sinks = 16;
  index_t recent = 1024;
  double threshold = 0.9;

  streaming near() const { return {sinks, recent}; }
};

namespace detail {

inline workspace& adaptive_heads_workspace() {
  thread_local workspace own;
  return own;
}

template <class Q, class T>
void check_moments(tensor_view<Q, 4> query, key_moments<T> const& moments) {
  auto const& mean = moments.mean;
  auto const& matrix = moments.is_factored() ? moments.factor : moments.covariance;
  index_t const dim = query.extent(3), key_heads = mean.extent(1),
                rank = moments.is_factored() ? matrix.extent(2) : dim;
  require((mean.extent(0) == 1 || mean.extent(0) == query.extent(0)) && key_heads > 0 &&
              query.extent(2) % key_heads == 0 && mean.extent(2) == dim &&
              matrix.extents() == std::array<index_t, 4>{mean.extent(0), key_heads, rank, dim},
          [&] {
            return "key moments have shapes " + shape_text(mean.extents()) + " and " +
                   shape_text(matrix.extents()) + "; expected [1 or batch, key_heads, " +
                   std::to_string(dim) + "] and [1 or batch, key_heads, " +
                   (moments.is_factored() ? "rank" : std::to_string(dim)) + ", " +
                   std::to_string(dim) + "]";
          });
}

}  // namespace detail

/// Causal attention in which every query of every head decides for itself. `reaches_far` [batch, head, row] receives 1
/// where all keys are met and 0 elsewhere; the result is that of attention with
/// `causal{} & (how.near() | chosen_rows{reaches_far})`, which is also what attention_backward takes.
///
/// Ingredients: scale, an executor, scratch, lse_into. Also a step of decoding, which costs the near keys and, for the
/// decision, head_dim^2 or rank head_dim.
template <element Q, element K, element V, element O, class M, class T, class... Ingredients>
void adaptive_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, key_moments<M> const& moments,
                        adaptive_heads const& how, tensor_view<T, 3> reaches_far,
                        Ingredients const&... ingredients) {
  using number = compute_type<Q, K, V, O>;
  index_t const batches = query.extent(0), rows = query.extent(1), heads = query.extent(2),
                dim = value.extent(3);
  std::array<index_t, 3> const row_shape{batches, heads, rows};
  detail::check_moments(query, moments);
  require(reaches_far.extents() == row_shape, [&] {
    return "reaches_far has shape " + shape_text(reaches_far.extents()) + "; expected " +
           shape_text(row_shape) + " (batch, head, row)";
  });
  attend::detail::expect_like("out", out, {batches, rows, heads, dim},
                              "query with the head_dim of value");
  auto const lse = attend::one_of<detail::is_lse_into>(lse_into<number>{}, ingredients...).out;
  if (lse.data() != nullptr) detail::require_lse(lse.extents(), "lse", out.extents());
  auto const lay_out = [&](arena memory) {
    std::array<partial_attention<number>, 2> parts;
    for (auto& part : parts)
      part = {bhnd(memory.take<number>(batches * heads * rows * dim), batches, heads, rows, dim),
              {memory.take<number>(batches * heads * rows), row_shape}};
    return std::pair(parts, memory.used());
  };
  auto const parts =
      lay_out(arena(detail::adaptive_heads_workspace().reserve(lay_out(arena()).second))).first;
  auto const attend = [&](partial_attention<number> const& part, auto const& pattern) {
    std::apply(
        [&](auto const&... shared) {
          attention(query, key, value, part.out, pattern, lse_into<number>{part.lse}, shared...);
        },
        attend::all_of<detail::is_for_sequence>(ingredients...));
  };
  attend(parts[0], how.near());

  double const scale =
      attend::one_of<attend::detail::is_scale>(
          heed::scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(query.extent(3), 1)))},
          ingredients...)
          .value;
  double const least = std::log(how.threshold) - std::log1p(-how.threshold);
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t i = 0; i < rows; ++i) {
        index_t const others = i + key.extent(1) - rows + 1 - how.sinks - how.recent;
        double const near = static_cast<double>(parts[0].lse(b, h, i)),
                     far = estimated_log_mass(query, b, i, h, scale, moments, others);
        reaches_far(b, h, i) = others > 0 && !(near - far >= least) ? T(1) : T(0);
      }
  attend(parts[1], causal{} & ~how.near() & chosen_rows{reaches_far});
  merge_attention(parts, out, lse);
}

}  // namespace heed
