#include "support/problem.hpp"

// The plain kernel in every combination of element types that matters: stored as computed, widened
// on load, narrowed on store.

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("forward: float", "[attend][quick]") {
  for_each_seed("forward float", 250, [](seed_t seed) {
    problem<float> p(seed);
    return p.forward(std::tuple{});
  });
}

TEST_CASE("forward: double, causal", "[attend]") {
  for_each_seed("forward double", 150, [](seed_t seed) {
    problem<double> p(seed);
    return p.forward(std::tuple{p.causal()});
  });
}

TEST_CASE("forward: float queries, half keys and values", "[attend]") {
  for_each_seed("forward half", 150, [](seed_t seed) {
    problem<float, Eigen::half, Eigen::half, float> p(seed);
    return p.forward(std::tuple{p.window()});
  });
}

TEST_CASE("forward: bfloat16", "[attend]") {
  for_each_seed("forward bfloat16", 150, [](seed_t seed) {
    problem<Eigen::bfloat16> p(seed);
    return p.forward(std::tuple{p.causal()});
  });
}

TEST_CASE("forward: half, bfloat16 and float together", "[attend]") {
  for_each_seed("forward mixed", 150, [](seed_t seed) {
    problem<Eigen::half, Eigen::bfloat16, float, Eigen::half> p(seed);
    return p.forward(std::tuple{});
  });
}
