#include "base/ids.hpp"

#include <algorithm>
#include <array>
#include <set>

#include "tests/catch.hpp"

using namespace latchkey;

TEST_CASE("ids are their prefix and 16 base62 characters, each another") {
    std::set<std::string> seen;
    for (int i = 0; i < 5000; ++i) {
        auto const id = make_id("key_");
        REQUIRE(id.size() == 20);
        REQUIRE(id.starts_with("key_"));
        for (char const c : id.substr(4)) REQUIRE(base62_alphabet.find(c) != std::string_view::npos);
        REQUIRE(seen.insert(id).second);
    }
}

TEST_CASE("random text has the asked length, also beyond one pool") {
    for (std::size_t const length : {0U, 1U, 63U, 64U, 65U, 1000U}) CHECK(random_base62(length).size() == length);
}

TEST_CASE("each of the 62 characters comes about equally often") {
    std::array<std::size_t, 62> counts{};
    std::size_t const draws = 620'000;
    for (char const c : random_base62(draws)) ++counts[base62_alphabet.find(c)];
    // Standard deviation about 99: 8 of them is a failure once in 10^13 runs.
    auto const [least, most] = std::minmax_element(counts.begin(), counts.end());
    CHECK(*least > 10'000 - 800);
    CHECK(*most < 10'000 + 800);
}

TEST_CASE("random bytes fill what they are given, and nothing is fine") {
    std::array<std::byte, 64> a{};
    std::array<std::byte, 64> b{};
    random_bytes(a);
    random_bytes(b);
    CHECK(a != b);
    random_bytes({});
}
