#pragma once
// An event loop on the test's own thread, connected sockets to put on it, and a bound on every wait.

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
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

// A port at which one connect is taken, and all others are neither taken nor refused.
class deaf_listener {
  public:
    deaf_listener() : descriptor_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        at_.sin_family = AF_INET;
        at_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof at_;
        REQUIRE(::bind(descriptor_, reinterpret_cast<sockaddr*>(&at_), size) == 0);
        REQUIRE(::listen(descriptor_, 0) == 0);
        REQUIRE(::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&at_), &size) == 0);
        taken_ = connect();
    }
    ~deaf_listener() {
        close();
        if (taken_ >= 0) ::close(taken_);
    }
    deaf_listener(deaf_listener const&) = delete;
    deaf_listener& operator=(deaf_listener const&) = delete;

    // Descriptors, which are the caller's from here on: of the connection that was taken, once, and of one more.
    int taken() noexcept { return std::exchange(taken_, -1); }
    int connect() const {
        int const fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        REQUIRE((::connect(fd, reinterpret_cast<sockaddr const*>(&at_), sizeof at_) == 0 || errno == EINPROGRESS));
        return fd;
    }
    std::uint16_t port() const noexcept { return ntohs(at_.sin_port); }
    void close() noexcept {
        if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
    }

  private:
    sockaddr_in at_{};
    int descriptor_;
    int taken_ = -1;
};

}  // namespace latchkey::gateway::test
