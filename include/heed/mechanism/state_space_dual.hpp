#pragma once

#include <heed/recur/linear_attention.hpp>
#include <heed/recur/passes.hpp>
#include <heed/recur/scan_clauses.hpp>
#include <heed/simd/fma.hpp>

/// Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality (Mamba-2).
///
/// A selective scan in which all channels and numbers of a head fade alike, which makes it linear attention with a scalar gate:
///
///     S_t = e^(step_t A) S_(t-1) + step_t B_t x_t^T,     y_t = S_t^T C_t + D x_t,     A <= 0 and D one number a head
///
/// that is, queries C, keys B, values step x and log gates step A.
namespace heed {

/// Adds weight x_t to the result of state_space_dual, with one weight a head, [heads]; `gradient` receives
/// d loss / d weight.
template <element T>
struct head_skip {
  tensor_view<T const, 1> weight;
  tensor_view<T, 1> gradient;

  head_skip(tensor_view<T const, 1> w, tensor_view<T, 1> dw = {}) : weight(w), gradient(dw) {}
};
template <class T, class... G>
head_skip(tensor_view<T, 1>, G const&...) -> head_skip<std::remove_const_t<T>>;

namespace recur {

inline constexpr auto is_head_skip = []<class T>() { return detail::is_a<T, head_skip>; };
inline constexpr auto is_not_head_skip = []<class T>() { return !detail::is_a<T, head_skip>; };

/// The operands of one call, and what linear attention gets of them: values [batch, N, heads, dim] and log gates.
template <class T>
class dual_call {
 public:
  template <class X, class D, class A, class O, class... I>
  dual_call(tensor_view<X, 4> x, tensor_view<D, 3> step, tensor_view<A, 1> rate,
            tensor_view<O, 4> out, char const* out_name, any_executor const& run_on,
            I const&... ingredients)
      : run_on_(run_on), shape_(x.extents()), x_(x) {
    index_t const batches = shape_[0], rows = shape_[1], heads = shape_[2];
    require(step.extents() == std::array{batches, rows, heads}, [&] {
      return "step has shape " + shape_text(step.extents()) + "; expected " +
             shape_text(std::array{batches, rows, heads}) + " (batch, position, head)";
    });
    expect_numbers("rate", rate);
    detail::expect_like(out_name, out, shape_, "x");
    detail::expect_memory("x", x);
    detail::expect_memory("step", step);
    detail::expect_memory(out_name, out);
    detail::expect_each("rate", rate, "rates of at most 0", [](auto a) { return a <= 0; });
    detail::expect_each("step", step, "steps of at least 0", [](auto d) { return d >= 0; });
    head_skip<float> const none(tensor_view<float const, 1>{});
    auto const skip = one_of<is_head_skip>(none, ingredients...);
    if (skip.weight.data() != nullptr) expect_numbers("head_skip.weight", skip.weight);
    if (skip.gradient.data() != nullptr) expect_numbers("head_skip.gradient", skip.gradient);

    struct page {};
    auto const numbers = page_tensors<page, T>(shape_, tensor_shape{batches, rows, heads, 2},
                                               tensor_shape{1, 1, heads, 2});
    value = numbers[0];
    step_ = numbers[1].slice(3, 0, 1);
    gate = without_channels(numbers[1].slice(3, 1, 1));
    of_head_ = numbers[2];
    for (index_t h = 0; h < heads; ++h) {
      rate_of(h) = convert_element<T>(rate(h));
      skip_of(h) = skip.weight.data() == nullptr ? T(0) : convert_element<T>(skip.weight(h));
    }
    has_skip_ = skip.weight.data() != nullptr;
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      row_block<T> const from = x_.rows(b, h, first, count, room(count));
      for (index_t i = 0; i < count; ++i) {
        T const d = step_(b, first + i, h, 0) = convert_element<T>(step(b, first + i, h));
        gate(b, first + i, h) = d * rate_of(h);
        combine(d, from[i], T(0), from[i], &value(b, first + i, h, 0));
      }
    });
  }

  bool has_skip() const { return has_skip_; }

  /// to = from + D x; `to` may be `from`.
  void add_skip(source<T> const& from, sink<T> const& to) const {
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const sum = room(3 * count);
      row_block<T> const x = x_.rows(b, h, first, count, sum + count * shape_[3]);
      row_block<T> const y = from.rows(b, h, first, count, sum + 2 * count * shape_[3]);
      for (index_t i = 0; i < count; ++i)
        combine(T(1), y[i], skip_of(h), x[i], sum + i * shape_[3]);
      to.store(b, h, first, count, sum, shape_[3]);
    });
  }

  /// dx = step dvalue + D dy, dstep = dgate A + dvalue . x, dA = sum dgate step, dD = sum dy . x.
  template <class DD, class DA, class DS>
  void chain(source<T> const& dout, tensor_view<T, 4> dvalue, tensor_view<T, 3> dgate,
             sink<T> const& dx, tensor_view<DD, 3> dstep, tensor_view<DA, 1> drate,
             tensor_view<DS, 1> dskip) const {
    struct page {};
    auto const of_skip = page_tensors<page, T>(tensor_shape{shape_[0], shape_[1], shape_[2], 1})[0];
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      index_t const dim = shape_[3];
      T* const sum = room(3 * count);
      row_block<T> const x = x_.rows(b, h, first, count, sum + count * dim);
      row_block<T> const dy = dout.rows(b, h, first, count, sum + 2 * count * dim);
      for (index_t i = 0; i < count; ++i) {
        index_t const row = first + i;
        T const* const dv = &dvalue(b, row, h, 0);
        combine(step_(b, row, h, 0), dv, skip_of(h), dy[i], sum + i * dim);
        dstep(b, row, h) =
            convert_element<DD>(dgate(b, row, h) * rate_of(h) + dot_row<arch>(dim, dv, x[i]));
        of_skip(b, row, h, 0) = dot_row<arch>(dim, dy[i], x[i]);
      }
      dx.store(b, h, first, count, sum, dim);
    });
    parallel_for(run_on_, shape_[2], [&](index_t h, index_t) {
      double for_rate = 0, for_skip = 0;
      for (index_t b = 0; b < shape_[0]; ++b)
        for (index_t i = 0; i < shape_[1]; ++i) {
          for_rate += static_cast<double>(dgate(b, i, h)) * static_cast<double>(step_(b, i, h, 0));
          for_skip += static_cast<double>(of_skip(b, i, h, 0));
        }
      drate(h) = convert_element<DA>(for_rate);
      if (dskip.data() != nullptr) dskip(h) = convert_element<DS>(for_skip);
    });
  }

  tensor_view<T, 4> value;
  tensor_view<T, 3> gate;

 private:
  using arch = xsimd::default_arch;

  /// to = a x + b y.
  void combine(T a, T const* x, T b, T const* y, T* to) const {
    transform_row<arch>(
        shape_[3], to,
        [&](auto const& u, auto const& w) {
          using batch = std::remove_cvref_t<decltype(u)>;
          return simd::fma(batch(a), u, batch(b) * w);
        },
        x, y);
  }
  T* room(index_t rows) const { return feature_scratch<T>(rows * shape_[3]); }
  T& rate_of(index_t h) const { return of_head_(0, 0, h, 0); }
  T& skip_of(index_t h) const { return of_head_(0, 0, h, 1); }
  template <class V>
  void expect_numbers(char const* name, V const& view) const {
    require(view.extent(0) == shape_[2], [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) + "; expected [" +
             std::to_string(shape_[2]) + "] (head)";
    });
  }

  any_executor run_on_;
  tensor_shape shape_;
  source<T> x_;
  tensor_view<T, 4> step_, of_head_;
  bool has_skip_ = false;
};

}  // namespace recur

/// Mamba-2's heads in chunks: products of matrices, as linear_attention makes them.
///
///   x, out        [batch, N, heads, dim]
///   step          [batch, N, heads], none below 0
///   rate          [heads], A, none above 0
///   write, read   [batch, N, groups, n], B and C; the number of groups divides that of heads
///
/// Ingredients, in any order: head_skip, and of linear_attention's state, initial_state, final_state [sequences, heads, n, dim],
/// documents, chunk_size, an executor, scratch. The same bits for every executor.
template <element X, element D, element A, element B, element C, element O, class... Ingredients>
void state_space_dual(tensor_view<X, 4> x, tensor_view<D, 3> step, tensor_view<A, 1> rate,
                      tensor_view<B, 4> write, tensor_view<C, 4> read, tensor_view<O, 4> out,
                      Ingredients const&... ingredients) {
  using T = compute_type<X, D, A, B, C, O, recur::scan::states_type<Ingredients...>>;
  auto const executor = recur::scan::executor_of(ingredients...);
  recur::dual_call<T> const call(x, step, rate, out, "out", any_executor(executor), ingredients...);
  auto const attend = [&](auto to) {
    std::apply(
        [&](auto const&... own) {
          linear_attention(read, write, call.value, to, decay(call.gate), own...);
        },
        all_of<recur::is_not_head_skip>(ingredients...));
  };
  if (!call.has_skip()) return attend(out);
  struct page {};
  auto const sum = recur::page_tensors<page, T>(x.extents())[0];
  attend(sum);
  call.add_skip(source<T>(sum), sink<T>(out));
}

/// One token of state_space_dual: its tensors have one position, and `state` [batch, heads, n, dim] is updated where it lies.
template <element X, element D, element A, element B, element C, element O, class S,
          class... Ingredients>
void state_space_dual_step(tensor_view<X, 4> x, tensor_view<D, 3> step, tensor_view<A, 1> rate,
                           tensor_view<B, 4> write, tensor_view<C, 4> read, tensor_view<O, 4> out,
                           tensor_view<S, 4> state, Ingredients const&... ingredients) {
  using T = compute_type<X, D, A, B, C, O, S>;
  auto const executor = recur::scan::executor_of(ingredients...);
  recur::dual_call<T> const call(x, step, rate, out, "out", any_executor(executor), ingredients...);
  struct page {};
  auto const sum = recur::page_tensors<page, T>(x.extents())[0];
  std::apply(
      [&](auto const&... own) {
        linear_attention_step(read, write, call.value, sum, state, decay(call.gate), own...);
      },
      all_of<recur::is_not_head_skip>(ingredients...));
  call.add_skip(source<T>(sum), sink<T>(out));
}

/// The gradients of state_space_dual, with its ingredients; state{s} is replaced by an initial_state with what s was before,
/// and may carry a gradient, as head_skip may; also final_state_gradient. dx, dstep, drate, dwrite and dread are shaped like
/// what they are the gradients of.
template <element X, element D, element A, element B, element C, element DO, element DX, element DD,
          element DA, element DB, element DC, class... Ingredients>
void state_space_dual_backward(tensor_view<X, 4> x, tensor_view<D, 3> step, tensor_view<A, 1> rate,
                               tensor_view<B, 4> write, tensor_view<C, 4> read,
                               tensor_view<DO, 4> dout, tensor_view<DX, 4> dx,
                               tensor_view<DD, 3> dstep, tensor_view<DA, 1> drate,
                               tensor_view<DB, 4> dwrite, tensor_view<DC, 4> dread,
                               Ingredients const&... ingredients) {
  using T = compute_type<X, D, A, B, C, DO, recur::scan::states_type<Ingredients...>>;
  auto const like = [](char const* name, auto const& view, auto const& expected, char const* what) {
    require(view.extents() == expected.extents(), [&] {
      return std::string(name) + " has shape " + shape_text(view.extents()) +
             "; expected that of " + what + ", " + shape_text(expected.extents());
    });
  };
  like("dx", dx, x, "x");
  like("dstep", dstep, step, "step");
  like("drate", drate, rate, "rate");
  auto const executor = recur::scan::executor_of(ingredients...);
  recur::dual_call<T> const call(x, step, rate, dout, "dout", any_executor(executor),
                                 ingredients...);
  struct page {};
  auto const [batches, rows, heads, dim] = x.extents();
  auto const slopes = recur::page_tensors<page, T>(recur::tensor_shape{batches, rows, heads, dim},
                                                   recur::tensor_shape{batches, rows, heads, 1});
  auto const dgate = recur::without_channels(slopes[1]);
  std::apply(
      [&](auto const&... own) {
        // A recurrence that is neither normalised nor faded along its values does not need its result.
        linear_attention_backward(read, write, call.value, dout, dout, dread, dwrite, slopes[0],
                                  decay(call.gate, dgate), own...);
      },
      all_of<recur::is_not_head_skip>(ingredients...));
  head_skip<float> const none(tensor_view<float const, 1>{});
  call.chain(source<T>(dout), slopes[0], dgate, sink<T>(dx), dstep, drate,
             one_of<recur::is_head_skip>(none, ingredients...).gradient);
}

}  // namespace heed
