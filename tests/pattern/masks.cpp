#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/bit_mask.hpp>
#include <heed/pattern/bool_mask.hpp>

#include <memory>

using heed::index_t;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

/// Random booleans: rows of mostly one kind, so that tiles can be full or empty.
std::vector<char> random_pairs(support::random& draw, index_t count) {
  std::vector<char> pairs(static_cast<std::size_t>(count));
  char value = 0;
  index_t const rarity = draw.one_of(std::array{1, 2, 30, 300});
  for (char& pair : pairs) {
    if (draw.one_in(rarity)) value = static_cast<char>(draw.between(0, 1));
    pair = value;
  }
  return pairs;
}

/// Bit t is bit t % 8 of byte t / 8.
std::vector<std::uint8_t> packed(std::vector<char> const& pairs) {
  std::vector<std::uint8_t> bytes((pairs.size() + 7) / 8, 0);
  for (std::size_t t = 0; t < pairs.size(); ++t)
    if (pairs[t]) bytes[t / 8] = static_cast<std::uint8_t>(bytes[t / 8] | 1u << (t % 8));
  return bytes;
}

constexpr support::pattern_claims exact{.exact_tiles = true};

}  // namespace

TEST_CASE("bits are transposed", "[pattern][quick]") {
  support::random draw(1);
  std::array<std::uint64_t, 64> words;
  for (std::uint64_t& word : words)
    word = static_cast<std::uint64_t>(draw.between(0, index_t{1} << 62)) * 3;
  auto turned = words;
  heed::detail::transpose_bits(turned);
  for (std::size_t i = 0; i < 64; ++i)
    for (std::size_t j = 0; j < 64; ++j) REQUIRE((turned[i] >> j & 1) == (words[j] >> i & 1));
}

TEST_CASE("boolean masks of any strides, by batch and head or shared", "[pattern][quick]") {
  for_each_seed("boolean masks", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const batches = 2, heads = 2, rows = draw.between(1, 40), keys = draw.between(1, 200);
    index_t const B = draw.one_in(2) ? 1 : batches, H = draw.one_in(2) ? 1 : heads;
    index_t const step = draw.one_in(3) ? 2 : 1, pitch = keys * step + draw.between(0, 3);
    auto const size = static_cast<std::size_t>(B * H * rows * pitch);
    auto const memory = std::make_unique<bool[]>(size + 1);
    auto const pairs = random_pairs(draw, static_cast<index_t>(size));
    std::copy(pairs.begin(), pairs.end(), memory.get());
    heed::tensor_view<bool const, 4> const view(memory.get(), {B, H, rows, keys},
                                                {H * rows * pitch, rows * pitch, pitch, step});
    heed::bool_mask const pattern{.kept = view};
    pattern.check({batches, batches, heads, rows, keys});
    index_t const b = draw.between(0, batches - 1), h = draw.between(0, heads - 1);
    heed::place const where{.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys};
    auto const keep = [&](index_t p, index_t j) {
      index_t const i = p - (keys - rows);
      return i >= 0 && i < rows && view(B == 1 ? 0 : b, H == 1 ? 0 : h, i, j);
    };
    return support::check_pattern(draw, pattern, where, keep, exact) +
           support::check_pattern(draw, pattern & heed::causal{}, where,
                                  [&](index_t p, index_t j) { return keep(p, j) && j <= p; }) +
           support::check_pattern(draw, ~pattern, where,
                                  [&](index_t p, index_t j) { return !keep(p, j); },
                                  {.exact_tiles = true});
  });
}

TEST_CASE("keys that lie far apart are told one by one", "[pattern][quick]") {
  constexpr index_t rows = 3, keys = 300;
  std::vector<char> pairs(rows * keys, 0);
  for (index_t j : {5, 6, 63, 64, 80, 95, 200})
    pairs[static_cast<std::size_t>(j % 3 * keys + j)] = 1;
  auto const bytes = packed(pairs);
  auto const bound = heed::bit_mask{.bytes = bytes}.bind({.rows = rows, .keys = keys});
  std::vector<std::array<index_t, 2>> runs;
  for (auto run = bound.next_keys({297, 300}, 0, keys); !run.empty();
       run = bound.next_keys({297, 300}, run.last, keys))
    runs.push_back({run.first, run.last});
  CHECK(runs == std::vector<std::array<index_t, 2>>{{5, 7}, {63, 96}, {200, 201}});
  // Only those of the row asked for: 5, 80, 95 and 200 are met by the last one.
  CHECK(bound.next_keys({299, 300}, 6, keys).first == 80);
  CHECK(bound.next_keys({299, 300}, 6, keys).last == 96);
}

TEST_CASE("packed bits, a stream for all sequences or for each", "[pattern][quick]") {
  for_each_seed("bit masks", 1000, [](seed_t seed) {
    support::random draw(seed);
    index_t const batches = 3, rows = draw.between(1, 40), keys = draw.between(1, 200);
    bool const shared = draw.one_in(2);
    std::vector<std::vector<char>> pairs;
    std::vector<std::uint8_t> bytes;
    std::vector<index_t> offsets{0};
    for (index_t g = 0; g < (shared ? 1 : batches); ++g) {
      pairs.push_back(random_pairs(draw, rows * keys));
      auto const stream = packed(pairs.back());
      bytes.insert(bytes.end(), stream.begin(), stream.end());
      offsets.push_back(static_cast<index_t>(bytes.size()));
    }
    // Memory that ends where the stream ends: reading on would be seen by a sanitizer.
    std::vector<std::uint8_t> const tight(bytes);
    heed::bit_mask pattern{.bytes = tight};
    if (!shared) pattern.offsets = offsets;
    pattern.check({batches, batches, 4, rows, keys});
    index_t const g = draw.between(0, batches - 1);
    auto const& own = pairs[shared ? 0 : static_cast<std::size_t>(g)];
    auto const keep = [&](index_t p, index_t j) {
      index_t const i = p - (keys - rows);
      return i >= 0 && i < rows && own[static_cast<std::size_t>(i * keys + j)] != 0;
    };
    return support::check_pattern(
        draw, pattern, {.sequence = g, .batch = g, .rows = rows, .keys = keys}, keep, exact);
  });
}

TEST_CASE("packed sequences have streams of their own sizes", "[pattern][quick]") {
  for_each_seed("bit masks of documents", 300, [](seed_t seed) {
    support::random draw(seed);
    std::vector<index_t> rows, keys;
    std::vector<std::vector<char>> pairs;
    std::vector<std::uint8_t> bytes;
    std::vector<index_t> offsets{0};
    for (int g = 0; g < 3; ++g) {
      rows.push_back(draw.between(1, 20));
      keys.push_back(draw.between(1, 20));
      pairs.push_back(random_pairs(draw, rows.back() * keys.back()));
      auto const stream = packed(pairs.back());
      bytes.insert(bytes.end(), stream.begin(), stream.end());
      offsets.push_back(static_cast<index_t>(bytes.size()));
    }
    heed::bit_mask const pattern{.bytes = bytes, .offsets = offsets};
    pattern.check({1, 3, 1, rows[0] + rows[1] + rows[2], keys[0] + keys[1] + keys[2]});
    std::string complaint;
    index_t first_row = 0, first_key = 0;
    for (std::size_t g = 0; g < 3; ++g) {
      complaint += support::check_pattern(
          draw, pattern,
          {.sequence = static_cast<index_t>(g),
           .rows = rows[g],
           .keys = keys[g],
           .first_row = first_row,
           .first_key = first_key},
          [&](index_t p, index_t j) {
            index_t const i = p - (keys[g] - rows[g]);
            return i >= 0 && i < rows[g] &&
                   pairs[g][static_cast<std::size_t>(i * keys[g] + j)] != 0;
          },
          exact);
      first_row += rows[g];
      first_key += keys[g];
    }
    return complaint;
  });
}

TEST_CASE("masks over whole sequences serve chunks, steps and packed documents",
          "[pattern][quick]") {
  for_each_seed("masks elsewhere", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const n = draw.between(1, 50), keys = draw.between(1, n), rows = draw.between(1, keys);
    auto const pairs = random_pairs(draw, n * n);
    auto const memory = std::make_unique<bool[]>(pairs.size());
    std::copy(pairs.begin(), pairs.end(), memory.get());
    heed::bool_mask pattern{.kept = {memory.get(), {1, 1, n, n}}, .first_position = 0};
    pattern.check({1, 1, 1, rows, keys});
    auto const keep = [&](index_t i, index_t j) {
      return i >= 0 && i < n && pairs[static_cast<std::size_t>(i * n + j)] != 0;
    };
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
    complaint += support::check_pattern(
        draw, pattern, document,
        [&](index_t p, index_t j) { return keep(p - off + first_row, j + first_key); }, exact);
    // The rows of a stream from the first key on, as top_left queries stand.
    auto const bytes = packed(pairs);
    return complaint + support::check_pattern(
                           draw, heed::bit_mask{bytes, {}, 0}, {.rows = rows, .keys = n},
                           [&](index_t p, index_t j) {
                             index_t const all = 8 * ((n * n + 7) / 8) / n;
                             return keep(p, j) && p < all;
                           },
                           exact);
  });
}

TEST_CASE("masks say what is wrong with them", "[pattern][errors][quick]") {
  heed::call_shape const shape{2, 2, 3, 5, 7};
  bool memory[256] = {};
  auto const boolean = [&](std::array<index_t, 4> const& extents) {
    return message_of(heed::bool_mask{.kept = {memory, extents}}, shape);
  };
  CHECK(boolean({2, 1, 5, 7}) == "");
  CHECK(boolean({3, 1, 5, 7}) ==
        "heed: bool_mask has shape [3, 1, 5, 7]; expected 1 or 2 on axis 0 (batch)");
  CHECK(boolean({1, 1, 7, 5}) ==
        "heed: bool_mask has shape [1, 1, 7, 5]; expected 5 rows and 7 keys on its last axes, or "
        "more with first_position");
  CHECK(message_of(heed::bool_mask{.kept = {memory, {1, 1, 9, 9}}, .first_position = 0}, shape) ==
        "");
  std::vector<std::uint8_t> const bytes(10);
  std::vector<index_t> offsets{0, 5, 10};
  CHECK(message_of(heed::bit_mask{.bytes = bytes, .offsets = offsets}, shape) == "");
  CHECK(message_of(heed::bit_mask{.bytes = bytes}, shape) ==
        "heed: bit_mask has 10 bytes for a sequence; expected 5 for 5 rows and 7 keys");
  offsets = {0, 6, 5};
  CHECK(message_of(heed::bit_mask{.bytes = bytes, .offsets = offsets}, shape) ==
        "heed: bit_mask.offsets is [0, 6, 5]; expected 3 offsets that do not decrease, from 0 to "
        "at most 10 (bytes)");
  CHECK(message_of(heed::bit_mask{.bytes = bytes}, {1, 2, 1, 5, 7}) ==
        "heed: bit_mask has one stream for 2 packed sequences; expected offsets, a stream for "
        "each");
}
