#pragma once

#include <heed/recur/gate_functions.hpp>
#include <heed/recur/linear_attention.hpp>

/// TPE and MD-TPE of You Only Scan Once (LightNet): positions by mixing tokens before the layer, with weights that do not depend
/// on what they hold,
///
///     out_t = sum_(s <= t) (sum_n a_n b_n lambda_n^(t - s)) x_s        lambda = sigmoid(l)
///
/// a gated linear recurrence whose queries are a and keys b at every position. On a grid one such pass runs along each
/// axis, and the results are added.
namespace heed {

/// What a mixer has learned: read (a) and write (b) [heads, n]; logits (l) [heads, n], or [heads, 1] for one decay a head.
template <class T>
struct toeplitz_mixer {
  tensor_view<T const, 2> read;
  tensor_view<T const, 2> write;
  tensor_view<T const, 2> logits;
};

/// Where the backward pass writes its gradients, shaped like them.
template <class T>
struct toeplitz_gradients {
  tensor_view<T, 2> read;
  tensor_view<T, 2> write;
  tensor_view<T, 2> logits;
};

namespace detail {

struct toeplitz_page;
struct toeplitz_gradient_page;
struct toeplitz_gate_page;
struct toeplitz_grid_gradient_page;
struct toeplitz_parameter_page;
struct toeplitz_grid_page;

/// Parameters as queries, keys and log gates of every token.
template <class T>
struct toeplitz_operands {
  tensor_view<T const, 4> read, write;
  tensor_view<double, 4> log_gate;
};

template <class X, class T>
toeplitz_operands<T> prepare_toeplitz(tensor_view<X, 4> x, toeplitz_mixer<T> const& mixer) {
  index_t const heads = x.extent(2), count = mixer.read.extent(1);
  auto const fits = [&](char const* name, tensor_view<T const, 2> view, bool one) {
    require(view.extent(0) == heads && (view.extent(1) == count || (one && view.extent(1) == 1)),
            [&] {
              return std::string("toeplitz_mixer.") + name + " has shape " +
                     shape_text(view.extents()) + "; expected [" + std::to_string(heads) + ", " +
                     (one ? "1 or " : "") + std::to_string(count) + "]";
            });
  };
  fits("read", mixer.read, false);
  fits("write", mixer.write, false);
  fits("logits", mixer.logits, true);
  auto const everywhere = [&](tensor_view<T const, 2> view) {
    return tensor_view<T const, 4>(view.data(), {x.extent(0), x.extent(1), heads, count},
                                   {0, 0, view.stride(0), view.stride(1)});
  };
  auto const gates =
      recur::page_tensors<toeplitz_page, double>(recur::tensor_shape{1, 1, heads, count})[0];
  for (index_t h = 0; h < heads; ++h)
    for (index_t n = 0; n < count; ++n) {
      auto const l = convert_element<double>(mixer.logits(h, mixer.logits.extent(1) == 1 ? 0 : n));
      gates(0, 0, h, n) = -std::max(-l, 0.0) - std::log1p(std::exp(-std::abs(l)));
    }
  return {everywhere(mixer.read), everywhere(mixer.write),
          tensor_view<double, 4>(gates.data(), {x.extent(0), x.extent(1), heads, count},
                                 {0, 0, gates.stride(2), 1})};
}

}  // namespace detail

/// Mixes tokens along the sequence; x and out [batch, position, heads, dim]. Ingredients: a state [sequences, heads, n, dim],
/// documents, chunk_size, an executor, scratch.
template <element X, element T, element O, class... Ingredients>
void toeplitz_mix(tensor_view<X, 4> x, toeplitz_mixer<T> const& mixer, tensor_view<O, 4> out,
                  Ingredients const&... ingredients) {
  auto const p = detail::prepare_toeplitz(x, mixer);
  linear_attention(p.read, p.write, x, out, key_decay<double>(p.log_gate), ingredients...);
}

/// One token of toeplitz_mix; `state` is updated.
template <element X, element T, element O, class S, class... Ingredients>
void toeplitz_mix_step(tensor_view<X, 4> x, toeplitz_mixer<T> const& mixer, tensor_view<O, 4> out,
                       tensor_view<S, 4> state, Ingredients const&... ingredients) {
  auto const p = detail::prepare_toeplitz(x, mixer);
  linear_attention_step(p.read, p.write, x, out, state, key_decay<double>(p.log_gate),
                        ingredients...);
}

/// The gradients of toeplitz_mix, with the ingredients of the forward call as in linear_attention_backward; out is what it
/// returned. Those of the parameters are summed over tokens.
template <element X, element T, element O, element DO, element DX, class... Ingredients>
void toeplitz_mix_backward(tensor_view<X, 4> x, toeplitz_mixer<T> const& mixer,
                           tensor_view<O, 4> out, tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                           toeplitz_gradients<T> const& to, Ingredients const&... ingredients) {
  require(to.read.extents() == mixer.read.extents() &&
              to.write.extents() == mixer.write.extents() &&
              to.logits.extents() == mixer.logits.extents(),
          [&] {
            return "toeplitz_gradients have shapes " + shape_text(to.read.extents()) + ", " +
                   shape_text(to.write.extents()) + " and " + shape_text(to.logits.extents()) +
                   "; expected those of the mixer, " + shape_text(mixer.read.extents()) + ", " +
                   shape_text(mixer.write.extents()) + " and " + shape_text(mixer.logits.extents());
          });
  auto const p = detail::prepare_toeplitz(x, mixer);
  using C = compute_type<X, T, O, DO, DX>;
  auto const by_features =
      recur::page_tensors<detail::toeplitz_gradient_page, C>(p.read.extents(), p.read.extents());
  auto const by_gate = recur::page_tensors<detail::toeplitz_gate_page, double>(p.read.extents())[0];
  linear_attention_backward(p.read, p.write, x, out, dout, by_features[0], by_features[1], dx,
                            key_decay<double>(p.log_gate, by_gate), ingredients...);
  index_t const heads = x.extent(2), count = mixer.read.extent(1);
  auto const runs = recur::executor_of(ingredients...);
  parallel_for(runs, heads, [&](index_t h, index_t) {
    bool const shared = mixer.logits.extent(1) == 1;
    double of_head = 0;
    for (index_t n = 0; n < count; ++n) {
      double sums[3] = {};
      for (index_t b = 0; b < x.extent(0); ++b)
        for (index_t t = 0; t < x.extent(1); ++t) {
          sums[0] += static_cast<double>(by_features[0](b, t, h, n));
          sums[1] += static_cast<double>(by_features[1](b, t, h, n));
          sums[2] += by_gate(b, t, h, n);
        }
      to.read(h, n) = convert_element<T>(sums[0]);
      to.write(h, n) = convert_element<T>(sums[1]);
      auto const l = convert_element<double>(mixer.logits(h, shared ? 0 : n));
      double const slope = sums[2] / (1 + std::exp(l));
      of_head += slope;
      if (!shared) to.logits(h, n) = convert_element<T>(slope);
    }
    if (shared) to.logits(h, 0) = convert_element<T>(of_head);
  });
}

namespace detail {

/// Calls f(views...) with lines along one axis of a row-major grid, as many of them as one view can show.
template <class F, class... Views>
void for_grid_lines(F const& f, std::span<index_t const> grid, std::size_t axis,
                    Views const&... views) {
  index_t before = 1, after = 1;
  for (std::size_t a = 0; a < grid.size(); ++a)
    if (a != axis) (a < axis ? before : after) *= grid[a];
  index_t const length = grid[axis];
  // Either the lines before or those after stand side by side.
  bool const outer = before >= after;
  auto const line = [&]<class E>(tensor_view<E, 4> view, index_t b, index_t n) {
    index_t const step = view.stride(1);
    return tensor_view<E, 4>(
        view.data() + b * view.stride(0) + n * (outer ? step : length * after * step),
        {outer ? before : after, length, view.extent(2), view.extent(3)},
        {outer ? length * after * step : step, after * step, view.stride(2), view.stride(3)});
  };
  index_t const batches = std::get<0>(std::tuple(views...)).extent(0);
  for (index_t b = 0; b < batches; ++b)
    for (index_t n = 0; n < (outer ? after : before); ++n) f(line(views, b, n)...);
}

template <class X>
void check_toeplitz_grid(tensor_view<X, 4> x, std::size_t mixers, std::span<index_t const> grid) {
  index_t positions = 1;
  for (index_t extent : grid) positions *= extent;
  require(!grid.empty() && grid.size() == mixers && positions == x.extent(1), [&] {
    return "a grid " + shape_text(grid) + " with " + std::to_string(mixers) +
           " mixers for x of shape " + shape_text(x.extents()) +
           "; expected a mixer for each axis, and the positions of x";
  });
}

/// sum += more.
template <class T, class Executor>
void add_rows(Executor const& run_on, tensor_view<T, 4> sum, tensor_view<T, 4> more) {
  recur::transform(
      any_executor(run_on), sink<T>(sum), [](auto const& a, auto const& b) { return a + b; },
      source<T>(sum), source<T>(more));
}

}  // namespace detail

/// MD-TPE: the sum of toeplitz_mix along each axis of a row-major grid, with a mixer for each.
template <element X, element T, element O, class Executor = serial>
void toeplitz_mix_grid(tensor_view<X, 4> x, std::span<toeplitz_mixer<T> const> mixers,
                       std::span<index_t const> grid, tensor_view<O, 4> out,
                       Executor const& run_on = {}) {
  using C = compute_type<X, T, O>;
  detail::check_toeplitz_grid(x, mixers.size(), grid);
  detail::expect_like("out", out, x.extents(), "x");
  auto const sum = recur::page_tensors<detail::toeplitz_grid_page, C>(x.extents(), x.extents());
  for (std::size_t axis = 0; axis < grid.size(); ++axis) {
    detail::for_grid_lines(
        [&](auto from, auto to) { toeplitz_mix(from, mixers[axis], to, run_on); }, grid, axis, x,
        sum[axis == 0 ? 0 : 1]);
    if (axis > 0) detail::add_rows<C>(run_on, sum[0], sum[1]);
  }
  any_executor const runs(run_on);
  recur::transform(
      runs, sink<C>(out), [](auto const& a) { return a; }, source<C>(sum[0]));
}

/// Its gradients; `to` has one for each axis.
template <element X, element T, element DO, element DX, class Executor = serial>
void toeplitz_mix_grid_backward(tensor_view<X, 4> x, std::span<toeplitz_mixer<T> const> mixers,
                                std::span<index_t const> grid, tensor_view<DO, 4> dout,
                                tensor_view<DX, 4> dx, std::span<toeplitz_gradients<T> const> to,
                                Executor const& run_on = {}) {
  using C = compute_type<X, T, DO, DX>;
  detail::check_toeplitz_grid(x, mixers.size(), grid);
  detail::expect_like("dout", dout, x.extents(), "x");
  detail::expect_like("dx", dx, x.extents(), "x");
  require(to.size() == mixers.size(), [&] {
    return std::to_string(to.size()) + " toeplitz_gradients; expected one for each of " +
           std::to_string(mixers.size()) + " axes";
  });
  auto const t = recur::page_tensors<detail::toeplitz_grid_gradient_page, C>(
      x.extents(), x.extents(), x.extents());
  for (std::size_t axis = 0; axis < grid.size(); ++axis) {
    toeplitz_mixer<T> const& mixer = mixers[axis];
    auto const of = [](tensor_view<T const, 2> view) {
      return recur::tensor_shape{1, 1, view.extent(0), view.extent(1)};
    };
    auto const parts = recur::page_tensors<detail::toeplitz_parameter_page, T>(
        of(mixer.read), of(mixer.write), of(mixer.logits));
    auto const rows = [&](std::size_t n) {
      return tensor_view<T, 2>(parts[n].data(), {parts[n].extent(2), parts[n].extent(3)});
    };
    toeplitz_gradients<T> const part{rows(0), rows(1), rows(2)};
    bool first = true;
    detail::for_grid_lines(
        [&](auto from, auto mixed, auto slope, auto dfrom) {
          toeplitz_mix(from, mixer, mixed, run_on);
          toeplitz_mix_backward(from, mixer, mixed, slope, dfrom, part, run_on);
          auto const add = [&](tensor_view<T, 2> sum, tensor_view<T, 2> more) {
            for (index_t h = 0; h < sum.extent(0); ++h)
              for (index_t n = 0; n < sum.extent(1); ++n)
                sum(h, n) = convert_element<T>((first ? C(0) : convert_element<C>(sum(h, n))) +
                                               convert_element<C>(more(h, n)));
          };
          add(to[axis].read, part.read);
          add(to[axis].write, part.write);
          add(to[axis].logits, part.logits);
          first = false;
        },
        grid, axis, x, t[2], dout, t[axis == 0 ? 0 : 1]);
    if (axis > 0) detail::add_rows<C>(run_on, t[0], t[1]);
  }
  any_executor const runs(run_on);
  recur::transform(
      runs, sink<C>(dx), [](auto const& a) { return a; }, source<C>(t[0]));
}

}  // namespace heed
