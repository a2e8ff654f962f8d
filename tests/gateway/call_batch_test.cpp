#include "gateway/call_batch.hpp"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <string>
#include <thread>

#include "tests/gateway/loop.hpp"

using namespace latchkey;
using namespace latchkey::gateway;
using namespace latchkey::gateway::test;

namespace {

struct outcome {
    error_code ec = asio::error::fault;
    std::size_t n = 4711;
};

iovec piece(std::string& s) { return {s.data(), s.size()}; }

// Where the kernel of the machine has none, there is nothing to test.
bool usable(call_batch& calls) {
    if (calls.usable()) return true;
    WARN("no io_uring here");
    return false;
}

struct ends {
    pair p;
    ~ends() { ::close(p.ours); }
    std::string read() const {
        std::array<char, 256> text{};
        auto const n = ::recv(p.theirs, text.data(), text.size(), 0);
        return {text.data(), static_cast<std::size_t>(n < 0 ? 0 : n)};
    }
};

}  // namespace

TEST_CASE("calls of a batch do and say what each alone would") {
    call_batch calls;
    if (!usable(calls)) return;
    CHECK(calls.queued() == 0);
    calls.run();  // of nothing
    std::array<ends, 6> s;
    std::array<std::array<char, 8>, 6> into{};
    std::array<outcome, 6> got;
    REQUIRE(::send(s[0].p.theirs, "hello", 5, 0) == 5);
    REQUIRE(::send(s[1].p.theirs, "more than eight", 15, 0) == 15);
    REQUIRE(::shutdown(s[2].p.theirs, SHUT_WR) == 0);
    REQUIRE(::send(s[3].p.ours, "unread", 6, 0) == 6);
    s[3].p.close();  // a reset, for it has not read all
    for (std::size_t i = 0; i < 5; ++i) calls.receive(s[i].p.ours, into[i].data(), into[i].size(), got[i].ec, got[i].n);
    calls.receive(-1, into[5].data(), into[5].size(), got[5].ec, got[5].n);
    CHECK(calls.queued() == 6);
    CHECK(got[0].n == 4711);  // not before run()
    calls.run();
    CHECK(calls.queued() == 0);
    CHECK_FALSE(got[0].ec);
    CHECK(std::string(into[0].data(), got[0].n) == "hello");
    CHECK_FALSE(got[1].ec);
    CHECK(std::string(into[1].data(), got[1].n) == "more tha");
    CHECK_FALSE(got[2].ec);
    CHECK(got[2].n == 0);
    CHECK(got[3].ec == asio::error::connection_reset);
    CHECK(got[3].n == 0);
    CHECK(got[4].ec == asio::error::would_block);
    CHECK(got[4].n == 0);
    CHECK(got[5].ec == asio::error::bad_descriptor);
}

TEST_CASE("sends of a batch leave in their order, in one piece or several, and signal nothing") {
    call_batch calls;
    if (!usable(calls)) return;
    ends a;
    ends gone;
    gone.p.close();
    std::string one = "one ";
    std::string two = "two ";
    std::string three = "three";
    std::array<iovec, 2> const several{piece(two), piece(three)};
    iovec const single = piece(one);
    std::array<outcome, 3> got;
    calls.send(a.p.ours, {&single, 1}, got[0].ec, got[0].n);
    calls.send(gone.p.ours, {&single, 1}, got[1].ec, got[1].n);
    calls.send(a.p.ours, several, got[2].ec, got[2].n);
    calls.run();
    CHECK_FALSE(got[0].ec);
    CHECK(got[0].n == 4);
    CHECK(got[1].ec == asio::error::broken_pipe);
    CHECK_FALSE(got[2].ec);
    CHECK(got[2].n == 9);
    CHECK(a.read() == "one two three");
}

TEST_CASE("a send that finds little room says how much went, one that finds none would block") {
    call_batch calls;
    if (!usable(calls)) return;
    ends a;
    std::string large(64U << 20U, 'x');
    iovec const all = piece(large);
    outcome first;
    outcome second;
    calls.send(a.p.ours, {&all, 1}, first.ec, first.n);
    calls.send(a.p.ours, {&all, 1}, second.ec, second.n);
    calls.run();
    CHECK_FALSE(first.ec);
    CHECK(first.n > 0);
    CHECK(first.n < large.size());
    CHECK((second.ec == asio::error::would_block || (!second.ec && second.n < large.size())));
}

TEST_CASE("a batch takes as many calls as it says, again and again") {
    call_batch calls;
    if (!usable(calls)) return;
    ends a;
    std::array<outcome, call_batch::calls_max> got;
    std::array<char, call_batch::calls_max> into{};
    for (int round = 0; round < 10; ++round) {
        std::string const text(call_batch::calls_max, static_cast<char>('a' + round));
        REQUIRE(::send(a.p.theirs, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
        for (std::size_t i = 0; i < call_batch::calls_max; ++i) {
            REQUIRE_FALSE(calls.full());
            calls.receive(a.p.ours, &into[i], 1, got[i].ec, got[i].n);
        }
        CHECK(calls.full());
        calls.run();
        CHECK(std::string(into.data(), into.size()) == text);
        for (auto const& g : got) REQUIRE((!g.ec && g.n == 1));
    }
}

// The kernel takes calls from the thread only that made the first: as good a way as any to have it take none.
TEST_CASE("what the kernel does not take is done call by call, from then on nothing is queued") {
    call_batch calls;
    if (!usable(calls)) return;
    ends a;
    ends b;
    REQUIRE(::send(a.p.theirs, "hello", 5, 0) == 5);
    std::array<char, 8> into{};
    std::string one = "one ";
    std::string two = "two";
    std::array<iovec, 2> const several{piece(one), piece(two)};
    iovec const single = piece(two);
    std::array<outcome, 4> got;
    calls.receive(a.p.ours, into.data(), into.size(), got[0].ec, got[0].n);
    calls.send(a.p.ours, several, got[1].ec, got[1].n);
    calls.receive(b.p.ours, into.data(), 1, got[2].ec, got[2].n);
    calls.send(b.p.ours, {&single, 1}, got[3].ec, got[3].n);
    std::thread([&] { calls.run(); }).join();
    CHECK(calls.queued() == 0);
    CHECK_FALSE(calls.usable());
    CHECK_FALSE(calls.in_use());
    CHECK_FALSE(got[0].ec);
    CHECK(std::string(into.data(), got[0].n) == "hello");
    CHECK(got[1].n == 7);
    CHECK(got[2].ec == asio::error::would_block);
    CHECK(got[3].n == 3);
    CHECK(a.read() == "one two");
    CHECK(b.read() == "two");
}

TEST_CASE("who wants none has none") {
    call_batch calls;
    calls.never();
    CHECK_FALSE(calls.usable());
    call_batch open;
    CHECK_FALSE(open.in_use());  // nobody has asked yet
    bool const is_usable = open.usable();
    CHECK(open.in_use() == is_usable);
    open.never();
    CHECK_FALSE(open.usable());
    CHECK_FALSE(open.in_use());
}

namespace {

// As most containers do (seccomp(2)), for this thread only. False: it cannot be forbidden.
bool forbid_io_uring() {
    std::array<sock_filter, 4> steps{{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                                      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)}};
    sock_fprog const program{steps.size(), steps.data()};
    return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

}  // namespace

TEST_CASE("where the kernel gives no ring, none is usable, then or later") {
    call_batch calls;
    bool forbidden = false;
    bool usable = true;
    std::thread([&] {
        forbidden = forbid_io_uring();
        usable = calls.usable();
    }).join();
    REQUIRE(forbidden);
    CHECK_FALSE(usable);
    CHECK_FALSE(calls.usable());
    CHECK_FALSE(calls.in_use());
}
