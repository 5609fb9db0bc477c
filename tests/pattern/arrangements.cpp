#include "reference/patterns/neighborhood.hpp"
#include "support/arrangement_check.hpp"
#include "support/message_of.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/halo.hpp>
#include <heed/pattern/neighborhood.hpp>
#include <heed/pattern/partition.hpp>
#include <heed/pattern/relative.hpp>

// Which tokens share a group, and which pairs of a group are kept, against the definitions on coordinates.

using heed::grid_point;
using heed::index_t;
using support::for_each_seed;
using support::message_of;
using support::seed_t;

namespace {

template <std::size_t d>
grid_point<d> draw_point(support::random& draw, index_t least, index_t most) {
  grid_point<d> point;
  for (index_t& each : point) each = draw.between(least, most);
  return point;
}

/// Complains unless every token stands in one group and two tokens share it if and only if `together`. `pairs` is what
/// the arrangement says.
template <class Arrangement, class Together>
std::string check_groups(Arrangement const& order, index_t size, index_t pairs, Together together) {
  std::string complaint;
  auto const groups = support::slots_of(order, complaint);
  complaint += support::check_tokens(groups, size, size);
  if (!complaint.empty()) return complaint;
  order.check({.rows = size, .keys = size});
  std::vector<std::size_t> group_of(static_cast<std::size_t>(size));
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].queries != groups[g].keys) complaint += "queries and keys differ\n";
    for (index_t token : groups[g].queries) group_of[static_cast<std::size_t>(token)] = g;
  }
  index_t kept = 0;
  for (index_t q = 0; q < size; ++q)
    for (index_t k = 0; k < size; ++k) {
      bool const same =
          group_of[static_cast<std::size_t>(q)] == group_of[static_cast<std::size_t>(k)];
      kept += same;
      if (same != together(q, k) && complaint.size() < 500)
        complaint += "tokens " + std::to_string(q) + " and " + std::to_string(k) +
                     (same ? " share a group\n" : " share no group\n");
    }
  if (kept != pairs)
    complaint += "pairs() is " + std::to_string(pairs) + ", not " + std::to_string(kept) + "\n";
  return complaint;
}

/// A predicate on the coordinates of each axis, as one on tokens.
template <std::size_t d, class F>
auto on_axes(grid_point<d> const& canvas, F f) {
  return [=](index_t q, index_t k) {
    auto const x = reference::coordinates_of(q, canvas), y = reference::coordinates_of(k, canvas);
    for (std::size_t a = 0; a < d; ++a)
      if (!f(a, x[a], y[a])) return false;
    return true;
  };
}

template <std::size_t d>
std::string check_windows(support::random& draw, index_t most) {
  heed::window_partition<d> windows{draw_point<d>(draw, 1, most), draw_point<d>(draw, 1, 8), {}};
  for (std::size_t a = 0; a < d; ++a)
    windows.shift[a] = draw.one_in(2) ? 0 : draw.between(0, windows.window[a] - 1);
  return check_groups(windows, heed::grid_size(windows.canvas), windows.pairs(),
                      on_axes(windows.canvas, [&](std::size_t a, index_t y, index_t z) {
                        return reference::window_number(y, windows.window[a], windows.shift[a]) ==
                               reference::window_number(z, windows.window[a], windows.shift[a]);
                      }));
}

template <std::size_t d>
std::string check_grid(support::random& draw, index_t most) {
  heed::grid_partition<d> grid{{}, draw_point<d>(draw, 1, most)};
  for (std::size_t a = 0; a < d; ++a) grid.canvas[a] = grid.cells[a] * draw.between(1, most);
  auto const together = on_axes(grid.canvas, [&](std::size_t a, index_t y, index_t z) {
    index_t const apart = grid.canvas[a] / grid.cells[a];
    return y % apart == z % apart;
  });
  return check_groups(grid, heed::grid_size(grid.canvas), grid.pairs(), together);
}

template <std::size_t d>
std::string check_axial(support::random& draw, index_t most) {
  heed::axial<d> const one{draw_point<d>(draw, 1, most), draw.between(0, index_t{d} - 1)};
  return check_groups(one, heed::grid_size(one.canvas), one.pairs(),
                      on_axes(one.canvas, [&](std::size_t a, index_t y, index_t z) {
                        return a == static_cast<std::size_t>(one.axis) || y == z;
                      }));
}

template <std::size_t d>
heed::halo_blocks<d> random_halo(support::random& draw, index_t most) {
  heed::halo_blocks<d> blocks;
  for (std::size_t a = 0; a < d; ++a) {
    blocks.query_stride[a] = draw.one_in(2) ? 1 : 2;
    blocks.block[a] = blocks.query_stride[a] * draw.between(1, most);
    blocks.canvas[a] = blocks.block[a] * draw.between(1, 4);
    blocks.halo[a] = draw.between(0, 4);
  }
  return blocks;
}

template <std::size_t d>
std::string check_halo(support::random& draw, index_t most) {
  auto const blocks = random_halo<d>(draw, most);
  std::array<index_t, 4> const lanes{24, 12, 48, draw.between(1, 64)};
  heed::halo_order<d> const order(blocks, draw.one_of(lanes));
  index_t const rows = heed::grid_size(blocks.query_canvas()),
                keys = heed::grid_size(blocks.canvas);
  order.check({.rows = rows, .keys = keys});
  std::string complaint;
  auto const groups = support::slots_of(order, complaint);
  complaint += support::check_tokens(groups, rows, keys);
  if (!complaint.empty()) return complaint;
  auto const& slots = groups[0];
  auto const token_keeps = [&](index_t q, index_t k) {
    auto const y = reference::coordinates_of(q, blocks.query_canvas());
    auto const z = reference::coordinates_of(k, blocks.canvas);
    for (std::size_t a = 0; a < d; ++a)
      if (!reference::halo_keeps(blocks.canvas[a], blocks.block[a], blocks.halo[a],
                                 blocks.query_stride[a], y[a], z[a]))
        return false;
    return true;
  };
  index_t pairs = 0;
  for (index_t q = 0; q < rows; ++q)
    for (index_t k = 0; k < keys; ++k) pairs += token_keeps(q, k);
  if (pairs != blocks.pairs() || pairs != order.pattern().bind({}).pairs())
    complaint += "pairs() is wrong\n";
  auto const count = static_cast<index_t>(slots.queries.size());
  // Padding may keep what it likes; it stands within a panel, so tiles stay exact.
  return complaint + support::check_pattern(
                         draw, order.pattern(), {.rows = count, .keys = keys},
                         [&](index_t slot, index_t key) {
                           slot = std::clamp(slot, index_t{0}, count - 1);
                           index_t const token = slots.queries[static_cast<std::size_t>(slot)];
                           return token < 0 ? order.pattern().bind({}).keep(slot, key)
                                            : token_keeps(token, key);
                         },
                         {.exact_tiles = true, .exact_keys = true});
}

}  // namespace

TEST_CASE("windows, shifted and ragged", "[arrangements][quick]") {
  for_each_seed("window partitions", 300, [](seed_t seed) {
    support::random draw(seed);
    return check_windows<1>(draw, 60) + check_windows<2>(draw, 15) + check_windows<3>(draw, 6);
  });
}

TEST_CASE("windows: identities", "[arrangements][quick]") {
  // Of at least the canvas: one group. w | L: pairs in closed form. s = w / 2: half windows are met whole or not at all.
  heed::window_partition<2> const whole{{5, 6}, {5, 9}};
  CHECK(whole.groups() == 1);
  CHECK(whole.pairs() == 900);
  index_t wrong_pairs = 0, wrong_rolls = 0, partial = 0, wrong_neighborhoods = 0;
  for (index_t w = 1; w <= 8; ++w)
    for (index_t n = 1; n <= 5; ++n)
      for (index_t s = 0; s < w; ++s) {
        index_t const L = w * n;
        heed::window_partition<1> const windows{{L}, {w}, {s}};
        wrong_pairs +=
            windows.pairs() != (s == 0 ? L * w : s * s + (n - 1) * w * w + (w - s) * (w - s));
        auto const together = [&](index_t y, index_t z) {
          return reference::window_number(y, w, s) == reference::window_number(z, w, s);
        };
        // Rolled by -s, windows with a mask of regions, rolled back.
        auto const region = [&](index_t y) { return y < L - w ? 0 : y < L - s ? 1 : 2; };
        for (index_t y = 0; y < L; ++y)
          for (index_t z = 0; z < L; ++z) {
            index_t const ry = (y - s + L) % L, rz = (z - s + L) % L;
            wrong_rolls += together(y, z) != (ry / w == rz / w && region(ry) == region(rz));
            if (s == 0)
              wrong_neighborhoods +=
                  together(y, z) != reference::axis_keeps({L, w, w, 1, false}, y, z);
            if (2 * s == w) {
              bool const first = together(y / s * s, z / s * s);
              partial += first != together(y, z);
            }
          }
      }
  CHECK(wrong_pairs == 0);
  CHECK(wrong_rolls == 0);
  CHECK(partial == 0);
  CHECK(wrong_neighborhoods == 0);
}

TEST_CASE("grids and axes", "[arrangements][quick]") {
  for_each_seed("grids and axes", 300, [](seed_t seed) {
    support::random draw(seed);
    return check_grid<1>(draw, 7) + check_grid<2>(draw, 4) + check_grid<3>(draw, 3) +
           check_axial<1>(draw, 20) + check_axial<2>(draw, 12) + check_axial<3>(draw, 6);
  });
}

TEST_CASE("a grid is a neighborhood dilated as far as it goes", "[arrangements][quick]") {
  index_t wrong = 0;
  for (index_t cells = 1; cells <= 6; ++cells)
    for (index_t apart = 1; apart <= 6; ++apart)
      for (index_t y = 0; y < cells * apart; ++y)
        for (index_t z = 0; z < cells * apart; ++z)
          wrong += (y % apart == z % apart) !=
                   reference::axis_keeps({cells * apart, cells, 1, apart, false}, y, z);
  CHECK(wrong == 0);
}

TEST_CASE("residues turn dilated windows into plain ones", "[arrangements][quick]") {
  for_each_seed("residues", 300, [](seed_t seed) {
    support::random draw(seed);
    heed::residues const apart{draw.between(1, 9), draw.between(1, 40), draw.between(1, 40)};
    index_t const reach = draw.between(0, 30), N = apart.query_count, M = apart.key_count;
    bool const causal = draw.one_in(2);
    heed::sliding_window const window{.left = reach / apart.step,
                                      .right = causal ? 0 : reach / apart.step};
    auto const pattern = apart.pattern(window);
    apart.check({.rows = N, .keys = M});
    std::string complaint;
    auto const groups = support::slots_of(apart, complaint);
    complaint += support::check_tokens(groups, N, M);
    if (!complaint.empty()) return complaint;
    std::vector<int> kept(static_cast<std::size_t>(N * M), 0);
    for (std::size_t g = 0; g < groups.size(); ++g) {
      auto const& [queries, keys] = groups[g];
      heed::place const where{.rows = static_cast<index_t>(queries.size()),
                              .keys = static_cast<index_t>(keys.size()),
                              .group = static_cast<index_t>(g)};
      auto const bound = pattern.bind(where);
      for (std::size_t q = 0; q < queries.size(); ++q)
        for (std::size_t k = 0; k < keys.size(); ++k)
          kept[static_cast<std::size_t>(queries[q] * M + keys[k])] +=
              bound.keep(static_cast<index_t>(q), static_cast<index_t>(k));
      if (!keys.empty())
        complaint +=
            support::check_pattern(draw, pattern, where,
                                   [&](index_t slot, index_t key) {
                                     index_t const p = slot + where.keys - where.rows;
                                     return p - window.left <= key && key <= p + window.right;
                                   },
                                   {.exact_tiles = true});
    }
    index_t wrong = 0;
    for (index_t i = 0; i < N; ++i)
      for (index_t j = 0; j < M; ++j) {
        index_t const difference = j - (i + M - N);
        bool const expected = std::abs(difference) <= reach && difference % apart.step == 0 &&
                              (!causal || difference <= 0);
        wrong += kept[static_cast<std::size_t>(i * M + j)] != expected;
      }
    if (wrong > 0) complaint += std::to_string(wrong) + " pairs are wrong\n";
    return complaint;
  });
}

TEST_CASE("blocks with a halo", "[arrangements][quick]") {
  for_each_seed("halos", 300, [](seed_t seed) {
    support::random draw(seed);
    return check_halo<1>(draw, 9) + check_halo<2>(draw, 4) + check_halo<3>(draw, 2);
  });
}

TEST_CASE("phantoms of a halo, and its relative positions", "[arrangements][quick]") {
  for_each_seed("phantoms", 200, [](seed_t seed) {
    support::random draw(seed);
    auto const blocks = random_halo<2>(draw, 4);
    std::string complaint;
    index_t with_phantoms = 0;
    for (index_t q = 0; q < heed::grid_size(blocks.query_canvas()); ++q) {
      grid_point<2> const query = heed::grid_place(blocks.query_canvas(), q);
      std::vector<grid_point<2>> expected, given;
      for (index_t u = 0; u < blocks.window()[0]; ++u)
        for (index_t w = 0; w < blocks.window()[1]; ++w) {
          grid_point<2> const in_window{u, w};
          grid_point<2> at;
          bool inside = true;
          for (std::size_t a = 0; a < 2; ++a) {
            index_t const t = query[a] * blocks.query_stride[a] / blocks.block[a];
            at[a] = t * blocks.block[a] - blocks.halo[a] + in_window[a];
            inside = inside && at[a] >= 0 && at[a] < blocks.canvas[a];
            index_t const in_block = query[a] % (blocks.block[a] / blocks.query_stride[a]);
            index_t const row = in_window[a] - in_block + blocks.window()[a] - 1;
            if (blocks.relative(a, query[a], at[a]) != row) complaint = "relative() is wrong\n";
            if (row < 0 || row >= 2 * blocks.window()[a] - 1)
              complaint = "relative() leaves the table\n";
          }
          with_phantoms += 1;
          if (!inside) expected.push_back(at);
        }
      blocks.each_phantom(query, [&](grid_point<2> const& at) { given.push_back(at); });
      if (given != expected) complaint += "each_phantom() is wrong\n";
      if (blocks.phantoms(query) != static_cast<index_t>(expected.size()))
        complaint += "phantoms() is wrong\n";
    }
    if (with_phantoms != blocks.pairs_with_phantoms())
      complaint += "pairs_with_phantoms() is wrong\n";
    return complaint;
  });
}

TEST_CASE("a halo is a strided neighborhood away from the border", "[arrangements][quick]") {
  index_t wrong = 0, checked = 0;
  for (index_t block = 1; block <= 5; ++block)
    for (index_t halo = 0; halo <= 4; ++halo)
      for (index_t blocks = 1; blocks <= 6; ++blocks) {
        index_t const length = block * blocks;
        if (block + 2 * halo > length) continue;
        heed::halo_axis const axis{length, block, halo};
        heed::window_axis const around{length, block + 2 * halo, block, false};
        for (index_t c = 0; c < length; ++c) {
          heed::interval const full = axis.full_window_of(c), other = around.window_of(c);
          if (full.first < 0 || full.last > length) continue;
          ++checked;
          wrong += full.first != other.first || full.last != other.last;
        }
      }
  CHECK(checked > 300);
  CHECK(wrong == 0);
  // Without a halo: windows.
  heed::window_partition<2> const windows{{6, 8}, {3, 4}};
  CHECK((heed::halo_blocks<2>{.canvas = {6, 8}, .block = {3, 4}}.pairs()) == windows.pairs());
}

TEST_CASE("relative positions", "[arrangements][quick]") {
  index_t const w = 5;
  heed::relative_positions<2> const windows{.reach = {w - 1, w - 1}};
  heed::relative_positions<2> const around{.reach = {w - 1, w - 1}, .key_first = true};
  CHECK(windows.size() == 81);
  index_t wrong = 0;
  for (index_t i = 0; i < w * w; ++i)
    for (index_t j = 0; j < w * w; ++j) {
      index_t const dy = i / w - j / w, dx = i % w - j % w;
      wrong += windows({i / w, i % w}, {j / w, j % w}) != (dy + w - 1) * (2 * w - 1) + dx + w - 1;
      wrong += around({i / w, i % w}, {j / w, j % w}) != (w - 1 - dy) * (2 * w - 1) + w - 1 - dx;
      if (j % w == 0) continue;
      for (auto const& table : {windows, around})
        wrong += table({i / w, i % w}, {j / w, j % w}) !=
                 table({i / w, i % w}, {j / w, j % w - 1}) + table.next_key();
    }
  CHECK(wrong == 0);
}

TEST_CASE("arrangements say what does not fit", "[arrangements][errors][quick]") {
  heed::call_shape const shape{.rows = 12, .keys = 12};
  CHECK(
      message_of([&] {
        heed::window_partition<2>{{3, 5}, {2, 2}}.check(shape);
      }) ==
      "heed: window_partition.canvas is [3, 5]; expected the tokens of a call with 12 queries and "
      "12 keys");
  CHECK(message_of([&] {
          heed::window_partition<2>{{3, 4}, {2, 2}, {0, 2}}.check(shape);
        }) == "heed: window_partition.shift of axis 1 is 2; expected 0 to 1");
  CHECK(message_of([&] {
          heed::window_partition<2>{{3, 4}, {0, 2}}.check(shape);
        }) == "heed: window_partition.window of axis 0 is 0; expected at least 1");
  CHECK(message_of([&] {
          heed::grid_partition<2>{{3, 4}, {3, 3}}.check(shape);
        }) == "heed: grid_partition.cells of axis 1 is 3; expected a divisor of the canvas, 4");
  CHECK(message_of([&] {
          heed::axial<2>{{3, 4}, 2}.check(shape);
        }) == "heed: axial.axis is 2; expected 0 to 1");
  CHECK(message_of([&] {
          heed::residues{0, 12, 12}.check(shape);
        }) == "heed: residues.step is 0; expected at least 1");
  CHECK(message_of([&] {
          heed::residues{2, 12, 11}.check(shape);
        }) == "heed: residues are of 12 queries and 11 keys; expected 12 and 12");
  CHECK(message_of([&] { heed::halo_order<1>({.canvas = {12}, .block = {5}, .halo = {1}}, 24); }) ==
        "heed: halo_blocks.block of axis 0 is 5; expected a divisor of the canvas, 12");
  CHECK(message_of([&] {
          heed::halo_order<1>({.canvas = {12}, .block = {4}, .halo = {1}, .query_stride = {3}}, 24);
        }) == "heed: halo_blocks.query_stride of axis 0 is 3; expected a divisor of the block, 4");
  CHECK(message_of([&] {
          heed::halo_order<1>({.canvas = {12}, .block = {4}, .halo = {1}}, 24)
              .check({.rows = 6, .keys = 12});
        }) ==
        "heed: halo_blocks.canvas is [12], for 12 queries and 12 keys; expected those of the "
        "call, 6 and 12");
}
