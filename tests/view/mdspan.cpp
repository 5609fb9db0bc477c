#include "support/catch.hpp"

#include <heed/view/mdspan.hpp>

#include <numeric>
#include <vector>

#if __has_include(<mdspan>)
#include <mdspan>
#endif

using heed::index_t;

namespace {

// What heed asks of an mdspan, where the standard library has none.
template <class T>
struct strided {
  using element_type = T;
  using data_handle_type = T*;
  using reference = T&;
  using rank_type = std::size_t;

  T* memory;
  std::array<int, 3> sizes;
  std::array<int, 3> steps;

  static constexpr rank_type rank() { return 3; }
  static constexpr bool is_always_strided() { return true; }
  data_handle_type const& data_handle() const { return memory; }
  int extent(rank_type axis) const { return sizes[axis]; }
  int stride(rank_type axis) const { return steps[axis]; }
};

}  // namespace

TEST_CASE("whatever has the interface of std::mdspan is viewed in place", "[view][mdspan]") {
  std::vector<float> memory(60);
  std::iota(memory.begin(), memory.end(), 0.0f);
  auto const view = heed::view(strided<float>{memory.data(), {5, 4, 3}, {1, 5, 20}});
  STATIC_REQUIRE(std::is_same_v<decltype(view), heed::tensor_view<float, 3> const>);
  CHECK(view.extents() == std::array<index_t, 3>{5, 4, 3});
  CHECK(view(2, 3, 1) == 2 + 15 + 20);
}

#ifdef __cpp_lib_mdspan
TEST_CASE("std::mdspan in any strided layout", "[view][mdspan]") {
  std::vector<double> memory(24);
  std::iota(memory.begin(), memory.end(), 0.0);
  std::mdspan<double, std::dextents<int, 3>> const right(memory.data(), 2, 3, 4);
  CHECK(heed::view(right)(1, 2, 3) == 23);
  std::mdspan<double const, std::extents<int, 4, 6>, std::layout_left> const left(memory.data());
  CHECK(heed::view(left)(1, 2) == 1 + 4 * 2);
}
#endif
