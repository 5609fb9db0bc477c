// Parts of a recurrence_call: some batch entries, some heads, some tokens.
#pragma once

#include "support/recurrence_call.hpp"

namespace support {

/// A call of which every tensor over queries or keys is replaced by part(view, of_query).
template <class Call, class Part>
Call part_of(Call c, Part part) {
  auto const replace = [&](bool of_query, auto&... views) {
    ((views = views.data() == nullptr ? views : part(views, of_query)), ...);
  };
  replace(true, c.query, c.out, c.dout, c.dquery);
  replace(false, c.key, c.value, c.log_gate, c.log_key_gate, c.log_value_gate, c.rate, c.dkey,
          c.dvalue, c.dlog_gate, c.dlog_key_gate, c.dlog_value_gate, c.drate);
  return c;
}

/// One sequence of its states.
template <class Call>
void take_state(Call& c, index_t sequence) {
  auto const one = [&](auto&... views) {
    ((views = views.data() == nullptr ? views : views.slice(0, sequence, 1)), ...);
  };
  one(c.initial, c.final, c.dinitial, c.dfinal);
}

/// Some rows and keys of every sequence.
template <class Call>
Call tokens_of(Call const& c, index_t first_row, index_t rows, index_t first_key, index_t keys) {
  return part_of(c, [&](auto view, bool of_query) {
    return of_query ? view.slice(1, first_row, rows) : view.slice(1, first_key, keys);
  });
}

}  // namespace support
