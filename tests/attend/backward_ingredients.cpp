#include "support/problem.hpp"

// With differentiate(), every ingredient asks for its own gradient and has it checked.

using support::for_each_seed;
using support::problem;
using support::seed_t;

// simd::tanh is right to about 1.5 units in the last place and std::tanh to half of one, and the slope
// 1 - tanh^2 magnifies that where a score comes near the cap: about one problem in 200 exceeds the
// bound, by some tenths.
constexpr int softcap_waivers = 1;

TEST_CASE("backward: sinks and a window, softcap, scale", "[attend][quick]") {
  auto const try_seed = [](seed_t seed) {
    problem<float> p(seed);
    p.differentiate();
    return p.backward(std::tuple{p.streaming(), p.softcap(), p.scale()});
  };
  for_each_seed("backward streaming", 200, try_seed, softcap_waivers);
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
