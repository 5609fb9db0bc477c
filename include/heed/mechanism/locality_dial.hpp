#pragma once

#include <heed/pattern/table.hpp>
#include <heed/score/modifier.hpp>

#include <cmath>
#include <limits>

/// Localist LLMs, its dial as a mask: pairs of different groups are scaled by 1 - lambda before normalising.
namespace heed {

/// s -> s + log(1 - lambda + lambda [group of the query = group of the key]). With lambda = 0 it does nothing, with
/// lambda = 1 a query meets the keys of its own group only.
///
///   groups     [batch, head, position], the first two 1 to share: a group for each key, and for the query that stands
///              there, where queries stand by default
///   lambda     in [0, 1]
///   gradient   if given, receives d loss / d lambda from attention_backward
struct locality_dial {
  tensor_view<int const, 3> groups;
  double lambda;
  double* gradient = nullptr;

  struct bound {
    detail::table<int> groups;
    index_t shift;  // from a row to its position
    double lambda;

    template <class Batch>
    static Batch apply(Batch score, Batch number) {
      auto const hides =
          number == Batch(-std::numeric_limits<typename Batch::value_type>::infinity());
      return xsimd::select(hides, number, score + number);
    }
    template <class T>
    void fill(pair_tile<T> const& tile) const {
      T const other = static_cast<T>(std::log1p(-lambda));
      for (index_t key = tile.keys.first; key < tile.keys.last; ++key) {
        int const group = groups(key, -1);
        T* const column = tile.data + (key - tile.keys.first) * tile.key_stride;
        for (index_t row = tile.rows.first; row < tile.rows.last; ++row)
          column[(row - tile.rows.first) * tile.row_stride] =
              groups(row + shift, -1) == group ? T(0) : other;
      }
    }
    /// d (modified score) / d lambda.
    double parameter_slope(double, double, index_t query, index_t key) const {
      return groups(query, -1) == groups(key, -1) ? 0 : -1 / (1 - lambda);
    }
  };
  bound bind(place const& where) const {
    return {detail::table<int>::of_keys(groups, where), where.keys - where.rows, lambda};
  }

  bool wants_gradient() const { return gradient != nullptr; }
  void set_gradient(double const* sum_of_head, index_t heads) const {
    *gradient = 0;
    for (index_t h = 0; h < heads; ++h) *gradient += sum_of_head[h];
  }
  void check(call_shape const& shape) const {
    detail::check_table("locality_dial.groups", groups, shape, shape.keys, "position");
    require(lambda >= 0 && lambda <= 1,
            [&] { return "locality_dial is at " + std::to_string(lambda) + "; expected 0 to 1"; });
    require(shape.rows <= shape.keys, [&] {
      return "locality_dial knows the groups of " + std::to_string(shape.keys) +
             " positions, and " + std::to_string(shape.rows) +
             " queries stand there; expected no more than that";
    });
  }
};

}  // namespace heed
