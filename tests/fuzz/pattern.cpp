// Compositions of patterns from a fuzzer: what they say of tiles, lists of keys and numbers of pairs must follow from
// what keep() says of pairs, and a descriptor that makes no sense must be refused.
#include <heed/heed.hpp>
#include <heed/pattern/any_pattern.hpp>
#include <heed/pattern/bit_mask.hpp>
#include <heed/pattern/block_table.hpp>
#include <heed/pattern/bool_mask.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/by_segments.hpp>
#include <heed/pattern/chosen_rows.hpp>
#include <heed/pattern/column_ranges.hpp>
#include <heed/pattern/mask_of.hpp>
#include <heed/pattern/moved.hpp>
#include <heed/pattern/periodic_keys.hpp>
#include <heed/pattern/queries_from.hpp>
#include <heed/pattern/slices.hpp>
#include <heed/sliding_window.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

namespace {

using heed::any_pattern;
using heed::coverage;
using heed::index_t;
using heed::interval;
using heed::tensor_view;

/// Numbers from the fuzzer, and memory for tables of them.
class input {
 public:
  input(std::uint8_t const* data, std::size_t size) : data_(data), size_(size) {}

  /// A number in [low, high]; `low` when the input has run out.
  index_t number(index_t low, index_t high) {
    if (size_ == 0) return low;
    --size_;
    return low + static_cast<index_t>(*data_++) % (high - low + 1);
  }
  /// Mostly `usual`, so that patterns come through the checks.
  index_t around(index_t usual, index_t low, index_t high) {
    return number(0, 31) == 31 ? number(low, high) : usual;
  }
  /// [1 or batches, 1 or heads, count] numbers in [low, high], in memory of exactly that size.
  template <class T>
  tensor_view<T const, 3> table(index_t count, index_t low, index_t high) {
    index_t const batches = number(0, 1) ? 2 : 1, heads = number(0, 1) ? 2 : 1;
    count = around(count, 0, 9);
    std::shared_ptr<T[]> const memory(new T[static_cast<std::size_t>(batches * heads * count)]);
    for (index_t n = 0; n < batches * heads * count; ++n)
      memory[n] = static_cast<T>(number(low, high));
    memory_.push_back(memory);
    return {memory.get(), {batches, heads, count}};
  }
  /// `count` numbers, mostly in order.
  std::span<index_t const> list(index_t count, index_t low, index_t high) {
    std::shared_ptr<index_t[]> const memory(new index_t[static_cast<std::size_t>(count)]);
    for (index_t n = 0; n < count; ++n) memory[n] = number(low, high);
    if (number(0, 15) != 15) std::sort(memory.get(), memory.get() + count);
    memory_.push_back(memory);
    return {memory.get(), static_cast<std::size_t>(count)};
  }
  template <class T>
  std::span<T const> keep(std::vector<T> const& things) {
    auto const held = std::make_shared<std::vector<T> const>(things);
    memory_.push_back(held);
    return *held;
  }

 private:
  std::uint8_t const* data_;
  std::size_t size_;
  std::vector<std::shared_ptr<void const>> memory_;
};

struct shape {
  index_t rows, keys;
};

/// [1 or 2, 1 or 2, count] as [1 or 2, 1 or 2, rows, columns].
template <class T>
tensor_view<T const, 4> folded(tensor_view<T const, 3> table, index_t columns) {
  index_t const rows = columns == 0 ? 0 : table.extent(2) / columns;
  return {table.data(),
          {table.extent(0), table.extent(1), rows, columns},
          {table.strides()[0], table.strides()[1], columns, 1}};
}

heed::sliding_window window(input& in) {
  return {in.number(-1, 40), in.number(-1, 20)};
}

std::vector<interval> offsets(input& in) {
  std::vector<interval> all;
  index_t at = in.number(-60, 0);
  for (index_t n = in.number(0, 6); n > 0; --n) {
    index_t const size = in.number(0, 15) == 15 ? 0 : in.number(1, 5);
    all.push_back({at, at + size});
    at += size + in.number(0, 15);
  }
  return all;
}

any_pattern leaf(input& in, shape const& of) {
  auto const segments = [&] {
    std::span<index_t const> const starts = in.list(in.number(1, 6), 0, of.keys);
    return tensor_view<index_t const, 2>(starts, {1, std::ssize(starts)});
  };
  switch (in.number(0, 23)) {
    case 0:
      return heed::causal{};
    case 1:
      return window(in);
    case 2:
      return heed::first_keys{in.number(-2, 40)};
    case 3:
      return heed::key_lengths{in.list(2, 0, of.keys)};
    case 4:
      return heed::streaming{in.number(-1, 9), in.number(-2, 30)};
    case 5:
      return heed::global_tokens{in.number(-1, 9), in.number(-1, 30)};
    case 6:
      return heed::dilated_window{in.number(-1, 40), in.number(-1, 40), in.number(0, 9)};
    case 7:
      return heed::key_offsets{in.keep(offsets(in))};
    case 8:
      return heed::key_set{in.table<bool>(of.keys, 0, 1)};
    case 9:
      return heed::lifetimes{in.table<index_t>(of.keys, -1, of.keys + 3)};
    case 10:
      return heed::row_ranges{in.table<index_t>(of.rows, 0, of.keys),
                              in.table<index_t>(of.rows, 0, of.keys)};
    case 11: {
      index_t const labels = in.number(1, 5);
      auto const admitted = in.table<bool>(labels * labels, 0, 1);
      return heed::labels{in.table<int>(of.rows, in.around(0, -1, 0), in.around(labels - 1, 0, 6)),
                          in.table<int>(of.keys, 0, labels - 1),
                          {admitted.data(), {labels, admitted.extent(2) / labels}}};
    }
    case 12:
      return heed::chosen_rows{in.table<bool>(of.rows, 0, 1)};
    case 13:
      return heed::periodic_keys{in.number(1, 12), in.number(0, 5), in.number(0, 5)};
    case 14:
      return heed::by_blocks{window(in), in.number(0, 20)};
    case 15:
      return heed::by_segments{window(in), segments()};
    case 16:
      return heed::moved{heed::by_blocks{window(in), in.number(1, 20)}, in.number(-1, 30)};
    case 17:
      return heed::queries_from{in.number(-5, 40)};
    case 18: {
      std::vector<heed::slice> pieces;
      for (index_t n = in.number(0, 4); n > 0; --n) {
        auto const edges = in.list(2, 0, of.rows), sides = in.list(2, 0, of.keys);
        pieces.push_back({{edges[0], edges[1]},
                          {sides[0], sides[1]},
                          static_cast<heed::slice_type>(in.number(0, 3))});
      }
      return heed::slices{in.keep(pieces)};
    }
    case 19: {
      index_t const numbers = in.around(in.number(0, 1) ? 4 : 2, 1, 5);
      return heed::column_ranges{folded(in.table<index_t>(of.keys * numbers, 0, of.rows), numbers),
                                 in.number(0, 1) != 0};
    }
    case 20: {
      index_t const size = in.number(1, 20), other = in.around(size, 0, 20);
      index_t const rows = (of.rows + size - 1) / size, keys = (of.keys + size - 1) / size;
      return heed::block_table{folded(in.table<bool>(rows * keys, 0, 1), keys), {size}, {other}};
    }
    case 21:
      return heed::bool_mask{folded(in.table<bool>(of.rows * of.keys, 0, 1), of.keys)};
    case 22: {
      std::vector<std::uint8_t> bytes(
          static_cast<std::size_t>(in.around((of.rows * of.keys + 7) / 8, 0, 99)));
      for (std::uint8_t& each : bytes) each = static_cast<std::uint8_t>(in.number(0, 255));
      return heed::bit_mask{in.keep(bytes)};
    }
    default: {
      index_t const factor = in.number(1, 9);
      return heed::mask_of(
          [factor](index_t query, index_t key) { return (query * key) % factor == 0; });
    }
  }
}

any_pattern composition(input& in, shape const& of, int depth) {
  switch (depth == 0 ? 0 : in.number(0, 5)) {
    case 1:
    case 2:
      return composition(in, of, depth - 1) & composition(in, of, depth - 1);
    case 3:
    case 4:
      return composition(in, of, depth - 1) | composition(in, of, depth - 1);
    case 5:
      return ~composition(in, of, depth - 1);
    default:
      return leaf(in, of);
  }
}

void expect(bool good, char const* what) {
  if (good) return;
  std::fprintf(stderr, "%s and keep() disagree\n", what);
  std::abort();
}

/// Everything that the pattern says of queries at the positions and of keys among the first `count`.
void check(input& in, heed::bound_any_pattern const& pattern, interval queries, index_t count) {
  auto const kept = [&](interval rows, index_t key) {
    for (index_t p = rows.first; p < rows.last; ++p)
      if (pattern.keep(p, key)) return true;
    return false;
  };

  index_t end = 0;
  for (;;) {
    interval const run = pattern.next_keys(queries, end, count);
    for (index_t key = end; key < (run.empty() ? count : run.first); ++key)
      expect(!kept(queries, key), "next_keys()");
    if (run.empty()) break;
    expect(run.first >= end && run.last <= count, "next_keys()");
    end = run.last;
  }
  index_t covered = 0;
  for (interval part : pattern.keys(queries, count)) {
    for (index_t key = covered; key < std::min(part.first, count); ++key)
      expect(!kept(queries, key), "keys()");
    covered = std::max(covered, part.last);
  }
  for (index_t key = covered; key < count; ++key) expect(!kept(queries, key), "keys()");

  if (count == 0) return;
  index_t const from = in.number(0, count - 1), to = in.number(from + 1, count);
  coverage const said = pattern.cover(queries, {from, to});
  for (index_t p = queries.first; p < queries.last; ++p)
    for (index_t key = from; key < to; ++key)
      expect(said == coverage::some || pattern.keep(p, key) == (said == coverage::all), "cover()");

  std::vector<index_t> positions;
  for (index_t p = queries.first; p < queries.last && positions.size() < 64; ++p)
    positions.push_back(in.number(0, 7) == 7 ? in.number(queries.first, queries.last - 1) : p);
  std::vector<std::uint64_t> rows(static_cast<std::size_t>(to - from));
  pattern.mask(positions, {from, to}, rows.data());
  for (std::size_t q = 0; q < positions.size(); ++q)
    for (index_t key = from; key < to; ++key)
      expect(
          (rows[static_cast<std::size_t>(key - from)] >> q & 1) == pattern.keep(positions[q], key),
          "mask()");
}

void run(input in) {
  shape const of{in.number(0, 70), in.number(0, 140)};
  any_pattern const pattern = composition(in, of, 3);
  pattern.check({.batches = 2, .sequences = 2, .heads = 2, .rows = of.rows, .keys = of.keys});
  index_t const batch = in.number(0, 1);
  heed::place const where{
      .sequence = batch, .batch = batch, .head = in.number(0, 1), .rows = of.rows, .keys = of.keys};
  auto const bound = pattern.bind(where);

  index_t const off = of.keys - of.rows;
  index_t pairs = 0;
  for (index_t row = 0; row < of.rows; ++row)
    for (index_t key = 0; key < of.keys; ++key) pairs += bound.keep(off + row, key) ? 1 : 0;
  expect(heed::kept_pairs(pattern, where) == pairs, "kept_pairs()");

  for (int tile = 0; tile < 4; ++tile) {
    index_t const first = off + in.number(-3, of.rows), count = in.number(1, 70);
    check(in, bound, {first, first + count}, of.keys);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  try {
    run(input(data, size));
  } catch (heed::error const&) {
    // What a descriptor that makes no sense is for.
  }
  return 0;
}
