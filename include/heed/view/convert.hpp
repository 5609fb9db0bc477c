#pragma once

#include <heed/view/element.hpp>

namespace heed {

/// One element as another type, rounded to nearest. Half and bfloat16 are reached through float.
template <element To, element From>
inline To convert_element(From x) {
  if constexpr (std::same_as<To, From>)
    return x;
  else if constexpr (std::same_as<To, double> || std::same_as<To, float>)
    return static_cast<To>(x);
  else
    return static_cast<To>(static_cast<float>(x));
}

}  // namespace heed
