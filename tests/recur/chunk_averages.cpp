#include "support/tensors.hpp"
#include "support/threads.hpp"

#include <heed/recur/chunk_averages.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

// Chunks, their averages and the attention to them, written out token by token; tests/mechanism/rat.cpp has the mechanism, its
// steps and its gradients.

using heed::index_t;
using heed::recur::chunk_places;
using support::blank;

namespace {

/// Rows that go on from `tokens` earlier ones, or, if there are bounds, those of documents.
struct drawn_rows {
  struct token {
    index_t first;      // row of its sequence
    index_t position;   // in its sequence
    index_t first_end;  // of its sequence
    index_t end;        // its row among the ends, or -1
  };

  support::random draw;
  index_t count, size, earlier = 0;
  std::vector<index_t> bounds;
  std::vector<token> tokens;
  std::vector<index_t> ends{0};  // of sequences, summed up
  index_t most_chunks = 0;

  explicit drawn_rows(support::seed_t seed)
      : draw(seed), count(draw.between(0, 40)), size(draw.between(1, 7)) {
    if (draw.one_in(2)) {
      earlier = draw.between(0, 20);
    } else {
      index_t const cut = draw.between(0, count);
      bounds = {0, cut, cut, draw.between(cut, count), count};
    }
    std::vector<index_t> const cuts = bounds.empty() ? std::vector<index_t>{0, count} : bounds;
    for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
      index_t const first_end = ends.back(), length = earlier + cuts[s + 1] - cuts[s];
      ends.push_back(first_end);
      for (index_t position = 0; position < length; ++position) {
        bool const is_end = position % size == size - 1 && position + 1 < length;
        index_t const end = is_end ? ends.back()++ : -1;
        if (position >= earlier) tokens.push_back({cuts[s], position, first_end, end});
        most_chunks = std::max(most_chunks, position / size + 1);
      }
    }
  }

  token const& at(index_t row) const { return tokens[static_cast<std::size_t>(row)]; }
  /// A view of the bounds.
  chunk_places places() const {
    index_t const sequences = static_cast<index_t>(ends.size()) - 1;
    return {{sequences, count, count, {bounds, bounds}}, size, earlier};
  }
};

/// A call in plain sums over tokens, its operands of one batch entry and one head.
struct definition {
  using number = long double;
  using numbers = std::vector<number>;

  drawn_rows const& rows;
  index_t dim;

  /// What averages of x are after a row: (1 - g_r) x_r faded by the gates after it, summed over the tokens of the chunk, of
  /// which those before row 0 have made `running`.
  template <class X, class Gate, class Running>
  numbers average(index_t row, X x, Gate gate, Running running) const {
    auto const& at = rows.at(row);
    index_t const begin = row - at.position % rows.size;
    numbers all;
    for (index_t d = 0; d < dim; ++d) {
      auto const faded = [&](number from, index_t after) {
        for (index_t r = after; r <= row; ++r) from *= gate(r, d);
        return from;
      };
      number sum = begin < at.first ? faded(running(d), at.first) : 0;
      for (index_t r = std::max(begin, at.first); r <= row; ++r)
        sum += faded((1 - gate(r, d)) * x(r, d), r + 1);
      all.push_back(sum);
    }
    return all;
  }

  /// Halves rotated by the number of a chunk.
  numbers turned(numbers const& x, index_t chunk) const {
    auto const half = x.size() / 2;
    numbers all(x.size());
    for (std::size_t m = 0; m < half; ++m) {
      number const angle = number(chunk) * std::pow(number(10000), -number(m) / number(half));
      all[m] = x[m] * std::cos(angle) - x[half + m] * std::sin(angle);
      all[half + m] = x[m] * std::sin(angle) + x[half + m] * std::cos(angle);
    }
    return all;
  }

  /// Softmax attention of a query.
  numbers attended(numbers const& q, std::vector<numbers> const& keys,
                   std::vector<numbers> const& values) const {
    numbers sum(q.size(), 0);
    number total = 0;
    for (std::size_t n = 0; n < keys.size(); ++n) {
      number score = 0;
      for (std::size_t d = 0; d < q.size(); ++d) score += q[d] * keys[n][d];
      number const weight = std::exp(score / std::sqrt(number(dim)));
      for (std::size_t d = 0; d < q.size(); ++d) sum[d] += weight * values[n][d];
      total += weight;
    }
    for (number& each : sum) each /= total;
    return sum;
  }
};

}  // namespace

TEST_CASE("chunk_places: chunks of a sequence that goes on, or of documents", "[recur][quick]") {
  for (support::seed_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    drawn_rows const rows(seed);
    chunk_places const places = rows.places();
    CHECK(places.ends() == rows.ends.back());
    CHECK(places.most_chunks() == rows.most_chunks);
    CHECK(places.goes_on() == (rows.earlier % rows.size > 0));
    std::vector<index_t> starts;
    for (index_t row = 0; row < rows.count; ++row) {
      auto const& at = rows.at(row);
      CAPTURE(row);
      CHECK(places[row].chunk == at.position / rows.size);
      CHECK(places[row].end == at.end);
      if (row == at.first || at.position % rows.size == 0) starts.push_back(row);
    }
    starts.push_back(rows.count);
    CHECK(std::ranges::equal(places.for_scan().queries, starts));
    CHECK(std::ranges::equal(places.for_scan().keys, starts));
    if (!places.is_packed()) continue;
    CHECK(std::ranges::equal(places.for_attention().queries, rows.bounds));
    CHECK(std::ranges::equal(places.for_attention().keys, rows.ends));
  }
}

TEST_CASE("chunk_averages: attention to the ends of earlier chunks and to the running average",
          "[recur][quick]") {
  using number = definition::number;
  using numbers = definition::numbers;
  index_t const heads = 2, dim = 6;
  support::threads const several;
  for (support::seed_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    drawn_rows rows(seed);
    index_t const batches = rows.bounds.empty() ? 2 : 1;
    chunk_places const places = rows.places();
    auto const draw = [&](index_t positions, index_t of_heads) {
      return support::normal<double>(rows.draw, {batches, positions, of_heads, dim});
    };
    auto q = draw(rows.count, heads), k = draw(rows.count, 1), v = draw(rows.count, heads),
         forget = draw(rows.count, heads), gate = draw(rows.count, heads),
         running_key = draw(1, heads), running_value = draw(1, heads),
         end_keys = draw(rows.ends.back(), heads), end_values = draw(rows.ends.back(), heads);
    forget.fill([&](auto const&) { return rows.draw.uniform(); });
    auto out = blank<double, 4>(q.extents()), last_key = draw(1, heads),
         last_value = draw(1, heads), last_running = draw(1, heads);

    heed::recur::chunk_averages<double> call(q.view(), k.view(), v.view(), forget.view(),
                                             gate.view(), "out", out.view(), places,
                                             heed::any_executor(several));
    using source = heed::source<double>;
    using sink = heed::sink<double>;
    CHECK(call.ends_shape() == end_keys.extents());
    call.attend(forget.view(), {source(running_key.view()), source(running_value.view())},
                end_keys.view(), end_values.view());
    call.gate(sink(out.view()));
    call.store_last(sink(last_key.view()), sink(last_value.view()), sink(last_running.view()));

    // Numbers are at most 6 in size, and so are averages, with two roundings a token. A rotation adds three, and those of its
    // angle, which is exact or below a twentieth of the chunk's number. A score has the errors of both factors, those of its
    // sum and those of the lse; a weight those of two scores.
    number const u = std::numeric_limits<double>::epsilon() / 2, most = 6, root = std::sqrt(6.0L);
    number const of_average = 2 * number(rows.size) * u * most;
    number const of_angle = 6 * u * number(rows.most_chunks) / 20;
    number const of_turned = of_average + 2 * most * (3 * u + of_angle);
    number const of_score = root * most * (2 * of_turned + number(dim + 4) * u * most);
    number const of_result = most * (2 * of_score + number(rows.most_chunks + 8) * u) + of_average;
    auto const check = [](auto const& view, index_t b, index_t row, index_t h,
                          numbers const& expected, number allowed) {
      for (index_t d = 0; d < dim; ++d) {
        CAPTURE(b, row, h, d);
        CHECK(std::abs(view(b, row, h, d) - expected[static_cast<std::size_t>(d)]) <= allowed);
      }
    };
    for (index_t b = 0; b < batches; ++b)
      for (index_t h = 0; h < heads; ++h) {
        definition const plain{rows, dim};
        auto const average = [&](index_t row, auto& x, auto& running) {
          index_t const own = h * x.extents()[2] / heads;
          return plain.average(
              row, [&](index_t r, index_t d) { return number(x.view()(b, r, own, d)); },
              [&](index_t r, index_t d) { return number(forget.view()(b, r, h, d)); },
              [&](index_t d) { return number(running.view()(b, 0, h, d)); });
        };
        auto const row_of = [&](auto& x, index_t row) {
          numbers all;
          for (index_t d = 0; d < dim; ++d) all.push_back(x.view()(b, row, h, d));
          return all;
        };
        std::vector<numbers> seen_keys, seen_values;
        for (index_t row = 0; row < rows.count; ++row) {
          auto const& at = rows.at(row);
          index_t const chunk = at.position / rows.size;
          if (row == at.first) {
            seen_keys.clear(), seen_values.clear();
            for (index_t n = 0; n < rows.earlier / rows.size; ++n) {
              seen_keys.push_back(row_of(end_keys, n));
              seen_values.push_back(row_of(end_values, n));
            }
          }
          numbers const own = average(row, k, running_key), value = average(row, v, running_value),
                        key = plain.turned(own, chunk);
          seen_keys.push_back(key), seen_values.push_back(value);
          numbers expected =
              plain.attended(plain.turned(row_of(q, row), chunk), seen_keys, seen_values);
          check(call.result, b, row, h, expected, of_result);
          for (index_t d = 0; d < dim; ++d)
            expected[static_cast<std::size_t>(d)] *= gate.view()(b, row, h, d);
          check(out.view(), b, row, h, expected, most * (of_result + u * most));
          if (at.end >= 0) {
            check(end_keys.view(), b, at.end, h, key, of_turned);
            check(end_values.view(), b, at.end, h, value, of_average);
          } else {
            seen_keys.pop_back(), seen_values.pop_back();
          }
          if (row + 1 < rows.count) continue;
          check(last_key.view(), b, 0, h, key, of_turned);
          check(last_value.view(), b, 0, h, value, of_average);
          check(last_running.view(), b, 0, h, own, of_average);
        }
      }
  }
}
