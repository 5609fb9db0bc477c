// peer/ggml_recurrence: recurrences token by token, the way of ggml on a CPU, written anew here: the same loops over the same
// memory. Its gated linear attention goes from token to token and takes all heads at each; a row of the state is faded, written
// to and read in one pass. Its gated delta rule goes from head to head, and passes over the state four times a token: it fades,
// says what it knows of the key, a dot product for each channel of the value, receives what is missing, and is read.
// Tokens lie as ggml's do, [position, head, dim].
#include "../bench.hpp"

#include <xsimd/xsimd.hpp>

#include <array>
#include <cmath>

namespace heed_bench {
namespace {

using batch = xsimd::batch<float>;
constexpr index_t lanes = static_cast<index_t>(batch::size);

/// Gates are factors already, rates as they are used.
struct problem {
  index_t heads, positions, dim;
  buffer<float> query, key, value, out, gate, log_gate, rate, states, missed;

  problem(index_t h, index_t n, index_t d)
      : heads(h),
        positions(n),
        dim(d),
        query(random_buffer<float>(h * n * d, 1)),
        key(random_buffer<float>(h * n * d, 2)),
        value(random_buffer<float>(h * n * d, 3)),
        out(h * n * d),
        gate(random_buffer<float>(h * n * d, 4)),
        log_gate(random_buffer<float>(h * n, 5)),
        rate(random_buffer<float>(h * n, 6)),
        states(h * d * d),
        missed(d) {
    for (index_t i = 0; i < h * n * d; ++i) {
      gate.data()[i] = std::exp(-0.05f * std::abs(gate.data()[i]));
      key.data()[i] /= static_cast<float>(d);
    }
    for (index_t i = 0; i < h * n; ++i) {
      log_gate.data()[i] = -0.05f * std::abs(log_gate.data()[i]);
      rate.data()[i] = std::min(std::abs(rate.data()[i]), 1.f);
    }
  }
};

/// Gated linear attention. A gate a token is one for each feature too, all alike.
void gated(problem& p) {
  std::fill_n(p.states.data(), p.heads * p.dim * p.dim, 0.f);
  std::fill_n(p.out.data(), p.positions * p.heads * p.dim, 0.f);
  for (index_t t = 0; t < p.positions; ++t)
    for (index_t h = 0; h < p.heads; ++h) {
      index_t const at = (t * p.heads + h) * p.dim;
      float const* const value = p.value.data() + at;
      float* const out = p.out.data() + at;
      for (index_t d = 0; d < p.dim; ++d) {
        batch const k(p.key.data()[at + d]), q(p.query.data()[at + d]), g(p.gate.data()[at + d]);
        float* const row = p.states.data() + (h * p.dim + d) * p.dim;
        for (index_t e = 0; e < p.dim; e += lanes) {
          batch const now =
              xsimd::fma(batch::load_unaligned(row + e), g, k * batch::load_unaligned(value + e));
          xsimd::fma(now, q, batch::load_unaligned(out + e)).store_unaligned(out + e);
          now.store_unaligned(row + e);
        }
      }
    }
}

/// a . b; a function that is called, as ggml's is.
[[gnu::noinline]] float dot(index_t count, float const* a, float const* b) {
  std::array<batch, 4> sums;
  sums.fill(batch(0.f));
  for (index_t d = 0; d < count; d += 4 * lanes)
    for (index_t i = 0; i < 4; ++i) {
      batch& sum = sums[static_cast<std::size_t>(i)];
      sum = xsimd::fma(batch::load_unaligned(a + d + i * lanes),
                       batch::load_unaligned(b + d + i * lanes), sum);
    }
  std::array<float, batch::size> parts;
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store_unaligned(parts.data());
  for (std::size_t half = batch::size / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

/// The gated delta rule; the state has a row for each channel of the value.
void gated_delta(problem& p) {
  std::fill_n(p.states.data(), p.heads * p.dim * p.dim, 0.f);
  float* const missed = p.missed.data();
  for (index_t h = 0; h < p.heads; ++h) {
    float* const state = p.states.data() + h * p.dim * p.dim;
    for (index_t t = 0; t < p.positions; ++t) {
      index_t const token = t * p.heads + h, at = token * p.dim;
      float const *const key = p.key.data() + at, *const query = p.query.data() + at;
      batch const gate(std::exp(p.log_gate.data()[token]));
      for (index_t n = 0; n < p.dim * p.dim; n += lanes)
        (gate * batch::load_unaligned(state + n)).store_unaligned(state + n);
      for (index_t e = 0; e < p.dim; ++e)
        missed[e] =
            (p.value.data()[at + e] - dot(p.dim, state + e * p.dim, key)) * p.rate.data()[token];
      for (index_t e = 0; e < p.dim; ++e) {
        batch const factor(missed[e]);
        float* const row = state + e * p.dim;
        for (index_t d = 0; d < p.dim; d += lanes)
          xsimd::fma(batch::load_unaligned(key + d), factor, batch::load_unaligned(row + d))
              .store_unaligned(row + d);
      }
      for (index_t e = 0; e < p.dim; ++e)
        p.out.data()[at + e] = dot(p.dim, state + e * p.dim, query);
    }
  }
}

rows const all([] {
  struct kind {
    char const* name;
    void (*run)(problem&);
    double operations;  // for each number of the state and token
  };
  constexpr index_t heads = 8, positions = 4096;
  for (kind const what :
       {kind{"decay", gated, 5}, kind{"key_decay", gated, 5}, kind{"gated_delta", gated_delta, 7}})
    for (index_t dim : {64, 128})
      add(label("peer/ggml_recurrence/forward")("rule", what.name)("D", dim)("N", positions)(
              "H", heads)("threads", 1),
          [=] {
            auto const p = std::make_shared<problem>(heads, positions, dim);
            return measurement{
                .work = [=] { what.run(*p); },
                .operations = what.operations * static_cast<double>(heads * positions * dim * dim)};
          });
});

}  // namespace
}  // namespace heed_bench
