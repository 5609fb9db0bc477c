#pragma once

#include <heed/pattern/pattern.hpp>

#include <span>
#include <string>

/// Patterns for each place: a list where the sequences of a batch have one each, and parameters by key head.
namespace heed {

/// Batch entry b has patterns[b]. Where documents pack several sequences, sequence b has.
template <pattern P>
struct by_sequence {
  std::span<P const> patterns;

  auto bind(place const& where) const {
    // Each was made for a batch of one.
    place alone = where;
    alone.batch = alone.sequence = 0;
    return bind_at(patterns[static_cast<std::size_t>(where.sequence)], alone);
  }
  void check(call_shape const& shape) const {
    require(static_cast<index_t>(patterns.size()) == shape.sequences, [&] {
      return "by_sequence has " + std::to_string(patterns.size()) +
             " patterns; expected one for each of " + std::to_string(shape.sequences) +
             " sequences";
    });
    call_shape alone = shape;
    alone.batches = alone.sequences = 1;
    if (shape.sequences == shape.batches)  // how long packed ones are is not told here
      for (P const& each : patterns) check_against(each, alone);
  }
};

/// A pattern whose parameters are those of key heads: query head h, of which `group` share a key head, has those of
/// head h / group.
template <pattern P>
struct by_key_head {
  P pattern;
  index_t group;

  auto bind(place where) const {
    where.head /= group;
    return bind_at(pattern, where);
  }
  void check(call_shape shape) const {
    require(group > 0 && shape.heads % group == 0, [&] {
      return "by_key_head has groups of " + std::to_string(group) +
             " query heads; expected a divisor of the " + std::to_string(shape.heads) + " heads";
    });
    shape.heads /= group;
    check_against(pattern, shape);
  }
};
template <pattern P>
by_key_head(P, index_t) -> by_key_head<P>;

}  // namespace heed
