#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/recur/memory/products.hpp>
#include <heed/simd/fma.hpp>

#include <cmath>

/// One matrix of a memory over some tokens whose gradients are all taken at the same reference: the recurrence
///
///     S_t = eta_t S_(t-1) - theta_t l_t d_t^T        W_t = keep_t W_(t-1) + S_t        y_t = W_t^T x_t
///
/// with l_t the matrix's input for the key of token t and d_t its error row, in closed form:
///
///     W_t = b_t W_0 + f_t S_0 - sum_(j <= t) G_tj l_j d_j^T        S_t = m_t S_0 - sum_(j <= t) N_tj l_j d_j^T
///
/// The coefficients are products and sums of gates, and never quotients.
namespace heed::recur::memory {

/// The coefficients of some tokens.
template <class T, class Arch>
struct coefficients {
  using math = products<T, Arch>;
  using batch = typename math::batch;

  index_t tokens = 0;
  T *rate, *momentum, *keep;  // theta, eta, keep of each token
  T *b, *f, *m;
  panel<T> G, N;  // [tokens][padded tokens], zeros beyond the diagonal

  /// Room for as many tokens.
  void take(arena& memory, index_t most) {
    for (T** each : {&rate, &momentum, &keep, &b, &f, &m})
      *each = memory.take<T>(math::padded(most));
    for (panel<T>* each : {&G, &N})
      *each = {memory.take<T>(most * math::padded(most)), math::padded(most)};
  }

  /// From the gates of `count` tokens, which stand in rate, momentum and keep.
  void compute(index_t count) {
    tokens = count;
    T last_b = 1, last_f = 0, last_m = 1;
    for (index_t t = 0; t < count; ++t) {
      last_b *= keep[t];
      last_m *= momentum[t];
      last_f = keep[t] * last_f + last_m;
      b[t] = last_b;
      f[t] = last_f;
      m[t] = last_m;
      for (index_t j = 0; j < math::padded(count); j += math::lanes) {
        batch const n_before = t > 0 && j < t ? batch::load_aligned(N[t - 1] + j) : batch(T(0));
        batch const g_before = t > 0 && j < t ? batch::load_aligned(G[t - 1] + j) : batch(T(0));
        batch const n = batch(momentum[t]) * n_before;
        n.store_aligned(N[t] + j);
        simd::fma(batch(keep[t]), g_before, n).store_aligned(G[t] + j);
      }
      N[t][t] = rate[t];
      G[t][t] = rate[t];
    }
  }
};

/// Gradients of the coefficients, and by them those of the gates.
template <class T, class Arch>
struct coefficient_gradients {
  using math = products<T, Arch>;
  using batch = typename math::batch;

  T *b, *f;            // [tokens]
  T m;                 // of the last token
  panel<T> G;          // [tokens][padded tokens]
  T* N;                // of the last token
  T *rate, *momentum;  // results
  T* keep;
  T *carry_G, *carry_N;

  void take(arena& memory, index_t most) {
    for (T** each : {&b, &f, &N, &rate, &momentum, &keep, &carry_G, &carry_N})
      *each = memory.take<T>(math::padded(most));
    G = {memory.take<T>(most * math::padded(most)), math::padded(most)};
  }

  void clear(index_t count) {
    index_t const wide = math::padded(count);
    for (T* each : {b, f, N}) std::fill_n(each, wide, T(0));
    for (index_t t = 0; t < count; ++t) std::fill_n(G[t], G.stride, T(0));
    m = 0;
  }

  void compute(coefficients<T, Arch> const& of) {
    index_t const count = of.tokens, wide = math::padded(count);
    std::fill_n(carry_G, wide, T(0));
    std::copy_n(N, wide, carry_N);
    T carry_b = 0, carry_f = 0, carry_m = m;
    for (index_t t = count; t-- > 0;) {
      carry_b += b[t];
      carry_f += f[t];
      carry_m += carry_f;
      for (index_t j = 0; j < wide; j += math::lanes) {
        batch const g = batch::load_aligned(carry_G + j) + batch::load_aligned(G[t] + j);
        g.store_aligned(carry_G + j);
        (batch::load_aligned(carry_N + j) + g).store_aligned(carry_N + j);
      }
      rate[t] = carry_N[t];
      if (t > 0) {
        keep[t] =
            math::dot(wide, carry_G, of.G[t - 1]) + carry_b * of.b[t - 1] + carry_f * of.f[t - 1];
        momentum[t] = math::dot(wide, carry_N, of.N[t - 1]) + carry_m * of.m[t - 1];
      } else {
        keep[t] = carry_b;
        momentum[t] = carry_m;
      }
      carry_b *= of.keep[t];
      carry_f *= of.keep[t];
      carry_m *= of.momentum[t];
      for (index_t j = 0; j < wide; j += math::lanes) {
        (batch(of.keep[t]) * batch::load_aligned(carry_G + j)).store_aligned(carry_G + j);
        (batch(of.momentum[t]) * batch::load_aligned(carry_N + j)).store_aligned(carry_N + j);
      }
    }
  }
};

/// A matrix of the memory, [inputs][outputs], and its momentum; the latter is null where there is none.
template <class T>
struct layer_state {
  panel<T> weights, momentum;
};

/// What a layer takes of the keys: its inputs for them and its error rows, each also turned.
template <class T>
struct layer_rows {
  index_t inputs = 0, outputs = 0;
  panel<T> input, error;                // [tokens][inputs], [tokens][outputs]
  panel<T> turned_input, turned_error;  // [inputs][tokens], [outputs][tokens]
};

/// The closed form of a layer, forward and back. Rows to read are the last ones of the tokens, or, where there are no
/// tokens, rows that read W_0.
template <class T, class Arch>
class layer_chunk {
 public:
  using math = products<T, Arch>;
  using batch = typename math::batch;

  /// Room for tiles of so many tokens and rows, and layers as wide.
  void take(arena& memory, index_t tokens, index_t widest, bool backward) {
    index_t const wide = math::padded(widest);
    scaled_ = {memory.take<T>(tokens * wide), wide};
    scores_ = {memory.take<T>(tokens * math::padded(tokens)), math::padded(tokens)};
    if (!backward) return;
    products_ = {memory.take<T>(tokens * math::padded(tokens)), math::padded(tokens)};
    for (panel<T>* each : {&first_, &second_}) *each = {memory.take<T>(tokens * wide), wide};
    turned_weights_ = memory.take<T>(widest * wide);
  }

  /// y = rows of x read, each after its own token.
  void read(coefficients<T, Arch> const& c, layer_state<T> const& state, layer_rows<T> const& layer,
            index_t rows, panel<T> x, panel<T> y) const {
    if (c.tokens == 0)
      return math::template multiply<false>(rows, layer.inputs, layer.outputs, x.scalars(),
                                            state.weights, y);
    index_t const first = c.tokens - rows;
    math::scale_rows(rows, layer.inputs, c.b + first, x, scaled_);
    math::template multiply<false>(rows, layer.inputs, layer.outputs, scaled_.scalars(),
                                   state.weights, y);
    if (state.momentum.data != nullptr) {
      math::scale_rows(rows, layer.inputs, c.f + first, x, scaled_);
      math::template multiply<true>(rows, layer.inputs, layer.outputs, scaled_.scalars(),
                                    state.momentum, y);
    }
    for (index_t r = 0; r < rows; r += together) {
      index_t const count = std::min(together, rows - r), seen = first + r + count;
      math::template multiply<false>(count, layer.inputs, seen, x.from_row(r).scalars(),
                                     layer.turned_input, scores_);
      math::each(
          count, seen, [](batch s, batch g) { return -(s * g); }, scores_, c.G.from_row(first + r));
      math::template multiply<true>(count, seen, layer.outputs, scores_.scalars(), layer.error,
                                    y.from_row(r));
    }
  }

  /// Takes the state past the tokens.
  void advance(coefficients<T, Arch> const& c, layer_state<T> const& state,
               layer_rows<T> const& layer) const {
    index_t const last = c.tokens - 1;
    auto const add = [&](T const* factors, panel<T> to) {
      for (index_t j = 0; j < c.tokens; ++j) {
        batch const factor(-factors[j]);
        for (index_t e = 0; e < math::padded(layer.outputs); e += math::lanes)
          (factor * batch::load_unaligned(layer.error[j] + e)).store_unaligned(scaled_[j] + e);
      }
      math::template multiply<true>(layer.inputs, c.tokens, layer.outputs,
                                    layer.input.transposed_scalars(), scaled_, to);
    };
    batch const b(c.b[last]), f(c.f[last]), m(c.m[last]);
    if (state.momentum.data == nullptr) {
      math::each(
          layer.inputs, layer.outputs, [&](batch w) { return b * w; }, state.weights);
    } else {
      math::each(
          layer.inputs, layer.outputs, [&](batch w, batch s) { return simd::fma(f, s, b * w); },
          state.weights, state.momentum);
      math::each(
          layer.inputs, layer.outputs, [&](batch s) { return m * s; }, state.momentum);
      add(c.N[last], state.momentum);
    }
    add(c.G[last], state.weights);
  }

  /// advance() and the reading of one row at most, of a single token: every number is met once.
  static void advance_by_one(T keep, T momentum, T rate, layer_state<T> const& state,
                             layer_rows<T> const& layer, T const* x, T* y) {
    index_t e = 0;
    index_t const end = math::padded(layer.outputs);
    auto const columns = [&]<int Registers>(std::integral_constant<int, Registers>) {
      for (; e + Registers * math::lanes <= end; e += Registers * math::lanes)
        if (state.momentum.data == nullptr)
          columns_by_one<Registers, false>(keep, momentum, rate, state, layer, x, y, e);
        else
          columns_by_one<Registers, true>(keep, momentum, rate, state, layer, x, y, e);
    };
    columns(std::integral_constant<int, 4>());
    columns(std::integral_constant<int, 1>());
  }

  /// advance() backwards: `after` holds the gradients of the state past the tokens and then, as far as those came from
  /// there, the gradients of the state before. Overwrites dinput and derror.
  void advance_backward(coefficients<T, Arch> const& c, layer_state<T> const& state,
                        layer_rows<T> const& layer, layer_state<T> const& after,
                        coefficient_gradients<T, Arch>& dc, panel<T> dinput, panel<T> derror) {
    index_t const last = c.tokens - 1;
    auto const through = [&](panel<T> gradient, T const* factors, T* dfactors, bool first) {
      math::template multiply<false>(c.tokens, layer.inputs, layer.outputs, layer.input.scalars(),
                                     gradient, second_);
      for (index_t j = 0; j < c.tokens; ++j)
        dfactors[j] -= math::dot(layer.outputs, second_[j], layer.error[j]);
      add_scaled(c.tokens, layer.outputs, factors, second_, derror, first);
      math::multiply_transposed(c.tokens, layer.outputs, layer.inputs, layer.error, gradient,
                                second_, turned_weights_);
      add_scaled(c.tokens, layer.inputs, factors, second_, dinput, first);
    };
    through(after.weights, c.G[last], dc.G[last], true);
    dc.b[last] += math::dot(layer.inputs, layer.outputs, state.weights, after.weights);
    batch const b(c.b[last]), f(c.f[last]), m(c.m[last]);
    if (state.momentum.data != nullptr) {
      through(after.momentum, c.N[last], dc.N, false);
      dc.f[last] += math::dot(layer.inputs, layer.outputs, state.momentum, after.weights);
      dc.m += math::dot(layer.inputs, layer.outputs, state.momentum, after.momentum);
      math::each(
          layer.inputs, layer.outputs, [&](batch s, batch w) { return simd::fma(f, w, m * s); },
          after.momentum, after.weights);
    }
    math::each(
        layer.inputs, layer.outputs, [&](batch w) { return b * w; }, after.weights);
  }

  /// read() backwards: adds to the gradients of the state before the tokens, of the coefficients, dinput and derror;
  /// overwrites dx.
  void read_backward(coefficients<T, Arch> const& c, layer_state<T> const& state,
                     layer_rows<T> const& layer, index_t rows, panel<T> x, panel<T> dy, panel<T> dx,
                     layer_state<T> const& before, coefficient_gradients<T, Arch>& dc,
                     panel<T> dinput, panel<T> derror) {
    index_t const first = c.tokens - rows;
    math::multiply_transposed(rows, layer.outputs, layer.inputs, dy, state.weights, dx,
                              turned_weights_);
    if (c.tokens == 0)
      return math::template multiply<true>(layer.inputs, rows, layer.outputs,
                                           x.transposed_scalars(), dy, before.weights);
    auto const weigh = [&](T const* factors, T* dfactors, panel<T> by, panel<T> to) {
      for (index_t r = 0; r < rows; ++r)
        dfactors[first + r] += math::dot(layer.inputs, x[r], by[r]);
      math::scale_rows(rows, layer.inputs, factors + first, by, by);
      math::scale_rows(rows, layer.inputs, factors + first, x, scaled_);
      math::template multiply<true>(layer.inputs, rows, layer.outputs, scaled_.transposed_scalars(),
                                    dy, to);
    };
    weigh(c.b, dc.b, dx, before.weights);
    if (state.momentum.data != nullptr) {
      math::multiply_transposed(rows, layer.outputs, layer.inputs, dy, state.momentum, first_,
                                turned_weights_);
      weigh(c.f, dc.f, first_, before.momentum);
      math::each(
          rows, layer.inputs, [](batch sum, batch more) { return sum + more; }, dx, first_);
    }
    for (index_t r = 0; r < rows; r += together) {
      index_t const count = std::min(together, rows - r), seen = first + r + count;
      panel<T> const of_x = x.from_row(r), of_dy = dy.from_row(r), G = c.G.from_row(first + r);
      math::template multiply<false>(count, layer.inputs, seen, of_x.scalars(), layer.turned_input,
                                     scores_);
      math::template multiply<false>(count, layer.outputs, seen, of_dy.scalars(),
                                     layer.turned_error, products_);
      // Pairs of a row and a later token have G = 0; their gradients must not count either.
      for (index_t i = 0; i < count; ++i) {
        std::fill(scores_[i] + first + r + i + 1, scores_[i] + math::padded(seen), T(0));
        math::each(
            1, seen, [](batch sum, batch s, batch p) { return sum - s * p; },
            dc.G.from_row(first + r + i), scores_.from_row(i), products_.from_row(i));
      }
      auto const weigh_pairs = [](batch s, batch g) { return -(s * g); };
      math::each(count, seen, weigh_pairs, scores_, G);
      math::each(count, seen, weigh_pairs, products_, G);
      math::template multiply<true>(count, seen, layer.inputs, products_.scalars(), layer.input,
                                    dx.from_row(r));
      math::template multiply<true>(seen, count, layer.inputs, products_.transposed_scalars(), of_x,
                                    dinput);
      math::template multiply<true>(seen, count, layer.outputs, scores_.transposed_scalars(), of_dy,
                                    derror);
    }
  }

 private:
  static constexpr index_t together = 24;  // rows that look at the same keys

  static void add_scaled(index_t rows, index_t columns, T const* factors, panel<T> from,
                         panel<T> to, bool first) {
    for (index_t r = 0; r < rows; ++r) {
      batch const factor(-factors[r]);
      for (index_t c = 0; c < math::padded(columns); c += math::lanes)
        simd::fma(factor, batch::load_unaligned(from[r] + c),
                  first ? batch(T(0)) : batch::load_unaligned(to[r] + c))
            .store_unaligned(to[r] + c);
    }
  }

  template <int Registers, bool Momentum>
  static void columns_by_one(T keep, T momentum, T rate, layer_state<T> const& state,
                             layer_rows<T> const& layer, T const* x, T* y, index_t e) {
    batch error[Registers], sum[Registers];
#pragma GCC unroll 4
    for (int r = 0; r < Registers; ++r) {
      error[r] = batch(-rate) * batch::load_unaligned(layer.error.data + e + r * math::lanes);
      sum[r] = batch(T(0));
    }
    T* weights = state.weights.data + e;
    T* moving = Momentum ? state.momentum.data + e : nullptr;
    T const* const input = layer.input.data;
    for (index_t d = 0; d < layer.inputs; ++d, weights += state.weights.stride) {
      batch const l(input[d]), read(x != nullptr ? x[d] : T(0));
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) {
        batch const w = batch::load_unaligned(weights + r * math::lanes);
        batch next;
        if constexpr (Momentum) {
          batch const s = simd::fma(
              l, error[r], batch(momentum) * batch::load_unaligned(moving + r * math::lanes));
          s.store_unaligned(moving + r * math::lanes);
          next = simd::fma(batch(keep), w, s);
        } else {
          next = simd::fma(l, error[r], batch(keep) * w);
        }
        next.store_unaligned(weights + r * math::lanes);
        sum[r] = simd::fma(read, next, sum[r]);
      }
      if constexpr (Momentum) moving += state.momentum.stride;
    }
    if (x != nullptr)
#pragma GCC unroll 4
      for (int r = 0; r < Registers; ++r) sum[r].store_unaligned(y + e + r * math::lanes);
  }

  panel<T> scaled_, scores_, products_, first_, second_;
  T* turned_weights_ = nullptr;
};

}  // namespace heed::recur::memory
