#include "reference/patterns/neighborhood.hpp"
#include "support/arrangement_check.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/neighborhood.hpp>

#include <cmath>

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
