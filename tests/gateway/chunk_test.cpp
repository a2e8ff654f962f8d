#include "gateway/chunk.hpp"

#include <string>
#include <vector>

#include "gateway/pieces.hpp"
#include "tests/gateway/support.hpp"

using namespace latchkey::gateway;
using latchkey::gateway::test::shown;
using state = chunk_decoder::state;

namespace {

struct decoded {
    state now = state::more;
    std::size_t consumed = 0;
    std::string payload;
    std::string trailers;
    bool operator==(decoded const&) const = default;
};

// In pieces that end at each of `cuts` (ascending), then the rest.
decoded decode(std::string_view input, std::vector<std::size_t> const& cuts = {}, bool drop = false) {
    chunk_decoder d;
    if (drop) d.drop_forbidden();
    decoded out;
    std::size_t at = 0;
    for (std::size_t i = 0; i <= cuts.size() && out.now == state::more; ++i) {
        std::size_t const end = i < cuts.size() ? cuts[i] : input.size();
        std::vector<char> piece(input.begin() + static_cast<std::ptrdiff_t>(at),
                                input.begin() + static_cast<std::ptrdiff_t>(end));
        auto const step = d.decode(piece.data(), piece.size());
        out.payload.append(piece.data(), step.payload);
        out.consumed += step.consumed;
        out.now = step.now;
        at = end;
    }
    out.trailers = d.trailers();
    return out;
}

std::vector<std::size_t> every_byte(std::string_view s) {
    std::vector<std::size_t> cuts;
    for (std::size_t i = 1; i < s.size(); ++i) cuts.push_back(i);
    return cuts;
}

// The same at once, byte by byte and cut in two at every place.
decoded decode_every_way(std::string const& input, bool drop = false) {
    auto const whole = decode(input, {}, drop);
    CHECK(decode(input, every_byte(input), drop) == whole);
    for (std::size_t cut = 0; cut <= input.size(); ++cut)
        if (!(decode(input, {cut}, drop) == whole)) {
            CAPTURE(cut);
            CHECK(decode(input, {cut}, drop) == whole);
        }
    return whole;
}

}  // namespace

TEST_CASE("a chunked body comes out whole, however its bytes arrive") {
    struct row {
        std::string input;
        std::string payload;
        std::string trailers;
    };
    for (auto const& r : std::vector<row>{
             {"0\r\n\r\n", "", ""},
             {"5\r\nhello\r\n0\r\n\r\n", "hello", ""},
             {"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world", ""},
             {"A\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""},
             {"a\r\n\r\n0\r\n\r\n\r\n\r\r\n0\r\n\r\n", "\r\n0\r\n\r\n\r\n\r", ""},
             {"00000005\r\nhello\r\n00\r\n\r\n", "hello", ""},
             {"5;a=b\r\nhello\r\n0;c\r\n\r\n", "hello", ""},
             {"5 \t;\ta=\"x\\\"y;\"\r\nhello\r\n0\r\n\r\n", "hello", ""},
             {"0\r\nDigest: abc\r\nX-Sum:\t 7 \r\n\r\n", "", "Digest: abc\r\nX-Sum: 7\r\n"},
             {"1\r\nx\r\n0\r\nEmpty:\r\n\r\n", "x", "Empty: \r\n"},
         }) {
        CAPTURE(shown(r.input));
        auto const d = decode_every_way(r.input);
        CHECK(d.now == state::done);
        CHECK(d.consumed == r.input.size());
        CHECK(d.payload == r.payload);
        CHECK(d.trailers == r.trailers);
    }
}

TEST_CASE("chunk bytes that two readers could take differently are bad, however they arrive") {
    for (std::string const& input : std::vector<std::string>{
             "\r\n",
             " 5\r\nhello\r\n0\r\n\r\n",
             "\t5\r\nhello",
             "5\nhello\n0\n\n",
             "5\r\nhello\n0\r\n\r\n",
             "5\rhello\r\n",
             "5\r\nhello0\r\n\r\n",
             "5\r\nhelloo\r\n0\r\n\r\n",
             "5\r\nhello\r0\r\n\r\n",
             "0x5\r\nhello\r\n0\r\n\r\n",
             "+5\r\nhello\r\n0\r\n\r\n",
             "-1\r\n\r\n",
             "5h\r\nhello\r\n",
             "5 \r\nhello\r\n0\r\n\r\n",
             "5 5\r\nhello\r\n",
             "5_0\r\n",
             "5;a\nb\r\nhello\r\n",
             "5;a\rb\r\nhello\r\n",
             "5;\"a\r\nhello\r\n0\r\n\r\n",
             "5;\"\\\r\nhello\r\n",
             "5;a=\x01\r\nhello\r\n",
             std::string("5;a\0\r\n", 6),
             "5;\x80\r\n",
             "fffffffffffffffff\r\n",
             "1000000000000000\r\n",
             "ffffffffffffffff\r\n",
             "000000000000000005\r\nhello",
             ";a\r\n",
             "\x35\x0b\r\n",
             "0\r\n\n",
             "0\n\r\n",
             "0\r\nA: b\n\r\n",
             "0\r\nA: b\r\r\n",
             "0\r\n A: b\r\n\r\n",
             "0\r\nA: b\r\n c\r\n\r\n",
             "0\r\nA : b\r\n\r\n",
             "0\r\nA\r\n\r\n",
             "0\r\n: b\r\n\r\n",
             "0\r\nA: b\x01\r\n\r\n",
             "0\r\nContent-Length: 5\r\n\r\n",
             "0\r\nTransfer_Encoding: chunked\r\n\r\n",
             "0\r\nX-API-KEY: k\r\n\r\n",
             "0\r\nx-consumer-id: k\r\n\r\n",
         }) {
        CAPTURE(shown(input));
        CHECK(decode_every_way(input).now == state::bad);
    }
}

TEST_CASE("a forbidden trailer field is left out of a response and its neighbours stay") {
    auto const d = decode_every_way("0\r\nA: b\r\nContent-Length: 5\r\nSet-Cookie: x\r\nC: d\r\n\r\n", true);
    CHECK(d.now == state::done);
    CHECK(d.trailers == "A: b\r\nC: d\r\n");
    CHECK(decode_every_way("0\r\n Content-Length: 5\r\n\r\n", true).now == state::bad);
}

TEST_CASE("bytes behind the body are not touched") {
    std::string const body = "3\r\nabc\r\n0\r\n\r\n";
    std::string input = body + "GET / HTTP/1.1\r\n";
    chunk_decoder d;
    auto const step = d.decode(input.data(), input.size());
    CHECK(step.now == state::done);
    CHECK(step.consumed == body.size());
    CHECK(input.substr(0, step.payload) == "abc");
    CHECK(input.substr(step.consumed) == "GET / HTTP/1.1\r\n");
    CHECK(d.done());
}

TEST_CASE("a body whose very last byte is wrong is not done") {
    std::string input = "0\r\n\rX";
    chunk_decoder d;
    CHECK(d.decode(input.data(), input.size()).now == state::bad);
    CHECK_FALSE(d.done());
}

TEST_CASE("a body that is not whole asks for more") {
    std::string const body = "5;x=\"y\"\r\nhello\r\n0\r\nA: b\r\n\r\n";
    for (std::size_t n = 0; n < body.size(); ++n) {
        CAPTURE(n);
        CHECK(decode(body.substr(0, n)).now == state::more);
    }
}

TEST_CASE("extensions, trailers and zeros have a bound, over all chunks together") {
    CHECK(decode("1;" + std::string(4000, 'x') + "\r\na\r\n0\r\n\r\n").now == state::done);
    CHECK(decode("1;" + std::string(5000, 'x')).now == state::bad);
    std::string many;
    for (int i = 0; i < 5000; ++i) many += "1;\r\na\r\n";
    CHECK(decode(many).now == state::bad);
    CHECK(decode("0\r\nA: " + std::string(8000, 'x') + "\r\n\r\n").now == state::done);
    CHECK(decode("0\r\nA: " + std::string(9000, 'x')).now == state::bad);
    std::string fields = "0\r\n";
    for (int i = 0; i < 64; ++i) fields += "A: b\r\n";
    CHECK(decode(fields + "\r\n").now == state::done);
    CHECK(decode(fields + "A: b\r\n\r\n").now == state::bad);
    CHECK(decode(std::string(100, '0')).now == state::bad);
}

TEST_CASE("what add_chunk frames, the decoder reads back") {
    pieces p;
    chunk_line line;
    std::string const payload(300, 'y');
    add_chunk(p, line, payload, true, "A: b\r\n");
    std::string wire;
    for (iovec const& v : p.rest()) wire.append(static_cast<char const*>(v.iov_base), v.iov_len);
    auto const d = decode_every_way(wire);
    CHECK(d.now == state::done);
    CHECK(d.consumed == wire.size());
    CHECK(d.payload == payload);
    CHECK(d.trailers == "A: b\r\n");
}
