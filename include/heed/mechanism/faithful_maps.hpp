#pragma once

#include <heed/pattern/columns.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/score/bias.hpp>

#include <cmath>

/// Inherently Faithful Attention Maps for Vision Transformers, second stage: only the patches that the first stage found
/// to belong to the object are met, and the prefix, class and register tokens.
namespace heed {

/// Queries meet the prefix and the kept patches. kept: [batch, head, key], the first two 1 to share; what it says of the
/// prefix does not matter. At evaluation masked tokens may as well be left out altogether.
inline auto faithful_patches(tensor_view<bool const, 3> kept, index_t prefix) {
  return first_keys{prefix} | key_set{kept};
}

/// Which patches to keep: those of which the likeliest part is at least as likely as the background.
///
///   probabilities   [batch, part, patch], of which one part is the background
///   kept            [batch, 1, key], written from key `prefix` on; the prefix is kept
template <class T>
void keep_patches(tensor_view<T, 3> probabilities, index_t background, index_t prefix,
                  tensor_view<bool, 3> kept) {
  index_t const parts = probabilities.extent(1), patches = probabilities.extent(2);
  require(kept.extents() == std::array{probabilities.extent(0), index_t{1}, prefix + patches}, [&] {
    return "kept has shape " + shape_text(kept.extents()) + "; expected " +
           shape_text(std::array{probabilities.extent(0), index_t{1}, prefix + patches}) +
           " (batch, 1, prefix and patches)";
  });
  require(background >= 0 && background < parts, [&] {
    return "keep_patches has part " + std::to_string(background) +
           " as background; expected 0 to " + std::to_string(parts - 1);
  });
  for (index_t b = 0; b < kept.extent(0); ++b) {
    for (index_t j = 0; j < prefix; ++j) kept(b, 0, j) = true;
    for (index_t j = 0; j < patches; ++j) {
      bool found = false;
      for (index_t part = 0; part < parts; ++part)
        found |= part != background && probabilities(b, part, j) >= probabilities(b, background, j);
      kept(b, 0, prefix + j) = found;
    }
  }
}

/// The soft form of training: scores + log(m + 1e-10), m in [0, 1] for each key, 1 for the prefix.
///
///   m         [batch, key]
///   numbers   [batch, 1, 1, key]; give them to attention as bias{numbers, gradient}
template <class T, class N>
void soft_mask(tensor_view<T, 2> m, tensor_view<N, 4> numbers) {
  require(numbers.extents() == std::array{m.extent(0), index_t{1}, index_t{1}, m.extent(1)}, [&] {
    return "the numbers of a soft mask have shape " + shape_text(numbers.extents()) +
           "; expected " +
           shape_text(std::array{m.extent(0), index_t{1}, index_t{1}, m.extent(1)}) +
           " (batch, 1, 1, key)";
  });
  for (index_t b = 0; b < m.extent(0); ++b)
    for (index_t j = 0; j < m.extent(1); ++j)
      numbers(b, 0, 0, j) = static_cast<N>(std::log(static_cast<double>(m(b, j)) + 1e-10));
}

/// dm = gradient of the bias / (m + 1e-10): huge where m is about 0, unless what made m clips it.
template <class T, class N, class DM>
void soft_mask_backward(tensor_view<T, 2> m, tensor_view<N, 4> dnumbers, tensor_view<DM, 2> dm) {
  require(dm.extents() == m.extents() &&
              dnumbers.extents() == std::array{m.extent(0), index_t{1}, index_t{1}, m.extent(1)},
          [&] {
            return "the gradients of a soft mask have shapes " + shape_text(dnumbers.extents()) +
                   " and " + shape_text(dm.extents()) +
                   "; expected [b, 1, 1, n] and [b, n] for m of shape " + shape_text(m.extents());
          });
  for (index_t b = 0; b < m.extent(0); ++b)
    for (index_t j = 0; j < m.extent(1); ++j)
      dm(b, j) = static_cast<DM>(static_cast<double>(dnumbers(b, 0, 0, j)) /
                                 (static_cast<double>(m(b, j)) + 1e-10));
}

}  // namespace heed
