#include "support/catch.hpp"
#include "support/message_of.hpp"

#include <heed/view/element.hpp>
#include <heed/view/expect.hpp>

// Every check with a tensor that passes, at the edge where there is one, and one that does not; and what is said then.

using heed::index_t;
using heed::tensor_view;
using support::message_of;

TEST_CASE("what a call expects of tensors of any type and rank", "[view]") {
  using namespace heed::detail;
  float numbers[24] = {};
  Eigen::half halves[24] = {};
  tensor_view<float, 4> const all(numbers, {1, 2, 3, 4});
  tensor_view<Eigen::half const, 3> const three(halves, {2, 3, 4});
  tensor_view<float, 4> const missing(nullptr, {1, 2, 3, 4}), nothing(nullptr, {1, 0, 3, 4});
  tensor_view<float, 4> const broadcast(numbers, {1, 2, 3, 4}, {0, 0, 4, 1}),
      alone(numbers, {1, 1, 3, 4}, {0, 0, 4, 1});

  CHECK(message_of([&] { expect_extent("key", all, 2, 3, "heads"); }) == "");
  CHECK(message_of([&] { expect_extent("key", three, 0, 3, "position"); }) ==
        "heed: key has shape [2, 3, 4]; expected 3 for axis 0 (position)");
  CHECK(message_of([&] { expect_like("out", all, {1, 2, 3, 4}, "query"); }) == "");
  CHECK(message_of([&] {
          expect_like("out", all, {1, 2, 4, 3}, "query");
        }) == "heed: out has shape [1, 2, 3, 4]; expected that of query, [1, 2, 4, 3]");
  CHECK(message_of([&] {
          expect_like("out", three, {1, 2, 3, 4}, "query");
        }) == "heed: out has shape [2, 3, 4]; expected that of query, [1, 2, 3, 4]");
  CHECK(message_of([&] { expect_memory("value", all), expect_memory("value", nothing); }) == "");
  CHECK(message_of([&] { expect_memory("value", missing); }) ==
        "heed: value has shape [1, 2, 3, 4] and no memory");
  CHECK(message_of([&] { expect_distinct_elements("out", alone); }) == "");
  CHECK(message_of([&] { expect_distinct_elements("out", broadcast); }) ==
        "heed: out is written to, and has stride 0 along axis 1 of shape [1, 2, 3, 4]");
  CHECK(message_of([&] { expect_divisor("key", all, 6, "query"); }) == "");
  CHECK(message_of([&] { expect_divisor("key", all, 0, "query"); }) == "");
  CHECK(message_of([&] { expect_divisor("key", all, 4, "query"); }) ==
        "heed: key has shape [1, 2, 3, 4]: 3 heads; expected a divisor of the 4 heads of query");
  CHECK(message_of([&] { expect_no_negative_extent("key", nothing); }) == "");
  CHECK(message_of([&] {
          expect_no_negative_extent("key", tensor_view<float, 4>(numbers, {1, 2, -3, 4}));
        }) == "heed: key has shape [1, 2, -3, 4]; expected no negative extent");
}
