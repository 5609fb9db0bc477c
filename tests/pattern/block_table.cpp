#include "reference/patterns/written.hpp"
#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/block_table.hpp>

#include <memory>
#include <numeric>
#include <optional>

using heed::block_cut;
using heed::coverage;
using heed::index_t;
using heed::inner_layout;
using heed::interval;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

/// An axis cut into blocks of one size or of several, for each batch entry and head or for all.
class random_cut {
 public:
  random_cut(support::random& draw, index_t extent, index_t batches, index_t heads, bool equal) {
    if (equal) {
      size_ = draw.between(1, extent + 3);
      blocks_ = (extent + size_ - 1) / size_;
      std::vector<index_t> bounds{0};
      while (bounds.back() < extent) bounds.push_back(bounds.back() + size_);
      bounds_.push_back(bounds);
      return;
    }
    blocks_ = draw.between(1, 8);
    batches_ = draw.one_in(2) ? 1 : batches;
    heads_ = draw.one_in(2) ? 1 : heads;
    for (index_t n = 0; n < batches_ * heads_; ++n) {
      std::vector<index_t> bounds{0, extent};
      while (static_cast<index_t>(bounds.size()) <= blocks_)  // blocks can be empty
        bounds.push_back(draw.between(0, extent));
      std::sort(bounds.begin(), bounds.end());
      bounds_.push_back(bounds);
      flat_.insert(flat_.end(), bounds.begin(), bounds.end());
    }
  }

  index_t blocks() const { return blocks_; }
  index_t size() const { return size_; }
  block_cut cut() const {
    if (size_ > 0) return {size_};
    if (batches_ * heads_ == 1) return heed::cut_at(flat_);
    return {.bounds = {flat_.data(), {batches_, heads_, blocks_ + 1}}};
  }
  std::vector<index_t> const& bounds(index_t b, index_t h) const {
    return bounds_[static_cast<std::size_t>((batches_ == 1 ? 0 : b) * heads_ +
                                            (heads_ == 1 ? 0 : h))];
  }

 private:
  index_t size_ = 0, blocks_ = 0, batches_ = 1, heads_ = 1;
  std::vector<std::vector<index_t>> bounds_;
  std::vector<index_t> flat_;
};

/// Booleans [batch or 1, head or 1, block rows, block columns], and the same as lists.
struct random_table {
  std::unique_ptr<bool[]> memory;
  heed::tensor_view<bool, 4> view;
  std::vector<index_t> offsets, columns;

  random_table(support::random& draw, index_t batches, index_t heads, index_t rows,
               index_t blocks) {
    index_t const B = draw.one_in(2) ? 1 : batches, H = draw.one_in(2) ? 1 : heads;
    memory = std::make_unique<bool[]>(static_cast<std::size_t>(B * H * rows * blocks + 1));
    view = {memory.get(), {B, H, rows, blocks}};
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h) {
        // The lists of one batch entry and head follow those of the one before; none shares its last offset.
        offsets.push_back(static_cast<index_t>(columns.size()));
        for (index_t r = 0; r < rows; ++r) {
          index_t const rarity = draw.between(0, 4);  // rows without blocks, full rows, and between
          for (index_t c = 0; c < blocks; ++c) {
            view(b, h, r, c) = rarity != 0 && draw.one_in(rarity);
            if (view(b, h, r, c)) columns.push_back(c);
          }
          offsets.push_back(static_cast<index_t>(columns.size()));
        }
      }
  }

  bool operator()(index_t b, index_t h, index_t r, index_t c) const {
    return view(view.extent(0) == 1 ? 0 : b, view.extent(1) == 1 ? 0 : h, r, c);
  }
  heed::tensor_view<index_t const, 3> offset_view() const {
    return {offsets.data(), {view.extent(0), view.extent(1), view.extent(2) + 1}};
  }
};

/// Mostly all true or all false in a block.
std::unique_ptr<bool[]> random_inner(support::random& draw, index_t entries, index_t block) {
  auto inner = std::make_unique<bool[]>(static_cast<std::size_t>(entries * block + 1));
  for (index_t e = 0; e < entries; ++e) {
    index_t const kind = draw.between(0, 3);
    for (index_t n = 0; n < block; ++n)
      inner[static_cast<std::size_t>(e * block + n)] = kind == 0 || (kind > 1 && draw.one_in(2));
  }
  return inner;
}

}  // namespace

TEST_CASE("block tables and block-sparse rows", "[pattern][quick]") {
  for_each_seed("block tables", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const batches = 2, heads = 3, rows = draw.between(1, 60), keys = draw.between(1, 60);
    bool const equal = draw.one_in(2);
    random_cut const row_cut(draw, rows, batches, heads, equal);
    random_cut const key_cut(draw, keys, batches, heads, equal || draw.one_in(2));
    random_table const table(draw, batches, heads, row_cut.blocks(), key_cut.blocks());
    heed::block_table const booleans{
        .kept = table.view, .rows = row_cut.cut(), .keys = key_cut.cut()};
    heed::block_rows const lists{.offsets = table.offset_view(),
                                 .columns = table.columns,
                                 .column_count = key_cut.blocks(),
                                 .rows = row_cut.cut(),
                                 .keys = key_cut.cut()};
    heed::call_shape const shape{batches, batches, heads, rows, keys};
    booleans.check(shape);
    lists.check(shape);
    index_t const b = draw.between(0, batches - 1), h = draw.between(0, heads - 1);
    heed::place const where{.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys};
    auto const keep = [&](index_t p, index_t j) {
      index_t const r = reference::block_of(row_cut.bounds(b, h), p - (keys - rows));
      index_t const c = reference::block_of(key_cut.bounds(b, h), j);
      return r >= 0 && c >= 0 && table(b, h, r, c);
    };
    // The work is the sum of the blocks' areas, the ragged ends cut off.
    index_t area = 0;
    auto const extent = [](std::vector<index_t> const& bounds, index_t n, index_t end) {
      auto const i = static_cast<std::size_t>(n);
      return std::min(bounds[i + 1], end) - std::min(bounds[i], end);
    };
    for (index_t r = 0; r < row_cut.blocks(); ++r)
      for (index_t c = 0; c < key_cut.blocks(); ++c)
        if (table(b, h, r, c))
          area += extent(row_cut.bounds(b, h), r, rows) * extent(key_cut.bounds(b, h), c, keys);
    support::pattern_claims const exact{.exact_tiles = true, .exact_keys = true};
    std::string complaint =
        support::check_pattern(draw, booleans, where, keep, exact) +
        support::check_pattern(draw, lists, where, keep, exact) +
        support::check_pattern(draw, lists & heed::causal{}, where,
                               [&](index_t p, index_t j) { return keep(p, j) && j <= p; }) +
        support::check_pattern(
            draw, booleans | heed::sliding_window{5, 0}, where,
            [&](index_t p, index_t j) { return keep(p, j) || (j <= p && p - 5 <= j); });
    if (heed::kept_pairs(lists, where) != area) complaint += "the areas do not add up";
    return complaint;
  });
}

TEST_CASE("inner masks of both layouts", "[pattern][quick]") {
  for_each_seed("inner masks", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 60), keys = draw.between(1, 60);
    random_cut const row_cut(draw, rows, 1, 1, true), key_cut(draw, keys, 1, 1, true);
    random_table const table(draw, 1, 1, row_cut.blocks(), key_cut.blocks());
    index_t const Bq = row_cut.size(), Bk = key_cut.size();
    auto const entries = static_cast<index_t>(table.columns.size());
    auto const size = static_cast<std::size_t>(entries * Bq * Bk);
    auto const inner = random_inner(draw, entries, Bq * Bk);
    auto by_row = std::make_unique<bool[]>(size + 1), again = std::make_unique<bool[]>(size + 1);
    heed::convert_inner_mask(table.offsets, Bq, Bk, {inner.get(), size}, inner_layout::by_block,
                             {by_row.get(), size});
    heed::convert_inner_mask(table.offsets, Bq, Bk, {by_row.get(), size}, inner_layout::by_row,
                             {again.get(), size});
    std::string complaint;
    if (!std::equal(inner.get(), inner.get() + size, again.get()))
      complaint += "converting forth and back changes the mask\n";
    // By token row: for each block row, for each of its Bq token rows, the Bk bits of each listed block in turn.
    std::size_t at = 0;
    for (std::size_t r = 0; r + 1 < table.offsets.size(); ++r)
      for (index_t i = 0; i < Bq; ++i)
        for (index_t e = table.offsets[r]; e < table.offsets[r + 1]; ++e)
          for (index_t j = 0; j < Bk; ++j)
            if (by_row[at++] != inner[static_cast<std::size_t>((e * Bq + i) * Bk + j)])
              complaint = "the mask by rows is not in order\n";
    heed::block_rows lists{.offsets = table.offset_view(),
                           .columns = table.columns,
                           .column_count = key_cut.blocks(),
                           .rows = row_cut.cut(),
                           .keys = key_cut.cut(),
                           .inner = {inner.get(), inner_layout::by_block}};
    lists.check({1, 1, 1, rows, keys});
    heed::place const where{.rows = rows, .keys = keys};
    auto const keep = [&](index_t p, index_t j) {
      index_t const i = p - (keys - rows), r = reference::block_of(row_cut.bounds(0, 0), i),
                    c = reference::block_of(key_cut.bounds(0, 0), j);
      if (r < 0 || c < 0) return false;
      for (index_t e = table.offsets[static_cast<std::size_t>(r)];
           e < table.offsets[static_cast<std::size_t>(r) + 1]; ++e)
        if (table.columns[static_cast<std::size_t>(e)] == c)
          return inner[static_cast<std::size_t>((e * Bq + i % Bq) * Bk + j % Bk)];
      return false;
    };
    complaint += support::check_pattern(draw, lists, where, keep, {.exact_tiles = true});
    lists.inner = {by_row.get(), inner_layout::by_row};
    return complaint + support::check_pattern(draw, lists, where, keep, {.exact_tiles = true});
  });
}

TEST_CASE("blocks over whole sequences serve chunks, steps and packed documents",
          "[pattern][quick]") {
  for_each_seed("blocks elsewhere", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 50), keys = draw.between(1, n), rows = draw.between(1, keys);
    random_cut const row_cut(draw, n, 1, 1, draw.one_in(2));
    random_cut const key_cut(draw, n, 1, 1, draw.one_in(2));
    random_table const table(draw, 1, 1, row_cut.blocks(), key_cut.blocks());
    heed::block_table pattern{
        .kept = table.view, .rows = row_cut.cut(), .keys = key_cut.cut(), .first_position = 0};
    pattern.check({1, 1, 1, rows, keys});
    auto const keep = [&](index_t i, index_t j) {
      index_t const r = reference::block_of(row_cut.bounds(0, 0), i);
      index_t const c = reference::block_of(key_cut.bounds(0, 0), j);
      return r >= 0 && c >= 0 && table(0, 0, r, c);
    };
    support::pattern_claims const exact{.exact_tiles = true, .exact_keys = true};
    std::string complaint =
        support::check_pattern(draw, pattern, {.rows = rows, .keys = keys}, keep, exact);
    pattern.first_position = {};
    index_t const first_row = draw.between(0, n - 1), first_key = draw.between(0, n - 1);
    heed::place const document{.sequence = 1,
                               .rows = n - first_row,
                               .keys = n - first_key,
                               .first_row = first_row,
                               .first_key = first_key};
    index_t const off = document.keys - document.rows;
    return complaint +
           support::check_pattern(
               draw, pattern, document,
               [&](index_t p, index_t j) { return keep(p - off + first_row, j + first_key); },
               exact);
  });
}

TEST_CASE("block tables say what is wrong with them", "[pattern][errors][quick]") {
  heed::call_shape const shape{2, 2, 3, 10, 20};
  bool memory[64] = {};
  auto const table = [&](std::array<index_t, 4> const& extents, block_cut rows, block_cut keys) {
    return message_of(heed::block_table{.kept = {memory, extents}, .rows = rows, .keys = keys},
                      shape);
  };
  CHECK(table({1, 3, 3, 5}, {4}, {4}) == "");
  CHECK(table({1, 2, 3, 5}, {4}, {4}) ==
        "heed: block_table has shape [1, 2, 3, 5]; expected 1 or 3 on axis 1 (head)");
  CHECK(table({1, 1, 2, 5}, {4}, {4}) == "heed: block_table.rows has 2 blocks; expected 3 for 10");
  CHECK(table({1, 1, 3, 4}, {4}, {4}) == "heed: block_table.keys has 4 blocks; expected 5 for 20");
  CHECK(table({1, 1, 3, 5}, {0}, {4}) ==
        "heed: block_table.rows has blocks of size 0; expected a positive size, or bounds");
  std::vector<index_t> bounds{0, 4, 3, 10};
  CHECK(table({1, 1, 3, 5}, heed::cut_at(bounds), {4}) ==
        "heed: block_table.rows has bounds from 0 to 10, out of order; expected bounds that start "
        "at 0, do not decrease and end at 10");
  bounds = {0, 4, 4, 9};
  CHECK(table({1, 1, 3, 5}, heed::cut_at(bounds), {4}) ==
        "heed: block_table.rows has bounds from 0 to 9; expected bounds that start at 0, do not "
        "decrease and end at 10");
  bounds = {0, 4, 10};
  CHECK(table({1, 1, 3, 5}, heed::cut_at(bounds), {4}) ==
        "heed: block_table.rows has 3 bounds; expected 4 for 3 blocks");
  CHECK(table({1, 1, 3, 5}, {4, {bounds.data(), {1, 1, 3}}}, {4}) ==
        "heed: block_table.rows has blocks of size 4 and bounds; expected one of the two");

  std::vector<index_t> offsets{0, 2, 2, 3}, columns{1, 4, 0};
  auto const lists = [&](heed::inner_mask inner = {}, block_cut keys = {4}) {
    return message_of(heed::block_rows{.offsets = {offsets.data(), {1, 1, 4}},
                                       .columns = columns,
                                       .column_count = 5,
                                       .rows = {4},
                                       .keys = keys,
                                       .inner = inner},
                      shape);
  };
  CHECK(lists() == "");
  columns = {4, 1, 0};
  CHECK(lists() ==
        "heed: block row 0 (batch 0, head 0) of block_rows lists column 1 after 4; expected "
        "increasing columns");
  columns = {4, 4, 0};
  CHECK(lists() ==
        "heed: block row 0 (batch 0, head 0) of block_rows lists column 4 twice; expected "
        "increasing columns");
  columns = {1, 5, 0};
  CHECK(lists() ==
        "heed: block row 0 (batch 0, head 0) of block_rows lists column 5; expected 0 to 4");
  columns = {1, 2, 0};
  offsets = {0, 2, 1, 3};
  CHECK(lists() ==
        "heed: block row 1 (batch 0, head 0) of block_rows has the entries [2, 1); expected "
        "offsets from 0 to 3 that do not decrease");
  offsets = {0, 2, 2, 4};
  CHECK(lists() ==
        "heed: block row 2 (batch 0, head 0) of block_rows has the entries [2, 4); expected "
        "offsets from 0 to 3 that do not decrease");
  offsets = {0, 2, 2, 3};
  std::vector<index_t> const several{0, 3, 4, 5, 6, 20};
  CHECK(lists({memory, inner_layout::by_block}, heed::cut_at(several)) ==
        "heed: block_rows has an inner mask and blocks of several sizes; expected one size for "
        "the rows and one for the keys");
  CHECK_THROWS_WITH(
      heed::convert_inner_mask(offsets, 2, 2, {memory, 11}, inner_layout::by_block, {memory, 12}),
      "heed: an inner mask has 11 booleans; expected [3, 2, 2] (entry, row, column)");
}
