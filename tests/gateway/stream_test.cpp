#include "gateway/stream.hpp"

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gateway/task.hpp"
#include "tests/gateway/loop.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

struct seen {
    bool done = false;
    error_code ec;
    std::size_t n = 0;
    std::string text;
};

detached read_next(stream& s, buffer_pool& pool, lease& into, seen& out, bool large = false) {
    io_result const r = co_await s.read_next(pool, into, large);
    out.ec = r.ec;
    out.n = r.n;
    if (!r.ec) out.text.assign(into.data(), r.n);
    out.done = true;
}
detached read_more(stream& s, std::vector<char>& into, seen& out) {
    io_result const r = co_await s.read_more(into.data(), into.size());
    out.ec = r.ec;
    out.n = r.n;
    if (!r.ec) out.text.assign(into.data(), r.n);
    out.done = true;
}
detached wait_writable(stream& s, seen& out) {
    out.ec = co_await s.writable();
    out.done = true;
}

void say(int fd, std::string_view text) {
    REQUIRE(::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
}

struct fixture {
    loop l;
    pair p;
    buffer_pool pool{4096, 65536, 2};
    stream s{l.poller};
    lease into;
    seen got;
    fixture() { REQUIRE_FALSE(s.open(p.ours)); }
    ~fixture() {
        s.close();
        l.until([&] { return !s.read_pending(); });
        l.turn();
    }
    // The next read_next() gives this, without an error; nothing is the end.
    void reads(std::string_view text) {
        got = {};
        into.reset();
        read_next(s, pool, into, got);
        REQUIRE(l.until([&] { return got.done; }));
        CHECK_FALSE(got.ec);
        CHECK(got.text == text);
    }
};

std::size_t fill(stream& s) {
    std::string const block(64 * 1024, 'w');
    std::size_t written = 0;
    for (;;) {
        auto const r = s.write_now(block.data(), block.size());
        written += r.n;
        if (r.ec) {
            CHECK(r.ec == asio::error::would_block);
            return written;
        }
        REQUIRE(written < (64U << 20U));
    }
}

// Waits in earnest: an edge from before the socket was full may end the first waits at once.
void wait_for_room(fixture& f) {
    for (int i = 0; i < 10; ++i) {
        f.got = {};
        wait_writable(f.s, f.got);
        f.l.turn();
        if (!f.got.done) return;
    }
    FAIL("a full socket is always writable");
}

}  // namespace

TEST_CASE("an idle connection holds no buffer until bytes come") {
    fixture f;
    read_next(f.s, f.pool, f.into, f.got);
    f.l.turn();
    CHECK_FALSE(f.got.done);
    CHECK(f.pool.lent_bytes() == 0);
    say(f.p.theirs, "hello");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "hello");
    CHECK(f.pool.lent_bytes() == buffer_pool::cost(f.pool.small_bytes()));
}

TEST_CASE("bytes that were there before a read are read") {
    fixture f;
    say(f.p.theirs, "early");
    read_next(f.s, f.pool, f.into, f.got);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "early");
}

TEST_CASE("a long message that is expected is read at once into a large buffer, or a small one where none is left") {
    fixture f;
    std::string const message(10'000, 'm');
    say(f.p.theirs, message);
    read_next(f.s, f.pool, f.into, f.got, true);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == message);
    CHECK(f.into.size() == f.pool.large_bytes());

    f.got = {};
    f.into.reset();
    lease const one = f.pool.large();
    read_next(f.s, f.pool, f.into, f.got, true);
    f.l.turn();
    CHECK_FALSE(f.got.done);
    say(f.p.theirs, message);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == message.substr(0, f.pool.small_bytes()));  // half of them are lent: none is to spare
}

TEST_CASE("whether a large buffer is to spare is asked when the bytes have come") {
    fixture f;
    std::string const message(10'000, 'm');
    read_next(f.s, f.pool, f.into, f.got, true);
    f.l.turn();
    lease const one = f.pool.large();
    say(f.p.theirs, message);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.into.size() == f.pool.small_bytes());
}

TEST_CASE("read_more takes what is there at once, and waits for the rest") {
    fixture f;
    std::vector<char> memory(3);
    say(f.p.theirs, "abcd");
    read_more(f.s, memory, f.got);
    CHECK(f.got.done);  // without the loop
    CHECK(f.got.text == "abc");
    f.got = {};
    read_more(f.s, memory, f.got);
    CHECK(f.got.text == "d");
    f.got = {};
    read_more(f.s, memory, f.got);
    CHECK_FALSE(f.got.done);
    say(f.p.theirs, "e");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "e");
}

TEST_CASE("an end that comes with the last bytes is not missed by read_more") {
    fixture f;
    std::vector<char> memory(100);
    read_more(f.s, memory, f.got);
    say(f.p.theirs, "last");
    f.p.close();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "last");
    f.got = {};
    read_more(f.s, memory, f.got);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK_FALSE(f.got.ec);
    CHECK(f.got.n == 0);
}

TEST_CASE("an end that comes with the last bytes is not missed by the next read_next") {
    fixture f;
    read_next(f.s, f.pool, f.into, f.got);
    say(f.p.theirs, "last");
    f.p.close();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "last");
    f.reads("");
}

TEST_CASE("an end that comes with bytes while nobody reads is not missed by the second read_next") {
    fixture f;
    read_next(f.s, f.pool, f.into, f.got);
    say(f.p.theirs, "first");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    say(f.p.theirs, "last");
    f.p.close();
    f.l.turn();  // the one event of both
    pair others;
    stream other(f.l.poller);
    REQUIRE_FALSE(other.open(others.ours));
    bool told = false;
    other.watch([](void* to) { *static_cast<bool*>(to) = true; }, &told);
    say(others.theirs, "x");  // so the event that was served last is another's, and told of no end
    REQUIRE(f.l.until([&] { return told; }));
    f.reads("last");
    f.reads("");
}

TEST_CASE("an end that was there before the first wait to write is not missed by the second read_next") {
    fixture f;
    say(f.p.theirs, "all");
    f.p.close();
    wait_writable(f.s, f.got);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    f.reads("all");
    f.reads("");
}

TEST_CASE("a read that takes over a watch which has just found bytes reads them") {
    fixture f;
    bool told = false;
    f.s.watch([](void* to) { *static_cast<bool*>(to) = true; }, &told);
    f.l.turn();
    std::size_t const written = fill(f.s);
    wait_for_room(f);
    f.s.cancel_write();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    f.got = {};
    [](fixture& on) -> detached {
        (void)co_await on.s.writable();
        read_next(on.s, on.pool, on.into, on.got);
    }(f);
    say(f.p.theirs, "early");
    std::vector<char> sink(written);
    while (::recv(f.p.theirs, sink.data(), sink.size(), MSG_DONTWAIT) > 0) {
    }
    f.l.turn();  // one event of both, and the wait to write is told first
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK_FALSE(f.got.ec);
    CHECK(f.got.text == "early");
    CHECK_FALSE(told);
}

TEST_CASE("an end that was there with the first bytes of a connection is not missed by the second read_next") {
    fixture f;
    say(f.p.theirs, "all");
    f.p.close();
    f.reads("all");
    f.reads("");
}

TEST_CASE("events still tell of an end after one was asked for room to write") {
    fixture f;
    std::optional<error_code> writable;
    [](stream& s, std::optional<error_code>& out) -> detached { out = co_await s.writable(); }(f.s, writable);
    REQUIRE(f.l.until([&] { return writable.has_value(); }));
    for (std::string_view const text : {"one", "two"}) {  // (the first read of all is told of the rest in any case)
        f.got = {};
        f.into.reset();
        read_next(f.s, f.pool, f.into, f.got);
        say(f.p.theirs, text);
        if (text == "two") f.p.close();
        REQUIRE(f.l.until([&] { return f.got.done; }));
        CHECK(f.got.text == text);
    }
    f.reads("");
}

TEST_CASE("a nudge where nothing has come changes nothing") {
    fixture f;
    f.s.nudge();  // no wait at all
    read_next(f.s, f.pool, f.into, f.got);
    f.s.nudge();
    f.l.turn();
    CHECK_FALSE(f.got.done);
    say(f.p.theirs, "x");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "x");
}

TEST_CASE("a read that waits ends with timed_out at its deadline, not before, and the socket goes on") {
    fixture f;
    f.s.read_until(1000);
    read_next(f.s, f.pool, f.into, f.got);
    CHECK_FALSE(f.s.expire(999));
    f.l.turn();
    CHECK_FALSE(f.got.done);
    CHECK(f.s.expire(1000));
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::timed_out);
    CHECK(f.pool.lent_bytes() == 0);

    f.got = {};
    f.s.read_until(0);  // no deadline
    read_next(f.s, f.pool, f.into, f.got);
    CHECK_FALSE(f.s.expire(std::numeric_limits<std::int64_t>::max()));
    say(f.p.theirs, "on");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "on");
}

TEST_CASE("what has come when a message's deadline is over is taken, though the loop has not seen it") {
    fixture f;
    f.s.read_until(1000);
    read_next(f.s, f.pool, f.into, f.got);
    f.l.turn();
    say(f.p.theirs, "in time");
    CHECK(f.s.expire(1000));
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK_FALSE(f.got.ec);
    CHECK(f.got.text == "in time");

    f.got = {};
    f.into.reset();
    f.s.read_until(0);
    read_next(f.s, f.pool, f.into, f.got);
    f.l.turn();
    say(f.p.theirs, "not asked for any more");
    f.s.cancel_read();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::operation_aborted);
}

TEST_CASE("closing and cancelling end a wait, later, from the loop") {
    fixture f;
    read_next(f.s, f.pool, f.into, f.got);
    f.s.cancel_read();
    CHECK_FALSE(f.got.done);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::operation_aborted);
    CHECK(f.s.is_open());

    f.got = {};
    read_next(f.s, f.pool, f.into, f.got);
    f.s.close();
    f.s.close();
    CHECK_FALSE(f.got.done);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::operation_aborted);
    CHECK_FALSE(f.s.is_open());
    CHECK(f.s.read_now(nullptr, 0).ec == asio::error::bad_descriptor);
    CHECK(f.s.write_now("x", 1).ec == asio::error::bad_descriptor);
}

TEST_CASE("a write stops where the peer takes nothing, and goes on when it does") {
    fixture f;
    std::size_t const written = fill(f.s);
    wait_for_room(f);
    std::vector<char> sink(1U << 20U);
    std::size_t read = 0;
    for (ssize_t n = 1; n > 0; read += n > 0 ? static_cast<std::size_t>(n) : 0)
        n = ::recv(f.p.theirs, sink.data(), sink.size(), 0);
    CHECK(read == written);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK_FALSE(f.got.ec);
    CHECK(f.s.write_now("x", 1).n == 1);
}

TEST_CASE("a write that waits ends at its deadline, or when it is cancelled") {
    fixture f;
    fill(f.s);
    wait_for_room(f);
    f.s.write_until(5);
    CHECK_FALSE(f.s.expire(4));
    CHECK(f.s.expire(5));
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::timed_out);
    f.s.write_until(0);
    wait_for_room(f);
    f.s.cancel_write();
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::operation_aborted);
}

TEST_CASE("writing to a peer that is gone is an error, not a signal") {
    fixture f;
    f.p.close();
    iovec const piece{const_cast<char*>("x"), 1};
    CHECK(f.s.write_now(std::span(&piece, 1)).ec);
    CHECK(f.s.write_now("x", 1).ec);
}

TEST_CASE("a watch is told of bytes and of the end, and takes none of them") {
    fixture f;
    int told = 0;
    auto const count = [](void* n) { ++*static_cast<int*>(n); };
    f.s.watch(count, &told);
    f.l.turn();
    CHECK(told == 0);
    say(f.p.theirs, "early answer");
    REQUIRE(f.l.until([&] { return told == 1; }));
    read_next(f.s, f.pool, f.into, f.got);
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "early answer");
    f.s.watch(count, &told);
    f.p.close();
    REQUIRE(f.l.until([&] { return told == 2; }));
}

TEST_CASE("an error that a watch or a nudge has seen is the next read's, not a plain end") {
    fixture f;
    int told = 0;
    bool const by_watch = GENERATE(true, false);
    CAPTURE(by_watch);
    REQUIRE_FALSE(f.s.write_now("x", 1).ec);  // unread, it makes the peer's end a reset
    if (by_watch) {
        f.s.watch([](void* n) { ++*static_cast<int*>(n); }, &told);
        f.p.close();
        REQUIRE(f.l.until([&] { return told == 1; }));
        read_next(f.s, f.pool, f.into, f.got);
    } else {
        read_next(f.s, f.pool, f.into, f.got);
        f.l.turn();
        f.p.close();
        f.s.nudge();
    }
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.ec == asio::error::connection_reset);
    char c = 0;
    CHECK(f.s.read_now(&c, 1).ec == asio::error::connection_reset);
}

TEST_CASE("a read takes a watch's wait over") {
    fixture f;
    int told = 0;
    f.s.watch([](void* n) { ++*static_cast<int*>(n); }, &told);
    f.l.turn();
    read_next(f.s, f.pool, f.into, f.got);
    say(f.p.theirs, "answer");
    REQUIRE(f.l.until([&] { return f.got.done; }));
    CHECK(f.got.text == "answer");
    CHECK(told == 0);
}

TEST_CASE("peek tells a socket's state and takes nothing") {
    pair p;
    CHECK(peek(p.ours).ec == asio::error::would_block);
    say(p.theirs, "x");
    CHECK(peek(p.ours).n == 1);
    CHECK(peek(p.ours).n == 1);
    char c = 0;
    REQUIRE(::recv(p.ours, &c, 1, 0) == 1);
    p.close();
    auto const [ec, n] = peek(p.ours);
    CHECK_FALSE(ec);
    CHECK(n == 0);
    ::close(p.ours);
    CHECK(peek(-1).ec);
}

TEST_CASE("a connect that has not ended is told from one that has") {
    loop l;
    deaf_listener server;
    stream second(l.poller);
    REQUIRE_FALSE(second.open(server.connect()));
    CHECK(second.connect_result() == asio::error::would_block);
    stream first(l.poller);
    REQUIRE_FALSE(first.open(server.taken()));
    CHECK_FALSE(first.connect_result());
    server.close();
    CHECK(first.connect_result() == asio::error::connection_reset);
    CHECK_FALSE(first.connect_result());  // its end is none that goes on
    first.close();
    CHECK(first.connect_result() == asio::error::bad_descriptor);
    second.close();
    l.turn();
}
