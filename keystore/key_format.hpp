#pragma once
// What a key looks like: `<prefix>_<30 base62><6 base62>`, the last six the CRC-32 (IEEE) of the thirty in base62, left-padded
// with '0'. Keys made elsewhere (any visible ASCII, 16 to 255 characters) are accepted by import. Pure; any thread.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace latchkey::keystore {

inline constexpr std::size_t key_chars_min = 16;
inline constexpr std::size_t key_chars_max = 255;
inline constexpr std::size_t key_body_chars = 30;
inline constexpr std::size_t key_check_chars = 6;

using digest = std::array<unsigned char, 32>;  // SHA-256 of the whole key

// A new key from the operating system's generator (30 base62: 178 bits).
std::string make_key(std::string_view prefix);

// The six check characters of a body. Known answer: "qkJaB6MffYVzZXWqmcoF49yrUxP3wf" -> "0LsakP".
std::array<char, key_check_chars> check_of(std::string_view body) noexcept;

enum class key_shape : std::uint8_t {
    ours,          // `<prefix>_` + 36 base62, and the check holds
    bad_checksum,  // `<prefix>_` + 36 base62, and it does not
    foreign,       // another printable text of 16 to 255 characters
    malformed,     // none of these
};

// No allocation; a few ns for `malformed` by length, about 100 ns else.
key_shape shape_of(std::string_view key, std::string_view prefix) noexcept;

// SHA-256 by the processor's instructions where it has them, no allocation, no look-up of an algorithm. About 100 ns a key.
digest digest_of(std::string_view key) noexcept;

}  // namespace latchkey::keystore
