#pragma once

#include <heed/pattern/axis.hpp>
#include <heed/pattern/boxes.hpp>

/// Neighborhoods on canvases of one to three axes: the parameters, the order that makes them fast, and the pattern.
namespace heed {

/// A neighborhood: on each axis a query meets the `window` keys around it, every `dilation`-th coordinate; groups of
/// `stride` queries share the window of their leader; a causal axis ends at the query. At a border the window
/// moves inward, so that without causal axes all queries meet as many keys. Tokens are stored row-major on the canvas.
///
///     neighborhood<2> const around{.canvas = {112, 112}, .window = {7, 7}};
template <std::size_t d>
struct neighborhood {
  static_assert(d >= 1 && d <= 3);

  grid_point<d> canvas{};
  grid_point<d> window{};
  grid_point<d> stride = all_axes<d>(1);
  grid_point<d> dilation = all_axes<d>(1);
  std::array<bool, d> causal{};

  constexpr neighborhood_axis axis(std::size_t a) const {
    return {canvas[a], window[a], stride[a], dilation[a], causal[a]};
  }

  /// The number of pairs.
  constexpr index_t pairs() const {
    index_t pairs = 1;
    for (std::size_t a = 0; a < d; ++a) pairs *= axis(a).pairs();
    return pairs;
  }

  /// Throws heed::error unless 1 <= stride <= window and 1 <= window * dilation <= canvas on every axis.
  void check() const {
    for (std::size_t a = 0; a < d; ++a) axis(a).check(a);
  }
};

/// The shape of `lanes` queries that wastes the least: the union of their windows is what they all look at, and the
/// kept share of it is largest. Boxes may keep to groups of `stride`, where that wastes less.
template <std::size_t d>
constexpr query_tile<d> best_query_tile(neighborhood<d> const& around, index_t lanes) {
  return detail::best_tile(lanes, static_cast<double>(around.pairs()), around.canvas, around.stride,
                           [&](std::size_t a, index_t tile, index_t period) {
                             return around.axis(a).sum_over_groups([&](window_axis const& axis) {
                               return detail::keys_of_boxes(axis,
                                                            boxed_axis(axis.length, tile, period));
                             });
                           });
}

template <std::size_t d>
class neighborhood_pattern;

/// The arrangement of a neighborhood: tokens that are equal modulo the dilation are a group, of which the queries stand
/// in boxes of `lanes` slots, and keys row-major.
template <std::size_t d>
class neighborhood_order {
 public:
  /// Throws heed::error if the parameters do not fit the canvas. `lanes`, at most 64, is the number of queries that the
  /// engine works on at a time.
  neighborhood_order(neighborhood<d> const& around, index_t lanes) : around_(around) {
    around.check();
    detail::expect_lanes("neighborhood_order", lanes);
    tile_ = best_query_tile(around, lanes);
    for (std::size_t a = 0; a < d; ++a) {
      auto const cut = [&](index_t group) {
        return boxed_axis(around.axis(a).group_length(group), tile_.tile[a], tile_.period[a]);
      };
      boxes_[a] = {cut(0), cut(around.dilation[a] - 1)};
      longer_[a] = around.canvas[a] % around.dilation[a];
    }
  }

  neighborhood<d> const& parameters() const { return around_; }
  query_tile<d> const& tile() const { return tile_; }

  index_t groups() const { return grid_size(around_.dilation); }
  index_t panel_rows() const { return grid_size(tile_.tile); }
  index_t rows(index_t group) const { return queries(group).slots(); }
  index_t keys(index_t group) const { return tokens(group).size(); }

  token_run query_run(index_t group, index_t slot) const {
    return queries(group).run(tokens(group), slot);
  }
  token_run key_run(index_t group, index_t slot) const { return tokens(group).run(slot); }

  /// The coordinates, in the group, of the query or key at a slot.
  grid_point<d> query_place(index_t group, index_t slot) const {
    return queries(group).place(slot);
  }
  grid_point<d> key_place(index_t group, index_t slot) const {
    return grid_place(tokens(group).count, slot);
  }

  void check(call_shape const& shape) const {
    index_t const size = grid_size(around_.canvas);
    require(shape.rows == size && shape.keys == size, [&] {
      return "neighborhood.canvas is " + shape_text(around_.canvas) +
             "; expected the tokens of a call with " + std::to_string(shape.rows) +
             " queries and " + std::to_string(shape.keys) + " keys";
    });
  }

  /// The pattern on this arrangement's slots.
  neighborhood_pattern<d> pattern() const { return neighborhood_pattern<d>(*this); }

  /// The pattern in one group.
  axis_product<window_axis, d> pattern_of(index_t group) const {
    axis_product<window_axis, d> bound;
    bound.queries = queries(group);
    for (std::size_t a = 0; a < d; ++a)
      bound.axes[a] = {bound.queries.axes[a].length(), around_.window[a], around_.stride[a],
                       around_.causal[a]};
    return bound;
  }

 private:
  lattice<d> tokens(index_t group) const {
    lattice<d> tokens{around_.canvas, residue(group), around_.dilation, {}};
    for (std::size_t a = 0; a < d; ++a) tokens.count[a] = boxes(a, tokens.first[a]).length();
    return tokens;
  }
  box_order<d> queries(index_t group) const {
    grid_point<d> const first = residue(group);
    box_order<d> order;
    for (std::size_t a = 0; a < d; ++a) order.axes[a] = boxes(a, first[a]);
    return order;
  }

  grid_point<d> residue(index_t group) const {
    return group == 0 ? grid_point<d>{} : grid_place(around_.dilation, group);
  }
  boxed_axis const& boxes(std::size_t a, index_t first) const {
    return boxes_[a][first < longer_[a] ? 0 : 1];
  }

  neighborhood<d> around_;
  query_tile<d> tile_;
  // Groups come in two lengths on each axis: the first groups may be longer.
  grid_point<d> longer_{};
  std::array<std::array<boxed_axis, 2>, d> boxes_{};
};

/// The pairs of a neighborhood, in the slots of its order.
template <std::size_t d>
class neighborhood_pattern {
 public:
  explicit neighborhood_pattern(neighborhood_order<d> const& order) : order_(order) {}

  axis_product<window_axis, d> bind(place const& where) const {
    return order_.pattern_of(where.group);
  }
  void check(call_shape const& shape) const { order_.check(shape); }

 private:
  neighborhood_order<d> order_;
};

}  // namespace heed
