#include "support/identity.hpp"
#include "support/tables.hpp"

#include <heed/pattern/any_pattern.hpp>
#include <heed/sliding_window.hpp>

#include <algorithm>
#include <vector>

// Patterns with numbers for rows and keys, where documents are packed: as each document with its part of the numbers.

using heed::any_pattern;
using heed::index_t;
using support::numbers;

namespace {

template <class T>
heed::tensor_view<T const, 3> part(numbers<T> const& all, index_t first, index_t last) {
  return all.view().slice(2, first, last - first);
}

}  // namespace

TEST_CASE("tables of packed documents", "[attend][quick]") {
  std::vector<index_t> const rows{0, 30, 30, 31, 75}, keys{0, 40, 52, 60, 104};
  index_t const N = 75, M = 104, H = 2;
  support::operands packed(N, M, H);
  support::random& draw = packed.draw;
  heed::documents const documents{rows, keys};

  numbers<bool> const marks(draw, 1, H, M, [&](index_t) { return !draw.one_in(3); });
  std::vector<index_t> list;
  for (index_t j = 0; j < M; ++j)
    if (draw.one_in(3)) list.push_back(j);
  auto const drawn = [&](index_t most) {
    return [&draw, most](index_t) { return draw.between(0, most); };
  };
  numbers<index_t> const first(draw, 1, H, N, drawn(20)), last(draw, 1, H, N, drawn(40)),
      ends(draw, 1, H, M, drawn(60));
  numbers<int> const row_kinds(draw, 1, H, N, drawn(2)), key_kinds(draw, 1, H, M, drawn(2));
  bool const table[]{true, false, true, false, false, true, true, true, false};
  heed::tensor_view<bool const, 2> const admitted(table, {3, 3});
  auto const whole = [](std::vector<index_t> const& some) {
    return heed::tensor_view<index_t const, 3>(some, {1, 1, static_cast<index_t>(some.size())});
  };

  any_pattern const patterns[]{heed::key_set{marks.view()}, heed::key_list{whole(list)},
                               heed::row_ranges{first.view(), last.view()},
                               heed::lifetimes{ends.view()},
                               heed::labels{row_kinds.view(), key_kinds.view(), admitted}};
  for (std::size_t n = 0; n < std::size(patterns); ++n) {
    CAPTURE(n);
    auto const all = packed(patterns[n], documents);
    for (std::size_t g = 0; g + 1 < rows.size(); ++g) {
      index_t const i0 = rows[g], i1 = rows[g + 1], j0 = keys[g], j1 = keys[g + 1];
      std::vector<index_t> of_document;
      for (index_t j : list)
        if (j >= j0 && j < j1) of_document.push_back(j - j0);
      any_pattern const alone[]{
          heed::key_set{part(marks, j0, j1)}, heed::key_list{whole(of_document)},
          heed::row_ranges{part(first, i0, i1), part(last, i0, i1)},
          heed::lifetimes{part(ends, j0, j1)},
          heed::labels{part(row_kinds, i0, i1), part(key_kinds, j0, j1), admitted}};
      // Ranges may end beyond a document of few keys, as all numbers of the packed tensors may.
      if (n == 2 && j1 - j0 < 40) continue;
      auto const one = support::attend(packed.query.view().slice(1, i0, i1 - i0),
                                       packed.key.view().slice(1, j0, j1 - j0),
                                       packed.value.view().slice(1, j0, j1 - j0), alone[n]);
      double difference = 0;
      for (index_t i = i0; i < i1; ++i)
        for (index_t h = 0; h < H; ++h)
          for (index_t d = 0; d < one.out.extent(3); ++d)
            difference = std::max<double>(difference,
                                          std::abs(all.out(0, i, h, d) - one.out(0, i - i0, h, d)));
      CHECK(difference < support::rounding);
    }
  }
}
