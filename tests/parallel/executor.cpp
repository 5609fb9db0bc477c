#include "support/catch.hpp"

#include <heed/parallel/eigen_pool.hpp>
#include <heed/parallel/executor.hpp>
#include <heed/parallel/openmp.hpp>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

// ThreadSanitizer does not know how OpenMP's threads wait for each other.
#if defined(__SANITIZE_THREAD__)
#define HEED_TEST_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HEED_TEST_THREAD_SANITIZER 1
#endif
#endif

using heed::index_t;

namespace {

// The simplest executor that is one: its calls run last to first.
struct backwards {
  index_t concurrency() const { return 4; }
  template <class F>
  void run(index_t n, F f) const {
    while (n > 0) f(--n);
  }
};

struct fresh_threads {
  std::atomic<int> begun{0};

  index_t concurrency() const { return 3; }
  template <class F>
  void run(index_t n, F f) {
    std::vector<std::thread> threads;
    for (index_t i = 0; i < n; ++i, ++begun) threads.emplace_back(f, i);
    for (auto& thread : threads) thread.join();
  }
};

template <class Check>
void with_every_executor(Check check) {
  Eigen::ThreadPool one(1), three(3);
  fresh_threads threads;
  check(heed::serial{});
  check(backwards{});
  check(heed::on{threads});
  check(heed::on{one});
  check(heed::on{three});
#if defined(_OPENMP) && !defined(HEED_TEST_THREAD_SANITIZER)
  check(heed::openmp{});
  check(heed::openmp{3});
#endif
}

std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

}  // namespace

TEST_CASE("every executor makes every call once", "[parallel][threads]") {
  with_every_executor([](auto const& executor) {
    CHECK(executor.concurrency() >= 1);
    for (index_t n : {0, 1, 2, 3, 17}) {
      std::vector<std::atomic<int>> calls(at(n));
      executor.run(n, [&](index_t i) { ++calls[at(i)]; });
      for (auto const& count : calls) CHECK(count.load() == 1);
    }
  });
}

TEST_CASE("parallel_for does every piece once, and a worker one piece at a time",
          "[parallel][threads]") {
  with_every_executor([](auto const& executor) {
    for (index_t pieces : {0, 1, 2, 1000}) {
      std::vector<int> done(at(pieces));  // plain: a second visit at once would be a race
      std::vector<index_t> pieces_of_worker(at(executor.concurrency()));
      heed::parallel_for(executor, pieces, [&](index_t piece, index_t worker) {
        ++done[at(piece)];
        ++pieces_of_worker[at(worker)];
      });
      CHECK(done == std::vector<int>(at(pieces), 1));
      index_t sum = 0;
      for (index_t count : pieces_of_worker) sum += count;
      CHECK(sum == pieces);
    }
  });
}

TEST_CASE("an exception of a piece reaches the caller, when all is quiet", "[parallel][threads]") {
  with_every_executor([](auto const& executor) {
    std::atomic<int> running{0};
    auto fail = [&] {
      heed::parallel_for(executor, 100, [&](index_t piece, index_t) {
        ++running;
        if (piece % 10 == 3) {
          --running;
          throw std::runtime_error("piece");
        }
        --running;
      });
    };
    CHECK_THROWS_AS(fail(), std::runtime_error);
    CHECK(running.load() == 0);
  });
}

TEST_CASE("calls inside calls on the same executor", "[parallel][threads]") {
  with_every_executor([](auto const& executor) {
    std::atomic<int> count{0};
    heed::parallel_for(executor, 8, [&](index_t, index_t) {
      heed::parallel_for(executor, 8, [&](index_t, index_t) {
        heed::parallel_for(executor, 8, [&](index_t, index_t) { ++count; });
      });
    });
    CHECK(count.load() == 512);
  });
}

TEST_CASE("a pool whose threads are all busy does not hold the caller up", "[parallel][threads]") {
  Eigen::ThreadPool pool(2);
  std::atomic<int> arrived{0};
  std::atomic<bool> release{false};
  for (int i = 0; i < 2; ++i)
    pool.Schedule([&] {
      ++arrived;
      while (!release) std::this_thread::yield();
    });
  while (arrived < 2) std::this_thread::yield();

  int done = 0;  // plain: only the caller is free
  heed::parallel_for(heed::on{pool}, 50, [&](index_t, index_t) { ++done; });
  CHECK(done == 50);
  release = true;
}

TEST_CASE("several threads use one pool at once", "[parallel][threads]") {
  Eigen::ThreadPool pool(2);
  std::vector<int> sums(4);
  std::vector<std::thread> callers;
  for (std::size_t c = 0; c < sums.size(); ++c)
    callers.emplace_back([&, c] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::atomic<int> sum{0};
        heed::parallel_for(heed::on{pool}, 20,
                           [&](index_t piece, index_t) { sum += static_cast<int>(piece); });
        sums[c] += sum;
      }
    });
  for (auto& caller : callers) caller.join();
  CHECK(sums == std::vector<int>(4, 50 * 190));
}

TEST_CASE("a user's executor is referred to, not copied", "[parallel]") {
  fresh_threads threads;
  heed::parallel_for(heed::on{threads}, 10, [](index_t, index_t) {});
  CHECK(threads.begun.load() == 3);
}

TEST_CASE("what is an executor", "[parallel]") {
  STATIC_REQUIRE(heed::executor<heed::serial>);
  STATIC_REQUIRE(heed::executor<fresh_threads>);
  STATIC_REQUIRE(heed::executor<heed::on<fresh_threads> const>);
  STATIC_REQUIRE(heed::executor<heed::on<Eigen::ThreadPool> const>);
  STATIC_REQUIRE(!heed::executor<int>);
  STATIC_REQUIRE(!heed::executor<Eigen::ThreadPool>);
}
