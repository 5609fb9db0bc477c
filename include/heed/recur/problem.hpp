#pragma once

#include <heed/parallel/any_executor.hpp>
#include <heed/parallel/workspace.hpp>
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

namespace detail {

using heed::detail::expect_distinct_elements;
using heed::detail::expect_extent;
using heed::detail::expect_like;
using heed::detail::expect_memory;
using heed::detail::is_a;

inline constexpr auto is_map = []<class T>() { return feature_map<T>; };
inline constexpr auto is_decay = []<class T>() { return is_a<T, decay>; };
inline constexpr auto is_key_decay = []<class T>() { return is_a<T, key_decay>; };
inline constexpr auto is_value_decay = []<class T>() { return is_a<T, value_decay>; };
inline constexpr auto is_delta = []<class T>() { return is_a<T, delta> || is_a<T, exact_delta>; };
inline constexpr auto is_normalised = []<class T>() { return std::same_as<T, normalised>; };
inline constexpr auto is_dense = []<class T>() { return std::same_as<T, dense>; };
inline constexpr auto is_state = []<class T>() { return is_a<T, state>; };
inline constexpr auto is_initial_state = []<class T>() { return is_a<T, initial_state>; };
inline constexpr auto is_final_state = []<class T>() { return is_a<T, final_state>; };
inline constexpr auto is_final_gradient = []<class T>() { return is_a<T, final_state_gradient>; };
inline constexpr auto is_chunk = []<class T>() { return std::same_as<T, chunk_size>; };
inline constexpr auto is_scale = []<class T>() { return std::same_as<T, scale>; };
inline constexpr auto is_documents = []<class T>() { return std::same_as<T, documents>; };
inline constexpr auto is_executor = []<class T>() { return executor<T const>; };
inline constexpr auto is_scratch = []<class T>() { return std::same_as<T, scratch>; };

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

template <class T>
struct state_type {
  using type = float;
};
template <class T>
struct state_type<state<T>> {
  using type = std::remove_const_t<T>;
};
template <class T>
struct state_type<initial_state<T>> {
  using type = T;
};
template <class T>
struct state_type<final_state<T>> {
  using type = T;
};
template <class T>
struct state_type<final_state_gradient<T>> {
  using type = T;
};

}  // namespace detail

/// The type a call computes in: double where a tensor or a state is.
template <class Q, class K, class V, class O, class... I>
using compute_type_of =
    compute_type<compute_type<Q, K, V, O>,
                 compute_type<typename detail::state_type<std::remove_cvref_t<I>>::type...>>;

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

/// Numbers of tokens against the shape of a call; an extent of -1 is any.
template <class E>
tensor_view<E, 4> fit_tokens(char const* name, tensor_view<E, 4> view,
                             recurrence_shape const& shape, index_t channels, char const* meaning) {
  std::array<index_t, 4> extents = view.extents();
  if (extents[0] < 0) extents[0] = shape.batches;
  if (extents[1] < 0) extents[1] = shape.keys;
  tensor_view<E, 4> const whole(view.data(), extents, view.strides());
  expect_extent(name, whole, 0, shape.batches, "batch");
  expect_extent(name, whole, 1, shape.keys, "position, that of key");
  expect_extent(name, whole, 3, channels, meaning);
  expect_memory(name, whole);
  require(shape.heads == 0 || (whole.extent(2) > 0 && shape.heads % whole.extent(2) == 0), [&] {
    return std::string(name) + " has shape " + shape_text(whole.extents()) +
           "; expected a number of heads (axis 2) that divides the " + std::to_string(shape.heads) +
           " of out";
  });
  return whole;
}

/// What is written for each token, like numbers that are read for it.
template <class E>
void expect_token_gradient(char const* name, tensor_view<E, 4> gradient,
                           std::array<index_t, 4> const& extents, char const* like) {
  if (gradient.data() == nullptr) return;
  expect_like(name, gradient, extents, like);
  expect_distinct_elements(name, gradient);
}

template <class E>
tensor_view<E, 4> with_features_first(tensor_view<E, 4> state) {
  return state.swap_axes(1, 2);
}

template <class View>
void expect_state(char const* name, View const& view, recurrence_shape const& shape,
                  index_t features, index_t columns) {
  std::array<index_t, 4> const expected{shape.sequences, shape.state_heads, features, columns};
  require(view.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) +
           "; expected [sequences, state heads, features, value_dim, one more if normalised], " +
           shape_text(expected);
  });
  expect_memory(name, view);
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
  for (int axis = 0; axis < 4; ++axis)
    require(query.extent(axis) >= 0 && key.extent(axis) >= 0 && value.extent(axis) >= 0 &&
                out.extent(axis) >= 0,
            [&] {
              return "negative extents: query " + shape_text(query.extents()) + ", key " +
                     shape_text(key.extents()) + ", value " + shape_text(value.extents()) +
                     ", out " + shape_text(out.extents());
            });
  problem<T> p;
  recurrence_shape& shape = p.shape;
  expect_memory("query", query);
  expect_memory("key", key);
  expect_memory("value", value);
  expect_memory("out", out);
  shape = {.batches = query.extent(0),
           .sequences = query.extent(0),
           .heads = out.extent(2),
           .query_heads = query.extent(2),
           .key_heads = key.extent(2),
           .value_heads = value.extent(2),
           .rows = query.extent(1),
           .keys = key.extent(1),
           .query_dim = query.extent(3),
           .key_dim = key.extent(3),
           .value_dim = value.extent(3)};
  expect_extent("key", key, 0, shape.batches, "batch, that of query");
  expect_extent("value", value, 0, shape.batches, "batch, that of query");
  expect_extent("value", value, 1, shape.keys, "position, that of key");
  expect_like("out", out, {shape.batches, shape.rows, shape.heads, shape.value_dim},
              "query with the head_dim of value");
  auto const divides = [&](char const* name, auto const& view) {
    index_t const count = view.extent(2);
    require(shape.heads == 0 || (count > 0 && shape.heads % count == 0), [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) + ": " +
             std::to_string(count) + " heads; expected a divisor of the " +
             std::to_string(shape.heads) + " heads of out";
    });
  };
  divides("query", query);
  divides("key", key);
  divides("value", value);
  p.query = source<T>(query);
  p.key = source<T>(key);
  p.value = source<T>(value);

  p.sequences = {.count = shape.batches, .rows = shape.rows, .keys = shape.keys, .packed = {}};
  if constexpr ((false || ... || std::same_as<I, documents>)) {
    documents const packed = one_of<is_documents>(documents{}, ingredients...);
    packed.check(shape.batches, shape.rows, shape.keys);
    p.sequences.packed = packed;
    p.sequences.count = shape.sequences = static_cast<index_t>(packed.queries.size()) - 1;
  }

  [[maybe_unused]] auto const use_map = [&](auto const& ingredient) {
    if constexpr (feature_map<std::remove_cvref_t<decltype(ingredient)>>)
      p.map = feature_map_view<T>(ingredient);
  };
  static_assert((0 + ... + int(feature_map<I>)) <= 1, "heed: a call takes one feature map");
  (use_map(ingredients), ...);
  p.features = p.map.features(side::key, shape.key_dim);
  require(p.map.features(side::query, shape.query_dim) == p.features, [&] {
    return "query has shape " + shape_text(query.extents()) + " and key " +
           shape_text(key.extents()) + ", of which the feature map makes " +
           std::to_string(p.map.features(side::query, shape.query_dim)) + " and " +
           std::to_string(p.features) + " features; expected as many";
  });
  p.scale = static_cast<T>(one_of<is_scale>(heed::scale{1, nullptr}, ingredients...).value);
  p.causal = !(false || ... || std::same_as<I, dense>);
  if constexpr ((false || ... || std::same_as<I, normalised>)) {
    normalised const how = one_of<is_normalised>(normalised{}, ingredients...);
    p.is_normalised = true;
    p.epsilon = static_cast<T>(how.epsilon);
    p.at_least = static_cast<T>(how.at_least);
  }
  p.columns = shape.value_dim + (p.is_normalised ? 1 : 0);
  shape.state_heads = std::max(shape.key_heads, shape.value_heads);

  constexpr auto below_zero = [](auto g) { return g <= 0; };
  [[maybe_unused]] auto const use_decay = [&](auto const& ingredient) {
    using kind = std::remove_cvref_t<decltype(ingredient)>;
    if constexpr (is_a<kind, decay> || is_a<kind, key_decay> || is_a<kind, value_decay>) {
      constexpr bool of_value = is_a<kind, value_decay>;
      constexpr char const* name = is_a<kind, decay>       ? "decay.log_gate"
                                   : is_a<kind, key_decay> ? "key_decay.log_gate"
                                                           : "value_decay.log_gate";
      require(p.causal, [&] { return std::string(name) + " with dense: no order, no decay"; });
      auto const gates = [&] {
        if constexpr (is_a<kind, decay>)
          return fit_tokens(name, with_one_channel(ingredient.log_gate), shape, 1, "one");
        else
          return fit_tokens(name, ingredient.log_gate, shape,
                            of_value ? shape.value_dim : p.features,
                            of_value ? "value_dim" : "features of a key");
      }();
      expect_each(name, gates, "numbers of at most 0", below_zero);
      (of_value ? p.value_gate : p.key_gate) =
          token_numbers<T>{source<T>(gates), gates.stride(1) == 0};
      (of_value ? p.value_fading : p.key_fading) =
          is_a<kind, decay> ? fading::scalar : fading::channels;
      shape.state_heads = std::max(shape.state_heads, gates.extent(2));
    }
    if constexpr (is_delta.template operator()<kind>()) {
      constexpr bool is_exact = is_a<kind, exact_delta>;
      constexpr char const* name = is_exact ? "exact_delta.rate" : "delta.rate";
      require(p.causal, [&] { return std::string(name) + " with dense: no order, no delta rule"; });
      auto const rates = fit_tokens(name, with_one_channel(ingredient.rate), shape, 1, "one");
      expect_each(name, rates, is_exact ? "finite numbers of at least 0" : "finite numbers",
                  [](auto r) { return r - r == 0 && (!is_exact || r >= 0); });
      p.rate = token_numbers<T>{source<T>(rates), rates.stride(1) == 0};
      p.rule = is_exact ? write_rule::exact_delta : write_rule::delta;
      shape.state_heads = std::max(shape.state_heads, rates.extent(2));
    }
  };
  (use_decay(ingredients), ...);
  require(p.rule == write_rule::add || p.value_fading == fading::none,
          [] { return std::string("value_decay with the delta rule is not defined"); });
  require(p.value_fading == fading::none || !p.is_normalised, [] {
    return std::string("value_decay with normalised: a sum of weights has no channels");
  });
  // The heads of states are shared by keys, values and gates alike.
  auto const shares = [&](char const* name, index_t heads) {
    require(shape.heads == 0 || (heads > 0 && shape.state_heads % heads == 0), [&] {
      return std::string(name) + " has " + std::to_string(heads) +
             " heads; expected a divisor of the " + std::to_string(shape.state_heads) +
             " that keys, values, gates and rates have at most";
    });
  };
  shares("key", shape.key_heads);
  shares("value", shape.value_heads);
  if (p.key_fading != fading::none) shares("the gate of keys", p.key_gate.heads());
  if (p.value_fading != fading::none) shares("the gate of values", p.value_gate.heads());
  if (p.rule != write_rule::add) shares("the rate", p.rate.heads());

  [[maybe_unused]] auto const use_state = [&](auto const& ingredient) {
    using kind = std::remove_cvref_t<decltype(ingredient)>;
    if constexpr (is_a<kind, state> || is_a<kind, initial_state>) {
      expect_state("the initial state", ingredient.view, shape, p.features, p.columns);
      p.initial = source<T>(with_features_first(ingredient.view));
      p.begins = true;
    }
    if constexpr (is_a<kind, state> || is_a<kind, final_state>) {
      expect_state("the final state", ingredient.view, shape, p.features, p.columns);
      expect_distinct_elements("the final state", ingredient.view);
      p.final = sink<T>(with_features_first(ingredient.view));
      p.ends = true;
    }
    if constexpr (requires { ingredient.check(shape); }) ingredient.check(shape);
  };
  (use_state(ingredients), ...);
  chunk_size const by_shape{chunk_tokens(p.features, p.columns, p.rule != write_rule::add)};
  p.chunk = one_of<is_chunk>(by_shape, ingredients...).tokens;
  require(p.chunk >= 1 && p.chunk <= 4096, [&] {
    return "chunk_size.tokens is " + std::to_string(p.chunk) + "; expected 1 to 4096";
  });
  return p;
}

/// The workspace of a call.
template <class... I>
workspace& scratch_of(I const&... ingredients) {
  return one_of<detail::is_scratch>(scratch{thread_workspace()}, ingredients...).memory;
}

}  // namespace heed::recur
