#include <fmt/format.h>

#include "keystore/store.hpp"
#include "tests/base/scratch.hpp"

using namespace latchkey;
using namespace latchkey::keystore;

namespace {

std::string refusal(std::string_view text) {
    auto const rows = parse_import_csv(text);
    if (rows) return "accepted";
    CHECK(rows.error().code == errc::invalid_argument);
    return rows.error().message;
}

}  // namespace

TEST_CASE("rows come with their fields and lines") {
    auto const rows = parse_import_csv("name,key\nalice,aaaa\nbob,bbbb\n");
    REQUIRE(rows);
    REQUIRE(rows->size() == 2);
    CHECK((*rows)[0].name == "alice");
    CHECK((*rows)[0].key == "aaaa");
    CHECK((*rows)[0].line == 2);
    CHECK((*rows)[1].name == "bob");
    CHECK((*rows)[1].line == 3);
}

TEST_CASE("BOM, CRLF, empty lines and a missing last line end are fine") {
    auto const rows = parse_import_csv("\xEF\xBB\xBFname,key\r\nalice,aaaa\r\n\r\nbob,bbbb");
    REQUIRE(rows);
    REQUIRE(rows->size() == 2);
    CHECK((*rows)[0].key == "aaaa");
    CHECK((*rows)[1].key == "bbbb");
    CHECK((*rows)[1].line == 4);
}

TEST_CASE("the header may be in any case and have spaces around its words") {
    CHECK(parse_import_csv(" Name , KEY\n")->empty());
    CHECK(parse_import_csv("\"name\",\"key\"")->empty());
}

TEST_CASE("another header is refused on line 1") {
    for (std::string_view const text : {"", "\n", "key,name\n", "name;key\n", "name,key,x\n", "name\n", "alice,aaaa\n",
                                        "nam e,key\n", "\xFF\xFEn\0a\0m\0e", "name,keys\n", ",\n"}) {
        CAPTURE(text);
        CHECK(refusal(text) == "line 1: the first line must be the header: name,key");
    }
}

TEST_CASE("quoted fields hold commas, quotes and line ends, and lines are still counted") {
    auto const rows = parse_import_csv("name,key\n\"a, \"\"b\"\"\nc\",\"k1\"\n\"\",k2\nz,\"k,3\"");
    REQUIRE(rows);
    REQUIRE(rows->size() == 3);
    CHECK((*rows)[0].name == "a, \"b\"\nc");
    CHECK((*rows)[0].key == "k1");
    CHECK((*rows)[0].line == 2);
    CHECK((*rows)[1].name.empty());
    CHECK((*rows)[1].line == 4);
    CHECK((*rows)[2].key == "k,3");
}

TEST_CASE("what could be read in two ways is refused with its line and without its text") {
    CHECK(refusal("name,key\na,k\nSECRET\n") == "line 3: 1 fields where 2 are needed (name,key)");
    CHECK(refusal("name,key\na,SECRET,x\n") == "line 2: 3 fields where 2 are needed (name,key)");
    CHECK(refusal("name,key\na,SEC\"RET\n") == "line 2: a quote inside a field that does not begin with one");
    CHECK(refusal("name,key\na,\"SECRET\"x\n") == "line 2: text stands behind a closing quote");
    CHECK(refusal("name,key\na,SEC\rRET\n") == "line 2: a carriage return without a line feed");
    CHECK(refusal("name,key\na,k\r") == "line 2: a carriage return without a line feed");
    CHECK(refusal("name,key\na,k\nb,\"SECRET\nmore\n") == "line 3: a quote is not closed");
}

TEST_CASE("spaces belong to their field") {
    auto const rows = parse_import_csv("name,key\n alice , k \n");
    REQUIRE(rows);
    CHECK((*rows)[0].name == " alice ");
    CHECK((*rows)[0].key == " k ");
}

TEST_CASE("a row longer than 4 KiB is refused, also behind a quote that is never closed") {
    auto const fits = fmt::format("name,key\na,{}\n", std::string(4096 - 2, 'k'));
    REQUIRE(parse_import_csv(fits));
    auto const above = fmt::format("name,key\na,{}\n", std::string(5000, 'k'));
    CHECK(refusal(above) == "line 2: the row is longer than 4096 bytes (is a quote not closed?)");
    auto open = std::string("name,key\na,\"k\n");
    for (int i = 0; i < 2000; ++i) open += "b,SECRET\n";
    CHECK(refusal(open) == "line 2: the row is longer than 4096 bytes (is a quote not closed?)");
}

TEST_CASE("bytes of any value never break the reader") {
    std::string text = "name,key\n";
    unsigned state = 12345;
    std::size_t accepted = 0;
    for (int round = 0; round < 3000; ++round) {
        std::string noise;
        for (int i = 0; i < 24; ++i) {
            state = state * 1664525U + 1013904223U;
            noise.push_back("\",\r\n a\0\xff"[(state >> 24U) % 8]);
        }
        if (auto const rows = parse_import_csv(text + noise)) {
            ++accepted;
            for (auto const& r : *rows) REQUIRE(r.line >= 2);
        }
    }
    CHECK(accepted < 3000);
}
