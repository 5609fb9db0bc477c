#pragma once

#include <heed/pattern/interval.hpp>

#include <algorithm>
#include <concepts>

/// Patterns: which pairs of a query and a key meet.
///
/// A pattern is a function of positions. A key's position is its row; a query's position p says where
/// among the keys the query stands, by default row + (keys - queries), so that the last query stands at
/// the last key. All a pattern must have is
///
///     bool keep(heed::index_t query, heed::index_t key) const;
///
/// and three things make it fast, each optional:
///
///     auto keep(batch queries, batch keys) const;        // the same for a SIMD register of positions,
///                                                        // returning its batch_bool: a template that only
///                                                        // compares, adds and combines with & and |
///     interval_set keys(interval queries, index_t) const;  // which of the `index_t` keys the query positions
///                                                        // may meet: a superset is right, only slower
///     coverage cover(interval queries, interval keys) const;  // of a whole tile; `some` is always right
///
/// A pattern whose parameters differ by batch, head or length is bound to its place first:
///
///     auto bind(place const&) const;                     // returns a pattern
namespace heed {

/// How a pattern covers a tile of pairs: no pair kept, some, all.
enum class coverage { none, some, all };

/// The shape of a call, for ingredients that check themselves against it before anything is
/// written: those with `void check(call_shape const&) const`. `sequences` is `batches` unless
/// several sequences are packed in one batch entry.
struct call_shape {
  index_t batches = 0;
  index_t sequences = 0;
  index_t heads = 0;
  index_t rows = 0;
  index_t keys = 0;
};

/// Where scores lie: a sequence, the batch entry that holds it, a query head, and the sequence's
/// lengths. `first_row` and `first_key` are where it starts in its tensors, 0 unless sequences are
/// packed.
struct place {
  index_t sequence = 0;
  index_t batch = 0;
  index_t head = 0;
  index_t rows = 0;
  index_t keys = 0;
  index_t first_row = 0;
  index_t first_key = 0;
};

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

/// The keys, of `count`, that queries at the positions [queries.first, queries.last) may meet.
template <bound_pattern P>
constexpr interval_set pattern_keys(P const& p, interval queries, index_t count) {
  interval_set const all{interval{0, count}};
  if constexpr (requires { p.keys(queries, count); })
    return p.keys(queries, count) & all;
  else
    return all;
}

template <bound_pattern P>
constexpr coverage pattern_cover(P const& p, interval queries, interval keys) {
  if constexpr (requires { p.cover(queries, keys); })
    return p.cover(queries, keys);
  else
    return coverage::some;
}

/// Every query meets every key.
struct dense {
  static constexpr bool keep(index_t, index_t) { return true; }
  static constexpr interval_set keys(interval, index_t count) { return interval{0, count}; }
  static constexpr coverage cover(interval, interval) { return coverage::all; }
};

namespace detail {

// Of two bool, or lane by lane.
template <class Kept>
constexpr auto both(Kept const& a, Kept const& b) {
  if constexpr (std::same_as<Kept, bool>)
    return a && b;
  else
    return a & b;
}
template <class Kept>
constexpr auto either(Kept const& a, Kept const& b) {
  if constexpr (std::same_as<Kept, bool>)
    return a || b;
  else
    return a | b;
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
  template <class I>
  constexpr auto keep(I query, I key) const requires requires(A const& x, B const& y) {
    detail::both(x.keep(query, key), y.keep(query, key));
  }
  { return detail::both(a.keep(query, key), b.keep(query, key)); }
  constexpr interval_set keys(interval queries, index_t count) const {
    return pattern_keys(a, queries, count) & pattern_keys(b, queries, count);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return std::min(pattern_cover(a, queries, keys), pattern_cover(b, queries, keys));
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
  template <class I>
  constexpr auto keep(I query, I key) const requires requires(A const& x, B const& y) {
    detail::either(x.keep(query, key), y.keep(query, key));
  }
  { return detail::either(a.keep(query, key), b.keep(query, key)); }
  constexpr interval_set keys(interval queries, index_t count) const {
    return pattern_keys(a, queries, count) | pattern_keys(b, queries, count);
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return std::max(pattern_cover(a, queries, keys), pattern_cover(b, queries, keys));
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
  template <class I>
  constexpr auto keep(I query, I key) const requires requires(A const& x) {
    !x.keep(query, key);
  }
  { return !a.keep(query, key); }
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
