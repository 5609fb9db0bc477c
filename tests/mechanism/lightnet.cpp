#include <heed/mechanism/lightnet.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

// LightNet's additive recurrence and single scan, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::blank;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

template <class T>
struct lightnet_problem : definition_check<T> {
  index_t B, N, M, H, keys, D, E;
  double scale;
  bool turns;
  std::vector<index_t> query_bounds, key_bounds;
  guarded<float, 2> theta;
  reference::tensor<double, 4> angles;

  explicit lightnet_problem(seed_t seed, bool as_many = false) : definition_check<T>(seed) {
    auto& dice = this->draw;
    turns = dice.one_in(2);
    bool const packed = !as_many && !turns && dice.one_in(2);
    B = packed ? 1 : dice.between(1, 2), N = dice.between(6, 40);
    M = as_many ? N : dice.between(6, 40);
    keys = dice.between(1, 2), H = 2 * keys, D = dice.between(2, 9), E = dice.between(2, 9);
    scale = dice.one_in(2) ? 1 : 1 / std::sqrt(double(D));
    if (packed) {
      query_bounds = {0, dice.between(0, N), N};
      key_bounds = {0, dice.between(0, M), M};
    }
    theta = blank<float, 2>({1, D});
    angles = reference::tensor<double, 4>({1, 1, 1, D});
    theta.fill([&](auto const& at) {
      auto const angle = static_cast<float>(dice.uniform(0.01, 1));
      angles(0, 0, 0, at[1]) = angle;
      return angle;
    });
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, keys, D}, [&] { return 2 * dice.normal(); });
    this->input("v", {B, M, keys, E});
    this->output("out", {B, N, H, E});
  }

  /// Calls f with the ingredients of the call; those of a step are the same without documents.
  template <class F>
  void with_ingredients(F const& f) const {
    if (key_bounds.empty())
      with_step_ingredients(f, 0);
    else
      f(heed::scale{scale}, heed::documents{query_bounds, key_bounds});
  }
  template <class F>
  void with_step_ingredients(F const& f, index_t offset) const {
    heed::scale const by{scale};
    if (!turns) return f(by);
    heed::lrpe map(theta.view());
    map.offset = offset;
    f(by, map);
  }

  template <class U>
  std::pair<tensor<U, 4>, tensor<U, 4>> features(tensor<U, 4> const& q,
                                                 tensor<U, 4> const& k) const {
    auto const query = each(q, [&](U const& x) { return U(scale) * reference::silu(x); });
    if (!turns) return {query, k};
    tensor<U, 4> by(angles.extents);
    for (std::size_t n = 0; n < angles.values.size(); ++n) by.values[n] = U(angles.values[n]);
    return {reference::turned(query, by, true, {}, M - N), reference::turned(k, by, true, {}, 0)};
  }

  auto definition(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      auto const shares = reference::running_shares(in[1], key_bounds);
      auto const phi = features(in[0], shares.first);
      reference::recurrence_parts<U> parts;
      parts.query_bounds = query_bounds;
      parts.key_bounds = key_bounds;
      parts.log_gate = tensor<U, 4>({B, M, keys, phi.second.extent(3)});
      for (index_t b = 0; b < B; ++b)
        for (index_t t = 0; t < M; ++t)
          for (index_t h = 0; h < keys; ++h)
            for (index_t f = 0; f < phi.second.extent(3); ++f)
              parts.log_gate(b, t, h, f) = shares.second(b, t, h, f % D);
      return tensors<U>{
          by_pairs ? reference::gated_recurrence_by_pairs(phi.first, phi.second, in[2], parts)
                   : reference::gated_recurrence(phi.first, phi.second, in[2], parts)};
    };
  }
};

}  // namespace

TEMPLATE_TEST_CASE("lightnet: the causal definition and its gradients", "[mechanism][lightnet]",
                   double, float) {
  for_each_seed("lightnet", 40, [](seed_t seed) {
    lightnet_problem<TestType> p(seed);
    p.with_ingredients([&](auto const&... all) {
      heed::lightnet(p.in(0), p.in(1), p.in(2), p.out(0), all...);
      heed::lightnet_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0), p.din(0), p.din(1),
                              p.din(2), all...);
    });
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEMPLATE_TEST_CASE("lightnet: the single scan and its gradients", "[mechanism][lightnet]", double,
                   float) {
  for_each_seed("lightnet single scan", 40, [](seed_t seed) {
    definition_check<TestType> p(seed);
    auto& draw = p.draw;
    // On a grid, with either form of positions, or without any.
    std::vector<index_t> const grid{draw.between(2, 6), draw.between(2, 6)};
    bool const turns = draw.one_in(2), complex = draw.one_in(2);
    index_t const N = grid[0] * grid[1], H = draw.between(1, 2), D = 4 * draw.between(1, 3),
                  E = draw.between(2, 9);
    p.input("q", {2, N, H, D});
    p.input("k", {2, N, H, D}, [&] { return 2 * draw.normal(); });
    p.input("v", {2, N, H, E});
    p.output("out", {2, N, H, E});
    auto theta = blank<float, 2>({1, D});
    heed::lrpe_angles(theta.view());
    heed::lrpe map(theta.view());
    map.form = complex ? heed::lrpe_form::complex : heed::lrpe_form::rotating;
    map.grid = grid;
    auto const run = [&](auto const&... all) {
      heed::lightnet_single_scan(p.in(0), p.in(1), p.in(2), p.out(0), all...);
      heed::lightnet_single_scan_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0),
                                          p.din(0), p.din(1), p.din(2), all...);
    };
    turns ? run(map) : run();
    auto const definition = [&]<class U>(tensors<U> const& in) {
      tensor<U, 4> q = each(in[0], reference::silu<U>), k = reference::position_softmax(in[1], {});
      if (turns) {
        tensor<U, 4> angles({1, 1, 1, D});
        for (index_t d = 0; d < D; ++d) angles(0, 0, 0, d) = U(theta.view()(0, d));
        q = reference::turned(q, angles, complex, grid, 0);
        k = reference::turned(k, angles, complex, grid, 0);
      }
      auto const state = reference::into_slots(k, in[2]);  // [batch, feature, head, channel]
      tensor<U, 4> out({2, N, H, E});
      for (index_t b = 0; b < 2; ++b)
        for (index_t i = 0; i < N; ++i)
          for (index_t h = 0; h < H; ++h)
            for (index_t e = 0; e < E; ++e)
              for (index_t f = 0; f < q.extent(3); ++f)
                out(b, i, h, e) += q(b, i, h, f) * state(b, f, h, e);
      return tensors<U>{out};
    };
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("lightnet: steps are the whole", "[mechanism][lightnet]") {
  for_each_seed("lightnet step", 40, [](seed_t seed) {
    lightnet_problem<float> p(seed, true);
    index_t const F = p.turns ? 2 * p.D : p.D;
    auto memory = blank<float, 4>({p.B, p.keys, F, p.E});
    auto total = blank<double, 3>({p.B, p.keys, p.D});
    heed::lightnet_state const held{memory.view(), total.view()};
    held.clear();
    index_t const first = p.draw.between(0, p.N);
    p.with_ingredients([&](auto const&... all) {
      heed::lightnet(p.in(0).slice(1, 0, first), p.in(1).slice(1, 0, first),
                     p.in(2).slice(1, 0, first), p.out(0).slice(1, 0, first), held, all...);
    });
    for (index_t t = first; t < p.N; ++t)
      p.with_step_ingredients(
          [&](auto const&... all) {
            heed::lightnet_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1),
                                p.in(2).slice(1, t, 1), p.out(0).slice(1, t, 1), held, all...);
          },
          t);
    return p.forward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lightnet: gradients of a resumed sequence", "[mechanism][lightnet]") {
  constexpr index_t D = 4, E = 3;
  // As many keys as rows or fewer, so that rows read the first state; channels of one feature or two; packed sequences.
  index_t const bounds[] = {0, 2, 6}, query_bounds[] = {0, 3, 7};
  heed::documents const packed{query_bounds, bounds};
  for (bool const turns : {false, true})
    for (bool const in_two : {false, true}) {
      INFO("turns " << turns << ", packed " << in_two);
      index_t const S = in_two ? 2 : 1, F = turns ? 2 * D : D, N = 7, M = 6;
      support::random draw(11);
      auto const some = [&](support::extents_of<4> const& extents) {
        return support::normal<double>(draw, extents);
      };
      auto q = some({1, N, 2, D}), k = some({1, M, 1, D}), v = some({1, M, 1, E}),
           dout = some({1, N, 2, E}), memory = some({S, 1, F, E}), dend = some({S, 1, F, E}),
           out = blank<double, 4>({1, N, 2, E}), end = blank<double, 4>(memory.extents());
      auto total = blank<double, 3>({S, 1, D}), dend_total = blank<double, 3>({S, 1, D}),
           end_total = blank<double, 3>({S, 1, D});
      for (auto* each : {&total, &dend_total})
        each->fill([&](auto const&) { return draw.normal(); });
      auto theta = blank<float, 2>({1, D});
      theta.fill([&](auto const&) { return static_cast<float>(draw.uniform(0.01, 1)); });
      auto const call = [&](auto const& f) {
        heed::lrpe const map(theta.view());
        turns ? (in_two ? f(map, packed) : f(map)) : (in_two ? f(packed) : f());
      };
      heed::lightnet_state<double> const begun{memory.view(), total.view()},
          ended{end.view(), end_total.view()};
      auto const loss = [&] {
        end.fill([&](auto const& at) { return memory.view()(at[0], at[1], at[2], at[3]); });
        end_total.fill([&](auto const& at) { return total.view()(at[0], at[1], at[2]); });
        call([&](auto const&... all) {
          heed::lightnet(q.view(), k.view(), v.view(), out.view(), ended, all...);
        });
        double sum = reference::weighted_sum(dout.values<double>(), out.values<double>()) +
                     reference::weighted_sum(dend.values<double>(), end.values<double>());
        auto const z = end_total.values<double>(), dz = dend_total.values<double>();
        for (std::size_t n = 0; n < z.values.size(); ++n) sum += z.values[n] * dz.values[n];
        return sum;
      };
      loss();
      auto dq = blank<double, 4>(q.extents()), dk = blank<double, 4>(k.extents()),
           dv = blank<double, 4>(v.extents()), dmemory = blank<double, 4>(memory.extents());
      auto dtotal = blank<double, 3>(total.extents());
      call([&](auto const&... all) {
        heed::lightnet_backward(
            q.view(), k.view(), v.view(), out.view(), dout.view(), dq.view(), dk.view(), dv.view(),
            begun, heed::lightnet_state_gradient<double>{dmemory.view(), dtotal.view()},
            heed::lightnet_final_gradient<double>{ended, {dend.view(), dend_total.view()}}, all...);
      });
      auto const check = [&](auto& input, auto const& gradient) {
        support::for_each_index(input.extents(), [&](auto const& at) {
          double& x = input.view().data()[support::offset(at, input.view().strides())];
          double const before = x;
          x = before + 1e-5;
          double const above = loss();
          x = before - 1e-5;
          double const slope = (above - loss()) / 2e-5;
          x = before;
          CHECK(gradient.view().data()[support::offset(at, gradient.view().strides())] ==
                Approx(slope).margin(1e-8));
        });
      };
      check(q, dq), check(k, dk), check(v, dv), check(memory, dmemory), check(total, dtotal);
    }
}

TEMPLATE_TEST_CASE("lightnet: two parts and their gradients are the whole", "[mechanism][lightnet]",
                   double, float) {
  using T = TestType;
  for_each_seed("lightnet in two", 40, [](seed_t seed) {
    lightnet_problem<T> p(seed, true);
    index_t const F = p.turns ? 2 * p.D : p.D, cut = p.draw.between(1, p.N - 1);
    struct held {
      guarded<T, 4> memory;
      guarded<double, 3> total;
      heed::lightnet_state<T> state() { return {memory.view(), total.view()}; }
    };
    auto const make = [&] {
      held all{blank<T, 4>({p.B, p.keys, F, p.E}), blank<double, 3>({p.B, p.keys, p.D})};
      all.state().clear();
      return all;
    };
    held now = make(), begun = make(), middle = make(), slope = make();
    auto const part = [&](index_t from, index_t to, auto const& f) {
      p.with_step_ingredients(
          [&](auto const&... all) {
            f([&](auto view) { return view.slice(1, from, to - from); }, all...);
          },
          from);
    };
    auto const forward = [&](auto const& of, auto const&... all) {
      heed::lightnet(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.out(0)), now.state(), all...);
    };
    auto const backward = [&](auto const& of, auto const&... all) {
      heed::lightnet_backward(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.saved(0)), of(p.dout(0)),
                              of(p.din(0)), of(p.din(1)), of(p.din(2)), all...);
    };
    part(0, cut, forward);
    middle.memory.fill([&](auto const& at) {
      return std::as_const(now.memory).view()(at[0], at[1], at[2], at[3]);
    });
    middle.total.fill(
        [&](auto const& at) { return std::as_const(now.total).view()(at[0], at[1], at[2]); });
    part(cut, p.N, forward);
    heed::lightnet_state_gradient<T> const at_cut{slope.memory.view(), slope.total.view()};
    part(cut, p.N,
         [&](auto const& of, auto const&... all) { backward(of, middle.state(), at_cut, all...); });
    part(0, cut, [&](auto const& of, auto const&... all) {
      backward(of, begun.state(), heed::lightnet_final_gradient<T>{middle.state(), at_cut}, all...);
    });
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lightnet: the last causal row is that of the single scan", "[mechanism][lightnet]") {
  lightnet_problem<double> p(21, true);
  auto all = blank<double, 4>(p.out(0).extents());
  heed::lightnet(p.in(0), p.in(1), p.in(2), p.out(0));
  heed::lightnet_single_scan(p.in(0), p.in(1), p.in(2), all.view());
  for (index_t h = 0; h < p.H; ++h)
    for (index_t e = 0; e < p.E; ++e)
      CHECK(p.out(0)(0, p.N - 1, h, e) == Approx(all.view()(0, p.N - 1, h, e)).epsilon(1e-12));
}

TEST_CASE("lightnet: constant keys give the running mean of the values, however late",
          "[mechanism][lightnet]") {
  constexpr index_t N = 20000;
  support::random draw(12);
  std::vector<float> v(N), out(N), key(1, 3.0f), query(1, 1.0f);
  for (float& each : v) each = static_cast<float>(draw.normal());
  tensor_view<float, 4> const constant(key.data(), {1, N, 1, 1}, {0, 0, 0, 1}),
      ones(query.data(), {1, N, 1, 1}, {0, 0, 0, 1});
  heed::lightnet(ones, constant, heed::bnhd(v.data(), 1, N, 1, 1),
                 heed::bnhd(out.data(), 1, N, 1, 1));
  double sum = 0;
  double const silu = 1 / (1 + std::exp(-1.0));
  for (std::size_t t = 0; t < N; ++t) {
    sum += double(v[t]);
    if (t % 997 == 0 || t + 1 == N)
      CHECK(double(out[t]) == Approx(silu * sum / double(t + 1)).epsilon(1e-5).margin(1e-6));
  }
}

TEST_CASE("lightnet: keys of any size", "[mechanism][lightnet]") {
  float k[4] = {-1e30f, 1e30f, 1e30f, -1e30f}, v[4] = {1, 2, 4, 8}, q[4] = {1, 1, 1, 1}, out[4];
  auto const rows = [](float* x) { return heed::bnhd(x, 1, 4, 1, 1); };
  heed::lightnet(rows(q), rows(k), rows(v), rows(out));
  double const silu = 1 / (1 + std::exp(-1.0));
  double const expected[4] = {1, 2, 3, 3};
  for (int t = 0; t < 4; ++t) CHECK(double(out[t]) == Approx(silu * expected[t]).epsilon(1e-6));
}

TEST_CASE("lightnet: what does not fit is refused", "[mechanism][lightnet]") {
  float numbers[100] = {};
  double z[10] = {};
  auto const rows = [&](index_t n, index_t d) { return heed::bnhd(numbers, 1, n, 1, d); };
  CHECK_THROWS_WITH(
      heed::lightnet(rows(3, 4), rows(3, 4), rows(3, 5), rows(3, 5),
                     heed::lightnet_state<float>{{numbers, {1, 1, 4, 5}}, {z, {1, 1, 3}}}),
      "heed: lightnet_state.log_total has shape [1, 1, 3]; expected [sequences, key heads, "
      "head_dim], [1, 1, 4]");
  heed::lrpe map(tensor_view<float, 2>(numbers, {1, 4}));
  map.form = heed::lrpe_form::rotating;
  CHECK_THROWS_WITH(
      heed::lightnet(rows(3, 4), rows(3, 4), rows(3, 5), rows(3, 5), map),
      "heed: a rotating lrpe in a causal lightnet, where channels fade each on its own; expected "
      "the complex form");
}
