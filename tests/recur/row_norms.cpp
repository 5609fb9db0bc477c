#include <heed/recur/row_norms.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"

// Rows divided by their size, and gates on them, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensors;
using support::definition_check;
using support::for_each_seed;
using support::seed_t;

namespace {

template <class T>
struct norm_problem : definition_check<T> {
  heed::unit_norm unit;
  heed::rms_norm rms;
  bool is_unit;

  norm_problem(seed_t seed, bool gated) : definition_check<T>(seed) {
    auto& dice = this->draw;
    is_unit = dice.one_in(2);
    // Some rows are below this floor.
    if (dice.one_in(3)) unit.floor = 4;
    rms = {dice.one_in(2) ? 1e-6 : 0.3, dice.one_in(2)};
    // The gradient of a row of one number is 0, and its error no measure of anything.
    support::extents_of<4> const shape{dice.between(1, 2), dice.between(0, 70), dice.between(1, 3),
                                       dice.between(2, 40)};
    this->input("x", shape);
    if (gated) this->input("gate", shape);
    this->output("out", shape);
  }

  template <class F>
  void with_norm(F f) const {
    is_unit ? f(unit) : f(rms);
  }

  template <class U>
  reference::tensor<U, 4> normed(reference::tensor<U, 4> const& x) const {
    return is_unit ? reference::unit_rows(x, unit.floor)
                   : reference::rms_rows(x, rms.epsilon, rms.across_heads);
  }
};

/// A row alone, normalised in double.
template <class Norm>
std::vector<double> normed(std::vector<double> row, Norm norm) {
  auto const view = heed::bnhd(row.data(), 1, 1, 1, static_cast<index_t>(row.size()));
  heed::normalise_rows(view, view, norm);
  return row;
}

}  // namespace

TEMPLATE_TEST_CASE("row norms: the definition and its gradient", "[recur][norms]", double, float,
                   Eigen::half) {
  for_each_seed("row norms", 200, [](seed_t seed) {
    norm_problem<TestType> p(seed, false);
    auto const definition = [&](auto const& in) {
      return std::remove_cvref_t<decltype(in)>{p.normed(in[0])};
    };
    p.with_norm([&](auto norm) {
      heed::normalise_rows(p.in(0), p.out(0), norm);
      heed::normalise_rows_backward(p.in(0), p.dout(0), p.din(0), norm);
    });
    return p.forward(definition) + p.backward(definition);
  });
}

TEMPLATE_TEST_CASE("row norms: with a gate", "[recur][norms]", double, float) {
  for_each_seed("gated row norms", 200, [](seed_t seed) {
    norm_problem<TestType> p(seed, true);
    bool const linear = p.draw.one_in(2);
    auto const definition = [&]<class U>(tensors<U> const& in) {
      return tensors<U>{reference::each(p.normed(in[0]), in[1], [&](U const& y, U const& gate) {
        return y * (linear ? gate : reference::silu(gate));
      })};
    };
    auto const run = [&]<class Gate>(Gate) {
      p.with_norm([&](auto norm) {
        heed::normalise_and_gate<Gate>(p.in(0), p.in(1), p.out(0), norm);
        heed::normalise_and_gate_backward<Gate>(p.in(0), p.in(1), p.dout(0), p.din(0), p.din(1),
                                                norm);
      });
    };
    linear ? run(heed::linear_gate{}) : run(heed::silu{});
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("row norms: zero rows and numbers of any size", "[recur][norms]") {
  CHECK(normed({0, 0, 0}, heed::unit_norm{}) == std::vector<double>{0, 0, 0});
  CHECK(normed({0, 0, 0}, heed::unit_norm{.floor = 0}) == std::vector<double>{0, 0, 0});
  CHECK(normed({0, 0, 0}, heed::rms_norm{.epsilon = 0}) == std::vector<double>{0, 0, 0});
  CHECK(normed({3, 4}, heed::unit_norm{})[0] == Approx(0.6));
  CHECK(normed({3e-13, 4e-13}, heed::unit_norm{})[0] == Approx(0.3));  // below the floor
  CHECK(normed({3e200, 4e200}, heed::unit_norm{})[1] == Approx(0.8));
  CHECK(normed({3e-200, 4e-200}, heed::unit_norm{.floor = 0})[1] == Approx(0.8));
  CHECK(normed({3e200, -4e200}, heed::rms_norm{})[1] == Approx(-0.8 * std::sqrt(2.0)));
  float large[2] = {3e30f, 4e30f}, slope[2] = {1e3f, 0}, dx[2];
  heed::normalise_rows_backward(heed::bnhd(large, 1, 1, 1, 2), heed::bnhd(slope, 1, 1, 1, 2),
                                heed::bnhd(dx, 1, 1, 1, 2), heed::unit_norm{});
  CHECK(dx[0] == Approx(1e3 * (1 - 0.36) / 5e30));
  CHECK(dx[1] == Approx(-1e3 * 0.48 / 5e30));
}

TEST_CASE("row norms: SRMSNorm does not see a factor of its input", "[recur][norms]") {
  support::random draw(1);
  std::vector<double> x(30);
  for (double& each : x) each = draw.normal();
  auto const once = normed(x, heed::rms_norm{.epsilon = 0});
  for (double& each : x) each *= 1024;
  CHECK(normed(x, heed::rms_norm{.epsilon = 0}) == once);
}

TEST_CASE("row norms: what does not fit is refused", "[recur][norms]") {
  float numbers[24] = {};
  auto const rows = [&](index_t n) { return heed::bnhd(numbers, 1, n, 2, 3); };
  CHECK_THROWS_WITH(heed::normalise_rows(rows(4), rows(3), heed::unit_norm{}),
                    "heed: out has shape [1, 3, 2, 3]; expected that of x, [1, 4, 2, 3]");
  CHECK_THROWS_WITH(heed::normalise_rows(rows(4), rows(4), heed::unit_norm{.floor = -1}),
                    "heed: unit_norm.floor is -1.000000; expected at least 0");
}
