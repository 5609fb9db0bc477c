#pragma once

#include <heed/pattern/interval.hpp>

#include <concepts>
#include <span>

/// Where in a call scores lie, and how its tokens are arranged.
namespace heed {

/// The shape of a call, for ingredients that check themselves against it before anything is
/// written: those with `void check(call_shape const&) const`. `sequences` is `batches` unless
/// several sequences are packed in one batch entry.
struct call_shape {
  index_t batches = 0;
  index_t sequences = 0;
  index_t heads = 0;
  index_t rows = 0;
  index_t keys = 0;
};

/// The tokens first, first + step, … in `size` consecutive slots; padding if first is below 0.
struct token_run {
  index_t first = 0;
  index_t size = 0;
  index_t step = 1;

  constexpr bool padding() const { return first < 0; }
};

/// An arrangement cuts the tokens of each batch entry into groups and orders them inside. Each group is a
/// problem of its own; the patterns and modifiers of the call see slots, which count from 0 in each group, where they
/// would see rows. Windows, grids, axes and dilated neighborhoods become plain patterns that way.
///
/// A token_run is what stands in some consecutive slots: tokens `step` apart, or padding, slots without a token, where
/// it begins below 0. Every query token stands in one slot of one group, every key token in at most one. The
/// numbers of tokens are those of the call; check(call_shape const&) sees to it.
///
/// `index_t panel_rows() const`, optional, says how many consecutive query slots, from multiples of it on, had better be
/// worked on together.
template <class A>
concept arrangement = requires(A const& a, index_t i) {
  { a.groups() } -> std::convertible_to<index_t>;
  { a.rows(i) } -> std::convertible_to<index_t>;  // slots for queries in a group
  { a.keys(i) } -> std::convertible_to<index_t>;  // slots for keys
  {
    a.query_run(i, i)
    } -> std::convertible_to<token_run>;  // (group, slot): the longest run from that slot on
  { a.key_run(i, i) } -> std::convertible_to<token_run>;
};

/// An arrangement of any type, not owned.
class any_arrangement {
 public:
  any_arrangement() = default;
  template <arrangement A>
  explicit any_arrangement(A const& a) : arrangement_(&a), calls_(&calls_of<A>) {}

  explicit operator bool() const { return arrangement_ != nullptr; }
  index_t groups() const { return calls_->groups(arrangement_); }
  index_t rows(index_t group) const { return calls_->rows(arrangement_, group); }
  index_t keys(index_t group) const { return calls_->keys(arrangement_, group); }
  /// 0 where it does not matter.
  index_t panel_rows() const { return calls_->panel_rows(arrangement_); }
  token_run query_run(index_t group, index_t slot) const {
    return calls_->query_run(arrangement_, group, slot);
  }
  token_run key_run(index_t group, index_t slot) const {
    return calls_->key_run(arrangement_, group, slot);
  }
  /// The runs of some slots, as many as `runs` has room for; returns their number.
  std::size_t query_runs(index_t group, interval slots, std::span<token_run> runs) const {
    return calls_->query_runs(arrangement_, group, slots, runs);
  }
  std::size_t key_runs(index_t group, interval slots, std::span<token_run> runs) const {
    return calls_->key_runs(arrangement_, group, slots, runs);
  }

 private:
  struct calls {
    index_t (*groups)(void const*);
    index_t (*rows)(void const*, index_t);
    index_t (*keys)(void const*, index_t);
    index_t (*panel_rows)(void const*);
    token_run (*query_run)(void const*, index_t, index_t);
    token_run (*key_run)(void const*, index_t, index_t);
    std::size_t (*query_runs)(void const*, index_t, interval, std::span<token_run>);
    std::size_t (*key_runs)(void const*, index_t, interval, std::span<token_run>);
  };
  template <class A>
  static A const& as(void const* a) {
    return *static_cast<A const*>(a);
  }
  template <class Run>
  static std::size_t list(interval slots, std::span<token_run> runs, Run run) {
    std::size_t number = 0;
    for (; number < runs.size() && !slots.empty(); ++number) {
      token_run tokens = run(slots.first);
      tokens.size = std::min(tokens.size, slots.size());
      slots.first += tokens.size;
      runs[number] = tokens;
    }
    return number;
  }

  template <class A>
  static constexpr calls calls_of{
      [](void const* a) -> index_t { return as<A>(a).groups(); },
      [](void const* a, index_t group) -> index_t { return as<A>(a).rows(group); },
      [](void const* a, index_t group) -> index_t { return as<A>(a).keys(group); },
      [](void const* a) -> index_t {
        if constexpr (requires(A const& x) { x.panel_rows(); })
          return as<A>(a).panel_rows();
        else
          return 0;
      },
      [](void const* a, index_t group, index_t slot) -> token_run {
        return as<A>(a).query_run(group, slot);
      },
      [](void const* a, index_t group, index_t slot) -> token_run {
        return as<A>(a).key_run(group, slot);
      },
      [](void const* a, index_t group, interval slots, std::span<token_run> runs) {
        return list(slots, runs, [&](index_t slot) { return as<A>(a).query_run(group, slot); });
      },
      [](void const* a, index_t group, interval slots, std::span<token_run> runs) {
        return list(slots, runs, [&](index_t slot) { return as<A>(a).key_run(group, slot); });
      }};

  void const* arrangement_ = nullptr;
  calls const* calls_ = nullptr;
};

/// Where scores lie: a sequence, the batch entry that holds it, a query head, and the sequence's
/// lengths. `first_row` and `first_key` are where it starts in its tensors, 0 unless sequences are
/// packed; row() and key_row() are where a row or key of it lies, however it is arranged.
struct place {
  index_t sequence = 0;
  index_t batch = 0;
  index_t head = 0;
  index_t rows = 0;
  index_t keys = 0;
  index_t first_row = 0;
  index_t first_key = 0;
  any_arrangement const* order = nullptr;
  index_t group = 0;
  index_t panel_rows = 0;  // to work on together, from multiples of them on; 0 if any

  index_t row(index_t slot) const {
    return order == nullptr ? first_row + slot : order->query_run(group, slot).first;
  }
  index_t key_row(index_t slot) const {
    return order == nullptr ? first_key + slot : order->key_run(group, slot).first;
  }

  /// Calls f(slots before it, tokens) for each run of [slots.first, slots.last).
  template <class F>
  void each_row_run(interval slots, F&& f) const {
    if (order == nullptr)
      f(index_t{0}, token_run{first_row + slots.first, slots.size()});
    else
      each_run(slots, f, [this](interval rest, std::span<token_run> runs) {
        return order->query_runs(group, rest, runs);
      });
  }
  template <class F>
  void each_key_run(interval slots, F&& f) const {
    if (order == nullptr)
      f(index_t{0}, token_run{first_key + slots.first, slots.size()});
    else
      each_run(slots, f, [this](interval rest, std::span<token_run> runs) {
        return order->key_runs(group, rest, runs);
      });
  }

 private:
  template <class F, class List>
  static void each_run(interval slots, F& f, List list) {
    token_run runs[16];
    for (index_t slot = slots.first; slot < slots.last;)
      for (token_run const& tokens : std::span(runs, list({slot, slots.last}, runs))) {
        f(slot - slots.first, tokens);
        slot += tokens.size;
      }
  }
};

}  // namespace heed
