#include "support/problem.hpp"

using support::for_each_seed;
using support::problem;
using support::seed_t;

TEST_CASE("forward: padded keys, causal from the top left, bias, sinks", "[attend][quick]") {
  for_each_seed("forward padded", 250, [](seed_t seed) {
    problem<float> p(seed);
    auto const lengths = p.key_lengths();
    return p.forward(std::tuple{p.top_left(), lengths & p.causal(), p.bias<float>(), p.sinks()});
  });
}

TEST_CASE("forward: documents, window, alibi, half bias", "[attend][quick]") {
  for_each_seed("forward documents", 250, [](seed_t seed) {
    problem<float> p(seed, {.packed = true});
    return p.forward(std::tuple{p.documents(), p.window(), p.alibi(), p.bias<Eigen::half>()});
  });
}

TEST_CASE("forward: documents with unused keys, explicit positions, bfloat16 keys", "[attend]") {
  for_each_seed("forward documents used", 150, [](seed_t seed) {
    problem<float, Eigen::bfloat16> p(seed, {.packed = true});
    auto const documents = p.documents();
    return p.forward(std::tuple{documents, p.key_lengths() & p.causal(), p.query_positions()});
  });
}
