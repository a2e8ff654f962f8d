#pragma once
// Well-formed UTF-8, character by character. Pure; any thread.

#include <cstddef>
#include <string_view>

namespace latchkey {

// Bytes of the well-formed character that `text` begins with (1 to 4); 0 where it begins with none or is empty. Refuses
// overlong forms, surrogates and what lies above U+10FFFF (Unicode, table 3-7).
constexpr std::size_t utf8_character(std::string_view text) noexcept {
    auto const byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    auto const tail = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
    unsigned const a = byte(0);
    unsigned const b = byte(1);
    if (text.empty()) return 0;
    if (a < 0x80) return 1;
    if (a >= 0xC2 && a <= 0xDF) return tail(1) ? 2 : 0;
    if (a >= 0xE0 && a <= 0xEF) {
        bool const range = a == 0xE0 ? b >= 0xA0 : a == 0xED ? b < 0xA0 : true;
        return range && tail(1) && tail(2) ? 3 : 0;
    }
    if (a >= 0xF0 && a <= 0xF4) {
        bool const range = a == 0xF0 ? b >= 0x90 : a == 0xF4 ? b < 0x90 : true;
        return range && tail(1) && tail(2) && tail(3) ? 4 : 0;
    }
    return 0;
}

// Whether a well-formed character is a control: U+0000..U+001F, U+007F, U+0080..U+009F.
constexpr bool is_control(std::string_view character) noexcept {
    auto const a = static_cast<unsigned char>(character[0]);
    if (character.size() == 1) return a < 0x20 || a == 0x7f;
    return a == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
}

}  // namespace latchkey
