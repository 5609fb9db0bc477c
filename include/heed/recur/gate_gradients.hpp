#pragma once

#include <heed/recur/chunk.hpp>
#include <heed/recur/gradient_rows.hpp>
#include <heed/simd/fma.hpp>

namespace heed::recur {

/// The gradients of a chunk's log gates, which grow while the backward pass makes its products.
///
/// That of one gate a token is the sum of all that passes it: pairs of a later row and an earlier key, later rows and the state
/// before, earlier keys and R, and the state and R. Gates of channels take it as R S_end and the sum of q dq - k dk over later
/// tokens, a difference of sums no longer than the chunk; on the side of the values, of o do - v dv.
template <class T, class Arch>
class gate_gradients {
 public:
  using batch = xsimd::batch<T, Arch>;
  using chunk = chunk_worker<T, Arch>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);

  gate_gradients(arena& memory, problem<T> const& p, gradients<T> const& g, chunk const& of)
      : p_(p), g_(g), chunk_(of) {
    index_t const tokens = of.score_stride;
    if (p.key_fading == fading::channels) {
      key_sums_ = memory.take<T>(tokens * of.features);
      key_total_ = memory.take<double>(of.features);
    } else if (p.key_fading == fading::scalar) {
      passing_ = memory.take<double>(tokens);
      later_ = memory.take<double>(tokens);
      earlier_ = memory.take<double>(tokens);
      key_total_ = memory.take<double>(1);
      column_sums_ = memory.take<T>(tokens);
      left_ = memory.take<T>(of.state_size());
    }
    if (p.value_fading != fading::none) {
      value_sums_ = memory.take<T>(tokens * of.columns);
      value_total_ = memory.take<double>(of.columns);
    }
    row_ = memory.take<T>(std::max(of.features, of.columns));
  }

  /// A chunk that begins with `state` and ends with `ended`, whose gradient is `gradient`.
  void begin(T const* state, T const* ended, T const* gradient) {
    index_t const columns = chunk_.columns;
    if (passes()) {
      std::fill_n(passing_, chunk_.count, 0.0);
      std::fill_n(later_, chunk_.count, 0.0);
      // What is left of the state at the end of the chunk.
      std::fill_n(left_, chunk_.state_size(), T(0));
      chunk_.advance(state, left_, chunk_.all_columns(), left_);
      key_total_[0] =
          static_cast<double>(inner_product<Arch>(left_, gradient, chunk_.state_size()));
    } else if (g_.key_gate.wanted) {
      std::fill_n(key_sums_, chunk_.count * chunk_.features, T(0));
      for (index_t d = 0; d < p_.features; ++d)
        key_total_[d] = static_cast<double>(
            inner_product<Arch>(ended + d * columns, gradient + d * columns, columns));
    }
    if (g_.value_gate.wanted) {
      std::fill_n(value_sums_, chunk_.count * columns, T(0));
      std::fill_n(row_, columns, T(0));
      for (index_t d = 0; d < p_.features; ++d)
        add_products(ended + d * columns, gradient + d * columns, columns, T(1), row_);
      std::copy_n(row_, columns, value_total_);
    }
  }

  /// Of keys, what the end of the chunk says.
  void add_end(row_block<T> dkeys) {
    if (!passes()) return;
    for (index_t j = 0; j < chunk_.count; ++j)
      earlier_[j] =
          static_cast<double>(inner_product<Arch>(chunk_.keys[j], dkeys[j], chunk_.features));
  }

  /// Rows x that read, with these scores and their gradients, before either fades twice, and dx from the state before: each pair
  /// passes the gates of the tokens after its key, up to its row.
  void add_pairs(index_t rows, T const* scores, T const* dscores, T sign, row_block<T> x,
                 row_block<T> dx) {
    if (!passes()) return;
    std::fill_n(column_sums_, chunk_.score_stride, T(0));
    for (index_t t = chunk_.count; t-- > 1;) {
      index_t const row = t * chunk_.score_stride;
      batch sum(T(0));
      for (index_t j = 0; j < t; j += lanes) {
        batch const passing =
            simd::fma(batch::load_aligned(scores + row + j), batch::load_aligned(dscores + row + j),
                      batch::load_aligned(column_sums_ + j));
        passing.store_aligned(column_sums_ + j);
      }
      // The token's own pair, and what lies beyond, begins at its gate.
      std::fill(column_sums_ + t, column_sums_ + simd::round_up(t, lanes), T(0));
      for (index_t j = 0; j < t; j += lanes) sum += batch::load_aligned(column_sums_ + j);
      alignas(64) T each[lanes];
      sum.store_aligned(each);
      for (T one : each) passing_[t] += static_cast<double>(sign * one);
    }
    for (index_t i = 0; i < rows; ++i)
      later_[i] += static_cast<double>(inner_product<Arch>(x[i], dx[i], chunk_.features));
  }

  /// Rows x that read, and all of dx.
  void add_rows(index_t rows, row_block<T> x, row_block<T> dx) { add_channels(rows, x, dx, 1); }

  /// The rows that were read, for the gates of values.
  void add_values(index_t rows, row_block<T> out, row_block<T> dout) {
    for (index_t i = 0; i < rows; ++i)
      add_products(out[i], dout[i], chunk_.columns, T(1), value_sums_ + i * chunk_.columns);
  }

  /// The end of the chunk, with all of dK and dU.
  void store(state_place const& at, chunk_list::chunk const& now, row_block<T> dkeys,
             row_block<T> dwritten) {
    index_t const first = at.where.first_key + now.first_key, entry = at.where.batch;
    add_channels(chunk_.count, chunk_.keys, dkeys, -1);
    if (passes()) {
      for (index_t t = chunk_.count - 1; t-- > 0;) later_[t] += later_[t + 1];
      double before = 0;
      T* const sums = column_sums_;
      for (index_t t = 0; t < chunk_.count; before += earlier_[t++])
        sums[t] = static_cast<T>(key_total_[0] + passing_[t] + later_[t] + before);
      g_.key_gate.store(entry, at.head, first, chunk_.count, sums, 1);
    } else if (g_.key_gate.wanted) {
      store_sums(g_.key_gate, entry, at.head, first, p_.features, chunk_.features, key_sums_,
                 key_total_);
    }
    if (g_.value_gate.wanted) {
      index_t const columns = chunk_.columns;
      for (index_t j = 0; j < chunk_.count; ++j)
        add_products(chunk_.written[j], dwritten[j], columns, T(-1), value_sums_ + j * columns);
      store_sums(g_.value_gate, entry, at.head, first, p_.columns, columns, value_sums_,
                 value_total_);
    }
  }

 private:
  /// Whether the gradient of one gate a token is wanted.
  bool passes() const { return g_.key_gate.wanted && p_.key_fading == fading::scalar; }

  /// to += sign a b, number by number.
  static void add_products(T const* a, T const* b, index_t n, T sign, T* to) {
    for (index_t d = 0; d < n; d += lanes)
      simd::fma(batch(sign) * batch::load_unaligned(a + d), batch::load_unaligned(b + d),
                batch::load_unaligned(to + d))
          .store_unaligned(to + d);
  }

  /// sign x dx, of the features of a row, to the sums of its gates.
  void add_channels(index_t rows, row_block<T> x, row_block<T> dx, T sign) {
    if (!g_.key_gate.wanted || passes()) return;
    for (index_t i = 0; i < rows; ++i)
      add_products(x[i], dx[i], chunk_.features, sign, key_sums_ + i * chunk_.features);
  }

  /// The gradient of a token's gate is the sum of all from it on.
  void store_sums(gradient_rows<T> const& to, index_t entry, index_t head, index_t first,
                  index_t channels, index_t stride, T const* sums, double* total) {
    for (index_t j = chunk_.count; j-- > 0;) {
      for (index_t d = 0; d < channels; ++d) {
        total[d] += static_cast<double>(sums[j * stride + d]);
        row_[d] = static_cast<T>(total[d]);
      }
      to.store(entry, head, first + j, 1, row_, channels);
    }
  }

  problem<T> const& p_;
  gradients<T> const& g_;
  chunk const& chunk_;
  // For one gate a token: what passes it between two tokens, from the state to later rows, from earlier keys to the end.
  double* passing_ = nullptr;
  double* later_ = nullptr;
  double* earlier_ = nullptr;
  T* column_sums_ = nullptr;
  T* left_ = nullptr;
  // For gates of channels, the sums of each token.
  T* key_sums_ = nullptr;
  T* value_sums_ = nullptr;
  double* key_total_ = nullptr;
  double* value_total_ = nullptr;
  T* row_;
};

}  // namespace heed::recur
