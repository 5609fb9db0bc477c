#pragma once

#include <heed/pattern/pattern.hpp>

#include <type_traits>

namespace heed {

/// A function as a pattern; see mask_of.
template <class F>
struct function_mask {
  F function;

  template <class Batch>
  constexpr auto keep(Batch query, Batch key) const -> typename Batch::batch_bool_type requires
      std::is_invocable_r_v<typename Batch::batch_bool_type, F const&, Batch, Batch> {
    return function(query, key);
  }
  constexpr bool keep(index_t query, index_t key) const { return function(query, key); }
};

/// A function of batch entry and head as a pattern.
template <class F>
struct placed_function_mask {
  F function;

  struct bound {
    F function;
    index_t batch;
    index_t head;

    constexpr bool keep(index_t query, index_t key) const {
      return function(batch, head, query, key);
    }
  };

  constexpr bound bind(place const& where) const { return {function, where.batch, where.head}; }
};

/// A pattern from a function that says whether a query meets a key: a mask_mod of FlexAttention.
///
///     heed::mask_of([](heed::index_t query, heed::index_t key) { return (query - key) % 3 == 0; })
///     heed::mask_of([](auto query, auto key) { return key <= query; })
///     heed::mask_of([&](index_t batch, index_t head, index_t query, index_t key) { return ...; })
///
/// Arguments are positions: the query's is row + (keys - rows) unless the call says otherwise, which is its row where
/// there are as many of each. A function of `auto` is also called with SIMD registers, of positions as floats, and so
/// may only compare, add and combine with & and |; one of index_t may do anything, a pair at a time. The function is
/// copied, must be pure, and is asked only of pairs that exist.
///
/// The functions know nothing of tiles: every tile is looked into. `&`, `|` and `~` combine them with patterns that
/// do, and classify() finds once which tiles are empty or full.
template <class F>
constexpr auto mask_of(F const& keep) {
  static_assert(std::is_invocable_r_v<bool, F const&, index_t, index_t> ||
                    std::is_invocable_r_v<bool, F const&, index_t, index_t, index_t, index_t>,
                "heed: mask_of takes a function (query, key) or (batch, head, query, key) of "
                "index_t that returns bool");
  if constexpr (std::is_invocable_r_v<bool, F const&, index_t, index_t>)
    return function_mask<F>{keep};
  else
    return placed_function_mask<F>{keep};
}

}  // namespace heed
