#include "reference/patterns/neighborhood.hpp"
#include "support/arrangement_check.hpp"
#include "support/attention_check.hpp"
#include "support/random.hpp"

#include <heed/neighborhood.hpp>
#include <heed/score/relative_bias.hpp>

// Canvases of different shapes in one call: each a problem of its own.

using heed::grid_point;
using heed::index_t;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr index_t lanes = heed::attend::panel_lanes<float>;

/// Where each canvas begins, and the end.
std::vector<index_t> offsets(std::vector<index_t> const& sizes) {
  std::vector<index_t> first{0};
  for (index_t size : sizes) first.push_back(first.back() + size);
  return first;
}

/// A rule for the tokens of each canvas as one for all tokens.
template <class Keep>
auto within_canvases(std::vector<index_t> const& queries, std::vector<index_t> const& keys,
                     Keep keep) {
  return [=](index_t, index_t, index_t q, index_t k) {
    for (std::size_t n = 0; n + 1 < queries.size(); ++n)
      if (q < queries[n + 1])
        return k >= keys[n] && k < keys[n + 1] && keep(n, q - queries[n], k - keys[n]);
    return false;
  };
}

}  // namespace

TEST_CASE("neighborhoods on canvases of different shapes", "[neighborhood]") {
  for_each_seed("packed neighborhoods", 30, [](seed_t seed) {
    support::random draw(seed);
    index_t const window = draw.between(1, 4), dilation = draw.between(1, 3),
                  stride = draw.between(1, window);
    std::vector<heed::neighborhood_order<2>> orders;
    std::vector<std::vector<reference::axis>> axes;
    std::vector<index_t> sizes;
    for (index_t n = draw.between(1, 4); n > 0; --n) {
      heed::neighborhood<2> around{.canvas = {},
                                   .window = {window, window},
                                   .stride = {stride, 1},
                                   .dilation = {1, dilation}};
      around.canvas = {window + draw.between(0, 8), window * dilation + draw.between(0, 8)};
      orders.emplace_back(around, lanes);
      axes.push_back(
          {{around.canvas[0], window, stride, 1}, {around.canvas[1], window, 1, dilation}});
      sizes.push_back(heed::grid_size(around.canvas));
    }
    heed::packed_canvases const pictures(orders);
    auto const first = offsets(sizes);
    std::string complaint;
    support::slots_of(pictures, complaint);
    pictures.check({.rows = first.back(), .keys = first.back()});
    return complaint +
           support::attention_complaint(
               seed, {.pattern = pictures.pattern(),
                      .keep = within_canvases(first, first,
                                              [&](std::size_t n, index_t q, index_t k) {
                                                return reference::neighborhood_keeps(axes[n], q, k);
                                              }),
                      .rows = first.back(),
                      .keys = first.back(),
                      .batches = draw.between(1, 2),
                      .order = heed::any_arrangement(pictures)});
  });
}

TEST_CASE("windows and halos on canvases of different shapes", "[neighborhood]") {
  for_each_seed("packed windows", 15, [](seed_t seed) {
    support::random draw(seed);
    std::vector<heed::window_partition<2>> windows;
    std::vector<heed::halo_order<2>> halos;
    std::vector<index_t> sizes, query_sizes, key_sizes;
    for (index_t n = draw.between(1, 4); n > 0; --n) {
      windows.push_back({{draw.between(1, 9), draw.between(1, 9)}, {4, 3}, {2, 1}});
      sizes.push_back(heed::grid_size(windows.back().canvas));
      halos.emplace_back(heed::halo_blocks<2>{.canvas = {4 * draw.between(1, 2), 4},
                                              .block = {4, 2},
                                              .halo = {1, 2},
                                              .query_stride = {2, 1}},
                         lanes);
      query_sizes.push_back(heed::grid_size(halos.back().parameters().query_canvas()));
      key_sizes.push_back(heed::grid_size(halos.back().parameters().canvas));
    }
    auto const first = offsets(sizes), first_query = offsets(query_sizes),
               first_key = offsets(key_sizes);
    heed::packed_canvases const pictures(windows);
    heed::packed_canvases const blocks(halos);
    return support::attention_complaint(
               seed, {.pattern = heed::dense{},
                      .keep = within_canvases(
                          first, first,
                          [&](std::size_t n, index_t q, index_t k) {
                            auto const y = reference::coordinates_of(q, windows[n].canvas),
                                       z = reference::coordinates_of(k, windows[n].canvas);
                            return reference::window_number(y[0], 4, 2) ==
                                       reference::window_number(z[0], 4, 2) &&
                                   reference::window_number(y[1], 3, 1) ==
                                       reference::window_number(z[1], 3, 1);
                          }),
                      .rows = first.back(),
                      .keys = first.back(),
                      .order = heed::any_arrangement(pictures)}) +
           support::attention_complaint(
               seed, {.pattern = blocks.pattern(),
                      .keep = within_canvases(
                          first_query, first_key,
                          [&](std::size_t n, index_t q, index_t k) {
                            auto const& of = halos[n].parameters();
                            auto const y = reference::coordinates_of(q, of.query_canvas()),
                                       z = reference::coordinates_of(k, of.canvas);
                            return reference::halo_keeps(of.canvas[0], 4, 1, 2, y[0], z[0]) &&
                                   reference::halo_keeps(of.canvas[1], 2, 2, 1, y[1], z[1]);
                          }),
                      .rows = first_query.back(),
                      .keys = first_key.back(),
                      .order = heed::any_arrangement(blocks)});
  });
}

TEST_CASE("relative positions on canvases of different shapes", "[neighborhood][quick]") {
  std::vector<heed::neighborhood_order<2>> orders;
  for (grid_point<2> canvas : {grid_point<2>{9, 7}, grid_point<2>{5, 12}})
    orders.emplace_back(
        heed::neighborhood<2>{.canvas = canvas, .window = {3, 5}, .dilation = {1, 1}}, lanes);
  heed::packed_canvases const pictures(orders);
  heed::relative_positions<2> const entries{.reach = {2, 4}, .key_first = true};
  heed::relative_index const all(pictures, entries);
  for (index_t n = 0; n < 2; ++n) {
    auto const& order = orders[static_cast<std::size_t>(n)];
    heed::relative_index const one(order, entries);
    CHECK(std::equal(one.queries_of(0), one.queries_of(0) + order.rows(0), all.queries_of(n)));
    CHECK(std::equal(one.keys_of(0), one.keys_of(0) + order.keys(0), all.keys_of(n)));
  }
  CHECK_THROWS_AS(heed::relative_index(pictures, heed::relative_positions<2>{.reach = {2, 3}}),
                  heed::error);
}

TEST_CASE("canvases that do not fit the call say so", "[neighborhood][quick]") {
  heed::packed_canvases const pictures(
      std::vector<heed::window_partition<2>>{{{4, 4}, {2, 2}, {}}, {{3, 5}, {2, 2}, {}}});
  CHECK_NOTHROW(pictures.check({.rows = 31, .keys = 31}));
  CHECK_THROWS_WITH(pictures.check({.rows = 32, .keys = 31}),
                    "heed: packed_canvases hold 31 queries and 31 keys; expected those of the "
                    "call, 32 and 31");
  CHECK_THROWS_AS(
      heed::packed_canvases(std::vector<heed::window_partition<2>>{{{4, 4}, {2, 2}, {2, 0}}}),
      heed::error);
}
