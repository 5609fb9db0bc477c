#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/recur/problem.hpp>
#include <heed/simd/dot.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/math.hpp>
#include <heed/simd/product.hpp>
#include <heed/simd/transpose.hpp>

#include <numbers>

/// The products inside a chunk of tokens, with what fades between two of them.
///
/// Everything that passes between tokens of a chunk is one of three products, for tokens j <= i:
///
///     scores    m_ij  = sum_d x_id y_jd e^(G_id - G_jd)
///     gather    z_i  += sum_j m_ij y_j e^(G_i - G_j)
///     scatter   z_j  += sum_i m_ij x_i e^(G_i - G_j)
///
/// Forward and backward are made of them, on the side of the keys and on that of the values. No exponential of a positive
/// number appears: between blocks of tokens, factors are carried from the end of one to the start of the other, and inside
/// a block from token to token.
namespace heed::recur {

using simd::product;

/// e^x in every lane, for x <= 0.
template <class Arch, class T>
xsimd::batch<T, Arch> exponential(double x) {
  return simd::exp2(xsimd::batch<T, Arch>(static_cast<T>(x * std::numbers::log2e)));
}

/// to[i] = e^x[i] for x <= 0.
template <class Arch, class T>
void exponentials(double const* x, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  index_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    alignas(64) T power[lanes];
    for (index_t l = 0; l < lanes; ++l) power[l] = static_cast<T>(x[i + l] * std::numbers::log2e);
    simd::exp2(batch::load_aligned(power)).store_unaligned(to + i);
  }
  if (i < count) {
    alignas(64) T power[lanes] = {};
    for (index_t l = 0; l < count - i; ++l)
      power[l] = static_cast<T>(x[i + l] * std::numbers::log2e);
    simd::exp2(batch::load_aligned(power)).store_aligned(power);
    std::copy_n(power, count - i, to + i);
  }
}

/// to[i] = factors[i] * from[i] for a number of whole registers.
template <class Arch, class T>
void multiply_row(T const* factors, T const* from, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = 0; d < count; d += static_cast<index_t>(batch::size))
    (batch::load_unaligned(factors + d) * batch::load_unaligned(from + d)).store_unaligned(to + d);
}
template <class Arch, class T>
void multiply_row(T factor, T const* from, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = 0; d < count; d += static_cast<index_t>(batch::size))
    (batch(factor) * batch::load_unaligned(from + d)).store_unaligned(to + d);
}

/// to[i] = factors[i] * more[i] * from[i].
template <class Arch, class T>
void multiply_row(T const* factors, T const* more, T const* from, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = 0; d < count; d += static_cast<index_t>(batch::size))
    (batch::load_unaligned(factors + d) * batch::load_unaligned(from + d) *
     batch::load_unaligned(more + d))
        .store_unaligned(to + d);
}

/// to[i] += factors[i] * from[i].
template <class Arch, class T>
void add_product(T const* factors, T const* from, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = 0; d < count; d += static_cast<index_t>(batch::size))
    simd::fma(batch::load_unaligned(factors + d), batch::load_unaligned(from + d),
              batch::load_unaligned(to + d))
        .store_unaligned(to + d);
}
template <class Arch, class T>
void add_product(T factor, T const* from, index_t count, T* to) {
  using batch = xsimd::batch<T, Arch>;
  for (index_t d = 0; d < count; d += static_cast<index_t>(batch::size))
    simd::fma(batch(factor), batch::load_unaligned(from + d), batch::load_unaligned(to + d))
        .store_unaligned(to + d);
}

/// a . b for a number of whole registers.
template <class Arch, class T>
T inner_product(T const* a, T const* b, index_t count) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  batch sum[2] = {batch(T(0)), batch(T(0))};
  index_t d = 0;
  for (; d + 2 * lanes <= count; d += 2 * lanes)
    for (index_t chain = 0; chain < 2; ++chain)
      sum[chain] = simd::fma(batch::load_unaligned(a + d + chain * lanes),
                             batch::load_unaligned(b + d + chain * lanes), sum[chain]);
  for (; d < count; d += lanes)
    sum[0] = simd::fma(batch::load_unaligned(a + d), batch::load_unaligned(b + d), sum[0]);
  alignas(64) T each[lanes];
  (sum[0] + sum[1]).store_aligned(each);
  T total = 0;
  for (T one : each) total += one;
  return total;
}

/// Rows of numbers to compute with and to write, padded with zeros to whole registers.
template <class T>
struct padded_rows {
  T* data;
  index_t stride;

  T* operator[](index_t row) const { return data + row * stride; }
  operator row_block<T>() const { return {data, stride}; }
};

/// How the state fades over the tokens of a chunk, along one of its sides: the features of keys, or the channels of values.
template <class T, class Arch>
class fade {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);
  /// Tokens between which factors are carried one by one.
  static constexpr index_t block = std::max<index_t>(8, lanes);
  /// Tokens that a product is made for at a time; a triangle is cut into steps of these.
  static constexpr index_t most_rows_at_once = 16;

  fade(arena& memory, fading kind, index_t width, index_t tokens)
      : kind_(kind),
        width_(simd::round_up(width, lanes)),
        own_width_(width),
        score_stride_(simd::round_up(tokens, block)) {
    index_t const rows = score_stride_;
    if (kind_ == fading::scalar) {
      sums_ = memory.take<double>(rows);
      pair_ = memory.take<T>(rows * score_stride_);
      log_ = memory.take<T>(rows);
      factor_ = memory.take<T>(rows);
      from_start_ = memory.take<T>(rows);
      to_end_ = memory.take<T>(rows);
    } else if (kind_ == fading::channels) {
      index_t const blocks = rows / block;
      sums_ = memory.take<double>(width_);
      gate_ = memory.take<T>(rows * width_);
      block_sums_ = memory.take<T>(blocks * width_);
      head_ = memory.take<T>(rows * width_);
      tail_ = memory.take<T>(rows * width_);
      total_ = memory.take<T>(blocks * width_);
      before_ = memory.take<T>(blocks * width_);
      after_ = memory.take<T>(blocks * width_);
      whole_ = memory.take<T>(width_);
      rows_ = memory.take<T>(rows * width_);
      other_rows_ = memory.take<T>(rows * width_);
      transposed_ = memory.take<T>(width_ * score_stride_);
      if (!memory.measuring()) {
        std::fill_n(rows_, rows * width_, T(0));
        std::fill_n(other_rows_, rows * width_, T(0));
        std::fill_n(gate_, rows * width_, T(0));
      }
    }
  }

  fading kind() const { return kind_; }

  /// The gates of a chunk's tokens, of one head.
  void load(token_numbers<T> const& gates, index_t batch_entry, index_t head, index_t first,
            index_t count) {
    bool const same =
        gates.constant && kind_ == fading::scalar && of_head_ == head && batch_ == batch_entry;
    // What fades between the first tokens of a chunk is known of one that was as long.
    if (!same || count > pairs_) pairs_ = 0;
    bool const known = same && count == count_;
    count_ = count;
    if (kind_ == fading::none || count == 0 || known) return;
    of_head_ = head;
    batch_ = batch_entry;
    if (kind_ == fading::scalar) {
      gates.numbers.copy(batch_entry, head, first, count, log_, 1);
      load_scalars();
    } else {
      gates.numbers.copy(batch_entry, head, first, count, gate_, width_);
      // What pads a row is a gate of 0, not what the last chunk has left there.
      for (index_t i = 0; i < count; ++i)
        std::fill(gate_ + i * width_ + own_width_, gate_ + (i + 1) * width_, T(0));
      load_channels();
    }
  }

  /// Makes what fades between two tokens of the chunk: to be called before scores are made.
  void prepare_scores() {
    if (kind_ != fading::scalar || pairs_ >= count_) return;
    // Between blocks, sums from one token to the other: differences of sums from the start would cancel after a token that
    // forgets all. Inside a block, factors are carried from token to token.
    std::copy_n(log_, count_, sums_);
    exponentials<Arch>(sums_, count_, factor_);
    for (index_t i = 0; i < count_; ++i) {
      T* const row = pair_ + i * score_stride_;
      if (i % block == 0) {
        double sum = 0;
        for (index_t j = i; j-- > std::max<index_t>(i - block, 0); sums_[j] = sum)
          sum += static_cast<double>(log_[j + 1]);
        for (index_t j = 0; j < i - block; ++j) sums_[j] += sum;
        exponentials<Arch>(sums_, i, row);
      } else {
        multiply_row<Arch>(factor_[i], row - score_stride_, simd::round_up(i, lanes), row);
      }
      row[i] = T(1);
      std::fill(row + i + 1, row + score_stride_, T(0));
    }
    pairs_ = count_;
  }

  /// m_ij for j <= i, or j < i if `strict`, and 0 up to the end of the rows that are made at a time. x and y have `depth`
  /// columns; y_transposed is [depth][score_stride].
  void scores(index_t rows_at_once, bool strict, row_block<T> x, row_block<T> y,
              T const* y_transposed, index_t depth, T* m) const {
    if (kind_ == fading::channels) return channel_scores(strict, x, y, depth, m);
    for (index_t first = 0; first < count_; first += rows_at_once) {
      index_t const last = std::min(first + rows_at_once, count_);
      index_t const columns = simd::round_up(last, lanes);
      product<false, Arch>(last - first, depth, {x[first], x.stride, 1}, y_transposed,
                           score_stride_, columns, m + first * score_stride_, score_stride_);
      for (index_t i = first; i < last; ++i) hide_later(i + (strict ? 0 : 1), columns, i, m);
    }
  }

  /// Multiplies scores that were made without this side by what fades between their tokens, if that is one number.
  void fade_scores(index_t rows_at_once, T* m) const {
    if (kind_ != fading::scalar) return;
    for (index_t i = 0; i < count_; ++i) {
      index_t const last = std::min(i - i % rows_at_once + rows_at_once, count_);
      T* const row = m + i * score_stride_;
      multiply_row<Arch>(pair_ + i * score_stride_, row, simd::round_up(last, lanes), row);
    }
  }

  /// z_i += sum_j m_ij y_j e^(G_i - G_j); between keys and values a scalar decay is in m already.
  void gather(index_t rows_at_once, T const* m, row_block<T> y, index_t columns,
              padded_rows<T> z) const {
    if (kind_ == fading::channels) return channel_gather(m, y, z);
    for (index_t first = 0; first < count_; first += rows_at_once) {
      index_t const last = std::min(first + rows_at_once, count_);
      product<true, Arch>(last - first, last, {m + first * score_stride_, score_stride_, 1}, y.data,
                          y.stride, columns, z[first], z.stride);
    }
  }

  /// z_j += sum_i m_ij x_i e^(G_i - G_j).
  void scatter(index_t rows_at_once, T const* m, row_block<T> x, index_t columns,
               padded_rows<T> z) const {
    if (kind_ == fading::channels) return channel_scatter(m, x, z);
    for (index_t first = 0; first < count_; first += rows_at_once) {
      index_t const last = std::min(first + rows_at_once, count_);
      product<true, Arch>(last - first, count_ - first,
                          {m + first * score_stride_ + first, 1, score_stride_}, x[first], x.stride,
                          columns, z[first], z.stride);
    }
  }

  /// to_i = x_i e^G_i, what is left of the state a chunk begins with.
  void from_start(index_t count, row_block<T> x, index_t columns, padded_rows<T> to) const {
    for (index_t i = 0; i < count; ++i) {
      if (kind_ == fading::scalar) {
        multiply_row<Arch>(from_start_[i], x[i], columns, to[i]);
      } else {
        multiply_row<Arch>(head_ + i * width_, before_ + i / block * width_, x[i], columns, to[i]);
      }
    }
  }

  /// to_j = y_j e^(G_end - G_j), what is left of a token at the end of the chunk.
  void to_end(row_block<T> y, index_t columns, padded_rows<T> to) const {
    for (index_t j = 0; j < count_; ++j) {
      if (kind_ == fading::scalar) {
        multiply_row<Arch>(to_end_[j], y[j], columns, to[j]);
      } else {
        multiply_row<Arch>(tail_ + j * width_, after_ + j / block * width_, y[j], columns, to[j]);
      }
    }
  }

  /// e^G_end: one number, or one for each channel.
  T whole() const { return kind_ == fading::scalar && count_ > 0 ? from_start_[count_ - 1] : T(1); }
  T const* whole_channels() const { return whole_; }

  index_t score_stride() const { return score_stride_; }

 private:
  void hide_later(index_t kept, index_t columns, index_t i, T* m) const {
    T* const row = m + i * score_stride_;
    if (kind_ == fading::scalar)
      multiply_row<Arch>(pair_ + i * score_stride_, row, simd::round_up(kept, lanes), row);
    std::fill(row + kept, row + columns, T(0));
  }

  void load_scalars() {
    double sum = 0;
    for (index_t i = 0; i < count_; ++i) sums_[i] = sum += static_cast<double>(log_[i]);
    exponentials<Arch>(sums_, count_, from_start_);
    sum = 0;
    for (index_t i = count_; i-- > 0; sum += static_cast<double>(log_[i])) sums_[i] = sum;
    exponentials<Arch>(sums_, count_, to_end_);
  }

  // Sums over a block are of few tokens, and those over blocks in double.
  void load_channels() {
    constexpr T log2_e = T(1.4426950408889634074);
    index_t const blocks = (count_ + block - 1) / block;
    for (index_t b = 0; b < blocks; ++b) {
      index_t const first = b * block, last = std::min(first + block, count_);
      for (index_t d = 0; d < width_; d += lanes) {
        batch sum(T(0)), head(T(1));
        for (index_t i = first; i < last; ++i) {
          T* const gate = gate_ + i * width_ + d;
          batch const log = batch::load_aligned(gate);
          sum += log;
          batch const factor = simd::exp2(log * batch(log2_e));
          head *= factor;
          factor.store_aligned(gate);
          head.store_aligned(head_ + i * width_ + d);
        }
        for (index_t i = last; i < first + block; ++i)
          batch(T(1)).store_aligned(gate_ + i * width_ + d);
        batch tail(T(1));
        for (index_t i = last; i-- > first;) {
          tail.store_aligned(tail_ + i * width_ + d);
          tail *= batch::load_aligned(gate_ + i * width_ + d);
        }
        sum.store_aligned(block_sums_ + b * width_ + d);
        simd::exp2(sum * batch(log2_e)).store_aligned(total_ + b * width_ + d);
      }
    }
    auto const move_on = [&](index_t b) {
      for (index_t d = 0; d < width_; ++d)
        sums_[d] += static_cast<double>(block_sums_[b * width_ + d]);
    };
    std::fill_n(sums_, width_, 0.0);
    for (index_t b = blocks; b-- > 0; move_on(b))
      exponentials<Arch>(sums_, width_, after_ + b * width_);
    exponentials<Arch>(sums_, width_, whole_);
    std::fill_n(sums_, width_, 0.0);
    for (index_t b = 0; b < blocks; move_on(b++))
      exponentials<Arch>(sums_, width_, before_ + b * width_);
  }

  /// Inside a block: m_ij for the key at `Key` and all later tokens, the key fading from token to token.
  template <index_t Key>
  void scores_of_key(row_block<T> x, row_block<T> y, index_t first, T* m) const {
    constexpr index_t groups = (block - Key + lanes - 1) / lanes;
    batch sum[groups * lanes];
#pragma GCC unroll 16
    for (index_t i = 0; i < groups * lanes; ++i) sum[i] = batch(T(0));
    for (index_t d = 0; d < width_; d += lanes) {
      batch key = batch::load_unaligned(y[first + Key] + d);
#pragma GCC unroll 16
      for (index_t i = Key; i < block; ++i) {
        sum[i - Key] = simd::fma(batch::load_unaligned(x[first + i] + d), key, sum[i - Key]);
        if (i + 1 < block) key *= batch::load_unaligned(gate_ + (first + i + 1) * width_ + d);
      }
    }
    alignas(64) T sums[groups * lanes];
    for (index_t g = 0; g < groups; ++g)
      simd::detail::sum_lanes<T, Arch>(sum + g * lanes, sums + g * lanes);
    for (index_t i = Key; i < block; ++i)
      m[(first + i) * score_stride_ + first + Key] = sums[i - Key];
  }

  void channel_scores(bool strict, row_block<T> x, row_block<T> y, index_t depth, T* m) const {
    for (index_t i = 0; i < count_; ++i) {
      multiply_row<Arch>(head_ + i * width_, x[i], width_, rows_ + i * width_);
      multiply_row<Arch>(tail_ + i * width_, y[i], width_, other_rows_ + i * width_);
    }
    simd::transpose<Arch>(count_, depth, other_rows_, width_, transposed_, score_stride_);
    for (index_t first = 0; first < count_; first += block) {
      index_t const last = std::min(first + block, count_);
      product<false, Arch>(last - first, depth, {rows_ + first * width_, width_, 1}, transposed_,
                           score_stride_, first, m + first * score_stride_, score_stride_);
      [&]<index_t... Key>(std::integer_sequence<index_t, Key...>) {
        ((first + Key < last ? scores_of_key<Key>(x, y, first, m) : void()), ...);
      }
      (std::make_integer_sequence<index_t, block>());
      index_t const end = simd::round_up(last, most_rows_at_once);
      for (index_t i = first; i < last; ++i) {
        T* const row = m + i * score_stride_;
        index_t const kept = i + (strict ? 0 : 1);
        std::fill(row + kept, row + std::min(std::max(end, kept), score_stride_), T(0));
      }
      if (last == count_) break;
      T const* const total = total_ + first / block * width_;
      for (index_t d = 0; d < depth && first > 0; ++d)
        multiply_row<Arch>(total[d], transposed_ + d * score_stride_, first,
                           transposed_ + d * score_stride_);
    }
  }

  /// Inside a block: what the token at `Row` gathers, in one register of channels. `key`: the tokens before it as they have
  /// faded so far.
  template <index_t Row>
  void gather_row(T const* m, row_block<T> y, index_t first, index_t d, batch (&key)[block],
                  padded_rows<T> z) const {
    index_t const i = first + Row;
    T const* const row = m + i * score_stride_ + first;
    batch const gate = batch::load_aligned(gate_ + i * width_ + d);
    batch sum = batch::load_unaligned(z[i] + d);
#pragma GCC unroll 16
    for (index_t j = 0; j < Row; ++j) {
      key[j] *= gate;
      sum = simd::fma(batch(row[j]), key[j], sum);
    }
    key[Row] = batch::load_unaligned(y[i] + d);
    simd::fma(batch(row[Row]), key[Row], sum).store_unaligned(z[i] + d);
  }

  /// And what it scatters. `sum`: what later tokens have scattered so far, as it has faded.
  template <index_t Row>
  void scatter_row(T const* m, row_block<T> x, index_t first, index_t last, index_t d,
                   batch (&sum)[block], padded_rows<T> z) const {
    index_t const i = first + Row;
    T const* const row = m + i * score_stride_ + first;
    batch const own = batch::load_unaligned(x[i] + d);
    if (i + 1 < last) {
      batch const gate = batch::load_aligned(gate_ + (i + 1) * width_ + d);
#pragma GCC unroll 16
      for (index_t j = 0; j <= Row; ++j) sum[j] *= gate;
    }
#pragma GCC unroll 16
    for (index_t j = 0; j <= Row; ++j) sum[j] = simd::fma(batch(row[j]), own, sum[j]);
    (batch::load_unaligned(z[i] + d) + sum[Row]).store_unaligned(z[i] + d);
  }

  void channel_gather(T const* m, row_block<T> y, padded_rows<T> z) const {
    T* const sums = other_rows_;
    for (index_t j = 0; j < count_; ++j)
      multiply_row<Arch>(tail_ + j * width_, y[j], width_, rows_ + j * width_);
    for (index_t first = 0; first < count_; first += block) {
      index_t const last = std::min(first + block, count_);
      if (first > 0) {
        product<false, Arch>(last - first, first, {m + first * score_stride_, score_stride_, 1},
                             rows_, width_, width_, sums, width_);
        for (index_t i = first; i < last; ++i)
          add_product<Arch>(head_ + i * width_, sums + (i - first) * width_, width_, z[i]);
      }
      for (index_t d = 0; d < width_; d += lanes) {
        batch key[block];
        // With &&, so that a compiler sees that the rows before one have run.
        [&]<index_t... Row>(std::integer_sequence<index_t, Row...>) {
          static_cast<void>(
              ((first + Row < last && (gather_row<Row>(m, y, first, d, key, z), true)) && ...));
        }
        (std::make_integer_sequence<index_t, block>());
      }
      if (last == count_) break;
      T const* const total = total_ + first / block * width_;
      for (index_t j = 0; j < first; ++j)
        multiply_row<Arch>(total, rows_ + j * width_, width_, rows_ + j * width_);
    }
  }

  void channel_scatter(T const* m, row_block<T> x, padded_rows<T> z) const {
    T* const sums = other_rows_;
    for (index_t i = 0; i < count_; ++i)
      multiply_row<Arch>(head_ + i * width_, x[i], width_, rows_ + i * width_);
    index_t const blocks = (count_ + block - 1) / block;
    for (index_t b = blocks; b-- > 0;) {
      index_t const first = b * block, last = std::min(first + block, count_);
      if (last < count_) {
        product<false, Arch>(last - first, count_ - last,
                             {m + last * score_stride_ + first, 1, score_stride_},
                             rows_ + last * width_, width_, width_, sums, width_);
        for (index_t j = first; j < last; ++j)
          add_product<Arch>(tail_ + j * width_, sums + (j - first) * width_, width_, z[j]);
      }
      for (index_t d = 0; d < width_; d += lanes) {
        batch sum[block];
        std::fill_n(sum, block, batch(T(0)));
        [&]<index_t... Row>(std::integer_sequence<index_t, Row...>) {
          ((first + block - 1 - Row < last
                ? scatter_row<block - 1 - Row>(m, x, first, last, d, sum, z)
                : void()),
           ...);
        }
        (std::make_integer_sequence<index_t, block>());
      }
      T const* const total = total_ + b * width_;
      for (index_t i = last; i < count_; ++i)
        multiply_row<Arch>(total, rows_ + i * width_, width_, rows_ + i * width_);
    }
  }

  fading kind_;
  index_t width_;
  index_t own_width_;
  index_t score_stride_;
  index_t count_ = 0;
  index_t batch_ = -1;
  index_t of_head_ = -1;
  index_t pairs_ = 0;       // tokens between which pair_ is known
  double* sums_ = nullptr;  // of log gates, while they are loaded
  // A scalar: the log at each token, and its exponential; what fades between two tokens, from the start through each, and from there to the end.
  T* log_ = nullptr;
  T* factor_ = nullptr;
  T* pair_ = nullptr;
  T* from_start_ = nullptr;
  T* to_end_ = nullptr;
  // Channels: the decay at each token; from its block's start through each token, and from there to the block's end; over
  // each block, before it, after it, and over the chunk.
  T* gate_ = nullptr;
  T* block_sums_ = nullptr;
  T* head_ = nullptr;
  T* tail_ = nullptr;
  T* total_ = nullptr;
  T* before_ = nullptr;
  T* after_ = nullptr;
  T* whole_ = nullptr;
  T* rows_ = nullptr;
  T* other_rows_ = nullptr;
  T* transposed_ = nullptr;
};

}  // namespace heed::recur
