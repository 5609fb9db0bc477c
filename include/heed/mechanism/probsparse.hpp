#pragma once

#include <heed/mechanism/attention_calls.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/recur/segments.hpp>
#include <heed/simd/fma.hpp>

/// Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, its ProbSparse attention, as in CAB. Each query
/// is measured on a few sampled keys, max_s(q.k_s) - sum_s(q.k_s) / M; the rows of the largest measures attend, the others get
/// the mean of V or, if causal, the running sum of V up to their own row.
///
///     heed::probsparse_select(q, k, samples, rows);            // rows [batch, heads, probsparse_count(f, N)]
///     heed::probsparse_attention(q, k, v, rows, out);          // with heed::causal{}: the causal one
///
/// The choice mixes queries, so that even the causal form sees later ones. There is no gradient through it.
namespace heed {

/// min(factor ceil(ln n), n): how many rows attend, of n queries, and how many of n keys each query is measured on.
inline index_t probsparse_count(index_t factor, index_t n) {
  if (n < 1) return 0;
  return std::min(factor * static_cast<index_t>(std::ceil(std::log(static_cast<double>(n)))), n);
}

namespace detail {

struct probsparse_memory;

/// Products of one query with keys that lie anywhere among the rows of a head.
template <class T>
T row_product(T const* a, T const* b, index_t dim) {
  using batch = xsimd::batch<T>;
  constexpr auto lanes = static_cast<index_t>(batch::size);
  batch sum(T(0));
  index_t d = 0;
  for (; d + lanes <= dim; d += lanes)
    sum = simd::fma(batch::load_unaligned(a + d), batch::load_unaligned(b + d), sum);
  alignas(64) T parts[lanes];
  sum.store_aligned(parts);
  T total = 0;
  for (T part : parts) total += part;
  for (; d < dim; ++d) total += a[d] * b[d];
  return total;
}

inline void check_selected(tensor_view<index_t const, 3> rows, index_t batches, index_t heads,
                           index_t queries) {
  require(rows.extent(0) == batches && rows.extent(1) == heads && rows.extent(2) <= queries, [&] {
    return "rows has shape " + shape_text(rows.extents()) + "; expected [" +
           std::to_string(batches) + ", " + std::to_string(heads) + ", up to " +
           std::to_string(queries) + "] (batch, head, row)";
  });
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t n = 0; n < rows.extent(2); ++n)
        require(rows(b, h, n) >= 0 && rows(b, h, n) < queries &&
                    (n == 0 || rows(b, h, n - 1) < rows(b, h, n)),
                [&] {
                  return "rows holds " + std::to_string(rows(b, h, n)) +
                         "; expected rows from 0 to " + std::to_string(queries - 1) +
                         ", each list in increasing order";
                });
}

}  // namespace detail

/// Chooses the rows that attend.
///
///   query [batch, N, heads, dim], key [batch, M, key_heads, dim]
///   samples   [batch or 1, heads or 1, N, U], keys in [0, M), drawn by the caller: probsparse_count(factor, M) of them
///   rows      [batch, heads, u] receives the u rows of the largest measures in increasing order; of equal ones the first
template <element Q, element K, class Executor = serial>
void probsparse_select(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                       tensor_view<index_t const, 4> samples, tensor_view<index_t, 3> rows,
                       Executor const& run_on = {}) {
  using T = compute_type<Q, K>;
  index_t const batches = query.extent(0), queries = query.extent(1), heads = query.extent(2),
                dim = query.extent(3), keys = key.extent(1), count = rows.extent(2),
                each = samples.extent(3);
  attend::make_problem<T>(query, key, key);
  require((samples.extent(0) == 1 || samples.extent(0) == batches) &&
              (samples.extent(1) == 1 || samples.extent(1) == heads) &&
              samples.extent(2) == queries && each > 0,
          [&] {
            return "samples has shape " + shape_text(samples.extents()) + "; expected [1 or " +
                   std::to_string(batches) + ", 1 or " + std::to_string(heads) + ", " +
                   std::to_string(queries) + ", at least 1] (batch, head, row, sample)";
          });
  for (index_t b = 0; b < samples.extent(0); ++b)
    for (index_t h = 0; h < samples.extent(1); ++h)
      detail::each_number(
          tensor_view<index_t const, 3>(&samples(b, h, index_t{0}, index_t{0}), {1, queries, each},
                                        {0, samples.stride(2), samples.stride(3)}),
          [&](index_t sample) {
            require(sample >= 0 && sample < keys, [&] {
              return "samples holds " + std::to_string(sample) + "; expected 0 to " +
                     std::to_string(keys - 1) + " (keys)";
            });
          });
  require(rows.extent(0) == batches && rows.extent(1) == heads && count <= queries, [&] {
    return "rows has shape " + shape_text(rows.extents()) + "; expected [" +
           std::to_string(batches) + ", " + std::to_string(heads) + ", up to " +
           std::to_string(queries) + "] (batch, head, row)";
  });

  source<T> const all_queries(query), all_keys(key);
  struct scratch_memory {
    T *query, *keys, *measure;
    index_t* order;
    index_t bytes;
  };
  auto const lay_out = [&](arena memory) {
    scratch_memory own;
    own.query = memory.take<T>(dim);
    own.keys = memory.take<T>(all_keys.in_place() ? 0 : keys * dim);
    own.measure = memory.take<T>(queries);
    own.order = memory.take<index_t>(queries);
    own.bytes = static_cast<index_t>(memory.used());
    return own;
  };
  index_t const bytes = lay_out(arena()).bytes;
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, batches * heads, [&](index_t piece, index_t worker) {
    index_t const b = piece / heads, h = piece % heads;
    scratch_memory const own = lay_out(arena(memory + worker * bytes));
    row_block<T> const all = all_keys.rows(b, h * key.extent(2) / heads, 0, keys, own.keys);
    index_t const sample_batch = samples.extent(0) == 1 ? 0 : b,
                  sample_head = samples.extent(1) == 1 ? 0 : h;
    T const share = T(1) / static_cast<T>(keys);
    for (index_t i = 0; i < queries; ++i) {
      T const* const q = all_queries.rows(b, h, i, 1, own.query).data;
      T most = 0, sum = 0;
      for (index_t s = 0; s < each; ++s) {
        T const x = detail::row_product(q, all[samples(sample_batch, sample_head, i, s)], dim);
        most = s == 0 || x > most ? x : most;
        sum += x;
      }
      // Rows with NaN come first, so that NaN is seen.
      T const measure = most - sum * share;
      own.measure[i] = measure == measure ? measure : std::numeric_limits<T>::infinity();
      own.order[i] = i;
    }
    std::nth_element(own.order, own.order + count, own.order + queries, [&](index_t i, index_t j) {
      return own.measure[i] > own.measure[j] || (own.measure[i] == own.measure[j] && i < j);
    });
    std::sort(own.order, own.order + count);
    for (index_t n = 0; n < count; ++n) rows(b, h, n) = own.order[n];
  });
}

namespace detail {

/// The chosen queries of a call, what they found, and up to where they see.
template <class T>
struct probsparse_rows {
  tensor_view<T, 4> query;
  partial_attention<T> seen;
  tensor_view<index_t, 3> last;  // [batch, head, chosen row]

  probsparse_rows(arena& memory, index_t batches, index_t count, index_t heads, index_t dim,
                  index_t value_dim)
      : query(take_rows<T>(memory, batches, count, heads, dim)),
        seen(take_result<T>(memory, batches, count, heads, value_dim)),
        last(memory.take<index_t>(batches * heads * count), {batches, heads, count}) {}
};

/// The pattern of the chosen rows.
template <class T>
row_ranges chosen_ranges(probsparse_rows<T> const& at) {
  static constexpr index_t zero = 0;
  return {tensor_view<index_t const, 3>(&zero, {1, 1, at.last.extent(2)}, {0, 0, 0}), at.last};
}

template <class T, bool Causal, class Q, class K, class V, class... I>
void attend_chosen(probsparse_rows<T> const& at, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                   tensor_view<V, 4> value, tensor_view<index_t const, 3> rows,
                   I const&... ingredients) {
  for (index_t b = 0; b < rows.extent(0); ++b)
    for (index_t h = 0; h < rows.extent(1); ++h)
      for (index_t n = 0; n < rows.extent(2); ++n) {
        index_t const row = rows(b, h, n);
        at.last(b, h, n) = Causal ? row + 1 : key.extent(1);
        for (index_t d = 0; d < query.extent(3); ++d)
          at.query(b, n, h, d) = convert_element<T>(query(b, row, h, d));
      }
  double const factor = scale_of(query.extent(3), ingredients...);
  with_machine(
      [&](auto const&... machine) {
        attention(at.query, key, value, at.seen.out, scale{factor}, lse_into<T>{at.seen.lse},
                  chosen_ranges(at), machine...);
      },
      ingredients...);
}

/// Memory of a worker for the rows that do not attend.
template <class T>
struct other_rows {
  row_sum<T> whole;
  running_sum<T> running;
  T *row, *result;

  other_rows(arena& memory, index_t dim)
      : whole(memory, dim),
        running(memory, dim),
        row(memory.take<T>(dim)),
        result(memory.take<T>(dim)) {
    if (memory.measuring()) return;
    whole.clear();
    running.clear();
  }
};

/// Calls f(memory, batch entry, value head) for all of them.
template <class T, class Executor, class F>
void for_other_rows(Executor const& run_on, index_t batches, index_t value_heads, index_t dim,
                    F f) {
  arena size;
  other_rows<T> const measured(size, dim);
  auto const bytes = static_cast<index_t>(size.used());
  std::byte* const memory = thread_workspace().reserve(
      static_cast<std::size_t>(bytes * static_cast<index_t>(run_on.concurrency())));
  parallel_for(run_on, batches * value_heads, [&](index_t piece, index_t worker) {
    arena own(memory + worker * bytes);
    other_rows<T> at(own, dim);
    f(at, piece / value_heads, piece % value_heads);
  });
}

inline bool is_chosen(tensor_view<index_t const, 3> chosen, index_t b, index_t h, index_t row) {
  index_t first = 0, last = chosen.extent(2);
  while (first < last) {
    index_t const middle = (first + last) / 2;
    if (chosen(b, h, middle) == row) return true;
    chosen(b, h, middle) < row ? first = middle + 1 : last = middle;
  }
  return false;
}

/// Calls f(rows) for every run of rows, of `count`, that are not chosen.
template <class F>
void each_other_run(tensor_view<index_t const, 3> chosen, index_t b, index_t h, index_t count,
                    F f) {
  index_t from = 0;
  for (index_t n = 0; n < chosen.extent(2); ++n) {
    f(interval{from, chosen(b, h, n)});
    from = chosen(b, h, n) + 1;
  }
  f(interval{from, count});
}

template <class T, bool Causal, class Q, class K, class V, class O, class... I>
void check_probsparse(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<index_t const, 3> rows, char const* out_name,
                      tensor_view<O, 4> out, I const&... ingredients) {
  static_assert((true && ... &&
                 (is_for_every_call.template operator()<I>() || std::same_as<I, causal> ||
                  attend::detail::is_scale.template operator()<I>())),
                "heed: probsparse_attention takes causal, scale, an executor and scratch");
  if constexpr (Causal) {
    check_self<T>(query, key, value, out_name, out);
  } else {
    attend::make_problem<T>(query, key, value);
    expect_like(out_name, out, {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
                "query with the head_dim of value");
    expect_memory(out_name, out);
  }
  scale_of(query.extent(3), ingredients...);
  check_selected(rows, query.extent(0), query.extent(2), query.extent(1));
}

}  // namespace detail

/// Attention of the chosen rows; the others get the mean of V, or with causal{} the sum of V up to their own row.
///
///   query, key, value, out   as in attention(); causal: with as many queries as keys
///   rows                     [batch, heads, u], each list in increasing order; of all N it is full attention
///
/// Ingredients: causal{}; scale, by default 1 / sqrt(head_dim); an executor; scratch.
template <element Q, element K, element V, element O, class... Ingredients>
void probsparse_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                          tensor_view<index_t const, 3> rows, tensor_view<O, 4> out,
                          Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  constexpr bool is_causal = (false || ... || std::same_as<Ingredients, causal>);
  detail::check_probsparse<T, is_causal>(query, key, value, rows, "out", out, ingredients...);
  index_t const heads = query.extent(2), value_heads = value.extent(2), dim = value.extent(3),
                keys = key.extent(1), group = heads / std::max<index_t>(value_heads, 1);
  auto const at = detail::laid_out<detail::probsparse_memory>([&](arena& memory) {
    return detail::probsparse_rows<T>(memory, query.extent(0), rows.extent(2), heads,
                                      query.extent(3), dim);
  });
  detail::attend_chosen<T, is_causal>(at, query, key, value, rows, ingredients...);
  source<T> const values(value);
  sink<T> const results(out);
  detail::for_other_rows<T>(
      detail::executor_of(ingredients...), query.extent(0), value_heads, dim,
      [&](detail::other_rows<T>& own, index_t b, index_t value_head) {
        interval const group_heads{value_head * group, (value_head + 1) * group};
        if constexpr (is_causal) {
          for (index_t i = 0; i < keys; ++i) {
            own.running.add(values.rows(b, value_head, i, 1, own.row).data);
            own.running.read(own.result);
            for (index_t h = group_heads.first; h < group_heads.last; ++h)
              results.store(b, h, i, 1, own.result, dim);
          }
        } else {
          own.whole.add(values, b, value_head, {0, keys});
          T const* const mean = own.whole.mean(keys);
          for (index_t h = group_heads.first; h < group_heads.last; ++h)
            for (index_t i = 0; i < query.extent(1); ++i) results.store(b, h, i, 1, mean, dim);
        }
        for (index_t h = group_heads.first; h < group_heads.last; ++h)
          for (index_t n = 0; n < rows.extent(2); ++n)
            results.store(b, h, rows(b, h, n), 1, &at.seen.out(b, n, h, 0), dim);
      });
}

/// The gradients of probsparse_attention for the rows that were chosen, with the ingredients of the forward call.
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          class... Ingredients>
void probsparse_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<index_t const, 3> rows,
                                   tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                   tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                   Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, DO, DQ, DK, DV>;
  constexpr bool is_causal = (false || ... || std::same_as<Ingredients, causal>);
  detail::check_probsparse<T, is_causal>(query, key, value, rows, "dout", dout, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  index_t const batches = query.extent(0), queries = query.extent(1), heads = query.extent(2),
                value_heads = value.extent(2), dim = query.extent(3), value_dim = value.extent(3),
                keys = key.extent(1), group = heads / std::max<index_t>(value_heads, 1);
  double const factor = detail::scale_of(dim, ingredients...);
  struct layout {
    detail::probsparse_rows<T> at;
    tensor_view<T, 4> dquery, dout;
  };
  layout const own = detail::laid_out<detail::probsparse_memory>([&](arena& memory) {
    index_t const count = rows.extent(2);
    return layout{detail::probsparse_rows<T>(memory, batches, count, heads, dim, value_dim),
                  detail::take_rows<T>(memory, batches, count, heads, dim),
                  detail::take_rows<T>(memory, batches, count, heads, value_dim)};
  });
  detail::attend_chosen<T, is_causal>(own.at, query, key, value, rows, ingredients...);
  source<T> const slopes(dout);
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t n = 0; n < rows.extent(2); ++n)
        slopes.copy(b, h, rows(b, h, n), 1, &own.dout(b, n, h, 0), value_dim);
  detail::with_machine(
      [&](auto const&... machine) {
        attention_backward(own.at.query, key, value, own.at.seen.out, own.at.seen.lse, own.dout,
                           own.dquery, dkey, dvalue, scale{factor}, detail::chosen_ranges(own.at),
                           machine...);
      },
      ingredients...);
  detail::fill_zero(dquery);
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h)
      for (index_t n = 0; n < rows.extent(2); ++n)
        for (index_t d = 0; d < dim; ++d)
          dquery(b, rows(b, h, n), h, d) = convert_element<DQ>(own.dquery(b, n, h, d));

  // Through the mean or the running sums, of the rows that were not chosen.
  if (dvalue.size() == 0) return;
  detail::for_other_rows<T>(
      detail::executor_of(ingredients...), batches, value_heads, value_dim,
      [&](detail::other_rows<T>& mine, index_t b, index_t value_head) {
        auto const add = [&](index_t j, T const* share) {
          detail::add_to_row(&dvalue(b, j, value_head, 0), dvalue.stride(3), share, value_dim,
                             T(1));
        };
        interval const group_heads{value_head * group, (value_head + 1) * group};
        if constexpr (is_causal) {
          for (index_t i = queries; i-- > 0;) {
            for (index_t h = group_heads.first; h < group_heads.last; ++h)
              if (!detail::is_chosen(rows, b, h, i))
                mine.running.add(slopes.rows(b, h, i, 1, mine.row).data);
            mine.running.read(mine.result);
            add(i, mine.result);
          }
        } else {
          for (index_t h = group_heads.first; h < group_heads.last; ++h)
            detail::each_other_run(rows, b, h, queries,
                                   [&](interval run) { mine.whole.add(slopes, b, h, run); });
          T const* const mean = mine.whole.mean(keys);
          for (index_t j = 0; j < keys; ++j) add(j, mean);
        }
      });
}

}  // namespace heed
