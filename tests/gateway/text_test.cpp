#include "gateway/text.hpp"

#include <array>
#include <string>
#include <vector>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

TEST_CASE("a writer never writes beyond its memory, and says that something is missing") {
    std::array<char, 8> memory{'x', 'x', 'x', 'x', 'x', 'x', 'x', 'x'};
    writer w(memory.data(), 5);
    w.add("abc");
    CHECK(w.room() == 2);
    w.add("defg");
    CHECK(w.overflowed());
    CHECK(w.view() == "abc");
    w.add("de");
    CHECK(w.view() == "abcde");
    CHECK(w.overflowed());  // it stays said
    CHECK(memory[5] == 'x');
}

TEST_CASE("a number is its decimal digits") {
    CHECK(decimal(0).view() == "0");
    CHECK(decimal(502).view() == "502");
    CHECK(decimal(18446744073709551615ULL).view() == "18446744073709551615");
}

TEST_CASE("a writer takes all of some texts or none, and nothing beyond them") {
    std::string const source(300, 's');
    for (std::size_t size = 0; size < source.size(); ++size) {
        CAPTURE(size);
        auto const text = std::string_view(source).substr(0, size);
        std::vector<char> memory(size + 10, '.');
        writer w(memory.data(), size + 4);
        w.add("<", text, ">", "longer than what is left");
        CHECK(w.overflowed());
        REQUIRE(w.size() == 0);
        w.add("<", text, ">");
        REQUIRE(w.view() == "<" + std::string(text) + ">");
        REQUIRE(std::string_view(memory.data() + size + 2, 8) == "........");
    }
}

TEST_CASE("a writer of no memory takes empty text and refuses all else") {
    writer w(nullptr, 0);
    w.add(std::string_view());
    CHECK_FALSE(w.overflowed());
    w.add("a");
    CHECK(w.overflowed());
}

TEST_CASE("comparison without case folds ASCII letters and nothing else") {
    CHECK(equals_lower("ChUnKeD", "chunked"));
    CHECK_FALSE(equals_lower("chunked ", "chunked"));
    CHECK_FALSE(equals_lower("chunke\xc4", "chunke\xe4"));  // Latin-1 letters are not ASCII
    CHECK(equals_blind("X-Api-KEY", "x-aPI-key"));
    CHECK_FALSE(equals_blind("[", "{"));  // 0x20 apart, but no letters
    CHECK_FALSE(equals_blind("@", "`"));
}

TEST_CASE("lists are cut at commas, trimmed, with their empty elements") {
    std::vector<std::string> seen;
    auto const collect = [&](std::string_view e) {
        seen.emplace_back(e);
        return true;
    };
    CHECK(each_element(" a ,\tb,,c\t", collect));
    CHECK(seen == std::vector<std::string>{"a", "b", "", "c"});
    seen.clear();
    CHECK(each_element("", collect));
    CHECK(seen == std::vector<std::string>{""});
    int calls = 0;
    CHECK_FALSE(each_element("a,b,c", [&](std::string_view e) {
        ++calls;
        return e != "b";
    }));
    CHECK(calls == 2);
}

TEST_CASE("trimming takes spaces and tabs only") {
    CHECK(trimmed(" \t a b \t ") == "a b");
    CHECK(trimmed(" \t ").empty());
    CHECK(trimmed("\r\na\v") == "\r\na\v");
}

TEST_CASE("character classes hold what the RFCs list, for every byte") {
    std::string_view const tchar = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::string_view const unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::string_view const id = "-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    for (int n = 0; n < 256; ++n) {
        CAPTURE(n);
        auto const c = static_cast<char>(n);
        CHECK(is(c, char_class::token) == (n != 0 && tchar.find(c) != std::string_view::npos));
        CHECK(is(c, char_class::unreserved) == (n != 0 && unreserved.find(c) != std::string_view::npos));
        CHECK(is(c, char_class::request_id) == (n != 0 && id.find(c) != std::string_view::npos));
        CHECK(is(c, char_class::value) == (n == '\t' || (n >= 0x20 && n != 0x7f)));
        CHECK(is(c, char_class::hex) == (hex_value(c) >= 0));
        CHECK(is(c, char_class::digit) == (hex_value(c) >= 0 && hex_value(c) < 10));
    }
    CHECK(hex_value('f') == 15);
    CHECK(hex_value('A') == 10);
}
