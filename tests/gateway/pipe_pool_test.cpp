#include "gateway/pipe_pool.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "gateway/stream.hpp"
#include "gateway/task.hpp"
#include "tests/gateway/loop.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

void say(int fd, std::string_view text) {
    REQUIRE(::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
}

std::string hear(int fd) {
    std::string all(1 << 20, '\0');
    ssize_t const n = ::recv(fd, all.data(), all.size(), MSG_DONTWAIT);
    all.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    return all;
}

// A pair of which no stream takes over `ours`.
struct both_ours : pair {
    ~both_ours() { ::close(ours); }
};

detached read_more(stream& s, pipe_lease& into, io_result& got, bool& done) {
    got = co_await s.read_more(into, pipe_lease::size);
    done = true;
}

}  // namespace

TEST_CASE("a pipe moves what one socket has to another", "[pipe]") {
    pipe_pool pool(2);
    both_ours from;
    both_ours to;
    auto p = pool.take();
    REQUIRE(p);
    CHECK(pipe_lease::size == 512U * 1024);
    CHECK(p.fill_from(from.ours, pipe_lease::size).ec == asio::error::would_block);
    say(from.theirs, "one two");
    auto const filled = p.fill_from(from.ours, 3);
    CHECK_FALSE(filled.ec);
    CHECK(filled.n == 3);
    CHECK(p.left() == 3);
    auto const drained = p.drain_to(to.ours);
    CHECK_FALSE(drained.ec);
    CHECK(drained.n == 3);
    CHECK(p.left() == 0);
    CHECK(hear(to.theirs) == "one");
    CHECK(p.fill_from(from.ours, 100).n == 4);
    CHECK(p.drain_to(to.ours).n == 4);
    CHECK(hear(to.theirs) == " two");
    from.close();
    auto const end = p.fill_from(from.ours, 100);
    CHECK_FALSE(end.ec);
    CHECK(end.n == 0);
}

TEST_CASE("a socket that is full or gone says so, and the pipe keeps what did not go", "[pipe]") {
    std::signal(SIGPIPE, SIG_IGN);
    pipe_pool pool(1);
    both_ours from;
    both_ours to;
    {
        auto p = pool.take();
        REQUIRE(p);
        std::string const block(65536, 'b');
        std::size_t moved = 0;
        io_result r;
        while (!r.ec) {
            if (p.left() == 0) {
                say(from.theirs, block);
                REQUIRE(p.fill_from(from.ours, block.size()).n > 0);
            }
            r = p.drain_to(to.ours);
            moved += r.n;
            REQUIRE(moved < (64U << 20U));
        }
        CHECK(r.ec == asio::error::would_block);
        CHECK(p.left() > 0);
        to.close();
        auto const gone = p.drain_to(to.ours);
        CHECK(gone.ec);
        CHECK(gone.ec != asio::error::would_block);
        CHECK(p.left() > 0);
    }
    CHECK(pool.open() == 0);  // it was not empty
}

TEST_CASE("no more pipes than the pool may have, and what comes back is lent again", "[pipe]") {
    pipe_pool pool(2);
    {
        auto const a = pool.take();
        auto const b = pool.take();
        CHECK(a);
        CHECK(b);
        CHECK_FALSE(pool.take());
        CHECK(pool.open() == 2);
    }
    CHECK(pool.open() == 2);
    CHECK(pool.take());
    pool.trim();
    CHECK(pool.open() == 2);  // one was wanted since it was made, the other came back
    pool.trim();
    CHECK(pool.open() == 0);
    CHECK_FALSE(pipe_pool(0).take());
}

TEST_CASE("without descriptors there is no pipe, nobody asks again before the next sweep, and then there is one", "[pipe]") {
    pipe_pool pool(2);
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    rlimit none = before;
    none.rlim_cur = 0;
    CHECK(pool.may_lend());
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
    bool const made = static_cast<bool>(pool.take());
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_FALSE(made);
    CHECK(pool.open() == 0);
    CHECK_FALSE(pool.may_lend());
    CHECK_FALSE(pool.take());
    pool.trim();
    CHECK(pool.may_lend());
    CHECK(pool.take());
}

TEST_CASE("where nothing was ever spliced a refusal means that it does not work: no pipe from there on", "[pipe]") {
    pipe_pool pool(2);
    {
        auto p = pool.take();
        REQUIRE(p);
        int const other = ::epoll_create1(EPOLL_CLOEXEC);  // of a kind that knows no splice()
        CHECK(p.fill_from(other, 10).ec == asio::error::operation_not_supported);
        CHECK(p.left() == 0);
        ::close(other);
        CHECK_FALSE(pool.may_lend());
        CHECK_FALSE(pool.take());
    }
    CHECK(pool.open() == 0);
}

TEST_CASE("where it has worked the same is a connection's failure, and what the pipe holds can be read", "[pipe]") {
    pipe_pool pool(1);
    both_ours from;
    both_ours to;
    {
        auto p = pool.take();
        REQUIRE(p);
        int const other = ::epoll_create1(EPOLL_CLOEXEC);
        say(from.theirs, "one");
        REQUIRE(p.fill_from(from.ours, 10).n == 3);
        CHECK(p.drain_to(other).ec == asio::error::operation_not_supported);  // that way nothing ever went
        CHECK_FALSE(pool.may_lend());
        std::string text(10, ' ');
        CHECK(p.read(text.data(), 2) == 2);
        CHECK(p.left() == 1);
        CHECK(p.read(text.data() + 2, 10) == 1);
        CHECK(text.substr(0, 3) == "one");
        CHECK(p.left() == 0);
        auto const failed = p.fill_from(other, 10);
        CHECK(failed.ec);
        CHECK(failed.ec != asio::error::operation_not_supported);
        ::close(other);
    }
}

TEST_CASE("urgent data, which splice() does not pass, is left to be copied", "[pipe][stream]") {
    loop l;
    io_context side;
    asio::ip::tcp::acceptor acceptor(side, {asio::ip::address_v4::loopback(), 0});
    asio::ip::tcp::socket theirs(side);
    theirs.connect(acceptor.local_endpoint());
    auto accepted = acceptor.accept();
    accepted.non_blocking(true);
    stream s(l.poller);
    REQUIRE_FALSE(s.open(accepted.release()));
    pipe_pool pool(1);
    auto into = pool.take();
    REQUIRE(into);
    both_ours to;
    io_result got;
    bool done = false;
    say(theirs.native_handle(), "hello");
    read_more(s, into, got, done);
    CHECK(l.until([&] { return done; }));
    CHECK(got.n == 5);
    REQUIRE(into.drain_to(to.ours).n == 5);
    REQUIRE(::send(theirs.native_handle(), "X", 1, MSG_OOB) == 1);
    say(theirs.native_handle(), "world");
    done = false;
    read_more(s, into, got, done);
    CHECK(l.until([&] { return done; }));
    CHECK(got.ec == asio::error::operation_not_supported);
    std::string text(10, ' ');
    CHECK(s.read_now(text.data(), text.size()).n == 5);
    CHECK(text.substr(0, 5) == "world");
    CHECK(pool.may_lend() == false);  // it is lent, not given up
    s.close();
    l.turn();
}

TEST_CASE("a stream reads into a pipe at once, after a wait, to the end, and until its deadline", "[pipe][stream]") {
    loop l;
    pair p;
    stream s(l.poller);
    REQUIRE_FALSE(s.open(p.ours));
    pipe_pool pool(1);
    auto into = pool.take();
    REQUIRE(into);
    both_ours to;
    io_result got;
    bool done = false;
    auto const empty = [&] {
        REQUIRE(into.left() == got.n);
        REQUIRE(into.drain_to(to.ours).n == got.n);
    };
    say(p.theirs, "at once");
    read_more(s, into, got, done);
    CHECK(done);
    CHECK(got.n == 7);
    empty();
    CHECK(hear(to.theirs) == "at once");

    done = false;
    read_more(s, into, got, done);
    l.turn();
    CHECK_FALSE(done);
    say(p.theirs, "later");
    CHECK(l.until([&] { return done; }));
    CHECK(got.n == 5);
    empty();

    done = false;
    s.read_until(1);
    read_more(s, into, got, done);
    CHECK(s.expire(2));
    CHECK(l.until([&] { return done; }));
    CHECK(got.ec == asio::error::timed_out);
    CHECK(into.left() == 0);

    done = false;
    s.read_until(0);
    read_more(s, into, got, done);
    p.close();
    CHECK(l.until([&] { return done; }));
    CHECK_FALSE(got.ec);
    CHECK(got.n == 0);
    s.close();
    l.turn();
}
