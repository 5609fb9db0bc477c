#include "support/identity.hpp"

#include <heed/mechanism/block_attention.hpp>
#include <heed/mechanism/demonstration_blocks.hpp>
#include <heed/mechanism/fifo_memory.hpp>
#include <heed/mechanism/meta_tokens.hpp>
#include <heed/view/gather.hpp>

#include <memory>
#include <numeric>

// What is put together from caches and memories, against one call with the pattern.

using heed::index_t;
using support::blank;
using support::for_each_seed;
using support::seed_t;

namespace {

double largest_difference(heed::tensor_view<float const, 4> a,
                          heed::tensor_view<float const, 4> b) {
  return support::difference(support::read<float>(a), support::read<float>(b));
}

template <class T>
heed::tensor_view<T const, 4> view_of(reference::tensor<T, 4> const& x) {
  return {x.values.data(), x.extents};
}

std::vector<index_t> counting(index_t first, index_t count) {
  std::vector<index_t> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

/// A copy with row i rotated by by[i].
support::guarded<float, 4> rotated(heed::tensor_view<float const, 4> rows,
                                   std::vector<index_t> const& by) {
  auto turned = blank<float, 4>(rows.extents());
  heed::rotate({}, rows, turned.view(), by);
  return turned;
}

}  // namespace

TEST_CASE("a question over blocks that were cached alone", "[mechanism][quick]") {
  for_each_seed("a question over cached blocks", 20, [](seed_t seed) {
    support::random draw(seed);
    std::vector<index_t> starts{0};
    for (index_t b = draw.between(0, 4); b >= 0; --b)
      starts.push_back(starts.back() + draw.between(1, 15));
    index_t const question = draw.between(1, 9), N = starts.back() + question, H = 2, D = 8;
    support::operands given(N, N, H, 1, D);
    // One call: everything rotated for its place in the prompt.
    auto const queries = rotated(given.query.view(), counting(0, N)),
               keys = rotated(given.key.view(), counting(0, N));
    auto const whole =
        support::attend(queries.view(), keys.view(), given.value.view(),
                        heed::block_attention(heed::tensor_view<index_t const, 2>(
                            starts.data(), {1, static_cast<index_t>(starts.size())})));

    auto key_memory = blank<float, 4>({1, N, 1, D}), value_memory = blank<float, 4>({1, N, 1, D});
    heed::kv_cache cache(key_memory.view(), value_memory.view());
    double error = 0;
    for (std::size_t b = 0; b + 1 < starts.size(); ++b) {
      index_t const first = starts[b], count = starts[b + 1] - first;
      auto const alone_keys = rotated(given.key.view().slice(1, first, count), counting(0, count));
      auto const alone_queries =
          rotated(given.query.view().slice(1, first, count), counting(0, count));
      auto const values = given.value.view().slice(1, first, count);
      auto const alone =
          support::attend(alone_queries.view(), alone_keys.view(), values, heed::causal{});
      error = std::max(
          error, largest_difference(view_of(alone.out), view_of(whole.out).slice(1, first, count)));
      cache.append(alone_keys.view(), values, heed::rotary{}, cache.length());
    }
    index_t const first = starts.back();
    cache.append(keys.view().slice(1, first, question),
                 given.value.view().slice(1, first, question));
    auto const asked = support::attend(queries.view().slice(1, first, question), cache.keys(),
                                       cache.values(), heed::causal{});
    error = std::max(error, largest_difference(view_of(asked.out),
                                               view_of(whole.out).slice(1, first, question)));
    return error < 2 * support::rounding ? "" : "off by " + std::to_string(error) + "\n";
  });
}

TEST_CASE("a query over chosen demonstrations", "[mechanism][quick]") {
  index_t const N = 40, T = 5, H = 2, D = 8;
  support::operands given(T, N + T, H, 1, D);
  std::vector<index_t> const starts{0, 7, 19, 30};
  std::vector<float> const scores{0, 1, 3, 2};
  auto const chosen = heed::choose_demonstrations(std::span<float const>(scores), 2);
  REQUIRE(chosen == std::vector<index_t>{0, 2, 3});
  auto key_memory = blank<float, 4>({1, N, 1, D}), value_memory = blank<float, 4>({1, N, 1, D});
  heed::kv_cache cache(key_memory.view(), value_memory.view());
  auto const demonstrations = [&](auto& tensor) { return tensor.view().slice(1, 0, N); };
  heed::append_demonstrations(cache, demonstrations(given.key), demonstrations(given.value), starts,
                              chosen, {});
  index_t const length = cache.length();
  CHECK(length == 28);
  auto const positions = counting(length, T);
  cache.append(given.key.view().slice(1, N, T), given.value.view().slice(1, N, T), heed::rotary{},
               positions);
  auto const answer = support::attend(rotated(given.query.view(), positions).view(), cache.keys(),
                                      cache.values(), heed::causal{});

  // The same from the rows that are left, rotated for where they come to lie.
  std::vector<index_t> left = counting(0, 7);
  for (index_t i = 19; i < N + T; ++i) left.push_back(i);
  auto keys = blank<float, 4>({1, length + T, 1, D}),
       values = blank<float, 4>({1, length + T, 1, D});
  heed::gather_rows(given.key.view(), left, keys.view());
  heed::gather_rows(given.value.view(), left, values.view());
  auto const expected = support::attend(rotated(given.query.view(), positions).view(),
                                        rotated(keys.view(), counting(0, length + T)).view(),
                                        values.view(), heed::causal{});
  CHECK(support::same(answer, expected));
}

TEST_CASE("chunks one after the other are chunks at once", "[mechanism][quick]") {
  // Keys and values are the rows themselves, as if the layer's maps were the identity, rotated for their positions.
  for_each_seed("running chunks", 20, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 70), chunk = draw.between(1, 20), most = draw.between(0, 50),
                  D = 8;
    bool const open_gates = draw.one_in(3);
    auto rows = support::normal(draw, {1, N, 1, D}), query = support::normal(draw, {1, N, 1, D});
    auto gates = blank<float, 4>({1, N, 1, 1}), gated = blank<float, 4>({1, N, 1, D});
    gates.fill([&](auto const&) { return open_gates ? 1.0f : static_cast<float>(draw.uniform()); });
    heed::gate_rows(rows.view(), gates.view(), gated.view());
    auto const queries = rotated(query.view(), counting(0, N));
    auto all = blank<float, 4>({1, 2 * N, 1, D}), all_values = blank<float, 4>({1, 2 * N, 1, D});
    heed::copy_elements(gated.view(), all_values.view().slice(1, 0, N));
    heed::copy_elements(rows.view(), all_values.view().slice(1, N, N));
    for (index_t half : {index_t{0}, N})
      heed::rotate({}, all_values.view().slice(1, half, N), all.view().slice(1, half, N),
                   counting(0, N));
    auto const whole = support::attend(queries.view(), all.view(), all_values.view(),
                                       heed::chunks_with_memory{chunk, most});

    auto memory = blank<float, 4>({1, most, 1, D});
    heed::fifo_memory fifo(memory.view());
    double error = 0;
    for (index_t first = 0; first < N; first += chunk) {
      index_t const count = std::min(chunk, N - first), there = fifo.rows().extent(1);
      auto values = blank<float, 4>({1, there + count, 1, D}),
           keys = blank<float, 4>({1, there + count, 1, D});
      heed::copy_elements(fifo.rows(), values.view().slice(1, 0, there));
      heed::copy_elements(rows.view().slice(1, first, count), values.view().slice(1, there, count));
      std::vector<index_t> positions;
      for (index_t slot = 0; slot < there; ++slot) positions.push_back(fifo.slots().position(slot));
      for (index_t i = 0; i < count; ++i) positions.push_back(first + i);
      heed::rotate({}, values.view(), keys.view(), positions);
      auto const part = support::attend(queries.view().slice(1, first, count), keys.view(),
                                        values.view(), heed::causal{});
      error = std::max(
          error, largest_difference(view_of(part.out), view_of(whole.out).slice(1, first, count)));
      fifo.append(rows.view().slice(1, first, count), gates.view().slice(1, first, count));
    }
    std::string complaint =
        error < support::rounding ? "" : "off by " + std::to_string(error) + "\n";
    if (open_gates && most >= N) {
      auto const plain =
          support::attend(queries.view(), all.view().slice(1, N, N), rows.view(), heed::causal{});
      if (!(support::difference(plain.out, whole.out) < support::rounding))
        complaint += "with open gates and all of the memory it is not causal attention\n";
    }
    return complaint;
  });
}

TEST_CASE("meta tokens are attention of the gathered ones", "[mechanism][quick]") {
  index_t const N = 50, H = 2, D = 8;
  support::operands given(N, N, H, H, D);
  auto const meta = std::make_unique<bool[]>(static_cast<std::size_t>(N));
  std::vector<index_t> rows, back(static_cast<std::size_t>(N), -1);
  for (index_t i = 0; i < N; ++i) {
    meta[static_cast<std::size_t>(i)] = given.draw.one_in(4);
    if (!meta[static_cast<std::size_t>(i)]) continue;
    back[static_cast<std::size_t>(i)] = static_cast<index_t>(rows.size());
    rows.push_back(i);
  }
  auto const layer =
      given(heed::meta_tokens(heed::tensor_view<bool const, 3>(meta.get(), {1, 1, N})));
  auto const gathered = [&](auto const& tensor) {
    auto some = blank<float, 4>({1, static_cast<index_t>(rows.size()), H, D});
    heed::gather_rows(tensor.view(), rows, some.view());
    return some;
  };
  auto const among = support::attend(gathered(given.query).view(), gathered(given.key).view(),
                                     gathered(given.value).view(), heed::causal{});
  auto scattered = blank<float, 4>({1, N, H, D});
  heed::gather_rows(view_of(among.out), back, scattered.view());
  CHECK(largest_difference(scattered.view(), view_of(layer.out)) < support::rounding);
}
