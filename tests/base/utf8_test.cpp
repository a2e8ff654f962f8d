#include "base/utf8.hpp"

#include <cstdint>
#include <string>

#include "tests/catch.hpp"

using namespace latchkey;

namespace {

std::string encoded(std::uint32_t point) {
    auto const byte = [](std::uint32_t value) { return static_cast<char>(value); };
    auto const tail = [&](unsigned shift) { return byte(0x80U | ((point >> shift) & 0x3FU)); };
    if (point < 0x80) return {byte(point)};
    if (point < 0x800) return {byte(0xC0U | (point >> 6U)), tail(0)};
    if (point < 0x10000) return {byte(0xE0U | (point >> 12U)), tail(6), tail(0)};
    return {byte(0xF0U | (point >> 18U)), tail(12), tail(6), tail(0)};
}

}  // namespace

TEST_CASE("every code point but the surrogates is a character, whole only") {
    for (std::uint32_t point = 0; point <= 0x110FFF; ++point) {
        auto const text = encoded(point);
        bool const valid = point <= 0x10FFFF && (point < 0xD800 || point > 0xDFFF);
        if (utf8_character(text + "x") != (valid ? text.size() : 0)) FAIL(point);
        if (text.size() > 1 && utf8_character(std::string_view(text).substr(0, text.size() - 1)) != 0) FAIL(point);
    }
    CHECK(utf8_character("") == 0);
}

TEST_CASE("overlong forms and stray bytes are no characters") {
    for (auto const* text :
         {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF", "\xF5\x80\x80\x80", "\xFF", "\xC3("})
        CHECK(utf8_character(text) == 0);
}

TEST_CASE("controls are C0, delete and C1") {
    for (std::uint32_t point = 0; point < 0x300; ++point)
        CHECK(is_control(encoded(point)) == (point < 0x20 || (point >= 0x7f && point < 0xA0)));
}
