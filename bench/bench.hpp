#pragma once

#include "buffer.hpp"

#include <heed/parallel/eigen_pool.hpp>

#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>

namespace heed_bench {

/// What one row of the benchmarks times, and what it is held against.
struct measurement {
  std::function<void()> work;

  /// Of one call of `work`: the floating-point operations of the pairs kept, and the bytes that it
  /// cannot help reading from memory. Zero bytes: arithmetic decides, bandwidth is not asked about.
  double operations = 0;
  double bytes = 0;

  int threads = 1;
  bool in_double = false;

  /// Timed in turns with `work` where it is given: the counter `relative` says how many times as
  /// fast as it `work` is.
  std::function<void()> reference = {};

  /// The share of the peak that this shape of problem allows at best, where it is less than all: the counter `bound`.
  double bound = 0;
};

/// Adds a row. `prepare` makes its operands when its turn comes. A row `on_request` runs only if a
/// --benchmark_filter was given.
///
/// Counters of a row: `flops`, operations a second; `of_peak`, as a share of the FMA peak;
/// `of_bandwidth`, bytes a second as a share of the read bandwidth; `relative`, see above. The
/// ceilings are those of as many threads, measured anew after every few milliseconds of work; a
/// share is the median over such slices. One thread is timed by the processor time that it gets,
/// several by the clock on the wall.
void add(std::string name, std::function<measurement()> prepare, bool on_request = false);

/// Rows are added by variables of this type: a new file is new rows.
struct rows {
  template <class F>
  explicit rows(F f) {
    f();
  }
};

/// Writes names: label("softmax/forward/f32")("D", 64)("N", 2048) is
/// softmax/forward/f32/D:64/N:2048.
class label {
 public:
  explicit label(std::string_view beginning) { text_ << beginning; }

  template <class Value>
  label&& operator()(std::string_view key, Value const& value) && {
    text_ << '/' << key << ':' << value;
    return std::move(*this);
  }
  operator std::string() && { return text_.str(); }

 private:
  std::ostringstream text_;
};

template <class T>
constexpr std::string_view element_name = "f32";
template <>
inline constexpr std::string_view element_name<double> = "f64";
template <>
inline constexpr std::string_view element_name<Eigen::half> = "f16";
template <>
inline constexpr std::string_view element_name<Eigen::bfloat16> = "bf16";

/// Pairs kept of n x n: all, or key <= query, or of these the `window` nearest keys.
double kept_pairs(index_t n, bool causal, index_t window = 0);

/// 2, 4, 8, 16 as far as the machine has them.
std::vector<int> thread_counts();

/// One thread or several as one type, so that the kernels are compiled once.
class workers {
 public:
  explicit workers(int threads)
      : pool_(threads > 1 ? std::make_unique<Eigen::ThreadPool>(threads) : nullptr) {}

  index_t concurrency() const { return pool_ ? pool_->NumThreads() : 1; }
  template <class F>
  void run(index_t n, F f) {
    if (pool_)
      heed::on{*pool_}.run(n, f);
    else
      heed::serial::run(n, f);
  }

 private:
  std::unique_ptr<Eigen::ThreadPool> pool_;
};

}  // namespace heed_bench
