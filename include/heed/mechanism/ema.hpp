#pragma once

#include <heed/recur/causal_convolution.hpp>
#include <heed/recur/fixed_recurrence.hpp>
#include <heed/recur/passes.hpp>
#include <heed/view/copy.hpp>

/// Mega: Moving Average Equipped Gated Attention, its multi-dimensional damped exponential moving average.
///
/// Each channel has n moving averages, with p = sigmoid(delta) and decay rho = 1 - p sigmoid(alpha):
///
///     s_t = rho s_(t-1) + p beta x_t,     y_t = sum_n gamma / sqrt(n) s_t + omega x_t
namespace heed {

/// The parameters of the moving averages of one direction, [heads, dim, n]; for gradients, where those go.
template <class T>
struct ema_parameters {
  tensor_view<T, 3> delta, alpha, beta, gamma;
};
template <class T>
ema_parameters(tensor_view<T, 3>, tensor_view<T, 3>, tensor_view<T, 3>, tensor_view<T, 3>)
    -> ema_parameters<T>;

/// Adds averages of the tokens from a token on to the end, itself among them, with parameters of their own.
template <class T, class G = T>
struct ema_of_future {
  ema_parameters<T> parameters;
  ema_parameters<G> gradients = {};
};
template <class T>
ema_of_future(ema_parameters<T>) -> ema_of_future<T, std::remove_const_t<T>>;
template <class T, class G>
ema_of_future(ema_parameters<T>, ema_parameters<G>) -> ema_of_future<T, G>;

namespace recur::scan {

inline constexpr auto is_future = []<class T>() { return heed::detail::is_a<T, ema_of_future>; };

inline double sigmoid_of(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

template <class P>
void check_ema(char const* name, ema_parameters<P> const& given,
               std::array<index_t, 3> const& expected) {
  for (auto const* each : {&given.delta, &given.alpha, &given.beta, &given.gamma})
    require(each->extents() == expected && each->data() != nullptr, [&] {
      return std::string(name) + " have shape " + shape_text(each->extents()) + "; expected " +
             shape_text(expected) + " (head, dim, average), and memory";
    });
}

/// One direction: its factors rho and weights p beta gamma / sqrt(n), and their gradients to those of the parameters.
template <class T, class P>
struct ema_direction {
  ema_parameters<P> given;
  index_t heads, dim, n;
  T *factors, *weights;

  /// f(place in [n][heads * dim], p, sigmoid(alpha), beta, gamma / sqrt(n), head, channel, average)
  template <class F>
  void each(F const& f) const {
    for (index_t s = 0; s < n; ++s)
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < dim; ++d) {
          auto const at = [&](auto const& of) { return convert_element<double>(of(h, d, s)); };
          f((s * heads + h) * dim + d, sigmoid_of(at(given.delta)), sigmoid_of(at(given.alpha)),
            at(given.beta), at(given.gamma) / std::sqrt(static_cast<double>(n)), h, d, s);
        }
  }
  void prepare() const {
    each([&](index_t at, double p, double a, double b, double c, index_t, index_t, index_t) {
      factors[at] = static_cast<T>(1 - p * a);
      weights[at] = static_cast<T>(p * b * c);
    });
  }
  template <class G>
  void chain(double const* dfactors, double const* dweights, ema_parameters<G> const& to) const {
    each([&](index_t at, double p, double a, double b, double c, index_t h, index_t d, index_t s) {
      double const of_factor = dfactors[at], of_weight = dweights[at];
      to.delta(h, d, s) = convert_element<G>((b * c * of_weight - a * of_factor) * p * (1 - p));
      to.alpha(h, d, s) = convert_element<G>(-p * of_factor * a * (1 - a));
      to.beta(h, d, s) = convert_element<G>(p * c * of_weight);
      to.gamma(h, d, s) = convert_element<G>(p * b * of_weight / std::sqrt(static_cast<double>(n)));
    });
  }
};

/// Writes the taps of a direction: K_l = sum_n p beta gamma / sqrt(n) rho^l.
template <class P, class K>
void ema_taps(ema_parameters<P> const& given, tensor_view<K, 3> taps) {
  auto const [heads, dim, n] = given.delta.extents();
  ema_direction<double, P> const all{given, heads, dim, n, nullptr, nullptr};
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d)
      for (index_t l = 0; l < taps.extent(0); ++l) taps(l, h, d) = convert_element<K>(0.0f);
  all.each([&](index_t, double p, double a, double b, double c, index_t h, index_t d, index_t) {
    double const log_rho = std::log1p(-p * a);
    for (index_t l = 0; l < taps.extent(0); ++l)
      taps(l, h, d) = convert_element<K>(convert_element<double>(taps(l, h, d)) +
                                         p * b * c * std::exp(static_cast<double>(l) * log_rho));
  });
}

/// A call of exponential_moving_average: what both passes prepare.
template <class T, class P>
struct ema_call {
  using kernel = fixed_recurrence<T, 1, xsimd::default_arch>;
  kernel past, future;
  bool has_future = false, silu = false;
  index_t numbers = 0;

  template <class X, class W, class... I>
  ema_call(tensor_view<X, 4> x, ema_parameters<P> const& given, tensor_view<W, 2> omega,
           I const&... ingredients) {
    static_assert(
        (true && ... &&
         (is_clause<I> || std::same_as<I, with_silu> || is_future.template operator()<I>())),
        "heed: exponential_moving_average takes ema_of_future, with_silu, states, "
        "documents, an executor and scratch");
    heed::detail::expect_memory("x", x);
    index_t const heads = x.extent(2), dim = x.extent(3), n = given.delta.extent(2);
    check_ema("the parameters", given, {heads, dim, n});
    require(omega.extents() == std::array{heads, dim}, [&] {
      return "omega has shape " + shape_text(omega.extents()) + "; expected " +
             shape_text(std::array{heads, dim}) + " (head, dim)";
    });
    past.all = sequences_of(x.extents(), ingredients...);
    past.ends = states_of<T>({past.all.count(), heads, n, dim}, ingredients...);
    past.channels = heads * dim;
    past.n = n;
    numbers = n * heads * dim;
    struct page {};
    auto const places =
        page_tensors<page, T>(tensor_shape{1, 1, 1, numbers}, tensor_shape{1, 1, 1, numbers},
                              tensor_shape{1, 1, 1, numbers}, tensor_shape{1, 1, 1, numbers});
    ema_direction<T, P> const forward{given, heads, dim, n, places[0].data(), places[1].data()};
    forward.prepare();
    past.factors = forward.factors;
    past.weights = forward.weights;
    past.skip = as_row<T>(omega);
    silu = (false || ... || std::same_as<I, with_silu>);
    if constexpr ((false || ... || is_future.template operator()<I>())) {
      auto const from = one_of<is_future>(nullptr, ingredients...);
      check_ema("the parameters of ema_of_future", from.parameters, {heads, dim, n});
      ema_direction<T, typename decltype(from.parameters.delta)::element_type> const backward{
          from.parameters, heads, dim, n, places[2].data(), places[3].data()};
      backward.prepare();
      future = past;
      future.ends = {};
      future.factors = backward.factors;
      future.weights = backward.weights;
      future.skip = {};
      future.reversed = future.adds = true;
      has_future = true;
    }
  }

  template <class Executor>
  void run(channel_rows<T> const& x, channel_rows<T> const& y, Executor const& run_on,
           workspace& memory) const {
    past.forward(x, y, run_on, memory);
    if (has_future) future.forward(x, y, run_on, memory);
  }
};

/// A tensor in T of the shape of another one.
template <class Page, class T>
tensor_view<T, 4> page_tensor_like(std::array<index_t, 4> const& shape) {
  return page_tensors<Page, T>(shape)[0];
}

}  // namespace recur::scan

/// The moving averages of each channel: forward, and with a position extent of 1 a step of decoding.
///
///   x, out       [batch, position, heads, dim]; out is not x
///   parameters   delta, alpha, beta, gamma [heads, dim, n]
///   omega        [heads, dim]
///
/// Ingredients, in any order: ema_of_future (both directions), with_silu, state, initial_state, final_state
/// [sequences, heads, n, dim] (s_t / (p beta), of the past), documents (the same offsets twice), an executor, scratch.
/// The same bits for every executor.
template <element X, element P, element W, element O, class... Ingredients>
void exponential_moving_average(tensor_view<X, 4> x, ema_parameters<P> const& parameters,
                                tensor_view<W, 2> omega, tensor_view<O, 4> out,
                                Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<X, P, W, O, scan::states_type<Ingredients...>>;
  heed::detail::expect_like("out", out, x.extents(), "x");
  heed::detail::expect_memory("out", out);
  heed::detail::expect_distinct_elements("out", out);
  scan::ema_call<T, P> const call(x, parameters, omega, ingredients...);
  auto const run_on = scan::executor_of(ingredients...);
  workspace& memory = scan::scratch_of(ingredients...);
  if (std::is_same_v<O, T> || !(call.has_future || call.silu))
    call.run(scan::channel_rows<T>(x), scan::channel_rows<T>(out), run_on, memory);
  if (!(call.has_future || call.silu)) return;
  // What is added up and gated is rounded once.
  struct page {};
  tensor_view<T, 4> sum;
  if constexpr (std::is_same_v<O, T>) {
    sum = out;
  } else {
    sum = scan::page_tensor_like<page, T>(x.extents());
    call.run(scan::channel_rows<T>(x), scan::channel_rows<T>(sum), run_on, memory);
  }
  any_executor const on_any(run_on);
  recur::transform<T>(
      on_any, sink<T>(out), [&](auto const& y) { return call.silu ? simd::silu(y) : y; },
      source<T>(sum));
}

/// The gradients of exponential_moving_average, with its ingredients; ema_of_future and initial_state may carry theirs; also
/// final_state_gradient. dx, dparameters and domega are shaped like x, parameters and omega.
template <element X, element P, element W, element DO, element DX, element G, element DW,
          class... Ingredients>
void exponential_moving_average_backward(tensor_view<X, 4> x, ema_parameters<P> const& parameters,
                                         tensor_view<W, 2> omega, tensor_view<DO, 4> dout,
                                         tensor_view<DX, 4> dx,
                                         ema_parameters<G> const& dparameters,
                                         tensor_view<DW, 2> domega,
                                         Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<X, P, W, DO, scan::states_type<Ingredients...>>;
  auto const& shape = x.extents();
  heed::detail::expect_like("dout", dout, shape, "x");
  heed::detail::expect_like("dx", dx, shape, "x");
  heed::detail::expect_distinct_elements("dx", dx);
  scan::ema_call<T, P> const call(x, parameters, omega, ingredients...);
  scan::check_ema("the gradients of the parameters", dparameters, parameters.delta.extents());
  require(domega.extents() == omega.extents(), [&] {
    return "domega has shape " + shape_text(domega.extents()) + "; expected that of omega, " +
           shape_text(omega.extents());
  });
  index_t const heads = shape[2], dim = shape[3], n = call.past.n;
  auto const run_on = scan::executor_of(ingredients...);
  workspace& memory = scan::scratch_of(ingredients...);
  scan::channel_rows<T> const in(x);
  struct page {};
  struct sum_page {};
  // d loss / d y, before silu.
  scan::channel_rows<T> slope(dout);
  if (call.silu) {
    auto const y = scan::page_tensor_like<page, T>(shape);
    call.run(in, scan::channel_rows<T>(y), run_on, memory);
    any_executor const on_any(run_on);
    recur::transform<T>(
        on_any, sink<T>(y),
        [](auto const& value, auto const& d) { return d * simd::silu_slope(value); }, source<T>(y),
        source<T>(dout));
    slope = scan::channel_rows<T>(y);
  }
  // Both directions add to the gradient of x.
  tensor_view<T, 4> sum;
  bool const in_place = std::is_same_v<DX, T>;
  if constexpr (in_place) sum = dx;
  if (!in_place) sum = scan::page_tensor_like<sum_page, T>(shape);
  struct double_page {};
  auto const of = recur::page_tensors<double_page, double>(
      recur::tensor_shape{1, 1, 2, call.numbers}, recur::tensor_shape{1, 1, 1, heads * dim});
  double *const dfactors = of[0].data(), *const dweights = dfactors + call.numbers,
                *const dskip = of[1].data();
  scan::channel_rows<T> const to(sum);
  call.past.backward(in, slope, to, dfactors, dweights, dskip, run_on, memory);
  scan::ema_direction<T, P>{parameters, heads, dim, n, nullptr, nullptr}.chain(dfactors, dweights,
                                                                               dparameters);
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d) domega(h, d) = convert_element<DW>(dskip[h * dim + d]);
  if constexpr ((false || ... || scan::is_future.template operator()<Ingredients>())) {
    auto const future = one_of<scan::is_future>(nullptr, ingredients...);
    scan::check_ema("ema_of_future.gradients", future.gradients, parameters.delta.extents());
    call.future.backward(in, slope, to, dfactors, dweights, nullptr, run_on, memory);
    using FP = typename decltype(future.parameters.delta)::element_type;
    scan::ema_direction<T, FP>{future.parameters, heads, dim, n, nullptr, nullptr}.chain(
        dfactors, dweights, future.gradients);
  }
  if (!in_place) copy_elements(sum, dx);
}

/// The averages of one direction as the taps of a causal_convolution, [tap, heads, dim], without omega; as many as there is
/// room for. Powers of rho are exponentials of multiples of its logarithm.
template <element P, element K>
void ema_kernel(ema_parameters<P> const& parameters, tensor_view<K, 3> taps) {
  auto const& e = parameters.delta.extents();
  recur::scan::check_ema("the parameters", parameters, e);
  require(taps.extent(1) == e[0] && taps.extent(2) == e[1], [&] {
    return "taps have shape " + shape_text(taps.extents()) + "; expected [any, " +
           std::to_string(e[0]) + ", " + std::to_string(e[1]) + "] (tap, head, dim)";
  });
  recur::scan::ema_taps(parameters, taps);
}

}  // namespace heed
