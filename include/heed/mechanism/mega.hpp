#pragma once

#include <heed/mechanism/ema.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/softmax.hpp>

/// Mega: Moving Average Equipped Gated Attention.
///
/// A layer's attention, whose queries and keys come from exponential_moving_average (the maps between are the model's):
///
///     a_ij = softmax_j(q_i.k_j / sqrt(z) + b_(j-i)),   or   a_ij = f(q_i.k_j / l_i + b_(j-i)),   out_i = sum_j a_ij v_j
///
/// with l_i the number of keys that row i meets and f one of mega_laplace and mega_relu_squared; over the whole sequence or
/// in blocks. Decoding keeps the state of the moving averages and the keys and values of the block that runs.
namespace heed {

/// Which keys a row meets: those of its block of `block` positions (0: of the sequence), up to itself if causal, and below the
/// length of its batch entry, if there are lengths. With fewer rows than keys the last row stands at the last key.
struct mega_context {
  bool causal = true;
  index_t block = 0;
  std::span<index_t const> lengths = {};

  struct bound : detail::interval_rows<bound> {
    bool causal;
    index_t block, length;

    bound(bool until_self, index_t size, index_t end)
        : causal(until_self), block(size), length(end) {}
    interval row(index_t position) const {
      index_t const first = block == 0 || position < 0 ? 0 : position / block * block;
      index_t const last = block == 0 ? length : std::min(length, first + block);
      return {first, causal ? std::min(last, position + 1) : last};
    }
  };
  bound bind(place const& where) const {
    return {causal, block,
            lengths.empty() ? where.keys
                            : std::min(where.keys, lengths[static_cast<std::size_t>(where.batch)])};
  }
  void check(call_shape const& shape) const {
    require(block >= 0, [&] {
      return "mega_context.block is " + std::to_string(block) + "; expected at least 0";
    });
    require(lengths.empty() || static_cast<index_t>(lengths.size()) == shape.batches, [&] {
      return "mega_context has " + std::to_string(lengths.size()) + " lengths; expected " +
             std::to_string(shape.batches) + ", one for each batch entry";
    });
    for (index_t length : lengths)
      require(length >= 0 && length <= shape.keys, [&] {
        return "mega_context.lengths holds " + std::to_string(length) + "; expected 0 to " +
               std::to_string(shape.keys) + " (keys)";
      });
  }
};

/// A learned number for each distance: s -> s + table(j - i + P - 1) for a table of 2 P - 1 numbers, the query at position i
/// and the key at j less than P apart.
///
///   table      [2 P - 1]
///   gradient   the same shape, written by the backward pass; summed over heads. Optional
template <class T, class G = float>
struct distance_bias {
  tensor_view<T const, 1> table;
  tensor_view<G, 1> gradient = {};

  template <class U>
    requires std::same_as<T, std::remove_const_t<U>>
  explicit distance_bias(tensor_view<U, 1> t, tensor_view<G, 1> g = {}) : table(t), gradient(g) {}

  struct bound {
    tensor_view<T const, 1> table;
    index_t shift;  // of a row to its position, and of distances to entries

    template <class Batch>
    static Batch apply(Batch score, Batch number) {
      return score + number;
    }
    template <class C>
    void fill(pair_tile<C> const& tile) const {
      for (index_t key = tile.keys.first; key < tile.keys.last; ++key)
        for (index_t row = tile.rows.first; row < tile.rows.last; ++row)
          tile.data[(row - tile.rows.first) * tile.row_stride +
                    (key - tile.keys.first) * tile.key_stride] =
              convert_element<C>(table(parameter(row, key)));
    }
    /// Pairs that do not meet may be further apart, and read any.
    index_t parameter(index_t row, index_t key) const {
      return std::clamp<index_t>(key - row + shift, 0, table.extent(0) - 1);
    }
  };
  bound bind(place const& where) const {
    return {table, table.extent(0) / 2 - (where.keys - where.rows)};
  }
  bool wants_gradient() const { return gradient.data() != nullptr; }
  index_t parameters(call_shape const&) const { return table.extent(0); }
  void set_gradient(double const* sums, index_t heads) const {
    for (index_t e = 0; e < table.extent(0); ++e) {
      double sum = 0;
      for (index_t h = 0; h < heads; ++h) sum += sums[h * table.extent(0) + e];
      gradient(e) = static_cast<G>(sum);
    }
  }
  void check(call_shape const&) const {
    require(table.extent(0) % 2 == 1 && table.data() != nullptr, [&] {
      return "the table of distance_bias has shape " + shape_text(table.extents()) +
             "; expected an odd extent, 2 P - 1, and memory";
    });
    require(gradient.data() == nullptr || gradient.extents() == table.extents(), [&] {
      return "the gradient of distance_bias has shape " + shape_text(gradient.extents()) +
             "; expected that of the table, " + shape_text(table.extents());
    });
  }
};
template <class U>
distance_bias(tensor_view<U, 1>) -> distance_bias<std::remove_const_t<U>>;
template <class U, class G>
distance_bias(tensor_view<U, 1>, tensor_view<G, 1>) -> distance_bias<std::remove_const_t<U>, G>;

namespace detail {

/// Weights that are a function of the score alone, of which none is divided by their sum: Function::value and
/// Function::slope. Pairs that do not meet have a score of -infinity, and a weight of 0.
template <class Function>
struct elementwise_weights {
  static constexpr double score_unit = 1;
  static constexpr key_order order = key_order::any;

  template <class Batch>
  struct state {
    Batch unused = Batch(typename Batch::value_type(0));
  };
  template <class Batch>
  static Batch one() {
    return Batch(typename Batch::value_type(1));
  }
  template <class Batch>
  static Batch admit(state<Batch>&, Batch) {
    return one<Batch>();
  }
  template <class Batch>
  static Batch weigh(state<Batch>&, Batch score) {
    return Function::value(score);
  }
  template <class Batch>
  static std::pair<Batch, Batch> join(state<Batch>&, state<Batch> const&) {
    return {one<Batch>(), one<Batch>()};
  }
  template <class Batch>
  static finished_row<Batch> finish(state<Batch> const&) {
    return {one<Batch>(), Batch(typename Batch::value_type(0))};
  }
  template <class Batch>
  static Batch weight(Batch score, Batch, Batch) {
    return Function::value(score);
  }
  template <class Batch>
  static Batch score_gradient(Batch score, Batch, Batch dweight, Batch, Batch) {
    return Function::slope(score) * dweight;
  }
};

struct relu_squared_function {
  template <class Batch>
  static Batch value(Batch const& s) {
    Batch const positive = simd::detail::at_least(s, 0);
    return positive * positive;
  }
  template <class Batch>
  static Batch slope(Batch const& s) {
    Batch const positive = simd::detail::at_least(s, 0);
    return positive + positive;
  }
};

/// erfc(x) / 2 for x >= 0, with an error of 7e-8 in float and 2e-16 in double; 0 from 6.5 on, where it is below that.
template <class Batch>
Batch half_erfc(Batch const& x) {
  using T = typename Batch::value_type;
  constexpr T end = T(6.5), first = T(2) / (T(2) + end);
  // e^(x^2) erfc(x) as a polynomial of t = 2 / (2 + x), which runs from 1 to 4/17, as u does from 1 to -1.
  Batch const bounded = xsimd::select(x < Batch(end), x, Batch(end));
  Batch const t = Batch(T(2)) / (Batch(T(2)) + bounded);
  Batch const u = (t - Batch(first)) * Batch(T(2) / (T(1) - first)) - Batch(T(1));
  Batch scaled;
  if constexpr (std::same_as<T, float>) {
    constexpr float c[] = {0.370324112f,    0.423731138f,    0.174094536f,
                           0.0351017291f,   -0.00162652289f, -0.00184136877f,
                           0.000129313493f, 0.000105690747f, -1.86134274e-05f};
    scaled = simd::polynomial(u, c);
  } else {
    constexpr double c[] = {
        0.37032411176472535,     0.4237309241291658,     0.17409463737153302,
        0.035104572730257147,    -0.0016278856558875133, -0.0018515781336239257,
        0.0001343143818098664,   0.00011918915188279895, -2.5577009090828709e-05,
        -5.7562107957469606e-06, 3.5139885664732695e-06, -2.8858049283608271e-07,
        -2.7846782441351812e-07, 1.1325855878152602e-07, -5.590968869090538e-09,
        -1.1326979137706755e-08, 4.7763584833303091e-09, -1.9927054715313239e-10,
        -5.1540035731331308e-10, 1.2885041182168303e-10, 8.6260734005485405e-12};
    scaled = simd::polynomial(u, c);
  }
  return xsimd::select(x < Batch(end), Batch(T(0.5)) * scaled * simd::exp(-(bounded * bounded)),
                       Batch(T(0)));
}

struct laplace_function {
  static constexpr double mean = 0.707107, deviation = 0.282095;

  /// (1 + erf(x)) / 2 at x = (s - mean) / (deviation sqrt 2).
  template <class Batch>
  static Batch value(Batch const& s) {
    using T = typename Batch::value_type;
    Batch const x = argument(s), tail = half_erfc(xsimd::abs(x));
    return xsimd::select(x < Batch(T(0)), tail, Batch(T(1)) - tail);
  }
  template <class Batch>
  static Batch slope(Batch const& s) {
    using T = typename Batch::value_type;
    constexpr T height = T(0.39894228040143267794 / deviation);  // 1 / (deviation sqrt(2 pi))
    Batch const x = argument(s);
    return Batch(height) * simd::exp(-(x * x));
  }

 private:
  template <class Batch>
  static Batch argument(Batch const& s) {
    using T = typename Batch::value_type;
    constexpr T scale = T(1 / (deviation * 1.41421356237309504880));
    return (s - Batch(T(mean))) * Batch(scale);
  }
};

}  // namespace detail

/// f(s) = max(s, 0)^2.
struct mega_relu_squared : detail::elementwise_weights<detail::relu_squared_function> {};
/// f(s) = (1 + erf((s - 0.707107) / (0.282095 sqrt 2))) / 2.
struct mega_laplace : detail::elementwise_weights<detail::laplace_function> {};

namespace detail {

template <class F>
inline constexpr bool is_mega_function =
    std::same_as<F, softmax> || std::same_as<F, mega_relu_squared> || std::same_as<F, mega_laplace>;

/// Calls f with what the function says of the scale: 1 / sqrt(z), or 1 / l_i.
template <class T, class Function, class F>
void with_mega_scale(mega_context const& context, tensor_view<T, 1>, Function const&,
                     std::array<index_t, 4> const& query, index_t keys, F const& f) {
  if constexpr (std::same_as<Function, softmax>) {
    f();
  } else {
    context.check({.batches = query[0], .rows = query[1], .keys = keys});
    struct page {};
    auto const factors =
        recur::page_tensors<page, T>(recur::tensor_shape{query[0], query[1], 1, 1})[0];
    for (index_t b = 0; b < query[0]; ++b) {
      auto const rows = context.bind({.batch = b, .rows = query[1], .keys = keys});
      for (index_t i = 0; i < query[1]; ++i)
        factors(b, i, 0, 0) =
            T(1) / static_cast<T>(std::max<index_t>(1, rows.row(i + keys - query[1]).size()));
    }
    f(scale{1}, row_scale(tensor_view<T, 3>(factors.data(), {query[0], query[2], query[1]},
                                            {factors.stride(0), 0, factors.stride(1)})));
  }
}

}  // namespace detail

/// Mega's attention.
///
///   query, key   [batch, N, heads, z], [batch, M, key heads, z]
///   value, out   [batch, M, value heads, dim], [batch, N, heads, dim]
///   lse          [batch, heads, N], in the type of the computation: what mega_attention_backward asks for
///   function     softmax{}, mega_laplace{} or mega_relu_squared{}
///   context      which keys a row meets
///
/// Ingredients, in any order: distance_bias, an executor, scratch. A row that meets no key gives 0.
template <element Q, element K, element V, element O, class T, class Function, class... Ingredients>
  requires detail::is_mega_function<Function>
void mega_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                    tensor_view<O, 4> out, tensor_view<T, 3> lse, Function const& function,
                    mega_context const& context, Ingredients const&... ingredients) {
  detail::with_mega_scale(context, tensor_view<T, 1>(), function, query.extents(), key.extent(1),
                          [&](auto const&... scales) {
                            attention(query, key, value, out, function, context, lse_into<T>{lse},
                                      scales..., ingredients...);
                          });
}

/// The gradients of mega_attention from its result, with the same arguments; distance_bias may carry a gradient.
template <element Q, element K, element V, element O, class T, element DO, element DQ, element DK,
          element DV, class Function, class... Ingredients>
  requires detail::is_mega_function<Function>
void mega_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                             tensor_view<V, 4> value, tensor_view<O, 4> out, tensor_view<T, 3> lse,
                             tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                             tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                             Function const& function, mega_context const& context,
                             Ingredients const&... ingredients) {
  using number = std::remove_const_t<T>;
  detail::with_mega_scale(context, tensor_view<number, 1>(), function, query.extents(),
                          key.extent(1), [&](auto const&... scales) {
                            attention_backward(query, key, value, out, lse, dout, dquery, dkey,
                                               dvalue, function, context, scales...,
                                               ingredients...);
                          });
}

/// The table of distance_bias from two learned vectors, b_(j-i) = rotated_i(alpha) . rotated_j(beta): halves rotated, pair l by
/// 10000^(-2 l / z) a position.
///
///   alpha, beta   [z], z even
///   table         [2 P - 1]
template <element A, element B, element E>
void mega_rotary_table(tensor_view<A, 1> alpha, tensor_view<B, 1> beta, tensor_view<E, 1> table) {
  index_t const z = alpha.extent(0), half = z / 2, middle = table.extent(0) / 2;
  require(z % 2 == 0 && beta.extent(0) == z && table.extent(0) % 2 == 1, [&] {
    return "alpha, beta and the table have shapes " + shape_text(alpha.extents()) + ", " +
           shape_text(beta.extents()) + " and " + shape_text(table.extents()) +
           "; expected one even extent of both, and an odd one, 2 P - 1";
  });
  auto const at = [](auto const& of, index_t l) { return convert_element<double>(of(l)); };
  for (index_t e = 0; e < table.extent(0); ++e) {
    double sum = 0;
    for (index_t l = 0; l < half; ++l) {
      double const angle = static_cast<double>(e - middle) *
                           std::pow(10000.0, -static_cast<double>(l) / static_cast<double>(half));
      double const a = at(alpha, l), c = at(alpha, half + l), b = at(beta, l),
                   d = at(beta, half + l);
      sum += (a * b + c * d) * std::cos(angle) + (c * b - a * d) * std::sin(angle);
    }
    table(e) = convert_element<E>(sum);
  }
}

/// d loss / d alpha and d beta from d loss / d table.
template <element A, element B, element E, element DA, element DB>
void mega_rotary_table_backward(tensor_view<A, 1> alpha, tensor_view<B, 1> beta,
                                tensor_view<E, 1> dtable, tensor_view<DA, 1> dalpha,
                                tensor_view<DB, 1> dbeta) {
  index_t const z = alpha.extent(0), half = z / 2, middle = dtable.extent(0) / 2;
  require(z % 2 == 0 && beta.extent(0) == z && dalpha.extent(0) == z && dbeta.extent(0) == z &&
              dtable.extent(0) % 2 == 1,
          [&] {
            return "alpha, beta, dtable, dalpha and dbeta have shapes " +
                   shape_text(alpha.extents()) + ", " + shape_text(beta.extents()) + ", " +
                   shape_text(dtable.extents()) + ", " + shape_text(dalpha.extents()) + " and " +
                   shape_text(dbeta.extents()) +
                   "; expected one even extent, and an odd one of dtable";
          });
  auto const at = [](auto const& of, index_t l) { return convert_element<double>(of(l)); };
  for (index_t l = 0; l < half; ++l) {
    double along = 0, across = 0;  // sums of cosines and of sines
    for (index_t e = 0; e < dtable.extent(0); ++e) {
      double const angle = static_cast<double>(e - middle) *
                           std::pow(10000.0, -static_cast<double>(l) / static_cast<double>(half));
      along += at(dtable, e) * std::cos(angle);
      across += at(dtable, e) * std::sin(angle);
    }
    double const a = at(alpha, l), c = at(alpha, half + l), b = at(beta, l), d = at(beta, half + l);
    dalpha(l) = convert_element<DA>(b * along - d * across);
    dalpha(half + l) = convert_element<DA>(d * along + b * across);
    dbeta(l) = convert_element<DB>(a * along + c * across);
    dbeta(half + l) = convert_element<DB>(c * along - a * across);
  }
}

}  // namespace heed
