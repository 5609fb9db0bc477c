// Which pairs of tokens a neighborhood, a window, a grid or a halo keeps: from the definitions, on coordinates.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace reference {

using std::ptrdiff_t;

/// One axis of a canvas and its window.
struct axis {
  ptrdiff_t length = 1;
  ptrdiff_t window = 1;
  ptrdiff_t stride = 1;
  ptrdiff_t dilation = 1;
  bool causal = false;
};

/// The window of number c in a dilation group of `length`: [start, end).
struct range {
  ptrdiff_t start, end;
  friend bool operator==(range, range) = default;
};
inline range window_at(axis const& a, ptrdiff_t length, ptrdiff_t c) {
  ptrdiff_t const t = c / a.stride;
  if (a.causal) {
    ptrdiff_t const leader = std::min(t * a.stride + a.stride - 1, length - 1);
    return {std::max<ptrdiff_t>(leader - a.window + 1, 0), c + 1};
  }
  ptrdiff_t const leader = std::min(t * a.stride + a.stride / 2, length - 1);
  ptrdiff_t start = leader - a.window / 2;
  if (start > length - a.window) start = length - a.window;
  if (start < 0) start = 0;
  return {start, start + a.window};
}

/// Whether the coordinate y of a query meets the coordinate z of a key.
inline bool axis_keeps(axis const& a, ptrdiff_t y, ptrdiff_t z) {
  ptrdiff_t const group = y % a.dilation;
  if (z % a.dilation != group) return false;
  ptrdiff_t const length = a.length / a.dilation + (group < a.length % a.dilation ? 1 : 0);
  range const w = window_at(a, length, y / a.dilation);
  return w.start <= z / a.dilation && z / a.dilation < w.end;
}

/// The coordinates of a row-major token.
template <class Lengths>
std::vector<ptrdiff_t> coordinates_of(ptrdiff_t token, Lengths const& lengths) {
  std::vector<ptrdiff_t> at(lengths.size());
  for (std::size_t a = lengths.size(); a-- > 0;) {
    at[a] = token % lengths[a];
    token /= lengths[a];
  }
  return at;
}

/// Whether a query token meets a key token: if every axis keeps their coordinates.
inline bool neighborhood_keeps(std::vector<axis> const& axes, ptrdiff_t query, ptrdiff_t key) {
  std::vector<ptrdiff_t> lengths;
  for (axis const& a : axes) lengths.push_back(a.length);
  auto const q = coordinates_of(query, lengths), k = coordinates_of(key, lengths);
  for (std::size_t a = 0; a < axes.size(); ++a)
    if (!axis_keeps(axes[a], q[a], k[a])) return false;
  return true;
}

/// Shifted windows: the coordinate y belongs to this window of its axis.
inline ptrdiff_t window_number(ptrdiff_t y, ptrdiff_t window, ptrdiff_t shift) {
  if (shift == 0) return y / window;
  return y < shift ? 0 : 1 + (y - shift) / window;
}

/// Halo: the query coordinate y, of every `stride`-th, meets the key coordinate z of [0, length).
inline bool halo_keeps(ptrdiff_t length, ptrdiff_t block, ptrdiff_t halo, ptrdiff_t stride,
                       ptrdiff_t y, ptrdiff_t z) {
  ptrdiff_t const t = y * stride / block;
  return z >= 0 && z < length && t * block - halo <= z && z < t * block + block + halo;
}

}  // namespace reference
