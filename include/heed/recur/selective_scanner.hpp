#pragma once

#include <heed/recur/scan_clauses.hpp>
#include <heed/simd/dot.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/gates.hpp>

#include <tuple>
#include <utility>

/// The kernel of selective scans: a state of n numbers for each channel, whose decay depends on token, channel and number.
namespace heed::recur::scan {

/// Operands, results and gradients of one call; heads side by side, channels in lanes. With groups g of channels,
///
///     h_t = e^(step_t A) h_(t-1) + step_t u_t B_t,   y_t = h_t . C_t + skip u_t,   out_t = y_t silu(z_t)
///
/// where B and C belong to a group, A and skip to a channel. The backward pass keeps the state at every 32nd token and
/// computes those between again.
template <class T, class Arch>
class selective_scanner {
 public:
  using batch = xsimd::batch<T, Arch>;
  static constexpr int registers = 2;
  using tiles_type = channel_tiles<T, Arch, registers>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);
  static constexpr index_t width = tiles_type::width;
  static constexpr index_t chunk = 32;

  sequences all;
  states<T> ends;
  index_t channels = 0, groups = 1, n = 0;
  bool softplus = false;
  channel_rows<T> input, step, decay, skip, step_bias, gate;  // decay is [1, n, heads, dim]
  source<T> write, read;                                      // B and C

  // Gradients.
  channel_rows<T> dout, dinput, dstep, ddecay, dskip, dstep_bias, dgate;
  sink<T> dwrite, dread;

  template <class Executor>
  void forward(channel_rows<T> const& out, Executor const& run_on, workspace& memory) const {
    tiles_type const tiles(channels, channels / groups);
    index_t const own = 6 * chunk * width + 2 * n * width + 2 * width + 2 * chunk * n;
    index_t const workers = static_cast<index_t>(run_on.concurrency());
    T* const scratch =
        arena(memory.reserve(static_cast<std::size_t>(arena::bytes<T>(workers * own))))
            .template take<T>(workers * own);
    parallel_for(run_on, all.count() * tiles.count(), [&](index_t piece, index_t worker) {
      index_t const sequence = piece / tiles.count();
      channel_tile const tile = tiles[piece % tiles.count()];
      auto const run = all[sequence];
      T* at = scratch + worker * own;
      auto const room = [&](index_t numbers) { return std::exchange(at, at + numbers); };
      of_tile const fixed = parameters(tile, room);
      T* const state = room(n * width);
      read_state(ends.initial, sequence, n, tile, state);
      T* const rows = at;
      for (index_t first = 0; first < run.count; first += chunk) {
        at = rows;
        index_t const count = std::min(chunk, run.count - first), t0 = run.first + first;
        of_rows const x = take(run.batch, t0, count, tile, room);
        row_block<T> const z =
            gate ? gate.read(run.batch, t0, count, tile, room(chunk * width)) : row_block<T>{};
        auto const to = out.open(run.batch, t0, tile, room(chunk * width));
        with_registers<T, Arch, registers>(tile, [&]<int R>(std::integral_constant<int, R>) {
          for (index_t t = 0; t < count; ++t) {
            batch result[R];
            advance<R>(fixed, x, t, state, state, nullptr, result);
            for (int r = 0; r < R; ++r) {
              if (gate) result[r] *= simd::silu(batch::load_unaligned(z[t] + r * lanes));
              result[r].store_unaligned(to[t] + r * lanes);
            }
          }
        });
        out.finish(to, run.batch, t0, count, tile);
      }
      write_state(ends.final, sequence, n, tile, state);
    });
  }

  template <class Executor>
  void backward(Executor const& run_on, workspace& memory) const {
    tiles_type const tiles(channels, channels / groups);
    // Tiles that one worker meets one after the other, and whose gradients of B and C it sums: fewer partial sums.
    constexpr index_t tiles_together = 4;
    index_t const blocks = (tiles.per_block() + tiles_together - 1) / tiles_together;
    index_t const longest = all.longest(), chunks = (longest + chunk - 1) / chunk;
    index_t const workers = static_cast<index_t>(run_on.concurrency()), count = all.count();
    // Rows, recomputed states and factors; the states at the starts of chunks; slopes of the parameters.
    index_t const own = 10 * chunk * width + (2 * chunk + 5) * n * width + 8 * width +
                        2 * chunk * n + chunks * n * width;
    index_t const slopes = (n + 2) * width;  // of A, skip and bias, by sequence and tile
    index_t const sums = 2 * n * longest;    // of B and C, by sequence, group and block
    auto const lay_out = [&](arena from) {
      std::tuple<T*, double*, T*> const at{from.take<T>(workers * own),
                                           from.take<double>(count * tiles.count() * slopes),
                                           from.take<T>(count * groups * blocks * sums)};
      return std::pair(at, from.used());
    };
    auto const places = lay_out(arena(memory.reserve(lay_out(arena()).second))).first;
    T* const scratch = std::get<0>(places);
    double* const of_parameters = std::get<1>(places);
    T* const of_tokens = std::get<2>(places);

    parallel_for(run_on, count * groups * blocks, [&](index_t piece, index_t worker) {
      index_t const sequence = piece / blocks / groups, group = piece / blocks % groups;
      index_t const first = piece % blocks * tiles_together;
      index_t const last = std::min(first + tiles_together, tiles.per_block());
      T* const db = of_tokens + piece * sums;
      T* const dc = db + n * longest;
      std::fill_n(db, sums, T(0));
      for (index_t tile = first; tile < last; ++tile) {
        index_t const number = group * tiles.per_block() + tile;
        backward_tile(sequence, tiles[number],
                      of_parameters + (sequence * tiles.count() + number) * slopes, db, dc,
                      scratch + worker * own);
      }
    });

    // Sums in a fixed order: over blocks, and over sequences.
    parallel_for(run_on, count * groups, [&](index_t piece, index_t) {
      index_t const sequence = piece / groups, group = piece % groups;
      auto const run = all[sequence];
      T* const total = of_tokens + piece * blocks * sums;
      for (index_t block = 1; block < blocks; ++block)
        for (index_t i = 0; i < sums; ++i) total[i] += total[block * sums + i];
      dwrite.store(run.batch, group, run.first, run.count, total, n);
      dread.store(run.batch, group, run.first, run.count, total + n * longest, n);
    });
    parallel_for(run_on, tiles.count(), [&](index_t number, index_t worker) {
      channel_tile const tile = tiles[number];
      T* const total = scratch + worker * own;
      for (index_t i = 0; i < slopes; ++i) {
        double sum = 0;
        for (index_t s = 0; s < count; ++s)
          sum += of_parameters[(s * tiles.count() + number) * slopes + i];
        total[i] = static_cast<T>(sum);
      }
      ddecay.write(0, 0, n, tile, total, width);
      if (dskip) dskip.write(0, 0, 1, tile, total + n * width, width);
      if (dstep_bias) dstep_bias.write(0, 0, 1, tile, total + (n + 1) * width, width);
    });
  }

 private:
  /// What belongs to the channels of a tile.
  struct of_tile {
    T const *decay, *skip, *step_bias;  // decay: [n][padded]
    index_t padded;
  };
  /// Some rows of the operands.
  struct of_rows {
    row_block<T> input, step, write, read;
  };

  template <class Room>
  of_tile parameters(channel_tile const& tile, Room const& room) const {
    auto const copy = [&](channel_rows<T> const& from, index_t rows) {
      T* const to = room(rows * width);
      read_state(from, 0, rows, tile, to);
      return to;
    };
    T const* const a = copy(decay, n);
    T const* const d = copy(skip, 1);
    return {a, d, copy(step_bias, 1), tile.padded};
  }
  template <class Room>
  of_rows take(index_t entry, index_t t0, index_t count, channel_tile const& tile,
               Room const& room) const {
    index_t const group = tile.first / (channels / groups);
    row_block<T> const u = input.read(entry, t0, count, tile, room(chunk * width));
    row_block<T> const d = step.read(entry, t0, count, tile, room(chunk * width));
    row_block<T> const b = write.rows(entry, group, t0, count, room(chunk * n));
    return {u, d, b, read.rows(entry, group, t0, count, room(chunk * n))};
  }

  template <int R>
  void steps_at(of_tile const& fixed, of_rows const& x, index_t t, batch (&step_t)[R]) const {
    for (int r = 0; r < R; ++r) {
      step_t[r] = batch::load_unaligned(x.step[t] + r * lanes);
      if (softplus)
        step_t[r] = simd::softplus(step_t[r] + batch::load_unaligned(fixed.step_bias + r * lanes));
    }
  }

  /// One token: the next state, from `before` to `after` (which may be one), and y. Keeps e^(step A) if asked to.
  template <int R>
  void advance(of_tile const& fixed, of_rows const& x, index_t t, T const* before, T* after,
               T* factors, batch (&y)[R]) const {
    batch step_t[R], in[R];
    steps_at<R>(fixed, x, t, step_t);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      batch const u = batch::load_unaligned(x.input[t] + r * lanes);
      in[r] = step_t[r] * u;
      y[r] = batch::load_unaligned(fixed.skip + r * lanes) * u;
    }
    T const* const b = x.write[t];
    T const* const c = x.read[t];
    for (index_t s = 0; s < n; ++s) {
      batch const b_s(b[s]), c_s(c[s]);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        index_t const at = s * fixed.padded + r * lanes;
        batch const factor = simd::exp(step_t[r] * batch::load_unaligned(fixed.decay + at));
        if (factors != nullptr) factor.store_unaligned(factors + at);
        batch const state = simd::fma(factor, batch::load_unaligned(before + at), in[r] * b_s);
        state.store_unaligned(after + at);
        y[r] = simd::fma(state, c_s, y[r]);
      }
    }
  }

  void backward_tile(index_t sequence, channel_tile const& tile, double* slopes, T* db, T* dc,
                     T* scratch) const {
    auto const run = all[sequence];
    index_t const chunks = (run.count + chunk - 1) / chunk, size = n * tile.padded;
    auto const room = [&](index_t numbers) { return std::exchange(scratch, scratch + numbers); };
    of_tile const fixed = parameters(tile, room);
    T* const starts = room(chunks * n * width);
    T* const carry = room(n * width);
    T* const da = room((n + 2) * width);  // and of skip and bias
    std::fill_n(slopes, (n + 2) * width, 0.0);
    T* const rows = scratch;
    read_state(ends.initial, sequence, n, tile, starts);
    with_registers<T, Arch, registers>(tile, [&]<int R>(std::integral_constant<int, R>) {
      for (index_t k = 0; k + 1 < chunks; ++k) {
        scratch = rows;
        of_rows const x = take(run.batch, run.first + k * chunk, chunk, tile, room);
        T* const state = starts + (k + 1) * size;
        std::copy_n(starts + k * size, size, state);
        batch unused[R];
        for (index_t t = 0; t < chunk; ++t) advance<R>(fixed, x, t, state, state, nullptr, unused);
      }
      read_state(ends.final_gradient, sequence, n, tile, carry);
      for (index_t k = chunks; k-- > 0;) {
        scratch = rows;
        index_t const first = k * chunk, count = std::min(chunk, run.count - first);
        std::fill_n(da, (n + 2) * width, T(0));
        backward_chunk<R>(run, first, count, tile, fixed, starts + k * size, carry, da,
                          db + first * n, dc + first * n, room);
        for (index_t s = 0; s < n + 2; ++s)
          for (index_t c = 0; c < tile.padded; ++c)
            slopes[s * width + c] += double(da[s * tile.padded + c]);
      }
    });
    write_state(ends.initial_gradient, sequence, n, tile, carry);
  }

  template <int R, class Room>
  void backward_chunk(sequences::run const& run, index_t first, index_t count,
                      channel_tile const& tile, of_tile const& fixed, T const* start, T* carry,
                      T* da, T* db, T* dc, Room const& room) const {
    index_t const t0 = run.first + first, padded = tile.padded, size = n * padded;
    of_rows const x = take(run.batch, t0, count, tile, room);
    T* const states = room((chunk + 1) * n * width);
    T* const factors = room(chunk * n * width);
    T* const dy = room(chunk * width);
    std::copy_n(start, size, states);
    row_block<T> const slope = dout.read(run.batch, t0, count, tile, room(chunk * width));
    row_block<T> const z =
        gate ? gate.read(run.batch, t0, count, tile, room(chunk * width)) : row_block<T>{};
    auto const dz = dgate ? dgate.open(run.batch, t0, tile, room(chunk * width))
                          : typename channel_rows<T>::open_rows{};
    for (index_t t = 0; t < count; ++t) {
      batch y[R];
      advance<R>(fixed, x, t, states + t * size, states + (t + 1) * size, factors + t * size, y);
      for (int r = 0; r < R; ++r) {
        batch g = batch::load_unaligned(slope[t] + r * lanes);
        if (gate) {
          batch const z_t = batch::load_unaligned(z[t] + r * lanes);
          if (dgate) (g * y[r] * simd::silu_slope(z_t)).store_unaligned(dz[t] + r * lanes);
          g *= simd::silu(z_t);
        }
        g.store_unaligned(dy + t * padded + r * lanes);
      }
    }
    if (dgate) dgate.finish(dz, run.batch, t0, count, tile);

    auto const du = dinput.open(run.batch, t0, tile, room(chunk * width));
    auto const dd = dstep.open(run.batch, t0, tile, room(chunk * width));
    for (index_t t = count; t-- > 0;) {
      batch step_t[R], in[R], u[R], g[R], back[R], from_decay[R];
      steps_at<R>(fixed, x, t, step_t);
      for (int r = 0; r < R; ++r) {
        u[r] = batch::load_unaligned(x.input[t] + r * lanes);
        g[r] = batch::load_unaligned(dy + t * padded + r * lanes);
        in[r] = step_t[r] * u[r];
        back[r] = from_decay[r] = batch(T(0));
      }
      T const* const b = x.write[t];
      T const* const c = x.read[t];
      for (index_t s0 = 0; s0 < n; s0 += lanes) {
        // As many numbers of the state as a register has lanes, so that the sums over channels fill one.
        batch over_channels[2][batch::size];
        index_t const together = std::min(lanes, n - s0);
        for (index_t s = s0; s < s0 + lanes; ++s) {
          batch to_b(T(0)), to_c(T(0));
          if (s < s0 + together) {
            batch const b_s(b[s]), c_s(c[s]);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) {
              index_t const at = s * padded + r * lanes;
              batch const total = simd::fma(g[r], c_s, batch::load_unaligned(carry + at));
              batch const factor = batch::load_unaligned(factors + t * size + at);
              batch const next = factor * total;
              batch const w = next * batch::load_unaligned(states + t * size + at);
              next.store_unaligned(carry + at);
              to_c = simd::fma(g[r], batch::load_unaligned(states + (t + 1) * size + at), to_c);
              to_b = simd::fma(in[r], total, to_b);
              back[r] = simd::fma(total, b_s, back[r]);
              from_decay[r] = simd::fma(w, batch::load_unaligned(fixed.decay + at), from_decay[r]);
              simd::fma(w, step_t[r], batch::load_unaligned(da + at)).store_unaligned(da + at);
            }
          }
          over_channels[0][s - s0] = to_b;
          over_channels[1][s - s0] = to_c;
        }
        alignas(64) T sum_b[lanes], sum_c[lanes];
        simd::detail::sum_lanes<T, Arch>(over_channels[0], sum_b);
        simd::detail::sum_lanes<T, Arch>(over_channels[1], sum_c);
        for (index_t s = 0; s < together; ++s) {
          db[t * n + s0 + s] += sum_b[s];
          dc[t * n + s0 + s] += sum_c[s];
        }
      }
      for (int r = 0; r < R; ++r) {
        batch const d = batch::load_unaligned(fixed.skip + r * lanes);
        simd::fma(step_t[r], back[r], d * g[r]).store_unaligned(du[t] + r * lanes);
        batch of_step = simd::fma(u[r], back[r], from_decay[r]);
        if (softplus)
          of_step *= simd::sigmoid(batch::load_unaligned(x.step[t] + r * lanes) +
                                   batch::load_unaligned(fixed.step_bias + r * lanes));
        of_step.store_unaligned(dd[t] + r * lanes);
        T* const more = da + size + r * lanes;
        simd::fma(g[r], u[r], batch::load_unaligned(more)).store_unaligned(more);
        (batch::load_unaligned(more + padded) + of_step).store_unaligned(more + padded);
      }
    }
    dinput.finish(du, run.batch, t0, count, tile);
    dstep.finish(dd, run.batch, t0, count, tile);
  }
};

}  // namespace heed::recur::scan
