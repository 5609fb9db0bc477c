#include "support/error_rule.hpp"
#include "support/recurrence_problem.hpp"
#include "support/tensors.hpp"

// linear_attention_step, token by token, against the definition.

using support::blank;
using support::for_each_seed;
using support::normal;
using support::recurrence_problem;
using support::seed_t;

namespace {
constexpr support::recurrence_limits tokens{.positions = 60, .work = 1e5, .steps = true};
}

TEST_CASE("recurrence: steps, float", "[recur][quick]") {
  for_each_seed("recurrence step", 600,
                [](seed_t seed) { return recurrence_problem<float>(seed, tokens).steps(); });
}

TEST_CASE("recurrence: steps, double", "[recur]") {
  for_each_seed("recurrence step double", 200,
                [](seed_t seed) { return recurrence_problem<double>(seed, tokens).steps(); });
}

TEST_CASE("recurrence: steps, half, bfloat16 and float", "[recur]") {
  for_each_seed("recurrence step mixed", 200, [](seed_t seed) {
    return recurrence_problem<Eigen::half, Eigen::bfloat16, float, Eigen::half>(seed, tokens)
        .steps();
  });
}

TEST_CASE("recurrence: a step of many columns is the same bits as steps of some of them",
          "[recur]") {
  // Tiles of eight registers, of four, of one and a part of one, against a register at a time.
  using heed::index_t;
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<float>::size);
  constexpr index_t features = 7, columns = 14 * lanes + 3, heads = 4, state_heads = 2;
  support::random draw(1);
  auto const q = normal(draw, {1, 1, heads, features}), k = normal(draw, {1, 1, 2, features}),
             v = normal(draw, {1, 1, 2, columns}),
             before = normal(draw, {1, state_heads, features, columns});
  auto gate = blank<float, 3>({1, 1, 2}), rate = blank<float, 3>({1, 1, 2});
  gate.fill([&](auto const&) { return -static_cast<float>(std::abs(draw.normal())); });
  rate.fill([&](auto const&) { return static_cast<float>(draw.normal()); });
  auto channels = blank<float, 4>({1, 1, 2, columns});
  channels.fill([&](auto const&) { return -static_cast<float>(std::abs(draw.normal())); });
  enum class rule { plain, decay, value_decay, delta };
  for (rule what : {rule::plain, rule::decay, rule::value_decay, rule::delta}) {
    CAPTURE(static_cast<int>(what));
    auto const run = [&](index_t together) {
      auto out = blank<float, 4>({1, 1, heads, columns});
      auto state = blank<float, 4>(before.extents());
      state.fill([&](auto const& at) { return before.view()(at[0], at[1], at[2], at[3]); });
      for (index_t first = 0; first < columns; first += together) {
        index_t const count = std::min(together, columns - first);
        support::recurrence_call<float> c;
        c.query = q.view(), c.key = k.view();
        c.value = v.view().slice(3, first, count);
        c.out = out.view().slice(3, first, count);
        if (what == rule::decay) c.log_gate = std::as_const(gate).view();
        if (what == rule::value_decay)
          c.log_value_gate = std::as_const(channels).view().slice(3, first, count);
        if (what == rule::delta) c.rate = std::as_const(rate).view();
        c.step(state.view().slice(3, first, count));
      }
      return std::pair(out.values<float>(), state.values<float>());
    };
    auto const whole = run(columns), parts = run(lanes);
    CHECK(support::same_bits(whole.first, parts.first));
    CHECK(support::same_bits(whole.second, parts.second));
  }
}
