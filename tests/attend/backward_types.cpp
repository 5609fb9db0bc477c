#include "support/problem.hpp"

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("backward: float", "[attend][quick]") {
  for_each_seed("backward float", 250, [](seed_t seed) {
    problem<float> p(seed);
    return p.backward(std::tuple{});
  });
}

TEST_CASE("backward: double, causal", "[attend]") {
  for_each_seed("backward double", 150, [](seed_t seed) {
    problem<double> p(seed);
    return p.backward(std::tuple{p.causal()});
  });
}

TEST_CASE("backward: float queries, half keys and values", "[attend]") {
  for_each_seed("backward half", 150, [](seed_t seed) {
    problem<float, Eigen::half, Eigen::half, float> p(seed);
    return p.backward(std::tuple{p.window()});
  });
}

TEST_CASE("backward: bfloat16", "[attend]") {
  for_each_seed("backward bfloat16", 150, [](seed_t seed) {
    problem<Eigen::bfloat16> p(seed);
    return p.backward(std::tuple{p.causal()});
  });
}
