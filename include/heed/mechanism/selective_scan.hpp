#pragma once

#include <heed/recur/causal_convolution.hpp>
#include <heed/recur/selective_scanner.hpp>

/// Mamba: Linear-Time Sequence Modeling with Selective State Spaces, its scan (S6).
///
/// Each channel has a state of n numbers that fade at their own rates A < 0, over steps that the token chooses:
///
///     h_t = e^(step_t A) h_(t-1) + step_t u_t B_t,     y_t = h_t . C_t
///
/// The layer is causal_convolution with_silu in front, softplus_step, skip_input and silu_gate; projections are the model's.
namespace heed {

/// Adds weight u_t to a scan's result, with a weight for each channel, [heads, dim]; `gradient` receives d loss / d weight.
template <element T>
struct skip_input {
  tensor_view<T const, 2> weight;
  tensor_view<T, 2> gradient;

  skip_input(tensor_view<T const, 2> w, tensor_view<T, 2> dw = {}) : weight(w), gradient(dw) {}
};
template <class T, class... G>
skip_input(tensor_view<T, 2>, G const&...) -> skip_input<std::remove_const_t<T>>;

/// Multiplies a scan's result by silu(z), z shaped like it; `gradient` receives d loss / d z.
template <element T>
struct silu_gate {
  tensor_view<T const, 4> z;
  tensor_view<T, 4> gradient;

  silu_gate(tensor_view<T const, 4> gates, tensor_view<T, 4> dz = {}) : z(gates), gradient(dz) {}
};
template <class T, class... G>
silu_gate(tensor_view<T, 4>, G const&...) -> silu_gate<std::remove_const_t<T>>;

/// Takes log(1 + e^(step + bias)) for a scan's steps, with a bias for each channel, [heads, dim], or none; `gradient` receives
/// d loss / d bias.
template <element T>
struct softplus_step {
  tensor_view<T const, 2> bias;
  tensor_view<T, 2> gradient;

  softplus_step(tensor_view<T const, 2> b = {}, tensor_view<T, 2> db = {})
      : bias(b), gradient(db) {}
};
softplus_step()->softplus_step<float>;
template <class T, class... G>
softplus_step(tensor_view<T, 2>, G const&...) -> softplus_step<std::remove_const_t<T>>;

namespace recur::scan {

inline constexpr auto is_skip = []<class T>() { return heed::detail::is_a<T, skip_input>; };
inline constexpr auto is_gate = []<class T>() { return heed::detail::is_a<T, silu_gate>; };
inline constexpr auto is_softplus = []<class T>() { return heed::detail::is_a<T, softplus_step>; };

/// The numbers of one channel each, [heads, dim], of an ingredient and where their gradient goes.
template <class T, class E>
std::pair<channel_rows<T>, channel_rows<T>> per_channel(char const* name,
                                                        tensor_view<E const, 2> numbers,
                                                        tensor_view<E, 2> gradient,
                                                        std::array<index_t, 2> const& expected) {
  auto const fits = [&](std::string const& what, auto const& view) {
    require(view.data() == nullptr || view.extents() == expected, [&] {
      return what + " has shape " + shape_text(view.extents()) + "; expected " +
             shape_text(expected) + " (head, dim)";
    });
  };
  fits(name, numbers);
  fits("the gradient of " + std::string(name), gradient);
  if (gradient.data() != nullptr)
    heed::detail::expect_distinct_elements("the gradient of a channel's number", gradient);
  return {as_row<T>(numbers), as_row<T>(gradient)};
}

/// Checks a call of selective_scan and gathers it.
template <class T, class U, class D, class A, class B, class C, class... I>
auto make_selective(tensor_view<U, 4> u, tensor_view<D, 4> step, tensor_view<A, 3> decay,
                    tensor_view<B, 4> write, tensor_view<C, 4> read, I const&... ingredients) {
  static_assert(
      (true && ... &&
       (is_clause<I> || is_skip.template operator()<I>() || is_gate.template operator()<I>() ||
        is_softplus.template operator()<I>())),
      "heed: selective_scan takes skip_input, silu_gate, softplus_step, states, documents, "
      "an executor and scratch");
  using heed::detail::expect_like;
  using heed::detail::expect_memory;
  expect_memory("u", u);
  expect_like("step", step, u.extents(), "u");
  expect_memory("step", step);
  index_t const heads = u.extent(2), dim = u.extent(3), n = decay.extent(2);
  require(decay.extent(0) == heads && decay.extent(1) == dim, [&] {
    return "decay has shape " + shape_text(decay.extents()) + "; expected [" +
           std::to_string(heads) + ", " + std::to_string(dim) + ", state] (head, dim, state)";
  });
  index_t const groups = write.extent(2);
  require(write.extent(0) == u.extent(0) && write.extent(1) == u.extent(1) &&
              write.extent(3) == n && groups > 0 && heads % groups == 0,
          [&] {
            return "write has shape " + shape_text(write.extents()) + "; expected [" +
                   std::to_string(u.extent(0)) + ", " + std::to_string(u.extent(1)) +
                   ", a divisor of " + std::to_string(heads) + ", " + std::to_string(n) +
                   "] (batch, position, group, state)";
          });
  expect_like("read", read, write.extents(), "write");
  expect_memory("write", write);
  expect_memory("read", read);
  for (index_t h = 0; h < heads; ++h)
    for (index_t d = 0; d < dim; ++d)
      for (index_t s = 0; s < n; ++s)
        require(convert_element<T>(decay(h, d, s)) <= T(0), [&] {
          return "decay holds " + std::to_string(convert_element<T>(decay(h, d, s))) + " at " +
                 shape_text(std::array{h, d, s}) + "; expected rates of at most 0";
        });
  selective_scanner<T, xsimd::default_arch> work;
  work.all = sequences_of(u.extents(), ingredients...);
  work.ends = states_of<T>({work.all.count(), heads, n, dim}, ingredients...);
  if (n == 0) work.ends = {};
  work.channels = heads * dim;
  work.groups = groups;
  work.n = n;
  work.input = channel_rows<T>(u);
  work.step = channel_rows<T>(step);
  work.decay = as_rows<T>(state_first(decay));
  work.write = source<T>(write);
  work.read = source<T>(read);
  auto const look = [&]<class One>(One const& ingredient) {
    if constexpr (is_skip.template operator()<One>()) {
      std::tie(work.skip, work.dskip) =
          per_channel<T>("skip_input.weight", ingredient.weight, ingredient.gradient, {heads, dim});
    } else if constexpr (is_softplus.template operator()<One>()) {
      std::tie(work.step_bias, work.dstep_bias) =
          per_channel<T>("softplus_step.bias", ingredient.bias, ingredient.gradient, {heads, dim});
      work.softplus = true;
    } else if constexpr (is_gate.template operator()<One>()) {
      expect_like("silu_gate.z", ingredient.z, u.extents(), "u");
      work.gate = channel_rows<T>(ingredient.z);
      if (ingredient.gradient.data() != nullptr) {
        expect_like("silu_gate.gradient", ingredient.gradient, u.extents(), "u");
        work.dgate = channel_rows<T>(ingredient.gradient);
      }
    }
  };
  static_cast<void>(look);
  (look(ingredients), ...);
  if (!work.softplus) check_numbers<at_least_0, T>("step", step, executor_of(ingredients...));
  return work;
}

}  // namespace recur::scan

/// Mamba's scan: forward, and with a position extent of 1 a step of decoding.
///
///   u, step, out   [batch, position, heads, dim], steps of at least 0
///   decay          [heads, dim, n], A: none above 0
///   write, read    [batch, position, groups, n], B and C; head h has those of group h * groups / heads
///
/// Ingredients, in any order: softplus_step, skip_input, silu_gate, state, initial_state, final_state [sequences, heads, n, dim],
/// documents (the same offsets twice), an executor, scratch. Elements are double, float, half or bfloat16; states float
/// or double. The same bits for every executor and however a sequence is cut. Throws heed::error before anything is written.
template <element U, element D, element A, element B, element C, element O, class... Ingredients>
void selective_scan(tensor_view<U, 4> u, tensor_view<D, 4> step, tensor_view<A, 3> decay,
                    tensor_view<B, 4> write, tensor_view<C, 4> read, tensor_view<O, 4> out,
                    Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<U, D, A, B, C, O, scan::states_type<Ingredients...>>;
  heed::detail::expect_like("out", out, u.extents(), "u");
  heed::detail::expect_memory("out", out);
  heed::detail::expect_distinct_elements("out", out);
  auto const work = scan::make_selective<T>(u, step, decay, write, read, ingredients...);
  work.forward(scan::channel_rows<T>(out), scan::executor_of(ingredients...),
               scan::scratch_of(ingredients...));
}

/// The gradients of selective_scan, with its ingredients, of which those with a `gradient` receive theirs; also
/// final_state_gradient. du, dstep, ddecay, dwrite and dread are shaped like what they are the gradients of and must
/// not be these. A state{view} is read as the one that the call began with. Takes scratch of about n / 32 times the size of u.
template <element U, element D, element A, element B, element C, element DO, element DU, element DD,
          element DA, element DB, element DC, class... Ingredients>
void selective_scan_backward(tensor_view<U, 4> u, tensor_view<D, 4> step, tensor_view<A, 3> decay,
                             tensor_view<B, 4> write, tensor_view<C, 4> read,
                             tensor_view<DO, 4> dout, tensor_view<DU, 4> du,
                             tensor_view<DD, 4> dstep, tensor_view<DA, 3> ddecay,
                             tensor_view<DB, 4> dwrite, tensor_view<DC, 4> dread,
                             Ingredients const&... ingredients) {
  namespace scan = recur::scan;
  using T = compute_type<U, D, A, B, C, DO, scan::states_type<Ingredients...>>;
  auto const fits = [](char const* name, auto const& view, auto const& like,
                       char const* like_name) {
    require(view.extents() == like.extents(), [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) +
             "; expected that of " + like_name + ", " + shape_text(like.extents());
    });
    heed::detail::expect_memory(name, view);
    if constexpr (!std::is_const_v<typename std::remove_cvref_t<decltype(view)>::element_type>)
      heed::detail::expect_distinct_elements(name, view);
  };
  fits("dout", dout, u, "u");
  fits("du", du, u, "u");
  fits("dstep", dstep, step, "step");
  fits("ddecay", ddecay, decay, "decay");
  fits("dwrite", dwrite, write, "write");
  fits("dread", dread, read, "read");
  auto work = scan::make_selective<T>(u, step, decay, write, read, ingredients...);
  work.dout = scan::channel_rows<T>(dout);
  work.dinput = scan::channel_rows<T>(du);
  work.dstep = scan::channel_rows<T>(dstep);
  work.ddecay = scan::as_rows<T>(scan::state_first(ddecay));
  work.dwrite = sink<T>(dwrite);
  work.dread = sink<T>(dread);
  work.backward(scan::executor_of(ingredients...), scan::scratch_of(ingredients...));
}

}  // namespace heed
