#include "gateway/scan.hpp"

#include <string>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

namespace {

// Where the scan ends, from the front of exactly these bytes.
template <class Passes>
std::size_t stop(std::string const& text, Passes passes) {
    return static_cast<std::size_t>(skip_sixteens(text.data(), text.data() + text.size(), passes) - text.data());
}

}  // namespace

TEST_CASE("a scan by sixteen stops at the first byte that does not pass, or where fewer than sixteen are left") {
    for (std::size_t size = 0; size < 50; ++size) {
        std::string text(size, 'x');
        CHECK(stop(text, alphanumeric) == size / 16 * 16);
        for (std::size_t at = 0; at < size / 16 * 16; ++at) {
            CAPTURE(size, at);
            text[at] = '-';
            if (at + 1 < size) text[at + 1] = '-';  // the first of them counts
            REQUIRE(stop(text, alphanumeric) == at);
            text.assign(size, 'x');
        }
    }
}

TEST_CASE("the classes of a scan by sixteen are right for every byte") {
    for (int n = 0; n < 256; ++n) {
        CAPTURE(n);
        std::string const text(16, static_cast<char>(n));
        bool const alpha = (n >= 'a' && n <= 'z') || (n >= 'A' && n <= 'Z') || (n >= '0' && n <= '9');
        CHECK(stop(text, alphanumeric) == (alpha ? 16U : 0U));
        CHECK(stop(text, [](sixteen bytes) { return between<0, 255>(bytes); }) == 16);
        CHECK(stop(text, [](sixteen bytes) { return between<'b', 'b'>(bytes); }) == (n == 'b' ? 16U : 0U));
    }
}
