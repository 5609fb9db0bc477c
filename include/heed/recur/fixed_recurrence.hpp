#pragma once

#include <heed/recur/diagonal_scan.hpp>
#include <heed/simd/fma.hpp>

#include <tuple>
#include <utility>

/// The kernel of moving averages and of diagonal state spaces: a state of n numbers for each channel that fade at fixed rates.
namespace heed::recur::scan {

/// For each channel, with n numbers a and w, real or complex,
///
///     s_t = a s_(t-1) + x_t,     y_t = Re sum_n w s_t + skip x_t
///
/// `reversed` runs from the right; `delayed` reads before the token is added, s_(t-1) for s_t. Parameters are rows of
/// channels: real parts first, [n * Planes][channels]. The backward pass keeps the state at every 32nd token.
template <class T, int Planes, class Arch>
class fixed_recurrence {
 public:
  using batch = xsimd::batch<T, Arch>;
  using number = lanes_of<batch, Planes>;
  static constexpr int registers = 2;
  using tiles_type = channel_tiles<T, Arch, registers>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);
  static constexpr index_t width = tiles_type::width;
  static constexpr index_t chunk = 32;

  sequences all;
  states<T> ends;
  index_t channels = 0, n = 0;
  T const* factors = nullptr;  // [n * Planes][channels]
  T const* weights = nullptr;
  channel_rows<T> skip;
  bool reversed = false, delayed = false;
  bool adds = false;  // to what the result is already

  index_t rows_of_state() const { return n * Planes; }

  template <class Executor>
  void forward(channel_rows<T> const& in, channel_rows<T> const& out, Executor const& run_on,
               workspace& memory) const {
    tiles_type const tiles(channels);
    index_t const own = (2 * chunk + 3 * rows_of_state() + 1) * width;
    T* const scratch = reserve(static_cast<index_t>(run_on.concurrency()) * own, memory);
    parallel_for(run_on, all.count() * tiles.count(), [&](index_t piece, index_t worker) {
      index_t const sequence = piece / tiles.count();
      channel_tile const tile = tiles[piece % tiles.count()];
      T* at = scratch + worker * own;
      auto const room = [&](index_t numbers) { return std::exchange(at, at + numbers); };
      of_tile const fixed = parameters(tile, room);
      T* const state = room(rows_of_state() * width);
      read_state(ends.initial, sequence, rows_of_state(), tile, state);
      T *const x_room = room(chunk * width), *const y_room = room(chunk * width);
      for (index_t k = 0; k < chunks(sequence); ++k) {
        auto const rows = part(sequence, k);
        row_block<T> const x = in.read(rows.batch, rows.first, rows.count, tile, x_room);
        auto const y = out.open(rows.batch, rows.first, tile, y_room);
        if (adds && y.data == y_room)
          copy_rows(out.read(rows.batch, rows.first, rows.count, tile, y_room), rows.count, tile,
                    y_room);
        with_registers<T, Arch, registers>(tile, [&]<int R>(std::integral_constant<int, R>) {
          for (index_t i = 0; i < rows.count; ++i) {
            index_t const t = row_at(rows, i);
            batch result[R];
            advance<R>(fixed, x[t], state, state, result);
            for (int r = 0; r < R; ++r) {
              if (adds) result[r] += batch::load_unaligned(y[t] + r * lanes);
              result[r].store_unaligned(y[t] + r * lanes);
            }
          }
        });
        out.finish(y, rows.batch, rows.first, rows.count, tile);
      }
      write_state(ends.final, sequence, rows_of_state(), tile, state);
    });
  }

  /// dfactors, dweights: [n * Planes][channels], the gradient by a complex number being that by its real part plus i times
  /// that by its imaginary part; dskip: [channels], or null. din is added to if `adds`.
  template <class Executor>
  void backward(channel_rows<T> const& in, channel_rows<T> const& dout, channel_rows<T> const& din,
                double* dfactors, double* dweights, double* dskip, Executor const& run_on,
                workspace& memory) const {
    tiles_type const tiles(channels);
    index_t const of_state = rows_of_state(), count = all.count();
    index_t const most = (all.longest() + chunk - 1) / chunk;
    index_t const own = (3 * chunk + (chunk + 1 + most + 6) * of_state + 2) * width;
    index_t const slopes = (2 * of_state + 1) * width;  // of factors, weights and skip
    index_t const workers = static_cast<index_t>(run_on.concurrency());
    auto const lay_out = [&](arena from) {
      std::pair<T*, double*> const at{from.take<T>(workers * own),
                                      from.take<double>(count * tiles.count() * slopes)};
      return std::pair(at, from.used());
    };
    auto const places = lay_out(arena(memory.reserve(lay_out(arena()).second))).first;
    T* const scratch = places.first;
    double* const sums = places.second;
    parallel_for(run_on, count * tiles.count(), [&](index_t piece, index_t worker) {
      index_t const sequence = piece / tiles.count();
      channel_tile const tile = tiles[piece % tiles.count()];
      T* at = scratch + worker * own;
      auto const room = [&](index_t numbers) { return std::exchange(at, at + numbers); };
      double* const sum = sums + piece * slopes;
      std::fill_n(sum, slopes, 0.0);
      of_tile const fixed = parameters(tile, room);
      index_t const size = of_state * tile.padded;
      T* const carry = room(of_state * width);
      T* const slope = room((2 * of_state + 1) * width);
      T* const now = room((chunk + 1) * of_state * width);
      T *const x_room = room(chunk * width), *const dy_room = room(chunk * width),
               *const dx_room = room(chunk * width);
      T* const starts = room(std::max<index_t>(most, 1) * of_state * width);
      read_state(ends.initial, sequence, of_state, tile, starts);
      read_state(ends.final_gradient, sequence, of_state, tile, carry);
      with_registers<T, Arch, registers>(tile, [&]<int R>(std::integral_constant<int, R>) {
        batch unused[R];
        for (index_t k = 0; k + 1 < chunks(sequence); ++k) {
          auto const rows = part(sequence, k);
          row_block<T> const x = in.read(rows.batch, rows.first, rows.count, tile, x_room);
          T* const state = starts + (k + 1) * size;
          std::copy_n(starts + k * size, size, state);
          for (index_t i = 0; i < rows.count; ++i)
            advance<R>(fixed, x[row_at(rows, i)], state, state, unused);
        }
        for (index_t k = chunks(sequence); k-- > 0;) {
          auto const rows = part(sequence, k);
          row_block<T> const x = in.read(rows.batch, rows.first, rows.count, tile, x_room);
          row_block<T> const dy = dout.read(rows.batch, rows.first, rows.count, tile, dy_room);
          auto const dx = din.open(rows.batch, rows.first, tile, dx_room);
          if (adds && dx.data == dx_room)
            copy_rows(din.read(rows.batch, rows.first, rows.count, tile, dx_room), rows.count, tile,
                      dx_room);
          std::copy_n(starts + k * size, size, now);
          for (index_t i = 0; i < rows.count; ++i)
            advance<R>(fixed, x[row_at(rows, i)], now + i * size, now + (i + 1) * size, unused);
          std::fill_n(slope, 2 * size + tile.padded, T(0));
          for (index_t i = rows.count; i-- > 0;) {
            index_t const t = row_at(rows, i);
            retreat<R>(fixed, x[t], dy[t], now + i * size, now + (i + 1) * size, carry, slope,
                       dx[t]);
          }
          din.finish(dx, rows.batch, rows.first, rows.count, tile);
          for (index_t s = 0; s < 2 * of_state + 1; ++s)
            for (index_t c = 0; c < tile.padded; ++c)
              sum[s * width + c] += double(slope[s * tile.padded + c]);
        }
      });
      write_state(ends.initial_gradient, sequence, of_state, tile, carry);
    });
    for (index_t which = 0; which < tiles.count(); ++which) {
      channel_tile const tile = tiles[which];
      for (index_t s = 0; s < 2 * of_state + 1; ++s) {
        double* const to = s < of_state       ? dfactors + s * channels
                           : s < 2 * of_state ? dweights + (s - of_state) * channels
                                              : dskip;
        if (to == nullptr) continue;
        for (index_t c = 0; c < tile.count; ++c) {
          double total = 0;
          for (index_t sequence = 0; sequence < count; ++sequence)
            total += sums[(sequence * tiles.count() + which) * slopes + s * width + c];
          to[tile.first + c] = total;
        }
      }
    }
  }

 private:
  struct of_tile {
    T const *factors, *weights, *skip;
    index_t padded;
  };

  T* reserve(index_t numbers, workspace& memory) const {
    return arena(memory.reserve(static_cast<std::size_t>(arena::bytes<T>(numbers))))
        .template take<T>(numbers);
  }
  static void copy_rows(row_block<T> from, index_t rows, channel_tile const& tile, T* to) {
    if (from.data == to) return;
    for (index_t r = 0; r < rows; ++r) std::copy_n(from[r], tile.padded, to + r * tile.padded);
  }
  template <class Room>
  of_tile parameters(channel_tile const& tile, Room const& room) const {
    auto const copy = [&](T const* from) {
      T* const to = room(rows_of_state() * width);
      for (index_t s = 0; s < rows_of_state(); ++s) {
        std::copy_n(from + s * channels + tile.first, tile.count, to + s * tile.padded);
        std::fill(to + s * tile.padded + tile.count, to + (s + 1) * tile.padded, T(0));
      }
      return to;
    };
    T const* const a = copy(factors);
    T const* const w = copy(weights);
    T* const d = room(width);
    read_state(skip, 0, 1, tile, d);
    return {a, w, d, tile.padded};
  }

  index_t chunks(index_t sequence) const { return (all[sequence].count + chunk - 1) / chunk; }
  /// The tokens of a chunk, counted in the order of the pass.
  sequences::run part(index_t sequence, index_t k) const {
    auto const run = all[sequence];
    index_t const before = k * chunk, count = std::min(chunk, run.count - before);
    return {run.batch, run.first + (reversed ? run.count - before - count : before), count};
  }
  index_t row_at(sequences::run const& rows, index_t i) const {
    return reversed ? rows.count - 1 - i : i;
  }

  number load(T const* from, index_t s, index_t r, index_t padded) const {
    return number::load(from + s * padded + r * lanes, n * padded);
  }
  void store(number const& x, T* to, index_t s, index_t r, index_t padded) const {
    x.store(to + s * padded + r * lanes, n * padded);
  }
  static batch real_of_product(lanes_of<batch, 1> const& a, lanes_of<batch, 1> const& b,
                               batch const& c) {
    return simd::fma(a.part[0], b.part[0], c);
  }
  static batch real_of_product(lanes_of<batch, 2> const& a, lanes_of<batch, 2> const& b,
                               batch const& c) {
    return simd::fma(a.part[0], b.part[0], simd::fnma(a.part[1], b.part[1], c));
  }
  /// x as the real part.
  static number from_real(batch const& x) {
    number all{};
    for (batch& each : all.part) each = batch(T(0));
    all.part[0] = x;
    return all;
  }
  static number scaled(number a, batch const& by) {
    for (batch& each : a.part) each *= by;
    return a;
  }

  template <int R>
  void advance(of_tile const& fixed, T const* x, T const* before, T* after, batch (&y)[R]) const {
    batch in[R];
    for (int r = 0; r < R; ++r) {
      in[r] = batch::load_unaligned(x + r * lanes);
      y[r] = batch::load_unaligned(fixed.skip + r * lanes) * in[r];
    }
    for (index_t s = 0; s < n; ++s)
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        number const then = load(before, s, r, fixed.padded);
        number const state =
            multiply_add(load(fixed.factors, s, r, fixed.padded), then, from_real(in[r]));
        store(state, after, s, r, fixed.padded);
        y[r] =
            real_of_product(load(fixed.weights, s, r, fixed.padded), delayed ? then : state, y[r]);
      }
  }

  /// One token backwards; `slope` adds up the gradients of factors, weights and skip.
  template <int R>
  void retreat(of_tile const& fixed, T const* x, T const* dy, T const* before, T const* after,
               T* carry, T* slope, T* dx) const {
    index_t const padded = fixed.padded, size = rows_of_state() * padded;
    for (int r = 0; r < R; ++r) {
      batch const g = batch::load_unaligned(dy + r * lanes);
      batch sum = batch::load_unaligned(fixed.skip + r * lanes) * g;
      for (index_t s = 0; s < n; ++s) {
        number const a = conjugate(load(fixed.factors, s, r, padded)),
                     by_read = scaled(conjugate(load(fixed.weights, s, r, padded)), g),
                     then = load(before, s, r, padded);
        number total = load(carry, s, r, padded);
        if (!delayed) total = scan::sum(total, by_read);
        sum += total.part[0];
        number next = product(a, total);
        if (delayed) next = scan::sum(next, by_read);
        store(next, carry, s, r, padded);
        store(multiply_add(total, conjugate(then), load(slope, s, r, padded)), slope, s, r, padded);
        number const seen = delayed ? then : load(after, s, r, padded);
        store(scan::sum(scaled(conjugate(seen), g), load(slope + size, s, r, padded)), slope + size,
              s, r, padded);
      }
      if (adds) sum += batch::load_unaligned(dx + r * lanes);
      sum.store_unaligned(dx + r * lanes);
      T* const of_skip = slope + 2 * size + r * lanes;
      simd::fma(g, batch::load_unaligned(x + r * lanes), batch::load_unaligned(of_skip))
          .store_unaligned(of_skip);
    }
  }
};

}  // namespace heed::recur::scan
