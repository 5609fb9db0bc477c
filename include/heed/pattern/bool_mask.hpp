#pragma once

#include <heed/pattern/mask_words.hpp>

#include <cstring>

namespace heed {

/// A boolean for each pair, true where they meet.
///
///   kept            [batch or 1, head or 1, row, key], any strides, with the last 1 it is fastest
///   first_position  see placed_table.hpp
///
/// The mask is read once for every panel of queries. Numbers that are added to scores are a `bias`.
struct bool_mask {
  tensor_view<bool const, 4> kept;
  std::optional<index_t> first_position = {};

  struct booleans {
    bool const* first;
    index_t row_stride;
    index_t key_stride;
    index_t columns;

    bool bit(index_t row, index_t key) const { return first[row * row_stride + key * key_stride]; }
    std::uint64_t word(index_t row, index_t key) const {
      index_t const count = std::min<index_t>(64, columns - key);
      std::uint64_t bits = 0;
      index_t n = 0;
      if constexpr (std::endian::native == std::endian::little && sizeof(bool) == 1)
        if (key_stride == 1)
          for (; n + 8 <= count; n += 8) {
            std::uint64_t eight;
            std::memcpy(&eight, first + row * row_stride + key + n, 8);
            // The lowest bits of the bytes, side by side.
            bits |= (eight * 0x0102040810204080) >> 56 << n;
          }
      for (; n < count; ++n) bits |= std::uint64_t{bit(row, key + n)} << n;
      return bits;
    }
  };
  using table = detail::mask_table<booleans>;

  placed_table<table> bind(place const& where) const {
    return detail::place_table(table{{kept.data() + detail::shared_offset(kept, where),
                                      kept.stride(2), kept.stride(3), kept.extent(3)},
                                     kept.extent(2),
                                     kept.extent(3)},
                               where, first_position);
  }

  void check(call_shape const& shape) const {
    detail::check_shared_axes("bool_mask", kept, shape);
    bool const fits = kept.extent(2) == shape.rows && kept.extent(3) == shape.keys;
    bool const longer = first_position && kept.extent(3) >= shape.keys;
    require(fits || longer, [&] {
      return "bool_mask has shape " + shape_text(kept.extents()) + "; expected " +
             std::to_string(shape.rows) + " rows and " + std::to_string(shape.keys) +
             " keys on its last axes, or more with first_position";
    });
  }
};

}  // namespace heed
