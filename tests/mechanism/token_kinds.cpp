#include "reference/patterns/token_kinds.hpp"
#include "support/pattern_check.hpp"

#include <heed/mechanism/faithful_maps.hpp>
#include <heed/mechanism/graph_windows.hpp>
#include <heed/mechanism/isolation.hpp>
#include <heed/mechanism/meta_tokens.hpp>
#include <heed/mechanism/modality.hpp>
#include <heed/mechanism/sentinel_tokens.hpp>
#include <heed/mechanism/text_queries.hpp>
#include <heed/mechanism/token_types.hpp>
#include <heed/pattern/count.hpp>

#include <memory>
#include <numeric>

// Tokens of several kinds: patterns, numbers of pairs, identities, vectors.

using heed::index_t;
using heed::kept_pairs;
using heed::marker;
using heed::token_type;
using support::check_pattern;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr index_t triangle(index_t n) {
  return n * (n + 1) / 2;
}

/// Bools in memory, which a vector of them has not.
class flags {
 public:
  explicit flags(std::vector<bool> const& from) : size_(from.size()), memory_(new bool[size_ + 1]) {
    std::copy(from.begin(), from.end(), memory_.get());
  }
  std::span<bool const> span() const { return {memory_.get(), size_}; }
  heed::tensor_view<bool const, 3> view() const {
    return {memory_.get(), {1, 1, static_cast<index_t>(size_)}};
  }

 private:
  std::size_t size_;
  std::unique_ptr<bool[]> memory_;
};

std::vector<bool> random_flags(support::random& draw, index_t count) {
  std::vector<bool> result;
  index_t const share = draw.between(1, 4);
  for (index_t i = 0; i < count; ++i) result.push_back(draw.one_in(share));
  return result;
}

/// A predicate over the pairs of N tokens, for positions beside them too: what the pattern says of those does not matter
/// to the definition, only that all of its answers agree.
template <class Pattern, class Keep>
std::string check_square(support::random& draw, Pattern const& pattern, index_t N, Keep keep,
                         support::pattern_claims claims = {}) {
  heed::place const where{.rows = N, .keys = N};
  auto const bound = heed::bind_at(pattern, where);
  std::string complaint = check_pattern(
      draw, pattern, where,
      [&](index_t i, index_t j) { return i < 0 || i >= N ? bound.keep(i, j) : keep(i, j); },
      claims);
  index_t pairs = 0;
  for (index_t i = 0; i < N; ++i)
    for (index_t j = 0; j < N; ++j) pairs += keep(i, j);
  if (kept_pairs(pattern, N, N) != pairs) complaint += "the number of pairs is wrong\n";
  return complaint;
}

template <class A, class B>
bool same_pairs(A const& a, B const& b, index_t N) {
  heed::place const where{.rows = N, .keys = N};
  auto const x = heed::bind_at(a, where);
  auto const y = heed::bind_at(b, where);
  for (index_t i = 0; i < N; ++i)
    for (index_t j = 0; j < N; ++j)
      if (x.keep(i, j) != y.keep(i, j)) return false;
  return true;
}

std::vector<token_type> types_of(std::string const& text) {
  std::vector<token_type> types;
  for (char c : text)
    types.push_back(c == 'g'   ? token_type::global
                    : c == 'l' ? token_type::local
                               : token_type::sliding);
  return types;
}

heed::tensor_view<token_type const, 3> one_list(std::vector<token_type> const& types) {
  return {types.data(), {1, 1, static_cast<index_t>(types.size())}};
}

std::string random_text(support::random& draw, char const* kinds, index_t length) {
  std::string text;
  for (index_t i = 0; i < length; ++i) text += draw.one_of(std::string(kinds));
  return text;
}

std::vector<marker> markers_of(std::string const& text) {
  std::vector<marker> markers;
  for (char c : text)
    markers.push_back(c == '(' ? marker::open : c == ')' ? marker::close : marker::none);
  return markers;
}

}  // namespace

TEST_CASE("token types", "[mechanism][quick]") {
  for_each_seed("token types", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 50), window = draw.between(0, 12);
    char const* const mixtures[] = {"gls", "g", "l", "s", "gllllsss"};
    std::string const text = random_text(draw, draw.one_of(mixtures), N);
    auto const types = types_of(text);
    heed::token_types const lives(one_list(types), window);
    std::string complaint = check_square(draw, lives.pattern(), N, [&](index_t i, index_t j) {
      return reference::token_types(i, j, text, window);
    });
    bool const global = text.find_first_not_of('g') == std::string::npos;
    bool const local = text.find_first_not_of('l') == std::string::npos;
    bool const sliding = text.find_first_not_of('s') == std::string::npos;
    if ((global || local) && !same_pairs(lives.pattern(), heed::causal{}, N))
      complaint += "all global or all local is causal\n";
    if (sliding &&
        !same_pairs(lives.pattern(), heed::sliding_window{.left = window, .right = 0}, N))
      complaint += "all sliding is a window of W + 1 keys\n";
    return complaint;
  });
}

TEST_CASE("token types: an example, heads, refusals", "[mechanism][quick]") {
  auto const types = types_of("gllsglslls");
  heed::token_types const lives(one_list(types), 2);
  index_t const expected[] = {10, 5, 5, 6, 10, 10, 9, 10, 10, 10};
  for (index_t j = 0; j < 10; ++j) CHECK(lives.ends()(0, 0, j) == expected[j]);

  // Two key heads for four query heads.
  auto const both = types_of("ggggssss");
  heed::token_types const heads(heed::tensor_view<token_type const, 3>(both.data(), {1, 2, 4}), 0,
                                2);
  for (index_t head = 0; head < 4; ++head)
    CHECK(kept_pairs(heads.pattern(), heed::place{.head = head, .rows = 4, .keys = 4}) ==
          (head < 2 ? 10 : 4));
  heed::call_shape shape{.batches = 1, .sequences = 1, .heads = 3, .rows = 4, .keys = 4};
  CHECK_THROWS_WITH(
      heads.pattern().check(shape),
      "heed: by_key_head has groups of 2 query heads; expected a divisor of the 3 heads");
  shape.heads = 4;
  CHECK_NOTHROW(heads.pattern().check(shape));
  CHECK_THROWS_WITH(heed::token_types(one_list(types), -1),
                    "heed: token_types has a window of -1; expected 0 or more");
}

TEST_CASE("meta tokens", "[mechanism][quick]") {
  for_each_seed("meta tokens", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 50);
    auto const meta = random_flags(draw, N);
    flags const marks(meta);
    auto const pattern = heed::meta_tokens(marks.view());
    std::string complaint = check_square(
        draw, pattern, N, [&](index_t i, index_t j) { return reference::meta_tokens(i, j, meta); });
    if (kept_pairs(pattern, N, N) != triangle(std::count(meta.begin(), meta.end(), true)))
      complaint += "the work is not T(#meta)\n";
    return complaint;
  });
}

TEST_CASE("sentinel tokens", "[mechanism][quick]") {
  for_each_seed("sentinel tokens", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 40);
    char const* const mixtures[] = {"xxx()", "x()", "xxxxxxx()", "xxxx(", "xxxx)"};
    std::string const text = random_text(draw, draw.one_of(mixtures), N);
    auto const markers = markers_of(text);
    heed::sentinel_tokens const spans(markers);
    std::string complaint = check_square(draw, spans.pattern(), N, [&](index_t i, index_t j) {
      return reference::sentinel_tokens(i, j, text);
    });
    auto const positions = reference::sentinel_positions(text);
    if (!std::equal(positions.begin(), positions.end(), spans.positions().begin()))
      complaint += "positions are wrong\n";
    return complaint.empty() ? complaint : text + "\n" + complaint;
  });
}

TEST_CASE("sentinel tokens: an example", "[mechanism][quick]") {
  auto const markers = markers_of("x(xx)x(x)x");
  heed::sentinel_tokens const spans(markers);
  auto const bound = heed::bind_at(spans.pattern(), heed::place{.rows = 10, .keys = 10});
  std::string rows;
  for (index_t i = 0; i < 10; ++i) {
    for (index_t j = 0; j < 10; ++j)
      if (bound.keep(i, j)) rows += std::to_string(j);
    rows += ' ';
  }
  CHECK(rows == "0 1 02 023 1234 045 6 0457 678 04589 ");
  std::vector<index_t> const expected{0, 0, 1, 2, 2, 3, 3, 4, 4, 5};
  CHECK(std::equal(expected.begin(), expected.end(), spans.positions().begin()));
}

TEST_CASE("what sentinel tokens are compared with", "[mechanism][quick]") {
  for_each_seed("compression baselines", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 50);
    double const ratio = draw.one_in(4) ? double(draw.between(0, 1)) : draw.uniform();
    auto const kept = random_flags(draw, N);
    flags const marks(kept);
    std::string complaint = check_square(
        draw, heed::nearest_share{ratio}, N,
        [&](index_t i, index_t j) { return std::floor(ratio * double(i)) <= double(j) && j <= i; },
        {.exact_tiles = true});
    complaint +=
        check_square(draw, heed::scattered_keys(marks.view()), N, [&](index_t i, index_t j) {
          return j <= i && (j == i || kept[static_cast<std::size_t>(j)]);
        });
    if (ratio == 0 && !same_pairs(heed::nearest_share{ratio}, heed::causal{}, N))
      complaint += "with nothing left out it is causal\n";
    return complaint;
  });
  CHECK_THROWS_WITH(heed::nearest_share{1.5}.check({}),
                    "heed: nearest_share.ratio is 1.500000; expected 0 to 1");
}

TEST_CASE("visual tokens without rows", "[mechanism][quick]") {
  for_each_seed("visual tokens", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 50);
    auto const visual = random_flags(draw, N);
    flags const marks(visual);
    auto const pattern = heed::text_queries(marks.view());
    std::string complaint =
        check_square(draw, pattern, N,
                     [&](index_t i, index_t j) { return reference::text_queries(i, j, visual); }) +
        check_square(draw, heed::blind_visual_tokens(marks.view()), N, [&](index_t i, index_t j) {
          return reference::blind_visual_tokens(i, j, visual);
        });
    auto const positions = heed::text_positions(marks.span());
    index_t work = 0;
    for (index_t p : positions) work += p + 1;
    if (kept_pairs(pattern, N, N) != work) complaint += "the work is not the sum of text rows\n";
    if (positions.size() !=
        static_cast<std::size_t>(std::count(visual.begin(), visual.end(), false)))
      complaint += "text_positions is wrong\n";
    for (index_t p : positions)
      if (visual[static_cast<std::size_t>(p)]) complaint += "text_positions is wrong\n";
    return complaint;
  });
  flags const none(std::vector<bool>(20, false));
  CHECK(same_pairs(heed::text_queries(none.view()), heed::causal{}, 20));
}

TEST_CASE("masks by modality", "[mechanism][quick]") {
  for_each_seed("modality", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 50);
    std::vector<int> modality;
    std::vector<index_t> numbers;
    for (index_t i = 0; i < N; ++i) {
      modality.push_back(static_cast<int>(draw.one_in(20) ? 63 : draw.between(0, 2)));
      numbers.push_back(modality.back());
    }
    heed::tensor_view<int const, 3> const view(modality.data(), {1, 1, N});
    auto const own = heed::self_modal(view);
    auto const cross = heed::cross_modal(view);
    std::string complaint =
        check_square(draw, own, N,
                     [&](index_t i, index_t j) { return reference::self_modal(i, j, numbers); }) +
        check_square(draw, cross, N,
                     [&](index_t i, index_t j) { return reference::cross_modal(i, j, numbers); });
    if (!same_pairs(own | cross, heed::causal{}, N)) complaint += "together they are causal\n";
    if (!same_pairs(own & cross, heed::sliding_window{0, 0}, N))
      complaint += "they share the diagonal\n";
    return complaint;
  });
}

TEST_CASE("isolation of subjects", "[mechanism][quick]") {
  for_each_seed("isolation", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const P = draw.between(1, 16), S = draw.between(1, 3);
    bool const overlap = draw.one_in(2);
    std::vector<std::vector<bool>> in_region, in_reference;
    for (index_t a = 0; a < S; ++a) {
      in_region.push_back(random_flags(draw, P));
      in_reference.push_back(random_flags(draw, P));
    }
    if (!overlap)
      for (std::size_t i = 0; i < static_cast<std::size_t>(P); ++i) {
        bool taken = false;
        for (auto& region : in_region) {
          region[i] = region[i] && !taken;
          taken = taken || region[i];
        }
      }
    std::vector<std::uint64_t> regions(static_cast<std::size_t>(P));
    for (std::size_t i = 0; i < regions.size(); ++i)
      for (std::size_t a = 0; a < in_region.size(); ++a)
        regions[i] |= std::uint64_t{in_region[a][i]} << a;
    heed::isolation const plan(regions);
    std::string complaint = check_square(draw, plan.pattern(), P, [&](index_t i, index_t j) {
      return reference::isolation(i, j, in_region);
    });

    std::vector<flags> masks;
    std::vector<std::span<bool const>> references;
    for (auto const& each : in_reference) masks.emplace_back(each);
    for (auto const& each : masks) references.push_back(each.span());
    heed::isolation const with(regions, references);
    heed::place const where{.rows = P, .keys = (S + 1) * P};
    auto const bound = heed::bind_at(with.pattern(), where);
    index_t pairs = 0;
    for (index_t i = 0; i < P; ++i)
      for (index_t j = 0; j < where.keys; ++j) {
        bool const expected = reference::isolation_with_references(i, j, in_region, in_reference);
        pairs += expected;
        if (bound.keep(where.keys - P + i, j) != expected) complaint += "references are wrong\n";
      }
    complaint += check_pattern(draw, with.pattern(), where,
                               [&](index_t p, index_t j) { return bound.keep(p, j); });
    if (kept_pairs(with.pattern(), where) != pairs) complaint += "the number of pairs is wrong\n";
    if (!overlap) {
      index_t work = P * P;
      std::vector<index_t> size;
      for (std::size_t a = 0; a < in_region.size(); ++a) {
        size.push_back(std::count(in_region[a].begin(), in_region[a].end(), true));
        work += size[a] * std::count(in_reference[a].begin(), in_reference[a].end(), true);
        for (std::size_t b = 0; b < a; ++b) work -= 2 * size[a] * size[b];
      }
      if (pairs != work) complaint += "the work is not that of the formula\n";
    }
    return complaint;
  });
  std::vector<std::uint64_t> many;
  for (std::uint64_t n = 0; n < 64; ++n) many.push_back(n);
  CHECK_THROWS_WITH(
      heed::isolation(many),
      "heed: isolation has 64 kinds of overlap and 0 references; expected fewer than 64 "
      "together");
}

TEST_CASE("a reference moves to its region", "[mechanism][quick]") {
  for_each_seed("reposition", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const h0 = draw.between(1, 6), w0 = draw.between(1, 6), h1 = draw.between(1, 6),
                  w1 = draw.between(1, 6);
    auto const source = random_flags(draw, h0 * w0), target = random_flags(draw, h1 * w1);
    flags const source_marks(source), target_marks(target);
    auto const moved =
        heed::reposition(source_marks.span(), {h0, w0}, target_marks.span(), {h1, w1});
    struct box {
      index_t top = 99, left = 99, bottom = -1, right = -1;
    };
    auto const around = [](std::vector<bool> const& mask, index_t width) {
      box found;
      for (std::size_t n = 0; n < mask.size(); ++n)
        if (mask[n]) {
          index_t const y = static_cast<index_t>(n) / width, x = static_cast<index_t>(n) % width;
          found = {std::min(found.top, y), std::min(found.left, x), std::max(found.bottom, y),
                   std::max(found.right, x)};
        }
      return found;
    };
    box const from = around(source, w0), to = around(target, w1);
    std::vector<index_t> expected;
    if (from.bottom < 0 || to.bottom < 0) {
      for (index_t n = 0; n < h0 * w0; ++n) expected.push_back(n);
    } else {
      index_t const bh0 = from.bottom - from.top + 1, bw0 = from.right - from.left + 1;
      index_t const bh1 = to.bottom - to.top + 1, bw1 = to.right - to.left + 1;
      for (index_t y = 0; y < h1; ++y)
        for (index_t x = 0; x < w1; ++x) {
          index_t cell = -1;
          if (y >= to.top && y <= to.bottom && x >= to.left && x <= to.right) {
            auto const scaled = [](index_t at, index_t size, index_t of) {
              return static_cast<index_t>(std::floor(double(at * of) / double(size)));
            };
            cell = (from.top + scaled(y - to.top, bh1, bh0)) * w0 + from.left +
                   scaled(x - to.left, bw1, bw0);
            if (!source[static_cast<std::size_t>(cell)]) cell = -1;
          }
          expected.push_back(cell);
        }
    }
    if (moved.rows != expected) return std::string("cells are wrong\n");
    for (std::size_t n = 0; n < expected.size(); ++n) {
      bool const shown = expected[n] >= 0 && source[static_cast<std::size_t>(expected[n])];
      if (moved.mask[n] != shown) return std::string("the mask is wrong\n");
    }
    return std::string();
  });

  flags const three({true, false, true});
  CHECK_THROWS_WITH(heed::reposition(three.span(), {2, 2}, three.span(), {1, 3}),
                    "heed: the source mask of reposition has 3 cells; expected 2 x 2");
}

TEST_CASE("rows are gathered, and their gradients go back", "[mechanism][quick]") {
  std::vector<float> from(2 * 3 * 2 * 2), to(2 * 4 * 2 * 2, 7), back(from.size(), 5);
  std::iota(from.begin(), from.end(), 1.0f);
  auto const source = heed::bnhd(from.data(), 2, 3, 2, 2);
  auto const target = heed::bnhd(to.data(), 2, 4, 2, 2);
  std::vector<index_t> const rows{2, -1, 0, 2};
  heed::gather_rows(source, rows, target);
  for (index_t b = 0; b < 2; ++b)
    for (index_t i = 0; i < 4; ++i) {
      index_t const row = rows[static_cast<std::size_t>(i)];
      CHECK(target(b, i, 1, 0) == (row < 0 ? 0 : source(b, row, 1, 0)));
    }
  auto const gradient = heed::bnhd(back.data(), 2, 3, 2, 2);
  heed::gather_rows_backward(target, rows, gradient);
  for (index_t b = 0; b < 2; ++b) {
    CHECK(gradient(b, 0, 1, 1) == source(b, 0, 1, 1));
    CHECK(gradient(b, 1, 1, 1) == 0);
    CHECK(gradient(b, 2, 1, 1) == 2 * source(b, 2, 1, 1));
  }
  std::vector<index_t> const wrong{2, 3, 0, 2};
  CHECK_THROWS_WITH(heed::gather_rows(source, wrong, target),
                    "heed: a list of rows holds 3; expected 0 to 2, or -1 for a row of zeros");
  CHECK_THROWS_WITH(
      heed::gather_rows(source, std::span(rows).first(3), target),
      "heed: gathering 3 rows of a tensor of shape [2, 3, 2, 2] into one of shape [2, 4, "
      "2, 2]; expected that many positions, and the other extents alike");
}

TEST_CASE("graph windows", "[mechanism][quick]") {
  for_each_seed("graph windows", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, draw.one_in(10) ? 120 : 40), hops = draw.between(1, 4);
    bool const bidirectional = draw.one_in(2);
    std::vector<index_t> nodes;
    for (index_t i = 0; i < N; ++i)
      if (draw.one_in(2)) nodes.push_back(i);
    auto const V = nodes.size();
    std::vector<std::vector<bool>> edges;
    auto const table = std::make_unique<bool[]>(V * V + 1);
    index_t const rare = draw.between(2, 30);
    for (std::size_t a = 0; a < V; ++a) {
      edges.emplace_back();
      for (std::size_t b = 0; b < V; ++b) {
        edges[a].push_back(draw.one_in(rare));
        table[a * V + b] = edges[a][b];
      }
    }
    heed::tensor_view<bool const, 2> const adjacency(
        table.get(), {static_cast<index_t>(V), static_cast<index_t>(V)});
    heed::graph_windows const plan(nodes, adjacency, hops, bidirectional);
    auto const reached = reference::within_hops(edges, hops);
    std::string complaint = check_square(draw, plan.pattern(), N, [&](index_t i, index_t j) {
      return reference::graph_window(i, j, nodes, reached, bidirectional);
    });
    heed::graph_windows const further(nodes, adjacency, hops + 1, bidirectional);
    for (index_t i = 0; i < N; ++i)
      for (index_t j = 0; j < N; ++j)
        if (plan.pattern().keep(i, j) && !further.pattern().keep(i, j))
          complaint += "more hops lose a pair\n";
    std::fill_n(table.get(), V * V, true);
    if (!same_pairs(heed::graph_windows(nodes, adjacency, 1).pattern(), heed::causal{}, N))
      complaint += "the complete graph is causal\n";
    return complaint;
  });

  std::vector<index_t> const nodes{1, 3}, disorder{3, 1}, before{-1, 3};
  bool const edges[6] = {};
  heed::tensor_view<bool const, 2> const two(edges, {2, 2}), other(edges, {2, 3});
  CHECK_THROWS_WITH(
      heed::graph_windows(nodes, other, 1),
      "heed: the adjacency of graph_windows has shape [2, 3]; expected [2, 2], as many as "
      "nodes");
  CHECK_THROWS_WITH(heed::graph_windows(nodes, two, 0),
                    "heed: graph_windows has 0 hops; expected at least 1");
  CHECK_THROWS_WITH(
      heed::graph_windows(disorder, two, 1),
      "heed: graph_windows has a node at position 1 after one at 3; expected positions "
      "from 0 on that increase");
  CHECK_THROWS_AS(heed::graph_windows(before, two, 1), heed::error);
}

TEST_CASE("patterns of a sequence each", "[mechanism][quick]") {
  bool const edges[1] = {};
  std::vector<index_t> const node{0};
  heed::tensor_view<bool const, 2> const one(edges, {1, 1});
  heed::graph_windows const a({}, heed::tensor_view<bool const, 2>(edges, {0, 0}), 1),
      b(node, one, 1);
  std::vector<heed::graph_windows::bound> const both{a.pattern(), b.pattern()};
  heed::by_sequence<heed::graph_windows::bound> const pattern{both};
  CHECK(kept_pairs(pattern, heed::place{.sequence = 1, .batch = 1, .rows = 3, .keys = 3}) == 6);
  heed::call_shape const shape{.batches = 3, .sequences = 3, .heads = 1, .rows = 4, .keys = 4};
  CHECK_THROWS_WITH(pattern.check(shape),
                    "heed: by_sequence has 2 patterns; expected one for each of 3 sequences");

  std::vector<heed::sliding_window> const windows{{0, 0}, {1, 0}, {2, 0}};
  heed::by_sequence<heed::sliding_window> const different{windows};
  CHECK_NOTHROW(different.check(shape));
  for (index_t s = 0; s < 3; ++s)
    CHECK(kept_pairs(different, heed::place{.sequence = s, .batch = s, .rows = 4, .keys = 4}) ==
          (s == 0   ? 4
           : s == 1 ? 7
                    : 9));
}

TEST_CASE("patches that are kept", "[mechanism][quick]") {
  for_each_seed("faithful maps", 200, [](seed_t seed) {
    support::random draw(seed);
    index_t const parts = draw.between(1, 4), patches = draw.between(1, 30),
                  prefix = draw.between(0, 4);
    index_t const background = draw.between(0, parts - 1), N = prefix + patches;
    std::vector<float> probabilities(static_cast<std::size_t>(parts * patches));
    for (float& p : probabilities) p = static_cast<float>(draw.between(0, 4)) / 4;
    heed::tensor_view<float const, 3> const view(probabilities.data(), {1, parts, patches});
    auto const kept = std::make_unique<bool[]>(static_cast<std::size_t>(N));
    heed::tensor_view<bool, 3> const marks(kept.get(), {1, 1, N});
    heed::keep_patches(view, background, prefix, marks);
    auto const keep = [&](index_t, index_t j) {
      if (j < prefix) return true;
      float best = -1;
      for (index_t part = 0; part < parts; ++part)
        if (part != background) best = std::max(best, view(0, part, j - prefix));
      return best >= view(0, background, j - prefix);
    };
    auto const pattern = heed::faithful_patches(marks, prefix);
    std::string complaint = check_square(draw, pattern, N, keep);
    index_t count = 0;
    for (index_t j = prefix; j < N; ++j) count += keep(0, j);
    if (kept_pairs(pattern, N, N) != N * (prefix + count)) complaint += "the work is wrong\n";
    return complaint;
  });
  std::vector<float> p(6);
  bool kept[5];
  heed::tensor_view<float const, 3> const probabilities(p.data(), {1, 2, 3});
  CHECK_THROWS_WITH(
      heed::keep_patches(probabilities, 2, 2, heed::tensor_view<bool, 3>(kept, {1, 1, 5})),
      "heed: keep_patches has part 2 as background; expected 0 to 1");
  CHECK_THROWS_WITH(
      heed::keep_patches(probabilities, 1, 1, heed::tensor_view<bool, 3>(kept, {1, 1, 5})),
      "heed: kept has shape [1, 1, 5]; expected [1, 1, 4] (batch, 1, prefix and patches)");
}
