#pragma once

#include <array>
#include <cstddef>
#include <vector>

namespace reference {

using index_t = std::ptrdiff_t;

/// An owning tensor, the last axis contiguous. Empty unless extents are given.
template <class T, int Rank>
struct tensor {
  using index_array = std::array<index_t, static_cast<std::size_t>(Rank)>;

  index_array extents{};
  std::vector<T> values;

  tensor() = default;
  explicit tensor(index_array const& shape, T fill = T(0)) : extents(shape) {
    index_t count = 1;
    for (index_t extent : shape) count *= extent;
    values.assign(static_cast<std::size_t>(count), fill);
  }

  index_t extent(int axis) const { return extents[static_cast<std::size_t>(axis)]; }

  template <class... Index>
  T& operator()(Index... at) {
    return values[offset(static_cast<index_t>(at)...)];
  }
  template <class... Index>
  T operator()(Index... at) const {
    return values[offset(static_cast<index_t>(at)...)];
  }

  template <class U>
  tensor<U, Rank> as() const {
    tensor<U, Rank> copy(extents);
    for (std::size_t i = 0; i < values.size(); ++i) copy.values[i] = static_cast<U>(values[i]);
    return copy;
  }

 private:
  template <class... Index>
  std::size_t offset(Index... at) const {
    static_assert(sizeof...(Index) == Rank);
    index_t sum = 0;
    std::size_t axis = 0;
    ((sum = sum * extents[axis++] + at), ...);
    return static_cast<std::size_t>(sum);
  }
};

/// The loss sum weights . values.
template <int Rank>
double weighted_sum(tensor<double, Rank> const& weights, tensor<double, Rank> const& values) {
  double sum = 0;
  for (std::size_t n = 0; n < values.values.size(); ++n)
    sum += weights.values[n] * values.values[n];
  return sum;
}

}  // namespace reference
