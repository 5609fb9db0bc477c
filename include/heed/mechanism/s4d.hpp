#pragma once

#include <heed/recur/causal_convolution.hpp>
#include <heed/recur/fixed_recurrence.hpp>
#include <heed/recur/passes.hpp>
#include <heed/view/copy.hpp>

#include <cmath>
#include <complex>

/// On the Parameterization and Initialization of Diagonal State Space Models (S4D).
///
/// Each channel has a state of n complex numbers, half of a conjugate-symmetric one, that rotate and fade at rates
/// A = -e^decay + i frequency over steps Delta = e^log_step:
///
///     h_t = e^(Delta A) h_(t-1) + u_t,     y_t = 2 Re sum_n C (e^(Delta A) - 1) / A h_t + skip u_t
///
/// which is the causal convolution with K_l = 2 Re sum_n C (e^(Delta A) - 1) / A e^(l Delta A).
namespace heed {

/// The parameters of s4d; for gradients, where those go.
template <class T>
struct s4d_parameters {
  tensor_view<T, 2> log_step, skip;             // [heads, dim]
  tensor_view<T, 3> decay, frequency;           // [heads, dim, n]
  tensor_view<T, 3> read_real, read_imaginary;  // C, [heads, dim, n]
};

/// Adds a convolution with the tokens after a token, the next one at lag 0, with the same rates and a C of its own.
template <class T, class G = T>
struct s4d_future {
  tensor_view<T, 3> read_real, read_imaginary;
  tensor_view<G, 3> gradient_real = {}, gradient_imaginary = {};
};
template <class T>
s4d_future(tensor_view<T, 3>, tensor_view<T, 3>) -> s4d_future<T, std::remove_const_t<T>>;
template <class T, class G>
s4d_future(tensor_view<T, 3>, tensor_view<T, 3>, tensor_view<G, 3>, tensor_view<G, 3>)
    -> s4d_future<T, G>;

namespace recur::scan {

inline constexpr auto is_s4d_future = []<class T>() { return heed::detail::is_a<T, s4d_future>; };

using complex = std::complex<double>;

/// e^z - 1.
inline complex expm1(complex z) {
  double const half = std::sin(z.imag() / 2), power = std::exp(z.real());
  return {std::expm1(z.real()) * std::cos(z.imag()) - 2 * half * half, power * std::sin(z.imag())};
}

/// What follows from the step and rate of one number of a state.
struct s4d_number {
  double step;
  complex rate, factor, gain;  // A, e^(Delta A), (e^(Delta A) - 1) / A

  s4d_number(double log_step, double decay, double frequency)
      : step(std::exp(log_step)), rate(-std::exp(decay), frequency) {
    complex const z = step * rate;
    factor = std::exp(z);
    gain = rate == complex(0) ? complex(step) : expm1(z) / rate;
  }
  /// d gain / d rate, (Delta e^(Delta A) - gain) / A: a series where that cancels.
  complex gain_by_rate() const {
    complex const z = step * rate;
    if (std::abs(z) > 0.1) return (step * factor - gain) / rate;
    complex sum = 0, power = 1;  // sum_k z^k (k + 1) / (k + 2)!
    double factorial = 2;
    for (int k = 0; k < 14; ++k) {
      sum += power * (static_cast<double>(k + 1) / factorial);
      power *= z;
      factorial *= k + 3;
    }
    return step * step * sum;
  }
};

template <class View, class Shape>
void check_s4d(char const* name, View const& view, Shape const& expected) {
  require(view.extents() == expected && (view.data() != nullptr || view.size() == 0), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           shape_text(expected) + ", and memory";
  });
}
template <class P>
void check_s4d(s4d_parameters<P> const& given, index_t heads, index_t dim, index_t n) {
  std::array<index_t, 2> const of_channel{heads, dim};
  std::array<index_t, 3> const of_number{heads, dim, n};
  check_s4d("log_step", given.log_step, of_channel);
  check_s4d("skip", given.skip, of_channel);
  check_s4d("decay", given.decay, of_number);
  check_s4d("frequency", given.frequency, of_number);
  check_s4d("read_real", given.read_real, of_number);
  check_s4d("read_imaginary", given.read_imaginary, of_number);
}

/// Calls f(head, channel, number, its place among [n][heads * dim], s4d_number).
template <class P, class F>
void each_s4d_number(s4d_parameters<P> const& given, F const& f) {
  auto const& e = given.decay.extents();
  auto const as_double = [](auto x) { return convert_element<double>(x); };
  for (index_t s = 0; s < e[2]; ++s)
    for (index_t h = 0; h < e[0]; ++h)
      for (index_t d = 0; d < e[1]; ++d)
        f(h, d, s, (s * e[0] + h) * e[1] + d,
          s4d_number(as_double(given.log_step(h, d)), as_double(given.decay(h, d, s)),
                     as_double(given.frequency(h, d, s))));
}
template <class P>
complex complex_at(tensor_view<P, 3> real, tensor_view<P, 3> imaginary, index_t h, index_t d,
                   index_t s) {
  return {convert_element<double>(real(h, d, s)), convert_element<double>(imaginary(h, d, s))};
}

/// What both passes of s4d prepare.
template <class T, class P>
struct s4d_call {
  using kernel = fixed_recurrence<T, 2, xsimd::default_arch>;
  kernel past, future;
  bool has_future = false;
  index_t numbers = 0;  // n * heads * dim

  template <class X, class... I>
  s4d_call(tensor_view<X, 4> x, s4d_parameters<P> const& given, I const&... ingredients) {
    static_assert((true && ... && (is_clause<I> || is_s4d_future.template operator()<I>())),
                  "heed: s4d takes s4d_future, states, documents, an executor and scratch");
    heed::detail::expect_memory("u", x);
    index_t const heads = x.extent(2), dim = x.extent(3), n = given.decay.extent(2);
    check_s4d(given, heads, dim, n);
    past.all = sequences_of(x.extents(), ingredients...);
    past.ends = states_of<T>({past.all.count(), heads, 2 * n, dim}, ingredients...);
    past.channels = heads * dim;
    past.n = n;
    numbers = n * heads * dim;
    struct page {};
    tensor_shape const of_numbers{1, 1, 2, numbers};
    auto const places = page_tensors<page, T>(of_numbers, of_numbers, of_numbers);
    T *const factors = places[0].data(), *const weights = places[1].data(),
             *const later = places[2].data();
    each_s4d_number(given, [&](index_t h, index_t d, index_t s, index_t at, s4d_number const& of) {
      put(factors, at, of.factor);
      put(weights, at, 2.0 * of.gain * complex_at(given.read_real, given.read_imaginary, h, d, s));
    });
    past.factors = factors;
    past.weights = weights;
    past.skip = as_row<T>(given.skip);
    if constexpr ((false || ... || is_s4d_future.template operator()<I>())) {
      auto const from = one_of<is_s4d_future>(nullptr, ingredients...);
      check_s4d("s4d_future.read_real", from.read_real, given.decay.extents());
      check_s4d("s4d_future.read_imaginary", from.read_imaginary, given.decay.extents());
      each_s4d_number(given, [&](index_t h, index_t d, index_t s, index_t at,
                                 s4d_number const& of) {
        put(later, at, 2.0 * of.gain * complex_at(from.read_real, from.read_imaginary, h, d, s));
      });
      future = past;
      future.ends = {};
      future.weights = later;
      future.skip = {};
      future.reversed = future.delayed = future.adds = true;
      has_future = true;
    }
  }

  void put(T* to, index_t at, complex z) const {
    to[at] = static_cast<T>(z.real());
    to[at + numbers] = static_cast<T>(z.imag());
  }
};

}  // namespace recur::scan

/// S4D's convolution as a recurrence: forward, and with a position extent of 1 a step of decoding.
///
///   u, out       [batch, position, heads, dim]; out is not u
///   parameters   see s4d_parameters
///
/// Ingredients, in any order: s4d_future (both directions), state, initial_state, final_state [sequences, heads, 2 n, dim]
/// (h of the past, real parts first), documents (the same offsets twice), an executor, scratch. The same bits for every executor.
template <element X, element P, element O, class... Ingredients>
void s4d(tensor_view<X, 4> u, s4d_parameters<P> const& parameters, tensor_view<O, 4> out,
         Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<X, P, O, scan::states_type<Ingredients...>>;
  heed::detail::expect_like("out", out, u.extents(), "u");
  heed::detail::expect_memory("out", out);
  heed::detail::expect_distinct_elements("out", out);
  scan::s4d_call<T, P> const call(u, parameters, ingredients...);
  auto const run_on = scan::executor_of(ingredients...);
  workspace& memory = scan::scratch_of(ingredients...);
  scan::channel_rows<T> const in(u);
  if constexpr (std::is_same_v<O, T>) {
    call.past.forward(in, scan::channel_rows<T>(out), run_on, memory);
    if (call.has_future) call.future.forward(in, scan::channel_rows<T>(out), run_on, memory);
  } else {
    if (!call.has_future) return call.past.forward(in, scan::channel_rows<T>(out), run_on, memory);
    struct page {};  // both directions are rounded once
    auto const sum = recur::page_tensors<page, T>(u.extents())[0];
    call.past.forward(in, scan::channel_rows<T>(sum), run_on, memory);
    call.future.forward(in, scan::channel_rows<T>(sum), run_on, memory);
    copy_elements(sum, out);
  }
}

/// The gradients of s4d, with its ingredients; s4d_future and initial_state may carry theirs; also final_state_gradient.
/// du and dparameters are shaped like u and parameters.
template <element X, element P, element DO, element DX, element G, class... Ingredients>
void s4d_backward(tensor_view<X, 4> u, s4d_parameters<P> const& parameters, tensor_view<DO, 4> dout,
                  tensor_view<DX, 4> du, s4d_parameters<G> const& dparameters,
                  Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using scan::complex;
  using T = compute_type<X, P, DO, scan::states_type<Ingredients...>>;
  auto const& shape = u.extents();
  heed::detail::expect_like("dout", dout, shape, "u");
  heed::detail::expect_like("du", du, shape, "u");
  heed::detail::expect_distinct_elements("du", du);
  scan::s4d_call<T, P> const call(u, parameters, ingredients...);
  index_t const heads = shape[2], dim = shape[3], numbers = call.numbers;
  scan::check_s4d(dparameters, heads, dim, call.past.n);
  auto const run_on = scan::executor_of(ingredients...);
  workspace& memory = scan::scratch_of(ingredients...);
  struct page {};
  struct double_page {};
  tensor_view<T, 4> sum;
  constexpr bool in_place = std::is_same_v<DX, T>;
  if constexpr (in_place)
    sum = du;
  else
    sum = recur::page_tensors<page, T>(shape)[0];
  recur::tensor_shape const of_numbers{1, 1, 2, numbers};
  auto const of = recur::page_tensors<double_page, double>(
      of_numbers, of_numbers, of_numbers, of_numbers, recur::tensor_shape{1, 1, 1, heads * dim});
  double *const by_factor = of[0].data(), *const by_weight = of[1].data(),
                *const by_factor_later = of[2].data(), *const by_weight_later = of[3].data(),
                *const by_skip = of[4].data();
  scan::channel_rows<T> const in(u), slope(dout), to(sum);
  call.past.backward(in, slope, to, by_factor, by_weight, by_skip, run_on, memory);
  std::fill_n(by_factor_later, 2 * numbers, 0.0);
  std::fill_n(by_weight_later, 2 * numbers, 0.0);
  if (call.has_future)
    call.future.backward(in, slope, to, by_factor_later, by_weight_later, nullptr, run_on, memory);

  // For an analytic f the gradient by z is conj(f'(z)) times that by f(z).
  auto const at_place = [&](double const* all, index_t at) {
    return complex(all[at], all[at + numbers]);
  };
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d) {
      double of_step = 0;
      for (index_t s = 0; s < call.past.n; ++s) {
        scan::s4d_number const number(convert_element<double>(parameters.log_step(h, d)),
                                      convert_element<double>(parameters.decay(h, d, s)),
                                      convert_element<double>(parameters.frequency(h, d, s)));
        index_t const at = (s * heads + h) * dim + d;
        complex const by_read = std::conj(2.0 * number.gain);
        complex by_gain = std::conj(2.0 * scan::complex_at(parameters.read_real,
                                                           parameters.read_imaginary, h, d, s)) *
                          at_place(by_weight, at);
        complex const dread = by_read * at_place(by_weight, at);
        dparameters.read_real(h, d, s) = convert_element<G>(dread.real());
        dparameters.read_imaginary(h, d, s) = convert_element<G>(dread.imag());
        if constexpr ((false || ... || scan::is_s4d_future.template operator()<Ingredients>())) {
          auto const from = one_of<scan::is_s4d_future>(nullptr, ingredients...);
          using FG = typename decltype(from.gradient_real)::value_type;
          by_gain +=
              std::conj(2.0 * scan::complex_at(from.read_real, from.read_imaginary, h, d, s)) *
              at_place(by_weight_later, at);
          complex const later = by_read * at_place(by_weight_later, at);
          if (from.gradient_real.data() != nullptr)
            from.gradient_real(h, d, s) = convert_element<FG>(later.real());
          if (from.gradient_imaginary.data() != nullptr)
            from.gradient_imaginary(h, d, s) = convert_element<FG>(later.imag());
        }
        complex const factor = at_place(by_factor, at) + at_place(by_factor_later, at);
        complex const by_rate = std::conj(number.step * number.factor) * factor +
                                std::conj(number.gain_by_rate()) * by_gain;
        of_step +=
            (std::conj(number.rate * number.factor) * factor + std::conj(number.factor) * by_gain)
                .real();
        dparameters.decay(h, d, s) = convert_element<G>(by_rate.real() * number.rate.real());
        dparameters.frequency(h, d, s) = convert_element<G>(by_rate.imag());
      }
      double const step = std::exp(convert_element<double>(parameters.log_step(h, d)));
      dparameters.log_step(h, d) = convert_element<G>(step * of_step);
      dparameters.skip(h, d) = convert_element<G>(by_skip[h * dim + d]);
    }
  if constexpr (!in_place) copy_elements(sum, du);
}

/// K as the taps of a causal_convolution, [tap, heads, dim], with skip in tap 0; as many as there is room for.
template <element P, element K>
void s4d_kernel(s4d_parameters<P> const& parameters, tensor_view<K, 3> taps) {
  auto const& e = parameters.decay.extents();
  recur::scan::check_s4d(parameters, e[0], e[1], e[2]);
  require(taps.extent(1) == e[0] && taps.extent(2) == e[1], [&] {
    return "taps have shape " + shape_text(taps.extents()) + "; expected [any, " +
           std::to_string(e[0]) + ", " + std::to_string(e[1]) + "] (tap, head, dim)";
  });
  using recur::scan::complex;
  for (index_t l = 0; l < taps.extent(0); ++l)
    for (index_t h = 0; h < e[0]; ++h)
      for (index_t d = 0; d < e[1]; ++d) {
        double sum = l == 0 ? convert_element<double>(parameters.skip(h, d)) : 0;
        for (index_t s = 0; s < e[2]; ++s) {
          recur::scan::s4d_number const number(
              convert_element<double>(parameters.log_step(h, d)),
              convert_element<double>(parameters.decay(h, d, s)),
              convert_element<double>(parameters.frequency(h, d, s)));
          sum += 2 * (recur::scan::complex_at(parameters.read_real, parameters.read_imaginary, h, d,
                                              s) *
                      number.gain * std::exp(static_cast<double>(l) * number.step * number.rate))
                         .real();
        }
        taps(l, h, d) = convert_element<K>(sum);
      }
}

}  // namespace heed
