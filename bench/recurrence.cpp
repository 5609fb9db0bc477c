// recurrence: linear attention in chunks, forward, backward and step by step. Operations are those of the chunk form itself,
// for each token of a head 4 D E + (C + 1) (D + E), 2 D more where each feature has its gate, and 6 D E + 2 C (D + E) under the
// delta rule; backward rows count two and a half times as much and are relative to forward. A step must read and write its
// state: rows/step count those bytes.
#include "operands.hpp"

#include <heed/linear.hpp>

namespace heed_bench {
namespace {

using heed::tensor_view;

enum class rule { plain, fixed, scalar, channels, values, delta, gated_delta };
constexpr std::pair<rule, char const*> rules[] = {{rule::plain, "plain"},
                                                  {rule::fixed, "fixed_decay"},
                                                  {rule::scalar, "decay"},
                                                  {rule::channels, "key_decay"},
                                                  {rule::values, "value_decay"},
                                                  {rule::delta, "delta"},
                                                  {rule::gated_delta, "gated_delta"}};

buffer<float> log_gates(index_t count, unsigned seed) {
  auto gates = random_buffer<float>(count, seed);
  for (index_t i = 0; i < count; ++i) gates.data()[i] = -0.05f * std::abs(gates.data()[i]);
  return gates;
}

/// Operands of one call and its gates; keys have length one, as the delta rule wants.
struct problem {
  shape of;
  operands<float> saved, gradients;
  buffer<float> gates, channel_gates, rates, gate_gradients, channel_gradients;

  explicit problem(shape const& s)
      : of(s),
        saved(s),
        gradients(s),
        gates(log_gates(s.queries * s.heads, 11)),
        channel_gates(log_gates(s.queries * s.heads * std::max(s.dim, s.value_width()), 12)),
        rates(random_buffer<float>(s.queries * s.heads, 13)),
        gate_gradients(s.queries * s.heads),
        channel_gradients(s.queries * s.heads * std::max(s.dim, s.value_width())) {
    for (index_t i = 0; i < s.queries * s.heads; ++i)
      rates.data()[i] = std::min(std::abs(rates.data()[i]), 1.f);
    auto const key = saved.key();
    for (index_t h = 0; h < s.heads; ++h)
      for (index_t j = 0; j < s.queries; ++j) {
        float norm = 1e-12f;
        for (index_t d = 0; d < s.dim; ++d) norm += key(0, j, h, d) * key(0, j, h, d);
        for (index_t d = 0; d < s.dim; ++d) const_cast<float&>(key(0, j, h, d)) /= std::sqrt(norm);
      }
  }

  tensor_view<float, 3> scalars(buffer<float> const& of_tokens) const {
    return {of_tokens.data(), {1, of.queries, of.heads}};
  }
  tensor_view<float, 4> channels(buffer<float> const& of_tokens, index_t width) const {
    return heed::bnhd(of_tokens.data(), 1, of.queries, of.heads, width);
  }

  /// Calls f with the ingredients of a rule.
  template <class F>
  void with(rule what, F f) const {
    heed::decay const scalar{scalars(gates), scalars(gate_gradients)};
    heed::delta const write{scalars(rates), scalars(gate_gradients)};
    switch (what) {
      case rule::plain:
        return f();
      case rule::fixed:
        return f(heed::fixed_decay(
            std::span<float const>(gates.data(), static_cast<std::size_t>(of.heads))));
      case rule::scalar:
        return f(scalar);
      case rule::channels:
        return f(
            heed::key_decay{channels(channel_gates, of.dim), channels(channel_gradients, of.dim)});
      case rule::values:
        return f(heed::value_decay{channels(channel_gates, of.value_width()),
                                   channels(channel_gradients, of.value_width())});
      case rule::delta:
        return f(write);
      case rule::gated_delta:
        return f(write, scalar);
    }
  }
};

double operations(shape const& of, rule what) {
  auto const D = static_cast<double>(of.dim), E = static_cast<double>(of.value_width());
  bool const erases = what == rule::delta || what == rule::gated_delta;
  auto const C = static_cast<double>(heed::recur::chunk_tokens(of.dim, of.value_width(), erases));
  double const a_token = erases ? 6 * D * E + 2 * C * (D + E)
                                : 4 * D * E + (C + 1) * (D + E) +
                                      (what == rule::channels ? 2 * D
                                       : what == rule::values ? 2 * E
                                                              : 0);
  return a_token * static_cast<double>(of.queries * of.heads);
}

std::function<void()> forward(shape const& of, rule what, int threads) {
  auto const on = std::make_shared<problem>(of);
  auto const pool = std::make_shared<workers>(threads);
  return [=] {
    operands<float> const& x = on->saved;
    on->with(what, [&](auto const&... clauses) {
      heed::linear_attention(x.query(), x.key(), x.value(), x.out(), clauses..., heed::on{*pool});
    });
  };
}

std::function<void()> backward(shape const& of, rule what, int threads) {
  auto const on = std::make_shared<problem>(of);
  auto const upstream = std::make_shared<buffer<float>>(
      random_buffer<float>(of.queries * of.heads * of.value_width(), 5));
  auto const pool = std::make_shared<workers>(threads);
  return [=] {
    operands<float> const& x = on->saved;
    operands<float> const& dx = on->gradients;
    on->with(what, [&](auto const&... clauses) {
      heed::linear_attention_backward(
          x.query(), x.key(), x.value(), x.out(),
          of.view(upstream->data(), of.queries, of.heads, of.value_width()), dx.query(), dx.key(),
          dx.value(), clauses..., heed::on{*pool});
    });
  };
}

/// Some tokens, one after the other, for each of many states.
std::function<void()> step(index_t tokens, index_t states, index_t dim, rule what, int threads) {
  auto const on = std::make_shared<problem>(shape{.dim = dim, .queries = 1, .heads = states});
  auto const memory = std::make_shared<buffer<float>>(random_buffer<float>(states * dim * dim, 6));
  auto const pool = std::make_shared<workers>(threads);
  return [=] {
    operands<float> const& x = on->saved;
    tensor_view<float, 4> const state(memory->data(), {1, states, dim, dim});
    on->with(what, [&](auto const&... clauses) {
      for (index_t t = 0; t < tokens; ++t)
        heed::linear_attention_step(x.query(), x.key(), x.value(), x.out(), state, clauses...,
                                    heed::on{*pool});
    });
  };
}

/// Causal softmax attention of the same shape.
std::function<void()> softmax(shape const& of) {
  auto const on = std::make_shared<operands<float>>(of);
  return [=] { heed::attention(on->query(), on->key(), on->value(), on->out(), heed::causal{}); };
}

std::string name(char const* verb, char const* what, shape const& of, int threads) {
  return label(std::string("recurrence/") + verb)("rule", what)("D", of.dim)("N", of.queries)(
      "H", of.heads)("threads", threads);
}

rows const all([] {
  for (auto const& [what, text] : rules)
    for (index_t dim : {64, 128}) {
      shape const of{.dim = dim, .queries = 4096};
      add(name("forward", text, of, 1), [=] {
        return measurement{.work = forward(of, what, 1), .operations = operations(of, what)};
      });
      add(name("backward", text, of, 1), [=] {
        return measurement{.work = backward(of, what, 1),
                           .operations = 2.5 * operations(of, what),
                           .reference = forward(of, what, 1)};
      });
    }
  // One sequence and one head: relative to one thread.
  for (int threads : thread_counts())
    for (auto const& [what, text] : rules) {
      shape const of{.dim = 64, .queries = 16384, .heads = 1};
      add(name("forward", text, of, threads), [=] {
        return measurement{.work = forward(of, what, threads),
                           .operations = operations(of, what),
                           .threads = threads,
                           .reference = forward(of, what, 1)};
      });
    }
  // Against causal softmax of the same shape: where it is above 1, the recurrence is the cheaper one.
  for (index_t tokens : {64, 128, 256, 512, 1024, 4096, 16384}) {
    shape const of{.dim = 64, .queries = tokens};
    add(name("against_softmax", "decay", of, 1), [=] {
      return measurement{.work = forward(of, rule::scalar, 1),
                         .operations = operations(of, rule::scalar),
                         .reference = softmax(of)};
    });
  }
  // The time of a token does not grow: relative to sixteen thousand of them, a million take a 64th.
  shape const million{.dim = 64, .queries = 1 << 20, .heads = 1};
  add(
      name("length", "decay", million, 1),
      [=] {
        return measurement{
            .work = forward(million, rule::scalar, 1),
            .operations = operations(million, rule::scalar),
            .reference = forward({.dim = 64, .queries = 1 << 14, .heads = 1}, rule::scalar, 1)};
      },
      true);
  // A state for each of 4096 heads lies in memory, of 16 in a cache, where a token takes no longer than to ask for the
  // time: 64 are timed. The multiplication that fades a state takes the place of a multiply-add and counts for half of
  // one, which bounds the share of the peak.
  for (auto const& [what, text] : rules)
    for (index_t states : {16, 4096}) {
      bool const in_memory = states > 1024, fades = what != rule::plain && what != rule::delta,
                 erases = what == rule::delta || what == rule::gated_delta;
      index_t const tokens = in_memory ? 1 : 64;
      double const operations = 4. + fades + 2. * erases;
      auto const numbers = static_cast<double>(tokens * states * 64 * 64);
      add(label("recurrence/step")("rule", text)("D", 64)("states", states)("threads", 1), [=] {
        return measurement{.work = step(tokens, states, 64, what, 1),
                           .operations = operations * numbers,
                           .bytes = in_memory ? 8 * numbers : 0,
                           .bound = fades ? operations / (operations + 1) : 0};
      });
    }
});

}  // namespace
}  // namespace heed_bench
