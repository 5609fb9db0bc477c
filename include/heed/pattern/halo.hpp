#pragma once

#include <heed/pattern/boxes.hpp>

/// Blocks that look beyond their border: each block of queries meets the keys of the block and of a halo around it.
namespace heed {

/// One axis: query c of every `query_stride`-th coordinate meets the block of its own, and `halo` coordinates on
/// either side as far as there are any.
struct halo_axis {
  index_t length = 0;
  index_t block = 1;
  index_t halo = 0;
  index_t query_stride = 1;

  constexpr index_t queries() const { return length / query_stride; }

  /// The window of the query at c, which at a border leaves the canvas.
  constexpr interval full_window_of(index_t c) const {
    index_t const first = c * query_stride / block * block;
    return {first - halo, first + block + halo};
  }
  constexpr interval window_of(index_t c) const {
    return intersect(full_window_of(c), {0, length});
  }
  constexpr index_t pairs() const {
    index_t const each = block / query_stride;
    index_t sum = 0;
    for (index_t c = 0; c < queries(); c += each) sum += each * window_of(c).size();
    return sum;
  }
};

/// Blocks of `block` coordinates and a `halo` around each, on a row-major canvas that blocks divide. With a
/// `query_stride`, which divides the block, queries are every so many-th token, row-major on a canvas as much smaller.
template <std::size_t d>
struct halo_blocks {
  static_assert(d >= 1 && d <= 3);

  grid_point<d> canvas{};
  grid_point<d> block{};
  grid_point<d> halo{};
  grid_point<d> query_stride = all_axes<d>(1);

  constexpr halo_axis axis(std::size_t a) const {
    return {canvas[a], block[a], halo[a], query_stride[a]};
  }
  constexpr grid_point<d> query_canvas() const {
    grid_point<d> smaller;
    for (std::size_t a = 0; a < d; ++a) smaller[a] = axis(a).queries();
    return smaller;
  }

  /// The number of pairs on the canvas; with those beyond its border, as many for each query.
  constexpr index_t pairs() const {
    index_t pairs = 1;
    for (std::size_t a = 0; a < d; ++a) pairs *= axis(a).pairs();
    return pairs;
  }
  constexpr index_t pairs_with_phantoms() const {
    return grid_size(query_canvas()) * grid_size(window());
  }

  /// The extents of a window: block + 2 halo.
  constexpr grid_point<d> window() const {
    grid_point<d> size;
    for (std::size_t a = 0; a < d; ++a) size[a] = block[a] + 2 * halo[a];
    return size;
  }

  /// Along one axis: where in its window the query at c has the key at y, less where in its block the query is, plus
  /// window - 1. The row of a relative table of 2 window - 1 rows; y may be beyond the canvas.
  constexpr index_t relative(std::size_t a, index_t c, index_t y) const {
    return y - axis(a).full_window_of(c).first - c % (block[a] / query_stride[a]) + window()[a] - 1;
  }

  /// The number of places of the query's window that are beyond the canvas.
  constexpr index_t phantoms(grid_point<d> const& query) const {
    index_t inside = 1;
    for (std::size_t a = 0; a < d; ++a) inside *= axis(a).window_of(query[a]).size();
    return grid_size(window()) - inside;
  }

  /// Calls f(coordinates) for each of these places, row-major in the window.
  template <class F>
  constexpr void each_phantom(grid_point<d> const& query, F f) const {
    index_t const places = grid_size(window());
    for (index_t n = 0; n < places; ++n) {
      grid_point<d> at = grid_place(window(), n);
      bool inside = true;
      for (std::size_t a = 0; a < d; ++a) {
        at[a] += axis(a).full_window_of(query[a]).first;
        inside &= at[a] >= 0 && at[a] < canvas[a];
      }
      if (!inside) f(at);
    }
  }

  void check() const {
    for (std::size_t a = 0; a < d; ++a) {
      auto const expect = [&](bool good, char const* name, index_t value, std::string expected) {
        require(good, [&] {
          return "halo_blocks." + std::string(name) + " of axis " + std::to_string(a) + " is " +
                 std::to_string(value) + "; expected " + expected;
        });
      };
      expect(canvas[a] >= 1, "canvas", canvas[a], "at least 1");
      expect(block[a] >= 1 && canvas[a] % block[a] == 0, "block", block[a],
             "a divisor of the canvas, " + std::to_string(canvas[a]));
      expect(halo[a] >= 0, "halo", halo[a], "at least 0");
      expect(query_stride[a] >= 1 && block[a] % query_stride[a] == 0, "query_stride",
             query_stride[a], "a divisor of the block, " + std::to_string(block[a]));
    }
  }
};

/// The shape of `lanes` queries that wastes the least.
template <std::size_t d>
constexpr query_tile<d> best_query_tile(halo_blocks<d> const& blocks, index_t lanes) {
  grid_point<d> period;
  for (std::size_t a = 0; a < d; ++a) period[a] = blocks.block[a] / blocks.query_stride[a];
  return detail::best_tile(lanes, static_cast<double>(blocks.pairs()), blocks.query_canvas(),
                           period, [&](std::size_t a, index_t tile, index_t boxes_from) {
                             halo_axis const axis = blocks.axis(a);
                             return detail::keys_of_boxes(
                                 axis, boxed_axis(axis.queries(), tile, boxes_from));
                           });
}

/// The pairs of blocks with halos, in the slots of their order: keys beyond the canvas do not exist.
template <std::size_t d>
struct halo_pattern {
  axis_product<halo_axis, d> pairs_of_slots;

  axis_product<halo_axis, d> const& bind(place const&) const { return pairs_of_slots; }
};

/// The arrangement of blocks with halos: one group, queries in boxes of `lanes` slots, keys as they are.
template <std::size_t d>
class halo_order {
 public:
  /// Throws heed::error if the parameters do not fit the canvas. `lanes`, at most 64, is the number of queries that the
  /// engine works on at a time.
  halo_order(halo_blocks<d> const& blocks, index_t lanes) : blocks_(blocks) {
    blocks.check();
    detail::expect_lanes("halo_order", lanes);
    tile_ = best_query_tile(blocks, lanes);
    for (std::size_t a = 0; a < d; ++a) {
      pattern_.axes[a] = blocks.axis(a);
      pattern_.queries.axes[a] =
          boxed_axis(blocks.axis(a).queries(), tile_.tile[a], tile_.period[a]);
    }
  }

  halo_blocks<d> const& parameters() const { return blocks_; }
  query_tile<d> const& tile() const { return tile_; }

  index_t groups() const { return 1; }
  index_t rows(index_t) const { return pattern_.queries.slots(); }
  index_t keys(index_t) const { return grid_size(blocks_.canvas); }
  token_run query_run(index_t, index_t slot) const {
    lattice<d> const all{.canvas = blocks_.query_canvas(), .count = blocks_.query_canvas()};
    return pattern_.queries.run(all, slot);
  }
  token_run key_run(index_t, index_t slot) const {
    return {slot, grid_size(blocks_.canvas) - slot};
  }

  /// The coordinates, on their canvases, of the query or key at a slot.
  grid_point<d> query_place(index_t, index_t slot) const { return pattern_.queries.place(slot); }
  grid_point<d> key_place(index_t, index_t slot) const { return grid_place(blocks_.canvas, slot); }

  void check(call_shape const& shape) const {
    index_t const rows = grid_size(blocks_.query_canvas()), keys = grid_size(blocks_.canvas);
    require(shape.rows == rows && shape.keys == keys, [&] {
      return "halo_blocks.canvas is " + shape_text(blocks_.canvas) + ", for " +
             std::to_string(rows) + " queries and " + std::to_string(keys) +
             " keys; expected those of the call, " + std::to_string(shape.rows) + " and " +
             std::to_string(shape.keys);
    });
  }

  /// The pattern on this arrangement's slots.
  halo_pattern<d> pattern() const { return {pattern_}; }

 private:
  halo_blocks<d> blocks_;
  query_tile<d> tile_;
  axis_product<halo_axis, d> pattern_;
};

}  // namespace heed
