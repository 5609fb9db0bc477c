#include "reference/patterns/groups.hpp"
#include "support/pattern_check.hpp"

#include <heed/mechanism/block_attention.hpp>
#include <heed/mechanism/demonstration_blocks.hpp>
#include <heed/mechanism/fifo_memory.hpp>
#include <heed/mechanism/parallel_contexts.hpp>
#include <heed/mechanism/shifted_groups.hpp>
#include <heed/pattern/count.hpp>

#include <memory>
#include <numeric>

// Groups of tokens in language models: patterns, numbers of pairs, identities, what surrounds them.

using heed::index_t;
using heed::kept_pairs;
using support::check_pattern;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr index_t triangle(index_t n) {
  return n * (n + 1) / 2;
}

std::vector<index_t> starts_of(std::vector<index_t> const& lengths) {
  std::vector<index_t> starts(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), starts.begin(), index_t{0});
  return starts;
}

heed::tensor_view<index_t const, 2> one_batch(std::vector<index_t> const& starts) {
  return {starts.data(), {1, static_cast<index_t>(starts.size())}};
}

std::vector<index_t> random_lengths(support::random& draw, index_t most) {
  std::vector<index_t> lengths(static_cast<std::size_t>(draw.between(1, most)));
  for (index_t& length : lengths) length = draw.between(0, 9);
  lengths.back() = draw.between(1, 9);
  return lengths;
}

index_t total(std::vector<index_t> const& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), index_t{0});
}

/// Whether two patterns keep the same pairs of N tokens.
template <class A, class B>
bool same_pairs(A const& a, B const& b, index_t N, index_t head = 0) {
  heed::place const where{.head = head, .rows = N, .keys = N};
  auto const x = heed::bind_at(a, where);
  auto const y = heed::bind_at(b, where);
  for (index_t i = 0; i < N; ++i)
    for (index_t j = 0; j < N; ++j)
      if (x.keep(i, j) != y.keep(i, j)) return false;
  return true;
}

}  // namespace

TEST_CASE("shifted groups", "[mechanism][quick]") {
  for_each_seed("shifted groups", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const G = 2 * draw.between(1, 8), N = G * draw.between(1, 5),
                  sinks = draw.between(0, 5);
    std::string complaint;
    for (index_t head : {0, 1}) {
      heed::place const where{.head = head, .rows = N, .keys = N};
      bool const shifted = head == 1;
      heed::shifted_groups const s2{.size = G, .shifted_from = 1};
      auto const bound = [&](heed::shifted_groups const& p) { return heed::bind_at(p, where); };
      for (index_t i = 0; i < N; ++i)
        for (index_t j = 0; j < N; ++j) {
          if (bound(s2).keep(i, j) != reference::shifted_groups(i, j, G, shifted))
            complaint += "S2 is wrong\n";
          if (bound({.size = G, .shifted_from = 1, .sinks = sinks}).keep(i, j) !=
              reference::shifted_groups(i, j, G, shifted, sinks))
            complaint += "sink-fixed is wrong\n";
          bool const rolled = shifted ? reference::rolled_groups(i, j, N, G)
                                      : reference::shifted_groups(i, j, G, false);
          if (bound({.size = G, .shifted_from = 1, .wrap = true}).keep(i, j) != rolled)
            complaint += "the rolling form is wrong\n";
          // The wrapping variant differs only in the first rows.
          if (i >= G / 2 && rolled != reference::shifted_groups(i, j, G, shifted))
            complaint += "wrapping changes more than the first rows\n";
        }
      for (bool wrap : {false, true}) {
        heed::shifted_groups const p{.size = G, .shifted_from = 1, .sinks = sinks, .wrap = wrap};
        complaint += check_pattern(draw, p, where, [&](index_t i, index_t j) {
          // keep() itself was compared above; here it is the measure of everything else.
          return bound(p).keep(i, j);
        });
      }
      index_t const pairs =
          shifted ? 2 * triangle(G / 2) + (N / G - 1) * triangle(G) : N / G * triangle(G);
      if (kept_pairs(s2, where) != pairs) complaint += "the number of pairs is wrong\n";
    }
    return complaint;
  });
}

TEST_CASE("identities of shifted groups", "[mechanism][quick]") {
  index_t const N = 24;
  CHECK(same_pairs(heed::shifted_groups{.size = N, .shifted_from = 1}, heed::causal{}, N, 0));
  CHECK_FALSE(same_pairs(heed::shifted_groups{.size = N, .shifted_from = 1}, heed::causal{}, N, 1));
  bool const heads[] = {false, true, false, true};
  for (index_t head = 0; head < 4; ++head)
    CHECK(same_pairs(heed::shifted_groups{.size = 6, .shifted_from = 0, .shifted = heads},
                     heed::shifted_groups{.size = 6, .shifted_from = head % 2 == 1 ? 0 : 4}, N,
                     head));
  CHECK(same_pairs(heed::shifted_groups{.size = N, .shifted_from = 9, .sinks = 4}, heed::causal{},
                   N));

  heed::call_shape const shape{.batches = 1, .sequences = 1, .heads = 4, .rows = N, .keys = N};
  CHECK_THROWS_WITH((heed::shifted_groups{.size = 3, .shifted_from = 2}.check(shape)),
                    "heed: shifted_groups.size is 3; expected an even number above 0");
  CHECK_THROWS_WITH((heed::shifted_groups{.size = 10, .shifted_from = 2}.check(shape)),
                    "heed: shifted_groups.size is 10; expected a divisor of the 24 tokens");
  CHECK_THROWS_WITH(
      (heed::shifted_groups{.size = 6, .shifted_from = 2, .shifted = {heads, 3}}.check(shape)),
      "heed: shifted_groups.shifted has shape [3]; expected [4] (heads)");
  heed::call_shape step = shape;
  step.rows = 1;
  CHECK_THROWS_WITH((heed::shifted_groups{.size = 6, .shifted_from = 2}.check(step)),
                    "heed: shifted_groups is given 1 rows and 24 keys; expected as many");
  CHECK_NOTHROW((heed::shifted_groups{.size = 6, .shifted_from = 2}.check(shape)));
}

TEST_CASE("blocks of a prompt", "[mechanism][quick]") {
  for_each_seed("block attention", 300, [](seed_t seed) {
    support::random draw(seed);
    auto const lengths = random_lengths(draw, 6);
    auto const starts = starts_of(lengths);
    index_t const N = total(lengths);
    heed::place const where{.rows = draw.between(1, N), .keys = N};
    auto const pattern = heed::block_attention(one_batch(starts));
    std::string complaint = check_pattern(draw, pattern, where, [&](index_t i, index_t j) {
      return reference::block_attention(i, j, lengths);
    });
    index_t pairs = lengths.back() * (N - lengths.back());
    for (index_t n : lengths) pairs += triangle(n);
    if (kept_pairs(pattern, N, N) != pairs) complaint += "the number of pairs is wrong\n";
    if (lengths.size() <= 2 && !same_pairs(pattern, heed::causal{}, N))
      complaint += "one block or two are causal\n";
    return complaint;
  });
}

TEST_CASE("blocks of lengths 1, 2 and 1", "[mechanism][quick]") {
  std::vector<index_t> const starts{0, 1, 3};
  auto const bound =
      heed::bind_at(heed::block_attention(one_batch(starts)), heed::place{.rows = 4, .keys = 4});
  std::string rows;
  for (index_t i = 0; i < 4; ++i)
    for (index_t j = 0; j < 4; ++j) rows += bound.keep(i, j) ? '1' : '0';
  CHECK(rows == "1000010001101111");
}

TEST_CASE("contexts beside each other", "[mechanism][quick]") {
  for_each_seed("parallel contexts", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const shared = draw.one_in(3) ? 0 : draw.between(1, 6);
    auto pieces = random_lengths(draw, 5);
    index_t const tail = draw.between(1, 9), N = shared + total(pieces) + tail;
    std::vector<index_t> lengths = pieces;
    lengths.insert(lengths.begin(), shared);
    lengths.push_back(tail);
    auto const starts = starts_of(lengths);
    auto const segments = static_cast<index_t>(starts.size());
    std::vector<bool> selected;
    auto const marks = std::make_unique<bool[]>(starts.size());
    for (std::size_t s = 0; s < starts.size(); ++s) {
      marks[s] = draw.one_in(2);
      if (s > 0 && s + 1 < starts.size()) selected.push_back(marks[s]);
    }
    heed::place const where{.rows = draw.between(1, N), .keys = N};
    auto const all = heed::parallel_contexts(one_batch(starts));
    auto const some = heed::parallel_contexts(
        one_batch(starts), heed::tensor_view<bool const, 3>(marks.get(), {1, 1, segments}));
    std::vector<bool> const every(pieces.size(), true);
    std::string complaint =
        check_pattern(draw, all, where,
                      [&](index_t i, index_t j) {
                        return reference::parallel_contexts(i, j, shared, pieces, every);
                      }) +
        check_pattern(draw, some, where, [&](index_t i, index_t j) {
          return reference::parallel_contexts(i, j, shared, pieces, selected);
        });
    auto const by_row = std::make_unique<bool[]>(static_cast<std::size_t>(where.rows * segments));
    for (index_t n = 0; n < where.rows * segments; ++n)
      by_row[static_cast<std::size_t>(n)] = draw.one_in(2);
    heed::tensor_view<bool const, 4> const by_row_view(by_row.get(), {1, 1, where.rows, segments});
    complaint +=
        check_pattern(draw, heed::parallel_contexts(one_batch(starts), by_row_view), where,
                      [&](index_t i, index_t j) {
                        index_t const row = i - (N - where.rows);
                        std::vector<bool> chosen;
                        for (std::size_t p = 0; p < pieces.size(); ++p)
                          chosen.push_back(row >= 0 && row < where.rows &&
                                           by_row_view(0, 0, row, static_cast<index_t>(p) + 1));
                        return reference::parallel_contexts(i, j, shared, pieces, chosen);
                      });
    if (shared == 0 && !same_pairs(all, heed::block_attention(one_batch(starts)), N))
      complaint += "with nothing shared and all selected it is block attention\n";
    index_t pairs =
        shared * (N - shared - tail) + triangle(shared) + triangle(tail) + tail * shared;
    for (std::size_t p = 0; p < pieces.size(); ++p)
      pairs += triangle(pieces[p]) + (selected[p] ? tail * pieces[p] : 0);
    if (kept_pairs(some, N, N) != pairs) complaint += "the number of pairs is wrong\n";

    for (bool after_all : {false, true}) {
      std::vector<index_t> positions(static_cast<std::size_t>(N));
      heed::parallel_positions(
          starts, positions,
          after_all ? heed::tail_position::after_all : heed::tail_position::after_longest_piece);
      index_t const longest = *std::max_element(pieces.begin(), pieces.end());
      std::vector<index_t> expected;
      for (index_t i = 0; i < shared; ++i) expected.push_back(i);
      for (index_t n : pieces)
        for (index_t i = 0; i < n; ++i) expected.push_back(shared + i);
      for (index_t i = 0; i < tail; ++i)
        expected.push_back(shared + (after_all ? total(pieces) : longest) + i);
      if (positions != expected) complaint += "positions are wrong\n";
    }
    return complaint;
  });
  bool const selection[8] = {};
  std::vector<index_t> const three{0, 1, 2};
  CHECK_THROWS_WITH(heed::parallel_contexts(
                        one_batch(three), heed::tensor_view<bool const, 4>(selection, {1, 1, 2, 4}))
                        .check({.batches = 1, .sequences = 1, .heads = 1, .rows = 2, .keys = 3}),
                    "heed: the selection of parallel_contexts has shape [1, 1, 2, 4]; expected [1 "
                    "or 1, 1 or 1, 2, 3] "
                    "(batch, head, row, segment)");
  std::vector<index_t> const starts{0, 4, 3};
  std::vector<index_t> positions(5);
  CHECK_THROWS_WITH(heed::parallel_positions(starts, positions),
                    "heed: parallel_positions is given starts [0, 4, 3] for 5 tokens; expected at "
                    "least two that start at 0, do not decrease and lie inside");
}

TEST_CASE("blocks of demonstrations", "[mechanism][quick]") {
  for_each_seed("demonstrations", 300, [](seed_t seed) {
    support::random draw(seed);
    auto const lengths = random_lengths(draw, 9);
    auto const starts = starts_of(lengths);
    index_t const N = total(lengths), anchors = draw.between(0, 3), reach = draw.between(0, 4);
    heed::place const where{.rows = draw.between(1, N), .keys = N};
    auto const pattern = heed::demonstration_blocks(one_batch(starts), anchors, reach);
    std::string complaint = check_pattern(draw, pattern, where, [&](index_t i, index_t j) {
      return reference::demonstration_blocks(i, j, lengths, anchors, reach);
    });
    index_t pairs = 0;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      pairs += triangle(lengths[b]);
      for (std::size_t e = 0; e < b; ++e)
        if (static_cast<index_t>(e) < anchors || static_cast<index_t>(b - e) <= reach)
          pairs += lengths[b] * lengths[e];
    }
    if (kept_pairs(pattern, N, N) != pairs) complaint += "the number of pairs is wrong\n";
    if (!same_pairs(heed::demonstration_blocks(one_batch(starts), anchors, 9), heed::causal{}, N))
      complaint += "with a reach of all blocks it is causal\n";
    if (!same_pairs(
            heed::demonstration_blocks(one_batch(starts), 0, 0),
            heed::causal{} & heed::by_segments{heed::sliding_window{0, 0}, one_batch(starts)}, N))
      complaint += "without anchors and reach blocks are blind to each other\n";
    return complaint;
  });
}

TEST_CASE("demonstrations are chosen and laid out", "[mechanism][quick]") {
  std::vector<float> const scores{9, 1, 3, 3, 2, 3};
  auto const chosen = [&](index_t count, index_t anchors) {
    return heed::choose_demonstrations(std::span<float const>(scores), count, anchors);
  };
  CHECK(chosen(2, 1) == std::vector<index_t>{0, 2, 3});  // the lower one of three equals stays out
  CHECK(chosen(1, 2) == std::vector<index_t>{0, 1, 2});
  CHECK(chosen(0, 0).empty());
  CHECK(chosen(99, 1) == std::vector<index_t>{0, 1, 2, 3, 4, 5});

  // Three blocks of 2, 3 and 1 rows, of which the first and the last follow each other.
  std::vector<double> rows(6 * 4), memory(8 * 4), values(8 * 4);
  std::iota(rows.begin(), rows.end(), 1.0);
  auto const keys = heed::bnhd(rows.data(), 1, 6, 1, 4);
  heed::kv_cache cache(heed::bnhd(memory.data(), 1, 8, 1, 4),
                       heed::bnhd(values.data(), 1, 8, 1, 4));
  std::vector<index_t> const starts{0, 2, 5}, list{0, 2}, wrong{3};
  heed::append_demonstrations(cache, keys, keys, starts, list, {});
  REQUIRE(cache.length() == 3);
  double expected[4];
  heed::rotate({}, keys.slice(1, 5, 1), heed::bnhd(expected, 1, 1, 1, 4), 2);
  for (index_t d = 0; d < 4; ++d) {
    CHECK(cache.keys()(0, 2, 0, d) == expected[d]);
    CHECK(cache.values()(0, 2, 0, d) == keys(0, 5, 0, d));
    CHECK(cache.keys()(0, 0, 0, d) == keys(0, 0, 0, d));
  }
  CHECK_THROWS_WITH(heed::append_demonstrations(cache, keys, keys, starts, wrong, {}),
                    "heed: append_demonstrations is given block 3; expected 0 to 2");
  std::vector<index_t> const many{0, 1, 2};
  CHECK_THROWS_WITH(
      heed::append_demonstrations(cache, keys, keys, starts, many, {}),
      "heed: the chosen demonstrations have 6 positions; the cache has room for 5 more");
}

TEST_CASE("blocks that were cached alone are rotated to their place", "[mechanism][quick]") {
  // Keys kept as rotated from 0 on and appended at their offset are those that were rotated in place.
  for_each_seed("cached blocks", 50, [](seed_t seed) {
    support::random draw(seed);
    auto const lengths = random_lengths(draw, 6);
    index_t const N = total(lengths), D = 8;
    std::vector<double> raw(static_cast<std::size_t>(N * D)), kept(raw), placed(raw), memory(raw),
        values(raw);
    for (double& x : raw) x = draw.normal();
    auto const view = [&](std::vector<double>& x) { return heed::bnhd(x.data(), 1, N, 1, D); };
    heed::rotary const how{.interleaved = draw.one_in(2)};
    std::vector<index_t> positions(static_cast<std::size_t>(N));
    std::iota(positions.begin(), positions.end(), 0);
    heed::rotate(how, view(raw), view(placed), positions);
    heed::kv_cache cache(view(memory), view(values));
    for (index_t length : lengths) {
      index_t const at = cache.length();
      auto const stored = view(kept).slice(1, at, length);
      heed::rotate(how, view(raw).slice(1, at, length), stored,
                   std::span<index_t const>(positions).first(static_cast<std::size_t>(length)));
      cache.append(stored, view(raw).slice(1, at, length), how, at);
    }
    double error = 0;
    for (std::size_t n = 0; n < memory.size(); ++n)
      error = std::max(error, std::abs(memory[n] - placed[n]));
    return error > 1e-13 || values != raw ? std::string("a block is not where it should be\n") : "";
  });
}

TEST_CASE("chunks with a memory", "[mechanism][quick]") {
  for_each_seed("chunks with a memory", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 40), chunk = draw.between(1, 12);
    index_t const memory = draw.one_in(4) ? heed::unbounded : draw.between(0, 20);
    heed::place const where{.rows = N, .keys = 2 * N};
    heed::chunks_with_memory const pattern{chunk, memory};
    auto const keep = [&](index_t p, index_t j) {
      index_t const i = p - N;
      return j < N ? reference::chunk_sees_memory(i, j, chunk, memory < 0 ? N : memory)
                   : reference::chunk_sees_itself(i, j - N, chunk);
    };
    // A query before the sequence meets nothing, one behind it is none of the definition.
    auto const bound = heed::bind_at(pattern, where);
    std::string complaint;
    for (index_t i = 0; i < N; ++i)
      for (index_t j = 0; j < 2 * N; ++j)
        if (bound.keep(N + i, j) != keep(N + i, j)) complaint = "keep() is wrong\n";
    complaint +=
        check_pattern(draw, pattern, where, [&](index_t p, index_t j) { return bound.keep(p, j); });
    // With all of the memory and gates of 1 each token is met once: gated before the chunk, itself inside.
    if (memory < 0)
      for (index_t i = 0; i < N; ++i)
        for (index_t j = 0; j < N; ++j)
          if (bound.keep(N + i, j) + bound.keep(N + i, N + j) != (j <= i))
            complaint += "with all of the memory it is not causal\n";
    if (memory == 0)
      for (index_t i = 0; i < N; ++i)
        for (index_t j = 0; j < N; ++j)
          if (bound.keep(N + i, j) ||
              bound.keep(N + i, N + j) != (j <= i && i / chunk == j / chunk))
            complaint += "without a memory chunks are blind to each other\n";
    return complaint;
  });
  CHECK_THROWS_WITH((heed::chunks_with_memory{0, 1}.check({.rows = 3, .keys = 6})),
                    "heed: chunks_with_memory.chunk is 0; expected at least 1");
  CHECK_THROWS_WITH(
      (heed::chunks_with_memory{2, 1}.check({.rows = 3, .keys = 3})),
      "heed: chunks_with_memory is given 3 keys for 3 rows; expected twice as many: the "
      "gated rows, then the rows");
}

TEST_CASE("gated rows and their gradients", "[mechanism][quick]") {
  for_each_seed("gated rows", 100, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), N = draw.between(1, 4), H = draw.between(1, 3),
                  D = draw.between(1, 5);
    index_t const gate_heads = draw.one_in(2) ? 1 : H, gate_dim = draw.one_in(2) ? 1 : D;
    auto const numbers = [&](index_t heads, index_t dim) {
      std::vector<double> x(static_cast<std::size_t>(B * N * heads * dim));
      for (double& each : x) each = draw.normal();
      return x;
    };
    auto rows = numbers(H, D), gates = numbers(gate_heads, gate_dim), weights = numbers(H, D);
    auto out = rows, drows = rows, dgates = gates;
    auto const full = [&](std::vector<double>& x) { return heed::bnhd(x.data(), B, N, H, D); };
    auto const of_gates = [&](std::vector<double>& x) {
      return heed::bnhd(x.data(), B, N, gate_heads, gate_dim);
    };
    auto const loss = [&] {
      heed::gate_rows(full(rows), of_gates(gates), full(out));
      return std::inner_product(out.begin(), out.end(), weights.begin(), 0.0);
    };
    heed::gate_rows_backward(full(rows), of_gates(gates), full(weights), full(drows),
                             of_gates(dgates));
    double error = 0;
    auto const compare = [&](std::vector<double>& input, std::vector<double> const& gradient) {
      for (std::size_t n = 0; n < input.size(); ++n) {
        double const original = input[n];
        input[n] = original + 1;  // the loss is linear in each input
        double const above = loss();
        input[n] = original - 1;
        error = std::max(error, std::abs((above - loss()) / 2 - gradient[n]));
        input[n] = original;
      }
    };
    compare(rows, drows);
    compare(gates, dgates);
    return error > 1e-12 ? "a gradient is off by " + std::to_string(error) + "\n" : std::string();
  });
}

TEST_CASE("a memory keeps the newest rows", "[mechanism][quick]") {
  for_each_seed("fifo memory", 100, [](seed_t seed) {
    support::random draw(seed);
    index_t const most = draw.between(0, 9), D = 3, N = 40;
    std::vector<float> memory(static_cast<std::size_t>(most * D) + 1),
        rows(static_cast<std::size_t>(N * D)), gates(static_cast<std::size_t>(N));
    for (float& x : rows) x = static_cast<float>(draw.normal());
    for (float& x : gates) x = static_cast<float>(draw.uniform());
    heed::fifo_memory fifo(heed::bnhd(memory.data(), 1, most, 1, D));
    std::string complaint;
    for (index_t first = 0; first < N;) {
      index_t const count = std::min(N - first, draw.between(0, 12));
      fifo.append(heed::bnhd(rows.data(), 1, N, 1, D).slice(1, first, count),
                  heed::bnhd(gates.data(), 1, N, 1, 1).slice(1, first, count));
      first += count;
      index_t const there = fifo.rows().extent(1);
      if (there != std::min(first, most)) return std::string("the memory has the wrong size\n");
      for (index_t slot = 0; slot < there; ++slot) {
        index_t const p = fifo.slots().position(slot);
        if (p < first - most || p >= first) complaint += "a row is too old\n";
        for (index_t d = 0; d < D; ++d)
          if (fifo.rows()(0, slot, 0, d) !=
              gates[static_cast<std::size_t>(p)] * rows[static_cast<std::size_t>(p * D + d)])
            complaint += "a row is wrong\n";
      }
    }
    return complaint;
  });
  std::vector<float> memory(6);
  heed::fifo_memory fifo(heed::bnhd(memory.data(), 1, 2, 1, 3));
  CHECK_THROWS_WITH(
      fifo.append(heed::bnhd(memory.data(), 1, 2, 3, 1), heed::bnhd(memory.data(), 1, 2, 1, 1)),
      "heed: rows of shape [1, 2, 3, 1] cannot enter a memory of shape [1, 2, 1, 3]");
  CHECK_THROWS_WITH(
      fifo.append(heed::bnhd(memory.data(), 1, 2, 1, 3), heed::bnhd(memory.data(), 1, 1, 1, 1)),
      "heed: gates have shape [1, 1, 1, 1]; expected that of the rows, [1, 2, 1, 3], or 1 "
      "head, or 1 number each");
}
