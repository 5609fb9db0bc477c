// Patterns that are written down, in plain words: rectangles, ranges of hidden rows, blocks, bits.
#pragma once

#include <heed/pattern/block_table.hpp>
#include <heed/pattern/slices.hpp>

#include <vector>

namespace reference {

using heed::index_t;

/// Row i and key j of a rectangle with a type.
inline bool in_slice(heed::slice const& s, index_t i, index_t j) {
  if (i < s.rows.first || i >= s.rows.last || j < s.keys.first || j >= s.keys.last) return false;
  index_t const a = i - s.rows.first, c = j - s.keys.first;
  index_t const nq = s.rows.last - s.rows.first, nk = s.keys.last - s.keys.first;
  switch (s.type) {
    case heed::slice_type::full:
      return true;
    case heed::slice_type::causal:
      return c <= a + nk - nq;
    case heed::slice_type::inverse:
      return c >= a;
    case heed::slice_type::both:
      return a <= c && c <= a + nk - nq;
  }
  return false;
}

inline bool in_slices(std::vector<heed::slice> const& list, index_t i, index_t j) {
  for (heed::slice const& s : list)
    if (in_slice(s, i, j)) return true;
  return false;
}

/// Four numbers a key hide it from [LTS, LTE) and [UTS, UTE), and from the rows before it if causal.
struct hidden_rows {
  index_t lts, lte, uts, ute;

  bool keep(index_t i, index_t j, bool causal) const {
    return !(lts <= i && i < lte) && !(uts <= i && i < ute) && !(causal && i < j);
  }
};

/// The number of the block that holds i, among cumulative sizes.
inline index_t block_of(std::vector<index_t> const& bounds, index_t i) {
  for (std::size_t n = 0; n + 1 < bounds.size(); ++n)
    if (bounds[n] <= i && i < bounds[n + 1]) return static_cast<index_t>(n);
  return -1;
}

}  // namespace reference
