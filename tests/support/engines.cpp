#include "support/engines.hpp"

namespace heed {

HEED_TEST_ENGINES(, float)
HEED_TEST_ENGINES(, double)

}  // namespace heed
