#include "support/random.hpp"

#include <cstdlib>

namespace support {

void for_each_seed(std::string_view name, int cases, std::function<std::string(seed_t)> const& body,
                   int waived) {
  auto run = [&](seed_t seed) {
    INFO("HEED_TEST_SEED=" << seed << " replays this case of " << name);
    std::string const complaint = body(seed);
    if (!complaint.empty() && waived > 0) {
      --waived;
      WARN("waived: " << complaint);
      return true;
    }
    CHECK(complaint == "");
    return complaint.empty();
  };
  if (char const* only = std::getenv("HEED_TEST_SEED")) {
    run(std::strtoull(only, nullptr, 10));
    return;
  }
  if (char const* count = std::getenv("HEED_TEST_CASES")) cases = std::atoi(count);
  seed_t first = 14695981039346656037u;  // FNV-1a
  for (char c : name) first = (first ^ static_cast<unsigned char>(c)) * 1099511628211u;
  first = first % 1000000 * 100000;
  int failures = 0;
  for (int i = 0; i < cases && failures < 5; ++i) failures += !run(first + static_cast<seed_t>(i));
}

}  // namespace support
