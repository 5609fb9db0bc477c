#pragma once

#include <cstddef>
#include <functional>

/// What the machine can do at most at this moment. Clocks drift and neighbours come and go, so a
/// benchmark asks again around every few milliseconds that it times, and divides by the answers.
namespace heed_bench {

/// Floating-point operations a second of `threads` threads that do nothing but fused multiply-adds
/// on registers, two operations each. T is float or double. Takes about `seconds`.
template <class T>
double fma_peak(int threads, double seconds);

/// Bytes a second that `threads` threads read from memory, each the best it can with one stream or
/// four, from a buffer far larger than the caches. Takes about `seconds`.
double read_bandwidth(int threads, double seconds);

/// Four times the size of the last-level cache: what is read in turns of this many bytes comes from
/// memory.
std::size_t beyond_cache();

/// The wall's clock, or the processor time that the calling thread got, to which it does not matter
/// what else runs on the machine.
enum class clock { wall, thread };
double now(clock which);

/// Calls f(0) to f(threads - 1) at the same time, the caller's thread taking 0.
void at_once(int threads, std::function<void(int)> const& f);

}  // namespace heed_bench
