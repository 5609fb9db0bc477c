#pragma once

#include <heed/score/modifier.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/math.hpp>

#include <concepts>
#include <utility>

namespace heed {

/// Bounds the scores smoothly: s -> cap * tanh(s / cap), cap > 0.
/// `gradient`, if given, receives d loss / d cap from attention_backward.
/// Gemma 2: Improving Open Language Models at a Practical Size.
struct softcap {
  double cap;
  double* gradient = nullptr;

  /// The cap and its inverse in either type that scores have, so that a row of scores neither divides nor converts.
  struct bound {
    std::pair<float, float> in_float;
    std::pair<double, double> in_double;

    template <class T>
    constexpr std::pair<T, T> const& in() const {
      if constexpr (std::same_as<T, float>)
        return in_float;
      else
        return in_double;
    }

    template <class Batch>
    Batch apply(Batch score, Batch, Batch) const {
      auto const& [most, inverse] = in<typename Batch::value_type>();
      return simd::bounded_by_tanh(score, Batch(most), Batch(inverse));
    }
    template <class Batch>
    Batch slope(Batch, Batch capped) const {
      // Not times 1 / cap, which is not 1 where the cap is reached.
      Batch const level = capped / Batch(in<typename Batch::value_type>().first);
      return simd::fnma(level, level, Batch(1));
    }
    /// d (modified score) / d cap = tanh(s / cap) - (s / cap) (1 - tanh(s / cap)^2).
    double parameter_slope(double score, double capped, index_t, index_t) const {
      double const most = in_double.first;
      return (capped - score * (1 - capped * capped / (most * most))) / most;
    }
  };
  bound bind(place const&) const {
    return {{static_cast<float>(cap), static_cast<float>(1 / cap)}, {cap, 1 / cap}};
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
};

}  // namespace heed
