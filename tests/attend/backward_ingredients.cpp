#include "support/problem.hpp"

// With differentiate(), every ingredient asks for its own gradient and has it checked.

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("backward: sinks and a window, softcap, scale", "[attend][quick]") {
  for_each_seed("backward streaming", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.differentiate();
    return p.backward(std::tuple{p.streaming(), p.softcap(), p.scale()});
  });
}

TEST_CASE("backward: window, alibi, row scale, explicit positions", "[attend]") {
  for_each_seed("backward positions", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.differentiate();
    return p.backward(std::tuple{p.row_scale(), p.query_positions(), p.window(), p.alibi()});
  });
}

TEST_CASE("backward: padded keys, causal from the top left, bias, sinks", "[attend]") {
  for_each_seed("backward padded", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.differentiate();
    auto const lengths = p.key_lengths();
    return p.backward(std::tuple{p.top_left(), lengths & p.causal(), p.bias<float>(), p.sinks()});
  });
}
