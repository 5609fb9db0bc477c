#pragma once

#include <heed/pattern/neighborhood.hpp>
#include <heed/pattern/packed_canvases.hpp>
#include <heed/pattern/relative.hpp>
#include <heed/score/modifier.hpp>

#include <string>
#include <vector>

namespace heed {

/// Which entry of a table of relative positions each pair of an arrangement's slots reads: a number of the query's slot
/// less one of the key's. Make it once for an arrangement and a table, and use it in any number of calls.
///
/// Throws heed::error if the table is too small for pairs that meet.
class relative_index {
 public:
  template <arrangement A, std::size_t d>
  relative_index(A const& order, relative_positions<d> const& entries) : size_(entries.size()) {
    if constexpr (requires { order.canvas; })
      order.check({.rows = grid_size(order.canvas), .keys = grid_size(order.canvas)});
    grid_point<d> most{};  // coordinates, which begin at 0 in each group
    auto const add = [&](grid_point<d> const& at, std::vector<index_t>& to, index_t number) {
      for (std::size_t a = 0; a < d; ++a) most[a] = std::max(most[a], at[a]);
      to.push_back(number);
    };
    index_t const middle = entries({}, {});
    for (index_t g = 0; g < order.groups(); ++g) {
      groups_.push_back({queries_.size(), keys_.size()});
      for (index_t slot = 0; slot < order.rows(g); ++slot) {
        grid_point<d> const at = order.query_place(g, slot);
        add(at, queries_, entries(at, {}));
      }
      for (index_t slot = 0; slot < order.keys(g); ++slot) {
        grid_point<d> const at = order.key_place(g, slot);
        add(at, keys_, middle - entries({}, at));
      }
    }
    for (std::size_t a = 0; a < d; ++a) {
      complete_ &= most[a] <= entries.reach[a];
      index_t const meet = std::min(most[a], window_of<d>(order)[a] - 1);
      require(entries.reach[a] >= meet, [&] {
        return "relative_positions.reach of axis " + std::to_string(a) + " is " +
               std::to_string(entries.reach[a]) + "; expected at least " + std::to_string(meet) +
               ", as far as a query and a key that meet are apart";
      });
    }
  }

  /// The number of entries of the table.
  index_t size() const { return size_; }
  /// Whether all pairs of slots of a group have an entry, and not only those that meet.
  bool complete() const { return complete_; }
  index_t groups() const { return static_cast<index_t>(groups_.size()); }
  index_t keys() const { return static_cast<index_t>(keys_.size()); }

  /// The numbers of a group's slots.
  index_t const* queries_of(index_t group) const {
    return queries_.data() + groups_[static_cast<std::size_t>(group)].first_query;
  }
  index_t const* keys_of(index_t group) const {
    return keys_.data() + groups_[static_cast<std::size_t>(group)].first_key;
  }

 private:
  struct first_slots {
    std::size_t first_query, first_key;
  };

  /// How many coordinates of keys a query meets at most, along each axis.
  template <std::size_t d>
  static grid_point<d> window_of(neighborhood_order<d> const& order) {
    return order.parameters().window;
  }
  template <std::size_t d, class Order>
  static grid_point<d> window_of(packed_canvases<Order> const& canvases) {
    grid_point<d> window = all_axes<d>(1);
    for (Order const& order : canvases.orders())
      for (std::size_t a = 0; a < d; ++a) window[a] = std::max(window[a], window_of<d>(order)[a]);
    return window;
  }
  template <std::size_t d, class A>
  static grid_point<d> window_of(A const&) {
    return all_axes<d>(index_t{1} << 24);  // as many as there are
  }

  index_t size_;
  bool complete_ = true;
  std::vector<index_t> queries_, keys_;
  std::vector<first_slots> groups_;
};

/// A learned number for each relative position of a query and a key: s -> s + table(h, entry of the pair).
///
///     window_partition<2> const windows{.canvas = {56, 56}, .window = {7, 7}};
///     relative_index const index(windows, relative_positions<2>{.reach = {6, 6}});
///     attention(q, k, v, out, windows, relative_bias(index, table));
///
///   index     of the call's arrangement; not copied
///   table     [head or 1, entry]; views of other orders by strides. Double, float, Eigen::half or Eigen::bfloat16
///   gradient  shaped like `table`, written by attention_backward; of a table with one row, summed over the heads
template <class T, class G = float>
struct relative_bias {
  relative_index const* index;
  tensor_view<T const, 2> table;
  tensor_view<G, 2> gradient = {};

  template <class U>
    requires std::same_as<T, std::remove_const_t<U>> relative_bias(relative_index const& i,
                                                                   tensor_view<U, 2> t,
                                                                   tensor_view<G, 2> g = {})
        : index(&i), table(t), gradient(g) {}

    struct bound {
      T const* numbers;
      index_t stride;
      index_t last;  // entry
      bool complete;
      index_t const* queries;
      index_t const* keys;

      template <class Batch>
      static Batch apply(Batch score, Batch number) {
        return score + number;
      }

      template <class C>
      void fill(pair_tile<C> const& tile) const {
        if (!complete)
          copy(tile, [this](index_t entry) { return within(entry) * stride; });
        else if (stride == 1)
          copy(tile, [](index_t entry) { return entry; });
        else
          copy(tile, [this](index_t entry) { return entry * stride; });
      }

      index_t parameter(index_t row, index_t key) const { return within(queries[row] - keys[key]); }

     private:
      /// Pairs that do not meet may have no entry, and read any.
      index_t within(index_t entry) const { return std::clamp(entry, index_t{0}, last); }

      template <class C, class Where>
      void copy(pair_tile<C> const& tile, Where where) const {
        index_t const* const row = queries + tile.rows.first;
        for (index_t k = 0; k < tile.keys.size(); ++k) {
          index_t const key = keys[tile.keys.first + k];
          C* const to = tile.data + k * tile.key_stride;
          for (index_t r = 0; r < tile.rows.size(); ++r)
            to[r * tile.row_stride] = static_cast<C>(numbers[where(row[r] - key)]);
        }
      }
    };
    bound bind(place const& where) const {
      index_t const group = where.order == nullptr ? 0 : where.group;
      return {table.data() + (table.extent(0) == 1 ? 0 : where.head) * table.stride(0),
              table.stride(1),
              index->size() - 1,
              index->complete(),
              index->queries_of(group),
              index->keys_of(group)};
    }

    bool wants_gradient() const {
      return gradient.data() != nullptr;
    }
    index_t parameters(call_shape const&) const {
      return index->size();
    }
    void set_gradient(double const* sums, index_t heads) const {
      index_t const entries = index->size(), own = gradient.extent(0);
      for (index_t h = 0; h < own; ++h)
        for (index_t e = 0; e < entries; ++e) {
          double sum = 0;
          for (index_t from = h; from < heads; from += own) sum += sums[from * entries + e];
          gradient(h, e) = static_cast<G>(sum);
        }
    }

    void check(call_shape const& shape) const {
      require((table.extent(0) == 1 || table.extent(0) == shape.heads) &&
                  table.extent(1) == index->size(),
              [&] {
                return "the table of relative_bias has shape " + shape_text(table.extents()) +
                       "; expected [1 or " + std::to_string(shape.heads) + ", " +
                       std::to_string(index->size()) + "] (head, relative position)";
              });
      require(gradient.data() == nullptr || gradient.extents() == table.extents(), [&] {
        return "the gradient of relative_bias has shape " + shape_text(gradient.extents()) +
               "; expected that of the table, " + shape_text(table.extents());
      });
      require(
          shape.sequences == shape.batches * index->groups() && shape.keys == index->keys(), [&] {
            return "the relative_index is of an arrangement of " + std::to_string(index->keys()) +
                   " keys in " + std::to_string(index->groups()) + " groups; the call has " +
                   std::to_string(shape.keys) + " keys in " +
                   std::to_string(shape.batches == 0 ? 0 : shape.sequences / shape.batches);
          });
    }
};
template <class U>
relative_bias(relative_index const&, tensor_view<U, 2>) -> relative_bias<std::remove_const_t<U>>;
template <class U, class G>
relative_bias(relative_index const&, tensor_view<U, 2>, tensor_view<G, 2>)
    -> relative_bias<std::remove_const_t<U>, G>;

}  // namespace heed
