#pragma once

#include <heed/cache/rotation.hpp>
#include <heed/pattern/row_ranges.hpp>
#include <heed/recur/diagonal_scan.hpp>
#include <heed/recur/passes.hpp>
#include <heed/simd/fma.hpp>
#include <heed/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace heed {

/// A query meets one key for each chunk of `size` positions before its own; `first` positions stand before row 0. Queries count
/// from 0: top_left.
struct earlier_chunks : detail::interval_rows<earlier_chunks> {
  index_t size, first;

  explicit earlier_chunks(index_t positions, index_t before = 0) : size(positions), first(before) {}
  interval row(index_t position) const { return {0, (first + position) / size}; }
};

namespace recur {

/// Where chunks of `size` tokens lie in the rows of a call: those of one sequence in each batch entry, which may go on from
/// `tokens` earlier ones, or of documents. A chunk that is followed by another in its sequence has a row among the ends.
class chunk_places {
 public:
  chunk_places(sequence_list const& sequences, index_t size, index_t tokens)
      : size_(size), tokens_(tokens), rows_(sequences.rows), bounds_(sequences.packed.queries) {
    auto const sequence_count = is_packed() ? sequences.count : 1;
    index_t chunks = 0;
    for (index_t s = 0; s < sequence_count; ++s) chunks += count(s) / size_ + 2;
    // Grows only; of one call at a time.
    thread_local std::vector<index_t> ends, starts;
    ends.assign(1, 0);
    starts.clear();
    starts.reserve(static_cast<std::size_t>(chunks));
    for (index_t s = 0; s < sequence_count; ++s) {
      index_t const n = count(s);
      longest_ = std::max(longest_, tokens_ + n);
      ends.push_back(ends.back() + (tokens_ + n == 0 ? 0 : (tokens_ + n - 1) / size_));
      for (index_t i = 0; i < n; i += size_ - (tokens_ + i) % size_) starts.push_back(first(s) + i);
    }
    starts.push_back(rows_);
    ends_ = ends;
    starts_ = starts;
  }

  index_t size() const { return size_; }
  index_t tokens() const { return tokens_; }
  bool is_packed() const { return !bounds_.empty(); }
  index_t ends() const { return ends_.back(); }
  /// The number of chunks of the longest sequence, the running one included.
  index_t most_chunks() const { return longest_ == 0 ? 0 : (longest_ - 1) / size_ + 1; }
  /// Whether row 0 goes on with a chunk that has begun before.
  bool goes_on() const { return tokens_ % size_ != 0; }
  documents for_scan() const { return {starts_, starts_}; }
  documents for_attention() const { return {bounds_, ends_}; }

  struct token {
    index_t chunk;  // of its sequence
    index_t end;    // its row among the ends, if it ends a chunk; otherwise -1
  };
  token operator[](index_t row) const {
    auto const s = static_cast<std::size_t>(
        is_packed() ? std::upper_bound(bounds_.begin(), bounds_.end(), row) - bounds_.begin() - 1
                    : 0);
    index_t const position = tokens_ + row - first(static_cast<index_t>(s));
    index_t const chunk = position / size_, end = ends_[s] + chunk;
    bool const is_end = (position + 1) % size_ == 0 && end < ends_[s + 1];
    return {chunk, is_end ? end : -1};
  }

 private:
  index_t first(index_t s) const { return is_packed() ? bounds_[static_cast<std::size_t>(s)] : 0; }
  index_t count(index_t s) const {
    return is_packed() ? bounds_[static_cast<std::size_t>(s) + 1] - first(s) : rows_;
  }

  index_t size_, tokens_, rows_, longest_ = 0;
  std::span<index_t const> bounds_, ends_, starts_;
};

/// Gated averages of keys and values that start anew with each chunk, h_t = g_t h_(t-1) + (1 - g_t) x_t, and attention to those
/// that earlier chunks ended with and to the running one; z times the result. RAT.
template <class T>
class chunk_averages {
 public:
  using tensor = tensor_view<T, 4>;
  using arch = xsimd::default_arch;

  /// The averages that row 0 goes on from, [batch, 1, head, dim]; empty if it begins a chunk.
  struct running {
    source<T> key, value;
  };
  /// Gradients by the last row's averages, of keys turned and as they are; and where those by what row 0 goes on from are
  /// written. All [batch, 1, head, dim], or empty.
  struct carried {
    tensor last_keys, last_values, last_running;
    tensor first_keys, first_values;
  };

  template <class Q, class K, class V, class G, class Z, class O>
  chunk_averages(tensor_view<Q, 4> q, tensor_view<K, 4> k, tensor_view<V, 4> v,
                 tensor_view<G, 4> forget, tensor_view<Z, 4> gate, char const* out_name,
                 tensor_view<O, 4> out, chunk_places const& chunks, any_executor const& run_on)
      : run_on_(run_on),
        shape_(q.extents()),
        chunks_(chunks),
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
    require(shape_[3] % 2 == 0, [&] {
      return "q has shape " + shape_text(shape_) + "; expected an even dim, for rotary positions";
    });
  }

  static scale factor(index_t dim) {
    return {1 / std::sqrt(static_cast<double>(std::max<index_t>(dim, 1)))};
  }
  tensor_shape ends_shape() const { return {shape_[0], chunks_.ends(), shape_[2], shape_[3]}; }

  /// The averages, the ends, and the attention to them and to the running averages, not gated. The ends of chunks before row 0
  /// are there already.
  template <class G, class S>
  void attend(tensor_view<G, 4> forget, running const& before, tensor_view<S, 4> end_keys,
              tensor_view<S, 4> end_values) {
    struct page {};
    auto const [batches, rows, heads, dim] = shape_;
    auto const own =
        page_tensors<page, T>(shape_, shape_, shape_, shape_, tensor_shape{batches, rows, heads, 1},
                              tensor_shape{1, chunks_.most_chunks(), 1, dim});
    keys = own[0], values = own[1], queries = own[2], result = own[3];
    lse = {own[4].data(), {batches, heads, rows}};
    make_turns(own[5]);
    before_ = before;
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const scratch = feature_scratch<T>(5 * count * dim_());
      row_block<T> const g = g_.rows(b, h, first, count, scratch);
      row_block<T> const k = k_.rows(b, key_head(h), first, count, scratch + count * dim_());
      row_block<T> const v = v_.rows(b, value_head(h), first, count, scratch + 2 * count * dim_());
      row_block<T> const q = q_.rows(b, h, first, count, scratch + 3 * count * dim_());
      for (index_t i = 0; i < count; ++i) {
        auto const fresh = [](auto const& gate, auto const& x) { return simd::fnma(gate, x, x); };
        transform_row<arch>(dim_(), &keys(b, first + i, h, 0), fresh, g[i], k[i]);
        transform_row<arch>(dim_(), &values(b, first + i, h, 0), fresh, g[i], v[i]);
        turn(chunks_[first + i].chunk, q[i], &queries(b, first + i, h, 0), T(1));
      }
      if (first > 0 || !chunks_.goes_on()) return;
      T* const room = scratch + 4 * count * dim_();
      auto const go_on = [&](source<T> const& from, T* to) {
        transform_row<arch>(
            dim_(), to,
            [](auto const& a, auto const& x, auto const& sum) { return simd::fma(a, x, sum); },
            g[0], from.rows(b, h, 0, 1, room)[0], static_cast<T const*>(to));
      };
      go_on(before_.key, &keys(b, 0, h, 0));
      go_on(before_.value, &values(b, 0, h, 0));
    });
    each_entry([&](auto const& of) {
      diagonal_scan(of(forget), of(keys), of(keys), chunks_.for_scan(), run_on_);
      diagonal_scan(of(forget), of(values), of(values), chunks_.for_scan(), run_on_);
    });
    sink<T> const to_keys(end_keys), to_values(end_values);
    each_end([&](index_t b, index_t h, index_t row, chunk_places::token const& at) {
      store_turned(at.chunk, b, row, h, to_keys, at.end);
      to_values.store(b, h, at.end, 1, &values(b, row, h, 0), dim_());
    });
    call_attention([&](auto const&... packed) {
      attention(queries, end_keys, end_values, result,
                earlier_chunks(chunks_.size(), chunks_.tokens()), top_left{}, factor(dim_()),
                lse_into<T>{lse}, run_on_, packed...);
    });
    // The running average is one more key; the two rotations of its product cancel.
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      row_block<T> const q = q_.rows(b, h, first, count, feature_scratch<T>(count * dim_()));
      for (index_t row = first; row < first + count; ++row) {
        T const s = own_score(q[row - first], b, row, h), others = lse(b, h, row);
        T const top = std::max(s, others), total = std::exp(s - top) + std::exp(others - top);
        T const mine = std::exp(s - top) / total, theirs = std::exp(others - top) / total;
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

  /// The averages after the last row, of keys turned and as they are.
  void store_last(sink<T> const& key, sink<T> const& value, sink<T> const& running_key) const {
    if (shape_[1] == 0) return;
    index_t const row = shape_[1] - 1, chunk = chunks_[row].chunk;
    for (index_t b = 0; b < shape_[0]; ++b)
      for (index_t h = 0; h < shape_[2]; ++h) {
        store_turned(chunk, b, row, h, key, 0);
        value.store(b, h, 0, 1, &values(b, row, h, 0), dim_());
        running_key.store(b, h, 0, 1, &keys(b, row, h, 0), dim_());
      }
  }

  /// Every gradient, after attend(). dk and dv sum over the heads that share a key or value; end_keys and end_values are those of
  /// attend(), and dend_keys and dend_values begin as what the loss says of the ends otherwise.
  template <class G, class S>
  void differentiate(tensor_view<G, 4> forget, source<T> const& dout, tensor_view<S, 4> end_keys,
                     tensor_view<S, 4> end_values, tensor dend_keys, tensor dend_values,
                     carried const& by, sink<T> const& dq, sink<T> const& dk, sink<T> const& dv,
                     sink<T> const& dforget, sink<T> const& dgate) {
    struct page {};
    auto const own = page_tensors<page, T>(shape_, shape_, shape_, shape_, shape_, shape_,
                                           ends_shape(), ends_shape());
    tensor const dresult = own[0], dqueries = own[1], dkeys = own[2], dvalues = own[3],
                 by_keys = own[4], by_values = own[5];
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
    call_attention([&](auto const&... packed) {
      attention_backward(queries, end_keys, end_values, result, lse, dresult, dqueries, own[6],
                         own[7], earlier_chunks(chunks_.size(), chunks_.tokens()), top_left{},
                         factor(dim_()), run_on_, packed...);
    });
    auto const plus = [](auto const& a, auto const& b) { return a + b; };
    transform<T>(run_on_, sink<T>(dend_keys), plus, source<T>(dend_keys), source<T>(own[6]));
    transform<T>(run_on_, sink<T>(dend_values), plus, source<T>(dend_values), source<T>(own[7]));
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>((2 * count + 1) * dim_());
      T* const turned = to + 2 * count * dim_();
      row_block<T> const q = q_.rows(b, h, first, count, to + count * dim_());
      for (index_t i = 0; i < count; ++i) {
        index_t const row = first + i;
        auto const at = chunks_[row];
        T* const dkey = &dkeys(b, row, h, 0);
        T* const dvalue = &dvalues(b, row, h, 0);
        T const* const slope = &dresult(b, row, h, 0);
        T const weight = std::exp(own_score(q[i], b, row, h) - lse(b, h, row));
        mix(T(1), &values(b, row, h, 0), T(-1), &result(b, row, h, 0), turned);
        T const ds =
            static_cast<T>(factor(dim_()).value) * weight * dot_row<arch>(dim_(), slope, turned);
        turn(at.chunk, &dqueries(b, row, h, 0), turned, T(-1));
        mix(T(1), turned, ds, &keys(b, row, h, 0), to + i * dim_());
        mix(ds, q[i], T(0), q[i], dkey);
        mix(weight, slope, T(0), slope, dvalue);
        auto const add = [&](T const* by_key, T const* by_value) {
          turn(at.chunk, by_key, turned, T(-1));
          mix(T(1), turned, T(1), dkey, dkey);
          mix(T(1), by_value, T(1), dvalue, dvalue);
        };
        if (at.end >= 0) add(&dend_keys(b, at.end, h, 0), &dend_values(b, at.end, h, 0));
        if (by.last_keys.data() != nullptr && row == shape_[1] - 1) {
          add(&by.last_keys(b, 0, h, 0), &by.last_values(b, 0, h, 0));
          mix(T(1), &by.last_running(b, 0, h, 0), T(1), dkey, dkey);
        }
      }
      dq.store(b, h, first, count, to, dim_());
    });
    each_entry([&](auto const& of) {
      diagonal_scan_backward(of(forget), of(keys), of(dkeys), of(by_keys), of(dkeys),
                             chunks_.for_scan(), run_on_);
      diagonal_scan_backward(of(forget), of(values), of(dvalues), of(by_values), of(dvalues),
                             chunks_.for_scan(), run_on_);
    });
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      T* const to = feature_scratch<T>(4 * count * dim_());
      row_block<T> const k = k_.rows(b, key_head(h), first, count, to + count * dim_());
      row_block<T> const v = v_.rows(b, value_head(h), first, count, to + 2 * count * dim_());
      T* const room = to + 3 * count * dim_();
      if (first == 0 && chunks_.goes_on()) {
        // The first row's average before it is not among the scan's.
        transform_row<arch>(dim_(), &by_keys(b, 0, h, 0), times, &dkeys(b, 0, h, 0),
                            before_.key.rows(b, h, 0, 1, room)[0]);
        transform_row<arch>(dim_(), &by_values(b, 0, h, 0), times, &dvalues(b, 0, h, 0),
                            before_.value.rows(b, h, 0, 1, room)[0]);
        if (by.first_keys.data() != nullptr) {
          T const* const g = g_.rows(b, h, 0, 1, room)[0];
          transform_row<arch>(dim_(), &by.first_keys(b, 0, h, 0), times, g, &dkeys(b, 0, h, 0));
          transform_row<arch>(dim_(), &by.first_values(b, 0, h, 0), times, g, &dvalues(b, 0, h, 0));
        }
      }
      for (index_t i = 0; i < count; ++i) {
        auto const less = [](auto const& whole, auto const& r, auto const& x) {
          return simd::fnma(r, x, whole);
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

  tensor keys, values, queries, result;
  tensor_view<T, 3> lse;

 private:
  static constexpr auto times = [](auto const& a, auto const& b) { return a * b; };

  index_t dim_() const { return shape_[3]; }
  index_t key_head(index_t h) const { return h * k_.heads() / shape_[2]; }
  index_t value_head(index_t h) const { return h * v_.heads() / shape_[2]; }

  /// Calls f(batch, head, row, its place) for the rows that end a chunk.
  template <class F>
  void each_end(F const& f) const {
    for_row_blocks(run_on_, shape_, [&](index_t b, index_t h, index_t first, index_t count) {
      for (index_t row = first; row < first + count; ++row)
        if (auto const at = chunks_[row]; at.end >= 0) f(b, h, row, at);
    });
  }
  /// Calls f with what takes the one batch entry of a tensor, whose chunks are documents.
  template <class F>
  void each_entry(F const& f) const {
    for (index_t b = 0; b < shape_[0]; ++b) f([b](auto const& all) { return all.slice(0, b, 1); });
  }
  template <class F>
  void call_attention(F const& f) const {
    chunks_.is_packed() ? f(chunks_.for_attention()) : f();
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
  void store_turned(index_t chunk, index_t b, index_t row, index_t h, sink<T> const& to,
                    index_t to_row) const {
    T* const turned = feature_scratch<T>(dim_());
    turn(chunk, &keys(b, row, h, 0), turned, T(1));
    to.store(b, h, to_row, 1, turned, dim_());
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
  T own_score(T const* q, index_t b, index_t row, index_t h) const {
    return static_cast<T>(factor(dim_()).value) * dot_row<arch>(dim_(), q, &keys(b, row, h, 0));
  }
  /// to = a x + b y.
  void mix(T a, T const* x, T b, T const* y, T* to) const {
    transform_row<arch>(
        dim_(), to,
        [&](auto const& u, auto const& w) {
          using batch = std::remove_cvref_t<decltype(u)>;
          return simd::fma(batch(a), u, batch(b) * w);
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
                               return all + simd::fnma(gate, d, d);
                             },
                             sum + i * dim_(), g[i], &dx(b, first + i, h, 0));
                     }
                     to.store(b, own, first, count, sum, dim_());
                   });
  }

  any_executor run_on_;
  tensor_shape shape_;
  chunk_places chunks_;
  source<T> q_, k_, v_, g_, z_;
  running before_;
  tensor turns_;
};

}  // namespace recur
}  // namespace heed
