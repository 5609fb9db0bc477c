#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/block_lists.hpp>

#include <set>

// Functions as patterns, the classes of their blocks, and FlexAttention's lists of blocks.

using heed::coverage;
using heed::index_t;
using heed::interval;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

/// Documents and a window: a predicate with tiles of all classes, different in each batch entry and head.
struct predicate {
  std::vector<int> document;
  index_t reach;

  bool operator()(index_t batch, index_t head, index_t p, index_t j) const {
    auto const of = [&](index_t x) {
      auto const n = static_cast<index_t>(document.size());
      return document[static_cast<std::size_t>(((x + 3 * batch) % n + n) % n)];
    };
    return of(p) == of(j) && j <= p + head && p - reach <= j;
  }
};

predicate random_predicate(support::random& draw, index_t count) {
  predicate result;
  int number = 0;
  for (index_t n = 0; n < count + 5; ++n) {
    if (draw.one_in(10)) number = static_cast<int>(draw.between(0, 3));
    result.document.push_back(number);
  }
  result.reach = draw.between(0, 2 * count);
  return result;
}

/// The class of rows [i0, i1) at positions + off and keys [j0, j1), pair by pair.
template <class Keep>
coverage class_of(interval positions, interval keys, Keep keep) {
  index_t kept = 0;
  for (index_t p = positions.first; p < positions.last; ++p)
    for (index_t j = keys.first; j < keys.last; ++j) kept += keep(p, j) ? 1 : 0;
  return kept == 0                                ? coverage::none
         : kept == positions.size() * keys.size() ? coverage::all
                                                  : coverage::some;
}

}  // namespace

TEST_CASE("functions as patterns", "[pattern][quick]") {
  for_each_seed("functions", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const count = draw.between(1, 60), step = draw.between(1, 5);
    predicate const by_place = random_predicate(draw, count);
    auto const third = heed::mask_of([=](index_t p, index_t j) { return (p - j) % step == 0; });
    auto const before = heed::mask_of([](auto p, auto j) { return j <= p; });
    auto const placed = heed::mask_of(by_place);
    static_assert(!support::keeps_lanes<float, decltype(third)>);
    static_assert(support::keeps_lanes<float, decltype(before)>);
    static_assert(support::keeps_lanes<double, decltype(before)>);
    heed::place const where{
        .sequence = 1, .batch = 1, .head = 2, .rows = draw.between(1, 60), .keys = count};
    auto const divides = [=](index_t p, index_t j) { return (p - j) % step == 0; };
    auto const met = [&](index_t p, index_t j) { return by_place(1, 2, p, j); };
    return support::check_pattern(draw, third, where, divides) +
           support::check_pattern(draw, before, where,
                                  [](index_t p, index_t j) { return j <= p; }) +
           support::check_pattern(draw, placed, where, met) +
           // and_masks, or_masks
           support::check_pattern(
               draw, third & before & placed, where,
               [&](index_t p, index_t j) { return divides(p, j) && j <= p && met(p, j); }) +
           support::check_pattern(
               draw, third | placed, where,
               [&](index_t p, index_t j) { return divides(p, j) || met(p, j); }) +
           support::check_pattern(
               draw, ~(third & placed), where,
               [&](index_t p, index_t j) { return !divides(p, j) || !met(p, j); }) +
           support::check_pattern(draw, ~third | ~placed, where, [&](index_t p, index_t j) {
             return !(divides(p, j) && met(p, j));
           });
  });
}

TEST_CASE("blocks are classified by their real pairs", "[pattern][quick]") {
  for_each_seed("classified", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 150), keys = draw.one_in(2) ? rows : draw.between(1, 150);
    index_t const batches = draw.between(1, 2), heads = draw.between(1, 2);
    heed::block_size const size{draw.between(1, 70), draw.between(1, 150)};
    predicate const keep = random_predicate(draw, keys);
    auto const pattern = heed::mask_of(keep);
    heed::block_classes const classes = heed::classify(keep, rows, keys, size, batches, heads);
    std::string complaint;
    for (index_t b = 0; b < batches; ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t r = 0; r < classes.block_rows(); ++r)
          for (index_t c = 0; c < classes.block_columns(); ++c) {
            index_t const off = keys - rows;
            interval const positions{r * size.rows + off,
                                     std::min((r + 1) * size.rows, rows) + off};
            interval const block{c * size.keys, std::min((c + 1) * size.keys, keys)};
            if (classes(b, h, r, c) !=
                class_of(positions, block, [&](index_t p, index_t j) { return keep(b, h, p, j); }))
              complaint = "a class is wrong\n";
          }
    heed::classified const known(pattern, classes);
    known.check({batches, batches, heads, rows, keys});
    index_t const b = draw.between(0, batches - 1), h = draw.between(0, heads - 1);
    heed::place const where{.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys};
    auto const inside = [&](index_t p, index_t j) {
      return p >= keys - rows && p < keys && keep(b, h, p, j);
    };
    complaint += support::check_pattern(draw, known, where, inside);
    // A function of registers fills whole registers of a mask.
    auto const before = heed::mask_of([](auto p, auto j) { return j <= p; });
    heed::block_classes const causal = heed::classify(before, rows, keys, size);
    complaint += support::check_pattern(
        draw, heed::classified(before, causal), where,
        [&](index_t p, index_t j) { return p >= keys - rows && p < keys && j <= p; });
    // Other lengths of the same sequences: fewer keys, a chunk of the last rows.
    if (rows == keys && keys > 1) {
      index_t const now = draw.between(1, keys), chunk = draw.between(1, now);
      complaint += support::check_pattern(
          draw, known, {.sequence = b, .batch = b, .head = h, .rows = chunk, .keys = now}, inside);
    }
    // Tiles equal to the blocks have the class exactly.
    auto const bound = known.bind(where);
    for (index_t r = 0; r < classes.block_rows(); ++r)
      for (index_t c = 0; c < classes.block_columns(); ++c) {
        interval const block_rows = classes.rows_of(r);
        interval const positions{block_rows.first + keys - rows, block_rows.last + keys - rows};
        if (bound.cover(positions, classes.keys_of(c)) != classes(b, h, r, c))
          complaint += "the tile of a block has another class\n";
      }
    return complaint;
  });
}

TEST_CASE("patterns that know their tiles are classified alike", "[pattern][quick]") {
  auto const same = heed::mask_of([](index_t p, index_t j) { return p - 9 <= j && j <= p + 3; });
  for (index_t rows : {1, 7, 64, 100})
    for (index_t keys : {1, 30, 65, 130}) {
      heed::block_size const size{16, 8};
      auto const a = heed::classify(heed::sliding_window{.left = 9, .right = 3}, rows, keys, size);
      auto const b = heed::classify(same, rows, keys, size);
      for (index_t r = 0; r < a.block_rows(); ++r)
        for (index_t c = 0; c < a.block_columns(); ++c) CHECK(a(0, 0, r, c) == b(0, 0, r, c));
    }
}

TEST_CASE("queries at the first key are classified there", "[pattern][quick]") {
  auto const classes = heed::classify(heed::causal{}, 6, 4, {2, 2}, 1, 1, 0);
  for (index_t r = 0; r < 3; ++r)
    for (index_t c = 0; c < 2; ++c)
      CHECK(classes(0, 0, r, c) == (c < r    ? coverage::all
                                    : c == r ? coverage::some
                                             : coverage::none));
}

TEST_CASE("lists of blocks reproduce any pattern", "[pattern][quick]") {
  for_each_seed("block lists", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 150), keys = draw.between(1, 150);
    index_t const batches = draw.between(1, 2), heads = draw.between(1, 2);
    heed::block_size const size{draw.between(1, 70), draw.between(1, 150)};
    predicate const keep = random_predicate(draw, keys);
    auto const pattern = heed::mask_of(keep);
    auto const classes = heed::classify(pattern, rows, keys, size, batches, heads);
    heed::block_lists lists = heed::list_key_blocks(classes);
    heed::block_lists const transposed = heed::list_query_blocks(classes);
    std::string complaint;
    // The two lists of a row are disjoint, and the transposed ones list the same blocks.
    auto const listed = [](heed::block_lists const& from, bool turned) {
      std::set<std::array<index_t, 5>> all;
      heed::block_list_views const views = from.views();
      for (index_t b = 0; b < from.batches; ++b)
        for (index_t h = 0; h < from.heads; ++h)
          for (index_t r = 0; r < from.block_rows; ++r) {
            for (index_t n = 0; n < views.kv_num_blocks(b, h, r); ++n) {
              index_t const c = views.kv_indices(b, h, r, n);
              all.insert({b, h, turned ? c : r, turned ? r : c, 0});
            }
            for (index_t n = 0; n < views.full_kv_num_blocks(b, h, r); ++n) {
              index_t const c = views.full_kv_indices(b, h, r, n);
              all.insert({b, h, turned ? c : r, turned ? r : c, 1});
            }
          }
      return all;
    };
    auto const met = listed(lists, false);
    if (met != listed(transposed, true)) complaint += "the transposed lists differ\n";
    for (auto const& each : met)
      if (each[4] == 0 && met.count({each[0], each[1], each[2], each[3], 1}) != 0)
        complaint += "a block is in both lists\n";
    // Someone else's lists are in no particular order.
    for (index_t row = 0; row < batches * heads * lists.block_rows; ++row) {
      auto const first = lists.kv_indices.begin() + row * lists.block_columns;
      std::reverse(first, first + lists.kv_num_blocks[static_cast<std::size_t>(row)]);
    }
    auto const again = heed::classes_of(lists.views(), rows, keys, size);
    index_t const b = draw.between(0, batches - 1), h = draw.between(0, heads - 1);
    return complaint + support::check_pattern(
                           draw, heed::classified(pattern, again),
                           {.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys},
                           [&](index_t p, index_t j) {
                             return p >= keys - rows && p < keys && keep(b, h, p, j);
                           });
  });
}

TEST_CASE("listed blocks are trusted", "[pattern][quick]") {
  // Block (0, 0) is listed as full, (1, 1) in part; the function hides the keys of odd number.
  std::vector<int> const counts{0, 1}, indices{0, 1}, full_counts{1, 0}, full_indices{0, 0};
  auto const classes = heed::classes_of({{counts.data(), {1, 1, 2}},
                                         {indices.data(), {1, 1, 2, 1}},
                                         {full_counts.data(), {1, 1, 2}},
                                         {full_indices.data(), {1, 1, 2, 1}}},
                                        8, 8, {4, 4});
  auto const even = heed::mask_of([](index_t, index_t j) { return j % 2 == 0; });
  support::random draw(1);
  CHECK(support::check_pattern(draw, heed::classified(even, classes), {.rows = 8, .keys = 8},
                               [](index_t p, index_t j) {
                                 if (p < 0 || p >= 8) return false;
                                 if (p / 4 == 0) return j / 4 == 0;
                                 return j / 4 == 1 && j % 2 == 0;
                               }) == "");
}

TEST_CASE("classes and lists say what is wrong with them", "[pattern][errors][quick]") {
  using heed::classified, heed::classify, heed::dense, heed::causal;
  auto const classes = classify(causal{}, 8, 8, {4, 4}, 2, 3);
  auto const check = [&](heed::call_shape const& shape) {
    return message_of([&] { classified(causal{}, classes).check(shape); });
  };
  CHECK(check({2, 2, 3, 8, 8}) == "");
  CHECK(check({2, 2, 3, 1, 5}) == "");
  CHECK(check({2, 2, 4, 8, 8}) ==
        "heed: classified has classes for 2 batches and 3 heads; expected 1 or 2, and 1 or 4");
  CHECK(check({2, 2, 3, 8, 9}) ==
        "heed: classified has classes for 8 rows and 8 keys; expected 8 and 9, or more");
  auto const shared = classify(causal{}, 8, 8);
  CHECK(message_of([&] {
          classified(causal{}, shared).check({1, 3, 1, 8, 8});
        }) == "heed: classified knows whole batch entries; these have 3 packed sequences");
  CHECK(message_of([&] {
          classify(causal{}, 8, 8, {4, 0});
        }) == "heed: blocks have the size [4, 0]; expected positive numbers of rows and keys");
  CHECK(message_of([&] {
          classify(causal{}, 8, 8, {4, 4}, 0);
        }) ==
        "heed: block classes of shape [0, 1, 8, 8]; expected (batch, head, row, key), at least "
        "one batch entry and head");

  std::vector<int> counts{2, 0}, indices{0, 1, 0, 0};
  auto const lists = [&](std::array<index_t, 3> const& rows = {1, 1, 2},
                         std::array<index_t, 4> const& room = {1, 1, 2, 2}) {
    return message_of([&] {
      heed::classes_of({{counts.data(), rows}, {indices.data(), room}}, 8, 8, {4, 4});
    });
  };
  CHECK(lists() == "");
  CHECK(lists({1, 1, 3}) ==
        "heed: kv_num_blocks has shape [1, 1, 3]; expected [1, 1, 2] (batch, head, block row)");
  CHECK(lists({1, 1, 2}, {1, 1, 1, 2}) ==
        "heed: kv_indices has shape [1, 1, 1, 2]; expected the axes of kv_num_blocks, [1, 1, 2], "
        "and one more");
  CHECK(lists({1, 1, 2}, {1, 1, 2, 1}) ==
        "heed: row 0 (batch 0, head 0) of kv_num_blocks is 2; expected 0 to 1");
  indices[1] = 2;
  CHECK(lists() == "heed: row 0 (batch 0, head 0) of kv_indices lists block 2; expected 0 to 1");
  indices[1] = 0;
  CHECK(lists() ==
        "heed: row 0 (batch 0, head 0) of kv_indices lists block 0, which is listed already");
}
