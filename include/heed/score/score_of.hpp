#pragma once

#include <heed/score/modifier.hpp>

#include <type_traits>

namespace heed {

/// The slope of a score function that only adds to the score.
struct unit_slope {
  template <class Batch>
  constexpr Batch operator()(Batch, Batch) const {
    return Batch(typename Batch::value_type(1));
  }
};

/// A function as a score modifier; see score_of.
template <class F, class Slope>
struct function_score {
  F function;
  Slope slope_function;

  template <class Batch>
  Batch apply(Batch score, Batch query, Batch key) const {
    return function(score, query, key);
  }
  template <class Batch>
  Batch slope(Batch score, Batch modified) const {
    return slope_function(score, modified);
  }
};

/// A function of batch entry and head as a score modifier.
template <class F, class Slope>
struct placed_function_score {
  F function;
  Slope slope_function;

  struct bound {
    F function;
    Slope slope_function;
    index_t batch;
    index_t head;

    template <class Batch>
    Batch apply(Batch score, Batch query, Batch key) const {
      return function(score, batch, head, query, key);
    }
    template <class Batch>
    Batch slope(Batch score, Batch modified) const {
      return slope_function(score, modified);
    }
  };

  constexpr bound bind(place const& where) const {
    return {function, slope_function, where.batch, where.head};
  }
};

/// A score modifier from a function of SIMD registers: a score_mod of FlexAttention.
///
///     heed::score_of([](auto score, auto query, auto key) { return score - 0.1f * xsimd::abs(query - key); })
///     heed::score_of([&](auto score, index_t batch, index_t head, auto query, auto key) { return ...; })
///     heed::score_of([](auto score, auto, auto) { return score * score; },
///                    [](auto score, auto modified) { return score + score; })
///
/// `slope` is d modified / d score, for the backward pass, from the score before and after; without it the function
/// must only add something that does not depend on the score. Functions are copied and must be pure. What a function
/// reads from memory for each pair, with a gradient, is a `bias`.
template <class F, class Slope = unit_slope>
constexpr auto score_of(F const& modify, Slope const& slope = {}) {
  using probe = detail::probe;
  if constexpr (std::is_invocable_v<F const&, probe, probe, probe>) {
    return function_score<F, Slope>{modify, slope};
  } else {
    static_assert(std::is_invocable_v<F const&, probe, index_t, index_t, probe, probe>,
                  "heed: score_of takes a function (score, query, key) or (score, batch, head, "
                  "query, key) of SIMD registers");
    return placed_function_score<F, Slope>{modify, slope};
  }
}

}  // namespace heed
