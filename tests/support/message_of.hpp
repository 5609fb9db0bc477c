// What heed says when it refuses.
#pragma once

#include <heed/pattern/place.hpp>
#include <heed/view/error.hpp>

#include <string>

namespace support {

/// The message that `f()` throws; empty if it does not.
template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (heed::error const& error) {
    return error.what();
  }
  return "";
}

/// The message of a pattern in a call of some shape.
template <class Pattern>
std::string message_of(Pattern const& pattern, heed::call_shape const& shape) {
  return message_of([&] { pattern.check(shape); });
}

}  // namespace support
