#pragma once

#include <heed/mechanism/combiner_grid.hpp>

/// Combiner on grids, forward and backward: plain attention over the rows and columns of a grid, through views with other
/// strides, and the parts merged.
namespace heed {

namespace detail {

/// Tensors of one batch entry.
template <class T>
struct grid_tensors {
  tensor_view<T, 4> query, key, value;
  tensor_view<T, 3> lse;

  /// With as many heads and as large as these; the lse is that of `query`.
  template <class Q, class K, class V>
  grid_tensors(arena& memory, tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v) {
    query = take(memory, q.extent(2), q.extent(1), q.extent(3));
    key = take(memory, k.extent(2), q.extent(1), k.extent(3));
    value = take(memory, v.extent(2), q.extent(1), v.extent(3));
    lse = {memory.take<T>(q.extent(2) * q.extent(1)), {1, q.extent(2), q.extent(1)}};
  }
  static tensor_view<T, 4> take(arena& memory, index_t heads, index_t rows, index_t dim) {
    return bhnd(memory.take<T>(heads * rows * dim), 1, heads, rows, dim);
  }
};

/// A call with one batch entry, and the summaries of one part at a time.
template <class T, class Q, class K, class V, class... Shared>
class grid_call {
 public:
  grid_call(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
            tensor_view<V, 4> value, arena& memory, std::tuple<Shared...> const& shared)
      : grid_(grid),
        query_(query),
        key_(key),
        value_(value),
        shared_(shared),
        summary_(memory, query, like_summaries(key, has_sums()), like_summaries(value, true)) {}

 protected:
  /// Keys that are pooled have the heads of keys; other summaries those of queries.
  template <class E>
  tensor_view<E, 4> like_summaries(tensor_view<E, 4> view, bool for_query_heads) const {
    return {
        view.data(),
        {1, view.extent(1), for_query_heads ? query_.extent(2) : view.extent(2), view.extent(3)}};
  }
  bool has_members() const { return grid_.axis == combiner_axis::row_major; }
  bool has_sums() const { return has_members() && grid_.key == summary_key::weighted_sum; }

  void summarise(grid_lines const& spans) {
    lse_into<T> const lse{spans(summary_.lse)};
    if (has_members()) {
      attend(spans(query_), spans(key_), spans(value_), spans(summary_.value), dense{}, lse);
      if (has_sums()) attend(spans(query_), spans(key_), spans(key_), spans(summary_.key), dense{});
      return;
    }
    pool_prefixes(spans(query_), grid_.pool, spans(summary_.query));
    pool_prefixes(spans(key_), grid_.pool, spans(summary_.key));
    attend(spans(summary_.query), spans(key_), spans(value_), spans(summary_.value), causal{}, lse);
  }

  template <class A, class B, class C, class... I>
  void attend(tensor_view<A, 4> query, tensor_view<B, 4> key, tensor_view<C, 4> value,
              tensor_view<T, 4> out, I const&... ingredients) const {
    std::apply(
        [&](auto const&... shared) {
          attention(tensor_view<A const, 4>(query), tensor_view<B const, 4>(key),
                    tensor_view<C const, 4>(value), out, ingredients..., shared...);
        },
        shared_);
  }

  combiner_grid const& grid_;
  tensor_view<Q, 4> query_;
  tensor_view<K, 4> key_;
  tensor_view<V, 4> value_;
  std::tuple<Shared...> const& shared_;
  grid_tensors<T> summary_;
};

/// The parts of the result, merged as they come.
template <class T, class Q, class K, class V, class... Shared>
class grid_forward : grid_call<T, Q, K, V, Shared...> {
 public:
  grid_forward(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
               tensor_view<V, 4> value, arena& memory, std::tuple<Shared...> const& shared)
      : grid_call<T, Q, K, V, Shared...>(grid, query, key, value, memory, shared) {
    index_t const heads = query.extent(2), rows = query.extent(1);
    for (auto* each : {&whole, &part_})
      *each = {grid_tensors<T>::take(memory, heads, rows, value.extent(3)),
               {memory.take<T>(heads * rows), {1, heads, rows}}};
  }

  partial_attention<T> whole;

  template <class Pattern>
  void direct(grid_lines const& queries, grid_lines const& keys, Pattern const& pattern) {
    add(queries, keys(this->key_), keys(this->value_), pattern);
  }
  template <class Pattern>
  void summarised(grid_lines const& spans, grid_lines const& queries, grid_lines const& summaries,
                  Pattern const& pattern) {
    this->summarise(spans);
    auto const values = summaries(this->summary_.value);
    if (this->has_members() && !this->has_sums())
      add(queries, summaries(this->key_), values, pattern);
    else
      add(queries, summaries(this->summary_.key), values, pattern);
  }

 private:
  template <class Key, class Value, class Pattern>
  void add(grid_lines const& queries, Key const& key, Value const& value, Pattern const& pattern) {
    partial_attention<T> const all{queries(whole.out), queries(whole.lse)},
        part{queries(part_.out), queries(part_.lse)};
    partial_attention<T> const& to = is_first_ ? all : part;
    this->attend(queries(this->query_), key, value, to.out, pattern, lse_into<T>{to.lse});
    if (!is_first_) merge_attention(std::array{all, part}, all.out, all.lse);
    is_first_ = false;
  }

  partial_attention<T> part_;
  bool is_first_ = true;
};

/// The gradients of each part with the result of all, and through its summaries, added up.
template <class T, class Q, class K, class V, class O, class L, class DO, class... Shared>
class grid_backward : grid_call<T, Q, K, V, Shared...> {
 public:
  grid_backward(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                tensor_view<V, 4> value, tensor_view<O, 4> out, tensor_view<L, 3> lse,
                tensor_view<DO, 4> dout, arena& memory, std::tuple<Shared...> const& shared)
      : grid_call<T, Q, K, V, Shared...>(grid, query, key, value, memory, shared),
        gradient(memory, query, key, value),
        out_(out),
        lse_(lse),
        dout_(dout),
        part_(memory, query, key, value),
        dsummary_(memory, query, this->summary_.key, this->summary_.value) {
    if (memory.measuring()) return;
    for (auto const& sum : {gradient.query, gradient.key, gradient.value}) clear(sum);
  }

  grid_tensors<T> gradient;  // of query, key and value

  template <class Pattern>
  void direct(grid_lines const& queries, grid_lines const& keys, Pattern const& pattern) {
    differentiate(queries, keys(this->key_), keys(this->value_), keys(part_.key), keys(part_.value),
                  pattern);
    add_to(keys(gradient.key), keys(part_.key));
    add_to(keys(gradient.value), keys(part_.value));
  }
  template <class Pattern>
  void summarised(grid_lines const& spans, grid_lines const& queries, grid_lines const& summaries,
                  Pattern const& pattern) {
    this->summarise(spans);
    clear(dsummary_.key);  // some summaries are met by none
    clear(dsummary_.value);
    auto const values = summaries(this->summary_.value), dvalues = summaries(dsummary_.value);
    if (this->has_members() && !this->has_sums()) {
      differentiate(queries, summaries(this->key_), values, summaries(part_.key), dvalues, pattern);
      add_to(summaries(gradient.key), summaries(part_.key));
    } else {
      differentiate(queries, summaries(this->summary_.key), values, summaries(dsummary_.key),
                    dvalues, pattern);
    }
    if (this->has_members())
      through_members(spans);
    else
      through_pools(spans);
  }

 private:
  template <class A, class B, class Pattern>
  void differentiate(grid_lines const& queries, tensor_view<A, 4> key, tensor_view<B, 4> value,
                     tensor_view<T, 4> dkey, tensor_view<T, 4> dvalue, Pattern const& pattern) {
    backward(queries(this->query_), key, value, queries(out_), queries(lse_), queries(dout_),
             queries(part_.query), dkey, dvalue, pattern);
    add_to(queries(gradient.query), queries(part_.query));
  }

  void through_members(grid_lines const& spans) {
    auto const query = spans(this->query_);
    auto const key = spans(this->key_);
    auto const lse = spans(this->summary_.lse);
    auto const add = [&](tensor_view<T, 4> to, tensor_view<T, 4> more) {
      add_to(spans(to), spans(more));
    };
    backward(query, key, spans(this->value_), spans(this->summary_.value), lse,
             spans(dsummary_.value), spans(part_.query), spans(part_.key), spans(part_.value),
             dense{});
    add(gradient.query, part_.query);
    add(gradient.key, part_.key);
    add(gradient.value, part_.value);
    if (!this->has_sums()) return;
    // Keys are the values too. There are no pooled queries, so their room is free.
    auto const as_values = dsummary_.query.slice(2, 0, this->key_.extent(2));
    backward(query, key, key, spans(this->summary_.key), lse, spans(dsummary_.key),
             spans(part_.query), spans(part_.key), spans(as_values), dense{});
    add(gradient.query, part_.query);
    add(gradient.key, part_.key);
    add(gradient.key, as_values);
  }

  void through_pools(grid_lines const& spans) {
    backward(spans(this->summary_.query), spans(this->key_), spans(this->value_),
             spans(this->summary_.value), spans(this->summary_.lse), spans(dsummary_.value),
             spans(dsummary_.query), spans(part_.key), spans(part_.value), causal{});
    add_to(spans(gradient.key), spans(part_.key));
    add_to(spans(gradient.value), spans(part_.value));
    auto const how = this->grid_.pool;
    pool_prefixes_backward(spans(this->query_), how, spans(dsummary_.query), spans(gradient.query));
    pool_prefixes_backward(spans(this->key_), how, spans(dsummary_.key), spans(gradient.key));
  }

  template <class A, class B, class C, class R, class M, class D, class Pattern>
  void backward(tensor_view<A, 4> query, tensor_view<B, 4> key, tensor_view<C, 4> value,
                tensor_view<R, 4> out, tensor_view<M, 3> lse, tensor_view<D, 4> dout,
                tensor_view<T, 4> dquery, tensor_view<T, 4> dkey, tensor_view<T, 4> dvalue,
                Pattern const& pattern) {
    std::apply(
        [&](auto const&... shared) {
          attention_backward(tensor_view<A const, 4>(query), tensor_view<B const, 4>(key),
                             tensor_view<C const, 4>(value), tensor_view<R const, 4>(out),
                             tensor_view<M const, 3>(lse), tensor_view<D const, 4>(dout), dquery,
                             dkey, dvalue, pattern, shared...);
        },
        this->shared_);
  }

  static void clear(tensor_view<T, 4> view) { std::fill_n(view.data(), view.size(), T(0)); }

  tensor_view<O, 4> out_;
  tensor_view<L, 3> lse_;
  tensor_view<DO, 4> dout_;
  grid_tensors<T> part_, dsummary_;
};

template <class T, class Q, class K, class V, class O, class... I>
void check_grid(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                tensor_view<V, 4> value, tensor_view<O, 4> out, I const&... ingredients) {
  check_combiner<T>(grid, query, key, value, out, ingredients...);
  require(query.extent(1) == grid.rows * grid.columns, [&] {
    return "query has shape " + shape_text(query.extents()) + "; expected " +
           std::to_string(grid.rows * grid.columns) + " positions, those of the grid";
  });
}

/// Calls f(b, make(b, memory)) for each of a number of batch entries, in memory of the calling thread.
template <class Make, class F>
void each_grid_entry(index_t batches, Make make, F f) {
  arena size;
  if (batches > 0) make(index_t{0}, size);
  std::byte* const memory = combiner_workspace().reserve(size.used());
  for (index_t b = 0; b < batches; ++b) {
    arena taken(memory);
    f(b, make(b, taken));
  }
}

}  // namespace detail

/// Attention over the keys and summaries of a grid; see combiner_axis.
///
///   query, key, value, out   as in attention(), with a query and a key for each of rows * columns positions
///
/// Ingredients: scale, an executor, scratch, lse_into. Memory of the size of one batch entry belongs to the calling
/// thread.
template <element Q, element K, element V, element O, class... Ingredients>
void combiner_attention(combiner_grid const& grid, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                        tensor_view<V, 4> value, tensor_view<O, 4> out,
                        Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_grid<T>(grid, query, key, value, out, ingredients...);
  if (out.size() == 0) return;
  auto const lse = attend::one_of<detail::is_lse_into>(lse_into<T>{}, ingredients...).out;
  auto const shared = attend::all_of<detail::is_for_summaries>(ingredients...);
  auto const work_on = [&]<class... I>(std::tuple<I...> const& own, index_t b, arena& memory) {
    return detail::grid_forward<T, Q, K, V, I...>(grid, query.slice(0, b, 1), key.slice(0, b, 1),
                                                  value.slice(0, b, 1), memory, own);
  };
  detail::each_grid_entry(
      query.extent(0), [&](index_t b, arena& memory) { return work_on(shared, b, memory); },
      [&](index_t b, auto work) {
        detail::each_grid_part(grid, work);
        merge_attention(std::array{work.whole}, out.slice(0, b, 1),
                        lse.data() == nullptr ? lse : lse.slice(0, b, 1));
      });
}

/// The gradients of that from its saved out and lse, with the ingredients of the forward call. There is none of scale.
template <element Q, element K, element V, element O, class L, element DO, element DQ, element DK,
          element DV, class... Ingredients>
void combiner_attention_backward(combiner_grid const& grid, tensor_view<Q, 4> query,
                                 tensor_view<K, 4> key, tensor_view<V, 4> value,
                                 tensor_view<O, 4> out, tensor_view<L, 3> lse,
                                 tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                                 tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                                 Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O>;
  detail::check_grid<T>(grid, query, key, value, out, ingredients...);
  attend::check_gradients(query, key, value, dquery, dkey, dvalue);
  detail::require_lse(lse.extents(), "lse", out.extents());
  attend::detail::expect_like("dout", dout, out.extents(), "out");
  auto const shared = attend::all_of<detail::is_for_summaries>(ingredients...);
  auto const work_on = [&]<class... I>(std::tuple<I...> const& own, index_t b, arena& memory) {
    auto const entry = [&](auto view) { return view.slice(0, b, 1); };
    return detail::grid_backward<T, Q, K, V, O, L, DO, I...>(grid, entry(query), entry(key),
                                                             entry(value), entry(out), entry(lse),
                                                             entry(dout), memory, own);
  };
  detail::each_grid_entry(
      query.extent(0), [&](index_t b, arena& memory) { return work_on(shared, b, memory); },
      [&](index_t b, auto work) {
        detail::each_grid_part(grid, work);
        copy_elements(work.gradient.query, dquery.slice(0, b, 1));
        copy_elements(work.gradient.key, dkey.slice(0, b, 1));
        copy_elements(work.gradient.value, dvalue.slice(0, b, 1));
      });
}

}  // namespace heed
