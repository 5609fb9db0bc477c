#pragma once

#include "reference/tensor.hpp"

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// Patterns over tokens of several kinds, pair by pair.
namespace reference {

/// Neural Attention Search: types is a string of g, l and s.
inline bool token_types(index_t i, index_t j, std::string const& types, index_t window) {
  if (j > i) return false;
  auto const type = [&](index_t x) { return types[static_cast<std::size_t>(x)]; };
  if (type(j) == 'g') return true;
  if (type(j) == 's') return i <= j + window;
  for (index_t x = j; x < i; ++x)
    if (type(x) == 'g') return false;  // a global token has passed
  return true;
}

inline bool meta_tokens(index_t i, index_t j, std::vector<bool> const& meta) {
  return j <= i && meta[static_cast<std::size_t>(i)] && meta[static_cast<std::size_t>(j)];
}

/// Sentinel tokens, from a string of x, ( for CL and ) for CR. Spans as [first, last], with the places of their markers.
struct sentinel_span {
  index_t first, last;  // inclusive
};
inline std::vector<sentinel_span> sentinel_spans(std::string const& text) {
  std::vector<sentinel_span> spans;
  std::vector<index_t> open;
  for (index_t i = 0; i < static_cast<index_t>(text.size()); ++i) {
    char const c = text[static_cast<std::size_t>(i)];
    if (c == '(') open.push_back(i);
    if (c == ')') {
      index_t first = 0;
      if (!open.empty()) {
        first = open.back() + 1;
        open.pop_back();
      }
      spans.push_back({first, i - 1});
    }
  }
  return spans;
}
inline bool sentinel_tokens(index_t i, index_t j, std::string const& text) {
  if (j > i) return false;
  auto const at = [&](index_t x) { return text[static_cast<std::size_t>(x)]; };
  auto const spans = sentinel_spans(text);
  auto const holds = [](sentinel_span const& s, index_t x) { return s.first <= x && x <= s.last; };
  if (i == j) return true;
  if (at(i) == '(') return false;
  if (at(i) == ')') {
    for (auto const& s : spans)
      if (s.last == i - 1)  // its own: its CL, if there is one, stands before the span
        return j >= s.first - 1;
    return false;
  }
  if (at(j) == ')') return true;
  bool inside = false;
  for (auto const& s : spans) {
    if (!holds(s, j)) continue;
    inside = true;
    if (holds(s, i)) return true;
  }
  return !inside && at(j) != '(';
}
/// Markers take the position of the token before them, 0 at the start; other tokens count on.
inline std::vector<index_t> sentinel_positions(std::string const& text) {
  std::vector<index_t> positions;
  index_t next = 0;
  for (char c : text) {
    if (c == 'x') {
      positions.push_back(next++);
    } else {
      positions.push_back(positions.empty() ? 0 : positions.back());
    }
  }
  return positions;
}

/// NAAViT: visual tokens are keys only. Pilot form: visual rows meet text and themselves.
inline bool text_queries(index_t i, index_t j, std::vector<bool> const& visual) {
  return j <= i && !visual[static_cast<std::size_t>(i)];
}
inline bool blind_visual_tokens(index_t i, index_t j, std::vector<bool> const& visual) {
  return j <= i &&
         (i == j || !visual[static_cast<std::size_t>(i)] || !visual[static_cast<std::size_t>(j)]);
}

/// MODA's two masks.
inline bool self_modal(index_t i, index_t j, std::vector<index_t> const& modality) {
  return j <= i && modality[static_cast<std::size_t>(i)] == modality[static_cast<std::size_t>(j)];
}
inline bool cross_modal(index_t i, index_t j, std::vector<index_t> const& modality) {
  return j <= i && (i == j || !self_modal(i, j, modality));
}

/// Isolation: in_region[a] holds the tokens of region a.
inline bool isolation(index_t i, index_t j, std::vector<std::vector<bool>> const& in_region) {
  for (std::size_t a = 0; a < in_region.size(); ++a)
    for (std::size_t b = 0; b < in_region.size(); ++b)
      if (a != b && in_region[a][static_cast<std::size_t>(i)] &&
          in_region[b][static_cast<std::size_t>(j)])
        return false;
  return true;
}
/// With reference images before the target: key j of [ref 1 | … | ref S | target], all of P tokens.
inline bool isolation_with_references(index_t i, index_t j,
                                      std::vector<std::vector<bool>> const& in_region,
                                      std::vector<std::vector<bool>> const& in_reference) {
  auto const P = static_cast<index_t>(in_region.at(0).size());
  auto const image = static_cast<std::size_t>(j / P);
  if (image == in_region.size()) return isolation(i, j % P, in_region);
  return in_region[image][static_cast<std::size_t>(i)] &&
         in_reference[image][static_cast<std::size_t>(j % P)];
}

/// Graph windows. adjacency[a][b]: row attends column.
inline std::vector<std::vector<bool>> within_hops(std::vector<std::vector<bool>> adjacency,
                                                  index_t hops) {
  std::size_t const V = adjacency.size();
  std::vector<std::vector<double>> S(V, std::vector<double>(V)), power(V, std::vector<double>(V));
  for (std::size_t a = 0; a < V; ++a) {
    adjacency[a][a] = true;
    power[a][a] = 1;
  }
  for (std::size_t a = 0; a < V; ++a)
    for (std::size_t b = 0; b < V; ++b) S[a][b] = adjacency[a][b] + adjacency[b][a];
  for (index_t k = 0; k < hops; ++k) {
    std::vector<std::vector<double>> next(V, std::vector<double>(V));
    for (std::size_t a = 0; a < V; ++a)
      for (std::size_t b = 0; b < V; ++b)
        for (std::size_t c = 0; c < V; ++c) next[a][b] += power[a][c] * S[c][b];
    power = next;
  }
  std::vector<std::vector<bool>> reached(V, std::vector<bool>(V));
  for (std::size_t a = 0; a < V; ++a)
    for (std::size_t b = 0; b < V; ++b) reached[a][b] = power[a][b] > 0;
  return reached;
}
inline bool graph_window(index_t i, index_t j, std::vector<index_t> const& nodes,
                         std::vector<std::vector<bool>> const& reached, bool bidirectional) {
  for (std::size_t a = 0; a < nodes.size(); ++a)
    for (std::size_t b = 0; b < nodes.size(); ++b)
      if (nodes[a] == i && nodes[b] == j) return reached[a][b] && (bidirectional || a >= b);
  return j <= i;
}

}  // namespace reference
