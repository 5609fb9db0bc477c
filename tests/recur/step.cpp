#include "support/recurrence_problem.hpp"

// linear_attention_step, token by token, against the definition.

using support::for_each_seed;
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
