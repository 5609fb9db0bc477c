#pragma once

#include <heed/pattern/interval.hpp>
#include <heed/recur/scan_clauses.hpp>
#include <heed/simd/activations.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/convert.hpp>

#include <complex>

/// The elementwise recurrence h_t = a_t h_(t-1) + x_t of gated recurrent layers, real or complex.
namespace heed {

/// A tensor of complex numbers as its real and its imaginary parts.
template <class T>
struct complex_view {
  tensor_view<T, 4> real;
  tensor_view<T, 4> imaginary;

  complex_view(tensor_view<T, 4> re, tensor_view<T, 4> im) : real(re), imaginary(im) {}

  /// Views a tensor of std::complex.
  template <class C>
    requires std::same_as<std::complex<std::remove_const_t<T>>, std::remove_const_t<C>>
  explicit complex_view(tensor_view<C, 4> numbers)
      : real(part(numbers, 0)), imaginary(part(numbers, 1)) {}

 private:
  template <class C>
  static tensor_view<T, 4> part(tensor_view<C, 4> const& numbers, index_t which) {
    auto strides = numbers.strides();
    for (index_t& each : strides) each *= 2;
    T* const first = reinterpret_cast<T*>(numbers.data());
    return {first == nullptr ? nullptr : first + which, numbers.extents(), strides};
  }
};
template <class C>
complex_view(tensor_view<C, 4>) -> complex_view<
    std::conditional_t<std::is_const_v<C>, typename C::value_type const, typename C::value_type>>;

/// Says that the factors of a diagonal_scan are given by their logarithms, a_t = e^g_t, g_t <= 0. The gradient is then
/// that of the logarithms.
struct in_logs {};

namespace recur::scan {

inline constexpr auto is_in_logs = []<class T>() { return std::same_as<T, in_logs>; };

template <class T, class E>
std::array<channel_rows<T>, 1> planes(tensor_view<E, 4> view) {
  return {channel_rows<T>(view)};
}
template <class T, class E>
std::array<channel_rows<T>, 2> planes(complex_view<E> const& view) {
  return {channel_rows<T>(view.real), channel_rows<T>(view.imaginary)};
}

/// The arithmetic of registers of numbers, real (Planes is 1) or complex (2).
template <class Batch, int Planes>
struct lanes_of {
  Batch part[Planes];

  static lanes_of load(typename Batch::value_type const* at, index_t apart) {
    lanes_of x;
    for (int p = 0; p < Planes; ++p) x.part[p] = Batch::load_unaligned(at + p * apart);
    return x;
  }
  void store(typename Batch::value_type* at, index_t apart) const {
    for (int p = 0; p < Planes; ++p) part[p].store_unaligned(at + p * apart);
  }
};

/// a b + c.
template <class Batch>
lanes_of<Batch, 1> multiply_add(lanes_of<Batch, 1> const& a, lanes_of<Batch, 1> const& b,
                                lanes_of<Batch, 1> const& c) {
  return {{simd::fma(a.part[0], b.part[0], c.part[0])}};
}
template <class Batch>
lanes_of<Batch, 2> multiply_add(lanes_of<Batch, 2> const& a, lanes_of<Batch, 2> const& b,
                                lanes_of<Batch, 2> const& c) {
  return {{simd::fma(a.part[0], b.part[0], simd::fnma(a.part[1], b.part[1], c.part[0])),
           simd::fma(a.part[0], b.part[1], simd::fma(a.part[1], b.part[0], c.part[1]))}};
}
/// a b.
template <class Batch>
lanes_of<Batch, 1> product(lanes_of<Batch, 1> const& a, lanes_of<Batch, 1> const& b) {
  return {{a.part[0] * b.part[0]}};
}
template <class Batch>
lanes_of<Batch, 2> product(lanes_of<Batch, 2> const& a, lanes_of<Batch, 2> const& b) {
  return {{simd::fnma(a.part[1], b.part[1], a.part[0] * b.part[0]),
           simd::fma(a.part[1], b.part[0], a.part[0] * b.part[1])}};
}
template <class Batch>
lanes_of<Batch, 1> conjugate(lanes_of<Batch, 1> const& a) {
  return a;
}
template <class Batch>
lanes_of<Batch, 2> conjugate(lanes_of<Batch, 2> const& a) {
  return {{a.part[0], -a.part[1]}};
}
template <class Batch>
lanes_of<Batch, 1> sum(lanes_of<Batch, 1> const& a, lanes_of<Batch, 1> const& b) {
  return {{a.part[0] + b.part[0]}};
}
template <class Batch>
lanes_of<Batch, 2> sum(lanes_of<Batch, 2> const& a, lanes_of<Batch, 2> const& b) {
  return {{a.part[0] + b.part[0], a.part[1] + b.part[1]}};
}

/// One pass over a sequence, forward or backward, of one tile of channels.
///
/// A long sequence is cut into segments wherever it runs. With `factor` the product of a segment's factors and `end` the
/// state that the segment ends with after starting from 0, it ends with factor start + end; each segment then begins
/// from what the ones before end with. This is a different sum from the one step by step, and so is made by one worker
/// too: the bits do not depend on how many there are.
template <class T, int Planes, class Arch>
class diagonal_scanner {
 public:
  static constexpr int registers = Planes == 1 ? 4 : 2;
  using tiles_type = channel_tiles<T, Arch, registers>;
  using batch = xsimd::batch<T, Arch>;
  using lanes = lanes_of<batch, Planes>;
  static constexpr index_t segment = 1024;
  static constexpr index_t step = 64;
  static constexpr index_t width = tiles_type::width;
  static constexpr index_t numbers = Planes * width;  // of a state

  using operand = std::array<channel_rows<T>, static_cast<std::size_t>(Planes)>;

  /// h of forward and dx of backward; x and dh; a; of backward h and da too.
  operand out, in, factors, before, dfactors;
  states<T> ends;
  sequences all;
  bool logs = false;
  bool reversed = false;

  static constexpr index_t scratch_numbers() { return 5 * Planes * step * width + numbers; }

  template <class Executor>
  void run(index_t channels, Executor const& run_on, workspace& memory) const {
    tiles_type const tiles(channels);
    index_t const chains = all.count() * tiles.count(), most = segments(all.longest());
    index_t const workers = static_cast<index_t>(run_on.concurrency());
    bool const together = most <= 1 || workers <= 1 || chains >= 4 * workers;
    index_t const kept = together ? 0 : chains * most * numbers;
    auto const lay_out = [&](arena from) {
      std::array<T*, 4> at{from.take<T>(workers * scratch_numbers()), from.take<T>(kept),
                           from.take<T>(kept), from.take<T>(kept)};
      return std::pair(at, from.used());
    };
    auto const [scratch, factor, end, start] =
        lay_out(arena(memory.reserve(lay_out(arena()).second))).first;
    T* const first_scratch = scratch;

    if (together) {
      parallel_for(run_on, chains, [&](index_t chain, index_t worker) {
        run_chain(chain / tiles.count(), tiles[chain % tiles.count()],
                  first_scratch + worker * scratch_numbers());
      });
      return;
    }
    T *const factors_at = factor, *const ends_at = end, *const starts_at = start;
    auto const of = [&](index_t chain, index_t s) { return (chain * most + s) * numbers; };
    parallel_for(run_on, chains * most, [&](index_t piece, index_t worker) {
      index_t const chain = piece / most, s = piece % most, sequence = chain / tiles.count();
      if (s + 1 >= segments(all[sequence].count)) return;
      pass<false, true>(sequence, tiles[chain % tiles.count()], s, nullptr,
                        factors_at + of(chain, s), ends_at + of(chain, s),
                        first_scratch + worker * scratch_numbers());
    });
    parallel_for(run_on, chains, [&](index_t chain, index_t worker) {
      index_t const sequence = chain / tiles.count();
      channel_tile const tile = tiles[chain % tiles.count()];
      begin(sequence, tile, starts_at + of(chain, 0));
      for (index_t s = 0; s + 1 < segments(all[sequence].count); ++s) {
        std::copy_n(starts_at + of(chain, s), numbers, starts_at + of(chain, s + 1));
        follow(tile, factors_at + of(chain, s), ends_at + of(chain, s),
               starts_at + of(chain, s + 1));
      }
      if (all[sequence].count == 0)
        finish(sequence, tile, starts_at + of(chain, 0),
               first_scratch + worker * scratch_numbers());
    });
    parallel_for(run_on, chains * most, [&](index_t piece, index_t worker) {
      index_t const chain = piece / most, s = piece % most, sequence = chain / tiles.count();
      channel_tile const tile = tiles[chain % tiles.count()];
      index_t const count = segments(all[sequence].count);
      if (s >= count) return;
      T* const own = first_scratch + worker * scratch_numbers();
      pass<true, false>(sequence, tile, s, starts_at + of(chain, s), nullptr, nullptr, own);
      if (s + 1 == count) finish(sequence, tile, starts_at + of(chain, s), own);
    });
  }

 private:
  static index_t segments(index_t count) { return (count + segment - 1) / segment; }

  void run_chain(index_t sequence, channel_tile const& tile, T* scratch) const {
    alignas(64) T state[numbers], factor[numbers], end[numbers], next[numbers];
    begin(sequence, tile, state);
    index_t const count = segments(all[sequence].count);
    for (index_t s = 0; s + 1 < count; ++s) {
      std::copy_n(state, numbers, next);
      pass<true, true>(sequence, tile, s, state, factor, end, scratch);
      follow(tile, factor, end, next);
      std::copy_n(next, numbers, state);
    }
    if (count > 0) pass<true, false>(sequence, tile, count - 1, state, nullptr, nullptr, scratch);
    finish(sequence, tile, state, scratch);
  }

  void begin(index_t sequence, channel_tile const& tile, T* state) const {
    read_state(reversed ? ends.final_gradient : ends.initial, sequence, Planes, tile, state);
  }
  void finish(index_t sequence, channel_tile const& tile, T const* state, T*) const {
    write_state(reversed ? ends.initial_gradient : ends.final, sequence, Planes, tile, state);
  }

  /// state = factor state + end; a state of 0 stays out of it, whatever the factors grew to.
  static void follow(channel_tile const& tile, T const* factor, T const* end, T* state) {
    for (index_t c = 0; c < tile.padded; ++c) {
      std::complex<T> x(state[c]), a(factor[c]), e(end[c]);
      if constexpr (Planes == 2) {
        x.imag(state[tile.padded + c]);
        a.imag(factor[tile.padded + c]);
        e.imag(end[tile.padded + c]);
      }
      if constexpr (Planes == 1) {
        state[c] = x.real() == T(0) ? e.real() : a.real() * x.real() + e.real();
      } else {
        bool const none = x == std::complex<T>(0);
        state[c] = none ? e.real() : a.real() * x.real() - a.imag() * x.imag() + e.real();
        state[tile.padded + c] =
            none ? e.imag() : a.real() * x.imag() + a.imag() * x.real() + e.imag();
      }
    }
  }

  /// One segment, the `number`th in the order of the pass. Forward each step makes state = a state + x the next h;
  /// backward r = dh + state is dx, r conj(h before) is da, and state = conj(a) r.
  template <bool Store, bool Measure>
  void pass(index_t sequence, channel_tile const& tile, index_t number, T* state, T* factor, T* end,
            T* scratch) const {
    auto const run = all[sequence];
    index_t const count = segments(run.count);
    index_t const place = reversed ? count - 1 - number : number;
    interval const rows{place * segment, std::min(run.count, (place + 1) * segment)};
    if constexpr (Measure) {
      std::fill_n(factor, tile.padded, T(1));
      std::fill_n(factor + tile.padded, (Planes - 1) * tile.padded, T(0));
      std::fill_n(end, Planes * tile.padded, T(0));
    }
    index_t const steps = (rows.size() + step - 1) / step;
    for (index_t n = 0; n < steps; ++n) {
      index_t const first = rows.first + (reversed ? steps - 1 - n : n) * step;
      index_t const size = std::min(step, rows.last - first);
      with_registers<T, Arch, registers>(tile, [&]<int R>(std::integral_constant<int, R>) {
        if (logs)
          block<R, Store, Measure, Planes == 1>(run, sequence, first, size, tile, state, factor,
                                                end, scratch);
        else
          block<R, Store, Measure, false>(run, sequence, first, size, tile, state, factor, end,
                                          scratch);
      });
    }
  }

  struct rows_of {
    row_block<T> plane[Planes];
    T const* operator()(index_t row, int p) const { return plane[p][row]; }
  };
  struct rows_to {
    typename channel_rows<T>::open_rows plane[Planes];
    T* operator()(index_t row, int p) const { return plane[p][row]; }
  };

  template <int R, bool Store, bool Measure, bool Logs>
  void block(sequences::run const& run, index_t sequence, index_t first, index_t size,
             channel_tile const& tile, T* state, T* factor, T* end, T* scratch) const {
    constexpr auto size_of_lanes = static_cast<index_t>(batch::size);
    auto const take = [&](operand const& from, index_t row, index_t count) {
      rows_of rows;
      for (int p = 0; p < Planes; ++p, scratch += step * width)
        rows.plane[p] = from[static_cast<std::size_t>(p)].read(run.batch, run.first + row, count,
                                                               tile, scratch);
      return rows;
    };
    auto const open = [&](operand const& to) {
      rows_to rows;
      for (int p = 0; p < Planes; ++p, scratch += step * width)
        rows.plane[p] =
            to[static_cast<std::size_t>(p)].open(run.batch, run.first + first, tile, scratch);
      return rows;
    };
    auto const close = [&](operand const& to, rows_to const& rows) {
      for (int p = 0; p < Planes; ++p)
        to[static_cast<std::size_t>(p)].finish(rows.plane[p], run.batch, run.first + first, size,
                                               tile);
    };
    auto const load = [&](rows_of const& rows, index_t row, int r) {
      lanes x;
      for (int p = 0; p < Planes; ++p)
        x.part[p] = batch::load_unaligned(rows(row, p) + r * size_of_lanes);
      return x;
    };
    auto const load_factor = [&](rows_of const& rows, index_t row, int r) {
      lanes a = load(rows, row, r);
      if constexpr (Logs) a.part[0] = simd::exp(a.part[0]);
      return a;
    };
    auto const store = [&](rows_to const& rows, index_t row, int r, lanes const& x) {
      for (int p = 0; p < Planes; ++p) x.part[p].store_unaligned(rows(row, p) + r * size_of_lanes);
    };
    lanes at[R], through[R], from_zero[R];
    for (int r = 0; r < R; ++r) {
      if constexpr (Store) at[r] = lanes::load(state + r * size_of_lanes, tile.padded);
      if constexpr (Measure) {
        through[r] = lanes::load(factor + r * size_of_lanes, tile.padded);
        from_zero[r] = lanes::load(end + r * size_of_lanes, tile.padded);
      }
    }
    rows_of const a = take(factors, first, size), x = take(in, first, size);
    if (!reversed) {
      rows_to const h = Store ? open(out) : rows_to{};
      for (index_t t = 0; t < size; ++t)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          lanes const factor_t = load_factor(a, t, r), x_t = load(x, t, r);
          if constexpr (Store) {
            at[r] = multiply_add(factor_t, at[r], x_t);
            store(h, t, r, at[r]);
          }
          if constexpr (Measure) {
            from_zero[r] = multiply_add(factor_t, from_zero[r], x_t);
            through[r] = product(factor_t, through[r]);
          }
        }
      if constexpr (Store) close(out, h);
    } else {
      rows_of h{};
      rows_to dx{}, da{};
      index_t const shift =
          first > 0 ? 0 : 1;  // row 0 of a sequence has the initial state before it
      T* const initial = scratch + 3 * Planes * step * width;
      if constexpr (Store) {
        h = take(before, first - 1 + shift, size - shift);
        dx = open(out);
        da = open(dfactors);
        if (shift == 1) read_state(ends.initial, sequence, Planes, tile, initial);
      }
      for (index_t t = size; t-- > 0;)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          lanes const factor_t = conjugate(load_factor(a, t, r)), dh_t = load(x, t, r);
          if constexpr (Store) {
            lanes const total = sum(dh_t, at[r]);
            lanes const h_before = t >= shift
                                       ? load(h, t - shift, r)
                                       : lanes::load(initial + r * size_of_lanes, tile.padded);
            at[r] = product(factor_t, total);
            store(dx, t, r, total);
            store(da, t, r, product(conjugate(h_before), Logs ? at[r] : total));
          }
          if constexpr (Measure) {
            from_zero[r] = product(factor_t, sum(dh_t, from_zero[r]));
            through[r] = product(factor_t, through[r]);
          }
        }
      if constexpr (Store) {
        close(out, dx);
        close(dfactors, da);
      }
    }
    for (int r = 0; r < R; ++r) {
      if constexpr (Store) at[r].store(state + r * size_of_lanes, tile.padded);
      if constexpr (Measure) {
        through[r].store(factor + r * size_of_lanes, tile.padded);
        from_zero[r].store(end + r * size_of_lanes, tile.padded);
      }
    }
  }
};

namespace detail {

template <class E>
auto const& extents_of(tensor_view<E, 4> const& view) {
  return view.extents();
}
template <class E>
auto const& extents_of(complex_view<E> const& view) {
  return view.real.extents();
}

template <class E>
void expect_like(char const* name, tensor_view<E, 4> view, std::array<index_t, 4> const& shape,
                 char const* like, bool written) {
  heed::detail::expect_like(name, view, shape, like);
  heed::detail::expect_memory(name, view);
  if (written) heed::detail::expect_distinct_elements(name, view);
}
template <class E>
void expect_like(char const* name, complex_view<E> const& view, std::array<index_t, 4> const& shape,
                 char const* like, bool written) {
  expect_like(name, view.real, shape, like, written);
  expect_like(name, view.imaginary, shape, like, written);
}

template <class View>
struct planes_of;
template <class E>
struct planes_of<tensor_view<E, 4>> : std::integral_constant<int, 1> {
  using type = E;
};
template <class E>
struct planes_of<complex_view<E>> : std::integral_constant<int, 2> {
  using type = E;
};
template <class... View>
concept alike = ((planes_of<View>::value > 0) && ...) &&
                ((planes_of<View>::value * static_cast<int>(sizeof...(View)) ==
                  (0 + ... + planes_of<View>::value)) &&
                 ...);

}  // namespace detail
}  // namespace recur::scan

/// h_t = a_t h_(t-1) + x_t, each channel for itself: forward, and with a position extent of 1 a step of decoding.
///
///   a, x, h   [batch, position, heads, dim], all tensor_view or all complex_view; h may be x. A view of `a` whose stride
///             along the positions is 0 is a fixed decay. |a| > 1 is allowed, and may overflow
///
/// Ingredients, in any order: in_logs (real: `a` holds log factors, none above 0 or NaN; -infinity forgets), state,
/// initial_state, final_state [sequences, heads, 1, dim] (complex: [.., 2, ..], real and imaginary), documents (the same
/// offsets twice), an executor, scratch. Elements are double, float, half or bfloat16; states float or double.
/// The same bits for every executor.
template <class A, class X, class H, class... Ingredients>
  requires recur::scan::detail::alike<A, X, H>
void diagonal_scan(A const& a, X const& x, H const& h, Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using scan::detail::planes_of;
  using T = compute_type<typename planes_of<A>::type, typename planes_of<X>::type,
                         typename planes_of<H>::type, scan::states_type<Ingredients...>>;
  constexpr int planes = planes_of<A>::value;
  constexpr bool logs = (false || ... || scan::is_in_logs.template operator()<Ingredients>());
  static_assert(
      (true && ... && (scan::is_clause<Ingredients> || std::same_as<Ingredients, in_logs>)),
      "heed: diagonal_scan takes in_logs, states, documents, an executor and scratch");
  static_assert(!logs || planes == 1, "heed: in_logs is for real factors");
  auto const& shape = scan::detail::extents_of(x);
  scan::detail::expect_like("x", x, shape, "x", false);
  scan::detail::expect_like("a", a, shape, "x", false);
  scan::detail::expect_like("h", h, shape, "x", true);
  scan::diagonal_scanner<T, planes, xsimd::default_arch> work;
  work.all = scan::sequences_of(shape, ingredients...);
  work.ends = scan::states_of<T>({work.all.count(), shape[2], planes, shape[3]}, ingredients...);
  auto const run_on = scan::executor_of(ingredients...);
  if constexpr (logs) scan::check_numbers<scan::at_most_0, T>("a", a, run_on);
  work.factors = scan::planes<T>(a);
  work.in = scan::planes<T>(x);
  work.out = scan::planes<T>(h);
  work.logs = logs;
  work.run(shape[2] * shape[3], run_on, scan::scratch_of(ingredients...));
}

/// The gradients of diagonal_scan from its result h, with its ingredients; also initial_state{view, gradient} and
/// final_state_gradient. r_t = dh_t + conj(a_(t+1)) r_(t+1), dx_t = r_t, da_t = r_t conj(h_(t-1)); in_logs, da receives
/// a_t da_t. The gradient by a complex number is that by its real part plus i times that by its imaginary part.
///
/// A state{view} is read as the one that the call began with. da and dx are shaped like a and x; dx may be dh.
template <class A, class H, class DH, class DA, class DX, class... Ingredients>
  requires recur::scan::detail::alike<A, H, DH, DA, DX>
void diagonal_scan_backward(A const& a, H const& h, DH const& dh, DA const& da, DX const& dx,
                            Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using scan::detail::planes_of;
  using T = compute_type<typename planes_of<A>::type, typename planes_of<H>::type,
                         typename planes_of<DH>::type, typename planes_of<DX>::type,
                         scan::states_type<Ingredients...>>;
  constexpr int planes = planes_of<A>::value;
  constexpr bool logs = (false || ... || scan::is_in_logs.template operator()<Ingredients>());
  static_assert(
      (true && ... && (scan::is_clause<Ingredients> || std::same_as<Ingredients, in_logs>)),
      "heed: diagonal_scan takes in_logs, states, documents, an executor and scratch");
  static_assert(!logs || planes == 1, "heed: in_logs is for real factors");
  auto const& shape = scan::detail::extents_of(h);
  scan::detail::expect_like("h", h, shape, "h", false);
  scan::detail::expect_like("a", a, shape, "h", false);
  scan::detail::expect_like("dh", dh, shape, "h", false);
  scan::detail::expect_like("da", da, shape, "h", true);
  scan::detail::expect_like("dx", dx, shape, "h", true);
  scan::diagonal_scanner<T, planes, xsimd::default_arch> work;
  work.all = scan::sequences_of(shape, ingredients...);
  work.ends = scan::states_of<T>({work.all.count(), shape[2], planes, shape[3]}, ingredients...);
  auto const run_on = scan::executor_of(ingredients...);
  if constexpr (logs) scan::check_numbers<scan::at_most_0, T>("a", a, run_on);
  work.reversed = true;
  work.factors = scan::planes<T>(a);
  work.in = scan::planes<T>(dh);
  work.before = scan::planes<T>(h);
  work.dfactors = scan::planes<T>(da);
  work.out = scan::planes<T>(dx);
  work.logs = logs;
  work.run(shape[2] * shape[3], run_on, scan::scratch_of(ingredients...));
}

}  // namespace heed
