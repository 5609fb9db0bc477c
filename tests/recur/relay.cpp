#include "support/catch.hpp"

#include <heed/recur/relay.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

// States that workers hand on, with an arithmetic of which the order shows in the bits in place of a recurrence.

using heed::any_executor;
using heed::index_t;
using heed::interval;
using heed::recur::chunk_list;
using heed::recur::state_place;

namespace {

using relay = heed::recur::relay<float, xsimd::default_arch>;
using problem = heed::recur::problem<float>;

/// Each worker on a thread of its own.
struct threads {
  index_t workers;

  index_t concurrency() const { return workers; }
  template <class F>
  void run(index_t n, F f) const {
    std::vector<std::thread> all;
    for (index_t i = 0; i < n; ++i) all.emplace_back(f, i);
    for (auto& each : all) each.join();
  }
};

std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

/// Chunks of two tokens.
problem problem_of(index_t columns, heed::recur::sequence_list const& sequences,
                   index_t state_heads) {
  problem p;
  p.features = 3;
  p.columns = columns;
  p.chunk = 2;
  p.shape.state_heads = state_heads;
  p.sequences = sequences;
  return p;
}

/// Calls f(relay) with one in memory of its own.
template <class F>
void with_relay(problem const& p, index_t workers, F f) {
  threads const own_threads{workers};
  any_executor const run_on(own_threads);
  heed::arena measure;
  static_cast<void>(relay(measure, p, run_on));
  heed::workspace memory;
  heed::arena own(memory.reserve(measure.used()));
  relay states(own, p, run_on);
  CHECK(own.used() == measure.used());
  f(states);
}

/// A number of a state after a chunk: adds before it multiplies, which no compiler makes one rounding of.
float carry(float before, index_t state, index_t chunk) {
  return (before + 1.0f / static_cast<float>(3 + 5 * state + chunk)) * 0.7f;
}
float first_number(index_t n) {
  return 1.0f / static_cast<float>(n + 1);
}

/// Whether something happens before everybody has lost patience: a test that fails should also end.
bool comes(std::atomic<bool> const& event) {
  auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!event) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}
/// Lets others do what they should not do yet.
void give_way() {
  for (int n = 0; n < 1000; ++n) std::this_thread::yield();
}

/// Documents of several lengths, one of them empty, with two states each: the chunks of one pass against a loop over them.
void check_pass(index_t columns, index_t workers, bool backwards, interval chunks) {
  std::vector<index_t> const bounds{0, 7, 7, 12, 13}, chunks_of_document{4, 0, 3, 1};
  index_t const heads = 2, count = 8, most = 4;
  problem const p = problem_of(columns, {4, 13, 13, {bounds, bounds}}, heads);
  with_relay(p, workers, [&](relay& states) {
    REQUIRE(states.states() == count);
    REQUIRE(states.most() == most);
    index_t const size = states.size(), stride = size / p.features;
    REQUIRE(stride >= columns);
    std::vector<float> expected(at(count * size));
    for (index_t n = 0; n < count * size; ++n)
      states.carried(0)[n] = expected[at(n)] = first_number(n);
    std::vector<std::vector<float>> taken(at(workers), std::vector<float>(at(size)));
    // Plain numbers, one for each chunk of each state: a second visit at once would be a race.
    std::vector<int> visits(at(count * most), 0), expected_visits = visits, wrong = visits;

    states.over(chunks, backwards,
                [&](index_t worker, state_place const& where, chunk_list::chunk const& now,
                    relay::baton const& baton) {
                  index_t const state = baton.state;
                  std::size_t const n = at(state * most + baton.chunk);
                  auto const expected_chunk = chunk_list(where.where, true, 2)[baton.chunk];
                  visits[n] += 1;
                  wrong[n] +=
                      where.where.sequence != state / heads || where.head != state % heads ||
                      now.first_key != expected_chunk.first_key || now.keys != expected_chunk.keys;
                  auto const carry_part = [&](interval part, float const* from, float* carried) {
                    for (index_t d = 0; d < p.features; ++d)
                      for (index_t e = d * stride + part.first; e < d * stride + part.last; ++e)
                        carried[e] = carry(from[e], state, baton.chunk);
                  };
                  wrong[n] += !baton.pass(taken[at(worker)].data(), carry_part);
                });

    for (index_t state = 0; state < count; ++state) {
      index_t const last = std::min(chunks.last, chunks_of_document[at(state / heads)]);
      for (index_t turn = 0; turn < last - chunks.first; ++turn) {
        index_t const chunk = backwards ? last - 1 - turn : chunks.first + turn;
        expected_visits[at(state * most + chunk)] = 1;
        for (index_t n = state * size; n < (state + 1) * size; ++n)
          expected[at(n)] = carry(expected[at(n)], state, chunk);
      }
    }
    CHECK(visits == expected_visits);
    CHECK(wrong == std::vector<int>(at(count * most), 0));
    CHECK(std::vector<float>(states.carried(0), states.carried(count)) == expected);
  });
}

}  // namespace

TEST_CASE("relay: each state through its chunks in order, the same bits for any number of workers",
          "[recur][threads][quick]") {
  for (index_t columns : {5, 70})
    for (index_t workers : {1, 2, 3, 5})
      for (bool backwards : {false, true})
        for (interval chunks : {interval{0, 4}, interval{1, 3}}) {
          CAPTURE(columns, workers, backwards, chunks.first, chunks.last);
          check_pass(columns, workers, backwards, chunks);
        }
}

TEST_CASE("relay: the next worker has the first columns while the last are made",
          "[recur][threads][quick]") {
  problem const p = problem_of(70, {.count = 1, .rows = 4, .keys = 4, .packed = {}}, 1);
  with_relay(p, 2, [&](relay& states) {
    index_t const columns = states.size() / p.features;
    std::fill_n(states.carried(0), states.size(), 0.0f);
    std::atomic<bool> next_begun{false}, next_has_first{false};
    bool worked_beside = false, was_early = true, worked_on_other_columns = false;
    std::vector<float> taken[]{std::vector<float>(at(states.size())),
                               std::vector<float>(at(states.size()))};
    std::vector<interval> parts[2];
    states.over(
        {0, 2}, false,
        [&](index_t, state_place const&, chunk_list::chunk const&, relay::baton const& baton) {
          bool const is_first = baton.chunk == 0;
          if (is_first)
            worked_beside = comes(next_begun);
          else
            next_begun = true;
          baton.pass(taken[baton.chunk].data(), [&](interval part, float const*, float*) {
            parts[baton.chunk].push_back(part);
            if (!is_first) {
              next_has_first = true;
            } else if (part.first == 0) {
              give_way();
              was_early = next_has_first;
            } else if (part.last == columns) {
              worked_on_other_columns = comes(next_has_first);
            }
          });
        });
    CHECK(worked_beside);
    CHECK_FALSE(was_early);
    CHECK(worked_on_other_columns);
    for (auto const& each : parts) {
      REQUIRE(each.size() == 2);
      CHECK(each[0].first == 0);
      CHECK(each[1].first == each[0].last);
      CHECK(each[1].last == columns);
      // A part of a row begins with a cache line.
      CHECK(each[1].first * static_cast<index_t>(sizeof(float)) % 64 == 0);
    }
  });
}

TEST_CASE("relay: a chunk that fails lets those behind it go, and a later pass begins anew",
          "[recur][threads][quick]") {
  problem const p = problem_of(5, {.count = 1, .rows = 6, .keys = 6, .packed = {}}, 1);
  with_relay(p, 3, [&](relay& states) {
    std::fill_n(states.carried(0), states.size(), 0.0f);
    std::vector<std::vector<float>> taken(3, std::vector<float>(at(states.size())));
    std::atomic<bool> next_begun{false};
    std::vector<int> could(3, -1);
    bool fails = true;
    auto const all = [&] {
      states.over(
          {0, 3}, false,
          [&](index_t, state_place const&, chunk_list::chunk const&, relay::baton const& baton) {
            if (baton.chunk == 2) next_begun = true;
            if (baton.chunk == 1 && fails && comes(next_begun)) throw std::runtime_error("chunk 1");
            // Those behind it look for their turn before it has come.
            if (baton.chunk == 0 && comes(next_begun)) give_way();
            float* const own = taken[at(baton.chunk)].data();
            could[at(baton.chunk)] =
                baton.pass(own, [&](interval part, float const* from, float* carried) {
                  for (index_t c = part.first; c < part.last; ++c)
                    carried[c] = 10 * from[c] + static_cast<float>(baton.chunk + 1);
                });
          });
    };
    CHECK_THROWS_WITH(all(), "chunk 1");
    CHECK(could == std::vector<int>{1, -1, 0});
    CHECK(*states.carried(0) == 1);
    fails = next_begun = false;
    all();
    CHECK(could == std::vector<int>{1, 1, 1});
    CHECK(*states.carried(0) == 1123);
  });
}
