#include <heed/heed.hpp>

#include <vector>

float second() {
  std::vector<float> query(3), key(15, 1.f), value{0, 1, 2, 3, 4}, out(1);
  heed::attention(heed::bnhd(query.data(), 1, 1, 1, 3), heed::bnhd(key.data(), 1, 5, 1, 3),
                  heed::bnhd(value.data(), 1, 5, 1, 1), heed::bnhd(out.data(), 1, 1, 1, 1));
  return out[0];
}
