#pragma once

#include <heed/recur/memory/products.hpp>
#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>

/// What a memory follows of the error e of a key: psi(e), the slope of its objective. Each has
///
///     void apply(index_t columns, T const* e, T threshold, T* psi) const;
///     // From dpsi, which it may overwrite, to de; returns d loss / d threshold.
///     T differentiate(index_t columns, T const* e, T threshold, T* dpsi, T* de) const;
///
/// Rows are padded with zeros to whole registers, and psi(0) is 0.
namespace heed::recur::memory {

/// x^exponent for x >= 0, by multiplication where the exponent is a small whole number. 0^0 is 1.
template <class Batch>
Batch power(Batch const& x, typename Batch::value_type exponent) {
  using T = typename Batch::value_type;
  if (exponent == std::floor(exponent) && exponent >= 0 && exponent <= 8) {
    Batch result(T(1));
    for (int n = 0; n < static_cast<int>(exponent); ++n) result *= x;
    return result;
  }
  if (exponent == T(0.5)) return xsimd::sqrt(x);
  Batch const result = heed::simd::exp(Batch(exponent) * simd::log(x));
  // The logarithm of 0 has no sign that could be relied on times an exponent.
  return xsimd::select(x == Batch(T(0)),
                       Batch(exponent > 0 ? T(0) : std::numeric_limits<T>::infinity()), result);
}

template <class Batch>
Batch sign_of(Batch const& x) {
  using T = typename Batch::value_type;
  return xsimd::select(x == Batch(T(0)), Batch(T(0)), xsimd::copysign(Batch(T(1)), x));
}

/// psi(e) = e, of the squared error.
template <class T, class Arch>
struct squared_error {
  using math = products<T, Arch>;

  void apply(index_t columns, T const* e, T, T* psi) const {
    std::copy_n(e, math::padded(columns), psi);
  }
  T differentiate(index_t columns, T const*, T, T* dpsi, T* de) const {
    std::copy_n(dpsi, math::padded(columns), de);
    return 0;
  }
};

/// psi(e) = p sign(e) |e|^(p-1), of the sum of |e|^p; smooth with tanh(10 e) for the sign and sqrt(e^2 + 1e-6) for |e|.
template <class T, class Arch>
struct power_error {
  using math = products<T, Arch>;
  using batch = typename math::batch;

  T p;
  bool smooth;

  void apply(index_t columns, T const* e, T, T* psi) const {
    for (index_t c = 0; c < math::padded(columns); c += math::lanes) {
      batch const x = batch::load_aligned(e + c);
      batch const result =
          smooth ? tanh_of(x) * power(size_of(x), p - 1) : sign_of(x) * power(xsimd::abs(x), p - 1);
      (batch(p) * result).store_aligned(psi + c);
    }
  }
  T differentiate(index_t columns, T const* e, T, T* dpsi, T* de) const {
    for (index_t c = 0; c < math::padded(columns); c += math::lanes) {
      batch const x = batch::load_aligned(e + c), zero(T(0));
      batch slope;
      if (smooth) {
        batch const size = size_of(x), sign = tanh_of(x), one(T(1));
        slope = batch(T(10)) * (one - sign * sign) * power(size, p - 1) +
                sign * batch(p - 1) * x / (size * size) * power(size, p - 1);
      } else if (p == 1) {
        slope = zero;
      } else {
        // Where the slope of |e|^(p-1) is infinite, at 0, nothing is passed on.
        slope = batch(p - 1) * power(xsimd::abs(x), p - 2);
        if (p < 2) slope = xsimd::select(x == zero, zero, slope);
      }
      (batch(p) * slope * batch::load_aligned(dpsi + c)).store_aligned(de + c);
    }
    return 0;
  }

 private:
  static batch size_of(batch x) { return xsimd::sqrt(simd::fma(x, x, batch(T(1e-6)))); }
  static batch tanh_of(batch x) { return heed::simd::tanh(batch(T(10)) * x); }
};

/// How a Huber error beyond its threshold is followed.
enum class beyond { sign, unit, each };

/// psi(e) = e where |e|_2 <= threshold, else threshold sign(e), or threshold e / |e|_2; or both for each coordinate alone.
template <class T, class Arch>
struct huber_error {
  using math = products<T, Arch>;
  using batch = typename math::batch;

  beyond kind;

  void apply(index_t columns, T const* e, T threshold, T* psi) const {
    T const length = kind == beyond::each ? T(0) : std::sqrt(math::dot(columns, e, e));
    for (index_t c = 0; c < math::padded(columns); c += math::lanes) {
      batch const x = batch::load_aligned(e + c), most(threshold);
      batch result = x;
      if (kind == beyond::each)
        result = xsimd::select(xsimd::abs(x) > most, most * sign_of(x), x);
      else if (length > threshold)
        result = kind == beyond::sign ? most * sign_of(x) : batch(threshold / length) * x;
      result.store_aligned(psi + c);
    }
  }
  T differentiate(index_t columns, T const* e, T threshold, T* dpsi, T* de) const {
    T const length = kind == beyond::each ? T(0) : std::sqrt(math::dot(columns, e, e));
    bool const far = length > threshold;
    T const along = kind == beyond::unit && far ? math::dot(columns, dpsi, e) / length : T(0);
    batch sum(T(0));
    for (index_t c = 0; c < math::padded(columns); c += math::lanes) {
      batch const x = batch::load_aligned(e + c), d = batch::load_aligned(dpsi + c), zero(T(0));
      batch result = d;
      if (kind == beyond::each) {
        auto const beyond_it = xsimd::abs(x) > batch(threshold);
        result = xsimd::select(beyond_it, zero, d);
        sum += xsimd::select(beyond_it, d * sign_of(x), zero);
      } else if (far && kind == beyond::sign) {
        result = zero;
        sum += d * sign_of(x);
      } else if (far) {
        result = batch(threshold / length) * (d - batch(along / length) * x);
      }
      result.store_aligned(de + c);
    }
    return kind == beyond::unit ? along : math::add_lanes(sum);
  }
};

}  // namespace heed::recur::memory
