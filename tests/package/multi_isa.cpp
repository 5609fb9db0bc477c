// Calls kernels.cpp through the dispatcher. The argument, if any, is the instruction set that has
// to be chosen.
#include <heed/view/error.hpp>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>

extern "C" const char* kernels_isa();
extern "C" float mean_of_values(std::ptrdiff_t keys);
extern "C" void refuses();

int main(int argc, char** argv) {
#if defined(__x86_64__)
  const char* expected = "sse2";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) expected = "avx2";
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) expected = "avx512";
#else
  const char* expected = "default";
#endif
  if (argc > 1) expected = argv[1];

  const float mean = mean_of_values(101);
  bool refused = false;
  try {
    refuses();
  } catch (const heed::error& error) {
    refused = true;
    std::printf("caught: %s\n", error.what());
  }
  std::printf("chose %s, mean of values %g\n", kernels_isa(), mean);
  return std::strcmp(kernels_isa(), expected) == 0 && std::abs(mean - 50.f) < 1e-3f && refused ? 0
                                                                                               : 1;
}
