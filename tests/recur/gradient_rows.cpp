#include "support/guarded.hpp"
#include "support/threads.hpp"

#include <heed/recur/gradient_rows.hpp>

#include <algorithm>
#include <vector>

// Where rows of gradients go, and that those of heads which share a row are added in the order of the heads: sums of the same
// numbers in the same order, so that all bits are equal.

using heed::any_executor;
using heed::index_t;
using support::guarded;

namespace {

using gradient_rows = heed::recur::gradient_rows<float>;

/// Gradients of `heads` heads for a tensor that may have fewer, by head: [batch, position, head, dim].
struct gradient_problem {
  support::random draw;
  guarded<double, 4> tensor;  // of a type of its own: that of the sums is float
  reference::tensor<float, 4> made;
  heed::workspace memory;

  gradient_problem(support::seed_t seed, support::extents_of<4> const& extents, index_t heads)
      : draw(seed),
        tensor(extents, support::random_layout<4>(draw, extents, false)),
        made({extents[0], extents[1], heads, extents[3]}) {
    for (float& each : made.values) each = static_cast<float>(draw.normal());
    tensor.fill([](auto const&) { return -1.0; });
    tensor.remember();
  }

  gradient_rows rows(bool wanted) {
    gradient_rows all{heed::sink<float>(tensor.view()), made.extent(2), {}, wanted};
    heed::arena measure;
    gradient_rows(all).take_buffer(measure);
    bool const shares = made.extent(2) != tensor.extents()[2];
    CHECK((measure.used() > 0) == (wanted && shares && tensor.view().size() > 0));
    heed::arena own(memory.reserve(measure.used()));
    all.take_buffer(own);
    CHECK(own.used() == measure.used());
    return all;
  }

  /// The last rows first, three at a time, with something between them that is no gradient.
  void store(gradient_rows const& rows) const {
    index_t const positions = made.extent(1), dim = made.extent(3), stride = dim + 2;
    for (index_t b = made.extent(0); b-- > 0;)
      for (index_t h = made.extent(2); h-- > 0;)
        for (index_t last = positions; last > 0; last -= 3) {
          index_t const first = std::max<index_t>(last - 3, 0);
          std::vector<float> block(static_cast<std::size_t>(3 * stride), 1000);
          for (index_t i = first; i < last; ++i)
            for (index_t d = 0; d < dim; ++d)
              block[static_cast<std::size_t>((i - first) * stride + d)] = made(b, i, h, d);
          rows.store(b, h, first, last - first, block.data(), stride);
        }
  }

  void expect_sums() {
    CHECK(tensor.untouched_outside());
    index_t const share = made.extent(2) / std::max<index_t>(tensor.extents()[2], 1);
    support::for_each_index(tensor.extents(), [&](auto const& at) {
      float sum = 0;
      for (index_t other = 0; other < share; ++other)
        sum += made(at[0], at[1], at[2] * share + other, at[3]);
      CHECK(tensor.view()(at[0], at[1], at[2], at[3]) == static_cast<double>(sum));
    });
  }
};

}  // namespace

TEST_CASE("gradient_rows: the rows of a head, or the sums of heads that share them",
          "[recur][quick]") {
  support::threads const several;
  heed::serial const one;
  for (index_t share : {1, 2, 5})
    for (bool in_parallel : {false, true}) {
      CAPTURE(share, in_parallel);
      any_executor const run_on = in_parallel ? any_executor(several) : any_executor(one);
      for (support::seed_t seed = 0; seed < 5; ++seed) {
        gradient_problem p(seed, {2, 7, 3, 5}, 3 * share);
        gradient_rows const rows = p.rows(true);
        p.store(rows);
        // Nothing is summed before everything is there.
        if (share > 1) CHECK(p.tensor.untouched());
        rows.add_up(run_on);
        p.expect_sums();
      }
      gradient_problem without_rows(1, {2, 0, 3, 5}, 3 * share);
      gradient_rows const rows = without_rows.rows(true);
      without_rows.store(rows);
      rows.add_up(run_on);
      without_rows.expect_sums();
    }
}

TEST_CASE("gradient_rows: rows that no head reads get zeros", "[recur][quick]") {
  heed::serial const one;
  gradient_problem p(1, {2, 7, 3, 5}, 0);
  p.rows(true).add_up(any_executor(one));
  p.expect_sums();
}

TEST_CASE("gradient_rows: what is not wanted takes no memory and is not written",
          "[recur][quick]") {
  heed::serial const one;
  for (index_t share : {1, 2}) {
    gradient_problem p(1, {2, 7, 3, 5}, 3 * share);
    gradient_rows const rows = p.rows(false);
    p.store(rows);
    rows.add_up(any_executor(one));
    CHECK(p.tensor.untouched());
  }
  // Nor need there be a tensor.
  gradient_rows none;
  heed::arena memory;
  none.take_buffer(memory);
  float const row = 1;
  none.store(0, 0, 0, 1, &row, 1);
  none.add_up(any_executor(one));
  CHECK(memory.used() == 0);
}
