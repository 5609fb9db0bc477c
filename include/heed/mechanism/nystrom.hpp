#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/mechanism/local_aggregation.hpp>
#include <heed/recur/segments.hpp>
#include <heed/simd/product.hpp>

/// Nystroemformer: A Nystroem-Based Algorithm for Approximating Self-Attention, as in CAB. With landmarks Q', K', the means of
/// m segments of the queries and of the keys,
///
///     out = softmax(scale Q K'^T) Z softmax(scale Q' K^T) V,     Z about the inverse of A = softmax(scale Q' K'^T)
///
/// by six iterations Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from A^T / max_j sum_i A_ij, for each head on its own and in
/// double. Where A is near singular six do not reach the inverse; the mechanism is what they do reach. With no more rows than
/// landmarks it is softmax attention. Not causal: every row goes into the landmarks.
namespace heed {

/// Adds a filter of the values along positions, out_i += sum_t weights(t, h) v_(i + t - taps / 2), with zeros around them.
///
///   weights    [taps, value heads], the number of taps odd
///   gradient   the same shape, written by the backward pass. Optional
template <element T>
struct value_filter {
  tensor_view<T const, 2> weights;
  tensor_view<T, 2> gradient;

  value_filter(tensor_view<T const, 2> w, tensor_view<T, 2> dw = {}) : weights(w), gradient(dw) {}
};
template <class T, class... G>
value_filter(tensor_view<T, 2>, G const&...) -> value_filter<std::remove_const_t<T>>;

namespace detail {

struct nystrom_memory;

inline constexpr auto is_value_filter = []<class T>() {
  return attend::detail::is_a<T, value_filter>;
};

/// The iteration of one head, and its gradient. Matrices of m rows padded to whole registers, all in double.
class landmark_inverse {
 public:
  static constexpr int iterations = 6;

  /// `dim` is the most columns of what is multiplied with; `keeps` whether there will be a backward pass.
  landmark_inverse(arena& memory, index_t landmarks, index_t dim, bool keeps)
      : m(landmarks), stride(padded(landmarks)), wide_stride(padded(dim)), kept_(keeps) {
    a = take(memory);
    for (int n = 0; n <= (keeps ? iterations : 1); ++n) z_[n] = take(memory);
    for (double*& each : work_) each = take(memory);
    for (double*& each : wide) each = memory.take<double>(m * wide_stride);
    slope = keeps ? take(memory) : nullptr;
    turned_ = memory.take<double>(padded(dim) * stride);
  }

  index_t m, stride, wide_stride;
  double* a;        // [m][stride], zeros beyond m columns
  double* slope;    // the same, for d loss / d run()
  double* wide[3];  // [m][wide_stride]

  static index_t padded(index_t columns) {
    return simd::round_up(columns, simd::tile_shape<double, xsimd::default_arch>::lanes);
  }

  /// Rows of a tensor in one of the wide matrices, with zeros beyond its columns.
  template <class T>
  void load(int into, tensor_view<T, 4> rows, index_t b, index_t h) const {
    for (index_t c = 0; c < m; ++c)
      for (index_t d = 0; d < wide_stride; ++d)
        wide[into][c * wide_stride + d] =
            d < rows.extent(3) ? static_cast<double>(rows(b, c, h, d)) : 0;
  }

  /// a = softmax(scale x y^T) of two wide matrices.
  void weigh(double scale, double const* x, double const* y, index_t dim) {
    times_turned(x, y, dim, a);
    for (index_t c = 0; c < m; ++c) {
      double* const row = a + c * stride;
      double const top = *std::max_element(row, row + m);
      double total = 0;
      for (index_t e = 0; e < m; ++e) total += row[e] = std::exp(scale * (row[e] - top));
      for (index_t e = 0; e < m; ++e) row[e] /= total;
    }
  }

  /// The inverse of a, as far as the iterations go.
  double const* run() {
    largest_column_ = 0;
    double largest = -1;
    for (index_t e = 0; e < m; ++e) {
      double sum = 0;
      for (index_t c = 0; c < m; ++c) sum += a[c * stride + e];
      if (sum > largest) largest = sum, largest_column_ = e;
    }
    start_ = 1 / largest;
    transpose(a, z_[0]);
    for (index_t n = 0; n < m * stride; ++n) z_[0][n] *= start_;
    for (int n = 0; n < iterations; ++n) {
      factors(z(n));
      product<false>(z(n), false, work_[3], z(n + 1));
      for (index_t i = 0; i < m * stride; ++i) z(n + 1)[i] *= 0.25;
    }
    return z(iterations);
  }

  /// d loss / d a from dz, d loss / d run(), which it uses up.
  double const* differentiate(double* dz) {
    auto& [x, p, q, r, dx, dp, da, other] = work_;
    std::fill_n(da, m * stride, 0.0);
    for (int n = iterations; n-- > 0;) {
      factors(z(n));
      for (index_t i = 0; i < m * stride; ++i) dz[i] *= 0.25;
      double* const dr = other;
      product<false>(z(n), true, dz, dr);  // dR = Z^T dZ'
      transpose(r, dp);
      product<false>(dz, false, dp, dx);
      std::copy_n(dx, m * stride, dz);  // dZ = dZ' R^T
      // R = 13 I - X Q: the gradients of X and Q with the opposite sign, and so down to P.
      transpose(q, dp);
      product<false>(dr, false, dp, dx);
      product<false>(x, true, dr, r);
      transpose(p, dp);
      for (index_t i = 0; i < m * stride; ++i) r[i] = -r[i];
      product<true>(r, false, dp, dx);
      product<false>(x, true, r, dp);
      for (index_t i = 0; i < m * stride; ++i) dx[i] = -dx[i] + dp[i];
      // X = A Z.
      transpose(z(n), dp);
      product<true>(dx, false, dp, da);
      product<true>(a, true, dx, dz);
    }
    // Z_0 = A^T / c, where c is the sum of one column.
    transpose(dz, other);
    double by_start = 0;
    for (index_t i = 0; i < m * stride; ++i) by_start += other[i] * a[i];
    for (index_t i = 0; i < m * stride; ++i) da[i] += start_ * other[i];
    for (index_t c = 0; c < m; ++c) da[c * stride + largest_column_] -= start_ * start_ * by_start;
    return da;
  }

  /// to = x (transposed or not) times a wide matrix.
  void times_wide(double const* x, bool turned, double const* y, double* to) const {
    simd::product<false, xsimd::default_arch>(m, m, scalars(x, turned), y, wide_stride, wide_stride,
                                              to, wide_stride);
  }
  /// to = x y^T of wide matrices, of which `dim` columns count.
  void times_turned(double const* x, double const* y, index_t dim, double* to) const {
    std::fill_n(turned_, dim * stride, 0.0);
    for (index_t d = 0; d < dim; ++d)
      for (index_t c = 0; c < m; ++c) turned_[d * stride + c] = y[c * wide_stride + d];
    simd::product<false, xsimd::default_arch>(m, dim, simd::scalar_rows<double>{x, wide_stride, 1},
                                              turned_, stride, stride, to, stride);
  }

 private:
  double* take(arena& memory) const { return memory.take<double>(m * stride); }
  /// Without a backward pass two iterates are enough.
  double* z(int n) const { return z_[kept_ ? n : n % 2]; }

  simd::scalar_rows<double> scalars(double const* x, bool turned) const {
    return turned ? simd::scalar_rows<double>{x, 1, stride}
                  : simd::scalar_rows<double>{x, stride, 1};
  }
  template <bool Accumulate>
  void product(double const* x, bool turned, double const* y, double* to) const {
    simd::product<Accumulate, xsimd::default_arch>(m, m, scalars(x, turned), y, stride, stride, to,
                                                   stride);
  }
  void transpose(double const* x, double* to) const {
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < stride; ++j) to[i * stride + j] = j < m ? x[j * stride + i] : 0;
  }
  /// X = A Z, P = 7 I - X, Q = 15 I - X P, R = 13 I - X Q.
  void factors(double const* z) const {
    auto& [x, p, q, r, dx, dp, da, other] = work_;
    product<false>(a, false, z, x);
    for (index_t i = 0; i < m * stride; ++i) p[i] = -x[i];
    for (index_t i = 0; i < m; ++i) p[i * stride + i] += 7;
    product<false>(x, false, p, q);
    for (index_t i = 0; i < m * stride; ++i) q[i] = -q[i];
    for (index_t i = 0; i < m; ++i) q[i * stride + i] += 15;
    product<false>(x, false, q, r);
    for (index_t i = 0; i < m * stride; ++i) r[i] = -r[i];
    for (index_t i = 0; i < m; ++i) r[i * stride + i] += 13;
  }

  bool kept_;
  double* z_[iterations + 1];
  double* work_[8];
  double* turned_;
  double start_ = 0;
  index_t largest_column_ = 0;
};

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
  landmark_inverse const measured(size, m, dim, keeps);
  auto const bytes = static_cast<index_t>(size.used());
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, batches * key_heads, [&](index_t piece, index_t worker) {
    arena own(memory + worker * bytes);
    landmark_inverse inverse(own, m, dim, keeps);
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
                     [&](landmark_inverse& inverse, index_t b, index_t key_head) {
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

/// The filter's box and weights as local_aggregation takes them.
template <class W>
tensor_view<W, 3> as_taps(tensor_view<W, 2> weights) {
  return {weights.data(),
          {weights.extent(0), weights.extent(1), 1},
          {weights.stride(0), weights.stride(1), 1}};
}

template <class T, class V, class O, class... I>
void add_value_filter(tensor_view<V, 4> value, tensor_view<O, 4> out, I const&... ingredients) {
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    auto const run_on = executor_of(ingredients...);
    auto const filtered = laid_out<nystrom_memory>([&](arena& memory) {
      return take_rows<T>(memory, value.extent(0), value.extent(1), value.extent(2),
                          value.extent(3));
    });
    local_aggregation(value, as_taps(filter.weights),
                      token_box<1>{{value.extent(1)}, {filter.weights.extent(0)}}, filtered,
                      run_on);
    index_t const group = out.extent(2) / value.extent(2);
    for (index_t r = 0; r < group; ++r)
      add_scaled(run_on, T(1), filtered, every_head(out, r, group));
  }
}

template <class T, class V, class DO, class DV, class... I>
void add_value_filter_gradient(tensor_view<V, 4> value, tensor_view<DO, 4> dout,
                               tensor_view<DV, 4> dvalue, I const&... ingredients) {
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    auto const run_on = executor_of(ingredients...);
    using W = typename decltype(filter.weights)::value_type;
    auto const [slope, back, dweights] = laid_out<nystrom_memory>([&](arena& memory) {
      auto const take = [&] {
        return take_rows<T>(memory, value.extent(0), value.extent(1), value.extent(2),
                            value.extent(3));
      };
      tensor_view<T, 4> const a = take(), b = take();
      return std::tuple(a, b, memory.take<W>(filter.weights.size()));
    });
    index_t const group = dout.extent(2) / value.extent(2);
    fill_zero(slope);
    for (index_t r = 0; r < group; ++r) add_scaled(run_on, T(1), every_head(dout, r, group), slope);
    auto const gradient = filter.gradient.data() != nullptr
                              ? filter.gradient
                              : tensor_view<W, 2>(dweights, filter.weights.extents());
    local_aggregation_backward(value, as_taps(filter.weights),
                               token_box<1>{{value.extent(1)}, {filter.weights.extent(0)}}, slope,
                               back, as_taps(gradient), run_on);
    add_scaled(run_on, T(1), back, dvalue);
  }
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
  if constexpr ((false || ... || is_value_filter.template operator()<I>())) {
    auto const filter = attend::one_of<is_value_filter>(nullptr, ingredients...);
    require(filter.weights.extent(0) % 2 == 1 && filter.weights.extent(1) == value.extent(2), [&] {
      return "value_filter has weights of shape " + shape_text(filter.weights.extents()) +
             "; expected [an odd number, " + std::to_string(value.extent(2)) +
             "] (taps, value heads)";
    });
    require(
        filter.gradient.data() == nullptr || filter.gradient.extents() == filter.weights.extents(),
        [&] {
          return "the gradient of value_filter has shape " + shape_text(filter.gradient.extents()) +
                 "; expected that of the weights, " + shape_text(filter.weights.extents());
        });
  }
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
                m = landmarks, group = heads / std::max<index_t>(key_heads, 1);
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

  // Through Z and A.
  detail::for_landmark_heads(
      run_on, batches, key_heads, m, std::max(dim, value_dim), true,
      [&](detail::landmark_inverse& inverse, index_t b, index_t key_head) {
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
