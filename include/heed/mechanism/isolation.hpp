#pragma once

#include <heed/pattern/labels.hpp>
#include <heed/score/modifier.hpp>
#include <heed/view/gather.hpp>

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

/// Isolation and Reposition Attention, of Improving Multi-Subject Consistency in Open-Domain Image Generation: subjects of
/// a picture do not look at each other, but each at a reference image of its own.
namespace heed {

/// Who meets whom. A token of the picture says by bits in which subjects' regions it lies; regions may overlap. A pair
/// is blocked if its query lies in one region and its key in another one, so inside an overlap all pairs are.
///
///     heed::isolation const plan(regions);                  // keys: the picture
///     heed::isolation const plan(regions, references);      // keys: [reference 1 | ... | reference S | picture]
///     heed::attention(q, k, v, out, plan.pattern());        // points into `plan`
///
/// references: for each image a mask over its tokens; the reference of subject a is met by the queries in region a,
/// where its mask holds, after repositioning. Reference images attend to themselves, in calls of their own.
class isolation {
 public:
  explicit isolation(std::span<std::uint64_t const> regions) : isolation(regions, {}) {}
  isolation(std::span<std::uint64_t const> regions,
            std::span<std::span<bool const> const> references) {
    // Tokens in the same regions are alike, and so are those of one reference.
    std::vector<std::uint64_t> kinds;
    for (std::uint64_t each : regions) {
      std::size_t kind = 0;
      while (kind < kinds.size() && kinds[kind] != each) ++kind;
      if (kind == kinds.size()) kinds.push_back(each);
      queries_.push_back(static_cast<int>(kind));
    }
    std::size_t const subjects = references.size(), hidden = kinds.size() + subjects;
    require(hidden < 64, [&] {
      return "isolation has " + std::to_string(kinds.size()) + " kinds of overlap and " +
             std::to_string(subjects) + " references; expected fewer than 64 together";
    });
    for (std::size_t a = 0; a < subjects; ++a)
      for (bool shown : references[a])
        keys_.push_back(static_cast<int>(shown ? kinds.size() + a : hidden));
    keys_.insert(keys_.end(), queries_.begin(), queries_.end());

    rows_ = kinds.size();
    columns_ = hidden + 1;
    admitted_.reset(new bool[rows_ * columns_ + 1]());
    for (std::size_t q = 0; q < rows_; ++q) {
      for (std::size_t k = 0; k < kinds.size(); ++k)
        admitted_[q * columns_ + k] = !blocked(kinds[q], kinds[k]);
      for (std::size_t a = 0; a < subjects; ++a)
        admitted_[q * columns_ + kinds.size() + a] = (kinds[q] >> a & 1) != 0;
    }
  }

  labels pattern() const {
    auto const list = [](std::vector<int> const& numbers) {
      return tensor_view<int const, 3>(numbers.data(),
                                       {1, 1, static_cast<index_t>(numbers.size())});
    };
    return {list(queries_),
            list(keys_),
            {admitted_.get(), {static_cast<index_t>(rows_), static_cast<index_t>(columns_)}}};
  }

 private:
  /// Whether some region of the query is not some region of the key.
  static bool blocked(std::uint64_t query, std::uint64_t key) {
    return query != 0 && key != 0 && !(query == key && std::has_single_bit(query));
  }

  std::vector<int> queries_, keys_;
  std::size_t rows_ = 0, columns_ = 0;
  std::unique_ptr<bool[]> admitted_;
};

/// Adds `weight` to the scores of the reference keys, those before the picture's.
struct reference_weight {
  index_t picture_from;
  double weight = 0;

  template <class Batch>
  Batch apply(Batch score, Batch, Batch key) const {
    using number = typename Batch::value_type;
    return xsimd::select(key < Batch(static_cast<number>(picture_from)),
                         score + Batch(static_cast<number>(weight)), score);
  }
};

/// A grid of tokens, row by row.
struct token_grid {
  index_t height;
  index_t width;
};

/// A reference moved to where its subject shall be: what its bounding box holds, resized to the target's bounding box by the
/// nearest cell.
struct moved_reference {
  std::vector<index_t> rows;  ///< for gather_rows: the cell that each target cell takes, -1 outside
  std::unique_ptr<bool[]> mask;  ///< the reference's mask, moved alike
};

/// source, target: masks over grids, of the subject in the reference image and of its region in the picture. With an
/// empty one of them the reference stays as it is.
inline moved_reference reposition(std::span<bool const> source, token_grid source_grid,
                                  std::span<bool const> target, token_grid target_grid) {
  auto const check = [](char const* name, std::span<bool const> mask, token_grid grid) {
    require(static_cast<index_t>(mask.size()) == grid.height * grid.width, [&] {
      return "the " + std::string(name) + " mask of reposition has " + std::to_string(mask.size()) +
             " cells; expected " + std::to_string(grid.height) + " x " + std::to_string(grid.width);
    });
  };
  check("source", source, source_grid);
  check("target", target, target_grid);

  struct box {
    interval y, x;
  };
  auto const around = [](std::span<bool const> mask, token_grid grid) {
    box found{{grid.height, 0}, {grid.width, 0}};
    for (index_t y = 0; y < grid.height; ++y)
      for (index_t x = 0; x < grid.width; ++x)
        if (mask[static_cast<std::size_t>(y * grid.width + x)])
          found = {{std::min(found.y.first, y), std::max(found.y.last, y + 1)},
                   {std::min(found.x.first, x), std::max(found.x.last, x + 1)}};
    return found;
  };
  box const from = around(source, source_grid), to = around(target, target_grid);
  moved_reference moved{{}, nullptr};
  if (from.y.empty() || to.y.empty()) {
    moved.mask.reset(new bool[source.size() + 1]);
    for (std::size_t cell = 0; cell < source.size(); ++cell) {
      moved.rows.push_back(static_cast<index_t>(cell));
      moved.mask[cell] = source[cell];
    }
    return moved;
  }
  moved.rows.assign(target.size(), -1);
  moved.mask.reset(new bool[target.size() + 1]());
  for (index_t y = 0; y < to.y.size(); ++y)
    for (index_t x = 0; x < to.x.size(); ++x) {
      index_t const cell = (from.y.first + y * from.y.size() / to.y.size()) * source_grid.width +
                           from.x.first + x * from.x.size() / to.x.size();
      if (!source[static_cast<std::size_t>(cell)]) continue;
      auto const at =
          static_cast<std::size_t>((to.y.first + y) * target_grid.width + to.x.first + x);
      moved.rows[at] = cell;
      moved.mask[at] = true;
    }
  return moved;
}

}  // namespace heed
