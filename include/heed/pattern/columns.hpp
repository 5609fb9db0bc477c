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
};

/// Padding: in batch b only the first lengths[b] keys exist. Positions stay those of the padded rows.
/// One length for each batch entry, each in [0, keys].
struct key_lengths {
  std::span<index_t const> lengths;

  first_keys bind(place const& where) const {
    return {lengths[static_cast<std::size_t>(where.batch)]};
  }
  void check(index_t batches, index_t keys) const {
    require(static_cast<index_t>(lengths.size()) == batches, [&] {
      return "key_lengths has " + std::to_string(lengths.size()) + " entries; expected one for each of " +
             std::to_string(batches) + " batches";
    });
    for (index_t length : lengths)
      require(length >= 0 && length <= keys, [&] {
        return "key_lengths holds " + std::to_string(length) + "; expected 0 to " + std::to_string(keys) +
               " (keys)";
      });
  }
};

}  // namespace heed
