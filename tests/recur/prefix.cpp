#include <heed/recur/prefix.hpp>

#include "reference/gated_recurrences.hpp"
#include "support/definition_check.hpp"

// Softmax along positions, over all and over those so far, against plain loops.

using heed::index_t;
using heed::tensor_view;
using reference::tensors;
using support::definition_check;
using support::for_each_seed;
using support::seed_t;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
heed::serial const here;

template <class T>
struct prefix_problem : definition_check<T> {
  std::vector<index_t> bounds;
  support::extents_of<4> shape;

  explicit prefix_problem(seed_t seed) : definition_check<T>(seed) {
    auto& dice = this->draw;
    shape = {dice.between(1, 2), dice.between(1, 70), dice.between(1, 3), dice.between(1, 20)};
    if (dice.one_in(3)) {
      shape[0] = 1;
      bounds = {0, dice.between(0, shape[1]), shape[1]};
    }
    // A gate of -40 in double is exact to 40 roundings of its exponential only.
    double const spread = std::is_same_v<T, double> || dice.one_in(2) ? 1 : 9;
    this->input("x", shape, [&, spread] { return spread * dice.normal(); });
    this->input("value", shape);
    this->output("average", shape);
  }

  heed::recur::sequence_list sequences() const {
    heed::documents const packed{bounds, bounds};
    return heed::recur::sequences_of(shape, shape, packed);
  }
  heed::recur::channel_rows<double> rows(std::size_t n) const {
    return heed::recur::channel_rows<double>(this->in(n));
  }
};

using heed::recur::channel_rows;

}  // namespace

TEMPLATE_TEST_CASE("prefix: running averages and their gradient", "[recur][prefix]", double,
                   float) {
  for_each_seed(
      "running softmax", 150,
      [](seed_t seed) {
        prefix_problem<TestType> p(seed);
        auto const definition = [&]<class U>(tensors<U> const& in) {
          return tensors<U>{reference::running_average(in[0], in[1], p.bounds)};
        };
        auto const tensor = [&] {
          return support::guarded<double, 4>(p.shape, support::packed<4>(p.shape));
        };
        auto weight = tensor(), gate = tensor(), dweight = tensor(), reads = tensor();
        heed::any_executor const run_on(here);
        heed::recur::running_softmax(run_on, p.sequences(), p.rows(0),
                                     channel_rows<double>(weight.view()),
                                     channel_rows<double>(gate.view()), {});
        // The recurrence that they are for.
        auto const sequences = p.sequences();
        for (index_t s = 0; s < sequences.count; ++s)
          for (index_t h = 0; h < p.shape[2]; ++h)
            for (index_t c = 0; c < p.shape[3]; ++c) {
              auto const run = sequences.at(s);
              double state = 0, later = 0;
              std::vector<double> states{0};
              for (index_t t = run.first_key; t < run.first_key + run.keys; ++t) {
                double const keep = std::exp(gate.view()(run.batch, t, h, c));
                state = keep * state + weight.view()(run.batch, t, h, c) *
                                           static_cast<double>(p.in(1)(run.batch, t, h, c));
                states.push_back(state);
                p.out(0)(run.batch, t, h, c) = static_cast<TestType>(state);
              }
              for (index_t t = run.first_key + run.keys; t-- > run.first_key;) {
                auto const slope = static_cast<double>(p.dout(0)(run.batch, t, h, c));
                later += slope;
                dweight.view()(run.batch, t, h, c) =
                    later * static_cast<double>(p.in(1)(run.batch, t, h, c));
                p.din(1)(run.batch, t, h, c) =
                    static_cast<TestType>(later * weight.view()(run.batch, t, h, c));
                reads.view()(run.batch, t, h, c) =
                    slope * states[static_cast<std::size_t>(t - run.first_key) + 1];
                later *= std::exp(gate.view()(run.batch, t, h, c));
              }
            }
        heed::recur::running_softmax_backward(
            run_on, sequences, channel_rows<double>(weight.view()),
            channel_rows<double>(dweight.view()), channel_rows<double>(reads.view()),
            channel_rows<double>(p.din(0)), {});
        return p.forward(definition) + p.backward(definition);
      },
      support::luck);
}

TEMPLATE_TEST_CASE("prefix: softmax over positions and its gradient", "[recur][prefix]", double,
                   float) {
  for_each_seed("position softmax", 150, [](seed_t seed) {
    prefix_problem<TestType> p(seed);
    auto const definition = [&]<class U>(tensors<U> const& in) {
      tensors<U> out{reference::position_softmax(in[0], p.bounds)};
      for (std::size_t n = 0; n < in[1].values.size(); ++n) out[0].values[n] *= in[1].values[n];
      return out;
    };
    auto const tensor = [&] {
      return support::guarded<double, 4>(p.shape, support::packed<4>(p.shape));
    };
    auto weight = tensor(), dweight = tensor();
    heed::any_executor const run_on(here);
    heed::recur::position_softmax(run_on, p.sequences(), p.rows(0),
                                  channel_rows<double>(weight.view()));
    support::for_each_index(p.shape, [&](auto const& at) {
      auto const [b, t, h, c] = at;
      double const w = weight.view()(b, t, h, c), v = static_cast<double>(p.in(1)(b, t, h, c)),
                   slope = static_cast<double>(p.dout(0)(b, t, h, c));
      p.out(0)(b, t, h, c) = static_cast<TestType>(w * v);
      p.din(1)(b, t, h, c) = static_cast<TestType>(w * slope);
      dweight.view()(b, t, h, c) = slope * v;
    });
    heed::recur::position_softmax_backward(
        run_on, p.sequences(), channel_rows<double>(weight.view()),
        channel_rows<double>(dweight.view()), channel_rows<double>(p.din(0)));
    return p.forward(definition) + p.backward(definition);
  });
}

TEST_CASE("prefix: a resumed sequence goes on where it was", "[recur][prefix]") {
  support::random draw(5);
  std::vector<double> x(60), weight(60), gate(60), later(60), gate_later(60), total(3, -infinity);
  for (double& each : x) each = 5 * draw.normal();
  auto const view = [](std::vector<double>& v) { return heed::bnhd(v.data(), 1, 20, 1, 3); };
  heed::any_executor const run_on(here);
  heed::recur::running_softmax(run_on, {1, 20, 20, {}}, channel_rows<double>(view(x)),
                               channel_rows<double>(view(weight)), channel_rows<double>(view(gate)),
                               {});
  for (index_t first : {0, 7}) {
    index_t const count = first == 0 ? 7 : 13;
    auto const part = [&](std::vector<double>& v) {
      return channel_rows<double>(view(v).slice(1, first, count));
    };
    heed::recur::running_softmax(run_on, {1, count, count, {}}, part(x), part(later),
                                 part(gate_later), {total.data(), {1, 1, 3}});
  }
  CHECK(gate[0] == -infinity);
  CHECK(weight[0] == 1);
  for (std::size_t n = 0; n < 60; ++n) {
    CHECK(later[n] == Approx(weight[n]).epsilon(1e-14));
    if (n >= 3) CHECK(gate_later[n] == Approx(gate[n]).epsilon(1e-13).margin(1e-15));
  }
  for (std::size_t c = 0; c < 3; ++c) {
    double sum = 0;
    for (std::size_t t = 0; t < 20; ++t) sum += std::exp(x[3 * t + c]);
    CHECK(total[c] == Approx(std::log(sum)));
  }
}

TEST_CASE("prefix: constant numbers weigh 1/t, however late", "[recur][prefix]") {
  constexpr index_t length = 300000;
  std::vector<float> x(length, 80.0f), weight(length), gate(length);
  auto const rows = [](std::vector<float>& v) {
    return channel_rows<double>(heed::bnhd(v.data(), 1, length, 1, 1));
  };
  heed::recur::running_softmax(heed::any_executor(here), {1, length, length, {}}, rows(x),
                               rows(weight), rows(gate), {});
  for (index_t t : {index_t(0), index_t(9), index_t(99999), length - 1}) {
    auto const n = static_cast<std::size_t>(t);
    CHECK(weight[n] == static_cast<float>(1 / static_cast<double>(t + 1)));
    if (t > 0) CHECK(gate[n] == Approx(std::log1p(-1 / static_cast<double>(t + 1))).epsilon(1e-7));
  }
}
