#include "bench/load/reactor.hpp"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <string>
#include <system_error>

namespace load {

namespace {

[[noreturn]] void fail(std::string const& what) { throw std::system_error(errno, std::generic_category(), what); }

sockaddr_in loopback(std::uint16_t port) noexcept {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

void no_delay(int descriptor) noexcept {
    int const on = 1;
    ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

io_result to_result(ssize_t n) noexcept {
    if (n > 0) return {io_result::moved, static_cast<std::size_t>(n)};
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {io_result::would_block, 0};
    return {io_result::closed, 0};
}

}  // namespace

std::int64_t now_ns() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

reactor::reactor() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    if (epoll_ < 0) fail("epoll_create1");
}

reactor::~reactor() { ::close(epoll_); }

void reactor::watch(int descriptor, event_target& target) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = &target;
    if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event) != 0) fail("epoll_ctl");
}

void reactor::turn(std::int64_t timeout_ns) {
    std::array<epoll_event, 256> events;
    timespec const wait{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    int const n =
        ::epoll_pwait2(epoll_, events.data(), static_cast<int>(events.size()), timeout_ns < 0 ? nullptr : &wait, nullptr);
    if (n < 0 && errno != EINTR) fail("epoll_pwait2");
    for (int i = 0; i < n; ++i) {
        auto const& event = events[static_cast<std::size_t>(i)];
        static_cast<event_target*>(event.data.ptr)->on_events(event.events);
    }
    retired_.clear();
}

int listen_on(std::uint16_t port) {
    int const descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (descriptor < 0) fail("socket");
    int const on = 1;
    ::setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    auto const address = loopback(port);
    if (::bind(descriptor, reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0 || ::listen(descriptor, 4096) != 0) {
        fail("cannot listen on 127.0.0.1:" + std::to_string(port));
    }
    return descriptor;
}

int accept_from(int listener) {
    int const descriptor = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor >= 0) no_delay(descriptor);
    return descriptor;
}

int connect_to(std::uint16_t port) {
    int const descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -1;
    no_delay(descriptor);
    auto const address = loopback(port);
    if (::connect(descriptor, reinterpret_cast<sockaddr const*>(&address), sizeof address) == 0 || errno == EINPROGRESS)
        return descriptor;
    int const why = errno;
    ::close(descriptor);
    errno = why;
    return -1;
}

io_result send_some(int descriptor, char const* data, std::size_t size) noexcept {
    ssize_t n = 0;
    do n = ::send(descriptor, data, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return to_result(n);
}

io_result receive_some(int descriptor, char* data, std::size_t size) noexcept {
    ssize_t n = 0;
    do n = ::recv(descriptor, data, size, 0);
    while (n < 0 && errno == EINTR);
    return to_result(n);
}

io_result discard_some(int descriptor, std::size_t size) noexcept {
    ssize_t n = 0;
    do n = ::recv(descriptor, nullptr, size, MSG_TRUNC);
    while (n < 0 && errno == EINTR);
    return to_result(n);
}

}  // namespace load
