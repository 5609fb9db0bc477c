#pragma once

#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/dilated_window.hpp>
#include <heed/pattern/periodic_keys.hpp>

/// Generating Long Sequences with Sparse Transformers: full attention factorised into a local part and one that
/// reaches far, with steps of `length`. Heads take the parts apart, or one head takes their union with |.
namespace heed {

/// The `length` most recent keys, the query's own included.
constexpr sliding_window factorised_local(index_t length) {
  return {.left = length - 1, .right = 0};
}

/// Every length-th key before the query, and its own.
constexpr dilated_window factorised_strided(index_t length) {
  return strided(length);
}

/// The places of every block of `length` keys that summarise it: head h reads the `count` places before the last
/// u * count ones, u = h % variants. With one variant these are the last `count` places; with
/// length / count variants the heads together read every place once.
struct summary_places {
  index_t length;
  index_t count = 1;
  index_t variants = 1;

  constexpr periodic_keys bind(place const& where) const {
    return {length, length - (where.head % variants + 1) * count, count};
  }
  void check(call_shape const&) const {
    require(count >= 1 && variants >= 1 && variants * count <= length, [&] {
      return "summary_places has " + std::to_string(variants) + " variants of " +
             std::to_string(count) + " places in blocks of " + std::to_string(length) +
             "; expected at least 1 of each, and room for all";
    });
  }
};

/// The fixed pattern: up to itself, a query meets its own block and the summary places of every block.
constexpr auto factorised_fixed(summary_places places) {
  return causal{} & (by_blocks{sliding_window{0, 0}, places.length} | places);
}

}  // namespace heed
