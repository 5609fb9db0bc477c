#pragma once

#include <heed/pattern/mask_words.hpp>

#include <cstring>

namespace heed {

/// A bit for each pair, 1 where they meet, packed without gaps: bit t % 8, the lowest first, of byte t / 8 is that
/// of the pair t = row * keys + key.
///
///   bytes           the bits of all sequences
///   offsets         sequence g has the bytes [offsets[g], offsets[g + 1]); without, one stream serves all
///   first_position  see placed_table.hpp; rows and keys are always those of the sequence
///
/// Pairs beyond the end of a stream do not meet.
struct bit_mask {
  std::span<std::uint8_t const> bytes;
  std::span<index_t const> offsets = {};
  std::optional<index_t> first_position = {};

  struct stream {
    std::uint8_t const* first;
    index_t size;  // in bytes
    index_t columns;

    bool bit(index_t row, index_t key) const {
      index_t const t = row * columns + key;
      return (first[t / 8] >> (t % 8) & 1) != 0;
    }
    std::uint64_t word(index_t row, index_t key) const {
      index_t const t = row * columns + key, byte = t / 8;
      auto const shift = static_cast<int>(t % 8);
      std::uint64_t low = 0, high = 0;
      if (std::endian::native == std::endian::little && byte + 9 <= size) {
        std::memcpy(&low, first + byte, 8);
        high = first[byte + 8];
      } else {
        for (int n = 0; n < 8 && byte + n < size; ++n)
          low |= std::uint64_t{first[byte + n]} << (8 * n);
        if (byte + 8 < size) high = first[byte + 8];
      }
      return shift == 0 ? low : low >> shift | high << (64 - shift);
    }
  };
  using table = detail::mask_table<stream>;

  placed_table<table> bind(place const& where) const {
    auto const own = of(where.sequence);
    auto const size = static_cast<index_t>(own.size());
    index_t const whole = where.keys > 0 ? 8 * size / where.keys : 0;
    index_t const rows = first_position ? whole : std::min(whole, where.rows);
    return {{{own.data(), size, where.keys}, rows, where.keys},
            -first_position.value_or(where.keys - where.rows),
            0};
  }

  void check(call_shape const& shape) const {
    bool const packed = shape.sequences != shape.batches;
    require(!packed || !offsets.empty(), [&] {
      return "bit_mask has one stream for " + std::to_string(shape.sequences) +
             " packed sequences; expected offsets, a stream for each";
    });
    if (!offsets.empty()) {
      bool ordered = static_cast<index_t>(offsets.size()) == shape.sequences + 1 &&
                     offsets.front() >= 0 && offsets.back() <= static_cast<index_t>(bytes.size());
      for (std::size_t g = 1; g < offsets.size(); ++g) ordered &= offsets[g - 1] <= offsets[g];
      require(ordered, [&] {
        return "bit_mask.offsets is " + (offsets.size() > 16 ? "a list" : shape_text(offsets)) +
               "; expected " + std::to_string(shape.sequences + 1) +
               " offsets that do not decrease, from 0 to at most " + std::to_string(bytes.size()) +
               " (bytes)";
      });
    }
    if (packed || first_position) return;
    index_t const expected = (shape.rows * shape.keys + 7) / 8;
    for (index_t g = 0; g < (offsets.empty() ? 1 : shape.sequences); ++g)
      require(static_cast<index_t>(of(g).size()) == expected, [&] {
        return "bit_mask has " + std::to_string(of(g).size()) + " bytes for a sequence; expected " +
               std::to_string(expected) + " for " + std::to_string(shape.rows) + " rows and " +
               std::to_string(shape.keys) + " keys";
      });
  }

 private:
  std::span<std::uint8_t const> of(index_t sequence) const {
    if (offsets.empty()) return bytes;
    auto const g = static_cast<std::size_t>(sequence);
    return bytes.subspan(static_cast<std::size_t>(offsets[g]),
                         static_cast<std::size_t>(offsets[g + 1] - offsets[g]));
  }
};

}  // namespace heed
