#pragma once

#include <heed/pattern/shared.hpp>

namespace heed::detail {

/// The numbers of a place: one for each row or each key, wherever they lie.
template <class T>
class table {
 public:
  /// Of a tensor [batch, head, row or key] the row of a place; extents of 1 are broadcast.
  /// With `whole`, the numbers are those of whole sequences, whatever rows the call has.
  static table of_rows(tensor_view<T const, 3> numbers, place const& where, bool whole) {
    bool const beyond = whole && where.order == nullptr;
    return table(numbers, where, beyond ? numbers.extent(2) - where.first_row : where.rows, false);
  }
  static table of_keys(tensor_view<T const, 3> numbers, place const& where) {
    return table(numbers, where, where.keys, true);
  }

  index_t size() const { return size_; }

  /// The number of a row or key, or `otherwise` where there is none.
  T operator()(index_t slot, T otherwise) const {
    if (slot < 0 || slot >= size_) return otherwise;
    if (order_ == nullptr) return first_[slot * stride_];
    index_t const token =
        (keys_ ? order_->key_run(group_, slot) : order_->query_run(group_, slot)).first;
    return token < 0 ? otherwise : first_[token * stride_];
  }

 private:
  table(tensor_view<T const, 3> numbers, place const& where, index_t size, bool keys)
      : first_(numbers.data() + shared_offset(numbers, where)),
        stride_(numbers.stride(2)),
        size_(size),
        order_(where.order),
        group_(where.group),
        keys_(keys) {
    if (order_ == nullptr) first_ += (keys ? where.first_key : where.first_row) * stride_;
  }

  T const* first_;
  index_t stride_;
  index_t size_;
  any_arrangement const* order_;
  index_t group_;
  bool keys_;
};

/// Checks the shape of such a tensor: [batch or 1, head or 1, `last`].
template <class T>
void check_table(char const* name, tensor_view<T, 3> numbers, call_shape const& shape, index_t last,
                 char const* axis) {
  require(shares_axes(numbers, shape) && numbers.extent(2) == last, [&] {
    return std::string(name) + " has shape " + shape_text(numbers.extents()) + "; expected [" +
           shared_axes_text(shape) + ", " + std::to_string(last) + "] (batch, head, " + axis + ")";
  });
}

/// Calls f with every number of such a tensor.
template <class T, class F>
void each_number(tensor_view<T, 3> numbers, F&& f) {
  for (index_t b = 0; b < numbers.extent(0); ++b)
    for (index_t h = 0; h < numbers.extent(1); ++h)
      for (index_t n = 0; n < numbers.extent(2); ++n) f(numbers(b, h, n));
}

}  // namespace heed::detail
