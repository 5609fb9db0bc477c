#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>

// Gated slot attention and ABC: two recurrences joined by a softmax, against plain loops.

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
struct slot_problem : definition_check<T> {
  index_t B, N, M, H, keys, D, E, m;
  double scale;
  std::vector<index_t> query_bounds, key_bounds;

  explicit slot_problem(seed_t seed, bool as_many = false) : definition_check<T>(seed) {
    auto& dice = this->draw;
    bool const packed = !as_many && dice.one_in(3);
    B = packed ? 1 : dice.between(1, 2), N = dice.between(6, 40);
    M = as_many ? N : dice.between(6, 40);
    keys = dice.between(1, 2), H = 2 * keys, D = dice.between(2, 9), E = dice.between(2, 9);
    m = dice.between(2, 9);
    scale = dice.one_in(2) ? 1 : 1 / std::sqrt(double(D));
    if (packed) {
      query_bounds = {0, dice.between(0, N), N};
      key_bounds = {0, dice.between(0, M), M};
    }
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, keys, D});
    this->input("v", {B, M, keys, E});
  }
  void add_slots(char const* name, double low, double high) {
    this->input(name, {B, M, keys, m}, [&, low, high] { return this->draw.uniform(low, high); });
  }

  template <class U>
  reference::recurrence_parts<U> parts() const {
    reference::recurrence_parts<U> all;
    all.scale = U(scale);
    all.query_bounds = query_bounds;
    all.key_bounds = key_bounds;
    return all;
  }
  /// Calls f with the ingredients of the call.
  template <class F>
  void with_ingredients(F const& f) const {
    if (key_bounds.empty())
      f(heed::scale{scale});
    else
      f(heed::scale{scale}, heed::documents{query_bounds, key_bounds});
  }
};

template <class T>
struct gsa_problem : slot_problem<T> {
  explicit gsa_problem(seed_t seed, bool as_many = false) : slot_problem<T>(seed, as_many) {
    this->add_slots("strength", 0, 1);
    this->add_slots("log gate", -1, 0);
    this->output("out", {this->B, this->N, this->H, this->E});
  }
  auto definition(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      return tensors<U>{reference::slot_attention(in[0], in[1], in[2], in[3], in[4],
                                                  this->template parts<U>(), by_pairs)};
    };
  }
};

template <class T>
struct abc_problem : slot_problem<T> {
  explicit abc_problem(seed_t seed, bool as_many = false) : slot_problem<T>(seed, as_many) {
    this->add_slots("control", -3, 3);
    this->output("out", {this->B, this->N, this->H, this->E});
  }
  auto definition(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      auto const slots = reference::running_shares(in[3], this->key_bounds);
      return tensors<U>{reference::slot_attention(in[0], in[1], in[2], slots.first, slots.second,
                                                  this->template parts<U>(), by_pairs)};
    };
  }
};

template <class T>
auto zeros(support::extents_of<4> const& extents) {
  auto made = blank<T, 4>(extents);
  made.fill([](auto const&) { return T(0); });
  return made;
}

}  // namespace

TEMPLATE_TEST_CASE("gated slot attention: the definition and its gradients",
                   "[mechanism][slot_attention]", double, float) {
  for_each_seed("gsa", 40, [](seed_t seed) {
    gsa_problem<TestType> p(seed);
    p.with_ingredients([&](auto const&... all) {
      heed::gated_slot_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.in(4), p.out(0), all...);
      heed::gated_slot_attention_backward(p.in(0), p.in(1), p.in(2), p.in(3), p.in(4), p.saved(0),
                                          p.dout(0), p.din(0), p.din(1), p.din(2), p.din(3),
                                          p.din(4), all...);
    });
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEMPLATE_TEST_CASE("ABC: the causal definition and its gradients", "[mechanism][slot_attention]",
                   double, float) {
  for_each_seed("abc", 40, [](seed_t seed) {
    abc_problem<TestType> p(seed);
    p.with_ingredients([&](auto const&... all) {
      heed::abc_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.out(0), all...);
      heed::abc_attention_backward(p.in(0), p.in(1), p.in(2), p.in(3), p.saved(0), p.dout(0),
                                   p.din(0), p.din(1), p.din(2), p.din(3), all...);
    });
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEMPLATE_TEST_CASE("ABC: over all positions, and its gradients", "[mechanism][slot_attention]",
                   double, float) {
  for_each_seed("abc cross", 40, [](seed_t seed) {
    slot_problem<TestType> p(seed, true);
    p.add_slots("key control", -3, 3);
    p.add_slots("value control", -3, 3);
    p.output("out", {p.B, p.N, p.H, p.E});
    // The gradients of softmax attention come from its lse, which is as exact as scores are small.
    p.scale = 1 / std::sqrt(double(p.D));
    heed::scale const by{p.scale};
    heed::abc_cross_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.in(4), p.out(0), by);
    heed::abc_cross_attention_backward(p.in(0), p.in(1), p.in(2), p.in(3), p.in(4), p.saved(0),
                                       p.dout(0), p.din(0), p.din(1), p.din(2), p.din(3), p.din(4),
                                       by);
    auto const definition = [&]<class U>(tensors<U> const& in) {
      return tensors<U>{reference::dense_attention(
          in[0], reference::into_slots(reference::position_softmax(in[3], {}), in[1]),
          reference::into_slots(reference::position_softmax(in[4], {}), in[2]), p.scale)};
    };
    return p.forward(definition) + p.backward(definition);
  });
}

TEMPLATE_TEST_CASE("gated slot attention: the gates and their gradients",
                   "[mechanism][slot_attention]", double, float) {
  for_each_seed("slot gates", 60, [](seed_t seed) {
    definition_check<TestType> p(seed);
    support::extents_of<4> const shape{2, p.draw.between(1, 40), 2, p.draw.between(1, 20)};
    p.input("x", shape, [&] { return 4 * p.draw.normal(); });
    p.output("log gate", shape);
    p.output("strength", shape);
    heed::slot_gates(p.in(0), p.out(0), p.out(1));
    heed::slot_gates_backward(p.in(0), p.dout(0), p.dout(1), p.din(0));
    auto const definition = []<class U>(tensors<U> const& in) {
      auto const gate = each(in[0], [](U const& x) { return -reference::softplus(-x) / U(8); });
      return tensors<U>{gate, each(gate, [](U const& g) {
                          using std::expm1;
                          return -expm1(g);
                        })};
    };
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("slot attention: steps are the whole", "[mechanism][slot_attention]") {
  for_each_seed("gsa step", 30, [](seed_t seed) {
    gsa_problem<float> p(seed, true);
    auto keys = zeros<float>({p.B, p.keys, p.D, p.m}),
         values = zeros<float>({p.B, p.keys, p.m, p.E});
    heed::slot_state const held{keys.view(), values.view()};
    for (index_t t = 0; t < p.N; ++t)
      heed::gated_slot_attention_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1),
                                      p.in(2).slice(1, t, 1), p.in(3).slice(1, t, 1),
                                      p.in(4).slice(1, t, 1), p.out(0).slice(1, t, 1), held,
                                      heed::scale{p.scale});
    return p.forward(p.definition(false), p.definition(true));
  });
  for_each_seed("abc step", 30, [](seed_t seed) {
    abc_problem<float> p(seed, true);
    auto keys = zeros<float>({p.B, p.keys, p.D, p.m}),
         values = zeros<float>({p.B, p.keys, p.m, p.E});
    auto total = blank<double, 3>({p.B, p.keys, p.m});
    heed::slot_state const held{keys.view(), values.view(), total.view()};
    held.clear();
    // A part at once, the rest step by step.
    index_t const first = p.draw.between(0, p.N);
    heed::abc_attention(p.in(0).slice(1, 0, first), p.in(1).slice(1, 0, first),
                        p.in(2).slice(1, 0, first), p.in(3).slice(1, 0, first),
                        p.out(0).slice(1, 0, first), held, heed::scale{p.scale});
    for (index_t t = first; t < p.N; ++t)
      heed::abc_attention_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1),
                               p.in(2).slice(1, t, 1), p.in(3).slice(1, t, 1),
                               p.out(0).slice(1, t, 1), held, heed::scale{p.scale});
    return p.forward(p.definition(false), p.definition(true));
  });
}

namespace {

/// One problem whose slots hold something at first and whose loss depends on what they hold at last: packed sequences, or one in
/// which rows read the slots before the first key.
struct resumed {
  static constexpr index_t N = 8, M = 7, D = 4, E = 3, m = 5;
  static constexpr index_t query_bounds[] = {0, 3, 8}, key_bounds[] = {0, 3, 7};
  index_t S;
  support::random draw{17};
  guarded<double, 4> q = make({1, N, 2, D}), k = make({1, M, 1, D}), v = make({1, M, 1, E}),
                     c = make({1, M, 1, m}), keys = make({S, 1, D, m}), values = make({S, 1, m, E}),
                     dout = make({1, N, 2, E}), out = make({1, N, 2, E}),
                     dend_keys = make({S, 1, D, m}), dend_values = make({S, 1, m, E}),
                     end_keys = make({S, 1, D, m}), end_values = make({S, 1, m, E});
  guarded<double, 4> gate = make({1, M, 1, m});
  guarded<double, 3> total = blank<double, 3>({S, 1, m}), dend_total = blank<double, 3>({S, 1, m}),
                     end_total = blank<double, 3>({S, 1, m});

  explicit resumed(bool packed) : S(packed ? 2 : 1) {
    for (auto* each : {&total, &dend_total}) each->fill([&](auto const&) { return draw.normal(); });
    gate.fill([&](auto const&) { return draw.uniform(-1, 0); });
  }
  guarded<double, 4> make(support::extents_of<4> const& extents) {
    return support::normal<double>(draw, extents);
  }
  heed::slot_state<double> ended() {
    return {end_keys.view(), end_values.view(), end_total.view()};
  }
  template <class F>
  void call(F const& f) const {
    S == 2 ? f(heed::documents{query_bounds, key_bounds}) : f();
  }
  /// The loss of the rows and of what the slots hold at last, from copies of what they hold at first.
  double loss(bool abc) {
    heed::copy_elements(keys.view(), end_keys.view());
    heed::copy_elements(values.view(), end_values.view());
    end_total.fill([&](auto const& at) { return total.view()(at[0], at[1], at[2]); });
    call([&](auto const&... all) {
      if (abc)
        heed::abc_attention(q.view(), k.view(), v.view(), c.view(), out.view(), ended(), all...);
      else
        heed::gated_slot_attention(q.view(), k.view(), v.view(), c.view(), gate.view(), out.view(),
                                   ended(), all...);
    });
    double sum = reference::weighted_sum(dout.values<double>(), out.values<double>()) +
                 reference::weighted_sum(dend_keys.values<double>(), end_keys.values<double>()) +
                 reference::weighted_sum(dend_values.values<double>(), end_values.values<double>());
    auto const z = end_total.values<double>(), dz = dend_total.values<double>();
    for (std::size_t n = 0; n < z.values.size() && abc; ++n) sum += z.values[n] * dz.values[n];
    return sum;
  }
};

/// The largest difference between a gradient and central differences of the loss.
template <int Rank>
double slope_error(resumed& p, bool abc, guarded<double, Rank>& input,
                   guarded<double, Rank> const& gradient) {
  double worst = 0;
  support::for_each_index(input.extents(), [&](auto const& at) {
    double& x = input.view().data()[support::offset(at, input.view().strides())];
    double const before = x,
                 slope = gradient.view().data()[support::offset(at, gradient.view().strides())];
    x = before + 1e-5;
    double const above = p.loss(abc);
    x = before - 1e-5;
    double const below = p.loss(abc);
    x = before;
    worst = std::max(worst, std::abs((above - below) / 2e-5 - slope));
  });
  return worst;
}

}  // namespace

TEST_CASE("slot attention: gradients of what the slots held", "[mechanism][slot_attention]") {
  for (bool const packed : {false, true})
    for (bool const abc : {false, true}) {
      INFO("abc " << abc << ", packed " << packed);
      resumed p(packed);
      p.loss(abc);
      auto dq = blank<double, 4>(p.q.extents()), dk = blank<double, 4>(p.k.extents()),
           dv = blank<double, 4>(p.v.extents()), dc = blank<double, 4>(p.c.extents()),
           dgate = blank<double, 4>(p.c.extents()), dkeys = blank<double, 4>(p.keys.extents()),
           dvalues = blank<double, 4>(p.values.extents());
      auto dtotal = blank<double, 3>(p.total.extents());
      heed::slot_state const held{p.keys.view(), p.values.view(), p.total.view()};
      heed::slot_state_gradient const to{dkeys.view(), dvalues.view(), dtotal.view()},
          slope{p.dend_keys.view(), p.dend_values.view(), p.dend_total.view()};
      p.call([&](auto const&... all) {
        if (abc)
          heed::abc_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.c.view(), p.out.view(),
                                       p.dout.view(), dq.view(), dk.view(), dv.view(), dc.view(),
                                       held, to, heed::slot_final_gradient{slope, p.ended()},
                                       all...);
        else
          heed::gated_slot_attention_backward(p.q.view(), p.k.view(), p.v.view(), p.c.view(),
                                              p.gate.view(), p.out.view(), p.dout.view(), dq.view(),
                                              dk.view(), dv.view(), dc.view(), dgate.view(), held,
                                              to, heed::slot_final_gradient{slope}, all...);
      });
      CHECK(slope_error(p, abc, p.q, dq) < 1e-8);
      CHECK(slope_error(p, abc, p.k, dk) < 1e-8);
      CHECK(slope_error(p, abc, p.v, dv) < 1e-8);
      CHECK(slope_error(p, abc, p.c, dc) < 1e-8);
      CHECK(slope_error(p, abc, p.keys, dkeys) < 1e-8);
      CHECK(slope_error(p, abc, p.values, dvalues) < 1e-8);
      if (abc) CHECK(slope_error(p, abc, p.total, dtotal) < 1e-8);
      if (!abc) CHECK(slope_error(p, abc, p.gate, dgate) < 1e-8);
    }
}

namespace {

/// What a problem's slots hold.
template <class T>
struct held_slots {
  guarded<T, 4> keys, values;
  guarded<double, 3> total;

  template <class Problem>
  explicit held_slots(Problem const& p)
      : keys(blank<T, 4>({p.B, p.keys, p.D, p.m})),
        values(blank<T, 4>({p.B, p.keys, p.m, p.E})),
        total(blank<double, 3>({p.B, p.keys, p.m})) {
    state().clear();
  }
  heed::slot_state<T> state() { return {keys.view(), values.view(), total.view()}; }
  heed::slot_state_gradient<T> gradient() { return {keys.view(), values.view(), total.view()}; }
  void take(held_slots& other) {
    heed::copy_elements(other.keys.view(), keys.view());
    heed::copy_elements(other.values.view(), values.view());
    total.fill([&](auto const& at) { return other.total.view()(at[0], at[1], at[2]); });
  }
};

/// Two calls, the second of which goes on from the first, and their gradients, through forward(part, ingredients...) and
/// backward alike.
template <class T, class Problem, class Forward, class Backward>
std::string in_two(Problem& p, Forward const& forward, Backward const& backward) {
  held_slots<T> now(p), begun(p), middle(p), slope(p);
  index_t const cut = p.draw.between(1, p.N - 1);
  auto const first = [&](auto view) { return view.slice(1, 0, cut); };
  auto const second = [&](auto view) { return view.slice(1, cut, p.N - cut); };
  forward(first, now.state());
  middle.take(now);
  forward(second, now.state());
  backward(second, middle.state(), slope.gradient());
  backward(first, begun.state(), heed::slot_final_gradient{slope.gradient(), middle.state()});
  return p.forward(p.definition(false), p.definition(true)) +
         p.backward(p.definition(false), p.definition(true));
}

}  // namespace

TEST_CASE("slot attention: two parts and their gradients are the whole",
          "[mechanism][slot_attention]") {
  using T = double;
  for_each_seed(
      "gsa in two", 30,
      [](seed_t seed) {
        gsa_problem<T> p(seed, true);
        heed::scale const by{p.scale};
        return in_two<T>(
            p,
            [&](auto const& of, auto const&... all) {
              heed::gated_slot_attention(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.in(3)),
                                         of(p.in(4)), of(p.out(0)), by, all...);
            },
            [&](auto const& of, auto const&... all) {
              heed::gated_slot_attention_backward(
                  of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.in(3)), of(p.in(4)), of(p.saved(0)),
                  of(p.dout(0)), of(p.din(0)), of(p.din(1)), of(p.din(2)), of(p.din(3)),
                  of(p.din(4)), by, all...);
            });
      },
      support::luck);
  for_each_seed(
      "abc in two", 30,
      [](seed_t seed) {
        abc_problem<T> p(seed, true);
        heed::scale const by{p.scale};
        return in_two<T>(
            p,
            [&](auto const& of, auto const&... all) {
              heed::abc_attention(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.in(3)), of(p.out(0)),
                                  by, all...);
            },
            [&](auto const& of, auto const&... all) {
              heed::abc_attention_backward(of(p.in(0)), of(p.in(1)), of(p.in(2)), of(p.in(3)),
                                           of(p.saved(0)), of(p.dout(0)), of(p.din(0)),
                                           of(p.din(1)), of(p.din(2)), of(p.din(3)), by, all...);
            });
      },
      support::luck);
}

TEST_CASE("ABC: the last causal row is that over all positions", "[mechanism][slot_attention]") {
  abc_problem<double> p(3, true);
  auto all = blank<double, 4>({p.B, p.N, p.H, p.E});
  heed::abc_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.out(0));
  heed::abc_cross_attention(p.in(0), p.in(1), p.in(2), p.in(3), p.in(3), all.view());
  for (index_t h = 0; h < p.H; ++h)
    for (index_t e = 0; e < p.E; ++e)
      CHECK(p.out(0)(0, p.N - 1, h, e) == Approx(all.view()(0, p.N - 1, h, e)).epsilon(1e-12));
}

TEST_CASE("ABC: a later query changes nothing before it", "[mechanism][slot_attention]") {
  for (bool const causal : {true, false}) {
    abc_problem<float> p(4, true);
    auto q = support::normal(p.draw, {p.B, p.N, p.H, p.D});
    auto before = blank<float, 4>({p.B, p.N, p.H, p.E}),
         after = blank<float, 4>({p.B, p.N, p.H, p.E});
    auto const run = [&](guarded<float, 4>& to) {
      if (causal)
        heed::abc_attention(q.view(), p.in(1), p.in(2), p.in(3), to.view());
      else
        heed::abc_cross_attention(q.view(), p.in(1), p.in(2), p.in(3), p.in(3), to.view());
    };
    run(before);
    for (index_t d = 0; d < p.D; ++d) q.view()(0, p.N - 1, 0, d) += 5;
    run(after);
    CHECK(support::same_bits(support::read<float>(before.view().slice(1, 0, p.N - 1)),
                             support::read<float>(after.view().slice(1, 0, p.N - 1))));
  }
}

TEST_CASE("gated slot attention: a slot for each token is softmax attention",
          "[mechanism][slot_attention]") {
  constexpr index_t N = 9, D = 4, E = 3;
  support::random draw(8);
  auto const q = support::normal<double>(draw, {1, N, 1, D}),
             k = support::normal<double>(draw, {1, N, 1, D}),
             v = support::normal<double>(draw, {1, N, 1, E});
  auto strength = zeros<double>({1, N, 1, N}), gate = zeros<double>({1, N, 1, N});
  for (index_t t = 0; t < N; ++t) strength.view()(0, t, 0, t) = 1;
  auto out = blank<double, 4>({1, N, 1, E});
  heed::gated_slot_attention(q.view(), k.view(), v.view(), strength.view(), gate.view(),
                             out.view());
  auto const exact = support::attend(q.view(), k.view(), v.view(), heed::causal{});
  for (index_t e = 0; e < E; ++e)
    CHECK(out.view()(0, N - 1, 0, e) == Approx(exact.out(0, N - 1, 0, e)).epsilon(1e-13));
}

TEST_CASE("slot attention: what does not fit is refused", "[mechanism][slot_attention]") {
  float numbers[400] = {};
  double totals[20] = {};
  auto const rows = [&](index_t n, index_t d) { return heed::bnhd(numbers, 1, n, 1, d); };
  CHECK_THROWS_WITH(
      heed::gated_slot_attention(rows(4, 3), rows(4, 3), rows(4, 5), rows(4, 2), rows(4, 3),
                                 rows(4, 5)),
      "heed: log_gate has shape [1, 4, 1, 3]; expected that of strength, [1, 4, 1, 2]");
  heed::slot_state<float> const held{rows(3, 2), rows(2, 5), {totals, {1, 1, 3}}};
  CHECK_THROWS_WITH(
      heed::abc_attention(rows(4, 3), rows(4, 3), rows(4, 5), rows(4, 2), rows(4, 5), held),
      "heed: slot_state.log_total has shape [1, 1, 3]; expected [sequences, heads of the control, "
      "slots], [1, 1, 2]");
  // Values of another length are refused before any slot is changed.
  std::fill_n(numbers, 400, 2.0f);
  float keys[6] = {7, 7, 7, 7, 7, 7};
  CHECK_THROWS_AS(
      heed::abc_attention(
          rows(4, 3), rows(4, 3), rows(3, 5), rows(4, 2), rows(4, 5),
          heed::slot_state<float>{
              heed::bnhd(keys, 1, 1, 3, 2).swap_axes(1, 2), rows(2, 5), {totals, {1, 1, 2}}}),
      heed::error);
  CHECK(keys[0] == 7);
  CHECK(totals[0] == 0);
}
