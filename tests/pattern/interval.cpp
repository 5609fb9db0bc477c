#include "support/random.hpp"

#include <heed/pattern/interval.hpp>

#include <vector>

using heed::index_t;
using heed::interval;
using heed::interval_set;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr index_t universe = 120;
using members = std::vector<bool>;

members members_of(interval_set const& set) {
  members in(universe, false);
  for (interval each : set)
    for (index_t x = each.first; x < each.last; ++x) in[static_cast<std::size_t>(x)] = true;
  return in;
}

bool well_formed(interval_set const& set) {
  interval const* before = nullptr;
  for (interval const& each : set) {
    if (each.empty() || (before != nullptr && before->last >= each.first)) return false;
    before = &each;
  }
  return set.end() - set.begin() <= interval_set::capacity;
}

/// `count` random intervals, in a set and one by one.
interval_set draw_set(support::random& draw, index_t count, members& in) {
  interval_set set;
  for (index_t n = 0; n < count; ++n) {
    interval next;
    next.first = draw.between(0, universe - 1);
    next.last = std::min(universe, next.first + draw.between(-2, 12));
    set.add(next);
    for (index_t x = next.first; x < next.last; ++x) in[static_cast<std::size_t>(x)] = true;
  }
  return set;
}

bool includes(members const& larger, members const& smaller) {
  for (std::size_t x = 0; x < larger.size(); ++x)
    if (smaller[x] && !larger[x]) return false;
  return true;
}

}  // namespace

TEST_CASE("an interval set holds what was added", "[pattern][quick]") {
  for_each_seed("interval set", 2000, [](seed_t seed) -> std::string {
    support::random draw(seed);
    index_t const count = draw.between(0, 20);
    members in(universe, false);
    interval_set const set = draw_set(draw, count, in);
    if (!well_formed(set)) return "not sorted, disjoint and apart";
    if (!includes(members_of(set), in)) return "a member is lost";
    if (count <= interval_set::capacity && members_of(set) != in) return "a stranger has joined";
    interval const hull = set.hull();
    for (std::size_t x = 0; x < in.size(); ++x)
      if (in[x] && (static_cast<index_t>(x) < hull.first || static_cast<index_t>(x) >= hull.last))
        return "a member outside the hull";
    return {};
  });
}

TEST_CASE("union and intersection of interval sets", "[pattern][quick]") {
  for_each_seed("interval algebra", 2000, [](seed_t seed) -> std::string {
    support::random draw(seed);
    members in_a(universe, false), in_b(universe, false);
    // Few enough that no set is full, so that the results are exact.
    interval_set const a = draw_set(draw, draw.between(0, 4), in_a),
                       b = draw_set(draw, draw.between(0, 4), in_b);
    members both(universe), either(universe);
    for (std::size_t x = 0; x < both.size(); ++x) {
      both[x] = in_a[x] && in_b[x];
      either[x] = in_a[x] || in_b[x];
    }
    if (!well_formed(a & b) || members_of(a & b) != both) return "intersection";
    if (!well_formed(a | b) || members_of(a | b) != either) return "union";
    interval const frame{draw.between(0, universe), draw.between(0, universe)};
    interval_set clipped = a;
    clipped.clip(frame);
    if (!well_formed(clipped) || members_of(clipped) != members_of(a & interval_set(frame)))
      return "clip";
    return {};
  });
}

TEST_CASE("a full interval set joins the intervals that are closest", "[pattern][quick]") {
  interval_set set;
  for (index_t n = 0; n < interval_set::capacity; ++n) set.add({10 * n, 10 * n + 5});
  set.add({27, 28});  // between [20, 25) and [30, 35): gaps of 2 and 2
  CHECK(set.end() - set.begin() == interval_set::capacity);
  members const in = members_of(set);
  CHECK(in[27]);
  index_t strangers = in[25] + in[26] + in[28] + in[29];
  CHECK(strangers == 2);
}
