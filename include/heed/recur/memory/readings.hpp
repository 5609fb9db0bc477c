#pragma once

#include <heed/recur/memory/errors.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>
#include <limits>

/// How a state X is read as weights W: W = P diag(factors), where P is X itself or made of it. Each has
///
///     static constexpr bool of_state;   // P is X
///     bool each_token() const;          // W changes with X inside a chunk; if not, the factors stay
///     // Writes P, if it is not X, and the factors.
///     void prepare(index_t rows, index_t columns, panel<T> X, panel<T> P, T* factors) const;
///     // dX += the gradient by X from dW; `dfactor` is what is known of d loss / d factor besides, where all are one.
///     void differentiate(index_t rows, index_t columns, panel<T> X, panel<T> P, T const* factors, panel<T> dW,
///                        T dfactor, panel<T> dX) const;
namespace heed::recur::memory {

/// W = X
template <class T, class Arch>
struct read_as_it_is {
  using math = products<T, Arch>;
  using batch = typename math::batch;
  static constexpr bool of_state = true;

  bool each_token() const { return false; }
  void prepare(index_t, index_t columns, panel<T>, panel<T>, T* factors) const {
    std::fill_n(factors, math::padded(columns), T(1));
  }
  void differentiate(index_t rows, index_t columns, panel<T>, panel<T>, T const*, panel<T> dW, T,
                     panel<T> dX) const {
    math::each(
        rows, columns, [](batch sum, batch more) { return sum + more; }, dX, dW);
  }
};

/// W = X / |X|_q^(q-2), and W = X while X = 0.
template <class T, class Arch>
struct read_by_norm {
  using math = products<T, Arch>;
  using batch = typename math::batch;
  static constexpr bool of_state = true;

  T q;
  bool exact;  // the norm of each token; else that at the start of the chunk

  bool each_token() const { return exact && q != 2; }

  void prepare(index_t rows, index_t columns, panel<T> X, panel<T>, T* factors) const {
    double const size = q == 2 ? 1 : norm(rows, columns, X);
    double const factor = size == 0 ? 1 : std::pow(size, 2.0 - static_cast<double>(q));
    // The largest number there is, times the 0s of a tiny matrix, is still 0.
    constexpr double largest = static_cast<double>(std::numeric_limits<T>::max());
    std::fill_n(factors, math::padded(columns), static_cast<T>(std::min(factor, largest)));
  }
  void differentiate(index_t rows, index_t columns, panel<T> X, panel<T>, T const* factors,
                     panel<T> dW, T dfactor, panel<T> dX) const {
    batch const factor(factors[0]);
    math::each(
        rows, columns, [&](batch sum, batch more) { return simd::fma(factor, more, sum); }, dX, dW);
    if (q == 2) return;
    // By the factor n^(2-q), dn / dX = sign(X) (|X| / n)^(q-1).
    double const size = norm(rows, columns, X);
    if (size == 0) return;
    double const n = size, power_of = static_cast<double>(q);
    double const all = static_cast<double>(math::dot(rows, columns, dW, X)) + double(dfactor);
    batch const by_norm(static_cast<T>((2 - power_of) * std::pow(n, 1 - power_of) * all)),
        inverse(static_cast<T>(1 / n));
    math::each(
        rows, columns,
        [&](batch sum, batch x) {
          return simd::fma(by_norm, sign_of(x) * power(xsimd::abs(x) * inverse, q - 1), sum);
        },
        dX, X);
  }

 private:
  /// |X|_q; numbers are divided by the largest where their powers leave the range of T.
  double norm(index_t rows, index_t columns, panel<T> X) const {
    auto const sum_of = [&](batch inverse) {
      batch sum[4] = {batch(T(0)), batch(T(0)), batch(T(0)), batch(T(0))};
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < math::padded(columns); c += math::lanes)
          sum[(c / math::lanes + r) % 4] +=
              power(xsimd::abs(batch::load_unaligned(X[r] + c)) * inverse, q);
      return static_cast<double>(math::add_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])));
    };
    double const inverse_q = 1 / static_cast<double>(q), plain = sum_of(batch(T(1)));
    constexpr double small = static_cast<double>(std::numeric_limits<T>::min()) * 1e12;
    if (plain > small && std::isfinite(plain)) return std::pow(plain, inverse_q);
    T most = 0;
    for (index_t r = 0; r < rows; ++r)
      for (index_t c = 0; c < columns; ++c) most = std::max(most, std::abs(X[r][c]));
    if (!(most > std::numeric_limits<T>::min()) || !std::isfinite(most))
      return static_cast<double>(most);
    return static_cast<double>(most) * std::pow(sum_of(batch(1 / most)), inverse_q);
  }
};

/// W = total Softmax(X) over all entries, or over the entries of each column.
template <class T, class Arch>
struct read_by_softmax {
  using math = products<T, Arch>;
  using batch = typename math::batch;
  static constexpr bool of_state = false;

  T total;
  bool each_column;

  bool each_token() const { return true; }

  void prepare(index_t rows, index_t columns, panel<T> X, panel<T> P, T* factors) const {
    // The padding is no entry.
    batch const none(-std::numeric_limits<T>::infinity());
    index_t const wide = math::padded(columns);
    auto const entries = [&](index_t r, index_t c) {
      batch x = batch::load_unaligned(X[r] + c);
      if (c + math::lanes <= columns) return x;
      alignas(64) T lane[batch::size];
      x.store_aligned(lane);
      for (index_t n = columns - c; n < math::lanes; ++n)
        lane[n] = -std::numeric_limits<T>::infinity();
      return batch::load_aligned(lane);
    };
    batch all_most = none, all_sum(T(0));
    for (index_t c = 0; c < wide; c += math::lanes) {
      batch most = none;
      for (index_t r = 0; r < rows; ++r) most = xsimd::max(most, entries(r, c));
      most.store_aligned(factors + c);
      all_most = xsimd::max(all_most, most);
    }
    alignas(64) T lane[batch::size];
    all_most.store_aligned(lane);
    batch const largest(*std::max_element(lane, lane + math::lanes));
    for (index_t c = 0; c < wide; c += math::lanes) {
      // A column of padding has no largest entry to be measured by.
      batch most = largest;
      if (each_column) {
        batch const own = batch::load_aligned(factors + c);
        most = xsimd::select(own == none, largest, own);
      }
      batch sum(T(0));
      for (index_t r = 0; r < rows; ++r) {
        batch const e = heed::simd::exp(entries(r, c) - most);
        e.store_unaligned(P[r] + c);
        sum += e;
      }
      all_sum += sum;
      xsimd::select(sum == batch(T(0)), batch(T(0)), batch(total) / sum).store_aligned(factors + c);
    }
    if (!each_column) std::fill_n(factors, wide, total / math::add_lanes(all_sum));
  }
  void differentiate(index_t rows, index_t columns, panel<T>, panel<T> P, T const* factors,
                     panel<T> dW, T, panel<T> dX) const {
    // dX = W (dW - mean), the mean of dW by the weights W / total. Both are taken relative to dW at the largest entry, whose
    // P is 1: where that has nearly all the weight, what counts is how the others differ from it.
    index_t const wide = math::padded(columns);
    auto const weights = [&](index_t r, index_t c) {
      return batch::load_unaligned(P[r] + c) * batch::load_aligned(factors + c);
    };
    auto const at_largest = [&](index_t c, batch found) {
      for (index_t r = 0; r < rows; ++r)
        found = xsimd::select(batch::load_unaligned(P[r] + c) == batch(T(1)),
                              batch::load_unaligned(dW[r] + c), found);
      return found;
    };
    auto const column_sum = [&](index_t c, batch origin) {
      batch sum(T(0));
      for (index_t r = 0; r < rows; ++r)
        sum = simd::fma(weights(r, c), batch::load_unaligned(dW[r] + c) - origin, sum);
      return sum;
    };
    batch all_origin(T(0)), all(T(0));
    if (!each_column) {
      for (index_t r = 0; r < rows; ++r)
        for (index_t c = 0; c < columns; ++c)
          if (P[r][c] == T(1)) all_origin = batch(dW[r][c]);
      for (index_t c = 0; c < wide; c += math::lanes) all += column_sum(c, all_origin);
      all = batch(math::add_lanes(all));
    }
    for (index_t c = 0; c < wide; c += math::lanes) {
      batch const origin = each_column ? at_largest(c, batch(T(0))) : all_origin;
      batch const mean = (each_column ? column_sum(c, origin) : all) / batch(total);
      for (index_t r = 0; r < rows; ++r)
        simd::fma(weights(r, c), (batch::load_unaligned(dW[r] + c) - origin) - mean,
                  batch::load_unaligned(dX[r] + c))
            .store_unaligned(dX[r] + c);
    }
  }
};

}  // namespace heed::recur::memory
