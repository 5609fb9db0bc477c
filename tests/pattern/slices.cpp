#include "reference/patterns/written.hpp"
#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/slices.hpp>

using heed::coverage;
using heed::index_t;
using heed::interval;
using heed::slice;
using heed::slice_type;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

constexpr slice_type types[] = {slice_type::full, slice_type::causal, slice_type::inverse,
                                slice_type::both};

/// Cuts a rectangle at random, keeps some of the pieces, and gives each a type.
void cut(support::random& draw, interval rows, interval keys, std::vector<slice>& list) {
  bool const can_cut_rows = rows.size() > 1, can_cut_keys = keys.size() > 1;
  if ((!can_cut_rows && !can_cut_keys) || draw.one_in(3)) {
    if (!draw.one_in(4)) list.push_back({rows, keys, draw.one_of(types)});
    return;
  }
  if (can_cut_rows && (!can_cut_keys || draw.one_in(2))) {
    index_t const middle = draw.between(rows.first + 1, rows.last - 1);
    cut(draw, {rows.first, middle}, keys, list);
    cut(draw, {middle, rows.last}, keys, list);
  } else {
    index_t const middle = draw.between(keys.first + 1, keys.last - 1);
    cut(draw, rows, {middle, keys.last}, list);
    cut(draw, rows, {keys.first, middle}, list);
  }
}

std::vector<slice> random_slices(support::random& draw, index_t rows, index_t keys) {
  std::vector<slice> list;
  cut(draw, {0, rows}, {0, keys}, list);
  return list;
}

}  // namespace

TEST_CASE("the pairs of a slice of each type are those of the formulas", "[pattern][quick]") {
  for (slice_type type : types)
    for (index_t nq = 0; nq < 9; ++nq)
      for (index_t nk = 0; nk < 9; ++nk) {
        slice const s{{3, 3 + nq}, {5, 5 + nk}, type};
        index_t pairs = 0;
        for (index_t i = 0; i < 15; ++i)
          for (index_t j = 0; j < 15; ++j) {
            bool const expected = reference::in_slice(s, i, j);
            pairs += expected;
            if (s.keep(i, j) != expected) FAIL("row " << i << ", key " << j);
          }
        CAPTURE(static_cast<int>(type), nq, nk);
        CHECK(s.pairs() == pairs);
      }
}

TEST_CASE("random slices", "[pattern][quick]") {
  for_each_seed("random slices", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 60), keys = draw.between(1, 60);
    auto const list = random_slices(draw, rows, keys);
    heed::slices const pattern{.list = list};
    pattern.check({1, 1, 1, rows, keys});
    heed::place const where{.rows = rows, .keys = keys};
    auto const keep = [&](index_t p, index_t j) {
      return reference::in_slices(list, p - (keys - rows), j);
    };
    index_t sum = 0;
    for (slice const& each : list) sum += each.pairs();
    std::string complaint =
        support::check_pattern(draw, pattern, where, keep, {.exact_tiles = true}) +
        support::check_pattern(draw, pattern & heed::causal{}, where,
                               [&](index_t p, index_t j) { return keep(p, j) && j <= p; }) +
        support::check_pattern(draw, ~pattern, where,
                               [&](index_t p, index_t j) { return !keep(p, j); },
                               {.exact_tiles = true});
    if (heed::kept_pairs(pattern, rows, keys) != sum) complaint += "the pairs do not add up";
    return complaint;
  });
}

TEST_CASE("a batch entry has its own slices", "[pattern][quick]") {
  for_each_seed("slices by batch", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 30), keys = draw.between(1, 30), batches = 3;
    std::vector<slice> all;
    std::vector<index_t> offsets{0};
    std::vector<std::vector<slice>> lists;
    for (index_t b = 0; b < batches; ++b) {
      lists.push_back(random_slices(draw, rows, keys));
      all.insert(all.end(), lists.back().begin(), lists.back().end());
      offsets.push_back(static_cast<index_t>(all.size()));
    }
    heed::slices const pattern{.list = all, .offsets = offsets};
    pattern.check({batches, batches, 2, rows, keys});
    std::string complaint;
    for (index_t b = 0; b < batches; ++b)
      complaint += support::check_pattern(
          draw, pattern, {.sequence = b, .batch = b, .head = 1, .rows = rows, .keys = keys},
          [&](index_t p, index_t j) {
            return reference::in_slices(lists[static_cast<std::size_t>(b)], p - (keys - rows), j);
          });
    return complaint;
  });
}

TEST_CASE("slices over whole sequences serve chunks, steps and packed documents",
          "[pattern][quick]") {
  for_each_seed("slices elsewhere", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const length = draw.between(1, 50);
    auto const list = random_slices(draw, length, length);
    // The last `rows` of the first `keys` positions.
    index_t const keys = draw.between(1, length), rows = draw.between(1, keys);
    heed::slices const pattern{.list = list, .first_position = 0};
    pattern.check({1, 1, 1, rows, keys});
    std::string complaint = support::check_pattern(
        draw, pattern, {.rows = rows, .keys = keys},
        [&](index_t p, index_t j) { return reference::in_slices(list, p, j); },
        {.exact_tiles = true});
    // A document inside a packed tensor: the list tells of the rows and keys of the tensor.
    index_t const first_row = draw.between(0, length - 1), first_key = draw.between(0, length - 1);
    heed::place const document{.sequence = 1,
                               .rows = length - first_row,
                               .keys = length - first_key,
                               .first_row = first_row,
                               .first_key = first_key};
    complaint +=
        support::check_pattern(draw, heed::slices{.list = list}, document,
                               [&](index_t p, index_t j) {
                                 index_t const i = p - (document.keys - document.rows);
                                 return reference::in_slices(list, i + first_row, j + first_key);
                               },
                               {.exact_tiles = true});
    return complaint;
  });
}

TEST_CASE("a tile that several slices fill together is full", "[pattern][quick]") {
  std::vector<slice> const list{{{0, 4}, {0, 3}}, {{0, 2}, {3, 6}}, {{2, 4}, {3, 6}}};
  auto const bound = heed::slices{.list = list}.bind({.rows = 4, .keys = 6});
  CHECK(bound.cover({2, 6}, {0, 6}) == coverage::all);
  CHECK(bound.cover({1, 6}, {0, 6}) == coverage::some);
  CHECK(bound.cover({6, 9}, {0, 6}) == coverage::none);
}

TEST_CASE("slices say what is wrong with them", "[pattern][errors][quick]") {
  heed::call_shape const shape{2, 2, 1, 10, 12};
  std::vector<slice> list{{{0, 5}, {0, 12}}, {{4, 8}, {11, 12}}};
  CHECK(message_of(heed::slices{.list = list}, shape) ==
        "heed: slice 0 (rows [0, 5), keys [0, 12)) and slice 1 (rows [4, 8), keys [11, 12)) "
        "overlap");
  std::swap(list[0], list[1]);
  CHECK(message_of(heed::slices{.list = list}, shape).find("overlap") != std::string::npos);
  std::vector<index_t> const offsets{0, 1, 2};
  CHECK(message_of(heed::slices{.list = list, .offsets = offsets}, shape) ==
        "");  // different batch entries
  list = {{{0, 5}, {0, 13}}};
  CHECK(message_of(heed::slices{.list = list}, shape) ==
        "heed: slice 0 (rows [0, 5), keys [0, 13)) leaves the 10 rows and 12 keys of the call; a "
        "list for more of them says where its rows start, in first_position");
  CHECK(message_of(heed::slices{.list = list, .first_position = 0}, shape) == "");
  list = {{{0, 5}, {7, 6}}};
  CHECK(message_of(heed::slices{.list = list}, shape) ==
        "heed: slice 0 (rows [0, 5), keys [7, 6)) is no rectangle: expected 0 <= first <= last");
  std::vector<index_t> const wrong{0, 1};
  CHECK(message_of(heed::slices{.list = list, .offsets = wrong}, shape) ==
        "heed: slices.offsets is [0, 1]; expected 3 offsets that start at 0, do not decrease and "
        "end at the number of slices, 1");
}
