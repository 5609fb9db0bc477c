#pragma once

#include <heed/cache/kv_cache.hpp>
#include <heed/mechanism/combiner.hpp>

namespace heed {

/// Decoding with combiner_fixed: raw keys and values of the open block only, and a summary of every closed one. It
/// computes what combiner_attention would over the whole sequence.
///
///   open        room for `block` positions: [batch, block, key_heads or value_heads, dim]
///   summaries   keys [batch, blocks, key_heads, head_dim], values [batch, blocks, heads, value_dim]
///   pooled      [batch, 1, heads, head_dim]: the queries of the open block, pooled so far
template <element T>
class combiner_cache {
 public:
  using number = compute_type<T>;

  combiner_cache(combiner_fixed how, kv_cache<T> open, kv_cache<T> summaries,
                 tensor_view<number, 4> pooled)
      : how_(how), open_(open), summaries_(summaries), pooled_(pooled) {
    how.check();
    require(how.causal, [] { return "combiner_cache decodes; expected a causal combiner_fixed"; });
    require(open.capacity() == how.block && open.length() == 0 && summaries.length() == 0, [&] {
      return "combiner_cache got an open block of " + std::to_string(open.length()) + " of " +
             std::to_string(open.capacity()) + " positions and " +
             std::to_string(summaries.length()) + " summaries; expected an empty one of " +
             std::to_string(how.block) + ", and none";
    });
  }

  /// The next position: [batch, 1, heads, dim] each. Ingredients: scale, an executor, scratch, lse_into.
  template <element Q, element K, element V, element O, class... Ingredients>
  void step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<O, 4> out, Ingredients const&... ingredients) {
    require(query.extents() == pooled_.extents(), [&] {
      return "query has shape " + shape_text(query.extents()) + "; expected " +
             shape_text(pooled_.extents());
    });
    require(open_.length() + 1 < how_.block || summaries_.length() < summaries_.capacity(), [&] {
      return "the combiner_cache has room for " + std::to_string(summaries_.capacity()) +
             " summaries, all in use";
    });
    auto const shape = std::array{query.extent(0), index_t{1}, query.extent(2), value.extent(3)};
    require(out.extents() == shape, [&] {
      return "out has shape " + shape_text(out.extents()) + "; expected " + shape_text(shape);
    });
    bool const first = open_.length() == 0;
    open_.append(key, value);
    for (index_t b = 0; b < query.extent(0); ++b)
      for (index_t h = 0; h < query.extent(2); ++h)
        for (index_t d = 0; d < query.extent(3); ++d) {
          number& so_far = pooled_(b, index_t{0}, h, d);
          auto const next = convert_element<number>(query(b, index_t{0}, h, d));
          so_far = first                       ? next
                   : how_.pool == pooling::max ? std::max(so_far, next)
                                               : so_far + next;
        }
    attention_with_extra_keys(query, open_.keys(), open_.values(),
                              extra_keys(summaries_.keys(), summaries_.values()), out,
                              ingredients...);
    if (open_.length() == how_.block) close(ingredients...);
  }

 private:
  /// Summarises the open block and forgets it.
  template <class... I>
  void close(I const&... ingredients) {
    auto const keys = open_.keys();
    auto const values = open_.values();
    std::array<index_t, 4> const key_shape{keys.extent(0), 1, keys.extent(2), keys.extent(3)};
    std::array<index_t, 4> const value_shape{keys.extent(0), 1, pooled_.extent(2),
                                             values.extent(3)};
    auto const lay_out = [&](arena memory) {
      auto const take = [&](std::array<index_t, 4> const& shape) {
        return tensor_view<number, 4>(memory.take<number>(shape[0] * shape[2] * shape[3]), shape);
      };
      return std::tuple(take(key_shape), take(value_shape), memory.used());
    };
    auto const [key, value, used] =
        lay_out(arena(detail::combiner_workspace().reserve(std::get<2>(lay_out(arena())))));
    for (index_t b = 0; b < keys.extent(0); ++b)
      detail::pool_span(keys, how_.pool, b, {0, how_.block}, 0, key);
    if (how_.pool == pooling::mean)
      for (index_t b = 0; b < pooled_.extent(0); ++b)
        for (index_t h = 0; h < pooled_.extent(2); ++h)
          for (index_t d = 0; d < pooled_.extent(3); ++d)
            pooled_(b, index_t{0}, h, d) /= static_cast<number>(how_.block);
    std::apply([&, pooled = pooled_, to = value](
                   auto const&... shared) { attention(pooled, keys, values, to, shared...); },
               attend::all_of<detail::is_for_summaries>(ingredients...));
    summaries_.append(key, value);
    open_.truncate(0);
  }

  combiner_fixed how_;
  kv_cache<T> open_;
  kv_cache<T> summaries_;
  tensor_view<number, 4> pooled_;
};

}  // namespace heed
