// Operands for the identities that the specification states.
#pragma once

#include "support/tensors.hpp"

namespace support {

/// Both sides of an identity are sums in different orders: some eps, for values of size 1 and
/// scores of size 10.
inline constexpr double rounding = 4e-6;

struct operands {
  random draw;
  guarded<float, 4> query, key, value;

  operands(index_t N, index_t M, index_t H = 2, index_t shared_heads = 2, index_t D = 20,
           index_t B = 1)
      : draw(static_cast<seed_t>(1000 * N + M)),
        query(normal(draw, {B, N, H, D})),
        key(normal(draw, {B, M, shared_heads, D})),
        value(normal(draw, {B, M, shared_heads, D})) {}

  template <class... I>
  auto operator()(I const&... ingredients) {
    return attend(query.view(), key.view(), value.view(), ingredients...);
  }
};

inline bool same(attended<float> const& a, attended<float> const& b) {
  return difference(a.out, b.out) < rounding && difference(a.lse, b.lse) < rounding;
}

}  // namespace support
