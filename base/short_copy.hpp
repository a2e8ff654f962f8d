#pragma once
// memcpy for text that is mostly short, for which a call of libc's costs more than its bytes. Pure.

#include <cstddef>
#include <cstring>
#include <string_view>

namespace latchkey {

// Returns the copy's end. The two do not overlap.
char* put(char* to, std::string_view text) noexcept;
// Of a literal: any array of characters is taken for one.
template <std::size_t Size>
char* put(char* to, char const (&literal)[Size]) noexcept {
    std::memcpy(to, literal, Size - 1);
    return to + Size - 1;
}

}  // namespace latchkey
