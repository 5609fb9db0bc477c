#pragma once

#include <heed/pattern/by_place.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/view/copy.hpp>

#include <span>
#include <vector>

namespace heed {

/// How many slots of each key head are filled, for caches in which heads keep different keys: first_keys{filled[b, h]}.
struct filled_slots {
  tensor_view<index_t const, 2> filled;  // [batch, key head]
  index_t group;                         // query heads for each of them

  first_keys bind(place const& where) const { return {filled(where.batch, where.head / group)}; }
  void check(call_shape const& shape) const {
    require(
        group > 0 && filled.extent(0) == shape.batches && filled.extent(1) * group == shape.heads,
        [&] {
          return "filled_slots has shape " + shape_text(filled.extents()) + " and groups of " +
                 std::to_string(group) + " heads; expected [" + std::to_string(shape.batches) +
                 ", n] (batch, key head) for " + std::to_string(shape.heads) + " query heads";
        });
  }
};

/// Keys and values of which each head forgets others, in memory that the caller owns:
///
///   keys    [batch, slots, key_heads, head_dim]
///   values  [batch, slots, key_heads, value_dim]
///
/// What a head keeps lies in its first slots, in no particular order: what is forgotten makes room for the last
/// one. A query that stands at the newest position meets all of it:
///
///     cache.append(keys, values);
///     heed::attention(query, cache.keys(), cache.values(), out, cache.filled(query_heads));
///
/// The constructor allocates a little memory for positions and notes; nothing else does.
template <element T>
  requires(!std::is_const_v<T>)
class evicting_cache {
 public:
  evicting_cache(tensor_view<T, 4> keys, tensor_view<T, 4> values)
      : keys_(keys),
        values_(values),
        filled_(static_cast<std::size_t>(keys.extent(0) * keys.extent(2)), 0),
        positions_(static_cast<std::size_t>(keys.extent(0) * keys.extent(2) * keys.extent(1))),
        notes_(positions_.size()) {
    require(keys.extent(0) == values.extent(0) && keys.extent(1) == values.extent(1) &&
                keys.extent(2) == values.extent(2),
            [&] {
              return "the values of an evicting cache have shape " + shape_text(values.extents()) +
                     ", its keys " + shape_text(keys.extents()) +
                     "; expected the same batch, slots and heads";
            });
  }

  /// Takes in the keys and values of the next positions. Throws heed::error, changing nothing, if shapes do not fit or a
  /// head is full.
  template <element K, element V>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values) {
    append(new_keys, new_values, tensor_view<index_t const, 3>{});
  }

  /// The same with a note for each, a number or enumerator of the caller's: [batch, key_head, position].
  template <element K, element V, class N>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values, tensor_view<N, 3> notes) {
    index_t const count = new_keys.extent(1), heads = keys_.extent(2);
    require_rows("keys", new_keys.extents(), keys_.extents(), count);
    require_rows("values", new_values.extents(), values_.extents(), count);
    require(notes.data() == nullptr || notes.extents() == std::array{keys_.extent(0), heads, count},
            [&] {
              return "the notes of appended positions have shape " + shape_text(notes.extents()) +
                     "; expected " + shape_text(std::array{keys_.extent(0), heads, count}) +
                     " (batch, key head, position)";
            });
    for (index_t b = 0; b < keys_.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h)
        require(count <= capacity() - filled_[list(b, h)], [&] {
          return std::to_string(count) + " positions appended to head " + std::to_string(h) +
                 " of batch entry " + std::to_string(b) + ", which has room for " +
                 std::to_string(capacity() - filled_[list(b, h)]) + " more of its " +
                 std::to_string(capacity());
        });
    for (index_t b = 0; b < keys_.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h) {
        index_t& filled = filled_[list(b, h)];
        copy_elements(part(new_keys, b, 0, count, h), part(keys_, b, filled, count, h));
        copy_elements(part(new_values, b, 0, count, h), part(values_, b, filled, count, h));
        for (index_t i = 0; i < count; ++i, ++filled) {
          positions_[entry(b, h, filled)] = length_ + i;
          notes_[entry(b, h, filled)] =
              notes.data() == nullptr ? 0 : static_cast<index_t>(notes(b, h, i));
        }
      }
    length_ += count;
  }

  /// Forgets the positions of one head for which forget(position, note) holds.
  template <class Forget>
  void forget_if(index_t batch, index_t head, Forget forget) {
    index_t& filled = filled_[list(batch, head)];
    for (index_t slot = 0; slot < filled;) {
      if (!forget(positions_[entry(batch, head, slot)], notes_[entry(batch, head, slot)])) {
        ++slot;
        continue;
      }
      --filled;
      if (slot == filled) break;
      copy_elements(part(keys_, batch, filled, 1, head), part(keys_, batch, slot, 1, head));
      copy_elements(part(values_, batch, filled, 1, head), part(values_, batch, slot, 1, head));
      positions_[entry(batch, head, slot)] = positions_[entry(batch, head, filled)];
      notes_[entry(batch, head, slot)] = notes_[entry(batch, head, filled)];
    }
  }

  /// Forgets everything.
  void clear() {
    std::fill(filled_.begin(), filled_.end(), 0);
    length_ = 0;
  }

  /// How many positions were appended, and how many a head can keep.
  index_t length() const { return length_; }
  index_t capacity() const { return keys_.extent(1); }

  /// What a head keeps, slot by slot: positions and notes.
  std::span<index_t const> positions(index_t batch, index_t head) const {
    return list_of(positions_, batch, head);
  }
  std::span<index_t const> notes(index_t batch, index_t head) const {
    return list_of(notes_, batch, head);
  }

  /// The slots that some head has filled: [batch, slot, key_heads, dim].
  tensor_view<T const, 4> keys() const { return keys_.slice(1, 0, most_filled()); }
  tensor_view<T const, 4> values() const { return values_.slice(1, 0, most_filled()); }

  /// The pattern that hides what a head has not filled, for queries of `heads` heads.
  filled_slots filled(index_t heads) const {
    return {{filled_.data(), {keys_.extent(0), keys_.extent(2)}},
            keys_.extent(2) == 0 ? 1 : heads / keys_.extent(2)};
  }

 private:
  using shape = typename tensor_view<T, 4>::index_array;

  template <class U>
  static tensor_view<U, 4> part(tensor_view<U, 4> of, index_t batch, index_t first, index_t count,
                                index_t head) {
    return of.slice(0, batch, 1).slice(1, first, count).slice(2, head, 1);
  }
  static void require_rows(char const* name, shape const& given, shape const& cache,
                           index_t count) {
    require(given == shape{cache[0], count, cache[2], cache[3]}, [&] {
      return std::string("appended ") + name + " have shape " + shape_text(given) + "; expected " +
             shape_text(shape{cache[0], count, cache[2], cache[3]});
    });
  }
  std::size_t list(index_t batch, index_t head) const {
    return static_cast<std::size_t>(batch * keys_.extent(2) + head);
  }
  std::size_t entry(index_t batch, index_t head, index_t slot) const {
    return list(batch, head) * static_cast<std::size_t>(capacity()) +
           static_cast<std::size_t>(slot);
  }
  std::span<index_t const> list_of(std::vector<index_t> const& numbers, index_t batch,
                                   index_t head) const {
    return std::span(numbers).subspan(entry(batch, head, 0),
                                      static_cast<std::size_t>(filled_[list(batch, head)]));
  }
  index_t most_filled() const {
    return filled_.empty() ? 0 : *std::max_element(filled_.begin(), filled_.end());
  }

  tensor_view<T, 4> keys_;
  tensor_view<T, 4> values_;
  std::vector<index_t> filled_;     // [batch, head]
  std::vector<index_t> positions_;  // [batch, head, slot]
  std::vector<index_t> notes_;
  index_t length_ = 0;
};

}  // namespace heed
