// The engine against the definition, for any pattern: compiled once for all tests that ask.
#pragma once

#include <heed/pattern/any_pattern.hpp>

#include <functional>
#include <string>

namespace support {

using heed::index_t;

/// A pattern for the engine and its definition.
struct attention_case {
  heed::any_pattern pattern;
  /// Whether a pair is kept. The query's position is its row + keys - rows; with an arrangement it is its row.
  std::function<bool(index_t batch, index_t head, index_t position, index_t key)> keep;
  index_t rows = 64;
  index_t keys = 64;
  index_t batches = 1;
  index_t heads = 2;
  index_t key_heads = 1;
  /// How tokens are arranged, if not in their order. It outlives the case.
  heed::any_arrangement order = {};
  /// Whether a call with the last rows alone computes those rows.
  bool decodes = true;
};

/// Runs forward with lse, backward and decode in float, serially and with two threads, on random operands: the 2x rule
/// against the definition in double, and the same bits from both. Returns a complaint, or nothing.
std::string attention_complaint(std::uint64_t seed, attention_case const& what);

}  // namespace support
