#pragma once

#include <heed/mechanism/extra_keys.hpp>
#include <heed/pattern/by_blocks.hpp>

/// Combiner: Full Attention Transformer with Sparse Computation Cost. A query meets some keys directly and all others
/// through summaries of the spans they form, in one softmax. Of a span r
///
///     q_r, k_r = the pooled queries and keys of its members, element by element
///     w_rj = softmax over its members of (scale q_r.k_j),   v_r = sum_j w_rj v_j
///
/// and a query gives k_r the weight it would give a key, and each member its share w_rj of that. This page has the
/// variants over aligned blocks; combiner_axial.hpp those over grids.
namespace heed {

/// How the queries and keys of a span become one. The maximum passes its gradient to the first of the largest.
enum class pooling { max, sum, mean };

namespace detail {

/// Aligned spans of `size` positions each, the last one perhaps shorter: summaries [first, first + count) of a list.
struct span_level {
  index_t size = 0;
  index_t first = 0;
  index_t count = 0;
};

}  // namespace detail

/// The fixed variant: a query meets its own block directly, up to itself if causal, and a summary of every earlier
/// block, or of every other one.
struct combiner_fixed {
  index_t block;
  bool causal = true;
  pooling pool = pooling::max;

  auto direct() const {
    return sliding_window{unbounded, causal ? 0 : unbounded} &
           by_blocks{sliding_window{0, 0}, block};
  }

  /// Summary t is that of block t.
  struct summaries {
    index_t block;
    bool causal;

    constexpr bool keep(index_t row, index_t t) const {
      return t < row / block || (!causal && t > row / block);
    }
    constexpr interval_set keys(interval rows, index_t count) const {
      return interval{0, causal ? std::min(count, (rows.last - 1) / block) : count};
    }
    constexpr coverage cover(interval rows, interval all) const {
      index_t const first = rows.first / block, last = (rows.last - 1) / block;
      bool const before = all.last <= first, behind = all.first > last;
      if (before || (!causal && behind)) return coverage::all;
      return (causal && all.first >= last) || (first == last && all.size() == 1) ? coverage::none
                                                                                 : coverage::some;
    }
  };
  summaries spans(index_t) const { return {block, causal}; }

  static constexpr int levels = 1;
  detail::span_level level(int, index_t rows) const {
    return {block, 0, (rows + block - 1) / block};
  }

  void check() const {
    require(block >= 1, [&] {
      return "combiner_fixed has blocks of " + std::to_string(block) + "; expected at least 1";
    });
  }
};

/// The log-sparse variant, causal: row i meets itself and, if it is odd, the key before it directly; the rest through
/// the aligned spans of 2^l keys that end where i's last l bits become 0, one for each bit l of i. They are the nodes
/// of one tree.
struct combiner_log_sparse {
  pooling pool = pooling::max;

  auto direct() const { return sliding_window{unbounded, 0} & by_blocks{sliding_window{0, 0}, 2}; }

  /// The nodes of 2 keys, then those of 4, and so on.
  struct summaries {
    index_t rows;

    constexpr bool keep(index_t row, index_t t) const {
      index_t size = 2;
      for (; t >= rows / size && size <= rows; size *= 2) t -= rows / size;
      return row / size % 2 == 1 && row / size - 1 == t;
    }
    constexpr interval next_keys(interval met, index_t from, index_t count) const {
      index_t first = 0;  // of the level
      for (index_t size = 2; size <= rows; first += rows / size, size *= 2) {
        // A node is met where its parent's other half begins: nodes are even, and follow one another by two.
        index_t const least = std::max(met.first / size - 1, from - first);
        index_t const node = std::max<index_t>(least + (least & 1), 0);
        if (node < (met.last - 1) / size && first + node < count) {
          interval run{first + node, first + node + 1};
          interval const more = next_keys(met, run.last, count);
          return more.first == run.last && !more.empty() ? interval{run.first, more.last} : run;
        }
      }
      return {};
    }
  };
  summaries spans(index_t rows) const { return {rows}; }

  static constexpr int levels = 24;
  detail::span_level level(int number, index_t rows) const {
    detail::span_level at{2, 0, rows / 2};
    for (int n = 0; n < number; ++n) at = {2 * at.size, at.first + at.count, rows / (2 * at.size)};
    return at;
  }
  void check() const {}
};

namespace detail {

inline workspace& combiner_workspace() {
  thread_local workspace own;
  return own;
}

/// `pooled`(b, t, h) from the positions [first, last) of `all`, element by element.
template <class T, class E>
void pool_span(tensor_view<E, 4> all, pooling how, index_t b, interval members, index_t t,
               tensor_view<T, 4> pooled) {
  for (index_t h = 0; h < pooled.extent(2); ++h)
    for (index_t d = 0; d < pooled.extent(3); ++d) {
      T value = convert_element<T>(all(b, members.first, h, d));
      for (index_t j = members.first + 1; j < members.last; ++j) {
        T const next = convert_element<T>(all(b, j, h, d));
        value = how == pooling::max ? std::max(value, next) : value + next;
      }
      pooled(b, t, h, d) = how == pooling::mean ? value / static_cast<T>(members.size()) : value;
    }
}

/// Adds the gradient of pool_span.
template <class T, class E, class G>
void pool_span_backward(tensor_view<E, 4> all, pooling how, index_t b, interval members, index_t t,
                        tensor_view<T, 4> dpooled, tensor_view<G, 4> gradient) {
  auto const add = [](G& to, T more) { to = convert_element<G>(convert_element<T>(to) + more); };
  for (index_t h = 0; h < dpooled.extent(2); ++h)
    for (index_t d = 0; d < dpooled.extent(3); ++d) {
      T const whole = dpooled(b, t, h, d);
      if (how == pooling::max) {
        index_t largest = members.first;
        for (index_t j = members.first + 1; j < members.last; ++j)
          if (convert_element<T>(all(b, j, h, d)) > convert_element<T>(all(b, largest, h, d)))
            largest = j;
        add(gradient(b, largest, h, d), whole);
      } else {
        T const share = how == pooling::mean ? whole / static_cast<T>(members.size()) : whole;
        for (index_t j = members.first; j < members.last; ++j) add(gradient(b, j, h, d), share);
      }
    }
}

/// Positions [first, first + count * size) of one batch entry as `count` batch entries of `size` positions.
template <class E>
tensor_view<E, 4> as_entries(tensor_view<E, 4> all, index_t b, index_t first, index_t count,
                             index_t size) {
  return {all.data() + b * all.stride(0) + first * all.stride(1),
          {count, size, all.extent(2), all.extent(3)},
          {size * all.stride(1), all.stride(1), all.stride(2), all.stride(3)}};
}
template <class E>
tensor_view<E, 3> as_entries(tensor_view<E, 3> all, index_t b, index_t first, index_t count,
                             index_t size) {
  return {all.data() + b * all.stride(0) + first * all.stride(2),
          {count, all.extent(1), size},
          {size * all.stride(2), all.stride(1), all.stride(2)}};
}

/// The summaries of a call: pooled queries and keys, values, and the lse of the shares.
template <class T>
struct span_summaries {
  tensor_view<T, 4> query, key, value;
  tensor_view<T, 3> lse;

  span_summaries(arena& memory, index_t batches, index_t count, index_t heads, index_t key_heads,
                 index_t dim, index_t value_dim) {
    auto const rows = [&](index_t own_heads, index_t own_dim) {
      return bhnd(memory.take<T>(batches * own_heads * count * own_dim), batches, own_heads, count,
                  own_dim);
    };
    query = rows(heads, dim);
    key = rows(key_heads, dim);
    value = rows(heads, value_dim);
    lse = {memory.take<T>(batches * heads * count), {batches, heads, count}};
  }
};

/// Calls f(level, first span, spans, their size) for the spans of all levels that a sequence has: whole ones
/// together, then a shorter last one.
template <class How, class F>
void each_span_run(How const& how, index_t rows, F f) {
  for (int number = 0; number < How::levels; ++number) {
    span_level const level = how.level(number, rows);
    index_t const whole = std::min(level.count, rows / level.size);
    if (whole > 0) f(level, index_t{0}, whole, level.size);
    if (whole < level.count) f(level, whole, index_t{1}, rows - whole * level.size);
  }
}
template <class How>
index_t count_spans(How const& how, index_t rows) {
  index_t count = 0;
  for (int number = 0; number < How::levels; ++number) count += how.level(number, rows).count;
  return count;
}

inline constexpr auto is_for_summaries = []<class T>() {
  using namespace attend::detail;
  return is_scale.template operator()<T>() || is_executor.template operator()<T>() ||
         is_scratch.template operator()<T>();
};

template <class T, class How, class Q, class K, class V, class... I>
void summarise(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
               tensor_view<V, 4> value, span_summaries<T> const& to, I const&... ingredients) {
  for (index_t b = 0; b < query.extent(0); ++b)
    each_span_run(how, query.extent(1),
                  [&](span_level level, index_t first, index_t count, index_t size) {
                    index_t const t = level.first + first, position = first * level.size;
                    for (index_t n = 0; n < count; ++n) {
                      interval const members{position + n * size, position + (n + 1) * size};
                      pool_span(query, how.pool, b, members, t + n, to.query);
                      pool_span(key, how.pool, b, members, t + n, to.key);
                    }
                    std::apply(
                        [&](auto const&... shared) {
                          attention(as_entries(to.query, b, t, count, 1),
                                    as_entries(key, b, position, count, size),
                                    as_entries(value, b, position, count, size),
                                    as_entries(to.value, b, t, count, 1),
                                    lse_into<T>{as_entries(to.lse, b, t, count, 1)}, shared...);
                        },
                        attend::all_of<is_for_summaries>(ingredients...));
                  });
}

template <class T, class How, class Q, class K, class V, class O, class... I>
void check_combiner(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                    tensor_view<V, 4> value, tensor_view<O, 4> out, I const&... ingredients) {
  static_assert((true && ... &&
                 (is_for_summaries.template operator()<I>() || attend::detail::is_a<I, lse_into>)),
                "heed: combiner_attention takes scale, an executor, scratch and lse_into");
  how.check();
  require(query.extent(1) == key.extent(1), [&] {
    return "query has shape " + shape_text(query.extents()) + ", key " + shape_text(key.extents()) +
           "; expected as many positions, each with a query and a key";
  });
  attend::detail::expect_like("out", out,
                              {query.extent(0), query.extent(1), query.extent(2), value.extent(3)},
                              "query with the head_dim of value");
  std::apply([&](auto const&... shared) { attend::make_problem<T>(query, key, value, shared...); },
             attend::all_of<is_for_summaries>(ingredients...));
}

}  // namespace detail

/// Attention over keys and summaries. `how` is combiner_fixed or combiner_log_sparse.
///
///   query, key, value, out   as in attention(), with as many queries as keys
///
/// Ingredients: scale, an executor, scratch, lse_into.
template <class How, element Q, element K, element V, element O, class... Ingredients>
void combiner_attention(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                        tensor_view<V, 4> value, tensor_view<O, 4> out,
                        Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_combiner<T>(how, query, key, value, out, ingredients...);
  index_t const rows = query.extent(1), count = detail::count_spans(how, rows);
  auto const lay_out = [&](arena& memory) {
    return detail::span_summaries<T>(memory, query.extent(0), count, query.extent(2), key.extent(2),
                                     query.extent(3), value.extent(3));
  };
  arena size;
  lay_out(size);
  arena memory(detail::combiner_workspace().reserve(size.used()));
  auto const summaries = lay_out(memory);
  detail::summarise(how, query, key, value, summaries, ingredients...);
  attention_with_extra_keys(query, key, value,
                            extra_keys(summaries.key, summaries.value, how.spans(rows)), out,
                            how.direct(), ingredients...);
}

/// The gradients of combiner_attention from its saved out and lse, with the ingredients of the forward call. There is
/// none of scale.
template <class How, element Q, element K, element V, element O, class L, element DO, element DQ,
          element DK, element DV, class... Ingredients>
void combiner_attention_backward(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                 tensor_view<V, 4> value, tensor_view<O, 4> out,
                                 tensor_view<L, 3> lse, tensor_view<DO, 4> dout,
                                 tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                 tensor_view<DV, 4> dvalue, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_combiner<T>(how, query, key, value, out, ingredients...);
  index_t const rows = query.extent(1), count = detail::count_spans(how, rows);
  struct layout {
    detail::span_summaries<T> summaries, gradients;
    tensor_view<T, 4> dkey, dvalue;
  };
  auto const lay_out = [&](arena& memory) {
    auto const spans = [&] {
      return detail::span_summaries<T>(memory, query.extent(0), count, query.extent(2),
                                       key.extent(2), query.extent(3), value.extent(3));
    };
    auto const like = [&](auto const& view) {
      return tensor_view<T, 4>(memory.take<T>(rows * view.extent(2) * view.extent(3)),
                               {1, rows, view.extent(2), view.extent(3)});
    };
    return layout{spans(), spans(), like(key), like(value)};
  };
  arena size;
  lay_out(size);
  arena memory(detail::combiner_workspace().reserve(size.used()));
  layout const at = lay_out(memory);
  detail::summarise(how, query, key, value, at.summaries, ingredients...);
  attention_with_extra_keys_backward(
      query, key, value, extra_keys(at.summaries.key, at.summaries.value, how.spans(rows)), out,
      lse, dout, dquery, dkey, dvalue, at.gradients.key, at.gradients.value, how.direct(),
      ingredients...);

  // Through the shares to the members, and through the pooled queries and keys.
  for (index_t b = 0; b < query.extent(0); ++b)
    detail::each_span_run(
        how, rows, [&](detail::span_level level, index_t first, index_t spans, index_t span) {
          using detail::as_entries;
          index_t const t = level.first + first, position = first * level.size;
          std::apply(
              [&](auto const&... shared) {
                attention_backward(as_entries(at.summaries.query, b, t, spans, 1),
                                   as_entries(key, b, position, spans, span),
                                   as_entries(value, b, position, spans, span),
                                   as_entries(at.summaries.value, b, t, spans, 1),
                                   as_entries(at.summaries.lse, b, t, spans, 1),
                                   as_entries(at.gradients.value, b, t, spans, 1),
                                   as_entries(at.gradients.query, b, t, spans, 1),
                                   as_entries(at.dkey, 0, position, spans, span),
                                   as_entries(at.dvalue, 0, position, spans, span), shared...);
              },
              attend::all_of<detail::is_for_summaries>(ingredients...));
          index_t const members = spans * span;
          detail::add_to(dkey.slice(0, b, 1).slice(1, position, members),
                         at.dkey.slice(1, position, members));
          detail::add_to(dvalue.slice(0, b, 1).slice(1, position, members),
                         at.dvalue.slice(1, position, members));
          for (index_t n = 0; n < spans; ++n) {
            interval const own{position + n * span, position + (n + 1) * span};
            detail::pool_span_backward(query, how.pool, b, own, t + n, at.gradients.query, dquery);
            detail::pool_span_backward(key, how.pool, b, own, t + n, at.gradients.key, dkey);
          }
        });
}

}  // namespace heed
