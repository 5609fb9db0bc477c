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
  for_each_seed("halos of pictures", 60,
                [](seed_t seed) { return halo_problem<2>(seed, 16).complaint(); });
}

TEST_CASE("halo attention of sequences and films", "[mechanism][halo]") {
  for_each_seed("halos of sequences", 30,
                [](seed_t seed) { return halo_problem<1>(seed, 60).complaint(); });
  for_each_seed("halos of films", 15,
                [](seed_t seed) { return halo_problem<3>(seed, 4).complaint(); });
}
