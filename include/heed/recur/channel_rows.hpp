#pragma once

#include <heed/simd/lanes.hpp>
#include <heed/view/rows.hpp>

#include <algorithm>

/// Tensors whose heads lie side by side, so that the lanes of registers are channels, of several heads where a
/// head has few: what recurrences that treat each channel alike read and write.
namespace heed::recur::scan {

/// Channels [first, first + count) of all heads of a tensor, padded to whole registers.
struct channel_tile {
  index_t first;
  index_t count;
  index_t padded;
};

/// A tensor [batch, position, head, dim] with its heads side by side, its element type erased.
template <class T>
class channel_rows {
 public:
  channel_rows() = default;

  template <element E>
  explicit channel_rows(tensor_view<E, 4> view)
      : data_(const_cast<char*>(reinterpret_cast<char const*>(view.data()))),
        element_size_(sizeof(E)),
        extents_(view.extents()),
        strides_(view.strides()),
        unit_((std::is_same_v<std::remove_const_t<E>, T>)&&(view.extent(3) == 1 ||
                                                            view.stride(3) == 1)),
        joined_(unit_ && (view.extent(3) > 1 || view.extent(2) == 1 || view.stride(2) == 1) &&
                (view.extent(2) == 1 || view.stride(2) == view.extent(3))),
        read_(&heed::detail::convert_rows<T, std::remove_const_t<E>>),
        write_(&heed::detail::store_rows<T, std::remove_const_t<E>>) {}

  index_t channels() const { return extents_[2] * extents_[3]; }
  index_t dim() const { return extents_[3]; }
  explicit operator bool() const { return data_ != nullptr; }

  /// Some rows of a tile: where they lie, or in `scratch`, [count][tile.padded], with zeros beyond the tile.
  row_block<T> read(index_t batch, index_t first, index_t count, channel_tile const& tile,
                    T* scratch) const {
    if (in_place(tile)) return {reinterpret_cast<T const*>(at(batch, first, tile)), strides_[1]};
    if (tile.count < tile.padded)
      for (index_t r = 0; r < count; ++r)
        std::fill(scratch + r * tile.padded + tile.count, scratch + (r + 1) * tile.padded, T(0));
    each_head(batch, first, tile, [&](char* from, index_t channels, index_t before) {
      read_(from, strides_[1], strides_[3], count, channels, scratch + before, tile.padded, 0);
    });
    return {scratch, tile.padded};
  }

  /// Where to write rows of a tile: where they belong, or `scratch`, from which finish() then stores them.
  struct open_rows {
    T* data;
    index_t stride;

    T* operator[](index_t row) const { return data + row * stride; }
  };
  open_rows open(index_t batch, index_t first, channel_tile const& tile, T* scratch) const {
    if (in_place(tile)) return {reinterpret_cast<T*>(at(batch, first, tile)), strides_[1]};
    return {scratch, tile.padded};
  }
  void finish(open_rows const& rows, index_t batch, index_t first, index_t count,
              channel_tile const& tile) const {
    if (!in_place(tile)) write(batch, first, count, tile, rows.data, rows.stride);
  }
  /// Stores rows that lie elsewhere.
  void write(index_t batch, index_t first, index_t count, channel_tile const& tile, T const* from,
             index_t stride) const {
    each_head(batch, first, tile, [&](char* to, index_t channels, index_t before) {
      write_(to, strides_[1], strides_[3], count, channels, from + before, stride);
    });
  }

 private:
  bool in_place(channel_tile const& tile) const {
    return tile.count == tile.padded &&
           (joined_ || (unit_ && extents_[3] > 1 &&
                        tile.first / extents_[3] == (tile.first + tile.count - 1) / extents_[3]));
  }
  char* at(index_t batch, index_t position, channel_tile const& tile) const {
    return data_ +
           (batch * strides_[0] + position * strides_[1] + tile.first / extents_[3] * strides_[2] +
            tile.first % extents_[3] * strides_[3]) *
               element_size_;
  }
  /// Calls f(first row, channels, channels before) for what the tile has of each head.
  template <class F>
  void each_head(index_t batch, index_t first, channel_tile const& tile, F f) const {
    for (index_t done = 0; done < tile.count;) {
      index_t const channel = tile.first + done;
      index_t const run = std::min(tile.count - done, extents_[3] - channel % extents_[3]);
      f(at(batch, first, {channel, run, run}), run, done);
      done += run;
    }
  }

  char* data_ = nullptr;
  index_t element_size_ = 0;
  std::array<index_t, 4> extents_{};
  std::array<index_t, 4> strides_{};
  bool unit_ = false;    // a head's channels lie side by side
  bool joined_ = false;  // and so do the heads
  void (*read_)(void const*, index_t, index_t, index_t, index_t, T*, index_t, index_t) = nullptr;
  void (*write_)(void*, index_t, index_t, index_t, index_t, T const*, index_t) = nullptr;
};

/// A tensor [heads, dim] as a row of channels, [1, 1, heads, dim]; empty if it is.
template <class T, class E>
channel_rows<T> as_row(tensor_view<E, 2> view) {
  if (view.data() == nullptr) return {};
  return channel_rows<T>(tensor_view<E, 4>(view.data(), {1, 1, view.extent(0), view.extent(1)},
                                           {0, 0, view.stride(0), view.stride(1)}));
}
/// A tensor [rows, heads, dim] as rows of channels, [1, rows, heads, dim].
template <class T, class E>
channel_rows<T> as_rows(tensor_view<E, 3> view) {
  auto const& e = view.extents();
  auto const& s = view.strides();
  return channel_rows<T>(
      tensor_view<E, 4>(view.data(), {1, e[0], e[1], e[2]}, {0, s[0], s[1], s[2]}));
}
/// A tensor [heads, dim, n] as [n, heads, dim].
template <class E>
tensor_view<E, 3> state_first(tensor_view<E, 3> view) {
  return view.swap_axes(1, 2).swap_axes(0, 1);
}

/// Tiles of at most `registers` registers, none of which holds channels of two blocks of `block` channels.
template <class T, class Arch, int registers>
class channel_tiles {
 public:
  static constexpr index_t lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  static constexpr index_t width = registers * lanes;

  channel_tiles(index_t channels, index_t block)
      : block_(std::max<index_t>(block, 1)),
        blocks_(channels / block_),
        tiles_((block_ + width - 1) / width) {}
  explicit channel_tiles(index_t channels) : channel_tiles(channels, channels) {}

  index_t count() const { return blocks_ * tiles_; }
  index_t per_block() const { return tiles_; }
  channel_tile operator[](index_t tile) const {
    index_t const first = tile % tiles_ * width, count = std::min(width, block_ - first);
    return {tile / tiles_ * block_ + first, count, simd::round_up(count, lanes)};
  }

 private:
  index_t block_, blocks_, tiles_;
};

/// Calls f with the number of registers of a tile as a constant.
template <class T, class Arch, int registers, class F>
void with_registers(channel_tile const& tile, F const& f) {
  constexpr auto lanes = static_cast<index_t>(xsimd::batch<T, Arch>::size);
  if constexpr (registers > 1)
    if (tile.padded <= (registers - 1) * lanes)
      return with_registers<T, Arch, registers - 1>(tile, f);
  f(std::integral_constant<int, registers>());
}

}  // namespace heed::recur::scan
