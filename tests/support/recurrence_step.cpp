#include "support/recurrence_clauses.hpp"

#include <heed/recur/linear_attention.hpp>

namespace support {

template <class Q, class K, class V, class O>
void recurrence_call<Q, K, V, O>::step(tensor_view<compute, 4> state) const {
  with_clauses(*this, [&](auto, auto const&... clauses) {
    // One token of each sequence: the last one, and in order.
    if constexpr (!(false || ... || std::is_same_v<decltype(clauses), heed::documents const&>)&&!(
                      false || ... || std::is_same_v<decltype(clauses), heed::dense const&>))
      heed::linear_attention_step(query, key, value, out, state, clauses...);
  });
}

template void recurrence_call<float>::step(tensor_view<float, 4>) const;
template void recurrence_call<double>::step(tensor_view<double, 4>) const;
template void recurrence_call<Eigen::half, Eigen::bfloat16, float, Eigen::half>::step(
    tensor_view<float, 4>) const;

}  // namespace support
