#pragma once
// One connected TCP socket of a worker, awaited by coroutines. Belongs to one thread.
//
// It stands on Asio's reactor itself (reactor.hpp) rather than on asio::ip::tcp::socket, for two measured
// reasons:
//  1. basic_stream_socket tries every read once before it waits. A proxy nearly always waits for the next message, so that try
//     is a system call for nothing, twice a request (6 a request instead of 4). Here a short read counts as "drained".
//  2. The operation lies in the socket and asks for its buffer only when bytes have come: an idle connection holds neither.
//
// The price of 1: with edge-triggered epoll, an end of stream that arrives together with the last bytes gives no second event.
// So a short read counts as drained only where its event did not tell of an end, and whoever needs more of a message that has
// begun reads with read_more(), which tries first.
//
// After handshake() all bytes here are those inside TLS. What differs then: a write that says would_block must be tried again
// with the very bytes that are left (a record has gone out in part), and an end is told by close_notify().

#include <sys/uio.h>

#include <algorithm>
#include <boost/asio/detail/reactor_op.hpp>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <span>

#include "base/prefetch.hpp"
#include "gateway/buffer_pool.hpp"
#include "gateway/net.hpp"
#include "gateway/pipe_pool.hpp"
#include "gateway/reactor.hpp"

namespace latchkey::gateway {

class tls_context;
class tls_session;

class stream {
  public:
    explicit stream(reactor& r);
    ~stream();  // closed before, and no operation pending
    stream(stream const&) = delete;
    stream& operator=(stream const&) = delete;

    // Takes over a non-blocking descriptor, on which such messages come; closes it on failure.
    error_code open(int descriptor, reactor::message comes = reactor::message::answer);
    // Pending operations complete with operation_aborted, later, from the loop. Idempotent.
    void close() noexcept;
    // close() with SO_LINGER 0: the peer sees a reset, not a clean end.
    void reset() noexcept;
    void shutdown_write() noexcept;
    bool is_open() const noexcept { return descriptor_ >= 0; }
    int descriptor() const noexcept { return descriptor_; }
    bool read_pending() const noexcept { return read_.pending; }
    // Bytes written that the peer's kernel has not acknowledged yet (SIOCOUTQ), of TLS with what that adds. One system call.
    std::size_t unsent() const noexcept;

    // Asks for the memory that its next read and write need.
    void prefetch() noexcept {
        latchkey::prefetch(data_);
        prefetch_bytes<sizeof(stream) - sizeof(write_op)>(this);
    }

    // --- TLS, server side
    struct [[nodiscard]] handshake_awaiter {
        stream& s;
        bool await_ready() const noexcept { return s.read_.finished; }
        void await_suspend(std::coroutine_handle<> h) noexcept { s.start_read(h); }
        error_code await_resume() const noexcept { return s.take_read().ec; }
    };
    // Waits for the client's part of the handshake, the first time straight after open(), and answers it. No error: it is done,
    // and tls() is there. would_block: once more, when writable. plain_bytes: what came is no TLS. The context outlives the
    // stream.
    handshake_awaiter handshake(tls_context const&) noexcept;
    static error_code plain_bytes() noexcept { return make_error_code(boost::system::errc::wrong_protocol_type); }
    tls_session const* tls() const noexcept { return tls_.get(); }
    void drop_tls() noexcept;  // go on in clear: for the answer to plain_bytes
    // Tells the peer that nothing follows; nothing without TLS. would_block: once more, when writable.
    error_code close_notify() noexcept;
    void tell_break() noexcept;  // the opposite: what the peer has is not the whole

    // --- one read at a time. n == 0 without error: end of stream.

    struct [[nodiscard]] read_awaiter {
        stream& s;
        bool await_ready() const noexcept { return s.read_.finished && s.at_once_ < at_once_max; }
        void await_suspend(std::coroutine_handle<> h) noexcept { s.start_read(h); }
        io_result await_resume() const noexcept { return s.take_read(); }
    };
    // Between messages: waits, then reads into a buffer lent from `pool` at that moment (what was `promised`, where that is
    // given; a large one on request, and where nothing was promised only while there are some to spare), kept in `into`.
    // no_buffer_space where the pool has none: nothing was read then.
    read_awaiter read_next(buffer_pool& pool, lease& into, bool large = false, promise* promised = nullptr) noexcept;
    // Within a message: tries at once, then waits. `size` > 0. Every at_once_max-th success in a row is handed over by the loop
    // nevertheless, so that a peer that always has more ready keeps neither the other connections nor the sweep waiting.
    read_awaiter read_more(char* data, std::size_t size) noexcept;
    // As read_more(), into an empty pipe; operation_not_supported where what is there can only be copied. Not with TLS.
    read_awaiter read_more(pipe_lease& into, std::size_t size) noexcept;
    // A plain recv(): would_block where nothing is there.
    io_result read_now(char* data, std::size_t size) noexcept;

    // --- messages in very small parts: to be woken for each costs more than its bytes are worth

    // Reads within a message wait from here on until gathered_bytes have come (SO_RCVLOWAT), or the `sweeps`-th expire() from now
    // on finds any. An end or an error is seen at once, and what has come by its deadline is taken. To be called before each read
    // that may wait so long.
    void gather(unsigned sweeps) noexcept;
    void gather_no_more() noexcept;
    bool gathering() const noexcept { return gathering_; }
    // No more than a head has, for the kernel makes its buffer larger for more.
    static constexpr std::size_t gathered_bytes = 16U << 10U;
    // A head or a handshake is read in so many parts as they come, and gathered from there on: every sweep at first, then in
    // intervals that grow with the time it takes, to half a second.
    static constexpr unsigned parts_at_once = 16;
    static constexpr unsigned sweeps_for(unsigned part) noexcept { return std::min((part - parts_at_once + 1) / 2, 5U); }

    // Waits for readability without a buffer and calls `f(context)` on bytes, end or error, unless a read takes the wait
    // over first (then it serves that read). For idle pooled connections.
    using watcher = void (*)(void* context);
    void watch(watcher f, void* context) noexcept;
    // Whether the last read brought as much as it had room for.
    bool filled() const noexcept { return filled_; }
    // There is something, and its watcher has not been called yet.
    bool watch_found() const noexcept { return watch_found_; }

    // --- writes

    // One sendmsg() without waiting; MSG_NOSIGNAL. would_block where the peer takes nothing now.
    io_result write_now(std::span<iovec const> pieces) noexcept;
    io_result write_now(char const* data, std::size_t size) noexcept;
    // What the pipe holds, as much of it as goes. Not with TLS.
    io_result write_now(pipe_lease&) noexcept;
    // The same in two parts: the call is queued (false: it is to be made alone), and `result` is what write_now() would say once
    // written() has seen it. The pieces stay until then.
    bool queue_write(call_batch&, std::span<iovec const> pieces, io_result& result) noexcept;
    void written(io_result& result) noexcept;

    struct [[nodiscard]] write_awaiter {
        stream& s;
        bool await_ready() const noexcept { return false; }
        void await_suspend(std::coroutine_handle<> h) noexcept { s.start_write(h); }
        error_code await_resume() const noexcept { return s.write_.ec_; }
    };
    // Until the socket takes bytes again, or a connect() has ended (then look at connect_result(); would_block: not yet, once
    // more).
    write_awaiter writable() noexcept { return {*this}; }
    error_code connect_result() const noexcept;

    // --- deadlines, on steady_ns(); 0: none. The worker's sweep calls expire(); an expired wait ends with timed_out, but a
    // read_next() takes what has come by then: the loop may not have got round to it. A read that the reactor has put off does
    // not end before it was served, save a handshake's.
    void read_until(std::int64_t ns) noexcept { read_deadline_ = ns; }
    void write_until(std::int64_t ns) noexcept { write_deadline_ = ns; }
    bool expire(std::int64_t now_ns) noexcept;
    // For who has no read pending: whether one would have expired.
    bool late(std::int64_t now_ns) const noexcept { return read_deadline_ != 0 && now_ns >= read_deadline_; }
    // Looks whether there is anything for a waiting read that gathers, and ends the wait if so. One system call.
    void nudge() noexcept;
    // Ends a pending wait with operation_aborted; the socket stays open.
    void cancel_read() noexcept;
    void cancel_write() noexcept;

  private:
    template <class Base>
    struct op : Base {
        template <class... Functions>
        explicit op(stream& s, Functions... f) : Base(f...), owner(s) {
            this->cancellation_key_ = this;
        }
        stream& owner;
        std::coroutine_handle<> awaiting;
        bool pending = false;
    };
    struct read_op : op<reactor::reading>, reactor::waiting {
        explicit read_op(stream& s)
            : op(s, &stream::perform_read, &stream::complete_read, &stream::queue_read), waiting(&stream::its_turn) {}
        bool ahead = false;  // it was made already: its result stands here
        char* data = nullptr;
        std::size_t size = 0;
        buffer_pool* pool = nullptr;
        lease* into = nullptr;
        bool large = false;
        promise* promised = nullptr;
        pipe_lease* pipe = nullptr;  // where it is this that is read into
        watcher watch = nullptr;
        void* context = nullptr;
        tls_context const* handshake = nullptr;  // it is this that is waited for
        bool finished = false;                   // the first try succeeded: nothing to wait for
        bool together() const noexcept;
        bool borrow();              // a buffer for what has come
        void give_back() noexcept;  // it had not, after all
        void keep_what_came() noexcept;
    };
    struct write_op : op<asio::detail::reactor_op> {
        explicit write_op(stream& s) : op(s, error_code(), &stream::perform_write, &stream::complete_write) {}
    };

    bool told_of_more() const noexcept { return new_ || reactor_.tells_of_more(data_); }
    asio::detail::reactor_op::status read_done(bool drained) const noexcept;
    static void queue_read(reactor::reading&, call_batch&) noexcept;
    io_result came_ahead(read_op const&) noexcept;
    static asio::detail::reactor_op::status perform_read(asio::detail::reactor_op*);
    static asio::detail::reactor_op::status perform_write(asio::detail::reactor_op*);
    static void complete_read(void* owner, asio::detail::operation*, error_code const&, std::size_t);
    static void its_turn(reactor::waiting&) noexcept;
    static void finish_read(read_op&);
    static void complete_write(void* owner, asio::detail::operation*, error_code const&, std::size_t);
    read_awaiter try_more() noexcept;
    void start_read(std::coroutine_handle<>) noexcept;
    void start_write(std::coroutine_handle<>) noexcept;
    void arm_read(bool try_first) noexcept;
    asio::detail::reactor_op::status shake_hands(read_op&) noexcept;
    io_result write_records(std::span<iovec const> pieces) noexcept;
    void end_by_nudge() noexcept;
    bool look() noexcept;
    error_code taken(error_code const&) noexcept;
    io_result told(io_result const&) const noexcept;
    bool look_again() noexcept;
    io_result take_read() noexcept;
    void wake_at(std::size_t bytes) noexcept;

    static constexpr unsigned at_once_max = 16;

    reactor& reactor_;
    reactor::per_descriptor_data data_ = nullptr;
    std::int64_t read_deadline_ = 0;
    std::int64_t write_deadline_ = 0;
    int descriptor_ = -1;
    bool gathering_ = false;
    bool filled_ = false;
    bool watch_found_ = false;  // a watch has found something, and its watcher is still to be called
    bool new_ = false;          // no wait of any kind yet: of all that is there an event is still to come
    bool read_expired_ = false;
    bool write_expired_ = false;
    bool nudged_ = false;
    unsigned look_in_ = 0;          // sweeps, while gathering
    unsigned handshake_parts_ = 0;  // that were not the last
    unsigned at_once_ = 0;          // reads that succeeded since the loop was last returned to
    error_code seen_;  // by a look, a write or a read ahead, which take an error out of the socket: for the read behind it
    std::unique_ptr<tls_session> tls_;
    read_op read_;
    write_op write_;  // last: most writes do without
};

// recv() that tells the peer's whole state without taking bytes: would_block, 0 (end), n > 0, or the error.
io_result peek(int descriptor) noexcept;

}  // namespace latchkey::gateway
