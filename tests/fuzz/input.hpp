// What a fuzzer's bytes are taken for.
#pragma once

#include <heed/view/tensor_view.hpp>

#include <cstdint>
#include <vector>

namespace fuzz {

using heed::index_t;
using heed::tensor_view;

class input {
 public:
  input(std::uint8_t const* data, std::size_t size) : data_(data), size_(size) {}

  /// A number in [low, high]; `low` when the input has run out.
  index_t number(index_t low, index_t high) {
    if (size_ == 0) return low;
    --size_;
    return low + static_cast<index_t>(*data_++) % (high - low + 1);
  }
  /// Mostly `usual`, so that calls come through the checks.
  index_t around(index_t usual, index_t low, index_t high) {
    return number(0, 31) == 0 ? number(low, high) : usual;
  }
  std::vector<index_t> list(index_t count, index_t low, index_t high) {
    std::vector<index_t> numbers(static_cast<std::size_t>(count));
    for (index_t& x : numbers) x = number(low, high);
    return numbers;
  }

 private:
  std::uint8_t const* data_;
  std::size_t size_;
};

/// A tensor in memory of exactly the size that its shape and strides span.
template <class T>
struct tensor {
  std::vector<T> memory;
  tensor_view<T, 4> view;

  tensor(input& in, std::array<index_t, 4> const& extents, bool shared) {
    std::array<index_t, 4> strides{};
    index_t const layout = in.number(0, 3);
    std::array<std::size_t, 4> order{0, 1, 2, 3};
    if (layout == 1) std::swap(order[1], order[2]);
    if (layout == 2) std::swap(order[2], order[3]);
    if (layout == 3) std::swap(order[0], order[3]);
    index_t stride = 1, first = 0;
    for (std::size_t n = 4; n-- > 0;) {
      std::size_t const axis = order[n];
      index_t const kind = in.number(0, 15);
      stride += kind == 1 ? 3 : 0;
      strides[axis] = shared && kind == 2 ? 0 : stride;
      if (strides[axis] == 0) continue;
      if (kind == 3 && extents[axis] > 0) {
        first += (extents[axis] - 1) * stride;
        strides[axis] = -stride;
      }
      stride *= extents[axis] > 0 ? extents[axis] : 1;
    }
    memory.assign(static_cast<std::size_t>(stride), T(0.5f));
    for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = T(static_cast<float>(i % 7) - 3);
    view = {memory.data() + first, extents, strides};
  }
};

}  // namespace fuzz
