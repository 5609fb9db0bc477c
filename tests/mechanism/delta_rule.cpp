#include <heed/mechanism/delta_rule.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"

#include <heed/mechanism/efla.hpp>

// The layers of the delta rule, the gated delta rule and EFLA around the engine's recurrence.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using reference::tensors;
using support::definition_check;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class E>
tensor_view<E, 3> tokens(tensor_view<E, 4> view) {
  return heed::recur::without_channels(view);
}
/// A tensor [1, 1, heads, 1] as numbers of heads.
template <class E>
std::span<E> heads(tensor_view<E, 4> view, std::vector<std::remove_const_t<E>>& room) {
  room.resize(static_cast<std::size_t>(view.extent(2)));
  for (index_t h = 0; h < view.extent(2); ++h) room[static_cast<std::size_t>(h)] = view(0, 0, h, 0);
  return room;
}

template <class T>
struct delta_problem : definition_check<T> {
  index_t B, N, H, D, E;
  heed::unit_features unit;
  double most;
  bool gated;

  explicit delta_problem(seed_t seed) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = 2, N = dice.between(8, 40), H = 2;
    D = dice.between(4, 12), E = dice.between(1, 9);
    unit = {.after_silu = dice.one_in(2), .query_scale = 1 / std::sqrt(double(D)), .floor = 1e-12};
    most = dice.one_in(2) ? 1 : 2;
    gated = dice.one_in(2);
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, H, D});
    this->input("v", {B, N, H, E});
    this->input("rate logits", {B, N, H, 1}, [&] { return dice.uniform(-2, 1); });
    if (gated) this->input("log gate", {B, N, H, 1}, [&] { return dice.uniform(-1, 0); });
    this->output("out", {B, N, H, E});
  }

  template <class U>
  tensors<U> definition(tensors<U> const& in, bool by_pairs) const {
    auto const unit_rows = [&](tensor<U, 4> const& x) {
      return reference::unit_rows(unit.after_silu ? each(x, reference::silu<U>) : x, unit.floor);
    };
    reference::recurrence_parts<U> parts;
    parts.scale = U(unit.query_scale);
    parts.rate = each(in[3], [&](U const& x) { return U(most) * reference::sigmoid(x); });
    if (gated) parts.log_gate = in[4];
    tensor<U, 4> const q = unit_rows(in[0]), k = unit_rows(in[1]);
    return {by_pairs ? reference::gated_recurrence_by_pairs(q, k, in[2], parts)
                     : reference::gated_recurrence(q, k, in[2], parts)};
  }

  void run() {
    heed::recur::tensor_shape const shape{B, N, H, 1};
    struct page;
    auto const room = heed::recur::page_tensors<page, T>(shape, shape);
    auto const rate = tokens(room[0]), drate = tokens(room[1]);
    heed::delta_rate(tokens(this->in(3)), rate, most);
    auto const call = [&](auto const&... clauses) {
      heed::linear_attention(this->in(0), this->in(1), this->in(2), this->out(0), unit,
                             heed::delta(rate, drate), clauses...);
      heed::linear_attention_backward(this->in(0), this->in(1), this->in(2), this->saved(0),
                                      this->dout(0), this->din(0), this->din(1), this->din(2), unit,
                                      heed::delta(rate, drate), clauses...);
    };
    if (gated)
      call(heed::decay(tokens(this->in(4)), tokens(this->din(4))));
    else
      call();
    heed::delta_rate_backward(tokens(this->in(3)), drate, tokens(this->din(3)), most);
  }
};

template <class T>
struct decay_problem : definition_check<T> {
  index_t H;
  std::vector<T> scales, shifts;

  explicit decay_problem(seed_t seed) : definition_check<T>(seed) {
    auto& dice = this->draw;
    H = dice.between(1, 9);
    support::extents_of<4> const shape{dice.between(1, 2), dice.between(1, 1200), H, 1};
    this->input("a", shape, [&] { return 5 * dice.normal(); });
    this->input("log_scale", {1, 1, H, 1});
    this->input("shift", {1, 1, H, 1});
    this->output("log_gate", shape);
  }

  template <class U>
  tensors<U> definition(tensors<U> const& in, bool) const {
    using std::exp;
    tensor<U, 4> g = in[0];
    for (index_t b = 0; b < g.extent(0); ++b)
      for (index_t t = 0; t < g.extent(1); ++t)
        for (index_t h = 0; h < H; ++h)
          g(b, t, h, 0) =
              -exp(in[1](0, 0, h, 0)) * reference::softplus(in[0](b, t, h, 0) + in[2](0, 0, h, 0));
    return {g};
  }

  void run() {
    auto const scale = std::span<T const>(heads(this->in(1), scales));
    auto const shift = std::span<T const>(heads(this->in(2), shifts));
    heed::delta_decay(tokens(this->in(0)), scale, shift, tokens(this->out(0)));
    std::vector<T> dscale(scales.size()), dshift(scales.size());
    heed::delta_decay_backward(tokens(this->in(0)), scale, shift, tokens(this->dout(0)),
                               tokens(this->din(0)), std::span<T>(dscale), std::span<T>(dshift));
    for (index_t h = 0; h < H; ++h) {
      this->din(1)(0, 0, h, 0) = dscale[static_cast<std::size_t>(h)];
      this->din(2)(0, 0, h, 0) = dshift[static_cast<std::size_t>(h)];
    }
  }
};

template <class T>
struct efla_problem : definition_check<T> {
  index_t B, N, H, D, E;

  explicit efla_problem(seed_t seed) : definition_check<T>(seed) {
    auto& dice = this->draw;
    B = 2, N = dice.between(8, 40), H = 2;
    D = dice.between(4, 12), E = dice.between(1, 9);
    double const spread = dice.one_in(2) ? 1 : 0.1;
    this->input("q", {B, N, H, D});
    this->input("k", {B, N, H, D}, [&, spread] { return spread * dice.normal(); });
    this->input("v", {B, N, H, E});
    this->input("rate", {B, N, H, 1}, [&] { return dice.uniform(0.01, 2); });
    this->output("out", {B, N, H, E});
  }

  template <class U>
  tensors<U> definition(tensors<U> const& in, bool by_pairs) const {
    reference::recurrence_parts<U> parts;
    parts.scale = U(1 / std::sqrt(double(D)));
    parts.rate = in[3];
    parts.exact = true;
    auto const q = reference::unit_rows(in[0], 1e-12);
    return {by_pairs ? reference::gated_recurrence_by_pairs(q, in[1], in[2], parts)
                     : reference::gated_recurrence(q, in[1], in[2], parts)};
  }

  void run() {
    auto const queries = heed::efla_queries(D);
    heed::exact_delta const rate(tokens(this->in(3)), tokens(this->din(3)));
    heed::linear_attention(this->in(0), this->in(1), this->in(2), this->out(0), queries, rate);
    heed::linear_attention_backward(this->in(0), this->in(1), this->in(2), this->saved(0),
                                    this->dout(0), this->din(0), this->din(1), this->din(2),
                                    queries, rate);
  }
};

template <class Problem>
std::string complaint(seed_t seed) {
  Problem p(seed);
  p.run();
  auto const definition = [&](auto const& in) { return p.definition(in, false); };
  auto const by_pairs = [&](auto const& in) { return p.definition(in, true); };
  return p.forward(definition, by_pairs) + p.backward(definition, by_pairs);
}

/// Rows of one head in double.
struct rows {
  std::vector<double> numbers;
  index_t dim;

  rows(std::vector<double> all, index_t d) : numbers(std::move(all)), dim(d) {}
  tensor_view<double, 4> view() {
    return heed::bnhd(numbers.data(), 1, static_cast<index_t>(numbers.size()) / dim, 1, dim);
  }
  tensor_view<double, 3> tokens() {
    return {numbers.data(), {1, static_cast<index_t>(numbers.size()), 1}};
  }
};

std::vector<double> attend(rows q, rows k, rows v, auto const&... ingredients) {
  rows out(std::vector<double>(q.numbers.size() / static_cast<std::size_t>(q.dim) *
                               static_cast<std::size_t>(v.dim)),
           v.dim);
  heed::linear_attention(q.view(), k.view(), v.view(), out.view(), ingredients...);
  return out.numbers;
}

std::vector<double> normal(std::size_t count, seed_t seed) {
  support::random draw(seed);
  std::vector<double> x(count);
  for (double& each : x) each = draw.normal();
  return x;
}

void check_same(std::vector<double> const& a, std::vector<double> const& b, double tolerance) {
  REQUIRE(a.size() == b.size());
  for (std::size_t n = 0; n < a.size(); ++n)
    CHECK(a[n] == Approx(b[n]).epsilon(tolerance).margin(tolerance));
}

}  // namespace

TEMPLATE_TEST_CASE("delta rule: the layer and its gradients", "[mechanism][delta_rule]", double,
                   float) {
  for_each_seed("delta rule", 60,
                [](seed_t seed) { return complaint<delta_problem<TestType>>(seed); });
}

TEST_CASE("delta rule: the learned decay and its gradients", "[mechanism][delta_rule]") {
  for_each_seed("delta decay", 100,
                [](seed_t seed) { return complaint<decay_problem<float>>(seed); });
}

TEMPLATE_TEST_CASE("EFLA: the layer and its gradients", "[mechanism][delta_rule]", double, float) {
  for_each_seed("efla", 60, [](seed_t seed) { return complaint<efla_problem<TestType>>(seed); });
}

TEST_CASE("delta rule: a key that was written returns its value at once",
          "[mechanism][delta_rule]") {
  std::vector<double> const k = normal(12 * 8, 3), v = normal(12 * 5, 4);
  rows ones(std::vector<double>(12, 1.0), 1);
  check_same(attend({k, 8}, {k, 8}, {v, 5}, heed::unit_features{}, heed::delta(ones.tokens())), v,
             1e-13);
}

TEST_CASE("delta rule: a rate of 0 only fades", "[mechanism][delta_rule]") {
  std::vector<double> const k = normal(6 * 4, 5), v = normal(6 * 4, 6);
  rows zero(std::vector<double>(6, 0.0), 1), gate(std::vector<double>(6, -0.5), 1);
  std::vector<double> state = normal(16, 7), expected(6 * 4);
  for (std::size_t i = 0; i < 6; ++i)
    for (std::size_t e = 0; e < 4; ++e)
      for (std::size_t f = 0; f < 4; ++f)
        expected[i * 4 + e] += k[i * 4 + f] * state[f * 4 + e] * std::exp(-0.5 * double(i + 1));
  check_same(attend({k, 4}, {k, 4}, {v, 4}, heed::delta(zero.tokens()), heed::decay(gate.tokens()),
                    heed::initial_state(tensor_view<double, 4>(state.data(), {1, 1, 4, 4}))),
             expected, 1e-13);
}

TEST_CASE("delta rule: with orthogonal keys it is linear attention of rate times value",
          "[mechanism][delta_rule]") {
  std::vector<double> k(6 * 6), v = normal(6 * 4, 8), rate = normal(6, 9), scaled = v;
  for (std::size_t i = 0; i < 6; ++i) k[i * 7] = 1;
  for (double& each : rate) each = std::abs(each);
  for (std::size_t n = 0; n < v.size(); ++n) scaled[n] *= rate[n / 4];
  std::vector<double> const q = normal(6 * 6, 10);
  rows rates(rate, 1);
  check_same(attend({q, 6}, {k, 6}, {v, 4}, heed::delta(rates.tokens())),
             attend({q, 6}, {k, 6}, {scaled, 4}), 1e-13);
}

TEST_CASE("delta rule: a key of zeros writes nothing and gives no NaN", "[mechanism][delta_rule]") {
  std::vector<double> k = normal(4 * 4, 11), v = normal(4 * 4, 12);
  std::fill_n(k.begin() + 8, 4, 0.0);
  rows ones(std::vector<double>(4, 1.0), 1);
  auto const out =
      attend({k, 4}, {k, 4}, {v, 4}, heed::unit_features{}, heed::delta(ones.tokens()));
  for (std::size_t e = 0; e < 4; ++e) CHECK(out[8 + e] == 0);
  for (double each : out) CHECK(std::isfinite(each));
}

TEST_CASE("delta rule: the rate keeps below its most, the decay below 0, for any number",
          "[mechanism][delta_rule]") {
  float x[6] = {-1e30f, -90, 0, 5, 90, 1e30f}, rate[6], gate[6], scale[1] = {1}, shift[1] = {0.5f};
  auto const view = [](float* data) { return tensor_view<float, 3>(data, {1, 6, 1}); };
  heed::delta_rate(view(x), view(rate), 2);
  heed::delta_decay(view(x), std::span<float>(scale), std::span<float>(shift), view(gate));
  for (float each : rate) CHECK((each >= 0 && each <= 2));
  CHECK(rate[2] == 1);
  for (float each : gate) CHECK((each <= 0 && std::isfinite(each)));
  CHECK(gate[0] == 0);
  CHECK(gate[4] == Approx(-std::exp(1.0) * 90.5));
}

TEST_CASE("EFLA: two steps of half the time are one of the time", "[mechanism][delta_rule]") {
  std::vector<double> const k = normal(5 * 6, 13), v = normal(5 * 3, 14), q = normal(5 * 6, 15);
  std::vector<double> twice_k, twice_v, twice_q;
  for (std::size_t i = 0; i < 10; ++i) {
    twice_k.insert(twice_k.end(), k.begin() + std::ptrdiff_t(i / 2 * 6),
                   k.begin() + std::ptrdiff_t(i / 2 * 6 + 6));
    twice_q.insert(twice_q.end(), q.begin() + std::ptrdiff_t(i / 2 * 6),
                   q.begin() + std::ptrdiff_t(i / 2 * 6 + 6));
    twice_v.insert(twice_v.end(), v.begin() + std::ptrdiff_t(i / 2 * 3),
                   v.begin() + std::ptrdiff_t(i / 2 * 3 + 3));
  }
  rows whole(std::vector<double>(5, 0.8), 1), half(std::vector<double>(10, 0.4), 1);
  auto const queries = heed::efla_queries(6);
  auto const once = attend({q, 6}, {k, 6}, {v, 3}, queries, heed::exact_delta(whole.tokens()));
  auto const twice =
      attend({twice_q, 6}, {twice_k, 6}, {twice_v, 3}, queries, heed::exact_delta(half.tokens()));
  for (std::size_t i = 0; i < 5; ++i)
    for (std::size_t e = 0; e < 3; ++e)
      CHECK(once[i * 3 + e] == Approx(twice[(2 * i + 1) * 3 + e]).epsilon(1e-12).margin(1e-13));
}

TEST_CASE("EFLA: small keys make a delta rule, long times an exact rewrite",
          "[mechanism][delta_rule]") {
  std::vector<double> const k = normal(8 * 6, 16), v = normal(8 * 3, 17), q = normal(8 * 6, 18);
  auto const scaled = [&](double by) {
    std::vector<double> small = k;
    for (double& each : small) each *= by;
    return small;
  };
  rows rate(std::vector<double>(8, 0.7), 1), forever(std::vector<double>(8, 1e6), 1);
  auto const queries = heed::efla_queries(6);
  // The rates differ by rate |k|^2 / 2 in relation.
  check_same(attend({q, 6}, {scaled(1e-5), 6}, {v, 3}, queries, heed::exact_delta(rate.tokens())),
             attend({q, 6}, {scaled(1e-5), 6}, {v, 3}, queries, heed::delta(rate.tokens())), 1e-8);
  std::vector<double> inverse(8);
  for (std::size_t i = 0; i < 8; ++i) {
    double size = 0;
    for (std::size_t d = 0; d < 6; ++d) size += k[i * 6 + d] * k[i * 6 + d];
    inverse[i] = 1 / size;
  }
  rows exact(inverse, 1);
  check_same(attend({q, 6}, {k, 6}, {v, 3}, queries, heed::exact_delta(forever.tokens())),
             attend({q, 6}, {k, 6}, {v, 3}, queries, heed::delta(exact.tokens())), 1e-12);
}

TEST_CASE("EFLA: it is what small steps of its differential equation lead to",
          "[mechanism][delta_rule]") {
  constexpr std::size_t tokens = 4, steps = 4000;
  std::vector<double> const k = normal(tokens * 4, 19), v = normal(tokens * 2, 20),
                            q = normal(tokens * 4, 21);
  rows rate({0.5, 1.5, 0.2, 1}, 1);
  auto const out = attend({q, 4}, {k, 4}, {v, 2}, heed::exact_delta(rate.tokens()));
  double S[4][2] = {};
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < steps; ++n) {
      // The midpoint rule.
      auto const slope = [&](double const(&s)[4][2], std::size_t f, std::size_t e) {
        double said = 0;
        for (std::size_t d = 0; d < 4; ++d) said += k[t * 4 + d] * s[d][e];
        return k[t * 4 + f] * (v[t * 2 + e] - said);
      };
      double const h = rate.numbers[t] / steps;
      double middle[4][2], next[4][2];
      for (std::size_t f = 0; f < 4; ++f)
        for (std::size_t e = 0; e < 2; ++e) middle[f][e] = S[f][e] + h / 2 * slope(S, f, e);
      for (std::size_t f = 0; f < 4; ++f)
        for (std::size_t e = 0; e < 2; ++e) next[f][e] = S[f][e] + h * slope(middle, f, e);
      std::copy(&next[0][0], &next[0][0] + 8, &S[0][0]);
    }
    for (std::size_t e = 0; e < 2; ++e) {
      double sum = 0;
      for (std::size_t f = 0; f < 4; ++f) sum += q[t * 4 + f] * S[f][e];
      CHECK(out[t * 2 + e] == Approx(sum).epsilon(1e-5).margin(1e-6));
    }
  }
}

TEST_CASE("delta rule: steps are the whole", "[mechanism][delta_rule]") {
  constexpr index_t N = 9;
  std::vector<double> q = normal(N * 8, 22), k = normal(N * 8, 23), v = normal(N * 6, 24);
  std::vector<double> rate(N, 1.4), gate(N, -0.1), state(24), out(N * 6), whole(N * 6);
  heed::unit_features const unit{.after_silu = true, .query_scale = 0.5};
  auto const view = [](std::vector<double>& x, index_t d) {
    return heed::bnhd(x.data(), 1, N, 2, d);
  };
  auto const token = [](std::vector<double>& x) {
    return tensor_view<double, 3>(x.data(), {1, N, 1});
  };
  heed::linear_attention(view(q, 4), view(k, 4), view(v, 3), view(whole, 3), unit,
                         heed::delta(token(rate)), heed::decay(token(gate)));
  for (index_t t = 0; t < N; ++t)
    heed::linear_attention_step(
        view(q, 4).slice(1, t, 1), view(k, 4).slice(1, t, 1), view(v, 3).slice(1, t, 1),
        view(out, 3).slice(1, t, 1), tensor_view<double, 4>(state.data(), {1, 2, 4, 3}), unit,
        heed::delta(token(rate).slice(1, t, 1)), heed::decay(token(gate).slice(1, t, 1)));
  check_same(out, whole, 1e-13);
}

TEST_CASE("delta rule: what does not fit is refused", "[mechanism][delta_rule]") {
  float numbers[12] = {}, two[2] = {};
  tensor_view<float, 3> const x(numbers, {1, 4, 3}), other(numbers, {1, 3, 3});
  CHECK_THROWS_WITH(heed::delta_rate(x, other),
                    "heed: rate has shape [1, 3, 3]; expected that of x, [1, 4, 3]");
  CHECK_THROWS_WITH(heed::delta_decay(x, std::span<float>(two), std::span<float>(two), x),
                    "heed: log_scale has 2 numbers; expected one for each of 3 heads");
}
