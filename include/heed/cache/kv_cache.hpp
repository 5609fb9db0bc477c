#pragma once

#include <heed/cache/rotation.hpp>
#include <heed/view/copy.hpp>

namespace heed {

/// Keys and values of the positions decoded so far, in memory that the caller owns.
///
///   keys    [batch, capacity, key_heads, head_dim]
///   values  [batch, capacity, value_heads, value_dim]
///
/// The first `length` positions are filled, the same number in every batch entry.
template <element T>
  requires(!std::is_const_v<T>)
class kv_cache {
 public:
  /// Throws heed::error unless keys and values agree in batch and capacity, and length fits.
  kv_cache(tensor_view<T, 4> keys, tensor_view<T, 4> values, index_t length = 0)
      : keys_(keys), values_(values), length_(length) {
    require(keys.extent(0) == values.extent(0) && keys.extent(1) == values.extent(1), [&] {
      return "the values of a cache have shape " + shape_text(values.extents()) + ", its keys " +
             shape_text(keys.extents()) + "; expected the same batch and capacity";
    });
    require_length(length);
  }

  /// Copies the keys and values of new positions behind the others, converting the elements.
  /// Throws heed::error, changing nothing, if they do not fit.
  template <element K, element V>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values) {
    append_with(new_keys, new_values, [&](auto to) { copy_elements(new_keys, to); });
  }

  /// The same with the keys rotated: by one number of positions, for a block of keys that is cached elsewhere at
  /// positions from 0 on, or by one for each key, for keys that are not rotated yet. See rotation.hpp.
  template <element K, element V>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values, rotary const& how,
              index_t by) {
    append_with(new_keys, new_values, [&](auto to) { rotate(how, new_keys, to, by); });
  }
  template <element K, element V>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values, rotary const& how,
              std::span<index_t const> by) {
    append_with(new_keys, new_values, [&](auto to) { rotate(how, new_keys, to, by); });
  }

  /// Forgets the positions from `length` on: to start again, or to take back drafted tokens.
  void truncate(index_t length) {
    require(length <= length_, [&] {
      return "a cache of " + std::to_string(length_) + " positions cannot be truncated to " +
             std::to_string(length);
    });
    require_length(length);
    length_ = length;
  }

  index_t length() const { return length_; }
  index_t capacity() const { return keys_.extent(1); }

  /// The positions so far: [batch, length, key_heads, head_dim].
  tensor_view<T const, 4> keys() const { return keys_.slice(1, 0, length_); }
  /// The positions so far: [batch, length, value_heads, value_dim].
  tensor_view<T const, 4> values() const { return values_.slice(1, 0, length_); }

 private:
  using shape = typename tensor_view<T, 4>::index_array;

  template <element K, element V, class StoreKeys>
  void append_with(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values, StoreKeys store_keys) {
    index_t const count = new_keys.extent(1);
    require_rows("keys", new_keys.extents(), keys_.extents(), count);
    require_rows("values", new_values.extents(), values_.extents(), count);
    store_keys(keys_.slice(1, length_, count));
    copy_elements(new_values, values_.slice(1, length_, count));
    length_ += count;
  }

  void require_length(index_t length) const {
    require(length >= 0 && length <= capacity(), [&] {
      return "a cache of length " + std::to_string(length) + "; expected 0 to " +
             std::to_string(capacity()) + " (its capacity)";
    });
  }

  void require_rows(char const* name, shape const& given, shape const& cache, index_t count) const {
    require(given == shape{cache[0], count, cache[2], cache[3]}, [&] {
      return std::string("appended ") + name + " have shape " + shape_text(given) + "; expected " +
             shape_text(shape{cache[0], count, cache[2], cache[3]});
    });
    require(count <= capacity() - length_, [&] {
      return std::to_string(count) + " positions appended to a cache that has room for " +
             std::to_string(capacity() - length_) + " more of its " + std::to_string(capacity());
    });
  }

  tensor_view<T, 4> keys_;
  tensor_view<T, 4> values_;
  index_t length_;
};

}  // namespace heed
