#pragma once

#include <heed/cache/ring_cache.hpp>
#include <heed/mechanism/extra_keys.hpp>
#include <heed/mechanism/learned_features.hpp>
#include <heed/recur/gate_functions.hpp>
#include <heed/recur/linear_attention.hpp>
#include <heed/softmax.hpp>

/// Lizard: An Efficient Linearization Framework for Large Language Models. What takes the place of softmax attention is the sum of
/// two branches, each with a normaliser of its own:
///
///     gated     y_i = sum_(j <= i) (phi_q(q_i) * e^(G_i - G_j)).phi_k(k_j) v_j / the same without v_j,
///               phi(x) = [e^(x W), e^(-x W)], G the running sum of log sigmoid(gate)
///     windowed  w_i = softmax attention over the `window` last keys and some learned sinks
///     out_i     = y_i + alpha w_i
///
/// Positions are not rotated. Exponentials of any size: a query's are relative to its largest |q W|, a key's to the largest
/// |k W| of the keys so far, which passes into the gate; both cancel in y.
namespace heed {

/// The learned parameters and the form.
///
///   query_weights, key_weights   W, [heads of query, of key, or 1; head_dim, width]
///   alpha                        one for each head
///   window                       how many keys the windowed branch meets, the query's own included
///   sinks                        [heads, sinks], logits whose weight carries no value. Optional
///   meta_keys, meta_values       instead of sinks, [batch, keys, heads, dim]: keys that every query meets in the window's
///                                softmax. Optional; give a batch stride of 0 to share them
///   normalised                   false: y without the division, the recurrence that the paper decodes with. Exponents are then
///                                kept within 30
template <class T>
struct lizard_parameters {
  tensor_view<T const, 3> query_weights;
  tensor_view<T const, 3> key_weights;
  std::span<T const> alpha;
  index_t window;
  tensor_view<T const, 2> sinks = {};
  tensor_view<T const, 4> meta_keys = {};
  tensor_view<T const, 4> meta_values = {};
  bool normalised = true;
};

/// Where the backward pass writes the gradients of the parameters, shaped like them.
template <class T>
struct lizard_gradients {
  tensor_view<T, 3> query_weights;
  tensor_view<T, 3> key_weights;
  std::span<T> alpha;
  tensor_view<T, 2> sinks = {};
  tensor_view<T, 4> meta_keys = {};
  tensor_view<T, 4> meta_values = {};
};

/// The results of the two branches, which the backward pass needs: gated and windowed [batch, N, heads, value_dim], lse
/// [batch, heads, N], all in the type of the computation.
template <class T>
struct lizard_branches {
  tensor_view<T, 4> gated;
  tensor_view<T, 4> windowed;
  tensor_view<T, 3> lse;
};

/// What the gated branch carries on, in memory of the caller; the windowed one has a ring_cache of `window` slots.
///
///   memory    [sequences, heads, 2 width, value_dim, and one more if normalised], float or double
///   largest   the largest |k W| so far, [sequences, key heads]
template <class T>
struct lizard_state {
  tensor_view<T, 4> memory;
  tensor_view<double, 2> largest;

  void clear() const {
    for (index_t s = 0; s < memory.extent(0); ++s)
      for (index_t h = 0; h < memory.extent(1); ++h)
        for (index_t f = 0; f < memory.extent(2); ++f)
          for (index_t e = 0; e < memory.extent(3); ++e) memory(s, h, f, e) = T(0);
    for (index_t s = 0; s < largest.extent(0); ++s)
      for (index_t h = 0; h < largest.extent(1); ++h)
        largest(s, h) = -std::numeric_limits<double>::infinity();
  }
};
template <class T>
lizard_state(tensor_view<T, 4>, tensor_view<double, 2>) -> lizard_state<T>;

namespace detail {

/// [e^(y - c), e^(-y - c)] of rows y: c is the largest |y| of a query, and the number after those of a key.
struct lizard_exponentials {
  bool stable = true;
  static constexpr double bound = 30;  // of exponents otherwise

  static index_t features(side of, index_t dim) { return 2 * (of == side::key ? dim - 1 : dim); }

  template <class T, class Arch = xsimd::default_arch>
  void apply(side of, feature_rows<T> const& x, T* phi, index_t stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = features(of, x.dim) / 2;
    for (index_t r = 0; r < x.count; ++r) {
      T* const to = phi + r * stride;
      T top = 0;
      if (stable && of == side::key) top = x[r][width];
      if (stable && of == side::query)
        for (index_t c = 0; c < width; ++c) top = std::max(top, std::abs(x[r][c]));
      batch const most(top);
      auto const exponential = [&](T sign, T* half) {
        recur::transform_row<Arch>(
            width, half, [&](batch const& y) { return simd::exp(bounded(y) * batch(sign) - most); },
            x[r]);
      };
      exponential(T(1), to);
      exponential(T(-1), to + width);
    }
  }

  template <class T, class Arch = xsimd::default_arch>
  void differentiate(side of, feature_rows<T> const& x, T const* phi, T const* dphi, index_t stride,
                     T* dx, index_t dx_stride) const {
    using batch = xsimd::batch<T, Arch>;
    index_t const width = features(of, x.dim) / 2;
    for (index_t r = 0; r < x.count; ++r) {
      T const *const y = x[r], *const up = phi + r * stride, *const slope = dphi + r * stride;
      T* const to = dx + r * dx_stride;
      recur::transform_row<Arch>(
          width, to, [](batch const& a, batch const& b) { return a * b; }, up, slope);
      recur::transform_row<Arch>(
          width, to, [](batch const& a, batch const& b, batch const& sum) { return sum - a * b; },
          up + width, slope + width, static_cast<T const*>(to));
      for (index_t c = 0; c < width && !stable; ++c)
        if (std::abs(y[c]) > T(bound)) to[c] = 0;
      if (of == side::key) to[width] = 0;
    }
  }

 private:
  template <class Batch>
  Batch bounded(Batch const& y) const {
    using T = typename Batch::value_type;
    return stable ? y : xsimd::min(xsimd::max(y, Batch(T(-bound))), Batch(T(bound)));
  }
};

/// y = x W alone.
struct projection_only {
  static index_t features(index_t width) { return width; }
  template <class Arch, class T>
  static void apply(index_t width, T const* y, T* phi) {
    std::copy_n(y, width, phi);
  }
  template <class Arch, class T>
  static void differentiate(index_t width, T const*, T const*, T const* dphi, T* dy) {
    std::copy_n(dphi, width, dy);
  }
};

inline constexpr auto is_lizard_state = []<class T>() { return is_a<T, lizard_state>; };
inline constexpr auto is_for_both_branches = []<class T>() {
  using namespace recur::detail;
  return is_executor.template operator()<T>() || is_documents.template operator()<T>() ||
         is_scratch.template operator()<T>();
};
inline constexpr auto is_for_gated_branch = []<class T>() {
  return is_for_both_branches.template operator()<T>() ||
         recur::detail::is_chunk.template operator()<T>();
};

template <class I>
constexpr bool check_lizard_ingredient() {
  constexpr bool known = is_for_gated_branch.template operator()<I>() ||
                         recur::detail::is_scale.template operator()<I>() ||
                         is_lizard_state.template operator()<I>();
  static_assert(
      known,
      "heed: this is no ingredient of lizard: expected scale (of the window), lizard_state, "
      "documents, chunk_size, an executor or scratch");
  return known;
}

struct lizard_page;
struct lizard_gate_page;
struct lizard_gradient_page;
struct lizard_gate_gradient_page;
struct lizard_sum_page;
struct lizard_step_page;
struct lizard_state_page;

/// A copy to work with until nothing can be refused any more.
inline tensor_view<double, 2> copy_of_largest(tensor_view<double, 2> from) {
  auto const copy = recur::page_tensors<lizard_state_page, double>(
      recur::tensor_shape{1, from.extent(0), 1, from.extent(1)})[0];
  tensor_view<double, 2> const result(copy.data(), from.extents());
  for (index_t s = 0; s < from.extent(0); ++s)
    for (index_t h = 0; h < from.extent(1); ++h) result(s, h) = from(s, h);
  return result;
}
inline void copy_largest(tensor_view<double, 2> from, tensor_view<double, 2> to) {
  for (index_t s = 0; s < to.extent(0); ++s)
    for (index_t h = 0; h < to.extent(1); ++h) to(s, h) = from(s, h);
}

/// What the gated branch reads: projections of queries and keys, the latter with their reference behind them, and log gates of each
/// feature, or one a head, in double.
template <class T>
struct lizard_operands {
  tensor_view<T, 4> query, key;
  tensor_view<double, 4> log_gate;
};

template <class T, class Q, class K, class G, class E, class... I>
lizard_operands<T> prepare_lizard(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                  tensor_view<G, 4> gate, lizard_parameters<E> const& with,
                                  tensor_view<double, 2> largest, I const&... ingredients) {
  static_assert((true && ... && check_lizard_ingredient<I>()));
  index_t const width = with.key_weights.extent(2);
  require(gate.extent(0) == key.extent(0) && gate.extent(1) == key.extent(1) &&
              gate.extent(2) == key.extent(2) && (gate.extent(3) == 1 || gate.extent(3) == width),
          [&] {
            return "gate has shape " + shape_text(gate.extents()) + "; expected [" +
                   std::to_string(key.extent(0)) + ", " + std::to_string(key.extent(1)) + ", " +
                   std::to_string(key.extent(2)) + ", 1 or " + std::to_string(width) +
                   "] (batch, position, key head, one or width)";
          });
  require(with.query_weights.extent(2) == width, [&] {
    return "lizard_parameters.query_weights have shape " +
           shape_text(with.query_weights.extents()) + " and key_weights " +
           shape_text(with.key_weights.extents()) + "; expected the same width (axis 2)";
  });
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  auto const packed = one_of<recur::detail::is_documents>(documents{}, ingredients...);
  if (!packed.keys.empty()) packed.check(key.extent(0), query.extent(1), key.extent(1));
  auto const of_width = [](recur::tensor_shape shape, index_t columns) {
    shape[3] = columns;
    return shape;
  };
  index_t const channels = gate.extent(3) == 1 ? 1 : 2 * width;
  auto const rows = recur::page_tensors<lizard_page, T>(of_width(query.extents(), width),
                                                        of_width(key.extents(), width + 1));
  auto const gates =
      recur::page_tensors<lizard_gate_page, double>(of_width(key.extents(), channels))[0];
  learned_features(projection_only{}, query, with.query_weights, tensor_view<E const, 2>(), rows[0],
                   runs);
  learned_features(projection_only{}, key, with.key_weights, tensor_view<E const, 2>(),
                   rows[1].slice(3, 0, width), runs);
  for (index_t half = 0; half * gate.extent(3) < channels; ++half)
    log_sigmoid_gate(gate, gates.slice(3, half * gate.extent(3), gate.extent(3)), 1, runs);

  // The references of the keys, the largest so far, which the gates take up.
  recur::sequence_list const sequences{
      packed.keys.empty() ? key.extent(0) : static_cast<index_t>(packed.keys.size()) - 1,
      query.extent(1), key.extent(1), packed};
  require(largest.data() == nullptr ||
              largest.extents() == std::array<index_t, 2>({sequences.count, key.extent(2)}),
          [&] {
            return "lizard_state.largest has shape " + shape_text(largest.extents()) +
                   "; expected [" + std::to_string(sequences.count) + ", " +
                   std::to_string(key.extent(2)) + "] (sequence, key head)";
          });
  parallel_for(runs, sequences.count * key.extent(2), [&](index_t piece, index_t) {
    place const where = sequences.at(piece / key.extent(2));
    index_t const h = piece % key.extent(2);
    double top = largest.data() == nullptr ? -std::numeric_limits<double>::infinity()
                                           : largest(where.sequence, h);
    for (index_t t = where.first_key; t < where.first_key + where.keys; ++t) {
      T* const row = &rows[1](where.batch, t, h, 0);
      row[width] = 0;
      if (!with.normalised) continue;
      double next = std::max(top, 0.0);
      for (index_t c = 0; c < width; ++c)
        next = std::max(next, static_cast<double>(std::abs(row[c])));
      row[width] = static_cast<T>(next);
      for (index_t c = 0; c < channels; ++c) gates(where.batch, t, h, c) += top - next;
      top = next;
    }
    if (largest.data() != nullptr) largest(where.sequence, h) = top;
  });
  return {rows[0], rows[1], gates};
}

/// Calls f(clauses of the gated branch) with the gate, and its gradient or none.
template <class F, class E>
void with_lizard_clauses(lizard_parameters<E> const& with, tensor_view<double, 4> gate,
                         tensor_view<double, 4> dgate, F const& f) {
  lizard_exponentials const map{with.normalised};
  // What is left of a sum of exponentials is a number unless it is smaller than this.
  normalised const by{.epsilon = 0, .at_least = 1e-30};
  auto const with_gate = [&](auto const& decays) {
    with.normalised ? f(map, decays, by) : f(map, decays);
  };
  if (gate.extent(3) == 1)
    with_gate(decay<double>(recur::without_channels(gate), dgate.data() == nullptr
                                                               ? tensor_view<double, 3>()
                                                               : recur::without_channels(dgate)));
  else
    with_gate(key_decay<double>(gate, dgate));
}

/// Calls f(clauses of the windowed branch's normaliser...).
template <class E, class F>
void with_lizard_sinks(lizard_parameters<E> const& with, tensor_view<E, 2> gradient, F const& f) {
  if (with.sinks.data() == nullptr)
    f();
  else
    f(softmax_with_sinks<E>(with.sinks, gradient));
}

inline auto lizard_window(index_t window) {
  return causal{} & sliding_window{.left = window - 1};
}

/// out = gated + alpha windowed.
template <class T, class O, class E>
void add_lizard_branches(any_executor const& run_on, tensor_view<T, 4> gated,
                         tensor_view<T, 4> windowed, std::span<E const> alpha,
                         tensor_view<O, 4> out) {
  tensor_view<E const, 4> const factors(alpha.data(), out.extents(), {0, 0, 1, 0});
  recur::transform(
      run_on, sink<T>(out),
      [](auto const& y, auto const& w, auto const& a) { return xsimd::fma(a, w, y); },
      source<T>(gated), source<T>(windowed), source<T>(factors));
}

template <class O, class E>
void check_lizard_parameters(tensor_view<O, 4> out, lizard_parameters<E> const& with) {
  require(static_cast<index_t>(with.alpha.size()) == out.extent(2), [&] {
    return "lizard_parameters.alpha has " + std::to_string(with.alpha.size()) +
           " numbers; expected one for each of " + std::to_string(out.extent(2)) + " heads";
  });
  require(with.window > 0, [&] {
    return "lizard_parameters.window is " + std::to_string(with.window) +
           "; expected at least 1 key";
  });
  require(with.sinks.data() == nullptr || with.meta_keys.data() == nullptr, [] {
    return std::string("lizard_parameters has sinks and meta_keys; expected one of them");
  });
}

template <class Q, class... I>
scale lizard_scale(tensor_view<Q, 4> query, I const&... ingredients) {
  return one_of<recur::detail::is_scale>(
      scale{1 / std::sqrt(static_cast<double>(std::max<index_t>(query.extent(3), 1))), nullptr},
      ingredients...);
}

}  // namespace detail

/// Lizard's attention.
///
///   query, key, value, out   as in attention()
///   gate                     [batch, M, key heads, 1 or width]: numbers before the sigmoid, for a head or for each
///                            feature of k W
///   branches                 receives the results of the branches
///
/// Ingredients: scale of the windowed branch (default head_dim^-1/2), lizard_state, documents, chunk_size, an executor, scratch. A
/// lizard_state carries on the gated branch; the windowed one has what is given.
template <element Q, element K, element V, element G, element O, class E, class T,
          class... Ingredients>
void lizard_attention(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                      tensor_view<G, 4> gate, lizard_parameters<E> const& with,
                      lizard_branches<T> const& branches, tensor_view<O, 4> out,
                      Ingredients const&... ingredients) {
  static_assert(std::is_same_v<T, compute_type<Q, K, V, G, O, E>>,
                "heed: the branches of lizard are in the type of the computation");
  detail::check_lizard_parameters(out, with);
  tensor_view<double, 2> held, largest;
  if constexpr ((false || ... || detail::is_lizard_state.template operator()<Ingredients>())) {
    held = std::get<0>(all_of<detail::is_lizard_state>(ingredients...)).largest;
    largest = detail::copy_of_largest(held);
  }
  auto const& b = branches;
  detail::expect_like("branches.gated", b.gated, out.extents(), "out");
  detail::expect_like("branches.windowed", b.windowed, out.extents(), "out");
  auto const x = detail::prepare_lizard<T>(query, key, gate, with, largest, ingredients...);
  auto const shared = all_of<detail::is_for_both_branches>(ingredients...);
  std::apply(
      [&](auto const&... all) {
        scale const by = detail::lizard_scale(query, ingredients...);
        if (with.meta_keys.data() != nullptr)
          attention_with_extra_keys(query, key, value, extra_keys(with.meta_keys, with.meta_values),
                                    b.windowed, detail::lizard_window(with.window), by,
                                    lse_into<T>{b.lse}, all...);
        else
          detail::with_lizard_sinks<E>(with, {}, [&](auto const&... sinks) {
            attention(query, key, value, b.windowed, detail::lizard_window(with.window), by,
                      lse_into<T>{b.lse}, sinks..., all...);
          });
      },
      shared);
  detail::with_lizard_clauses(with, x.log_gate, {}, [&](auto const&... clauses) {
    auto const call = [&](auto const&... all) {
      linear_attention(x.query, x.key, value, b.gated, clauses..., all...);
    };
    auto const own = all_of<detail::is_for_gated_branch>(ingredients...);
    if constexpr ((false || ... || detail::is_lizard_state.template operator()<Ingredients>()))
      std::apply(
          call,
          std::tuple_cat(
              own, std::tuple(state{
                       std::get<0>(all_of<detail::is_lizard_state>(ingredients...)).memory})));
    else
      std::apply(call, own);
  });
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  detail::add_lizard_branches<T>(any_executor(runs), b.gated, b.windowed, with.alpha, out);
  detail::copy_largest(largest, held);
}

/// The gradients of lizard_attention from its saved branches, without a state. dgate is shaped like gate.
template <element Q, element K, element V, element G, element DO, element DQ, element DK,
          element DV, element DG, class E, class T, class... Ingredients>
void lizard_attention_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                               tensor_view<V, 4> value, tensor_view<G, 4> gate,
                               lizard_parameters<E> const& with, lizard_branches<T> const& branches,
                               tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery,
                               tensor_view<DK, 4> dkey, tensor_view<DV, 4> dvalue,
                               tensor_view<DG, 4> dgate, lizard_gradients<E> const& to,
                               Ingredients const&... ingredients) {
  static_assert((true && ... && !detail::is_lizard_state.template operator()<Ingredients>()),
                "heed: the backward pass of lizard begins without a state");
  auto const& b = branches;
  detail::check_lizard_parameters(b.gated, with);
  detail::expect_like("dout", dout, b.gated.extents(), "branches.gated");
  detail::expect_like("dquery", dquery, query.extents(), "query");
  detail::expect_like("dkey", dkey, key.extents(), "key");
  detail::expect_like("dvalue", dvalue, value.extents(), "value");
  detail::expect_like("dgate", dgate, gate.extents(), "gate");
  require(to.alpha.size() == with.alpha.size(), [&] {
    return "lizard_gradients.alpha has " + std::to_string(to.alpha.size()) + " numbers; expected " +
           std::to_string(with.alpha.size());
  });
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  any_executor const run_on(runs);
  auto const x = detail::prepare_lizard<T>(query, key, gate, with, {}, ingredients...);
  auto const t = recur::page_tensors<detail::lizard_gradient_page, T>(
      x.query.extents(), x.key.extents(), query.extents(), key.extents(), value.extents(),
      dout.extents(), recur::tensor_shape{dout.extent(0), dout.extent(1), dout.extent(2), 1});
  auto const& dy_query = t[0];
  auto const& dy_key = t[1];
  auto const dlog_gate =
      recur::page_tensors<detail::lizard_gate_gradient_page, double>(x.log_gate.extents())[0];
  auto const shared = all_of<detail::is_for_both_branches>(ingredients...);

  // The window, whose result counts alpha times.
  tensor_view<E const, 4> const factors(with.alpha.data(), dout.extents(), {0, 0, 1, 0});
  recur::transform(
      run_on, sink<T>(t[5]), [](auto const& a, auto const& d) { return a * d; }, source<T>(factors),
      source<T>(dout));
  std::apply(
      [&](auto const&... all) {
        scale const by = detail::lizard_scale(query, ingredients...);
        if (with.meta_keys.data() != nullptr)
          attention_with_extra_keys_backward(
              query, key, value, extra_keys(with.meta_keys, with.meta_values), b.windowed, b.lse,
              t[5], dquery, dkey, dvalue, to.meta_keys, to.meta_values,
              detail::lizard_window(with.window), by, all...);
        else
          detail::with_lizard_sinks<E>(with, to.sinks, [&](auto const&... sinks) {
            attention_backward(query, key, value, b.windowed, b.lse, t[5], dquery, dkey, dvalue,
                               detail::lizard_window(with.window), by, sinks..., all...);
          });
      },
      shared);
  auto const gains = recur::without_channels(t[6]);
  recur::for_row_blocks(run_on, dout.extents(),
                        [&](index_t n, index_t h, index_t first, index_t count) {
                          for (index_t i = first; i < first + count; ++i) {
                            double sum = 0;
                            for (index_t e = 0; e < dout.extent(3); ++e)
                              sum += convert_element<double>(dout(n, i, h, e)) *
                                     static_cast<double>(b.windowed(n, i, h, e));
                            gains(n, i, h) = static_cast<T>(sum);
                          }
                        });
  static constexpr T one = 1;
  recur::sums_over_tokens(run_on, gains, tensor_view<T const, 3>(&one, gains.extents(), {0, 0, 0}),
                          to.alpha);

  // The gated branch, whose gradients are added.
  detail::with_lizard_clauses(with, x.log_gate, dlog_gate, [&](auto const&... clauses) {
    std::apply(
        [&](auto const&... all) {
          linear_attention_backward(x.query, x.key, value, b.gated, dout, dy_query, dy_key, t[4],
                                    clauses..., all...);
        },
        all_of<detail::is_for_gated_branch>(ingredients...));
  });
  tensor_view<E const, 2> const no_bias;
  index_t const width = with.key_weights.extent(2);
  detail::learned_features_backward(detail::projection_only{}, query, with.query_weights, no_bias,
                                    dy_query, t[2], to.query_weights, tensor_view<E, 2>(), runs);
  detail::learned_features_backward(detail::projection_only{}, key, with.key_weights, no_bias,
                                    dy_key.slice(3, 0, width), t[3], to.key_weights,
                                    tensor_view<E, 2>(), runs);
  auto const add = [&](auto const& sum, auto const& more) {
    recur::transform(
        run_on, sink<T>(sum), [](auto const& a, auto const& c) { return a + c; }, source<T>(sum),
        source<T>(more));
  };
  add(dquery, t[2]);
  add(dkey, t[3]);
  add(dvalue, t[4]);
  auto const first_half = dlog_gate.slice(3, 0, gate.extent(3));
  if (gate.extent(3) > 1)
    recur::transform(
        run_on, sink<double>(first_half), [](auto const& a, auto const& c) { return a + c; },
        source<double>(first_half), source<double>(dlog_gate.slice(3, width, width)));
  log_sigmoid_gate_backward(gate, first_half, dgate, 1, runs);
}

/// One token, whose tensors have one position: appended to `window`, a ring cache of with.window slots and no sinks, and taken
/// into `held`. Allocates nothing after the first.
template <element Q, element K, element V, element G, element O, class E, class S, element C,
          class... Ingredients>
void lizard_attention_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                           tensor_view<G, 4> gate, lizard_parameters<E> const& with,
                           lizard_state<S> const& held, ring_cache<C>& window,
                           tensor_view<O, 4> out, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, G, O, E, S, C>;
  detail::check_lizard_parameters(out, with);
  require(window.slots().window == with.window && window.slots().sinks == 0, [&] {
    return "a ring cache with a window of " + std::to_string(window.slots().window) + " and " +
           std::to_string(window.slots().sinks) + " sinks; expected " +
           std::to_string(with.window) + " and none";
  });
  auto const branches =
      recur::page_tensors<detail::lizard_step_page, T>(out.extents(), out.extents());
  auto const largest = detail::copy_of_largest(held.largest);
  auto const x = detail::prepare_lizard<T>(query, key, gate, with, largest, ingredients...);
  detail::with_lizard_clauses(with, x.log_gate, {}, [&](auto const&... clauses) {
    std::apply(
        [&](auto const&... all) {
          linear_attention_step(x.query, x.key, value, branches[0], held.memory, clauses...,
                                all...);
        },
        all_of<detail::is_for_gated_branch>(ingredients...));
  });
  window.append(key, value);
  std::apply(
      [&](auto const&... all) {
        scale const by = detail::lizard_scale(query, ingredients...);
        if (with.meta_keys.data() != nullptr)
          attention_with_extra_keys(query, window.keys(), window.values(),
                                    extra_keys(with.meta_keys, with.meta_values), branches[1], by,
                                    all...);
        else
          detail::with_lizard_sinks<E>(with, {}, [&](auto const&... sinks) {
            attention(query, window.keys(), window.values(), branches[1], by, sinks..., all...);
          });
      },
      all_of<detail::is_for_both_branches>(ingredients...));
  auto const runs = one_of<recur::detail::is_executor>(serial{}, ingredients...);
  detail::add_lizard_branches<T>(any_executor(runs), branches[0], branches[1], with.alpha, out);
  detail::copy_largest(largest, held.largest);
}

}  // namespace heed
