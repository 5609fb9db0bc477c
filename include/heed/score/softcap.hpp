#pragma once

#include <heed/score/modifier.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/math.hpp>

namespace heed {

/// Bounds the scores smoothly: s -> cap * tanh(s / cap), cap > 0.
/// `gradient`, if given, receives d loss / d cap from attention_backward.
/// Gemma 2: Improving Open Language Models at a Practical Size.
struct softcap {
  double cap;
  double* gradient = nullptr;

  template <class Batch>
  Batch apply(Batch score, Batch, Batch) const {
    using number = typename Batch::value_type;
    return Batch(number(cap)) * simd::tanh(score * Batch(number(1 / cap)));
  }
  template <class Batch>
  Batch slope(Batch, Batch capped) const {
    // Not times 1 / cap, which is not 1 where the cap is reached.
    Batch const level = capped / Batch(typename Batch::value_type(cap));
    return simd::fnma(level, level, Batch(1));
  }
  bool wants_gradient() const { return gradient != nullptr; }
  void set_gradient(double const* sum_of_head, index_t heads) const {
    *gradient = 0;
    for (index_t h = 0; h < heads; ++h) *gradient += sum_of_head[h];
  }

  void check(call_shape const&) const {
    require(cap > 0,
            [&] { return "softcap is " + std::to_string(cap) + "; expected a positive number"; });
  }

  /// d (modified score) / d cap = tanh(s / cap) - (s / cap) (1 - tanh(s / cap)^2).
  double parameter_slope(double score, double capped, index_t, index_t) const {
    return (capped - score * (1 - capped * capped / (cap * cap))) / cap;
  }
};

}  // namespace heed
