#include "reference/agent.hpp"
#include "support/compositions.hpp"

#include <heed/mechanism/agent_attention.hpp>
#include <heed/mechanism/agent_grid.hpp>

// Agent Attention and its parts for pictures, against their definitions.

using heed::index_t;
using heed::tensor_view;
using reference::tensor;
using support::definition_check;
using support::for_each_seed;
using support::in_orders;
using support::seed_t;
using support::view_of;

namespace {

template <class T>
void fill_zero(tensor_view<T, 4> all) {
  support::for_each_index(all.extents(), [&](auto const& at) {
    all.data()[support::offset(at, all.strides())] = T(0);
  });
}

/// Axes 1 to 3 of a view whose first has one entry; axes 2 and 3.
template <class T>
tensor_view<T, 3> without_first(tensor_view<T, 4> x) {
  return {
      x.data(), {x.extent(1), x.extent(2), x.extent(3)}, {x.stride(1), x.stride(2), x.stride(3)}};
}
template <class T>
tensor_view<T, 2> last_two(tensor_view<T, 4> x) {
  return {x.data(), {x.extent(2), x.extent(3)}, {x.stride(2), x.stride(3)}};
}

/// Any agents, with biases.
template <class T>
struct agent_problem : definition_check<T> {
  double scale, second_scale;

  explicit agent_problem(seed_t seed, index_t least = 1) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    index_t const B = chance.between(1, 2), N = chance.between(least, 40),
                  M = chance.between(least, 50), n = chance.between(least, 12),
                  D = chance.between(4, 20), Dv = chance.between(4, 20), H = 4,
                  agent_heads = chance.one_in(2) ? 4 : 2, heads = chance.one_in(2) ? 2 : 1;
    scale = second_scale = chance.uniform(0.1, 0.4);
    if (chance.one_in(2)) second_scale = chance.uniform(0.1, 0.4);
    this->input("q", {B, N, H, D});
    this->input("k", {B, M, heads, D});
    this->input("v", {B, M, chance.one_in(2) ? agent_heads : heads, Dv});
    this->input("agents", {B, n, agent_heads, D});
    this->input("b1", {1, agent_heads, n, M});
    this->input("b2", {1, H, N, n});
    this->output("out", {B, N, H, Dv});
  }

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      return reference::tensors<U>{
          reference::agent_attention(x[0], x[1], x[2], x[3], x[4], x[5], scale, second_scale)};
    };
  }
  template <class... I>
  void forward_pass(I const&... more) {
    auto const call = [&](auto const& b2) {
      heed::agent_attention(this->in(0), this->in(1), this->in(2), this->in(3), this->out(0),
                            heed::scale{scale}, heed::agent_aggregation(heed::bias(this->in(4))),
                            b2, more...);
    };
    scale == second_scale
        ? call(heed::agent_broadcast(heed::bias(this->in(5))))
        : call(heed::agent_broadcast(heed::bias(this->in(5)), heed::scale{second_scale}));
  }
  template <class... I>
  void backward_pass(I const&... more) {
    auto const call = [&](auto const& b2) {
      heed::agent_attention_backward(
          this->in(0), this->in(1), this->in(2), this->in(3), this->dout(0), this->din(0),
          this->din(1), this->din(2), this->din(3), heed::scale{scale, &dscale},
          heed::agent_aggregation(heed::bias(this->in(4), this->din(4))), b2, more...);
    };
    heed::bias const second(this->in(5), this->din(5));
    scale == second_scale
        ? call(heed::agent_broadcast(second))
        : call(heed::agent_broadcast(second, heed::scale{second_scale, &dsecond_scale}));
  }
  double dscale = 0, dsecond_scale = 0;
};

/// The module for pictures: everything from queries, keys, values and tables.
template <class T>
struct picture_problem : definition_check<T> {
  heed::agent_grid grid;
  index_t p, r;
  double scale;

  explicit picture_problem(seed_t seed) : definition_check<T>(seed) {
    support::random& chance = this->draw;
    grid = {chance.between(2, 7), chance.between(2, 7), chance.one_in(2)};
    p = chance.between(2, grid.height);
    r = chance.between(2, grid.width);
    index_t const B = chance.between(1, 2), N = grid.tokens(), H = 2, D = chance.between(3, 8),
                  n = p * r, t = chance.between(1, 8), u = chance.between(1, 8);
    scale = 0.3;
    for (char const* name : {"q", "k", "v"}) this->input(name, {B, N, H, D});
    for (char const* side : {"1", "2"}) {
      (void)side;
      this->input("table", {H, n, t, u});
      this->input("rows", {1, H, n, grid.height});
      this->input("columns", {1, H, n, grid.width});
      this->input("of class", {1, 1, H, n});
    }
    this->input("kernel", {1, 9, H, D});
    this->input("offset", {1, 1, H, D});
    this->output("out", {B, N, H, D});
    agents = support::blank<T, 4>({B, n, H, D});
    dagents = support::blank<T, 4>({B, n, H, D});
    b1 = support::blank<T, 4>({1, H, n, N});
    b2 = support::blank<T, 4>({1, H, N, n});
    db1 = support::blank<T, 4>({1, H, n, N});
    db2 = support::blank<T, 4>({1, H, N, n});
  }
  support::guarded<T, 4> agents, dagents, b1, b2, db1, db2;

  auto definition() const {
    return [this]<class U>(reference::tensors<U> const& x) {
      index_t const skipped = grid.class_token;
      auto const if_class = [&](tensor<U, 4> const& of_class) {
        return grid.class_token ? of_class : tensor<U, 4>();
      };
      auto const a = reference::pooled_agents(x[0], grid.height, grid.width, p, r, skipped);
      auto const out = reference::agent_attention(
          x[0], x[1], x[2], a, reference::agent_bias(x[3], x[4], x[5], if_class(x[6])),
          reference::turned(reference::agent_bias(x[7], x[8], x[9], if_class(x[10]))), scale,
          scale);
      return reference::tensors<U>{
          reference::with_depthwise(out, x[2], x[11], x[12], grid.height, grid.width, skipped)};
    };
  }
  template <class View>
  auto tables(View const& view, std::size_t first) {
    using E = typename decltype(view(0))::element_type;
    return heed::agent_bias_tables<E>{
        view(first), without_first(view(first + 1)), without_first(view(first + 2)),
        grid.class_token ? last_two(view(first + 3)) : tensor_view<E, 2>()};
  }
  template <class... I>
  void prepare(I const&... run_on) {
    auto const inputs = [&](std::size_t n) { return this->in(n); };
    heed::pool_agents(this->in(0), grid, p, r, agents.view(), run_on...);
    heed::agent_bias(tables(inputs, 3), grid, b1.view(), run_on...);
    heed::agent_bias(tables(inputs, 7), grid, b2.view().swap_axes(2, 3), run_on...);
  }
  template <class... I>
  void forward_pass(I const&... run_on) {
    prepare(run_on...);
    heed::agent_attention(this->in(0), this->in(1), this->in(2), std::as_const(agents).view(),
                          this->out(0), heed::scale{scale},
                          heed::agent_aggregation(heed::bias(std::as_const(b1).view())),
                          heed::agent_broadcast(heed::bias(std::as_const(b2).view())), run_on...);
    heed::add_depthwise(this->in(2), without_first(this->in(11)), last_two(this->in(12)), grid,
                        this->out(0), run_on...);
  }
  template <class... I>
  void backward_pass(I const&... run_on) {
    prepare(run_on...);
    heed::agent_attention_backward(
        this->in(0), this->in(1), this->in(2), std::as_const(agents).view(), this->dout(0),
        this->din(0), this->din(1), this->din(2), dagents.view(), heed::scale{scale},
        heed::agent_aggregation(heed::bias(std::as_const(b1).view(), db1.view())),
        heed::agent_broadcast(heed::bias(std::as_const(b2).view(), db2.view())), run_on...);
    heed::pool_agents_backward(std::as_const(dagents).view(), grid, p, r, this->din(0), run_on...);
    auto const gradients = [&](std::size_t n) { return this->din(n); };
    for (std::size_t n : {std::size_t{6}, std::size_t{10}}) fill_zero(this->din(n));
    heed::agent_bias_backward(std::as_const(db1).view(), grid, tables(gradients, 3), run_on...);
    heed::agent_bias_backward(std::as_const(db2).view().swap_axes(2, 3), grid, tables(gradients, 7),
                              run_on...);
    heed::add_depthwise_backward(this->in(2), without_first(this->in(11)), last_two(this->in(12)),
                                 grid, this->dout(0), this->din(2), without_first(this->din(11)),
                                 last_two(this->din(12)), run_on...);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("agent attention: the definition", "[mechanism][agent]", double, float) {
  for_each_seed("agent attention", 150, [](seed_t seed) {
    agent_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("agent attention: the gradient", "[mechanism][agent]", double, float) {
  for_each_seed("agent attention backward", 60, [](seed_t seed) {
    agent_problem<TestType> p(seed, 8);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("agent attention: the gradient of few rows, and of the scales", "[mechanism][agent]") {
  for_each_seed("agent attention backward, few rows", 80, [](seed_t seed) {
    agent_problem<double> p(seed);
    p.backward_pass();
    std::string complaint = support::small_gradient_complaint(p, 6, p.definition());
    auto const loss = [&] {
      p.forward_pass();
      return reference::weighted_sum(support::read<double>(p.dout(0)),
                                     support::read<double>(p.saved(0)));
    };
    bool const one = p.scale == p.second_scale;
    auto const slope = [&](bool first, bool second) {
      double const before = p.scale, second_before = p.second_scale, step = 1e-6;
      double loss_at[2];
      for (int side : {0, 1}) {
        double const by = side == 0 ? -step : step;
        p.scale = before + (first ? by : 0);
        p.second_scale = second_before + (second ? by : 0);
        loss_at[side] = loss();
      }
      p.scale = before;
      p.second_scale = second_before;
      return (loss_at[1] - loss_at[0]) / (2 * step);
    };
    if (!(std::abs(p.dscale - slope(true, one)) < 1e-6)) complaint += "dscale is off\n";
    if (!one && !(std::abs(p.dsecond_scale - slope(false, true)) < 1e-6))
      complaint += "the second dscale is off\n";
    return complaint;
  });
}

TEMPLATE_TEST_CASE("agent attention: pictures", "[mechanism][agent]", double, float) {
  for_each_seed("agent pictures", 60, [](seed_t seed) {
    picture_problem<TestType> p(seed);
    p.forward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.forward(all...); });
  });
}

TEMPLATE_TEST_CASE("agent attention: the gradient of pictures", "[mechanism][agent]", double,
                   float) {
  for_each_seed("agent pictures backward", 25, [](seed_t seed) {
    picture_problem<TestType> p(seed);
    p.backward_pass();
    return in_orders(p.definition(), [&](auto const&... all) { return p.backward(all...); });
  });
}

TEST_CASE("agent attention: a stream of keys", "[mechanism][agent]") {
  for_each_seed("agent stream", 40, [](seed_t seed) {
    agent_problem<float> p(seed);
    p.forward_pass();
    auto const [B, n, heads, D] = p.in(3).extents();
    index_t const M = p.in(1).extent(1), E = p.in(2).extent(3);
    tensor<float, 4> seen({B, n, heads, E}, 7);
    tensor<float, 3> lse({B, heads, n}, 7);
    heed::agent_state<float> const state{view_of(seen), view_of(lse)};
    heed::clear_agents(state);
    for (index_t first = 0; first < M;) {
      index_t const count = p.draw.between(1, M - first);
      heed::agent_absorb(p.in(3), p.in(1).slice(1, first, count), p.in(2).slice(1, first, count),
                         state, heed::scale{p.scale},
                         heed::agent_aggregation(heed::bias(p.in(4).slice(3, first, count))));
      first += count;
    }
    auto out = support::blank<float, 4>(p.out(0).extents());
    // Each query on its own: rows do not depend on one another.
    for (index_t i = 0; i < out.extents()[1]; ++i)
      heed::agent_read(
          p.in(0).slice(1, i, 1), p.in(3), state, out.view().slice(1, i, 1),
          heed::agent_broadcast(heed::bias(p.in(5).slice(2, i, 1)), heed::scale{p.second_scale}));
    double const off = support::difference(out.values<float>(), support::read<float>(p.saved(0)));
    return off < 4e-6 ? "" : "the stream is off by " + std::to_string(off) + "\n";
  });
}

TEST_CASE("agent attention: before any key there is nothing", "[mechanism][agent]") {
  tensor<float, 4> const x({1, 3, 2, 4}, 1);
  tensor<float, 4> seen({1, 3, 2, 4}, 7), out({1, 3, 2, 4}, 7);
  tensor<float, 3> lse({1, 2, 3}, 7);
  heed::agent_state<float> const state{view_of(seen), view_of(lse)};
  heed::clear_agents(state);
  heed::agent_read(view_of(x), view_of(x), state, view_of(out));
  CHECK(out.values == std::vector<float>(24, 0.f));
}

TEST_CASE("agent attention: its identities", "[mechanism][agent]") {
  support::random draw(11);
  auto const q = support::normal<float>(draw, {2, 30, 4, 8}),
             k = support::normal<float>(draw, {2, 30, 4, 8}),
             v = support::normal<float>(draw, {2, 30, 4, 8});
  auto out = support::blank<float, 4>({2, 30, 4, 8});

  // Agents = queries without biases: softmax attention twice, and not once.
  heed::agent_attention(q.view(), k.view(), v.view(), q.view(), out.view());
  auto const once = support::attend(q.view(), k.view(), v.view());
  auto const twice = support::attend(q.view(), q.view(), view_of(once.out));
  CHECK(support::difference(out.values<float>(), twice.out) < 1e-6);
  CHECK(support::difference(out.values<float>(), once.out) > 0.01);

  // Rows of weights sum to 1.
  auto ones = support::blank<float, 4>({2, 30, 4, 8});
  ones.fill([](auto const&) { return 1.f; });
  auto const agents = support::normal<float>(draw, {2, 5, 4, 8});
  heed::agent_attention(q.view(), k.view(), ones.view(), agents.view(), out.view());
  CHECK(support::difference(out.values<float>(), ones.values<float>()) < 1e-6);

  // The variant for diffusion.
  heed::agent_diffusion_attention(q.view(), k.view(), v.view(), agents.view(), out.view());
  auto expected = reference::agent_attention(q.values<double>(), k.values<double>(),
                                             v.values<double>(), agents.values<double>(), {}, {},
                                             std::pow(8, -0.5), std::pow(std::pow(8, -0.5), 0.3));
  auto const values = v.values<double>();
  for (std::size_t n = 0; n < values.values.size(); ++n)
    expected.values[n] += 0.075 * values.values[n];
  CHECK(support::difference(out.values<double>(), expected) < 1e-6);
}

TEST_CASE("agent attention: the gradient of the variant for diffusion", "[mechanism][agent]") {
  definition_check<double> p(12);
  for (char const* name : {"q", "k", "v"}) p.input(name, {1, 12, 2, 8});
  p.input("agents", {1, 4, 2, 8});
  p.output("out", {1, 12, 2, 8});
  heed::agent_diffusion_attention_backward(p.in(0), p.in(1), p.in(2), p.in(3), p.dout(0), p.din(0),
                                           p.din(1), p.din(2), p.din(3));
  auto const definition = [&]<class U>(reference::tensors<U> const& x) {
    auto out = reference::agent_attention(x[0], x[1], x[2], x[3], {}, {}, std::pow(8, -0.5),
                                          std::pow(8, -0.15));
    for (std::size_t n = 0; n < out.values.size(); ++n) out.values[n] += U(0.075) * x[2].values[n];
    return reference::tensors<U>{out};
  };
  CHECK(support::small_gradient_complaint(p, 4, definition) == "");
}

TEST_CASE("agent attention: the same bits on any executor", "[mechanism][agent]") {
  for_each_seed("agent executor", 10, [](seed_t seed) {
    return support::executor_complaint<agent_problem<float>>(seed, 6);
  });
  for_each_seed("agent pictures executor", 10, [](seed_t seed) {
    return support::executor_complaint<picture_problem<float>>(seed, 13);
  });
}

TEST_CASE("agent attention: what does not fit is refused", "[mechanism][agent]") {
  std::vector<float> numbers(1000, 7.0f);
  auto const tokens = [&](index_t n, index_t heads = 2) {
    return heed::bnhd(numbers.data(), 1, n, heads, 3);
  };
  heed::agent_grid const grid{3, 4, true};
  CHECK_THROWS_WITH(
      heed::agent_attention(tokens(9), tokens(9), tokens(9), tokens(4, 1), tokens(9)),
      "heed: agents has shape [1, 4, 1, 3]; expected [1, agents, heads, 3], the heads a divisor of "
      "the 2 of query and a multiple of those of key and value");
  CHECK_THROWS_WITH(
      heed::agent_attention(tokens(9), tokens(9), tokens(9), tokens(4), tokens(8)),
      "heed: out has shape [1, 8, 2, 3]; expected that of query with the head_dim of value, "
      "[1, 9, 2, 3]");
  CHECK_THROWS_WITH(
      heed::pool_agents(tokens(12), grid, 2, 2, tokens(4)),
      "heed: query has shape [1, 12, 2, 3]; expected 13 tokens, those of a grid of 3 x "
      "4 and a class token");
  CHECK_THROWS_WITH(heed::pool_agents(tokens(13), grid, 2, 0, tokens(4)),
                    "heed: agents are pooled to 2 x 0; expected at least 1 of each");
  auto const axes = [&](index_t a, index_t b, index_t c) {
    return tensor_view<float, 3>(numbers.data(), {a, b, c});
  };
  CHECK_THROWS_WITH(
      heed::agent_bias(heed::agent_bias_tables<float>{heed::bnhd(numbers.data(), 2, 4, 7, 7),
                                                      axes(2, 4, 3), axes(2, 4, 4)},
                       grid, heed::bnhd(numbers.data(), 1, 2, 4, 13)),
      "heed: the tables of an agent bias have shapes [2, 4, 7, 7], [2, 4, 3], [2, 4, 4] and [0, "
      "0]; "
      "expected [heads, agents, any, any], [heads, agents, 3], [heads, agents, 4] and [heads, "
      "agents]");
  CHECK_THROWS_WITH(
      heed::add_depthwise(tokens(13), axes(8, 2, 3), tensor_view<float, 2>(numbers.data(), {2, 3}),
                          grid, tokens(13)),
      "heed: the kernel has shape [8, 2, 3], the offset [2, 3]; expected [9, 2, 3] and [2, 3]");
  CHECK(numbers == std::vector<float>(1000, 7.0f));
}
