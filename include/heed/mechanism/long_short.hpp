#pragma once

#include <heed/cache/kv_cache.hpp>
#include <heed/cache/ring_cache.hpp>
#include <heed/mechanism/attention_calls.hpp>
#include <heed/mechanism/extra_keys.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/recur/compress_positions.hpp>
#include <heed/recur/layer_norm.hpp>

/// Long-Short Transformer: Efficient Transformers for Language and Vision, as in CAB: one softmax over the keys nearby and over a
/// few rows to which all keys, or all keys of earlier chunks, are compressed. In its layer keys and values pass through one
/// LayerNorm over the model's width, and the compressed rows through another one:
///
///     normalise_tokens(k, of_tokens, k);          normalise_tokens(v, of_tokens, v);
///     compress_positions(logits, k, v, length, ck, cv);                // logits = X W_p, the caller's
///     normalise_tokens(ck, of_rows, normal_ck);   normalise_tokens(cv, of_rows, normal_cv);
///     long_short_attention(how, q, k, v, normal_ck, normal_cv, out);
///
/// Early rows meet what there is: neither padding of the window nor an empty chunk takes part. Terms for positions are a score
/// modifier.
namespace heed {

/// Blocks of `window` queries; each meets its block's keys and max(1, window / 2) more on each side.
struct block_neighbours : detail::interval_rows<block_neighbours> {
  index_t window;

  explicit constexpr block_neighbours(index_t size) : window(size) {}
  interval row(index_t query) const {
    index_t const first = query / window * window, more = std::max<index_t>(1, window / 2);
    return {first - more, first + window + more};
  }
  void check(call_shape const&) const {
    require(window > 0, [&] {
      return "block_neighbours has blocks of " + std::to_string(window) + "; expected at least 1";
    });
  }
};

/// Of compressed keys, `rows` for each chunk of `length` positions, those of the chunks before the query's own.
struct chunks_before : detail::interval_rows<chunks_before> {
  index_t length, rows;

  constexpr chunks_before(index_t chunk_length, index_t rows_of_chunk)
      : length(chunk_length), rows(rows_of_chunk) {}
  interval row(index_t query) const { return {0, query / length * rows}; }
  void check(call_shape const&) const {
    require(length > 0 && rows >= 0, [&] {
      return "chunks_before has " + std::to_string(rows) + " rows for every " +
             std::to_string(length) + " positions; expected at least 0, and 1";
    });
  }
};

/// Not causal: all compressed rows, and the keys of block_neighbours.
struct long_short {
  index_t window;

  block_neighbours near() const { return block_neighbours(window); }
  template <class K, class V>
  auto compressed(tensor_view<K, 4> key, tensor_view<V, 4> value) const {
    return extra_keys(key, value);
  }
  void check(index_t, index_t) const { near().check({}); }
};

/// Causal: the last `window` keys, and of every chunk of `length` positions before the row's own the `rows` compressed ones.
struct causal_long_short {
  index_t window, length, rows;

  sliding_window near() const { return {window - 1, 0}; }
  template <class K, class V>
  auto compressed(tensor_view<K, 4> key, tensor_view<V, 4> value) const {
    return extra_keys(key, value, chunks_before(length, rows));
  }
  void check(index_t positions, index_t compressed_rows) const {
    chunks_before(length, rows).check({});
    require(window > 0, [&] {
      return "causal_long_short has a window of " + std::to_string(window) +
             "; expected at least 1";
    });
    require(compressed_rows == positions / length * rows, [&] {
      return "there are " + std::to_string(compressed_rows) + " compressed rows; expected " +
             std::to_string(positions / length * rows) + ", " + std::to_string(rows) +
             " for each whole chunk of " + std::to_string(length) + " of " +
             std::to_string(positions) + " positions";
    });
  }
};

namespace detail {

template <class How, class Q, class K, class C>
void check_long_short(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                      tensor_view<C, 4> compressed_key) {
  require(query.extent(1) == key.extent(1), [&] {
    return "query has shape " + shape_text(query.extents()) + ", key " + shape_text(key.extents()) +
           "; expected as many positions, those of one sequence";
  });
  how.check(key.extent(1), compressed_key.extent(1));
}

}  // namespace detail

/// Attention to near keys and compressed rows. `how` is long_short or causal_long_short; everything else as in
/// attention_with_extra_keys, without a pattern and positions.
template <class How, element Q, element K, element V, element CK, element CV, element O,
          class... Ingredients>
void long_short_attention(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                          tensor_view<V, 4> value, tensor_view<CK, 4> compressed_key,
                          tensor_view<CV, 4> compressed_value, tensor_view<O, 4> out,
                          Ingredients const&... ingredients) {
  detail::check_long_short(how, query, key, compressed_key);
  attention_with_extra_keys(query, key, value, how.compressed(compressed_key, compressed_value),
                            out, how.near(), ingredients...);
}

/// The gradients of long_short_attention from its saved out and lse. Those of the compressed rows go on to
/// compress_positions_backward, which adds its own to dkey and dvalue.
template <class How, element Q, element K, element V, element CK, element CV, element O, class L,
          element DO, element DQ, element DK, element DV, element DCK, element DCV,
          class... Ingredients>
void long_short_attention_backward(How const& how, tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, tensor_view<CK, 4> compressed_key,
                                   tensor_view<CV, 4> compressed_value, tensor_view<O, 4> out,
                                   tensor_view<L, 3> lse, tensor_view<DO, 4> dout,
                                   tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                                   tensor_view<DV, 4> dvalue, tensor_view<DCK, 4> dcompressed_key,
                                   tensor_view<DCV, 4> dcompressed_value,
                                   Ingredients const&... ingredients) {
  detail::check_long_short(how, query, key, compressed_key);
  attention_with_extra_keys_backward(
      query, key, value, how.compressed(compressed_key, compressed_value), out, lse, dout, dquery,
      dkey, dvalue, dcompressed_key, dcompressed_value, how.near(), ingredients...);
}

/// Decoding with causal_long_short: the last `window` keys, the compressed rows so far, and of the open chunk the sums that its
/// compressed rows will be made of.
///
///   near         keys and values [batch, window, heads, dim], no sinks
///   compressed   room for `rows` for every chunk: [batch, capacity, heads, dim]
///   open         [batch, heads, rows, 2 + head_dim + value_dim], which needs no preparation
template <element T>
class long_short_cache {
 public:
  using number = compute_type<T>;

  long_short_cache(causal_long_short how, ring_cache<T> near, kv_cache<T> compressed,
                   tensor_view<number, 4> open)
      : how_(how), near_(near), compressed_(compressed), open_(open) {
    how.check(0, 0);
    require(near.slots().window == how.window && near.slots().sinks == 0 &&
                near.slots().length == 0 && compressed.length() == 0,
            [&] {
              return "long_short_cache got a ring of " + std::to_string(near.slots().sinks) +
                     " sinks and " + std::to_string(near.slots().window) +
                     " keys; expected none and " + std::to_string(how.window) +
                     ", and both caches empty";
            });
  }

  /// The next position: [batch, 1, heads, dim] each, logits [batch, 1, heads, rows]. Returns whether it closed a chunk, whose rows
  /// are then the last of `compressed`: the moment for the layer's normalise_tokens of them, in place.
  ///
  /// Ingredients: scale, an executor, scratch, lse_into.
  template <element Q, element K, element V, element L, element O, class... Ingredients>
  bool step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<L, 4> logits, tensor_view<O, 4> out, Ingredients const&... ingredients) {
    index_t const heads = key.extent(2), dim = key.extent(3), value_dim = value.extent(3);
    detail::expect_like("logits", logits, {key.extent(0), 1, heads, how_.rows},
                        "key with a logit for each row");
    detail::expect_like("open", open_, {key.extent(0), heads, how_.rows, 2 + dim + value_dim},
                        "logits with room for a maximum, a sum, keys and values");
    detail::expect_like("out", out, {key.extent(0), 1, query.extent(2), value_dim},
                        "query with the head_dim of value");
    bool const closes = filled_ + 1 == how_.length;
    require(!closes || compressed_.length() + how_.rows <= compressed_.capacity(), [&] {
      return "the long_short_cache has room for " + std::to_string(compressed_.capacity()) +
             " compressed rows, all in use";
    });
    near_.append(key, value);
    attention_with_extra_keys(query, near_.keys(), near_.values(),
                              extra_keys(compressed_.keys(), compressed_.values()), out,
                              ingredients...);
    for (index_t b = 0; b < key.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t c = 0; c < how_.rows; ++c)
          add(b, h, c, convert_element<number>(logits(b, index_t{0}, h, c)), key, value);
    ++filled_;
    if (closes) close(dim, value_dim);
    return closes;
  }

 private:
  /// A position of one column: [maximum, sum of exp(logit - maximum), and the same of keys and values].
  template <class K, class V>
  void add(index_t b, index_t h, index_t c, number logit, tensor_view<K, 4> key,
           tensor_view<V, 4> value) {
    constexpr number infinity = std::numeric_limits<number>::infinity();
    index_t const dim = key.extent(3), value_dim = value.extent(3);
    auto const at = [&](index_t n) -> number& { return open_(b, h, c, n); };
    if (filled_ == 0) {
      at(0) = -infinity;
      for (index_t n = 1; n < open_.extent(3); ++n) at(n) = 0;
    }
    number const top = std::max(at(0), logit);
    if (top == -infinity) return;
    number const kept = std::exp(at(0) - top), weight = std::exp(logit - top);
    at(0) = top;
    at(1) = kept * at(1) + weight;
    for (index_t d = 0; d < dim; ++d)
      at(2 + d) = kept * at(2 + d) + weight * convert_element<number>(key(b, index_t{0}, h, d));
    for (index_t d = 0; d < value_dim; ++d)
      at(2 + dim + d) =
          kept * at(2 + dim + d) + weight * convert_element<number>(value(b, index_t{0}, h, d));
  }

  /// The sums become compressed rows.
  void close(index_t dim, index_t value_dim) {
    filled_ = 0;
    for (index_t b = 0; b < open_.extent(0); ++b)
      for (index_t h = 0; h < open_.extent(1); ++h)
        for (index_t c = 0; c < open_.extent(2); ++c) {
          number const total = open_(b, h, c, index_t{1});
          for (index_t n = 2; n < open_.extent(3); ++n)
            open_(b, h, c, n) = total > 0 ? open_(b, h, c, n) / total : number(0);
        }
    auto const rows = [&](index_t first, index_t count) {
      return open_.slice(3, first, count).swap_axes(1, 2);
    };
    compressed_.append(rows(2, dim), rows(2 + dim, value_dim));
  }

  causal_long_short how_;
  ring_cache<T> near_;
  kv_cache<T> compressed_;
  tensor_view<number, 4> open_;
  index_t filled_ = 0;
};

}  // namespace heed
