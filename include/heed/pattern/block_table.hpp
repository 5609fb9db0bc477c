#pragma once

#include <heed/pattern/placed_table.hpp>

#include <bit>
#include <numeric>

/// Blocks of pairs that are kept whole or not at all: a table of booleans with an entry for each block
/// (block_table), or the list of the kept blocks of each block row (block_rows).
namespace heed {

/// How the rows or the keys are cut into blocks: all of one `size`, the last one shorter if need be; or block n is
/// [bounds(b, h, n), bounds(b, h, n + 1)), for bounds [batch or 1, head or 1, blocks + 1] that start at 0.
struct block_cut {
  index_t size = 0;
  tensor_view<index_t const, 3> bounds = {};
};

/// The same boundaries, cumulative sizes that start at 0, for all batch entries and heads.
inline block_cut cut_at(std::span<index_t const> bounds) {
  return {.bounds = {bounds, {1, 1, static_cast<index_t>(bounds.size())}}};
}

namespace detail {

/// The blocks of one batch entry and head.
struct bound_cut {
  index_t size = 0;
  index_t const* bounds = nullptr;
  index_t stride = 0;
  index_t blocks = 0;
  index_t end = 0;  // of the last block, where `size` is given

  constexpr index_t bound(index_t n) const {
    return size > 0 ? std::min(n * size, end) : bounds[n * stride];
  }
  constexpr interval block(index_t n) const { return {bound(n), bound(n + 1)}; }
  constexpr interval all() const { return {0, bound(blocks)}; }
  /// The block that holds an index within all().
  constexpr index_t block_of(index_t i) const {
    if (size > 0) return i / size;
    index_t low = 0, high = blocks;  // bound(low) <= i < bound(high)
    while (high - low > 1) {
      index_t const middle = (low + high) / 2;
      (bound(middle) <= i ? low : high) = middle;
    }
    return low;
  }
};

constexpr bound_cut bind_cut(block_cut const& cut, index_t blocks, place const& where) {
  if (cut.size > 0) return {.size = cut.size, .blocks = blocks, .end = blocks * cut.size};
  return {.bounds = cut.bounds.data() + shared_offset(cut.bounds, where),
          .stride = cut.bounds.stride(2),
          .blocks = blocks};
}

/// Checks a cut of an axis of `extent` into `blocks`; `longer` if the blocks may reach beyond it.
inline void check_cut(char const* name, block_cut const& cut, index_t blocks, index_t extent,
                      bool longer, call_shape const& shape) {
  auto const expect_blocks = [&](index_t expected) {
    require(blocks == expected || (longer && blocks > expected), [&] {
      return std::string(name) + " has " + std::to_string(blocks) + " blocks; expected " +
             std::to_string(expected) + " for " + std::to_string(extent);
    });
  };
  if (cut.bounds.data() == nullptr) {
    require(cut.size > 0, [&] {
      return std::string(name) + " has blocks of size " + std::to_string(cut.size) +
             "; expected a positive size, or bounds";
    });
    return expect_blocks((extent + cut.size - 1) / cut.size);
  }
  require(cut.size == 0, [&] {
    return std::string(name) + " has blocks of size " + std::to_string(cut.size) +
           " and bounds; expected one of the two";
  });
  check_shared_axes(name, cut.bounds, shape);
  require(cut.bounds.extent(2) == blocks + 1, [&] {
    return std::string(name) + " has " + std::to_string(cut.bounds.extent(2)) +
           " bounds; expected " + std::to_string(blocks + 1) + " for " + std::to_string(blocks) +
           " blocks";
  });
  for (index_t b = 0; b < cut.bounds.extent(0); ++b)
    for (index_t h = 0; h < cut.bounds.extent(1); ++h) {
      bool ordered = cut.bounds(b, h, 0) == 0;
      for (index_t n = 0; n < blocks; ++n)
        ordered &= cut.bounds(b, h, n) <= cut.bounds(b, h, n + 1);
      index_t const end = cut.bounds(b, h, blocks);
      require(ordered && (end == extent || (longer && end > extent)), [&] {
        return std::string(name) + " has bounds from " + std::to_string(cut.bounds(b, h, 0)) +
               " to " + std::to_string(end) + (ordered ? "" : ", out of order") +
               "; expected bounds that start at 0, do not decrease and end at " +
               std::to_string(extent);
      });
    }
}

/// Blocks as a table (placed_table.hpp). Kept has, with rows and columns of blocks,
///
///     index_t next(index_t row, index_t column) const;  // the first kept block at or after a column, or their number
///     coverage cover(row, column, interval rows, interval keys) const;  // of some rows and keys of a kept block
///     bool keep(row, column, index_t row, index_t key) const;           // inside a kept block
///
/// and, where a kept block is not kept whole, mask(row, column, rows, keys, bits). What is inside a block counts from
/// its start.
template <class Kept>
struct cut_table {
  bound_cut row_cut;
  bound_cut key_cut;
  Kept kept;

  constexpr bool keep(index_t row, index_t key) const {
    if (!inside(row_cut, row) || !inside(key_cut, key)) return false;
    index_t const r = row_cut.block_of(row), c = key_cut.block_of(key);
    return kept.next(r, c) == c && kept.keep(r, c, row - row_cut.bound(r), key - key_cut.bound(c));
  }

  constexpr interval_set keys(interval rows, interval among) const {
    interval_set met;
    for (interval run = next_keys(rows, among); !run.empty();
         run = next_keys(rows, {run.last, among.last}))
      met.add(run);
    return met;
  }

  /// The union of the rows' blocks.
  constexpr interval next_keys(interval rows, interval among) const {
    rows = intersect(rows, row_cut.all());
    among = intersect(among, key_cut.all());
    if (rows.empty() || among.empty()) return {};
    interval run{among.last, among.last};
    index_t const first = row_cut.block_of(rows.first), last = row_cut.block_of(rows.last - 1);
    for (index_t r = first; r <= last; ++r) {
      if (row_cut.block(r).empty()) continue;
      interval const next = next_block(r, among.first);
      if (next.first < run.first) run = next;
    }
    for (bool grows = run.first < among.last; grows;) {
      grows = false;
      for (index_t r = first; r <= last && run.last < among.last; ++r) {
        if (row_cut.block(r).empty()) continue;
        interval const next = next_block(r, run.last);
        if (next.first > run.last || next.last <= run.last) continue;
        run.last = next.last;
        grows = true;
      }
    }
    return intersect(run, among);
  }

  /// Exact if that of the blocks is.
  constexpr coverage cover(interval rows, interval keys) const {
    interval const r_inside = intersect(rows, row_cut.all());
    interval const k_inside = intersect(keys, key_cut.all());
    if (r_inside.empty() || k_inside.empty()) return coverage::none;
    bool all = r_inside.size() == rows.size() && k_inside.size() == keys.size(), none = true;
    for (index_t r = row_cut.block_of(r_inside.first);
         r < row_cut.blocks && row_cut.bound(r) < rows.last; ++r) {
      interval const block_rows = intersect(rows, row_cut.block(r));
      if (block_rows.empty()) continue;
      index_t met = k_inside.first;  // up to where the row of blocks is looked at
      each_block(r, keys, [&](index_t c, interval block_keys) {
        all = all && block_keys.first == met;
        met = block_keys.last;
        coverage const part = kept.cover(r, c, relative(block_rows, row_cut.bound(r)),
                                         relative(block_keys, key_cut.bound(c)));
        all = all && part == coverage::all;
        none = none && part == coverage::none;
      });
      all = all && met == k_inside.last;
      if (!all && !none) return coverage::some;
    }
    return none ? coverage::none : all ? coverage::all : coverage::some;
  }

  constexpr void mask(std::span<index_t const> rows, interval keys, std::uint64_t* bits) const {
    std::fill(bits, bits + keys.size(), 0);
    std::array<index_t, 64> in_block{};
    for (std::size_t q = 0; q < rows.size();) {
      if (!inside(row_cut, rows[q])) {
        ++q;
        continue;
      }
      index_t const r = row_cut.block_of(rows[q]);
      interval const block = row_cut.block(r);
      std::size_t end = q;  // of the queries that lie in this row of blocks
      interval around{block.size(), 0};
      for (; end < rows.size() && block.first <= rows[end] && rows[end] < block.last; ++end) {
        index_t const i = in_block[end - q] = rows[end] - block.first;
        around = {std::min(around.first, i), std::max(around.last, i + 1)};
      }
      auto const some = std::span<index_t const>(in_block).first(end - q);
      std::uint64_t const queries = bit_range(static_cast<index_t>(q), static_cast<index_t>(end));
      each_block(r, keys, [&](index_t c, interval block_keys) {
        interval const in_keys = relative(block_keys, key_cut.bound(c));
        std::uint64_t* const out = bits + (block_keys.first - keys.first);
        coverage const part = kept.cover(r, c, around, in_keys);
        if (part == coverage::all)
          for (index_t k = 0; k < in_keys.size(); ++k) out[k] |= queries;
        if (part == coverage::some)
          each_mask(r, c, some, in_keys, [&](interval chunk, std::uint64_t const* inner) {
            for (index_t k = 0; k < chunk.size(); ++k)
              out[chunk.first - in_keys.first + k] |= inner[k] << q & queries;
          });
      });
      q = end;
    }
  }

  constexpr index_t pairs(interval rows, interval keys) const {
    index_t sum = 0;
    std::array<index_t, 64> some{};
    for (index_t r = 0; r < row_cut.blocks; ++r) {
      interval const block_rows = intersect(rows, row_cut.block(r));
      if (block_rows.empty()) continue;
      each_block(r, keys, [&](index_t c, interval block_keys) {
        interval const in_rows = relative(block_rows, row_cut.bound(r));
        interval const in_keys = relative(block_keys, key_cut.bound(c));
        coverage const part = kept.cover(r, c, in_rows, in_keys);
        if (part == coverage::all) sum += in_rows.size() * in_keys.size();
        for (index_t i = in_rows.first; i < in_rows.last && part == coverage::some; i += 64) {
          index_t const count = std::min<index_t>(64, in_rows.last - i);
          std::iota(some.begin(), some.begin() + count, i);
          auto const queries =
              std::span<index_t const>(some).first(static_cast<std::size_t>(count));
          each_mask(r, c, queries, in_keys, [&](interval chunk, std::uint64_t const* inner) {
            for (index_t k = 0; k < chunk.size(); ++k)
              sum += std::popcount(inner[k] & bit_range(0, count));
          });
        }
      });
    }
    return sum;
  }

 private:
  static constexpr bool inside(bound_cut const& cut, index_t i) {
    return i >= 0 && i < cut.bound(cut.blocks);
  }
  static constexpr interval relative(interval each, index_t to) {
    return {each.first - to, each.last - to};
  }

  /// Calls f(keys, mask) for some keys of a block, 64 at a time; everything counts from the block's start.
  template <class F>
  constexpr void each_mask(index_t r, index_t c, std::span<index_t const> rows, interval keys,
                           F&& f) const {
    if constexpr (requires(std::uint64_t * to) { kept.mask(r, c, rows, keys, to); }) {
      std::array<std::uint64_t, 64> bits{};
      for (index_t key = keys.first; key < keys.last; key += 64) {
        interval const chunk{key, std::min(key + 64, keys.last)};
        kept.mask(r, c, rows, chunk, bits.data());
        f(chunk, bits.data());
      }
    }
  }

  /// What is left, from a key on, of the first kept block of a row that has something left.
  constexpr interval next_block(index_t r, index_t from) const {
    index_t c = from < key_cut.bound(key_cut.blocks) ? kept.next(r, key_cut.block_of(from))
                                                     : key_cut.blocks;
    while (c < key_cut.blocks && key_cut.block(c).empty()) c = kept.next(r, c + 1);
    if (c == key_cut.blocks) return {key_cut.bound(c), key_cut.bound(c)};
    return {std::max(from, key_cut.bound(c)), key_cut.bound(c + 1)};
  }

  /// Calls f(column, keys) for what the kept blocks of a row share with some keys.
  template <class F>
  constexpr void each_block(index_t r, interval keys, F&& f) const {
    keys = intersect(keys, key_cut.all());
    if (keys.empty()) return;
    for (index_t c = kept.next(r, key_cut.block_of(keys.first));
         c < key_cut.blocks && key_cut.bound(c) < keys.last; c = kept.next(r, c + 1)) {
      interval const part = intersect(keys, key_cut.block(c));
      if (!part.empty()) f(c, part);
    }
  }
};

}  // namespace detail

/// A boolean for each block of pairs, true where all its pairs meet.
///
///   kept            [batch or 1, head or 1, block rows, block columns]
///   rows, keys      how the axes are cut: `.rows = {64}`, `.keys = cut_at(bounds)`
///   first_position  see placed_table.hpp
struct block_table {
  tensor_view<bool const, 4> kept;
  block_cut rows;
  block_cut keys;
  std::optional<index_t> first_position = {};

  struct booleans {
    bool const* first;
    index_t row_stride;
    index_t column_stride;
    index_t columns;

    constexpr index_t next(index_t row, index_t column) const {
      while (column < columns && !first[row * row_stride + column * column_stride]) ++column;
      return column;
    }
    static constexpr coverage cover(index_t, index_t, interval, interval) { return coverage::all; }
    static constexpr bool keep(index_t, index_t, index_t, index_t) { return true; }
  };
  using table = detail::cut_table<booleans>;

  constexpr placed_table<table> bind(place const& where) const {
    return detail::place_table(table{detail::bind_cut(rows, kept.extent(2), where),
                                     detail::bind_cut(keys, kept.extent(3), where),
                                     {kept.data() + detail::shared_offset(kept, where),
                                      kept.stride(2), kept.stride(3), kept.extent(3)}},
                               where, first_position);
  }

  constexpr index_t panel_rows() const { return rows.size; }
  void check(call_shape const& shape) const {
    detail::check_shared_axes("block_table", kept, shape);
    bool const longer = first_position.has_value();
    detail::check_cut("block_table.rows", rows, kept.extent(2), shape.rows, longer, shape);
    detail::check_cut("block_table.keys", keys, kept.extent(3), shape.keys, longer, shape);
  }
};

/// How the booleans of an inner mask lie in memory.
enum class inner_layout {
  by_block,  ///< [listed block, row in the block, column in the block]
  by_row,  ///< for each block row, for each of its rows of tokens: those of its listed blocks in turn
};

/// An inner mask of block_rows: of each listed block, which of its pairs are kept. Blocks are stored in full,
/// whatever is cut off the last ones. Without memory every pair is kept.
struct inner_mask {
  bool const* kept = nullptr;
  inner_layout layout = inner_layout::by_block;
};

/// Block-sparse rows (BCSR): the kept blocks of each block row, in a list.
///
///   offsets         [batch or 1, head or 1, block rows + 1]: block row r has the entries [offsets(b, h, r),
///                   offsets(b, h, r + 1)) of `columns`
///   columns         of each entry the block column: increasing in each block row
///   column_count    how many block columns there are
///   rows, keys      how the axes are cut: `.rows = {64}`, `.keys = cut_at(bounds)`
///   inner           which pairs of the blocks are kept, all without; for blocks of one size
///   first_position  see placed_table.hpp
struct block_rows {
  tensor_view<index_t const, 3> offsets;
  std::span<index_t const> columns;
  index_t column_count = 0;
  block_cut rows;
  block_cut keys;
  inner_mask inner = {};
  std::optional<index_t> first_position = {};

  struct lists {
    index_t const* offsets;
    index_t stride;
    index_t const* columns;
    index_t column_count;
    inner_mask inner;
    index_t row_size;  // of blocks with an inner mask
    index_t key_size;

    constexpr index_t next(index_t row, index_t column) const {
      index_t const entry = find(row, column);
      return entry == end(row) ? column_count : columns[entry];
    }
    constexpr coverage cover(index_t row, index_t column, interval in_rows,
                             interval in_keys) const {
      if (inner.kept == nullptr) return coverage::all;
      bool all = true, none = true;
      bool const* const block = inner.kept + first_of(row, find(row, column));
      for (index_t i = in_rows.first; i < in_rows.last && (all || none); ++i)
        for (index_t j = in_keys.first; j < in_keys.last; ++j) {
          bool const one = block[i * pitch(row) + j];
          all = all && one;
          none = none && !one;
        }
      return none ? coverage::none : all ? coverage::all : coverage::some;
    }
    constexpr bool keep(index_t row, index_t column, index_t i, index_t j) const {
      return inner.kept == nullptr ||
             inner.kept[first_of(row, find(row, column)) + i * pitch(row) + j];
    }
    constexpr void mask(index_t row, index_t column, std::span<index_t const> in_rows,
                        interval in_keys, std::uint64_t* bits) const {
      bool const* const block = inner.kept + first_of(row, find(row, column));
      for (index_t j = in_keys.first; j < in_keys.last; ++j)
        bits[j - in_keys.first] =
            detail::bits_of(in_rows, [&](index_t i) { return block[i * pitch(row) + j]; });
    }

   private:
    constexpr index_t begin(index_t row) const { return offsets[row * stride]; }
    constexpr index_t end(index_t row) const { return offsets[(row + 1) * stride]; }
    /// The first entry of a row at or after a column.
    constexpr index_t find(index_t row, index_t column) const {
      return std::lower_bound(columns + begin(row), columns + end(row), column) - columns;
    }
    /// Where an entry's first row lies in the inner mask, and how far from one row to the next.
    constexpr index_t first_of(index_t row, index_t entry) const {
      return inner.layout == inner_layout::by_block
                 ? entry * row_size * key_size
                 : begin(row) * row_size * key_size + (entry - begin(row)) * key_size;
    }
    constexpr index_t pitch(index_t row) const {
      return inner.layout == inner_layout::by_block ? key_size : (end(row) - begin(row)) * key_size;
    }
  };
  using table = detail::cut_table<lists>;

  constexpr placed_table<table> bind(place const& where) const {
    return detail::place_table(
        table{detail::bind_cut(rows, offsets.extent(2) - 1, where),
              detail::bind_cut(keys, column_count, where),
              {offsets.data() + detail::shared_offset(offsets, where), offsets.stride(2),
               columns.data(), column_count, inner, rows.size, keys.size}},
        where, first_position);
  }

  constexpr index_t panel_rows() const { return rows.size; }
  void check(call_shape const& shape) const {
    detail::check_shared_axes("block_rows.offsets", offsets, shape);
    bool const longer = first_position.has_value();
    detail::check_cut("block_rows.rows", rows, offsets.extent(2) - 1, shape.rows, longer, shape);
    detail::check_cut("block_rows.keys", keys, column_count, shape.keys, longer, shape);
    require(inner.kept == nullptr || (rows.size > 0 && keys.size > 0), [&] {
      return std::string(
          "block_rows has an inner mask and blocks of several sizes; expected one "
          "size for the rows and one for the keys");
    });
    for (index_t b = 0; b < offsets.extent(0); ++b)
      for (index_t h = 0; h < offsets.extent(1); ++h)
        for (index_t r = 0; r + 1 < offsets.extent(2); ++r) check_row(b, h, r);
  }

 private:
  void check_row(index_t b, index_t h, index_t r) const {
    index_t const first = offsets(b, h, r), last = offsets(b, h, r + 1);
    auto const row = [&] {
      return "block row " + std::to_string(r) + " (batch " + std::to_string(b) + ", head " +
             std::to_string(h) + ") of block_rows";
    };
    require(0 <= first && first <= last && last <= static_cast<index_t>(columns.size()), [&] {
      return row() + " has the entries " + detail::text({first, last}) +
             "; expected offsets from 0 to " + std::to_string(columns.size()) +
             " that do not decrease";
    });
    for (index_t e = first; e < last; ++e) {
      index_t const column = columns[static_cast<std::size_t>(e)];
      require(0 <= column && column < column_count, [&] {
        return row() + " lists column " + std::to_string(column) + "; expected 0 to " +
               std::to_string(column_count - 1);
      });
      index_t const before = e > first ? columns[static_cast<std::size_t>(e - 1)] : -1;
      require(before < column, [&] {
        return row() + " lists column " + std::to_string(column) +
               (before == column ? " twice" : " after " + std::to_string(before)) +
               "; expected increasing columns";
      });
    }
  }
};

/// Writes an inner mask in the other layout: `from` has the layout `layout`, `to` receives the other one. Both hold
/// row_size * key_size booleans for each entry; `offsets` are those of one list of block rows, from 0 on.
inline void convert_inner_mask(std::span<index_t const> offsets, index_t row_size, index_t key_size,
                               std::span<bool const> from, inner_layout layout,
                               std::span<bool> to) {
  index_t const entries = offsets.empty() ? 0 : offsets.back();
  for (auto size : {from.size(), to.size()})
    require(static_cast<index_t>(size) == entries * row_size * key_size, [&] {
      return "an inner mask has " + std::to_string(size) + " booleans; expected " +
             shape_text(std::array{entries, row_size, key_size}) + " (entry, row, column)";
    });
  for (std::size_t r = 0; r + 1 < offsets.size(); ++r) {
    index_t const first = offsets[r], count = offsets[r + 1] - first;
    for (index_t e = 0; e < count; ++e)
      for (index_t i = 0; i < row_size; ++i) {
        index_t const block = ((first + e) * row_size + i) * key_size;
        index_t const row = (first * row_size + i * count + e) * key_size;
        bool const is_by_block = layout == inner_layout::by_block;
        std::copy_n(from.data() + (is_by_block ? block : row), key_size,
                    to.data() + (is_by_block ? row : block));
      }
  }
}

}  // namespace heed
