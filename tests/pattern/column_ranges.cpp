#include "reference/patterns/written.hpp"
#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/column_ranges.hpp>

#include <memory>

using heed::coverage;
using heed::index_t;
using reference::hidden_rows;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

/// Random numbers [batch or 1, head or 1, key, 4 or 2], with gaps in memory.
class random_columns {
 public:
  random_columns(support::random& draw, index_t batches, index_t heads, index_t rows, index_t keys,
                 bool causal)
      : causal_(causal) {
    index_t const B = draw.one_in(2) ? 1 : batches, H = draw.one_in(2) ? 1 : heads;
    index_t const numbers = draw.one_in(2) ? 4 : 2, pitch = numbers + draw.between(0, 2);
    memory_ = std::make_unique<index_t[]>(static_cast<std::size_t>(B * H * keys * pitch + 1));
    view_ = {memory_.get(), {B, H, keys, numbers}, {H * keys * pitch, keys * pitch, pitch, 1}};
    // Neighbours are mostly alike, so that tiles can be full or empty.
    index_t some[4] = {};
    for (index_t b = 0; b < B; ++b)
      for (index_t h = 0; h < H; ++h)
        for (index_t j = 0; j < keys; ++j) {
          if (j == 0 || draw.one_in(8)) {
            for (index_t& each : some) each = draw.between(0, rows);
            for (int n : {0, 2})
              if (some[n] > some[n + 1] || draw.one_in(3)) std::swap(some[n], some[n + 1]);
            for (int n : {0, 2})
              if (some[n] > some[n + 1]) std::swap(some[n], some[n + 1]);
          }
          for (index_t n = 0; n < numbers; ++n) view_(b, h, j, n) = some[n];
        }
  }

  heed::tensor_view<index_t const, 4> view() const { return view_; }

  /// The four numbers of a key.
  hidden_rows at(index_t b, index_t h, index_t j) const {
    b = view_.extent(0) == 1 ? 0 : b;
    h = view_.extent(1) == 1 ? 0 : h;
    auto const number = [&](index_t n) { return view_(b, h, j, n); };
    if (view_.extent(3) == 4) return {number(0), number(1), number(2), number(3)};
    return causal_ ? hidden_rows{number(0), number(1), 0, 0}
                   : hidden_rows{number(0), 1000, -1000, number(1)};
  }

 private:
  bool causal_;
  std::unique_ptr<index_t[]> memory_;
  heed::tensor_view<index_t, 4> view_;
};

}  // namespace

TEST_CASE("column ranges hide rows from keys", "[pattern][quick]") {
  for_each_seed("column ranges", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const batches = 2, heads = 3, keys = draw.between(1, 60);
    index_t const rows = draw.one_in(2) ? keys : draw.between(1, 60), off = keys - rows;
    bool const causal = draw.one_in(2);
    random_columns const columns(draw, batches, heads, rows, keys, causal);
    heed::column_ranges const pattern{.columns = columns.view(), .causal = causal};
    pattern.check({batches, batches, heads, rows, keys});
    index_t const b = draw.between(0, batches - 1), h = draw.between(0, heads - 1);
    // The flag hides keys after the query's position, which is its row where rows = keys.
    auto const keep = [&](index_t p, index_t j) {
      return columns.at(b, h, j).keep(p - off, j - off, causal);
    };
    heed::place const where{.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys};
    return support::check_pattern(draw, pattern, where, keep, {.exact_tiles = true}) +
           support::check_pattern(draw, pattern & heed::sliding_window{.left = 9}, where,
                                  [&](index_t p, index_t j) { return keep(p, j) && p - 9 <= j; });
  });
}

TEST_CASE("column ranges agree with the class from the extremes of a tile", "[pattern][quick]") {
  for_each_seed("extremes of column ranges", 500, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 60);
    bool const causal = draw.one_in(2);
    random_columns const columns(draw, 1, 1, n, n, causal);
    auto const bound = heed::column_ranges{.columns = columns.view(), .causal = causal}.bind(
        {.rows = n, .keys = n});
    std::string complaint;
    for (int tile = 0; tile < 50; ++tile) {
      index_t const i0 = draw.between(0, n - 1), i1 = draw.between(i0 + 1, n);
      index_t const j0 = draw.between(0, n - 1), j1 = draw.between(j0 + 1, n);
      hidden_rows least = columns.at(0, 0, j0), most = least;
      for (index_t j = j0; j < j1; ++j) {
        hidden_rows const x = columns.at(0, 0, j);
        least = {std::min(least.lts, x.lts), std::min(least.lte, x.lte), std::min(least.uts, x.uts),
                 std::min(least.ute, x.ute)};
        most = {std::max(most.lts, x.lts), std::max(most.lte, x.lte), std::max(most.uts, x.uts),
                std::max(most.ute, x.ute)};
      }
      bool const skip = (most.lts <= i0 && least.lte >= i1) ||
                        (most.uts <= i0 && least.ute >= i1) || (causal && j0 > i1 - 1);
      bool const full = (least.lts >= i1 || most.lte <= i0) &&
                        (least.uts >= i1 || most.ute <= i0) && (!causal || j1 - 1 <= i0);
      coverage const said = bound.cover({i0, i1}, {j0, j1});
      if (skip && said != coverage::none) complaint += "an empty tile is not skipped\n";
      if (full && said != coverage::all) complaint += "a full tile is not full\n";
    }
    return complaint;
  });
}

TEST_CASE("column ranges over whole sequences serve chunks, steps and packed documents",
          "[pattern][quick]") {
  for_each_seed("column ranges elsewhere", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 50), keys = draw.between(1, n), rows = draw.between(1, keys);
    bool const causal = draw.one_in(2);
    random_columns const columns(draw, 1, 1, n, n, causal);
    heed::column_ranges const pattern{
        .columns = columns.view(), .causal = causal, .first_position = 0};
    pattern.check({1, 1, 1, rows, keys});
    std::string complaint = support::check_pattern(
        draw, pattern, {.rows = rows, .keys = keys},
        [&](index_t p, index_t j) { return columns.at(0, 0, j).keep(p, j, causal); },
        {.exact_tiles = true});
    index_t const first_row = draw.between(0, n - 1), first_key = draw.between(0, n - 1);
    heed::place const document{.sequence = 1,
                               .rows = n - first_row,
                               .keys = n - first_key,
                               .first_row = first_row,
                               .first_key = first_key};
    index_t const off = document.keys - document.rows;
    return complaint +
           support::check_pattern(
               draw, heed::column_ranges{columns.view(), causal}, document,
               [&](index_t p, index_t j) {
                 return columns.at(0, 0, j + first_key).keep(p - off + first_row, 0, false) &&
                        !(causal && j > p);
               },
               {.exact_tiles = true});
  });
}

TEST_CASE("column ranges say what is wrong with them", "[pattern][errors][quick]") {
  heed::call_shape const shape{2, 2, 3, 10, 4};
  std::vector<index_t> numbers(4 * 2 * 3 * 4, 0);
  auto const view = [&](std::array<index_t, 4> const& extents) {
    return heed::column_ranges{.columns = {numbers.data(), extents}};
  };
  CHECK(message_of(view({1, 1, 4, 4}), shape) == "");
  CHECK(message_of(view({2, 3, 4, 4}), shape) == "");
  CHECK(message_of(view({1, 1, 4, 3}), shape) ==
        "heed: column_ranges has shape [1, 1, 4, 3]; expected 4 numbers or 2 for each key on the "
        "last axis");
  CHECK(message_of(view({3, 1, 4, 4}), shape) ==
        "heed: column_ranges has shape [3, 1, 4, 4]; expected 1 or 2 on axis 0 (batch)");
  CHECK(message_of(view({1, 2, 4, 4}), shape) ==
        "heed: column_ranges has shape [1, 2, 4, 4]; expected 1 or 3 on axis 1 (head)");
  CHECK(message_of(view({1, 1, 5, 4}), shape) ==
        "heed: column_ranges has shape [1, 1, 5, 4]; expected 4 keys on axis 2");
  numbers[4 * 2] = 7;
  numbers[4 * 2 + 1] = 5;
  CHECK(message_of(view({1, 1, 4, 4}), shape) ==
        "heed: column_ranges hides key 2 of head 0, batch 0, from the rows [7, 5); expected 0 <= "
        "start <= end");
  // Two numbers are a range if causal, and the outer ends of two otherwise.
  heed::column_ranges two{.columns = {numbers.data(), {1, 1, 4, 2}, {0, 0, 4, 1}}};
  CHECK(message_of(two, shape) == "");
  two.causal = true;
  CHECK(message_of(two, shape).find("hides key 2") != std::string::npos);
}
