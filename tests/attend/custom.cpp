#include "support/problem.hpp"

// A user's own pattern, score modifier, numerator factor and normaliser.

using heed::index_t;
using heed::tensor_view;
using support::for_each_seed;
using support::problem;
using support::seed_t;

namespace {

/// The least a pattern can be: no SIMD form, no intervals.
struct every_third {
  bool keep(index_t query, index_t key) const { return (key - query) % 3 == 0; }
};

/// heed's softcap as a user would write it.
struct own_softcap {
  double cap;
  template <class Batch>
  Batch apply(Batch score, Batch, Batch) const {
    using T = typename Batch::value_type;
    return Batch(T(cap)) * xsimd::tanh(score * Batch(T(1 / cap)));
  }
  template <class Batch>
  Batch slope(Batch, Batch modified) const {
    using T = typename Batch::value_type;
    Batch const level = modified * Batch(T(1 / cap));
    return Batch(T(1)) - level * level;
  }
};

/// A modifier that only adds: no slope.
struct own_alibi {
  float per_step;
  template <class Batch>
  Batch apply(Batch score, Batch query, Batch key) const {
    return score -
           Batch(static_cast<typename Batch::value_type>(per_step)) * xsimd::abs(key - query);
  }
};

/// 1 / (1 + |key - query|)
struct closeness {
  template <class Batch>
  Batch factor(Batch query, Batch key) const {
    Batch const one(static_cast<typename Batch::value_type>(1));
    return one / (one + xsimd::abs(key - query));
  }
};

/// Sigmoid attention: weights 1 / (1 + exp(-s)), not normalised.
struct sigmoid {
  static constexpr double score_unit = 1;
  static constexpr heed::key_order order = heed::key_order::any;

  template <class Batch>
  struct state {
    Batch unused = Batch(static_cast<typename Batch::value_type>(0));
  };
  template <class Batch>
  Batch admit(state<Batch>&, Batch) const {
    return Batch(static_cast<typename Batch::value_type>(1));
  }
  template <class Batch>
  Batch weigh(state<Batch>&, Batch score) const {
    Batch const one(static_cast<typename Batch::value_type>(1));
    return one / (one + xsimd::exp(-score));
  }
  template <class Batch>
  heed::finished_row<Batch> finish(state<Batch> const&) const {
    Batch const one(static_cast<typename Batch::value_type>(1));
    return {one, one - one};
  }
  template <class Batch>
  std::pair<Batch, Batch> join(state<Batch>&, state<Batch> const&) const {
    Batch const one(static_cast<typename Batch::value_type>(1));
    return {one, one};
  }
};

}  // namespace

TEST_CASE("custom: pattern and modifiers", "[attend][quick]") {
  for_each_seed("custom", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.definition.keep = [](index_t, index_t query, index_t key) {
      return (key - query) % 3 == 0 && key <= query;
    };
    p.definition.modifiers = {reference::softcap{4}, reference::alibi{std::vector<double>(
                                                         static_cast<std::size_t>(p.H), 0.25)}};
    return p.forward(std::tuple{every_third{} & heed::causal{}, own_softcap{4}, own_alibi{0.25f}});
  });
}

TEST_CASE("custom: numerator factor", "[attend][quick]") {
  for_each_seed("custom factor", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.definition.factor = [](index_t query, index_t key) {
      return 1 / (1 + std::abs(double(key - query)));
    };
    auto const window = p.window();
    return p.forward(std::tuple{window, closeness{}});
  });
}

TEST_CASE("custom: backward", "[attend]") {
  for_each_seed("custom backward", 200, [](seed_t seed) {
    problem<float> p(seed);
    p.definition.keep = [](index_t, index_t query, index_t key) { return (key - query) % 3 == 0; };
    p.definition.modifiers = {
        reference::alibi{std::vector<double>(static_cast<std::size_t>(p.H), 0.25)}};
    p.definition.factor = [](index_t query, index_t key) {
      return 1 / (1 + std::abs(double(key - query)));
    };
    return p.backward(std::tuple{every_third{}, own_alibi{0.25f}, closeness{}});
  });
}

TEST_CASE("custom: normaliser", "[attend][quick]") {
  for_each_seed("custom normaliser", 200, [](seed_t seed) {
    problem<float> p(seed);
    auto const causal = p.causal();
    heed::attention(p.query.view(), p.key.view(), p.values(), p.out.view(), causal, sigmoid{});
    auto const evaluate = [&]<class T>(T) {
      auto const q = p.query.template values<T>(), k = p.key.template values<T>(),
                 v = support::read<T>(p.values());
      reference::tensor<T, 4> out({p.B, p.N, p.H, p.Dv});
      reference::for_each_row(p.B, p.N, p.M, p.H, p.definition, [&](reference::row const& r) {
        for (index_t j = 0; j < r.keys; ++j) {
          if (!reference::kept(p.definition, r, j)) continue;
          T const weight =
              1 / (1 + std::exp(-reference::score_steps(q, k, p.definition, r, j).back()));
          for (index_t d = 0; d < p.Dv; ++d)
            out(r.batch, r.index, r.head, d) +=
                weight * v(r.batch, j, r.head * p.value_heads / p.H, d);
        }
      });
      return out;
    };
    return support::two_times_rule("out", p.out.values<double>(), evaluate(double{}),
                                   std::vector{evaluate(float{})}, support::epsilon<float>());
  });
}
