#include "keystore/key_format.hpp"

#include <fmt/format.h>

#include <set>

#include "base/ids.hpp"
#include "tests/catch.hpp"

using namespace latchkey;
using namespace latchkey::keystore;

namespace {

std::string hex(digest const& d) {
    std::string out;
    for (unsigned char const b : d) out += fmt::format("{:02x}", b);
    return out;
}

std::string checked(std::string_view body) {
    auto const check = check_of(body);
    return {check.data(), check.size()};
}

std::string const body = "qkJaB6MffYVzZXWqmcoF49yrUxP3wf";

}  // namespace

TEST_CASE("the check characters of the known answer") { CHECK(checked(body) == "0LsakP"); }

TEST_CASE("the check is the CRC-32 of IEEE 802.3 in base62, padded with zeros") {
    // The CRC's own check value: "123456789" gives cbf43926 (3421780262), which is 3JZ9NU to base 62.
    std::uint64_t value = 0;
    for (char const c : checked("123456789")) value = value * 62 + base62_alphabet.find(c);
    CHECK(value == 0xcbf43926U);
    CHECK(checked("") == "000000");
}

TEST_CASE("digests are SHA-256 of the whole key") {
    CHECK(hex(digest_of("abc")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(hex(digest_of("")) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hex(digest_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")) ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST_CASE("made keys are ours under their prefix, foreign under another, and never the same") {
    std::set<std::string> seen;
    for (int i = 0; i < 2000; ++i) {
        auto const key = make_key("lk");
        REQUIRE(key.size() == 2 + 1 + key_body_chars + key_check_chars);
        REQUIRE(key.starts_with("lk_"));
        REQUIRE(shape_of(key, "lk") == key_shape::ours);
        REQUIRE(shape_of(key, "other") == key_shape::foreign);
        REQUIRE(seen.insert(key).second);
    }
}

TEST_CASE("every change of one character of a key of ours is found") {
    std::string const key = "lk_" + body + "0LsakP";
    REQUIRE(shape_of(key, "lk") == key_shape::ours);
    for (std::size_t i = 3; i < key.size(); ++i) {
        for (char const c : base62_alphabet) {
            if (key[i] == c) continue;
            auto other = key;
            other[i] = c;
            REQUIRE(shape_of(other, "lk") == key_shape::bad_checksum);
        }
    }
}

TEST_CASE("what has our prefix but not our form is foreign") {
    CHECK(shape_of("lk_" + body + "0LsakP0", "lk") == key_shape::foreign);
    CHECK(shape_of("lk_" + body + "0Lsak", "lk") == key_shape::foreign);
    CHECK(shape_of("lk_" + body.substr(1) + "-0LsakP", "lk") == key_shape::foreign);
    CHECK(shape_of("lk-" + body + "0LsakP", "lk") == key_shape::foreign);
    CHECK(shape_of("lkx_" + body + "0LsakP", "lk") == key_shape::foreign);
}

TEST_CASE("keys are 16 to 255 characters") {
    CHECK(shape_of("", "lk") == key_shape::malformed);
    CHECK(shape_of(std::string(15, 'a'), "lk") == key_shape::malformed);
    CHECK(shape_of(std::string(16, 'a'), "lk") == key_shape::foreign);
    CHECK(shape_of(std::string(255, 'a'), "lk") == key_shape::foreign);
    CHECK(shape_of(std::string(256, 'a'), "lk") == key_shape::malformed);
}

TEST_CASE("keys are visible ASCII, which space, controls and bytes above 126 are not") {
    for (int c = 0; c < 256; ++c) {
        std::string key(20, 'a');
        key[7] = static_cast<char>(c);
        bool const visible = c >= 0x21 && c <= 0x7e;
        CAPTURE(c);
        CHECK(shape_of(key, "lk") == (visible ? key_shape::foreign : key_shape::malformed));
        std::string ours = "lk_" + body + "0LsakP";
        ours[9] = static_cast<char>(c);
        bool const base62 = base62_alphabet.find(static_cast<char>(c)) != std::string_view::npos;
        auto const broken = base62 ? key_shape::bad_checksum : key_shape::foreign;
        if (ours[9] != body[6]) CHECK(shape_of(ours, "lk") == (visible ? broken : key_shape::malformed));
    }
}
