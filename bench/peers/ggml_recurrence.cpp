// peer/ggml_recurrence: recurrences token by token, the way of ggml's gated linear attention and gated delta rule on a CPU,
// written anew here: for each token the state of a head is faded, written to and read in one pass, a row at a time.
#include "../bench.hpp"

#include <xsimd/xsimd.hpp>

#include <cmath>

namespace heed_bench {
namespace {

using batch = xsimd::batch<float>;
constexpr index_t lanes = static_cast<index_t>(batch::size);

/// Heads and positions of some rows, [head, position, dim] contiguous; gates and rates are factors already.
struct problem {
  index_t heads, positions, dim;
  buffer<float> query, key, value, out, gate, rate, state, missed;

  problem(index_t h, index_t n, index_t d)
      : heads(h),
        positions(n),
        dim(d),
        query(random_buffer<float>(h * n * d, 1)),
        key(random_buffer<float>(h * n * d, 2)),
        value(random_buffer<float>(h * n * d, 3)),
        out(h * n * d),
        gate(random_buffer<float>(h * n * d, 4)),
        rate(random_buffer<float>(h * n, 5)),
        state(d * d),
        missed(d) {
    for (index_t i = 0; i < h * n * d; ++i) {
      gate.data()[i] = std::exp(-0.05f * std::abs(gate.data()[i]));
      key.data()[i] /= static_cast<float>(d);
    }
  }
};

/// One token: `gates` has a factor for each feature.
void update(problem& p, float const* query, float const* key, float const* value,
            float const* gates, float* out) {
  std::fill_n(out, p.dim, 0.f);
  for (index_t d = 0; d < p.dim; ++d) {
    batch const k(key[d]), q(query[d]), g(gates[d]);
    float* const row = p.state.data() + d * p.dim;
    for (index_t e = 0; e < p.dim; e += lanes) {
      batch const now =
          xsimd::fma(batch::load_unaligned(row + e), g, k * batch::load_unaligned(value + e));
      xsimd::fma(now, q, batch::load_unaligned(out + e)).store_unaligned(out + e);
      now.store_unaligned(row + e);
    }
  }
}

/// What the state does not say of the key yet, times the rate.
void miss(problem& p, float const* key, float const* value, float gate, float rate) {
  float* const missed = p.missed.data();
  std::fill_n(missed, p.dim, 0.f);
  for (index_t d = 0; d < p.dim; ++d) {
    batch const k(key[d]);
    for (index_t e = 0; e < p.dim; e += lanes)
      xsimd::fma(k, batch::load_unaligned(p.state.data() + d * p.dim + e),
                 batch::load_unaligned(missed + e))
          .store_unaligned(missed + e);
  }
  for (index_t e = 0; e < p.dim; ++e) missed[e] = rate * (value[e] - gate * missed[e]);
}

void run(problem& p, bool by_feature, bool erases) {
  std::array<float, 256> same;
  for (index_t h = 0; h < p.heads; ++h) {
    std::fill_n(p.state.data(), p.dim * p.dim, 0.f);
    for (index_t t = 0; t < p.positions; ++t) {
      index_t const row = (h * p.positions + t) * p.dim;
      float const* gates = p.gate.data() + row;
      if (!by_feature) {
        same.fill(gates[0]);
        gates = same.data();
      }
      float const* value = p.value.data() + row;
      if (erases) {
        miss(p, p.key.data() + row, value, gates[0],
             std::min(std::abs(p.rate.data()[h * p.positions + t]), 1.f));
        value = p.missed.data();
      }
      update(p, p.query.data() + row, p.key.data() + row, value, gates, p.out.data() + row);
    }
  }
}

rows const all([] {
  struct kind {
    char const* name;
    bool by_feature, erases;
  };
  constexpr index_t heads = 8, positions = 4096;
  for (kind const what : {kind{"decay", false, false}, kind{"key_decay", true, false},
                          kind{"gated_delta", false, true}})
    for (index_t dim : {64, 128})
      add(label("peer/ggml_recurrence/forward")("rule", what.name)("D", dim)("N", positions)(
              "H", heads)("threads", 1),
          [=] {
            auto const p = std::make_shared<problem>(heads, positions, dim);
            return measurement{.work = [=] { run(*p, what.by_feature, what.erases); },
                               .operations = (what.erases ? 7. : 5.) *
                                             static_cast<double>(heads * positions * dim * dim)};
          });
});

}  // namespace
}  // namespace heed_bench
