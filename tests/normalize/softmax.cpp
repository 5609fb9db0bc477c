#include "support/random.hpp"

#include <heed/normalize/softmax.hpp>

#include <array>
#include <vector>

// The running state of rows: any order and grouping of keys comes to the same row.

using batch = xsimd::batch<double>;

namespace {

double lane(batch const& x) {
  std::array<double, batch::size> lanes;
  x.store_unaligned(lanes.data());
  return lanes[0];
}

/// A row whose values are numbers: its state and what was accumulated.
struct row {
  heed::softmax::state<batch> state{};
  batch accumulated = batch(0.);

  void meet(
      std::vector<std::pair<double, double>> const& keys) {  // scores in natural units, values
    batch top(-std::numeric_limits<double>::infinity());
    for (auto const& [score, value] : keys)
      top = xsimd::max(top, batch(score * heed::softmax::log2_e));
    accumulated *= heed::softmax::admit(state, top);
    for (auto const& [score, value] : keys)
      accumulated +=
          heed::softmax::weigh(state, batch(score * heed::softmax::log2_e)) * batch(value);
  }
  std::pair<double, double> finish() const {
    auto const done = heed::softmax::finish(state);
    return {lane(accumulated * done.factor), lane(done.lse)};
  }
};

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("softmax state: blocks, joins and the definition agree", "[normalize][quick]") {
  support::for_each_seed("softmax state", 1000, [](support::seed_t seed) -> std::string {
    support::random draw(seed);
    std::vector<std::pair<double, double>> keys;
    double const spread = draw.one_in(3) ? 300 : 3;
    for (auto count = draw.between(0, 40); count > 0; --count)
      keys.emplace_back(draw.one_in(8) ? -infinity : spread * draw.normal(), draw.normal());

    double top = -infinity, total = 0, sum = 0;
    for (auto const& [score, value] : keys) top = std::max(top, score);
    for (auto const& [score, value] : keys)
      if (score > -infinity) {
        total += std::exp(score - top);
        sum += std::exp(score - top) * value;
      }
    double const out = total == 0 ? 0 : sum / total,
                 lse = total == 0 ? -infinity : top + std::log(total);

    row blocks, left, right;
    auto at = keys.begin();
    while (at != keys.end()) {
      auto const next = at + draw.between(1, std::min<std::ptrdiff_t>(7, keys.end() - at));
      blocks.meet({at, next});
      (draw.one_in(2) ? left : right).meet({at, next});
      at = next;
    }
    auto const [mine, theirs] = heed::softmax::join(left.state, right.state);
    left.accumulated = left.accumulated * mine + right.accumulated * theirs;

    for (auto const& [name, result] :
         {std::pair{"in blocks", blocks.finish()}, {"joined", left.finish()}}) {
      auto const [its_out, its_lse] = result;
      if (!(std::abs(its_out - out) <= 1e-12)) return std::string(name) + ": out";
      if (its_lse != lse && !(std::abs(its_lse - lse) <= 1e-12 * std::max(1., std::abs(lse))))
        return std::string(name) + ": lse";
    }
    return {};
  });
}

TEST_CASE("softmax state: what needs no rescaling is not rounded", "[normalize][quick]") {
  // The reference stays while scores exceed it by little, so that blocks and one block agree to the
  // bit, and it moves before weights grow large.
  for (double first : {0.3, -700.5, 12.25}) {
    row together, apart;
    together.meet({{first, 1}, {first + 5, 1}});
    apart.meet({{first + 5, 1}});
    apart.meet({{first, 1}});
    CHECK(together.finish() == apart.finish());

    heed::softmax::state<batch> state;
    heed::softmax::admit(state, batch(first));
    CHECK(heed::softmax::weigh(state, batch(first)).get(0) == 1);
    CHECK(heed::softmax::admit(state, batch(first + 7)).get(0) == 1);
    CHECK(heed::softmax::admit(state, batch(first + 9)).get(0) < 1);
    CHECK(heed::softmax::weigh(state, batch(first + 9)).get(0) == 1);
  }
}

TEST_CASE("softmax state: sinks at the end", "[normalize][quick]") {
  std::array<float, 2> const logits{0.5f, -1.f};
  heed::softmax_with_sinks const sinks{heed::tensor_view<float const, 2>(logits.data(), {1, 2})};
  auto const bound = heed::bind_at(sinks, heed::place{});
  row some;
  some.meet({{1., 2.}, {-0.5, 4.}});
  auto const done = bound.finish(some.state);
  double const total = std::exp(1.) + std::exp(-0.5) + std::exp(0.5) + std::exp(-1.);
  CHECK(lane(done.lse) == Approx(std::log(total)).epsilon(1e-14));
  CHECK(lane(some.accumulated * done.factor) ==
        Approx((2 * std::exp(1.) + 4 * std::exp(-0.5)) / total).epsilon(1e-14));
  auto const empty = bound.finish(row{}.state);
  CHECK(lane(empty.lse) == Approx(std::log(std::exp(0.5) + std::exp(-1.))).epsilon(1e-14));
}
