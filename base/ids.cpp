#include "base/ids.hpp"

#include <openssl/rand.h>

#include <array>
#include <stdexcept>

namespace latchkey {

void random_bytes(std::span<std::byte> out) {
    if (out.empty()) return;
    if (RAND_bytes(reinterpret_cast<unsigned char*>(out.data()), static_cast<int>(out.size())) != 1)
        throw std::runtime_error("the operating system's random generator failed: no key can be made");
}

std::string random_base62(std::size_t length) {
    std::string text;
    text.reserve(length);
    std::array<std::byte, 64> pool{};
    while (text.size() < length) {
        random_bytes(pool);
        for (std::byte const b : pool) {
            auto const six = static_cast<unsigned>(b) & 63U;
            if (six < 62 && text.size() < length) text.push_back(base62_alphabet[six]);
        }
    }
    return text;
}

std::string make_id(std::string_view prefix) {
    std::string id(prefix);
    return id += random_base62(id_random_chars);
}

}  // namespace latchkey
