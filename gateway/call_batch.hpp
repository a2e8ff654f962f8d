#pragma once
// recv() and send() of several sockets by one system call, where the kernel has that (io_uring(7), Linux 6.1 or later) and lets
// us: containers often do not. What each call does and says is what recv(2) and send(2) with MSG_DONTWAIT would.
//
// A system call costs up to a microsecond before it does anything, depending on what the kernel and the machine below it do
// against each other's faults; a request needs four.
//
// Belongs to one thread: the first that asks whether it is usable. Only in_use() is for any.

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>

#include "gateway/net.hpp"

struct io_uring_sqe;

namespace latchkey::gateway {

class call_batch {
  public:
    static constexpr std::size_t calls_max = 64;

    call_batch();
    ~call_batch();
    call_batch(call_batch const&) = delete;
    call_batch& operator=(call_batch const&) = delete;

    // From now on none is usable, whatever the kernel has.
    void never() noexcept;
    // False: the kernel has no such thing, or forbids it; the log says why, once. Opens and tries it at the first call. Not where
    // calls are queued.
    bool usable() noexcept;
    // What usable() has found, once it was asked. Any thread.
    bool in_use() const noexcept { return in_use_.load(std::memory_order_relaxed); }

    std::size_t queued() const noexcept { return queued_; }
    bool full() const noexcept { return queued_ == calls_max; }

    // To be done by run(), which then sets `ec` and `n`: would_block where it would have to wait; n == 0 without error of a read
    // is the end of the stream. Memory and results stay where they are until then. Not while full().
    void receive(int descriptor, char* data, std::size_t size, error_code& ec, std::size_t& n) noexcept;
    void send(int descriptor, std::span<iovec const> pieces, error_code& ec, std::size_t& n) noexcept;

    // Does all that was queued, in that order; but one that the ring had no memory for comes behind the others, so two of one
    // socket may change places.
    void run() noexcept;

  private:
    struct kernel_ring;
    struct call;
    call& next(int descriptor, error_code& ec, std::size_t& n) noexcept;
    io_uring_sqe* entry_for_next() noexcept;
    void take_results() noexcept;
    char const* open() noexcept;
    char const* try_out() noexcept;
    void close() noexcept;
    void give_up(int error) noexcept;

    std::unique_ptr<kernel_ring> ring_;
    std::unique_ptr<call[]> calls_;  // the first queued_
    std::size_t queued_ = 0;
    bool tried_ = false;
    std::atomic<bool> in_use_{false};
};

}  // namespace latchkey::gateway
