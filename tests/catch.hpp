#pragma once
// Catch2 2.13 (Debian 12) or 3.x (Ubuntu 24.04): tests include this and nothing else of it.
#ifdef LATCHKEY_CATCH2_V3
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
