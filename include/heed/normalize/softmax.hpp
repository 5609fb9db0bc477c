#pragma once

#include <heed/pattern/pattern.hpp>
#include <heed/simd/math.hpp>

#include <limits>

/// Normalisers: how the scores of a row become weights.
///
/// A normaliser owns the running state of rows, one row a SIMD lane, and says how the state moves:
///
///     template <class Batch> struct state;                       // its default is a row that met no key
///     Batch admit(state&, Batch top) const;        // before a block of keys whose largest score is `top`:
///                                                  // returns the factor for what was accumulated so far
///     Batch weigh(state&, Batch score) const;      // the weight of one key, in the order of `order`
///     Batch join(state&, state const&) const;      // two disjoint sets of keys; see merge.hpp
///     finished<Batch> finish(state const&) const;  // factor of the accumulated values, and the row's lse
///     Batch weight(Batch score, Batch lse) const;                 // backward: the final weight again
///     Batch score_gradient(Batch weight, Batch dweight, Batch delta) const;
///
/// Scores arrive in base 2: multiplied by log2 e.
namespace heed {

/// The order in which a normaliser must meet the keys of a row.
enum class key_order { any, oldest_first, newest_first };

/// What a finished row comes to: its values are the accumulated ones times `factor`.
template <class Batch>
struct finished_row {
  Batch factor;
  Batch lse;
};

/// Softmax: a_ij = exp(s_ij - lse_i), lse_i = log sum_j exp(s_ij). A row with no key gives 0 and
/// lse = -infinity.
///
/// The reference is the running maximum rounded up to an integer in base 2, so that every rescaling is by
/// a power of two and rounds nothing.
struct softmax {
  static constexpr key_order order = key_order::any;

  template <class Batch>
  struct state {
    Batch reference{-std::numeric_limits<typename Batch::value_type>::infinity()};
    Batch total{0};
  };

  template <class Batch>
  static Batch admit(state<Batch>& row, Batch top) {
    Batch const lowest(std::numeric_limits<typename Batch::value_type>::lowest());
    Batch const reference = xsimd::max(row.reference, xsimd::ceil(top));
    // A row of -infinity scores keeps weights of 0: exp2(-infinity - lowest) is 0, not NaN.
    Batch const factor = simd::exp2(row.reference - xsimd::max(reference, lowest));
    row.reference = reference;
    row.total *= factor;
    return factor;
  }
  template <class Batch>
  static Batch weigh(state<Batch>& row, Batch score) {
    Batch const weight = simd::exp2(score - row.reference);
    row.total += weight;
    return weight;
  }
};

}  // namespace heed
