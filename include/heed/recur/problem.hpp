#pragma once

#include <heed/parallel/any_executor.hpp>
#include <heed/parallel/ingredients.hpp>
#include <heed/pattern/pattern.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/recur/clauses.hpp>
#include <heed/recur/feature_map.hpp>
#include <heed/score/scale.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/ingredients.hpp>
#include <heed/view/rows.hpp>

#include <cstdlib>
#include <limits>
#include <utility>

/// A call of linear_attention, its ingredients sorted and checked and the types of everything erased: the engine is compiled
/// once for each type of computation.
namespace heed::recur {

using heed::detail::executor_of;
using heed::detail::scratch_of;

namespace detail {

using heed::detail::any_tensor;
using heed::detail::expect_distinct_elements;
using heed::detail::expect_divisor;
using heed::detail::expect_extent;
using heed::detail::expect_like;
using heed::detail::expect_memory;
using heed::detail::expect_no_negative_extent;
using heed::detail::expect_operands;
using heed::detail::is_a;
using heed::detail::is_documents;
using heed::detail::is_executor;
using heed::detail::is_scratch;

inline constexpr auto is_map = []<class T>() { return feature_map<T>; };
inline constexpr auto is_decay = []<class T>() { return is_a<T, decay>; };
inline constexpr auto is_key_decay = []<class T>() { return is_a<T, key_decay>; };
inline constexpr auto is_value_decay = []<class T>() { return is_a<T, value_decay>; };
inline constexpr auto is_delta = []<class T>() { return is_a<T, delta> || is_a<T, exact_delta>; };
inline constexpr auto is_normalised = []<class T>() { return std::same_as<T, normalised>; };
inline constexpr auto is_dense = []<class T>() { return std::same_as<T, dense>; };
inline constexpr auto is_chunk = []<class T>() { return std::same_as<T, chunk_size>; };
inline constexpr auto is_scale = []<class T>() { return std::same_as<T, scale>; };

template <class I>
constexpr bool check_ingredient() {
  constexpr bool known =
      is_map.template operator()<I>() || is_decay.template operator()<I>() ||
      is_key_decay.template operator()<I>() || is_value_decay.template operator()<I>() ||
      is_delta.template operator()<I>() || is_normalised.template operator()<I>() ||
      is_dense.template operator()<I>() || is_state.template operator()<I>() ||
      is_initial_state.template operator()<I>() || is_final_state.template operator()<I>() ||
      is_final_gradient.template operator()<I>() || is_chunk.template operator()<I>() ||
      is_scale.template operator()<I>() || is_documents.template operator()<I>() ||
      is_executor.template operator()<I>() || is_scratch.template operator()<I>();
  static_assert(
      known,
      "heed: this is no ingredient of linear_attention: expected a feature map (apply), a decay, "
      "delta or exact_delta, normalised, a state, dense, scale, documents, chunk_size, executor or "
      "scratch");
  return known;
}

}  // namespace detail

/// The type a call computes in: double where a tensor or a state is.
template <class Q, class K, class V, class O, class... I>
using compute_type_of = compute_type<compute_type<Q, K, V, O>, states_type<I...>>;

/// How a state fades along one of its sides.
enum class fading { none, scalar, channels };

/// What is written to the state.
enum class write_rule { add, delta, exact_delta };

/// Log gates or rates: [batch, position, head, 1 or channels] of some heads, which the heads of states share.
template <class T>
struct token_numbers {
  source<T> numbers;
  bool constant = false;  // along positions

  index_t heads() const { return numbers.heads(); }
};

/// Which rows and keys belong together.
struct sequence_list {
  index_t count = 0;
  index_t rows = 0;
  index_t keys = 0;
  documents packed;

  place at(index_t sequence) const {
    if (packed.queries.empty())
      return {.sequence = sequence, .batch = sequence, .rows = rows, .keys = keys};
    auto const g = static_cast<std::size_t>(sequence);
    return {.sequence = sequence,
            .batch = 0,
            .rows = packed.queries[g + 1] - packed.queries[g],
            .keys = packed.keys[g + 1] - packed.keys[g],
            .first_row = packed.queries[g],
            .first_key = packed.keys[g]};
  }
};

template <class T>
struct problem {
  source<T> query, key, value;
  sequence_list sequences;
  recurrence_shape shape;
  index_t features = 0;
  index_t columns = 0;  // of the state
  T scale = 1;
  bool causal = true;
  feature_map_view<T> map;
  fading key_fading = fading::none;
  fading value_fading = fading::none;
  token_numbers<T> key_gate, value_gate;
  write_rule rule = write_rule::add;
  token_numbers<T> rate;
  bool is_normalised = false;
  T epsilon = 0;
  T at_least = 0;
  bool begins = false;  // from a given state
  bool ends = false;    // with a state that is asked for
  source<T> initial;    // [sequence, feature, state head, column]
  sink<T> final;
  index_t chunk = 0;

  /// Heads of out that read a state.
  index_t readers() const { return shape.heads / shape.state_heads; }
  /// What a row is divided by whose weights have this sum.
  T divisor(T sum) const {
    T const shifted = sum + epsilon;
    return shifted < at_least ? at_least : shifted;
  }
  index_t query_head(index_t head) const { return head * shape.query_heads / shape.heads; }
  /// Of the `heads` of a tensor, the one that a state has.
  index_t of_state(index_t heads, index_t state_head) const {
    return heads == shape.state_heads ? state_head : state_head * heads / shape.state_heads;
  }
};

namespace detail {

/// Whether every number fits. They are looked at in the order they are stored in.
template <class E, class Fits>
bool each_fits(E const* numbers, std::array<index_t, 4> extents, std::array<index_t, 4> strides,
               Fits fits) {
  std::array<int, 4> order{0, 1, 2, 3};
  std::sort(order.begin(), order.end(), [&](int a, int b) {
    auto const apart = [&](int axis) {
      auto const at = static_cast<std::size_t>(axis);
      return extents[at] > 1 ? std::abs(strides[at]) : std::numeric_limits<index_t>::max();
    };
    return apart(a) > apart(b);
  });
  auto const axis = [&](std::size_t n) { return static_cast<std::size_t>(order[n]); };
  // Axes that continue each other are one.
  index_t count = extents[axis(3)], step = strides[axis(3)];
  for (std::size_t n = 3; n-- > 0;)
    if (strides[axis(n)] == count * step) count *= std::exchange(extents[axis(n)], 1);
  int misfits = 0;
  for (index_t a = 0; a < extents[axis(0)]; ++a)
    for (index_t b = 0; b < extents[axis(1)]; ++b)
      for (index_t c = 0; c < extents[axis(2)]; ++c) {
        E const* const row =
            numbers + a * strides[axis(0)] + b * strides[axis(1)] + c * strides[axis(2)];
        if (step == 1)
          for (index_t d = 0; d < count; ++d)
            misfits |= !fits(static_cast<compute_type<E>>(row[d]));
        else
          for (index_t d = 0; d < count; ++d)
            misfits |= !fits(static_cast<compute_type<E>>(row[d * step]));
      }
  return misfits == 0;
}

/// Gates and rates are checked one by one; axes along which they do not change, once.
template <class E, int Rank, class Fits>
void expect_each(char const* name, tensor_view<E, Rank> view, char const* expected, Fits fits) {
  std::array<index_t, 4> extents{1, 1, 1, 1}, strides{};
  for (int axis = 0; axis < Rank; ++axis) {
    auto const at = static_cast<std::size_t>(axis + 4 - Rank);
    extents[at] =
        view.stride(axis) == 0 ? std::min<index_t>(view.extent(axis), 1) : view.extent(axis);
    strides[at] = view.stride(axis);
  }
  if (each_fits(view.data(), extents, strides, fits)) return;
  std::array<index_t, 4> at{};
  for (at[0] = 0; at[0] < extents[0]; ++at[0])
    for (at[1] = 0; at[1] < extents[1]; ++at[1])
      for (at[2] = 0; at[2] < extents[2]; ++at[2])
        for (at[3] = 0; at[3] < extents[3]; ++at[3]) {
          E const number = view.data()[at[0] * strides[0] + at[1] * strides[1] +
                                       at[2] * strides[2] + at[3] * strides[3]];
          require(fits(static_cast<compute_type<E>>(number)), [&] {
            return std::string(name) + " of shape " + shape_text(view.extents()) + " holds " +
                   std::to_string(static_cast<double>(number)) + " at batch entry " +
                   std::to_string(at[0]) + ", position " + std::to_string(at[1]) + "; expected " +
                   expected;
          });
        }
}

template <class E>
tensor_view<E, 4> with_one_channel(tensor_view<E, 3> view) {
  auto const& e = view.extents();
  auto const& s = view.strides();
  return {view.data(), {e[0], e[1], e[2], 1}, {s[0], s[1], s[2], 1}};
}

/// Numbers of tokens against the shape of a call.
inline void expect_tokens(char const* name, any_tensor const& view, recurrence_shape const& shape,
                          index_t channels, char const* meaning) {
  expect_extent(name, view, 0, shape.batches, "batch");
  expect_extent(name, view, 1, shape.keys, "position, that of key");
  expect_extent(name, view, 3, channels, meaning);
  expect_memory(name, view);
  expect_divisor(name, view, shape.heads, "out");
}

/// Numbers of tokens, checked; an extent of -1 is any.
template <class E>
tensor_view<E, 4> fit_tokens(char const* name, tensor_view<E, 4> view,
                             recurrence_shape const& shape, index_t channels, char const* meaning) {
  std::array<index_t, 4> extents = view.extents();
  if (extents[0] < 0) extents[0] = shape.batches;
  if (extents[1] < 0) extents[1] = shape.keys;
  tensor_view<E, 4> const whole(view.data(), extents, view.strides());
  expect_tokens(name, whole, shape, channels, meaning);
  return whole;
}

template <class E>
tensor_view<E, 4> with_features_first(tensor_view<E, 4> state) {
  return state.swap_axes(1, 2);
}

inline void expect_state(char const* name, any_tensor const& view, recurrence_shape const& shape,
                         index_t features, index_t columns) {
  std::array<index_t, 4> const expected{shape.sequences, shape.state_heads, features, columns};
  require(std::ranges::equal(view.extents(), expected), [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) +
           "; expected [sequences, state heads, features, value_dim, one more if normalised], " +
           shape_text(expected);
  });
  expect_memory(name, view);
}

/// The shape of a call whose operands fit each other.
inline recurrence_shape shape_of(any_tensor const& query, any_tensor const& key,
                                 any_tensor const& value, any_tensor const& out) {
  expect_operands(query, key, value);
  expect_no_negative_extent("out", out);
  expect_memory("out", out);
  recurrence_shape const shape{.batches = query.extent(0),
                               .sequences = query.extent(0),
                               .heads = out.extent(2),
                               .query_heads = query.extent(2),
                               .key_heads = key.extent(2),
                               .value_heads = value.extent(2),
                               .state_heads = std::max(key.extent(2), value.extent(2)),
                               .rows = query.extent(1),
                               .keys = key.extent(1),
                               .query_dim = query.extent(3),
                               .key_dim = key.extent(3),
                               .value_dim = value.extent(3)};
  expect_like("out", out, {shape.batches, shape.rows, shape.heads, shape.value_dim},
              "query with the head_dim of value");
  expect_divisor("query", query, shape.heads, "out");
  expect_divisor("key", key, shape.heads, "out");
  expect_divisor("value", value, shape.heads, "out");
  return shape;
}

template <class T>
void check_features(problem<T> const& p, any_tensor const& query, any_tensor const& key) {
  index_t const of_query = p.map.features(side::query, p.shape.query_dim);
  require(of_query == p.features, [&] {
    return "query has shape " + shape_text(query.extents()) + " and key " +
           shape_text(key.extents()) + ", of which the feature map makes " +
           std::to_string(of_query) + " and " + std::to_string(p.features) +
           " features; expected as many";
  });
}

inline void check_chunk(index_t tokens) {
  require(tokens >= 1 && tokens <= 4096, [&] {
    return "chunk_size.tokens is " + std::to_string(tokens) + "; expected 1 to 4096";
  });
}

// What the ingredients of a call say, checked and entered one by one. Ingredients of which nothing is to be entered, or
// elsewhere, come to the first.
template <class T, class I>
void enter_clause(problem<T>&, I const&) {}

template <class T, class E>
token_numbers<T> gate_of(problem<T>& p, char const* name, tensor_view<E, 4> log_gate,
                         index_t channels, char const* meaning) {
  require(p.causal, [&] { return std::string(name) + " with dense: no order, no decay"; });
  auto const gates = fit_tokens(name, log_gate, p.shape, channels, meaning);
  expect_each(name, gates, "numbers of at most 0", [](auto g) { return g <= 0; });
  p.shape.state_heads = std::max(p.shape.state_heads, gates.extent(2));
  return {source<T>(gates), gates.stride(1) == 0};
}
template <class T, class E>
void enter_clause(problem<T>& p, decay<E> const& clause) {
  p.key_gate = gate_of(p, "decay.log_gate", with_one_channel(clause.log_gate), 1, "one");
  p.key_fading = fading::scalar;
}
template <class T, class E>
void enter_clause(problem<T>& p, key_decay<E> const& clause) {
  p.key_gate = gate_of(p, "key_decay.log_gate", clause.log_gate, p.features, "features of a key");
  p.key_fading = fading::channels;
}
template <class T, class E>
void enter_clause(problem<T>& p, value_decay<E> const& clause) {
  p.value_gate =
      gate_of(p, "value_decay.log_gate", clause.log_gate, p.shape.value_dim, "value_dim");
  p.value_fading = fading::channels;
}

template <class T, class E>
void enter_rate(problem<T>& p, char const* name, tensor_view<E, 3> rate, write_rule rule) {
  require(p.causal, [&] { return std::string(name) + " with dense: no order, no delta rule"; });
  auto const rates = fit_tokens(name, with_one_channel(rate), p.shape, 1, "one");
  bool const is_exact = rule == write_rule::exact_delta;
  expect_each(name, rates, is_exact ? "finite numbers of at least 0" : "finite numbers",
              [=](auto r) { return r - r == 0 && (!is_exact || r >= 0); });
  p.rate = token_numbers<T>{source<T>(rates), rates.stride(1) == 0};
  p.rule = rule;
  p.shape.state_heads = std::max(p.shape.state_heads, rates.extent(2));
}
template <class T, class E>
void enter_clause(problem<T>& p, delta<E> const& clause) {
  enter_rate(p, "delta.rate", clause.rate, write_rule::delta);
}
template <class T, class E>
void enter_clause(problem<T>& p, exact_delta<E> const& clause) {
  enter_rate(p, "exact_delta.rate", clause.rate, write_rule::exact_delta);
}

template <class T>
void enter_clause(problem<T>& p, normalised const& clause) {
  p.is_normalised = true;
  p.epsilon = static_cast<T>(clause.epsilon);
  p.at_least = static_cast<T>(clause.at_least);
}

/// Whether the clauses go together.
template <class T>
void check_clauses(problem<T> const& p) {
  require(p.rule == write_rule::add || p.value_fading == fading::none,
          [] { return "value_decay with the delta rule is not defined"; });
  require(p.value_fading == fading::none || !p.is_normalised,
          [] { return "value_decay with normalised: a sum of weights has no channels"; });
  // The heads of states are shared by keys, values and gates alike.
  auto const shares = [&](char const* name, index_t heads) {
    require(p.shape.heads == 0 || (heads > 0 && p.shape.state_heads % heads == 0), [&] {
      return std::string(name) + " has " + std::to_string(heads) +
             " heads; expected a divisor of the " + std::to_string(p.shape.state_heads) +
             " that keys, values, gates and rates have at most";
    });
  };
  shares("key", p.shape.key_heads);
  shares("value", p.shape.value_heads);
  if (p.key_fading != fading::none) shares("the gate of keys", p.key_gate.heads());
  if (p.value_fading != fading::none) shares("the gate of values", p.value_gate.heads());
  if (p.rule != write_rule::add) shares("the rate", p.rate.heads());
}

// The states of a call and what else is to be checked against its shape, after the clauses.
template <class T, class I>
void enter_state(problem<T>& p, I const& ingredient) {
  if constexpr (requires { ingredient.check(p.shape); }) ingredient.check(p.shape);
}
template <class T, class V>
void begin_with(problem<T>& p, tensor_view<V, 4> view) {
  expect_state("the initial state", view, p.shape, p.features, p.columns);
  p.initial = source<T>(with_features_first(view));
  p.begins = true;
}
template <class T, class V>
void end_with(problem<T>& p, tensor_view<V, 4> view) {
  expect_state("the final state", view, p.shape, p.features, p.columns);
  expect_distinct_elements("the final state", view);
  p.final = sink<T>(with_features_first(view));
  p.ends = true;
}
template <class T, class V>
void enter_state(problem<T>& p, state<V> const& ingredient) {
  begin_with(p, ingredient.view);
  end_with(p, ingredient.view);
}
template <class T, class E>
void enter_state(problem<T>& p, initial_state<E> const& ingredient) {
  begin_with(p, ingredient.view);
}
template <class T, class V>
void enter_state(problem<T>& p, final_state<V> const& ingredient) {
  end_with(p, ingredient.view);
}

}  // namespace detail

/// The tokens of a chunk: as many as features, but not so many that their scores leave the second cache, nor so
/// few that the state is read more often than tokens meet. A rule that `erases` meets the pairs of a chunk once more, so
/// that shorter chunks are sooner worth their states.
inline index_t chunk_tokens(index_t features, index_t columns, bool erases) {
  index_t const few = erases ? 64 : 32;
  return features <= few && columns <= few + few / 4 ? 32 : 64;
}

/// Checks operands and ingredients against each other and gathers them.
template <class T, element Q, element K, element V, element O, class... I>
problem<T> make_problem(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                        tensor_view<O, 4> out, I const&... ingredients) {
  using namespace detail;
  static_assert((true && ... && check_ingredient<I>()));
  static_assert((0 + ... + int(is_a<I, state> || is_a<I, initial_state>)) <= 1 &&
                    (0 + ... + int(is_a<I, state> || is_a<I, final_state>)) <= 1,
                "heed: a call begins with one state and ends with one");
  static_assert((0 + ... + int(is_a<I, decay> || is_a<I, key_decay>)) <= 1,
                "heed: decay and key_decay in one call; add their log gates instead");
  problem<T> p;
  p.shape = shape_of(query, key, value, out);
  p.query = source<T>(query);
  p.key = source<T>(key);
  p.value = source<T>(value);

  p.sequences = {
      .count = p.shape.batches, .rows = p.shape.rows, .keys = p.shape.keys, .packed = {}};
  if constexpr ((false || ... || std::same_as<I, documents>)) {
    documents const packed = one_of<is_documents>(documents{}, ingredients...);
    packed.check(p.shape.batches, p.shape.rows, p.shape.keys);
    p.sequences.packed = packed;
    p.sequences.count = p.shape.sequences = static_cast<index_t>(packed.queries.size()) - 1;
  }

  [[maybe_unused]] auto const use_map = [&](auto const& ingredient) {
    if constexpr (feature_map<std::remove_cvref_t<decltype(ingredient)>>)
      p.map = feature_map_view<T>(ingredient);
  };
  static_assert((0 + ... + int(feature_map<I>)) <= 1, "heed: a call takes one feature map");
  (use_map(ingredients), ...);
  p.features = p.map.features(side::key, p.shape.key_dim);
  check_features(p, query, key);
  p.scale = static_cast<T>(one_of<is_scale>(heed::scale{1, nullptr}, ingredients...).value);
  p.causal = !(false || ... || std::same_as<I, dense>);
  (enter_clause(p, ingredients), ...);
  check_clauses(p);
  p.columns = p.shape.value_dim + (p.is_normalised ? 1 : 0);
  (enter_state(p, ingredients), ...);
  chunk_size const by_shape{chunk_tokens(p.features, p.columns, p.rule != write_rule::add)};
  p.chunk = one_of<is_chunk>(by_shape, ingredients...).tokens;
  check_chunk(p.chunk);
  return p;
}

}  // namespace heed::recur
