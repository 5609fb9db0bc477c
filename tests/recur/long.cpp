#include "support/recurrence_call.hpp"
#include "support/tensors.hpp"

// A million tokens: float against double, at the tolerance of specification 1, five times that of a short sequence.

using heed::index_t;
using support::blank;

namespace {

/// The largest difference of the rows of both in proportion to the largest number around, over tokens that are made up as
/// they are needed.
double error_of(double log_gate, bool normalised) {
  index_t const N = 1 << 20, part = 1 << 14, D = 16, E = 16, columns = E + (normalised ? 1 : 0);
  support::random draw(7);
  auto q = blank<float, 4>({1, part, 1, D}), k = blank<float, 4>({1, part, 1, D}),
       v = blank<float, 4>({1, part, 1, E}), out = blank<float, 4>({1, part, 1, E});
  auto wide_q = blank<double, 4>({1, part, 1, D}), wide_k = blank<double, 4>({1, part, 1, D}),
       wide_v = blank<double, 4>({1, part, 1, E}), wide_out = blank<double, 4>({1, part, 1, E});
  auto state = blank<float, 4>({1, 1, D, columns});
  auto wide_state = blank<double, 4>({1, 1, D, columns});
  state.fill([](auto const&) { return 0.0f; });
  wide_state.fill([](auto const&) { return 0.0; });
  auto gate = blank<float, 3>({1, part, 1});
  auto wide_gate = blank<double, 3>({1, part, 1});
  gate.fill([&](auto const&) { return static_cast<float>(log_gate); });
  wide_gate.fill(
      [&](auto const& at) { return static_cast<double>(gate.view()(at[0], at[1], at[2])); });
  double worst = 0;
  auto const refill = [&](auto& narrow, auto& wide) {
    narrow.fill([&](auto const&) { return static_cast<float>(draw.uniform(-1.73, 1.73)); });
    auto const view = std::as_const(narrow).view();
    wide.fill(
        [&](auto const& at) { return static_cast<double>(view(at[0], at[1], at[2], at[3])); });
  };
  for (index_t first = 0; first < N; first += part) {
    refill(q, wide_q);
    refill(k, wide_k);
    refill(v, wide_v);
    auto const run = [&]<class T>(support::recurrence_call<T> c, auto& query, auto& key,
                                  auto& value, auto& to, auto& begin_and_end, auto& gates) {
      c.query = std::as_const(query).view();
      c.key = std::as_const(key).view();
      c.value = std::as_const(value).view();
      c.out = to.view();
      c.initial = std::as_const(begin_and_end).view();
      c.final = begin_and_end.view();
      if (log_gate < 0) c.log_gate = std::as_const(gates).view();
      if (normalised) {
        c.map = support::test_features{};
        c.normaliser = heed::normalised{};
      }
      c.forward();
    };
    run(support::recurrence_call<float>{}, q, k, v, out, state, gate);
    run(support::recurrence_call<double>{}, wide_q, wide_k, wide_v, wide_out, wide_state,
        wide_gate);
    auto const got = std::as_const(out).view();
    auto const exact = std::as_const(wide_out).view();
    double error = 0, largest = 0;
    for (index_t i = 0; i < part; ++i)
      for (index_t e = 0; e < E; ++e) {
        error = std::max(error, std::abs(static_cast<double>(got(0, i, 0, e)) - exact(0, i, 0, e)));
        largest = std::max(largest, std::abs(exact(0, i, 0, e)));
      }
    worst = std::max(worst, error / largest);
  }
  return worst;
}

}  // namespace

TEST_CASE("recurrence: a million tokens", "[recur][long]") {
  CHECK(error_of(0, false) < 1e-5);
  CHECK(error_of(std::log(0.999), false) < 1e-5);
}

TEST_CASE("recurrence: a million normalised tokens", "[recur][long]") {
  CHECK(error_of(0, true) < 1e-5);
}
