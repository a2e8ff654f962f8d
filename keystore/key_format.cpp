// OpenSSL's one-call SHA256() looks the algorithm up each time since 3.0 (locks, allocations); the deprecated three calls run the
// same assembly (SHA-NI where the processor has it) on a context on the stack.
#define OPENSSL_SUPPRESS_DEPRECATED

#include "keystore/key_format.hpp"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "base/ids.hpp"

namespace latchkey::keystore {
namespace {

// CRC-32 of IEEE 802.3: reflected, polynomial 0x04C11DB7, start and final XOR all ones.
constexpr std::array<std::uint32_t, 256> crc_table = [] {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t i = 0; i < table.size(); ++i) {
        std::uint32_t c = i;
        for (int bit = 0; bit < 8; ++bit) c = (c & 1U) != 0 ? 0xEDB88320U ^ (c >> 1U) : c >> 1U;
        table[i] = c;
    }
    return table;
}();

constexpr std::array<bool, 256> in_base62 = [] {
    std::array<bool, 256> table{};
    for (char const c : base62_alphabet) table[static_cast<unsigned char>(c)] = true;
    return table;
}();

constexpr bool all_base62(std::string_view text) noexcept {
    return std::all_of(text.begin(), text.end(), [](char c) { return in_base62[static_cast<unsigned char>(c)]; });
}

constexpr bool all_visible(std::string_view text) noexcept {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x21 && c <= 0x7e; });
}

// The 36 characters behind `<prefix>_`, or nothing where the key is not of that form.
std::string_view ours(std::string_view key, std::string_view prefix) noexcept {
    if (key.size() != prefix.size() + 1 + key_body_chars + key_check_chars) return {};
    if (!key.starts_with(prefix) || key[prefix.size()] != '_') return {};
    key.remove_prefix(prefix.size() + 1);
    return all_base62(key) ? key : std::string_view{};
}

}  // namespace

std::string make_key(std::string_view prefix) {
    auto const body = random_base62(key_body_chars);
    auto const check = check_of(body);
    std::string key;
    key.reserve(prefix.size() + 1 + key_body_chars + key_check_chars);
    key.append(prefix).append(1, '_').append(body).append(check.data(), check.size());
    return key;
}

std::array<char, key_check_chars> check_of(std::string_view body) noexcept {
    std::uint32_t crc = 0xFFFFFFFFU;
    for (char const c : body) crc = crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xFFU] ^ (crc >> 8U);
    crc = ~crc;
    std::array<char, key_check_chars> check{};
    for (std::size_t i = key_check_chars; i-- > 0;) {  // 62^6 is above 2^32: nothing is cut off
        check[i] = base62_alphabet[crc % 62];
        crc /= 62;
    }
    return check;
}

key_shape shape_of(std::string_view key, std::string_view prefix) noexcept {
    if (key.size() < key_chars_min || key.size() > key_chars_max) return key_shape::malformed;
    if (auto const rest = ours(key, prefix); !rest.empty()) {
        auto const check = check_of(rest.substr(0, key_body_chars));
        bool const holds = std::string_view(check.data(), check.size()) == rest.substr(key_body_chars);
        return holds ? key_shape::ours : key_shape::bad_checksum;
    }
    return all_visible(key) ? key_shape::foreign : key_shape::malformed;
}

digest digest_of(std::string_view key) noexcept {
    SHA256_CTX context;
    digest out;
    SHA256_Init(&context);  // none of the three can fail
    SHA256_Update(&context, key.data(), key.size());
    SHA256_Final(out.data(), &context);
    OPENSSL_cleanse(&context, sizeof context);  // its block buffer holds the key's text
    return out;
}

}  // namespace latchkey::keystore
