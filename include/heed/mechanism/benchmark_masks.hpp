#pragma once

#include <heed/pattern/block_table.hpp>
#include <heed/pattern/column_ranges.hpp>
#include <heed/pattern/slices.hpp>

#include <memory>
#include <random>
#include <vector>

/// The masks of Long-Context Attention Benchmark: From Kernel Efficiency to Distributed Context Parallelism.
///
/// Each is self-attention over n tokens, and comes both as slices and as column ranges; the two are the same pattern.
/// Documents are given by their boundaries 0 = c_0 <= c_1 <= … <= n, doc(i) is the number of the one that holds i.
namespace heed::benchmark {

/// A mask in its two forms.
///
///     auto const mask = heed::benchmark::share_question(boundaries);
///     heed::attention(q, k, v, out, mask.as_slices());
struct mask {
  std::vector<slice> pieces;
  std::vector<index_t> numbers;  // LTS, LTE, UTS, UTE of each key
  bool causal = false;           // of the column ranges

  heed::slices as_slices() const { return {.list = pieces}; }
  column_ranges as_column_ranges() const {
    return {.columns = {numbers.data(), {1, 1, static_cast<index_t>(numbers.size() / 4), 4}},
            .causal = causal};
  }
  /// The pairs that meet.
  index_t work() const {
    index_t pairs = 0;
    for (slice const& piece : pieces) pairs += piece.pairs();
    return pairs;
  }
};

/// The keys p - left <= j <= p + right as at most three slices; the last of the rows stands at the last of the keys.
inline std::vector<slice> window_slices(index_t rows, index_t keys, index_t left, index_t right) {
  require(left >= 0 && right >= 0, [&] {
    return "a window reaches " + std::to_string(left) + " to the left and " +
           std::to_string(right) + " to the right; expected numbers that are not negative";
  });
  index_t const off = keys - rows, a = std::min(left, keys - right),
                b = std::max(left, keys - right);
  std::vector<slice> pieces;
  auto const add = [&](index_t from, index_t to, slice_type type) {
    interval const p = intersect({from, to}, {off, keys});
    if (p.empty()) return;
    bool const starts = type == slice_type::inverse || type == slice_type::both;
    bool const ends = type == slice_type::causal || type == slice_type::both;
    pieces.push_back({{p.first - off, p.last - off},
                      {starts ? p.first - left : 0, ends ? p.last + right : keys},
                      type});
  };
  add(-right, a, slice_type::causal);
  add(std::max(a, -right), b, left < keys - right ? slice_type::both : slice_type::full);
  add(std::max(b, -right), keys, slice_type::inverse);
  return pieces;
}

namespace detail {

/// Numbers for n keys, from number(j) = {LTS, LTE, UTS, UTE}.
template <class Number>
std::vector<index_t> numbers_of(index_t n, Number number) {
  std::vector<index_t> numbers;
  for (index_t j = 0; j < n; ++j)
    for (index_t each : std::array<index_t, 4>(number(j))) numbers.push_back(each);
  return numbers;
}

/// Documents in order, those without tokens left out.
struct documents {
  std::vector<interval> list;
  index_t length = 0;

  explicit documents(std::span<index_t const> boundaries) {
    bool ordered = !boundaries.empty() && boundaries.front() == 0;
    for (std::size_t g = 1; g < boundaries.size(); ++g) {
      ordered &= boundaries[g - 1] <= boundaries[g];
      if (boundaries[g - 1] < boundaries[g]) list.push_back({boundaries[g - 1], boundaries[g]});
    }
    require(ordered, [&] {
      return "the boundaries of documents are " + shape_text(boundaries) +
             "; expected numbers that start at 0 and do not decrease";
    });
    length = boundaries.back();
  }

  interval holding(index_t j) const {
    return *std::partition_point(list.begin(), list.end(),
                                 [&](interval each) { return each.last <= j; });
  }
};

}  // namespace detail

inline mask full(index_t n) {
  return {{{{0, n}, {0, n}}}, detail::numbers_of(n, [=](index_t) {
            return std::array<index_t, 4>{n, n, 0, 0};
          })};
}

/// j <= i.
inline mask causal(index_t n) {
  mask result = full(n);
  result.pieces[0].type = slice_type::causal;
  result.causal = true;
  return result;
}

/// doc(i) = doc(j).
inline mask full_document(std::span<index_t const> boundaries) {
  detail::documents const docs(boundaries);
  mask result;
  for (interval doc : docs.list) result.pieces.push_back({doc, doc});
  result.numbers = detail::numbers_of(docs.length, [&](index_t j) {
    interval const doc = docs.holding(j);
    return std::array<index_t, 4>{doc.last, docs.length, 0, doc.first};
  });
  return result;
}

/// doc(i) = doc(j) and j <= i.
inline mask causal_document(std::span<index_t const> boundaries) {
  mask result = full_document(boundaries);
  for (slice& piece : result.pieces) piece.type = slice_type::causal;
  for (std::size_t j = 0; j < result.numbers.size(); j += 4) result.numbers[j + 3] = 0;
  result.causal = true;
  return result;
}

/// Causal documents; all others meet document 0 as well.
inline mask share_question(std::span<index_t const> boundaries) {
  detail::documents const docs(boundaries);
  mask result = causal_document(boundaries);
  if (docs.list.empty() || boundaries[1] == 0) return result;  // document 0 has no tokens
  interval const question = docs.list[0];
  for (std::size_t g = 1; g < docs.list.size(); ++g)
    result.pieces.push_back({docs.list[g], question});
  for (index_t j = 0; j < question.last; ++j)
    result.numbers[static_cast<std::size_t>(4 * j)] = docs.length;
  return result;
}

/// Causal documents; the last one meets everything before it.
inline mask causal_blockwise(std::span<index_t const> boundaries) {
  detail::documents const docs(boundaries);
  mask result = causal_document(boundaries);
  if (docs.list.empty() || boundaries.end()[-2] == docs.length) return result;
  interval const last = docs.list.back();
  result.pieces.back() = {last, {0, docs.length}, slice_type::causal};
  for (index_t j = 0; j < last.first; ++j)
    result.numbers[static_cast<std::size_t>(4 * j + 1)] = last.first;
  return result;
}

/// doc(i) = doc(j) and (j <= i or j is one of the first `prefix` tokens of its document).
inline mask prefix_lm_document(std::span<index_t const> boundaries, index_t prefix) {
  require(prefix >= 0, [&] {
    return "the prefix has " + std::to_string(prefix) + " tokens; expected none or more";
  });
  detail::documents const docs(boundaries);
  mask result;
  for (interval doc : docs.list) {
    index_t const end = std::min(doc.first + prefix, doc.last);
    if (end > doc.first) result.pieces.push_back({{doc.first, end}, {doc.first, end}});
    if (end < doc.last) result.pieces.push_back({{end, doc.last}, doc, slice_type::causal});
  }
  result.numbers = detail::numbers_of(docs.length, [&](index_t j) {
    interval const doc = docs.holding(j);
    return std::array<index_t, 4>{doc.last, docs.length, 0, j < doc.first + prefix ? doc.first : j};
  });
  return result;
}

/// j <= i or j < prefix.
inline mask prefix_lm_causal(index_t n, index_t prefix) {
  return prefix_lm_document(std::array<index_t, 2>{0, n}, prefix);
}

/// |i - j| <= reach.
inline mask window(index_t n, index_t reach) {
  return {window_slices(n, n, reach, reach), detail::numbers_of(n, [=](index_t j) {
            return std::array<index_t, 4>{std::min(j + reach + 1, n), n, 0,
                                          std::max<index_t>(j - reach, 0)};
          })};
}

/// 0 <= i - j <= reach.
inline mask causal_window(index_t n, index_t reach) {
  return {window_slices(n, n, reach, 0),
          detail::numbers_of(n,
                             [=](index_t j) {
                               return std::array<index_t, 4>{std::min(j + reach + 1, n), n, 0, 0};
                             }),
          true};
}

/// |i - j| <= reach, or i or j is one of the first 2 reach tokens.
inline mask global_window(index_t n, index_t reach) {
  index_t const g = std::min(2 * reach, n);
  mask result;
  if (g > 0) result.pieces.push_back({{0, g}, {0, n}});
  if (g > 0 && g < n) result.pieces.push_back({{g, n}, {0, g}});
  for (slice piece : window_slices(n - g, n - g, reach, reach)) {
    piece.rows = {piece.rows.first + g, piece.rows.last + g};
    piece.keys = {piece.keys.first + g, piece.keys.last + g};
    result.pieces.push_back(piece);
  }
  result.numbers = detail::numbers_of(n, [=](index_t j) {
    if (j < g) return std::array<index_t, 4>{n, n, 0, 0};
    return std::array<index_t, 4>{std::max(std::min(j + reach + 1, n), g), n, g,
                                  std::max(j - reach, g)};
  });
  return result;
}

/// doc(i) = doc(j) and j lies in the block of i or in one before; documents are made of whole blocks.
inline mask block_causal_document(std::span<index_t const> boundaries, index_t block = 1024) {
  require(block > 0, [&] {
    return "a block has " + std::to_string(block) + " tokens; expected at least one";
  });
  for (index_t boundary : boundaries)
    require(boundary % block == 0, [&] {
      return "a document ends at " + std::to_string(boundary) +
             "; expected a multiple of the block, " + std::to_string(block);
    });
  detail::documents const docs(boundaries);
  mask result;
  for (interval doc : docs.list)
    for (index_t first = doc.first; first < doc.last; first += block)
      result.pieces.push_back({{first, first + block}, {doc.first, first + block}});
  result.numbers = detail::numbers_of(docs.length, [&](index_t j) {
    return std::array<index_t, 4>{docs.holding(j).last, docs.length, 0, j / block * block};
  });
  return result;
}

/// Which blocks of a random table are kept.
enum class block_choice {
  per_row,  ///< as many of each row of blocks
  global,   ///< of the whole table
};

/// A random table of blocks: of each row, or of the whole table, the share `density` of its blocks, rounded to the
/// nearest number. The same seed gives the same blocks everywhere. One table for all heads is one of 1 head.
class random_blocks {
 public:
  /// Of one block size (uniform block sparse).
  random_blocks(index_t n, index_t block, double density, block_choice choice, index_t heads,
                std::uint64_t seed)
      : random_(seed), cut_{block} {
    require(block > 0, [&] {
      return "a block has " + std::to_string(block) + " tokens; expected at least one";
    });
    draw((n + block - 1) / block, heads, density, choice);
  }
  /// Of blocks that `bounds` cut (variable block sparse); 0 = bounds[0] <= bounds[1] <= … <= n. The bounds stay the
  /// caller's.
  random_blocks(std::span<index_t const> bounds, double density, block_choice choice, index_t heads,
                std::uint64_t seed)
      : random_(seed), cut_(cut_at(bounds)) {
    draw(static_cast<index_t>(bounds.size()) - 1, heads, density, choice);
  }

  block_table pattern() const { return {.kept = table(), .rows = cut_, .keys = cut_}; }
  tensor_view<bool const, 4> table() const { return {kept_.get(), {1, heads_, blocks_, blocks_}}; }

  /// The blocks of a head as slices.
  std::vector<slice> as_slices(index_t n, index_t head) const {
    std::vector<slice> pieces;
    auto const block = [&](index_t b) {
      if (cut_.size > 0) return intersect({b * cut_.size, (b + 1) * cut_.size}, {0, n});
      return interval{cut_.bounds(0, 0, b), cut_.bounds(0, 0, b + 1)};
    };
    for (index_t r = 0; r < blocks_; ++r)
      for (index_t c = 0; c < blocks_; ++c)
        if (table()(0, head, r, c)) pieces.push_back({block(r), block(c)});
    return pieces;
  }

 private:
  void draw(index_t blocks, index_t heads, double density, block_choice choice) {
    require(density >= 0 && density <= 1 && heads >= 1 && blocks >= 0, [&] {
      return "random blocks of density " + std::to_string(density) + " for " +
             std::to_string(heads) + " heads; expected a density from 0 to 1, at least one head";
    });
    blocks_ = blocks;
    heads_ = heads;
    kept_ = std::make_unique<bool[]>(static_cast<std::size_t>(heads * blocks * blocks + 1));
    index_t const size = choice == block_choice::per_row ? blocks : blocks * blocks;
    auto const count = static_cast<index_t>(density * static_cast<double>(size) + 0.5);
    for (bool* from = kept_.get(); size > 0 && from < kept_.get() + heads * blocks * blocks;
         from += size)
      choose(from, size, count);
  }
  /// Sets `count` of `size` booleans.
  void choose(bool* from, index_t size, index_t count) {
    for (index_t n = 0; n < size; ++n) {
      auto const left = static_cast<std::uint64_t>(size - n);
      from[n] = random_() % left < static_cast<std::uint64_t>(count);
      count -= from[n];
    }
  }

  std::mt19937_64 random_;
  block_cut cut_;
  index_t blocks_ = 0, heads_ = 1;
  std::unique_ptr<bool[]> kept_;
};

}  // namespace heed::benchmark
