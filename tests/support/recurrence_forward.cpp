#include "support/recurrence_clauses.hpp"

#include <heed/recur/linear_attention.hpp>

namespace support {

template <class Q, class K, class V, class O>
void recurrence_call<Q, K, V, O>::forward() const {
  with_clauses(*this, [&](auto states, auto const&... clauses) {
    if constexpr (states)
      heed::linear_attention(query, key, value, out, clauses..., heed::initial_state(initial),
                             heed::final_state<compute>{final});
    else
      heed::linear_attention(query, key, value, out, clauses...);
  });
}

template void recurrence_call<float>::forward() const;
template void recurrence_call<double>::forward() const;
template void recurrence_call<Eigen::half, Eigen::bfloat16, float, Eigen::half>::forward() const;

}  // namespace support
