#pragma once

#include <heed/parallel/ingredients.hpp>
#include <heed/pattern/positions.hpp>
#include <heed/recur/channel_rows.hpp>
#include <heed/recur/clauses.hpp>
#include <heed/view/convert.hpp>
#include <heed/view/expect.hpp>

#include <atomic>
#include <string>

/// What the recurrences that treat each channel alike take besides their operands: the states a call begins and ends
/// with, documents, an executor, scratch.
namespace heed::recur::scan {

using heed::detail::executor_of;
using heed::detail::is_documents;
using heed::detail::is_executor;
using heed::detail::is_scratch;
using heed::detail::scratch_of;
using recur::states_type;
using recur::detail::is_any_state;
using recur::detail::is_final_gradient;
using recur::detail::is_final_state;
using recur::detail::is_initial_state;
using recur::detail::is_state;

/// Whether every scan takes the ingredient.
template <class I>
inline constexpr bool is_clause =
    is_executor.template operator()<I>() || is_scratch.template operator()<I>() ||
    is_documents.template operator()<I>() || is_any_state<I>;

/// The sequences of a call: its batch entries, or the documents packed in the only one.
struct sequences {
  index_t batches = 0;
  index_t positions = 0;
  std::span<index_t const> bounds;

  struct run {
    index_t batch;
    index_t first;
    index_t count;
  };
  index_t count() const {
    return bounds.empty() ? batches : static_cast<index_t>(bounds.size()) - 1;
  }
  run operator[](index_t sequence) const {
    if (bounds.empty()) return {sequence, 0, positions};
    auto const g = static_cast<std::size_t>(sequence);
    return {0, bounds[g], bounds[g + 1] - bounds[g]};
  }
  index_t longest() const {
    index_t most = 0;
    for (index_t s = 0; s < count(); ++s) most = std::max(most, (*this)[s].count);
    return most;
  }
};

template <class... I>
sequences sequences_of(std::array<index_t, 4> const& extents, I const&... ingredients) {
  sequences all{extents[0], extents[1], {}};
  if constexpr ((false || ... || is_documents.template operator()<I>())) {
    documents const packed = one_of<is_documents>(documents{}, ingredients...);
    packed.check(extents[0], extents[1], extents[1]);
    require(std::equal(packed.queries.begin(), packed.queries.end(), packed.keys.begin()), [] {
      return "documents.queries and documents.keys differ; a scan expects the same offsets twice";
    });
    all.bounds = packed.queries;
  }
  return all;
}

/// The states of a call, [sequence, row, head, dim] as channel_rows; empty where there is none.
template <class T>
struct states {
  channel_rows<T> initial, final, initial_gradient, final_gradient;
};

namespace detail {

template <class T, class V>
channel_rows<T> state_rows(char const* name, tensor_view<V, 4> view,
                           std::array<index_t, 4> const& expected) {
  if (view.data() == nullptr) return {};
  require(view.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
           shape_text(expected) + " (sequence, head, state row, dim)";
  });
  if constexpr (!std::is_const_v<V>) heed::detail::expect_distinct_elements(name, view);
  return channel_rows<T>(view.swap_axes(1, 2));
}

}  // namespace detail

/// Checks the states against what they should be, [sequences, heads, rows, dim].
template <class T, class... I>
states<T> states_of(std::array<index_t, 4> const& expected, I const&... ingredients) {
  static_assert(int((false || ... || is_state.template operator()<I>())) +
                        int((false || ... || is_initial_state.template operator()<I>())) <=
                    1,
                "heed: state is the initial state too");
  static_assert(int((false || ... || is_state.template operator()<I>())) +
                        int((false || ... || is_final_state.template operator()<I>())) <=
                    1,
                "heed: state is the final state too");
  states<T> all;
  [[maybe_unused]] auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_state.template operator()<One>()) {
      all.initial = detail::state_rows<T>("state", ingredient.view, expected);
      all.final = all.initial;
    } else if constexpr (is_initial_state.template operator()<One>()) {
      all.initial = detail::state_rows<T>("initial_state", ingredient.view, expected);
      all.initial_gradient =
          detail::state_rows<T>("initial_state.gradient", ingredient.gradient, expected);
    } else if constexpr (is_final_state.template operator()<One>()) {
      all.final = detail::state_rows<T>("final_state", ingredient.view, expected);
    } else if constexpr (is_final_gradient.template operator()<One>()) {
      all.final_gradient = detail::state_rows<T>("final_state_gradient", ingredient.view, expected);
    }
  };
  (look(ingredients), ...);
  return all;
}

/// Rows [0, rows) of a tile of a sequence's state into `to`, [rows][tile.padded]; zeros if there is none.
template <class T>
void read_state(channel_rows<T> const& from, index_t sequence, index_t rows,
                channel_tile const& tile, T* to) {
  if (!from) return static_cast<void>(std::fill_n(to, rows * tile.padded, T(0)));
  row_block<T> const found = from.read(sequence, 0, rows, tile, to);
  if (found.data == to) return;
  for (index_t r = 0; r < rows; ++r) std::copy_n(found[r], tile.padded, to + r * tile.padded);
}
template <class T>
void write_state(channel_rows<T> const& to, index_t sequence, index_t rows,
                 channel_tile const& tile, T const* from) {
  if (to) to.write(sequence, 0, rows, tile, from, tile.padded);
}

/// What numbers can be expected to be; NaN is neither.
struct at_most_0 {
  static constexpr char const* text = "log gates of at most 0";
  static auto holds(auto const& x) { return x <= std::remove_cvref_t<decltype(x)>(0); }
};
struct at_least_0 {
  static constexpr char const* text = "steps of at least 0";
  static auto holds(auto const& x) { return x >= std::remove_cvref_t<decltype(x)>(0); }
};

/// Throws unless every number of a tensor is as expected.
template <class Expected, class T, class E, class Executor>
void check_numbers(char const* name, tensor_view<E, 4> numbers, Executor const& run_on) {
  using Arch = xsimd::default_arch;
  using tiles_type = channel_tiles<T, Arch, 4>;
  using batch = xsimd::batch<T, Arch>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  constexpr index_t together = 64;
  channel_rows<T> const rows(numbers);
  tiles_type const tiles(rows.channels());
  index_t const blocks = (numbers.extent(1) + together - 1) / together;
  std::atomic<bool> refused{false};
  parallel_for(run_on, numbers.extent(0) * blocks, [&](index_t piece, index_t) {
    index_t const entry = piece / blocks, first = piece % blocks * together;
    index_t const count = std::min(together, numbers.extent(1) - first);
    alignas(64) T scratch[together * tiles_type::width];
    bool good = true;
    for (index_t n = 0; n < tiles.count(); ++n) {
      channel_tile const tile = tiles[n];
      row_block<T> const found = rows.read(entry, first, count, tile, scratch);
      for (index_t t = 0; t < count; ++t)
        for (index_t c = 0; c < tile.padded; c += lanes)
          good &= xsimd::all(Expected::holds(batch::load_unaligned(found[t] + c)));
    }
    if (!good) refused.store(true, std::memory_order_relaxed);
  });
  if (!refused.load(std::memory_order_relaxed)) return;
  for (index_t b = 0; b < numbers.extent(0); ++b)
    for (index_t t = 0; t < numbers.extent(1); ++t)
      for (index_t h = 0; h < numbers.extent(2); ++h)
        for (index_t d = 0; d < numbers.extent(3); ++d) {
          T const number = convert_element<T>(numbers(b, t, h, d));
          require(Expected::holds(number), [&] {
            return std::string(name) + " holds " + std::to_string(number) + " at " +
                   shape_text(std::array{b, t, h, d}) + "; expected " + Expected::text;
          });
        }
}

}  // namespace heed::recur::scan
