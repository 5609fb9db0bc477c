#pragma once

#include <heed/pattern/band.hpp>

#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

/// Attention Mechanisms Perspective: Exploring LLM Processing of Graph-Structured Data: tokens that name the nodes of a
/// graph meet those within some hops, whatever their order says; text stays causal.
namespace heed {

/// The pattern of one sequence. Text meets and is met causally. Of two nodes, a meets b if a path of `hops` steps, forwards
/// or backwards along edges or standing still, leads from a to b; and, unless bidirectional, b is not after a.
/// More hops, from 1 on, make windows between the adjacency and all.
///
///     heed::graph_windows const plan(nodes, adjacency, 2);
///     heed::attention(q, k, v, out, plan.pattern());    // points into `plan`; for a batch see by_sequence
///
/// Positions are those of the sequence: the plan serves steps of decoding too, unless rows look ahead.
class graph_windows {
 public:
  /// nodes: the positions of node tokens, in order. adjacency: [node, node], whether the row's node has an edge to the
  /// column's.
  graph_windows(std::span<index_t const> nodes, tensor_view<bool const, 2> adjacency, index_t hops,
                bool bidirectional = false)
      : words_((nodes.size() + 63) / 64),
        nodes_(nodes.begin(), nodes.end()),
        reached_(nodes.size() * words_),
        bidirectional_(bidirectional) {
    auto const count = static_cast<index_t>(nodes.size());
    require(adjacency.extent(0) == count && adjacency.extent(1) == count, [&] {
      return "the adjacency of graph_windows has shape " + shape_text(adjacency.extents()) +
             "; expected [" + std::to_string(count) + ", " + std::to_string(count) +
             "], as many as nodes";
    });
    require(hops >= 1, [&] {
      return "graph_windows has " + std::to_string(hops) + " hops; expected at least 1";
    });
    for (std::size_t n = 0; n < nodes.size(); ++n)
      require(nodes[n] >= 0 && (n == 0 || nodes[n - 1] < nodes[n]), [&] {
        return "graph_windows has a node at position " + std::to_string(nodes[n]) +
               (n == 0 ? "" : " after one at " + std::to_string(nodes[n - 1])) +
               "; expected positions from 0 on that increase";
      });

    std::vector<std::uint64_t> step(reached_.size());
    auto const join = [&](index_t a, index_t b) {
      step[word(a, b)] |= bit(b);
      step[word(b, a)] |= bit(a);
    };
    for (index_t a = 0; a < count; ++a) {
      join(a, a);
      for (index_t b = 0; b < count; ++b)
        if (adjacency(a, b)) join(a, b);
    }
    reached_ = step;
    std::vector<std::uint64_t> next(words_);
    for (index_t hop = 1; hop < hops; ++hop)
      for (index_t a = 0; a < count; ++a) {
        std::fill(next.begin(), next.end(), 0);
        for (index_t b = 0; b < count; ++b)
          if (reached_[word(a, b)] & bit(b))
            for (std::size_t w = 0; w < words_; ++w)
              next[w] |= step[static_cast<std::size_t>(b) * words_ + w];
        std::copy(next.begin(), next.end(), reached_.begin() + a * static_cast<index_t>(words_));
      }
  }

  struct bound {
    std::span<index_t const> nodes;
    std::uint64_t const* reached;
    std::size_t words;
    bool bidirectional;

    bool keep(index_t query, index_t key) const {
      if (!bidirectional && key > query) return false;
      index_t const a = node(query), b = a < 0 ? -1 : node(key);
      return b < 0 ? key <= query : reaches(a, b);
    }
    interval_set keys(interval queries, index_t count) const {
      interval_set met = causal::keys(queries, count);
      if (bidirectional && !nodes_in(queries).empty())
        met.add(intersect({0, nodes.back() + 1}, {0, count}));
      return met;
    }
    coverage cover(interval queries, interval keys) const {
      coverage const in_order = causal::cover(queries, keys);
      bool const by_graph = !nodes_in(queries).empty() && !nodes_in(keys).empty();
      bool const ruled_out = in_order == coverage::none && !bidirectional;
      return by_graph && !ruled_out ? coverage::some : in_order;
    }
    void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
      causal::mask(queries, keys, rows);
      interval const among = nodes_in(keys);
      if (among.empty()) return;
      for (std::size_t q = 0; q < queries.size(); ++q) {
        index_t const a = node(queries[q]);
        if (a < 0) continue;
        for (index_t b = among.first; b < among.last; ++b) {
          std::uint64_t& row = rows[nodes[static_cast<std::size_t>(b)] - keys.first];
          bool const met = reaches(a, b) && (bidirectional || a >= b);
          row = (row & ~(std::uint64_t{1} << q)) | std::uint64_t{met} << q;
        }
      }
    }

   private:
    /// The nodes at some positions.
    interval nodes_in(interval positions) const {
      auto const from = [this](index_t position) {
        return std::lower_bound(nodes.begin(), nodes.end(), position) - nodes.begin();
      };
      return {from(positions.first), from(positions.last)};
    }
    index_t node(index_t position) const {
      interval const found = nodes_in({position, position + 1});
      return found.empty() ? -1 : found.first;
    }
    bool reaches(index_t a, index_t b) const {
      return (reached[static_cast<std::size_t>(a) * words + static_cast<std::size_t>(b / 64)] &
              bit(b)) != 0;
    }
  };

  bound pattern() const { return {nodes_, reached_.data(), words_, bidirectional_}; }

 private:
  static constexpr std::uint64_t bit(index_t node) { return std::uint64_t{1} << node % 64; }
  std::size_t word(index_t row, index_t node) const {
    return static_cast<std::size_t>(row) * words_ + static_cast<std::size_t>(node / 64);
  }

  std::size_t words_;  // of each row of bits
  std::vector<index_t> nodes_;
  std::vector<std::uint64_t> reached_;  // [node, word]: the nodes that are met
  bool bidirectional_;
};

}  // namespace heed
