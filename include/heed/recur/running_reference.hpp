#pragma once

#include <heed/recur/passes.hpp>

#include <limits>

namespace heed::recur {

/// What the exponents of keys are relative to where the keys are not known beforehand: the largest so far,
/// c_t = max(c_(t-1), x_t). A key weighs e^(.. - c_t), and the state, e^-c_t times what it stands for, fades by
/// e^(c_(t-1) - c_t) where c grows.
///
///   x      [batch, position, heads], in whose place c is written
///   fall   c_(t-1) - c_t, the same shape; 0 where c_(t-1) is -infinity, since there is nothing yet to fade
///   held   c before and after, [sequence, heads]. Null: -infinity before
template <class T>
void running_reference(any_executor const& run_on, sequence_list const& sequences,
                       tensor_view<T, 3> x, tensor_view<double, 3> fall,
                       tensor_view<double, 2> held) {
  constexpr double nothing = -std::numeric_limits<double>::infinity();
  index_t const heads = x.extent(2);
  parallel_for(run_on, sequences.count * heads, [&](index_t piece, index_t) {
    place const where = sequences.at(piece / heads);
    index_t const b = where.batch, h = piece % heads;
    double top = held.data() == nullptr ? nothing : held(where.sequence, h);
    for (index_t t = where.first_key; t < where.first_key + where.keys; ++t) {
      // A number of T is exact in double, and so is the difference of two: gates add up to what references say.
      double const next = std::max(top, static_cast<double>(x(b, t, h)));
      fall(b, t, h) = top == nothing ? 0 : top - next;
      x(b, t, h) = static_cast<T>(next);
      top = next;
    }
    if (held.data() != nullptr) held(where.sequence, h) = top;
  });
}

}  // namespace heed::recur
