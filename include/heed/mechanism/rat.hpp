#pragma once

#include <heed/recur/chunk_averages.hpp>

/// RAT: Bridging RNN Efficiency and Attention Accuracy via Chunk-based Sequence Modeling.
///
/// Inside a chunk of `size` tokens a gated average of keys and of values, which starts anew with each chunk; between chunks
/// softmax attention to the averages that the earlier chunks ended with, and to the running one of the own chunk:
///
///     k~_t = g_t k~_(t-1) + (1 - g_t) k_t,   v~ alike,   out_t = z_t softmax(D^-1/2 q_t . k~)(v~)
///
/// with rotary positions on q and k~ at the number of the chunk. One average is a row for L tokens: the cache of decoding is
/// L times smaller than that of attention.
namespace heed {

/// What a sequence carries on, in the caller's memory, float or double: the averages that chunks ended with, of keys
/// rotated, the last row being that of the chunk that runs; the running average of keys as it is; and how many tokens
/// there were.
template <class T>
struct rat_cache {
  tensor_view<T, 4> keys;     // [batch, chunks, heads, dim]
  tensor_view<T, 4> values;   // the same
  tensor_view<T, 4> running;  // [batch, 1, heads, dim]
  index_t tokens = 0;
};
template <class T>
rat_cache(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>) -> rat_cache<T>;
template <class T>
rat_cache(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>, index_t) -> rat_cache<T>;

/// Where the backward pass writes d loss / d what the cache held when a call began; shaped like it.
template <class T>
struct rat_cache_gradient {
  tensor_view<T, 4> keys, values, running;
};
template <class T>
rat_cache_gradient(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>)
    -> rat_cache_gradient<T>;

/// For the backward pass, d loss / d what the cache held when a call ended; shaped like it.
template <class T>
struct rat_final_gradient {
  tensor_view<T, 4> keys, values, running;
};
template <class T>
rat_final_gradient(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>)
    -> rat_final_gradient<T>;

namespace detail {

inline constexpr auto is_rat_cache = []<class T>() { return is_a<T, rat_cache>; };
inline constexpr auto is_rat_gradient = []<class T>() { return is_a<T, rat_cache_gradient>; };
inline constexpr auto is_rat_final = []<class T>() { return is_a<T, rat_final_gradient>; };

inline void check_rat_size(index_t size) {
  require(size > 0, [&] {
    return "chunks have " + std::to_string(size) + " positions; expected at least 1";
  });
}

/// The chunks of a call that goes on after `tokens`.
template <class Q, class... I>
recur::chunk_places rat_chunks(tensor_view<Q, 4> q, index_t size, index_t tokens,
                               I const&... ingredients) {
  static_assert(
      (true && ... &&
       (recur::detail::is_executor.template operator()<I>() || std::same_as<I, documents> ||
        is_rat_cache.template operator()<I>() || is_rat_gradient.template operator()<I>() ||
        is_rat_final.template operator()<I>())),
      "heed: this is no ingredient of rat: expected documents or an executor, and for its "
      "gradients "
      "rat_cache, rat_cache_gradient or rat_final_gradient");
  check_rat_size(size);
  auto const sequences = recur::sequences_among(q.extents(), q.extents(), ingredients...);
  auto const& packed = sequences.packed;
  require(std::equal(packed.queries.begin(), packed.queries.end(), packed.keys.begin(),
                     packed.keys.end()),
          [] {
            return std::string(
                "documents.queries and documents.keys differ; rat expects the same offsets twice");
          });
  return {sequences, size, tokens};
}

/// Whether a cache, or a gradient by it, has room for some chunks.
template <class Cache, class Q>
void check_rat_cache(char const* name, Cache const& cache, tensor_view<Q, 4> q, index_t chunks) {
  auto const holds = [&](char const* part, auto const& view, index_t least) {
    auto const& e = view.extents();
    require(e[0] == q.extent(0) && e[1] >= least && e[2] == q.extent(2) && e[3] == q.extent(3),
            [&] {
              return std::string(name) + part + " has shape " + shape_text(e) + "; expected [" +
                     std::to_string(q.extent(0)) + ", at least " + std::to_string(least) + ", " +
                     std::to_string(q.extent(2)) + ", " + std::to_string(q.extent(3)) +
                     "] (batch, chunk, head, dim)";
            });
  };
  holds(".keys", cache.keys, chunks);
  holds(".values", cache.values, chunks);
  holds(".running", cache.running, 1);
}

struct rat_page;

template <class E>
void clear_rows(tensor_view<E, 4> all) {
  E const zero{};
  copy_elements(tensor_view<E const, 4>(&zero, all.extents(), {0, 0, 0, 0}), all);
}

/// What row 0 goes on from.
template <class T, class S>
typename recur::chunk_averages<T>::running rat_running(rat_cache<S> const& cache, index_t size) {
  if (cache.tokens % size == 0) return {};
  return {source<T>(cache.running), source<T>(cache.values.slice(1, cache.tokens / size, 1))};
}

}  // namespace detail

/// RAT over a sequence.
///
///   q, out         [batch, N, heads, dim], dim even
///   k, v           [batch, N, key heads or value heads, dim], which divide heads
///   forget, gate   [batch, N, heads, dim]: g and z, in [0, 1]
///   size           tokens of a chunk; N need not be a multiple
///
/// Ingredients: documents (the same offsets twice), an executor. Elements are double, float, half or bfloat16. Takes scratch of
/// some times the size of q. The same bits for every executor.
template <element Q, element K, element V, element G, element Z, element O, class... Ingredients>
void rat(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v, tensor_view<G, 4> forget,
         tensor_view<Z, 4> gate, tensor_view<O, 4> out, index_t size,
         Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, Z, O>;
  auto const runs = recur::executor_of(ingredients...);
  recur::chunk_averages<T> call(q, k, v, forget, gate, "out", out,
                                detail::rat_chunks(q, size, 0, ingredients...), any_executor(runs));
  detail::expect_distinct_elements("out", out);
  auto const ends = recur::page_tensors<detail::rat_page, T>(call.ends_shape(), call.ends_shape());
  call.attend(forget, {}, ends[0], ends[1]);
  call.gate(sink<T>(out));
}

/// A part of a sequence, which goes on from the cache and leaves there what it ends with: the prompt before rat_step. Throws
/// heed::error when the cache has no room for its chunks.
template <element Q, element K, element V, element G, element Z, element O, class S,
          class Executor = serial>
void rat(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v, tensor_view<G, 4> forget,
         tensor_view<Z, 4> gate, tensor_view<O, 4> out, rat_cache<S>& cache, index_t size,
         Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, G, Z, O, S>;
  auto const chunks = detail::rat_chunks(q, size, cache.tokens);
  recur::chunk_averages<T> call(q, k, v, forget, gate, "out", out, chunks, any_executor(run_on));
  detail::expect_distinct_elements("out", out);
  detail::check_rat_cache("rat_cache", cache, q, chunks.most_chunks());
  if (q.extent(1) == 0) return;
  index_t const ends = chunks.ends();
  call.attend(forget, detail::rat_running<T>(cache, size), cache.keys.slice(1, 0, ends),
              cache.values.slice(1, 0, ends));
  call.store_last(sink<T>(cache.keys.slice(1, ends, 1)), sink<T>(cache.values.slice(1, ends, 1)),
                  sink<T>(cache.running));
  call.gate(sink<T>(out));
  cache.tokens += q.extent(1);
}

/// The gradients of rat, shaped like its operands. The forward pass is made again. Ingredients: those of rat; the rat_cache that the
/// call began with, its rows as they were, rat_cache_gradient, which receives its gradient, and rat_final_gradient.
template <element Q, element K, element V, element G, element Z, element DO, element DQ, element DK,
          element DV, element DG, element DZ, class... Ingredients>
void rat_backward(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v,
                  tensor_view<G, 4> forget, tensor_view<Z, 4> gate, tensor_view<DO, 4> dout,
                  tensor_view<DQ, 4> dq, tensor_view<DK, 4> dk, tensor_view<DV, 4> dv,
                  tensor_view<DG, 4> dforget, tensor_view<DZ, 4> dgate, index_t size,
                  Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, Z, DO>;
  auto const fits = [](char const* name, auto const& view, auto const& like, char const* what) {
    detail::expect_like(name, view, like.extents(), what);
    detail::expect_memory(name, view);
    detail::expect_distinct_elements(name, view);
  };
  fits("dq", dq, q, "q");
  fits("dk", dk, k, "k");
  fits("dv", dv, v, "v");
  fits("dforget", dforget, forget, "forget");
  fits("dgate", dgate, gate, "gate");
  auto const runs = recur::executor_of(ingredients...);
  auto const begun = one_of<detail::is_rat_cache>(rat_cache<T>{}, ingredients...);
  auto const to = one_of<detail::is_rat_gradient>(rat_cache_gradient<T>{}, ingredients...);
  auto const after = one_of<detail::is_rat_final>(rat_final_gradient<T>{}, ingredients...);
  auto const chunks = detail::rat_chunks(q, size, begun.tokens, ingredients...);
  require(begun.tokens == 0 || (!chunks.is_packed() && q.extent(1) > 0), [] {
    return std::string("a rat_cache with documents or without a token; expected one sequence");
  });
  recur::chunk_averages<T> call(q, k, v, forget, gate, "dout", dout, chunks, any_executor(runs));
  index_t const held = begun.tokens / size, ends = chunks.ends();
  if (begun.tokens > 0)
    detail::check_rat_cache("rat_cache", begun, q, held + (chunks.goes_on() ? 1 : 0));
  bool const has_gradient = to.keys.data() != nullptr, has_final = after.keys.data() != nullptr;
  if (has_gradient)
    detail::check_rat_cache("rat_cache_gradient", to, q, held + (chunks.goes_on() ? 1 : 0));
  if (has_final) detail::check_rat_cache("rat_final_gradient", after, q, chunks.most_chunks());
  auto const row = recur::tensor_shape{q.extent(0), 1, q.extent(2), q.extent(3)};
  auto const t = recur::page_tensors<detail::rat_page, T>(call.ends_shape(), call.ends_shape(),
                                                          call.ends_shape(), call.ends_shape(), row,
                                                          row, row, row, row);
  auto const &end_keys = t[0], &end_values = t[1], &dend_keys = t[2], &dend_values = t[3];
  typename recur::chunk_averages<T>::carried by{{}, {}, {}, t[7], t[8]};
  copy_elements(begun.keys.slice(1, 0, held), end_keys.slice(1, 0, held));
  copy_elements(begun.values.slice(1, 0, held), end_values.slice(1, 0, held));
  detail::clear_rows(dend_keys);
  detail::clear_rows(dend_values);
  if (has_final) {
    copy_elements(after.keys.slice(1, 0, ends), dend_keys);
    copy_elements(after.values.slice(1, 0, ends), dend_values);
    by.last_keys = t[4], by.last_values = t[5], by.last_running = t[6];
    copy_elements(after.keys.slice(1, ends, 1), by.last_keys);
    copy_elements(after.values.slice(1, ends, 1), by.last_values);
    copy_elements(after.running, by.last_running);
  }
  call.attend(forget, detail::rat_running<T>(begun, size), end_keys, end_values);
  call.differentiate(forget, source<T>(dout), end_keys, end_values, dend_keys, dend_values, by,
                     sink<T>(dq), sink<T>(dk), sink<T>(dv), sink<T>(dforget), sink<T>(dgate));
  if (!has_gradient) return;
  for (auto const& each : {to.keys, to.values, to.running}) detail::clear_rows(each);
  copy_elements(dend_keys.slice(1, 0, held), to.keys.slice(1, 0, held));
  copy_elements(dend_values.slice(1, 0, held), to.values.slice(1, 0, held));
  if (!chunks.goes_on()) return;
  copy_elements(by.first_keys, to.running);
  copy_elements(by.first_values, to.values.slice(1, held, 1));
}

/// The next token: its tensors have one position. Throws heed::error when the cache has no room for another chunk.
template <element Q, element K, element V, element G, element Z, element O, class S,
          class Executor = serial>
void rat_step(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v,
              tensor_view<G, 4> forget, tensor_view<Z, 4> gate, tensor_view<O, 4> out,
              rat_cache<S>& cache, index_t size, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, G, Z, O, S>;
  recur::chunk_averages<T> call(q, k, v, forget, gate, "out", out,
                                detail::rat_chunks(q, size, cache.tokens), any_executor(run_on));
  require(q.extent(1) == 1, [&] {
    return "q has shape " + shape_text(q.extents()) + "; expected 1 position, that of a step";
  });
  index_t const chunk = cache.tokens / size;
  detail::check_rat_cache("rat_cache", cache, q, chunk + 1);
  struct page {};
  auto const own = recur::page_tensors<page, T>(q.extents(), q.extents());
  tensor_view<T, 4> const query = own[0], result = own[1];
  bool const fresh = cache.tokens % size == 0;
  // average <- g average + (1 - g) x.
  auto const average = [&](tensor_view<S, 4> to, index_t row, auto const& x) {
    for (index_t b = 0; b < to.extent(0); ++b)
      for (index_t h = 0; h < to.extent(2); ++h)
        for (index_t d = 0; d < to.extent(3); ++d) {
          T const g = convert_element<T>(forget(b, 0, h, d));
          T const before = fresh ? T(0) : static_cast<T>(to(b, row, h, d));
          T const now = convert_element<T>(x(b, 0, h * x.extent(2) / to.extent(2), d));
          to(b, row, h, d) = static_cast<S>(std::fma(g, before, std::fma(-g, now, now)));
        }
  };
  average(cache.running, 0, k);
  average(cache.values, chunk, v);
  rotate(rotary{}, q, query, chunk);
  rotate(rotary{}, cache.running, cache.keys.slice(1, chunk, 1), chunk);
  ++cache.tokens;
  attention(query, cache.keys.slice(1, 0, chunk + 1), cache.values.slice(1, 0, chunk + 1), result,
            call.factor(q.extent(3)), run_on);
  call.result = result;
  call.gate(sink<T>(out));
}

}  // namespace heed
