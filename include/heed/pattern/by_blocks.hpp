#pragma once

#include <heed/pattern/pattern.hpp>

#include <array>

namespace heed {

/// A pattern of blocks of `size` positions: a pair meets if `blocks`, a pattern over block numbers, keeps the
/// blocks that its query and its key lie in. `by_blocks{causal{}, 64}` sees to the end of the query's own
/// block; `by_blocks{sliding_window{0, 0}, 64}` sees that block and nothing else.
template <pattern P>
struct by_blocks {
  P blocks;
  index_t size;

  constexpr auto bind(place where) const {
    where.rows = block_of(where.rows + size - 1);
    where.keys = block_of(where.keys + size - 1);
    return by_blocks<decltype(bind_at(blocks, where))>{bind_at(blocks, where), size};
  }
  constexpr index_t panel_rows() const { return size; }
  void check(call_shape const& shape) const {
    require(size > 0, [&] {
      return "by_blocks has blocks of " + std::to_string(size) + " positions; expected at least 1";
    });
    check_against(blocks, shape);
  }

  constexpr bool keep(index_t query, index_t key) const requires bound_pattern<P> {
    return blocks.keep(block_of(query), block_of(key));
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    interval_set all;
    for (interval part : pattern_keys(blocks, blocks_of(queries), block_of(count + size - 1)))
      all.add(intersect({part.first * size, part.last * size}, {0, count}));
    return all;
  }
  constexpr coverage cover(interval queries, interval keys) const {
    return pattern_cover(blocks, blocks_of(queries), blocks_of(keys));
  }
  constexpr void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    std::array<index_t, 64> query_blocks{};
    for (std::size_t q = 0; q < queries.size(); ++q) query_blocks[q] = block_of(queries[q]);
    auto const in_blocks = std::span<index_t const>(query_blocks).first(queries.size());
    for (index_t key = keys.first; key < keys.last;) {
      index_t const block = block_of(key), last = std::min(keys.last, (block + 1) * size);
      std::uint64_t bits = 0;
      pattern_mask(blocks, in_blocks, {block, block + 1}, &bits);
      for (; key < last; ++key) rows[key - keys.first] = bits;
    }
  }
  constexpr bool scattered() const { return is_scattered(blocks); }
  constexpr interval next_keys(interval queries, index_t from, index_t count) const {
    interval const run =
        next_run(blocks, blocks_of(queries), block_of(from), block_of(count + size - 1));
    return run.empty() ? interval{} : intersect({run.first * size, run.last * size}, {from, count});
  }

 private:
  /// Rounds down, for positions before the first key too.
  constexpr index_t block_of(index_t position) const {
    return (position < 0 ? position - size + 1 : position) / size;
  }
  constexpr interval blocks_of(interval positions) const {
    return positions.empty()
               ? interval{}
               : interval{block_of(positions.first), block_of(positions.last - 1) + 1};
  }
};
template <pattern P>
by_blocks(P, index_t) -> by_blocks<P>;

}  // namespace heed
