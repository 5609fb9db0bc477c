#include "bench.hpp"
#include "ceiling.hpp"

#include <benchmark/benchmark.h>

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

namespace heed_bench {

namespace {

struct row {
  std::string name;
  std::function<measurement()> prepare;
  bool on_request;
};

std::vector<row>& all_rows() {
  static std::vector<row> rows;
  return rows;
}

double seconds_of(std::function<void()> const& f, clock which) {
  double const start = now(which);
  f();
  return now(which) - start;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// --- One row
// ------------------------------------------------------------------------------------------------

struct ceilings {
  double peak = 0;
  double bandwidth = 0;
};

ceilings ceilings_for(measurement const& what) {
  constexpr double instant = 0.003;
  ceilings now;
  now.peak = what.in_double ? fma_peak<double>(what.threads, instant)
                            : fma_peak<float>(what.threads, instant);
  if (what.bytes > 0) now.bandwidth = read_bandwidth(what.threads, 4 * instant);
  return now;
}

void time(benchmark::State& state, measurement const& what) {
  constexpr double slice = 0.03;
  clock const which = what.threads == 1 ? clock::thread : clock::wall;
  std::vector<double> of_peak, of_bandwidth, relative;
  double total = 0, calls = 0, slice_seconds = 0, slice_calls = 0;

  ceilings before = ceilings_for(what);
  auto const close_slice = [&] {
    ceilings const after = ceilings_for(what);
    double const rate = slice_calls / slice_seconds;
    of_peak.push_back(rate * what.operations / std::max(before.peak, after.peak));
    if (what.bytes > 0)
      of_bandwidth.push_back(rate * what.bytes / std::max(before.bandwidth, after.bandwidth));
    if (what.reference) {
      double reference_seconds = 0;
      for (double call = 0; call < slice_calls; ++call)
        reference_seconds += seconds_of(what.reference, which);
      relative.push_back(reference_seconds / slice_seconds);
    }
    before = after;
    total += slice_seconds;
    calls += slice_calls;
    slice_seconds = slice_calls = 0;
  };
  for (auto _ : state) {
    slice_seconds += seconds_of(what.work, which);
    ++slice_calls;
    if (slice_seconds >= slice) {
      state.PauseTiming();
      close_slice();
      state.ResumeTiming();
    }
  }
  if (slice_calls > 0) close_slice();

  using benchmark::Counter;
  state.counters["flops"] = Counter(calls * what.operations / total);
  state.counters["of_peak"] = Counter(median(of_peak));
  if (what.bytes > 0) state.counters["of_bandwidth"] = Counter(median(of_bandwidth));
  if (what.bound > 0) state.counters["bound"] = Counter(what.bound);
  if (what.reference) state.counters["relative"] = Counter(median(relative));
}

/// Google Benchmark calls a row several times, until it knows how many iterations to ask for. The
/// operands are made once.
void run(benchmark::State& state, row const& which) {
  static row const* prepared = nullptr;
  static measurement what;
  if (prepared != &which) {
    what = {};
    prepared = nullptr;
    what = which.prepare();
    prepared = &which;
    what.work();
    if (what.reference) what.reference();
  }
  time(state, what);
}

// --- The machine
// --------------------------------------------------------------------------------------------

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

void describe_machine() {
  using benchmark::AddCustomContext;
  AddCustomContext("processor", processor());
#ifdef __clang__
  AddCustomContext("compiler", "clang " __clang_version__);
#else
  AddCustomContext("compiler", "g++ " __VERSION__);
#endif
  AddCustomContext("instructions", xsimd::default_arch::name());

  auto const billions = [](double rate) { return std::to_string(rate * 1e-9); };
  std::vector<int> counts = thread_counts();
  counts.insert(counts.begin(), 1);
  constexpr double seconds = 0.1;
  for (int threads : counts) {
    std::string const suffix = "/threads:" + std::to_string(threads);
    AddCustomContext("fma_peak/f32" + suffix, billions(fma_peak<float>(threads, seconds)));
    AddCustomContext("fma_peak/f64" + suffix, billions(fma_peak<double>(threads, seconds)));
    AddCustomContext("read_bandwidth" + suffix, billions(read_bandwidth(threads, seconds)));
  }
}

}  // namespace

void add(std::string name, std::function<measurement()> prepare, bool on_request) {
  all_rows().push_back({std::move(name), std::move(prepare), on_request});
}

double kept_pairs(index_t n, bool causal, index_t window) {
  auto const rows = static_cast<double>(n);
  if (!causal) return rows * rows;
  double const all = rows * (rows + 1) / 2;
  if (window <= 0 || window >= n) return all;
  auto const cut = static_cast<double>(n - window);
  return all - cut * (cut + 1) / 2;
}

std::vector<int> thread_counts() {
  std::vector<int> counts;
  for (int threads = 2;
       threads <= static_cast<int>(std::thread::hardware_concurrency()) && threads <= 16;
       threads *= 2)
    counts.push_back(threads);
  return counts;
}

}  // namespace heed_bench

int main(int argc, char** argv) {
  using namespace heed_bench;
  // Long enough for ratios of medians. The user's flags come later, and count.
  std::string shorter = "--benchmark_min_time=0.2";
  std::vector<char*> arguments{argv[0], shorter.data()};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  bool const filtered = std::any_of(argv + 1, argv + argc, [](std::string_view argument) {
    return argument.starts_with("--benchmark_filter");
  });

  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  // The library first, then its peers, whatever order the linker left them in.
  auto& rows = all_rows();
  std::stable_partition(rows.begin(), rows.end(),
                        [](auto const& row) { return !row.name.starts_with("peer/"); });
  for (auto const& row : rows)
    if (filtered || !row.on_request)
      benchmark::RegisterBenchmark(row.name.c_str(), [&row](benchmark::State& state) {
        run(state, row);
      })->Unit(benchmark::kMillisecond);

  describe_machine();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
