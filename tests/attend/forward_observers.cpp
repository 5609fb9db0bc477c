#include "support/problem.hpp"

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("forward: column sums and top keys under a bool bias", "[attend][quick]") {
  for_each_seed("forward sweeps", 250, [](seed_t seed) {
    problem<float> p(seed);
    return p.forward(std::tuple{p.causal(), p.bias<bool>(), p.column_sums(), p.top_keys()});
  });
}

TEST_CASE("forward: sweeps with sinks, in documents, double", "[attend]") {
  for_each_seed("forward sweeps double", 150, [](seed_t seed) {
    problem<double> p(seed, {.packed = true});
    return p.forward(std::tuple{p.documents(), p.window(), p.sinks(), p.row_max(), p.column_sums(),
                                p.top_keys()});
  });
}
