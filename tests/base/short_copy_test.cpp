#include "base/short_copy.hpp"

#include <string>
#include <vector>

#include "tests/catch.hpp"

using namespace latchkey;

TEST_CASE("a copy of any length has each byte at its place") {
    std::string source;
    for (int i = 0; i < 200; ++i) source.push_back(static_cast<char>(i));
    for (std::size_t size = 0; size <= source.size(); ++size) {
        std::vector<char> memory(size + 1, '#');
        REQUIRE(put(memory.data(), std::string_view(source).substr(0, size)) == memory.data() + size);
        REQUIRE(std::string_view(memory.data(), size) == std::string_view(source).substr(0, size));
        REQUIRE(memory[size] == '#');
    }
}
