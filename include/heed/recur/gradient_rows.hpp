#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/recur/problem.hpp>

namespace heed::recur {

/// Where gradients of rows go: to the tensor, or, where heads share its rows, to a buffer of all of them, whose sums the
/// tensor receives in the end: zeros, where there are rows of heads and no head that reads them.
template <class T>
struct gradient_rows {
  sink<T> to;
  index_t heads = 0;         // that gradients are made for
  tensor_view<T, 4> buffer;  // [batch, head, position, dim], or none
  bool wanted = false;

  void store(index_t batch, index_t head, index_t first, index_t rows, T const* from,
             index_t stride) const {
    if (!wanted) return;
    if (buffer.data() == nullptr) return to.store(batch, head, first, rows, from, stride);
    for (index_t i = 0; i < rows; ++i)
      std::copy_n(from + i * stride, buffer.extent(3), &buffer(batch, head, first + i, 0));
  }

  /// Whether a buffer is needed, taken from `memory`.
  void take_buffer(arena& memory) {
    auto const& e = to.extents();
    if (!wanted || e[2] == heads) return;
    index_t const all = std::max(heads, e[2]);
    buffer = {memory.take<T>(e[0] * all * e[1] * e[3]), {e[0], all, e[1], e[3]}};
  }

  void add_up(any_executor const& run_on) const {
    if (!wanted || buffer.data() == nullptr) return;
    auto const& e = to.extents();
    index_t const share = buffer.extent(1) / e[2], dim = e[3];
    parallel_for(run_on, e[0] * e[2], [&](index_t piece, index_t) {
      index_t const batch = piece / e[2], head = piece % e[2];
      for (index_t i = 0; i < e[1]; ++i) {
        T* const sum = &buffer(batch, head * share, i, 0);
        if (heads == 0) std::fill_n(sum, dim, T(0));
        for (index_t other = 1; other < share; ++other) {
          T const* const row = &buffer(batch, head * share + other, i, 0);
          for (index_t d = 0; d < dim; ++d) sum[d] += row[d];
        }
        to.store(batch, head, i, 1, sum, dim);
      }
    });
  }
};

/// What a backward call reads beside the operands, and what it writes.
template <class T>
struct gradients {
  source<T> out, dout;
  gradient_rows<T> query, key, value, key_gate, value_gate, rate;
  bool ends = false;  // with a gradient of the final state
  source<T> final;
  bool begins = false;
  sink<T> initial;

  template <class F>
  void for_each(F f) {
    f(query), f(key), f(value), f(key_gate), f(value_gate), f(rate);
  }
};

}  // namespace heed::recur
