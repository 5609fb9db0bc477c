#include "support/problem.hpp"

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("forward: sinks and a window, softcap, row statistics", "[attend][quick]") {
  for_each_seed("forward streaming", 250, [](seed_t seed) {
    problem<float> p(seed);
    return p.forward(std::tuple{p.streaming(), p.softcap(), p.row_max(), p.entropy()});
  });
}

TEST_CASE("forward: window, alibi, row scale, explicit positions", "[attend]") {
  for_each_seed("forward positions", 200, [](seed_t seed) {
    problem<float> p(seed);
    return p.forward(std::tuple{p.row_scale(), p.query_positions(), p.window(), p.alibi()});
  });
}

TEST_CASE("forward: complement and union, softcap between two biases, double", "[attend]") {
  for_each_seed("forward double ingredients", 150, [](seed_t seed) {
    problem<double> p(seed);
    auto const before = p.bias<float>();
    auto const cap = p.softcap();
    auto const after = p.bias<double>();
    return p.forward(std::tuple{p.outside_window(), before, cap, after, p.scale(), p.entropy()});
  });
}
