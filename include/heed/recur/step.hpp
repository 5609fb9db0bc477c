#pragma once

#include <heed/recur/chunk.hpp>
#include <heed/recur/features/row_functions.hpp>
#include <heed/simd/fma.hpp>

/// Engine 2, one token: the definition itself, on a state in the caller's memory.
namespace heed::recur {

/// The state S of one head, faded, written to and read, in one pass over its features and, under the delta rule,
/// one before it. Columns stand in lanes.
template <class T, class Arch>
class step_worker {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);

  step_worker(arena& memory, problem<T> const& p)
      : p_(p),
        readers_(p.readers()),
        features_(simd::round_up(p.features, lanes)),
        columns_(simd::round_up(p.columns, lanes)),
        in_place_(p.final.in_place() && p.columns % lanes == 0) {
    auto const numbers = [&](index_t count) {
      T* const at = memory.take<T>(count);
      if (!memory.measuring()) std::fill_n(at, count, T(0));
      return at;
    };
    // A state that nobody reads still has a query, of zeros.
    index_t const queries = std::max<index_t>(readers_, 1);
    mapped_ = numbers(features_ * (1 + queries));
    raw_ = numbers(std::max({p.shape.key_dim, p.shape.query_dim, features_, columns_}));
    queries_ = memory.take<T const*>(queries);
    if (!memory.measuring()) queries_[0] = mapped_ + features_;
    fade_ = numbers(features_);
    value_fade_ = numbers(columns_);
    written_ = numbers(columns_);
    out_ = numbers(columns_ * queries);
    gates_ = memory.take<double>(std::max(features_, columns_));
    if (!in_place_) state_ = numbers(p.features * columns_);
  }

  void run(state_place const& at, sink<T> const& state, sink<T> const& out) {
    place const& where = at.where;
    key_ = load(side::key, p_.key, where, p_.of_state(p_.shape.key_heads, at.head), mapped_);
    for (index_t r = 0; r < readers_; ++r)
      queries_[r] = load(side::query, p_.query, where, p_.query_head(at.head * readers_ + r),
                         mapped_ + (1 + r) * features_);
    index_t const value_head = p_.of_state(p_.shape.value_heads, at.head);
    if (in_place_ && p_.rule == write_rule::add && !p_.is_normalised) {
      value_ = p_.value.rows(where.batch, value_head, 0, 1, written_).data;
    } else {
      p_.value.copy(where.batch, value_head, 0, 1, written_, columns_);
      if (p_.is_normalised) written_[p_.columns - 1] = T(1);
      value_ = written_;
    }
    load_gates(at);

    T* const rows = in_place_ ? state.row(where.sequence, at.head, 0) : state_;
    index_t const stride = in_place_ ? state.row_stride() : columns_;
    if (!in_place_) p_.initial.copy(where.sequence, at.head, 0, p_.features, rows, stride);
    if (p_.rule != write_rule::add) erase(at, rows, stride);
    bool const rows_fade = p_.key_fading != fading::none,
               columns_fade = p_.value_fading != fading::none;
    if (rows_fade && columns_fade)
      update<true, true>(rows, stride);
    else if (rows_fade)
      update<true, false>(rows, stride);
    else if (columns_fade)
      update<false, true>(rows, stride);
    else
      update<false, false>(rows, stride);
    if (!in_place_) state.store(where.sequence, at.head, 0, p_.features, rows, stride);
    for (index_t r = 0; r < readers_; ++r) {
      T* const row = out_ + r * columns_;
      if (p_.is_normalised) {
        T const by = p_.divisor(row[p_.columns - 1]);
        for (index_t e = 0; e < p_.columns; ++e) row[e] = by != T(0) ? row[e] / by : T(0);
      }
      out.store(where.batch, at.head * readers_ + r, 0, 1, row, columns_);
    }
  }

 private:
  /// The features of a key or a query: where they lie, or in `to`.
  T const* load(side of, source<T> const& from, place const& where, index_t head, T* to) {
    T const factor = of == side::query ? p_.scale : T(1);
    bool const is_scaled = factor != T(1), is_mapped = !p_.map.is_identity();
    if (!is_scaled && !is_mapped) return from.rows(where.batch, head, 0, 1, to).data;
    T* const row = is_mapped ? raw_ : to;
    from.copy(where.batch, head, 0, 1, row, from.dim());
    for (index_t d = 0; d < from.dim() && is_scaled; ++d) row[d] *= factor;
    if (is_mapped)
      p_.map.apply(of, feature_rows<T>{row, from.dim(), 1, from.dim(), where.batch, head, 0}, to,
                   features_);
    return to;
  }

  void load_gates(state_place const& at) {
    auto const read = [&](token_numbers<T> const& from, index_t count) {
      from.numbers.copy(at.where.batch, p_.of_state(from.heads(), at.head), 0, 1, raw_, count);
      for (index_t d = 0; d < count; ++d) gates_[d] = static_cast<double>(raw_[d]);
    };
    if (p_.key_fading == fading::scalar) {
      read(p_.key_gate, 1);
      batch const factor = exponential<Arch, T>(gates_[0]);
      for (index_t d = 0; d < p_.features; d += lanes) factor.store_aligned(fade_ + d);
    } else if (p_.key_fading == fading::channels) {
      read(p_.key_gate, p_.features);
      exponentials<Arch>(gates_, p_.features, fade_);
    }
    if (p_.value_fading == fading::channels) {
      read(p_.value_gate, p_.columns);
      exponentials<Arch>(gates_, p_.columns, value_fade_);
    }
  }

  /// What is written under the delta rule.
  void erase(state_place const& at, T const* rows, index_t stride) {
    T rate;
    p_.rate.numbers.copy(at.where.batch, p_.of_state(p_.rate.heads(), at.head), 0, 1, &rate, 1);
    if (p_.rule == write_rule::exact_delta)
      rate = exact_rate(rate, dot_row<Arch>(p_.features, key_, key_));
    T const *const key = key_, *const fade = fade_;
    T* const erased = raw_;
    bool const fades = p_.key_fading != fading::none;
    for (index_t d = 0; d < p_.features; ++d) erased[d] = fades ? -key[d] * fade[d] : -key[d];
    in_tiles([&]<index_t Registers>(std::integral_constant<index_t, Registers>, index_t first) {
      T* const to = written_ + first;
      batch sum[Registers];
#pragma GCC unroll 8
      for (index_t r = 0; r < Registers; ++r) sum[r] = batch::load_aligned(to + r * lanes);
      add_rows(erased, rows + first, stride, sum);
#pragma GCC unroll 8
      for (index_t r = 0; r < Registers; ++r) (batch(rate) * sum[r]).store_aligned(to + r * lanes);
    });
  }

  /// The state faded and written to, and what each query reads from it.
  template <bool RowsFade, bool ColumnsFade>
  void update(T* rows, index_t stride) {
    in_tiles([&]<index_t Registers>(std::integral_constant<index_t, Registers>, index_t first) {
      // Locals, because what is stored might lie on a member for all the compiler knows.
      T const *const key = key_, *const query = queries_[0], *const fade = fade_;
      index_t const features = p_.features;
      batch value[Registers], value_fade[Registers], sum[Registers];
#pragma GCC unroll 8
      for (index_t r = 0; r < Registers; ++r) {
        value[r] = batch::load_unaligned(value_ + first + r * lanes);
        value_fade[r] = batch::load_aligned(value_fade_ + first + r * lanes);
        sum[r] = batch(T(0));
      }
      T* row = rows + first;
      for (index_t d = 0; d < features; ++d, row += stride) {
        batch const key_d(key[d]), query_d(query[d]), fade_d(fade[d]);
#pragma GCC unroll 8
        for (index_t r = 0; r < Registers; ++r) {
          batch now = batch::load_unaligned(row + r * lanes);
          if constexpr (RowsFade) now *= fade_d;
          if constexpr (ColumnsFade) now *= value_fade[r];
          now = simd::fma(key_d, value[r], now);
          now.store_unaligned(row + r * lanes);
          sum[r] = simd::fma(query_d, now, sum[r]);
        }
      }
      store(sum, out_ + first);
      for (index_t reader = 1; reader < readers_; ++reader) {
#pragma GCC unroll 8
        for (index_t r = 0; r < Registers; ++r) sum[r] = batch(T(0));
        add_rows(queries_[reader], rows + first, stride, sum);
        store(sum, out_ + reader * columns_ + first);
      }
    });
  }

  /// sum += sum_d factors[d] rows[d], over the features.
  template <std::size_t Registers>
  void add_rows(T const* factors, T const* rows, index_t stride, batch (&sum)[Registers]) const {
    for (index_t d = 0; d < p_.features; ++d, rows += stride) {
      batch const factor(factors[d]);
#pragma GCC unroll 8
      for (std::size_t r = 0; r < Registers; ++r)
        sum[r] = simd::fma(factor, batch::load_unaligned(rows + r * batch::size), sum[r]);
    }
  }

  template <std::size_t Registers>
  static void store(batch const (&sum)[Registers], T* to) {
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Registers; ++r) sum[r].store_aligned(to + r * batch::size);
  }

  /// Calls f with the first column of each tile and its registers: eight, so that rows of 64 numbers are read as they
  /// lie, four or one.
  template <class F>
  void in_tiles(F f) const {
    index_t first = 0;
    auto const tiles_of =
        [&]<index_t Registers>(std::integral_constant<index_t, Registers> registers) {
          for (; first + Registers * lanes <= columns_; first += Registers * lanes)
            f(registers, first);
        };
    tiles_of(std::integral_constant<index_t, 8>());
    tiles_of(std::integral_constant<index_t, 4>());
    tiles_of(std::integral_constant<index_t, 1>());
  }

  problem<T> const& p_;
  index_t readers_;
  index_t features_;
  index_t columns_;
  bool in_place_;  // the state is worked on where it lies
  T* mapped_;      // features that do not lie anywhere yet
  T* raw_;
  T const* key_ = nullptr;
  T const** queries_;
  T* fade_;
  T* value_fade_;
  T* written_;
  T const* value_ = nullptr;
  T* out_;
  double* gates_;
  T* state_ = nullptr;
};

template <class Arch, class T>
void step_pass(problem<T> const& p, sink<T> const& out, any_executor const& run_on,
               workspace& scratch_memory) {
  arena measure;
  step_worker<T, Arch>(measure, p);
  std::size_t const bytes = measure.used();
  index_t const states = p.sequences.count * p.shape.state_heads;
  // A step is short: several states to a piece.
  index_t const workers = run_on.concurrency();
  index_t const pieces =
      workers == 1 ? std::min<index_t>(states, 1) : std::min(states, 4 * workers);
  std::byte* const memory = scratch_memory.reserve(bytes * static_cast<std::size_t>(workers));
  parallel_for(run_on, pieces, [&](index_t piece, index_t worker) {
    arena own(memory + static_cast<std::size_t>(worker) * bytes);
    step_worker<T, Arch> w(own, p);
    index_t const last = (piece + 1) * states / pieces;
    for (index_t n = piece * states / pieces; n < last; ++n)
      w.run({p.sequences.at(n / p.shape.state_heads), n % p.shape.state_heads}, p.final, out);
  });
}

/// One token for every sequence and head; see linear.hpp.
template <class Arch = xsimd::default_arch, element Q, element K, element V, element O, class S,
          class... I>
void step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
          tensor_view<O, 4> out, tensor_view<S, 4> states, I const&... ingredients) {
  using T = compute_type_of<Q, K, V, O, state<S>, I...>;
  static_assert(!std::is_const_v<O> && !std::is_const_v<S>,
                "heed: out and the state are written to");
  static_assert(!(false || ... ||
                  (detail::is_state.template operator()<I>() ||
                   detail::is_documents.template operator()<I>() ||
                   detail::is_initial_state.template operator()<I>() ||
                   detail::is_dense.template operator()<I>() ||
                   detail::is_final_state.template operator()<I>())),
                "heed: a step has one state and one token of each sequence");
  problem<T> const p = make_problem<T>(query, key, value, out, state<S>{states}, ingredients...);
  heed::detail::expect_distinct_elements("out", out);
  require(p.shape.rows == 1 && p.shape.keys == 1, [&] {
    return "a step with query of shape " + shape_text(query.extents()) + " and key of shape " +
           shape_text(key.extents()) + "; expected one position of each";
  });
  auto const run_on = executor_of(ingredients...);
  any_executor const workers(run_on);
  step_pass<Arch>(p, sink<T>(out), workers, scratch_of(ingredients...));
}

}  // namespace heed::recur
