#include "support/guarded.hpp"
#include "support/threads.hpp"

#include <heed/recur/running_reference.hpp>

#include <algorithm>
#include <limits>
#include <vector>

// The largest number so far, looked for anew at each position. Comparisons do not round and differences round once: all
// numbers are equal.

using heed::any_executor;
using heed::index_t;
using heed::recur::sequence_list;
using support::guarded;

namespace {

constexpr double nothing = -std::numeric_limits<double>::infinity();

/// Numbers and references that are held, some of them -infinity, in memory of any layout.
template <class T>
struct reference_problem {
  support::random draw;
  sequence_list sequences;
  guarded<T, 3> x;
  guarded<double, 3> fall;
  guarded<double, 2> held;

  reference_problem(support::seed_t seed, sequence_list const& all, index_t batches, index_t heads)
      : draw(seed),
        sequences(all),
        x(any_layout<T, 3>({batches, all.keys, heads})),
        fall(any_layout<double, 3>({batches, all.keys, heads})),
        held(any_layout<double, 2>({all.count, heads})) {
    // What is held has been the largest of numbers of T before.
    auto const number = [&](auto const&) {
      return static_cast<T>(draw.one_in(3) ? nothing : draw.normal());
    };
    x.fill(number);
    held.fill(number);
  }

  template <class E, int Rank>
  guarded<E, Rank> any_layout(support::extents_of<Rank> const& extents) {
    return {extents, support::random_layout<Rank>(draw, extents, false)};
  }

  void check(bool is_held, any_executor const& run_on) {
    auto const given = x.template values<double>();
    auto const before = held.template values<double>();
    x.remember(), fall.remember(), held.remember();
    heed::recur::running_reference(run_on, sequences, x.view(), fall.view(),
                                   is_held ? held.view() : heed::tensor_view<double, 2>());
    CHECK(x.untouched_outside());
    CHECK(fall.untouched_outside());
    CHECK((is_held ? held.untouched_outside() : held.untouched()));
    for (index_t s = 0; s < sequences.count; ++s)
      for (index_t h = 0; h < given.extent(2); ++h) {
        heed::place const where = sequences.at(s);
        index_t const b = where.batch, first = where.first_key;
        auto const reference_after = [&](index_t tokens) {
          double largest = is_held ? before(s, h) : nothing;
          for (index_t t = first; t < first + tokens; ++t)
            largest = std::max(largest, given(b, t, h));
          return largest;
        };
        for (index_t n = 0; n < where.keys; ++n) {
          CAPTURE(s, h, n);
          double const last = reference_after(n), now = reference_after(n + 1);
          CHECK(static_cast<double>(x.view()(b, first + n, h)) == now);
          CHECK(fall.view()(b, first + n, h) == (last == nothing ? 0 : last - now));
        }
        if (is_held) CHECK(held.view()(s, h) == reference_after(where.keys));
      }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("running_reference: the largest number so far, and how the state falls with it",
                   "[recur][quick]", float, double) {
  support::threads const several;
  heed::serial const one;
  // The second document is empty.
  std::vector<index_t> const bounds{0, 9, 9, 20};
  for (support::seed_t seed = 0; seed < 10; ++seed)
    for (bool is_held : {false, true}) {
      CAPTURE(seed, is_held);
      any_executor const run_on = seed % 2 == 0 ? any_executor(one) : any_executor(several);
      reference_problem<TestType>(seed, {2, 7, 13, {}}, 2, 3).check(is_held, run_on);
      reference_problem<TestType>(seed, {3, 20, 20, {bounds, bounds}}, 1, 2).check(is_held, run_on);
      reference_problem<TestType>(seed, {2, 0, 0, {}}, 2, 3).check(is_held, run_on);
    }
}
