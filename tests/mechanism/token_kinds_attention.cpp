#include "reference/patterns/groups.hpp"
#include "reference/patterns/token_kinds.hpp"
#include "support/attention_check.hpp"
#include "support/random.hpp"

#include <heed/mechanism/block_attention.hpp>
#include <heed/mechanism/demonstration_blocks.hpp>
#include <heed/mechanism/faithful_maps.hpp>
#include <heed/mechanism/fifo_memory.hpp>
#include <heed/mechanism/graph_windows.hpp>
#include <heed/mechanism/isolation.hpp>
#include <heed/mechanism/meta_tokens.hpp>
#include <heed/mechanism/modality.hpp>
#include <heed/mechanism/parallel_contexts.hpp>
#include <heed/mechanism/sentinel_tokens.hpp>
#include <heed/mechanism/shifted_groups.hpp>
#include <heed/mechanism/text_queries.hpp>
#include <heed/mechanism/token_types.hpp>

#include <memory>
#include <numeric>

// Groups and kinds of tokens through the engine: forward, backward and decode against the definition.

using heed::index_t;
using support::attention_case;
using support::attention_complaint;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr int cases = 6;

std::vector<index_t> random_lengths(support::random& draw, index_t most) {
  std::vector<index_t> lengths(static_cast<std::size_t>(draw.between(2, most)));
  for (index_t& length : lengths) length = draw.between(0, 40);
  lengths.back() = draw.between(1, 40);
  return lengths;
}

std::vector<index_t> starts_of(std::vector<index_t> const& lengths) {
  std::vector<index_t> starts(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), starts.begin(), index_t{0});
  return starts;
}

heed::tensor_view<index_t const, 2> one_batch(std::vector<index_t> const& starts) {
  return {starts.data(), {1, static_cast<index_t>(starts.size())}};
}

index_t total(std::vector<index_t> const& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), index_t{0});
}

struct flags {
  std::vector<bool> values;
  std::unique_ptr<bool[]> memory;

  flags(support::random& draw, index_t count, index_t share)
      : memory(new bool[static_cast<std::size_t>(count)]) {
    for (index_t i = 0; i < count; ++i) {
      values.push_back(draw.one_in(share));
      memory[static_cast<std::size_t>(i)] = values.back();
    }
  }
  heed::tensor_view<bool const, 3> view() const {
    return {memory.get(), {1, 1, static_cast<index_t>(values.size())}};
  }
};

}  // namespace

TEST_CASE("attention in shifted groups", "[mechanism]") {
  for_each_seed("attention in shifted groups", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const G = 2 * draw.between(1, 40), N = G * draw.between(1, 4),
                  sinks = draw.between(0, 4);
    bool const wrap = draw.one_in(3);
    heed::shifted_groups const pattern{.size = G, .shifted_from = 2, .sinks = sinks, .wrap = wrap};
    return attention_complaint(
        seed, {.pattern = pattern,
               .keep =
                   [=](index_t, index_t head, index_t i, index_t j) {
                     return reference::shifted_groups(i, j, G, head >= 2, sinks) ||
                            (wrap && head >= 2 && reference::rolled_groups(i, j, N, G));
                   },
               .rows = N,
               .keys = N,
               .heads = 4,
               .key_heads = 2,
               .decodes = false});
  });
}

TEST_CASE("attention in blocks", "[mechanism]") {
  for_each_seed("attention in blocks", cases, [](seed_t seed) {
    support::random draw(seed);
    auto const lengths = random_lengths(draw, 6);
    auto const starts = starts_of(lengths);
    index_t const N = total(lengths), anchors = draw.between(0, 2), reach = draw.between(0, 2);
    auto pieces = lengths;
    index_t const shared = pieces.front();
    pieces.erase(pieces.begin());
    std::vector<bool> all(pieces.size(), true);
    pieces.pop_back();
    return attention_complaint(
               seed, {.pattern = heed::block_attention(one_batch(starts)),
                      .keep = [=](index_t, index_t, index_t i,
                                  index_t j) { return reference::block_attention(i, j, lengths); },
                      .rows = draw.between(1, N),
                      .keys = N}) +
           attention_complaint(
               seed + 1, {.pattern = heed::demonstration_blocks(one_batch(starts), anchors, reach),
                          .keep =
                              [=](index_t, index_t, index_t i, index_t j) {
                                return reference::demonstration_blocks(i, j, lengths, anchors,
                                                                       reach);
                              },
                          .rows = draw.between(1, N),
                          .keys = N}) +
           attention_complaint(seed + 2, {.pattern = heed::parallel_contexts(one_batch(starts)),
                                          .keep =
                                              [=](index_t, index_t, index_t i, index_t j) {
                                                return reference::parallel_contexts(i, j, shared,
                                                                                    pieces, all);
                                              },
                                          .rows = draw.between(1, N),
                                          .keys = N});
  });
}

TEST_CASE("attention of a tail to selected contexts, by batch and head", "[mechanism]") {
  for_each_seed("attention to selected contexts", cases, [](seed_t seed) {
    support::random draw(seed);
    // Two batch entries with as many pieces and tokens.
    index_t const pieces = draw.between(1, 4), N = draw.between(20, 160);
    std::vector<index_t> starts;
    std::vector<std::vector<index_t>> lengths(2);
    std::vector<index_t> shared;
    for (auto& list : lengths) {
      std::vector<index_t> cuts{0};
      for (index_t s = 0; s <= pieces; ++s) cuts.push_back(draw.between(0, N - 1));
      std::sort(cuts.begin(), cuts.end());
      starts.insert(starts.end(), cuts.begin(), cuts.end());
      shared.push_back(cuts[1]);
      for (std::size_t s = 1; s + 1 < cuts.size(); ++s) list.push_back(cuts[s + 1] - cuts[s]);
    }
    index_t const segments = pieces + 2;
    index_t const rows = draw.between(1, N);
    flags const selected(draw, 2 * 2 * segments, 2), by_row(draw, 2 * rows * segments, 2);
    heed::tensor_view<bool const, 4> const by_row_view(by_row.memory.get(), {2, 1, rows, segments});
    heed::tensor_view<index_t const, 2> const starts_view(starts.data(), {2, segments});
    heed::tensor_view<bool const, 3> const selected_view(selected.memory.get(), {2, 2, segments});
    return attention_complaint(seed,
                               {.pattern = heed::parallel_contexts(starts_view, selected_view),
                                .keep =
                                    [&](index_t batch, index_t head, index_t i, index_t j) {
                                      std::vector<bool> chosen;
                                      for (index_t p = 0; p < pieces; ++p)
                                        chosen.push_back(selected_view(batch, head, p + 1));
                                      auto const b = static_cast<std::size_t>(batch);
                                      return reference::parallel_contexts(i, j, shared[b],
                                                                          lengths[b], chosen);
                                    },
                                .rows = rows,
                                .keys = N,
                                .batches = 2}) +
           attention_complaint(
               seed, {.pattern = heed::parallel_contexts(starts_view, by_row_view),
                      .keep =
                          [&](index_t batch, index_t, index_t i, index_t j) {
                            std::vector<bool> chosen;
                            for (index_t p = 0; p < pieces; ++p)
                              chosen.push_back(by_row_view(batch, 0, i - (N - rows), p + 1));
                            auto const b = static_cast<std::size_t>(batch);
                            return reference::parallel_contexts(i, j, shared[b], lengths[b],
                                                                chosen);
                          },
                      .rows = rows,
                      .keys = N,
                      .batches = 2,
                      .decodes = false});
  });
}

TEST_CASE("attention of chunks to themselves and a memory", "[mechanism]") {
  for_each_seed("attention with a memory", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 120), chunk = draw.between(1, 40),
                  memory = draw.between(0, 90);
    return attention_complaint(
        seed, {.pattern = heed::chunks_with_memory{chunk, memory},
               .keep =
                   [=](index_t, index_t, index_t p, index_t j) {
                     return j < N ? reference::chunk_sees_memory(p - N, j, chunk, memory)
                                  : reference::chunk_sees_itself(p - N, j - N, chunk);
                   },
               .rows = N,
               .keys = 2 * N,
               .decodes = false});
  });
}

TEST_CASE("attention with token types of key heads", "[mechanism]") {
  for_each_seed("attention with token types", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 150), window = draw.between(0, 30);
    std::string const mixtures[] = {"gls", "glllllllllsssssss", "ls"};
    std::string const mixture = draw.one_of(mixtures);
    std::vector<std::string> texts(2);
    std::vector<heed::token_type> types;
    for (auto& text : texts)
      for (index_t j = 0; j < N; ++j) {
        text += draw.one_of(mixture);
        types.push_back(text.back() == 'g'   ? heed::token_type::global
                        : text.back() == 'l' ? heed::token_type::local
                                             : heed::token_type::sliding);
      }
    heed::token_types const lives(
        heed::tensor_view<heed::token_type const, 3>(types.data(), {1, 2, N}), window, 2);
    return attention_complaint(seed, {.pattern = lives.pattern(),
                                      .keep =
                                          [&](index_t, index_t head, index_t i, index_t j) {
                                            return reference::token_types(
                                                i, j, texts[static_cast<std::size_t>(head / 2)],
                                                window);
                                          },
                                      .rows = draw.between(1, N),
                                      .keys = N,
                                      .heads = 4,
                                      .key_heads = 2});
  });
}

TEST_CASE("attention among marked tokens", "[mechanism]") {
  for_each_seed("attention among marked tokens", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 150), rows = draw.between(1, N);
    flags const marks(draw, N, draw.between(2, 9));
    std::vector<int> modality;
    std::vector<index_t> numbers;
    for (index_t i = 0; i < N; ++i) {
      modality.push_back(static_cast<int>(draw.between(0, 2)));
      numbers.push_back(modality.back());
    }
    heed::tensor_view<int const, 3> const view(modality.data(), {1, 1, N});
    auto const complaint = [&](heed::any_pattern pattern, auto keep) {
      return attention_complaint(
          seed, {.pattern = pattern,
                 .keep = [=](index_t, index_t, index_t i, index_t j) { return keep(i, j); },
                 .rows = rows,
                 .keys = N});
    };
    auto const prefix = draw.between(0, 3);
    return complaint(
               heed::meta_tokens(marks.view()),
               [&](index_t i, index_t j) { return reference::meta_tokens(i, j, marks.values); }) +
           complaint(
               heed::text_queries(marks.view()),
               [&](index_t i, index_t j) { return reference::text_queries(i, j, marks.values); }) +
           complaint(heed::blind_visual_tokens(marks.view()),
                     [&](index_t i, index_t j) {
                       return reference::blind_visual_tokens(i, j, marks.values);
                     }) +
           complaint(heed::self_modal(view),
                     [&](index_t i, index_t j) { return reference::self_modal(i, j, numbers); }) +
           complaint(heed::cross_modal(view),
                     [&](index_t i, index_t j) { return reference::cross_modal(i, j, numbers); }) +
           complaint(heed::scattered_keys(marks.view()),
                     [&](index_t i, index_t j) {
                       return j <= i && (j == i || marks.values[static_cast<std::size_t>(j)]);
                     }) +
           complaint(heed::nearest_share{0.75},
                     [](index_t i, index_t j) {
                       return std::floor(0.75 * double(i)) <= double(j) && j <= i;
                     }) +
           complaint(heed::faithful_patches(marks.view(), prefix), [&](index_t, index_t j) {
             return j < prefix || marks.values[static_cast<std::size_t>(j)];
           });
  });
}

TEST_CASE("attention with spans and their markers", "[mechanism]") {
  for_each_seed("attention with spans", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 120);
    std::string const mixtures[] = {"xxxxxxxx()", "x()", "xxxxxxxxx)"};
    std::string const mixture = draw.one_of(mixtures);
    std::string text;
    std::vector<heed::marker> markers;
    for (index_t i = 0; i < N; ++i) {
      text += draw.one_of(mixture);
      markers.push_back(text.back() == '('   ? heed::marker::open
                        : text.back() == ')' ? heed::marker::close
                                             : heed::marker::none);
    }
    heed::sentinel_tokens const spans(markers);
    return attention_complaint(
        seed, {.pattern = spans.pattern(),
               .keep = [&](index_t, index_t, index_t i,
                           index_t j) { return reference::sentinel_tokens(i, j, text); },
               .rows = draw.between(1, N),
               .keys = N});
  });
}

TEST_CASE("attention with isolated subjects and their references", "[mechanism]") {
  for_each_seed("attention with isolation", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const P = draw.between(1, 60), S = draw.between(1, 3);
    std::vector<flags> regions, references;
    std::vector<std::vector<bool>> in_region, in_reference;
    std::vector<std::uint64_t> bits(static_cast<std::size_t>(P));
    std::vector<std::span<bool const>> masks;
    for (index_t a = 0; a < S; ++a) {
      regions.emplace_back(draw, P, 3);
      references.emplace_back(draw, P, 2);
      in_region.push_back(regions.back().values);
      in_reference.push_back(references.back().values);
      for (std::size_t i = 0; i < bits.size(); ++i)
        bits[i] |= std::uint64_t{in_region.back()[i]} << a;
    }
    for (auto const& each : references)
      masks.emplace_back(each.memory.get(), static_cast<std::size_t>(P));
    heed::isolation const plan(bits, masks);
    return attention_complaint(seed, {.pattern = plan.pattern(),
                                      .keep =
                                          [&](index_t, index_t, index_t p, index_t j) {
                                            return reference::isolation_with_references(
                                                p - S * P, j, in_region, in_reference);
                                          },
                                      .rows = P,
                                      .keys = (S + 1) * P,
                                      .decodes = false});
  });
}

TEST_CASE("attention by a graph, one for each batch entry", "[mechanism]") {
  for_each_seed("attention by a graph", cases, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(2, 130);
    bool const bidirectional = draw.one_in(2);
    std::vector<heed::graph_windows> plans;
    std::vector<std::vector<index_t>> nodes(2);
    std::vector<std::vector<std::vector<bool>>> reached;
    for (std::size_t b = 0; b < 2; ++b) {
      for (index_t i = 0; i < N; ++i)
        if (draw.one_in(3)) nodes[b].push_back(i);
      auto const V = static_cast<index_t>(nodes[b].size());
      flags const edges(draw, V * V + 1, 12);
      std::vector<std::vector<bool>> adjacency(static_cast<std::size_t>(V));
      for (index_t a = 0; a < V; ++a)
        for (index_t c = 0; c < V; ++c)
          adjacency[static_cast<std::size_t>(a)].push_back(
              edges.values[static_cast<std::size_t>(a * V + c)]);
      plans.emplace_back(nodes[b], heed::tensor_view<bool const, 2>(edges.memory.get(), {V, V}), 2,
                         bidirectional);
      reached.push_back(reference::within_hops(adjacency, 2));
    }
    std::vector<heed::graph_windows::bound> const bound{plans[0].pattern(), plans[1].pattern()};
    return attention_complaint(
        seed, {.pattern = heed::by_sequence<heed::graph_windows::bound>{bound},
               .keep =
                   [&](index_t batch, index_t, index_t i, index_t j) {
                     auto const b = static_cast<std::size_t>(batch);
                     return reference::graph_window(i, j, nodes[b], reached[b], bidirectional);
                   },
               .rows = N,
               .keys = N,
               .batches = 2});
  });
}
