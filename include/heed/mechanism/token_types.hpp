#pragma once

#include <heed/cache/evicting_cache.hpp>
#include <heed/pattern/by_place.hpp>
#include <heed/pattern/lifetimes.hpp>

#include <cstdint>
#include <vector>

/// Neural Attention Search: each key of a key head has a learned type that says how long it is met.
namespace heed {

enum class token_type : std::uint8_t {
  global,   ///< by every later query
  local,    ///< by the queries up to the next global token, that one included
  sliding,  ///< by the next `window` queries
};

/// What the types of whole sequences mean: end_j for each key, as lifetimes. Made once for a call; the pattern points
/// into it.
///
///     heed::token_types const lives(types, window, query_heads / key_heads);
///     heed::attention(q, k, v, out, lives.pattern());
///
/// Learning takes the entry of the mask for a factor m of exp(s): dm = a (dout.(v - out)) / m, which for m = 1 is the
/// gradient of a `bias`.
class token_types {
 public:
  /// types: [batch, key head, key], the first two 1 to share; group: query heads for each key head.
  token_types(tensor_view<token_type const, 3> types, index_t window, index_t group = 1)
      : extents_(types.extents()), group_(group), ends_(static_cast<std::size_t>(types.size())) {
    require(window >= 0, [&] {
      return "token_types has a window of " + std::to_string(window) + "; expected 0 or more";
    });
    index_t const keys = types.extent(2);
    auto end = ends_.begin();
    for (index_t b = 0; b < types.extent(0); ++b)
      for (index_t h = 0; h < types.extent(1); ++h, end += keys) {
        index_t next_global = keys - 1;  // the last token ends all locals, as a global one would
        for (index_t j = keys; j-- > 0;) {
          token_type const type = types(b, h, j);
          if (type == token_type::global) next_global = j;
          end[j] = type == token_type::global  ? keys
                   : type == token_type::local ? next_global + 1
                                               : std::min(keys, j + window + 1);
        }
      }
  }

  by_key_head<lifetimes> pattern() const { return {lifetimes{ends()}, group_}; }

  /// Key j is met by the queries j to end_j - 1: [batch, key head, key].
  tensor_view<index_t const, 3> ends() const { return {ends_.data(), extents_}; }

 private:
  std::array<index_t, 3> extents_;
  index_t group_;
  std::vector<index_t> ends_;
};

/// A step of decoding with types: appends the next position to a cache after what its query will not meet is forgotten. A
/// head then keeps its globals, the locals since the last global and the `window` last sliding keys before it.
/// types: [batch, key head], of the new position.
template <element T, element K, element V>
void append_typed(evicting_cache<T>& cache, tensor_view<K, 4> key, tensor_view<V, 4> value,
                  tensor_view<token_type const, 2> types, index_t window) {
  index_t const batches = key.extent(0), heads = key.extent(2);
  require(key.extent(1) == 1 && types.extents() == std::array{batches, heads}, [&] {
    return "append_typed is given keys of shape " + shape_text(key.extents()) +
           " and types of shape " + shape_text(types.extents()) +
           "; expected one position, and a type for each batch entry and key head";
  });
  index_t const now = cache.length();
  for (index_t b = 0; b < batches; ++b)
    for (index_t h = 0; h < heads; ++h) {
      auto const kind = [](index_t note) { return static_cast<token_type>(note); };
      bool after_global = false;  // the last query met the locals up to here
      auto const positions = cache.positions(b, h), notes = cache.notes(b, h);
      for (std::size_t slot = 0; slot < positions.size(); ++slot)
        after_global |= positions[slot] == now - 1 && kind(notes[slot]) == token_type::global;
      cache.forget_if(b, h, [&](index_t position, index_t note) {
        return kind(note) == token_type::local     ? after_global
               : kind(note) == token_type::sliding ? position + window < now
                                                   : false;
      });
    }
  cache.append(key, value,
               tensor_view<token_type const, 3>(types.data(), {batches, heads, 1},
                                                {types.stride(0), types.stride(1), 0}));
}

}  // namespace heed
