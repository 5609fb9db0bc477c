#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/key_offsets.hpp>

namespace heed {

/// Every step-th key within reach of the query's position p, counted from it: p - left <= key <= p + right, and `step`
/// divides key - p. Reaches are inclusive and in tokens; `unbounded` lifts one. A step of 1 is sliding_window.
struct dilated_window {
  index_t left = unbounded;
  index_t right = unbounded;
  index_t step = 1;

  constexpr bool keep(index_t query, index_t key) const {
    return (key - query) % step == 0 && band().keep(query, key);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    coverage const near = band().cover(queries, keys);
    interval const met = within_reach(
        {keys.first - (queries.last - 1), keys.last - queries.first});  // differences of the tile
    index_t const multiple = up(met.first);
    if (near == coverage::none || multiple >= met.last) return coverage::none;
    bool const every = step == 1 || (met.size() == 1 && met.first == multiple);
    return every ? near : coverage::some;
  }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    index_t const last = queries.last - 1;
    // Each multiple of the step moves all queries to a run of keys; those of the allowed runs touch if the step is short.
    interval const allowed = within_reach({from - last, count - queries.first});
    index_t const nearest = up(allowed.first);
    if (nearest >= allowed.last) return {};
    index_t const reached = step <= queries.size() ? up(allowed.last) - step : nearest;
    return {std::max(from, queries.first + nearest), std::min(count, queries.last + reached)};
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    detail::mask_of_differences(*this, queries, keys, rows);
  }
  /// The sum over the multiples of the step within reach, of which each is a diagonal.
  constexpr index_t pairs(index_t rows, index_t count) const {
    index_t const shift = count - rows;
    interval const met = within_reach({1 - count, rows});
    index_t sum = 0;
    for (index_t multiple = up(met.first); multiple < met.last; multiple += step)
      sum += detail::clamped_sum(shift + multiple + 1, rows, count) -
             detail::clamped_sum(shift + multiple, rows, count);
    return sum;
  }
  void check(call_shape const&) const {
    require(step >= 1, [&] {
      return "the step of dilated_window is " + std::to_string(step) + "; expected 1 or more";
    });
  }

 private:
  constexpr sliding_window band() const { return {left, right}; }

  /// Of some differences key - p those within reach.
  constexpr interval within_reach(interval differences) const {
    return {left < 0 ? differences.first : std::max(differences.first, -left),
            right < 0 ? differences.last : std::min(differences.last, right + 1)};
  }
  /// The first multiple of the step that is not less than x.
  constexpr index_t up(index_t x) const {
    index_t const down = x / step * step;  // towards 0
    return down < x ? down + step : down;
  }
};

/// Causal: the query's own key, and every step-th key before it.
constexpr dilated_window strided(index_t step) {
  return {unbounded, 0, step};
}

}  // namespace heed
