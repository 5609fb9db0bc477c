// patterns: windows, neighborhoods, blocks, forward and backward. Operations: those of the pairs kept, 2 (D + Dv) each
// forward, 2 (3 D + 2 Dv) backward. `bound` is the share of kept pairs among those that a panel of queries cannot help
// computing. Backward rows are relative to forward.
#include "operands.hpp"

#include <heed/neighborhood.hpp>
#include <heed/pattern/any_pattern.hpp>
#include <heed/sliding_window.hpp>
#include <heed/sparse.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>

namespace heed_bench {
namespace {

/// A pattern, the order of the tokens it needs, and what it keeps. What it points to lives as long as it does.
struct subject {
  heed::any_pattern pattern;
  heed::any_arrangement order = {};
  double pairs = 0;
  double bound = 0;
  std::shared_ptr<void const> memory = nullptr;
};

struct problem {
  operands<float> saved, gradients;
  buffer<float> lse;
  subject what;
  workers pool;
  shape of;

  problem(shape const& s, subject w, int threads)
      : saved(s),
        gradients(s),
        lse(s.heads * s.queries),
        what(std::move(w)),
        pool(threads),
        of(s) {}

  heed::tensor_view<float, 3> lse_view() const { return {lse.data(), {1, of.heads, of.queries}}; }

  template <class Call>
  void with_order(Call call) {
    if (what.order)
      call(what.pattern, heed::on{pool}, what.order);
    else
      call(what.pattern, heed::on{pool});
  }
  void forward() {
    with_order([&](auto const&... ingredients) {
      heed::attention(saved.query(), saved.key(), saved.value(), saved.out(),
                      heed::lse_into{lse_view()}, ingredients...);
    });
  }
  void backward() {
    with_order([&](auto const&... ingredients) {
      heed::attention_backward(saved.query(), saved.key(), saved.value(), saved.out(), lse_view(),
                               saved.query(), gradients.query(), gradients.key(), gradients.value(),
                               ingredients...);
    });
  }
};

template <class Make>
void row(std::string const& name, shape const& of, Make make, int threads = 1) {
  auto const full_name = [&](char const* family) {
    return label(family + name + "/f32")("D", of.dim)("N", of.queries)("H", of.heads)("threads",
                                                                                      threads);
  };
  auto const operations = [of](subject const& what, index_t widths) {
    return 2 * what.pairs * static_cast<double>(of.heads * widths);
  };
  add(full_name("patterns/"), [=] {
    auto const on = std::make_shared<problem>(of, make(), threads);
    measurement result{.work = [on] { on->forward(); },
                       .operations = operations(on->what, of.dim + of.value_width()),
                       .threads = threads,
                       .bound = on->what.bound};
    if (threads > 1) {
      auto const alone = std::make_shared<problem>(of, make(), 1);
      result.reference = [alone] { alone->forward(); };
    }
    return result;
  });
  if (threads > 1) return;
  add(full_name("patterns_backward/"), [=] {
    auto const on = std::make_shared<problem>(of, make(), threads);
    on->forward();
    return measurement{.work = [on] { on->backward(); },
                       .operations = operations(on->what, 3 * of.dim + 2 * of.value_width()),
                       .reference = [on] { on->forward(); },
                       .bound = on->what.bound};
  });
}

template <class Pattern>
subject plain(Pattern const& pattern, index_t tokens) {
  return {.pattern = pattern, .pairs = static_cast<double>(pattern.pairs(tokens, tokens))};
}

template <std::size_t d>
auto around(heed::neighborhood<d> const& parameters) {
  return [parameters] {
    auto const order =
        std::make_shared<heed::neighborhood_order<d>>(parameters, heed::attend::panel_lanes<float>);
    return subject{order->pattern(), heed::any_arrangement(*order),
                   static_cast<double>(parameters.pairs()), order->tile().kept_share, order};
  };
}

/// Every `step`-th of the tokens before a query, `taps` of them, its own included.
subject dilated(index_t tokens, index_t taps, index_t step) {
  auto const order = std::make_shared<heed::residues>(
      heed::residues{.step = step, .query_count = tokens, .key_count = tokens});
  heed::dilated_window const whole{.left = (taps - 1) * step, .right = 0, .step = step};
  return {order->pattern(heed::sliding_window{.left = taps - 1, .right = 0}),
          heed::any_arrangement(*order), static_cast<double>(whole.pairs(tokens, tokens)), 0,
          order};
}

/// The diagonal and random blocks, a tenth of all.
subject random_blocks(index_t tokens, index_t side) {
  struct table {
    std::vector<index_t> offsets, columns;
  };
  auto const blocks = std::make_shared<table>();
  index_t const count = tokens / side;
  auto const wanted = static_cast<std::size_t>((count * count + 5) / 10);
  std::vector<index_t> others;
  for (index_t i = 0; i < count * count; ++i)
    if (i / count != i % count) others.push_back(i);
  std::uint64_t state = 1;
  for (std::size_t i = 0; i + static_cast<std::size_t>(count) < wanted; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(others[i], others[i + (state >> 33) % (others.size() - i)]);
  }
  others.resize(wanted - static_cast<std::size_t>(count));
  for (index_t i = 0; i < count; ++i) others.push_back(i * count + i);
  std::sort(others.begin(), others.end());
  for (index_t row = 0; row <= count; ++row)
    blocks->offsets.push_back(std::lower_bound(others.begin(), others.end(), row * count) -
                              others.begin());
  for (index_t block : others) blocks->columns.push_back(block % count);
  heed::block_rows const pattern{.offsets = {blocks->offsets.data(), {1, 1, count + 1}},
                                 .columns = blocks->columns,
                                 .column_count = count,
                                 .rows = {side},
                                 .keys = {side}};
  return {.pattern = pattern,
          .pairs = static_cast<double>(wanted) * static_cast<double>(side * side),
          .memory = blocks};
}

/// What is done once, before the calls of a pattern: `relative` is its time as a share of one call's.
template <class Build>
void build_row(std::string const& name, shape const& of, std::function<subject()> make,
               Build build) {
  add(label("patterns_built/" + name)("N", of.queries), [=] {
    auto const on = std::make_shared<problem>(of, make(), 1);
    return measurement{.work = [on] { on->forward(); },
                       .operations = 4 * on->what.pairs * static_cast<double>(of.heads * of.dim),
                       .reference = [=] { benchmark::DoNotOptimize(build()); }};
  });
}

rows const all([] {
  std::vector<int> threads{1};
  if (auto const more = thread_counts(); !more.empty()) threads.push_back(more.back());
  for (int t : threads) {
    for (index_t width : {512, 128})
      row(
          "window/" + std::to_string(width), {.dim = 64, .queries = 16384},
          [=] {
            return plain(heed::sliding_window{width - 1, 0}, 16384);
          },
          t);
    row(
        "block_sparse/64", {.dim = 64, .queries = 4096}, [] { return random_blocks(4096, 64); }, t);
    for (index_t width : {7, 13, 31})
      row("neighborhood/" + std::to_string(width) + "x" + std::to_string(width),
          {.dim = 32, .queries = 112 * 112, .heads = 4},
          around<2>({.canvas = {112, 112}, .window = {width, width}}), t);
    row(
        "windows/7x7", {.dim = 32, .queries = 112 * 112, .heads = 4},
        [] {
          auto const order = std::make_shared<heed::window_partition<2>>(
              heed::window_partition<2>{.canvas = {112, 112}, .window = {7, 7}});
          return subject{heed::dense{}, heed::any_arrangement(*order),
                         static_cast<double>(order->pairs()), 0, order};
        },
        t);
  }
  // Cost grows with the pairs: as much a token at twice the length.
  row("window/512", {.dim = 64, .queries = 32768}, [] {
    return plain(heed::sliding_window{511, 0}, 32768);
  });
  row("dilated/512x4", {.dim = 64, .queries = 16384}, [] { return dilated(16384, 512, 4); });
  row("strided/32", {.dim = 64, .queries = 16384}, [] { return dilated(16384, 512, 32); });
  row("sinks_and_window/512", {.dim = 64, .queries = 16384},
      [] { return plain(heed::streaming{.sinks = 4, .recent = 508}, 16384); });
  row("neighborhood/5x7x7", {.dim = 32, .queries = 16 * 28 * 28, .heads = 4},
      around<3>({.canvas = {16, 28, 28}, .window = {5, 7, 7}}));
  row("neighborhood/7x7_dilation:2", {.dim = 32, .queries = 112 * 112, .heads = 4},
      around<2>({.canvas = {112, 112}, .window = {7, 7}, .dilation = {2, 2}}));
  // Windows and strides that are whole boxes of queries.
  row("neighborhood/24x24_stride:8", {.dim = 64, .queries = 96 * 96, .heads = 4},
      around<2>({.canvas = {96, 96}, .window = {24, 24}, .stride = {8, 8}}));

  shape const few{.dim = 64, .queries = 4096};
  build_row(
      "classify/sliding_window", few,
      [] {
        return plain(heed::sliding_window{511, 0}, 4096);
      },
      [] {
        return heed::classify(heed::sliding_window{511, 0}, 4096, 4096);
      });
  build_row(
      "classify/function", few,
      [] {
        return plain(heed::sliding_window{511, 0}, 4096);
      },
      [] {
        return heed::classify([](auto i, auto j) { return (j <= i) & (i - j < 512); }, 4096, 4096);
      });
  heed::neighborhood<2> const square{.canvas = {64, 64}, .window = {7, 7}};
  build_row("neighborhood/7x7", {.dim = 32, .queries = 4096, .heads = 4}, around<2>(square),
            [=] { return heed::neighborhood_order<2>(square, heed::attend::panel_lanes<float>); });
});

}  // namespace
}  // namespace heed_bench
