#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace heed {

/// What heed throws when an argument cannot be used. The message names the argument, its shape and
/// what was expected; nothing has been written when it is thrown.
class error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// Throws heed::error with the message that `describe()` builds unless `condition` holds. The message
/// is built only when it is needed.
template <class Describe>
void require(bool condition, Describe&& describe) {
  if (!condition) [[unlikely]]
    throw error("heed: " + std::string(describe()));
}

/// "[2, 8, 64]" for any range of integers.
template <class Range>
std::string shape_text(Range const& extents) {
  std::string text = "[";
  for (auto extent : extents) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + "]";
}

}  // namespace heed
