#pragma once

#include <heed/parallel/executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/view/convert.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/rows.hpp>

#include <cmath>

namespace heed {

/// The parameters of a LayerNorm over the width of a model, all heads of a token together; for gradients, where those go.
///
///   gain, shift   [heads, dim]
template <class T>
struct layer_norm {
  tensor_view<T, 2> gain;
  tensor_view<T, 2> shift;
  double epsilon = 1e-5;
};
template <class T>
layer_norm(tensor_view<T, 2>, tensor_view<T, 2>) -> layer_norm<T>;

namespace detail {

template <class X, class P>
void check_layer_norm(layer_norm<P> const& norm, char const* of, tensor_view<X, 4> x) {
  std::array<index_t, 2> const shape{x.extent(2), x.extent(3)};
  require(norm.gain.extents() == shape && norm.shift.extents() == shape, [&] {
    return std::string(of) + " has gain " + shape_text(norm.gain.extents()) + " and shift " +
           shape_text(norm.shift.extents()) + "; expected " + shape_text(shape) + " of each";
  });
}

/// The mean of a token's numbers and what they are multiplied by.
template <class T>
struct token_moments {
  T mean, factor;

  token_moments(T const* row, index_t width, double epsilon) {
    double sum = 0, squares = 0;
    for (index_t c = 0; c < width; ++c) sum += static_cast<double>(row[c]);
    double const middle = sum / static_cast<double>(std::max<index_t>(width, 1));
    for (index_t c = 0; c < width; ++c) {
      double const apart = static_cast<double>(row[c]) - middle;
      squares += apart * apart;
    }
    mean = static_cast<T>(middle);
    factor = static_cast<T>(
        1 / std::sqrt(squares / static_cast<double>(std::max<index_t>(width, 1)) + epsilon));
  }
};

/// Calls f(batch entry, position, scratch of `rows` times the width) for every token.
template <class T, class Executor, class F>
void for_tokens(Executor const& run_on, std::array<index_t, 4> const& shape, index_t rows, F f) {
  constexpr index_t together = 32;
  index_t const width = shape[2] * shape[3], blocks = (shape[1] + together - 1) / together;
  auto const bytes = arena::bytes<T>(rows * width);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, shape[0] * blocks, [&](index_t piece, index_t worker) {
    T* const scratch = arena(memory + worker * bytes).template take<T>(rows * width);
    index_t const first = piece % blocks * together;
    for (index_t i = first; i < std::min(shape[1], first + together); ++i)
      f(piece / blocks, i, scratch);
  });
}

/// A token's heads side by side, and back.
template <class T>
void load_token(source<T> const& x, index_t b, index_t i, T* to) {
  for (index_t h = 0; h < x.heads(); ++h) x.copy(b, h, i, 1, to + h * x.dim(), x.dim());
}
template <class T>
void store_token(sink<T> const& x, index_t b, index_t i, T const* from) {
  index_t const dim = x.extents()[3];
  for (index_t h = 0; h < x.extents()[2]; ++h) x.store(b, h, i, 1, from + h * dim, dim);
}

}  // namespace detail

/// out = gain (x - mean) / sqrt(variance + epsilon) + shift, mean and variance of all numbers of a token. x and out are [batch,
/// position, heads, dim] and may be the same.
template <element X, element P, element O, class Executor = serial>
void normalise_tokens(tensor_view<X, 4> x, layer_norm<P> const& norm, tensor_view<O, 4> out,
                      Executor const& run_on = {}) {
  using T = compute_type<X, P, O>;
  detail::expect_like("out", out, x.extents(), "x");
  detail::check_layer_norm(norm, "the norm", x);
  index_t const heads = x.extent(2), dim = x.extent(3), width = heads * dim;
  source<T> const from(x);
  sink<T> const to(out);
  detail::for_tokens<T>(run_on, x.extents(), 1, [&](index_t b, index_t i, T* row) {
    detail::load_token(from, b, i, row);
    detail::token_moments<T> const of(row, width, norm.epsilon);
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < dim; ++d) {
        T& number = row[h * dim + d];
        number = convert_element<T>(norm.gain(h, d)) * ((number - of.mean) * of.factor) +
                 convert_element<T>(norm.shift(h, d));
      }
    detail::store_token(to, b, i, row);
  });
}

/// The gradients of normalise_tokens: dx is written, and may be dout; those of the parameters are written where `gradients` says.
template <element X, element P, element DO, element DX, element G, class Executor = serial>
void normalise_tokens_backward(tensor_view<X, 4> x, layer_norm<P> const& norm,
                               tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                               layer_norm<G> const& gradients, Executor const& run_on = {}) {
  using T = compute_type<X, P, DO, DX, G>;
  detail::expect_like("dout", dout, x.extents(), "x");
  detail::expect_like("dx", dx, x.extents(), "x");
  detail::check_layer_norm(norm, "the norm", x);
  detail::check_layer_norm(gradients, "the gradient of the norm", x);
  index_t const heads = x.extent(2), dim = x.extent(3), width = heads * dim;
  source<T> const from(x), slopes(dout);

  // One head's channels after the other, over all tokens in order.
  auto const bytes = arena::bytes<double>(2 * dim) + 2 * arena::bytes<T>(width);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, heads, [&](index_t h, index_t worker) {
    arena own(memory + worker * bytes);
    double* const gain = own.take<double>(2 * dim);
    double* const shift = gain + dim;
    T* const row = own.take<T>(width);
    T* const slope = own.take<T>(width);
    std::fill_n(gain, 2 * dim, 0.0);
    for (index_t b = 0; b < x.extent(0); ++b)
      for (index_t i = 0; i < x.extent(1); ++i) {
        detail::load_token(from, b, i, row);
        slopes.copy(b, h, i, 1, slope, dim);
        detail::token_moments<T> const of(row, width, norm.epsilon);
        for (index_t d = 0; d < dim; ++d) {
          gain[d] += static_cast<double>(slope[d] * ((row[h * dim + d] - of.mean) * of.factor));
          shift[d] += static_cast<double>(slope[d]);
        }
      }
    for (index_t d = 0; d < dim; ++d) {
      gradients.gain(h, d) = convert_element<G>(static_cast<T>(gain[d]));
      gradients.shift(h, d) = convert_element<G>(static_cast<T>(shift[d]));
    }
  });

  sink<T> const to(dx);
  detail::for_tokens<T>(run_on, x.extents(), 2, [&](index_t b, index_t i, T* row) {
    T* const slope = row + width;
    detail::load_token(from, b, i, row);
    detail::load_token(slopes, b, i, slope);
    detail::token_moments<T> const of(row, width, norm.epsilon);
    double mean = 0, along = 0;  // of the gradient by the normalised numbers, and with them
    for (index_t h = 0; h < heads; ++h)
      for (index_t d = 0; d < dim; ++d) {
        index_t const c = h * dim + d;
        row[c] = (row[c] - of.mean) * of.factor;
        slope[c] *= convert_element<T>(norm.gain(h, d));
        mean += static_cast<double>(slope[c]);
        along += static_cast<double>(slope[c] * row[c]);
      }
    T const share = T(1) / static_cast<T>(std::max<index_t>(width, 1));
    for (index_t c = 0; c < width; ++c)
      slope[c] = of.factor *
                 (slope[c] - share * static_cast<T>(mean) - share * static_cast<T>(along) * row[c]);
    detail::store_token(to, b, i, slope);
  });
}

}  // namespace heed
