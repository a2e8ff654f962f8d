#pragma once
// An event loop on the test's own thread, connected sockets to put on it, and a bound on every wait.

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <functional>
#include <utility>

#include "gateway/stream.hpp"
#include "tests/catch.hpp"

namespace latchkey::gateway::test {

struct loop {
    io_context io{1};
    reactor& poller = reactor::of(io);
    loop() { poller.init_task(); }

    // Runs what is ready, and waits for more, until `holds`. False when 10 s have gone without it.
    bool until(std::function<bool()> const& holds) {
        auto const end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
        while (!holds()) {
            if (std::chrono::steady_clock::now() > end) return false;
            io.restart();
            io.run_one_for(std::chrono::milliseconds(20));
        }
        return true;
    }
    // Runs what is ready now and waits for nothing.
    void turn() {
        io.restart();
        io.poll();
    }
};

// A connected pair; `ours` is taken over by a stream, `theirs` is the other side.
struct pair {
    int ours = -1;
    int theirs = -1;
    pair() {
        std::array<int, 2> both{};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, both.data()) == 0);
        ours = both[0];
        theirs = both[1];
    }
    ~pair() { close(); }
    pair(pair const&) = delete;
    pair& operator=(pair const&) = delete;
    void close() {
        if (theirs >= 0) ::close(std::exchange(theirs, -1));
    }
};

}  // namespace latchkey::gateway::test
