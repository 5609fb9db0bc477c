#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/multiply.hpp>
#include <heed/view/tensor_view.hpp>

#include <algorithm>
#include <limits>

/// Functions of the numbers of a row, in whole registers wherever they lie: what feature maps are made of.
namespace heed::recur {

/// Scratch of the feature maps, which engines and compositions do not use.
inline workspace& feature_workspace() {
  thread_local workspace own;
  return own;
}

/// Room for `count` numbers, until the next call.
template <class T>
T* feature_scratch(index_t count) {
  return arena(feature_workspace().reserve(static_cast<std::size_t>(arena::bytes<T>(count))))
      .take<T>(count);
}

/// Calls f(registers at c of each of `from`..., c, lanes that count) for every register of a row of `count` numbers.
/// Lanes beyond the row hold 0.
template <class Arch, class T, class F, class... From>
void for_registers(index_t count, F const& f, From const*... from) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  index_t c = 0;
  for (; c + lanes <= count; c += lanes) f(batch::load_unaligned(from + c)..., c, lanes);
  if (c == count) return;
  auto const rest = [&](T const* row) {
    alignas(64) T numbers[lanes] = {};
    std::copy_n(row + c, count - c, numbers);
    return batch::load_aligned(numbers);
  };
  f(rest(from)..., c, count - c);
}

/// Stores the first `count` lanes.
template <class T, class Arch>
void store_lanes(xsimd::batch<T, Arch> const& numbers, index_t count, T* to) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  if (count == lanes) return numbers.store_unaligned(to);
  alignas(64) T all[lanes];
  numbers.store_aligned(all);
  std::copy_n(all, count, to);
}

/// to[c] = f(from[c]...).
template <class Arch, class T, class F, class... From>
void transform_row(index_t count, T* to, F const& f, From const*... from) {
  using batch = xsimd::batch<T, Arch>;
  if constexpr (sizeof...(From) == 1)
    for_registers<Arch, T>(
        count, [&](batch a, index_t c, index_t left) { store_lanes(f(a), left, to + c); }, from...);
  else if constexpr (sizeof...(From) == 2)
    for_registers<Arch, T>(
        count,
        [&](batch a, batch b, index_t c, index_t left) { store_lanes(f(a, b), left, to + c); },
        from...);
  else
    for_registers<Arch, T>(
        count,
        [&](batch a, batch b, batch d, index_t c, index_t left) {
          store_lanes(f(a, b, d), left, to + c);
        },
        from...);
}

/// sum_c a[c] b[c].
template <class Arch, class T>
T dot_row(index_t count, T const* a, T const* b) {
  using batch = xsimd::batch<T, Arch>;
  batch sum(T(0));
  for_registers<Arch, T>(
      count, [&](batch x, batch y, index_t, index_t) { sum = simd::fma(x, y, sum); }, a, b);
  alignas(64) T lanes[batch::size];
  sum.store_aligned(lanes);
  T total = 0;
  for (T lane : lanes) total += lane;
  return total;
}

/// sum_c a[c].
template <class Arch, class T>
T sum_row(index_t count, T const* a) {
  using batch = xsimd::batch<T, Arch>;
  batch sum(T(0));
  for_registers<Arch, T>(
      count, [&](batch x, index_t, index_t) { sum += x; }, a);
  alignas(64) T lanes[batch::size];
  sum.store_aligned(lanes);
  T total = 0;
  for (T lane : lanes) total += lane;
  return total;
}

/// c[row][column] = sum_k a[row][k] b[k][column] for `columns` columns, a multiple of 16; c is aligned, as are its
/// rows.
template <class Arch, class T>
void product(index_t rows, index_t depth, index_t columns, T const* a, index_t a_stride, T const* b,
             T* c) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  auto const tile = [&](auto registers, index_t first) {
    simd::multiply<decltype(registers)::value, false, Arch, T>(
        rows, depth, {a, a_stride, 1}, b + first, columns, c + first, columns);
  };
  for (index_t first = 0; first < columns;) {
    index_t const left = (columns - first) / lanes;
    if (left >= 3)
      tile(std::integral_constant<int, 3>(), first);
    else if (left == 2)
      tile(std::integral_constant<int, 2>(), first);
    else
      tile(std::integral_constant<int, 1>(), first);
    first += std::min<index_t>(left, 3) * lanes;
  }
}

/// The largest number of a row that has any. What it is with NaN among them is not said.
template <class Arch, class T>
T largest_of_row(index_t count, T const* a) {
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  T largest = a[0];
  index_t c = 0;
  if (count >= lanes) {
    batch most = batch::load_unaligned(a);
    for (c = lanes; c + lanes <= count; c += lanes)
      most = xsimd::max(most, batch::load_unaligned(a + c));
    alignas(64) T each[lanes];
    most.store_aligned(each);
    largest = *std::max_element(each, each + lanes);
  }
  for (; c < count; ++c) largest = std::max(largest, a[c]);
  return largest;
}

}  // namespace heed::recur
