#include "support/recurrence_parts.hpp"
#include "support/recurrence_problem.hpp"

// A sequence can be cut anywhere: a call that begins with the state another has ended with goes on where that one
// stopped, and so do gradients from the end.

using heed::index_t;
using support::for_each_seed;
using support::recurrence_problem;
using support::seed_t;

namespace {

/// The last key of the first part, and the rows that stand there.
struct cut {
  index_t keys, rows;
};
template <class Problem>
cut draw_cut(Problem& p) {
  index_t const keys = p.draw.between(0, p.M);
  return {keys, std::clamp<index_t>(keys - (p.M - p.N), 0, p.N)};
}

/// Runs a problem in two parts, one after the other; and backward, the other one first.
template <class T>
std::string in_two_parts(seed_t seed) {
  recurrence_problem<T> p(seed);
  bool const placed = p.definition.map.map && !p.definition.map.map->positive();
  if (p.initial.view().data() == nullptr || !p.definition.key_offsets.empty() ||
      p.definition.dense || placed)
    return {};
  cut const at = draw_cut(p);
  // Rows before the first key stand nowhere: they read the initial state, in the first part.
  auto const whole = p.call();
  auto first = support::tokens_of(whole, 0, at.rows, 0, at.keys);
  auto second = support::tokens_of(whole, at.rows, p.N - at.rows, at.keys, p.M - at.keys);
  auto const shape = p.initial.extents();
  auto between = support::guarded<T, 4>(shape, support::packed<4>(shape));
  auto dbetween = support::guarded<T, 4>(shape, support::packed<4>(shape));
  first.final = between.view();
  second.initial = std::as_const(between).view();
  second.dinitial = dbetween.view();
  first.dfinal = std::as_const(dbetween).view();
  p.remember();
  first.forward();
  second.forward();
  std::string const forward = p.complain_about_forward();
  second.backward();
  first.backward();
  return p.with_shape(forward + p.complain_about_backward());
}

}  // namespace

TEST_CASE("recurrence: in two parts, float", "[recur]") {
  for_each_seed("recurrence in two parts", 600, in_two_parts<float>, support::luck);
}

TEST_CASE("recurrence: in two parts, double", "[recur]") {
  for_each_seed("recurrence in two parts double", 200, in_two_parts<double>);
}

TEST_CASE("recurrence: in many parts", "[recur]") {
  for_each_seed("recurrence in many parts", 100, [](seed_t seed) -> std::string {
    recurrence_problem<float> p(seed, {.positions = 150, .steps = true});
    p.final.fill([&](auto const& at) {
      return std::as_const(p.initial).view()(at[0], at[1], at[2], at[3]);
    });
    p.remember();
    // The state goes on in place: read and written by the same call.
    for (index_t first = 0; first < p.N;) {
      index_t const count = std::min<index_t>(p.draw.between(0, 40), p.N - first);
      auto part = support::tokens_of(p.call(), first, count, first, count);
      part.initial = part.final;
      part.forward();
      first += count;
    }
    return p.with_shape(p.complain_about_forward());
  });
}
