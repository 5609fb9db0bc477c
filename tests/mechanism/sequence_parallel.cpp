#include "reference/recurrence.hpp"
#include "support/error_rule.hpp"
#include "support/tensors.hpp"
#include "support/threads.hpp"

#include <heed/mechanism/sequence_parallel.hpp>

// A sequence in segments, whose workers tell each other their states and nothing else, against the whole.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::blank;
using support::for_each_seed;
using support::guarded;
using support::normal;
using support::seed_t;

namespace {

/// A sequence, the segments it is cut into, and what workers hold of it.
template <class T>
struct cut_sequence {
  support::random draw;
  index_t B, W, H, query_heads, states, D, E;
  std::vector<index_t> bounds{0};
  guarded<T, 4> q, k, v, out, dout, dq, dk, dv;
  guarded<T, 4> gate, dgate;  // of tokens, or of features
  bool of_features, fades;
  guarded<T, 5> local, incoming;
  guarded<double, 4> decays;
  guarded<T, 4> initial, final, dinitial, dfinal;
  double scale;

  explicit cut_sequence(seed_t seed)
      : draw(seed),
        B(draw.between(1, 2)),
        W(draw.between(1, 5)),
        H(draw.one_of(std::array<index_t, 3>{1, 4, 6})),
        query_heads(draw.one_in(2) ? H : 1),
        states(draw.one_in(2) || H == 1 ? H : 2),
        D(draw.between(1, 20)),
        E(draw.between(1, 20)),
        of_features(draw.one_in(2)),
        fades(!draw.one_in(3)),
        scale(draw.one_in(2) ? 1 : draw.uniform(0.2, 1)) {
    for (index_t w = 0; w < W; ++w) bounds.push_back(bounds.back() + draw.between(0, 70));
    index_t const N = bounds.back();
    q = normal<T>(draw, {B, N, query_heads, D});
    k = normal<T>(draw, {B, N, states, D});
    v = normal<T>(draw, {B, N, 1, E});
    dout = normal<T>(draw, {B, N, H, E});
    out = blank<T, 4>({B, N, H, E});
    dq = blank<T, 4>(q.extents());
    dk = blank<T, 4>(k.extents());
    dv = blank<T, 4>(v.extents());
    gate = blank<T, 4>({B, N, draw.one_in(2) ? states : 1, of_features ? D : 1});
    bool const strong = draw.one_in(4);
    gate.fill([&](auto const&) {
      return static_cast<T>(draw.one_in(60)
                                ? (draw.one_in(2) ? -300 : -std::numeric_limits<double>::infinity())
                                : draw.uniform(strong ? -8 : -0.1, 0));
    });
    dgate = blank<T, 4>(gate.extents());
    local = blank<T, 5>({W, B, states, D, E});
    incoming = blank<T, 5>(local.extents());
    decays = blank<double, 4>({W, B, gate.extents()[2], gate.extents()[3]});
    initial = normal<T>(draw, {B, states, D, E});
    final = blank<T, 4>(initial.extents());
    dinitial = blank<T, 4>(initial.extents());
    dfinal = normal<T>(draw, initial.extents());
  }

  /// Tokens of a worker.
  template <class View>
  View of(View view, index_t w) const {
    auto const n = static_cast<std::size_t>(w);
    return view.slice(1, bounds[n], bounds[n + 1] - bounds[n]);
  }
  template <class U>
  static tensor_view<U, 4> at(tensor_view<U, 5> states, index_t w) {
    auto const& e = states.extents();
    auto const& s = states.strides();
    return {states.data() + w * s[0], {e[1], e[2], e[3], e[4]}, {s[1], s[2], s[3], s[4]}};
  }
  /// The last worker first.
  template <class U, int Rank>
  static tensor_view<U, Rank> backwards(tensor_view<U, Rank> all) {
    auto strides = all.strides();
    strides[0] = -strides[0];
    return {all.data() + (all.extent(0) - 1) * all.stride(0), all.extents(), strides};
  }

  /// Calls f(ingredients...) with the gates of a worker, and their gradients.
  template <class F>
  void with_gates(index_t w, F const& f) {
    heed::scale const by{scale, nullptr};
    auto const g = of(std::as_const(gate).view(), w);
    auto const dg = of(dgate.view(), w);
    if (!fades)
      f(by);
    else if (of_features)
      f(by, heed::key_decay<T>(g, dg));
    else
      f(by, heed::decay<T>(heed::recur::without_channels(g), heed::recur::without_channels(dg)));
  }

  void gather_decays() {
    if (!fades) return;
    for (index_t w = 0; w < W; ++w) {
      auto const all = decays.view();
      auto const& e = all.extents();
      tensor_view<double, 3> const own(&all(w, 0, 0, 0), {e[1], e[2], e[3]});
      auto const g = of(std::as_const(gate).view(), w);
      if (of_features)
        heed::segment_decay(heed::key_decay<T>(g), own);
      else
        heed::segment_decay(heed::decay<T>(heed::recur::without_channels(g)), own);
    }
  }
  tensor_view<double const, 4> log_decays() const {
    return fades ? decays.view() : tensor_view<double const, 4>();
  }

  template <class Executor>
  void forward(Executor const& run_on) {
    for (index_t w = 0; w < W; ++w)
      with_gates(w, [&](auto const&... gates) {
        heed::linear_attention(of(q.view(), w), of(k.view(), w), of(v.view(), w), of(out.view(), w),
                               heed::final_state<T>{at(local.view(), w)}, run_on, gates...);
      });
    gather_decays();
    heed::combine_states(local.view(), log_decays(), initial.view(), incoming.view(), final.view());
    for (index_t w = 0; w < W; ++w)
      with_gates(w, [&](auto const&... gates) {
        heed::add_incoming_state(of(q.view(), w), at(incoming.view(), w), of(out.view(), w), run_on,
                                 gates...);
      });
  }

  void backward() {
    for (index_t w = 0; w < W; ++w)
      with_gates(w, [&](auto const&... gates) {
        heed::segment_gradient(of(q.view(), w), of(dout.view(), w), at(local.view(), w), gates...);
      });
    // In place: what comes in from the right.
    heed::combine_states(backwards(local.view()),
                         fades ? backwards(log_decays()) : tensor_view<double const, 4>(),
                         dfinal.view(), backwards(local.view()), dinitial.view());
    for (index_t w = 0; w < W; ++w)
      with_gates(w, [&](auto const&... gates) {
        heed::linear_attention_backward(of(q.view(), w), of(k.view(), w), of(v.view(), w),
                                        of(out.view(), w), of(dout.view(), w), of(dq.view(), w),
                                        of(dk.view(), w), of(dv.view(), w), gates...,
                                        heed::initial_state(at(incoming.view(), w)),
                                        heed::final_state_gradient(at(local.view(), w)));
      });
  }

  template <class U>
  reference::recurrence_operands<U> operands() const {
    reference::recurrence_operands<U> x;
    x.query = q.template values<U>();
    x.key = k.template values<U>();
    x.value = v.template values<U>();
    x.initial = initial.template values<U>();
    if (fades && of_features) x.log_key_gate = gate.template values<U>();
    if (fades && !of_features) {
      auto const all = gate.template values<U>();
      x.log_gate = tensor<U, 3>({all.extent(0), all.extent(1), all.extent(2)});
      x.log_gate.values = all.values;
    }
    return x;
  }
  reference::recurrence<> definition() const {
    reference::recurrence<> whole;
    whole.scale = scale;
    whole.heads = H;
    return whole;
  }
};

template <class T>
using golden_of = std::conditional_t<std::is_same_v<T, double>, long double, double>;

}  // namespace

TEMPLATE_TEST_CASE("sequence parallel: segments and their states are the whole",
                   "[mechanism][sequence_parallel]", float, double) {
  using T = TestType;
  using golden = golden_of<T>;
  for_each_seed("segments", 150, [](seed_t seed) {
    cut_sequence<T> x(seed);
    x.forward(heed::serial{});
    auto const exact = x.definition().forward(x.template operands<golden>());
    auto const naive = x.definition().forward(x.template operands<T>());
    constexpr double eps = std::numeric_limits<T>::epsilon();
    return support::two_times_rule("out", x.out.template values<golden>(), exact.out,
                                   std::vector{naive.out}, eps) +
           support::two_times_rule("final state", x.final.template values<golden>(), exact.state,
                                   std::vector{naive.state}, eps);
  });
}

TEMPLATE_TEST_CASE("sequence parallel: gradients of segments are those of the whole",
                   "[mechanism][sequence_parallel]", float, double) {
  using T = TestType;
  using golden = golden_of<T>;
  for_each_seed("segments backward", 150, [](seed_t seed) {
    cut_sequence<T> x(seed);
    x.forward(heed::serial{});
    x.backward();
    auto const gradients = [&]<class U>(U) {
      auto const in = x.template operands<U>();
      return x.definition().backward(in, x.definition().forward(in).out,
                                     x.dout.template values<U>(), x.dfinal.template values<U>());
    };
    auto const exact = gradients(golden());
    auto const naive = gradients(T());
    constexpr double eps = std::numeric_limits<T>::epsilon();
    auto const differ = [&](char const* name, auto const& got, auto member, golden least = 0) {
      return support::two_times_rule(name, got, member(exact), std::vector{member(naive)}, eps,
                                     static_cast<double>(least));
    };
    // What has faded is as exact as e^x is.
    golden unfaded = 0;
    for (golden each : exact.value.values) unfaded = std::max(unfaded, std::abs(each));
    std::string complaint =
        differ("dq", x.dq.template values<golden>(), [](auto const& d) { return d.query; }) +
        differ("dk", x.dk.template values<golden>(), [](auto const& d) { return d.key; }) +
        differ("dv", x.dv.template values<golden>(), [](auto const& d) { return d.value; }) +
        differ(
            "dinitial", x.dinitial.template values<golden>(),
            [](auto const& d) { return d.initial; }, unfaded);
    auto const dgate = x.dgate.template values<golden>();
    if (x.fades && x.of_features) {
      complaint += differ(
          "dgate", dgate, [](auto const& d) { return d.log_key_gate; }, exact.key_gate_terms);
    } else if (x.fades) {
      tensor<golden, 3> of_tokens({dgate.extent(0), dgate.extent(1), dgate.extent(2)});
      of_tokens.values = dgate.values;
      complaint += differ(
          "dgate", of_tokens, [](auto const& d) { return d.log_gate; }, exact.gate_terms);
    }
    return complaint;
  });
}

TEST_CASE("sequence parallel: the operator of states is associative",
          "[mechanism][sequence_parallel]") {
  // The first two segments made one, or the last two.
  support::random draw(3);
  auto const local = normal<double>(draw, {3, 2, 5, 4});
  auto decays = blank<double, 4>({3, 1, 2, 5});
  decays.fill([&](auto const&) { return draw.uniform(-1, 0); });
  auto const some = [&](index_t first, index_t count) {
    tensor_view<double const, 5> const all(local.view().data(), {3, 1, 2, 5, 4});
    return all.slice(0, first, count);
  };
  auto const combine = [&](tensor_view<double const, 5> states, tensor_view<double const, 4> logs) {
    auto incoming = blank<double, 5>(states.extents());
    auto final = blank<double, 4>({1, 2, 5, 4});
    heed::combine_states(states, logs, tensor_view<double const, 4>(), incoming.view(),
                         final.view());
    return final;
  };
  auto const all_decays = std::as_const(decays).view();
  auto const whole = combine(some(0, 3), all_decays).values<double>();
  for (index_t joined : {0, 1}) {
    auto const pair = combine(some(joined, 2), all_decays.slice(0, joined, 2));
    auto states = blank<double, 5>({2, 1, 2, 5, 4});
    auto logs = blank<double, 4>({2, 1, 2, 5});
    states.fill([&](auto const& at) {
      return at[0] == joined ? pair.view()(0, at[2], at[3], at[4])
                             : some(2 - 2 * joined, 1)(0, 0, at[2], at[3], at[4]);
    });
    logs.fill([&](auto const& at) {
      return at[0] == joined
                 ? all_decays(joined, 0, at[2], at[3]) + all_decays(joined + 1, 0, at[2], at[3])
                 : all_decays(2 - 2 * joined, 0, at[2], at[3]);
    });
    CHECK(support::difference(
              combine(std::as_const(states).view(), std::as_const(logs).view()).values<double>(),
              whole) < 1e-14);
  }
}

TEST_CASE("sequence parallel: a decay that is the same for all tokens",
          "[mechanism][sequence_parallel]") {
  support::random draw(5);
  auto const q = normal(draw, {1, 80, 2, 9}), k = normal(draw, {1, 80, 2, 9}),
             v = normal(draw, {1, 80, 2, 7});
  std::vector<float> const logs{-0.01f, -0.2f};
  auto const fixed = heed::fixed_decay(std::span<float const>(logs));
  auto whole = blank<float, 4>(v.extents()), out = blank<float, 4>(v.extents());
  heed::linear_attention(q.view(), k.view(), v.view(), whole.view(), fixed);
  auto local = blank<float, 5>({2, 1, 2, 9, 7}), incoming = blank<float, 5>(local.extents());
  auto decays = blank<double, 4>({2, 1, 2, 1});
  auto const of = [](auto view, index_t w) { return view.slice(1, 50 * w, w == 0 ? 50 : 30); };
  for (index_t w : {0, 1}) {
    heed::linear_attention(of(q.view(), w), of(k.view(), w), of(v.view(), w), of(out.view(), w),
                           fixed,
                           heed::final_state<float>{cut_sequence<float>::at(local.view(), w)});
    heed::segment_decay(fixed, tensor_view<double, 3>(&decays.view()(w, 0, 0, 0), {1, 2, 1}),
                        w == 0 ? 50 : 30);
  }
  heed::combine_states(local.view(), decays.view(), tensor_view<float const, 4>(), incoming.view());
  for (index_t w : {0, 1})
    heed::add_incoming_state(of(q.view(), w), cut_sequence<float>::at(incoming.view(), w),
                             of(out.view(), w), fixed);
  auto const expected = whole.values<float>();
  double const largest = support::difference(expected, tensor<float, 4>(expected.extents));
  CHECK(support::difference(out.values<float>(), expected) < 1e-6 * largest);
  CHECK_THROWS_WITH(
      heed::segment_decay(fixed, tensor_view<double, 3>(&decays.view()(0, 0, 0, 0), {1, 2, 1})),
      "heed: a fixed_decay without the number of tokens of a segment");
}

TEST_CASE("sequence parallel: without an order, states are summed",
          "[mechanism][sequence_parallel]") {
  support::random draw(4);
  index_t const N = 90, H = 4, D = 9, E = 7;
  auto const q = normal(draw, {2, N, H, D}), k = normal(draw, {2, N, 2, D}),
             v = normal(draw, {2, N, 2, E}), dout = normal(draw, {2, N, H, E});
  auto whole = blank<float, 4>(dout.extents()), out = blank<float, 4>(dout.extents());
  heed::linear_attention(q.view(), k.view(), v.view(), whole.view(), heed::dense{});
  std::array<index_t, 4> const bounds{0, 20, 20, N};
  auto local = blank<float, 5>({3, 2, 2, D, E}), incoming = blank<float, 5>({3, 2, 2, D, E});
  auto total = blank<float, 4>({2, 2, D, E});
  auto const of = [&](auto view, std::size_t w) {
    return view.slice(1, bounds[w], bounds[w + 1] - bounds[w]);
  };
  using sequence = cut_sequence<float>;
  for (std::size_t w = 0; w < 3; ++w)
    heed::segment_state(of(k.view(), w), of(v.view(), w),
                        sequence::at(local.view(), static_cast<index_t>(w)));
  heed::combine_states(local.view(), {}, tensor_view<float const, 4>(), incoming.view(),
                       total.view());
  for (std::size_t w = 0; w < 3; ++w)
    heed::read_state(of(q.view(), w), total.view(), of(out.view(), w));
  CHECK(support::difference(out.values<float>(), whole.values<float>()) < 1e-4);

  // Backward: one state of gradients, from all rows.
  auto dq = blank<float, 4>(q.extents()), dk = blank<float, 4>(k.extents()),
       dv = blank<float, 4>(v.extents());
  heed::linear_attention_backward(q.view(), k.view(), v.view(), whole.view(), dout.view(),
                                  dq.view(), dk.view(), dv.view(), heed::dense{});
  for (std::size_t w = 0; w < 3; ++w)
    heed::segment_gradient(of(q.view(), w), of(dout.view(), w),
                           sequence::at(local.view(), static_cast<index_t>(w)));
  auto dtotal = blank<float, 4>(total.extents());
  heed::combine_states(local.view(), {}, tensor_view<float const, 4>(), incoming.view(),
                       dtotal.view());
  auto dq2 = blank<float, 4>(q.extents()), dk2 = blank<float, 4>(k.extents()),
       dv2 = blank<float, 4>(v.extents());
  for (std::size_t w = 0; w < 3; ++w) {
    // Queries read the state of all, and keys write to it.
    auto const no_keys = k.view().slice(1, 0, 0), no_values = v.view().slice(1, 0, 0);
    heed::linear_attention_backward(of(q.view(), w), no_keys, no_values, of(out.view(), w),
                                    of(dout.view(), w), of(dq2.view(), w),
                                    dk2.view().slice(1, 0, 0), dv2.view().slice(1, 0, 0),
                                    heed::dense{}, heed::initial_state(total.view()));
    heed::linear_attention_backward(q.view().slice(1, 0, 0), of(k.view(), w), of(v.view(), w),
                                    out.view().slice(1, 0, 0), dout.view().slice(1, 0, 0),
                                    dq2.view().slice(1, 0, 0), of(dk2.view(), w), of(dv2.view(), w),
                                    heed::dense{}, heed::final_state_gradient(dtotal.view()));
  }
  CHECK(support::difference(dq2.values<float>(), dq.values<float>()) < 1e-4);
  CHECK(support::difference(dk2.values<float>(), dk.values<float>()) < 1e-4);
  CHECK(support::difference(dv2.values<float>(), dv.values<float>()) < 1e-4);
}

TEST_CASE("sequence parallel: the same bits on any executor", "[mechanism][sequence_parallel]") {
  support::threads const others;
  heed::on<support::threads const> const run_on{others};
  for_each_seed("segments on threads", 30, [&](seed_t seed) {
    cut_sequence<float> x(seed);
    x.forward(heed::serial{});
    auto const out = x.out.values<float>();
    x.forward(run_on);
    return support::same_bits(out, x.out.values<float>()) ? "" : "out differs\n";
  });
}

TEST_CASE("sequence parallel: what does not fit is refused", "[mechanism][sequence_parallel]") {
  std::vector<float> numbers(2000, -1.0f);
  std::vector<double> logs(100, -1.0);
  auto const states = [&](index_t workers, index_t heads) {
    return tensor_view<float, 5>(numbers.data(), {workers, 1, heads, 3, 4});
  };
  auto const view = [&](support::extents_of<4> const& extents) {
    return tensor_view<float, 4>(numbers.data(), extents);
  };
  CHECK_THROWS_WITH(heed::combine_states(states(3, 2), {}, view({1, 2, 3, 4}), states(2, 2)),
                    "heed: incoming has shape [2, 1, 2, 3, 4]; expected that of local, "
                    "[3, 1, 2, 3, 4]");
  CHECK_THROWS_WITH(heed::combine_states(states(3, 2), {}, view({1, 2, 3, 5}), states(3, 2)),
                    "heed: initial has shape [1, 2, 3, 5]; expected that of one of local, "
                    "[1, 2, 3, 4]");
  CHECK_THROWS_WITH(
      heed::combine_states(states(3, 2), tensor_view<double const, 4>(logs.data(), {3, 1, 2, 2}),
                           view({1, 2, 3, 4}), states(3, 2)),
      "heed: log_decays has shape [3, 1, 2, 2]; expected [worker, batch, heads or 1, features or "
      "1] "
      "of [3, 1, 2, 3, 4]");
  CHECK_THROWS_WITH(
      heed::add_incoming_state(view({1, 9, 2, 3}), view({1, 2, 3, 4}), view({1, 8, 2, 4})),
      "heed: out has shape [1, 8, 2, 4]; expected 9 for axis 1 (position, that of query)");
  numbers[3] = 0.5f;
  CHECK_THROWS_WITH(
      heed::add_incoming_state(view({1, 9, 2, 3}), view({1, 2, 3, 4}), view({1, 9, 2, 4}),
                               heed::decay(tensor_view<float, 3>(numbers.data(), {1, 9, 2}))),
      Catch::Matchers::ContainsSubstring("log_gate") && Catch::Matchers::ContainsSubstring("0.5"));
  CHECK(numbers[4] == -1.0f);
}
