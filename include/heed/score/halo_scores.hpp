#pragma once

#include <heed/attend/backward.hpp>
#include <heed/pattern/halo.hpp>
#include <heed/simd/fma.hpp>
#include <heed/simd/gates.hpp>

/// Scores of a query with the places of its window: a vector for each relative position along each axis, and the score
/// of a pair is the sum over the axes of the query's product with the vector of the key's place.
///
/// A query has few products, one for each coordinate of its window along each axis. They are computed once, and pairs
/// add them up; their gradients are summed pair by pair, and become those of queries and vectors afterwards.
namespace heed::detail {

/// Blocks with halos as groups: the queries of a block, and the keys of its window that are on the canvas, so that every
/// pair meets. A key stands in the groups of several blocks: not for the gradients of keys.
template <std::size_t d>
class halo_groups {
 public:
  /// Panels of the queries of a block have at most `most` rows, and are about as large as one another.
  halo_groups(halo_blocks<d> const& blocks, index_t lanes, index_t most) : blocks_(blocks) {
    index_t const queries = rows(0), panels = (queries + most - 1) / most;
    panel_rows_ = simd::round_up((queries + panels - 1) / panels, lanes);
  }

  index_t groups() const { return grid_size(counts()); }
  index_t panel_rows() const { return panel_rows_; }
  index_t rows(index_t) const { return grid_size(queries_of_block()); }
  index_t keys(index_t group) const { return key_tokens(group).size(); }
  token_run query_run(index_t group, index_t slot) const { return query_tokens(group).run(slot); }
  token_run key_run(index_t group, index_t slot) const { return key_tokens(group).run(slot); }

  halo_blocks<d> const& parameters() const { return blocks_; }
  grid_point<d> counts() const {
    return each_axis([&](std::size_t a) { return blocks_.canvas[a] / blocks_.block[a]; });
  }
  grid_point<d> queries_of_block() const {
    return each_axis([&](std::size_t a) { return blocks_.block[a] / blocks_.query_stride[a]; });
  }
  /// The first query of a block.
  grid_point<d> first_query(index_t group) const {
    grid_point<d> const block = grid_place(counts(), group);
    return each_axis([&](std::size_t a) { return block[a] * queries_of_block()[a]; });
  }
  /// Where the window of a block begins; maybe beyond the canvas.
  grid_point<d> first_place(index_t group) const {
    grid_point<d> const query = first_query(group);
    return each_axis([&](std::size_t a) { return blocks_.axis(a).full_window_of(query[a]).first; });
  }
  /// Which coordinates of the window are on the canvas.
  grid_box<d> inside(index_t group) const {
    grid_point<d> const first = first_place(group);
    grid_box<d> box;
    for (std::size_t a = 0; a < d; ++a)
      box[a] = intersect({-first[a], blocks_.canvas[a] - first[a]}, {0, blocks_.window()[a]});
    return box;
  }

 private:
  template <class F>
  static grid_point<d> each_axis(F f) {
    grid_point<d> numbers;
    for (std::size_t a = 0; a < d; ++a) numbers[a] = f(a);
    return numbers;
  }
  lattice<d> query_tokens(index_t group) const {
    return {blocks_.query_canvas(), first_query(group), all_axes<d>(1), queries_of_block()};
  }
  lattice<d> key_tokens(index_t group) const {
    grid_point<d> const first = first_place(group);
    grid_box<d> const met = inside(group);
    return {blocks_.canvas, each_axis([&](std::size_t a) { return first[a] + met[a].first; }),
            all_axes<d>(1), each_axis([&](std::size_t a) { return met[a].size(); })};
  }

  halo_blocks<d> blocks_;
  index_t panel_rows_;
};

/// The products of all queries of a call, and their gradients: for each block a table of them, with a row for each
/// coordinate of the window, axis after axis, and a column for each query of the block.
template <class T, std::size_t d>
class halo_scores {
 public:
  using batch = xsimd::batch<T>;
  static constexpr index_t lanes = static_cast<index_t>(batch::size);
  template <class R>
  using tables = std::array<tensor_view<R, 2>, d>;

  /// What the engine adds to the scores in the slots of the groups.
  struct group_modifier {
    halo_scores const* scores;

    struct bound {
      halo_scores const* scores;
      index_t table, group;

      template <class Batch>
      static Batch apply(Batch score, Batch number) {
        return score + number;
      }
      template <class C>
      void fill(pair_tile<C> const& tile) const {
        scores->fill_group(table, group, tile);
      }
    };
    bound bind(place const& where) const {
      return {scores, scores->table(where.batch, where.head, where.group), where.group};
    }
  };
  /// The same in the slots of halo_order.
  struct order_modifier {
    halo_scores const* scores;

    struct bound {
      halo_scores const* scores;
      index_t table;

      template <class Batch>
      static Batch apply(Batch score, Batch number) {
        return score + number;
      }
      template <class C>
      void fill(pair_tile<C> const& tile) const {
        scores->fill_slots(table, tile);
      }
    };
    bound bind(place const& where) const {
      return {scores, scores->table(where.batch, where.head, 0)};
    }
  };

  /// With an order, also for gradients.
  halo_scores(arena& memory, halo_blocks<d> const& blocks, halo_order<d> const* order,
              call_shape const& shape, index_t dim, index_t workers)
      : groups_(blocks, lanes, attend::panel_lanes<T>),
        order_(order),
        any_groups_(groups_),
        shape_(shape),
        dim_(dim),
        padded_dim_(simd::round_up(dim, lanes)),
        window_(blocks.window()),
        block_rows_(groups_.rows(0)),
        columns_(simd::round_up(block_rows_, lanes)) {
    for (std::size_t a = 0; a < d; ++a) {
      first_[a] = rows_;
      first_vector_[a] = vectors_;
      rows_ += simd::round_up(window_[a], lanes);
      vectors_ += 2 * window_[a] - 1;
      turned_[a] = memory.take<T>(dim * turned_size(a));
    }
    index_t const count = shape.batches * shape.heads * groups_.groups();
    queries_ = memory.take<T>(workers * block_rows_ * padded_dim_);
    products_in_rows_ = memory.take<T>(workers * block_rows_ * rows_);
    products_ = memory.take<T>(count * rows_ * columns_);
    tokens_ = memory.take<index_t>(shape.rows);
    shifts_ = memory.take<grid_point<d>>(block_rows_);
    if (order == nullptr) return;
    slots_ = memory.take<slot>(order->rows(0));
    vectors_in_rows_ = memory.take<T>(vectors_ * padded_dim_);
    vector_sums_ = memory.take<T>(workers * vectors_ * padded_dim_);
    dqueries_ = memory.take<T>(workers * padded_dim_);
    dvectors_ = memory.take<double>(shares * vectors_ * dim);
    dproducts_ = memory.take<T>(count * rows_ * columns_);
  }
  // It is looked at from afar.
  halo_scores(halo_scores const&) = delete;
  halo_scores& operator=(halo_scores const&) = delete;

  halo_groups<d> const& groups() const { return groups_; }
  group_modifier added_in_groups() const { return {this}; }
  order_modifier added_in_order() const { return {this}; }

  /// Computes the products of queries and `factor` times the tables' vectors.
  template <class R, class Executor>
  void multiply(source<T> const& query, tables<R> const& vectors, T factor,
                Executor const& run_on) {
    place_queries();
    load_vectors(vectors, factor);
    parallel_for(run_on, pieces(), [&](index_t n, index_t worker) {
      piece const at = piece_at(n);
      T const* const rows = load_queries(query, at, worker);
      T* const in_rows = products_in_rows_ + worker * block_rows_ * rows_;
      for (index_t r = 0; r < block_rows_; ++r)
        for (std::size_t a = 0; a < d; ++a)
          multiply_row(rows + r * padded_dim_, turned_[a] + shifts_[r][a], turned_size(a),
                       simd::round_up(window_[a], lanes), in_rows + r * rows_ + first_[a]);
      T* const to = products_ + n * rows_ * columns_;
      if (columns_ > block_rows_) std::fill_n(to, rows_ * columns_, T(0));
      simd::transpose<xsimd::default_arch>(block_rows_, rows_, in_rows, rows_, to, columns_);
    });
  }

  /// Calls f(batch, head, token, log sum exp(score) over the places beyond the canvas) for queries that have some.
  template <class Executor, class F>
  void each_phantom_lse(Executor const& run_on, F f) const {
    parallel_for(run_on, pieces(), [&](index_t n, index_t) {
      piece const at = piece_at(n);
      grid_box<d> const inside = groups_.inside(at.group);
      if (!leaves(inside)) return;
      for (index_t r = 0; r < block_rows_; r += lanes) {
        alignas(64) T lse[lanes];
        outside(masses_of(n, inside, r), d).store_aligned(lse);
        for (index_t lane = 0; lane < std::min(lanes, block_rows_ - r); ++lane)
          f(at.batch, at.head, token(at, r + lane), lse[lane]);
      }
    });
  }

  /// Adds the gradients of the scores of these places, weight times slope each, where f(batch, head, token) returns the
  /// lse and the slope of a query.
  template <class Executor, class F>
  void add_phantom_gradients(Executor const& run_on, F f) {
    parallel_for(run_on, pieces(), [&](index_t n, index_t) {
      piece const at = piece_at(n);
      grid_box<d> const inside = groups_.inside(at.group);
      if (!leaves(inside)) return;
      for (index_t r = 0; r < block_rows_; r += lanes) {
        alignas(64) T lses[lanes] = {}, slopes[lanes] = {};
        for (index_t lane = 0; lane < std::min(lanes, block_rows_ - r); ++lane)
          std::tie(lses[lane], slopes[lane]) = f(at.batch, at.head, token(at, r + lane));
        batch const lse = batch::load_aligned(lses), slope = batch::load_aligned(slopes);
        masses const all = masses_of(n, inside, r);
        for (std::size_t a = 0; a < d; ++a) {
          // The other axes may be anywhere if this one is outside.
          batch anywhere = -lse;
          for (std::size_t b = 0; b < d; ++b)
            if (b != a) anywhere += log_sum(all[b].inside, all[b].outside);
          batch const others = outside(all, a) - lse;
          for (index_t u = 0; u < window_[a]; ++u) {
            index_t const place = (n * rows_ + first_[a] + u) * columns_ + r;
            bool const is_inside = inside[a].first <= u && u < inside[a].last;
            batch const weight =
                simd::exp(batch::load_aligned(products_ + place) + (is_inside ? others : anywhere));
            simd::fma(slope, weight, batch::load_aligned(dproducts_ + place))
                .store_aligned(dproducts_ + place);
          }
        }
      }
    });
  }

  /// Sums the gradients of the products over the pairs on the canvas. `p` and `whole` are of a call in groups.
  template <class Sentence, class Executor>
  void sum_gradients(attend::problem<T> const& p, attend::saved_result<T> const& saved,
                     Sentence const& whole, Executor const& run_on, workspace& memory) {
    using arch = xsimd::default_arch;
    index_t const panels = attend::panelling<T, arch>::most(p.sequence);
    std::fill_n(dproducts_, pieces() * rows_ * columns_, T(0));
    attend::for_each_swept<true, arch>(
        p, saved, whole, any_executor(run_on), memory, p.sequence.count * p.heads * panels, 0, 0,
        [&](index_t n, auto& sweep, T*, double*) {
          place const where = p.sequence.at(n / panels / p.heads, n / panels % p.heads);
          T* const to = dproducts_ + table(where.batch, where.head, where.group) * rows_ * columns_;
          grid_box<d> const inside = groups_.inside(where.group);
          sweep.run(
              where, whole.at(where), n % panels, {0, where.keys},
              [&](auto const& tile, index_t k, auto&, auto&, auto& dscore) {
                constexpr int registers = std::extent_v<std::remove_reference_t<decltype(dscore)>>;
                alignas(64) T gradient[registers * lanes];
                for (int r = 0; r < registers; ++r) dscore[r].store_aligned(gradient + r * lanes);
                add_gradients(to, inside, sweep.queries().rows, tile.first_key() + k, gradient);
              });
        });
  }

  /// Adds to the gradient of queries, and writes that of the tables.
  template <element DQ, class DR, class Executor>
  void finish(source<T> const& query, T factor, tensor_view<DQ, 4> dquery, tables<DR> const& to,
              Executor const& run_on) {
    // Shares are as many whatever the executor, so that sums are the same.
    parallel_for(run_on, shares, [&](index_t share, index_t worker) {
      double* const sums = dvectors_ + share * vectors_ * dim_;
      std::fill_n(sums, vectors_ * dim_, 0.0);
      T* const few = vector_sums_ + worker * vectors_ * padded_dim_;
      for (index_t n = share * pieces() / shares; n < (share + 1) * pieces() / shares; ++n) {
        T const* const rows = load_queries(query, piece_at(n), worker);
        std::fill_n(few, vectors_ * padded_dim_, T(0));
        for (index_t r = 0; r < block_rows_; ++r)
          finish_row(n, r, rows + r * padded_dim_, dqueries_ + worker * padded_dim_, few, dquery);
        for (index_t e = 0; e < vectors_; ++e)
          for (index_t c = 0; c < dim_; ++c)
            sums[e * dim_ + c] += static_cast<double>(few[e * padded_dim_ + c]);
      }
    });
    for (index_t share = 1; share < shares; ++share)
      for (index_t n = 0; n < vectors_ * dim_; ++n)
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
  static constexpr index_t shares = 32;

  /// A block of queries of one head; their tables are in this order.
  struct piece {
    index_t batch, head, group;
  };
  /// A slot of the order: the first product of its query in the tables of a head, and where its window begins.
  struct slot {
    index_t first_product;
    grid_point<d> first_place;
  };
  /// log sum exp of the products of one axis, over coordinates on the canvas and beyond it, for some queries.
  struct mass {
    batch inside, outside;
  };
  using masses = std::array<mass, d>;

  static constexpr T nothing = -std::numeric_limits<T>::infinity();

  /// Registers that begin at any vector end in the row.
  index_t turned_size(std::size_t a) const { return 2 * window_[a] - 1 + lanes; }
  index_t table(index_t b, index_t h, index_t group) const {
    return (b * shape_.heads + h) * groups_.groups() + group;
  }
  index_t pieces() const { return shape_.batches * shape_.heads * groups_.groups(); }
  piece piece_at(index_t n) const {
    index_t const groups = groups_.groups();
    return {n / groups / shape_.heads, n / groups % shape_.heads, n % groups};
  }
  index_t token(piece const& at, index_t row) const {
    return tokens_[at.group * block_rows_ + row];
  }
  bool leaves(grid_box<d> const& inside) const {
    for (std::size_t a = 0; a < d; ++a)
      if (inside[a].size() < window_[a]) return true;
    return false;
  }

  void place_queries() {
    halo_blocks<d> const& blocks = groups_.parameters();
    grid_point<d> const size = groups_.queries_of_block();
    for (index_t r = 0; r < block_rows_; ++r) {
      grid_point<d> const at = grid_place(size, r);
      for (std::size_t a = 0; a < d; ++a) shifts_[r][a] = window_[a] - 1 - at[a];
    }
    for (index_t g = 0; g < groups_.groups(); ++g)
      place{.rows = block_rows_, .order = &any_groups_, .group = g}.each_row_run(
          {0, block_rows_}, [&](index_t before, token_run run) {
            for (index_t i = 0; i < run.size; ++i)
              tokens_[g * block_rows_ + before + i] = run.first + i * run.step;
          });
    if (order_ == nullptr) return;
    for (index_t n = 0; n < order_->rows(0); ++n) {
      grid_point<d> const query = order_->query_place(0, n);
      grid_point<d> block, row;
      for (std::size_t a = 0; a < d; ++a) {
        block[a] = query[a] / size[a];
        row[a] = query[a] - block[a] * size[a];
        slots_[n].first_place[a] = blocks.axis(a).full_window_of(query[a]).first;
      }
      slots_[n].first_product =
          grid_index(groups_.counts(), block) * rows_ * columns_ + grid_index(size, row);
    }
  }

  template <class R>
  void load_vectors(tables<R> const& vectors, T factor) {
    for (std::size_t a = 0; a < d; ++a) {
      index_t const size = turned_size(a), count = vectors[a].extent(0);
      for (index_t c = 0; c < dim_; ++c)
        for (index_t e = 0; e < size; ++e)
          turned_[a][c * size + e] =
              e < count ? factor * convert_element<T>(vectors[a](e, c)) : T(0);
      for (index_t e = 0; e < count && order_ != nullptr; ++e)
        for (index_t c = 0; c < padded_dim_; ++c)
          vectors_in_rows_[(first_vector_[a] + e) * padded_dim_ + c] =
              c < dim_ ? factor * convert_element<T>(vectors[a](e, c)) : T(0);
    }
  }

  T const* load_queries(source<T> const& query, piece const& at, index_t worker) const {
    T* const rows = queries_ + worker * block_rows_ * padded_dim_;
    if (padded_dim_ > dim_) std::fill_n(rows, block_rows_ * padded_dim_, T(0));
    place const where{.batch = at.batch,
                      .head = at.head,
                      .rows = block_rows_,
                      .order = &any_groups_,
                      .group = at.group};
    attend::copy_query_rows(query, where, {0, block_rows_}, rows, padded_dim_);
    return rows;
  }

  /// to[u] = sum_c query[c] columns[c][u], u below `count`, whole registers.
  void multiply_row(T const* query, T const* columns, index_t stride, index_t count, T* to) const {
    for (index_t u = 0; u < count; u += lanes) {
      batch even(T(0)), odd(T(0));
      index_t c = 0;
      for (; c + 1 < dim_; c += 2) {
        even = simd::fma(batch(query[c]), batch::load_unaligned(columns + c * stride + u), even);
        odd = simd::fma(batch(query[c + 1]), batch::load_unaligned(columns + (c + 1) * stride + u),
                        odd);
      }
      if (c < dim_)
        even = simd::fma(batch(query[c]), batch::load_unaligned(columns + c * stride + u), even);
      (even + odd).store_unaligned(to + u);
    }
  }

  template <class C>
  void fill_group(index_t table, index_t group, pair_tile<C> const& tile) const {
    T const* const products = products_ + table * rows_ * columns_ + tile.rows.first;
    grid_box<d> const inside = groups_.inside(group);
    index_t const count = tile.rows.size();
    alignas(64) T outer[simd::tile_shape<T, xsimd::default_arch>::max_lanes];
    C* to = tile.data;
    for (index_t key = tile.keys.first; key < tile.keys.last;) {
      grid_point<d> const at = place_in_window(inside, key);
      index_t const last = std::min(key + inside[d - 1].last - at[d - 1], tile.keys.last);
      std::fill_n(outer, count, T(0));
      for (std::size_t a = 0; a + 1 < d; ++a)
        for (index_t r = 0; r < count; ++r)
          outer[r] += products[(first_[a] + at[a]) * columns_ + r];
      T const* inner = products + (first_[d - 1] + at[d - 1]) * columns_;
      for (; key < last; ++key, inner += columns_, to += tile.key_stride)
        if (tile.row_stride == 1)
          for (index_t r = 0; r < count; ++r) to[r] = static_cast<C>(outer[r] + inner[r]);
        else
          for (index_t r = 0; r < count; ++r)
            to[r * tile.row_stride] = static_cast<C>(outer[r] + inner[r]);
    }
  }

  template <class C>
  void fill_slots(index_t table, pair_tile<C> const& tile) const {
    grid_point<d> const canvas = groups_.parameters().canvas;
    C* line = tile.data;
    for (index_t key = tile.keys.first; key < tile.keys.last;) {
      grid_point<d> const at = grid_place(canvas, key);
      index_t const count = std::min(canvas[d - 1] - at[d - 1], tile.keys.last - key);
      C* to = line;
      for (index_t n = tile.rows.first; n < tile.rows.last; ++n, to += tile.row_stride) {
        T const* const product = products_ + table * rows_ * columns_ + slots_[n].first_product;
        T outer = T(0);
        // What is not in the window is hidden by the pattern.
        for (std::size_t a = 0; a + 1 < d; ++a)
          outer += product[(first_[a] + std::clamp(at[a] - slots_[n].first_place[a], index_t{0},
                                                   window_[a] - 1)) *
                           columns_];
        index_t const u = at[d - 1] - slots_[n].first_place[d - 1];
        interval const met = intersect({-u, window_[d - 1] - u}, {0, count});
        for (index_t k = 0; k < count; ++k)
          to[k * tile.key_stride] = static_cast<C>(
              met.first <= k && k < met.last ? outer + product[(first_[d - 1] + u + k) * columns_]
                                             : T(0));
      }
      key += count;
      line += count * tile.key_stride;
    }
  }

  static grid_point<d> place_in_window(grid_box<d> const& inside, index_t key) {
    grid_point<d> size;
    for (std::size_t a = 0; a < d; ++a) size[a] = inside[a].size();
    grid_point<d> at = grid_place(size, key);
    for (std::size_t a = 0; a < d; ++a) at[a] += inside[a].first;
    return at;
  }

  void add_gradients(T* table, grid_box<d> const& inside, interval rows, index_t key,
                     T const* gradient) const {
    grid_point<d> const at = place_in_window(inside, key);
    for (std::size_t a = 0; a < d; ++a) {
      T* const to = table + (first_[a] + at[a]) * columns_ + rows.first;
      for (index_t r = 0; r < rows.size(); ++r) to[r] += gradient[r];
    }
  }

  template <element DQ>
  void finish_row(index_t n, index_t row, T const* query, T* dquery_row, T* dvectors,
                  tensor_view<DQ, 4> const& dquery) const {
    piece const at = piece_at(n);
    index_t const i = token(at, row);
    for (index_t c = 0; c < dim_; ++c)
      dquery_row[c] = convert_element<T>(dquery(at.batch, i, at.head, c));
    for (std::size_t a = 0; a < d; ++a) {
      T const* const dproduct = dproducts_ + (n * rows_ + first_[a]) * columns_ + row;
      index_t const first = (first_vector_[a] + shifts_[row][a]) * padded_dim_;
      for (index_t u = 0; u < window_[a]; ++u) {
        T const* const vector = vectors_in_rows_ + first + u * padded_dim_;
        T* const dvector = dvectors + first + u * padded_dim_;
        batch const g(dproduct[u * columns_]);
        for (index_t c = 0; c < padded_dim_; c += lanes) {
          simd::fma(g, batch::load_aligned(vector + c), batch::load_aligned(dquery_row + c))
              .store_aligned(dquery_row + c);
          simd::fma(g, batch::load_aligned(query + c), batch::load_aligned(dvector + c))
              .store_aligned(dvector + c);
        }
      }
    }
    for (index_t c = 0; c < dim_; ++c)
      dquery(at.batch, i, at.head, c) = convert_element<DQ>(dquery_row[c]);
  }

  static batch log_sum(batch const& a, batch const& b) {
    batch const top = xsimd::max(a, b);
    return xsimd::select(top == batch(nothing), top, top + simd::softplus(xsimd::min(a, b) - top));
  }

  /// Of the queries from number `row` of block `n` on.
  masses masses_of(index_t n, grid_box<d> const& inside, index_t row) const {
    masses all;
    for (std::size_t a = 0; a < d; ++a) {
      T const* const products = products_ + (n * rows_ + first_[a]) * columns_ + row;
      all[a] = {log_sum_exp(products, {inside[a], interval{}}),
                log_sum_exp(products,
                            {interval{0, inside[a].first}, interval{inside[a].last, window_[a]}})};
    }
    return all;
  }
  batch log_sum_exp(T const* products, std::array<interval, 2> const& coordinates) const {
    batch top(nothing), sum(T(0));
    for (interval part : coordinates)
      for (index_t u = part.first; u < part.last; ++u)
        top = xsimd::max(top, batch::load_aligned(products + u * columns_));
    for (interval part : coordinates)
      for (index_t u = part.first; u < part.last; ++u)
        sum += simd::exp(batch::load_aligned(products + u * columns_) - top);
    return xsimd::select(top == batch(nothing), top, top + simd::log(sum));
  }

  /// log sum exp over the places beyond the canvas of all axes but one: those of which the first axis that is outside
  /// is the first, the second, ...
  static batch outside(masses const& all, std::size_t but) {
    batch sum(nothing), before(T(0));
    for (std::size_t a = 0; a < d; ++a) {
      if (a == but) continue;
      batch here = before + all[a].outside;
      for (std::size_t b = a + 1; b < d; ++b)
        if (b != but) here += log_sum(all[b].inside, all[b].outside);
      sum = log_sum(sum, here);
      before += all[a].inside;
    }
    return sum;
  }

  halo_groups<d> groups_;
  halo_order<d> const* order_;
  any_arrangement any_groups_;
  call_shape shape_;
  index_t dim_, padded_dim_;
  grid_point<d> window_;
  index_t block_rows_, columns_;  // queries of a block, and as whole registers
  index_t rows_ = 0, vectors_ = 0;
  grid_point<d> first_{}, first_vector_{};
  std::array<T*, d> turned_{};  // [dim][vector] of each axis
  T* queries_;
  T* products_in_rows_;
  T* products_;
  index_t* tokens_;        // [group][row]
  grid_point<d>* shifts_;  // [row], the vector of the window's first coordinate
  slot* slots_ = nullptr;
  T* vectors_in_rows_ = nullptr;
  T* vector_sums_ = nullptr;
  T* dqueries_ = nullptr;
  double* dvectors_ = nullptr;
  T* dproducts_ = nullptr;
};

}  // namespace heed::detail
