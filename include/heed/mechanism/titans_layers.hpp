#pragma once

#include <heed/mechanism/titans.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/recur/row_norms.hpp>
#include <heed/simd/fma.hpp>

/// Titans: Learning to Memorize at Test Time, the three ways to put the memory beside attention. P are persistent rows,
/// learned and in front of all others; projections are the model's, and P's results are dropped in the end.
///
/// Memory as a context (MAC), for one segment X of C rows after the other:
///
///     titans_recall(q1, h, memory);                                          // q1 of X: what the memory knows of it
///     attention(q2, k2, v2, y, titans_context{P, C});                        // q2 of X; k2, v2 of [P, h, X]
///     titans(q3, k3, v3, m, gates, memory, C, final_memory{memory});         // q3, k3, v3, gates of y
///     titans_gate(y, m, weight_y, weight_m, out);
///
/// h is visible as far as it was asked for by then, and the memory is read after the same token, so that no row depends
/// on a later one. Memory as a gate (MAG), side by side over all of [P, X]:
///
///     attention(q, k, v, y, titans_window(P, window));
///     titans(q, k, v, m, gates, memory, C);
///     titans_gate(y, m, weight_y, weight_m, out);
///
/// Memory as a layer (MAL), one after the other:
///
///     titans(q, k, v, m, gates, memory, C);
///     attention(q2, k2, v2, out, titans_window(P, window));                  // q2, k2, v2 of m
///
/// Backward they are the gradients of these calls in the opposite order; in decoding, titans_step() and attention() over a
/// cache of the window and P.
namespace heed {

/// What the rows of a segment meet among the keys of [P, h, X]: all of P, and of h and X those of their own row and before.
/// The numbers of rows of P and of h; there are as many of X as queries, which stand at the last keys.
struct titans_context {
  index_t persistent = 0;
  index_t recalled = 0;

  constexpr bool keep(index_t query, index_t key) const {
    return key < persistent || key <= query - recalled ||
           (key >= persistent + recalled && key <= query);
  }
  template <class Batch>
  constexpr auto keep(Batch query, Batch key) const -> decltype(key < key) {
    auto const number = [](index_t x) { return Batch(static_cast<typename Batch::value_type>(x)); };
    return key < number(persistent) || key <= query - number(recalled) ||
           (key >= number(persistent + recalled) && key <= query);
  }
  constexpr interval_set keys(interval queries, index_t count) const {
    if (queries.empty()) return {};
    interval_set all(intersect({0, persistent}, {0, count}));
    all.add(intersect({0, queries.last - recalled}, {0, count}));
    all.add(intersect({persistent + recalled, queries.last}, {0, count}));
    return all;
  }
  constexpr coverage cover(interval queries, interval keys) const {
    index_t const last = queries.last - 1, last_key = keys.last - 1;
    if (last_key < persistent || last_key <= queries.first - recalled ||
        (keys.first >= persistent + recalled && last_key <= queries.first))
      return coverage::all;
    bool const reached = keys.first < persistent || keys.first <= last - recalled ||
                         std::max(keys.first, persistent + recalled) <= std::min(last, last_key);
    return reached ? coverage::some : coverage::none;
  }
};

/// What rows meet in MAG and MAL: the last `window` keys, their own included, and the first `persistent` ones.
constexpr auto titans_window(index_t persistent, index_t window) {
  return causal{} & (sliding_window{.left = window - 1} | first_keys{persistent});
}

namespace detail {

template <class T, class Arch = xsimd::default_arch>
class titans_gating {
 public:
  using math = recur::memory::products<T, Arch>;
  using batch = typename math::batch;
  using panel = recur::memory::panel<T>;

  source<T> y, m;
  source<T> weight_y, weight_m;  // [1, heads or 1, 1, dim]
  rms_norm norm;

  static constexpr index_t together = 32;  // rows of a piece

  index_t dim() const { return y.dim(); }
  index_t row_pieces() const { return (y.positions() + together - 1) / together; }
  index_t pieces() const { return y.batches() * y.heads() * row_pieces(); }
  std::size_t bytes(index_t panels) const {
    return static_cast<std::size_t>(panels * arena::bytes<T>(together * math::padded(dim())) +
                                    arena::bytes<double>(4 * together));
  }

  struct place {
    index_t batch, head, first, count;
  };
  place at(index_t piece) const {
    index_t const first = piece % row_pieces() * together, pair = piece / row_pieces();
    return {pair / y.heads(), pair % y.heads(), first, std::min(together, y.positions() - first)};
  }

  /// The rows of a piece, normed, and the factors that did so; the weights' rows.
  struct rows {
    panel a, n, weights;
    recur::row_factor *of_a, *of_n;

    T const* weight_y() const { return weights[0]; }
    T const* weight_m() const { return weights[1]; }
  };
  rows load(arena& memory, place const& p) const {
    rows r{take(memory), take(memory), take(memory), memory.take<recur::row_factor>(together),
           memory.take<recur::row_factor>(together)};
    auto const normed = [&](source<T> const& from, panel to, recur::row_factor* factors) {
      recur::memory::load_rows<T, Arch>(from, p.batch, p.head, p.first, p.count, to);
      for (index_t i = 0; i < p.count; ++i) {
        factors[i] = recur::factor_of(norm, recur::size_of_row<T, Arch>(to[i], dim()), dim());
        batch const factor(static_cast<T>(factors[i].factor));
        math::each(
            1, dim(), [&](batch x) { return factor * x; }, to.from_row(i));
      }
    };
    normed(y, r.a, r.of_a);
    normed(m, r.n, r.of_n);
    auto const weight = [&](source<T> const& from, index_t row) {
      recur::memory::load_rows<T, Arch>(from, 0, 0, from.positions() == 1 ? 0 : p.head, 1,
                                        r.weights.from_row(row));
    };
    weight(weight_y, 0);
    weight(weight_m, 1);
    return r;
  }
  panel take(arena& memory) const {
    return {memory.take<T>(together * math::padded(dim())), math::padded(dim())};
  }

  static batch silu(batch x) { return x * heed::simd::sigmoid(x); }
  static batch silu_slope(batch x) {
    batch const gate = heed::simd::sigmoid(x), one(T(1));
    return gate * simd::fma(x, one - gate, one);
  }

  void forward(index_t piece, std::byte* scratch, sink<T> const& out) const {
    arena memory(scratch);
    place const p = at(piece);
    rows const r = load(memory, p);
    for (index_t i = 0; i < p.count; ++i)
      for (index_t c = 0; c < math::padded(dim()); c += math::lanes) {
        batch const a = batch::load_aligned(r.a[i] + c), n = batch::load_aligned(r.n[i] + c),
                    wy = batch::load_aligned(r.weight_y() + c),
                    wm = batch::load_aligned(r.weight_m() + c);
        (a * wy * silu(n * wm)).store_aligned(r.a[i] + c);
      }
    out.store(p.batch, p.head, p.first, p.count, r.a.data, r.a.stride);
  }

  /// sums: d loss / d weight_y and d weight_m of the piece's rows, [2][dim].
  void backward(index_t piece, std::byte* scratch, source<T> const& dout, sink<T> const& dy,
                sink<T> const& dm, double* sums) const {
    arena memory(scratch);
    place const p = at(piece);
    rows const r = load(memory, p);
    panel const da = take(memory), dn = take(memory), d = take(memory), dw = take(memory);
    recur::memory::load_rows<T, Arch>(dout, p.batch, p.head, p.first, p.count, d);
    std::fill_n(sums, 2 * dim(), 0.0);
    for (index_t i = 0; i < p.count; ++i) {
      batch along_a(T(0)), along_n(T(0));
      for (index_t c = 0; c < math::padded(dim()); c += math::lanes) {
        batch const a = batch::load_aligned(r.a[i] + c), n = batch::load_aligned(r.n[i] + c),
                    wy = batch::load_aligned(r.weight_y() + c),
                    wm = batch::load_aligned(r.weight_m() + c), g = batch::load_aligned(d[i] + c);
        batch const u = n * wm, gate = silu(u), du = g * a * wy * silu_slope(u);
        batch const to_a = g * wy * gate, to_n = du * wm;
        along_a = simd::fma(to_a, a, along_a);
        along_n = simd::fma(to_n, n, along_n);
        to_a.store_aligned(da[i] + c);
        to_n.store_aligned(dn[i] + c);
        (g * a * gate).store_aligned(dw[0] + c);
        (du * n).store_aligned(dw[1] + c);
      }
      for (index_t c = 0; c < dim(); ++c) {
        sums[c] += static_cast<double>(dw[0][c]);
        sums[dim() + c] += static_cast<double>(dw[1][c]);
      }
      auto const through = [&](panel gradient, panel normed, recur::row_factor const& by, T along) {
        batch const factor(static_cast<T>(by.factor)),
            share(static_cast<T>(by.projection * static_cast<double>(along)));
        math::each(
            1, dim(), [&](batch dx, batch x) { return factor * (dx - share * x); },
            gradient.from_row(i), normed.from_row(i));
      };
      through(da, r.a, r.of_a[i], math::add_lanes(along_a));
      through(dn, r.n, r.of_n[i], math::add_lanes(along_n));
    }
    dy.store(p.batch, p.head, p.first, p.count, da.data, da.stride);
    dm.store(p.batch, p.head, p.first, p.count, dn.data, dn.stride);
  }
};

/// Weights [heads or 1, dim] as a tensor of rows.
template <class E>
tensor_view<E, 4> titans_weight_rows(tensor_view<E, 2> weights) {
  return {weights.data(),
          {1, weights.extent(0), 1, weights.extent(1)},
          {0, weights.stride(0), 0, weights.stride(1)}};
}

template <class T, class Y, class M, class WY, class WM>
titans_gating<T> titans_gating_of(tensor_view<Y, 4> y, tensor_view<M, 4> m,
                                  tensor_view<WY, 2> weight_y, tensor_view<WM, 2> weight_m,
                                  double epsilon) {
  expect_memory("y", y);
  expect_memory("m", m);
  expect_like("m", m, y.extents(), "y");
  auto const weights = [&](char const* name, auto const& view) {
    require((view.extent(0) == 1 || view.extent(0) == y.extent(2)) && view.extent(1) == y.extent(3),
            [&] {
              return std::string(name) + " has shape " + shape_text(view.extents()) +
                     "; expected [1 or " + std::to_string(y.extent(2)) + ", " +
                     std::to_string(y.extent(3)) + "] (head, dim)";
            });
    expect_memory(name, view);
  };
  weights("weight_y", weight_y);
  weights("weight_m", weight_m);
  titans_gating<T> work;
  work.y = source<T>(y);
  work.m = source<T>(m);
  work.weight_y = source<T>(titans_weight_rows(weight_y));
  work.weight_m = source<T>(titans_weight_rows(weight_m));
  work.norm.epsilon = epsilon;
  return work;
}

}  // namespace detail

/// out = rms(y) weight_y silu(rms(m) weight_m), rms(x) = x / sqrt(mean(x^2) + epsilon) over the channels of a head: for a
/// norm of a token's whole width view it as one head.
///
///   y, m, out            [batch, position, heads, dim], of attention and of the memory
///   weight_y, weight_m   [heads or 1, dim]
template <element Y, element M, element WY, element WM, element O, class Executor = serial>
void titans_gate(tensor_view<Y, 4> y, tensor_view<M, 4> m, tensor_view<WY, 2> weight_y,
                 tensor_view<WM, 2> weight_m, tensor_view<O, 4> out, double epsilon = 1e-6,
                 Executor const& run_on = {}) {
  using T = compute_type<Y, M, WY, WM, O>;
  auto const work = detail::titans_gating_of<T>(y, m, weight_y, weight_m, epsilon);
  recur::memory::expect_rows("out", out, y.extents());
  sink<T> const to(out);
  std::size_t const bytes = work.bytes(3);
  std::byte* const memory =
      thread_workspace().reserve(bytes * static_cast<std::size_t>(run_on.concurrency()));
  parallel_for(run_on, work.pieces(), [&](index_t piece, index_t worker) {
    work.forward(piece, memory + static_cast<std::size_t>(worker) * bytes, to);
  });
}

/// The gradients of titans_gate(): dy and dm shaped like y, those of the weights like these.
template <element Y, element M, element WY, element WM, element DO, element DY, element DM,
          element DWY, element DWM, class Executor = serial>
void titans_gate_backward(tensor_view<Y, 4> y, tensor_view<M, 4> m, tensor_view<WY, 2> weight_y,
                          tensor_view<WM, 2> weight_m, tensor_view<DO, 4> dout,
                          tensor_view<DY, 4> dy, tensor_view<DM, 4> dm,
                          tensor_view<DWY, 2> dweight_y, tensor_view<DWM, 2> dweight_m,
                          double epsilon = 1e-6, Executor const& run_on = {}) {
  using T = compute_type<Y, M, WY, WM, DO>;
  auto const work = detail::titans_gating_of<T>(y, m, weight_y, weight_m, epsilon);
  for (auto const& [name, extents] : {std::pair{"dout", dout.extents()},
                                      std::pair{"dy", dy.extents()}, std::pair{"dm", dm.extents()}})
    require(extents == y.extents(), [&, name = name, extents = extents] {
      return std::string(name) + " has shape " + shape_text(extents) + "; expected that of y, " +
             shape_text(y.extents());
    });
  auto const weights = [&](char const* name, auto const& view, auto const& like) {
    require(view.extents() == like.extents(), [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected " +
             shape_text(like.extents()) + ", as the weights";
    });
    detail::expect_distinct_elements(name, view);
  };
  weights("dweight_y", dweight_y, weight_y);
  weights("dweight_m", dweight_m, weight_m);
  source<T> const from(dout);
  sink<T> const to_y(dy), to_m(dm);
  std::size_t const bytes = work.bytes(7),
                    all = bytes * static_cast<std::size_t>(run_on.concurrency());
  index_t const dim = work.dim();
  std::byte* const memory = thread_workspace().reserve(
      all + static_cast<std::size_t>(arena::bytes<double>(2 * dim * work.pieces())));
  double* const sums = arena(memory + all).template take<double>(2 * dim * work.pieces());
  parallel_for(run_on, work.pieces(), [&](index_t piece, index_t worker) {
    work.backward(piece, memory + static_cast<std::size_t>(worker) * bytes, from, to_y, to_m,
                  sums + 2 * dim * piece);
  });
  auto const total = [&](auto const& view, index_t which) {
    using E = typename std::remove_cvref_t<decltype(view)>::value_type;
    for (index_t h = 0; h < view.extent(0); ++h)
      for (index_t c = 0; c < dim; ++c) {
        double sum = 0;
        for (index_t piece = 0; piece < work.pieces(); ++piece)
          if (view.extent(0) == 1 || work.at(piece).head == h)
            sum += sums[(2 * piece + which) * dim + c];
        view(h, c) = convert_element<E>(static_cast<T>(sum));
      }
  };
  total(dweight_y, 0);
  total(dweight_m, 1);
}

}  // namespace heed
