#pragma once

#include <heed/mechanism/learned_features.hpp>
#include <heed/recur/features/paired_exponentials.hpp>
#include <heed/recur/gate_functions.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/recur/running_reference.hpp>

/// The gated branch of lizard_attention, see there: its state, what it reads, and the clauses of its recurrence.
namespace heed {

/// What the gated branch carries on, in memory of the caller; the windowed one has a ring_cache of `window` slots.
///
///   memory    [sequences, heads, 2 width, value_dim, and one more if normalised], float or double
///   largest   the largest |k W| so far, [sequences, key heads]
template <class T>
struct lizard_state {
  tensor_view<T, 4> memory;
  tensor_view<double, 2> largest;

  void clear() const {
    for (index_t s = 0; s < memory.extent(0); ++s)
      for (index_t h = 0; h < memory.extent(1); ++h)
        for (index_t f = 0; f < memory.extent(2); ++f)
          for (index_t e = 0; e < memory.extent(3); ++e) memory(s, h, f, e) = T(0);
    for (index_t s = 0; s < largest.extent(0); ++s)
      for (index_t h = 0; h < largest.extent(1); ++h)
        largest(s, h) = -std::numeric_limits<double>::infinity();
  }
};
template <class T>
lizard_state(tensor_view<T, 4>, tensor_view<double, 2>) -> lizard_state<T>;

/// Where the backward pass writes d loss / d the memory that a call began with; shaped like it. `largest` is what memory is
/// relative to, e^largest memory what it stands for: of that alone a loss may depend.
template <class T>
struct lizard_state_gradient {
  tensor_view<T, 4> memory;
};
template <class T>
lizard_state_gradient(tensor_view<T, 4>) -> lizard_state_gradient<T>;

namespace detail {

/// y = x W alone.
struct projection_only {
  static index_t features(index_t width) { return width; }
  template <class Arch, class T>
  static void apply(index_t width, T const* y, T* phi) {
    std::copy_n(y, width, phi);
  }
  template <class Arch, class T>
  static void differentiate(index_t width, T const*, T const*, T const* dphi, T* dy) {
    std::copy_n(dphi, width, dy);
  }
};

inline constexpr auto is_lizard_state = []<class T>() { return is_a<T, lizard_state>; };
inline constexpr auto is_lizard_gradient = []<class T>() { return is_a<T, lizard_state_gradient>; };
inline constexpr auto is_for_both_branches = []<class T>() {
  using namespace recur::detail;
  return is_executor.template operator()<T>() || is_documents.template operator()<T>() ||
         is_scratch.template operator()<T>();
};
inline constexpr auto is_for_gated_branch = []<class T>() {
  return is_for_both_branches.template operator()<T>() ||
         recur::detail::is_chunk.template operator()<T>();
};

template <class I>
constexpr bool check_lizard_ingredient() {
  constexpr bool known = is_for_gated_branch.template operator()<I>() ||
                         recur::detail::is_scale.template operator()<I>() ||
                         recur::detail::is_final_gradient.template operator()<I>() ||
                         is_lizard_state.template operator()<I>() ||
                         is_lizard_gradient.template operator()<I>();
  static_assert(
      known,
      "heed: this is no ingredient of lizard: expected scale (of the window), lizard_state, "
      "lizard_state_gradient, final_state_gradient, documents, chunk_size, an executor or scratch");
  return known;
}
template <class... I>
inline constexpr bool has_lizard_state = (false || ... || is_lizard_state.template operator()<I>());

/// `largest` of the state among the ingredients; null without one.
template <class... I>
tensor_view<double, 2> lizard_largest(I const&... ingredients) {
  if constexpr (has_lizard_state<I...>)
    return std::get<0>(all_of<is_lizard_state>(ingredients...)).largest;
  else
    return {};
}
/// What the engine is given of the state, forward and backward.
template <class... I>
auto lizard_memory(I const&... ingredients) {
  if constexpr (has_lizard_state<I...>)
    return std::tuple(state{std::get<0>(all_of<is_lizard_state>(ingredients...)).memory});
  else
    return std::tuple<>();
}
template <class... I>
auto initial_lizard_memory(I const&... ingredients) {
  auto const after = all_of<recur::detail::is_final_gradient>(ingredients...);
  if constexpr (has_lizard_state<I...>) {
    auto const memory = std::get<0>(all_of<is_lizard_state>(ingredients...)).memory;
    using E = typename decltype(memory)::value_type;
    lizard_state_gradient<E> const to =
        one_of<is_lizard_gradient>(lizard_state_gradient<E>{}, ingredients...);
    return std::tuple_cat(std::tuple(initial_state<E>(memory, to.memory)), after);
  } else {
    static_assert((true && ... && !is_lizard_gradient.template operator()<I>()),
                  "heed: lizard_state_gradient without lizard_state");
    return after;
  }
}

struct lizard_page;
struct lizard_gate_page;
struct lizard_fall_page;

/// What the gated branch reads: projections of queries and keys, the latter with their reference behind them, and log gates of each
/// feature, or one a head, in double.
template <class T>
struct lizard_operands {
  tensor_view<T, 4> query, key;
  tensor_view<double, 4> log_gate;
};

/// The keys that the window alone meets, ahead of those that have gates.
template <class K, class G, class... I>
index_t lizard_keys_ahead(tensor_view<K, 4> key, tensor_view<G, 4> gate, index_t width,
                          I const&...) {
  static_assert((true && ... && check_lizard_ingredient<I>()));
  constexpr bool fewer = has_lizard_state<I...> &&
                         !(false || ... || recur::detail::is_documents.template operator()<I>());
  index_t const ahead = key.extent(1) - gate.extent(1);
  require(gate.extent(0) == key.extent(0) && (fewer ? ahead >= 0 : ahead == 0) &&
              gate.extent(2) == key.extent(2) && (gate.extent(3) == 1 || gate.extent(3) == width),
          [&] {
            return "gate has shape " + shape_text(gate.extents()) + "; expected [" +
                   std::to_string(key.extent(0)) + ", " + (fewer ? "at most " : "") +
                   std::to_string(key.extent(1)) + ", " + std::to_string(key.extent(2)) +
                   ", 1 or " + std::to_string(width) +
                   "] (batch, position, key head, one or width)";
          });
  return ahead;
}

/// `key` and `gate` are those of the gated branch; `largest` is moved on. Not `normalised`: nothing is relative to anything.
template <class T, class Q, class K, class G, class E, class... I>
lizard_operands<T> prepare_lizard(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                  tensor_view<G, 4> gate, tensor_view<E const, 3> query_weights,
                                  tensor_view<E const, 3> key_weights, bool normalised,
                                  tensor_view<double, 2> largest, I const&... ingredients) {
  index_t const width = key_weights.extent(2);
  require(query_weights.extent(2) == width, [&] {
    return "lizard_parameters.query_weights have shape " + shape_text(query_weights.extents()) +
           " and key_weights " + shape_text(key_weights.extents()) +
           "; expected the same width (axis 2)";
  });
  auto const runs = recur::executor_of(ingredients...);
  auto const sequences = recur::sequences_among(query.extents(), key.extents(), ingredients...);
  auto const of_width = [](recur::tensor_shape shape, index_t columns) {
    shape[3] = columns;
    return shape;
  };
  index_t const channels = gate.extent(3) == 1 ? 1 : 2 * width;
  auto const rows = recur::page_tensors<lizard_page, T>(of_width(query.extents(), width),
                                                        of_width(key.extents(), width + 1));
  auto const gates =
      recur::page_tensors<lizard_gate_page, double>(of_width(key.extents(), channels))[0];
  learned_features(projection_only{}, query, query_weights, tensor_view<E const, 2>(), rows[0],
                   runs);
  learned_features(projection_only{}, key, key_weights, tensor_view<E const, 2>(),
                   rows[1].slice(3, 0, width), runs);
  for (index_t half = 0; half * gate.extent(3) < channels; ++half)
    log_sigmoid_gate(gate, gates.slice(3, half * gate.extent(3), gate.extent(3)), 1, runs);

  // What keys are relative to stands behind them.
  bool const is_any = !has_lizard_state<I...> || !normalised;
  require((largest.data() == nullptr && is_any) ||
              largest.extents() == std::array<index_t, 2>({sequences.count, key.extent(2)}),
          [&] {
            return "lizard_state.largest has shape " + shape_text(largest.extents()) +
                   "; expected [" + std::to_string(sequences.count) + ", " +
                   std::to_string(key.extent(2)) + "] (sequence, key head)";
          });
  auto const reference = recur::without_channels(rows[1].slice(3, width, 1));
  recur::for_row_blocks(any_executor(runs), key.extents(),
                        [&](index_t b, index_t h, index_t first, index_t count) {
                          for (index_t t = first; t < first + count; ++t) {
                            T most = 0;
                            for (index_t c = 0; c < width && normalised; ++c)
                              most = std::max(most, std::abs(rows[1](b, t, h, c)));
                            reference(b, t, h) = most;
                          }
                        });
  if (normalised) {
    auto const fall = recur::without_channels(
        recur::page_tensors<lizard_fall_page, double>(of_width(key.extents(), 1))[0]);
    recur::running_reference(any_executor(runs), sequences, reference, fall, largest);
    tensor_view<double const, 4> const each(fall.data(), gates.extents(),
                                            {fall.stride(0), fall.stride(1), fall.stride(2), 0});
    recur::transform(
        any_executor(runs), sink<double>(gates), [](auto const& a, auto const& b) { return a + b; },
        source<double>(gates), source<double>(each));
  }
  return {rows[0], rows[1], gates};
}

/// Calls f(clauses of the gated branch) with the gate, and its gradient or none.
template <class F>
void with_lizard_clauses(bool normalised, tensor_view<double, 4> gate, tensor_view<double, 4> dgate,
                         F const& f) {
  paired_exponentials const map{normalised};
  // What is left of a sum of exponentials is a number unless it is smaller than this.
  heed::normalised const by{.epsilon = 0, .at_least = 1e-30};
  auto const with_gate = [&](auto const& decays) {
    normalised ? f(map, decays, by) : f(map, decays);
  };
  if (gate.extent(3) == 1)
    with_gate(decay<double>(recur::without_channels(gate), dgate.data() == nullptr
                                                               ? tensor_view<double, 3>()
                                                               : recur::without_channels(dgate)));
  else
    with_gate(key_decay<double>(gate, dgate));
}

}  // namespace detail

}  // namespace heed
