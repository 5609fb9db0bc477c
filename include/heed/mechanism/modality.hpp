#pragma once

#include <heed/parallel/workspace.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/labels.hpp>
#include <heed/view/copy.hpp>

#include <Eigen/Core>

#include <array>
#include <cmath>

/// MODA: MOdular Duplex Attention for Multimodal Perception, Cognition, and Emotion Understanding: masks by modality, and keys
/// of images that are aligned with the text.
namespace heed {

namespace detail {

/// admitted(a, b) = (a == b), for labels.
inline tensor_view<bool const, 2> equal_labels() {
  static constexpr auto table = [] {
    std::array<bool, 64 * 64> same{};
    for (std::size_t n = 0; n < 64; ++n) same[n * 64 + n] = true;
    return same;
  }();
  return {table.data(), {64, 64}};
}

}  // namespace detail

/// Keys of the query's own modality, causally. modality: 0 to 63 for each token, [batch, head, token], the first two 1 to
/// share; that of all keys, for steps of decoding too.
inline auto self_modal(tensor_view<int const, 3> modality) {
  return causal{} & labels{modality, modality, detail::equal_labels(), 0};
}

/// Keys of the other modalities, causally, and the query's own key. Together with self_modal it is causal.
inline auto cross_modal(tensor_view<int const, 3> modality) {
  return causal{} & (~labels{modality, modality, detail::equal_labels(), 0} | sliding_window{0, 0});
}

/// The alignment that MODA learns, one for all heads: keys of visual tokens become W (k + rho * (k^ G)), where x^ is
/// (x + 1e-6) divided by its norm, and G the sum over all text tokens of k^ v transposed, its rows divided by their norms.
template <class T>
struct key_alignment {
  tensor_view<T const, 1> rho;  // [dim], 0 at first
  tensor_view<T const, 2> mix;  // W: [dim, dim], row by output

  template <class U, class W>
    requires(std::is_same_v<std::remove_const_t<U>, T>&& std::is_same_v<std::remove_const_t<W>, T>)
  key_alignment(tensor_view<U, 1> r, tensor_view<W, 2> w) : rho(r), mix(w) {}
};
template <class U, class W>
key_alignment(tensor_view<U, 1>, tensor_view<W, 2>) -> key_alignment<std::remove_const_t<U>>;

namespace detail {

/// What alignment computes for one head, in scratch memory.
template <class T>
struct head_alignment {
  using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using map = Eigen::Map<matrix>;

  index_t dim, tokens;
  T *keys, *unit, *values, *norm, *sum, *sum_norm, *extra[4];

  head_alignment(arena& memory, index_t d, index_t n)
      : dim(d),
        tokens(n),
        keys(memory.take<T>(n * d)),
        unit(memory.take<T>(n * d)),
        values(memory.take<T>(n * d)),
        norm(memory.take<T>(n)),
        sum(memory.take<T>(d * d)),
        sum_norm(memory.take<T>(d)) {
    for (T*& each : extra) each = memory.take<T>(n * d + d * d);
  }

  map rows(T* numbers, index_t first, index_t count) const {
    return map(numbers + first * dim, count, dim);
  }
  map square(T* numbers) const { return map(numbers, dim, dim); }

  /// Gathers a head, visual tokens first, and computes unit keys and G. Returns the number of visual tokens.
  template <class K, class V>
  index_t load(tensor_view<K, 4> key, tensor_view<V, 4> value, tensor_view<bool const, 2> visual,
               index_t b, index_t h) const {
    index_t images = 0, at = 0;
    for (bool wanted : {true, false}) {
      for (index_t i = 0; i < tokens; ++i) {
        if (visual(visual.extent(0) == 1 ? 0 : b, i) != wanted) continue;
        for (index_t d = 0; d < dim; ++d) {
          keys[at * dim + d] = convert_element<T>(key(b, i, h, d));
          values[at * dim + d] = convert_element<T>(value(b, i, h, d));
        }
        ++at;
      }
      if (wanted) images = at;
    }
    map const k = rows(keys, 0, tokens);
    map u = rows(unit, 0, tokens);
    u = k.array() + T(1e-6);
    for (index_t i = 0; i < tokens; ++i) {
      norm[i] = u.row(i).norm();
      u.row(i) /= norm[i];
    }
    map G = square(sum);
    G.noalias() =
        rows(unit, images, tokens - images).transpose() * rows(values, images, tokens - images);
    for (index_t d = 0; d < dim; ++d) {
      sum_norm[d] = G.row(d).norm();
      if (sum_norm[d] > 0) G.row(d) /= sum_norm[d];  // without text, rows stay 0
    }
    return images;
  }

  /// Calls f(token, its row here) for all tokens.
  template <class F>
  void each_token(tensor_view<bool const, 2> visual, index_t b, index_t images, F f) const {
    index_t image = 0, text = images;
    for (index_t i = 0; i < tokens; ++i)
      f(i, visual(visual.extent(0) == 1 ? 0 : b, i) ? image++ : text++);
  }
};

template <class K, class V, class T>
void check_alignment(tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<bool const, 2> visual, key_alignment<T> const& how) {
  index_t const dim = key.extent(3);
  require(value.extents() == key.extents(), [&] {
    return "the values of a key alignment have shape " + shape_text(value.extents()) +
           "; expected that of the keys, " + shape_text(key.extents());
  });
  require((visual.extent(0) == 1 || visual.extent(0) == key.extent(0)) &&
              visual.extent(1) == key.extent(1),
          [&] {
            return "visual has shape " + shape_text(visual.extents()) + "; expected [1 or " +
                   std::to_string(key.extent(0)) + ", " + std::to_string(key.extent(1)) +
                   "] (batch, token)";
          });
  require(how.rho.extent(0) == dim && how.mix.extents() == std::array{dim, dim}, [&] {
    return "a key alignment has rho of shape " + shape_text(how.rho.extents()) +
           " and mix of shape " + shape_text(how.mix.extents()) + "; expected [" +
           std::to_string(dim) + "] and [" + std::to_string(dim) + ", " + std::to_string(dim) + "]";
  });
}

}  // namespace detail

/// aligned = the keys, those of visual tokens aligned with all of the text, later text too. Keys are rotated before. A
/// cache should hold the aligned keys, so that decoding sees what training saw.
///
///   key, value, aligned   [batch, token, key_heads, dim]
///   visual                [batch, token], the batch 1 to share
template <element K, element V, class T, element A>
void align_keys(tensor_view<K, 4> key, tensor_view<V, 4> value, tensor_view<bool const, 2> visual,
                key_alignment<T> const& how, tensor_view<A, 4> aligned) {
  detail::check_alignment(key, value, visual, how);
  require(aligned.extents() == key.extents(), [&] {
    return "the aligned keys have shape " + shape_text(aligned.extents()) +
           "; expected that of the keys, " + shape_text(key.extents());
  });
  using C = compute_type<K, V, T, A>;
  index_t const dim = key.extent(3), tokens = key.extent(1);
  arena measure;
  detail::head_alignment<C>(measure, dim, tokens);
  arena memory(thread_workspace().reserve(measure.used()));
  detail::head_alignment<C> const head(memory, dim, tokens);
  for (index_t b = 0; b < key.extent(0); ++b)
    for (index_t h = 0; h < key.extent(2); ++h) {
      index_t const images = head.load(key, value, visual, b, h);
      auto x = head.rows(head.extra[0], 0, images), y = head.rows(head.extra[1], 0, images);
      auto mix = head.square(head.extra[2]);
      for (index_t d = 0; d < dim; ++d)
        for (index_t e = 0; e < dim; ++e) mix(d, e) = static_cast<C>(how.mix(d, e));
      x.noalias() = head.rows(head.unit, 0, images) * head.square(head.sum);
      for (index_t d = 0; d < dim; ++d) x.col(d) *= static_cast<C>(how.rho(d));
      x += head.rows(head.keys, 0, images);
      y.noalias() = x * mix.transpose();
      head.each_token(visual, b, images, [&](index_t i, index_t row) {
        C const* const from = row < images ? head.extra[1] : head.keys;
        for (index_t d = 0; d < dim; ++d)
          aligned(b, i, h, d) = convert_element<A>(from[row * dim + d]);
      });
    }
}

/// The gradients of align_keys. daligned and dkey may be the same tensor. Text keys pass their gradient on, and receive
/// what G hands down. To dvalue, which attention has its own gradient in, that of G is added; drho and dmix are written.
template <element K, element V, class T, element DA, element DK, element DV>
void align_keys_backward(tensor_view<K, 4> key, tensor_view<V, 4> value,
                         tensor_view<bool const, 2> visual, key_alignment<T> const& how,
                         tensor_view<DA, 4> daligned, tensor_view<DK, 4> dkey,
                         tensor_view<DV, 4> dvalue, tensor_view<T, 1> drho,
                         tensor_view<T, 2> dmix) {
  detail::check_alignment(key, value, visual, how);
  require(daligned.extents() == key.extents() && dkey.extents() == key.extents() &&
              dvalue.extents() == key.extents() && drho.extents() == how.rho.extents() &&
              dmix.extents() == how.mix.extents(),
          [&] {
            return "the gradients of a key alignment have shapes " +
                   shape_text(daligned.extents()) + ", " + shape_text(dkey.extents()) + ", " +
                   shape_text(dvalue.extents()) + ", " + shape_text(drho.extents()) + " and " +
                   shape_text(dmix.extents()) + "; expected those of keys, values, rho and mix";
          });
  using C = compute_type<K, V, T, DA, DK, DV>;
  index_t const dim = key.extent(3), tokens = key.extent(1);
  auto const lay_out = [&](arena& memory) {
    detail::head_alignment<C> head(memory, dim, tokens);
    return std::pair(head, std::array{memory.take<C>(dim * dim), memory.take<C>(dim * dim),
                                      memory.take<C>(dim)});
  };
  arena measure;
  lay_out(measure);
  arena memory(thread_workspace().reserve(measure.used()));
  auto const [head, parameters] = lay_out(memory);
  auto mix = head.square(parameters[0]), mix_sum = head.square(parameters[1]);
  Eigen::Map<Eigen::Matrix<C, 1, Eigen::Dynamic>> rho_sum(parameters[2], dim);
  for (index_t d = 0; d < dim; ++d)
    for (index_t e = 0; e < dim; ++e) mix(d, e) = static_cast<C>(how.mix(d, e));
  mix_sum.setZero();
  rho_sum.setZero();
  for (index_t b = 0; b < key.extent(0); ++b)
    for (index_t h = 0; h < key.extent(2); ++h) {
      index_t const images = head.load(key, value, visual, b, h), text = tokens - images;
      auto dy = head.rows(head.extra[0], 0, tokens), x = head.rows(head.extra[1], 0, tokens),
           dunit = head.rows(head.extra[2], 0, tokens);
      auto dG = head.square(head.extra[3]), G = head.square(head.sum);
      head.each_token(visual, b, images, [&](index_t i, index_t row) {
        for (index_t d = 0; d < dim; ++d) dy(row, d) = convert_element<C>(daligned(b, i, h, d));
      });
      // y = x W^T with x = k + rho * u and u = k^ G; dy becomes dx, then x becomes rho * dx.
      auto image_x = x.topRows(images), image_dy = dy.topRows(images);
      image_x.noalias() = head.rows(head.unit, 0, images) * G;
      auto u = dunit.topRows(images);
      u = image_x;
      for (index_t d = 0; d < dim; ++d) image_x.col(d) *= static_cast<C>(how.rho(d));
      image_x += head.rows(head.keys, 0, images);
      mix_sum.noalias() += image_dy.transpose() * image_x;
      image_x.noalias() = image_dy * mix;
      image_dy = image_x;
      rho_sum += image_dy.cwiseProduct(u).colwise().sum();
      for (index_t d = 0; d < dim; ++d) image_x.col(d) *= static_cast<C>(how.rho(d));
      dG.noalias() = head.rows(head.unit, 0, images).transpose() * image_x;
      dunit.topRows(images).noalias() = image_x * G.transpose();
      // Rows of G were divided by their norms; then G = sum of k^ v^T over the text.
      for (index_t d = 0; d < dim; ++d) {
        if (head.sum_norm[d] > 0)
          dG.row(d) = (dG.row(d) - dG.row(d).dot(G.row(d)) * G.row(d)) / head.sum_norm[d];
        else
          dG.row(d).setZero();
      }
      dunit.bottomRows(text).noalias() = head.rows(head.values, images, text) * dG.transpose();
      x.bottomRows(text).noalias() = head.rows(head.unit, images, text) * dG;
      auto const unit = head.rows(head.unit, 0, tokens);
      for (index_t row = 0; row < tokens; ++row) {
        C const along = dunit.row(row).dot(unit.row(row));
        dy.row(row) += (dunit.row(row) - along * unit.row(row)) / head.norm[row];
      }
      head.each_token(visual, b, images, [&](index_t i, index_t row) {
        for (index_t d = 0; d < dim; ++d) {
          dkey(b, i, h, d) = convert_element<DK>(dy(row, d));
          if (row >= images)
            dvalue(b, i, h, d) =
                convert_element<DV>(convert_element<C>(dvalue(b, i, h, d)) + x(row, d));
        }
      });
    }
  for (index_t d = 0; d < dim; ++d) {
    drho(d) = static_cast<T>(rho_sum(d));
    for (index_t e = 0; e < dim; ++e) dmix(d, e) = static_cast<T>(mix_sum(d, e));
  }
}

}  // namespace heed
