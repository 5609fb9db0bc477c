#pragma once

#include <heed/pattern/pattern.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/math.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <utility>

/// Normalisers: how the scores of a row become weights.
///
/// A normaliser says how the running state of a row moves; a SIMD lane is a row:
///
///     static constexpr double score_unit;   // scores arrive multiplied by this
///     static constexpr key_order order;     // in which order a row must meet its keys
///     template <class Batch> struct state;  // default constructed: a row that has met no key
///
///     // Before a block of keys whose largest score is `top`: the factor for the values so far.
///     Batch admit(state<Batch>&, Batch top) const;
///     // The weight of the next key, not yet normalised; 0 for -infinity, the score of a pair that is hidden.
///     Batch weigh(state<Batch>&, Batch score) const;
///     finished_row<Batch> finish(state<Batch> const&) const;
///     // The union of two disjoint key sets, `other` later in `order`: the factors for the values of both.
///     std::pair<Batch, Batch> join(state<Batch>&, state<Batch> const& other) const;
///
/// and for the backward pass, from what finish() returned (rest is 0 where only lse was saved),
///
///     // The normalised weight.
///     Batch weight(Batch score, Batch lse, Batch rest) const;
///     // d loss / d score, with delta_i = dout_i . out_i and dlse_i = d loss / d lse_i.
///     Batch score_gradient(Batch score, Batch weight, Batch dweight, Batch delta, Batch dlse) const;
namespace heed {

/// The order in which a normaliser must meet the keys of a row.
enum class key_order { any, oldest_first, newest_first };

/// A finished row: its values are the accumulated ones times `factor`; `lse` is what backward needs, and
/// `rest` what rounding took from it.
template <class Batch>
struct finished_row {
  Batch factor;
  Batch lse;
  Batch rest = Batch(typename Batch::value_type(0));
};

template <class N>
concept bound_normaliser = requires(N const& n,
                                    typename N::template state<xsimd::batch<float>>& row,
                                    xsimd::batch<float> x) {
  { n.admit(row, x) } -> std::same_as<xsimd::batch<float>>;
  { n.weigh(row, x) } -> std::same_as<xsimd::batch<float>>;
  { n.finish(row) } -> std::same_as<finished_row<xsimd::batch<float>>>;
};

template <class N>
concept normaliser = bound_normaliser<N> || requires(N const& n, place const& where) {
  { n.bind(where) } -> bound_normaliser;
};

/// Softmax: a_ij = exp(s_ij - lse_i), lse_i = log sum_j exp(s_ij). A row with no key gives 0 and
/// lse = -infinity.
///
/// The reference of a row is a score near its maximum: it moves only when a score exceeds it by
/// more than 2^8, which costs no precision and makes rescaling rare. A row of one key has a weight
/// of exactly 1.
struct softmax {
  static constexpr double log2_e = 1.4426950408889634074;
  static constexpr double score_unit = log2_e;
  static constexpr key_order order = key_order::any;

  template <class Batch>
  struct state {
    Batch reference = Batch(-std::numeric_limits<typename Batch::value_type>::infinity());
    Batch total = Batch(typename Batch::value_type(0));
  };

  template <class Batch>
  static Batch admit(state<Batch>& row, Batch top) {
    constexpr auto slack = typename Batch::value_type(8);
    Batch const before = row.reference;
    row.reference = xsimd::select(top > before + Batch(slack), top, before);
    Batch const factor = simd::exp2(before - finite(row.reference));
    row.total *= factor;
    return factor;
  }

  template <class Batch>
  static Batch weigh(state<Batch>& row, Batch score) {
    Batch const weight = simd::exp2(score - finite(row.reference));
    row.total += weight;
    return weight;
  }

  template <class Batch>
  static std::pair<Batch, Batch> join(state<Batch>& row, state<Batch> const& other) {
    Batch const reference = xsimd::max(row.reference, other.reference);
    Batch const mine = simd::exp2(row.reference - finite(reference));
    Batch const theirs = simd::exp2(other.reference - finite(reference));
    row.total = row.total * mine + other.total * theirs;
    row.reference = reference;
    return {mine, theirs};
  }

  template <class Batch>
  static finished_row<Batch> finish(state<Batch> const& row) {
    using T = typename Batch::value_type;
    auto const empty = row.total == Batch(T(0));
    Batch const factor = xsimd::select(empty, Batch(T(0)), Batch(T(1)) / row.total);
    // lse = reference ln 2 + log total, in two parts that together know it better than one.
    Batch const log_total =
        simd::fma(row.reference, Batch(constants<T>::ln_2_rest), simd::log(row.total));
    Batch const lse = simd::fma(row.reference, Batch(constants<T>::ln_2), log_total);
    Batch const rest = simd::fma(row.reference, Batch(constants<T>::ln_2), -lse) + log_total;
    Batch const lowest(-std::numeric_limits<T>::infinity());
    return {factor, xsimd::select(empty, lowest, lse), xsimd::select(empty, Batch(T(0)), rest)};
  }

  template <class Batch>
  static Batch weight(Batch score, Batch lse, Batch rest) {
    using T = typename Batch::value_type;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    // A row that met no key has weights of 0.
    Batch const above = xsimd::select(lse == Batch(-infinity), Batch(infinity), lse);
    Batch const exponent = simd::fnma(above, Batch(constants<T>::log2_e), score);
    Batch const correction =
        simd::fma(above, Batch(constants<T>::log2_e_rest), rest * Batch(constants<T>::log2_e));
    return simd::exp2(exponent - correction);
  }

  template <class Batch>
  static Batch score_gradient(Batch, Batch weight, Batch dweight, Batch delta, Batch dlse) {
    return weight * (dweight - delta + dlse);
  }

 private:
  // Numbers that T rounds, with what the rounding took.
  template <class T>
  struct constants {
    static constexpr bool single = std::same_as<T, float>;
    static constexpr double ln_2_exact = 0.69314718055994530942;
    static constexpr T log2_e = static_cast<T>(softmax::log2_e);
    static constexpr T log2_e_rest = static_cast<T>(
        single ? softmax::log2_e - double(float(softmax::log2_e)) : 2.0355273740931033e-17);
    static constexpr T ln_2 = static_cast<T>(ln_2_exact);
    static constexpr T ln_2_rest =
        static_cast<T>(single ? ln_2_exact - double(float(ln_2_exact)) : 2.3190468138462996e-17);
  };

  // Keeps -infinity - (-infinity) from becoming NaN in a row that has met no key.
  template <class Batch>
  static Batch finite(Batch reference) {
    return xsimd::max(Batch(std::numeric_limits<typename Batch::value_type>::lowest()), reference);
  }
};

/// Softmax with extra logits z in the denominator only, S for each head:
/// lse_i = log(sum_j exp(s_ij) + sum_t exp(z_t)). A row with no key gives 0 and lse = log sum_t
/// exp(z_t).
///
///   logits    [head] or [head, S]
///   gradient  the same shape, written by attention_backward; optional
///
/// When Attention Sink Emerges in Language Models; one zero logit is softmax-off-by-one.
template <class T>
struct softmax_with_sinks {
  tensor_view<T const, 2> logits;
  tensor_view<T, 2> gradient = {};

  template <class U>
    requires std::is_same_v<T, std::remove_const_t<U>>
  explicit softmax_with_sinks(tensor_view<U, 2> z, tensor_view<T, 2> g = {})
      : logits(z), gradient(g) {}
  template <class U>
    requires std::is_same_v<T, std::remove_const_t<U>>
  explicit softmax_with_sinks(tensor_view<U, 1> z, tensor_view<T, 1> g = {})
      : logits(column(z)), gradient(column(g)) {}

  struct bound : softmax {
    double sink_lse;

    template <class Batch>
    finished_row<Batch> finish(state<Batch> const& row) const {
      Batch const logit(static_cast<typename Batch::value_type>(sink_lse * log2_e));
      state<Batch> whole = row;
      Batch const factor = admit(whole, logit);
      weigh(whole, logit);
      finished_row<Batch> done = softmax::finish(whole);
      done.factor *= factor;
      return done;
    }
  };

  bound bind(place const& where) const {
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (index_t t = 0; t < logits.extent(1); ++t)
      top = std::max(top, double(logits(where.head, t)));
    if (top == -std::numeric_limits<double>::infinity()) return {{}, top};
    for (index_t t = 0; t < logits.extent(1); ++t)
      total += std::exp(double(logits(where.head, t)) - top);
    return {{}, top + std::log(total)};
  }

  void check(call_shape const& shape) const {
    require(logits.extent(0) == shape.heads, [&] {
      return "the logits of softmax_with_sinks have shape " + shape_text(logits.extents()) +
             "; expected [" + std::to_string(shape.heads) + ", any] (head, sink)";
    });
    require(gradient.data() == nullptr || gradient.extents() == logits.extents(), [&] {
      return "the gradient of softmax_with_sinks has shape " + shape_text(gradient.extents()) +
             "; expected that of the logits, " + shape_text(logits.extents());
    });
  }

 private:
  template <class U>
  static tensor_view<U, 2> column(tensor_view<U, 1> view) {
    return view.data() == nullptr
               ? tensor_view<U, 2>{}
               : tensor_view<U, 2>(view.data(), {view.extent(0), 1}, {view.stride(0), 1});
  }
};
template <class U, int Rank>
softmax_with_sinks(tensor_view<U, Rank>) -> softmax_with_sinks<std::remove_const_t<U>>;
template <class U, class G, int Rank>
softmax_with_sinks(tensor_view<U, Rank>, tensor_view<G, Rank>)
    -> softmax_with_sinks<std::remove_const_t<U>>;

}  // namespace heed
