#pragma once

#include <heed/pattern/placed_table.hpp>

namespace heed {

/// Which pairs of a rectangle meet; a is the row in the rectangle, c the column, of `rows` and `keys` many.
enum class slice_type {
  full,     ///< all
  causal,   ///< c <= a + keys - rows: the last row meets the last key
  inverse,  ///< c >= a: the first row meets the first key
  both,     ///< a <= c <= a + keys - rows
};

/// A rectangle of pairs, rows x keys.
struct slice {
  interval rows;
  interval keys;
  slice_type type = slice_type::full;

  /// The keys of a row of the slice.
  constexpr interval keys_of(index_t row) const {
    index_t const start = keys.first + row - rows.first;
    return {bounded_below() ? std::max(keys.first, start) : keys.first,
            bounded_above() ? std::min(keys.last, start + slack() + 1) : keys.last};
  }
  constexpr bool keep(index_t row, index_t key) const {
    interval const kept = keys_of(row);
    return rows.first <= row && row < rows.last && kept.first <= key && key < kept.last;
  }

  /// What some of the given rows of the slice meet: one interval, as the keys of a row touch those of the next.
  constexpr interval keys_of(interval some) const {
    if (some.empty() || (type == slice_type::both && slack() < 0)) return {};
    return {keys_of(some.first).first, keys_of(some.last - 1).last};
  }

  /// Of rows and keys inside the slice. Exact.
  constexpr coverage cover(interval some, interval columns) const {
    // The tile meets every c - a of an interval, and those within the bounds are kept.
    index_t const first = columns.first - keys.first - (some.last - 1 - rows.first);
    index_t const last = columns.last - 1 - keys.first - (some.first - rows.first);
    bool const below = bounded_below() && last < 0, above = bounded_above() && first > slack();
    if (below || above || (type == slice_type::both && slack() < 0)) return coverage::none;
    bool const all = (!bounded_below() || first >= 0) && (!bounded_above() || last <= slack());
    return all ? coverage::all : coverage::some;
  }

  /// The pairs that meet.
  constexpr index_t pairs() const {
    index_t const nq = rows.size(), nk = keys.size();
    switch (type) {
      case slice_type::full:
        return nq * nk;
      case slice_type::both:
        return std::max<index_t>(0, nk - nq + 1) * nq;
      default:
        return nk >= nq ? nq * (2 * nk - nq + 1) / 2 : detail::triangle(nk);
    }
  }

 private:
  constexpr bool bounded_below() const {
    return type == slice_type::inverse || type == slice_type::both;
  }
  constexpr bool bounded_above() const {
    return type == slice_type::causal || type == slice_type::both;
  }
  /// How many columns the rectangle has more than rows.
  constexpr index_t slack() const { return keys.size() - rows.size(); }
};

/// Rectangles that do not overlap, each with a type: packed documents, prefixes, pieces of windows. Pairs outside
/// all of them do not meet.
///
///   list            the slices, in any order; in row order they are checked fastest
///   offsets         batch entry b has the slices [offsets[b], offsets[b + 1]); without, all have the whole list
///   first_position  see placed_table.hpp
///
/// Each panel of queries looks at every slice. For thousands of them, classify() the pattern once, or use
/// `documents` or `labels` if that is what they are.
struct slices {
  std::span<slice const> list;
  std::span<index_t const> offsets = {};
  std::optional<index_t> first_position = {};

  struct table {
    std::span<slice const> list;

    constexpr bool keep(index_t row, index_t key) const {
      for (slice const& each : list)
        if (each.keep(row, key)) return true;
      return false;
    }
    constexpr interval_set keys(interval rows, interval among) const {
      interval_set met;
      for (slice const& each : list)
        met.add(intersect(each.keys_of(intersect(rows, each.rows)), among));
      return met;
    }
    /// Slices that fill a tile together make it full: they do not overlap.
    constexpr coverage cover(interval rows, interval keys) const {
      index_t area = 0;
      bool whole = true, nothing = true;
      for (slice const& each : list) {
        interval const r = intersect(rows, each.rows), k = intersect(keys, each.keys);
        if (r.empty() || k.empty()) continue;
        coverage const part = each.cover(r, k);
        area += r.size() * k.size();
        whole = whole && part == coverage::all;
        nothing = nothing && part == coverage::none;
      }
      if (nothing) return coverage::none;
      return whole && area == rows.size() * keys.size() ? coverage::all : coverage::some;
    }
    constexpr void mask(std::span<index_t const> rows, interval keys, std::uint64_t* bits) const {
      std::fill(bits, bits + keys.size(), 0);
      for (slice const& each : list) {
        if (intersect(keys, each.keys).empty()) continue;
        for (std::size_t q = 0; q < rows.size(); ++q) {
          if (rows[q] < each.rows.first || rows[q] >= each.rows.last) continue;
          interval const kept = intersect(each.keys_of(rows[q]), keys);
          for (index_t key = kept.first; key < kept.last; ++key)
            bits[key - keys.first] |= std::uint64_t{1} << q;
        }
      }
    }
    constexpr index_t pairs(interval rows, interval keys) const {
      index_t sum = 0;
      for (slice const& each : list) {
        interval const r = intersect(rows, each.rows), k = intersect(keys, each.keys);
        if (r.size() == each.rows.size() && k.size() == each.keys.size())
          sum += each.pairs();
        else
          for (index_t row = r.first; row < r.last; ++row)
            sum += intersect(each.keys_of(row), k).size();
      }
      return sum;
    }
  };

  constexpr placed_table<table> bind(place const& where) const {
    return detail::place_table(table{of(where.batch)}, where, first_position);
  }

  void check(call_shape const& shape) const {
    if (!offsets.empty()) {
      bool ordered = static_cast<index_t>(offsets.size()) == shape.batches + 1 &&
                     offsets.front() == 0 && offsets.back() == static_cast<index_t>(list.size());
      for (std::size_t b = 1; b < offsets.size(); ++b) ordered &= offsets[b - 1] <= offsets[b];
      require(ordered, [&] {
        return "slices.offsets is " + (offsets.size() > 16 ? "a list" : shape_text(offsets)) +
               "; expected " + std::to_string(shape.batches + 1) +
               " offsets that start at 0, do not decrease and end at the number of slices, " +
               std::to_string(list.size());
      });
    }
    for (slice const& each : list) check_bounds(each, shape);
    for (index_t b = 0; b < (offsets.empty() ? 1 : shape.batches); ++b) check_overlap(of(b));
  }

 private:
  constexpr std::span<slice const> of(index_t batch) const {
    if (offsets.empty()) return list;
    auto const b = static_cast<std::size_t>(batch);
    return list.subspan(static_cast<std::size_t>(offsets[b]),
                        static_cast<std::size_t>(offsets[b + 1] - offsets[b]));
  }

  std::string name(slice const& each) const {
    return "slice " + std::to_string(&each - list.data()) + " (rows " + detail::text(each.rows) +
           ", keys " + detail::text(each.keys) + ")";
  }

  void check_bounds(slice const& each, call_shape const& shape) const {
    require(0 <= each.rows.first && each.rows.first <= each.rows.last && 0 <= each.keys.first &&
                each.keys.first <= each.keys.last,
            [&] { return name(each) + " is no rectangle: expected 0 <= first <= last"; });
    require(first_position || (each.rows.last <= shape.rows && each.keys.last <= shape.keys), [&] {
      return name(each) + " leaves the " + std::to_string(shape.rows) + " rows and " +
             std::to_string(shape.keys) +
             " keys of the call; a list for more of them says where its rows start, in "
             "first_position";
    });
  }

  void check_overlap(std::span<slice const> some) const {
    bool sorted = true;
    for (std::size_t n = 1; n < some.size(); ++n)
      sorted = sorted && some[n - 1].rows.first <= some[n].rows.first;
    for (std::size_t a = 0; a < some.size(); ++a)
      for (std::size_t b = a + 1; b < some.size(); ++b) {
        if (sorted && some[b].rows.first >= some[a].rows.last) break;
        require(intersect(some[a].rows, some[b].rows).empty() ||
                    intersect(some[a].keys, some[b].keys).empty(),
                [&] { return name(some[a]) + " and " + name(some[b]) + " overlap"; });
      }
  }
};

}  // namespace heed
