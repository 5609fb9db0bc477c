#pragma once

#include <heed/mechanism/global_tokens.hpp>
#include <heed/mechanism/prefix_lm.hpp>
#include <heed/mechanism/streaming.hpp>
#include <heed/pattern/count.hpp>
#include <heed/pattern/dilated_window.hpp>
#include <heed/pattern/key_offsets.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/pattern/labels.hpp>
#include <heed/pattern/lifetimes.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/softmax.hpp>

/// Windows, and the other patterns that say key by key, row by row or distance by distance which pairs meet.
///
/// All of them are ingredients of attention() and attention_backward() and compose with &, | and ~:
///
///     heed::attention(q, k, v, out, heed::sliding_window{.left = 255, .right = 0});
///     heed::attention(q, k, v, out, heed::streaming{.sinks = 4, .recent = 1020});
///     heed::attention(q, k, v, out, heed::causal{} & heed::labels{document, document, same});
///
/// A query's position p is its row + keys - rows: the last query stands at the last key. Which to choose:
///
///   by distance   sliding_window{.left, .right}       p - left <= key <= p + right, both inclusive
///                 streaming{.sinks, .recent}          the first keys and the most recent ones, own included
///                 streaming_heads{sinks, recent}      the same, numbers by batch and head
///                 dilated_window{.left, .right, .step}, strided(step)    every step-th key of a window
///                 key_offsets{intervals}              any set of differences key - p
///   in front      prefix_lm(prefix)                   the prefix for all, the rest causally
///                 global_tokens{.count, .reach}       the first tokens meet all, the others a window
///                 first_keys{n}, key_lengths{lengths}
///   by key        key_set{kept}, key_list{keys}       some keys for all queries: marks, or a sorted list
///                 lifetimes{ends}                     each key from its own query on until it is forgotten
///   by row        row_ranges{first, last}             one range of keys for each row
///   by kind       labels{queries, keys, admitted}     which kinds of token meet which
///
/// Numbers in memory are views, read in place; those by batch and head are broadcast where an extent is 1. Documents
/// that lie one after the other are no labels but `documents`: no pair of two documents is looked at.
///
/// How the cost follows: a call takes the time of the keys that some query of each 24 consecutive ones meets.
/// kept_pairs(pattern, rows, keys) counts the pairs. A cache for a window or for streaming need not hold more keys than
/// these meet: ring_cache (heed/cache/ring_cache.hpp).
