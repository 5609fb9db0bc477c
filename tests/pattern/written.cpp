#include "reference/patterns/written.hpp"
#include "reference/patterns/benchmark_masks.hpp"
#include "support/attention_check.hpp"
#include "support/random.hpp"

#include <heed/mechanism/benchmark_masks.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/bit_mask.hpp>
#include <heed/pattern/block_lists.hpp>
#include <heed/pattern/bool_mask.hpp>

#include <memory>

// Patterns that are written down, and functions, through the engine: forward, backward and decode.

namespace benchmark = heed::benchmark;
using heed::index_t;
using heed::slice;
using support::for_each_seed;
using support::seed_t;

namespace {

using keep_t = std::function<bool(index_t, index_t, index_t, index_t)>;

struct lengths {
  index_t rows, keys, batches, heads;
};

lengths random_lengths(support::random& draw) {
  index_t const rows = draw.between(1, 120);
  return {rows, draw.one_in(2) ? rows : draw.between(rows, 300), draw.between(1, 2), 2};
}

std::string check(seed_t seed, char const* name, heed::any_pattern const& pattern, lengths const& n,
                  keep_t const& keep, bool decodes = true) {
  std::string const complaint = support::attention_complaint(seed, {.pattern = pattern,
                                                                    .keep = keep,
                                                                    .rows = n.rows,
                                                                    .keys = n.keys,
                                                                    .batches = n.batches,
                                                                    .heads = n.heads,
                                                                    .decodes = decodes});
  return complaint.empty() ? "" : name + (": " + complaint);
}

/// Random booleans, of which most rows of blocks have few.
std::unique_ptr<bool[]> random_booleans(support::random& draw, index_t count) {
  auto all = std::make_unique<bool[]>(static_cast<std::size_t>(count + 1));
  index_t rarity = 1;
  for (index_t n = 0; n < count; ++n) {
    if (draw.one_in(10)) rarity = draw.between(1, 8);
    all[static_cast<std::size_t>(n)] = draw.one_in(rarity);
  }
  return all;
}

/// Blocks of `pairs`, all of them or with an inner mask; empty rows of blocks are common.
std::string check_blocks(seed_t seed, support::random& draw, lengths const& n, bool inner) {
  index_t const Bq = draw.between(1, 40), Bk = draw.between(1, 40), off = n.keys - n.rows;
  index_t const rows = (n.rows + Bq - 1) / Bq, columns = (n.keys + Bk - 1) / Bk;
  auto const kept = random_booleans(draw, n.heads * rows * columns);
  heed::tensor_view<bool, 4> const table(kept.get(), {1, n.heads, rows, columns});
  for (index_t r = 0; r < rows; ++r)
    if (draw.one_in(4))
      for (index_t c = 0; c < columns; ++c) table(0, 0, r, c) = false;
  std::vector<index_t> offsets, list;
  for (index_t h = 0; h < n.heads; ++h) {
    offsets.push_back(static_cast<index_t>(list.size()));
    for (index_t r = 0; r < rows; ++r) {
      for (index_t c = 0; c < columns; ++c)
        if (table(0, h, r, c)) list.push_back(c);
      offsets.push_back(static_cast<index_t>(list.size()));
    }
  }
  auto const bits = random_booleans(draw, static_cast<index_t>(list.size()) * Bq * Bk);
  heed::block_table const booleans{
      .kept = table, .rows = {Bq}, .keys = {Bk}, .first_position = off};
  heed::block_rows const lists{.offsets = {offsets.data(), {1, n.heads, rows + 1}},
                               .columns = list,
                               .column_count = columns,
                               .rows = {Bq},
                               .keys = {Bk},
                               .inner = {inner ? bits.get() : nullptr},
                               .first_position = off};
  keep_t const keep = [&](index_t, index_t h, index_t p, index_t j) {
    index_t const i = p - off;
    if (!table(0, h, i / Bq, j / Bk)) return false;
    index_t const from = offsets[static_cast<std::size_t>(h * (rows + 1) + i / Bq)];
    auto const entry = std::find(list.begin() + from, list.end(), j / Bk) - list.begin();
    return !inner || bits[static_cast<std::size_t>((entry * Bq + i % Bq) * Bk + j % Bk)];
  };
  if (inner) return check(seed, "blocks with an inner mask", lists, n, keep);
  return check(seed, "lists of blocks", lists, n, keep) +
         check(seed, "blocks", booleans & heed::causal{}, n,
               [&](index_t b, index_t h, index_t p, index_t j) {
                 return keep(b, h, p, j) && j <= p;
               });
}

std::string check_masks(seed_t seed, support::random& draw, lengths const& n) {
  index_t const off = n.keys - n.rows, area = n.rows * n.keys;
  auto const kept = random_booleans(draw, n.batches * area);
  std::vector<std::uint8_t> bytes;
  std::vector<index_t> offsets{0};
  for (index_t b = 0; b < n.batches; ++b) {
    bytes.resize(bytes.size() + static_cast<std::size_t>((area + 7) / 8));
    for (index_t t = 0; t < area; ++t)
      if (kept[static_cast<std::size_t>(b * area + t)]) {
        auto& byte = bytes[static_cast<std::size_t>(offsets.back() + t / 8)];
        byte = static_cast<std::uint8_t>(byte | 1u << (t % 8));
      }
    offsets.push_back(static_cast<index_t>(bytes.size()));
  }
  keep_t const keep = [&](index_t b, index_t, index_t p, index_t j) {
    return kept[static_cast<std::size_t>(b * area + (p - off) * n.keys + j)];
  };
  return check(seed, "booleans",
               heed::bool_mask{.kept = {kept.get(), {n.batches, 1, n.rows, n.keys}},
                               .first_position = off},
               n, keep) +
         check(seed, "bits",
               heed::bit_mask{.bytes = bytes, .offsets = offsets, .first_position = off}, n, keep);
}

std::string check_functions(seed_t seed, support::random& draw, lengths const& n) {
  index_t const step = draw.between(1, 5), reach = draw.between(1, 100);
  auto const keep = [=](index_t b, index_t h, index_t p, index_t j) {
    return (p - j) % (step + b) == 0 && j <= p + h && p - reach <= j;
  };
  auto const pattern = heed::mask_of(keep);
  heed::block_size const size{draw.between(1, 60), draw.between(1, 60)};
  auto const classes = heed::classify(pattern, n.rows, n.keys, size, n.batches, n.heads);
  heed::block_lists const lists = heed::list_key_blocks(classes);
  auto const again = heed::classes_of(lists.views(), n.rows, n.keys, size);
  return check(seed, "a function", pattern, n, keep) +
         check(seed, "a classified function", heed::classified(pattern, classes), n, keep) +
         check(seed, "lists of a function's blocks", heed::classified(pattern, again), n, keep);
}

}  // namespace

TEST_CASE("attention of blocks, masks and functions, forward, backward and decoded",
          "[pattern][quick]") {
  for_each_seed("attention of blocks", 60, [](seed_t seed) {
    support::random draw(seed);
    lengths const n = random_lengths(draw);
    switch (draw.between(0, 3)) {
      case 0:
        return check_blocks(seed, draw, n, false);
      case 1:
        return check_blocks(seed, draw, n, true);
      case 2:
        return check_masks(seed, draw, n);
      default:
        return check_functions(seed, draw, n);
    }
  });
}

TEST_CASE("attention of the benchmark's masks, as slices and as column ranges",
          "[pattern][quick]") {
  for_each_seed("attention of the benchmark", 36, [](seed_t seed) {
    support::random draw(seed);
    index_t const block = draw.between(1, 30);
    reference::document_list docs{{0}};
    for (index_t g = draw.between(1, 4); g > 0; --g)
      docs.c.push_back(docs.c.back() + block * draw.between(1, 4));
    index_t const n = docs.total(), prefix = draw.between(0, n), reach = draw.between(0, 60);
    auto expected = reference::benchmark_masks(docs, prefix, reach);
    expected.push_back(reference::block_causal_document(docs, block));
    auto const which = static_cast<std::size_t>(draw.between(0, 11));
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
    heed::slices pieces = masks[which].as_slices();
    heed::column_ranges columns = masks[which].as_column_ranges();
    pieces.first_position = columns.first_position = 0;
    keep_t const keep = [&](index_t, index_t, index_t p, index_t j) {
      return expected[which].keep(p, j);
    };
    lengths const square{n, n, 1, 2};
    std::string const complaint = check(seed, "slices", pieces, square, keep) +
                                  check(seed, "column ranges", columns, square, keep);
    return complaint.empty() ? "" : expected[which].name + ", " + complaint;
  });
}
