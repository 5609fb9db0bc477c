// Uses heed as any program would. A query of zeros weighs all keys alike, so the output is the mean
// of the values.
#include <heed/heed.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

float second();  // the same from another translation unit

int main() {
  const heed::index_t keys = 5, dim = 3;
  std::vector<float> query(dim), key(keys * dim, 1.f), value(keys), out(1);
  for (heed::index_t j = 0; j < keys; ++j)
    value[static_cast<std::size_t>(j)] = static_cast<float>(j);
  heed::attention(heed::bnhd(query.data(), 1, 1, 1, dim), heed::bnhd(key.data(), 1, keys, 1, dim),
                  heed::bnhd(value.data(), 1, keys, 1, 1), heed::bnhd(out.data(), 1, 1, 1, 1));
  std::printf("mean of values %g, from the second unit %g\n", out[0], second());
  return std::abs(out[0] - 2.f) < 1e-5f && std::abs(second() - 2.f) < 1e-5f ? 0 : 1;
}
