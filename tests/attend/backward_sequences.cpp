#include "support/problem.hpp"

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("backward: documents, causal, alibi", "[attend]") {
  for_each_seed("backward documents", 200, [](seed_t seed) {
    problem<float> p(seed, {.packed = true});
    p.differentiate();
    return p.backward(std::tuple{p.documents(), p.causal(), p.alibi()});
  });
}

TEST_CASE("backward: softcap between two biases, complement and union, double", "[attend]") {
  auto const try_seed = [](seed_t seed) {
    problem<double> p(seed);
    p.differentiate();
    auto const before = p.bias<float>();
    auto const cap = p.softcap();
    auto const after = p.bias<bool>();
    return p.backward(std::tuple{p.outside_window(), before, cap, after, p.sinks(), p.scale()});
  };
  // One waiver, for the softcap: see backward_ingredients.cpp.
  for_each_seed("backward double ingredients", 150, try_seed, 1);
}
