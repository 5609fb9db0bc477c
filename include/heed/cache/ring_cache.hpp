#pragma once

#include <heed/pattern/pattern.hpp>
#include <heed/view/copy.hpp>

#include <xsimd/xsimd.hpp>

namespace heed {

/// Which positions lie in the slots of a ring: position p < sinks in slot p for good, a later one in slot
/// sinks + (p - sinks) mod window until the position `window` after it takes its place.
struct ring_slots {
  index_t sinks = 0;
  index_t window = 1;
  index_t length = 0;  // positions so far

  /// How many slots hold a position: the first ones.
  constexpr index_t filled() const { return std::min(length, sinks + window); }

  /// The slot of a position.
  constexpr index_t slot(index_t position) const {
    return position < sinks ? position : sinks + (position - sinks) % window;
  }

  /// The position in a filled slot.
  constexpr index_t position(index_t slot) const {
    if (slot < sinks) return slot;
    index_t const before_newest = this->slot(length - 1) - slot;
    return length - 1 - (before_newest < 0 ? before_newest + window : before_newest);
  }
  /// The same for a SIMD register of slots.
  template <class Batch>
  Batch position(Batch slot) const {
    using number = typename Batch::value_type;
    auto const whole = [](index_t n) { return Batch(static_cast<number>(n)); };
    Batch const before_newest = whole(this->slot(length - 1)) - slot;
    Batch const wrapped =
        xsimd::select(before_newest < whole(0), before_newest + whole(window), before_newest);
    return xsimd::select(slot < whole(sinks), slot, whole(length - 1) - wrapped);
  }

  /// The place of a filled slot among all in order of position: 0 is the oldest. Models that number
  /// positions inside the cache count so.
  constexpr index_t rank(index_t slot) const {
    return position(slot) - (slot < sinks ? 0 : skipped());
  }

 private:
  /// Positions between the sinks and the window.
  constexpr index_t skipped() const { return length - filled(); }
};

/// A pattern or score modifier over positions, for keys that lie in the slots of a ring: it meets key slots
/// with the position they hold. Say where the queries stand with query_positions.
template <class Ingredient>
struct at_slots {
  ring_slots slots;
  Ingredient ingredient;

  auto bind(place const& where) const {
    return at_slots<decltype(bind_at(ingredient, where))>{slots, bind_at(ingredient, where)};
  }
  void check(call_shape const& shape) const {
    require(shape.keys == slots.filled(), [&] {
      return "at_slots describes " + std::to_string(slots.filled()) +
             " filled slots; expected one for each of the " + std::to_string(shape.keys) + " keys";
    });
    check_against(ingredient, shape);
  }

  template <class I>
  constexpr auto keep(I query, I slot) const requires requires(Ingredient const& x) {
    x.keep(query, slot);
  }
  { return ingredient.keep(query, slots.position(slot)); }

  template <class Batch>
  Batch apply(Batch score, Batch query, Batch slot) const requires requires(Ingredient const& x) {
    x.apply(score, query, slot);
  }
  { return ingredient.apply(score, query, slots.position(slot)); }
};
template <class Ingredient>
at_slots(ring_slots, Ingredient) -> at_slots<Ingredient>;

/// The keys and values that a step of decoding with sinks and a window still needs, in memory that the caller
/// owns: the first `sinks` positions and the last `window`, the newest included.
///
///   keys    [batch, sinks + window, key_heads, head_dim]
///   values  [batch, sinks + window, value_heads, value_dim]
///
/// Memory is constant and so is the time of a position. One query, that of the newest position, meets all that
/// is there, in any order of the slots:
///
///     cache.append(key, value);
///     heed::attention(query, cache.keys(), cache.values(), out);
///
/// equals attention over all positions with causal{} & (sliding_window{.left = window - 1} |
/// first_keys{sinks}). What depends on positions is told them by at_slots{cache.slots(), ...}.
///
/// A chunk of several positions may be appended at once, but earlier queries of the chunk would miss the
/// keys that later positions replace. So attend first and append after: over the tensors of the prompt if the
/// cache is empty; else over the cache, with at_slots and the pattern above, and over the chunk, and merge both
/// with merge_attention.
///
/// Keys are cached as they are given, rotated for their position or not. Models that number positions inside
/// the cache give them unrotated and rotate them at use, by slots().rank(slot): see rotation.hpp.
template <element T>
  requires(!std::is_const_v<T>)
class ring_cache {
 public:
  /// Throws heed::error unless keys and values agree in batch and capacity and there is a slot for the window.
  ring_cache(tensor_view<T, 4> keys, tensor_view<T, 4> values, index_t sinks)
      : keys_(keys), values_(values), slots_{sinks, keys.extent(1) - sinks, 0} {
    require(keys.extent(0) == values.extent(0) && keys.extent(1) == values.extent(1), [&] {
      return "the values of a ring cache have shape " + shape_text(values.extents()) +
             ", its keys " + shape_text(keys.extents()) + "; expected the same batch and capacity";
    });
    require(sinks >= 0 && sinks < keys.extent(1), [&] {
      return "a ring cache of " + std::to_string(sinks) + " sinks in " +
             std::to_string(keys.extent(1)) +
             " slots; expected at least 0 and one slot more than sinks";
    });
  }

  /// Takes in the keys and values of the next positions, converting the elements; those that leave the window
  /// are forgotten. Throws heed::error, changing nothing, if shapes do not fit.
  template <element K, element V>
  void append(tensor_view<K, 4> new_keys, tensor_view<V, 4> new_values) {
    index_t const count = new_keys.extent(1);
    require_rows("keys", new_keys.extents(), keys_.extents(), count);
    require_rows("values", new_values.extents(), values_.extents(), count);
    for (index_t i = 0; i < count;) {
      index_t const position = slots_.length + i;
      bool const sink = position < slots_.sinks;
      // Of a chunk longer than the window only the end stays.
      if (!sink && count - i > slots_.window) {
        i = count - slots_.window;
        continue;
      }
      index_t const slot = slots_.slot(position);
      index_t const run = std::min(count - i, (sink ? slots_.sinks : keys_.extent(1)) - slot);
      copy_elements(new_keys.slice(1, i, run), keys_.slice(1, slot, run));
      copy_elements(new_values.slice(1, i, run), values_.slice(1, slot, run));
      i += run;
    }
    slots_.length += count;
  }

  /// Forgets everything.
  void clear() { slots_.length = 0; }

  /// How many positions were appended, and where those that are left lie.
  index_t length() const { return slots_.length; }
  ring_slots const& slots() const { return slots_; }

  /// The filled slots: [batch, slot, key_heads, head_dim].
  tensor_view<T const, 4> keys() const { return keys_.slice(1, 0, slots_.filled()); }
  /// The filled slots: [batch, slot, value_heads, value_dim].
  tensor_view<T const, 4> values() const { return values_.slice(1, 0, slots_.filled()); }

 private:
  using shape = typename tensor_view<T, 4>::index_array;

  static void require_rows(char const* name, shape const& given, shape const& cache,
                           index_t count) {
    require(given == shape{cache[0], count, cache[2], cache[3]}, [&] {
      return std::string("appended ") + name + " have shape " + shape_text(given) + "; expected " +
             shape_text(shape{cache[0], count, cache[2], cache[3]});
    });
  }

  tensor_view<T, 4> keys_;
  tensor_view<T, 4> values_;
  ring_slots slots_;
};

}  // namespace heed
