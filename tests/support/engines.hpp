// The engines in their commonest forms, compiled once for all tests: engines.cpp has them.
#pragma once

#include <heed/recur/linear_attention.hpp>
#include <heed/softmax.hpp>

#include <tuple>

namespace support {

using plain_sentence = decltype(heed::attend::make_sentence(heed::dense{}));
template <class T>
using no_observers = std::tuple<>;
template <class T>
using lse_observer = std::tuple<heed::lse_into<T>>;

}  // namespace support

namespace heed {

#define HEED_TEST_ENGINES(EXTERN, T)                                                              \
  EXTERN template void recur::forward_pass<xsimd::default_arch, T>(                               \
      recur::problem<T> const&, sink<T> const&, any_executor const&, workspace&);                 \
  EXTERN template void recur::backward_pass<xsimd::default_arch, T>(                              \
      recur::problem<T> const&, recur::gradients<T>, any_executor const&, workspace&);            \
  EXTERN template void recur::step_pass<xsimd::default_arch, T>(                                  \
      recur::problem<T> const&, sink<T> const&, any_executor const&, workspace&);                 \
  EXTERN template double attend::backward_waves<xsimd::default_arch, T, support::plain_sentence>( \
      attend::problem<T> const&, attend::saved_result<T> const&, support::plain_sentence const&,  \
      attend::row_gradient_targets<T> const&, attend::backward_memory<T> const&,                  \
      any_executor const&);                                                                       \
  HEED_TEST_FORWARD(EXTERN, T, support::no_observers<T>)                                          \
  HEED_TEST_FORWARD(EXTERN, T, support::lse_observer<T>)
#define HEED_TEST_FORWARD(EXTERN, T, Observers)                                              \
  EXTERN template void                                                                       \
  attend::panel_pass<xsimd::default_arch, T, support::plain_sentence, Observers>(            \
      attend::problem<T> const&, support::plain_sentence const&, Observers const&,           \
      any_executor const&, workspace&, sink<T> const&, index_t);                             \
  EXTERN template void attend::decode_pass<xsimd::default_arch, T, support::plain_sentence>( \
      attend::problem<T> const&, support::plain_sentence const&, Observers const&,           \
      any_executor const&, workspace&, sink<T> const&,                                       \
      attend::stored_products<T, xsimd::default_arch> const&,                                \
      attend::stored_products<T, xsimd::default_arch> const&);

HEED_TEST_ENGINES(extern, float)
HEED_TEST_ENGINES(extern, double)

}  // namespace heed
