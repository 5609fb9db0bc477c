#include "cli/pattern_test.hpp"
#include "reference/patterns/groups.hpp"
#include "reference/patterns/head_mixtures.hpp"
#include "reference/patterns/long_range.hpp"
#include "reference/patterns/token_kinds.hpp"

#include <set>

// The patterns of language models and mixtures of heads, as heed_conformance runs them.

using namespace cli;

namespace {

std::vector<pattern_test> const tests{
    {"shifted_groups",
     [](attention_files& c) {
       index_t const size = 2 * c.draw.between(1, 6), sinks = c.draw.between(0, 4);
       c.rows = c.keys = size * c.draw.between(1, 4);
       c.set("size", size);
       bool const wrap = c.draw.one_in(3);
       auto const shifted = c.flags(c.heads);
       c.save("shifted", {c.heads}, shifted);
       if (wrap)
         c.set("wrap", std::string("true"));
       else
         c.set("sinks", sinks);
       index_t const N = c.keys;
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         bool const moved = shifted[static_cast<std::size_t>(h)];
         if (wrap && moved) return reference::rolled_groups(p, j, N, size);
         return reference::shifted_groups(p, j, size, moved, wrap ? 0 : sinks);
       };
     }},
    {"block_attention",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const starts = draw_starts(c, c.draw.between(1, 5), c.keys - 1);
       c.save("starts", {static_cast<index_t>(starts.size())}, starts);
       auto const lengths = lengths_of(starts, c.keys);
       c.keep = on_pairs(
           [=](index_t p, index_t j) { return reference::block_attention(p, j, lengths); });
     }},
    {"parallel_contexts",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       index_t const pieces = c.draw.between(1, 4), segments = pieces + 2;
       auto const starts = draw_starts(c, segments, c.keys - 1);
       c.save("starts", {segments}, starts);
       auto lengths = lengths_of(starts, c.keys);
       index_t const shared = lengths.front();
       lengths.erase(lengths.begin());
       lengths.pop_back();
       auto const how = c.draw.between(0, 2);
       auto selected = c.flags(c.heads * c.rows * segments);
       if (how == 0) selected.assign(selected.size(), true);
       if (how == 1) {
         selected.resize(static_cast<std::size_t>(c.heads * segments));
         c.save("selected", {c.heads, segments}, selected);
       }
       if (how == 2) c.save("selected_by_row", {c.heads, c.rows, segments}, selected);
       index_t const shift = c.rows - c.keys, N = c.rows;
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         index_t const row = how == 2 ? h * N + p + shift : how == 1 ? h : 0;
         std::vector<bool> chosen;
         for (index_t piece = 0; piece < pieces; ++piece)
           chosen.push_back(selected[static_cast<std::size_t>(row * segments + piece + 1)]);
         return reference::parallel_contexts(p, j, shared, lengths, chosen);
       };
     }},
    {"demonstration_blocks",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const starts = draw_starts(c, c.draw.between(1, 7), c.keys - 1);
       index_t const anchors = c.draw.between(0, 2), reach = c.draw.between(0, 3);
       c.save("starts", {1, static_cast<index_t>(starts.size())}, starts);
       c.set("anchors", anchors);
       c.set("reach", reach);
       auto const lengths = lengths_of(starts, c.keys);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return reference::demonstration_blocks(p, j, lengths, anchors, reach);
       });
     }},
    {"chunks_with_memory",
     [](attention_files& c) {
       index_t const chunk = c.draw.between(1, 12), memory = c.draw.between(-1, 20);
       c.keys = 2 * c.rows;
       c.set("chunk", chunk);
       c.set("memory", memory);
       index_t const N = c.rows;
       c.keep = on_pairs([=](index_t p, index_t j) {
         return j < N ? reference::chunk_sees_memory(p - N, j, chunk, memory < 0 ? N : memory)
                      : reference::chunk_sees_itself(p - N, j - N, chunk);
       });
     }},
    {"power_of_two_keys",
     [](attention_files& c) { c.keep = on_pairs(reference::power_of_two_keys); }},
    {"power_attention",
     [](attention_files& c) {
       index_t const block = c.draw.between(1, 5), window = c.draw.between(1, 4),
                     sinks = c.draw.between(0, 2);
       c.set("block", block);
       c.set("window", window);
       c.set("sinks", sinks);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return reference::power_attention(p, j, block, window, sinks);
       });
     }},
    {"factorised",
     [](attention_files& c) {
       index_t const length = c.draw.between(1, 9), count = c.draw.between(1, length),
                     variants = c.draw.between(1, length / count);
       auto const part = c.draw.between(0, 3);
       std::string const parts[] = {"local", "strided", "fixed", "local_and_strided"};
       c.set("part", parts[part]);
       c.set("length", length);
       c.set("count", count);
       c.set("variants", variants);
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         bool const local = reference::factorised_local(p, j, length),
                    far = reference::factorised_strided(p, j, length);
         return part == 0   ? local
                : part == 1 ? far
                : part == 2 ? reference::factorised_fixed(p, j, length, count, variants, h)
                            : local || far;
       };
     }},
    {"head_strides",
     [](attention_files& c) {
       index_t const stride = c.draw.between(1, 5);
       c.set("stride", stride);
       c.keep = [=](index_t, index_t h, index_t, index_t j) {
         return reference::head_strides(j, stride, h);
       };
     }},
    {"head_parts",
     [](attention_files& c) {
       index_t const parts = c.draw.between(1, 5), M = c.keys;
       c.set("parts", parts);
       c.keep = [=](index_t, index_t h, index_t, index_t j) {
         return reference::head_parts(j, M, parts, h);
       };
     }},
    {"token_types",
     [](attention_files& c) {
       c.heads = 4;
       c.key_heads = 2;
       auto const types = draw_table<index_t>(
           c, "types", c.keys, [&](index_t) { return c.draw.between(0, 2); }, c.key_heads);
       index_t const window = c.draw.between(0, 8), M = c.keys;
       c.set("window", window);
       c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
         std::string text;
         for (index_t x = 0; x < M; ++x) text += "gls"[types(b, h / 2, x)];
         return reference::token_types(p, j, text, window);
       };
     }},
    {"meta_tokens",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const meta = c.flags(c.keys);
       c.save("meta", {c.keys}, meta);
       c.keep = on_pairs([=](index_t p, index_t j) { return reference::meta_tokens(p, j, meta); });
     }},
    {"sentinel_tokens",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       std::vector<std::string> texts(static_cast<std::size_t>(c.draw.one_in(2) ? 1 : c.batches));
       std::vector<index_t> markers;
       for (std::string& text : texts)
         for (index_t i = 0; i < c.keys; ++i) {
           index_t const mark = std::max<index_t>(0, c.draw.between(-3, 2));
           markers.push_back(mark);
           text += "x()"[mark];
         }
       c.save("markers", {static_cast<index_t>(texts.size()), c.keys}, markers);
       c.keep = [=](index_t b, index_t, index_t p, index_t j) {
         return reference::sentinel_tokens(
             p, j, texts[texts.size() == 1 ? 0 : static_cast<std::size_t>(b)]);
       };
     }},
    {"nearest_share",
     [](attention_files& c) {
       double const ratio = c.draw.uniform();
       c.set("ratio", ratio);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return std::floor(ratio * double(p)) <= double(j) && j <= p;
       });
     }},
    {"scattered_keys",
     [](attention_files& c) {
       auto const kept = draw_flags(c, "kept", c.keys);
       c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
         return p == j || (j < p && kept(b, h, j));
       };
     }},
    {"text_queries",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const visual = c.flags(c.keys);
       c.save("visual", {c.keys}, visual);
       c.keep =
           on_pairs([=](index_t p, index_t j) { return reference::text_queries(p, j, visual); });
     }},
    {"blind_visual_tokens",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const visual = c.flags(c.keys);
       c.save("visual", {1, 1, c.keys}, visual);
       c.keep = on_pairs(
           [=](index_t p, index_t j) { return reference::blind_visual_tokens(p, j, visual); });
     }},
    {"modality",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       auto const modality = c.numbers(c.keys, 0, 3);
       bool const self = c.draw.one_in(2);
       c.set("mask", std::string(self ? "self" : "cross"));
       c.save("modality", {c.keys}, modality);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return self ? reference::self_modal(p, j, modality)
                     : reference::cross_modal(p, j, modality);
       });
     }},
    {"isolation",
     [](attention_files& c) {
       index_t const P = c.rows = c.keys, regions = c.draw.between(1, 3);
       std::vector<std::vector<bool>> in_region, in_reference;
       std::vector<index_t> bits(static_cast<std::size_t>(P));
       for (index_t a = 0; a < regions; ++a) {
         in_region.push_back(c.flags(P, 3));
         for (std::size_t i = 0; i < bits.size(); ++i)
           if (in_region.back()[i]) bits[i] |= index_t{1} << a;
       }
       c.save("regions", {P}, bits);
       bool const referring = c.draw.one_in(2);
       if (referring) {
         std::vector<bool> all;
         for (index_t a = 0; a < regions; ++a) {
           in_reference.push_back(c.flags(P));
           all.insert(all.end(), in_reference.back().begin(), in_reference.back().end());
         }
         c.save("references", {regions, P}, all);
         c.keys = (regions + 1) * P;
       }
       index_t const shift = c.rows - c.keys;
       c.keep = on_pairs([=](index_t p, index_t j) {
         return referring
                    ? reference::isolation_with_references(p + shift, j, in_region, in_reference)
                    : reference::isolation(p, j, in_region);
       });
     }},
    {"graph_windows",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       std::vector<index_t> nodes;
       for (index_t i = 0; i < c.keys; ++i)
         if (c.draw.one_in(3)) nodes.push_back(i);
       auto const V = static_cast<index_t>(nodes.size());
       std::vector<std::vector<bool>> adjacency;
       std::vector<bool> all;
       for (index_t a = 0; a < V; ++a) {
         adjacency.push_back(c.flags(V, 5));
         all.insert(all.end(), adjacency.back().begin(), adjacency.back().end());
       }
       index_t const hops = c.draw.between(1, 3);
       bool const bidirectional = c.draw.one_in(2);
       c.save("nodes", {V}, nodes);
       c.save("adjacency", {V, V}, all);
       c.set("hops", hops);
       if (bidirectional) c.set("bidirectional", std::string("true"));
       auto const reached = reference::within_hops(adjacency, hops);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return reference::graph_window(p, j, nodes, reached, bidirectional);
       });
     }},
    {"faithful_patches",
     [](attention_files& c) {
       index_t const prefix = c.draw.between(0, 4);
       auto const kept = draw_flags(c, "kept", c.keys);
       c.set("prefix", prefix);
       c.keep = [=](index_t b, index_t h, index_t, index_t j) {
         return j < prefix || kept(b, h, j);
       };
     }},
    {"elastic_spans",
     [](attention_files& c) {
       c.keys = c.draw.between(130, 300);
       c.rows = c.draw.between(1, 40);
       index_t const length = c.keys + c.draw.between(0, 500);
       reference::tensor<double, 1> alpha({c.heads}), beta({c.heads});
       std::vector<reference::span> spans;
       for (std::size_t h = 0; h < alpha.values.size(); ++h) {
         alpha.values[h] = static_cast<double>(c.draw.between(-100, 200));
         beta.values[h] = static_cast<double>(c.draw.between(0, 4)) / 8;
         spans.push_back(reference::elastic_span(alpha.values[h], beta.values[h], length));
       }
       c.save("alpha", alpha);
       c.save("beta", beta);
       c.set("length", length);
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         auto const& span = spans[static_cast<std::size_t>(h)];
         return reference::streaming(p, j, span.sinks, span.recent);
       };
     }},
    {"elastic_span_in_blocks",
     [](attention_files& c) {
       c.keys = c.draw.between(130, 400);
       c.rows = c.draw.between(1, 40);
       index_t const length = c.keys + c.draw.between(0, 500);
       double const alpha = static_cast<double>(c.draw.between(-100, 200)),
                    beta = static_cast<double>(c.draw.between(0, 4)) / 8;
       c.set("alpha", alpha);
       c.set("beta", beta);
       c.set("length", length);
       auto const span = reference::elastic_span(alpha, beta, length);
       c.keep = on_pairs(
           [=](index_t p, index_t j) { return reference::elastic_span_in_blocks(p, j, span); });
     }},
    {"task_kv", [](attention_files& c) {
       index_t const sinks = c.draw.between(0, 4), recent = c.draw.between(1, 8);
       auto const far = c.flags(c.heads);
       std::vector<index_t> middle;
       for (index_t j = 0; j < c.keys; ++j)
         if (c.draw.one_in(5)) middle.push_back(j);
       std::set<index_t> const chosen(middle.begin(), middle.end());
       middle.push_back(-1);
       c.set("sinks", sinks);
       c.set("recent", recent);
       c.save("middle", {static_cast<index_t>(middle.size())}, middle);
       c.save("far", {c.heads}, far);
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         return j <= p && (far[static_cast<std::size_t>(h)] || j < sinks || p - j < recent ||
                           chosen.count(j) > 0);
       };
     }}};

}  // namespace

TEST_CASE("heed_conformance: patterns of language models and mixtures of heads",
          "[cli][patterns]") {
  check_patterns(tests);
}
