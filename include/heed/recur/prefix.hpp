#pragma once

#include <heed/recur/channel_rows.hpp>
#include <heed/recur/passes.hpp>
#include <heed/simd/fma.hpp>

/// Softmax along positions, each channel alike: over all positions, and over those up to each of them. Arithmetic is in
/// double, whatever the tensors hold, since late weights are small parts of long sums.
///
/// The running form is that of LightNet and causal ABC: with z_t = log sum_(s <= t) e^x_s, the average of y with weights
/// softmax(x_1 .. x_t) is S_t = e^(z_(t-1) - z_t) S_(t-1) + e^(x_t - z_t) y_t, a gated recurrence.
namespace heed::recur {

using scan::channel_rows;
using scan::channel_tile;
using scan::channel_tiles;

namespace detail {

inline constexpr index_t prefix_rows = 32;  // that are read at once

/// Calls f(sequence, tile) for all tiles of the channels of all sequences.
template <class F>
void for_channel_tiles(any_executor const& run_on, sequence_list const& sequences, index_t channels,
                       F const& f) {
  using tiles_of = channel_tiles<double, xsimd::default_arch, 4>;
  tiles_of const tiles(channels);
  parallel_for(run_on, sequences.count * tiles.count(), [&](index_t piece, index_t) {
    f(piece / tiles.count(), tiles[piece % tiles.count()]);
  });
}

/// Numbers of the channels of a tile, from [sequence, head, dim] and back.
inline void read_channels(tensor_view<double, 3> from, index_t sequence, channel_tile const& tile,
                          double otherwise, double* to) {
  for (index_t c = 0; c < tile.padded; ++c) {
    bool const there = c < tile.count && from.data() != nullptr;
    index_t const channel = tile.first + c;
    to[c] = there ? from(sequence, channel / from.extent(2), channel % from.extent(2)) : otherwise;
  }
}
inline void write_channels(tensor_view<double, 3> to, index_t sequence, channel_tile const& tile,
                           double const* from) {
  if (to.data() == nullptr) return;
  for (index_t c = 0; c < tile.count; ++c) {
    index_t const channel = tile.first + c;
    to(sequence, channel / to.extent(2), channel % to.extent(2)) = from[c];
  }
}

}  // namespace detail

/// weight_t = e^(x_t - z_t) and log_gate_t = z_(t-1) - z_t for the running logarithm z of a sum of exponentials.
///
///   x, weight, log_gate   [batch, position, heads, dim]
///   log_total             z before and after, [sequence, head, dim]; -infinity before the first position, where
///                         the gate is -infinity too. Null: begins there
inline void running_softmax(any_executor const& run_on, sequence_list const& sequences,
                            channel_rows<double> const& x, channel_rows<double> const& weight,
                            channel_rows<double> const& log_gate,
                            tensor_view<double, 3> log_total) {
  using batch = xsimd::batch<double>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  using namespace detail;
  for_channel_tiles(run_on, sequences, x.channels(), [&](index_t s, channel_tile const& tile) {
    place const run = sequences.at(s);
    index_t const room = prefix_rows * tile.padded;
    double* const scratch = feature_scratch<double>(3 * room + 2 * tile.padded);
    // z = top + log(total), where top is the largest number so far and total at least 1.
    double *const top = scratch + 3 * room, *const total = top + tile.padded;
    read_channels(log_total, s, tile, -infinity, top);
    for (index_t c = 0; c < tile.padded; ++c) total[c] = top[c] == -infinity ? 0 : 1;
    for (index_t first = 0; first < run.keys; first += prefix_rows) {
      index_t const count = std::min(prefix_rows, run.keys - first), at = run.first_key + first;
      row_block<double> const rows = x.read(run.batch, at, count, tile, scratch);
      auto const weights = weight.open(run.batch, at, tile, scratch + room);
      auto const gates = log_gate.open(run.batch, at, tile, scratch + 2 * room);
      for (index_t c = 0; c < tile.padded; c += lanes) {
        batch most = batch::load_unaligned(top + c), sum = batch::load_unaligned(total + c);
        for (index_t r = 0; r < count; ++r) {
          batch const next = batch::load_unaligned(rows[r] + c);
          auto const higher = next > most;
          batch const smaller = simd::exp(-xsimd::abs(next - most));
          batch const before = xsimd::select(higher, sum * smaller, sum);
          batch const own = xsimd::select(higher, batch(1), smaller);
          most = xsimd::select(higher, next, most);
          sum = before + own;
          (own / sum).store_unaligned(weights[r] + c);
          simd::log(before / sum).store_unaligned(gates[r] + c);
        }
        most.store_unaligned(top + c);
        sum.store_unaligned(total + c);
      }
      weight.finish(weights, run.batch, at, count, tile);
      log_gate.finish(gates, run.batch, at, count, tile);
    }
    for (index_t c = 0; c < tile.padded; ++c) top[c] += std::log(total[c]);
    write_channels(log_total, s, tile, top);
  });
}

/// d loss / d x of running_softmax where what it weighs is averaged: with a_t what the loss gains per e-fold less of all
/// weights up to t, that is sum(S_t * d loss / d S_t) of each channel for the reads of S_t alone,
///
///     r_t = a_t + (1 - weight_(t+1)) r_(t+1)        dx_t = weight_t (dweight_t - r_t)
///
///   weight, dweight, reads (a), dx   [batch, position, heads, dim]
///   carried   r after the last position, and in its place (1 - weight_1) r_1, which is less d loss / d z_0;
///             [sequence, head, dim]. Null: 0
inline void running_softmax_backward(any_executor const& run_on, sequence_list const& sequences,
                                     channel_rows<double> const& weight,
                                     channel_rows<double> const& dweight,
                                     channel_rows<double> const& reads,
                                     channel_rows<double> const& dx,
                                     tensor_view<double, 3> carried) {
  using batch = xsimd::batch<double>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  using namespace detail;
  for_channel_tiles(run_on, sequences, weight.channels(), [&](index_t s, channel_tile const& tile) {
    place const run = sequences.at(s);
    index_t const room = prefix_rows * tile.padded;
    double* const scratch = feature_scratch<double>(4 * room + tile.padded);
    double* const later = scratch + 4 * room;
    read_channels(carried, s, tile, 0, later);
    for (index_t end = run.keys; end > 0;) {
      index_t const count = std::min(prefix_rows, end), at = run.first_key + end - count;
      row_block<double> const w = weight.read(run.batch, at, count, tile, scratch);
      row_block<double> const dw = dweight.read(run.batch, at, count, tile, scratch + room);
      row_block<double> const a = reads.read(run.batch, at, count, tile, scratch + 2 * room);
      auto const to = dx.open(run.batch, at, tile, scratch + 3 * room);
      for (index_t c = 0; c < tile.padded; c += lanes) {
        batch carry = batch::load_unaligned(later + c);
        for (index_t r = count; r-- > 0;) {
          batch const own = batch::load_unaligned(w[r] + c);
          carry += batch::load_unaligned(a[r] + c);
          (own * (batch::load_unaligned(dw[r] + c) - carry)).store_unaligned(to[r] + c);
          carry = simd::fnma(own, carry, carry);
        }
        carry.store_unaligned(later + c);
      }
      dx.finish(to, run.batch, at, count, tile);
      end -= count;
    }
    write_channels(carried, s, tile, later);
  });
}

/// weight_t = e^(x_t) / sum_s e^(x_s) over all positions s of a sequence.
inline void position_softmax(any_executor const& run_on, sequence_list const& sequences,
                             channel_rows<double> const& x, channel_rows<double> const& weight) {
  using batch = xsimd::batch<double>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  using namespace detail;
  for_channel_tiles(run_on, sequences, x.channels(), [&](index_t s, channel_tile const& tile) {
    place const run = sequences.at(s);
    index_t const room = prefix_rows * tile.padded;
    double* const scratch = feature_scratch<double>(2 * room + 2 * tile.padded);
    double *const top = scratch + 2 * room, *const total = top + tile.padded;
    std::fill_n(top, tile.padded, -std::numeric_limits<double>::infinity());
    std::fill_n(total, tile.padded, 0.0);
    enum { finding_the_top, adding_up, writing };
    for (int const now : {finding_the_top, adding_up, writing})
      for (index_t first = 0; first < run.keys; first += prefix_rows) {
        index_t const count = std::min(prefix_rows, run.keys - first), at = run.first_key + first;
        row_block<double> const rows = x.read(run.batch, at, count, tile, scratch);
        auto const weights = weight.open(run.batch, at, tile, scratch + room);
        for (index_t c = 0; c < tile.padded; c += lanes) {
          batch most = batch::load_unaligned(top + c), sum = batch::load_unaligned(total + c);
          for (index_t r = 0; r < count; ++r) {
            batch const next = batch::load_unaligned(rows[r] + c);
            if (now == finding_the_top)
              most = xsimd::max(most, next);
            else if (now == adding_up)
              sum += simd::exp(next - most);
            else
              (simd::exp(next - most) / sum).store_unaligned(weights[r] + c);
          }
          most.store_unaligned(top + c);
          sum.store_unaligned(total + c);
        }
        if (now == writing) weight.finish(weights, run.batch, at, count, tile);
      }
  });
}

/// dx = weight (dweight - sum_s weight_s dweight_s) over the positions of a sequence.
inline void position_softmax_backward(any_executor const& run_on, sequence_list const& sequences,
                                      channel_rows<double> const& weight,
                                      channel_rows<double> const& dweight,
                                      channel_rows<double> const& dx) {
  using batch = xsimd::batch<double>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  using namespace detail;
  for_channel_tiles(run_on, sequences, weight.channels(), [&](index_t s, channel_tile const& tile) {
    place const run = sequences.at(s);
    index_t const room = prefix_rows * tile.padded;
    double* const scratch = feature_scratch<double>(3 * room + tile.padded);
    double* const total = scratch + 3 * room;
    std::fill_n(total, tile.padded, 0.0);
    for (bool const writing : {false, true}) {
      for (index_t first = 0; first < run.keys; first += prefix_rows) {
        index_t const count = std::min(prefix_rows, run.keys - first), at = run.first_key + first;
        row_block<double> const w = weight.read(run.batch, at, count, tile, scratch);
        row_block<double> const dw = dweight.read(run.batch, at, count, tile, scratch + room);
        auto const to = dx.open(run.batch, at, tile, scratch + 2 * room);
        for (index_t c = 0; c < tile.padded; c += lanes) {
          batch sum = batch::load_unaligned(total + c);
          for (index_t r = 0; r < count; ++r) {
            batch const own = batch::load_unaligned(w[r] + c),
                        slope = batch::load_unaligned(dw[r] + c);
            if (writing)
              (own * (slope - sum)).store_unaligned(to[r] + c);
            else
              sum = simd::fma(own, slope, sum);
          }
          sum.store_unaligned(total + c);
        }
        if (writing) dx.finish(to, run.batch, at, count, tile);
      }
    }
  });
}

/// reads_t (+)= sum a_i * b_i over the rows i that read the state after key t, of all query heads that share a key head.
///
///   a, b    [batch, row, query heads, dim]
///   reads   [batch, key, heads, dim], heads a divisor of the query heads
template <class T>
void sum_of_reads(any_executor const& run_on, sequence_list const& sequences, tensor_view<T, 4> a,
                  tensor_view<T, 4> b, tensor_view<T, 4> reads, bool accumulate) {
  index_t const heads = reads.extent(2), dim = reads.extent(3), group = a.extent(2) / heads;
  parallel_for(run_on, sequences.count * heads, [&](index_t piece, index_t) {
    place const where = sequences.at(piece / heads);
    index_t const h = piece % heads;
    for (index_t t = 0; t < where.keys; ++t) {
      T* const to = &reads(where.batch, where.first_key + t, h, 0);
      if (!accumulate) std::fill_n(to, dim, T(0));
      index_t const i = t - where.keys + where.rows;
      if (i < 0) continue;
      for (index_t g = h * group; g < (h + 1) * group; ++g)
        transform_row<xsimd::default_arch>(
            dim, to,
            [](auto const& x, auto const& y, auto const& sum) { return simd::fma(x, y, sum); },
            &a(where.batch, where.first_row + i, g, 0), &b(where.batch, where.first_row + i, g, 0),
            static_cast<T const*>(to));
    }
  });
}

/// to += sum a_i * b_i over the rows i that read what a sequence began with, before its first key; to [sequence, head, dim].
template <class T>
void add_first_reads(sequence_list const& sequences, tensor_view<T, 4> a, tensor_view<T, 4> b,
                     tensor_view<double, 3> to) {
  index_t const heads = to.extent(1), group = a.extent(2) / std::max<index_t>(heads, 1);
  for (index_t s = 0; s < sequences.count; ++s) {
    place const where = sequences.at(s);
    for (index_t i = where.first_row; i < where.first_row + where.rows - where.keys; ++i)
      for (index_t h = 0; h < heads * group; ++h)
        for (index_t d = 0; d < to.extent(2); ++d)
          to(s, h / group, d) += static_cast<double>(a(where.batch, i, h, d)) *
                                 static_cast<double>(b(where.batch, i, h, d));
  }
}

/// to += sum a * b over all states and columns that belong to a channel.
///
///   a, b   [sequence, states, features, columns]
///   to     [sequence, head, dim], heads a divisor of the states and dim of the features
template <class A, class B>
void add_state_products(tensor_view<A, 4> a, tensor_view<B, 4> b, tensor_view<double, 3> to) {
  index_t const heads = to.extent(1), dim = to.extent(2);
  for (index_t s = 0; s < a.extent(0); ++s)
    for (index_t g = 0; g < a.extent(1); ++g)
      for (index_t f = 0; f < a.extent(2); ++f)
        for (index_t e = 0; e < a.extent(3); ++e)
          to(s, g * heads / a.extent(1), f % dim) +=
              static_cast<double>(a(s, g, f, e)) * static_cast<double>(b(s, g, f, e));
}

/// Numbers of the channels of every sequence that are 0, [sequence, head, dim], in memory like that of page_tensors().
template <class Page>
tensor_view<double, 3> page_sums(index_t sequences, index_t heads, index_t dim) {
  auto const all = page_tensors<Page, double>(tensor_shape{sequences, 1, heads, dim})[0];
  if (all.size() > 0) std::fill_n(all.data(), all.size(), 0.0);
  return {all.data(), {sequences, heads, dim}};
}

/// to = a - b, which may be one of them.
inline void write_difference(tensor_view<double, 3> a, tensor_view<double, 3> b,
                             tensor_view<double, 3> to) {
  for (index_t s = 0; s < to.extent(0); ++s)
    for (index_t h = 0; h < to.extent(1); ++h)
      for (index_t c = 0; c < to.extent(2); ++c) to(s, h, c) = a(s, h, c) - b(s, h, c);
}

}  // namespace heed::recur
