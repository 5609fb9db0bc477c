// Catch2 2.13 is one header: its implementation and main are compiled here, once for all test
// programs. Catch2 3 brings both in its own library, and this file is then empty.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
