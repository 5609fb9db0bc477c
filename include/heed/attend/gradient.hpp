#pragma once

#include <heed/attend/tile.hpp>
#include <heed/simd/fma.hpp>

/// What backward reads besides the operands, and where gradients go.
namespace heed::attend {

/// What the forward call left behind, and the gradients that come in.
template <class T>
struct saved_result {
  source<T> out;
  source<T> dout;
  tensor_view<T const, 3> lse;
  tensor_view<T const, 3> dlse;
  tensor_view<T const, 3> rest = {};  // of lse, where more of it is known
};

template <class T, class Query, class Value, class Out, class L, class DOut, class... I>
saved_result<T> make_saved_result(problem<T> const& p, Query const& query, Value const& value,
                                  Out const& out, tensor_view<L, 3> const& lse, DOut const& dout,
                                  I const&... ingredients) {
  std::array<index_t, 4> const shape{query.extent(0), query.extent(1), query.extent(2),
                                     value.extent(3)};
  detail::expect_like("out", out, shape, "query with the head_dim of value");
  detail::expect_like("dout", dout, shape, "out");
  detail::expect_memory("out", out);
  detail::expect_memory("dout", dout);
  heed::detail::check_row_view("lse", lse, p.shape());
  saved_result<T> saved{source<T>(out), source<T>(dout), lse, {}, {}};
  if constexpr ((false || ... || detail::is_a<I, lse_gradient>)) {
    auto const given = one_of<detail::is_lse_gradient>(nullptr, ingredients...);
    saved.dlse = given.values;
  }
  return saved;
}

template <class Query, class Key, class Value, class DQuery, class DKey, class DValue>
void check_gradients(Query const& query, Key const& key, Value const& value, DQuery const& dquery,
                     DKey const& dkey, DValue const& dvalue) {
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  detail::expect_memory("dquery", dquery);
  detail::expect_distinct_elements("dquery", dquery);
  detail::expect_memory("dkey", dkey);
  detail::expect_distinct_elements("dkey", dkey);
  detail::expect_memory("dvalue", dvalue);
  detail::expect_distinct_elements("dvalue", dvalue);
}

/// A panel with what the gradients of its scores need.
template <class T>
struct gradient_panel : query_panel<T> {
  T* dout;   // [value_dim][lane]
  T* lse;    // [lane]
  T* rest;   // [lane], of lse
  T* delta;  // [lane], dout.out
  T* dlse;   // [lane]

  gradient_panel(arena& memory, problem<T> const& p, index_t width)
      : query_panel<T>(memory, p.dim, width),
        dout(memory.take<T>(p.value_dim * width)),
        lse(memory.take<T>(width)),
        rest(memory.take<T>(width)),
        delta(memory.take<T>(width)),
        dlse(memory.take<T>(width)) {}
};

/// Opens panel `number` of a place. `scratch` holds the rows of two panels.
template <class Arch, class Bound, class T>
void open_gradient_panel(problem<T> const& p, saved_result<T> const& saved, place const& where,
                         index_t number, gradient_panel<T>& at, T* scratch) {
  using shape = simd::tile_shape<T, Arch>;
  open_panel<Arch, Bound>(p, where, number, at, scratch);
  interval const rows = at.queries.rows;
  index_t const width = at.queries.registers * shape::lanes;
  T const* const plain = nullptr;
  load_columns<Arch>(saved.dout, where, rows, at.tokens, plain, at.dout, width, scratch);
  // delta is summed as the products with the values are, so that a row of one key cancels exactly.
  T* const out = scratch + shape::max_lanes * p.value_dim;
  load_columns<Arch>(saved.out, where, rows, at.tokens, plain, out, width, scratch);
  for (index_t lane = 0; lane < width; lane += shape::lanes) {
    using batch = xsimd::batch<T, Arch>;
    batch delta(T(0));
    for (index_t d = 0; d < p.value_dim; ++d)
      delta = simd::fma(batch::load_unaligned(out + d * width + lane),
                        batch::load_aligned(at.dout + d * width + lane), delta);
    delta.store_aligned(at.delta + lane);
  }
  std::fill_n(at.lse, width, std::numeric_limits<T>::infinity());
  std::fill_n(at.rest, width, T(0));
  std::fill_n(at.dlse, width, T(0));
  for (index_t lane = 0; lane < rows.size(); ++lane) {
    index_t const row = at.tokens[lane];
    if (row < 0) continue;
    at.lse[lane] = saved.lse(where.batch, where.head, row);
    if (saved.dlse.data() != nullptr) at.dlse[lane] = saved.dlse(where.batch, where.head, row);
  }
}

/// Where a gradient is summed: the user's tensor itself, or a buffer in the type of the computation
/// where the tensor's own type would round every partial sum.
template <class T>
class accumulator {
 public:
  template <element E>
  accumulator(tensor_view<E, 4> const& target, arena& memory) {
    if constexpr (std::is_same_v<E, T>)
      sum_ = target;
    else
      sum_ = tensor_view<T, 4>(memory.take<T>(target.size()), target.extents());
  }

  void clear() const {
    each_row([](T* row, index_t step, index_t count) {
      for (index_t d = 0; d < count; ++d) row[d * step] = T(0);
    });
  }

  /// Adds rows to those of some tokens of one head.
  void add(index_t batch, index_t head, token_run tokens, T const* rows, index_t stride) const {
    index_t const dim = sum_.extent(3), step = sum_.stride(3);
    for (index_t r = 0; r < tokens.size && dim > 0; ++r) {
      T* const row = &sum_(batch, tokens.first + r * tokens.step, head, index_t{0});
      if (step == 1)
        for (index_t d = 0; d < dim; ++d) row[d] += rows[r * stride + d];
      else
        for (index_t d = 0; d < dim; ++d) row[d * step] += rows[r * stride + d];
    }
  }

  /// Rounds the sums into the user's tensor, where they are not there already.
  template <element E>
  void finish(tensor_view<E, 4> const& target) const {
    if constexpr (!std::is_same_v<E, T>) {
      sink<T> const to(target);
      for (index_t b = 0; b < sum_.extent(0); ++b)
        for (index_t h = 0; h < sum_.extent(2); ++h)
          if (sum_.size() > 0)
            to.store(b, h, 0, sum_.extent(1), &sum_(b, index_t{0}, h, index_t{0}), sum_.stride(1));
    }
  }

 private:
  template <class F>
  void each_row(F f) const {
    for (index_t b = 0; b < sum_.extent(0); ++b)
      for (index_t n = 0; n < sum_.extent(1); ++n)
        for (index_t h = 0; h < sum_.extent(2); ++h)
          if (sum_.extent(3) > 0) f(&sum_(b, n, h, index_t{0}), sum_.stride(3), sum_.extent(3));
  }

  tensor_view<T, 4> sum_;
};

/// The gradients of scale and row_scale, where they are asked for.
template <class T>
struct row_gradient_targets {
  double* scale = nullptr;
  tensor_view<T, 3> rows;
};

template <class T, class... I>
row_gradient_targets<T> make_row_gradients(I const&... ingredients) {
  row_gradient_targets<T> targets;
  targets.scale = one_of<detail::is_scale>(scale{0}, ingredients...).gradient;
  if constexpr ((false || ... || detail::is_a<I, row_scale>)) {
    auto const given = one_of<detail::is_row_scale>(nullptr, ingredients...);
    targets.rows = given.gradient;
  }
  return targets;
}

/// Adds up the chunks' shares of a panel's query gradient, in order, of those that have `shared`, and
/// stores it. Returns the panel's part of the gradient of scale if that is asked for.
template <class T, class Arch>
double add_shares(problem<T> const& p, place const& where, panel const& queries, T const* shares,
                  index_t stride, std::span<char const> shared, accumulator<T> const& dquery,
                  row_gradient_targets<T> const& targets, T* memory) {
  using shape = simd::tile_shape<T, Arch>;
  using batch = xsimd::batch<T, Arch>;
  index_t const width = queries.registers * shape::lanes, size = p.dim * width,
                count = queries.count();
  T* const sum = memory;
  T* const rows = sum + simd::round_up(p.dim * shape::max_lanes, 64);
  T* const query = rows + simd::round_up(p.dim * shape::max_lanes, 64);
  std::fill_n(sum, size, T(0));
  for (std::size_t c = 0; c < shared.size(); ++c)
    if (T const* const share = shares + static_cast<index_t>(c) * stride; shared[c])
      for (index_t i = 0; i < size; i += shape::lanes)
        (batch::load_aligned(sum + i) + batch::load_unaligned(share + i)).store_aligned(sum + i);
  simd::transpose<Arch>(p.dim, count, sum, width, rows, p.dim);
  double dscale = 0;
  bool const wanted = targets.scale != nullptr || targets.rows.data() != nullptr;
  if (wanted) copy_query_rows(p.query, where, queries.rows, query, p.dim);
  for (index_t lane = 0; lane < count; ++lane) {
    index_t const row = where.row(queries.rows.first + lane);
    T const factor = p.score_scale(where, row);
    if (wanted && row >= 0) {
      double dot = 0;
      for (index_t d = 0; d < p.dim; ++d)
        dot += static_cast<double>(query[lane * p.dim + d]) *
               static_cast<double>(rows[lane * p.dim + d]);
      if (targets.rows.data() != nullptr)
        targets.rows(where.batch, where.head, row) =
            static_cast<T>(dot * static_cast<double>(p.scale));
      double const row_factor =
          p.row_scale.data() == nullptr
              ? 1.0
              : static_cast<double>(p.row_scale(where.batch, where.head, row));
      dscale += dot * row_factor;
    }
    for (index_t d = 0; d < p.dim; ++d) rows[lane * p.dim + d] *= factor;
  }
  where.each_row_run(queries.rows, [&](index_t before, token_run tokens) {
    if (!tokens.padding())
      dquery.add(where.batch, where.head, tokens, rows + before * p.dim, p.dim);
  });
  return dscale;
}

}  // namespace heed::attend
