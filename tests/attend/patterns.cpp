#include "support/attention_check.hpp"
#include "support/identity.hpp"
#include "support/random.hpp"

#include <heed/attend/tile.hpp>
#include <heed/pattern/band.hpp>
#include <heed/pattern/by_blocks.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/place.hpp>

// The engine's ways through patterns: masks, runs of scattered keys, arrangements.

using heed::index_t;
using heed::interval;
using heed::token_run;
using support::attention_case;
using support::for_each_seed;
using support::seed_t;

namespace {

/// Keys that lie a multiple of `step` behind the query or ahead of it.
struct every_nth {
  index_t step;

  bool keep(index_t query, index_t key) const { return (key - query) % step == 0; }
  interval next_keys(interval queries, index_t from, index_t count) const {
    if (queries.size() >= step) return {from, count};
    auto const met = [&](index_t key) {
      for (index_t q = queries.first; q < queries.last; ++q)
        if (keep(q, key)) return true;
      return false;
    };
    while (from < count && !met(from)) ++from;
    index_t last = from;
    while (last < count && met(last)) ++last;
    return {from, last};
  }
};

/// The tokens dealt out to groups in turn, and the queries of a group last token first, padded to a multiple of 5.
struct dealt {
  index_t tokens;
  index_t hands;

  index_t groups() const { return hands; }
  index_t keys(index_t group) const { return (tokens - group + hands - 1) / hands; }
  index_t rows(index_t group) const { return (keys(group) + 4) / 5 * 5; }
  token_run key_run(index_t group, index_t slot) const {
    return {slot * hands + group, keys(group) - slot, hands};
  }
  token_run query_run(index_t group, index_t slot) const {
    index_t const last = keys(group) - 1;
    if (slot > last) return {-1, rows(group) - slot};
    return {(last - slot) * hands + group, 1};
  }
};

}  // namespace

TEST_CASE("patterns with masks and runs", "[attend][quick]") {
  for_each_seed("patterns with masks and runs", 60, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 90), keys = draw.between(1, 300),
                  left = draw.between(0, 60), step = draw.between(1, 70);
    heed::sliding_window const window{left, 0};
    auto const in_window = [=](index_t, index_t, index_t p, index_t j) {
      return p - left <= j && j <= p;
    };
    auto const nth = [=](index_t, index_t, index_t p, index_t j) { return (j - p) % step == 0; };
    switch (draw.between(0, 3)) {
      case 0:
        return support::attention_complaint(
            seed, {.pattern = window, .keep = in_window, .rows = rows, .keys = keys});
      case 1:
        return support::attention_complaint(
            seed, {.pattern = every_nth{step}, .keep = nth, .rows = rows, .keys = keys});
      case 2:
        return support::attention_complaint(
            seed, {.pattern = every_nth{step} | window,
                   .keep = [=](auto... x) { return nth(x...) || in_window(x...); },
                   .rows = rows,
                   .keys = keys});
      default:
        return support::attention_complaint(
            seed, {.pattern = every_nth{step} & heed::causal{} & ~heed::first_keys{3},
                   .keep = [=](index_t b, index_t h, index_t p,
                               index_t j) { return nth(b, h, p, j) && j <= p && j >= 3; },
                   .rows = rows,
                   .keys = keys});
    }
  });
}

TEST_CASE("patterns of blocks: panels begin anew with each", "[attend][quick]") {
  using cut = heed::attend::panelling<float, xsimd::default_arch>;
  for (index_t panel_rows : {0, 16, 24, 64, 100})
    for (index_t rows : {0, 1, 23, 64, 65, 203}) {
      heed::place const where{.rows = rows, .keys = rows, .panel_rows = panel_rows};
      index_t next = 0;
      for (index_t n = 0; n < cut::count(where); ++n) {
        interval const panel = cut::rows(where, {n, n + 1});
        CHECK(panel.first == next);
        CHECK((panel.size() > 0 && panel.size() <= cut::shape::max_lanes));
        if (panel_rows > 0) CHECK(panel.first / panel_rows == (panel.last - 1) / panel_rows);
        next = panel.last;
      }
      CHECK(next == rows);
    }

  for_each_seed("patterns of blocks", 40, [](seed_t seed) {
    support::random draw(seed);
    index_t const rows = draw.between(1, 150), keys = rows + draw.between(0, 100),
                  size = draw.between(1, 70);
    heed::by_blocks const local{heed::sliding_window{1, 0}, size};
    auto const keep = [=](index_t, index_t, index_t p, index_t j) {
      return j / size == p / size || j / size == p / size - 1;
    };
    if (draw.one_in(2))
      return support::attention_complaint(
          seed, {.pattern = local, .keep = keep, .rows = rows, .keys = keys});
    return support::attention_complaint(
        seed, {.pattern = local & heed::causal{},
               .keep = [=](auto b, auto h, auto p, auto j) { return keep(b, h, p, j) && j <= p; },
               .rows = rows,
               .keys = keys});
  });
}

TEST_CASE("more runs than are listed at once", "[attend][quick]") {
  // 64 runs leave a tile that is fuller than those of the runs that follow.
  for (index_t rows : {9, 11, 13})
    for (index_t runs : {67, 70}) {
      index_t const step = rows + 7;
      auto const nth = [=](index_t, index_t, index_t p, index_t j) { return (j - p) % step == 0; };
      CHECK(support::attention_complaint(
                static_cast<seed_t>(100 * rows + runs),
                {.pattern = every_nth{step}, .keep = nth, .rows = rows, .keys = step * runs}) ==
            "");
    }
}

TEST_CASE("scattered keys: what is hidden may be NaN", "[attend][quick]") {
  // Each key is met by some queries of a panel and hidden from the others.
  for (float spoilt :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    support::operands clean(70, 70), spoiled(70, 70);
    auto const pattern = heed::any_pattern(every_nth{5});
    for (index_t key : {7, 41})
      for (index_t d = 0; d < 20; ++d) {
        clean.value.view()(0, key, 0, d) = 0;
        spoiled.value.view()(0, key, 0, d) = spoilt;
      }
    auto const expected = clean(pattern), got = spoiled(pattern);
    for (index_t i = 0; i < 70; ++i)
      for (index_t d = 0; d < 20; ++d) {
        bool const meets = (7 - i) % 5 == 0 || (41 - i) % 5 == 0;
        CHECK(std::isfinite(got.out(0, i, 0, d)) == !meets);
        if (!meets) CHECK(got.out(0, i, 0, d) == expected.out(0, i, 0, d));
        CHECK(got.out(0, i, 1, d) == expected.out(0, i, 1, d));
      }
  }
}

TEST_CASE("arranged tokens", "[attend][quick]") {
  for_each_seed("arranged tokens", 40, [](seed_t seed) {
    support::random draw(seed);
    index_t const tokens = draw.between(1, 200), hands = draw.between(1, 5);
    dealt const order{tokens, hands};
    // Slots: key slot s is token s * hands + group, query slot s the s-th from behind.
    auto const slot_of_query = [=](index_t token) {
      return order.keys(token % hands) - 1 - token / hands;
    };
    index_t const reach = draw.between(0, 20);
    return support::attention_complaint(
        seed, {.pattern = heed::sliding_window{reach, reach},
               .keep =
                   [=](index_t, index_t, index_t i, index_t j) {
                     index_t const distance = j / hands - slot_of_query(i);
                     return i % hands == j % hands && -reach <= distance && distance <= reach;
                   },
               .rows = tokens,
               .keys = tokens,
               .batches = draw.between(1, 2),
               .order = heed::any_arrangement(order)});
  });
}
