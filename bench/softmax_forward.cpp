// softmax/forward: whole sequences. The element is that of keys and values; queries and results are
// float, or double with double keys. Operations: 2 (D + Dv) for each pair kept.
#include "operands.hpp"

#include <cmath>

namespace heed_bench {
namespace {

template <class T, class KV, class... Ingredients>
std::function<void()> forward(std::shared_ptr<operands<T, KV>> on, int threads,
                              Ingredients... ingredients) {
  return [on, pool = std::make_shared<workers>(threads), ingredients...] {
    heed::attention(on->query(), on->key(), on->value(), on->out(), ingredients...,
                    heed::on{*pool});
  };
}

template <class T, class KV>
std::function<void()> plain_forward(shape const& of, bool causal, int threads) {
  auto const on = std::make_shared<operands<T, KV>>(of);
  return causal ? forward(on, threads, heed::causal{}) : forward(on, threads);
}

double operations(shape const& of, bool causal, index_t window = 0) {
  return 2 * kept_pairs(of.queries, causal, window) *
         static_cast<double>(of.heads * (of.dim + of.value_width()));
}

/// A row is relative to one thread, to float, or to the other layout, where it differs from these.
template <class KV>
void plain(shape const& of, bool causal, int threads = 1) {
  using T = heed::compute_type<KV>;
  add(row_name("forward", element_name<KV>, of, causal, "", threads), [=] {
    measurement row{.work = plain_forward<T, KV>(of, causal, threads),
                    .operations = operations(of, causal),
                    .threads = threads,
                    .in_double = std::is_same_v<T, double>};
    if (threads > 1)
      row.reference = plain_forward<T, KV>(of, causal, 1);
    else if (!std::is_same_v<T, KV>)
      row.reference = plain_forward<T, T>(of, causal, 1);
    else if (of.bnhd) {
      shape other = of;
      other.bnhd = false;
      row.reference = plain_forward<T, T>(other, causal, 1);
    }
    return row;
  });
}

/// A causal row with something on top, relative to the same row without. `make` gives the
/// ingredient, whose tensors it takes from the numbers it is given, `count` of them.
template <class Make>
void on_top(std::string_view name, shape const& of, index_t count, Make make) {
  add(row_name("forward", "f32", of, true, name, 1), [=] {
    auto const on = std::make_shared<operands<float>>(of);
    auto const numbers = std::make_shared<buffer<float>>(random_buffer<float>(count, 4));
    auto const work = forward(on, 1, heed::causal{}, make(numbers->data()));
    return measurement{.work = [work, numbers] { work(); },
                       .operations = operations(of, true),
                       .reference = forward(on, 1, heed::causal{})};
  });
}

void window(shape const& of, index_t width) {
  add(row_name("forward", "f32", of, true, "window:" + std::to_string(width), 1), [=] {
    auto const on = std::make_shared<operands<float>>(of);
    return measurement{.work = forward(on, 1, heed::sliding_window{.left = width - 1, .right = 0}),
                       .operations = operations(of, true, width)};
  });
}

rows const all([] {
  for (index_t dim : {64, 128})
    for (bool causal : {false, true})
      for (index_t n : {512, 2048, 8192}) plain<float>({.dim = dim, .queries = n}, causal);

  for (bool causal : {false, true}) {
    for (index_t dim : {32, 80, 96, 256}) plain<float>({.dim = dim, .queries = 2048}, causal);
    plain<float>({.dim = 64, .queries = 2048, .value_dim = 128}, causal);
    plain<float>({.dim = 128, .queries = 2048, .value_dim = 64}, causal);
    for (index_t dim : {64, 128}) plain<float>({.dim = dim, .queries = 2048, .bnhd = true}, causal);
  }

  for (bool causal : {false, true}) {
    plain<double>({.dim = 64, .queries = 2048}, causal);
    for (index_t dim : {64, 128}) {
      plain<Eigen::half>({.dim = dim, .queries = 2048}, causal);
      plain<Eigen::bfloat16>({.dim = dim, .queries = 2048}, causal);
    }
  }

  for (index_t dim : {64, 128}) {
    shape const of{.dim = dim, .queries = 2048};
    index_t const heads = of.heads, n = of.queries;
    on_top("score:softcap", of, 0, [](float*) { return heed::softcap{30}; });
    on_top("score:alibi", of, heads, [=](float* numbers) {
      for (index_t h = 0; h < heads; ++h) numbers[h] = std::ldexp(1.f, static_cast<int>(-1 - h));
      return heed::alibi{heed::tensor_view<float const, 1>(numbers, {heads})};
    });
    on_top("score:bias", of, heads * n * n, [=](float* numbers) {
      return heed::bias{heed::tensor_view<float const, 4>(numbers, {1, heads, n, n})};
    });
    on_top("score:bias/bias_heads:1", of, n * n, [=](float* numbers) {
      return heed::bias{heed::tensor_view<float const, 4>(numbers, {1, 1, n, n})};
    });
    on_top("sinks:1", of, heads, [=](float* numbers) {
      return heed::softmax_with_sinks{heed::tensor_view<float const, 2>(numbers, {heads, 1})};
    });
    window({.dim = dim, .queries = 8192}, 256);
  }

  for (int threads : thread_counts())
    for (bool causal : {false, true}) {
      plain<float>({.dim = 64, .queries = 2048}, causal, threads);
      plain<float>({.dim = 64, .queries = 2048, .heads = 1}, causal, threads);
      plain<float>({.dim = 64, .queries = 8192}, causal, threads);
    }
});

}  // namespace
}  // namespace heed_bench
