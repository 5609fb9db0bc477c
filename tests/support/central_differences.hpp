// Gradients against central differences of a loss.
#pragma once

#include "support/random.hpp"
#include "support/tensors.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace support {

/// Complains where `gradient` is not what central differences of loss() say of a third of the elements of `input`, which
/// the loss is computed from.
template <int Rank, class Loss>
std::string gradient_complaint(random& draw, char const* name, guarded<double, Rank>& input,
                               reference::tensor<double, Rank> const& gradient, Loss loss) {
  double largest = 0;
  auto const view = input.view();
  std::size_t n = 0;
  for_each_index(input.extents(), [&](auto const& at) {
    double const expected = gradient.values[n++];
    if (!draw.one_in(3)) return;
    double& x = view.data()[offset(at, view.strides())];
    double const before = x, step = 1e-6;
    x = before + step;
    double const above = loss();
    x = before - step;
    double const below = loss();
    x = before;
    largest = std::max(largest, std::abs((above - below) / (2 * step) - expected));
  });
  return largest < 1e-7 ? "" : std::string(name) + " is off by " + std::to_string(largest) + "\n";
}
template <int Rank, class Loss>
std::string gradient_complaint(random& draw, char const* name, guarded<double, Rank>& input,
                               guarded<double, Rank> const& gradient, Loss loss) {
  return gradient_complaint(draw, name, input, gradient.template values<double>(), loss);
}

}  // namespace support
