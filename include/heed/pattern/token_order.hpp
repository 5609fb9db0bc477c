#pragma once

#include <heed/pattern/grid.hpp>

/// The tokens of a canvas moved so that those of a dilation group, and in it those of a tile, lie together.
namespace heed {

/// Tokens by dilation group, then by tile, then in the tile, each row-major; axes are padded to a multiple of
/// tile * dilation.
template <std::size_t d>
struct tiled_tokens {
  grid_point<d> canvas{};
  grid_point<d> tile{};
  grid_point<d> dilation = all_axes<d>(1);

  /// The number of slots, those of padding included.
  constexpr index_t slots() const {
    return grid_size(dilation) * grid_size(tiles()) * grid_size(tile);
  }

  /// The token at a slot, -1 at padding.
  constexpr index_t token(index_t slot) const {
    index_t const in_tile = grid_size(tile), in_group = grid_size(tiles()) * in_tile;
    grid_point<d> const group = grid_place(dilation, slot / in_group);
    grid_point<d> const number = grid_place(tiles(), slot % in_group / in_tile);
    grid_point<d> at = grid_place(tile, slot % in_tile);
    for (std::size_t a = 0; a < d; ++a) {
      at[a] = (number[a] * tile[a] + at[a]) * dilation[a] + group[a];
      if (at[a] >= canvas[a]) return -1;
    }
    return grid_index(canvas, at);
  }

  void check() const {
    for (std::size_t a = 0; a < d; ++a)
      require(canvas[a] >= 1 && tile[a] >= 1 && dilation[a] >= 1, [&] {
        return "tiled_tokens has canvas " + shape_text(canvas) + ", tile " + shape_text(tile) +
               " and dilation " + shape_text(dilation) + "; expected at least 1 along each axis";
      });
  }

 private:
  constexpr grid_point<d> tiles() const {
    grid_point<d> count;
    for (std::size_t a = 0; a < d; ++a)
      count[a] = (canvas[a] + tile[a] * dilation[a] - 1) / (tile[a] * dilation[a]);
    return count;
  }
};

namespace detail {

template <std::size_t d, class E, class F>
void expect_tokens(tiled_tokens<d> const& order, tensor_view<E, 4> tokens,
                   tensor_view<F, 4> slots) {
  order.check();
  auto expected = tokens.extents();
  expected[1] = grid_size(order.canvas);
  require(tokens.extents() == expected, [&] {
    return "tokens have shape " + shape_text(tokens.extents()) + "; expected " +
           std::to_string(expected[1]) + " for axis 1 (position), the canvas " +
           shape_text(order.canvas);
  });
  expected[1] = order.slots();
  require(slots.extents() == expected, [&] {
    return "slots have shape " + shape_text(slots.extents()) + "; expected " + shape_text(expected);
  });
}

}  // namespace detail

/// Copies tokens [batch, position, head, dim] to their slots; padding becomes 0.
template <std::size_t d, class E, class F>
void permute(tiled_tokens<d> const& order, tensor_view<E, 4> tokens, tensor_view<F, 4> slots) {
  detail::expect_tokens(order, tokens, slots);
  for (index_t slot = 0; slot < order.slots(); ++slot) {
    index_t const token = order.token(slot);
    for (index_t b = 0; b < slots.extent(0); ++b)
      for (index_t h = 0; h < slots.extent(2); ++h)
        for (index_t c = 0; c < slots.extent(3); ++c)
          slots(b, slot, h, c) = token < 0 ? F(0) : F(tokens(b, token, h, c));
  }
}

/// Copies slots back to their tokens. Padding is left behind.
template <std::size_t d, class E, class F>
void unpermute(tiled_tokens<d> const& order, tensor_view<E, 4> slots, tensor_view<F, 4> tokens) {
  detail::expect_tokens(order, tokens, slots);
  for (index_t slot = 0; slot < order.slots(); ++slot) {
    index_t const token = order.token(slot);
    if (token < 0) continue;
    for (index_t b = 0; b < slots.extent(0); ++b)
      for (index_t h = 0; h < slots.extent(2); ++h)
        for (index_t c = 0; c < slots.extent(3); ++c)
          tokens(b, token, h, c) = F(slots(b, slot, h, c));
  }
}

}  // namespace heed
