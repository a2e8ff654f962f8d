#include "gateway/pieces.hpp"

#include <limits>
#include <string>

#include "tests/catch.hpp"

using namespace latchkey::gateway;

namespace {

std::string rest_of(pieces const& p) {
    std::string out;
    for (iovec const& v : p.rest()) out.append(static_cast<char const*>(v.iov_base), v.iov_len);
    return out;
}

}  // namespace

TEST_CASE("pieces move on by any number of bytes and leave what is to come") {
    std::string const all = "abcdefghij";
    for (std::size_t first = 0; first <= all.size(); ++first) {
        for (std::size_t second = 0; first + second <= all.size(); ++second) {
            pieces p;
            p.add("abc");
            p.add("");  // takes no place
            p.add("d");
            p.add("efghij");
            p.advance(first);
            p.advance(second);
            CHECK(p.left() == all.size() - first - second);
            CHECK(rest_of(p) == all.substr(first + second));
        }
    }
}

TEST_CASE("no pieces are nothing to write") {
    pieces p;
    p.add("");
    p.advance(0);
    CHECK(p.left() == 0);
    CHECK(p.rest().empty());
}

TEST_CASE("a chunk line is the size in hex, up to the greatest") {
    chunk_line line;
    CHECK(line.of(0) == "0\r\n");
    CHECK(line.of(255) == "ff\r\n");
    CHECK(line.of(std::numeric_limits<std::size_t>::max()) == "ffffffffffffffff\r\n");
}

TEST_CASE("an empty chunk is never written before the end, since it would be the end") {
    pieces p;
    chunk_line line;
    add_chunk(p, line, "", false, "");
    CHECK(p.left() == 0);
    add_chunk(p, line, "", true, "A: b\r\n");
    CHECK(rest_of(p) == "0\r\nA: b\r\n\r\n");
}

TEST_CASE("payload is framed with its own size, and the end behind it in one write") {
    pieces middle;
    chunk_line line;
    add_chunk(middle, line, "hello", false, "ignored");
    CHECK(rest_of(middle) == "5\r\nhello\r\n");
    pieces last;
    add_chunk(last, line, "hello", true, "");
    CHECK(rest_of(last) == "5\r\nhello\r\n0\r\n\r\n");
}
