#pragma once

#include <heed/mechanism/lrpe.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/row_norms.hpp>

/// Lightning Attention (Scaling TransNormer to 175 Billion Parameters; Various Lengths, Constant Speed; Lightning Attention-2) and
/// retention (Retentive Network): linear attention that fades by one factor a head,
///
///     out_i = sum_(j <= i) lambda^(i - j) (q_i . k_j) v_j
///
/// that is linear_attention with a fixed decay, whose chunks are Lightning Attention-2:
///
///     linear_attention(q, k, v, out, fixed_decay(std::span<float>(log_decays)));
///
/// Below are the decays of the models, and the token mixer of TransNormerLLM around it.
namespace heed {

/// log lambda of each head for layer `layer` of `layers` of the released TransNormerLLM models: ALiBi's slopes,
/// -slope_h (1 - layer / (layers - 1) + 1e-5). The last layer hardly fades.
template <element E>
void lightning_decays(index_t layer, index_t layers, std::span<E> log_decays) {
  require(layers > 0 && layer >= 0 && layer < layers, [&] {
    return "layer " + std::to_string(layer) + " of " + std::to_string(layers) +
           "; expected one of the layers from 0 on";
  });
  auto const heads = static_cast<index_t>(log_decays.size());
  index_t power = 1;
  while (2 * power <= heads) power *= 2;
  double const depth =
      layers > 1 ? static_cast<double>(layer) / static_cast<double>(layers - 1) : 0;
  for (index_t h = 0; h < heads; ++h) {
    // Beyond a power of two come every second slope of twice as many heads.
    index_t const of = h < power ? power : 2 * power, n = h < power ? h : 2 * (h - power);
    double const slope = std::exp2(-8 * static_cast<double>(n + 1) / static_cast<double>(of));
    log_decays[static_cast<std::size_t>(h)] = convert_element<E>(-slope * (1 - depth + 1e-5));
  }
}

/// The decays that the paper has instead: -(8 h / heads) (1 - layer / layers). Head 0 does not fade.
template <element E>
void lightning_paper_decays(index_t layer, index_t layers, std::span<E> log_decays) {
  require(layers > 0 && layer >= 0 && layer < layers, [&] {
    return "layer " + std::to_string(layer) + " of " + std::to_string(layers) +
           "; expected one of the layers from 0 on";
  });
  auto const heads = static_cast<double>(log_decays.size());
  for (std::size_t h = 0; h < log_decays.size(); ++h)
    log_decays[h] =
        convert_element<E>(-8 * static_cast<double>(h) / heads *
                           (1 - static_cast<double>(layer) / static_cast<double>(layers)));
}

/// Retention's: lambda_h = 1 - 2^(-5 - h). Its queries are scaled by head_dim^-1/2.
template <element E>
void retention_decays(std::span<E> log_decays) {
  for (std::size_t h = 0; h < log_decays.size(); ++h)
    log_decays[h] = convert_element<E>(std::log1p(-std::exp2(-5 - static_cast<double>(h))));
}

/// The features of TransNormerLLM: silu of queries and keys, turned by where they stand in the layers that have `positions`.
template <element E>
struct transnormer_features {
  lrpe<E> positions{tensor_view<E const, 2>()};

  bool turns() const { return positions.theta.data() != nullptr; }
  index_t features(index_t dim) const { return turns() ? positions.features(dim) : dim; }
  void check(recurrence_shape const& shape) const {
    if (turns()) positions.check(shape);
  }

  template <class T>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    if (!turns()) return silu::apply(of, x, phi, stride);
    positions.apply(of, activated(of, x), phi, stride);
  }
  template <class T>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    if (!turns()) return silu::differentiate(of, x, phi, dphi, stride, dx, dx_stride);
    positions.differentiate(of, x, phi, dphi, stride, dx, dx_stride);
    using batch = xsimd::batch<T>;
    for (index_t r = 0; r < x.count; ++r)
      recur::transform_row<xsimd::default_arch>(
          x.dim, dx + r * dx_stride,
          [](batch const& each, batch const& slope) { return slope * silu::slope(each, each); },
          x[r], static_cast<T const*>(dx + r * dx_stride));
  }

 private:
  template <class T>
  static feature_rows<T> activated(side of, feature_rows<T> x) {
    thread_local workspace own;  // lrpe uses that of the maps
    auto const bytes = static_cast<std::size_t>(arena::bytes<T>(x.count * x.dim));
    T* const rows = arena(own.reserve(bytes)).take<T>(x.count * x.dim);
    silu::apply(of, x, rows, x.dim);
    x.data = rows;
    x.stride = x.dim;
    return x;
  }
};

/// The token mixer of TransNormerLLM between its projections: attended = lightning attention of silu(query) and silu(key), out =
/// SRMSNorm(attended) * gate, the norm over all heads of a token.
///
///   query, key, value, out   as in linear_attention; query, key before silu
///   gate                     shaped like out
///   attended                 shaped like out; what the backward pass needs
///   log_decays               one a head, see lightning_decays
///   map                      transnormer_features{}, or with the positions of the layer
///
/// Ingredients are those of linear_attention but maps, decays and scale.
template <element Q, element K, element V, element G, element A, element O, element L, element E,
          class... Ingredients>
void transnormer(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                 tensor_view<G, 4> gate, tensor_view<A, 4> attended, tensor_view<O, 4> out,
                 std::span<L> log_decays, transnormer_features<E> const& map,
                 Ingredients const&... ingredients) {
  detail::expect_like("gate", gate, out.extents(), "out");
  detail::expect_like("attended", attended, out.extents(), "out");
  linear_attention(query, key, value, attended, map, fixed_decay(log_decays), ingredients...);
  normalise_and_gate<linear_gate>(attended, gate, out, rms_norm{.across_heads = true},
                                  recur::executor_of(ingredients...));
}

namespace detail {
struct transnormer_page;
struct transnormer_theta_page;
}  // namespace detail

/// The gradients of transnormer, from the `attended` of the forward call; d loss / d theta too where map.positions carries a
/// gradient. That one takes the features of a whole batch entry, so no documents then.
template <element Q, element K, element V, element G, element A, element DO, element DQ, element DK,
          element DV, element DG, element L, element E, class... Ingredients>
void transnormer_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<G, 4> gate, tensor_view<A, 4> attended,
                          tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                          tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                          tensor_view<DG, 4> dgate, std::span<L> log_decays,
                          transnormer_features<E> const& map, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, A, DO, DQ, DK, DV, DG>;
  static_assert((true && ... && !std::is_same_v<Ingredients, scale>),
                "heed: transnormer has no scale");
  detail::expect_like("dgate", dgate, gate.extents(), "gate");
  auto const runs = recur::executor_of(ingredients...);
  any_executor const run_on(runs);
  auto const dattended = recur::page_tensors<detail::transnormer_page, T>(attended.extents())[0];
  recur::make_problem<T>(query, key, value, attended, map, fixed_decay(log_decays), ingredients...);
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  normalise_and_gate_backward<linear_gate>(attended, gate, dout, dattended, dgate,
                                           rms_norm{.across_heads = true}, runs);
  if (!map.turns() || map.positions.gradient.data() == nullptr) {
    linear_attention_backward(query, key, value, attended, dattended, dquery, dkey, dvalue, map,
                              fixed_decay(log_decays), ingredients...);
    return;
  }
  if constexpr ((true && ... && !std::is_same_v<Ingredients, documents>)) {
    auto const with_features = [&](recur::tensor_shape shape) {
      shape[3] = map.features(shape[3]);
      return shape;
    };
    auto const rows = with_features(query.extents()), keys = with_features(key.extents());
    auto const t = recur::page_tensors<detail::transnormer_theta_page, T>(rows, rows, keys, keys);
    index_t const first = key.extent(1) - query.extent(1);
    feature_map_view<T> const features(map);
    recur::write_features(run_on, features, side::query, source<T>(query), first, t[0]);
    recur::write_features(run_on, features, side::key, source<T>(key), 0, t[2]);
    linear_attention_backward(t[0], t[2], value, attended, dattended, t[1], t[3], dvalue,
                              fixed_decay(log_decays), ingredients...);
    recur::write_angle_gradient(run_on, map.positions, query.extent(3), first, t[0], t[1], t[2],
                                t[3]);
    recur::write_feature_gradient(run_on, features, side::query, source<T>(query), first, t[0],
                                  t[1], sink<T>(dquery));
    recur::write_feature_gradient(run_on, features, side::key, source<T>(key), 0, t[2], t[3],
                                  sink<T>(dkey));
  } else {
    require(false, [] {
      return std::string("a gradient of lrpe.theta and documents; expected one of them");
    });
  }
}

/// One token of transnormer; see linear_attention_step. Give map.positions.offset the tokens before it.
template <element Q, element K, element V, element G, element O, class S, element L, element E,
          class... Ingredients>
void transnormer_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<G, 4> gate, tensor_view<O, 4> out, tensor_view<S, 4> state,
                      std::span<L> log_decays, transnormer_features<E> const& map,
                      Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O>;
  detail::expect_like("gate", gate, out.extents(), "out");
  auto const attended = recur::page_tensors<detail::transnormer_page, T>(out.extents())[0];
  linear_attention_step(query, key, value, attended, state, map, fixed_decay(log_decays),
                        ingredients...);
  normalise_and_gate<linear_gate>(attended, gate, out, rms_norm{.across_heads = true},
                                  recur::executor_of(ingredients...));
}

}  // namespace heed
