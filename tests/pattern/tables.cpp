#include "support/tables.hpp"
#include "support/attention_check.hpp"
#include "support/pattern_check.hpp"

#include <heed/pattern/band.hpp>
#include <heed/pattern/columns.hpp>
#include <heed/pattern/key_set.hpp>
#include <heed/pattern/labels.hpp>
#include <heed/pattern/lifetimes.hpp>
#include <heed/pattern/row_ranges.hpp>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// Patterns that read numbers of rows and keys from memory: any batch, head, packing and order of tokens.

using heed::index_t;
using heed::interval;
using heed::kept_pairs;
using heed::place;
using support::for_each_seed;
using support::numbers;
using support::seed_t;

namespace {

constexpr support::pattern_claims exact{.exact_tiles = true, .exact_keys = true};

struct problem {
  support::random draw;
  index_t batches, heads, rows, keys;
  place where;

  explicit problem(seed_t seed)
      : draw(seed),
        batches(draw.between(1, 3)),
        heads(draw.between(1, 3)),
        rows(draw.between(0, 60)),
        keys(draw.between(1, 60)),
        where(support::place_within(draw, batches, heads, rows, keys)) {}

  heed::call_shape shape() const {
    return {.batches = batches, .sequences = batches, .heads = heads, .rows = rows, .keys = keys};
  }
  index_t row(index_t p) const { return p + where.rows - where.keys; }

  /// The number of a row or key of the place.
  template <class T>
  T of(numbers<T> const& all, index_t token) const {
    return all(where.batch, where.head, token);
  }

  /// Runs of one number, as real data has them, or each its own.
  template <class T, class Draw>
  numbers<T> runs(index_t count, Draw number) {
    index_t const most = draw.one_in(2) ? 1 : 20;
    index_t left = 0;
    T current{};
    return numbers<T>(draw, batches, heads, count, [&](index_t) {
      if (left-- == 0) {
        left = draw.between(0, most);
        current = static_cast<T>(number());
      }
      return current;
    });
  }
};

std::vector<index_t> sorted_list(support::random& draw, index_t keys, index_t size) {
  std::vector<index_t> list;
  index_t const odds = draw.between(1, 12);
  for (index_t key = 0; key < keys && static_cast<index_t>(list.size()) < size; ++key)
    if (draw.one_in(odds)) list.push_back(key);
  list.resize(static_cast<std::size_t>(size), -1);
  return list;
}

}  // namespace

TEST_CASE("keys that are marked", "[pattern][quick]") {
  for_each_seed("key_set", 1000, [](seed_t seed) {
    problem p(seed);
    index_t const odds = p.draw.between(1, 8);
    auto const marks = p.runs<bool>(p.keys, [&] { return !p.draw.one_in(odds); });
    heed::key_set const pattern{marks.view()};
    pattern.check(p.shape());
    return check_pattern(
        p.draw, pattern, p.where,
        [&](index_t, index_t j) { return p.of(marks, p.where.first_key + j); }, exact);
  });
}

TEST_CASE("keys that are listed", "[pattern][quick]") {
  for_each_seed("key_list", 1000, [](seed_t seed) {
    problem p(seed);
    index_t const size = p.draw.between(0, 70), B = p.draw.one_in(2) ? 1 : p.batches,
                  H = p.draw.one_in(2) ? 1 : p.heads;
    std::vector<index_t> lists;
    for (index_t n = 0; n < B * H; ++n) {
      auto const one = sorted_list(p.draw, p.keys, size);
      lists.insert(lists.end(), one.begin(), one.end());
    }
    heed::key_list const pattern{{lists, {B, H, size}}};
    pattern.check(p.shape());
    index_t const list = (B == 1 ? 0 : p.where.batch) * H + (H == 1 ? 0 : p.where.head);
    auto const first = lists.begin() + list * size;
    return check_pattern(
        p.draw, pattern, p.where,
        [&](index_t, index_t j) {
          return std::find(first, first + size, j + p.where.first_key) != first + size;
        },
        exact);
  });
}

TEST_CASE("ranges of keys for each row, in order or not", "[pattern][quick]") {
  for_each_seed("row_ranges", 1000, [](seed_t seed) {
    problem p(seed);
    bool const in_order = p.draw.one_in(2);
    auto const bounds = [&](index_t low) {
      index_t last = low;
      return numbers<index_t>(p.draw, p.batches, p.heads, p.rows, [&](index_t n) {
        if (n == 0) last = low;
        last = in_order ? std::min(p.keys, last + p.draw.between(0, 3)) : p.draw.between(0, p.keys);
        return last;
      });
    };
    auto const first = bounds(0), last = bounds(p.draw.between(0, p.keys));
    heed::row_ranges const pattern{first.view(), last.view()};
    pattern.check(p.shape());
    return check_pattern(
        p.draw, pattern, p.where,
        [&](index_t position, index_t j) {
          index_t const i = p.row(position);
          return i >= 0 && i < p.where.rows && p.of(first, p.where.first_row + i) <= j &&
                 j < p.of(last, p.where.first_row + i);
        },
        exact);
  });
}

TEST_CASE("labels", "[pattern][quick]") {
  for_each_seed("labels", 1000, [](seed_t seed) {
    problem p(seed);
    index_t const a = p.draw.between(1, p.draw.one_in(5) ? 64 : 4),
                  b = p.draw.between(1, p.draw.one_in(5) ? 64 : 4);
    auto const rows = p.runs<int>(p.rows, [&] { return p.draw.between(0, a - 1); });
    auto const keys = p.runs<int>(p.keys, [&] { return p.draw.between(0, b - 1); });
    auto const table = std::make_unique<bool[]>(static_cast<std::size_t>(a * b));
    heed::tensor_view<bool, 2> const admitted(table.get(), {a, b});
    index_t const odds = p.draw.between(1, 5);
    for (index_t n = 0; n < a * b; ++n) table[static_cast<std::size_t>(n)] = p.draw.one_in(odds);
    heed::labels const pattern{rows.view(), keys.view(), admitted};
    pattern.check(p.shape());
    return check_pattern(
        p.draw, pattern, p.where,
        [&](index_t position, index_t j) {
          index_t const i = p.row(position);
          return i >= 0 && i < p.where.rows &&
                 admitted(p.of(rows, p.where.first_row + i), p.of(keys, p.where.first_key + j));
        },
        exact);
  });
}

TEST_CASE("lifetimes of keys", "[pattern][quick]") {
  for_each_seed("lifetimes", 1000, [](seed_t seed) {
    problem p(seed);
    index_t const reach = p.draw.between(1, 60);
    numbers<index_t> const ends(p.draw, p.batches, p.heads, p.keys, [&](index_t n) {
      return p.draw.one_in(5) ? p.draw.between(0, p.keys + 5) : n + 1 + p.draw.between(0, reach);
    });
    heed::lifetimes const pattern{ends.view()};
    pattern.check(p.shape());
    return check_pattern(
        p.draw, pattern, p.where,
        [&](index_t i, index_t j) { return j <= i && i < p.of(ends, p.where.first_key + j); },
        exact);
  });
}

TEST_CASE("pairs are the same row by row and key by key", "[pattern][quick]") {
  for_each_seed("transposed", 300, [](seed_t seed) {
    support::random draw(seed);
    index_t const N = draw.between(1, 60), M = draw.between(1, 60);
    std::string complaint;
    auto const expect = [&](char const* what, index_t said, index_t expected) {
      if (said != expected)
        complaint += std::string(what) + ": " + std::to_string(said) + ", not " +
                     std::to_string(expected) + "\n";
    };

    std::vector<index_t> low, high;
    for (index_t i = 0; i < N; ++i) {
      low.push_back(std::min(M, (i ? low.back() : 0) + draw.between(0, 2)));
      high.push_back(std::clamp((i ? high.back() : 5) + draw.between(0, 3), low.back(), M));
    }
    index_t by_keys = 0;
    for (index_t j = 0; j < M; ++j) {
      // Q(j) of ranges that do not decrease: from the first row that ends beyond j to the first that begins beyond it.
      auto const first_beyond = [j](std::vector<index_t> const& bounds) {
        return std::find_if(bounds.begin(), bounds.end(), [j](index_t x) { return x > j; }) -
               bounds.begin();
      };
      by_keys += first_beyond(low) - first_beyond(high);
    }
    heed::row_ranges const ranges{{low, {1, 1, N}}, {high, {1, 1, N}}};
    expect("row_ranges", kept_pairs(ranges, N, M), by_keys);

    std::vector<index_t> ends;
    index_t lived = 0;
    for (index_t j = 0; j < M; ++j) {
      ends.push_back(draw.between(j + 1, M));
      lived += ends.back() - j;  // Q(j) = [j, end)
    }
    expect("lifetimes", kept_pairs(heed::lifetimes{{ends, {1, 1, M}}}, M, M), lived);

    auto const list = sorted_list(draw, M, M);
    index_t const members =
        std::count_if(list.begin(), list.end(), [](index_t k) { return k >= 0; });
    expect("key_list", kept_pairs(heed::key_list{{list, {1, 1, M}}}, N, M), N * members);
    return complaint;
  });
}

TEST_CASE("types of tokens as lifetimes", "[pattern][quick]") {
  // gllsglslls with a window of 2: global for good, local up to the next global, sliding for 2 more.
  std::vector<index_t> const ends{10, 5, 5, 6, 10, 10, 9, 10, 10, 10};
  heed::lifetimes const pattern{{ends, {1, 1, 10}}};
  auto const bound = pattern.bind({.rows = 10, .keys = 10});
  auto const row = [&](index_t p) {
    std::string kept;
    for (index_t j = 0; j < 10; ++j) kept += bound.keep(p, j) ? '1' : '.';
    return kept;
  };
  CHECK(row(3) == "1111......");
  CHECK(row(4) == "11111.....");
  CHECK(row(5) == "1..111....");
  CHECK(row(9) == "1...11.111");
  CHECK(kept_pairs(pattern, 10, 10) == 10 + 4 + 3 + 3 + 6 + 5 + 3 + 3 + 2 + 1);

  std::vector<index_t> const all(10, 10);
  CHECK(kept_pairs(heed::lifetimes{{all, {1, 1, 10}}}, 10, 10) ==
        kept_pairs(heed::causal{}, 10, 10));
}

TEST_CASE("labels met causally are slices of runs", "[pattern][quick]") {
  for_each_seed("labels, causally", 300, [](seed_t seed) {
    support::random draw(seed);
    bool table[9];
    for (bool& each : table) each = draw.one_in(2);
    std::vector<int> tags;
    std::vector<std::pair<int, index_t>> runs;  // a label and how many tokens of it
    for (index_t n = draw.between(1, 12); n > 0; --n) {
      int const label = static_cast<int>(draw.between(0, 2));
      if (!runs.empty() && runs.back().first == label) continue;
      runs.emplace_back(label, draw.between(1, 30));
      tags.insert(tags.end(), static_cast<std::size_t>(runs.back().second), label);
    }
    // The whole of earlier runs that are admitted, and the run itself causally.
    index_t expected = 0;
    for (std::size_t x = 0; x < runs.size(); ++x)
      for (std::size_t y = 0; y <= x; ++y)
        if (table[3 * runs[x].first + runs[y].first])
          expected +=
              x == y ? runs[x].second * (runs[x].second + 1) / 2 : runs[x].second * runs[y].second;
    auto const N = static_cast<index_t>(tags.size());
    heed::tensor_view<int const, 3> const kinds(tags, {1, 1, N});
    index_t const counted = kept_pairs(
        heed::causal{} & heed::labels{kinds, kinds, {std::as_const(table), {3, 3}}}, N, N);
    return counted == expected
               ? std::string()
               : std::to_string(counted) + " pairs, not " + std::to_string(expected);
  });
}

TEST_CASE("tables of whole sequences serve calls of some rows", "[pattern][quick]") {
  support::random draw(1);
  index_t const N = 40, M = 30;
  auto const kind = [](index_t n) { return static_cast<int>(n * 7 % 3); };
  numbers<index_t> const first(draw, 2, 2, N, [](index_t n) { return n / 3; }),
      last(draw, 2, 2, N, [](index_t n) { return std::min<index_t>(n + 1, 30); });
  numbers<int> const rows(draw, 2, 2, N, kind), keys(draw, 2, 2, M, kind);
  bool const table[]{true, false, true, true, true, false, false, true, true};
  heed::tensor_view<bool const, 2> const admitted(table, {3, 3});
  heed::row_ranges const ranges{first.view(), last.view(), 0};
  heed::labels const labels{rows.view(), keys.view(), admitted, 0};
  for (index_t some : {1, 7, 30}) {
    // Queries at the positions 30 - some to 29 are these rows of the tables; positions without a row meet nothing.
    place const where{.batch = 1, .head = 1, .rows = some, .keys = M};
    heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 2, .rows = some, .keys = M};
    CHECK_NOTHROW(ranges.check(shape));
    CHECK_NOTHROW(labels.check(shape));
    CHECK(check_pattern(
              draw, ranges, where,
              [&](index_t p, index_t j) { return p >= 0 && p < N && p / 3 <= j && j <= p; },
              exact) == "");
    CHECK(check_pattern(
              draw, labels, where,
              [&](index_t p, index_t j) { return p >= 0 && p < N && admitted(kind(p), kind(j)); },
              exact) == "");
  }
}

TEST_CASE("numbers of tokens follow them into any order", "[pattern][quick]") {
  support::random draw(1);
  support::shuffled const tokens = support::every_second(20);
  heed::any_arrangement const order(tokens);
  index_t const slots = tokens.rows(0);
  place const where{.rows = slots, .keys = slots, .order = &order};
  auto const token = [&](index_t slot) {
    return slot < 0 || slot >= slots ? -1 : tokens.order[static_cast<std::size_t>(slot)];
  };

  numbers<bool> const marks(draw, 1, 1, 20, [](index_t n) { return n % 3 == 0; });
  CHECK(check_pattern(
            draw, heed::key_set{marks.view()}, where,
            [&](index_t, index_t j) { return token(j) >= 0 && token(j) % 3 == 0; }, exact) == "");

  numbers<int> const kinds(draw, 1, 1, 20, [](index_t n) { return n % 3; });
  bool const some[]{true, false, false, true, false, true, false, true, true};
  bool const all[]{true, true, true, true, true, true, true, true, true};
  for (bool const* table : {some, all}) {
    heed::tensor_view<bool const, 2> const admitted(table, {3, 3});
    CHECK(check_pattern(
              draw, heed::labels{kinds.view(), kinds.view(), admitted}, where,
              [&](index_t p, index_t j) {
                return token(p) >= 0 && token(j) >= 0 && admitted(token(p) % 3, token(j) % 3);
              },
              exact) == "");
  }

  numbers<index_t> const first(draw, 1, 1, 20, [](index_t n) { return n / 3; }),
      last(draw, 1, 1, 20, [](index_t n) { return n / 2 + 5; });
  CHECK(check_pattern(
            draw, heed::row_ranges{first.view(), last.view()}, where,
            [&](index_t p, index_t j) {
              return token(p) >= 0 && token(p) / 3 <= j && j < token(p) / 2 + 5;
            },
            exact) == "");

  CHECK(check_pattern(
            draw, heed::lifetimes{last.view()}, where,
            [&](index_t p, index_t j) { return token(j) >= 0 && j <= p && p < token(j) / 2 + 5; },
            exact) == "");
}

TEST_CASE("attention of tables, forward, backward and decoded", "[pattern][quick]") {
  for_each_seed("attention of tables", 60, [](seed_t seed) {
    support::random draw(seed);
    index_t const B = draw.between(1, 2), H = 2, N = draw.between(1, 120), M = draw.between(N, 250);
    auto const numbers_to = [&](index_t count, index_t most) {
      return numbers<index_t>(draw, B, H, count, [&](index_t) { return draw.between(0, most); });
    };
    using keep_t = std::function<bool(index_t, index_t, index_t, index_t)>;
    auto const check = [&](char const* name, heed::any_pattern const& pattern, keep_t const& keep) {
      std::string const complaint = support::attention_complaint(
          seed, {.pattern = pattern, .keep = keep, .rows = N, .keys = M, .batches = B, .heads = H});
      return complaint.empty() ? "" : name + (": " + complaint);
    };
    switch (draw.between(0, 4)) {
      case 0: {
        index_t const odds = draw.between(2, 20);
        numbers<bool> const marks(draw, B, H, M, [&](index_t) { return draw.one_in(odds); });
        return check("key_set", heed::key_set{marks.view()},
                     [&](index_t b, index_t h, index_t, index_t j) { return marks(b, h, j); });
      }
      case 1: {
        auto const list = sorted_list(draw, M, draw.between(0, 60));
        index_t const size = static_cast<index_t>(list.size());
        return check("key_list", heed::key_list{{list, {1, 1, size}}} & heed::causal{},
                     [&](index_t, index_t, index_t p, index_t j) {
                       return j <= p && std::find(list.begin(), list.end(), j) != list.end();
                     });
      }
      case 2: {
        auto const first = numbers_to(N, M), last = numbers_to(N, M);
        return check("row_ranges", heed::row_ranges{first.view(), last.view(), M - N},
                     [&](index_t b, index_t h, index_t p, index_t j) {
                       index_t const i = p + N - M;
                       return first(b, h, i) <= j && j < last(b, h, i);
                     });
      }
      case 3: {
        numbers<int> const rows(draw, B, H, N, [&](index_t) { return draw.between(0, 2); }),
            keys(draw, B, H, M, [&](index_t n) { return n / 20 % 3; });
        bool const table[]{true, false, true, false, false, true, false, false, false};
        heed::tensor_view<bool const, 2> const admitted(table, {3, 3});
        return check("labels", heed::labels{rows.view(), keys.view(), admitted, M - N},
                     [&](index_t b, index_t h, index_t p, index_t j) {
                       return admitted(rows(b, h, p + N - M), keys(b, h, j));
                     });
      }
      default: {
        numbers<index_t> const ends(draw, B, H, M,
                                    [&](index_t n) { return n + draw.between(1, 80); });
        return check("lifetimes", heed::lifetimes{ends.view()},
                     [&](index_t b, index_t h, index_t p, index_t j) {
                       return j <= p && p < ends(b, h, j);
                     });
      }
    }
  });
}

TEST_CASE("tables that do not fit are refused", "[pattern][quick]") {
  heed::call_shape const shape{.batches = 2, .sequences = 2, .heads = 3, .rows = 4, .keys = 5};
  bool const marks[20]{};
  CHECK_THROWS_WITH((heed::key_set{{marks, {2, 2, 5}}}.check(shape)),
                    "heed: key_set has shape [2, 2, 5]; expected [1 or 2, 1 or 3, 5] (batch, "
                    "head, key)");
  CHECK_THROWS_WITH((heed::key_set{{marks, {2, 1, 4}}}.check(shape)),
                    "heed: key_set has shape [2, 1, 4]; expected [1 or 2, 1 or 3, 5] (batch, "
                    "head, key)");

  auto const list = [&](std::vector<index_t> const& keys) {
    heed::key_list{{keys, {1, 1, static_cast<index_t>(keys.size())}}}.check(shape);
  };
  CHECK_NOTHROW(list({}));
  CHECK_NOTHROW(list({0, 4, -1, -1}));
  CHECK_THROWS_WITH(list({1, 5}),
                    "heed: key_list holds key 5; expected 0 to 4, or -1 behind the last one of a "
                    "list");
  CHECK_THROWS_WITH(list({1, 1}),
                    "heed: key_list holds key 1 after 1; expected sorted lists without "
                    "repetition, -1 last");
  CHECK_THROWS_WITH(list({-1, 2}),
                    "heed: key_list holds key 2 after -1; expected sorted lists without "
                    "repetition, -1 last");
  CHECK_THROWS_WITH(list({-2}),
                    "heed: key_list holds key -2; expected 0 to 4, or -1 behind the last one of "
                    "a list");
  index_t const apart[]{1, 9, 2, 9};
  CHECK_THROWS_WITH((heed::key_list{{apart, {1, 1, 2}, {4, 4, 2}}}.check(shape)),
                    "heed: the lists of key_list have stride 2; expected contiguous ones");

  index_t const zeros[5]{}, six[]{0, 0, 0, 6}, negative[]{0, 0, -1, 0, 0};
  heed::tensor_view<index_t const, 3> const low(zeros, {1, 1, 4});
  CHECK_THROWS_WITH((heed::row_ranges{low, {zeros, {1, 1, 5}}}.check(shape)),
                    "heed: row_ranges.last has shape [1, 1, 5]; expected [1 or 2, 1 or 3, 4] "
                    "(batch, head, row)");
  CHECK_THROWS_WITH((heed::row_ranges{low, {six, {1, 1, 4}}}.check(shape)),
                    "heed: row_ranges.last holds 6; expected 0 to 5 (keys)");
  CHECK_THROWS_WITH((heed::row_ranges{{negative, {1, 1, 4}}, low}.check(shape)),
                    "heed: row_ranges.first holds -1; expected 0 to 5 (keys)");
  CHECK_THROWS_WITH((heed::lifetimes{{negative, {1, 1, 5}}}.check(shape)),
                    "heed: lifetimes holds an end of -1; expected 0 or more");

  int const kinds[]{0, 1, 2, 1, 0}, below[]{0, -1, 0, 0, 0};
  heed::tensor_view<int const, 3> const rows(kinds, {1, 1, 4}), keys(kinds, {1, 1, 5});
  bool const table[65]{};
  CHECK_THROWS_WITH((heed::labels{rows, keys, {table, {2, 3}}}.check(shape)),
                    "heed: labels.queries holds label 2; expected 0 to 1, the labels that "
                    "labels.admitted knows");
  CHECK_THROWS_WITH((heed::labels{rows, {below, {1, 1, 5}}, {table, {3, 3}}}.check(shape)),
                    "heed: labels.keys holds label -1; expected 0 to 2, the labels that "
                    "labels.admitted knows");
  CHECK_THROWS_WITH((heed::labels{rows, keys, {table, {1, 65}}}.check(shape)),
                    "heed: labels.admitted has shape [1, 65]; expected 1 to 64 labels of queries "
                    "and of keys");
  CHECK_THROWS_WITH((heed::labels{keys, keys, {table, {3, 3}}}.check(shape)),
                    "heed: labels.queries has shape [1, 1, 5]; expected [1 or 2, 1 or 3, 4] "
                    "(batch, head, row)");
}
