#pragma once

#include "reference/tensor.hpp"

/// Long-range static patterns as predicates over the query's position p and a key j.
namespace reference {

inline index_t floor_div(index_t a, index_t b) {
  index_t quotient = a / b;
  return a % b < 0 ? quotient - 1 : quotient;
}

inline bool is_power_of_two_or_zero(index_t x) {
  if (x < 0) return false;
  for (index_t power = 1; power <= x; power *= 2)
    if (power == x) return true;
  return x == 0;
}

inline bool power_of_two_keys(index_t p, index_t j) {
  return is_power_of_two_or_zero(p - j);
}

inline bool power_attention(index_t p, index_t j, index_t block, index_t window, index_t sinks) {
  index_t const distance = floor_div(p, block) - j / block;
  return j <= p && (is_power_of_two_or_zero(distance) || distance < window || j / block < sinks);
}

inline bool factorised_local(index_t p, index_t j, index_t length) {
  return p - j >= 0 && p - j < length;
}
inline bool factorised_strided(index_t p, index_t j, index_t length) {
  return p >= j && (p - j) % length == 0;
}
inline bool summary_place(index_t j, index_t length, index_t count, index_t variants,
                          index_t head) {
  index_t const u = head % variants, at = j % length;
  return at >= length - (u + 1) * count && at < length - u * count;
}
inline bool factorised_fixed(index_t p, index_t j, index_t length, index_t count, index_t variants,
                             index_t head) {
  return j <= p &&
         (floor_div(p, length) == j / length || summary_place(j, length, count, variants, head));
}

inline bool head_strides(index_t j, index_t stride, index_t head) {
  return (j - head) % stride == 0;
}
inline bool head_parts(index_t j, index_t keys, index_t parts, index_t head) {
  index_t const length = (keys + parts - 1) / parts;
  return j >= (head % parts) * length && j < (head % parts + 1) * length;
}

}  // namespace reference
