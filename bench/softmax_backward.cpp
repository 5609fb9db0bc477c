// softmax/backward: the gradients of queries, keys and values from the saved result. Operations:
// five products, 2 (3 D + 2 Dv) for each pair kept, that is 10 D where D = Dv: the scores once
// more, the weights' gradient, and one product for each gradient.
#include "operands.hpp"

namespace heed_bench {
namespace {

struct problem {
  operands<float> saved;
  buffer<float> lse;
  operands<float> gradients;

  explicit problem(shape const& of) : saved(of), lse(of.heads * of.queries), gradients(of) {}

  heed::tensor_view<float, 3> lse_view(shape const& of) const {
    return {lse.data(), {1, of.heads, of.queries}};
  }
};

template <class Pattern>
std::function<void()> backward(shape const& of, int threads, Pattern pattern) {
  auto const on = std::make_shared<problem>(of);
  auto const upstream = std::make_shared<buffer<float>>(
      random_buffer<float>(of.queries * of.heads * of.value_width(), 5));
  auto const pool = std::make_shared<workers>(threads);
  operands<float> const& x = on->saved;
  heed::attention(x.query(), x.key(), x.value(), x.out(), pattern, heed::lse_into{on->lse_view(of)},
                  heed::on{*pool});
  return [=] {
    operands<float> const& saved = on->saved;
    operands<float> const& gradients = on->gradients;
    heed::attention_backward(
        saved.query(), saved.key(), saved.value(), saved.out(), on->lse_view(of),
        of.view(upstream->data(), of.queries, of.heads, of.value_width()), gradients.query(),
        gradients.key(), gradients.value(), pattern, heed::on{*pool});
  };
}

std::function<void()> backward(shape const& of, bool causal, int threads) {
  return causal ? backward(of, threads, heed::causal{}) : backward(of, threads, heed::dense{});
}

/// With several threads, relative to one.
void row(shape const& of, bool causal, int threads = 1) {
  add(row_name("backward", "f32", of, causal, "", threads), [=] {
    measurement what{
        .work = backward(of, causal, threads),
        .operations = 2 * kept_pairs(of.queries, causal) *
                      static_cast<double>(of.heads * (3 * of.dim + 2 * of.value_width())),
        .threads = threads};
    if (threads > 1) what.reference = backward(of, causal, 1);
    return what;
  });
}

rows const all([] {
  for (index_t dim : {64, 128})
    for (bool causal : {false, true}) row({.dim = dim, .queries = 2048}, causal);
  for (int threads : thread_counts())
    for (bool causal : {false, true})
      for (index_t heads : {8, 1})
        row({.dim = 64, .queries = 2048, .heads = heads}, causal, threads);
});

}  // namespace
}  // namespace heed_bench
