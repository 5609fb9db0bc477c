#pragma once

#include "reference/tensor.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

/// Combiner from its definition: for every query the direct keys and the spans it meets, the weights
/// a_ij = exp(s q_i.k_j) / Z_i of direct keys and exp(s q_i.k_r) / Z_i w_rj of the members of span r.
namespace reference {

enum class pool { max, sum, mean };

struct combiner_span {
  std::vector<index_t> members;
  index_t query_of = -1;      // where the summary query is not pooled but that of a position
  index_t key_of = -1;        // the same for its key
  bool weighted_key = false;  // the summary key is the members' sum by their shares
};

struct combiner_row {
  std::vector<index_t> direct;
  std::vector<combiner_span> spans;
};

/// The keys of row i, of N.
using combiner_partition = std::function<combiner_row(index_t i)>;

template <class T>
struct combiner_result {
  tensor<T, 4> out;
  tensor<T, 3> lse;
  tensor<T, 4> weights;  // [batch, head, row, key]
};

template <class T>
combiner_result<T> combiner(tensor<T, 4> const& q, tensor<T, 4> const& k, tensor<T, 4> const& v,
                            T scale, pool how, combiner_partition const& partition) {
  index_t const B = q.extent(0), N = q.extent(1), H = q.extent(2), D = q.extent(3),
                Dv = v.extent(3);
  combiner_result<T> all{tensor<T, 4>({B, N, H, Dv}), tensor<T, 3>({B, H, N}),
                         tensor<T, 4>({B, H, N, N})};
  auto const pooled = [&](tensor<T, 4> const& x, std::vector<index_t> const& members, index_t b,
                          index_t h) {
    std::vector<T> result(static_cast<std::size_t>(D));
    for (index_t d = 0; d < D; ++d) {
      T value = x(b, members[0], h, d);
      for (std::size_t n = 1; n < members.size(); ++n) {
        T const next = x(b, members[n], h, d);
        value = how == pool::max ? std::max(value, next) : value + next;
      }
      result[static_cast<std::size_t>(d)] = how == pool::mean ? value / T(members.size()) : value;
    }
    return result;
  };
  auto const row = [&](tensor<T, 4> const& x, index_t b, index_t i, index_t h) {
    std::vector<T> result;
    for (index_t d = 0; d < D; ++d) result.push_back(x(b, i, h, d));
    return result;
  };
  auto const dot = [&](std::vector<T> const& a, std::vector<T> const& b) {
    T sum = 0;
    for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
    return scale * sum;
  };
  for (index_t b = 0; b < B; ++b)
    for (index_t h = 0; h < H; ++h) {
      index_t const kh = h * k.extent(2) / H, vh = h * v.extent(2) / H;
      for (index_t i = 0; i < N; ++i) {
        combiner_row const keys = partition(i);
        std::vector<T> const query = row(q, b, i, h);
        T z = 0;
        for (index_t j : keys.direct) {
          all.weights(b, h, i, j) += std::exp(dot(query, row(k, b, j, kh)));
          z += std::exp(dot(query, row(k, b, j, kh)));
        }
        for (combiner_span const& span : keys.spans) {
          auto const span_query =
              span.query_of < 0 ? pooled(q, span.members, b, h) : row(q, b, span.query_of, h);
          std::vector<T> share;
          T total = 0;
          for (index_t j : span.members)
            share.push_back(std::exp(dot(span_query, row(k, b, j, kh))));
          for (T x : share) total += x;
          for (T& x : share) x /= total;
          auto span_key =
              span.key_of < 0 ? pooled(k, span.members, b, kh) : row(k, b, span.key_of, kh);
          if (span.weighted_key)
            for (index_t d = 0; d < D; ++d) {
              span_key[static_cast<std::size_t>(d)] = 0;
              for (std::size_t n = 0; n < share.size(); ++n)
                span_key[static_cast<std::size_t>(d)] += share[n] * k(b, span.members[n], kh, d);
            }
          T const weight = std::exp(dot(query, span_key));
          z += weight;
          for (std::size_t n = 0; n < share.size(); ++n)
            all.weights(b, h, i, span.members[n]) += weight * share[n];
        }
        all.lse(b, h, i) = std::log(z);
        for (index_t j = 0; j < N; ++j) {
          all.weights(b, h, i, j) /= z;
          for (index_t d = 0; d < Dv; ++d)
            all.out(b, i, h, d) += all.weights(b, h, i, j) * v(b, j, vh, d);
        }
      }
    }
  return all;
}

inline std::vector<index_t> positions(index_t first, index_t last) {
  std::vector<index_t> all;
  for (index_t j = first; j < last; ++j) all.push_back(j);
  return all;
}

inline combiner_partition combiner_fixed(index_t N, index_t block, bool causal) {
  return [=](index_t i) {
    combiner_row row;
    index_t const own = i / block * block;
    row.direct = positions(own, causal ? i + 1 : std::min(own + block, N));
    for (index_t first = 0; first < N; first += block)
      if (first < own || (!causal && first > own))
        row.spans.push_back({positions(first, std::min(first + block, N))});
    return row;
  };
}

inline combiner_partition combiner_log_sparse() {
  return [](index_t i) {
    combiner_row row;
    row.direct.push_back(i);
    if (i % 2 == 1) row.direct.push_back(i - 1);
    for (index_t l = 1; (index_t{1} << l) <= i; ++l)
      if ((i >> l) & 1) row.spans.push_back({positions(((i >> l) - 1) << l, (i >> l) << l)});
    return row;
  };
}

/// "row_major", "row_major_wsum", "vertical", "horizontal" or "mixture" on a grid of C columns.
inline combiner_partition combiner_axial(index_t C, std::string const& variant) {
  return [=](index_t i) {
    combiner_row row;
    index_t const r = i / C, c = i % C;
    row.direct = positions(r * C, i + 1);
    if (variant.starts_with("row_major")) {
      for (index_t other = 0; other < r; ++other)
        row.spans.push_back({positions(other * C, (other + 1) * C), other * C + c, other * C + c,
                             variant == "row_major_wsum"});
      return row;
    }
    for (index_t above = 0; above < r; ++above) row.direct.push_back(above * C + c);
    if (variant != "horizontal")
      for (index_t column = 0; column < C && r > 0; ++column) {
        if (column == c) continue;
        combiner_span span;
        for (index_t above = 0; above < r; ++above) span.members.push_back(above * C + column);
        row.spans.push_back(span);
      }
    if (variant != "vertical")
      for (index_t above = 0; above < r; ++above) {
        if (c > 0) row.spans.push_back({positions(above * C, above * C + c)});
        if (c < C - 1) row.spans.push_back({positions(above * C + c + 1, (above + 1) * C)});
      }
    return row;
  };
}

}  // namespace reference
