// Reads that succeed at once, many in a row: the loop gets its turns in between, and no byte is lost while a result waits for
// one.

#include <boost/asio/post.hpp>
#include <string>

#include "gateway/stream.hpp"
#include "gateway/task.hpp"
#include "tests/catch.hpp"
#include "tests/gateway/loop.hpp"

using namespace latchkey::gateway;

namespace {

constexpr std::size_t in_a_row = 16;  // as stream.hpp has it

struct wired {
    test::loop l;
    test::pair p;
    stream s{l.poller};
    wired() { REQUIRE_FALSE(s.open(p.ours)); }
    ~wired() {
        s.close();
        l.turn();
    }
    void arrive(std::size_t bytes) const {
        std::string const text(bytes, 'x');
        REQUIRE(::send(p.theirs, text.data(), bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes));
    }
};

struct progress {
    std::size_t bytes = 0;
    bool ended = false;
    boost::system::error_code ec;
};

// Byte by byte to the end.
detached read_all(stream& s, progress& out) {
    for (;;) {
        char byte = 0;
        io_result const r = co_await s.read_more(&byte, 1);
        out.ec = r.ec;
        if (r.ec || r.n == 0) break;
        ++out.bytes;
    }
    out.ended = true;
}

}  // namespace

TEST_CASE("a peer that always has more ready does not keep the loop from others") {
    wired w;
    w.arrive(10 * in_a_row);
    w.p.close();
    progress got;
    std::size_t when_others_ran = 0;
    read_all(w.s, got);
    CHECK(got.bytes == in_a_row - 1);
    boost::asio::post(w.l.io, [&] { when_others_ran = got.bytes; });
    CHECK(w.l.until([&] { return got.ended; }));
    CHECK(when_others_ran < 2 * in_a_row);
    CHECK(got.bytes == 10 * in_a_row);
    CHECK_FALSE(got.ec);
}

TEST_CASE("bytes that wait for their turn are handed over though the stream is closed before") {
    wired w;
    w.arrive(in_a_row);
    progress got;
    read_all(w.s, got);
    REQUIRE(got.bytes == in_a_row - 1);
    w.s.close();
    CHECK(w.l.until([&] { return got.ended; }));
    CHECK(got.bytes == in_a_row);
    CHECK(got.ec);
}

TEST_CASE("a deadline that passes while bytes wait for their turn takes none of them, and still ends the next wait") {
    wired w;
    w.arrive(in_a_row);
    progress got;
    w.s.read_until(1);
    read_all(w.s, got);
    REQUIRE(got.bytes == in_a_row - 1);
    w.s.expire(2);
    w.s.nudge();
    w.l.turn();
    CHECK(got.bytes == in_a_row);
    CHECK_FALSE(got.ended);
    w.s.expire(2);
    CHECK(w.l.until([&] { return got.ended; }));
    CHECK(got.bytes == in_a_row);
    CHECK(got.ec == boost::asio::error::timed_out);
}
