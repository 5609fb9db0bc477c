#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>

namespace heed {

/// Global tokens and a window: the first `count` tokens meet all and are met by all, the others meet those within
/// `reach` on both sides. keep = p < count or key < count or |p - key| <= reach. Queries are tokens too, so that there are
/// at most as many as keys.
///
/// `global_tokens{…} & causal{}` is the causal form. Where global tokens are not in front, labels say so, or'ed with a
/// window.
struct global_tokens {
  index_t count = 0;
  index_t reach = 0;

  constexpr bool keep(index_t query, index_t key) const {
    return query < count || key < count || window().keep(query, key);
  }
  constexpr interval_set keys(interval queries, index_t available) const {
    if (queries.first < count) return interval{0, available};
    return first_keys{count}.keys(queries, available) | window().keys(queries, available);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    bool const some_global = queries.first < count || keys.first < count;
    queries.first = std::max(queries.first, count);
    keys.first = std::max(keys.first, count);
    if (queries.empty() || keys.empty()) return coverage::all;
    coverage const near = window().cover(queries, keys);
    return some_global ? std::max(near, coverage::some) : near;
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::uint64_t const global = detail::bits_of(queries, [&](index_t p) { return p < count; });
    window().mask(queries, keys, rows);
    for (index_t key = keys.first; key < keys.last; ++key)
      rows[key - keys.first] |= key < count ? ~std::uint64_t{0} : global;
  }
  constexpr index_t pairs(index_t rows, index_t available) const {
    index_t const global_rows = std::clamp<index_t>(count - (available - rows), 0, rows);
    index_t const global_keys = std::clamp<index_t>(count, 0, available);
    index_t const others = rows - global_rows;
    return global_rows * available + others * global_keys +
           window().pairs(others, available - global_keys);
  }
  void check(call_shape const& shape) const {
    require(shape.rows <= shape.keys, [&] {
      return "global_tokens with " + std::to_string(shape.rows) + " queries and " +
             std::to_string(shape.keys) + " keys; expected at most as many queries as keys";
    });
    require(count >= 0 && reach >= 0, [&] {
      return "global_tokens has a count of " + std::to_string(count) + " and a reach of " +
             std::to_string(reach) + "; expected 0 or more";
    });
  }

 private:
  constexpr sliding_window window() const { return {reach, reach}; }
};

}  // namespace heed
