#pragma once

#include <heed/pattern/pattern.hpp>

namespace heed {

/// The keys at some places of every period, whatever the query: key % period in [first, first + count).
/// One key in every four, the last two of every block of 64.
struct periodic_keys {
  index_t period = 1;
  index_t first = 0;
  index_t count = 1;

  constexpr bool keep(index_t, index_t key) const {
    index_t const at = key % period;
    return first <= at && at < first + count;
  }
  constexpr interval next_keys(interval queries, index_t from, index_t available) const {
    if (queries.empty() || count <= 0) return {};
    if (count == period) return intersect({from, available}, {0, available});
    index_t const start = from - from % period + first;  // of the run in the period of `from`
    index_t const run = from < start + count ? start : start + period;
    return intersect({std::max(from, run), run + count}, {0, available});
  }
  constexpr coverage cover(interval, interval keys) const {
    if (keys.size() >= period)
      return count == period ? coverage::all : count > 0 ? coverage::some : coverage::none;
    interval const run = next_keys({0, 1}, keys.first, keys.last);
    return run.empty()                 ? coverage::none
           : run.size() == keys.size() ? coverage::all
                                       : coverage::some;
  }
  constexpr void mask(std::span<index_t const>, interval keys, std::uint64_t* rows) const {
    for (index_t key = keys.first; key < keys.last; ++key)
      rows[key - keys.first] = keep(0, key) ? ~std::uint64_t{0} : 0;
  }
  constexpr index_t pairs(index_t rows, index_t keys) const {
    return rows * (keys / period * count + std::clamp<index_t>(keys % period - first, 0, count));
  }

  void check(call_shape const&) const {
    require(period > 0 && first >= 0 && count >= 0 && first + count <= period, [&] {
      return "periodic_keys keeps the places [" + std::to_string(first) + ", " +
             std::to_string(first + count) + ") of every " + std::to_string(period) +
             "; expected places inside a period of at least 1";
    });
  }
};

}  // namespace heed
