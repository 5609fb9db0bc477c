// Compiled once for each instruction set by heed_add_multi_isa.
#include <heed/heed.hpp>

#include <cstdlib>
#include <vector>

namespace {

// Known only at run time, so an initialiser has to set it.
const float one = std::getenv("PATH") ? 1.f : 0.f;

float attend(heed::index_t keys, heed::index_t values) {
  const heed::index_t dim = 3;
  std::vector<float> query(dim), key(static_cast<std::size_t>(keys * dim), 1.f), value, out(1);
  for (heed::index_t j = 0; j < values; ++j) value.push_back(static_cast<float>(j));
  heed::attention(heed::bnhd(query.data(), 1, 1, 1, dim), heed::bnhd(key.data(), 1, keys, 1, dim),
                  heed::bnhd(value.data(), 1, values, 1, 1), heed::bnhd(out.data(), 1, 1, 1, 1));
  return one * out[0];
}

}  // namespace

extern "C" float mean_of_values(heed::index_t keys) {
  return attend(keys, keys);
}

// Fewer values than keys: the exception passes through the closed object to its caller.
extern "C" void refuses() {
  attend(5, 4);
}
