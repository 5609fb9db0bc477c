#include "support/catch.hpp"

#include <heed/parallel/ingredients.hpp>

namespace {
struct three_at_once {
  heed::index_t concurrency() const { return 3; }
  template <class F>
  void run(heed::index_t n, F f) const {
    for (heed::index_t i = 0; i < n; ++i) f(i);
  }
};
}  // namespace

TEST_CASE("a call runs where its ingredients say, wherever they stand", "[parallel]") {
  using heed::detail::executor_of;
  using heed::detail::scratch_of;
  heed::workspace own;
  heed::scratch const memory{own};
  three_at_once pool;
  heed::on<three_at_once> const there{pool};
  int const something_else = 1;
  CHECK(executor_of().concurrency() == 1);
  CHECK(executor_of(memory, something_else).concurrency() == 1);
  CHECK(executor_of(memory, there, something_else).concurrency() == 3);
  CHECK(&scratch_of(there) == &heed::thread_workspace());
  CHECK(&scratch_of(there, something_else, memory) == &own);
}
