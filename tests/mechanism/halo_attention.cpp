#include "reference/halo.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/halo_attention.hpp>
#include <heed/parallel/eigen_pool.hpp>

// Attention to a block and its halo, forward and backward, against its definition; its identities.

using heed::grid_point;
using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

template <std::size_t d, class E = float>
struct halo_problem {
  support::random draw;
  heed::halo<d, E> how;
  reference::halo_options definition;
  index_t B, N = 1, M = 1, H, D, Dv;
  guarded<E, 4> query, key, value, dout;
  guarded<float, 3> dlse;
  std::vector<guarded<E, 2>> vectors;

  halo_problem(seed_t seed, index_t most) : draw(seed) {
    how.border = draw.one_in(2) ? heed::halo_border::zero : heed::halo_border::mask;
    how.scale_positions = draw.one_in(2);
    for (std::size_t a = 0; a < d; ++a) {
      index_t const stride = draw.one_in(3) ? 2 : 1;
      how.blocks.query_stride[a] = stride;
      how.blocks.block[a] = stride * draw.between(1, 1 + most / 4 / stride);
      how.blocks.canvas[a] = how.blocks.block[a] * draw.between(1, 3);
      how.blocks.halo[a] = draw.between(0, draw.one_in(8) ? 9 : 3);
    }
    B = draw.between(1, 2);
    H = draw.one_in(2) ? 2 : 3;
    D = draw.between(1, 20);
    Dv = draw.between(1, 20);
    prepare();
  }
  halo_problem(heed::halo_blocks<d> const& blocks, heed::halo_border border) : draw(7) {
    how.blocks = blocks;
    how.border = border;
    B = 2;
    H = 2;
    D = 9;
    Dv = 7;
    prepare();
  }

  void prepare() {
    N = heed::grid_size(how.blocks.query_canvas());
    M = heed::grid_size(how.blocks.canvas);
    index_t const shared = draw.one_in(2) ? 1 : H;
    query = make({B, N, H, D});
    key = make({B, M, shared, D});
    value = make({B, M, draw.one_in(2) ? 1 : H, Dv});
    dout = make({B, N, H, Dv});
    dlse = support::blank<float, 3>({B, H, N});
    dlse.fill([&](auto const&) { return float(draw.normal()); });
    definition.scale = double(float(draw.uniform(0.1, 0.6)));
    definition.zero = how.border == heed::halo_border::zero;
    definition.scale_positions = how.scale_positions;
    vectors.reserve(d);
    for (std::size_t a = 0; a < d; ++a) {
      definition.axes.push_back({how.blocks.canvas[a], how.blocks.block[a], how.blocks.halo[a],
                                 how.blocks.query_stride[a]});
      support::extents_of<2> const shape{2 * how.blocks.window()[a] - 1, D};
      vectors.emplace_back(shape, support::random_layout<2>(draw, shape, false));
      vectors.back().fill([&](auto const&) { return E(float(0.5 * draw.normal())); });
      how.vectors[a] = vectors.back().view();
    }
  }
  guarded<E, 4> make(support::extents_of<4> const& extents) {
    guarded<E, 4> tensor(extents, support::random_layout<4>(draw, extents, false));
    tensor.fill([&](auto const&) { return E(float(draw.normal())); });
    return tensor;
  }

  template <class T>
  reference::halo_result<T> defined(reference::evaluation order = {}) const {
    auto options = definition;
    options.order = order;
    std::vector<tensor<T, 2>> all;
    for (auto const& each : vectors) all.push_back(each.template values<T>());
    return reference::halo_attention<T>(query.template values<T>(), key.template values<T>(),
                                        value.template values<T>(), all, dout.template values<T>(),
                                        dlse.template values<T>(), options);
  }

  reference::halo_result<float> run(int threads) {
    Eigen::ThreadPool pool(threads);
    guarded<E, 4> out = make(dout.extents()), dquery = make(query.extents()),
                  dkey = make(key.extents()), dvalue = make(value.extents());
    auto lse = support::blank<float, 3>({B, H, N});
    std::vector<guarded<E, 2>> dvectors;
    dvectors.reserve(d);
    std::array<tensor_view<E, 2>, d> targets;
    for (std::size_t a = 0; a < d; ++a) {
      dvectors.push_back(support::blank<E, 2>(vectors[a].extents()));
      targets[a] = dvectors[a].view();
    }
    double dscale = 0;
    heed::scale const scale{definition.scale, &dscale};
    heed::halo_attention(std::as_const(query).view(), std::as_const(key).view(),
                         std::as_const(value).view(), out.view(), how, scale,
                         heed::lse_into{lse.view()}, heed::on{pool});
    heed::halo_attention_backward(std::as_const(query).view(), std::as_const(key).view(),
                                  std::as_const(value).view(), std::as_const(out).view(),
                                  std::as_const(lse).view(), std::as_const(dout).view(),
                                  dquery.view(), dkey.view(), dvalue.view(), targets, how, scale,
                                  heed::lse_gradient{std::as_const(dlse).view()}, heed::on{pool});
    reference::halo_result<float> all{
        out.template values<float>(),        lse.values<float>(),
        dquery.template values<float>(),     dkey.template values<float>(),
        dvalue.template values<float>(),     {},
        tensor<float, 1>({1}, float(dscale))};
    for (auto const& each : dvectors) all.dvectors.push_back(each.template values<float>());
    return all;
  }

  std::string complaint() {
    auto const got = run(1), again = run(3);
    auto const exact = defined<double>();
    std::vector<reference::halo_result<float>> naive;
    for (auto order : reference::evaluations) naive.push_back(defined<float>(order));
    std::string text;
    auto const compare = [&](std::string const& name, auto select, double least = 0) {
      std::vector<std::decay_t<decltype(select(got))>> each;
      for (auto const& x : naive) each.push_back(select(x));
      text += support::two_times_rule(name, select(got), select(exact), each, support::epsilon<E>(),
                                      least);
      if (!support::same_bits(select(got), select(again)))
        text += name + ": three threads give other bits than one\n";
    };
    compare("out", [](auto const& x) { return x.out; });
    compare(
        "lse", [](auto const& x) { return x.lse; }, 1);
    compare("dquery", [](auto const& x) { return x.dquery; });
    compare("dkey", [](auto const& x) { return x.dkey; });
    compare("dvalue", [](auto const& x) { return x.dvalue; });
    for (std::size_t a = 0; a < d; ++a)
      compare("dvectors" + std::to_string(a), [a](auto const& x) { return x.dvectors[a]; });
    compare(
        "dscale", [](auto const& x) { return x.dscale; }, exact.dscale_terms);
    if (!text.empty())
      text += "canvas " + heed::shape_text(how.blocks.canvas) + ", block " +
              heed::shape_text(how.blocks.block) + ", halo " + heed::shape_text(how.blocks.halo) +
              ", stride " + heed::shape_text(how.blocks.query_stride) +
              (definition.zero ? ", zero" : ", mask") + (how.scale_positions ? ", scaled\n" : "\n");
    return text;
  }
};

}  // namespace

TEST_CASE("halo attention of pictures", "[mechanism][halo]") {
  for_each_seed(
      "halos of pictures", 60, [](seed_t seed) { return halo_problem<2>(seed, 16).complaint(); },
      support::luck);
}

TEST_CASE("halo attention of sequences and films", "[mechanism][halo]") {
  for_each_seed("halos of sequences", 30,
                [](seed_t seed) { return halo_problem<1>(seed, 60).complaint(); });
  for_each_seed("halos of films", 15,
                [](seed_t seed) { return halo_problem<3>(seed, 4).complaint(); });
}

TEST_CASE("halo attention: operands of half", "[mechanism][halo]") {
  for_each_seed("halos of half", 20,
                [](seed_t seed) { return halo_problem<2, Eigen::half>(seed, 12).complaint(); });
}

namespace {

/// Attention with the products with vectors as a bias of all pairs, under any arrangement.
support::attended<float> with_bias(halo_problem<2> const& p, heed::any_arrangement const& order,
                                   heed::any_pattern const& pattern) {
  auto numbers = support::blank<float, 4>({p.B, p.H, p.N, p.M});
  auto const& blocks = p.how.blocks;
  numbers.fill([&](auto const& at) {
    auto const y = reference::coordinates_of(at[2], blocks.query_canvas()),
               z = reference::coordinates_of(at[3], blocks.canvas);
    double sum = 0;
    for (std::size_t a = 0; a < 2; ++a) {
      reference::halo_axis const& axis = p.definition.axes[a];
      index_t const u = axis.place(y[a], z[a] + axis.halo);
      if (u < 0 || u >= axis.window()) return 0.0f;  // a pair that does not meet
      for (index_t c = 0; c < p.D; ++c)
        sum += double(p.query.view()(at[0], at[2], at[1], c)) *
               double(p.vectors[a].view()(u - axis.in_block(y[a]) + axis.window() - 1, c));
    }
    return float(sum);
  });
  return support::attend(p.query.view(), p.key.view(), p.value.view(), order, pattern,
                         heed::bias{std::as_const(numbers).view()},
                         heed::scale{p.definition.scale});
}

support::attended<float> forward(halo_problem<2>& p) {
  auto out = support::blank<float, 4>(p.dout.extents());
  auto lse = support::blank<float, 3>({p.B, p.H, p.N});
  Eigen::ThreadPool pool(1);
  double unused = 0;
  heed::halo_attention(std::as_const(p.query).view(), std::as_const(p.key).view(),
                       std::as_const(p.value).view(), out.view(), p.how,
                       heed::scale{p.definition.scale, &unused}, heed::lse_into{lse.view()},
                       heed::on{pool});
  return {out.values<float>(), lse.values<float>()};
}

}  // namespace

TEST_CASE("halo attention without a halo is window attention", "[mechanism][halo]") {
  for (auto border : {heed::halo_border::zero, heed::halo_border::mask}) {
    halo_problem<2> p({.canvas = {12, 10}, .block = {4, 5}, .halo = {0, 0}}, border);
    heed::window_partition<2> const windows{{12, 10}, {4, 5}, {}};
    auto const expected = with_bias(p, heed::any_arrangement(windows), heed::dense{});
    auto const got = forward(p);
    CHECK(support::difference(got.out, expected.out) < 4e-6);
    CHECK(support::difference(got.lse, expected.lse) < 4e-6);
  }
}

TEST_CASE("halo attention away from the border is a neighborhood", "[mechanism][halo]") {
  for (index_t block : {3, 4}) {
    heed::halo_blocks<2> const blocks{
        .canvas = {5 * block, 4 * block}, .block = {block, block}, .halo = {2, 3}};
    halo_problem<2> p(blocks, heed::halo_border::mask);
    heed::neighborhood_order<2> const order(
        {.canvas = blocks.canvas, .window = blocks.window(), .stride = blocks.block},
        heed::attend::panel_lanes<float>);
    auto const expected = with_bias(p, heed::any_arrangement(order), order.pattern());
    auto const got = forward(p);
    index_t inner = 0, border = 0;
    for (index_t i = 0; i < p.N; ++i) {
      bool const inside = blocks.phantoms(heed::grid_place(blocks.canvas, i)) == 0;
      double largest = 0;
      for (index_t b = 0; b < p.B; ++b)
        for (index_t h = 0; h < p.H; ++h)
          for (index_t c = 0; c < p.Dv; ++c)
            largest =
                std::max(largest, double(std::abs(got.out(b, i, h, c) - expected.out(b, i, h, c))));
      if (inside) {
        CHECK(largest < 4e-6);
        ++inner;
      } else {
        border += largest > 1e-3;
      }
    }
    CHECK(inner == 6 * block * block);
    CHECK(border > 0);
  }
}

TEST_CASE("halo attention: zeros beyond the border only take weight", "[mechanism][halo]") {
  heed::halo_blocks<2> const blocks{.canvas = {6, 8}, .block = {3, 4}, .halo = {2, 1}};
  halo_problem<2> with_zeros(blocks, heed::halo_border::zero),
      masked(blocks, heed::halo_border::mask);
  for (auto* p : {&with_zeros, &masked})
    for (auto& each : p->vectors) each.fill([](auto const&) { return 0.0f; });
  auto const a = forward(with_zeros), b = forward(masked);
  double worst = 0;
  for (index_t n = 0; n < masked.B; ++n)
    for (index_t h = 0; h < masked.H; ++h)
      for (index_t i = 0; i < masked.N; ++i) {
        double const keys = std::exp(double(b.lse(n, h, i)));
        double const zeros = double(blocks.phantoms(heed::grid_place(blocks.canvas, i)));
        worst = std::max(worst, std::abs(double(a.lse(n, h, i)) - std::log(keys + zeros)));
        for (index_t c = 0; c < masked.Dv; ++c)
          worst = std::max(worst, std::abs(double(a.out(n, i, h, c)) -
                                           double(b.out(n, i, h, c)) * keys / (keys + zeros)));
      }
  CHECK(worst < 4e-6);
}

TEST_CASE("halo attention: far below its zeros a row still knows its lse", "[mechanism][halo]") {
  // Places on the canvas have scores that are hundreds below those beyond it, and above them.
  for (float far : {-300.f, 300.f}) {
    halo_problem<2> p({.canvas = {4, 4}, .block = {4, 4}, .halo = {1, 1}}, heed::halo_border::zero);
    for (auto& each : p.vectors)
      each.fill([&](auto const& at) { return at[1] > 0 ? 0.0f : at[0] % 3 == 0 ? far : 0.1f; });
    p.query.fill([](auto const& at) { return at[3] == 0 ? 1.0f : 0.25f; });
    CHECK(p.complaint() == "");
  }
}

TEST_CASE("halo attention: the reference's gradients are differences", "[mechanism][halo][quick]") {
  for (bool scaled : {false, true})
    for (bool zero : {false, true}) {
      support::random draw(11);
      reference::halo_options how{.axes = {{4, 2, 1, 1}, {4, 4, 1, 2}},
                                  .zero = zero,
                                  .scale_positions = scaled,
                                  .scale = 0.7,
                                  .order = {}};
      auto const normal = [&](auto extents) {
        tensor<double, std::tuple_size_v<decltype(extents)>> values(extents);
        for (double& x : values.values) x = draw.normal();
        return values;
      };
      using four = std::array<index_t, 4>;
      auto q = normal(four{1, 8, 1, 3}), k = normal(four{1, 16, 1, 3}),
           v = normal(four{1, 16, 1, 2});
      auto const dout = normal(four{1, 8, 1, 2});
      auto const dlse = normal(std::array<index_t, 3>{1, 1, 8});
      std::vector<tensor<double, 2>> vectors{normal(std::array<index_t, 2>{7, 3}),
                                             normal(std::array<index_t, 2>{11, 3})};
      auto const run = [&] { return reference::halo_attention(q, k, v, vectors, dout, dlse, how); };
      auto const g = run();
      auto const loss = [&] {
        auto const r = run();
        double sum = 0;
        for (std::size_t n = 0; n < r.out.values.size(); ++n)
          sum += dout.values[n] * r.out.values[n];
        for (std::size_t n = 0; n < r.lse.values.size(); ++n)
          sum += dlse.values[n] * r.lse.values[n];
        return sum;
      };
      auto const check = [&](double& x, double gradient) {
        double const here = x, step = 1e-5;
        x = here + step;
        double const above = loss();
        x = here - step;
        double const below = loss();
        x = here;
        CHECK(gradient == Approx((above - below) / (2 * step)).epsilon(1e-6).margin(2e-8));
      };
      auto const check_all = [&](auto& of, auto const& gradients) {
        for (std::size_t n = 0; n < of.values.size(); ++n) check(of.values[n], gradients.values[n]);
      };
      check_all(q, g.dquery);
      check_all(k, g.dkey);
      check_all(v, g.dvalue);
      for (std::size_t a = 0; a < 2; ++a) check_all(vectors[a], g.dvectors[a]);
      check(how.scale, g.dscale.values[0]);
    }
}

TEST_CASE("halo attention: what does not fit is refused before anything is written",
          "[mechanism][halo][quick]") {
  std::vector<float> memory(2000, 7.0f);
  auto const tokens = [&](index_t n, index_t dim) {
    return heed::bnhd(memory.data(), 1, n, 2, dim);
  };
  auto const run = [&](index_t rows, index_t keys, index_t first, index_t second, index_t block) {
    heed::halo<2> const how{.blocks = {.canvas = {4, 8}, .block = {2, block}, .halo = {1, 1}},
                            .vectors = {tensor_view<float const, 2>(memory.data(), {first, 5}),
                                        tensor_view<float const, 2>(memory.data(), {second, 5})}};
    Eigen::ThreadPool pool(1);
    double unused = 0;
    heed::halo_attention(std::as_const(tokens)(rows, 5), tokens(keys, 5), tokens(keys, 3),
                         tokens(rows, 3), how, heed::scale{1, &unused},
                         heed::lse_into{tensor_view<float, 3>(memory.data(), {1, 2, 31})},
                         heed::on{pool});
  };
  CHECK_THROWS_WITH(run(32, 32, 7, 10, 4),
                    "heed: halo.vectors[1] has shape [10, 5]; expected [11, 5] (relative position, "
                    "head_dim)");
  CHECK_THROWS_WITH(run(32, 32, 7, 11, 3),
                    "heed: halo_blocks.block of axis 1 is 3; expected a divisor of the canvas, 8");
  CHECK_THROWS_WITH(
      run(31, 32, 7, 11, 4),
      "heed: halo_blocks.canvas is [4, 8], for 32 queries and 32 keys; expected those "
      "of the call, 31 and 32");
  CHECK_THROWS_WITH(run(32, 32, 7, 11, 4),
                    "heed: lse has shape [1, 2, 31]; expected [1, 2, 32] (batch, head, row)");
  CHECK(memory == std::vector<float>(2000, 7.0f));
}
