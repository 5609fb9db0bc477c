#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>
#include <heed/pattern/table.hpp>

namespace heed {

/// Key j is met by the positions j <= p < ends_j: from its own query on until it is forgotten, and by none if ends_j
/// is not beyond j. ends: [batch, head, key], the first two 1 to share, not negative. An end beyond the last query is
/// no end: with all of them so the pattern is causal.
struct lifetimes {
  tensor_view<index_t const, 3> ends;

  struct bound {
    detail::table<index_t> ends;

    bool keep(index_t query, index_t key) const { return key <= query && query < ends(key, 0); }
    coverage cover(interval queries, interval keys) const {
      bool some = false, every = true;
      for (index_t key = keys.first; key < keys.last; ++key) {
        index_t const met = intersect(queries, life(key)).size();
        some |= met > 0;
        every &= met == queries.size();
      }
      return every ? coverage::all : some ? coverage::some : coverage::none;
    }
    interval next_keys(interval queries, index_t from, index_t count) const {
      auto const met = [&](index_t key) { return !intersect(queries, life(key)).empty(); };
      while (from < count && !met(from)) ++from;
      index_t end = from;
      while (end < count && met(end)) ++end;
      return {from, end};
    }
    void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
      bool const in_order = detail::consecutive(queries);
      for (index_t key = keys.first; key < keys.last; ++key) {
        interval const mine = life(key);
        rows[key - keys.first] =
            in_order ? detail::bit_range(mine.first - queries[0], mine.last - queries[0])
                     : detail::bits_of(queries,
                                       [&](index_t p) { return mine.first <= p && p < mine.last; });
      }
    }
    index_t pairs(index_t rows, index_t count) const {
      index_t sum = 0;
      for (index_t key = 0; key < count; ++key)
        sum += intersect(life(key), {count - rows, count}).size();
      return sum;
    }

   private:
    interval life(index_t key) const { return {key, ends(key, 0)}; }
  };

  bound bind(place const& where) const { return {detail::table<index_t>::of_keys(ends, where)}; }
  void check(call_shape const& shape) const {
    detail::check_table("lifetimes", ends, shape, shape.keys, "key");
    detail::each_number(ends, [&](index_t end) {
      require(end >= 0, [&] {
        return "lifetimes holds an end of " + std::to_string(end) + "; expected 0 or more";
      });
    });
  }
};

}  // namespace heed
