#pragma once

#include <heed/pattern/pattern.hpp>

#include <array>
#include <string>

namespace heed {

/// A pattern that counts positions from `by` before the first: it keeps a pair if `pattern` keeps it `by` >= 0 positions
/// further on. `moved{by_blocks{sliding_window{0, 0}, 64}, 32}` has blocks of 64 of which the first starts at -32.
template <pattern P>
struct moved {
  P pattern;
  index_t by;

  constexpr auto bind(place const& where) const {
    return moved<decltype(bind_at(pattern, where))>{bind_at(pattern, where), by};
  }
  void check(call_shape const& shape) const {
    require(by >= 0, [&] {
      return "moved has a distance of " + std::to_string(by) + "; expected 0 or more";
    });
    check_against(pattern, shape);
  }

  template <class I>
  constexpr auto keep(I query, I key) const requires requires(P const& p) {
    p.keep(query, key);
  }
  {
    if constexpr (std::is_same_v<I, index_t>) {
      return pattern.keep(query + by, key + by);
    } else {
      I const step(static_cast<typename I::value_type>(by));
      return pattern.keep(query + step, key + step);
    }
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    interval_set all;
    for (interval part : pattern_keys(pattern, further(queries), count + by))
      all.add(intersect({part.first - by, part.last - by}, {0, count}));
    return all;
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return pattern_cover(pattern, further(queries), further(keys));
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::array<index_t, 64> positions{};
    for (std::size_t q = 0; q < queries.size(); ++q) positions[q] = queries[q] + by;
    pattern_mask(pattern, std::span<index_t const>(positions).first(queries.size()), further(keys),
                 rows);
  }
  constexpr bool scattered() const { return is_scattered(pattern); }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    interval const run = next_run(pattern, further(queries), from + by, count + by);
    return run.empty() ? interval{} : interval{run.first - by, run.last - by};
  }

 private:
  constexpr interval further(interval positions) const {
    return {positions.first + by, positions.last + by};
  }
};
template <pattern P>
moved(P, index_t) -> moved<P>;

}  // namespace heed
