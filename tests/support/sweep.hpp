// How far a function of SIMD registers is from what it promises. A function F has
//
//     Batch operator()(Batch x) const;
//     double exact(double x) const;  // and of long double
#pragma once

#include "support/random.hpp"

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace support {

/// f of one number, with the number in every lane.
template <class T, class F>
T value(F f, T x) {
  std::array<T, xsimd::batch<T>::size> lanes;
  f(xsimd::batch<T>(x)).store_unaligned(lanes.data());
  for (T lane : lanes)
    if (std::memcmp(&lane, &lanes[0], sizeof(T)) != 0) return std::numeric_limits<T>::quiet_NaN();
  return lanes[0];
}

struct worst_error {
  double relative = 0;
  double at = 0;

  template <class Exact, class T>
  void compare(Exact exact, T got, T x) {
    auto const error = exact == static_cast<Exact>(got)
                           ? 0
                           : static_cast<double>(std::abs(static_cast<Exact>(got) / exact - 1));
    if (!(error <= relative)) *this = {error, static_cast<double>(x)};
  }
};

/// The largest relative error of f over every `step`-th float between two of the same sign. Of those below 2^-25, where a
/// function is its value or its slope at 0, every 997th.
template <class F>
worst_error sweep(F f, float from, float to, std::uint32_t step = 1) {
  using batch = xsimd::batch<float>;
  auto low = std::bit_cast<std::uint32_t>(from), high = std::bit_cast<std::uint32_t>(to);
  if (low > high) std::swap(low, high);
  std::uint32_t const all_from = std::bit_cast<std::uint32_t>(std::copysign(0x1p-25f, from));
  std::array<float, batch::size> x, y;
  worst_error worst;
  for (std::uint64_t bits = low; bits <= high;) {
    std::uint32_t const apart = bits < all_from ? 997 : step;
    for (std::size_t lane = 0; lane < batch::size; ++lane, bits += apart)
      x[lane] =
          std::bit_cast<float>(static_cast<std::uint32_t>(std::min<std::uint64_t>(high, bits)));
    f(batch::load_unaligned(x.data())).store_unaligned(y.data());
    for (std::size_t lane = 0; lane < batch::size; ++lane)
      worst.compare(f.exact(static_cast<double>(x[lane])), y[lane], x[lane]);
  }
  return worst;
}

/// The same for random doubles.
template <class F>
worst_error sample(F f, double from, double to, int count = 200000) {
  using batch = xsimd::batch<double>;
  random draw(1);
  worst_error worst;
  std::array<double, batch::size> x, y;
  for (int n = 0; n < count; ++n) {
    for (double& each : x) each = draw.uniform(from, to);
    f(batch::load_unaligned(x.data())).store_unaligned(y.data());
    for (std::size_t lane = 0; lane < batch::size; ++lane)
      worst.compare(f.exact(static_cast<long double>(x[lane])), y[lane], x[lane]);
  }
  return worst;
}

}  // namespace support
