#include "support/catch.hpp"

#include <heed/parallel/per_worker.hpp>

namespace {

struct counter {
  heed::index_t* number;

  counter(heed::arena& memory, int first) : number(memory.take<heed::index_t>(1)) {
    if (!memory.measuring()) *number = first;
  }
};

}  // namespace

TEST_CASE("per_worker: made once, each in memory of its own", "[parallel]") {
  heed::workspace scratch;
  heed::arena size;
  heed::per_worker<counter>(size, 3, 5);
  heed::arena memory(scratch.reserve(size.used()));
  heed::per_worker<counter> counters(memory, 3, 5);
  ++*counters.get(0, 5).number;
  ++*counters.get(2, 7).number;
  ++*counters.get(0, 9).number;
  CHECK(*counters.get(0, 5).number == 7);
  CHECK(*counters.get(1, 6).number == 6);
  CHECK(*counters.get(2, 5).number == 8);
  CHECK(memory.used() == size.used());
}
