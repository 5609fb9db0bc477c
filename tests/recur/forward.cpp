#include "support/recurrence_problem.hpp"

// linear_attention against its definition, over random shapes, layouts and clauses.

using support::for_each_seed;
using support::recurrence_problem;
using support::seed_t;

TEST_CASE("recurrence: forward, float", "[recur][quick]") {
  for_each_seed("recurrence forward", 1500,
                [](seed_t seed) { return recurrence_problem<float>(seed).forward(); });
}

TEST_CASE("recurrence: forward, double", "[recur]") {
  for_each_seed("recurrence forward double", 400,
                [](seed_t seed) { return recurrence_problem<double>(seed).forward(); });
}

TEST_CASE("recurrence: forward, half, bfloat16 and float", "[recur]") {
  for_each_seed("recurrence forward mixed", 400, [](seed_t seed) {
    return recurrence_problem<Eigen::half, Eigen::bfloat16, float, Eigen::half>(seed).forward();
  });
}
