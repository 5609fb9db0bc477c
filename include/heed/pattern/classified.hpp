#pragma once

#include <heed/pattern/block_table.hpp>
#include <heed/pattern/count.hpp>
#include <heed/pattern/mask_of.hpp>

#include <vector>

/// What a predicate makes of blocks of pairs, found once and used in many calls.
namespace heed {

/// The extents of a block of pairs.
struct block_size {
  index_t rows = 128;
  index_t keys = 128;
};

/// For each block of pairs, by batch entry and head, whether none of its pairs meet, some or all: two bits each. The
/// rows of blocks start at query position `first_position`.
class block_classes {
 public:
  /// Of `rows` x `keys` pairs, the last row at the last key unless the first row's position is given; all `none`.
  block_classes(index_t rows, index_t keys, block_size size, index_t batches = 1, index_t heads = 1,
                std::optional<index_t> first_position = {})
      : batches_(batches),
        heads_(heads),
        rows_(rows),
        keys_(keys),
        size_(size),
        first_position_(first_position.value_or(keys - rows)) {
    require(size.rows > 0 && size.keys > 0, [&] {
      return "blocks have the size " + shape_text(std::array{size.rows, size.keys}) +
             "; expected positive numbers of rows and keys";
    });
    require(rows >= 0 && keys >= 0 && batches >= 1 && heads >= 1, [&] {
      return "block classes of shape " + shape_text(std::array{batches, heads, rows, keys}) +
             "; expected (batch, head, row, key), at least one batch entry and head";
    });
    words_.assign(
        static_cast<std::size_t>((batches * heads * block_rows() * block_columns() + 31) / 32), 0);
  }

  index_t batches() const { return batches_; }
  index_t heads() const { return heads_; }
  index_t rows() const { return rows_; }
  index_t keys() const { return keys_; }
  index_t first_position() const { return first_position_; }
  block_size size() const { return size_; }
  index_t block_rows() const { return (rows_ + size_.rows - 1) / size_.rows; }
  index_t block_columns() const { return (keys_ + size_.keys - 1) / size_.keys; }

  /// The rows and the keys of a block; those at the ends may be short.
  interval rows_of(index_t block_row) const {
    return intersect({block_row * size_.rows, (block_row + 1) * size_.rows}, {0, rows_});
  }
  interval keys_of(index_t block_column) const {
    return intersect({block_column * size_.keys, (block_column + 1) * size_.keys}, {0, keys_});
  }

  coverage operator()(index_t batch, index_t head, index_t block_row, index_t block_column) const {
    return at(offset(batch, head, block_row) + block_column);
  }
  void set(index_t batch, index_t head, index_t block_row, index_t block_column, coverage to) {
    index_t const n = offset(batch, head, block_row) + block_column;
    std::uint64_t& word = words_[static_cast<std::size_t>(n / 32)];
    auto const shift = static_cast<int>(n % 32 * 2);
    word = (word & ~(std::uint64_t{3} << shift)) | static_cast<std::uint64_t>(to) << shift;
  }

  /// Where the classes of a row of blocks start, and the class at such a number.
  index_t offset(index_t batch, index_t head, index_t block_row) const {
    index_t const b = batches_ == 1 ? 0 : batch, h = heads_ == 1 ? 0 : head;
    return ((b * heads_ + h) * block_rows() + block_row) * block_columns();
  }
  coverage at(index_t n) const {
    return static_cast<coverage>(words_[static_cast<std::size_t>(n / 32)] >> (n % 32 * 2) & 3);
  }
  /// The first class other than `none` in [n, end), or the end.
  index_t next(index_t n, index_t end) const {
    while (n < end) {
      std::uint64_t const word = words_[static_cast<std::size_t>(n / 32)] >> (n % 32 * 2);
      if (word != 0) return std::min(end, n + std::countr_zero(word) / 2);
      n += 32 - n % 32;
    }
    return end;
  }

 private:
  index_t batches_, heads_, rows_, keys_;
  block_size size_;
  index_t first_position_;
  std::vector<std::uint64_t> words_;
};

namespace detail {

/// The class of a block of positions and keys, from the pattern's word or its pairs.
template <bound_pattern P>
coverage class_of_block(P const& pattern, interval queries, interval keys) {
  coverage const said = pattern_cover(pattern, queries, keys);
  if (said != coverage::some) return said;
  bool all = true, none = true;
  for (index_t q = queries.first; q < queries.last && (all || none); q += 64) {
    interval const panel{q, std::min(q + 64, queries.last)};
    index_t const pairs = pairs_of_tile(pattern, panel, keys);
    all = all && pairs == panel.size() * keys.size();
    none = none && pairs == 0;
  }
  return none ? coverage::none : all ? coverage::all : coverage::some;
}

template <class F>
concept mask_function = std::is_invocable_r_v<bool, F const&, index_t, index_t> ||
    std::is_invocable_r_v<bool, F const&, index_t, index_t, index_t, index_t>;

}  // namespace detail

/// Looks once at every pair of a pattern, or of a function as mask_of takes it, and says of each block whether none of
/// its pairs meet, some or all. A block that is cut by the last row or key is judged by what is left of it.
///
///   rows, keys      the lengths of the calls to come, or longer; at most 2^24
///   size            128 x 128 unless given
///   batches, heads  1, or those of the calls, if the pattern is not the same in all of them
///   first_position  that of the first row, by default keys - rows: the last row stands at the last key
template <pattern P>
block_classes classify(P const& pattern, index_t rows, index_t keys, block_size size = {},
                       index_t batches = 1, index_t heads = 1,
                       std::optional<index_t> first_position = {}) {
  block_classes classes(rows, keys, size, batches, heads, first_position);
  check_against(pattern, call_shape{batches, batches, heads, rows, keys});
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h) {
      auto const bound =
          bind_at(pattern, place{.sequence = b, .batch = b, .head = h, .rows = rows, .keys = keys});
      for (index_t r = 0; r < classes.block_rows(); ++r) {
        interval const block = classes.rows_of(r);
        interval const queries{block.first + classes.first_position(),
                               block.last + classes.first_position()};
        for (index_t c = 0; c < classes.block_columns(); ++c)
          classes.set(b, h, r, c, detail::class_of_block(bound, queries, classes.keys_of(c)));
      }
    }
  return classes;
}
template <detail::mask_function F>
  requires(!pattern<F>)
block_classes classify(F const& keep, index_t rows, index_t keys, block_size size = {},
                       index_t batches = 1, index_t heads = 1,
                       std::optional<index_t> first_position = {}) {
  return classify(mask_of(keep), rows, keys, size, batches, heads, first_position);
}

/// A pattern whose blocks have been classified: empty ones are skipped and full ones run without a question.
///
///     auto const document = heed::mask_of([&](index_t i, index_t j) { return doc[i] == doc[j] && j <= i; });
///     auto const classes = heed::classify(document, n, n);
///     heed::attention(q, k, v, out, heed::classified(document, classes));
///
/// The classes are trusted: the pattern is asked in blocks that meet in part, and nowhere else. Rows and keys that they
/// do not know do not meet. The classes stay the caller's.
template <pattern P>
class classified {
 public:
  classified(P const& pattern, block_classes const& classes)
      : pattern_(pattern), classes_(&classes) {}
  classified(P const&, block_classes&&) = delete;

  /// The blocks of one batch entry and head.
  template <bound_pattern Bound>
  struct blocks {
    Bound pattern;
    block_classes const* classes;
    index_t first;  // class

    index_t next(index_t row, index_t column) const {
      index_t const columns = classes->block_columns(), start = first + row * columns;
      return classes->next(start + column, start + columns) - start;
    }
    coverage cover(index_t row, index_t column, interval rows, interval keys) const {
      coverage const known = class_of(row, column);
      return known == coverage::some ? pattern_cover(pattern, queries(row, rows), in(column, keys))
                                     : known;
    }
    bool keep(index_t row, index_t column, index_t i, index_t j) const {
      return class_of(row, column) == coverage::all ||
             pattern.keep(queries(row, {i, i}).first, in(column, {j, j}).first);
    }
    void mask(index_t row, index_t column, std::span<index_t const> rows, interval keys,
              std::uint64_t* bits) const {
      std::array<index_t, 64> positions{};
      for (std::size_t q = 0; q < rows.size(); ++q)
        positions[q] = queries(row, {rows[q], rows[q]}).first;
      pattern_mask(pattern, std::span<index_t const>(positions).first(rows.size()),
                   in(column, keys), bits);
    }

   private:
    coverage class_of(index_t row, index_t column) const {
      return classes->at(first + row * classes->block_columns() + column);
    }
    interval queries(index_t row, interval rows) const {
      index_t const start = row * classes->size().rows + classes->first_position();
      return {start + rows.first, start + rows.last};
    }
    interval in(index_t column, interval keys) const {
      index_t const start = column * classes->size().keys;
      return {start + keys.first, start + keys.last};
    }
  };

  auto bind(place const& where) const {
    using bound = decltype(bind_at(pattern_, where));
    return detail::place_table(
        detail::cut_table<blocks<bound>>{
            {.size = classes_->size().rows,
             .blocks = classes_->block_rows(),
             .end = classes_->rows()},
            {.size = classes_->size().keys,
             .blocks = classes_->block_columns(),
             .end = classes_->keys()},
            {bind_at(pattern_, where), classes_, classes_->offset(where.batch, where.head, 0)}},
        where, classes_->first_position());
  }

  index_t panel_rows() const { return classes_->size().rows; }
  void check(call_shape const& shape) const {
    check_against(pattern_, shape);
    auto const fits = [](index_t own, index_t expected) { return own == 1 || own == expected; };
    require(fits(classes_->batches(), shape.batches) && fits(classes_->heads(), shape.heads), [&] {
      return "classified has classes for " + std::to_string(classes_->batches()) + " batches and " +
             std::to_string(classes_->heads()) + " heads; expected 1 or " +
             std::to_string(shape.batches) + ", and 1 or " + std::to_string(shape.heads);
    });
    require(shape.sequences == shape.batches, [&] {
      return "classified knows whole batch entries; these have " + std::to_string(shape.sequences) +
             " packed sequences";
    });
    require(classes_->rows() >= shape.rows && classes_->keys() >= shape.keys, [&] {
      return "classified has classes for " + std::to_string(classes_->rows()) + " rows and " +
             std::to_string(classes_->keys()) + " keys; expected " + std::to_string(shape.rows) +
             " and " + std::to_string(shape.keys) + ", or more";
    });
  }

 private:
  P pattern_;
  block_classes const* classes_;
};

}  // namespace heed
