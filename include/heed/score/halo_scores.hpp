#pragma once

#include <heed/attend/backward.hpp>
#include <heed/pattern/halo.hpp>

/// Scores of a query with the places of its window: a vector for each relative position along each axis, and the score
/// of a pair is the sum over the axes of the query's product with the vector of the key's place.
///
/// A query has few products, one for each coordinate of its window along each axis. They are computed once, and pairs
/// add them up; their gradients are summed pair by pair, and become those of queries and vectors afterwards.
namespace heed::detail {

/// The products of all queries of a call, and their gradients. A row of them belongs to a slot of the order: axis after
/// axis, from the first coordinate of the slot's window to the last.
template <class T, std::size_t d>
class halo_scores {
 public:
  using batch = xsimd::batch<T>;
  static constexpr index_t lanes = static_cast<index_t>(batch::size);
  template <class R>
  using tables = std::array<tensor_view<R, 2>, d>;

  /// What the engine adds to the scores.
  struct modifier {
    halo_scores const* scores;

    struct bound {
      halo_scores const* scores;
      index_t first_row;

      template <class Batch>
      static Batch apply(Batch score, Batch number) {
        return score + number;
      }
      template <class C>
      void fill(pair_tile<C> const& tile) const {
        scores->fill(first_row, tile);
      }
    };
    bound bind(place const& where) const { return {scores, scores->row(where.batch, where.head)}; }
  };

  halo_scores(arena& memory, halo_order<d> const& order, index_t batches, index_t heads,
              index_t dim, index_t workers, bool gradients)
      : order_(order),
        batches_(batches),
        heads_(heads),
        dim_(dim),
        padded_dim_(simd::round_up(dim, lanes)),
        slots_(order.rows(0)) {
    grid_point<d> const window = order.parameters().window();
    for (std::size_t a = 0; a < d; ++a) {
      first_[a] = row_size_;
      first_vector_[a] = vectors_;
      row_size_ += simd::round_up(window[a], lanes);
      vectors_ += 2 * window[a] - 1;
      columns_[a] = memory.take<T>(dim * column_size(a));
    }
    windows_ = memory.take<slot_window>(slots_);
    queries_ = memory.take<T>(workers * rows_per_piece * padded_dim_);
    products_ = memory.take<T>(batches * heads * slots_ * row_size_);
    if (!gradients) return;
    vectors_in_rows_ = memory.take<T>(vectors_ * padded_dim_);
    vector_sums_ = memory.take<T>(workers * vectors_ * padded_dim_);
    dqueries_ = memory.take<T>(workers * padded_dim_);
    dvectors_ = memory.take<double>(shares * vectors_ * dim);
    dproducts_ = memory.take<T>(batches * heads * slots_ * row_size_);
  }
  // The engine looks at the order from afar.
  halo_scores(halo_scores const&) = delete;
  halo_scores& operator=(halo_scores const&) = delete;

  modifier added_to_scores() const { return {this}; }

  /// Computes the products of queries and `factor` times the tables' vectors.
  template <class R, class Executor>
  void multiply(source<T> const& query, tables<R> const& vectors, T factor,
                Executor const& run_on) {
    place_windows();
    for (std::size_t a = 0; a < d; ++a)
      for (index_t c = 0; c < dim_; ++c)
        for (index_t e = 0; e < column_size(a); ++e)
          columns_[a][c * column_size(a) + e] =
              e < vectors[a].extent(0) ? factor * convert_element<T>(vectors[a](e, c)) : T(0);
    if (vectors_in_rows_ != nullptr)
      for (std::size_t a = 0; a < d; ++a)
        for (index_t e = 0; e < vectors[a].extent(0); ++e)
          for (index_t c = 0; c < padded_dim_; ++c)
            vectors_in_rows_[(first_vector_[a] + e) * padded_dim_ + c] =
                c < dim_ ? factor * convert_element<T>(vectors[a](e, c)) : T(0);
    parallel_for(run_on, pieces(), [&](index_t number, index_t worker) {
      piece const at = piece_at(number);
      T const* const rows = load_queries(query, at, worker);
      for (index_t slot = at.slots.first; slot < at.slots.last; ++slot)
        for (std::size_t a = 0; a < d; ++a)
          multiply_row(rows + (slot - at.slots.first) * padded_dim_,
                       columns_[a] + windows_[slot].vector[a], column_size(a),
                       simd::round_up(window(a), lanes),
                       products_ + (row(at.batch, at.head) + slot) * row_size_ + first_[a]);
    });
  }

  /// Calls f(batch, head, token, row of products) for the queries of which the window leaves the canvas.
  template <class Executor, class F>
  void each_row_with_phantoms(Executor const& run_on, F f) const {
    parallel_for(run_on, pieces(), [&](index_t number, index_t) {
      piece const at = piece_at(number);
      for (index_t slot = at.slots.first; slot < at.slots.last; ++slot)
        if (index_t const token = order_.query_run(0, slot).first;
            token >= 0 && windows_[slot].leaves)
          f(at.batch, at.head, token, row(at.batch, at.head) + slot);
    });
  }

  /// log sum exp(score) over the places of a row's window that are beyond the canvas.
  T phantom_lse(index_t row) const { return outside(masses_of(row), d); }

  /// Adds the gradients of the scores of these places, weight times `slope` each, where `lse` is that of the row.
  void add_phantom_gradients(index_t row, T lse, T slope) {
    masses const all = masses_of(row);
    for (std::size_t a = 0; a < d; ++a) {
      T const* const product = products_ + row * row_size_ + first_[a];
      T* const to = dproducts_ + row * row_size_ + first_[a];
      interval const inside = windows_[row % slots_].inside[a];
      // The other axes may be anywhere if this one is outside.
      T anywhere = T(0);
      for (std::size_t b = 0; b < d; ++b)
        if (b != a) anywhere += log_sum(all[b].inside, all[b].outside);
      T const others = outside(all, a);
      for (index_t u = 0; u < window(a); ++u) {
        bool const is_inside = inside.first <= u && u < inside.last;
        to[u] += slope * std::exp(product[u] + (is_inside ? others : anywhere) - lse);
      }
    }
  }

  /// Sums the gradients of the products over the pairs on the canvas.
  template <class... Sentence, class Executor>
  void sum_gradients(attend::problem<T> const& p, attend::saved_result<T> const& saved,
                     attend::sentence<Sentence...> const& whole, Executor const& run_on,
                     workspace& memory) {
    using arch = xsimd::default_arch;
    using cut = attend::panelling<T, arch>;
    index_t const panels = cut::count(p.sequence.at(0, 0));
    attend::for_each_swept<true, arch>(
        p, saved, whole, run_on, memory, batches_ * heads_ * panels, 0, 0,
        [&](index_t number, auto& sweep, T*, double*) {
          place const where = p.sequence.at(number / panels / heads_, number / panels % heads_);
          auto const bound = whole.at(where);
          interval const slots = cut::at(where, p.position, number % panels).rows;
          index_t const first_row = row(where.batch, where.head);
          std::fill_n(dproducts_ + (first_row + slots.first) * row_size_, slots.size() * row_size_,
                      T(0));
          for (interval run{0, 0};;) {
            run = bound.pattern.next_keys(slots, run.last, where.keys);
            if (run.empty()) break;
            sweep.run(where, bound, number % panels, run,
                      [&](auto const& tile, index_t k, auto&, auto&, auto& dscore) {
                        constexpr int registers =
                            std::extent_v<std::remove_reference_t<decltype(dscore)>>;
                        alignas(64) T gradient[registers * lanes];
                        for (int r = 0; r < registers; ++r)
                          dscore[r].store_aligned(gradient + r * lanes);
                        add_gradients(first_row, slots, tile.first_key() + k, gradient);
                      });
          }
        });
  }

  /// Adds to the gradient of queries, and writes that of the tables. Returns the sum over all vectors of vector times
  /// gradient.
  template <element DQ, class DR, class Executor>
  void finish(source<T> const& query, T factor, tensor_view<DQ, 4> dquery, tables<DR> const& to,
              Executor const& run_on) {
    // Shares are as many whatever the executor, so that sums are the same.
    parallel_for(run_on, shares, [&](index_t share, index_t worker) {
      double* const sums = dvectors_ + share * vectors_ * dim_;
      std::fill_n(sums, vectors_ * dim_, 0.0);
      T* const few = vector_sums_ + worker * vectors_ * padded_dim_;
      for (index_t n = share * pieces() / shares; n < (share + 1) * pieces() / shares; ++n) {
        piece const at = piece_at(n);
        T const* const rows = load_queries(query, at, worker);
        std::fill_n(few, vectors_ * padded_dim_, T(0));
        for (index_t slot = at.slots.first; slot < at.slots.last; ++slot)
          finish_row(at, slot, rows + (slot - at.slots.first) * padded_dim_,
                     dqueries_ + worker * padded_dim_, few, dquery);
        for (index_t e = 0; e < vectors_; ++e)
          for (index_t c = 0; c < dim_; ++c)
            sums[e * dim_ + c] += static_cast<double>(few[e * padded_dim_ + c]);
      }
    });
    for (index_t n = 0; n < vectors_ * dim_; ++n)
      for (index_t share = 1; share < shares; ++share)
        dvectors_[n] += dvectors_[share * vectors_ * dim_ + n];
    for (std::size_t a = 0; a < d; ++a)
      for (index_t e = 0; e < to[a].extent(0); ++e)
        for (index_t c = 0; c < dim_; ++c)
          to[a](e, c) = convert_element<DR>(static_cast<T>(
              static_cast<double>(factor) * dvectors_[(first_vector_[a] + e) * dim_ + c]));
  }

  /// After finish(): the derivative by `factor`.
  template <class R>
  double dfactor(tables<R> const& vectors) const {
    double sum = 0;
    for (std::size_t a = 0; a < d; ++a)
      for (index_t e = 0; e < vectors[a].extent(0); ++e)
        for (index_t c = 0; c < dim_; ++c)
          sum += convert_element<double>(vectors[a](e, c)) *
                 dvectors_[(first_vector_[a] + e) * dim_ + c];
    return sum;
  }

 private:
  static constexpr index_t rows_per_piece = 64, shares = 32;

  /// The window of a slot's query: where it begins on the canvas, the table's vector of its first place, and which of
  /// its coordinates are on the canvas.
  struct slot_window {
    grid_point<d> first, vector;
    grid_box<d> inside;
    bool leaves;
  };
  struct piece {
    index_t batch, head;
    interval slots;
  };
  /// log sum exp of the products of one axis, of coordinates on the canvas and beyond it.
  struct mass {
    T inside, outside;
  };
  using masses = std::array<mass, d>;

  static constexpr T nothing = -std::numeric_limits<T>::infinity();

  index_t window(std::size_t a) const { return order_.parameters().window()[a]; }
  /// Registers that begin at any vector end in the column.
  index_t column_size(std::size_t a) const { return 2 * window(a) - 1 + lanes; }
  index_t row(index_t b, index_t h) const { return (b * heads_ + h) * slots_; }

  index_t pieces_of_head() const { return (slots_ + rows_per_piece - 1) / rows_per_piece; }
  index_t pieces() const { return batches_ * heads_ * pieces_of_head(); }
  piece piece_at(index_t number) const {
    index_t const of_head = pieces_of_head(), first = number % of_head * rows_per_piece;
    return {number / of_head / heads_,
            number / of_head % heads_,
            {first, std::min(first + rows_per_piece, slots_)}};
  }

  void place_windows() {
    halo_blocks<d> const& blocks = order_.parameters();
    for (index_t slot = 0; slot < slots_; ++slot) {
      slot_window& here = windows_[slot];
      grid_point<d> const query = order_.query_place(0, slot);
      here.leaves = false;
      for (std::size_t a = 0; a < d; ++a) {
        interval const all = blocks.axis(a).full_window_of(query[a]);
        here.first[a] = all.first;
        here.vector[a] = blocks.relative(a, query[a], all.first);
        here.inside[a] = intersect({-all.first, blocks.canvas[a] - all.first}, {0, all.size()});
        here.leaves |= here.inside[a].size() < all.size();
      }
    }
  }

  T const* load_queries(source<T> const& query, piece const& at, index_t worker) const {
    T* const rows = queries_ + worker * rows_per_piece * padded_dim_;
    if (padded_dim_ > dim_) std::fill_n(rows, rows_per_piece * padded_dim_, T(0));
    any_arrangement const order(order_);
    place const where{.batch = at.batch, .head = at.head, .rows = slots_, .order = &order};
    attend::copy_query_rows(query, where, at.slots, rows, padded_dim_);
    return rows;
  }

  /// to[u] = sum_c query[c] columns[c][u], u below `count`, whole registers.
  void multiply_row(T const* query, T const* columns, index_t stride, index_t count, T* to) const {
    for (index_t u = 0; u < count; u += lanes) {
      batch even(T(0)), odd(T(0));
      index_t c = 0;
      for (; c + 1 < dim_; c += 2) {
        even = xsimd::fma(batch(query[c]), batch::load_unaligned(columns + c * stride + u), even);
        odd = xsimd::fma(batch(query[c + 1]), batch::load_unaligned(columns + (c + 1) * stride + u),
                         odd);
      }
      if (c < dim_)
        even = xsimd::fma(batch(query[c]), batch::load_unaligned(columns + c * stride + u), even);
      (even + odd).store_aligned(to + u);
    }
  }

  template <class C>
  void fill(index_t first_row, pair_tile<C> const& tile) const {
    grid_point<d> const canvas = order_.parameters().canvas, size = order_.parameters().window();
    C* line_data = tile.data;
    for (index_t key = tile.keys.first; key < tile.keys.last;) {
      grid_point<d> const at = grid_place(canvas, key);
      index_t const count = std::min(canvas[d - 1] - at[d - 1], tile.keys.last - key);
      C* to = line_data;
      for (index_t slot = tile.rows.first; slot < tile.rows.last; ++slot, to += tile.row_stride) {
        slot_window const& here = windows_[slot];
        T const* const product = products_ + (first_row + slot) * row_size_;
        T outer = T(0);
        for (std::size_t a = 0; a + 1 < d; ++a)
          outer += product[first_[a] + std::clamp(at[a] - here.first[a], index_t{0}, size[a] - 1)];
        // What is not in the window is hidden by the pattern.
        index_t const u = at[d - 1] - here.first[d - 1];
        interval const met = intersect({-u, size[d - 1] - u}, {0, count});
        for (index_t k = 0; k < count; ++k)
          to[k * tile.key_stride] = static_cast<C>(
              met.first <= k && k < met.last ? outer + product[first_[d - 1] + u + k] : T(0));
      }
      key += count;
      line_data += count * tile.key_stride;
    }
  }

  void add_gradients(index_t first_row, interval slots, index_t key, T const* gradient) const {
    grid_point<d> const at = grid_place(order_.parameters().canvas, key),
                        size = order_.parameters().window();
    for (index_t slot = slots.first; slot < slots.last; ++slot) {
      T* const to = dproducts_ + (first_row + slot) * row_size_;
      for (std::size_t a = 0; a < d; ++a)  // 0 goes anywhere
        to[first_[a] + std::clamp(at[a] - windows_[slot].first[a], index_t{0}, size[a] - 1)] +=
            gradient[slot - slots.first];
    }
  }

  template <element DQ>
  void finish_row(piece const& at, index_t slot, T const* query, T* dquery_row, T* dvectors,
                  tensor_view<DQ, 4> const& dquery) const {
    index_t const token = order_.query_run(0, slot).first;
    if (token < 0) return;
    for (index_t c = 0; c < dim_; ++c)
      dquery_row[c] = convert_element<T>(dquery(at.batch, token, at.head, c));
    for (std::size_t a = 0; a < d; ++a) {
      T const* const dproduct =
          dproducts_ + (row(at.batch, at.head) + slot) * row_size_ + first_[a];
      index_t const first = (first_vector_[a] + windows_[slot].vector[a]) * padded_dim_;
      for (index_t u = 0; u < window(a); ++u) {
        T const* const vector = vectors_in_rows_ + first + u * padded_dim_;
        T* const dvector = dvectors + first + u * padded_dim_;
        batch const g(dproduct[u]);
        for (index_t c = 0; c < padded_dim_; c += lanes) {
          xsimd::fma(g, batch::load_aligned(vector + c), batch::load_aligned(dquery_row + c))
              .store_aligned(dquery_row + c);
          xsimd::fma(g, batch::load_aligned(query + c), batch::load_aligned(dvector + c))
              .store_aligned(dvector + c);
        }
      }
    }
    for (index_t c = 0; c < dim_; ++c)
      dquery(at.batch, token, at.head, c) = convert_element<DQ>(dquery_row[c]);
  }

  static T log_sum(T a, T b) {
    T const top = std::max(a, b);
    return top == nothing ? nothing : top + std::log1p(std::exp(std::min(a, b) - top));
  }

  masses masses_of(index_t row) const {
    masses all;
    for (std::size_t a = 0; a < d; ++a) {
      T const* const product = products_ + row * row_size_ + first_[a];
      interval const inside = windows_[row % slots_].inside[a];
      all[a] = {log_sum_exp(product, inside, window(a), true),
                log_sum_exp(product, inside, window(a), false)};
    }
    return all;
  }

  /// log sum exp(numbers[u]) over the coordinates u below `count` that are in an interval, or are not.
  static T log_sum_exp(T const* numbers, interval within, index_t count, bool in) {
    alignas(64) T steps[lanes];
    for (index_t u = 0; u < lanes; ++u) steps[u] = static_cast<T>(u);
    batch const step = batch::load_aligned(steps);
    auto const at = [&](index_t u) {
      batch const place = step + batch(static_cast<T>(u));
      auto const inside = place >= batch(static_cast<T>(within.first)) &&
                          place < batch(static_cast<T>(within.last));
      auto const wanted = (in ? inside : !inside) && place < batch(static_cast<T>(count));
      return xsimd::select(wanted, batch::load_aligned(numbers + u), batch(nothing));
    };
    batch top(nothing);
    for (index_t u = 0; u < count; u += lanes) top = xsimd::max(top, at(u));
    T const largest = reduce(top, [](T a, T b) { return std::max(a, b); });
    if (largest == nothing) return nothing;
    batch sum(T(0));
    for (index_t u = 0; u < count; u += lanes) sum += xsimd::exp(at(u) - batch(largest));
    return largest + std::log(reduce(sum, [](T a, T b) { return a + b; }));
  }
  template <class F>
  static T reduce(batch const& all, F f) {
    alignas(64) T each[lanes];
    all.store_aligned(each);
    T result = each[0];
    for (index_t lane = 1; lane < lanes; ++lane) result = f(result, each[lane]);
    return result;
  }

  /// log sum exp over the places beyond the canvas of all axes but one: those of which the first axis that is outside
  /// is the first, the second, ...
  static T outside(masses const& all, std::size_t but) {
    T sum = nothing, before = T(0);
    for (std::size_t a = 0; a < d; ++a) {
      if (a == but) continue;
      T here = before + all[a].outside;
      for (std::size_t b = a + 1; b < d; ++b)
        if (b != but) here += log_sum(all[b].inside, all[b].outside);
      sum = log_sum(sum, here);
      before += all[a].inside;
    }
    return sum;
  }

  halo_order<d> const& order_;
  index_t batches_, heads_, dim_, padded_dim_, slots_;
  index_t row_size_ = 0, vectors_ = 0;
  grid_point<d> first_{}, first_vector_{};
  std::array<T*, d> columns_{};  // of each axis [dim][vector]
  slot_window* windows_;
  T* queries_;
  T* products_;
  T* vectors_in_rows_ = nullptr;
  T* vector_sums_ = nullptr;
  T* dqueries_ = nullptr;
  double* dvectors_ = nullptr;
  T* dproducts_ = nullptr;
};

}  // namespace heed::detail
