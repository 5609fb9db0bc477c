#include "reference/patterns/benchmark_masks.hpp"
#include "reference/patterns/written.hpp"
#include "support/pattern_check.hpp"

#include <heed/mechanism/benchmark_masks.hpp>
#include <heed/pattern/band.hpp>

#include <set>

namespace benchmark = heed::benchmark;
using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

reference::document_list random_documents(support::random& draw, index_t block) {
  reference::document_list docs{{0}};
  index_t const count = draw.between(1, 6);
  for (index_t g = 0; g < count; ++g)
    docs.c.push_back(docs.c.back() + block * draw.between(draw.one_in(4) ? 0 : 1, 12));
  if (docs.total() == 0) docs.c.back() = block;
  return docs;
}

/// Both forms of a mask, against the predicate and the work of the table.
std::string check_mask(support::random& draw, benchmark::mask const& mask,
                       reference::benchmark_mask const& expected, index_t n) {
  heed::place const where{.rows = n, .keys = n};
  heed::call_shape const shape{1, 1, 1, n, n};
  auto const columns = mask.as_column_ranges();
  mask.as_slices().check(shape);
  columns.check(shape);
  auto const bound = columns.bind(where);
  std::string complaint = support::check_pattern(
      draw, mask.as_slices(), where,
      [&](index_t p, index_t j) { return p >= 0 && p < n && expected.keep(p, j); },
      {.exact_tiles = true});
  index_t pairs = 0;
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < n; ++j) {
      bool const kept = expected.keep(i, j);
      if (bound.keep(i, j) != kept) complaint += "the column ranges differ\n";
      pairs += kept;
    }
  if (pairs != expected.work) complaint += "the table's formula is not the number of pairs\n";
  if (mask.work() != pairs) complaint += "work() is wrong\n";
  if (heed::kept_pairs(mask.as_slices(), n, n) != pairs) complaint += "the slices' pairs differ\n";
  if (heed::kept_pairs(columns, n, n) != pairs) complaint += "the column ranges' pairs differ\n";
  // Of two numbers a key, [LTS, LTE] if causal and [LTS, UTE] if not; where these are all there is to say.
  bool two_suffice = true;
  for (std::size_t j = 0; j < mask.numbers.size(); j += 4)
    two_suffice &= mask.causal ? mask.numbers[j + 2] == mask.numbers[j + 3]
                               : mask.numbers[j + 1] == n && mask.numbers[j + 2] == 0;
  if (two_suffice) {
    heed::column_ranges two = columns;
    two.columns = {mask.numbers.data(), {1, 1, n, 2}, {0, 0, 4, mask.causal ? 1 : 3}};
    two.check(shape);
    auto const bound_two = two.bind(where);
    for (index_t i = 0; i < n; ++i)
      for (index_t j = 0; j < n; ++j)
        if (bound_two.keep(i, j) != expected.keep(i, j)) complaint += "two numbers differ\n";
  } else if (expected.name != "global sliding window") {
    complaint += "two numbers a key are not enough\n";
  }
  return complaint.empty() ? "" : expected.name + ": " + complaint;
}

}  // namespace

TEST_CASE("the masks of the benchmark: predicates, slices, column ranges and work",
          "[mechanism][quick]") {
  for_each_seed("benchmark masks", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const block = draw.between(1, 8);
    auto const docs = random_documents(draw, block);
    index_t const n = docs.total(), prefix = draw.between(0, n + 3), reach = draw.between(0, n + 3);
    auto expected = reference::benchmark_masks(docs, prefix, reach);
    expected.push_back(reference::block_causal_document(docs, block));
    benchmark::mask const masks[] = {
        benchmark::full(n),
        benchmark::causal(n),
        benchmark::full_document(docs.c),
        benchmark::causal_document(docs.c),
        benchmark::share_question(docs.c),
        benchmark::causal_blockwise(docs.c),
        benchmark::prefix_lm_causal(n, prefix),
        benchmark::prefix_lm_document(docs.c, prefix),
        benchmark::window(n, reach),
        benchmark::causal_window(n, reach),
        benchmark::global_window(n, reach),
        benchmark::block_causal_document(docs.c, block),
    };
    REQUIRE(std::size(masks) == expected.size());
    std::string complaint;
    for (std::size_t m = 0; m < expected.size(); ++m)
      complaint += check_mask(draw, masks[m], expected[m], n);
    return complaint;
  });
}

TEST_CASE("a window is cut into at most three slices", "[mechanism][quick]") {
  for_each_seed("window slices", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 40), keys = draw.between(1, 40);
    index_t const left = draw.between(0, 50), right = draw.between(0, 50), off = keys - rows;
    auto const pieces = benchmark::window_slices(rows, keys, left, right);
    heed::slices const pattern{.list = pieces};
    pattern.check({1, 1, 1, rows, keys});
    std::string complaint =
        support::check_pattern(draw, pattern, {.rows = rows, .keys = keys},
                               [=](index_t p, index_t j) {
                                 return p >= off && p < keys && p - left <= j && j <= p + right;
                               },
                               {.exact_tiles = true});
    if (pieces.size() > 3) complaint += "more than three slices\n";
    if (heed::kept_pairs(pattern, rows, keys) !=
        heed::kept_pairs(heed::sliding_window{left, right}, rows, keys))
      complaint += "the pairs are not those of the window\n";
    return complaint;
  });
}

TEST_CASE("random blocks: a table, slices and the share of blocks asked for",
          "[mechanism][quick]") {
  for_each_seed("random blocks", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 100), heads = draw.between(1, 3);
    double const density = draw.one_of(std::array{0.0, 0.1, 0.3, 0.5, 1.0});
    auto const choice =
        draw.one_in(2) ? benchmark::block_choice::per_row : benchmark::block_choice::global;
    std::vector<index_t> bounds{0, n};
    for (index_t more = draw.between(0, 6); more > 0; --more) bounds.push_back(draw.between(0, n));
    std::sort(bounds.begin(), bounds.end());
    bool const equal = draw.one_in(2);
    index_t const block = draw.between(1, 30);
    auto const make = [&] {
      return equal ? benchmark::random_blocks(n, block, density, choice, heads, seed)
                   : benchmark::random_blocks(bounds, density, choice, heads, seed);
    };
    auto const blocks = make(), again = make();
    if (equal) {
      bounds = {0};
      while (bounds.back() < n) bounds.push_back(std::min(bounds.back() + block, n));
    }
    auto const pattern = blocks.pattern();
    pattern.check({1, 1, heads, n, n});
    auto const table = blocks.table();
    std::string complaint;
    auto const count = table.extent(2);
    auto const share = [&](index_t size) {
      return static_cast<index_t>(density * static_cast<double>(size) + 0.5);
    };
    for (index_t h = 0; h < heads; ++h) {
      index_t listed = 0, area = 0;
      for (index_t r = 0; r < count; ++r) {
        index_t in_row = 0;
        for (index_t c = 0; c < count; ++c) {
          in_row += table(0, h, r, c);
          if (table(0, h, r, c) != again.table()(0, h, r, c)) complaint = "other blocks\n";
          auto const size = [&](index_t b) {
            auto const at = static_cast<std::size_t>(b);
            return bounds[at + 1] - bounds[at];
          };
          if (table(0, h, r, c)) area += size(r) * size(c);
        }
        if (choice == benchmark::block_choice::per_row && in_row != share(count))
          complaint += "a row has another number of blocks\n";
        listed += in_row;
      }
      if (choice == benchmark::block_choice::global && listed != share(count * count))
        complaint += "the table has another number of blocks\n";
      heed::place const where{.head = h, .rows = n, .keys = n};
      if (heed::kept_pairs(pattern, where) != area) complaint += "the work is not the area\n";
      auto const pieces = blocks.as_slices(n, h);
      auto const keep = [&](index_t p, index_t j) {
        index_t const r = reference::block_of(bounds, p), c = reference::block_of(bounds, j);
        return r >= 0 && c >= 0 && table(0, h, r, c);
      };
      // A table of blocks of one size does not know where the rows end.
      auto const at_last = [&](index_t p) {
        return equal && p >= n && p < count * block ? n - 1 : p;
      };
      heed::slices{.list = pieces}.check({1, 1, heads, n, n});
      complaint += support::check_pattern(draw, heed::slices{.list = pieces}, where, keep) +
                   support::check_pattern(draw, pattern, where, [&](index_t p, index_t j) {
                     return keep(at_last(p), j);
                   });
    }
    return complaint;
  });
}

TEST_CASE("the random choice of blocks reaches every block", "[mechanism][quick]") {
  std::set<std::pair<index_t, index_t>> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    benchmark::random_blocks const blocks(30, 10, 0.33, benchmark::block_choice::per_row, 1, seed);
    for (index_t r = 0; r < 3; ++r)
      for (index_t c = 0; c < 3; ++c)
        if (blocks.table()(0, 0, r, c)) seen.insert({r, c});
  }
  CHECK(seen.size() == 9);
}

TEST_CASE("the masks of the benchmark say what is wrong with them", "[mechanism][errors][quick]") {
  std::vector<index_t> const falling{0, 5, 4}, late{1, 5}, odd{0, 6, 8};
  CHECK_THROWS_WITH(benchmark::full_document(falling),
                    "heed: the boundaries of documents are [0, 5, 4]; expected numbers that start "
                    "at 0 and do not decrease");
  CHECK_THROWS_AS(benchmark::share_question(late), heed::error);
  CHECK_THROWS_WITH(benchmark::block_causal_document(odd, 4),
                    "heed: a document ends at 6; expected a multiple of the block, 4");
  CHECK_THROWS_WITH(benchmark::block_causal_document(odd, 0),
                    "heed: a block has 0 tokens; expected at least one");
  CHECK_THROWS_WITH(benchmark::prefix_lm_causal(5, -1),
                    "heed: the prefix has -1 tokens; expected none or more");
  CHECK_THROWS_WITH(benchmark::window(5, -1),
                    "heed: a window reaches -1 to the left and -1 to the right; expected numbers "
                    "that are not negative");
  CHECK_THROWS_AS(benchmark::random_blocks(8, 4, 1.5, benchmark::block_choice::global, 1, 0),
                  heed::error);
}
