#include "reference/flow_attention.hpp"
#include "reference/documents.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/flow_attention.hpp>

// Flow-Attention over all positions and causal, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensors;
using support::blank;
using support::definition_check;
using support::for_each_seed;
using support::guarded;
using support::seed_t;

namespace {

template <class T>
struct flow_problem : definition_check<T> {
  index_t B, N, M, H, D, E;
  heed::flow_options how;
  reference::flow definition;
  reference::packing packed;

  flow_problem(seed_t seed, bool causal, bool may_be_packed = false) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = dice.between(1, 2), N = dice.between(4, 75), M = causal ? N : dice.between(4, 75);
    H = dice.between(1, 2), D = dice.between(2, 9), E = dice.between(2, 9);
    double const clamps[] = {0.7, 1, 5, std::numeric_limits<double>::infinity()};
    how = {dice.one_of(clamps), dice.one_in(3)};
    // The definition's e^O' overflows where flows are unbounded both ways.
    if (how.relu) how.clamp = std::min(how.clamp, 10.0);
    definition = {how.clamp, how.relu};
    // Rows of nothing but the 1e-6 of relu have flows of a million times those of others, which double has no digits for.
    auto const number = [&] {
      double const x = dice.normal();
      return how.relu && std::is_same_v<T, double> ? std::abs(x) + 0.1 : x;
    };
    this->input("q", {B, N, H, D}, number);
    this->input("k", {B, M, H, D}, number);
    this->input("v", {B, M, H, E});
    this->output("out", {B, N, H, E});
    if (may_be_packed && B == 1) {
      std::vector<index_t> const bounds{0, dice.between(0, N), N};
      packed = {bounds, bounds, {0, 1, 2}, {}};
    }
  }
  /// Calls f with documents, if there are any.
  template <class F>
  void call(F const& f) const {
    packed.rows.empty() ? f() : f(heed::documents{packed.rows, packed.rows});
  }
  auto normal() const {
    return [=, this]<class U>(tensors<U> const& in) {
      return tensors<U>{definition.normal(in[0], in[1], in[2])};
    };
  }
  auto causal(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      return packed(in, [&](tensors<U> const& own) {
        return tensors<U>{definition.causal(own[0], own[1], own[2], by_pairs)};
      });
    };
  }
};

template <class T>
struct held_flow {
  guarded<T, 4> memory;
  guarded<double, 4> sums;
  guarded<double, 3> counts;

  held_flow(index_t B, index_t H, index_t D, index_t E)
      : memory(blank<T, 4>({B, H, D, E})),
        sums(blank<double, 4>({B, H, 4, D})),
        counts(blank<double, 3>({B, H, 2})) {
    state().clear();
  }
  heed::flow_state<T> state() { return {memory.view(), sums.view(), counts.view()}; }
};

}  // namespace

TEMPLATE_TEST_CASE("flow attention: the definition over all positions and its gradients",
                   "[mechanism][flow_attention]", double, float) {
  for_each_seed("flow", 50, [](seed_t seed) {
    flow_problem<TestType> p(seed, false);
    heed::flow_attention(p.in(0), p.in(1), p.in(2), p.out(0), p.how);
    heed::flow_attention_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0), p.din(0),
                                  p.din(1), p.din(2), p.how);
    return p.forward(p.normal()) + p.backward(p.normal());
  });
}

TEMPLATE_TEST_CASE("flow attention: the causal definition and its gradients",
                   "[mechanism][flow_attention]", double, float) {
  for_each_seed("causal flows", 50, [](seed_t seed) {
    flow_problem<TestType> p(seed, true, true);
    p.call([&](auto const&... all) {
      heed::causal_flow_attention(p.in(0), p.in(1), p.in(2), p.out(0), p.how, all...);
      heed::causal_flow_attention_backward(p.in(0), p.in(1), p.in(2), p.saved(0), p.dout(0),
                                           p.din(0), p.din(1), p.din(2), p.how, all...);
    });
    return p.forward(p.causal(false), p.causal(true)) + p.backward(p.causal(false), p.causal(true));
  });
}

TEMPLATE_TEST_CASE("flow attention: two parts and their gradients are the whole",
                   "[mechanism][flow_attention]", double, float) {
  using T = TestType;
  for_each_seed(
      "flows in two", 40,
      [](seed_t seed) {
        flow_problem<T> p(seed, true);
        index_t const cut = p.draw.between(1, p.N - 1);
        auto const first = [&](auto view) { return view.slice(1, 0, cut); };
        auto const second = [&](auto view) { return view.slice(1, cut, p.N - cut); };
        held_flow<T> now(p.B, p.H, p.D, p.E), begun(p.B, p.H, p.D, p.E), middle(p.B, p.H, p.D, p.E),
            slope(p.B, p.H, p.D, p.E);
        auto log_total = blank<double, 2>({p.B, p.H});
        auto const forward = [&](auto const& of) {
          heed::causal_flow_attention(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.out(0)), p.how,
                                      now.state());
        };
        auto const backward = [&](auto const& of, auto const&... all) {
          heed::causal_flow_attention_backward(of(p.in(0)), of(p.in(1)), of(p.in(2)),
                                               of(p.saved(0)), of(p.dout(0)), of(p.din(0)),
                                               of(p.din(1)), of(p.din(2)), p.how, all...);
        };
        forward(first);
        heed::copy_elements(now.memory.view(), middle.memory.view());
        heed::copy_elements(now.sums.view(), middle.sums.view());
        middle.counts.fill([&](auto const& at) { return now.counts.view()(at[0], at[1], at[2]); });
        forward(second);
        backward(
            second, middle.state(),
            heed::flow_state_gradient{slope.memory.view(), slope.sums.view(), log_total.view()});
        backward(
            first, begun.state(),
            heed::flow_final_gradient{slope.memory.view(), slope.sums.view(), log_total.view()});
        return p.forward(p.causal(false), p.causal(true)) +
               p.backward(p.causal(false), p.causal(true));
      },
      support::luck);
}

TEST_CASE("flow attention: documents with states are calls of their own",
          "[mechanism][flow_attention]") {
  constexpr index_t N = 50, cut = 37, D = 5, E = 4, H = 2;
  support::random draw(3);
  auto const q = support::normal(draw, {1, N, H, D}), k = support::normal(draw, {1, N, H, D}),
             v = support::normal(draw, {1, N, H, E});
  auto together = blank<float, 4>({1, N, H, E}), apart = blank<float, 4>({1, N, H, E});
  held_flow<float> both(2, H, D, E), one(1, H, D, E), two(1, H, D, E);
  index_t const bounds[] = {0, cut, N};
  // Twice, so that the second time goes on from the first.
  for (int n = 0; n < 2; ++n) {
    heed::causal_flow_attention(q.view(), k.view(), v.view(), together.view(), both.state(),
                                heed::documents{bounds, bounds});
    for (auto const& [first, count, state] :
         {std::tuple(index_t{0}, cut, one.state()), std::tuple(cut, N - cut, two.state())})
      heed::causal_flow_attention(q.view().slice(1, first, count), k.view().slice(1, first, count),
                                  v.view().slice(1, first, count),
                                  apart.view().slice(1, first, count), state);
    CHECK(support::difference(together.values<float>(), apart.values<float>()) < 1e-6);
  }
  for (index_t s = 0; s < 2; ++s)
    for (index_t h = 0; h < H; ++h)
      for (index_t n = 0; n < 2; ++n)
        CHECK(both.counts.view()(s, h, n) == (s == 0 ? one : two).counts.view()(0, h, n));
}

TEMPLATE_TEST_CASE("flow attention: parts and steps of a sequence", "[mechanism][flow_attention]",
                   float, Eigen::half) {
  for_each_seed("flow step", 50, [](seed_t seed) {
    flow_problem<TestType> p(seed, true);
    held_flow<float> held(p.B, p.H, p.D, p.E);
    index_t const first = p.draw.between(0, p.N);
    auto const part = [&](index_t from, index_t count) {
      heed::causal_flow_attention(p.in(0).slice(1, from, count), p.in(1).slice(1, from, count),
                                  p.in(2).slice(1, from, count), p.out(0).slice(1, from, count),
                                  held.state(), p.how);
    };
    part(0, first);
    for (index_t t = first; t < p.N; ++t) part(t, 1);
    return p.forward(p.causal(false), p.causal(true));
  });
}

TEST_CASE("flow attention: one token is the same in both forms", "[mechanism][flow_attention]") {
  support::random draw(1);
  auto const q = support::normal<double>(draw, {1, 1, 1, 5}),
             k = support::normal<double>(draw, {1, 1, 1, 5}),
             v = support::normal<double>(draw, {1, 1, 1, 3});
  auto a = blank<double, 4>({1, 1, 1, 3}), b = blank<double, 4>({1, 1, 1, 3});
  heed::flow_attention(q.view(), k.view(), v.view(), a.view());
  heed::causal_flow_attention(q.view(), k.view(), v.view(), b.view());
  CHECK(support::difference(a.values<double>(), b.values<double>()) < 1e-14);
}

TEST_CASE("flow attention: the order of the sources does not matter",
          "[mechanism][flow_attention]") {
  flow_problem<double> p(5, false);
  auto out = blank<double, 4>(p.out(0).extents());
  auto const reversed = [&](tensor_view<double const, 4> x) {
    auto strides = x.strides();
    strides[1] = -strides[1];
    return tensor_view<double const, 4>(&x(0, x.extent(1) - 1, 0, 0), x.extents(), strides);
  };
  heed::flow_attention(p.in(0), p.in(1), p.in(2), p.out(0), p.how);
  heed::flow_attention(p.in(0), reversed(p.in(1)), reversed(p.in(2)), out.view(), p.how);
  CHECK(support::difference(support::read<double>(p.out(0)), out.values<double>()) < 1e-13);
}

TEST_CASE("flow attention: an inflow of 1 for each sink", "[mechanism][flow_attention]") {
  // With values of 1 and no competition the result is the gate: (q^ / I).sum k^ is 1 but for epsilon.
  flow_problem<double> p(6, false);
  std::vector<double> one(1, 1.0);
  tensor_view<double const, 4> const ones(one.data(), {p.B, p.M, p.H, 1}, {0, 0, 0, 1});
  auto out = blank<double, 4>({p.B, p.N, p.H, 1});
  heed::flow_attention(p.in(0), p.in(1), ones, out.view(), heed::flow_options{.clamp = 0});
  reference::flow const plain{0, false};
  auto const phi_q = plain.features(support::read<double>(p.in(0))),
             phi_k = plain.features(support::read<double>(p.in(1)));
  std::vector<double> sum_q(std::size_t(p.D)), sum_ko(std::size_t(p.D));
  for (index_t i = 0; i < p.N; ++i)
    reference::flow::add(sum_q, reference::flow::row(phi_q, 0, i, 0), 1.0);
  for (index_t j = 0; j < p.M; ++j) {
    auto const k = reference::flow::row(phi_k, 0, j, 0);
    reference::flow::add(sum_ko, k, 1 / reference::flow::product(k, sum_q));
  }
  for (index_t i = 0; i < p.N; ++i) {
    double const conserved = reference::flow::product(reference::flow::row(phi_q, 0, i, 0), sum_ko);
    CHECK(out.view()(0, i, 0, 0) ==
          Approx(reference::sigmoid(conserved * double(p.N) / double(p.M))).epsilon(1e-4));
  }
}

TEST_CASE("flow attention: any finite numbers give finite results", "[mechanism][flow_attention]") {
  std::vector<float> q{-1e30f, 1e30f, 50, -50}, k{1e30f, -1e30f, -80, 3}, v{1, -2, 3, 4}, out(4);
  auto const rows = [](std::vector<float>& x) { return heed::bnhd(x.data(), 1, 4, 1, 1); };
  for (bool const relu : {false, true}) {
    heed::flow_attention(rows(q), rows(k), rows(v), rows(out), heed::flow_options{.relu = relu});
    for (float each : out) CHECK(std::isfinite(each));
    heed::causal_flow_attention(rows(q), rows(k), rows(v), rows(out),
                                heed::flow_options{.relu = relu});
    for (float each : out) CHECK(std::isfinite(each));
  }
}

TEST_CASE("flow attention: what does not fit is refused", "[mechanism][flow_attention]") {
  float numbers[200] = {};
  double sums[40] = {};
  auto const rows = [&](index_t n, index_t h, index_t d) {
    return heed::bnhd(numbers, 1, n, h, d);
  };
  CHECK_THROWS_WITH(
      heed::flow_attention(rows(3, 2, 4), rows(5, 1, 4), rows(5, 2, 2), rows(3, 2, 2)),
      "heed: key has shape [1, 5, 1, 4]; expected that of query, with positions of its own, [1, 5, "
      "2, 4]");
  CHECK_THROWS_WITH(
      heed::causal_flow_attention(rows(3, 2, 4), rows(5, 2, 4), rows(5, 2, 2), rows(3, 2, 2)),
      "heed: key has shape [1, 5, 2, 4]; expected that of query, [1, 3, 2, 4]");
  CHECK_THROWS_WITH(
      heed::causal_flow_attention(
          rows(3, 1, 4), rows(3, 1, 4), rows(3, 1, 2), rows(3, 1, 2),
          heed::flow_state<float>{rows(1, 4, 2), {sums, {1, 1, 4, 4}}, {sums, {1, 1, 3}}}),
      "heed: flow_state.counts has shape [1, 1, 3]; expected [1, 1, 2]");
  index_t const bounds[] = {0, 1, 3}, others[] = {0, 2, 3};
  CHECK_THROWS_WITH(
      heed::causal_flow_attention(rows(3, 2, 4), rows(3, 2, 4), rows(3, 2, 2), rows(3, 2, 2),
                                  heed::documents{bounds, others}),
      "heed: documents.queries and documents.keys differ; expected the same offsets twice");
}
