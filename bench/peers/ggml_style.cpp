// peer/ggml_style: attention in one pass over the keys for each query row, the way of ggml's
// flash_attn_ext on a CPU, written anew here: a dot product gives a key's score, the running
// maximum and sum follow it at once, and the value row is added to the result. Nothing is shared
// between query rows or between the heads of a group. Float, or float16 caches whose rows are
// widened as they are read; it sums in float.
#include "../ceiling.hpp"
#include "peer.hpp"

#include <xsimd/xsimd.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace heed_bench {
namespace {

using batch = xsimd::batch<float>;
constexpr index_t lanes = static_cast<index_t>(batch::size);
constexpr index_t most_dim = 256;

/// As many numbers as a register holds floats, widened.
template <class T>
batch load(T const* from) {
  if constexpr (std::is_same_v<T, float>) {
    return batch::load_unaligned(from);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
#else
    std::array<float, batch::size> numbers;
    for (float& number : numbers) number = static_cast<float>(*from++);
    return batch::load_unaligned(numbers.data());
#endif
  }
}

/// The sum of a[d] b[d]; dim is a multiple of the lanes.
template <class T>
float dot(float const* a, T const* b, index_t dim) {
  std::array<batch, 4> sums;
  sums.fill(batch(0.f));
  index_t d = 0;
  for (; d + 4 * lanes <= dim; d += 4 * lanes)
    for (index_t i = 0; i < 4; ++i) {
      batch& sum = sums[static_cast<std::size_t>(i)];
      sum = xsimd::fma(load(a + d + i * lanes), load(b + d + i * lanes), sum);
    }
  for (; d < dim; d += lanes) sums[0] = xsimd::fma(load(a + d), load(b + d), sums[0]);
  std::array<float, batch::size> parts;
  ((sums[0] + sums[1]) + (sums[2] + sums[3])).store_unaligned(parts.data());
  float total = 0;
  for (float part : parts) total += part;
  return total;
}

/// result = result * factor + weight * value.
template <class T>
void accumulate(float* result, float factor, float weight, T const* value, index_t dim) {
  batch const f(factor), w(weight);
  for (index_t d = 0; d < dim; d += lanes)
    xsimd::fma(w, load(value + d), load(result + d) * f).store_unaligned(result + d);
}

template <class T>
void attend_row(float const* query, T const* key, T const* value, float* out, index_t keys,
                index_t dim) {
  alignas(64) std::array<float, most_dim> result{};
  float const scale = 1 / std::sqrt(static_cast<float>(dim));
  float most = -std::numeric_limits<float>::infinity(), sum = 0;
  for (index_t j = 0; j < keys; ++j) {
    float const score = scale * dot(query, key + j * dim, dim);
    float factor = 1, weight = 1;
    if (score > most) {
      factor = std::exp(most - score);
      most = score;
    } else {
      weight = std::exp(score - most);
    }
    sum = sum * factor + weight;
    accumulate(result.data(), factor, weight, value + j * dim, dim);
  }
  for (index_t d = 0; d < dim; ++d) out[d] = result[static_cast<std::size_t>(d)] / sum;
}

void attend(peer_problem const& p) {
  for (index_t head = 0; head < p.heads; ++head) {
    index_t const offset = head * p.positions * p.dim;
    for (index_t i = 0; i < p.positions; ++i)
      attend_row(p.query + offset + i * p.dim, p.key + offset, p.value + offset,
                 p.out + offset + i * p.dim, p.causal ? i + 1 : p.positions, p.dim);
  }
}

// --- Decoding
// -----------------------------------------------------------------------------------------------

template <class T>
struct cache {
  buffer<T> key, value;
};

template <class T>
void decode(index_t dim, index_t keys, index_t heads, index_t key_heads) {
  std::string name = label("peer/ggml_style/decode/" + std::string(element_name<T>))("D", dim)(
      "M", keys)("H", heads);
  if (key_heads != heads) name = label(name)("KV", key_heads);
  add(label(name)("threads", 1), [=] {
    index_t const size = key_heads * keys * dim;
    double const bytes = 2.0 * static_cast<double>(size) * sizeof(T);
    auto const caches = std::make_shared<std::vector<cache<T>>>();
    for (double total = 0; total <= static_cast<double>(beyond_cache()); total += bytes)
      caches->push_back({random_buffer<T>(size, 2), random_buffer<T>(size, 3)});
    auto const query = std::make_shared<buffer<float>>(random_buffer<float>(heads * dim, 1));
    auto const out = std::make_shared<buffer<float>>(heads * dim);
    auto const step = [=, turn = std::size_t{0}]() mutable {
      auto const& now = (*caches)[turn++ % caches->size()];
      for (index_t head = 0; head < heads; ++head) {
        index_t const offset = head * key_heads / heads * keys * dim;
        attend_row(query->data() + head * dim, now.key.data() + offset, now.value.data() + offset,
                   out->data() + head * dim, keys, dim);
      }
    };
    return measurement{
        .work = step, .operations = 4 * static_cast<double>(heads * keys * dim), .bytes = bytes};
  });
}

rows const all([] {
  add_forward_peer("ggml_style", attend, 5e9);
  for (index_t dim : {64, 128})
    for (index_t keys : {8192, 65536}) {
      decode<float>(dim, keys, 8, 8);
      decode<Eigen::half>(dim, keys, 8, 8);
    }
  for (index_t group : {4, 8}) decode<Eigen::half>(128, 65536, 8 * group, 8);
});

}  // namespace
}  // namespace heed_bench
