#pragma once
// The least there is to an event loop: epoll, edge-triggered, one thread. Load generator, upstream and floor proxy share it, so
// that what they cost is the system calls and little else.

#include <cstdint>
#include <memory>
#include <vector>

namespace load {

// CLOCK_MONOTONIC.
std::int64_t now_ns() noexcept;

// What a descriptor's events go to. `events` are epoll's (EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR).
class event_target {
  public:
    virtual ~event_target() = default;
    virtual void on_events(std::uint32_t events) = 0;
};

class reactor {
  public:
    reactor();
    ~reactor();
    reactor(reactor const&) = delete;
    reactor& operator=(reactor const&) = delete;

    // Readable, writable and half-closed, edge-triggered, until the descriptor is closed. `target` must live until then; one
    // that is closed from within a turn goes through retire().
    void watch(int descriptor, event_target& target);

    // Destroys it when the events in hand have been handed out: one of them may still name it.
    void retire(std::unique_ptr<event_target> target) { retired_.push_back(std::move(target)); }

    // Waits at most `timeout_ns` (0: looks only; negative: for ever) and hands out what happened.
    void turn(std::int64_t timeout_ns);

  private:
    int epoll_ = -1;
    std::vector<std::unique_ptr<event_target>> retired_;
};

// Non-blocking sockets on 127.0.0.1 with TCP_NODELAY. They throw std::system_error: a benchmark without its sockets is none.
int listen_on(std::uint16_t port);
// -1: nothing waits.
int accept_from(int listener);
// The connection may still be under way; -1 with errno if it failed at once.
int connect_to(std::uint16_t port);

// send() and recv() without a signal, repeated over EINTR.
struct io_result {
    enum kind : std::uint8_t { moved, would_block, closed } what = closed;
    std::size_t bytes = 0;
};
io_result send_some(int descriptor, char const* data, std::size_t size) noexcept;
io_result receive_some(int descriptor, char* data, std::size_t size) noexcept;
// Takes up to `size` bytes off the socket without copying them (MSG_TRUNC, tcp(7)).
io_result discard_some(int descriptor, std::size_t size) noexcept;

}  // namespace load
