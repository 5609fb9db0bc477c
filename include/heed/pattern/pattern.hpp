#pragma once

#include <heed/pattern/place.hpp>

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>

/// Patterns: which pairs of a query and a key meet.
///
/// A pattern is a function of positions. A key's position is its row; a query's position p says where
/// among the keys the query stands, by default row + (keys - queries), so that the last query stands at
/// the last key. All a pattern must have is
///
///     bool keep(heed::index_t query, heed::index_t key) const;
///
/// and these make it fast, each optional:
///
///     // Which of the `count` keys the query positions may meet: a superset is right, only slower.
///     interval_set keys(interval queries, index_t count) const;
///     // Of a whole tile; `some` is always right.
///     coverage cover(interval queries, interval keys) const;
///     // Bit q of rows[k] says whether the query at queries[q], of at most 64, meets key keys.first + k.
///     void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const;
///     // keep() for SIMD registers of positions, returning a batch_bool: a template that compares, adds and
///     // combines with & and |. Serves where there is no mask().
///     auto keep(batch queries, batch keys) const;
///
/// A pattern whose keys lie scattered has instead of keys()
///
///     // The first run of keys at or after `from` that the query positions may meet, empty if there is none.
///     interval next_keys(interval queries, index_t from, index_t count) const;
///
/// and the engine gathers these keys for each panel of some 24 queries. What is common to the runs of a panel
/// need be found but once, with
///
///     // The runs from there on, as many as `runs` has room for; returns their number.
///     std::size_t list_keys(interval queries, index_t from, index_t count, std::span<interval> runs) const;
///     // mask() of one run of keys after the other.
///     void mask_runs(std::span<index_t const> queries, std::span<interval const> runs, std::uint64_t* rows) const;
///
/// A pattern that can tell the number of its pairs without visiting them does so, for queries of which
/// the last stands at the last key:
///
///     index_t pairs(index_t rows, index_t keys) const;
///
/// A pattern of blocks says how many consecutive rows, from multiples of them on, had better be worked on together:
///
///     index_t panel_rows() const;
///
/// A pattern whose parameters differ by batch, head or length is bound to its place first:
///
///     auto bind(place const&) const;                     // returns a pattern
namespace heed {

/// How a pattern covers a tile of pairs: no pair kept, some, all.
enum class coverage { none, some, all };

/// An ingredient that has something to check does so.
template <class Ingredient>
void check_against(Ingredient const& ingredient, call_shape const& shape) {
  if constexpr (requires { ingredient.check(shape); }) ingredient.check(shape);
}

/// An ingredient with parameters as it applies at one place.
template <class Ingredient>
constexpr auto bind_at(Ingredient const& ingredient, place const& where) {
  if constexpr (requires { ingredient.bind(where); })
    return ingredient.bind(where);
  else
    return ingredient;
}

template <class P>
concept bound_pattern = requires(P const& p, index_t i) {
  { p.keep(i, i) } -> std::convertible_to<bool>;
};

template <class P>
concept pattern = bound_pattern<P> || requires(P const& p, place const& where) {
  { p.bind(where) } -> bound_pattern;
};

/// How many rows had better be worked on together, 0 if it does not matter.
template <pattern P>
constexpr index_t panel_rows_of(P const& p) {
  if constexpr (requires { p.panel_rows(); })
    return p.panel_rows();
  else
    return 0;
}

/// The keys, of `count`, that queries at the positions [queries.first, queries.last) may meet.
template <bound_pattern P>
constexpr interval_set pattern_keys(P const& p, interval queries, index_t count) {
  if constexpr (requires { p.keys(queries, count); }) {
    interval_set keys = p.keys(queries, count);
    keys.clip({0, count});
    return keys;
  } else {
    return interval{0, count};
  }
}

template <bound_pattern P>
constexpr coverage pattern_cover(P const& p, interval queries, interval keys) {
  if constexpr (requires { p.cover(queries, keys); })
    return p.cover(queries, keys);
  else
    return coverage::some;
}

/// Whether a pattern's keys lie scattered, so that they had better be gathered.
template <bound_pattern P>
constexpr bool is_scattered(P const& p) {
  if constexpr (requires { p.scattered(); })
    return p.scattered();
  else
    return requires {
      p.next_keys(interval{}, index_t{}, index_t{});
    };
}

/// The first run of keys in [from, count) that queries at the positions may meet, empty if there is none.
template <bound_pattern P>
constexpr interval next_run(P const& p, interval queries, index_t from, index_t count) {
  if (from >= count || queries.empty()) return {};
  if constexpr (requires { p.next_keys(queries, from, count); }) {
    return p.next_keys(queries, from, count);
  } else {
    for (interval part : pattern_keys(p, queries, count))
      if (part.last > from) return {std::max(part.first, from), part.last};
    return {};
  }
}

namespace detail {

/// A mask from keep() of registers.
template <class P>
void lane_mask(P const& p, std::span<index_t const> queries, interval keys, std::uint64_t* rows) {
  using batch = xsimd::batch<float>;
  constexpr std::size_t lanes = batch::size;
  alignas(64) float positions[64] = {}, bit[lanes], kept[lanes];
  for (std::size_t q = 0; q < queries.size(); ++q) positions[q] = static_cast<float>(queries[q]);
  for (std::size_t lane = 0; lane < lanes; ++lane)
    bit[lane] = static_cast<float>(std::uint64_t{1} << lane);
  for (index_t key = keys.first; key < keys.last; ++key) {
    std::uint64_t bits = 0;
    for (std::size_t q = 0; q < queries.size(); q += lanes) {
      xsimd::select(p.keep(batch::load_aligned(positions + q), batch(static_cast<float>(key))),
                    batch::load_aligned(bit), batch(0.0f))
          .store_aligned(kept);
      float sum = 0;  // of different powers of two below 2^24: exact
      for (float each : kept) sum += each;
      bits |= std::uint64_t{static_cast<std::uint32_t>(sum)} << q;
    }
    rows[key - keys.first] = bits;
  }
}

}  // namespace detail

/// Bit q of rows[k] says whether the query at queries[q], of at most 64, meets key keys.first + k.
/// Bits beyond the queries mean nothing.
template <bound_pattern P>
constexpr void pattern_mask(P const& p, std::span<index_t const> queries, interval keys,
                            std::uint64_t* rows) {
  if constexpr (requires { p.mask(queries, keys, rows); }) {
    p.mask(queries, keys, rows);
  } else if constexpr (requires(xsimd::batch<float> x) { p.keep(x, x); }) {
    detail::lane_mask(p, queries, keys, rows);
  } else {
    for (index_t key = keys.first; key < keys.last; ++key) {
      std::uint64_t bits = 0;
      for (std::size_t q = 0; q < queries.size(); ++q)
        bits |= std::uint64_t{p.keep(queries[q], key)} << q;
      rows[key - keys.first] = bits;
    }
  }
}

/// The runs of keys from `from` on, as many as `runs` has room for; returns their number.
template <bound_pattern P>
constexpr std::size_t list_runs(P const& p, interval queries, index_t from, index_t count,
                                std::span<interval> runs) {
  if constexpr (requires { p.list_keys(queries, from, count, runs); }) {
    return p.list_keys(queries, from, count, runs);
  } else if constexpr (requires { p.next_keys(queries, from, count); }) {
    std::size_t number = 0;
    for (; number < runs.size(); ++number) {
      runs[number] = next_run(p, queries, from, count);
      if (runs[number].empty()) break;
      from = runs[number].last;
    }
    return number;
  } else {
    std::size_t number = 0;
    if (queries.empty()) return number;
    for (interval part : pattern_keys(p, queries, count))
      if (part.last > from && number < runs.size())
        runs[number++] = {std::max(part.first, from), part.last};
    return number;
  }
}

/// pattern_mask() of one run of keys after the other.
template <bound_pattern P>
constexpr void mask_runs(P const& p, std::span<index_t const> queries,
                         std::span<interval const> runs, std::uint64_t* rows) {
  if constexpr (requires { p.mask_runs(queries, runs, rows); }) {
    p.mask_runs(queries, runs, rows);
  } else {
    for (interval run : runs) {
      pattern_mask(p, queries, run, rows);
      rows += run.size();
    }
  }
}

/// Every query meets every key.
struct dense {
  static constexpr bool keep(index_t, index_t) { return true; }
  static constexpr interval_set keys(interval, index_t count) { return interval{0, count}; }
  static constexpr coverage cover(interval, interval) { return coverage::all; }
  static constexpr index_t pairs(index_t rows, index_t keys) { return rows * keys; }
};

namespace detail {

/// Of two bool, or lane by lane.
template <class Kept>
constexpr auto both(Kept const& a, Kept const& b) {
  if constexpr (std::same_as<Kept, bool>)
    return a && b;
  else
    return a & b;
}

/// rows[k] = combine(mask of a, mask of b).
template <class A, class B, class Combine>
constexpr void combine_masks(A const& a, B const& b, std::span<index_t const> queries,
                             interval keys, std::uint64_t* rows, Combine combine) {
  constexpr index_t step = 64;
  std::uint64_t others[step] = {};
  for (index_t first = keys.first; first < keys.last; first += step) {
    interval const part{first, std::min(first + step, keys.last)};
    std::uint64_t* const mine = rows + (first - keys.first);
    pattern_mask(a, queries, part, mine);
    pattern_mask(b, queries, part, others);
    for (index_t k = 0; k < part.size(); ++k) mine[k] = combine(mine[k], others[k]);
  }
}

}  // namespace detail

/// Both patterns keep the pair.
template <pattern A, pattern B>
struct pattern_and {
  A a;
  B b;

  constexpr auto bind(place const& where) const {
    return pattern_and<decltype(bind_at(a, where)), decltype(bind_at(b, where))>{bind_at(a, where),
                                                                                 bind_at(b, where)};
  }
  void check(call_shape const& shape) const {
    check_against(a, shape);
    check_against(b, shape);
  }
  constexpr index_t panel_rows() const { return std::max(panel_rows_of(a), panel_rows_of(b)); }
  constexpr bool keep(index_t query,
                      index_t key) const requires bound_pattern<A> && bound_pattern<B> {
    return a.keep(query, key) && b.keep(query, key);
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    return pattern_keys(a, queries, count) & pattern_keys(b, queries, count);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return std::min(pattern_cover(a, queries, keys), pattern_cover(b, queries, keys));
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    detail::combine_masks(a, b, queries, keys, rows, [](auto x, auto y) { return x & y; });
  }
  constexpr bool scattered() const { return is_scattered(a) || is_scattered(b); }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    for (;;) {
      interval const x = next_run(a, queries, from, count);
      if (x.empty()) return {};
      interval const y = next_run(b, queries, x.first, count);
      if (y.empty()) return {};
      if (y.first < x.last) return intersect(x, y);
      from = y.first;
    }
  }
};

/// At least one of the patterns keeps the pair.
template <pattern A, pattern B>
struct pattern_or {
  A a;
  B b;

  constexpr auto bind(place const& where) const {
    return pattern_or<decltype(bind_at(a, where)), decltype(bind_at(b, where))>{bind_at(a, where),
                                                                                bind_at(b, where)};
  }
  void check(call_shape const& shape) const {
    check_against(a, shape);
    check_against(b, shape);
  }
  constexpr index_t panel_rows() const { return std::max(panel_rows_of(a), panel_rows_of(b)); }
  constexpr bool keep(index_t query,
                      index_t key) const requires bound_pattern<A> && bound_pattern<B> {
    return a.keep(query, key) || b.keep(query, key);
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    return pattern_keys(a, queries, count) | pattern_keys(b, queries, count);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return std::max(pattern_cover(a, queries, keys), pattern_cover(b, queries, keys));
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    detail::combine_masks(a, b, queries, keys, rows, [](auto x, auto y) { return x | y; });
  }
  constexpr bool scattered() const { return is_scattered(a) || is_scattered(b); }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    interval const x = next_run(a, queries, from, count), y = next_run(b, queries, from, count);
    interval run = x.empty() || (!y.empty() && y.first < x.first) ? y : x;
    for (bool grows = !run.empty(); grows;) {
      index_t const end = run.last;
      for (interval more : {next_run(a, queries, end, count), next_run(b, queries, end, count)})
        if (more.first == end) run.last = std::max(run.last, more.last);
      grows = run.last > end;
    }
    return run;
  }
};

/// The pattern does not keep the pair.
template <pattern A>
struct pattern_not {
  A a;

  constexpr auto bind(place const& where) const {
    return pattern_not<decltype(bind_at(a, where))>{bind_at(a, where)};
  }
  void check(call_shape const& shape) const { check_against(a, shape); }
  constexpr index_t panel_rows() const { return panel_rows_of(a); }
  constexpr bool keep(index_t query, index_t key) const requires bound_pattern<A> {
    return !a.keep(query, key);
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    pattern_mask(a, queries, keys, rows);
    for (index_t k = 0; k < keys.size(); ++k) rows[k] = ~rows[k];
  }
  constexpr coverage cover(interval queries, interval keys) const {
    switch (pattern_cover(a, queries, keys)) {
      case coverage::none:
        return coverage::all;
      case coverage::all:
        return coverage::none;
      default:
        return coverage::some;
    }
  }
};

template <pattern A, pattern B>
constexpr pattern_and<A, B> operator&(A const& a, B const& b) {
  return {a, b};
}
template <pattern A, pattern B>
constexpr pattern_or<A, B> operator|(A const& a, B const& b) {
  return {a, b};
}
template <pattern A>
constexpr pattern_not<A> operator~(A const& a) {
  return {a};
}

}  // namespace heed
