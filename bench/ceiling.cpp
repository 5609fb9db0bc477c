#include "ceiling.hpp"

#include "buffer.hpp"

#include <xsimd/xsimd.hpp>

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <thread>
#include <utility>
#include <vector>

namespace heed_bench {

namespace {

// --- Arithmetic
// ---------------------------------------------------------------------------------------------

/// `rounds` multiply-adds on each of as many accumulators as the registers hold. Returns the
/// operations done.
template <class T, std::size_t... I>
double multiply_add(int rounds, std::index_sequence<I...>) {
  using batch = xsimd::batch<T>;
  // Volatile, so that nothing is known of the numbers. They tend to 1: no overflow and no
  // denormals.
  T volatile factor = T(0.5), term = T(0.5), sink;
  batch const a(factor), b(term);
  std::array<batch, sizeof...(I)> sums;
  ((sums[I] = batch(static_cast<T>(I))), ...);
  for (int round = 0; round < rounds; ++round) ((sums[I] = xsimd::fma(sums[I], a, b)), ...);
  batch total(T(0));
  ((total += sums[I]), ...);
  sink = total.get(0);
  static_cast<void>(sink);
  return 2.0 * rounds * static_cast<double>(sizeof...(I) * batch::size);
}

// --- Memory
// -------------------------------------------------------------------------------------------------

using batch = xsimd::batch<float>;
constexpr index_t lanes = static_cast<index_t>(batch::size);
constexpr index_t cache_line = 64 / sizeof(float);

/// Adds up `count` floats from each of `Streams` places that lie `apart` from each other.
template <int Streams>
float sum(float const* data, index_t apart, index_t count) {
  constexpr index_t step = 4 * cache_line;
  std::array<batch, 4> sums;
  sums.fill(batch(0.f));
  for (index_t i = 0; i + step <= count; i += step)
    for (int stream = 0; stream < Streams; ++stream)
      for (index_t j = 0; j < step; j += lanes)
        sums[static_cast<std::size_t>(j / lanes % 4)] +=
            batch::load_aligned(data + stream * apart + i + j);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])).get(0);
}

/// The memory that is read. Whoever reads goes on where it stopped the last time, so nothing is in
/// a cache.
struct memory {
  buffer<float> numbers{
      static_cast<index_t>(std::max(beyond_cache(), std::size_t{1} << 28) / sizeof(float))};
  std::vector<index_t> positions = std::vector<index_t>(1024, 0);
};

/// Bytes a second that thread `thread` of `threads` reads in about `seconds`.
template <int Streams>
double read(memory& from, int threads, int thread, double seconds) {
  constexpr index_t chunk = index_t{1} << 16;
  index_t const apart = from.numbers.size() / threads / Streams / chunk * chunk;
  float const* const mine = from.numbers.data() + thread * Streams * apart;
  index_t& position = from.positions[static_cast<std::size_t>(thread)];
  float volatile sink;
  double bytes = 0, elapsed = 0;
  double const start = now(clock::wall);
  do {
    if (position + chunk > apart) position = 0;
    sink = sum<Streams>(mine + position, apart, chunk);
    position += chunk;
    bytes += static_cast<double>(chunk * Streams) * sizeof(float);
    elapsed = now(clock::wall) - start;
  } while (elapsed < seconds);
  static_cast<void>(sink);
  return bytes / elapsed;
}

}  // namespace

double now(clock which) {
  timespec time;
  clock_gettime(which == clock::thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void at_once(int threads, std::function<void(int)> const& f) {
  std::barrier together(threads);
  auto const take_part = [&](int thread) {
    together.arrive_and_wait();
    f(thread);
  };
  std::vector<std::jthread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(take_part, thread);
  take_part(0);
}

template <class T>
double fma_peak(int threads, double seconds) {
  // Twice as many registers, twice as many accumulators; either is more than latency times
  // throughput.
  constexpr std::size_t accumulators = sizeof(xsimd::batch<T>) == 64 ? 24 : 12;
  std::vector<double> best(static_cast<std::size_t>(threads), 0);
  at_once(threads, [&](int thread) {
    double& mine = best[static_cast<std::size_t>(thread)];
    // On the wall's clock, which is exact over so short a time; the best of many is not disturbed
    // by others.
    double const start = now(clock::wall);
    do {
      double const begin = now(clock::wall);
      double const operations = multiply_add<T>(8192, std::make_index_sequence<accumulators>());
      mine = std::max(mine, operations / (now(clock::wall) - begin));
    } while (now(clock::wall) - start < seconds);
  });
  double total = 0;
  for (double rate : best) total += rate;
  return total;
}
template double fma_peak<float>(int, double);
template double fma_peak<double>(int, double);

double read_bandwidth(int threads, double seconds) {
  static memory from;
  constexpr double window = 0.001;
  double best = 0;
  std::vector<double> rates(static_cast<std::size_t>(threads));
  for (int turn = 0; turn * window < seconds; ++turn) {
    at_once(threads, [&](int thread) {
      rates[static_cast<std::size_t>(thread)] = turn % 2 == 0
                                                    ? read<1>(from, threads, thread, window)
                                                    : read<4>(from, threads, thread, window);
    });
    double total = 0;
    for (double rate : rates) total += rate;
    best = std::max(best, total);
  }
  return best;
}

std::size_t beyond_cache() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  long const cache = std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
  long const cache = 0;
#endif
  return 4 * static_cast<std::size_t>(std::max(cache, long{1} << 25));
}

}  // namespace heed_bench
