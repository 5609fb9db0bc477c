// How close is close enough.
#pragma once

#include "support/guarded.hpp"
#include "support/random.hpp"

#include <cmath>
#include <limits>
#include <sstream>
#include <string>

namespace support {

/// The distance from 1 to the next number. (Eigen 3.4 has an eighth of it for half.)
template <class T>
constexpr double epsilon() {
  if constexpr (std::is_same_v<T, Eigen::half>)
    return 0x1p-10;
  else if constexpr (std::is_same_v<T, Eigen::bfloat16>)
    return 0x1p-7;
  else
    return std::numeric_limits<T>::epsilon();
}

/// The 2x rule: |got - golden| <= 2 max|naive - golden| + 2 epsilon max|golden|, where `naive` is
/// the definition evaluated in the precision of the computation, in several ways of which the worst
/// counts, and epsilon belongs to the type that `got` is stored in. `least` bounds max|golden| from
/// below: for a logarithm it is 1, since it is as exact as its argument. What is not finite must be
/// exactly the same. Returns a complaint, or nothing.
template <class Got, class Golden, class Naive, int Rank>
std::string two_times_rule(std::string const& name, reference::tensor<Got, Rank> const& got,
                           reference::tensor<Golden, Rank> const& golden,
                           std::vector<reference::tensor<Naive, Rank>> const& naive, double epsilon,
                           double least = 0) {
  std::ostringstream complaint;
  if (got.extents != golden.extents) return name + " has another shape than its definition\n";
  auto same_kind = [](Golden a, Golden b) { return std::isnan(a) ? std::isnan(b) : a == b; };
  Golden error = 0, naive_error = 0, size = static_cast<Golden>(least);
  std::size_t worst = 0;
  for (std::size_t i = 0; i < golden.values.size(); ++i) {
    Golden const exact = golden.values[i], value = static_cast<Golden>(got.values[i]);
    if (!std::isfinite(exact) || !std::isfinite(value)) {
      if (same_kind(exact, value)) continue;
      complaint << name << " element " << i << " is " << value << ", not " << exact << "\n";
      return complaint.str();
    }
    size = std::max(size, std::abs(exact));
    for (auto const& each : naive)
      naive_error = std::max(naive_error, std::abs(static_cast<Golden>(each.values[i]) - exact));
    if (Golden const e = std::abs(value - exact); e > error) {
      error = e;
      worst = i;
    }
  }
  if (!(error <= 2 * naive_error + 2 * static_cast<Golden>(epsilon) * size))
    complaint << name << " element " << worst << " is " << got.values[worst] << ", not "
              << golden.values[worst] << ": error " << error
              << ", of the definition in the same precision " << naive_error << ", largest value "
              << size << "\n";
  return complaint.str();
}

/// Moves every number by up to half an epsilon of itself, as it might have been rounded. Of inputs like these the definition
/// errs as of others, and what cancels exactly in one does not in all.
template <class T, int Rank>
void round_otherwise(random& draw, reference::tensor<T, Rank>& tensor) {
  for (T& x : tensor.values)
    if (std::isfinite(x))
      x *= 1 + static_cast<T>(draw.uniform(-0.5, 0.5)) * static_cast<T>(epsilon<T>());
}

/// The same bits, NaN included.
template <class T, int Rank>
bool same_bits(reference::tensor<T, Rank> const& a, reference::tensor<T, Rank> const& b) {
  return a.extents == b.extents &&
         (a.values.empty() ||
          std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(T)) == 0);
}

}  // namespace support
