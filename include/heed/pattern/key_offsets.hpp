#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>

#include <limits>

namespace heed {

namespace detail {

/// The mask of a pattern of differences key - position: for consecutive positions the row of a key is that of the
/// key before, moved by one, with one new bit.
template <class P>
constexpr void mask_of_differences(P const& pattern, std::span<index_t const> queries,
                                   interval keys, std::uint64_t* rows) {
  bool const shifts = consecutive(queries);
  for (index_t key = keys.first; key < keys.last; ++key) {
    std::uint64_t* const row = rows + (key - keys.first);
    *row = shifts && key > keys.first
               ? row[-1] << 1 | std::uint64_t{pattern.keep(queries[0], key)}
               : bits_of(queries, [&](index_t p) { return pattern.keep(p, key); });
  }
}

}  // namespace detail

/// A set of differences: key - p lies in one of the `offsets`, sorted intervals that do not touch. {{-8, -7}, {-4, -3},
/// {-2, 1}} keeps the query's own key and the keys 1, 2, 4 and 8 before it.
struct key_offsets {
  std::span<interval const> offsets;

  constexpr bool keep(index_t query, index_t key) const {
    interval const* const next = first_after(key - query);
    return next != offsets.data() + offsets.size() && next->first <= key - query;
  }
  constexpr coverage cover(interval queries, interval keys) const {
    interval const met{keys.first - (queries.last - 1), keys.last - queries.first};
    interval const* const next = first_after(met.first);
    if (next == offsets.data() + offsets.size() || next->first >= met.last) return coverage::none;
    return next->first <= met.first && next->last >= met.last ? coverage::all : coverage::some;
  }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    index_t const last = queries.last - 1;
    interval run;
    for (interval const* next = first_after(from - last); next != offsets.data() + offsets.size();
         ++next) {
      if (!run.empty() && next->first > run.last - queries.first) break;
      if (run.empty()) run.first = std::max(from, queries.first + next->first);
      run.last = std::min(count, last + next->last);
      if (run.empty() || run.last == count) break;
    }
    return run;
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    detail::mask_of_differences(*this, queries, keys, rows);
  }
  constexpr index_t pairs(index_t rows, index_t count) const {
    index_t sum = 0;
    for (interval each : offsets)
      sum += detail::clamped_sum(count - rows + each.last, rows, count) -
             detail::clamped_sum(count - rows + each.first, rows, count);
    return sum;
  }
  void check(call_shape const&) const {
    for (std::size_t n = 0; n < offsets.size(); ++n) {
      require(!offsets[n].empty(), [&] {
        return "key_offsets holds [" + std::to_string(offsets[n].first) + ", " +
               std::to_string(offsets[n].last) + "); expected intervals that are not empty";
      });
      require(n == 0 || offsets[n - 1].last < offsets[n].first, [&] {
        return "key_offsets holds an interval that ends at " + std::to_string(offsets[n - 1].last) +
               " and then one that starts at " + std::to_string(offsets[n].first) +
               "; expected sorted intervals that do not touch";
      });
    }
  }

 private:
  /// The first interval that ends after a difference.
  constexpr interval const* first_after(index_t difference) const {
    return std::partition_point(offsets.data(), offsets.data() + offsets.size(),
                                [&](interval each) { return each.last <= difference; });
  }
};

}  // namespace heed
