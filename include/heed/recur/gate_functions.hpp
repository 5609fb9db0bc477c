#pragma once

#include <heed/recur/passes.hpp>
#include <heed/simd/gates.hpp>
#include <heed/view/convert.hpp>

#include <cmath>
#include <span>
#include <string>

/// How layers make log gates of the numbers that a projection gives them.
namespace heed {

namespace recur {

/// A tensor of tokens as rows that fill registers: with a number a head, the heads side by side.
template <class E>
tensor_view<E, 4> token_rows(tensor_view<E, 4> view) {
  return view;
}
template <class E>
tensor_view<E, 4> token_rows(tensor_view<E, 3> view) {
  return heads_in_row(view);
}

template <class A, class B, int Rank>
void expect_same_shape(char const* name, tensor_view<A, Rank> view, tensor_view<B, Rank> like,
                       char const* like_name) {
  require(view.extents() == like.extents(), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected that of " +
           like_name + ", " + shape_text(like.extents());
  });
}

inline void check_temperature(double temperature) {
  require(temperature > 0, [&] {
    return "temperature is " + std::to_string(temperature) + "; expected a number above 0";
  });
}

/// sums[h] = sum a * b over batch and position of [batch, position, head], in double and in an order of its own.
template <class A, class B, class S>
void sums_over_tokens(any_executor const& run_on, tensor_view<A, 3> a, tensor_view<B, 3> b,
                      std::span<S> sums) {
  constexpr index_t together = 512;
  index_t const heads = a.extent(2), rows = a.extent(1), blocks = (rows + together - 1) / together;
  index_t const pieces = a.extent(0) * blocks;
  struct partial_sums;
  auto const parts = page_tensors<partial_sums, double>(tensor_shape{1, pieces, 1, heads})[0];
  parallel_for(run_on, pieces, [&](index_t piece, index_t) {
    index_t const batch = piece / blocks, first = piece % blocks * together;
    for (index_t h = 0; h < heads; ++h) {
      double sum = 0;
      for (index_t i = first; i < std::min(first + together, rows); ++i)
        sum += convert_element<double>(a(batch, i, h)) * convert_element<double>(b(batch, i, h));
      parts(0, piece, 0, h) = sum;
    }
  });
  for (index_t h = 0; h < heads; ++h) {
    double sum = 0;
    for (index_t piece = 0; piece < pieces; ++piece) sum += parts(0, piece, 0, h);
    sums[static_cast<std::size_t>(h)] = convert_element<S>(sum);
  }
}

}  // namespace recur

/// log_gate = log(sigmoid(x)) / temperature; tensors of rank 3, [batch, position, heads], or 4, with channels.
template <element X, element G, int Rank, class Executor = serial>
void log_sigmoid_gate(tensor_view<X, Rank> x, tensor_view<G, Rank> log_gate, double temperature,
                      Executor const& run_on = {}) {
  using T = compute_type<X, G>;
  recur::check_temperature(temperature);
  recur::expect_same_shape("log_gate", log_gate, x, "x");
  auto const factor = static_cast<T>(-1 / temperature);
  recur::transform(
      any_executor(run_on), sink<T>(recur::token_rows(log_gate)),
      [&](auto const& each) {
        return simd::softplus(-each) * std::remove_cvref_t<decltype(each)>(factor);
      },
      source<T>(recur::token_rows(x)));
}

/// From d loss / d log_gate to d loss / d x, which may be the same memory.
template <element X, element DG, element DX, int Rank, class Executor = serial>
void log_sigmoid_gate_backward(tensor_view<X, Rank> x, tensor_view<DG, Rank> dlog_gate,
                               tensor_view<DX, Rank> dx, double temperature,
                               Executor const& run_on = {}) {
  using T = compute_type<X, DG, DX>;
  recur::check_temperature(temperature);
  recur::expect_same_shape("dlog_gate", dlog_gate, x, "x");
  recur::expect_same_shape("dx", dx, x, "x");
  auto const factor = static_cast<T>(1 / temperature);
  recur::transform(
      any_executor(run_on), sink<T>(recur::token_rows(dx)),
      [&](auto const& each, auto const& slope) {
        return slope * std::remove_cvref_t<decltype(each)>(factor) * simd::sigmoid(-each);
      },
      source<T>(recur::token_rows(x)), source<T>(recur::token_rows(dlog_gate)));
}

}  // namespace heed
