#pragma once

#include <heed/pattern/pattern.hpp>

#include <span>

namespace heed {

/// The first `count` keys, whatever the query: attention sinks, a global prefix.
struct first_keys {
  index_t count = 0;

  constexpr bool keep(index_t, index_t key) const { return key < count; }
  template <class Batch>
  constexpr auto keep(Batch, Batch key) const -> decltype(key < key) {
    return key < Batch(static_cast<typename Batch::value_type>(count));
  }
  constexpr interval_set keys(interval, index_t available) const {
    return interval{0, std::min(count, available)};
  }
  constexpr coverage cover(interval, interval keys) const {
    if (keys.first >= count) return coverage::none;
    return keys.last <= count ? coverage::all : coverage::some;
  }
  constexpr void mask(std::span<index_t const>, interval keys, std::uint64_t* rows) const {
    for (index_t key = keys.first; key < keys.last; ++key)
      rows[key - keys.first] = keep(0, key) ? ~std::uint64_t{0} : 0;
  }
  constexpr index_t pairs(index_t rows, index_t available) const {
    return rows * std::clamp<index_t>(count, 0, available);
  }
};

/// Padding: in sequence b only the first lengths[b] keys exist. Positions stay those of the padded rows.
/// One length for each sequence (each batch entry, unless documents pack several), each in [0, keys].
struct key_lengths {
  std::span<index_t const> lengths;

  first_keys bind(place const& where) const {
    return {lengths[static_cast<std::size_t>(where.sequence)]};
  }
  void check(call_shape const& shape) const {
    require(static_cast<index_t>(lengths.size()) == shape.sequences, [&] {
      return "key_lengths has shape " + shape_text(std::array{lengths.size()}) + "; expected [" +
             std::to_string(shape.sequences) + "] (sequences)";
    });
    for (index_t length : lengths)
      require(length >= 0 && length <= shape.keys, [&] {
        return "key_lengths holds " + std::to_string(length) + "; expected 0 to " +
               std::to_string(shape.keys) + " (keys)";
      });
  }
};

}  // namespace heed
