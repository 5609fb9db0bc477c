#pragma once

#include "../bench.hpp"

#include <array>

namespace heed_bench {

/// An attention problem as a peer gets it: float, batch 1, [head, position, dim], contiguous. The
/// scale is 1 / sqrt(dim).
struct peer_problem {
  float const* query;
  float const* key;
  float const* value;
  float* out;
  index_t heads;
  index_t positions;
  index_t dim;
  bool causal;
};

/// Adds a peer's rows on one thread, peer/NAME/forward/f32/…, of the sizes that the library is
/// timed with. Those of more operations than `patience` for each head only on request.
inline void add_forward_peer(std::string const& name, void (*attend)(peer_problem const&),
                             double patience = 2e10) {
  constexpr index_t heads = 8;
  for (index_t dim : {64, 128})
    for (bool causal : {false, true})
      for (index_t n : {512, 2048, 8192})
        add(
            label("peer/" + name + "/forward/f32")("D", dim)("N", n)("H", heads)(
                "causal", causal ? 1 : 0)("threads", 1),
            [=] {
              auto const input = std::make_shared<std::array<buffer<float>, 3>>();
              for (std::size_t i = 0; i < 3; ++i)
                (*input)[i] = random_buffer<float>(heads * n * dim, i + 1);
              auto const out = std::make_shared<buffer<float>>(heads * n * dim);
              return measurement{
                  .work =
                      [=] {
                        attend({(*input)[0].data(), (*input)[1].data(), (*input)[2].data(),
                                out->data(), heads, n, dim, causal});
                      },
                  .operations = 4 * kept_pairs(n, causal) * static_cast<double>(heads * dim)};
            },
            4 * kept_pairs(n, false) * static_cast<double>(dim) > patience);
}

}  // namespace heed_bench
