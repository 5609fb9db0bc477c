#pragma once

#include <heed/pattern/columns.hpp>
#include <heed/pattern/periodic_keys.hpp>
#include <heed/view/convert.hpp>

/// Efficient Attentions for Long Document Summarization (Hepos): the heads of an encoder-decoder attention share the
/// source out among themselves. There is no causal mask. With fewer keys than `stride` some heads have none and give 0.
namespace heed {

/// Head h meets every stride-th key, beginning with key h % stride.
struct head_strides {
  index_t stride = 4;

  constexpr periodic_keys bind(place const& where) const {
    return {stride, where.head % stride, 1};
  }
  void check(call_shape const&) const {
    require(stride >= 1, [&] {
      return "head_strides has the stride " + std::to_string(stride) + "; expected 1 or more";
    });
  }
};

/// Head h meets part h % parts of the keys: consecutive ones, ceil(keys / parts) in each part but the last.
struct head_parts {
  index_t parts = 4;

  constexpr auto bind(place const& where) const {
    index_t const size = (where.keys + parts - 1) / parts, first = where.head % parts * size;
    return first_keys{first + size} & ~first_keys{first};
  }
  void check(call_shape const&) const {
    require(parts >= 1, [&] {
      return "head_parts has " + std::to_string(parts) + " parts; expected 1 or more";
    });
  }
};

/// Where each head's share of the keys is stored by itself, of the same `stride` over `keys` keys: decoding then reads
/// a cache of ceil(keys / stride) rows from end to end.
struct packed_head_strides {
  index_t keys;
  index_t stride = 4;

  /// The rows of the packed keys.
  constexpr index_t rows() const { return (keys + stride - 1) / stride; }

  constexpr first_keys bind(place const& where) const {
    return {(keys - where.head % stride + stride - 1) / stride};
  }
  void check(call_shape const& shape) const {
    require(stride >= 1 && shape.keys == rows(), [&] {
      return "packed_head_strides of " + std::to_string(keys) + " keys by strides of " +
             std::to_string(stride) + " with " + std::to_string(shape.keys) +
             " packed rows; expected ceil(keys / stride) of them";
    });
  }
};

/// Packs the keys or values of each head: packed(b, t, h) = all(b, h % stride + t * stride, h), 0 behind the last.
///
///   all      [batch, key, heads or a divisor, dim]
///   packed   [batch, ceil(key / stride), heads, dim]
template <element From, element To>
void pack_head_strides(tensor_view<From, 4> all, index_t stride, tensor_view<To, 4> packed) {
  packed_head_strides const share{all.extent(1), stride};
  index_t const heads = packed.extent(2);
  require(stride >= 1 && packed.extent(0) == all.extent(0) && packed.extent(1) == share.rows() &&
              all.extent(2) > 0 && heads % all.extent(2) == 0 && packed.extent(3) == all.extent(3),
          [&] {
            return "packed heads have shape " + shape_text(packed.extents()) + ", all of them " +
                   shape_text(all.extents()) +
                   "; expected ceil(keys / stride) positions and a multiple of the heads";
          });
  for (index_t b = 0; b < packed.extent(0); ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t t = 0; t < packed.extent(1); ++t)
        for (index_t d = 0; d < packed.extent(3); ++d) {
          index_t const key = h % stride + t * stride;
          packed(b, t, h, d) = key < all.extent(1)
                                   ? convert_element<To>(all(b, key, h * all.extent(2) / heads, d))
                                   : To(0);
        }
}

}  // namespace heed
