// The ingredients of a recurrence_call, for the files that compile its calls.
#pragma once

#include "support/recurrence_call.hpp"

#include <heed/recur/problem.hpp>
#include <heed/score/scale.hpp>

#include <stdexcept>
#include <tuple>

namespace support {

template <class Call>
[[noreturn]] void not_compiled(Call const& call) {
  throw std::logic_error(
      std::string("this combination of clauses is not compiled: ") +
      (call.log_gate.data() ? "gate " : "") + (call.log_key_gate.data() ? "key_gate " : "") +
      (call.log_value_gate.data() ? "value_gate " : "") + (call.rate.data() ? "rate " : "") +
      (call.exact ? "exact " : "") + (call.dense ? "dense " : "") +
      (call.normaliser ? "normalised " : "") + (call.map ? "map " : "") +
      (call.documents ? "documents " : "") + (call.initial.data() ? "states " : ""));
}

/// Which gates and which rule.
enum : unsigned {
  gate = 1,
  key_gate = 2,
  value_gate = 4,
  with_delta = 8,
  with_exact = 16,
  at_end = 32
};

template <class Call>
unsigned kind_of(Call const& call) {
  return (call.log_gate.data() ? gate : 0u) | (call.log_key_gate.data() ? key_gate : 0u) |
         (call.log_value_gate.data() ? value_gate : 0u) |
         (!call.rate.data() ? 0u
          : call.exact      ? with_exact
                            : with_delta) |
         (call.dense ? at_end : 0u);
}

/// Calls f with the ingredients of one kind.
template <unsigned kind, class Call, class F>
void with_kind(Call const& c, F const& f) {
  auto const chosen = [](auto... parts) { return std::tuple_cat(parts...); };
  auto const when = []<bool wanted>(std::bool_constant<wanted>, auto make) {
    if constexpr (wanted)
      return std::tuple(make());
    else
      return std::tuple();
  };
  using std::bool_constant;
  std::apply(f, chosen(when(bool_constant<(kind & gate) != 0>(),
                            [&] { return heed::decay(c.log_gate, c.dlog_gate); }),
                       when(bool_constant<(kind & key_gate) != 0>(),
                            [&] { return heed::key_decay(c.log_key_gate, c.dlog_key_gate); }),
                       when(bool_constant<(kind & value_gate) != 0>(),
                            [&] { return heed::value_decay(c.log_value_gate, c.dlog_value_gate); }),
                       when(bool_constant<(kind & with_delta) != 0>(),
                            [&] { return heed::delta(c.rate, c.drate); }),
                       when(bool_constant<(kind & with_exact) != 0>(),
                            [&] { return heed::exact_delta(c.rate, c.drate); }),
                       when(bool_constant<(kind & at_end) != 0>(), [] { return heed::dense{}; })));
}
template <unsigned... kinds, class Call, class F>
void with_one_of(Call const& c, F const& f) {
  if (!((kind_of(c) == kinds && (with_kind<kinds>(c, f), true)) || ...)) not_compiled(c);
}

/// Calls f(states, ingredients...), states saying whether the call begins and ends with them. The combinations that are
/// compiled: every kind alone, and with a map and states; what can be normalised, and some with documents, also with a map
/// and states. In types other than float, some of them.
template <class Call, class F>
void with_clauses(Call const& c, F const& f) {
  auto const with = [&](auto states, auto const&... more) {
    index_t const features = c.map ? c.map->count(c.key.extent(3)) : c.key.extent(3),
                  columns = c.value.extent(3) + (c.normaliser ? 1 : 0),
                  chunk = c.chunk > 0 ? c.chunk
                                      : heed::recur::chunk_tokens(features, columns,
                                                                  c.rate.data() != nullptr);
    return [&f, &c, states, chunk, more...](auto const&... clauses) {
      f(states, clauses..., more..., heed::scale{c.scale}, heed::chunk_size{chunk}, c.executor);
    };
  };
  constexpr std::true_type states;
  constexpr std::false_type no_states;
  if constexpr (Call::few_combinations) {
    if (c.documents || (c.normaliser && !c.map) || (c.map && !c.initial.data()))
      not_compiled(c);
    else if (c.normaliser)
      with_one_of<0, gate>(c, with(states, *c.map, *c.normaliser));
    else if (c.map)
      with_one_of<0, key_gate, gate | with_delta>(c, with(states, *c.map));
    else if (c.initial.data())
      with_one_of<0, gate, value_gate, with_delta>(c, with(states));
    else
      with_one_of<0, gate, key_gate, gate | with_exact, at_end>(c, with(no_states));
  } else {
    if (!c.map && !c.normaliser && !c.documents) {
      auto const any_kind = [&](auto has_states) {
        with_one_of<0, gate, key_gate, value_gate, gate | value_gate, key_gate | value_gate,
                    with_delta, gate | with_delta, key_gate | with_delta, with_exact,
                    gate | with_exact, key_gate | with_exact, at_end>(c, with(has_states));
      };
      if (c.initial.data())
        any_kind(states);
      else
        any_kind(no_states);
    } else if (!c.map || !c.initial.data()) {
      not_compiled(c);
    } else if (c.documents && c.normaliser) {
      with_one_of<0, gate>(c, with(states, *c.map, *c.normaliser, *c.documents));
    } else if (c.documents) {
      with_one_of<0, gate, key_gate, value_gate, with_delta, gate | with_delta, at_end>(
          c, with(states, *c.map, *c.documents));
    } else if (c.normaliser) {
      with_one_of<0, gate, key_gate, with_delta, gate | with_delta, key_gate | with_delta, at_end>(
          c, with(states, *c.map, *c.normaliser));
    } else {
      with_one_of<0, gate, key_gate, value_gate, gate | value_gate, key_gate | value_gate,
                  with_delta, gate | with_delta, key_gate | with_delta, with_exact,
                  gate | with_exact, key_gate | with_exact, at_end>(c, with(states, *c.map));
    }
  }
}

}  // namespace support
