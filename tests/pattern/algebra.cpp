#include "support/pattern_check.hpp"
#include "support/tables.hpp"

#include <heed/pattern/any_pattern.hpp>
#include <heed/sliding_window.hpp>

#include <deque>
#include <vector>

// What holds for patterns of all kinds when they are combined: rows, tiles, and which tiles are known exactly.

using heed::any_pattern;
using heed::coverage;
using heed::index_t;
using heed::interval;
using heed::place;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Patterns of any kind that know their tiles exactly, at one place.
struct kinds {
  support::random draw;
  place where;
  std::deque<std::vector<interval>> offsets;
  std::deque<support::numbers<bool>> marks;
  std::deque<support::numbers<index_t>> bounds;
  std::deque<support::numbers<int>> tags;

  explicit kinds(seed_t seed)
      : draw(seed), where{.rows = draw.between(1, 50), .keys = draw.between(1, 50)} {}

  any_pattern one() {
    index_t const N = where.rows, M = where.keys;
    auto const drawn = [this](index_t low, index_t high) {
      return [this, low, high](index_t) { return draw.between(low, high); };
    };
    switch (draw.between(0, 8)) {
      case 0:
        return heed::causal{};
      case 1:
        return heed::sliding_window{draw.between(-1, 20), draw.between(-1, 20)};
      case 2:
        return heed::first_keys{draw.between(0, M)};
      case 3:
        return heed::streaming{draw.between(0, 5), draw.between(1, 20)};
      case 4:
        return heed::dilated_window{draw.between(-1, 20), draw.between(-1, 20), draw.between(1, 5)};
      case 5:
        offsets.push_back({{-9, -5}, {-3, -2}, {0, draw.between(1, 9)}});
        return heed::key_offsets{offsets.back()};
      case 6:
        marks.emplace_back(draw, 1, 1, M, [this](index_t) { return draw.one_in(2); });
        return heed::key_set{marks.back().view()};
      case 7: {
        bounds.emplace_back(draw, 1, 1, N, drawn(0, M));
        bounds.emplace_back(draw, 1, 1, N, drawn(0, M));
        return heed::row_ranges{bounds[bounds.size() - 2].view(), bounds.back().view()};
      }
      default: {
        static constexpr bool admitted[]{true, false, true, true};
        tags.emplace_back(draw, 1, 1, N, drawn(0, 1));
        tags.emplace_back(draw, 1, 1, M, drawn(0, 1));
        return heed::labels{tags[tags.size() - 2].view(), tags.back().view(), {admitted, {2, 2}}};
      }
    }
  }
};

interval some_of(support::random& draw, interval whole, index_t most) {
  index_t const first = draw.between(whole.first, whole.last - 1);
  return {first, std::min(whole.last, first + draw.between(1, most))};
}

}  // namespace

TEST_CASE("combinations of all kinds keep what they should", "[pattern][quick]") {
  for_each_seed("algebra", 1000, [](seed_t seed) {
    kinds k(seed);
    any_pattern const a = k.one(), b = k.one(), c = k.one();
    auto const x = a.bind(k.where), y = b.bind(k.where), z = c.bind(k.where);
    auto const check = [&](any_pattern const& all, auto keep) {
      return check_pattern(k.draw, all, k.where, keep);
    };
    return check(a & b, [&](index_t p, index_t j) { return x.keep(p, j) && y.keep(p, j); }) +
           check(a | b, [&](index_t p, index_t j) { return x.keep(p, j) || y.keep(p, j); }) +
           check(~a, [&](index_t p, index_t j) { return !x.keep(p, j); }) +
           check((a | ~b) & ~(c & a), [&](index_t p, index_t j) {
             return (x.keep(p, j) || !y.keep(p, j)) && !(z.keep(p, j) && x.keep(p, j));
           });
  });
}

TEST_CASE("De Morgan's laws hold for pairs and for tiles", "[pattern][quick]") {
  for_each_seed("De Morgan", 1000, [](seed_t seed) {
    kinds k(seed);
    any_pattern const a = k.one(), b = k.one();
    index_t const off = k.where.keys - k.where.rows;
    auto const same = [&](any_pattern const& left, any_pattern const& right) -> std::string {
      if (kept_pairs(left, k.where) != kept_pairs(right, k.where)) return "pairs differ\n";
      auto const x = left.bind(k.where), y = right.bind(k.where);
      for (int n = 0; n < 30; ++n) {
        interval const queries = some_of(k.draw, {off, k.where.keys}, 20);
        interval const keys = some_of(k.draw, {0, k.where.keys}, 30);
        std::vector<index_t> positions;
        for (index_t p = queries.first; p < queries.last; ++p) positions.push_back(p);
        std::vector<std::uint64_t> rows(static_cast<std::size_t>(keys.size())), others = rows;
        x.mask(positions, keys, rows.data());
        y.mask(positions, keys, others.data());
        for (std::size_t key = 0; key < rows.size(); ++key)
          if ((rows[key] ^ others[key]) << (64 - positions.size()) != 0)
            return "rows differ for positions " + support::text(queries) + "\n";
        if (x.cover(queries, keys) != y.cover(queries, keys))
          return "tiles differ for positions " + support::text(queries) + " and keys " +
                 support::text(keys) + "\n";
      }
      return "";
    };
    return same(~(a & b), ~a | ~b) + same(~(a | b), ~a & ~b) + same(~~a, a);
  });
}

TEST_CASE("which tiles of a combination are known exactly", "[pattern][quick]") {
  for_each_seed("exactness", 1000, [](seed_t seed) {
    kinds k(seed);
    any_pattern const a = k.one(), b = k.one();
    auto const both = any_pattern(a & b).bind(k.where), either = any_pattern(a | b).bind(k.where),
               neither = any_pattern(~a).bind(k.where);
    std::string complaint;
    for (int n = 0; n < 30; ++n) {
      interval const queries = some_of(k.draw, {-5, k.where.keys + 5}, 10);
      interval const keys = some_of(k.draw, {0, k.where.keys}, 10);
      auto const really = [&](auto const& pattern) {
        index_t kept = 0;
        for (index_t p = queries.first; p < queries.last; ++p)
          for (index_t j = keys.first; j < keys.last; ++j) kept += pattern.keep(p, j);
        return kept == 0                              ? coverage::none
               : kept == queries.size() * keys.size() ? coverage::all
                                                      : coverage::some;
      };
      if ((both.cover(queries, keys) == coverage::all) != (really(both) == coverage::all))
        complaint += "a full tile of & is missed\n";
      if ((either.cover(queries, keys) == coverage::none) != (really(either) == coverage::none))
        complaint += "an empty tile of | is missed\n";
      if (neither.cover(queries, keys) != really(neither)) complaint += "~ is not exact\n";
    }
    return complaint;
  });
}

TEST_CASE("the keys of one query are listed exactly", "[pattern][quick]") {
  for_each_seed("rows", 1000, [](seed_t seed) {
    kinds k(seed);
    any_pattern const a = k.one(), b = k.one();
    std::string complaint;
    for (any_pattern const& pattern : {any_pattern(a & b), any_pattern(a | b)}) {
      auto const bound = pattern.bind(k.where);
      for (index_t p = k.where.keys - k.where.rows; p < k.where.keys; ++p) {
        index_t listed = 0, kept = 0;
        interval run = bound.next_keys({p, p + 1}, 0, k.where.keys);
        for (; !run.empty(); run = bound.next_keys({p, p + 1}, run.last, k.where.keys))
          for (index_t j = run.first; j < run.last; ++j, ++listed)
            if (!bound.keep(p, j)) complaint = "a key is listed that is not kept\n";
        for (index_t j = 0; j < k.where.keys; ++j) kept += bound.keep(p, j);
        if (listed != kept) complaint += "a kept key is not listed\n";
      }
    }
    return complaint;
  });
}
