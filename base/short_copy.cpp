#include "base/short_copy.hpp"

namespace latchkey {

char* put(char* to, std::string_view text) noexcept {
    auto const n = text.size();
    auto const* const from = text.data();
    if (n > 128) {
        std::memcpy(to, from, n);
    } else if (n >= 16) {  // the last sixteen may overlap those before
        for (std::size_t i = 0; i + 16 < n; i += 16) std::memcpy(to + i, from + i, 16);
        std::memcpy(to + n - 16, from + n - 16, 16);
    } else if (n >= 8) {
        std::memcpy(to, from, 8);
        std::memcpy(to + n - 8, from + n - 8, 8);
    } else if (n >= 4) {
        std::memcpy(to, from, 4);
        std::memcpy(to + n - 4, from + n - 4, 4);
    } else {
        for (std::size_t i = 0; i < n; ++i) to[i] = from[i];
    }
    return to + n;
}

}  // namespace latchkey
