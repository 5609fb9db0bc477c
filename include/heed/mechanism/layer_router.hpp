#pragma once

#include <heed/mechanism/blend.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

/// Flux Attention: a router for each layer. Once a prompt is in, a small network reads a summary of the layer's queries
/// and says whether the layer attends to everything or by its sparse pattern; the choice stays for decoding. While it is
/// trained both results are mixed:
///
///     heed::route_summary(q, 100, x);      heed::route(network, x, logits);
///     heed::route_weights(logits, noise, temperature, y);               // soft; the forward pass takes hard(y)
///     heed::blend(full, sparse, y_full, out);                           // y_full [batch, 1, 1]
///     heed::blend_backward(full, sparse, y_full, dout, dfull, dsparse, dy_full);
///     heed::route_weights_backward(y, dy_full, temperature, dlogits);   // straight through the hard choice
namespace heed {

/// The summary that the router reads: the mean over the heads and over the first and the last `rows` query rows, before
/// rotation. Rows in both count twice; of fewer than `rows` all count, twice. x: [batch, dim].
template <element Q, class T>
void route_summary(tensor_view<Q, 4> query, index_t rows, tensor_view<T, 2> x) {
  index_t const all = query.extent(1), heads = query.extent(2),
                ends = std::clamp<index_t>(rows, 0, all);
  require(x.extents() == std::array<index_t, 2>{query.extent(0), query.extent(3)}, [&] {
    return "the summary has shape " + shape_text(x.extents()) + "; expected [" +
           std::to_string(query.extent(0)) + ", " + std::to_string(query.extent(3)) +
           "] (batch, dim)";
  });
  double const share = ends * heads == 0 ? 0 : 1 / static_cast<double>(2 * ends * heads);
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t d = 0; d < x.extent(1); ++d) {
      double sum = 0;
      for (index_t n = 0; n < ends; ++n)
        for (index_t h = 0; h < heads; ++h)
          for (index_t i : {n, all - ends + n})
            sum += convert_element<double>(convert_element<compute_type<Q>>(query(b, i, h, d)));
      x(b, d) = static_cast<T>(share * sum);
    }
}

/// One map y = weight x + bias: weight [out, in], bias [out].
template <class T>
struct router_map {
  tensor_view<T, 2> weight;
  tensor_view<T, 1> bias;
};

/// f = W2 silu(W1 x + b1) + b2 and logits = W5 silu(W4 silu(W3 f + b3) + b4) + b5, of widths D, 8 D, 2 D, 4 D, D, 2 as
/// published; any that fit each other will do. The last bias begins at {0, 4.5}, in favour of full attention.
template <class T>
using router_network = std::array<router_map<T>, 5>;

namespace detail {

/// Before which maps silu is applied.
inline constexpr std::array<bool, 5> router_activates{false, true, false, true, true};

template <class T>
void check_router(router_network<T> const& network, index_t in, index_t out) {
  for (std::size_t n = 0; n < network.size(); ++n) {
    auto const& [weight, bias] = network[n];
    index_t const width = n == 0 ? in : network[n - 1].weight.extent(0);
    require(weight.extent(1) == width && bias.extent(0) == weight.extent(0) &&
                (n + 1 < network.size() || weight.extent(0) == out),
            [&, number = n, shape = weight.extents()] {
              return "map " + std::to_string(number + 1) + " of the router has the weights " +
                     shape_text(shape) + "; expected [out, " + std::to_string(width) +
                     "] and a bias for each out, 2 of the last map";
            });
  }
}

/// What each map reads and what the last one gives, in double.
template <class T>
std::array<std::vector<double>, 6> run_router(router_network<T> const& network,
                                              std::vector<double> x) {
  std::array<std::vector<double>, 6> layers;
  layers[0] = std::move(x);
  for (std::size_t n = 0; n < network.size(); ++n) {
    auto const& map = network[n];
    for (index_t o = 0; o < map.weight.extent(0); ++o) {
      double sum = static_cast<double>(map.bias(o));
      for (index_t i = 0; i < map.weight.extent(1); ++i) {
        double const in = layers[n][static_cast<std::size_t>(i)];
        sum += static_cast<double>(map.weight(o, i)) *
               (router_activates[n] ? in / (1 + std::exp(-in)) : in);
      }
      layers[n + 1].push_back(sum);
    }
  }
  return layers;
}

}  // namespace detail

/// The router's logits: x [batch, dim], logits [batch, 2]. The layer attends to everything where the second is larger.
template <class T, class X, class Z>
void route(router_network<T> const& network, tensor_view<X, 2> x, tensor_view<Z, 2> logits) {
  detail::check_router(network, x.extent(1), logits.extent(1));
  require(logits.extents() == std::array<index_t, 2>{x.extent(0), 2}, [&] {
    return "the logits have shape " + shape_text(logits.extents()) + "; expected [" +
           std::to_string(x.extent(0)) + ", 2] (batch, choice)";
  });
  for (index_t b = 0; b < x.extent(0); ++b) {
    std::vector<double> in;
    for (index_t d = 0; d < x.extent(1); ++d) in.push_back(static_cast<double>(x(b, d)));
    auto const layers = detail::run_router(network, in);
    for (index_t c = 0; c < 2; ++c)
      logits(b, c) = static_cast<Z>(layers.back()[static_cast<std::size_t>(c)]);
  }
}

/// The gradients of route: those of the network are added to `gradients`, dx is written.
template <class T, class X, class DZ, class G, class DX>
void route_backward(router_network<T> const& network, tensor_view<X, 2> x,
                    tensor_view<DZ, 2> dlogits, router_network<G> const& gradients,
                    tensor_view<DX, 2> dx) {
  detail::check_router(network, x.extent(1), dlogits.extent(1));
  detail::check_router(gradients, x.extent(1), dlogits.extent(1));
  detail::require_same_shape("dx", dx, "x", x);
  for (index_t b = 0; b < x.extent(0); ++b) {
    std::vector<double> in, slope;
    for (index_t d = 0; d < x.extent(1); ++d) in.push_back(static_cast<double>(x(b, d)));
    for (index_t c = 0; c < 2; ++c) slope.push_back(static_cast<double>(dlogits(b, c)));
    auto const layers = detail::run_router(network, in);
    for (std::size_t n = network.size(); n-- > 0;) {
      auto const& map = network[n];
      std::vector<double> before(layers[n].size());
      for (index_t o = 0; o < map.weight.extent(0); ++o) {
        double const out = slope[static_cast<std::size_t>(o)];
        gradients[n].bias(o) += static_cast<G>(out);
        for (index_t i = 0; i < map.weight.extent(1); ++i) {
          double const raw = layers[n][static_cast<std::size_t>(i)],
                       sigmoid = 1 / (1 + std::exp(-raw));
          bool const activated = detail::router_activates[n];
          gradients[n].weight(o, i) += static_cast<G>(out * (activated ? raw * sigmoid : raw));
          before[static_cast<std::size_t>(i)] +=
              out * static_cast<double>(map.weight(o, i)) *
              (activated ? sigmoid * (1 + raw * (1 - sigmoid)) : 1);
        }
      }
      slope = std::move(before);
    }
    for (index_t d = 0; d < x.extent(1); ++d)
      dx(b, d) = static_cast<DX>(slope[static_cast<std::size_t>(d)]);
  }
}

/// y = softmax((logits + noise) / temperature) of each batch entry; `noise` is empty or [batch, 2], Gumbel while the
/// router is trained. y: [batch, 2], the second the weight of full attention.
template <class Z, class N, class Y>
void route_weights(tensor_view<Z, 2> logits, tensor_view<N, 2> noise, double temperature,
                   tensor_view<Y, 2> y) {
  detail::require_same_shape("y", y, "logits", logits);
  if (noise.data() != nullptr) detail::require_same_shape("noise", noise, "logits", logits);
  for (index_t b = 0; b < y.extent(0); ++b) {
    auto const at = [&](index_t c) {
      return static_cast<double>(logits(b, c)) +
             (noise.data() == nullptr ? 0 : static_cast<double>(noise(b, c)));
    };
    double const full = 1 / (1 + std::exp((at(0) - at(1)) / temperature));
    y(b, 0) = static_cast<Y>(1 - full);
    y(b, 1) = static_cast<Y>(full);
  }
}

/// dlogits from dy of full attention, through the soft weights y; the hard choice passes it straight on.
template <class Y, class DY, class DZ>
void route_weights_backward(tensor_view<Y, 2> y, tensor_view<DY, 3> dy_full, double temperature,
                            tensor_view<DZ, 2> dlogits) {
  detail::require_same_shape("dlogits", dlogits, "y", y);
  require(dy_full.extents() == std::array<index_t, 3>{y.extent(0), 1, 1}, [&] {
    return "dy_full has shape " + shape_text(dy_full.extents()) + "; expected [" +
           std::to_string(y.extent(0)) + ", 1, 1]";
  });
  for (index_t b = 0; b < y.extent(0); ++b) {
    double const slope = static_cast<double>(y(b, 0)) * static_cast<double>(y(b, 1)) *
                         static_cast<double>(dy_full(b, index_t{0}, index_t{0})) / temperature;
    dlogits(b, 0) = static_cast<DZ>(-slope);
    dlogits(b, 1) = static_cast<DZ>(slope);
  }
}

}  // namespace heed
