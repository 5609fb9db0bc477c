#pragma once

#include <heed/pattern/band.hpp>
#include <heed/pattern/by_segments.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/pattern/queries_from.hpp>

#include <algorithm>
#include <span>

/// Contexts encoded beside each other: Attention Entropy is a Key Factor: An Analysis of Parallel Context Encoding.
///
/// A sequence is some leading tokens that all share (attention sinks; there may be none), pieces that are causal
/// inside and blind to each other, and a tail that meets everything before it, or the pieces selected for it.
///
/// CEPE (Long-Context Language Modeling with Parallel Context Encoding) encodes its pieces by an encoder of their own,
/// attention with documents{}, and has each layer of the decoder attend, after itself, to all that came out of it:
/// attention without a pattern, or with key_lengths{}, over the pieces as one sequence of keys.
namespace heed {

/// starts: [batch, pieces + 2], the first 1 to share: where the shared tokens, each piece and the tail start. It
/// begins 0, 0 if nothing is shared. Decoding goes on in the tail.
inline auto parallel_contexts(tensor_view<index_t const, 2> starts) {
  return causal{} &
         by_segments{sliding_window{0, 0} | first_keys{1} | queries_from{starts.extent(1) - 1},
                     starts};
}

/// The same with a tail that meets, of the pieces, those that are selected.
/// selected: [batch, head, pieces + 2], the first two 1 to share; what it says of the shared tokens and of the tail itself
/// does not matter.
inline auto parallel_contexts(tensor_view<index_t const, 2> starts,
                              tensor_view<bool const, 3> selected) {
  return causal{} & by_segments{sliding_window{0, 0} | first_keys{1} |
                                    (queries_from{starts.extent(1) - 1} & key_set{selected}),
                                starts};
}

/// Pieces selected for each query: it meets the keys of segment s where selected(b, h, row, s).
struct selected_pieces {
  tensor_view<bool const, 4> selected;
  tensor_view<index_t const, 2> starts;

  struct bound {
    tensor_view<bool const, 2> selected;  // [row, segment]
    detail::segment_starts segments;
    index_t shift;  // from a position to its row

    bool keep(index_t query, index_t key) const { return chosen(query, segments.of(key)); }
    coverage cover(interval queries, interval keys) const {
      bool some = false, every = true;
      for (index_t s = segments.of(keys.first); s <= segments.of(keys.last - 1); ++s) {
        if (intersect(segments.positions(s, keys.last), keys).empty()) continue;
        for (index_t p = queries.first; p < queries.last; ++p) {
          bool const met = chosen(p, s);
          some |= met;
          every &= met;
        }
      }
      return every ? coverage::all : some ? coverage::some : coverage::none;
    }

   private:
    bool chosen(index_t query, index_t segment) const {
      index_t const row = query + shift;
      return row >= 0 && row < selected.extent(0) && selected(row, segment);
    }
  };

  bound bind(place const& where) const {
    auto const at = [&](int axis, index_t number) {
      return (selected.extent(axis) == 1 ? 0 : number) * selected.stride(axis);
    };
    index_t const batch = starts.extent(0) == 1 ? 0 : where.batch;
    return {{selected.data() + at(0, where.batch) + at(1, where.head),
             {selected.extent(2), selected.extent(3)},
             {selected.stride(2), selected.stride(3)}},
            {starts.data() + batch * starts.stride(0), starts.stride(1), starts.extent(1)},
            where.rows - where.keys};
  }
  void check(call_shape const& shape) const {
    auto const fits = [&](int axis, index_t full) {
      return selected.extent(axis) == 1 || selected.extent(axis) == full;
    };
    require(fits(0, shape.batches) && fits(1, shape.heads) && selected.extent(2) == shape.rows &&
                selected.extent(3) == starts.extent(1),
            [&] {
              return "the selection of parallel_contexts has shape " +
                     shape_text(selected.extents()) + "; expected [1 or " +
                     std::to_string(shape.batches) + ", 1 or " + std::to_string(shape.heads) +
                     ", " + std::to_string(shape.rows) + ", " + std::to_string(starts.extent(1)) +
                     "] (batch, head, row, segment)";
            });
  }
};

/// The same with a selection for each query of the tail. selected: [batch, head, row, pieces + 2], the first two 1 to
/// share; other rows do not matter.
inline auto parallel_contexts(tensor_view<index_t const, 2> starts,
                              tensor_view<bool const, 4> selected) {
  return causal{} & (by_segments{sliding_window{0, 0} | first_keys{1}, starts} |
                     (by_segments{queries_from{starts.extent(1) - 1}, starts} &
                      selected_pieces{selected, starts}));
}

/// Where the tail goes on counting.
enum class tail_position { after_longest_piece, after_all };

/// The positions, for rotation, of the tokens of one sequence: each piece counts on from the shared tokens.
inline void parallel_positions(std::span<index_t const> starts, std::span<index_t> positions,
                               tail_position tail = tail_position::after_longest_piece) {
  auto const count = static_cast<index_t>(positions.size());
  auto const segments = static_cast<index_t>(starts.size());
  require(segments >= 2 && starts[0] == 0 && starts.back() <= count &&
              std::is_sorted(starts.begin(), starts.end()),
          [&] {
            return "parallel_positions is given starts " + shape_text(starts) + " for " +
                   std::to_string(count) +
                   " tokens; expected at least two that start at 0, do not decrease and lie inside";
          });
  auto const start = [&](index_t s) { return starts[static_cast<std::size_t>(s)]; };
  index_t longest = 0;
  for (index_t s = 1; s + 1 < segments; ++s) longest = std::max(longest, start(s + 1) - start(s));
  for (index_t s = 0; s < segments; ++s) {
    bool const last = s + 1 == segments;
    index_t const from = s == 0                             ? 0
                         : !last                            ? start(1)
                         : tail == tail_position::after_all ? start(s)
                                                            : start(1) + longest;
    for (index_t i = start(s); i < (last ? count : start(s + 1)); ++i)
      positions[static_cast<std::size_t>(i)] = from + i - start(s);
  }
}

}  // namespace heed
