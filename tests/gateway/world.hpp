#pragma once
// A gateway with one worker on a free port, a key, an upstream on a thread of its own, and blocking sockets to speak to them.
// Every wait has a bound (10 s), so that what hangs fails.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "gateway/server.hpp"
#include "keystore/key_format.hpp"
#include "tests/base/scratch.hpp"
#include "usage/journal.hpp"

namespace latchkey::gateway::test {

// A TCP socket that closes itself. Its reads give up after 10 s.
class wire {
  public:
    wire() = default;
    explicit wire(int descriptor) : descriptor_(descriptor) {
        timeval const bound{10, 0};
        int const on = 1;
        ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof bound);
        ::setsockopt(descriptor_, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof bound);
        ::setsockopt(descriptor_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    wire(wire&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
    wire& operator=(wire&& other) noexcept {
        std::swap(descriptor_, other.descriptor_);
        return *this;
    }
    ~wire() {
        if (descriptor_ >= 0) ::close(descriptor_);
    }
    int descriptor() const { return descriptor_; }

    static sockaddr_in loopback(std::uint16_t port) {
        sockaddr_in a{};
        a.sin_family = AF_INET;
        a.sin_port = htons(port);
        a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return a;
    }
    // From 127.0.0.`from`.
    static wire to(std::uint16_t port, unsigned char from = 1) {
        int const fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        auto const a = loopback(port);
        auto mine = loopback(0);
        mine.sin_addr.s_addr = htonl((127U << 24U) + from);
        if (::bind(fd, reinterpret_cast<sockaddr const*>(&mine), sizeof mine) != 0) throw std::runtime_error("bind");
        if (::connect(fd, reinterpret_cast<sockaddr const*>(&a), sizeof a) != 0) throw std::runtime_error("connect");
        return wire(fd);
    }

    void send(std::string_view text) const {
        while (!text.empty()) {
            auto const n = ::send(descriptor_, text.data(), text.size(), MSG_NOSIGNAL);
            if (n <= 0) throw std::runtime_error("send");
            text.remove_prefix(static_cast<std::size_t>(n));
        }
    }
    // What one recv() gives; empty at the end or on a reset. No allocation beyond `into`.
    std::size_t receive(char* into, std::size_t size) const {
        ssize_t n = -1;
        do n = ::recv(descriptor_, into, size, 0);
        while (n < 0 && errno == EINTR);  // the kernel's, which tidies up after an earlier test's io_uring on this thread
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) throw std::runtime_error("nothing came in 10 s");
        return n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    std::string rest() const {
        std::string out;
        std::array<char, 4096> piece{};
        while (auto const n = receive(piece.data(), piece.size())) out.append(piece.data(), n);
        return out;
    }
    // One message with a Content-Length (or none), from the head to the body's end; empty where the connection ended first.
    std::string message() {
        std::string out;
        std::array<char, 4096> piece{};
        for (;;) {
            auto const end = out.find("\r\n\r\n");
            if (end != std::string::npos) {
                auto const at = out.find("Content-Length: ");
                std::size_t const body = at < end ? std::stoul(out.substr(at + 16)) : 0;
                if (out.size() >= end + 4 + body) return out;
            }
            auto const n = receive(piece.data(), piece.size());
            if (n == 0) return {};
            out.append(piece.data(), n);
        }
    }

  private:
    int descriptor_ = -1;
};

class listener {
  public:
    listener() {
        descriptor_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        auto a = wire::loopback(0);
        socklen_t size = sizeof a;
        if (::bind(descriptor_, reinterpret_cast<sockaddr const*>(&a), sizeof a) != 0 || ::listen(descriptor_, 64) != 0 ||
            ::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&a), &size) != 0)
            throw std::runtime_error("no listener");
        port_ = ntohs(a.sin_port);
    }
    ~listener() { close(); }
    listener(listener const&) = delete;
    listener& operator=(listener const&) = delete;
    void close() {
        if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
    }
    std::uint16_t port() const { return port_; }
    int descriptor() const { return descriptor_; }
    wire accept() const {
        pollfd p{descriptor_, POLLIN, 0};
        if (::poll(&p, 1, 10'000) != 1) throw std::runtime_error("nobody connected in 10 s");
        return wire(::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC));
    }

  private:
    int descriptor_ = -1;
    std::uint16_t port_ = 0;
};

// Answers every request on every connection, one thread for all of them. The usual answer is "200, 2 bytes"; `hold` keeps
// answers back until it is let go. Its own loop allocates nothing, so that the allocation test can count around it.
class upstream {
  public:
    upstream() : thread_([this] { run(); }) {}
    ~upstream() {
        stop_ = true;
        hold = false;
        thread_.join();
    }
    std::uint16_t port() const { return at_.port(); }
    std::atomic<bool> hold{false};
    std::atomic<unsigned> requests{0};  // whole heads that came

  private:
    static constexpr std::string_view answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    void run() {
        std::array<pollfd, 64> polled{};
        std::array<unsigned, 64> owed{};
        std::array<unsigned, 64> matched{};  // how much of "\r\n\r\n" has come
        nfds_t count = 1;
        polled[0] = {at_.descriptor(), POLLIN, 0};
        while (!stop_) {
            if (::poll(polled.data(), count, 5) < 0) break;
            if ((polled[0].revents & POLLIN) != 0 && count < polled.size())
                polled[count++] = {::accept4(at_.descriptor(), nullptr, nullptr, SOCK_CLOEXEC), POLLIN, 0};
            for (nfds_t i = 1; i < count; ++i) {
                if ((polled[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0 && !take(polled[i].fd, owed[i], matched[i])) {
                    ::close(polled[i].fd);
                    --count;
                    polled[i] = polled[count];
                    owed[i] = std::exchange(owed[count], 0);
                    matched[i] = std::exchange(matched[count], 0);
                    polled[i].revents = 0;
                    continue;
                }
                for (; !hold && owed[i] > 0; --owed[i]) ::send(polled[i].fd, answer.data(), answer.size(), MSG_NOSIGNAL);
            }
        }
        for (nfds_t i = 1; i < count; ++i) ::close(polled[i].fd);
    }
    bool take(int fd, unsigned& owed, unsigned& matched) {
        std::array<char, 4096> piece;
        auto const n = ::recv(fd, piece.data(), piece.size(), 0);
        for (ssize_t i = 0; i < n; ++i) {
            constexpr std::string_view end = "\r\n\r\n";
            char const c = piece[static_cast<std::size_t>(i)];
            matched = c == end[matched] ? matched + 1 : c == '\r' ? 1 : 0;
            if (matched < end.size()) continue;
            matched = 0;
            ++owed;
            ++requests;
        }
        return n > 0;
    }

    listener at_;
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

inline std::vector<keystore::shard_update> shard_with(std::string const& key, keystore::key_state state) {
    keystore::key_entry e;
    e.hash = keystore::digest_of(key);
    e.key_id = "key_0123456789abcdef";
    e.application_id = "app_0123456789abcdef";
    e.application = "tests";
    e.state = state;
    return {{keystore::shard_of(e.hash), std::make_shared<keystore::key_shard const>(std::vector{e})}};
}

struct world {
    explicit world(std::function<void(conf::settings&)> const& adjust = {}) {
        settings.listen = {{"127.0.0.1", 0}};
        settings.workers = 1;
        conf::api api;
        api.upstreams = {{{"127.0.0.1", behind.port()}, ""}};
        settings.apis = {api};
        if (adjust) adjust(settings);
        usage::recorder_options o;
        o.journal_file = folder.file("usage.db");
        o.ring_dir = folder.file("rings");
        std::filesystem::create_directory(o.ring_dir);
        std::filesystem::permissions(o.ring_dir, std::filesystem::perms::owner_all);
        o.workers = settings.workers;
        o.ring_bytes = 1U << 20U;
        o.flush_interval = std::chrono::milliseconds(20);
        auto opened = usage::recorder::open(o);
        REQUIRE(opened);
        recorder = std::move(*opened);
        recorder->start();
        gateway = std::make_unique<server>(settings, shard_with(key, keystore::key_state::active), *recorder);
        gateway->start();
        port = gateway->ports().at(0);
    }
    ~world() {
        gateway.reset();
        recorder->stop();
    }
    std::string request(std::string_view path = "/") const {
        return "GET " + std::string(path) + " HTTP/1.1\r\nHost: h\r\nX-API-KEY: " + key + "\r\n\r\n";
    }
    std::uint64_t records() {
        REQUIRE(recorder->flush());
        auto j = usage::journal::open(folder.file("usage.db"), usage::journal::mode::read_only);
        REQUIRE(j);
        auto const n = (*j)->record_count();
        REQUIRE(n);
        return *n;
    }

    testing::scratch_dir folder;
    upstream behind;
    std::string key = keystore::make_key("lk");
    conf::settings settings;
    std::unique_ptr<usage::recorder> recorder;
    std::unique_ptr<server> gateway;
    std::uint16_t port = 0;
};

}  // namespace latchkey::gateway::test
