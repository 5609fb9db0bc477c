#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>

namespace heed {

/// Every key for the queries from position `first` on, none for those before.
struct queries_from {
  index_t first = 0;

  constexpr bool keep(index_t query, index_t) const { return query >= first; }
  constexpr interval_set keys(interval queries, index_t count) const {
    return queries.last > first ? interval_set{{0, count}} : interval_set{};
  }
  constexpr coverage cover(interval queries, interval) const {
    return queries.last <= first    ? coverage::none
           : queries.first >= first ? coverage::all
                                    : coverage::some;
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::fill_n(rows, keys.size(),
                detail::bits_of(queries, [this](index_t p) { return p >= first; }));
  }
  constexpr index_t pairs(index_t rows, index_t keys) const {
    return std::clamp<index_t>(keys - first, 0, rows) * keys;
  }
};

}  // namespace heed
