// For mechanisms that are made of several calls of attention.
#pragma once

#include "reference/soft_attend.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"
#include "support/threads.hpp"

namespace support {

template <class T, int Rank>
tensor_view<T const, Rank> view_of(reference::tensor<T, Rank> const& from) {
  return {from.values.data(), from.extents};
}
template <class T, int Rank>
tensor_view<T, Rank> view_of(reference::tensor<T, Rank>& from) {
  return {from.values.data(), from.extents};
}

/// f of a definition that sums in several orders.
template <class Definition, class F>
std::string in_orders(Definition const& definition, F f) {
  auto const& all = reference::evaluations;
  return f(reference::in_order(all[0], definition), reference::in_order(all[1], definition),
           reference::in_order(all[2], definition), reference::in_order(all[5], definition));
}

/// Complains about gradients where there is so little to sum that the definition's own error is a matter of luck: they are
/// those of the definition to 1e-12, of inputs of size 1, of which the last ones may be `constants`.
template <class Problem, class Definition>
std::string small_gradient_complaint(Problem& p, std::size_t inputs, Definition const& definition,
                                     std::size_t outputs = 1, std::size_t constants = 0) {
  static_assert(std::is_same_v<typename Problem::compute, double>);
  reference::tensors<double> values, slopes;
  for (std::size_t n = 0; n < inputs; ++n) values.push_back(read<double>(p.in(n)));
  for (std::size_t n = 0; n < outputs; ++n) slopes.push_back(read<double>(p.dout(n)));
  auto const exact = reference::gradients_of(definition, values, slopes);
  double largest = 0;
  for (std::size_t n = 0; n < inputs - constants; ++n)
    largest = std::max(largest, difference(read<double>(p.din(n)), exact[n]));
  return largest < 1e-12 ? "" : "a gradient is off by " + std::to_string(largest) + "\n";
}

/// Complains if a problem's result or gradients depend on the executor.
template <class Problem>
std::string executor_complaint(seed_t seed, std::size_t inputs) {
  Problem a(seed), b(seed);
  a.forward_pass();
  a.backward_pass();
  b.forward_pass(threads{});
  b.backward_pass(threads{});
  using T = typename Problem::compute;
  bool same = same_bits(read<T>(a.saved(0)), read<T>(b.saved(0)));
  for (std::size_t n = 0; n < inputs; ++n) same &= same_bits(read<T>(a.din(n)), read<T>(b.din(n)));
  return same ? "" : "the result depends on the executor\n";
}

}  // namespace support
