#include "support/recurrence_clauses.hpp"

#include <heed/recur/linear_attention.hpp>

namespace support {

template <class Q, class K, class V, class O>
void recurrence_call<Q, K, V, O>::backward() const {
  tensor_view<O const, 4> const result = out;
  with_clauses(*this, [&](auto states, auto const&... clauses) {
    if constexpr (states)
      heed::linear_attention_backward(query, key, value, result, dout, dquery, dkey, dvalue,
                                      clauses..., heed::initial_state(initial, dinitial),
                                      heed::final_state_gradient(dfinal));
    else
      heed::linear_attention_backward(query, key, value, result, dout, dquery, dkey, dvalue,
                                      clauses...);
  });
}

template void recurrence_call<float>::backward() const;
template void recurrence_call<double>::backward() const;
template void recurrence_call<Eigen::half, Eigen::bfloat16, float, Eigen::half>::backward() const;

}  // namespace support
