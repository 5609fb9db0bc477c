#pragma once

#include <heed/pattern/arithmetic.hpp>
#include <heed/pattern/pattern.hpp>
#include <heed/pattern/table.hpp>

namespace heed {

namespace detail {

/// What two sets of keys have in common, whatever the query: padding, pruning, selected keys. `Set` tells the first
/// key at or after one that is, or is not, a member.
template <class Set>
struct columns {
  Set set;

  constexpr bool keep(index_t, index_t key) const { return set.contains(key); }
  constexpr coverage cover(interval, interval keys) const {
    if (!set.contains(keys.first))
      return set.next(keys.first, keys.last) < keys.last ? coverage::some : coverage::none;
    return set.next_gap(keys.first, keys.last) < keys.last ? coverage::some : coverage::all;
  }
  constexpr interval next_keys(interval, index_t from, index_t count) const {
    index_t const first = set.next(from, count);
    return {first, set.next_gap(first, count)};
  }
  constexpr void mask(std::span<index_t const>, interval keys, std::uint64_t* rows) const {
    for (index_t key = keys.first; key < keys.last; ++key)
      rows[key - keys.first] = set.contains(key) ? ~std::uint64_t{0} : 0;
  }
  constexpr index_t pairs(index_t rows, index_t count) const {
    index_t members = 0;
    for (interval run = next_keys({}, 0, count); !run.empty(); run = next_keys({}, run.last, count))
      members += run.size();
    return rows * members;
  }
};

struct marked_keys {
  table<bool> kept;

  bool contains(index_t key) const { return kept(key, false); }
  index_t next(index_t from, index_t count) const {
    while (from < count && !contains(from)) ++from;
    return from;
  }
  index_t next_gap(index_t from, index_t count) const {
    while (from < count && contains(from)) ++from;
    return from;
  }
};

struct listed_keys {
  std::span<index_t const> keys;
  index_t first_key;

  bool contains(index_t key) const {
    auto const at = find(key);
    return at != keys.end() && *at == key + first_key;
  }
  index_t next(index_t from, index_t count) const {
    auto const at = find(from);
    return at == keys.end() ? count : std::min(*at - first_key, count);
  }
  index_t next_gap(index_t from, index_t count) const {
    for (auto at = find(from); at != keys.end() && from < count && *at == from + first_key; ++at)
      ++from;
    return from;
  }

 private:
  std::span<index_t const>::iterator find(index_t key) const {
    return std::lower_bound(keys.begin(), keys.end(), key + first_key);
  }
};

}  // namespace detail

/// The keys that are marked, whatever the query. kept: [batch, head, key], the first two 1 to share.
///
/// Finding the marked keys takes a pass over the marks for each panel of queries; key_list has them found.
struct key_set {
  tensor_view<bool const, 3> kept;

  detail::columns<detail::marked_keys> bind(place const& where) const {
    return {{detail::table<bool>::of_keys(kept, where)}};
  }
  void check(call_shape const& shape) const {
    detail::check_table("key_set", kept, shape, shape.keys, "key");
  }
};

/// The keys that are listed, whatever the query. keys: [batch, head, n], the first two 1 to share; each list is sorted
/// without repetition, contiguous, and filled up with -1 at its end if it is shorter than n.
///
/// Where documents pack several sequences, the numbers are those of rows in the packed tensor.
struct key_list {
  tensor_view<index_t const, 3> keys;

  detail::columns<detail::listed_keys> bind(place const& where) const {
    std::span<index_t const> const all(keys.data() + detail::shared_offset(keys, where),
                                       static_cast<std::size_t>(keys.extent(2)));
    auto const end = std::partition_point(all.begin(), all.end(), [](index_t k) { return k >= 0; });
    return {{all.first(static_cast<std::size_t>(end - all.begin())), where.first_key}};
  }
  void check(call_shape const& shape) const {
    detail::check_table("key_list", keys, shape, keys.extent(2), "listed");
    require(keys.stride(2) == 1 || keys.extent(2) <= 1, [&] {
      return "the lists of key_list have stride " + std::to_string(keys.stride(2)) +
             "; expected contiguous ones";
    });
    for (index_t b = 0; b < keys.extent(0); ++b)
      for (index_t h = 0; h < keys.extent(1); ++h)
        for (index_t n = 0; n < keys.extent(2); ++n) {
          index_t const key = keys(b, h, n), before = n == 0 ? -1 : keys(b, h, n - 1);
          bool const filling = key == -1;
          require(filling || (key >= 0 && key < shape.keys), [&] {
            return "key_list holds key " + std::to_string(key) + "; expected 0 to " +
                   std::to_string(shape.keys - 1) + ", or -1 behind the last one of a list";
          });
          require(filling || n == 0 || (before >= 0 && before < key), [&] {
            return "key_list holds key " + std::to_string(key) + " after " +
                   std::to_string(before) + "; expected sorted lists without repetition, -1 last";
          });
        }
  }
};

}  // namespace heed
