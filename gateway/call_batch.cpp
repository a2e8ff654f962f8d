#include "gateway/call_batch.hpp"

#include <liburing.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.hpp"

namespace latchkey::gateway {
namespace {

constexpr auto each_alone = "each socket is read and written by a call of its own";

// Without memory for it.
char const* text_of(int error) noexcept {
    char const* const text = ::strerrordesc_np(error);
    return text ? text : "?";
}

}  // namespace

struct call_batch::kernel_ring {
    // Who submits is the one thread that owns it, and work that was put off is done when it asks: so nothing interrupts it. One
    // call that fails does not keep back those behind it.
    static constexpr unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL;

    kernel_ring() : error(-::io_uring_queue_init(calls_max, &io, flags)) {
        if (error == 0) ::io_uring_register_ring_fd(&io);  // spares each call a look-up; it works without, too
    }
    ~kernel_ring() {
        if (error == 0) ::io_uring_queue_exit(&io);
    }
    kernel_ring(kernel_ring const&) = delete;
    kernel_ring& operator=(kernel_ring const&) = delete;

    io_uring io{};
    int const error;
};

struct call_batch::call {
    error_code* ec = nullptr;
    std::size_t* n = nullptr;
    int descriptor = -1;
    bool receives = false;
    bool done = false;
    iovec piece{};  // of a receive
    msghdr message{};

    void result(int r) noexcept {
        done = true;
        *n = r > 0 ? static_cast<std::size_t>(r) : 0;
        *ec = r >= 0         ? error_code()
              : r == -EAGAIN ? error_code(asio::error::would_block)
                             : error_code(-r, boost::system::system_category());
    }
    // As a call of its own.
    void do_alone() noexcept {
        ssize_t r = -1;
        do
            r = receives ? ::recv(descriptor, piece.iov_base, piece.iov_len, MSG_DONTWAIT)
                         : ::sendmsg(descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (r < 0 && errno == EINTR);
        result(r < 0 ? -errno : static_cast<int>(r));
    }
};

call_batch::call_batch() = default;
call_batch::~call_batch() { assert(queued_ == 0); }

void call_batch::never() noexcept {
    assert(queued_ == 0);
    close();
    tried_ = true;
}

void call_batch::close() noexcept {
    ring_.reset();
    in_use_.store(false, std::memory_order_relaxed);
}

bool call_batch::usable() noexcept {
    if (std::exchange(tried_, true)) return ring_ != nullptr;
    char const* const why_not = open();
    if (why_not) {
        close();
        static std::atomic_flag told;  // it is the same for all workers
        if (!told.test_and_set()) log::info("reactor", "no io_uring ({}): {}", why_not, each_alone);
    }
    return !why_not;
}

// Null where it is open and works.
char const* call_batch::open() noexcept {
    try {
        calls_ = std::make_unique<call[]>(calls_max);
        ring_ = std::make_unique<kernel_ring>();
    } catch (std::bad_alloc const&) {
        return text_of(ENOMEM);
    }
    if (ring_->error == ENOMEM) return "Cannot allocate memory: is `ulimit -l` small?";
    if (ring_->error != 0) return text_of(ring_->error);
    char const* const why_not = try_out();
    if (!why_not) in_use_.store(true, std::memory_order_relaxed);
    return why_not;
}

// What opens may still lack some calls, or have them forbidden: each is made once, before a client's bytes depend on them.
char const* call_batch::try_out() noexcept {
    std::array<int, 2> ends{};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0) return text_of(errno);
    std::array<char, 3> text{'o', 'n', 'e'};
    std::array<char, 4> got{};
    std::array<iovec, 3> pieces;
    for (std::size_t i = 0; i < text.size(); ++i) pieces[i] = {&text[i], 1};
    std::array<error_code, 3> ec;
    std::array<std::size_t, 3> n{};
    send(ends[0], {pieces.data(), 1}, ec[0], n[0]);
    send(ends[0], {pieces.data() + 1, 2}, ec[1], n[1]);
    receive(ends[1], got.data(), got.size(), ec[2], n[2]);
    run();
    for (int const e : ends) ::close(e);
    bool const all = std::none_of(ec.begin(), ec.end(), [](error_code const& e) { return e.failed(); });
    bool const right = ring_ && all && n[2] == text.size() && std::equal(text.begin(), text.end(), got.begin());
    return right ? nullptr : "it does not send and receive";
}

call_batch::call& call_batch::next(int descriptor, error_code& ec, std::size_t& n) noexcept {
    assert(ring_ && !full());
    call& c = calls_[queued_];
    c.ec = &ec;
    c.n = &n;
    c.descriptor = descriptor;
    c.done = false;
    return c;
}

io_uring_sqe* call_batch::entry_for_next() noexcept {
    io_uring_sqe* const entry = ::io_uring_get_sqe(&ring_->io);
    ::io_uring_sqe_set_data64(entry, queued_++);
    return entry;
}

void call_batch::receive(int descriptor, char* data, std::size_t size, error_code& ec, std::size_t& n) noexcept {
    call& c = next(descriptor, ec, n);
    c.receives = true;
    c.piece = {data, size};
    ::io_uring_prep_recv(entry_for_next(), descriptor, data, size, MSG_DONTWAIT);
}

void call_batch::send(int descriptor, std::span<iovec const> pieces, error_code& ec, std::size_t& n) noexcept {
    call& c = next(descriptor, ec, n);
    c.receives = false;
    c.message.msg_iov = const_cast<iovec*>(pieces.data());
    c.message.msg_iovlen = pieces.size();
    if (pieces.size() == 1)
        ::io_uring_prep_send(entry_for_next(), descriptor, pieces[0].iov_base, pieces[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        ::io_uring_prep_sendmsg(entry_for_next(), descriptor, &c.message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void call_batch::run() noexcept {
    // None of them waits, so all have their results when the call returns; that it has to wait for none is only made sure of.
    for (auto missing = static_cast<unsigned>(queued_); missing != 0;) {
        int const r = ::io_uring_submit_and_wait(&ring_->io, missing);
        if (r < 0 && r != -EINTR) {
            take_results();
            return give_up(-r);
        }
        missing -= ::io_uring_cq_ready(&ring_->io);
        take_results();
    }
    queued_ = 0;
}

void call_batch::take_results() noexcept {
    io_uring_cqe* result = nullptr;
    unsigned head = 0;
    unsigned n = 0;
    io_uring_for_each_cqe(&ring_->io, head, result) {
        call& c = calls_[result->user_data];
        // What only a ring can say, for want of memory of its own: nothing was done yet.
        if (result->res == -ENOMEM || result->res == -EINTR) [[unlikely]]
            c.do_alone();
        else
            c.result(result->res);
        ++n;
    }
    ::io_uring_cq_advance(&ring_->io, n);
}

// What the kernel has not taken yet goes with the ring, and is done here.
void call_batch::give_up(int error) noexcept {
    log::warn("reactor", "io_uring_enter: {}; from here on {}", text_of(error), each_alone);
    close();
    for (std::size_t i = 0; i < queued_; ++i)
        if (!calls_[i].done) calls_[i].do_alone();
    queued_ = 0;
}

}  // namespace latchkey::gateway
