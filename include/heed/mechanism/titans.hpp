#pragma once

#include <heed/recur/network_memory.hpp>
#include <heed/view/convert.hpp>

/// Titans: Learning to Memorize at Test Time, the neural memory.
///
/// A memory M, a matrix or a network of them with silu between, learns every key and value by a step of gradient
/// descent with momentum, forgets a little, and is read:
///
///     moving_t = momentum_t moving_(t-1) - rate_t grad l(M_ref; k_t, v_t)        l = |M(k) - v|^2 / 2
///     M_t = (1 - forget_t) M_(t-1) + moving_t                                     out_t = M_t(q_t)
///
/// M_ref is the memory at the start of the current chunk of C tokens, which are counted from the start of the
/// sequence: C = 1 is plain gradient descent, token by token, and other C give other results, with gradients that are
/// computed for a whole chunk at once. M(x) = W^T x for one layer, W_2^T silu(W_1^T x) for two, and so on.
///
/// A token's rate |k|^2 should stay below 2, or the memory diverges: normalise keys (and queries), as the paper does.
namespace heed {

/// What each token brings: views [batch, position, heads] of the positions and heads of keys.
///
///   rate       theta >= 0, of learning
///   momentum   eta in [0, 1]
///   forget     alpha in [0, 1]
///   drate, dmomentum, dforget   their gradients, written by the backward pass. Optional
///
/// What is outside, and NaN, is refused. A stride of 0 shares gates.
template <element T>
struct titans_gates {
  tensor_view<T const, 3> rate, momentum, forget;
  tensor_view<T, 3> drate, dmomentum, dforget;

  titans_gates(tensor_view<T const, 3> theta, tensor_view<T const, 3> eta,
               tensor_view<T const, 3> alpha, tensor_view<T, 3> dtheta = {},
               tensor_view<T, 3> deta = {}, tensor_view<T, 3> dalpha = {})
      : rate(theta),
        momentum(eta),
        forget(alpha),
        drate(dtheta),
        dmomentum(deta),
        dforget(dalpha) {}
};
template <class T, class... G>
titans_gates(tensor_view<T, 3>, G const&...) -> titans_gates<std::remove_const_t<T>>;

/// A memory's matrices and what moves them, in the type of the computation.
///
///   weights    of each layer, [sequences, heads, d_l, d_(l+1)]; a stride of 0 along sequences or heads shares what is read
///   momentum   of the same shapes; none to read is zeros, none to write leaves it
template <class T>
struct titans_memory {
  memory_layers<T> weights, momentum;

  titans_memory() = default;
  titans_memory(memory_layers<T> const& w, memory_layers<T> const& m = {})
      : weights(w), momentum(m) {}
  template <class U>
    requires std::is_convertible_v<memory_layers<U>, memory_layers<T>> titans_memory(
        titans_memory<U> const& other)
        : weights(other.weights), momentum(other.momentum) {}
};

/// Where titans() leaves the memory after the last token; may be the one it began with.
template <class T>
struct final_memory {
  titans_memory<T> memory;
};
template <class T>
final_memory(titans_memory<T>) -> final_memory<T>;

/// d loss / d final memory, for the backward pass.
template <class T>
struct final_memory_gradient {
  titans_memory<T const> memory;

  final_memory_gradient(titans_memory<T const> const& gradient) : memory(gradient) {}
};
template <class T>
final_memory_gradient(titans_memory<T>) -> final_memory_gradient<std::remove_const_t<T>>;

/// What decoding carries from call to call: the memory, and where in a chunk it stands.
///
///   reference   the weights at the start of the chunk, shaped like them; written and read where chunks are longer than 1
template <class T>
struct titans_state {
  titans_memory<T> memory;
  memory_layers<T> reference;
  index_t absorbed = 0;  // tokens of the current chunk that the memory holds
};

namespace detail {

inline constexpr auto is_final_memory = []<class T>() { return is_a<T, final_memory>; };
inline constexpr auto is_final_memory_gradient = []<class T>() {
  return is_a<T, final_memory_gradient>;
};

template <class I>
constexpr bool check_titans_ingredient() {
  using namespace recur::memory;
  constexpr bool known = is_executor.template operator()<I>() ||
                         is_scratch.template operator()<I>() ||
                         is_documents.template operator()<I>() || is_a<I, final_memory> ||
                         is_a<I, final_memory_gradient>;
  static_assert(known,
                "heed: titans takes final_memory, final_memory_gradient, documents, an "
                "executor and scratch");
  return known;
}

template <class E>
void expect_gate(char const* name, tensor_view<E, 3> gate, std::array<index_t, 3> const& expected) {
  expect_memory(name, gate);
  require(gate.extents() == expected, [&] {
    return std::string(name) + " has shape " + shape_text(gate.extents()) + "; expected " +
           shape_text(expected) + " (batch, position, head), as key";
  });
  if constexpr (!std::is_const_v<E>) expect_distinct_elements(name, gate);
}
/// Numbers within bounds; NaN is not.
template <class E>
void expect_within(char const* name, tensor_view<E, 3> gate, double least, double most) {
  index_t const B = gate.stride(0) == 0 ? std::min<index_t>(1, gate.extent(0)) : gate.extent(0);
  index_t const N = gate.stride(1) == 0 ? std::min<index_t>(1, gate.extent(1)) : gate.extent(1);
  index_t const H = gate.stride(2) == 0 ? std::min<index_t>(1, gate.extent(2)) : gate.extent(2);
  for (index_t b = 0; b < B; ++b)
    for (index_t i = 0; i < N; ++i)
      for (index_t h = 0; h < H; ++h) {
        auto const x = convert_element<double>(gate(b, i, h));
        require(x >= least && x <= most, [&] {
          return std::string(name) + " holds " + std::to_string(x) + " at " +
                 shape_text(std::array{b, i, h}) + "; expected numbers from " +
                 std::to_string(static_cast<index_t>(least)) +
                 (most <= 1 ? " to " + std::to_string(static_cast<index_t>(most)) : " up");
        });
      }
}

template <class T, class L>
void expect_layers(char const* name, memory_layers<L> const& layers,
                   memory_layers<T const> const& like, bool needed) {
  if (!needed && layers.size() == 0) return;
  require(layers.size() == like.size(), [&] {
    return std::string(name) + " has " + std::to_string(layers.size()) + " layers; expected " +
           std::to_string(like.size()) + ", as the memory's weights";
  });
  for (std::size_t l = 0; l < layers.size(); ++l) {
    tensor_view<L, 4> const& layer = layers[l];
    auto const named = [&](std::string const& what) {
      return std::string(name) + "[" + std::to_string(l) + "] " + what;
    };
    require(layer.extents() == like[l].extents(), [&] {
      return named("has shape " + shape_text(layer.extents()) + "; expected that of the memory's " +
                   "weights, " + shape_text(like[l].extents()));
    });
    require(layer.data() != nullptr || layer.size() == 0,
            [&] { return named("has shape " + shape_text(layer.extents()) + " and no memory"); });
    for (int axis = 0; axis < 4 && !std::is_const_v<L>; ++axis)
      require(layer.extent(axis) <= 1 || layer.stride(axis) != 0 || layer.size() == 0, [&] {
        return named("is written to, and has stride 0 along axis " + std::to_string(axis) +
                     " of shape " + shape_text(layer.extents()));
      });
  }
}

/// Checks a call and gathers it.
template <class T, class Q, class K, class V, class G, class... I>
recur::network_call<T> titans_call(tensor_view<Q, 4> query, tensor_view<K, 4> key,
                                   tensor_view<V, 4> value, titans_gates<G> const& gates,
                                   titans_memory<T const> const& memory, index_t chunk,
                                   I const&... ingredients) {
  using namespace recur::memory;
  static_assert((true && ... && check_titans_ingredient<I>()));
  recur::network_call<T> call;
  call.given = operands_of<T>(query, key, value, ingredients...);
  std::array<index_t, 3> const of_keys{key.extent(0), key.extent(1), key.extent(2)};
  expect_gate("rate", gates.rate, of_keys);
  expect_gate("momentum", gates.momentum, of_keys);
  expect_gate("forget", gates.forget, of_keys);
  expect_within("rate", gates.rate, 0, std::numeric_limits<double>::max());
  expect_within("momentum", gates.momentum, 0, 1);
  expect_within("forget", gates.forget, 0, 1);
  require(chunk > 0, [&] {
    return "titans has chunks of " + std::to_string(chunk) + " tokens; expected at least 1";
  });
  std::size_t const depth = memory.weights.size();
  require(depth > 0, [] { return "titans has a memory without layers; expected 1 to 8"; });
  for (std::size_t l = 0; l < depth; ++l) {
    auto const& layer = memory.weights[l];
    std::array<index_t, 4> const expected{call.given.sequence.count(), call.given.heads,
                                          l == 0 ? call.given.dim : memory.weights[l - 1].extent(3),
                                          l + 1 == depth ? call.given.value_dim : layer.extent(3)};
    require(layer.extents() == expected, [&] {
      return "layer " + std::to_string(l) + " of the memory has shape " +
             shape_text(layer.extents()) + "; expected " + shape_text(expected) +
             " (sequence, head, inputs, outputs)";
    });
    expect_memory("a layer of the memory", layer);
  }
  expect_layers<T>("momentum of the memory", memory.momentum, memory.weights, false);
  call.rate = source<T>(with_channel(gates.rate));
  call.momentum = source<T>(with_channel(gates.momentum));
  call.forget = source<T>(with_channel(gates.forget));
  call.chunk = chunk;
  call.weights = memory.weights;
  call.moving = memory.momentum;
  return call;
}

template <class T>
void set_final_memory(recur::network_call<T>& call, titans_memory<T> const& memory) {
  expect_layers<T>("final_memory.weights", memory.weights, call.weights, false);
  expect_layers<T>("final_memory.momentum", memory.momentum, call.weights, false);
  call.final_weights = memory.weights;
  call.final_moving = memory.momentum;
}

template <class T, class O, class... I>
void titans_forward(recur::network_call<T> const& call, tensor_view<O, 4> out,
                    I const&... ingredients) {
  recur::memory::expect_rows("out", out,
                             {call.given.query.extents()[0], call.given.query.extents()[1],
                              call.given.query_heads, call.given.value_dim});
  recur::network_memory<T> const work(call);
  auto const run_on = recur::memory::executor_of(ingredients...);
  std::size_t const bytes = work.bytes(false);
  std::byte* const memory = recur::memory::scratch_of(ingredients...)
                                .reserve(bytes * static_cast<std::size_t>(run_on.concurrency()));
  sink<T> const to(out);
  parallel_for(run_on, call.given.sequence.count() * call.given.heads,
               [&](index_t piece, index_t worker) {
                 work.forward(piece / call.given.heads, piece % call.given.heads,
                              memory + static_cast<std::size_t>(worker) * bytes, to);
               });
}

}  // namespace detail

/// Learns keys and values and reads the memory, each row after its own token.
///
///   query   [batch, N, heads, D]       a head of keys has a memory, which its group of query heads reads
///   key     [batch, M, key_heads, D]   M > N: the first M - N keys are learned before the first row is read;
///   value   [batch, M, key_heads, E]   M < N: the first N - M rows read the memory as it begins
///   out     [batch, N, heads, E]
///   start   the memory that each sequence begins with
///   chunk   C >= 1
///
/// Ingredients: final_memory, documents (a sequence each), an executor, scratch. Elements are double, float, half or
/// bfloat16; memories have the type of the computation. Scratch is some copies of the memory and 64 rows a worker. The
/// result has the same bits for every executor. Throws heed::error before writing anything if something does not fit.
template <element Q, element K, element V, element O, element G, class S, class... Ingredients>
void titans(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
            tensor_view<O, 4> out, titans_gates<G> const& gates, titans_memory<S> const& start,
            index_t chunk, Ingredients const&... ingredients) {
  using T = compute_type<Q, K, V, O, G, S>;
  static_assert(std::is_same_v<std::remove_const_t<S>, T>,
                "heed: memories have the type of the computation, double with any operand in it");
  auto call = detail::titans_call<T>(query, key, value, gates, titans_memory<T const>(start), chunk,
                                     ingredients...);
  detail::set_final_memory(
      call, one_of<detail::is_final_memory>(final_memory<T>{}, ingredients...).memory);
  detail::titans_forward(call, out, ingredients...);
}

/// The gradients of titans(), with its arguments and ingredients. States are computed again from few that are kept.
///
///   dout     d loss / d out; ingredient final_memory_gradient: by the final memory, default 0
///   dquery, dkey, dvalue   receive the gradients; those of gates go where `gates` says
///   dstart   receives the gradient of each sequence's memory at the start; layers may be missing
template <element Q, element K, element V, element DO, element DQ, element DK, element DV,
          element G, class S, class... Ingredients>
void titans_backward(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                     tensor_view<DO, 4> dout, tensor_view<DQ, 4> dquery, tensor_view<DK, 4> dkey,
                     tensor_view<DV, 4> dvalue, titans_gates<G> const& gates,
                     titans_memory<S> const& start,
                     titans_memory<std::remove_const_t<S>> const& dstart, index_t chunk,
                     Ingredients const&... ingredients) {
  using namespace recur::memory;
  using T = compute_type<Q, K, V, DO, G, S>;
  static_assert(std::is_same_v<std::remove_const_t<S>, T>,
                "heed: memories have the type of the computation, double with any operand in it");
  auto const call = detail::titans_call<T>(query, key, value, gates, titans_memory<T const>(start),
                                           chunk, ingredients...);
  auto const final = one_of<detail::is_final_memory_gradient>(
                         final_memory_gradient<T>(titans_memory<T const>{}), ingredients...)
                         .memory;
  std::array<index_t, 4> rows = query.extents();
  rows[3] = call.given.value_dim;
  expect_rows("dout", dout, rows);
  expect_rows("dquery", dquery, query.extents());
  expect_rows("dkey", dkey, key.extents());
  expect_rows("dvalue", dvalue, value.extents());
  detail::expect_layers<T>("final_memory_gradient.weights", final.weights, call.weights, false);
  detail::expect_layers<T>("final_memory_gradient.momentum", final.momentum, call.weights, false);
  detail::expect_layers<T>("dstart.weights", dstart.weights, call.weights, false);
  detail::expect_layers<T>("dstart.momentum", dstart.momentum, call.weights, false);
  std::array<index_t, 3> const of_keys{key.extent(0), key.extent(1), key.extent(2)};
  recur::network_gradients<T> to;
  auto const gate = [&](char const* name, tensor_view<G, 3> view, sink<T>& into) {
    if (view.data() == nullptr) return;
    detail::expect_gate(name, view, of_keys);
    into = sink<T>(with_channel(view));
  };
  gate("drate", gates.drate, to.rate);
  gate("dmomentum", gates.dmomentum, to.momentum);
  gate("dforget", gates.dforget, to.forget);
  to.out = source<T>(dout);
  to.query = sink<T>(dquery);
  to.key = sink<T>(dkey);
  to.value = sink<T>(dvalue);
  to.final_weights = final.weights;
  to.final_moving = final.momentum;
  to.weights = dstart.weights;
  to.moving = dstart.momentum;

  recur::network_memory<T> const work(call);
  auto const run_on = executor_of(ingredients...);
  std::size_t const bytes = work.bytes(true);
  std::byte* const memory =
      scratch_of(ingredients...).reserve(bytes * static_cast<std::size_t>(run_on.concurrency()));
  parallel_for(run_on, call.given.sequence.count() * call.given.heads,
               [&](index_t piece, index_t worker) {
                 work.backward(piece / call.given.heads, piece % call.given.heads,
                               memory + static_cast<std::size_t>(worker) * bytes, to);
               });
}

/// Some more tokens of every sequence, one in decoding: titans() that begins where the last call ended, within a chunk
/// too, and leaves the state behind. A single token is learned and read where the memory lies.
template <element Q, element K, element V, element O, element G, class T, class... Ingredients>
void titans_step(tensor_view<Q, 4> query, tensor_view<K, 4> key, tensor_view<V, 4> value,
                 tensor_view<O, 4> out, titans_gates<G> const& gates, titans_state<T>& state,
                 index_t chunk, Ingredients const&... ingredients) {
  static_assert(std::is_same_v<T, compute_type<Q, K, V, O, G, T>>,
                "heed: memories have the type of the computation, double with any operand in it");
  static_assert((true && ... && !recur::memory::is_documents.template operator()<Ingredients>()),
                "heed: titans_step takes a batch, not documents: all stand alike in their chunks");
  auto call = detail::titans_call<T>(query, key, value, gates, titans_memory<T const>(state.memory),
                                     chunk, ingredients...);
  detail::expect_layers<T>("state.memory.momentum", state.memory.momentum, call.weights, true);
  detail::set_final_memory(call, state.memory);
  detail::expect_layers<T>("state.reference", state.reference, call.weights, chunk > 1);
  require(state.absorbed >= 0 && state.absorbed < chunk, [&] {
    return "state.absorbed is " + std::to_string(state.absorbed) + "; expected 0 to " +
           std::to_string(chunk - 1) + ", within a chunk";
  });
  call.absorbed = state.absorbed;
  call.reference = state.reference;
  call.final_reference = state.reference;
  detail::titans_forward(call, out, ingredients...);
  state.absorbed = (state.absorbed + key.extent(1)) % chunk;
}

namespace detail {

/// No keys, as many heads of them as the memory has.
template <class T>
struct titans_nothing {
  tensor_view<T const, 4> key, value;
  tensor_view<T, 4> dkey, dvalue;
  tensor_view<T const, 3> gate;

  titans_nothing(index_t batches, memory_layers<T const> const& weights) {
    require(weights.size() > 0,
            [] { return "titans has a memory without layers; expected 1 to 8"; });
    index_t const heads = weights[0].extent(1);
    dkey = {nullptr, {batches, 0, heads, weights[0].extent(2)}};
    dvalue = {nullptr, {batches, 0, heads, weights[weights.size() - 1].extent(3)}};
    key = dkey;
    value = dvalue;
    gate = {nullptr, {batches, 0, heads}};
  }
  titans_gates<T> gates() const { return {gate, gate, gate}; }
};

}  // namespace detail

/// Reads a memory that learns nothing meanwhile: out_i = M(q_i). Shapes as those of titans().
template <element Q, element O, class S, class... Ingredients>
void titans_recall(tensor_view<Q, 4> query, tensor_view<O, 4> out, titans_memory<S> const& memory,
                   Ingredients const&... ingredients) {
  using T = std::remove_const_t<S>;
  detail::titans_nothing<T> const none(query.extent(0), memory.weights);
  titans(query, none.key, none.value, out, none.gates(), memory, 1, ingredients...);
}

/// Its gradients: dmemory.weights receives d loss / d weights.
template <element Q, element DO, element DQ, class S, class... Ingredients>
void titans_recall_backward(tensor_view<Q, 4> query, tensor_view<DO, 4> dout,
                            tensor_view<DQ, 4> dquery, titans_memory<S> const& memory,
                            titans_memory<std::remove_const_t<S>> const& dmemory,
                            Ingredients const&... ingredients) {
  using T = std::remove_const_t<S>;
  detail::titans_nothing<T> const none(query.extent(0), memory.weights);
  titans_backward(query, none.key, none.value, dout, dquery, none.dkey, none.dvalue, none.gates(),
                  memory, dmemory, 1, ingredients...);
}

}  // namespace heed
