// softmax/decode: one query a head against a long cache, which is read from memory: several caches
// take turns where one would stay in the processor. The element is that of the cache. Of the two
// floors, arithmetic and memory, the one whose share is larger binds.
#include "ceiling.hpp"
#include "operands.hpp"

#include <vector>

namespace heed_bench {
namespace {

template <class T>
struct decoder {
  std::vector<operands<float, T>> caches;
  std::size_t turn = 0;
  workers pool;

  decoder(shape const& of, double bytes, int threads) : pool(threads) {
    auto const count = static_cast<std::size_t>(static_cast<double>(beyond_cache()) / bytes) + 1;
    for (std::size_t i = 0; i < count; ++i) caches.emplace_back(of);
  }

  void step() {
    auto const& now = caches[turn++ % caches.size()];
    heed::attention(now.query(), heed::kv_cache<T>(now.key(), now.value(), now.key().extent(1)),
                    now.out(), heed::on{pool});
  }
};

template <class T>
void row(shape const& of, int threads = 1) {
  std::string name = label("softmax/decode/" + std::string(element_name<T>))("D", of.dim)(
      "M", of.keys)("H", of.heads);
  if (of.key_head_count() != of.heads) name = label(name)("KV", of.key_heads);
  if (of.bnhd) name = label(name)("layout", "bnhd");
  add(label(name)("threads", threads), [=] {
    double const bytes =
        static_cast<double>(of.keys * of.key_head_count() * (of.dim + of.value_width())) *
        sizeof(T);
    auto const on = std::make_shared<decoder<T>>(of, bytes, threads);
    return measurement{
        .work = [on] { on->step(); },
        .operations = 2 * static_cast<double>(of.keys * of.heads * (of.dim + of.value_width())),
        .bytes = bytes,
        .threads = threads};
  });
}

template <class T>
void single_query(index_t dim) {
  for (index_t keys : {8192, 65536}) row<T>({.dim = dim, .queries = 1, .keys = keys});
}

rows const all([] {
  for (index_t dim : {64, 128}) {
    single_query<float>(dim);
    single_query<Eigen::half>(dim);
    single_query<Eigen::bfloat16>(dim);
  }
  for (index_t group : {4, 8})
    row<Eigen::half>({.dim = 128, .queries = 1, .keys = 65536, .heads = 8 * group, .key_heads = 8});
  row<float>({.dim = 128, .queries = 1, .keys = 65536, .bnhd = true});
  row<Eigen::half>({.dim = 128, .queries = 1, .keys = 65536, .bnhd = true});
  row<Eigen::half>(
      {.dim = 128, .queries = 1, .keys = 65536, .heads = 32, .key_heads = 8, .bnhd = true});
  for (int threads : thread_counts()) {
    row<float>({.dim = 128, .queries = 1, .keys = 65536}, threads);
    row<Eigen::half>({.dim = 128, .queries = 1, .keys = 65536}, threads);
    row<Eigen::half>({.dim = 128, .queries = 1, .keys = 65536, .heads = 32, .key_heads = 8},
                     threads);
  }
});

}  // namespace
}  // namespace heed_bench
