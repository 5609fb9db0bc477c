#pragma once

#include <heed/mechanism/benchmark_masks.hpp>
#include <heed/pattern/bit_mask.hpp>
#include <heed/pattern/block_lists.hpp>
#include <heed/pattern/block_table.hpp>
#include <heed/pattern/bool_mask.hpp>
#include <heed/pattern/classified.hpp>
#include <heed/pattern/column_ranges.hpp>
#include <heed/pattern/count.hpp>
#include <heed/pattern/mask_of.hpp>
#include <heed/pattern/slices.hpp>
#include <heed/score/score_of.hpp>
#include <heed/softmax.hpp>

/// Sparse attention over pairs that are known before the content: blocks, rectangles, masks in memory, and functions of
/// one's own.
///
/// All of them are ingredients of attention() and attention_backward() and compose with &, | and ~:
///
///     heed::attention(q, k, v, out, heed::block_table{.kept = table, .rows = {64}, .keys = {64}} & heed::causal{});
///     heed::attention(q, k, v, out, heed::mask_of([](auto query, auto key) { return key <= query; }));
///
/// What you have                                            | use
/// ---------------------------------------------------------|---------------------------------------------------------
/// a boolean for each block of pairs                        | block_table{.kept, .rows, .keys}
/// lists of blocks, row by row (BCSR), with inner masks     | block_rows{.offsets, .columns, .column_count, …}
/// kv_num_blocks and kv_indices (FlexAttention)             | classified(pattern, classes_of(lists, …))
/// rectangles, full, causal or banded (MagiAttention)       | slices{list}
/// start and end rows for each key (FlashMask)              | column_ranges{columns, causal}
/// a boolean for each pair                                  | bool_mask{kept}
/// a bit for each pair, packed (FlashInfer)                 | bit_mask{bytes, offsets}
/// a number to add for each pair                            | bias{numbers}, a score modifier (score/bias.hpp)
/// a function of query and key, of batch and head           | mask_of(function)
/// the same, for many calls or a long sequence              | classified(mask_of(function), classify(function, n, n))
/// a function of the score (score_mod)                      | score_of(function), with its slope for gradients
/// a mask of the long-context benchmark                     | benchmark::share_question(boundaries).as_slices(), …
///
/// Tables, lists and masks are views, read in place and checked before anything is written; those by batch and head are
/// broadcast where an extent is 1. Their rows are those of the call; one that tells of whole sequences, of which the
/// call computes some rows, says `.first_position = 0` (pattern/placed_table.hpp).
///
/// What it costs: attention takes the time of the keys that some query of each 24 consecutive ones meets, so blocks
/// pay from 24 rows on, and of keys any number is as good. Beyond that a pattern must be asked where its pairs
/// are. Blocks answer at once. Masks are read for each head; one without structure takes a quarter to two
/// fifths more time than no mask at all. slices and column_ranges look through their list for every 24 queries, and a function is asked of every
/// pair in reach: for these classify() finds empty and full blocks once, in two bits each, and the calls that follow ask
/// only where a block is kept in part. Small blocks (64 x 64) follow a narrow band better than large ones.
/// kept_pairs(pattern, rows, keys) counts pairs.
