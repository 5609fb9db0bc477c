#include "support/recurrence_problem.hpp"

// linear_attention_backward against its definition, over random shapes, layouts and clauses.

using support::for_each_seed;
using support::recurrence_problem;
using support::seed_t;

TEST_CASE("recurrence: backward, float", "[recur][quick]") {
  for_each_seed("recurrence backward", 1000,
                [](seed_t seed) { return recurrence_problem<float>(seed).backward(); });
}

TEST_CASE("recurrence: backward, double", "[recur]") {
  for_each_seed("recurrence backward double", 250,
                [](seed_t seed) { return recurrence_problem<double>(seed).backward(); });
}

TEST_CASE("recurrence: backward, half, bfloat16 and float", "[recur]") {
  for_each_seed("recurrence backward mixed", 400, [](seed_t seed) {
    return recurrence_problem<Eigen::half, Eigen::bfloat16, float, Eigen::half>(seed).backward();
  });
}
