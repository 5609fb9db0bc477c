#pragma once

#include "reference/traced.hpp"

#include <algorithm>

namespace reference {

/// Packed sequences: a definition of one sequence makes that of many. Of the operands, those numbered in of_rows and of_keys have
/// a row for each query or key of all sequences; the others belong to each sequence. Without bounds there is one sequence.
struct packing {
  std::vector<index_t> rows, keys;
  std::vector<std::size_t> of_rows, of_keys;

  /// The results of f(operands of a sequence), one under the other.
  template <class T, class F>
  tensors<T> operator()(tensors<T> const& in, F const& f) const {
    if (rows.empty()) return f(in);
    tensors<T> all;
    for (std::size_t s = 0; s + 1 < rows.size(); ++s) {
      tensors<T> own;
      for (std::size_t n = 0; n < in.size(); ++n)
        own.push_back(has(of_rows, n)   ? cut(in[n], rows[s], rows[s + 1])
                      : has(of_keys, n) ? cut(in[n], keys[s], keys[s + 1])
                                        : in[n]);
      tensors<T> const results = f(own);
      if (s == 0) all = results;
      for (std::size_t n = 0; n < all.size() && s > 0; ++n) {
        all[n].extents[1] += results[n].extent(1);
        all[n].values.insert(all[n].values.end(), results[n].values.begin(),
                             results[n].values.end());
      }
    }
    return all;
  }

 private:
  static bool has(std::vector<std::size_t> const& list, std::size_t n) {
    return std::find(list.begin(), list.end(), n) != list.end();
  }
  /// Some rows of the only batch entry.
  template <class T>
  static tensor<T, 4> cut(tensor<T, 4> const& x, index_t first, index_t last) {
    tensor<T, 4> part({1, last - first, x.extent(2), x.extent(3)});
    auto const row = x.extent(2) * x.extent(3);
    std::copy(x.values.begin() + first * row, x.values.begin() + last * row, part.values.begin());
    return part;
  }
};

}  // namespace reference
