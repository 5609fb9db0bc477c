// Catch2, whichever is installed: 3 (several headers and a library) or 2.13 (one header).
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
/// As Catch2 3 calls it, where Contains means something else.
inline auto ContainsSubstring(std::string const& part) {
  return Contains(part);
}
}  // namespace Catch::Matchers
#endif
