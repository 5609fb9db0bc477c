// What a pattern says about pairs, tiles and lists of keys, against a predicate, on random tiles.
//
//     for_each_seed("windows", 1000, [](seed_t seed) {
//       support::random draw(seed);
//       heed::place const where{.rows = 40, .keys = 40};
//       return support::check_pattern(draw, heed::causal{}, where,
//                                     [](index_t p, index_t j) { return j <= p; },
//                                     {.exact_tiles = true});
//     });
#pragma once

#include "support/random.hpp"

#include <heed/pattern/count.hpp>

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace support {

using heed::coverage;
using heed::index_t;
using heed::interval;
using heed::interval_set;

/// What a pattern promises beyond being right.
struct pattern_claims {
  bool exact_tiles = false;  // cover() says `some` only of tiles that are really partial
  bool exact_keys = false;   // next_keys() gives no key that none of the queries meets
};

inline std::string text(interval each) {
  return "[" + std::to_string(each.first) + ", " + std::to_string(each.last) + ")";
}

inline bool contains(interval_set const& set, index_t x) {
  for (interval each : set)
    if (each.first <= x && x < each.last) return true;
  return false;
}

/// Whether a pattern has the form of keep() for SIMD registers.
template <class T, class Pattern>
inline constexpr bool keeps_lanes = requires(Pattern const& pattern, xsimd::batch<T> p) {
  { pattern.keep(p, p) } -> std::convertible_to<typename xsimd::batch<T>::batch_bool_type>;
};

/// Does the pattern's batch form agree with keep(), for every pair of a tile?
template <class T, class Pattern>
bool lanes_agree(Pattern const& pattern, interval queries, interval keys) {
  using batch = xsimd::batch<T>;
  constexpr auto size = static_cast<index_t>(batch::size);
  std::array<T, batch::size> positions, lanes;
  bool agree = true;
  for (index_t q = queries.first; q < queries.last; ++q)
    for (index_t first = keys.first; first < keys.last; first += size) {
      for (std::size_t lane = 0; lane < batch::size; ++lane)
        positions[lane] = static_cast<T>(first + static_cast<index_t>(lane));
      auto const kept = xsimd::select(
          pattern.keep(batch(static_cast<T>(q)), batch::load_unaligned(positions.data())),
          batch(T(1)), batch(T(0)));
      kept.store_unaligned(lanes.data());
      for (index_t lane = 0; lane < std::min(size, keys.last - first); ++lane)
        agree &= (lanes[static_cast<std::size_t>(lane)] == T(1)) == pattern.keep(q, first + lane);
    }
  return agree;
}

/// Compares a pattern bound at a place with the predicate keep(position, key); complains of each kind of
/// difference once.
template <class Pattern, class Keep>
class pattern_checker {
 public:
  pattern_checker(random& draw, Pattern const& pattern, heed::place const& where, Keep keep,
                  pattern_claims claims)
      : draw_(draw), pattern_(pattern), count_(where.keys), keep_(keep), claims_(claims) {}

  std::string tile() {
    queries_.first = draw_.between(-20, count_ + 20);
    queries_.last = queries_.first + draw_.between(1, 30);
    keys_.first = draw_.between(0, count_ - 1);
    keys_.last = draw_.between(keys_.first + 1, count_);
    met_.assign(static_cast<std::size_t>(count_), false);
    pairs();
    key_sets();
    tile_class();
    lists_of_keys();
    runs_at_once();
    masks();
    return complaint_;
  }

 private:
  void expect(bool good, char const* complaint) {
    if (good || complaint_.find(complaint) != std::string::npos) return;
    complaint_ += std::string(complaint) + " for positions " + text(queries_) + " and keys " +
                  text(keys_) + " of " + std::to_string(count_) + "\n";
  }

  void pairs() {
    kept_ = 0;
    for (index_t q = queries_.first; q < queries_.last; ++q)
      for (index_t j = 0; j < count_; ++j) {
        bool const expected = keep_(q, j);
        expect(pattern_.keep(q, j) == expected, "keep() is wrong");
        if (expected) met_[static_cast<std::size_t>(j)] = true;
        kept_ += expected && j >= keys_.first && j < keys_.last;
      }
    if constexpr (keeps_lanes<float, Pattern>)
      expect(lanes_agree<float>(pattern_, queries_, keys_), "keep() of floats is wrong");
    if constexpr (keeps_lanes<double, Pattern>)
      expect(lanes_agree<double>(pattern_, queries_, keys_), "keep() of doubles is wrong");
  }

  void key_sets() {
    interval_set const said = heed::pattern_keys(pattern_, queries_, count_);
    for (index_t j = 0; j < count_; ++j)
      if (met_[static_cast<std::size_t>(j)]) expect(contains(said, j), "keys() leaves out a key");
    for (interval each : said)
      expect(!each.empty() && each.first >= 0 && each.last <= count_, "keys() leaves the keys");
  }

  void tile_class() {
    coverage const really = kept_ == 0                                ? coverage::none
                            : kept_ == queries_.size() * keys_.size() ? coverage::all
                                                                      : coverage::some;
    coverage const said = heed::pattern_cover(pattern_, queries_, keys_);
    expect(said == really || said == coverage::some, "cover() is wrong");
    if (claims_.exact_tiles)
      expect(said == really, "cover() says partial of a tile that is empty or full");
  }

  void lists_of_keys() {
    if constexpr (requires { pattern_.next_keys(queries_, index_t{}, count_); }) {
      index_t const from = draw_.between(0, count_);
      std::vector<bool> listed(static_cast<std::size_t>(count_), false);
      for (index_t next = from;;) {
        interval const run = pattern_.next_keys(queries_, next, count_);
        if (run.empty()) break;
        bool const inside = run.first >= next && run.last <= count_;
        expect(inside, "next_keys() leaves the keys");
        if (!inside) break;
        expect(next == from || run.first > next, "next_keys() gives runs that touch");
        for (index_t j = run.first; j < run.last; ++j) listed[static_cast<std::size_t>(j)] = true;
        next = run.last;
      }
      for (auto j = static_cast<std::size_t>(from); j < listed.size(); ++j) {
        expect(listed[j] || !met_[j], "next_keys() leaves out a key");
        if (claims_.exact_keys)
          expect(met_[j] || !listed[j], "next_keys() gives a key that none of the queries meets");
      }
    }
  }

  void runs_at_once() {
    index_t const from = draw_.between(0, count_);
    std::vector<bool> one_by_one(static_cast<std::size_t>(count_), false), listed = one_by_one;
    auto const mark = [](std::vector<bool>& in, interval run) {
      for (index_t j = run.first; j < run.last; ++j) in[static_cast<std::size_t>(j)] = true;
    };
    for (index_t next = from;;) {
      interval const run = heed::next_run(pattern_, queries_, next, count_);
      if (run.empty()) break;
      mark(one_by_one, run);
      next = run.last;
    }
    std::array<interval, 3> runs;
    for (index_t next = from;;) {
      std::size_t const number = heed::list_runs(pattern_, queries_, next, count_, runs);
      for (std::size_t n = 0; n < number; ++n) {
        bool const inside = !runs[n].empty() && runs[n].first >= next && runs[n].last <= count_;
        expect(inside, "list_runs() gives an empty run, one that touches, or leaves the keys");
        if (!inside) return;
        mark(listed, runs[n]);
        next = runs[n].last;
      }
      if (number < runs.size()) break;
    }
    expect(listed == one_by_one, "list_runs() gives other keys than next_run()");
  }

  void masks() {
    if constexpr (requires(std::uint64_t * rows) {
                    pattern_.mask(std::span<index_t const>{}, keys_, rows);
                  }) {
      // Consecutive positions, as they mostly are, or any, in any order, some of them twice.
      bool const consecutive = draw_.one_in(2);
      std::vector<index_t> positions(static_cast<std::size_t>(draw_.between(1, 64)));
      for (std::size_t q = 0; q < positions.size(); ++q)
        positions[q] = consecutive ? queries_.first + static_cast<index_t>(q)
                                   : draw_.between(queries_.first, queries_.last + 40);
      std::vector<std::uint64_t> rows(static_cast<std::size_t>(keys_.size()),
                                      0xaaaaaaaaaaaaaaaa);  // what was there before
      pattern_.mask(positions, keys_, rows.data());
      for (std::size_t k = 0; k < rows.size(); ++k)
        for (std::size_t q = 0; q < positions.size(); ++q)
          expect((rows[k] >> q & 1) ==
                     std::uint64_t{keep_(positions[q], keys_.first + static_cast<index_t>(k))},
                 consecutive ? "mask() of consecutive positions is wrong" : "mask() is wrong");
    }
  }

  random& draw_;
  Pattern const& pattern_;
  index_t count_;
  Keep keep_;
  pattern_claims claims_;
  interval queries_, keys_;
  std::vector<bool> met_;  // the keys that some of the queries meet
  index_t kept_ = 0;       // pairs of the tile
  std::string complaint_;
};

/// The pairs that a predicate keeps, the last query at the last key.
template <class Keep>
index_t count_pairs(index_t rows, index_t keys, Keep keep) {
  index_t pairs = 0;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < keys; ++j) pairs += keep(i + keys - rows, j) ? 1 : 0;
  return pairs;
}

/// Compares kept_pairs(), which is what the pattern says of itself if it says anything, with the count.
template <class Pattern, class Keep>
std::string check_pairs(Pattern const& bound, index_t rows, index_t keys, Keep keep) {
  index_t const expected = count_pairs(rows, keys, keep),
                said = heed::kept_pairs(bound, rows, keys);
  if (said == expected) return "";
  return "kept_pairs() of " + std::to_string(rows) + " rows and " + std::to_string(keys) +
         " keys is " + std::to_string(said) + ", not " + std::to_string(expected) + "\n";
}

/// Everything that a pattern offers, at a place with at least one key, against keep(position, key); what it complains
/// about, or nothing.
template <class Pattern, class Keep>
std::string check_pattern(random& draw, Pattern const& pattern, heed::place const& where, Keep keep,
                          pattern_claims claims = {}) {
  auto const bound = heed::bind_at(pattern, where);
  pattern_checker checker(draw, bound, where, keep, claims);
  std::string complaint;
  for (int tile = 0; tile < 20 && complaint.empty(); ++tile) complaint = checker.tile();
  complaint += check_pairs(bound, where.rows, where.keys, keep);
  // A pattern of positions alone goes with any lengths.
  if constexpr (!requires { pattern.bind(where); })
    for (int n = 0; n < 5; ++n)
      complaint += check_pairs(bound, draw.between(0, 40), draw.between(0, 40), keep);
  return complaint;
}

}  // namespace support
