#pragma once

#include <heed/cache/ring_cache.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/moved.hpp>

/// Recurrent Memory-Augmented Transformers with Chunked Attention and Multi-Scale Causal Reasoning: chunks attend to
/// themselves, causally, and to a memory of rows from the chunks before, first in, first out.
///
/// After its chunk a row x enters the memory as m = g * x, the gate g a sigmoid of x that the caller computes, one number
/// a row or one a channel. Rows of the memory are projected to keys and values with the layer's own maps when they are
/// used, rotated for their original positions.
///
/// Running, chunk by chunk: write [memory.rows(); chunk] one after the other, project, and
///
///     heed::attention(query, key, value, out, heed::causal{});    // all of the memory lies before the chunk
///     memory.append(chunk, gates);
///
/// Training, all chunks of a window at once: gate all rows with gate_rows, project [gated rows; rows], 2 N of both for
/// N queries, and attend with chunks_with_memory. Its backward pass reaches through the memory; where the window
/// starts it stops.
namespace heed {

/// The pattern over [gated rows; rows]: query i meets, of the gated rows, the last `memory` before its chunk and, of
/// the rows, those of its chunk up to its own. With `memory` unbounded and gates of 1 it is causal attention.
struct chunks_with_memory {
  index_t chunk;
  index_t memory = unbounded;

  /// The gated rows that a chunk meets.
  struct remembered {
    index_t chunk;
    index_t memory;
    index_t tokens;

    constexpr interval of(index_t position) const {
      index_t const row = position - tokens;
      index_t const start = row < 0 ? 0 : std::min(row - row % chunk, tokens);
      return {memory < 0 ? 0 : std::max<index_t>(start - memory, 0), start};
    }
    constexpr bool keep(index_t query, index_t key) const {
      interval const met = of(query);
      return met.first <= key && key < met.last;
    }
    constexpr interval_set keys(interval queries, index_t count) const {
      if (queries.empty()) return {};
      return intersect({of(queries.first).first, of(queries.last - 1).last}, {0, count});
    }
    constexpr coverage cover(interval queries, interval keys) const {
      interval const first = of(queries.first), last = of(queries.last - 1);
      if (keys.last <= first.first || keys.first >= last.last) return coverage::none;
      return keys.first >= last.first && keys.last <= first.last ? coverage::all : coverage::some;
    }
  };

  auto bind(place const& where) const {
    // Positions count on from the gated rows, so chunks start at multiples of their length after those.
    index_t const tokens = where.keys / 2, ahead = (chunk - tokens % chunk) % chunk;
    return remembered{chunk, memory, tokens} |
           (causal{} & moved{by_blocks{sliding_window{0, 0}, chunk}, ahead} & ~first_keys{tokens});
  }
  void check(call_shape const& shape) const {
    require(chunk > 0, [&] {
      return "chunks_with_memory.chunk is " + std::to_string(chunk) + "; expected at least 1";
    });
    require(shape.keys == 2 * shape.rows, [&] {
      return "chunks_with_memory is given " + std::to_string(shape.keys) + " keys for " +
             std::to_string(shape.rows) +
             " rows; expected twice as many: the gated rows, then the rows";
    });
  }
};

namespace detail {

/// Gates hold one number for each element of the rows, head or row.
template <element X, element G>
void check_gates(tensor_view<X, 4> rows, tensor_view<G, 4> gates) {
  bool fits = true;
  for (int axis = 0; axis < 4; ++axis)
    fits &= gates.extent(axis) == rows.extent(axis) || (axis >= 2 && gates.extent(axis) == 1);
  require(fits, [&] {
    return "gates have shape " + shape_text(gates.extents()) + "; expected that of the rows, " +
           shape_text(rows.extents()) + ", or 1 head, or 1 number each";
  });
}

}  // namespace detail

/// gated = gates * rows. rows: [batch, position, head, dim], one head if they are rows of a model's width; gates: the same,
/// or with 1 for head and dim.
template <element X, element G, element M>
void gate_rows(tensor_view<X, 4> rows, tensor_view<G, 4> gates, tensor_view<M, 4> gated) {
  using T = compute_type<X, G, M>;
  detail::check_gates(rows, gates);
  require(gated.extents() == rows.extents(), [&] {
    return "the gated rows have shape " + shape_text(gated.extents()) +
           "; expected that of the rows, " + shape_text(rows.extents());
  });
  bool const head = gates.extent(2) != 1, channel = gates.extent(3) != 1;
  for (index_t b = 0; b < rows.extent(0); ++b)
    for (index_t i = 0; i < rows.extent(1); ++i)
      for (index_t h = 0; h < rows.extent(2); ++h)
        for (index_t d = 0; d < rows.extent(3); ++d)
          gated(b, i, h, d) =
              convert_element<M>(convert_element<T>(gates(b, i, head ? h : 0, channel ? d : 0)) *
                                 convert_element<T>(rows(b, i, h, d)));
}

/// The gradients of gate_rows: drows = gates * dgated, and dgates = rows * dgated summed over what a gate serves.
template <element X, element G, element DM, element DX, element DG>
void gate_rows_backward(tensor_view<X, 4> rows, tensor_view<G, 4> gates, tensor_view<DM, 4> dgated,
                        tensor_view<DX, 4> drows, tensor_view<DG, 4> dgates) {
  using T = compute_type<X, G, DM>;
  detail::check_gates(rows, gates);
  require(dgated.extents() == rows.extents() && drows.extents() == rows.extents() &&
              dgates.extents() == gates.extents(),
          [&] {
            return "gradients of gated rows have shapes " + shape_text(dgated.extents()) + ", " +
                   shape_text(drows.extents()) + " and, of the gates, " +
                   shape_text(dgates.extents()) + "; expected those of the rows, " +
                   shape_text(rows.extents()) + ", and of the gates, " +
                   shape_text(gates.extents());
          });
  bool const head = gates.extent(2) != 1, channel = gates.extent(3) != 1;
  index_t const heads = rows.extent(2), dim = rows.extent(3);
  for (index_t b = 0; b < rows.extent(0); ++b)
    for (index_t i = 0; i < rows.extent(1); ++i)
      for (index_t h = 0; h < gates.extent(2); ++h)
        for (index_t d = 0; d < gates.extent(3); ++d) {
          T sum = 0;
          for (index_t x = head ? h : 0; x < (head ? h + 1 : heads); ++x)
            for (index_t y = channel ? d : 0; y < (channel ? d + 1 : dim); ++y) {
              T const slope = convert_element<T>(dgated(b, i, x, y));
              sum += convert_element<T>(rows(b, i, x, y)) * slope;
              drows(b, i, x, y) =
                  convert_element<DX>(convert_element<T>(gates(b, i, h, d)) * slope);
            }
          dgates(b, i, h, d) = convert_element<DG>(sum);
        }
}

/// The newest rows of the memory, in memory that the caller owns: [batch, most rows, head, dim].
template <element T>
  requires(!std::is_const_v<T>)
class fifo_memory {
 public:
  explicit fifo_memory(tensor_view<T, 4> rows)
      : rows_(rows), slots_{.sinks = 0, .window = rows.extent(1), .length = 0} {}

  /// Takes in gates * rows, and forgets the oldest beyond what there is room for.
  template <element X, element G>
  void append(tensor_view<X, 4> rows, tensor_view<G, 4> gates) {
    index_t const count = rows.extent(1);
    detail::check_gates(rows, gates);
    require(rows.extents() == std::array{rows_.extent(0), count, rows_.extent(2), rows_.extent(3)},
            [&] {
              return "rows of shape " + shape_text(rows.extents()) +
                     " cannot enter a memory of shape " + shape_text(rows_.extents());
            });
    for (index_t i = std::max<index_t>(0, count - slots_.window); i < count;) {
      index_t const slot = slots_.slot(slots_.length + i);
      index_t const run = std::min(count - i, slots_.window - slot);
      gate_rows(rows.slice(1, i, run), gates.slice(1, i, run), rows_.slice(1, slot, run));
      i += run;
    }
    slots_.length += count;
  }

  /// The rows that are there, in any order: [batch, slot, head, dim].
  tensor_view<T const, 4> rows() const { return rows_.slice(1, 0, slots_.filled()); }
  /// Which positions they had: slots().position(slot).
  ring_slots const& slots() const { return slots_; }

 private:
  tensor_view<T, 4> rows_;
  ring_slots slots_;
};

}  // namespace heed
