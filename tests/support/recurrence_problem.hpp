// A random call of linear_attention: operands of any shape and layout, any clauses, and the comparison with the
// definition.
//
//     return recurrence_problem<float>(seed).forward();
#pragma once

#include "reference/recurrence.hpp"
#include "reference/traced.hpp"
#include "support/error_rule.hpp"
#include "support/guarded.hpp"
#include "support/random.hpp"
#include "support/recurrence_call.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace support {

/// The feature map of a problem, if it has one, for the definition.
struct chosen_features {
  std::optional<test_features> map;

  index_t count(index_t dim) const { return map ? map->count(dim) : dim; }
  template <class T>
  std::vector<T> features(reference::feature_place const& at, std::vector<T> const& x) const {
    return map ? map->features(at, x) : x;
  }
  template <class T>
  std::vector<T> gradient(reference::feature_place const& at, std::vector<T> const& x,
                          std::vector<T> const& dphi) const {
    return map ? map->gradient(at, x, dphi) : dphi;
  }
};

struct recurrence_limits {
  index_t positions = 200;
  double work = 3e5;   // entries of states times tokens
  bool steps = false;  // as many keys as rows, one sequence a batch entry, and states
  bool plain = false;  // one head map, dense layouts: for tests that are not about shapes
};

/// How strongly states fade.
enum class fading_kind { hardly, moderate, strong, resets, cuts };

template <class Q, class K = Q, class V = Q, class O = Q>
class recurrence_problem {
 public:
  using call_type = recurrence_call<Q, K, V, O>;
  using compute = typename call_type::compute;
  using golden = std::conditional_t<std::is_same_v<compute, double>, long double, double>;

  random draw;
  index_t B, N, M, H, D, E;
  guarded<Q, 4> query, dquery;
  guarded<K, 4> key, dkey;
  guarded<V, 4> value, dvalue;
  guarded<O, 4> out, dout;
  guarded<compute, 3> log_gate, dlog_gate, rate, drate;
  guarded<compute, 4> log_key_gate, dlog_key_gate, log_value_gate, dlog_value_gate;
  guarded<compute, 4> initial, final, dinitial, dfinal;
  reference::recurrence<chosen_features> definition;
  index_t chunk = 0;
  fading_kind fading;

  explicit recurrence_problem(seed_t seed, recurrence_limits const& limits = {})
      : draw(seed), limits_(limits) {
    draw_clauses();
    draw_shape();
    index_t const key_heads = divisor_of(state_heads_), value_heads = divisor_of(state_heads_);
    index_t const gate_heads = divisor_of(state_heads_), rate_heads = divisor_of(state_heads_);
    // Some tensor has as many heads as there are states.
    index_t const largest = draw.between(0, 1);
    query = make<Q, 4>({B, N, divisor_of(H), D}, true);
    key = make<K, 4>({B, M, largest == 0 ? state_heads_ : key_heads, D}, true);
    value = make<V, 4>({B, M, largest == 1 ? state_heads_ : value_heads, E}, true);
    out = make<O, 4>({B, N, H, E});
    dout = make<O, 4>({B, N, H, E}, true);
    dquery = make<Q, 4>(query.extents());
    dkey = make<K, 4>(key.extents());
    dvalue = make<V, 4>(value.extents());
    fill_normal(query, 1);
    fill_normal(key, 1);
    fill_normal(value, draw.one_in(10) ? 10 : 1);
    fill_normal(dout, 1);
    index_t const F = definition.map.count(D), columns = E + (definition.normalised ? 1 : 0);
    if (has(gate_)) make_gates(log_gate, dlog_gate, {B, M, gate_heads});
    if (has(key_gate_)) make_gates(log_key_gate, dlog_key_gate, {B, M, gate_heads, F});
    if (has(value_gate_))
      make_gates(log_value_gate, dlog_value_gate, {B, M, divisor_of(state_heads_), E});
    if (definition.rule != reference::update_rule::additive) make_rates({B, M, rate_heads});
    if (states_) {
      extents_of<4> const shape{sequences(), state_heads_, F, columns};
      bool const additive = definition.rule == reference::update_rule::additive;
      initial = make<compute, 4>(shape);
      initial.fill([&](auto const& at) {
        // What rows are divided by stays away from 0; a delta rule takes it to about 1.
        double const x = draw.normal();
        return static_cast<compute>(at[3] < E ? x : additive ? std::abs(x) + 1 : 0.1 * x);
      });
      final = make<compute, 4>(shape);
      dinitial = make<compute, 4>(shape);
      dfinal = make<compute, 4>(shape);
      fill_normal(dfinal, 1);
    }
    definition.heads = H;
  }

  /// The call as drawn, to be run as it is or changed.
  call_type call() {
    call_type c;
    c.query = std::as_const(query).view();
    c.key = std::as_const(key).view();
    c.value = std::as_const(value).view();
    c.out = out.view();
    c.log_gate = std::as_const(log_gate).view();
    c.rate = std::as_const(rate).view();
    c.log_key_gate = std::as_const(log_key_gate).view();
    c.log_value_gate = std::as_const(log_value_gate).view();
    c.initial = std::as_const(initial).view();
    c.final = final.view();
    c.exact = definition.rule == reference::update_rule::exact_delta;
    c.dense = definition.dense;
    if (definition.normalised) c.normaliser = {definition.epsilon, definition.at_least};
    c.map = definition.map.map;
    if (!definition.key_offsets.empty())
      c.documents = heed::documents{definition.query_offsets, definition.key_offsets};
    c.scale = definition.scale;
    c.chunk = chunk;
    c.dout = std::as_const(dout).view();
    c.dquery = dquery.view();
    c.dkey = dkey.view();
    c.dvalue = dvalue.view();
    c.dlog_gate = dlog_gate.view();
    c.drate = drate.view();
    c.dlog_key_gate = dlog_key_gate.view();
    c.dlog_value_gate = dlog_value_gate.view();
    c.dinitial = dinitial.view();
    c.dfinal = std::as_const(dfinal).view();
    return c;
  }

  template <class T>
  reference::recurrence_operands<T> operands() const {
    return {query.template values<T>(),        key.template values<T>(),
            value.template values<T>(),        log_gate.template values<T>(),
            log_key_gate.template values<T>(), log_value_gate.template values<T>(),
            rate.template values<T>(),         initial.template values<T>()};
  }

  std::string forward() {
    remember();
    call().forward();
    return with_shape(complain_about_forward());
  }

  std::string backward() {
    remember();
    call().forward();
    call().backward();
    return with_shape(complain_about_backward());
  }

  /// Token by token. The limits have asked for steps.
  std::string steps() {
    remember();
    final.fill(
        [&](auto const& at) { return std::as_const(initial).view()(at[0], at[1], at[2], at[3]); });
    for (index_t t = 0; t < N; ++t) {
      call_type one = call();
      auto const at_token = [t](auto& view) {
        if (view.data() != nullptr) view = view.slice(1, t, 1);
      };
      at_token(one.query);
      at_token(one.key);
      at_token(one.value);
      at_token(one.out);
      at_token(one.log_gate);
      at_token(one.log_key_gate);
      at_token(one.log_value_gate);
      at_token(one.rate);
      one.step(final.view());
    }
    return with_shape(complain_about_forward());
  }

  /// What has been written so far, and what must not be, is remembered.
  void remember() {
    auto const each = [](auto& tensor) {
      if (tensor.view().data() != nullptr) tensor.remember();
    };
    for_inputs(each);
    for_results(each);
  }

  /// What has changed that must not.
  std::string complain_about_memory() {
    bool unwritten = true, inside = true;
    for_inputs([&](auto& tensor) {
      if (tensor.view().data() != nullptr) unwritten &= tensor.untouched();
    });
    for_results([&](auto& tensor) {
      if (tensor.view().data() != nullptr) inside &= tensor.untouched_outside();
    });
    return std::string(unwritten ? "" : "an input was written to\n") +
           (inside ? "" : "memory outside a result was written to\n");
  }

  /// What is wrong with the results that are in memory.
  std::string complain_about_forward() {
    auto const exact = definition.forward(operands<golden>());
    std::vector naive{definition.forward(operands<compute>())};
    std::string complaint = compare_forward(exact, naive);
    // The error of one order of sums is a matter of luck where much cancels, or where little is summed: the definition is
    // also taken of inputs that were rounded otherwise, and in chunks. (A delta rule erases the errors of a state, at
    // every token or at every chunk.)
    if (!complaint.empty()) {
      if (!has(value_gate_))
        naive.push_back(definition.chunked(operands<compute>(), chunk_or_usual()));
      for (seed_t otherwise : {seed_t{1}, seed_t{2}, seed_t{3}}) {
        auto const moved = rounded_otherwise(otherwise);
        naive.push_back(definition.forward(moved));
        if (!has(value_gate_)) naive.push_back(definition.chunked(moved, chunk_or_usual()));
      }
      complaint = compare_forward(exact, naive);
    }
    return complaint + complain_about_memory();
  }

  /// What is wrong with the gradients that are in memory, the results being there too.
  std::string complain_about_backward() {
    auto const exact = backward_of(operands<golden>(), definition.forward(operands<golden>()).out);
    // The definition in the same precision, with the result as it is stored.
    auto const x = operands<compute>();
    std::vector naive{backward_of(x, out.template values<compute>())};
    std::string complaint = compare_backward(exact, naive);
    if (!complaint.empty()) {
      if (!has(value_gate_)) naive.push_back(chunked_backward(x));
      for (seed_t otherwise : {seed_t{1}, seed_t{2}, seed_t{3}}) {
        auto const moved = rounded_otherwise(otherwise);
        naive.push_back(backward_of(moved, definition.forward(moved).out));
        if (!has(value_gate_)) naive.push_back(chunked_backward(moved));
      }
      complaint = compare_backward(exact, naive);
    }
    return complaint + complain_about_memory();
  }

  std::string with_shape(std::string const& complaint) const {
    if (complaint.empty()) return {};
    std::string text;
    auto const add = [&](char const* name, auto const& tensor) {
      if (tensor.view().data() != nullptr)
        text += std::string(name) + " " + heed::shape_text(tensor.extents()) + " strides " +
                heed::shape_text(tensor.view().strides()) + "\n";
    };
    add("query", query);
    add("key", key);
    add("value", value);
    add("out", out);
    add("log_gate", log_gate);
    add("log_key_gate", log_key_gate);
    add("log_value_gate", log_value_gate);
    add("rate", rate);
    add("initial", initial);
    if (definition.rule == reference::update_rule::exact_delta) text += "exact ";
    if (definition.dense) text += "dense ";
    if (definition.normalised)
      text += "normalised " + std::to_string(definition.epsilon) + " " +
              std::to_string(definition.at_least) + " ";
    if (definition.map.map) text += "map " + std::to_string(definition.map.map->kind) + " ";
    if (!definition.key_offsets.empty())
      text += "documents " + heed::shape_text(definition.query_offsets) + " " +
              heed::shape_text(definition.key_offsets) + " ";
    return complaint + text + "chunk " + std::to_string(chunk) + " fading " +
           std::to_string(static_cast<int>(fading)) + "\n";
  }

 private:
  enum : unsigned { gate_ = 1, key_gate_ = 2, value_gate_ = 4, end_ = 8 };
  bool has(unsigned what) const { return (kind_ & what) != 0; }
  index_t sequences() const {
    return definition.key_offsets.empty() ? B
                                          : static_cast<index_t>(definition.key_offsets.size()) - 1;
  }

  /// One of the combinations that recurrence_call.cpp compiles.
  void draw_clauses() {
    using rule = reference::update_rule;
    struct combination {
      unsigned gates;
      rule write;
    };
    combination drawn{};
    bool mapped = false, documents = false;
    if constexpr (call_type::few_combinations) {
      static constexpr combination with_map[] = {
          {0, rule::additive}, {key_gate_, rule::additive}, {gate_, rule::delta}};
      static constexpr combination with_states[] = {{0, rule::additive},
                                                    {gate_, rule::additive},
                                                    {value_gate_, rule::additive},
                                                    {0, rule::delta}};
      static constexpr combination alone[] = {{0, rule::additive},
                                              {gate_, rule::additive},
                                              {key_gate_, rule::additive},
                                              {gate_, rule::exact_delta},
                                              {end_, rule::additive}};
      index_t const kind = draw.between(0, limits_.steps ? 2 : 3);
      mapped = kind < 2;
      definition.normalised = kind == 0;
      states_ = kind < 3;
      drawn = kind == 0   ? with_states[draw.between(0, 1)]
              : kind == 1 ? draw.one_of(with_map)
              : kind == 2 ? draw.one_of(with_states)
                          : draw.one_of(alone);
    } else {
      static constexpr combination all[] = {{0, rule::additive},
                                            {gate_, rule::additive},
                                            {key_gate_, rule::additive},
                                            {0, rule::delta},
                                            {gate_, rule::delta},
                                            {end_, rule::additive},
                                            {value_gate_, rule::additive},
                                            {key_gate_, rule::delta},
                                            {gate_ | value_gate_, rule::additive},
                                            {key_gate_ | value_gate_, rule::additive},
                                            {0, rule::exact_delta},
                                            {gate_, rule::exact_delta},
                                            {key_gate_, rule::exact_delta}};
      mapped = draw.one_in(2);
      documents = mapped && !limits_.steps && draw.one_in(3);
      definition.normalised = mapped && draw.one_in(2);
      states_ = mapped || limits_.steps || draw.one_in(2);
      index_t const last = documents && definition.normalised ? 1 : documents ? 6 : 12;
      do drawn = all[draw.between(0, last)];
      while ((definition.normalised &&
              ((drawn.gates & value_gate_) || drawn.write == rule::exact_delta)) ||
             (limits_.steps && (drawn.gates & end_)));
    }
    kind_ = drawn.gates;
    definition.rule = drawn.write;
    definition.dense = has(end_);
    packed_ = documents;
    fading = draw.one_of(std::array{fading_kind::hardly, fading_kind::moderate, fading_kind::strong,
                                    fading_kind::resets, fading_kind::cuts});
    if (mapped) {
      using kinds = test_features::kinds;
      definition.map.map = test_features{
          definition.normalised || limits_.steps
              ? draw.one_of(std::array{kinds::elu_plus_one, kinds::relu_squared})
              : draw.one_of(std::array{kinds::elu_plus_one, kinds::relu_squared, kinds::waves})};
    }
    definition.scale = draw.one_in(2) ? 1 : draw.uniform(-1, 1.5);
    if (definition.normalised) {
      constexpr double unbounded = -std::numeric_limits<double>::infinity();
      definition.epsilon = draw.one_of(std::array{1e-6, 1e-6, 0.5});
      definition.at_least = draw.one_of(std::array{unbounded, unbounded, 1e-6, 0.5});
      // Under a delta rule the sums of weights may have any sign, and what divides would be near 0.
      if (definition.rule != rule::additive) definition.at_least = 1;
    }
  }

  void draw_shape() {
    auto const length = [&] {
      index_t const kind = draw.between(0, 19);
      return kind == 0  ? draw.between(0, 1)
             : kind < 7 ? draw.between(1, 20)
                        : draw.between(21, limits_.positions);
    };
    auto const dim = [&] {
      if (draw.one_in(5)) return draw.one_of(std::array<index_t, 5>{8, 16, 32, 64, 100});
      return draw.between(1, 40);
    };
    B = packed_ ? 1 : draw.one_in(40) ? 0 : draw.between(1, 3);
    N = length();
    M = limits_.steps || draw.one_in(2) ? N : length();
    H = draw.between(1, 6);
    state_heads_ = divisor_of(H);
    // The solution of a chunk's triangular system is as exact as spec 14 says where keys differ: not in few dimensions,
    // where they are all alike, nor in long chunks. There is a test of such keys by themselves.
    D = solves() ? std::max<index_t>(dim(), 8) : dim();
    E = draw.one_in(2) ? D : dim();
    if (definition.map.map && definition.map.map->kind == test_features::waves)
      D = std::min<index_t>(D, 20);
    auto const work = [&] {
      return static_cast<double>(std::max<index_t>(B, 1) * (M * state_heads_ + N * H)) *
             static_cast<double>(definition.map.count(D) * E);
    };
    while (work() > limits_.work) {
      index_t& wider = D > E ? D : E;
      index_t& largest = wider > 40 ? wider : H > 2 ? H : wider > 12 ? wider : N > M ? N : M;
      largest = largest * 3 / 4;
      state_heads_ = divisor_of(H);
      if (limits_.steps) M = N;
    }
    if (packed_) {
      index_t const count = draw.between(1, 5);
      definition.query_offsets = offsets(count, N);
      definition.key_offsets =
          draw.one_in(2) && M == N ? definition.query_offsets : offsets(count, M);
    }
    chunk = draw.one_in(2) ? 0 : draw.one_of(std::array<index_t, 7>{1, 3, 8, 16, 31, 64, 128});
    if (solves()) chunk = std::min<index_t>(chunk, 64);
  }
  index_t divisor_of(index_t heads) {
    index_t divisor = draw.between(1, heads);
    while (heads % divisor != 0) --divisor;
    return draw.one_in(2) ? heads : divisor;
  }
  std::vector<index_t> offsets(index_t count, index_t end) {
    std::vector<index_t> all{0, end};
    for (index_t n = 1; n < count; ++n) all.push_back(draw.between(0, end));
    std::sort(all.begin(), all.end());
    return all;
  }

  template <class T, int Rank>
  guarded<T, Rank> make(extents_of<Rank> const& extents, bool shared = false) {
    return {extents,
            limits_.plain ? packed<Rank>(extents) : random_layout<Rank>(draw, extents, shared),
            draw.between(0, 7)};
  }
  template <class T, int Rank>
  void fill_normal(guarded<T, Rank>& tensor, double spread) {
    tensor.fill([&](auto const&) { return convert<T>(spread * draw.normal()); });
  }

  double log_gate_drawn() {
    switch (fading) {
      case fading_kind::hardly:
        return draw.one_in(4) ? 0 : draw.uniform(-1e-3, 0);
      case fading_kind::moderate:
        return draw.uniform(-0.3, 0);
      case fading_kind::strong:
        return draw.uniform(-20, 0);
      case fading_kind::resets:
        return draw.one_in(50) ? -300 : draw.uniform(-0.05, 0);
      case fading_kind::cuts:
        return draw.one_in(30) ? -std::numeric_limits<double>::infinity() : draw.uniform(-0.2, 0);
    }
    return 0;
  }
  template <int Rank>
  void make_gates(guarded<compute, Rank>& gates, guarded<compute, Rank>& gradient,
                  extents_of<Rank> const& extents) {
    gates = make<compute, Rank>(extents, true);
    gates.fill([&](auto const&) { return static_cast<compute>(log_gate_drawn()); });
    gradient = make<compute, Rank>(extents);
  }

  /// Rates with which no state grows; for a plain delta rule without a map, keys of length 1.
  void make_rates(extents_of<3> const& extents) {
    bool const exact = definition.rule == reference::update_rule::exact_delta;
    auto const view = key.view();
    double const spread = exact ? draw.one_of(std::array{1e-3, 0.3, 1.0}) : 1;
    double most = 1e-9;
    for (index_t b = 0; b < B; ++b)
      for (index_t i = 0; i < M; ++i)
        for (index_t h = 0; h < view.extent(2); ++h) {
          auto const row = [&] {
            std::vector<double> x;
            for (index_t d = 0; d < D; ++d) x.push_back(convert<double>(view(b, i, h, d)));
            return x;
          };
          auto const squared = [](std::vector<double> const& x) {
            double sum = 0;
            for (double each : x) sum += each * each;
            return sum;
          };
          if (exact || !definition.map.map) {
            auto const x = row();
            double const factor = exact ? spread : 1 / (std::sqrt(squared(x)) + 1e-12);
            for (index_t d = 0; d < D; ++d)
              view(b, i, h, d) = convert<K>(x[static_cast<std::size_t>(d)] * factor);
          }
          most = std::max(most, squared(definition.map.features(
                                    reference::feature_place{false, b, h, i}, row())));
        }
    rate = make<compute, 3>(extents, true);
    double const top = definition.map.map ? 0.5 / most : exact ? 3 : 1.1;
    rate.fill([&](auto const&) {
      return static_cast<compute>(draw.one_in(15) ? 0 : draw.uniform(0, top));
    });
    drate = make<compute, 3>(extents);
  }

  /// The operands, each number moved by up to half of its last bit.
  reference::recurrence_operands<compute> rounded_otherwise(seed_t seed) const {
    auto x = operands<compute>();
    random draw_error(seed);
    auto const move = [&](auto& tensor) { round_otherwise(draw_error, tensor); };
    move(x.query), move(x.key), move(x.value), move(x.rate), move(x.initial);
    return x;
  }

  template <class T>
  reference::recurrence_gradients<T> backward_of(reference::recurrence_operands<T> const& x,
                                                 reference::tensor<T, 4> const& of_out) const {
    return definition.backward(x, of_out, dout.template values<T>(), dfinal.template values<T>());
  }

  /// The gradients of the definition in chunks.
  reference::recurrence_gradients<compute> chunked_backward(
      reference::recurrence_operands<compute> const& x) const {
    auto const joined = []<class T>(reference::tensor<T, 3> const& numbers) {
      reference::tensor<T, 4> all({numbers.extent(0), numbers.extent(1), numbers.extent(2), 1});
      all.values = numbers.values;
      return all;
    };
    auto const split = []<class T>(reference::tensor<T, 4> const& all) {
      reference::tensor<T, 3> numbers({all.extent(0), all.extent(1), all.extent(2)});
      numbers.values = all.values;
      return numbers;
    };
    auto const d = reference::gradients_of(
        [&]<class T>(reference::tensors<T> const& in) {
          auto const result = definition.chunked(
              reference::recurrence_operands<T>{in[0], in[1], in[2], split(in[3]), in[4], in[5],
                                                split(in[6]), in[7]},
              chunk_or_usual());
          return reference::tensors<T>{result.out, result.state};
        },
        reference::tensors<compute>{x.query, x.key, x.value, joined(x.log_gate), x.log_key_gate,
                                    x.log_value_gate, joined(x.rate), x.initial},
        reference::tensors<compute>{
            dout.template values<compute>(),
            states_ ? dfinal.template values<compute>()
                    : reference::tensor<compute, 4>(definition.forward(x).state.extents)});
    return {d[0], d[1], d[2], split(d[3]), d[4], d[5], split(d[6]), d[7]};
  }
  index_t chunk_or_usual() const { return chunk > 0 ? chunk : 64; }

  template <class Exact, class Naive>
  std::string compare_backward(Exact const& exact, std::vector<Naive> const& naive) const {
    auto const differ = [&](char const* name, auto const& got, auto member, golden least = 0) {
      using stored = typename std::decay_t<decltype(got)>::value_type;
      if (got.view().data() == nullptr) return std::string();
      std::vector<std::decay_t<decltype(member(naive[0]))>> in_each_way;
      for (auto const& each : naive) in_each_way.push_back(member(each));
      // Half has fewer digits below its smallest normal number.
      double const smallest = std::is_same_v<stored, Eigen::half> ? 0x1p-14 : 0;
      return two_times_rule(name, got.template values<golden>(), member(exact), in_each_way,
                            epsilon<stored>(), std::max(smallest, static_cast<double>(least)));
    };
    // What fades is as exact as e^x is: in proportion to what it was. And where a gate is one of many, its gradient is a
    // difference of sums (spec 1).
    golden unfaded = 0;
    if (kind_ != 0)
      for (golden each : exact.value.values) unfaded = std::max(unfaded, std::abs(each));
    return differ("dquery", dquery, [](auto const& d) { return d.query; }) +
           differ("dkey", dkey, [](auto const& d) { return d.key; }) +
           differ("dvalue", dvalue, [](auto const& d) { return d.value; }) +
           differ(
               "dlog_gate", dlog_gate, [](auto const& d) { return d.log_gate; }, exact.gate_terms) +
           differ(
               "dlog_key_gate", dlog_key_gate, [](auto const& d) { return d.log_key_gate; },
               exact.key_gate_terms) +
           differ(
               "dlog_value_gate", dlog_value_gate, [](auto const& d) { return d.log_value_gate; },
               exact.value_gate_terms) +
           differ("drate", drate, [](auto const& d) { return d.rate; }) +
           differ(
               "dinitial", dinitial, [](auto const& d) { return d.initial; }, unfaded);
  }

  /// Whether what is written is the solution of triangular systems.
  bool solves() const { return definition.rule != reference::update_rule::additive; }

  template <class Exact, class Naive>
  std::string compare_forward(Exact const& exact, std::vector<Naive> const& naive) const {
    std::vector<reference::tensor<compute, 4>> out_naive, state_naive;
    for (auto const& each : naive) {
      out_naive.push_back(each.out);
      state_naive.push_back(each.state);
    }
    // What fades is as exact as e^x is: in proportion to what it was.
    double unfaded = 0;
    if (states_ && kind_ != 0)
      for (double each : initial.template values<double>().values)
        unfaded = std::max(unfaded, std::abs(each));
    return two_times_rule("out", out.template values<golden>(), exact.out, out_naive,
                          epsilon<O>()) +
           (states_ ? two_times_rule("final state", final.template values<golden>(), exact.state,
                                     state_naive, epsilon<compute>(), unfaded)
                    : "");
  }

  template <class F>
  void for_inputs(F f) {
    f(query), f(key), f(value), f(dout), f(log_gate), f(rate), f(log_key_gate), f(log_value_gate),
        f(initial), f(dfinal);
  }
  template <class F>
  void for_results(F f) {
    f(out), f(final), f(dquery), f(dkey), f(dvalue), f(dlog_gate), f(drate), f(dlog_key_gate),
        f(dlog_value_gate), f(dinitial);
  }
  recurrence_limits limits_;
  unsigned kind_ = 0;
  bool packed_ = false, states_ = false;
  index_t state_heads_ = 1;
};

}  // namespace support
