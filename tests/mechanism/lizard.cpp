#include <heed/mechanism/lizard.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"
#include "support/tensors.hpp"

// Lizard's two branches against plain loops.

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

enum class beside { nothing, sinks, meta_keys };

template <class T>
struct lizard_problem : definition_check<T> {
  index_t B, N, H, keys, D, E, W, channels, window;
  beside extra;
  bool normalised;
  std::vector<index_t> bounds;  // of packed sequences
  guarded<T, 4> gated, windowed;
  guarded<T, 3> lse;
  std::vector<T> alphas, dalphas;

  explicit lizard_problem(seed_t seed, beside what, bool may_be_packed = false)
      : definition_check<T>(seed), extra(what) {
    auto& dice = this->draw;
    bool const packed = may_be_packed && dice.one_in(3);
    B = packed ? 1 : dice.between(1, 2), N = dice.between(6, 30), keys = dice.between(1, 2),
    H = 2 * keys;
    D = dice.between(3, 8), E = dice.between(3, 8), W = dice.between(2, 6);
    channels = dice.one_in(2) ? 1 : W;
    window = dice.between(1, 12);
    normalised = !dice.one_in(3);
    if (packed) bounds = {0, dice.between(0, N), N};
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, keys, D});
    this->input("v", {B, N, keys, E});
    this->input("gate", {B, N, keys, channels}, [&] { return dice.uniform(-1, 3); });
    this->input("query weights", {1, dice.one_in(2) ? 1 : H, D, W},
                [&] { return 0.3 * dice.normal(); });
    this->input("key weights", {1, dice.one_in(2) ? 1 : keys, D, W},
                [&] { return 0.3 * dice.normal(); });
    this->input("alpha", {1, 1, H, 1});
    index_t const count = dice.between(1, 3);
    if (what == beside::sinks) this->input("sinks", {1, 1, H, count});
    if (what == beside::meta_keys) {
      this->input("meta keys", {B, count, H, D});
      this->input("meta values", {B, count, H, E});
    }
    this->output("out", {B, N, H, E});
    gated = blank<T, 4>({B, N, H, E}), windowed = blank<T, 4>({B, N, H, E});
    lse = blank<T, 3>({B, H, N});
    for (index_t h = 0; h < H; ++h) alphas.push_back(this->in(6)(0, 0, h, 0));
    dalphas.resize(alphas.size());
  }

  template <class V>
  static auto weights(V view) {
    return tensor_view<typename V::element_type, 3>(
        view.data(), {view.extent(1), view.extent(2), view.extent(3)},
        {view.stride(1), view.stride(2), view.stride(3)});
  }
  template <class V>
  static auto of_heads(V view) {
    return tensor_view<typename V::element_type, 2>(view.data(), {view.extent(2), view.extent(3)},
                                                    {view.stride(2), view.stride(3)});
  }
  heed::lizard_parameters<T> parameters() const {
    heed::lizard_parameters<T> all{weights(this->in(4)), weights(this->in(5)), alphas, window};
    if (extra == beside::sinks) all.sinks = of_heads(this->in(7));
    if (extra == beside::meta_keys) all.meta_keys = this->in(7), all.meta_values = this->in(8);
    all.normalised = normalised;
    return all;
  }
  heed::lizard_gradients<T> gradients() {
    heed::lizard_gradients<T> all{weights(this->din(4)), weights(this->din(5)), dalphas};
    if (extra == beside::sinks) all.sinks = of_heads(this->din(7));
    if (extra == beside::meta_keys) all.meta_keys = this->din(7), all.meta_values = this->din(8);
    return all;
  }
  heed::lizard_branches<T> branches() { return {gated.view(), windowed.view(), lse.view()}; }

  void run() {
    if (bounds.empty())
      run_with();
    else
      run_with(heed::documents{bounds, bounds});
  }
  template <class... I>
  void run_with(I const&... ingredients) {
    heed::lizard_attention(this->in(0), this->in(1), this->in(2), this->in(3), parameters(),
                           branches(), this->out(0), ingredients...);
    heed::lizard_attention_backward(
        this->in(0), this->in(1), this->in(2), this->in(3), parameters(), branches(), this->dout(0),
        this->din(0), this->din(1), this->din(2), this->din(3), gradients(), ingredients...);
    for (index_t h = 0; h < H; ++h) this->din(6)(0, 0, h, 0) = dalphas[static_cast<std::size_t>(h)];
  }

  /// What the gated branch carries on.
  struct carried {
    guarded<T, 4> memory;
    guarded<double, 2> largest;

    heed::lizard_state<T> state() { return {memory.view(), largest.view()}; }
  };
  carried begin() const {
    carried all{blank<T, 4>({B, keys, 2 * W, E + (normalised ? 1 : 0)}),
                blank<double, 2>({B, keys})};
    all.state().clear();
    return all;
  }

  /// Two calls, the second of which goes on from the first, and their gradients: that of the second's state is what the
  /// first is given, and what both say of keys and parameters adds up.
  void run_in_two() {
    index_t const cut = this->draw.between(1, N - 1),
                  reach = std::max<index_t>(0, cut - window + 1);
    auto const first = [&](auto view) { return view.slice(1, 0, cut); };
    auto const second = [&](auto view) { return view.slice(1, cut, N - cut); };
    auto const seen = [&](auto view) { return view.slice(1, reach, N - reach); };
    auto const parts = [&](index_t from, index_t count) {
      return heed::lizard_branches<T>{gated.view().slice(1, from, count),
                                      windowed.view().slice(1, from, count),
                                      lse.view().slice(2, from, count)};
    };
    auto state = begin();
    heed::lizard_attention(first(this->in(0)), first(this->in(1)), first(this->in(2)),
                           first(this->in(3)), parameters(), parts(0, cut), first(this->out(0)),
                           state.state());
    auto middle = begin();
    middle.memory.fill([&](auto const& at) {
      return std::as_const(state.memory).view()(at[0], at[1], at[2], at[3]);
    });
    middle.largest.fill(
        [&](auto const& at) { return std::as_const(state.largest).view()(at[0], at[1]); });
    heed::lizard_attention(second(this->in(0)), seen(this->in(1)), seen(this->in(2)),
                           second(this->in(3)), parameters(), parts(cut, N - cut),
                           second(this->out(0)), state.state());

    auto slope = blank<T, 4>(state.memory.extents());
    heed::lizard_attention_backward(second(this->in(0)), seen(this->in(1)), seen(this->in(2)),
                                    second(this->in(3)), parameters(), parts(cut, N - cut),
                                    second(this->dout(0)), second(this->din(0)), seen(this->din(1)),
                                    seen(this->din(2)), second(this->din(3)), gradients(),
                                    middle.state(), heed::lizard_state_gradient{slope.view()});
    // Of keys that both parts meet, and of parameters, the gradients add up.
    std::vector<T> of_second;
    auto const each_shared = [&](auto const& f) {
      auto const all = [&](tensor_view<T, 4> view) {
        support::for_each_index(view.extents(),
                                [&](auto const& at) { f(view(at[0], at[1], at[2], at[3])); });
      };
      for (std::size_t n : {1u, 2u}) all(this->din(n).slice(1, reach, cut - reach));
      for (std::size_t n : {4u, 5u}) all(this->din(n));
      if (extra != beside::nothing) all(this->din(7));
      if (extra == beside::meta_keys) all(this->din(8));
      for (T& x : dalphas) f(x);
    };
    each_shared([&](T& x) { of_second.push_back(x); });
    auto zero = begin();
    heed::lizard_attention_backward(
        first(this->in(0)), first(this->in(1)), first(this->in(2)), first(this->in(3)),
        parameters(), parts(0, cut), first(this->dout(0)), first(this->din(0)), first(this->din(1)),
        first(this->din(2)), first(this->din(3)), gradients(), zero.state(),
        heed::final_state_gradient(std::as_const(slope).view()));
    std::size_t n = 0;
    each_shared([&](T& x) { x += of_second[n++]; });
    for (index_t h = 0; h < H; ++h) this->din(6)(0, 0, h, 0) = dalphas[static_cast<std::size_t>(h)];
  }

  auto definition(bool by_pairs) const {
    return [=, this]<class U>(tensors<U> const& in) {
      using std::exp;
      auto const features = [&](tensor<U, 4> const& x, tensor<U, 4> const& w) {
        tensor<U, 4> phi({B, N, x.extent(2), 2 * W});
        for (index_t b = 0; b < B; ++b)
          for (index_t i = 0; i < N; ++i)
            for (index_t h = 0; h < x.extent(2); ++h)
              for (index_t c = 0; c < W; ++c) {
                U y = 0;
                for (index_t d = 0; d < D; ++d)
                  y += x(b, i, h, d) * w(0, w.extent(1) == 1 ? 0 : h, d, c);
                phi(b, i, h, c) = exp(y);
                phi(b, i, h, c + W) = exp(-y);
              }
        return phi;
      };
      reference::recurrence_parts<U> parts;
      parts.query_bounds = parts.key_bounds = bounds;
      parts.log_gate = tensor<U, 4>({B, N, keys, channels == 1 ? 1 : 2 * W});
      tensor<U, 4> ones({B, N, keys, 1}, U(1));
      for (index_t b = 0; b < B; ++b)
        for (index_t i = 0; i < N; ++i)
          for (index_t h = 0; h < keys; ++h)
            for (index_t c = 0; c < parts.log_gate.extent(3); ++c)
              parts.log_gate(b, i, h, c) = -reference::softplus(-in[3](b, i, h, c % channels));
      auto const phi_q = features(in[0], in[4]), phi_k = features(in[1], in[5]);
      auto const run = [&](tensor<U, 4> const& v) {
        return by_pairs ? reference::gated_recurrence_by_pairs(phi_q, phi_k, v, parts)
                        : reference::gated_recurrence(phi_q, phi_k, v, parts);
      };
      tensor<U, 4> out = run(in[2]);
      tensor<U, 4> const total = run(ones);
      U const scale = U(1 / std::sqrt(double(D)));
      for (index_t b = 0; b < B; ++b)
        for (index_t i = 0; i < N; ++i)
          for (index_t h = 0; h < H; ++h) {
            auto const product = [&](tensor<U, 4> const& k, index_t j, index_t head) {
              U s = 0;
              for (index_t d = 0; d < D; ++d) s += scale * in[0](b, i, h, d) * k(b, j, head, d);
              return exp(s);
            };
            U sum = 0;
            std::vector<U> values(static_cast<std::size_t>(E), U(0));
            index_t const start =
                bounds.empty() ? 0 : *std::prev(std::upper_bound(bounds.begin(), bounds.end(), i));
            for (index_t j = std::max(start, i - window + 1); j <= i; ++j) {
              U const p = product(in[1], j, h / 2);
              sum += p;
              for (index_t e = 0; e < E; ++e)
                values[static_cast<std::size_t>(e)] += p * in[2](b, j, h / 2, e);
            }
            if (extra == beside::sinks)
              for (index_t m = 0; m < in[7].extent(3); ++m) sum += exp(in[7](0, 0, h, m));
            if (extra == beside::meta_keys)
              for (index_t m = 0; m < in[7].extent(1); ++m) {
                U const p = product(in[7], m, h);
                sum += p;
                for (index_t e = 0; e < E; ++e)
                  values[static_cast<std::size_t>(e)] += p * in[8](b, m, h, e);
              }
            for (index_t e = 0; e < E; ++e) {
              if (normalised) out(b, i, h, e) /= total(b, i, h, 0);
              out(b, i, h, e) += in[6](0, 0, h, 0) * values[static_cast<std::size_t>(e)] / sum;
            }
          }
      return tensors<U>{out};
    };
  }
};

beside kind_of(seed_t seed) {
  return static_cast<beside>(seed % 3);
}

}  // namespace

TEMPLATE_TEST_CASE("lizard: the definition and its gradients", "[mechanism][lizard]", double,
                   float) {
  for_each_seed("lizards", 30, [](seed_t seed) {
    lizard_problem<TestType> p(seed, kind_of(seed), true);
    p.run();
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lizard: two parts and their gradients are the whole", "[mechanism][lizard]") {
  for_each_seed("lizard in two", 30, [](seed_t seed) {
    lizard_problem<double> p(seed, kind_of(seed));
    p.run_in_two();
    return p.forward(p.definition(false), p.definition(true)) +
           p.backward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lizard: steps are the whole", "[mechanism][lizard]") {
  for_each_seed("lizard step", 30, [](seed_t seed) {
    lizard_problem<float> p(seed, kind_of(seed));
    auto memory = blank<float, 4>({p.B, p.keys, 2 * p.W, p.E + (p.normalised ? 1 : 0)});
    auto largest = blank<double, 2>({p.B, p.keys});
    heed::lizard_state const held{memory.view(), largest.view()};
    held.clear();
    auto ring_keys = blank<float, 4>({p.B, p.window, p.keys, p.D}),
         ring_values = blank<float, 4>({p.B, p.window, p.keys, p.E});
    heed::ring_cache<float> ring(ring_keys.view(), ring_values.view(), 0);
    for (index_t t = 0; t < p.N; ++t)
      heed::lizard_attention_step(p.in(0).slice(1, t, 1), p.in(1).slice(1, t, 1),
                                  p.in(2).slice(1, t, 1), p.in(3).slice(1, t, 1), p.parameters(),
                                  held, ring, p.out(0).slice(1, t, 1));
    return p.forward(p.definition(false), p.definition(true));
  });
}

TEST_CASE("lizard: a window over everything without sinks is softmax attention",
          "[mechanism][lizard]") {
  lizard_problem<double> p(300, beside::nothing);
  auto with = p.parameters();
  with.window = p.N;
  heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0));
  auto const exact = support::attend(p.in(0), p.in(1), p.in(2), heed::causal{});
  CHECK(support::difference(p.windowed.values<double>(), exact.out) < 1e-13);
  // Sinks of -infinity change nothing, of +infinity take the branch away; one of 0 is a meta key of zeros.
  std::vector<double> sinks(static_cast<std::size_t>(p.H),
                            -std::numeric_limits<double>::infinity());
  with.sinks = {sinks.data(), {p.H, 1}};
  heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0));
  CHECK(support::difference(p.windowed.values<double>(), exact.out) < 1e-13);
  std::fill(sinks.begin(), sinks.end(), 800.0);
  heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0));
  CHECK(support::difference(p.out(0).extents() == p.gated.extents()
                                ? support::read<double>(p.out(0))
                                : tensor<double, 4>(),
                            p.gated.values<double>()) < 1e-13);
  std::fill(sinks.begin(), sinks.end(), 0.0);
  heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0));
  auto const with_zero_sinks = support::read<double>(p.out(0));
  with.sinks = {};
  std::vector<double> zeros(static_cast<std::size_t>(std::max(p.D, p.E)), 0.0);
  with.meta_keys = {zeros.data(), {p.B, 1, p.H, p.D}, {0, 0, 0, 1}};
  with.meta_values = {zeros.data(), {p.B, 1, p.H, p.E}, {0, 0, 0, 1}};
  heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0));
  CHECK(support::difference(support::read<double>(p.out(0)), with_zero_sinks) < 1e-13);
}

TEST_CASE("lizard: exponents of any size, and gates that close", "[mechanism][lizard]") {
  constexpr index_t N = 300;
  support::random draw(9);
  auto const q = support::normal(draw, {1, N, 1, 4}), k = support::normal(draw, {1, N, 1, 4}, 40),
             v = support::normal(draw, {1, N, 1, 3});
  auto gate = support::normal(draw, {1, N, 1, 1}, 100);
  auto identity = blank<float, 3>({1, 4, 4});
  identity.fill([](auto const& at) { return at[1] == at[2] ? 2.0f : 0.0f; });
  auto out = blank<float, 4>({1, N, 1, 3}), gated = blank<float, 4>({1, N, 1, 3}),
       windowed = blank<float, 4>({1, N, 1, 3});
  auto lse = blank<float, 3>({1, 1, N});
  float const alpha[] = {1};
  heed::lizard_parameters<float> with{identity.view(), identity.view(), alpha, 4};
  for (bool const normalised : {true, false}) {
    with.normalised = normalised;
    heed::lizard_attention(q.view(), k.view(), v.view(), gate.view(), with,
                           heed::lizard_branches<float>{gated.view(), windowed.view(), lse.view()},
                           out.view());
    for (float each : out.values<float>().values) CHECK(std::isfinite(each));
  }
  // Normalised, a result is an average of values.
  with.normalised = true;
  heed::lizard_attention(q.view(), k.view(), v.view(), gate.view(), with,
                         heed::lizard_branches<float>{gated.view(), windowed.view(), lse.view()},
                         out.view());
  for (index_t i = 0; i < N; ++i)
    for (index_t e = 0; e < 3; ++e) {
      float least = 0, most = 0;
      for (index_t j = 0; j <= i; ++j)
        least = std::min(least, v.view()(0, j, 0, e)), most = std::max(most, v.view()(0, j, 0, e));
      CHECK(
          (gated.view()(0, i, 0, e) >= least - 1e-5f && gated.view()(0, i, 0, e) <= most + 1e-5f));
    }
}

TEST_CASE("lizard: what does not fit is refused", "[mechanism][lizard]") {
  lizard_problem<float> p(301, beside::sinks);
  auto with = p.parameters();
  with.window = 0;
  CHECK_THROWS_WITH(
      heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0)),
      "heed: lizard_parameters.window is 0; expected at least 1 key");
  with = p.parameters();
  with.alpha = with.alpha.first(1);
  CHECK_THROWS_AS(
      heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0)),
      heed::error);
  with = p.parameters();
  with.meta_keys = p.in(0);
  CHECK_THROWS_WITH(
      heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0)),
      "heed: lizard_parameters has sinks and meta_keys; expected one of them");
  CHECK_THROWS_AS(heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(0), p.parameters(),
                                         p.branches(), p.out(0)),
                  heed::error);
  // Fewer gates than keys are for a sequence that goes on.
  auto const fewer = p.in(3).slice(1, 1, p.N - 1);
  CHECK_THROWS_AS(heed::lizard_attention(p.in(0), p.in(1), p.in(2), fewer, p.parameters(),
                                         p.branches(), p.out(0)),
                  heed::error);
  // A state says what it is relative to.
  auto state = p.begin();
  with = p.parameters();
  with.normalised = true;
  state.memory = blank<float, 4>({p.B, p.keys, 2 * p.W, p.E + 1});
  CHECK_THROWS_AS(
      heed::lizard_attention(p.in(0), p.in(1), p.in(2), p.in(3), with, p.branches(), p.out(0),
                             heed::lizard_state<float>{state.memory.view(), {}}),
      heed::error);
}
