#pragma once

#include <heed/pattern/classified.hpp>

/// Lists of blocks as FlexAttention's BlockMask has them: for each row of blocks the columns of those that meet in
/// part, and of those that meet whole.
namespace heed {

/// The lists of someone else.
///
///   kv_num_blocks       [batch, head, block rows]: how many blocks meet in part
///   kv_indices          [batch, head, block rows, at least as many]: their columns, in any order
///   full_kv_num_blocks, full_kv_indices   the same of blocks that meet whole; none if left out
struct block_list_views {
  tensor_view<int const, 3> kv_num_blocks;
  tensor_view<int const, 4> kv_indices;
  tensor_view<int const, 3> full_kv_num_blocks = {};
  tensor_view<int const, 4> full_kv_indices = {};
};

/// Lists with memory of their own; each row has room for all columns.
struct block_lists {
  index_t batches = 0;
  index_t heads = 0;
  index_t block_rows = 0;
  index_t block_columns = 0;
  std::vector<int> kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices;

  block_list_views views() const {
    std::array const rows{batches, heads, block_rows};
    std::array const all{batches, heads, block_rows, block_columns};
    return {{kv_num_blocks.data(), rows},
            {kv_indices.data(), all},
            {full_kv_num_blocks.data(), rows},
            {full_kv_indices.data(), all}};
  }
};

namespace detail {

/// Lists from at(batch, head, row, column).
template <class At>
block_lists make_lists(block_classes const& classes, index_t rows, index_t columns, At at) {
  block_lists lists{classes.batches(), classes.heads(), rows, columns, {}, {}, {}, {}};
  auto const count = static_cast<std::size_t>(lists.batches * lists.heads * rows);
  auto const room = count * static_cast<std::size_t>(columns);
  lists.kv_num_blocks.resize(count);
  lists.full_kv_num_blocks.resize(count);
  lists.kv_indices.resize(room);
  lists.full_kv_indices.resize(room);
  std::size_t row = 0;
  for (index_t b = 0; b < lists.batches; ++b)
    for (index_t h = 0; h < lists.heads; ++h)
      for (index_t r = 0; r < rows; ++r, ++row)
        for (index_t c = 0; c < columns; ++c) {
          coverage const met = at(b, h, r, c);
          if (met == coverage::none) continue;
          bool const whole = met == coverage::all;
          int& listed = (whole ? lists.full_kv_num_blocks : lists.kv_num_blocks)[row];
          (whole ? lists.full_kv_indices
                 : lists.kv_indices)[row * static_cast<std::size_t>(columns) +
                                     static_cast<std::size_t>(listed++)] = static_cast<int>(c);
        }
  return lists;
}

}  // namespace detail

/// The key blocks that each row of query blocks meets.
inline block_lists list_key_blocks(block_classes const& classes) {
  return detail::make_lists(
      classes, classes.block_rows(), classes.block_columns(),
      [&](index_t b, index_t h, index_t r, index_t c) { return classes(b, h, r, c); });
}

/// The query blocks that each column of key blocks meets: the transposed lists, which FlexAttention calls q_num_blocks,
/// q_indices, full_q_num_blocks and full_q_indices.
inline block_lists list_query_blocks(block_classes const& classes) {
  return detail::make_lists(
      classes, classes.block_columns(), classes.block_rows(),
      [&](index_t b, index_t h, index_t r, index_t c) { return classes(b, h, c, r); });
}

/// The classes that lists tell of, for `classified`. Blocks that are not listed are empty; those listed as full are
/// trusted. The arguments are those of classify(); the lists' batches and heads are 1 or those of the calls.
inline block_classes classes_of(block_list_views const& lists, index_t rows, index_t keys,
                                block_size size, std::optional<index_t> first_position = {}) {
  index_t const batches = lists.kv_num_blocks.extent(0), heads = lists.kv_num_blocks.extent(1);
  block_classes classes(rows, keys, size, batches, heads, first_position);
  auto const read = [&](char const* name, tensor_view<int const, 3> counts,
                        tensor_view<int const, 4> indices, coverage met) {
    std::array const expected{batches, heads, classes.block_rows()};
    require(counts.extents() == expected, [&] {
      return std::string(name) + "_num_blocks has shape " + shape_text(counts.extents()) +
             "; expected " + shape_text(expected) + " (batch, head, block row)";
    });
    require(indices.extent(0) == batches && indices.extent(1) == heads &&
                indices.extent(2) == classes.block_rows(),
            [&] {
              return std::string(name) + "_indices has shape " + shape_text(indices.extents()) +
                     "; expected the axes of " + name + "_num_blocks, " + shape_text(expected) +
                     ", and one more";
            });
    for (index_t b = 0; b < batches; ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t r = 0; r < classes.block_rows(); ++r) {
          auto const row = [&] {
            return "row " + std::to_string(r) + " (batch " + std::to_string(b) + ", head " +
                   std::to_string(h) + ") of " + name;
          };
          index_t const count = counts(b, h, r);
          require(count >= 0 && count <= indices.extent(3), [&] {
            return row() + "_num_blocks is " + std::to_string(count) + "; expected 0 to " +
                   std::to_string(indices.extent(3));
          });
          for (index_t n = 0; n < count; ++n) {
            index_t const column = indices(b, h, r, n);
            require(column >= 0 && column < classes.block_columns(), [&] {
              return row() + "_indices lists block " + std::to_string(column) + "; expected 0 to " +
                     std::to_string(classes.block_columns() - 1);
            });
            require(classes(b, h, r, column) == coverage::none, [&] {
              return row() + "_indices lists block " + std::to_string(column) +
                     ", which is listed already";
            });
            classes.set(b, h, r, column, met);
          }
        }
  };
  read("kv", lists.kv_num_blocks, lists.kv_indices, coverage::some);
  if (lists.full_kv_num_blocks.data() != nullptr)
    read("full_kv", lists.full_kv_num_blocks, lists.full_kv_indices, coverage::all);
  return classes;
}

}  // namespace heed
