#include "cli/pattern_test.hpp"
#include "reference/patterns/benchmark_masks.hpp"
#include "reference/patterns/windows.hpp"
#include "reference/patterns/written.hpp"

#include <set>

// The patterns of windows, sets of keys and tables, as heed_conformance runs them.

using namespace cli;

namespace {

std::vector<pattern_test> const tests{
    {"sliding_window",
     [](attention_files& c) {
       index_t const left = c.draw.between(-1, 9), right = c.draw.between(-1, 9);
       c.set("left", left);
       c.set("right", right);
       c.stands_at_row = c.draw.one_in(3);
       if (c.stands_at_row) c.set("align", std::string("top_left"));
       c.keep = on_pairs([=](index_t p, index_t j) { return reference::band(left, right, p, j); });
     }},
    {"first_keys",
     [](attention_files& c) {
       index_t const count = c.draw.between(0, 40);
       c.set("count", count);
       c.keep = on_pairs([=](index_t, index_t j) { return j < count; });
     }},
    {"key_lengths",
     [](attention_files& c) {
       auto const lengths = c.numbers(c.batches, 0, c.keys);
       c.save("lengths", {c.batches}, lengths);
       perhaps_causal(c, [=](index_t b, index_t, index_t, index_t j) {
         return j < lengths[static_cast<std::size_t>(b)];
       });
     }},
    {"prefix_lm",
     [](attention_files& c) {
       if (c.draw.one_in(2)) {
         index_t const prefix = c.draw.between(0, 40);
         c.set("prefix", prefix);
         c.keep =
             on_pairs([=](index_t p, index_t j) { return reference::prefix_lm(prefix, p, j); });
       } else {
         auto const prefixes = c.numbers(c.batches, 0, c.keys);
         c.save("prefixes", {c.batches}, prefixes);
         c.keep = [=](index_t b, index_t, index_t p, index_t j) {
           return reference::prefix_lm(prefixes[static_cast<std::size_t>(b)], p, j);
         };
       }
     }},
    {"streaming",
     [](attention_files& c) {
       index_t const sinks = c.draw.between(0, 5),
                     recent = c.draw.one_in(5) ? -1 : c.draw.between(1, 15);
       c.set("sinks", sinks);
       c.set("recent", recent);
       c.keep = on_pairs([=](index_t p, index_t j) {
         return j <= p && (j < sinks || recent < 0 || p - j < recent);
       });
     }},
    {"streaming_heads",
     [](attention_files& c) {
       auto const sinks = c.numbers(c.heads, 0, 5), recent = c.numbers(c.heads, 1, 15);
       c.save("sinks", {1, c.heads}, sinks);
       c.save("recent", {c.heads}, recent);
       c.keep = [=](index_t, index_t h, index_t p, index_t j) {
         auto const at = static_cast<std::size_t>(h);
         return reference::streaming(sinks[at], recent[at], p, j);
       };
     }},
    {"global_tokens",
     [](attention_files& c) {
       c.rows = std::min(c.rows, c.keys);
       index_t const count = c.draw.between(0, 6), reach = c.draw.between(0, 8);
       c.set("count", count);
       c.set("reach", reach);
       perhaps_causal(c, [=](index_t, index_t, index_t p, index_t j) {
         return reference::global_tokens(count, reach, p, j);
       });
     }},
    {"dilated_window",
     [](attention_files& c) {
       index_t const left = c.draw.between(-1, 20), right = c.draw.between(-1, 20),
                     step = c.draw.between(1, 5);
       c.set("left", left);
       c.set("right", right);
       c.set("step", step);
       c.keep = on_pairs(
           [=](index_t p, index_t j) { return reference::dilated(left, right, step, p, j); });
     }},
    {"residues",
     [](attention_files& c) {
       index_t const left = c.draw.between(-1, 20), right = c.draw.between(-1, 20),
                     step = c.draw.between(1, 5);
       c.set("left", left);
       c.set("right", right);
       c.set("step", step);
       c.keep = on_pairs(
           [=](index_t p, index_t j) { return reference::dilated(left, right, step, p, j); });
     }},
    {"key_offsets",
     [](attention_files& c) {
       std::vector<index_t> offsets;
       for (index_t at = -30; at < 12;) {
         index_t const end = at + c.draw.between(1, 4);
         offsets.insert(offsets.end(), {at, end});
         at = end + c.draw.between(1, 9);
       }
       c.save("offsets", {static_cast<index_t>(offsets.size() / 2), 2}, offsets);
       perhaps_causal(c, [=](index_t, index_t, index_t p, index_t j) {
         for (std::size_t n = 0; n < offsets.size(); n += 2)
           if (offsets[n] <= j - p && j - p < offsets[n + 1]) return true;
         return false;
       });
     }},
    {"key_set",
     [](attention_files& c) {
       auto const kept = draw_flags(c, "kept", c.keys);
       perhaps_causal(c, [=](index_t b, index_t h, index_t, index_t j) { return kept(b, h, j); });
     }},
    {"key_list",
     [](attention_files& c) {
       std::vector<index_t> list;
       for (index_t j = 0; j < c.keys; ++j)
         if (c.draw.one_in(3)) list.push_back(j);
       std::set<index_t> const kept(list.begin(), list.end());
       list.push_back(-1);
       c.save("keys", {static_cast<index_t>(list.size())}, list);
       perhaps_causal(c, [=](index_t, index_t, index_t, index_t j) { return kept.count(j) > 0; });
     }},
    {"chosen_rows",
     [](attention_files& c) {
       auto const chosen = draw_flags(c, "chosen", c.rows);
       index_t const shift = c.rows - c.keys;
       c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
         return j <= p && chosen(b, h, p + shift);
       };
     }},
    {"periodic_keys",
     [](attention_files& c) {
       index_t const period = c.draw.between(1, 7), first = c.draw.between(0, period - 1),
                     count = c.draw.between(0, period - first);
       c.set("period", period);
       c.set("first", first);
       c.set("count", count);
       perhaps_causal(c, [=](index_t, index_t, index_t, index_t j) {
         return j % period >= first && j % period < first + count;
       });
     }},
    {"row_ranges",
     [](attention_files& c) {
       auto const first = draw_numbers(c, "first", c.rows, 0, c.keys),
                  last = draw_numbers(c, "last", c.rows, 0, c.keys);
       index_t const shift = c.rows - c.keys;
       c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
         return first(b, h, p + shift) <= j && j < last(b, h, p + shift);
       };
     }},
    {"labels",
     [](attention_files& c) {
       auto const queries = draw_numbers(c, "queries", c.rows, 0, 2),
                  keys = draw_numbers(c, "keys", c.keys, 0, 3);
       auto const admitted = c.flags(12);
       c.save("admitted", {3, 4}, admitted);
       index_t const shift = c.rows - c.keys;
       perhaps_causal(c, [=](index_t b, index_t h, index_t p, index_t j) {
         return bool(
             admitted[static_cast<std::size_t>(4 * queries(b, h, p + shift) + keys(b, h, j))]);
       });
     }},
    {"lifetimes",
     [](attention_files& c) {
       auto const ends = draw_numbers(c, "ends", c.keys, 0, c.keys + 5);
       c.keep = [=](index_t b, index_t h, index_t p, index_t j) {
         return j <= p && p < ends(b, h, j);
       };
     }},
    {"slices",
     [](attention_files& c) {
       std::vector<heed::slice> list;
       std::vector<index_t> numbers;
       for (index_t row = 0; row < c.rows;) {
         index_t const end = std::min(c.rows, row + c.draw.between(1, 12)),
                       first = c.draw.between(0, c.keys), last = c.draw.between(first, c.keys);
         auto const type = c.draw.between(0, 3);
         list.push_back({{row, end}, {first, last}, static_cast<heed::slice_type>(type)});
         numbers.insert(numbers.end(), {row, end, first, last, type});
         row = end;
       }
       c.save("list", {static_cast<index_t>(list.size()), 5}, numbers);
       index_t const shift = c.rows - c.keys;
       c.keep =
           on_pairs([=](index_t p, index_t j) { return reference::in_slices(list, p + shift, j); });
     }},
    {"column_ranges",
     [](attention_files& c) {
       square(c);
       std::vector<index_t> numbers;
       for (index_t j = 0; j < c.keys; ++j)
         for (int range = 0; range < 2; ++range) {
           index_t const first = c.draw.between(0, c.rows);
           numbers.insert(numbers.end(), {first, c.draw.between(first, c.rows)});
         }
       c.save("columns", {c.keys, 4}, numbers);
       bool const causal = c.draw.one_in(2);
       if (causal) c.set("causal", std::string("1"));
       c.keep = on_pairs([=](index_t p, index_t j) {
         auto const at = static_cast<std::size_t>(4 * j);
         return reference::hidden_rows{numbers[at], numbers[at + 1], numbers[at + 2],
                                       numbers[at + 3]}
             .keep(p, j, causal);
       });
     }},
    {"block_table",
     [](attention_files& c) {
       auto const cut = [&](std::string const& of, index_t end) {
         std::vector<index_t> bounds{0};
         if (c.draw.one_in(2)) {
           index_t const size = c.draw.between(1, 12);
           c.set(of + "_size", size);
           while (bounds.back() < end) bounds.push_back(std::min(end, bounds.back() + size));
         } else {
           while (bounds.back() < end)
             bounds.push_back(std::min(end, bounds.back() + c.draw.between(1, 15)));
           c.save(of + "_bounds", {static_cast<index_t>(bounds.size())}, bounds);
         }
         return bounds;
       };
       auto const rows = cut("row", c.rows), keys = cut("key", c.keys);
       auto const R = static_cast<index_t>(rows.size()) - 1,
                  C = static_cast<index_t>(keys.size()) - 1;
       auto const kept = c.flags(c.heads * R * C);
       c.save("kept", {c.heads, R, C}, kept);
       index_t const shift = c.rows - c.keys;
       perhaps_causal(c, [=](index_t, index_t h, index_t p, index_t j) {
         return bool(kept[static_cast<std::size_t>(
             (h * R + reference::block_of(rows, p + shift)) * C + reference::block_of(keys, j))]);
       });
     }},
    {"block_rows",
     [](attention_files& c) {
       index_t const row_size = c.draw.between(1, 12), key_size = c.draw.between(1, 12),
                     R = (c.rows + row_size - 1) / row_size, C = (c.keys + key_size - 1) / key_size;
       std::vector<index_t> offsets{0}, columns;
       for (index_t r = 0; r < R; ++r) {
         for (index_t column = 0; column < C; ++column)
           if (c.draw.one_in(2)) columns.push_back(column);
         offsets.push_back(static_cast<index_t>(columns.size()));
       }
       auto const listed = static_cast<index_t>(columns.size());
       c.save("offsets", {R + 1}, offsets);
       c.save("columns", {listed}, columns);
       c.set("column_count", C);
       c.set("row_size", row_size);
       c.set("key_size", key_size);
       bool const by_row = c.draw.one_in(2), masked = !c.draw.one_in(3);
       auto const inner = c.flags(listed * row_size * key_size);
       if (masked) c.save("inner", {listed, row_size, key_size}, inner);
       if (masked && by_row) c.set("inner_layout", std::string("by_row"));
       index_t const shift = c.rows - c.keys;
       c.keep = on_pairs([=](index_t p, index_t j) {
         index_t const i = p + shift, r = i / row_size;
         index_t const first = offsets[static_cast<std::size_t>(r)],
                       count = offsets[static_cast<std::size_t>(r + 1)] - first;
         for (index_t e = 0; e < count; ++e) {
           if (columns[static_cast<std::size_t>(first + e)] != j / key_size) continue;
           index_t const a = i % row_size, b = j % key_size;
           return !masked ||
                  inner[static_cast<std::size_t>(
                      by_row ? first * row_size * key_size + (a * count + e) * key_size + b
                             : ((first + e) * row_size + a) * key_size + b)];
         }
         return false;
       });
     }},
    {"bool_mask",
     [](attention_files& c) {
       auto const kept = c.flags(c.heads * c.rows * c.keys);
       c.save("kept", {c.heads, c.rows, c.keys}, kept);
       index_t const shift = c.rows - c.keys, N = c.rows, M = c.keys;
       perhaps_causal(c, [=](index_t, index_t h, index_t p, index_t j) {
         return bool(kept[static_cast<std::size_t>((h * N + p + shift) * M + j)]);
       });
     }},
    {"bit_mask",
     [](attention_files& c) {
       auto const kept = c.flags(c.rows * c.keys);
       std::vector<std::uint8_t> bytes((kept.size() + 7) / 8);
       for (std::size_t t = 0; t < kept.size(); ++t)
         if (kept[t]) bytes[t / 8] = static_cast<std::uint8_t>(bytes[t / 8] | 1 << t % 8);
       npy::write(c.box.path("bytes.npy"),
                  {"u1", {static_cast<index_t>(bytes.size())}, {bytes.begin(), bytes.end()}});
       c.set("bytes", std::string("bytes.npy"));
       index_t const shift = c.rows - c.keys, M = c.keys;
       c.keep = on_pairs([=](index_t p, index_t j) {
         return bool(kept[static_cast<std::size_t>((p + shift) * M + j)]);
       });
     }},
    {"block_lists",
     [](attention_files& c) {
       index_t const row_size = c.draw.between(1, 12), key_size = c.draw.between(1, 12),
                     R = (c.rows + row_size - 1) / row_size, C = (c.keys + key_size - 1) / key_size;
       auto const kept = c.flags(c.rows * c.keys);
       auto const kinds = c.numbers(R * C, 0, 2);  // not listed, in part, full
       auto const list = [&](std::string const& prefix, index_t wanted) {
         std::vector<index_t> counts, columns;
         for (index_t r = 0; r < R; ++r) {
           std::vector<index_t> row;
           for (index_t column = C; column-- > 0;)
             if (kinds[static_cast<std::size_t>(r * C + column)] == wanted) row.push_back(column);
           counts.push_back(static_cast<index_t>(row.size()));
           row.resize(static_cast<std::size_t>(C),
                      -7);  // what is behind the last does not matter
           columns.insert(columns.end(), row.begin(), row.end());
         }
         c.save(prefix + "_num_blocks", {R}, counts);
         c.save(prefix + "_indices", {R, C}, columns);
       };
       list("kv", 1);
       list("full_kv", 2);
       c.save("kept", {c.rows, c.keys}, kept);
       c.set("row_size", row_size);
       c.set("key_size", key_size);
       index_t const shift = c.rows - c.keys, M = c.keys;
       c.keep = on_pairs([=](index_t p, index_t j) {
         index_t const i = p + shift,
                       kind = kinds[static_cast<std::size_t>(i / row_size * C + j / key_size)];
         return kind == 2 || (kind == 1 && kept[static_cast<std::size_t>(i * M + j)]);
       });
     }},
    {"benchmark_mask", [](attention_files& c) {
       index_t const block = c.draw.between(1, 6), prefix = c.draw.between(0, 10),
                     reach = c.draw.between(0, 12);
       std::vector<index_t> boundaries = c.numbers(c.draw.between(1, 4), 0, 8);
       boundaries.push_back(0);
       std::sort(boundaries.begin(), boundaries.end());
       for (index_t& each : boundaries) each *= block;
       c.rows = c.keys = boundaries.back();
       if (c.keys == 0) c.rows = c.keys = boundaries.back() = block;
       reference::document_list const documents{boundaries};
       auto masks = reference::benchmark_masks(documents, prefix, reach);
       masks.push_back(reference::block_causal_document(documents, block));
       std::string const names[] = {
           "full",           "causal",           "full_document",    "causal_document",
           "share_question", "causal_blockwise", "prefix_lm_causal", "prefix_lm_document",
           "window",         "causal_window",    "global_window",    "block_causal_document"};
       auto const which = static_cast<std::size_t>(c.draw.between(0, 11));
       c.set("mask", names[which]);
       c.save("boundaries", {static_cast<index_t>(boundaries.size())}, boundaries);
       c.set("prefix", prefix);
       c.set("reach", reach);
       c.set("block", block);
       if (c.draw.one_in(2)) c.set("form", std::string("column_ranges"));
       c.keep = on_pairs(masks[which].keep);
     }}};

}  // namespace

TEST_CASE("heed_conformance: patterns of windows, sets of keys and tables", "[cli][patterns]") {
  check_patterns(tests);
}
