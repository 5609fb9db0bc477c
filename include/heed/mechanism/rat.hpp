#pragma once

#include <heed/cache/rotation.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/recur/composition.hpp>
#include <heed/recur/diagonal_scan.hpp>
#include <heed/softmax.hpp>

/// RAT: Bridging RNN Efficiency and Attention Accuracy via Chunk-based Sequence Modeling.
///
/// Inside a chunk of `size` tokens a gated average of keys and of values, which starts anew with each chunk; between chunks
/// softmax attention to the averages that the earlier chunks ended with, and to the running one of the own chunk:
///
///     k~_t = g_t k~_(t-1) + (1 - g_t) k_t,   v~ alike,   out_t = z_t softmax(D^-1/2 q_t . k~)(v~)
///
/// with rotary positions on q and k~ at the number of the chunk. One average is a row for L tokens: the cache of decoding is
/// L times smaller than that of attention.
namespace heed {

/// The pattern of RAT: a query meets one key for each chunk of `size` positions before its own. Queries count from 0: top_left.
struct earlier_chunks : detail::interval_rows<earlier_chunks> {
  index_t size;

  explicit earlier_chunks(index_t positions) : size(positions) {}
  interval row(index_t position) const { return {0, position / size}; }
};

/// What rat_step keeps between tokens, in the caller's memory, float or double: the averages that chunks ended with, of keys
/// rotated, the last row being that of the chunk that runs; the running average of keys as it is; and how many tokens
/// there were.
template <class T>
struct rat_cache {
  tensor_view<T, 4> keys;     // [batch, chunks, heads, dim]
  tensor_view<T, 4> values;   // the same
  tensor_view<T, 4> running;  // [batch, 1, heads, dim]
  index_t tokens = 0;
};
template <class T>
rat_cache(tensor_view<T, 4>, tensor_view<T, 4>, tensor_view<T, 4>) -> rat_cache<T>;

namespace recur {

/// One call of rat or of its gradients.
template <class T>
class rat_call {
 public:
  using tensor = tensor_view<T, 4>;
  using arch = xsimd::default_arch;

  template <class Q, class K, class V, class G, class Z, class O>
  rat_call(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v, tensor_view<G, 4> forget,
           tensor_view<Z, 4> gate, tensor_view<O, 4> out, char const* out_name, index_t size,
           any_executor const& run_on)
      : run_on_(run_on),
        shape_(q.extents()),
        size_(size),
        q_(q),
        k_(k),
        v_(v),
        g_(forget),
        z_(gate) {
    auto const shares = [&](char const* name, auto const& view) {
      index_t const heads = view.extent(2);
      require(view.extent(0) == shape_[0] && view.extent(1) == shape_[1] && heads > 0 &&
                  shape_[2] % heads == 0 && view.extent(3) == shape_[3],
              [&] {
                return std::string(name) + " has shape " + shape_text(view.extents()) +
                       "; expected [" + std::to_string(shape_[0]) + ", " +
                       std::to_string(shape_[1]) + ", a divisor of " + std::to_string(shape_[2]) +
                       ", " + std::to_string(shape_[3]) + "] (batch, position, head, dim)";
              });
      heed::detail::expect_memory(name, view);
    };
    heed::detail::expect_memory("q", q);
    shares("k", k);
    shares("v", v);
    heed::detail::expect_like("forget", forget, shape_, "q");
    heed::detail::expect_like("gate", gate, shape_, "q");
    heed::detail::expect_like(out_name, out, shape_, "q");
    heed::detail::expect_memory(out_name, out);
    require(size > 0, [&] {
      return "chunks have " + std::to_string(size) + " positions; expected at least 1";
    });
    require(shape_[3] % 2 == 0, [&] {
      return "q has shape " + shape_text(shape_) + "; expected an even dim, for rotary positions";
    });
  }

  index_t earlier() const { return shape_[1] == 0 ? 0 : (shape_[1] - 1) / size_; }
  tensor_shape const& shape() const { return shape_; }
  scale factor() const {
    return {1 / std::sqrt(static_cast<double>(std::max<index_t>(shape_[3], 1)))};
  }

  /// The averages of keys and values, and the attention to chunk ends and the running ones, not gated.
  template <class G>
  void attend(tensor_view<G, 4> forget) {
    struct page {};
    auto const [batches, rows, heads, dim] = shape_;
    tensor_shape const ends{batches, earlier(), heads, dim};
    auto const own = page_tensors<page, T>(shape_, shape_, shape_, shape_, ends,
                                           tensor_shape{batches, rows, heads, 1},
                                           tensor_shape{1, earlier() + 1, 1, dim});
    keys = own[0], values = own[1], queries = own[2], result = own[3], end_keys = own[4];
    lse = {own[5].data(), {batches, heads, rows}};
    make_turns(own[6]);
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const scratch = feature_scratch<T>(4 * count * dim_());
      row_block<T> const g = g_.rows(b, h, first, count, scratch);
      row_block<T> const k = k_.rows(b, key_head(h), first, count, scratch + count * dim_());
      row_block<T> const v = v_.rows(b, value_head(h), first, count, scratch + 2 * count * dim_());
      row_block<T> const q = q_.rows(b, h, first, count, scratch + 3 * count * dim_());
      for (index_t i = 0; i < count; ++i) {
        auto const fresh = [](auto const& gate, auto const& x) { return xsimd::fnma(gate, x, x); };
        transform_row<arch>(dim_(), &keys(b, first + i, h, 0), fresh, g[i], k[i]);
        transform_row<arch>(dim_(), &values(b, first + i, h, 0), fresh, g[i], v[i]);
        turn((first + i) / size_, q[i], &queries(b, first + i, h, 0), T(1));
      }
    });
    each_run([&](auto const& part) {
      diagonal_scan(part(forget), part(keys), part(keys), run_on_);
      diagonal_scan(part(forget), part(values), part(values), run_on_);
    });
    for_row_blocks(run_on_, ends, [&](index_t b, index_t h, index_t first, index_t count) {
      for (index_t c = first; c < first + count; ++c)
        turn(c, &keys(b, (c + 1) * size_ - 1, h, 0), &end_keys(b, c, h, 0), T(1));
    });
    attention(queries, end_keys, end_values(values), result, earlier_chunks(size_), top_left{},
              factor(), lse_into<T>{lse}, run_on_);
    // The running average is one more key; the two rotations of its product cancel.
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      row_block<T> const q = q_.rows(b, h, first, count, feature_scratch<T>(count * dim_()));
      for (index_t row = first; row < first + count; ++row) {
        T const s = own_score(q[row - first], b, row, h), before = lse(b, h, row);
        T const top = std::max(s, before), total = std::exp(s - top) + std::exp(before - top);
        T const mine = std::exp(s - top) / total, theirs = std::exp(before - top) / total;
        T* const o = &result(b, row, h, 0);
        mix(theirs, o, mine, &values(b, row, h, 0), o);
        lse(b, h, row) = top + std::log(total);
      }
    });
  }

  /// out = z result.
  void gate(sink<T> const& out) const {
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>(2 * count * dim_());
      row_block<T> const z = z_.rows(b, h, first, count, to + count * dim_());
      for (index_t i = 0; i < count; ++i)
        transform_row<arch>(dim_(), to + i * dim_(), times, z[i], &result(b, first + i, h, 0));
      out.store(b, h, first, count, to, dim_());
    });
  }

  /// Every gradient, after attend(). dk and dv sum over the heads that share a key or value.
  template <class G>
  void differentiate(tensor_view<G, 4> forget, source<T> const& dout, sink<T> const& dq,
                     sink<T> const& dk, sink<T> const& dv, sink<T> const& dforget,
                     sink<T> const& dgate) {
    struct page {};
    tensor_shape const ends = end_keys.extents();
    auto const own =
        page_tensors<page, T>(shape_, shape_, shape_, shape_, shape_, shape_, ends, ends);
    tensor const dresult = own[0], dqueries = own[1], dkeys = own[2], dvalues = own[3],
                 by_keys = own[4], by_values = own[5], dend_keys = own[6], dend_values = own[7];
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>(3 * count * dim_());
      row_block<T> const z = z_.rows(b, h, first, count, to + count * dim_());
      row_block<T> const d = dout.rows(b, h, first, count, to + 2 * count * dim_());
      for (index_t i = 0; i < count; ++i) {
        transform_row<arch>(dim_(), to + i * dim_(), times, d[i], &result(b, first + i, h, 0));
        transform_row<arch>(dim_(), &dresult(b, first + i, h, 0), times, d[i], z[i]);
      }
      dgate.store(b, h, first, count, to, dim_());
    });
    attention_backward(queries, end_keys, end_values(values), result, lse, dresult, dqueries,
                       dend_keys, dend_values, earlier_chunks(size_), top_left{}, factor(),
                       run_on_);
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>((2 * count + 1) * dim_());
      T* const turned = to + 2 * count * dim_();
      row_block<T> const q = q_.rows(b, h, first, count, to + count * dim_());
      for (index_t i = 0; i < count; ++i) {
        index_t const row = first + i;
        T const* const slope = &dresult(b, row, h, 0);
        T const weight = std::exp(own_score(q[i], b, row, h) - lse(b, h, row));
        mix(T(1), &values(b, row, h, 0), T(-1), &result(b, row, h, 0), turned);
        T const ds = static_cast<T>(factor().value) * weight * dot_row<arch>(dim_(), slope, turned);
        turn(row / size_, &dqueries(b, row, h, 0), turned, T(-1));
        mix(T(1), turned, ds, &keys(b, row, h, 0), to + i * dim_());
        mix(ds, q[i], T(0), q[i], &dkeys(b, row, h, 0));
        mix(weight, slope, T(0), slope, &dvalues(b, row, h, 0));
        if (index_t const c = row / size_; (row + 1) % size_ == 0 && c < earlier()) {
          turn(c, &dend_keys(b, c, h, 0), turned, T(-1));
          mix(T(1), turned, T(1), &dkeys(b, row, h, 0), &dkeys(b, row, h, 0));
          mix(T(1), &dend_values(b, c, h, 0), T(1), &dvalues(b, row, h, 0), &dvalues(b, row, h, 0));
        }
      }
      dq.store(b, h, first, count, to, dim_());
    });
    each_run([&](auto const& part) {
      diagonal_scan_backward(part(forget), part(keys), part(dkeys), part(by_keys), part(dkeys),
                             run_on_);
      diagonal_scan_backward(part(forget), part(values), part(dvalues), part(by_values),
                             part(dvalues), run_on_);
    });
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>(3 * count * dim_());
      row_block<T> const k = k_.rows(b, key_head(h), first, count, to + count * dim_());
      row_block<T> const v = v_.rows(b, value_head(h), first, count, to + 2 * count * dim_());
      for (index_t i = 0; i < count; ++i) {
        auto const less = [](auto const& whole, auto const& r, auto const& x) {
          return xsimd::fnma(r, x, whole);
        };
        T* const sum = to + i * dim_();
        transform_row<arch>(dim_(), sum, less, &by_keys(b, first + i, h, 0),
                            &dkeys(b, first + i, h, 0), k[i]);
        mix(T(1), sum, T(1), &by_values(b, first + i, h, 0), sum);
        transform_row<arch>(dim_(), sum, less, sum, &dvalues(b, first + i, h, 0), v[i]);
      }
      dforget.store(b, h, first, count, to, dim_());
    });
    sum_over_heads(k_.heads(), dkeys, dk);
    sum_over_heads(v_.heads(), dvalues, dv);
  }

  /// Row `chunk` of a tensor turned as it stands there, or with by = -1 back.
  void turn(index_t chunk, T const* from, T* to, T by) const {
    index_t const half = dim_() / 2;
    T const* const cosine = &turns_(0, chunk, 0, 0);
    T const* const sine = cosine + half;
    for (index_t m = 0; m < half; ++m) {
      T const x = from[m], y = from[half + m];
      to[m] = x * cosine[m] - by * (y * sine[m]);
      to[half + m] = by * (x * sine[m]) + y * cosine[m];
    }
  }

  tensor keys, values, queries, result, end_keys;
  tensor_view<T, 3> lse;

 private:
  static constexpr auto times = [](auto const& a, auto const& b) { return a * b; };

  index_t dim_() const { return shape_[3]; }
  index_t key_head(index_t h) const { return h * k_.heads() / shape_[2]; }
  index_t value_head(index_t h) const { return h * v_.heads() / shape_[2]; }

  /// The rows that chunks but the last end with.
  tensor end_values(tensor const& all) const {
    auto strides = all.strides();
    strides[1] *= size_;
    return {all.data() == nullptr || earlier() == 0 ? all.data() : &all(0, size_ - 1, 0, 0),
            {shape_[0], earlier(), shape_[2], shape_[3]},
            strides};
  }
  /// Cosines and sines of every chunk's number; angles are formed in double.
  void make_turns(tensor turns) {
    turns_ = turns;
    index_t const half = dim_() / 2;
    for (index_t c = 0; c < turns.extent(1); ++c)
      for (index_t m = 0; m < half; ++m) {
        double const angle =
            static_cast<double>(c) *
            std::pow(rotary{}.base, -static_cast<double>(m) / static_cast<double>(half));
        turns(0, c, 0, m) = static_cast<T>(std::cos(angle));
        turns(0, c, 0, half + m) = static_cast<T>(std::sin(angle));
      }
  }
  /// Calls f with what makes of a tensor the chunks of a batch entry, all as long, as a batch; and again for the last ones.
  template <class F>
  void each_run(F const& f) const {
    index_t const whole = shape_[1] / size_, rest = shape_[1] % size_;
    for (index_t b = 0; b < shape_[0]; ++b)
      for (auto const& [first, count, length] :
           {std::array{index_t{0}, whole, size_}, std::array{whole * size_, index_t{1}, rest}}) {
        if (count == 0 || length == 0) continue;
        index_t const batch = b, start = first, chunks = count, rows = length;
        f([batch, start, chunks, rows, this]<class E>(tensor_view<E, 4> all) {
          auto strides = all.strides();
          strides[0] = size_ * strides[1];
          return tensor_view<E, 4>(&all(batch, start, 0, 0), {chunks, rows, shape_[2], shape_[3]},
                                   strides);
        });
      }
  }
  T own_score(T const* q, index_t b, index_t row, index_t h) const {
    return static_cast<T>(factor().value) * dot_row<arch>(dim_(), q, &keys(b, row, h, 0));
  }
  /// to = a x + b y.
  void mix(T a, T const* x, T b, T const* y, T* to) const {
    transform_row<arch>(
        dim_(), to,
        [&](auto const& u, auto const& w) {
          using batch = std::remove_cvref_t<decltype(u)>;
          return xsimd::fma(batch(a), u, batch(b) * w);
        },
        x, y);
  }
  /// to = sum over the heads that share one of (1 - g) dx.
  void sum_over_heads(index_t heads, tensor const& dx, sink<T> const& to) const {
    index_t const share = heads == 0 ? 0 : shape_[2] / heads;
    for_row_blocks(run_on_, {shape_[0], shape_[1], heads, shape_[3]},
                   [&](index_t b, index_t own, index_t first, index_t count) {
                     T* const sum = feature_scratch<T>(2 * count * dim_());
                     std::fill_n(sum, count * dim_(), T(0));
                     for (index_t h = own * share; h < (own + 1) * share; ++h) {
                       row_block<T> const g = g_.rows(b, h, first, count, sum + count * dim_());
                       for (index_t i = 0; i < count; ++i)
                         transform_row<arch>(
                             dim_(), sum + i * dim_(),
                             [](auto const& all, auto const& gate, auto const& d) {
                               return all + xsimd::fnma(gate, d, d);
                             },
                             sum + i * dim_(), g[i], &dx(b, first + i, h, 0));
                     }
                     to.store(b, own, first, count, sum, dim_());
                   });
  }

  any_executor run_on_;
  tensor_shape shape_;
  index_t size_;
  source<T> q_, k_, v_, g_, z_;
  tensor turns_;
};

}  // namespace recur

/// RAT over a sequence.
///
///   q, out         [batch, N, heads, dim], dim even
///   k, v           [batch, N, key heads or value heads, dim], which divide heads
///   forget, gate   [batch, N, heads, dim]: g and z, in [0, 1]
///   size           tokens of a chunk; N need not be a multiple
///
/// Elements are double, float, half or bfloat16. Takes scratch of some times the size of q. The same bits for every executor.
template <element Q, element K, element V, element G, element Z, element O, class Executor = serial>
void rat(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v, tensor_view<G, 4> forget,
         tensor_view<Z, 4> gate, tensor_view<O, 4> out, index_t size, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, G, Z, O>;
  recur::rat_call<T> call(q, k, v, forget, gate, out, "out", size, any_executor(run_on));
  heed::detail::expect_distinct_elements("out", out);
  call.attend(forget);
  call.gate(sink<T>(out));
}

/// The gradients of rat, shaped like its operands. The forward pass is made again.
template <element Q, element K, element V, element G, element Z, element DO, element DQ, element DK,
          element DV, element DG, element DZ, class Executor = serial>
void rat_backward(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v,
                  tensor_view<G, 4> forget, tensor_view<Z, 4> gate, tensor_view<DO, 4> dout,
                  tensor_view<DQ, 4> dq, tensor_view<DK, 4> dk, tensor_view<DV, 4> dv,
                  tensor_view<DG, 4> dforget, tensor_view<DZ, 4> dgate, index_t size,
                  Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, G, Z, DO>;
  recur::rat_call<T> call(q, k, v, forget, gate, dout, "dout", size, any_executor(run_on));
  auto const fits = [](char const* name, auto const& view, auto const& like, char const* what) {
    heed::detail::expect_like(name, view, like.extents(), what);
    heed::detail::expect_memory(name, view);
    heed::detail::expect_distinct_elements(name, view);
  };
  fits("dq", dq, q, "q");
  fits("dk", dk, k, "k");
  fits("dv", dv, v, "v");
  fits("dforget", dforget, forget, "forget");
  fits("dgate", dgate, gate, "gate");
  call.attend(forget);
  call.differentiate(forget, source<T>(dout), sink<T>(dq), sink<T>(dk), sink<T>(dv),
                     sink<T>(dforget), sink<T>(dgate));
}

/// The next token: its tensors have one position. Throws heed::error when the cache has no room for another chunk.
template <element Q, element K, element V, element G, element Z, element O, class S,
          class Executor = serial>
void rat_step(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v,
              tensor_view<G, 4> forget, tensor_view<Z, 4> gate, tensor_view<O, 4> out,
              rat_cache<S>& cache, index_t size, Executor const& run_on = {}) {
  using T = compute_type<Q, K, V, G, Z, O, S>;
  recur::rat_call<T> call(q, k, v, forget, gate, out, "out", size, any_executor(run_on));
  require(q.extent(1) == 1, [&] {
    return "q has shape " + shape_text(q.extents()) + "; expected 1 position, that of a step";
  });
  index_t const chunk = cache.tokens / size;
  auto const holds = [&](char const* name, auto const& view, index_t least) {
    auto const& e = view.extents();
    require(e[0] == q.extent(0) && e[1] >= least && e[2] == q.extent(2) && e[3] == q.extent(3),
            [&] {
              return std::string(name) + " has shape " + shape_text(e) + "; expected [" +
                     std::to_string(q.extent(0)) + ", at least " + std::to_string(least) + ", " +
                     std::to_string(q.extent(2)) + ", " + std::to_string(q.extent(3)) +
                     "] (batch, chunk, head, dim)";
            });
  };
  holds("rat_cache.keys", cache.keys, chunk + 1);
  holds("rat_cache.values", cache.values, chunk + 1);
  holds("rat_cache.running", cache.running, 1);
  struct page {};
  auto const own = recur::page_tensors<page, T>(q.extents(), q.extents());
  tensor_view<T, 4> const query = own[0], result = own[1];
  bool const fresh = cache.tokens % size == 0;
  // average <- g average + (1 - g) x.
  auto const average = [&](tensor_view<S, 4> to, index_t row, auto const& x) {
    for (index_t b = 0; b < to.extent(0); ++b)
      for (index_t h = 0; h < to.extent(2); ++h)
        for (index_t d = 0; d < to.extent(3); ++d) {
          T const g = convert_element<T>(forget(b, 0, h, d));
          T const before = fresh ? T(0) : static_cast<T>(to(b, row, h, d));
          T const now = convert_element<T>(x(b, 0, h * x.extent(2) / to.extent(2), d));
          to(b, row, h, d) = static_cast<S>(std::fma(g, before, std::fma(-g, now, now)));
        }
  };
  average(cache.running, 0, k);
  average(cache.values, chunk, v);
  rotate(rotary{}, q, query, chunk);
  rotate(rotary{}, cache.running, cache.keys.slice(1, chunk, 1), chunk);
  ++cache.tokens;
  attention(query, cache.keys.slice(1, 0, chunk + 1), cache.values.slice(1, 0, chunk + 1), result,
            call.factor(), run_on);
  call.result = result;
  call.gate(sink<T>(out));
}

}  // namespace heed
