#include "reference/attention.hpp"
#include "reference/patterns/neighborhood.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/dilated_neighborhood.hpp>
#include <heed/mechanism/multi_axis.hpp>
#include <heed/mechanism/shifted_windows.hpp>
#include <heed/parallel/eigen_pool.hpp>
#include <heed/score/relative_bias.hpp>

// Numbers for relative positions in windows, grids and neighborhoods, against the definition on coordinates.

using heed::grid_point;
using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

constexpr index_t lanes = heed::attend::panel_lanes<float>;

/// A call with a table: what it keeps and the entry of a pair are said by tokens.
struct biased_problem {
  support::random draw;
  heed::any_pattern pattern;
  std::function<bool(index_t, index_t)> keep;
  std::function<index_t(index_t, index_t)> entry;
  heed::any_arrangement order;
  heed::relative_index const* index;
  index_t tokens;

  std::string complaint() {
    index_t const B = draw.between(1, 2), H = draw.between(1, 3), D = draw.between(1, 20);
    index_t const N = tokens, entries = index->size();
    auto const make = [&](index_t heads, index_t dim) {
      return support::normal(draw, {B, N, heads, dim});
    };
    auto const query = make(H, D), key = make(1, D), value = make(H, D), dout = make(H, D);
    support::extents_of<2> const shape{draw.one_in(3) ? 1 : H, entries};
    guarded<float, 2> table(shape, support::random_layout<2>(draw, shape, false));
    table.fill([&](auto const&) { return float(draw.normal()); });
    guarded<float, 2> dtable(shape, support::random_layout<2>(draw, shape, false));

    auto out = support::blank<float, 4>(dout.extents());
    auto lse = support::blank<float, 3>({B, H, N});
    auto dquery = support::blank<float, 4>(query.extents()),
         dkey = support::blank<float, 4>(key.extents()),
         dvalue = support::blank<float, 4>(value.extents());
    auto const run = [&](int threads) {
      Eigen::ThreadPool pool(threads);
      heed::relative_bias const added(*index, std::as_const(table).view(), dtable.view());
      heed::attention(query.view(), key.view(), value.view(), out.view(), pattern, order, added,
                      heed::lse_into{lse.view()}, heed::on{pool});
      heed::attention_backward(query.view(), key.view(), value.view(), std::as_const(out).view(),
                               std::as_const(lse).view(), dout.view(), dquery.view(), dkey.view(),
                               dvalue.view(), pattern, order, added, heed::on{pool});
      return std::tuple(out.values<float>(), lse.values<float>(), dquery.values<float>(),
                        dkey.values<float>(), dvalue.values<float>(), dtable.values<float>());
    };
    auto const got = run(1), again = run(3);
    std::string complaint;
    if (!support::same_bits(std::get<0>(got), std::get<0>(again)) ||
        !support::same_bits(std::get<2>(got), std::get<2>(again)) ||
        !support::same_bits(std::get<5>(got), std::get<5>(again)))
      complaint += "three threads give other bits than one\n";

    auto const define = [&]<class T>(T, reference::evaluation how) {
      reference::options o;
      o.order = how;
      o.keep = [this](index_t, index_t q, index_t k) { return keep(q, k); };
      reference::bias numbers{tensor<double, 4>({1, H, N, N})};
      for (index_t h = 0; h < H; ++h)
        for (index_t q = 0; q < N; ++q)
          for (index_t k = 0; k < N; ++k)
            if (keep(q, k))
              numbers.values(0, h, q, k) = double(table.view()(shape[0] == 1 ? 0 : h, entry(q, k)));
      o.modifiers.push_back(numbers);
      auto const forward =
          reference::attention<T>(query.values<T>(), key.values<T>(), value.values<T>(), o);
      auto const backward =
          reference::attention_backward<T>(query.values<T>(), key.values<T>(), value.values<T>(),
                                           forward.out, forward.lse, dout.values<T>(), {}, o);
      tensor<T, 2> of_table(shape);
      for (index_t h = 0; h < H; ++h)
        for (index_t q = 0; q < N; ++q)
          for (index_t k = 0; k < N; ++k)
            if (keep(q, k))
              of_table(shape[0] == 1 ? 0 : h, entry(q, k)) += backward.modifiers[0](0, h, q, k);
      return std::tuple(forward.out, forward.lse, backward.query, backward.key, backward.value,
                        of_table);
    };
    auto const exact = define(0.0, {});
    std::vector<decltype(define(0.0f, {}))> naive;
    for (auto each : reference::evaluations) naive.push_back(define(0.0f, each));
    char const* const names[] = {"out", "lse", "dquery", "dkey", "dvalue", "dtable"};
    [&]<std::size_t... n>(std::index_sequence<n...>) {
      auto const one = [&](auto which) {
        constexpr std::size_t at = decltype(which)::value;
        std::vector<std::decay_t<decltype(std::get<at>(got))>> each;
        for (auto const& x : naive) each.push_back(std::get<at>(x));
        complaint += support::two_times_rule(names[at], std::get<at>(got), std::get<at>(exact),
                                             each, support::epsilon<float>(), at == 1 ? 1 : 0);
      };
      (one(std::integral_constant<std::size_t, n>{}), ...);
    }
    (std::make_index_sequence<6>{});
    return complaint;
  }
};

template <std::size_t d, class Arrangement, class Keep, class Coordinate>
std::string check(seed_t seed, Arrangement const& order, heed::any_pattern pattern,
                  grid_point<d> const& canvas, heed::relative_positions<d> const& entries,
                  Keep keep, Coordinate coordinate) {
  heed::relative_index const index(order, entries);
  auto const every_axis = [&](index_t q, index_t k, auto f) {
    auto const x = reference::coordinates_of(q, canvas), y = reference::coordinates_of(k, canvas);
    for (std::size_t a = 0; a < d; ++a) f(a, x[a], y[a]);
  };
  biased_problem problem{.draw = support::random(seed),
                         .pattern = pattern,
                         .keep =
                             [&](index_t q, index_t k) {
                               bool all = true;
                               every_axis(q, k, [&](std::size_t a, index_t x, index_t y) {
                                 all = all && keep(a, x, y);
                               });
                               return all;
                             },
                         .entry =
                             [&](index_t q, index_t k) {
                               index_t number = 0;
                               every_axis(q, k, [&](std::size_t a, index_t x, index_t y) {
                                 index_t const difference = coordinate(a, x) - coordinate(a, y);
                                 number = number * (2 * entries.reach[a] + 1) + entries.reach[a] +
                                          (entries.key_first ? -difference : difference);
                               });
                               return number;
                             },
                         .order = heed::any_arrangement(order),
                         .index = &index,
                         .tokens = heed::grid_size(canvas)};
  return problem.complaint();
}

}  // namespace

TEST_CASE("relative positions in windows", "[score][relative_bias]") {
  for_each_seed("biased windows", 25, [](seed_t seed) {
    support::random draw(seed);
    grid_point<2> const canvas{draw.between(1, 13), draw.between(1, 13)},
        window{draw.between(1, 6), draw.between(1, 6)};
    auto const windows = heed::shifted_windows<2>(canvas, window, draw.one_in(2));
    return check<2>(
        seed, windows, heed::dense{}, canvas, heed::window_table(window),
        [&](std::size_t a, index_t x, index_t y) {
          return reference::window_number(x, window[a], windows.shift[a]) ==
                 reference::window_number(y, window[a], windows.shift[a]);
        },
        [](std::size_t, index_t x) { return x; });
  });
}

TEST_CASE("relative positions on grids", "[score][relative_bias]") {
  for_each_seed("biased grids", 15, [](seed_t seed) {
    support::random draw(seed);
    index_t const size = draw.between(1, 4);
    grid_point<2> const canvas{size * draw.between(1, 3), size * draw.between(1, 3)};
    auto const grid = heed::multi_axis_grid(canvas, size);
    return check<2>(
        seed, grid, heed::dense{}, canvas, heed::window_table<2>({size, size}),
        [&](std::size_t a, index_t x, index_t y) {
          return x % (canvas[a] / size) == y % (canvas[a] / size);
        },
        [&](std::size_t a, index_t x) { return x / (canvas[a] / size); });
  });
}

TEST_CASE("relative positions in dilated neighborhoods", "[score][relative_bias]") {
  for_each_seed("biased neighborhoods", 25, [](seed_t seed) {
    support::random draw(seed);
    index_t const window = draw.between(1, 5), dilation = draw.between(1, 3);
    grid_point<2> const canvas{window * dilation + draw.between(0, 5),
                               window * dilation + draw.between(0, 5)};
    auto const around = heed::dilated_neighborhood(canvas, window, dilation);
    heed::neighborhood_order<2> const order(around, lanes);
    return check<2>(
        seed, order, order.pattern(), canvas, heed::dilated_neighborhood_table(window),
        [&](std::size_t a, index_t x, index_t y) {
          return reference::axis_keeps({canvas[a], window, 1, dilation}, x, y);
        },
        [&](std::size_t, index_t x) { return x / dilation; });
  });
}

TEST_CASE("relative positions in strided and causal neighborhoods", "[score][relative_bias]") {
  for_each_seed("biased films", 10, [](seed_t seed) {
    support::random draw(seed);
    heed::neighborhood<3> around{.canvas = {5, 4, 6}, .causal = {draw.one_in(2), false, false}};
    heed::relative_positions<3> entries{.key_first = draw.one_in(2)};
    std::vector<reference::axis> axes;
    for (std::size_t a = 0; a < 3; ++a) {
      around.window[a] = draw.between(1, around.canvas[a]);
      around.stride[a] = draw.between(1, around.window[a]);
      entries.reach[a] = around.window[a] - 1 + draw.between(0, 2);
      axes.push_back({around.canvas[a], around.window[a], around.stride[a], 1, around.causal[a]});
    }
    heed::neighborhood_order<3> const order(around, lanes);
    return check<3>(
        seed, order, order.pattern(), around.canvas, entries,
        [&](std::size_t a, index_t x, index_t y) { return reference::axis_keeps(axes[a], x, y); },
        [](std::size_t, index_t x) { return x; });
  });
}

TEST_CASE("relative positions that do not fit are refused", "[score][relative_bias][quick]") {
  heed::window_partition<2> const windows{{14, 21}, {7, 7}, {}};
  using entries = heed::relative_positions<2>;
  CHECK_THROWS_WITH(heed::relative_index(windows, entries{.reach = {6, 5}}),
                    "heed: relative_positions.reach of axis 1 is 5; expected at least 6, as far as "
                    "a query and a key that meet are apart");
  CHECK_THROWS_AS(heed::relative_index(heed::window_partition<2>{{14, 21}, {0, 7}, {}},
                                       entries{.reach = {6, 6}}),
                  heed::error);
  heed::neighborhood_order<2> const order({.canvas = {20, 20}, .window = {7, 7}}, lanes);
  CHECK_THROWS_AS(heed::relative_index(order, entries{.reach = {5, 6}}), heed::error);
  CHECK_NOTHROW(heed::relative_index(order, entries{.reach = {6, 6}}));

  heed::relative_index const index(windows, entries{.reach = {6, 6}});
  std::vector<float> numbers(169 * 3);
  auto const bias = [&](index_t heads, index_t count, index_t gradient_heads) {
    return heed::relative_bias(index, tensor_view<float, 2>(numbers.data(), {heads, count}),
                               tensor_view<float, 2>(numbers.data(), {gradient_heads, count}));
  };
  heed::call_shape const shape{.batches = 2, .sequences = 12, .heads = 3, .rows = 294, .keys = 294};
  CHECK_NOTHROW(bias(3, 169, 3).check(shape));
  CHECK_NOTHROW(bias(1, 169, 1).check(shape));
  CHECK_THROWS_WITH(bias(2, 169, 2).check(shape),
                    "heed: the table of relative_bias has shape [2, 169]; expected [1 or 3, 169] "
                    "(head, relative position)");
  CHECK_THROWS_WITH(bias(3, 168, 3).check(shape),
                    "heed: the table of relative_bias has shape [3, 168]; expected [1 or 3, 169] "
                    "(head, relative position)");
  CHECK_THROWS_WITH(bias(3, 169, 1).check(shape),
                    "heed: the gradient of relative_bias has shape [1, 169]; expected that of the "
                    "table, [3, 169]");
  CHECK_THROWS_WITH(
      bias(3, 169, 3).check({.batches = 2, .sequences = 2, .heads = 3, .rows = 294, .keys = 294}),
      "heed: the relative_index is of an arrangement of 294 keys in 6 groups; the call has 294 "
      "keys "
      "in 1");
}
