#pragma once

#include <heed/parallel/executor.hpp>
#include <heed/parallel/workspace.hpp>
#include <heed/pattern/interval.hpp>
#include <heed/simd/fma.hpp>
#include <heed/view/convert.hpp>
#include <heed/view/expect.hpp>
#include <heed/view/rows.hpp>

#include <xsimd/xsimd.hpp>

/// Means of rows: of segments of a sequence, which serve as landmarks, and what else pools rows.
namespace heed {

/// `rows` positions cut into `count` segments, one after the other: with s = floor(rows / count) the first
/// (s + 1) count - rows of them have s rows and the others one more.
struct segments {
  index_t rows;
  index_t count;

  interval operator[](index_t segment) const {
    index_t const size = rows / count, short_ones = (size + 1) * count - rows;
    index_t const first = segment * size + std::max<index_t>(0, segment - short_ones);
    return {first, first + size + (segment >= short_ones)};
  }
};

namespace detail {

/// to[c * stride] += factor * from[c].
template <class T, class E>
void add_to_row(E* to, index_t stride, T const* from, index_t count, T factor) {
  using batch = xsimd::batch<T>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  index_t c = 0;
  if constexpr (std::is_same_v<E, T>)
    if (stride == 1)
      for (; c + lanes <= count; c += lanes)
        simd::fma(batch(factor), batch::load_unaligned(from + c), batch::load_unaligned(to + c))
            .store_unaligned(to + c);
  for (; c < count; ++c)
    to[c * stride] = convert_element<E>(convert_element<T>(to[c * stride]) + factor * from[c]);
}

/// to += factor * from, two tensors [batch, position, head, dim] of the same shape.
template <class T, class E, class F, class Executor>
void add_scaled(Executor const& run_on, T factor, tensor_view<F, 4> from, tensor_view<E, 4> to) {
  constexpr index_t step = 64;
  index_t const rows = to.extent(1), heads = to.extent(2), dim = to.extent(3),
                pieces = (rows + step - 1) / step;
  source<T> const all(from);
  auto const bytes = arena::bytes<T>(dim);
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  if (to.size() == 0) return;
  parallel_for(run_on, to.extent(0) * pieces, [&](index_t piece, index_t worker) {
    T* const scratch = arena(memory + worker * bytes).template take<T>(dim);
    index_t const b = piece / pieces, first = piece % pieces * step;
    for (index_t i = first; i < std::min(rows, first + step); ++i)
      for (index_t h = 0; h < heads; ++h)
        add_to_row(&to(b, i, h, 0), to.stride(3), all.rows(b, h, i, 1, scratch).data, dim, factor);
  });
}

/// Sums rows of one head, some of them in T and these sums in double.
template <class T>
class row_sum {
 public:
  using batch = xsimd::batch<T>;
  static constexpr auto lanes = static_cast<index_t>(batch::size);

  row_sum(arena& memory, index_t dim)
      : dim_(dim), rows_(memory.take<T>(at_once * dim)), total_(memory.take<double>(dim)) {}

  void clear() { std::fill_n(total_, dim_, 0.0); }

  void add(source<T> const& all, index_t batch_entry, index_t head, interval positions) {
    for (index_t first = positions.first; first < positions.last; first += at_once) {
      index_t const count = std::min(at_once, positions.last - first);
      row_block<T> const rows = all.rows(batch_entry, head, first, count, rows_);
      index_t c = 0;
      for (; c + lanes <= dim_; c += lanes) {
        batch sum(T(0));
        for (index_t r = 0; r < count; ++r) sum += batch::load_unaligned(rows[r] + c);
        alignas(64) T parts[lanes];
        sum.store_aligned(parts);
        for (index_t lane = 0; lane < lanes; ++lane)
          total_[c + lane] += static_cast<double>(parts[lane]);
      }
      for (; c < dim_; ++c) {
        T sum = 0;
        for (index_t r = 0; r < count; ++r) sum += rows[r][c];
        total_[c] += static_cast<double>(sum);
      }
    }
  }

  /// The sum divided by a number, or 0 for a number of 0.
  T const* mean(index_t count) {
    for (index_t c = 0; c < dim_; ++c)
      rows_[c] = count > 0 ? static_cast<T>(total_[c] / static_cast<double>(count)) : T(0);
    return rows_;
  }

 private:
  static constexpr index_t at_once = 64;

  index_t dim_;
  T* rows_;
  double* total_;
};

/// Sums rows and can be read after each: a few rows are summed in T and what was before them in double.
template <class T>
class running_sum {
 public:
  running_sum(arena& memory, index_t dim)
      : dim_(dim),
        recent_(memory.take<T>(dim)),
        before_(memory.take<T>(dim)),
        exact_(memory.take<double>(dim)) {}

  void clear() {
    count_ = 0;
    std::fill_n(recent_, dim_, T(0));
    std::fill_n(before_, dim_, T(0));
    std::fill_n(exact_, dim_, 0.0);
  }

  void add(T const* row) {
    if (count_++ % at_once == 0)
      for (index_t c = 0; c < dim_; ++c) {
        exact_[c] += static_cast<double>(recent_[c]);
        before_[c] = static_cast<T>(exact_[c]);
        recent_[c] = 0;
      }
    add_to_row(recent_, 1, row, dim_, T(1));
  }

  void read(T* to) const {
    std::copy_n(before_, dim_, to);
    add_to_row(to, 1, recent_, dim_, T(1));
  }

 private:
  static constexpr index_t at_once = 64;

  index_t dim_, count_ = 0;
  T* recent_;
  T* before_;
  double* exact_;
};

/// Calls f(sum, batch entry, row, head) for `rows` rows of every head, each with a row_sum of its own worker.
template <class T, class Executor, class F>
void for_row_sums(Executor const& run_on, index_t batches, index_t rows, index_t heads, index_t dim,
                  F f) {
  auto const lay_out = [&](arena memory) {
    row_sum<T> const sum(memory, dim);
    return std::pair(sum, static_cast<index_t>(memory.used()));
  };
  index_t const bytes = lay_out(arena()).second;
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, batches * rows * heads, [&](index_t piece, index_t worker) {
    row_sum<T> sum = lay_out(arena(memory + worker * bytes)).first;
    sum.clear();
    f(sum, piece / rows / heads, piece / heads % rows, piece % heads);
  });
}

/// The means of segments where every batch entry may be cut in its own way, cut_of(batch entry). Rows of `means` beyond the
/// segments of an entry are 0.
template <class E, class M, class Cut, class Executor>
void segment_means_of(tensor_view<E, 4> all, Cut const& cut_of, tensor_view<M, 4> means,
                      Executor const& run_on) {
  using T = compute_type<E, M>;
  source<T> const from(all);
  sink<T> const to(means);
  for_row_sums<T>(run_on, means.extent(0), means.extent(1), means.extent(2), means.extent(3),
                  [&](row_sum<T>& sum, index_t b, index_t c, index_t h) {
                    segments const cut = cut_of(b);
                    interval const own = c < cut.count ? cut[c] : interval{};
                    sum.add(from, b, h, own);
                    to.store(b, h, c, 1, sum.mean(own.size()), means.extent(3));
                  });
}

/// Adds the gradient of segment_means_of to dall.
template <class DM, class DE, class Cut, class Executor>
void segment_means_of_backward(tensor_view<DM, 4> dmeans, Cut const& cut_of,
                               tensor_view<DE, 4> dall, Executor const& run_on) {
  using T = compute_type<DM, DE>;
  source<T> const from(dmeans);
  for_row_sums<T>(run_on, dmeans.extent(0), dmeans.extent(1), dmeans.extent(2), dmeans.extent(3),
                  [&](row_sum<T>& one, index_t b, index_t c, index_t h) {
                    segments const cut = cut_of(b);
                    if (c >= cut.count || dall.extent(3) == 0) return;
                    interval const own = cut[c];
                    one.add(from, b, h, {c, c + 1});
                    T const* const share = one.mean(own.size());
                    for (index_t i = own.first; i < own.last; ++i)
                      add_to_row(&dall(b, i, h, 0), dall.stride(3), share, dall.extent(3), T(1));
                  });
}

template <class E, class M>
void check_segment_means(segments const& cut, char const* name, tensor_view<E, 4> all,
                         char const* means_name, tensor_view<M, 4> means) {
  require(cut.rows == all.extent(1) && cut.count > 0, [&] {
    return std::to_string(cut.count) + " segments of " + std::to_string(cut.rows) +
           " rows; expected at least 1, of the " + std::to_string(all.extent(1)) + " rows of " +
           name;
  });
  expect_like(means_name, means, {all.extent(0), cut.count, all.extent(2), all.extent(3)},
              "the rows with a position for each segment");
}

}  // namespace detail

/// Row c of `means` is the mean of the rows of segment c. Both are [batch, position, head, dim]; segments without rows give 0.
template <element E, element M, class Executor = serial>
void segment_means(tensor_view<E, 4> all, segments const& cut, tensor_view<M, 4> means,
                   Executor const& run_on = {}) {
  detail::check_segment_means(cut, "the tensor", all, "means", means);
  detail::segment_means_of(
      all, [&](index_t) { return cut; }, means, run_on);
}

/// Adds the gradient of segment_means to dall.
template <element DM, element DE, class Executor = serial>
void segment_means_backward(tensor_view<DM, 4> dmeans, segments const& cut, tensor_view<DE, 4> dall,
                            Executor const& run_on = {}) {
  detail::check_segment_means(cut, "dall", dall, "dmeans", dmeans);
  detail::segment_means_of_backward(
      dmeans, [&](index_t) { return cut; }, dall, run_on);
}

}  // namespace heed
