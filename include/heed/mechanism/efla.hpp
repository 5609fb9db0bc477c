#pragma once

#include <heed/mechanism/delta_rule.hpp>

/// Error-Free Linear Attention: the delta rule as the exact solution of dS/dt = -k k^T S + k v^T over a time rate_t,
///
///     S_t = S_(t-1) + alpha_t k_t (v_t - S_(t-1)^T k_t)^T,   alpha = (1 - e^(-rate |k|^2)) / |k|^2,   out_t = scale q_t^T S_t
///
/// whose eigenvalue along k is e^(-rate |k|^2), so that keys of any size are stable and stay as they are. Queries have size 1.
/// alpha -> rate as k -> 0, a delta rule; alpha -> 1 / |k|^2 as rate grows: what the state says of k is replaced.
///
///     linear_attention(q, k, v, out, efla_queries(head_dim), exact_delta{rate});
///
/// and so are its gradients and its step; rate >= 0.
namespace heed {

/// Queries divided by their size, times head_dim^-1/2.
inline auto efla_queries(index_t head_dim) {
  return for_queries(unit_features{
      .query_scale = 1 / std::sqrt(static_cast<double>(std::max<index_t>(head_dim, 1)))});
}

}  // namespace heed
