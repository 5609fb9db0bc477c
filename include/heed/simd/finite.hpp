#pragma once

#include <heed/simd/fma.hpp>
#include <heed/view/rows.hpp>

#include <xsimd/xsimd.hpp>

namespace heed::simd {

/// Whether every number in some rows is finite.
template <class Arch, class T, class Rows>
bool all_finite(Rows block, index_t rows, index_t columns) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto size = static_cast<index_t>(batch::size);
  constexpr index_t chains = 4;  // that do not wait for each other
  batch sum[chains];
  for (batch& each : sum) each = batch(T(0));
  T rest = 0;
  auto const look = [&](index_t chain, T const* at) {
    sum[chain] = simd::fma(batch::load_unaligned(at), batch(T(0)), sum[chain]);
  };
  for (index_t r = 0; r < rows; ++r) {
    T const* const row = block[r];
    index_t c = 0;
    for (; c + chains * size <= columns; c += chains * size)
      for (index_t chain = 0; chain < chains; ++chain) look(chain, row + c + chain * size);
    for (; c + size <= columns; c += size) look(0, row + c);
    for (; c < columns; ++c) rest += row[c] * T(0);
  }
  return xsimd::all((sum[0] + sum[1]) + (sum[2] + sum[3]) == batch(T(0))) && rest == T(0);
}

}  // namespace heed::simd
