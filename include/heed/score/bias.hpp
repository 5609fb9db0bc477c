#pragma once

#include <heed/score/modifier.hpp>
#include <heed/simd/transpose.hpp>
#include <heed/view/element.hpp>

#include <limits>

namespace heed {

/// An additive bias from memory: s -> s + numbers(b, h, i, j).
///
///   numbers   [batch, head, row, key]; an extent of 1 is broadcast. Double, float, Eigen::half,
///             Eigen::bfloat16, or bool, where true keeps the pair and false hides it, as -infinity does.
///   gradient  shaped like `numbers`, in the type of the computation; attention_backward writes to it,
///             summed over the axes that were broadcast.
///
/// Where documents pack several sequences, rows and keys are those of the packed tensors.
template <class T, class G = float>
struct bias {
  tensor_view<T const, 4> numbers;
  tensor_view<G, 4> gradient = {};

  template <class U>
    requires std::same_as<T, std::remove_const_t<U>>
  explicit bias(tensor_view<U, 4> n) : numbers(n) {}
  template <class U>
    requires std::same_as<T, std::remove_const_t<U>> bias(tensor_view<U, 4> n, tensor_view<G, 4> g)
        : numbers(n), gradient(g) {}

    struct bound {
      T const* first;
      index_t row_stride;
      index_t key_stride;
      place where;

      /// A pair is hidden by -infinity even if its score is NaN.
      template <class Batch>
      static Batch apply(Batch score, Batch number) {
        auto const hides =
            number == Batch(-std::numeric_limits<typename Batch::value_type>::infinity());
        return xsimd::select(hides, number, score + number);
      }

      template <class C>
      void fill(pair_tile<C> const& tile) const {
        if constexpr (std::same_as<T, C>)
          if (key_stride == 1 && tile.row_stride == 1 && where.order == nullptr) {
            // The next panel of rows reads on below these, too far down to be foreseen.
            for (index_t row = tile.rows.first; row < tile.rows.last; ++row)
              for (index_t key = tile.keys.first; key < tile.keys.last;
                   key += 64 / static_cast<index_t>(sizeof(T)))
                __builtin_prefetch(&at(row + tile.rows.size(), key));
            return simd::transpose<xsimd::default_arch>(tile.rows.size(), tile.keys.size(),
                                                        &at(tile.rows.first, tile.keys.first),
                                                        row_stride, tile.data, tile.key_stride);
          }
        where.each_key_run(tile.keys, [&](index_t keys_before, token_run keys) {
          where.each_row_run(tile.rows, [&](index_t rows_before, token_run rows) {
            for (index_t k = 0; k < keys.size; ++k)
              for (index_t r = 0; r < rows.size; ++r)
                tile.data[(rows_before + r) * tile.row_stride +
                          (keys_before + k) * tile.key_stride] =
                    rows.padding() ? C(0)
                                   : number<C>(first[(rows.first + r * rows.step) * row_stride +
                                                     (keys.first + k * keys.step) * key_stride]);
          });
        });
      }

     private:
      T const& at(index_t row, index_t key) const {
        return first[(where.first_row + row) * row_stride + (where.first_key + key) * key_stride];
      }

      template <class C>
      static C number(T value) {
        if constexpr (std::same_as<T, bool>)
          return value ? C(0) : -std::numeric_limits<C>::infinity();
        else
          return static_cast<C>(value);
      }
    };

    bound bind(place const& where) const {
      auto const stride = [this](int axis) {
        return numbers.extent(axis) == 1 ? 0 : numbers.stride(axis);
      };
      return {numbers.data() + where.batch * stride(0) + where.head * stride(1), stride(2),
              stride(3), where};
    }

    void check(call_shape const& shape) const {
      std::array<index_t, 4> const full{shape.batches, shape.heads, shape.rows, shape.keys};
      for (int axis = 0; axis < 4; ++axis)
        require(numbers.extent(axis) == 1 ||
                    numbers.extent(axis) == full[static_cast<std::size_t>(axis)],
                [&] {
                  return "bias has shape " + shape_text(numbers.extents()) + "; expected " +
                         shape_text(full) + " (batch, head, row, key), each 1 or in full";
                });
      require(gradient.data() == nullptr || gradient.extents() == numbers.extents(), [&] {
        return "the gradient of the bias has shape " + shape_text(gradient.extents()) +
               "; expected that of the bias, " + shape_text(numbers.extents());
      });
    }
};
template <class U>
bias(tensor_view<U, 4>) -> bias<std::remove_const_t<U>>;
template <class U, class G>
bias(tensor_view<U, 4>, tensor_view<G, 4>) -> bias<std::remove_const_t<U>, G>;

}  // namespace heed
