#include "reference/patterns/neighborhood.hpp"
#include "support/arrangement_check.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/neighborhood.hpp>
#include <heed/pattern/token_order.hpp>
#include <heed/pattern/visited_tiles.hpp>

#include <cmath>
#include <map>

// Windows of an axis, canvases of several, and what a panel of queries meets, against the definition on coordinates.

using heed::index_t;
using heed::interval;
using support::for_each_seed;
using support::seed_t;

namespace {

reference::axis plain(heed::neighborhood_axis const& a) {
  return {a.length, a.window, a.stride, a.dilation, a.causal};
}

template <std::size_t d>
std::vector<reference::axis> plain(heed::neighborhood<d> const& around) {
  std::vector<reference::axis> axes;
  for (std::size_t a = 0; a < d; ++a) axes.push_back(plain(around.axis(a)));
  return axes;
}

/// Calls f(axis) for every axis of up to `most` coordinates.
template <class F>
void each_small_axis(index_t most, F f) {
  for (index_t length = 1; length <= most; ++length)
    for (index_t dilation = 1; dilation <= length; ++dilation)
      for (index_t window = 1; window * dilation <= length; ++window)
        for (index_t stride = 1; stride <= window; ++stride)
          for (bool causal : {false, true})
            f(heed::neighborhood_axis{length, window, stride, dilation, causal});
}

template <std::size_t d>
heed::neighborhood<d> random_neighborhood(support::random& draw, index_t most) {
  heed::neighborhood<d> around;
  for (std::size_t a = 0; a < d; ++a) {
    around.canvas[a] = draw.between(1, most);
    around.dilation[a] = draw.one_in(2) ? 1 : draw.between(1, around.canvas[a]);
    around.window[a] = draw.between(1, around.canvas[a] / around.dilation[a]);
    around.stride[a] = draw.one_in(2) ? 1 : draw.between(1, around.window[a]);
    around.causal[a] = draw.one_in(3);
  }
  return around;
}

std::vector<reference::range> windows(heed::window_axis const& axis) {
  std::vector<reference::range> all;
  for (index_t c = 0; c < axis.length; ++c)
    all.push_back({axis.window_of(c).first, axis.window_of(c).last});
  return all;
}

/// An order's slots, and its pattern in each group, against the definition on tokens.
template <std::size_t d>
std::string check_order(support::random& draw, heed::neighborhood<d> const& around, index_t lanes) {
  heed::neighborhood_order<d> const order(around, lanes);
  auto const axes = plain(around);
  index_t const size = heed::grid_size(around.canvas);
  order.check({.rows = size, .keys = size});
  std::string complaint;
  auto const groups = support::slots_of(order, complaint);
  complaint += support::check_tokens(groups, size, size);
  if (!complaint.empty()) return complaint;
  index_t pairs = 0, kept = 0;
  std::vector<std::vector<bool>> met(static_cast<std::size_t>(size));
  for (index_t q = 0; q < size; ++q)
    for (index_t k = 0; k < size; ++k) {
      bool const keeps = reference::neighborhood_keeps(axes, q, k);
      met[static_cast<std::size_t>(q)].push_back(keeps);
      kept += keeps;
    }
  index_t kept_in_groups = 0;
  for (index_t g = 0; g < order.groups(); ++g) {
    auto const& [queries, keys] = groups[static_cast<std::size_t>(g)];
    auto const slots = static_cast<index_t>(queries.size());
    heed::place const where{.rows = slots, .keys = static_cast<index_t>(keys.size()), .group = g};
    if (slots % lanes != 0) complaint += "a group ends within a panel\n";
    auto const bound = order.pattern().bind(where);
    pairs += bound.pairs();
    for (index_t token : queries)
      if (token >= 0)
        for (index_t key : keys)
          kept_in_groups += met[static_cast<std::size_t>(token)][static_cast<std::size_t>(key)];
    // Padding stands with a query of its panel.
    auto const nearest = [&, &q = queries](index_t slot) {
      slot = std::clamp(slot, index_t{0}, slots - 1);
      auto const at = order.query_place(g, slot);
      for (index_t other = slot / lanes * lanes; other < slots; ++other)
        if (q[static_cast<std::size_t>(other)] >= 0 && order.query_place(g, other) == at)
          return q[static_cast<std::size_t>(other)];
      return index_t{-1};
    };
    std::vector<index_t> tokens;
    for (index_t slot = 0; slot < slots; ++slot) tokens.push_back(nearest(slot));
    complaint += support::check_pattern(
        draw, order.pattern(), where,
        [&, &k = keys](index_t slot, index_t key) {
          slot = std::clamp(slot, index_t{0}, slots - 1);
          return bool(met[static_cast<std::size_t>(tokens[static_cast<std::size_t>(slot)])]
                         [static_cast<std::size_t>(k[static_cast<std::size_t>(key)])]);
        },
        {.exact_tiles = true, .exact_keys = true});
  }
  if (pairs != kept) complaint += "pairs() of the groups is wrong\n";
  if (around.pairs() != kept) complaint += "pairs() is wrong\n";
  if (kept_in_groups != kept) complaint += "a pair is in no group\n";
  return complaint;
}

}  // namespace

TEST_CASE("windows of an axis: vectors", "[neighborhood][quick]") {
  using list = std::vector<reference::range>;
  CHECK(windows({7, 4, 1, false}) == list{{0, 4}, {0, 4}, {0, 4}, {1, 5}, {2, 6}, {3, 7}, {3, 7}});
  CHECK(windows({7, 4, 2, false}) == list{{0, 4}, {0, 4}, {1, 5}, {1, 5}, {3, 7}, {3, 7}, {3, 7}});
  CHECK(windows({7, 3, 3, false}) == list{{0, 3}, {0, 3}, {0, 3}, {3, 6}, {3, 6}, {3, 6}, {4, 7}});
  CHECK(windows({7, 4, 2, true}) == list{{0, 1}, {0, 2}, {0, 3}, {0, 4}, {2, 5}, {2, 6}, {3, 7}});
  CHECK(windows({7, 4, 3, true}) == list{{0, 1}, {0, 2}, {0, 3}, {2, 4}, {2, 5}, {2, 6}, {3, 7}});
  std::vector<reference::range> transposed;
  for (index_t c = 0; c < 7; ++c) {
    interval const each = heed::window_axis{7, 4, 2, false}.queries_of(c);
    transposed.push_back({each.first, each.last});
  }
  CHECK(transposed == list{{0, 2}, {0, 4}, {0, 4}, {0, 7}, {2, 7}, {4, 7}, {4, 7}});
}

TEST_CASE("windows of every small axis, and their transpose", "[neighborhood][quick]") {
  index_t wrong_windows = 0, wrong_transposes = 0, wrong_pairs = 0, not_monotone = 0, axes = 0;
  each_small_axis(13, [&](heed::neighborhood_axis const& axis) {
    ++axes;
    index_t pairs = 0;
    for (index_t y = 0; y < axis.length; ++y) {
      interval const window = axis.window_of(y), queries = axis.queries_of(y);
      if (y >= axis.dilation) {
        interval const before = axis.window_of(y - axis.dilation);
        not_monotone += before.first > window.first || before.last > window.last ||
                        before.last < window.first || window.empty();
      }
      for (index_t z = 0; z < axis.length; ++z) {
        bool const same = z % axis.dilation == y % axis.dilation;
        index_t const n = z / axis.dilation;
        bool const kept = reference::axis_keeps(plain(axis), y, z);
        pairs += kept;
        wrong_windows += kept != (same && window.first <= n && n < window.last);
        wrong_transposes += reference::axis_keeps(plain(axis), z, y) !=
                            (same && queries.first <= n && n < queries.last);
      }
    }
    wrong_pairs += pairs != axis.pairs();
    axis.check(0);
  });
  CHECK(axes > 1000);
  CHECK(wrong_windows == 0);
  CHECK(wrong_transposes == 0);
  CHECK(not_monotone == 0);
  CHECK(wrong_pairs == 0);
}

TEST_CASE("neighborhoods in the order of their boxes", "[neighborhood][quick]") {
  for_each_seed("neighborhoods", 300, [](seed_t seed) {
    support::random draw(seed);
    std::array<index_t, 4> const lanes{24, 12, 48, draw.between(1, 64)};
    return check_order(draw, random_neighborhood<1>(draw, 60), draw.one_of(lanes)) +
           check_order(draw, random_neighborhood<2>(draw, 14), draw.one_of(lanes)) +
           check_order(draw, random_neighborhood<3>(draw, 6), draw.one_of(lanes));
  });
}

TEST_CASE("neighborhoods: identities", "[neighborhood][quick]") {
  index_t wrong_full = 0, wrong_causal = 0, wrong_window = 0, wrong_blocks = 0, wrong_band = 0,
          wrong_tiles = 0, tiles = 0, last_groups = 0;
  for (index_t L = 1; L <= 16; ++L) {
    heed::window_axis const full{L, L, 1, false}, causal{L, L, 1, true};
    for (index_t c = 0; c < L; ++c) {
      wrong_full += full.window_of(c).first != 0 || full.window_of(c).last != L;
      wrong_causal += causal.window_of(c).first != 0 || causal.window_of(c).last != c + 1;
    }
    for (index_t W = 1; W <= L; ++W) {
      heed::window_axis const window{L, W, 1, true}, blocks{L, W, W, false}, plain{L, W, 1, false};
      for (index_t c = 0; c < L; ++c) {
        wrong_window += window.window_of(c).first != std::max(c - W + 1, index_t{0});
        if (L % W == 0)
          wrong_blocks += blocks.window_of(c).first != c / W * W;
        else if (c / W == L / W) {
          ++last_groups;  // the last, smaller group attends the last W keys
          wrong_blocks += blocks.window_of(c).first != L - W;
        }
        index_t const left = W / 2, right = W - 1 - W / 2;
        if (c - left >= 0 && c + right < L)
          wrong_band +=
              plain.window_of(c).first != c - left || plain.window_of(c).last != c + right + 1;
      }
    }
    // Sliding tiles of t, k of them: what a tile meets is the k tiles around its own.
    for (index_t t = 1; t <= L; ++t)
      for (index_t k = 1; t * k <= L; k += 2) {
        if (L % t != 0) continue;
        heed::window_axis const strided{L, t * k, t, false};
        for (index_t c = 0; c < L; ++c) {
          index_t const first = std::clamp(c / t - k / 2, index_t{0}, L / t - k);
          wrong_tiles += strided.window_of(c).first != first * t;
          ++tiles;
        }
      }
  }
  CHECK(wrong_full == 0);
  CHECK(wrong_causal == 0);
  CHECK(wrong_window == 0);
  CHECK(wrong_blocks == 0);
  CHECK(wrong_band == 0);
  CHECK(wrong_tiles == 0);
  CHECK(tiles > 500);
  CHECK(last_groups > 100);
}

TEST_CASE("every query of a neighborhood meets as many keys", "[neighborhood][quick]") {
  for_each_seed("full windows", 200, [](seed_t seed) {
    support::random draw(seed);
    auto around = random_neighborhood<3>(draw, 9);
    around.causal = {};
    index_t const expected = heed::grid_size(around.canvas) * heed::grid_size(around.window);
    return around.pairs() == expected ? std::string() : std::string("pairs() is wrong\n");
  });
}

TEST_CASE("what a tile of 24 queries must look at", "[neighborhood][quick]") {
  // Inside a canvas: window^2 of (window + tile - 1)^2; at the border windows coincide and more is kept.
  struct {
    index_t window;
    double inside;
  } const cases[] = {{7, 49. / 120}, {13, 169. / 288}, {31, 961. / 1224}};
  for (auto const& each : cases) {
    auto const tile = heed::best_query_tile(
        heed::neighborhood<2>{.canvas = {112, 112}, .window = {each.window, each.window}}, 24);
    CHECK(tile.tile == heed::grid_point<2>{4, 6});
    CHECK(tile.kept_share > each.inside);
    CHECK(tile.kept_share < 1.07 * each.inside);
  }
  auto const volume =
      heed::best_query_tile(heed::neighborhood<3>{.canvas = {16, 28, 28}, .window = {5, 7, 7}}, 24);
  CHECK(volume.tile == heed::grid_point<3>{2, 3, 4});
  CHECK(volume.kept_share > 245. / 540);
  // Queries that share their window stay together, and nothing is hidden but from padding.
  auto const aligned = heed::best_query_tile(
      heed::neighborhood<2>{.canvas = {48, 48}, .window = {12, 12}, .stride = {12, 12}}, 24);
  CHECK(aligned.kept_share == 1);
  heed::neighborhood_order<2> const order({.canvas = {56, 56}, .window = {8, 8}, .stride = {8, 8}},
                                          24);
  CHECK(order.tile().kept_share == Approx(8. / 9));
  auto const pattern = order.pattern().bind({.rows = order.rows(0), .keys = order.keys(0)});
  index_t partial = 0;
  for (index_t slot = 0; slot < order.rows(0); slot += 24)
    for (index_t from = 0;;) {
      heed::interval const run = pattern.next_keys({slot, slot + 24}, from, order.keys(0));
      if (run.empty()) break;
      partial += pattern.cover({slot, slot + 24}, run) != heed::coverage::all;
      from = run.last;
    }
  CHECK(partial == 0);
}

TEST_CASE("kept_share of a tile is counted", "[neighborhood][quick]") {
  for_each_seed("kept shares", 300, [](seed_t seed) {
    support::random draw(seed);
    auto const around = random_neighborhood<2>(draw, 20);
    index_t const lanes = draw.between(1, 64);
    heed::neighborhood_order<2> const order(around, lanes);
    index_t looked_at = 0;
    for (index_t g = 0; g < order.groups(); ++g) {
      auto const pattern = order.pattern().bind({.group = g});
      for (index_t slot = 0; slot < order.rows(g); slot += lanes)
        for (index_t from = 0;;) {
          interval const run = pattern.next_keys({slot, slot + lanes}, from, order.keys(g));
          if (run.empty()) break;
          looked_at += lanes * run.size();
          from = run.last;
        }
    }
    double const share = static_cast<double>(around.pairs()) / static_cast<double>(looked_at);
    return std::abs(share - order.tile().kept_share) < 1e-12
               ? std::string()
               : "kept_share is " + std::to_string(order.tile().kept_share) + ", not " +
                     std::to_string(share) + "\n";
  });
}

TEST_CASE("visited tiles: vectors", "[neighborhood][quick]") {
  auto const expect = [](heed::tile_visits const& visits, index_t visited, index_t full,
                         index_t dense) {
    CHECK(visits.visited == visited);
    CHECK(visits.full == full);
    CHECK(visits.dense == dense);
  };
  expect(heed::visited_tiles<2>({.canvas = {8, 8}, .window = {3, 3}}, {4, 4}, {4, 4}), 16, 0, 16);
  expect(heed::visited_tiles<2>({.canvas = {8, 8}, .window = {3, 3}, .stride = {1, 2}}, {4, 4},
                                {2, 4}),
         18, 0, 32);
  expect(heed::visited_tiles<1>({.canvas = {10}, .window = {4}, .stride = {2}, .causal = {true}},
                                {4}, {4}),
         5, 0, 9);
  expect(
      heed::visited_tiles<3>({.canvas = {30, 48, 80}, .window = {18, 24, 24}, .stride = {16, 8, 8}},
                             {4, 8, 8}, {2, 8, 16}),
      25920, 12960, 216000);
  auto const perfect = heed::visited_tiles<2>(
      {.canvas = {24, 24}, .window = {12, 12}, .stride = {4, 4}}, {4, 4}, {4, 4});
  CHECK(perfect.perfectly_sparse());
  CHECK(perfect.speedup_by_tiles == perfect.speedup_by_pairs);
  CHECK(perfect.speedup_by_pairs == 4);
}

TEST_CASE("visited tiles, counted one by one", "[neighborhood][quick]") {
  for_each_seed("visited tiles", 300, [](seed_t seed) {
    support::random draw(seed);
    auto const around = random_neighborhood<2>(draw, 16);
    heed::grid_point<2> const tq{draw.between(1, 6), draw.between(1, 6)},
        tk{draw.between(1, 6), draw.between(1, 6)};
    // Tiles as dilation group and tile numbers; a tile's pairs are counted, and those that are kept.
    auto const tile_of = [&](index_t token, heed::grid_point<2> const& tile) {
      auto const at = reference::coordinates_of(token, around.canvas);
      std::array<index_t, 4> number;
      for (std::size_t a = 0; a < 2; ++a) {
        number[a] = at[a] % around.dilation[a];
        number[2 + a] = at[a] / around.dilation[a] / tile[a];
      }
      return number;
    };
    struct pair_count {
      index_t pairs = 0, kept = 0;
    };
    std::map<std::array<std::array<index_t, 4>, 2>, pair_count> tiles;
    index_t const size = heed::grid_size(around.canvas);
    auto const axes = plain(around);
    for (index_t q = 0; q < size; ++q)
      for (index_t k = 0; k < size; ++k) {
        auto const x = tile_of(q, tq), y = tile_of(k, tk);
        if (x[0] != y[0] || x[1] != y[1]) continue;
        auto& count = tiles[{x, y}];
        ++count.pairs;
        count.kept += reference::neighborhood_keeps(axes, q, k);
      }
    index_t visited = 0, full = 0;
    for (auto const& [tile, count] : tiles) {
      visited += count.kept > 0;
      full += count.kept == count.pairs;
    }
    auto const said = heed::visited_tiles(around, tq, tk);
    bool const good = said.visited == visited && said.full == full &&
                      said.dense == static_cast<index_t>(tiles.size()) &&
                      (said.visited == said.full) == said.perfectly_sparse();
    return good ? std::string() : std::string("visited_tiles() is wrong\n");
  });
}

TEST_CASE("tiles as long as strides, and windows of an odd number, are perfectly sparse",
          "[neighborhood][quick]") {
  for (index_t tile = 1; tile <= 5; ++tile)
    for (index_t tiles = 1; tiles <= 9; ++tiles)
      for (index_t k = 1; k <= tiles; k += 2) {
        auto const visits = heed::visited_tiles<1>(
            {.canvas = {tile * tiles}, .window = {k * tile}, .stride = {tile}}, {tile}, {tile});
        CHECK(visits.perfectly_sparse());
        CHECK(visits.speedup_by_tiles == Approx(visits.speedup_by_pairs));
      }
}

TEST_CASE("tokens moved to their tiles and back", "[neighborhood][quick]") {
  for_each_seed("token orders", 300, [](seed_t seed) {
    support::random draw(seed);
    auto const around = random_neighborhood<2>(draw, 12);
    heed::tiled_tokens<2> const order{
        around.canvas, {draw.between(1, 5), draw.between(1, 5)}, around.dilation};
    index_t const size = heed::grid_size(around.canvas), slots = order.slots();
    index_t const heads = 2, dim = 3;
    std::string complaint;
    std::vector<double> numbers(static_cast<std::size_t>(2 * size * heads * dim)), moved, back;
    for (double& each : numbers) each = draw.normal();
    moved.assign(static_cast<std::size_t>(2 * slots * heads * dim), -7);
    back.assign(numbers.size(), -7);
    heed::permute(order, heed::bnhd(numbers.data(), 2, size, heads, dim),
                  heed::bhnd(moved.data(), 2, heads, slots, dim));
    heed::unpermute(order, heed::bhnd(moved.data(), 2, heads, slots, dim),
                    heed::bnhd(back.data(), 2, size, heads, dim));
    if (back != numbers) complaint += "unpermute() does not undo permute()\n";
    // Slot by slot from the definition.
    index_t slot = 0;
    std::array<index_t, 2> tiles, padded;
    for (std::size_t a = 0; a < 2; ++a) {
      index_t const unit = order.tile[a] * order.dilation[a];
      padded[a] = (order.canvas[a] + unit - 1) / unit * unit;
      tiles[a] = padded[a] / unit;
    }
    auto const view = heed::bhnd(moved.data(), 2, heads, slots, dim);
    auto const from = heed::bnhd(numbers.data(), 2, size, heads, dim);
    for (index_t gy = 0; gy < order.dilation[0]; ++gy)
      for (index_t gx = 0; gx < order.dilation[1]; ++gx)
        for (index_t ty = 0; ty < tiles[0]; ++ty)
          for (index_t tx = 0; tx < tiles[1]; ++tx)
            for (index_t y = 0; y < order.tile[0]; ++y)
              for (index_t x = 0; x < order.tile[1]; ++x, ++slot) {
                index_t const sy = (ty * order.tile[0] + y) * order.dilation[0] + gy;
                index_t const sx = (tx * order.tile[1] + x) * order.dilation[1] + gx;
                bool const real = sy < order.canvas[0] && sx < order.canvas[1];
                index_t const token = real ? sy * order.canvas[1] + sx : -1;
                if (order.token(slot) != token) complaint = "token() is wrong\n";
                for (index_t h = 0; h < heads; ++h)
                  if (view(1, slot, h, 2) != (real ? from(1, token, h, 2) : 0))
                    complaint = "permute() is wrong\n";
              }
    if (slot != slots) complaint += "slots() is wrong\n";
    return complaint;
  });
}

TEST_CASE("neighborhoods say what does not fit", "[neighborhood][errors][quick]") {
  auto const message = [](auto f) -> std::string {
    try {
      f();
    } catch (heed::error const& e) {
      return e.what();
    }
    return "";
  };
  auto const with = [&](heed::neighborhood<2> const& around) {
    return message([&] { heed::neighborhood_order<2>(around, 24); });
  };
  CHECK(with({.canvas = {8, 7}, .window = {3, 8}}) ==
        "heed: neighborhood.window of axis 1 is 8; expected 1 to 7 (canvas / dilation)");
  CHECK(with({.canvas = {8, 7}, .window = {3, 3}, .dilation = {1, 3}}) ==
        "heed: neighborhood.window of axis 1 is 3; expected 1 to 2 (canvas / dilation)");
  CHECK(with({.canvas = {8, 7}, .window = {0, 3}}) ==
        "heed: neighborhood.window of axis 0 is 0; expected 1 to 8 (canvas / dilation)");
  CHECK(with({.canvas = {8, 7}, .window = {3, 3}, .stride = {4, 1}}) ==
        "heed: neighborhood.stride of axis 0 is 4; expected 1 to 3 (window)");
  CHECK(with({.canvas = {8, 7}, .window = {3, 3}, .dilation = {0, 1}}) ==
        "heed: neighborhood.dilation of axis 0 is 0; expected 1 to 8 (canvas)");
  CHECK(with({.canvas = {0, 7}, .window = {3, 3}}) ==
        "heed: neighborhood.canvas of axis 0 is 0; expected at least 1");
  heed::neighborhood<2> const good{.canvas = {8, 7}, .window = {3, 3}};
  CHECK(message([&] { heed::neighborhood_order<2>(good, 65); }) ==
        "heed: neighborhood_order has lanes 65; expected 1 to 64");
  CHECK(message([&] { heed::neighborhood_order<2>(good, 24).check({.rows = 56, .keys = 55}); }) ==
        "heed: neighborhood.canvas is [8, 7]; expected the tokens of a call with 56 queries and 55 "
        "keys");
  CHECK(
      message([&] {
        heed::visited_tiles<2>(good, {4, 0}, {4, 4});
      }) ==
      "heed: visited_tiles has tiles of [4, 0] queries and [4, 4] keys; expected at least 1 along "
      "each axis");
  double numbers[56 * 6];
  CHECK(message([&] {
          heed::permute(heed::tiled_tokens<2>{{8, 7}, {4, 4}}, heed::bnhd(numbers, 1, 55, 1, 6),
                        heed::bnhd(numbers, 1, 64, 1, 6));
        }) ==
        "heed: tokens have shape [1, 55, 1, 6]; expected 56 for axis 1 (position), the canvas "
        "[8, 7]");
  CHECK(message([&] {
          heed::permute(heed::tiled_tokens<2>{{8, 7}, {4, 4}}, heed::bnhd(numbers, 1, 56, 1, 6),
                        heed::bnhd(numbers, 1, 56, 1, 6));
        }) == "heed: slots have shape [1, 56, 1, 6]; expected [1, 64, 1, 6]");
}
