#pragma once

#include <heed/recur/scan_clauses.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/gates.hpp>

/// Causal filters of each channel for itself: the short convolution in front of a recurrence, and longer ones.
namespace heed {

/// A bias of each channel, [heads, dim], added before the activation; `gradient` receives d loss / d bias.
template <element T>
struct channel_bias {
  tensor_view<T const, 2> bias;
  tensor_view<T, 2> gradient;

  channel_bias(tensor_view<T const, 2> b, tensor_view<T, 2> db = {}) : bias(b), gradient(db) {}
};
template <class T, class... G>
channel_bias(tensor_view<T, 2>, G const&...) -> channel_bias<std::remove_const_t<T>>;

/// Applies silu(x) = x / (1 + e^-x) to what a causal_convolution gives.
struct with_silu {};

/// Centres the filter of a causal_convolution, which is then causal no more: out_t = sum_k w_k x_(t + (taps - 1) / 2 - k),
/// with 0 beyond a sequence's end. Takes no states.
struct centred {};

namespace recur::scan {

inline constexpr auto is_bias = []<class T>() { return heed::detail::is_a<T, channel_bias>; };

/// The work of causal_convolution and its gradients. Sequences are cut into pieces that know the inputs before them.
template <class T, class Arch>
class convolver {
 public:
  using batch = xsimd::batch<T, Arch>;
  using tiles_type = channel_tiles<T, Arch, 2>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);
  static constexpr index_t width = tiles_type::width;

  sequences all;
  states<T> ends;
  channel_rows<T> in, weights, bias;
  index_t taps = 1;
  index_t ahead = 0;  // the position of tap 0 after that of the result
  bool silu = false;

  static constexpr index_t few_taps = 16;

  index_t piece_rows() const { return taps <= few_taps ? 64 : std::max<index_t>(512, 2 * taps); }
  index_t pieces() const { return (all.longest() + piece_rows() - 1) / piece_rows(); }
  index_t history() const { return taps - 1; }
  /// A piece of work: some rows of a tile, all tiles of some rows one after the other, for the sake of the pages they lie in.
  struct piece_place {
    index_t sequence, tile, part;
  };
  static piece_place place_of(index_t piece, index_t parts, index_t tiles) {
    return {piece / tiles / parts, piece % tiles, piece / tiles % parts};
  }
  /// Of one worker: inputs with those before, weights, outputs, bias.
  index_t scratch_numbers() const {
    return (history() + piece_rows() + taps + piece_rows() + 1) * width;
  }

  /// Rows [first, first + count) of a sequence's inputs, those before it from the initial state; 0 beyond its end.
  void gather(channel_rows<T> const& from, bool with_state, index_t sequence, index_t first,
              index_t count, channel_tile const& tile, T* to) const {
    auto const run = all[sequence];
    for (index_t done = 0; done < count;) {
      index_t const t = first + done, left = count - done;
      T* const at = to + done * tile.padded;
      if (t < 0 && with_state && ends.initial) {
        index_t const rows = std::min(-t, left);
        copy_rows(ends.initial.read(sequence, history() + t, rows, tile, at), rows, tile, at);
        done += rows;
      } else if (t < 0 || t >= run.count) {
        index_t const rows = t < 0 ? std::min(-t, left) : left;
        std::fill_n(at, rows * tile.padded, T(0));
        done += rows;
      } else {
        index_t const rows = std::min(run.count - t, left);
        copy_rows(from.read(run.batch, run.first + t, rows, tile, at), rows, tile, at);
        done += rows;
      }
    }
  }

  /// The same where they lie, if they can be read there and few taps meet them, or in `to`.
  row_block<T> look(channel_rows<T> const& from, bool with_state, index_t sequence, index_t first,
                    index_t count, channel_tile const& tile, T* to) const {
    auto const run = all[sequence];
    if (taps <= few_taps && first >= 0 && first + count <= run.count)
      return from.read(run.batch, run.first + first, count, tile, to);
    gather(from, with_state, sequence, first, count, tile, to);
    return {to, tile.padded};
  }

  /// to[t] = bias + sum_j w[j] x[t + j], the taps in order.
  static void convolve(index_t rows, index_t taps, index_t padded, T const* w, row_block<T> inputs,
                       T const* bias, T* to, index_t to_stride) {
    constexpr index_t together = 8, taps_together = 4;
    for (index_t c = 0; c < padded; c += lanes) {
      batch const start = bias == nullptr ? batch(T(0)) : batch::load_unaligned(bias + c);
      auto const w_at = [&](index_t j) { return batch::load_unaligned(w + j * padded + c); };
      auto const x_at = [&](index_t t) { return batch::load_unaligned(inputs[t] + c); };
      index_t t = 0;
      for (; t + together <= rows; t += together) {
        batch sum[together];
        for (batch& each : sum) each = start;
        index_t j = 0;
        for (; j + taps_together <= taps; j += taps_together) {
          batch const weight[taps_together] = {w_at(j), w_at(j + 1), w_at(j + 2), w_at(j + 3)};
#pragma GCC unroll 11
          for (index_t i = 0; i < together + taps_together - 1; ++i) {
            batch const input = x_at(t + j + i);
#pragma GCC unroll 8
            for (index_t q = 0; q < together; ++q)
              if (i >= q && i - q < taps_together) sum[q] = simd::fma(weight[i - q], input, sum[q]);
          }
        }
        for (; j < taps; ++j)
#pragma GCC unroll 8
          for (index_t q = 0; q < together; ++q)
            sum[q] = simd::fma(w_at(j), x_at(t + j + q), sum[q]);
        for (index_t q = 0; q < together; ++q) sum[q].store_unaligned(to + (t + q) * to_stride + c);
      }
      for (; t < rows; ++t) {
        batch sum = start;
        for (index_t j = 0; j < taps; ++j) sum = simd::fma(w_at(j), x_at(t + j), sum);
        sum.store_unaligned(to + t * to_stride + c);
      }
    }
  }

  /// The weights of a tile, the last tap first, so that they follow the inputs; or as they are.
  void take_weights(channel_tile const& tile, bool last_first, T* to) const {
    for (index_t j = 0; j < taps; ++j) {
      T* const at = to + j * tile.padded;
      copy_rows(weights.read(0, last_first ? taps - 1 - j : j, 1, tile, at), 1, tile, at);
    }
  }

  template <class Executor>
  void forward(channel_rows<T> const& out, index_t channels, Executor const& run_on,
               workspace& memory) const {
    tiles_type const tiles(channels);
    index_t const parts = pieces();
    T* const scratch = reserve(run_on, memory);
    parallel_for(run_on, all.count() * tiles.count() * parts, [&](index_t piece, index_t worker) {
      piece_place const at = place_of(piece, parts, tiles.count());
      index_t const sequence = at.sequence, first = at.part * piece_rows();
      channel_tile const tile = tiles[at.tile];
      auto const run = all[sequence];
      index_t const rows = std::min(piece_rows(), run.count - first);
      if (rows <= 0) return;
      T* const x = scratch + worker * scratch_numbers();
      T* const w = x + (history() + piece_rows()) * width;
      T* const y = w + taps * width;
      row_block<T> const seen =
          look(in, true, sequence, first + ahead - history(), history() + rows, tile, x);
      take_weights(tile, true, w);
      auto const to = out.open(run.batch, run.first + first, tile, y);
      convolve(rows, taps, tile.padded, w, seen, bias_of(tile, y + piece_rows() * width), to.data,
               to.stride);
      if (silu)
        for (index_t t = 0; t < rows; ++t)
          for (index_t c = 0; c < tile.padded; c += lanes)
            simd::silu(batch::load_unaligned(to[t] + c)).store_unaligned(to[t] + c);
      out.finish(to, run.batch, run.first + first, rows, tile);
    });
    if (!ends.final || history() == 0) return;
    // After everything was read: it may be the initial state.
    parallel_for(run_on, all.count() * tiles.count(), [&](index_t piece, index_t worker) {
      index_t const sequence = piece / tiles.count();
      channel_tile const tile = tiles[piece % tiles.count()];
      T* const x = scratch + worker * scratch_numbers();
      gather(in, true, sequence, all[sequence].count - history(), history(), tile, x);
      write_state(ends.final, sequence, history(), tile, x);
    });
  }

  template <class Executor, class DB>
  void backward(channel_rows<T> const& dout, channel_rows<T> const& din,
                channel_rows<T> const& dweights, tensor_view<DB, 2> dbias, index_t channels,
                Executor const& run_on, workspace& memory) const {
    tiles_type const tiles(channels);
    index_t const parts = pieces(), chains = all.count() * tiles.count();
    // What each piece adds to the gradient of the weights and, last, of the bias; summed in their order.
    index_t const sums = (taps + 1) * width;
    index_t const slopes = silu ? all.count() * all.longest() * tiles.count() * width : 0;
    index_t const workers = static_cast<index_t>(run_on.concurrency());
    auto const lay_out = [&](arena from) {
      std::array<T*, 3> at{from.take<T>(workers * scratch_numbers()),
                           from.take<T>(chains * parts * sums), from.take<T>(slopes)};
      return std::pair(at, from.used());
    };
    auto const places = lay_out(arena(memory.reserve(lay_out(arena()).second))).first;
    T *const scratch = places[0], *const partial = places[1], *const slope = places[2];
    auto const slope_of = [&](index_t chain) { return slope + chain * all.longest() * width; };
    // d loss / d what the filter gives, before silu.
    if (silu)
      parallel_for(run_on, chains * parts, [&](index_t piece, index_t worker) {
        piece_place const at = place_of(piece, parts, tiles.count());
        index_t const sequence = at.sequence, first = at.part * piece_rows();
        index_t const chain = sequence * tiles.count() + at.tile;
        channel_tile const tile = tiles[at.tile];
        index_t const rows = std::min(piece_rows(), all[sequence].count - first);
        if (rows <= 0) return;
        T* const x = scratch + worker * scratch_numbers();
        T* const w = x + (history() + piece_rows()) * width;
        T* const dy = w + taps * width;
        T* const to = slope_of(chain) + first * tile.padded;
        row_block<T> const seen =
            look(in, true, sequence, first + ahead - history(), history() + rows, tile, x);
        take_weights(tile, true, w);
        convolve(rows, taps, tile.padded, w, seen, bias_of(tile, dy + piece_rows() * width), to,
                 tile.padded);
        gather(dout, false, sequence, first, rows, tile, dy);
        for (index_t n = 0; n < rows * tile.padded; n += lanes)
          (batch::load_unaligned(dy + n) * simd::silu_slope(batch::load_unaligned(to + n)))
              .store_unaligned(to + n);
      });
    auto const gather_slopes = [&](index_t chain, index_t first, index_t count,
                                   channel_tile const& tile, T* to) {
      index_t const sequence = chain / tiles.count();
      if (!silu) return gather(dout, false, sequence, first, count, tile, to);
      for (index_t r = 0; r < count; ++r)
        if (index_t const t = first + r; t >= 0 && t < all[sequence].count)
          std::copy_n(slope_of(chain) + t * tile.padded, tile.padded, to + r * tile.padded);
        else
          std::fill_n(to + r * tile.padded, tile.padded, T(0));
    };
    parallel_for(run_on, chains * parts, [&](index_t piece, index_t worker) {
      piece_place const at = place_of(piece, parts, tiles.count());
      index_t const sequence = at.sequence, first = at.part * piece_rows();
      index_t const chain = sequence * tiles.count() + at.tile;
      channel_tile const tile = tiles[at.tile];
      auto const run = all[sequence];
      index_t const rows = std::min(piece_rows(), run.count - first);
      T* const to = partial + (chain * parts + at.part) * sums;
      std::fill_n(to, sums, T(0));
      if (rows <= 0) return;
      T* const x = scratch + worker * scratch_numbers();
      T* const w = x + (history() + piece_rows()) * width;
      T* const y = w + taps * width;
      row_block<T> const seen =
          look(in, true, sequence, first + ahead - history(), history() + rows, tile, x);
      gather_slopes(chain, first, rows, tile, y);
      for (index_t j = 0; j < taps; ++j)
        correlate(rows, tile.padded, y, {seen[history() - j], seen.stride}, to + j * width);
      correlate(rows, tile.padded, y, {nullptr, 0}, to + taps * width);

      // dx_t = sum_k w_k slope_(t - ahead + k).
      gather_slopes(chain, first - ahead, rows + history(), tile, x);
      take_weights(tile, false, w);
      auto const dx = din.open(run.batch, run.first + first, tile, y);
      convolve(rows, taps, tile.padded, w, {x, tile.padded}, nullptr, dx.data, dx.stride);
      if (ends.final_gradient) add_final(sequence, first, rows, tile, dx, x);
      din.finish(dx, run.batch, run.first + first, rows, tile);
    });
    if (ends.initial_gradient && history() > 0)
      parallel_for(run_on, chains, [&](index_t chain, index_t worker) {
        index_t const sequence = chain / tiles.count();
        channel_tile const tile = tiles[chain % tiles.count()];
        T* const x = scratch + worker * scratch_numbers();
        T* const w = x + (history() + piece_rows()) * width;
        T* const y = w + taps * width;
        gather_slopes(chain, -history(), 2 * history(), tile, x);
        take_weights(tile, false, w);
        convolve(history(), taps, tile.padded, w, {x, tile.padded}, nullptr, y, tile.padded);
        if (ends.final_gradient)
          add_final(sequence, -history(), history(), tile, {y, tile.padded}, x);
        write_state(ends.initial_gradient, sequence, history(), tile, y);
      });
    parallel_for(run_on, tiles.count(), [&](index_t n, index_t worker) {
      channel_tile const tile = tiles[n];
      T* const total = scratch + worker * scratch_numbers();
      for (index_t j = 0; j <= taps; ++j) {
        for (index_t c = 0; c < tile.padded; ++c) {
          double sum = 0;
          for (index_t s = 0; s < all.count(); ++s)
            for (index_t part = 0; part < parts; ++part)
              sum +=
                  double(partial[((s * tiles.count() + n) * parts + part) * sums + j * width + c]);
          total[c] = static_cast<T>(sum);
        }
        if (j < taps)
          dweights.write(0, j, 1, tile, total, tile.padded);
        else if (dbias.data() != nullptr)
          as_row<T>(dbias).write(0, 0, 1, tile, total, tile.padded);
      }
    });
  }

 private:
  static void copy_rows(row_block<T> from, index_t rows, channel_tile const& tile, T* to) {
    if (from.data == to) return;
    for (index_t r = 0; r < rows; ++r) std::copy_n(from[r], tile.padded, to + r * tile.padded);
  }
  T const* bias_of(channel_tile const& tile, T* scratch) const {
    return bias ? bias.read(0, 0, 1, tile, scratch).data : nullptr;
  }
  template <class Executor>
  T* reserve(Executor const& run_on, workspace& memory) const {
    index_t const numbers = static_cast<index_t>(run_on.concurrency()) * scratch_numbers();
    return arena(memory.reserve(static_cast<std::size_t>(arena::bytes<T>(numbers))))
        .template take<T>(numbers);
  }

  /// to[c] = sum_t y[t][c] x[t][c], without x the sum of y.
  static void correlate(index_t rows, index_t padded, T const* y, row_block<T> x, T* to) {
    constexpr index_t chains = 4;
    for (index_t c = 0; c < padded; c += lanes) {
      batch sum[chains];
      for (batch& each : sum) each = batch(T(0));
      for (index_t t = 0; t < rows; t += chains)
#pragma GCC unroll 4
        for (index_t n = 0; n < chains; ++n)
          if (t + n < rows) {
            batch const slope = batch::load_unaligned(y + (t + n) * padded + c);
            sum[n] = x.data == nullptr
                         ? sum[n] + slope
                         : simd::fma(slope, batch::load_unaligned(x[t + n] + c), sum[n]);
          }
      ((sum[0] + sum[1]) + (sum[2] + sum[3])).store_unaligned(to + c);
    }
  }

  /// Adds the gradient of the final state, whose row r is the input at position count - history + r.
  void add_final(index_t sequence, index_t first, index_t rows, channel_tile const& tile,
                 typename channel_rows<T>::open_rows const& to, T* scratch) const {
    index_t const shift = history() - all[sequence].count;
    for (index_t t = 0; t < rows; ++t) {
      index_t const row = first + t + shift;
      if (row < 0 || row >= history()) continue;
      T const* const more = ends.final_gradient.read(sequence, row, 1, tile, scratch).data;
      for (index_t c = 0; c < tile.padded; ++c) to[t][c] += more[c];
    }
  }
};

template <class T, class X, class W, class O, class... I>
auto make_convolver(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<O, 4> out,
                    char const* out_name, I const&... ingredients) {
  static_assert(
      (true && ... &&
       (is_clause<I> || std::same_as<I, with_silu> || std::same_as<I, centred> ||
        is_bias.template operator()<I>())),
      "heed: causal_convolution takes channel_bias, with_silu, centred, states, documents, an "
      "executor and scratch");
  heed::detail::expect_memory("x", x);
  heed::detail::expect_memory("weights", weights);
  require(
      weights.extent(0) > 0 && weights.extent(1) == x.extent(2) && weights.extent(2) == x.extent(3),
      [&] {
        return "weights have shape " + shape_text(weights.extents()) + "; expected [taps, " +
               std::to_string(x.extent(2)) + ", " + std::to_string(x.extent(3)) +
               "] (tap, head, dim) and at least one tap";
      });
  heed::detail::expect_like(out_name, out, x.extents(), "x");
  heed::detail::expect_memory(out_name, out);
  convolver<T, xsimd::default_arch> work;
  work.all = sequences_of(x.extents(), ingredients...);
  work.taps = weights.extent(0);
  work.ends =
      states_of<T>({work.all.count(), x.extent(2), work.history(), x.extent(3)}, ingredients...);
  if (work.history() == 0) work.ends = {};
  work.in = channel_rows<T>(x);
  work.weights = as_rows<T>(weights);
  if constexpr ((false || ... || std::same_as<I, centred>)) {
    static_assert((true && ... && !is_any_state<I>),
                  "heed: a centred filter has no state to begin with");
    work.ahead = work.history() / 2;
  }
  work.silu = (false || ... || std::same_as<I, with_silu>);
  if constexpr ((false || ... || is_bias.template operator()<I>())) {
    auto const given = one_of<is_bias>(nullptr, ingredients...);
    std::array<index_t, 2> const expected{x.extent(2), x.extent(3)};
    auto const fits = [&](char const* name, auto const& view) {
      require(view.extents() == expected, [&] {
        return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
               shape_text(expected) + " (head, dim)";
      });
    };
    fits("channel_bias.bias", given.bias);
    if (given.gradient.data() != nullptr) fits("channel_bias.gradient", given.gradient);
    work.bias = as_row<T>(given.bias);
  }
  return work;
}

template <class... I>
auto bias_gradient(I const&... ingredients) {
  if constexpr ((false || ... || is_bias.template operator()<I>()))
    return one_of<is_bias>(nullptr, ingredients...).gradient;
  else
    return tensor_view<float, 2>();
}

}  // namespace recur::scan

/// out_t = sum_k w_k x_(t-k) over the taps k = 0, 1, ..., each channel for itself; what is before a sequence is its initial
/// state, or 0. With a position extent of 1 a step of decoding.
///
///   x, out    [batch, position, heads, dim]; out is not x
///   weights   [tap, heads, dim], tap 0 that of the current token; stride 0 shares them
///
/// Ingredients, in any order: channel_bias, with_silu, centred, state, initial_state, final_state [sequences, heads, taps - 1, dim]
/// (the last inputs, the oldest first), documents (the same offsets twice), an executor, scratch. Elements are double,
/// float, half or bfloat16; states float or double. The same bits for every executor and however a sequence is cut.
template <element X, element W, element O, class... Ingredients>
void causal_convolution(tensor_view<X, 4> x, tensor_view<W, 3> weights, tensor_view<O, 4> out,
                        Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<X, W, O, scan::states_type<Ingredients...>>;
  auto const work = scan::make_convolver<T>(x, weights, out, "out", ingredients...);
  heed::detail::expect_distinct_elements("out", out);
  work.forward(scan::channel_rows<T>(out), x.extent(2) * x.extent(3),
               scan::executor_of(ingredients...), scan::scratch_of(ingredients...));
}

/// The gradients of causal_convolution, with its ingredients; also initial_state{view, gradient} and
/// final_state_gradient. dx is shaped like x, and is not dout; dweights like weights. A state{view} is read as the one that the call began
/// with. With with_silu, takes scratch of the size of x.
template <element X, element W, element DO, element DX, element DW, class... Ingredients>
void causal_convolution_backward(tensor_view<X, 4> x, tensor_view<W, 3> weights,
                                 tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                                 tensor_view<DW, 3> dweights, Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<X, W, DO, scan::states_type<Ingredients...>>;
  auto const work = scan::make_convolver<T>(x, weights, dout, "dout", ingredients...);
  heed::detail::expect_like("dx", dx, x.extents(), "x");
  heed::detail::expect_distinct_elements("dx", dx);
  require(dweights.extents() == weights.extents(), [&] {
    return "dweights have shape " + shape_text(dweights.extents()) +
           "; expected that of weights, " + shape_text(weights.extents());
  });
  heed::detail::expect_distinct_elements("dweights", dweights);
  work.backward(scan::channel_rows<T>(dout), scan::channel_rows<T>(dx), scan::as_rows<T>(dweights),
                scan::bias_gradient(ingredients...), x.extent(2) * x.extent(3),
                scan::executor_of(ingredients...), scan::scratch_of(ingredients...));
}

}  // namespace heed
