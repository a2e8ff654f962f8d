#pragma once
// Random identifiers. Any thread.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace latchkey {

inline constexpr std::string_view base62_alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

// Fills `out` from the operating system's generator (OpenSSL RAND_bytes). Throws std::runtime_error if it fails: there is
// no safe way to go on.
void random_bytes(std::span<std::byte> out);

// `length` characters of base62_alphabet, uniform (rejection sampling), about 5.95 bits each.
std::string random_base62(std::size_t length);

// "key_" or "app_" and so many random base62 characters (95 bits): unique without a look-up.
inline constexpr std::size_t id_random_chars = 16;
std::string make_id(std::string_view prefix);

}  // namespace latchkey
