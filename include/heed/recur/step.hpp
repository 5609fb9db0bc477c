#pragma once

#include <heed/recur/chunk.hpp>
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
        features_(simd::round_up(p.features, lanes)),
        columns_(simd::round_up(p.columns, lanes)),
        in_place_(p.final.in_place() && p.columns % lanes == 0) {
    auto const numbers = [&](index_t count) {
      T* const at = memory.take<T>(count);
      if (!memory.measuring()) std::fill_n(at, count, T(0));
      return at;
    };
    raw_ = numbers(std::max(p.shape.key_dim, p.shape.query_dim));
    key_ = numbers(features_);
    queries_ = numbers(features_ * p.readers());
    fade_ = numbers(features_);
    value_fade_ = numbers(columns_);
    written_ = numbers(columns_);
    out_ = numbers(columns_ * p.readers());
    gates_ = memory.take<double>(std::max(features_, columns_));
    if (!in_place_) state_ = numbers(p.features * columns_);
  }

  void run(state_place const& at, sink<T> const& state, sink<T> const& out) {
    place const& where = at.where;
    load(side::key, p_.key, where, p_.of_state(p_.shape.key_heads, at.head), key_);
    for (index_t r = 0; r < p_.readers(); ++r)
      load(side::query, p_.query, where, p_.query_head(at.head * p_.readers() + r),
           queries_ + r * features_);
    p_.value.copy(where.batch, p_.of_state(p_.shape.value_heads, at.head), 0, 1, written_,
                  columns_);
    if (p_.is_normalised) written_[p_.columns - 1] = T(1);
    load_gates(at);

    T* const rows = in_place_ ? state.row(where.sequence, at.head, 0) : state_;
    index_t const stride = in_place_ ? state.row_stride() : columns_;
    if (!in_place_) p_.initial.copy(where.sequence, at.head, 0, p_.features, rows, stride);
    if (p_.rule != write_rule::add) erase(at, rows, stride);
    std::fill_n(out_, columns_ * p_.readers(), T(0));
    in_tiles([&]<index_t Registers>(std::integral_constant<index_t, Registers>, index_t first) {
      update<Registers>(rows, stride, first);
    });
    if (!in_place_) state.store(where.sequence, at.head, 0, p_.features, rows, stride);
    for (index_t r = 0; r < p_.readers(); ++r) {
      T* const row = out_ + r * columns_;
      if (p_.is_normalised) {
        T const by = p_.divisor(row[p_.columns - 1]);
        for (index_t e = 0; e < p_.columns; ++e) row[e] = by != T(0) ? row[e] / by : T(0);
      }
      out.store(where.batch, at.head * p_.readers() + r, 0, 1, row, columns_);
    }
  }

 private:
  void load(side of, source<T> const& from, place const& where, index_t head, T* to) {
    T const factor = of == side::query ? p_.scale : T(1);
    T* const row = p_.map.is_identity() ? to : raw_;
    from.copy(where.batch, head, 0, 1, row, from.dim());
    for (index_t d = 0; d < from.dim() && factor != T(1); ++d) row[d] *= factor;
    if (p_.map.is_identity()) return;
    p_.map.apply(of, feature_rows<T>{raw_, from.dim(), 1, from.dim(), where.batch, head, 0}, to,
                 features_);
  }

  void load_gates(state_place const& at) {
    auto const copy = [&](token_numbers<T> const& from, index_t channels, T* to) {
      from.numbers.copy(at.where.batch, p_.of_state(from.heads(), at.head), 0, 1, to, channels);
      for (index_t d = 0; d < channels; ++d) gates_[d] = static_cast<double>(to[d]);
      exponentials<Arch>(gates_, channels, to);
    };
    if (p_.key_fading == fading::channels) {
      copy(p_.key_gate, p_.features, fade_);
    } else {
      T factor = 1;
      if (p_.key_fading == fading::scalar) copy(p_.key_gate, 1, &factor);
      std::fill_n(fade_, p_.features, factor);
    }
    if (p_.value_fading == fading::channels) copy(p_.value_gate, p_.columns, value_fade_);
  }

  /// What is written under the delta rule.
  void erase(state_place const& at, T const* rows, index_t stride) {
    T rate;
    p_.rate.numbers.copy(at.where.batch, p_.of_state(p_.rate.heads(), at.head), 0, 1, &rate, 1);
    if (p_.rule == write_rule::exact_delta)
      rate = exact_rate(rate, inner_product<Arch>(key_, key_, features_));
    in_tiles([&]<index_t Registers>(std::integral_constant<index_t, Registers>, index_t first) {
      batch sum[Registers];
#pragma GCC unroll 4
      for (index_t r = 0; r < Registers; ++r)
        sum[r] = batch::load_aligned(written_ + first + r * lanes);
      for (index_t d = 0; d < p_.features; ++d) {
        batch const key(-fade_[d] * key_[d]);
        T const* const row = rows + d * stride + first;
#pragma GCC unroll 4
        for (index_t r = 0; r < Registers; ++r)
          sum[r] = simd::fma(key, batch::load_unaligned(row + r * lanes), sum[r]);
      }
#pragma GCC unroll 4
      for (index_t r = 0; r < Registers; ++r)
        (batch(rate) * sum[r]).store_aligned(written_ + first + r * lanes);
    });
  }

  /// Calls f with the first column of each tile and its registers, four or one.
  template <class F>
  void in_tiles(F f) const {
    index_t first = 0;
    for (; first + 4 * lanes <= columns_; first += 4 * lanes)
      f(std::integral_constant<index_t, 4>(), first);
    for (; first < columns_; first += lanes) f(std::integral_constant<index_t, 1>(), first);
  }

  template <index_t Registers>
  void update(T* rows, index_t stride, index_t first) {
    batch value[Registers], faded[Registers];
    bool const columns_fade = p_.value_fading == fading::channels;
#pragma GCC unroll 4
    for (index_t r = 0; r < Registers; ++r) {
      value[r] = batch::load_aligned(written_ + first + r * lanes);
      faded[r] = batch::load_aligned(value_fade_ + first + r * lanes);
    }
    index_t const readers = p_.readers();
    batch sum[Registers];
#pragma GCC unroll 4
    for (index_t r = 0; r < Registers; ++r) sum[r] = batch(T(0));
    for (index_t d = 0; d < p_.features; ++d) {
      T* const row = rows + d * stride + first;
      batch const key(key_[d]), fade(fade_[d]), query(queries_[d]);
#pragma GCC unroll 4
      for (index_t r = 0; r < Registers; ++r) {
        batch now = batch::load_unaligned(row + r * lanes) * fade;
        if (columns_fade) now *= faded[r];
        now = simd::fma(key, value[r], now);
        now.store_unaligned(row + r * lanes);
        sum[r] = simd::fma(query, now, sum[r]);
      }
      for (index_t reader = 1; reader < readers; ++reader) {
        T* const to = out_ + reader * columns_ + first;
        batch const other(queries_[reader * features_ + d]);
#pragma GCC unroll 4
        for (index_t r = 0; r < Registers; ++r)
          simd::fma(other, batch::load_unaligned(row + r * lanes),
                    batch::load_aligned(to + r * lanes))
              .store_aligned(to + r * lanes);
      }
    }
#pragma GCC unroll 4
    for (index_t r = 0; r < Registers; ++r) sum[r].store_aligned(out_ + first + r * lanes);
  }

  problem<T> const& p_;
  index_t features_;
  index_t columns_;
  bool in_place_;  // the state is worked on where it lies
  T* raw_;
  T* key_;
  T* queries_;
  T* fade_;
  T* value_fade_;
  T* written_;
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
    for (index_t n = piece * states / pieces; n < (piece + 1) * states / pieces; ++n)
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
  auto const run_on = one_of<detail::is_executor>(serial{}, ingredients...);
  any_executor const workers(run_on);
  step_pass<Arch>(p, sink<T>(out), workers, scratch_of(ingredients...));
}

}  // namespace heed::recur
