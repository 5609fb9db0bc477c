#include "support/catch.hpp"

#include <heed/view/convert.hpp>
#include <heed/view/element.hpp>
#include <heed/view/tensor_view.hpp>

#include <numeric>
#include <vector>

using heed::index_t;
using heed::tensor_view;

TEST_CASE("both layouts have the axes batch, position, head, dim", "[view]") {
  std::vector<int> data(2 * 3 * 5 * 7);
  std::iota(data.begin(), data.end(), 0);

  auto const rows = heed::bnhd(data.data(), 2, 3, 5, 7);
  CHECK(rows.extents() == std::array<index_t, 4>{2, 3, 5, 7});
  CHECK(rows(1, 2, 4, 6) == 2 * 3 * 5 * 7 - 1);
  CHECK(rows(1, 1, 2, 3) == ((1 * 3 + 1) * 5 + 2) * 7 + 3);

  auto const heads = heed::bhnd(data.data(), 2, 5, 3, 7);
  CHECK(heads.extents() == std::array<index_t, 4>{2, 3, 5, 7});
  CHECK(heads(1, 1, 2, 3) == ((1 * 5 + 2) * 3 + 1) * 7 + 3);
}

TEST_CASE("strides may broadcast and reverse", "[view]") {
  std::vector<int> data{1, 2, 3, 4};
  tensor_view<int, 2> const broadcast(data.data(), {3, 4}, {0, 1});
  CHECK(broadcast(2, 3) == 4);
  tensor_view<int, 1> const reversed(data.data() + 3, {4}, {-1});
  CHECK(reversed(0) == 4);
  CHECK(reversed(3) == 1);
}

TEST_CASE("a slice is a view of some positions, and is refused if they are not there", "[view]") {
  std::vector<int> data(12);
  std::iota(data.begin(), data.end(), 0);
  tensor_view<int, 2> const view(data.data(), {3, 4});
  CHECK(view.slice(0, 1, 2)(1, 3) == 11);
  CHECK(view.slice(1, 1, 2).extents() == std::array<index_t, 2>{3, 2});
  CHECK(view.slice(1, 4, 0).size() == 0);
  CHECK_THROWS_AS(view.slice(0, 2, 2), heed::error);
  CHECK_THROWS_AS(view.slice(0, -1, 2), heed::error);
}

TEST_CASE("a span that is too short is refused", "[view]") {
  std::vector<float> data(11);
  CHECK_THROWS_AS((tensor_view<float, 2>(std::span<float>(data), {3, 4})), heed::error);
  CHECK((tensor_view<float, 2>(std::span<float>(data), {2, 5})).size() == 10);
}

TEST_CASE("a view of mutable elements is a view of constant ones, not the other way", "[view]") {
  STATIC_REQUIRE(std::is_convertible_v<tensor_view<float, 3>, tensor_view<float const, 3>>);
  STATIC_REQUIRE(!std::is_convertible_v<tensor_view<float const, 3>, tensor_view<float, 3>>);
  STATIC_REQUIRE(!std::is_convertible_v<tensor_view<float, 3>, tensor_view<double, 3>>);
}

TEST_CASE("the empty view", "[view]") {
  tensor_view<float, 4> const empty;
  CHECK(empty.data() == nullptr);
  CHECK(empty.size() == 0);
}

TEST_CASE("elements are converted with one rounding from float", "[view]") {
  CHECK(heed::convert_element<float>(Eigen::half(1.5f)) == 1.5f);
  CHECK(heed::convert_element<double>(Eigen::bfloat16(-3.0f)) == -3.0);
  CHECK(static_cast<float>(heed::convert_element<Eigen::half>(1.0 + 0x1p-11 + 0x1p-20)) ==
        1.0f + 0x1p-10f);
  CHECK(static_cast<float>(heed::convert_element<Eigen::bfloat16>(Eigen::half(1.25f))) == 1.25f);
}
