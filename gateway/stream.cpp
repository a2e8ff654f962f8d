#include "gateway/stream.hpp"

#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <new>

#include "gateway/tls_session.hpp"

namespace latchkey::gateway {
namespace {

using status = asio::detail::reactor_op::status;

// What is read and served together with others: more is no longer in the second cache when its turn has come.
constexpr std::size_t together_bytes_max = 8192;

error_code last_error() noexcept { return {errno, boost::system::system_category()}; }

// recv() and send() without what glibc does around them in a program of several threads, so that one may be cancelled inside: a
// tenth of a microsecond a request, and nobody is ever cancelled here. Sanitizers look at memory through glibc's own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
ssize_t plain_recv(int fd, void* data, std::size_t size, int flags) noexcept { return ::recv(fd, data, size, flags); }
ssize_t plain_send(int fd, void const* data, std::size_t size, int flags) noexcept { return ::send(fd, data, size, flags); }
#else
ssize_t plain_recv(int fd, void* data, std::size_t size, int flags) noexcept {
    return ::syscall(SYS_recvfrom, fd, data, size, flags, nullptr, nullptr);
}
ssize_t plain_send(int fd, void const* data, std::size_t size, int flags) noexcept {
    return ::syscall(SYS_sendto, fd, data, size, flags, nullptr, 0);
}
#endif

io_result receive_from(int descriptor, char* data, std::size_t size, int flags) noexcept {
    for (;;) {
        ssize_t const n = plain_recv(descriptor, data, size, flags | MSG_DONTWAIT);
        if (n >= 0) return {{}, static_cast<std::size_t>(n)};
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {asio::error::would_block, 0};
        if (errno != EINTR) return {last_error(), 0};
    }
}

io_result receive(tls_session* tls, int descriptor, char* data, std::size_t size) noexcept {
    return tls ? tls->read(data, size) : receive_from(descriptor, data, size, 0);
}

}  // namespace

io_result peek(int descriptor) noexcept {
    char byte = 0;
    return receive_from(descriptor, &byte, 1, MSG_PEEK);
}

stream::stream(reactor& r) : reactor_(r), read_(*this), write_(*this) {}

stream::~stream() {
    close();
    assert(!read_.pending && !write_.pending);
}

error_code stream::open(int descriptor, reactor::message comes) {
    assert(descriptor_ < 0);
    int e = ENOMEM;
    try {
        e = reactor_.add(descriptor, data_, comes);
    } catch (std::bad_alloc const&) {  // e says so
    }
    if (e != 0) {
        ::close(descriptor);
        return {e, boost::system::system_category()};
    }
    descriptor_ = descriptor;
    new_ = true;
    read_expired_ = write_expired_ = nudged_ = gathering_ = false;
    seen_ = {};
    read_deadline_ = write_deadline_ = 0;
    return {};
}

void stream::close() noexcept {
    if (descriptor_ < 0) return;
    reactor_.deregister_descriptor(descriptor_, data_, true);
    ::close(descriptor_);
    descriptor_ = -1;
    reactor_.cleanup_descriptor_data(data_);
    data_ = nullptr;
    tls_.reset();
}

void stream::reset() noexcept {
    if (descriptor_ < 0) return;
    linger const hard{1, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
}

void stream::shutdown_write() noexcept {
    if (descriptor_ >= 0) ::shutdown(descriptor_, SHUT_WR);
}

std::size_t stream::unsent() const noexcept {
    int bytes = 0;
    return descriptor_ >= 0 && ::ioctl(descriptor_, SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<std::size_t>(bytes) : 0;
}

// --- TLS

stream::handshake_awaiter stream::handshake(tls_context const& c) noexcept {
    read_.handshake = &c;
    read_.ec_ = {};
    read_.finished = tls_ && shake_hands(read_) != status::not_done;
    return {*this};
}

void stream::drop_tls() noexcept { tls_.reset(); }

void stream::tell_break() noexcept {
    if (tls_) tls_->tell_break();
}

error_code stream::close_notify() noexcept { return tls_ ? tls_->close_notify() : error_code{}; }

// Runs when the client's bytes have come: before, a connection holds nothing of TLS.
status stream::shake_hands(read_op& o) noexcept {
    if (!tls_) tls_ = tls_session::make(*o.handshake, descriptor_);
    if (!tls_) {
        o.ec_ = asio::error::no_memory;
        return status::done;
    }
    auto now = tls_->handshake();
    if (now == tls_session::progress::wants_read && !told_of_more()) now = tls_->handshake();
    if (now == tls_session::progress::wants_read) {
        if (++handshake_parts_ > parts_at_once) gather(sweeps_for(handshake_parts_));
        return status::not_done;
    }
    gather_no_more();
    switch (now) {
        case tls_session::progress::wants_read:
        case tls_session::progress::done: break;
        case tls_session::progress::wants_write: o.ec_ = asio::error::would_block; break;
        case tls_session::progress::plain: o.ec_ = plain_bytes(); break;
        case tls_session::progress::failed: o.ec_ = asio::error::connection_aborted; break;
    }
    return read_done(tls_->drained());
}

// --- reading

bool stream::read_op::borrow() {
    if (!*into)
        *into = promised ? pool->redeem(*promised, large) : large && pool->large_to_spare() ? pool->large() : pool->small();
    return static_cast<bool>(*into);
}

void stream::read_op::give_back() noexcept {
    into->reset();
    if (promised) pool->promise_small(*promised);
}

// The wait was ended between its read and its turn.
void stream::read_op::keep_what_came() noexcept {
    if (would_block(owner.seen_) || owner.seen_ == asio::error::broken_pipe) owner.seen_ = {};
    if (bytes_transferred_ == 0 || owner.descriptor_ < 0) {
        bytes_transferred_ = 0;
        return give_back();
    }
    ec_ = {};
    owner.filled_ = bytes_transferred_ == into->size();
}

stream::read_awaiter stream::read_next(buffer_pool& pool, lease& into, bool large, promise* promised) noexcept {
    read_.data = nullptr;
    read_.size = 0;
    read_.pipe = nullptr;
    read_.pool = &pool;
    read_.into = &into;
    read_.large = large;
    read_.promised = promised;
    read_.finished = false;
    // What TLS holds already gives no event. (What is still in the kernel does, or the reactor knows of it.)
    if (tls_ && !read_.pending && tls_->pending()) {
        auto const [ec, n] =
            read_.borrow() ? tls_->read(into.data(), into.size(), false) : io_result{asio::error::no_buffer_space, 0};
        if (would_block(ec)) {
            read_.give_back();
        } else {
            read_.ec_ = ec;
            read_.bytes_transferred_ = n;
            read_.finished = true;
            ++at_once_;
        }
    }
    return {*this};
}

stream::read_awaiter stream::read_more(char* data, std::size_t size) noexcept {
    assert(size > 0);
    read_.data = data;
    read_.size = size;
    read_.pipe = nullptr;
    return try_more();
}

stream::read_awaiter stream::read_more(pipe_lease& into, std::size_t size) noexcept {
    assert(size > 0 && !tls_);
    read_.data = nullptr;
    read_.size = size;
    read_.pipe = &into;
    return try_more();
}

stream::read_awaiter stream::try_more() noexcept {
    read_.pool = nullptr;
    read_.into = nullptr;
    read_.finished = false;
    // While it is gathered, only what TLS has in hand is there at once.
    if (descriptor_ >= 0 && !read_.pending && (!gathering_ || (tls_ && tls_->pending()))) {
        auto const [ec, n] = told(read_.pipe   ? read_.pipe->fill_from(descriptor_, read_.size)
                                  : gathering_ ? tls_->read(read_.data, read_.size, false)
                                               : receive(tls_.get(), descriptor_, read_.data, read_.size));
        if (!would_block(ec)) {
            filled_ = n == read_.size;
            read_.ec_ = ec;
            read_.bytes_transferred_ = n;
            read_.finished = true;
            ++at_once_;
        }
    }
    return {*this};
}

io_result stream::read_now(char* data, std::size_t size) noexcept {
    if (descriptor_ < 0) return {asio::error::bad_descriptor, 0};
    io_result const r = told(receive(tls_.get(), descriptor_, data, size));
    if (!r.ec) filled_ = r.n == size;
    return r;
}

// Looks whether a read would find anything: bytes, the end, an error.
bool stream::look() noexcept {
    auto const [ec, n] = peek(descriptor_);
    if (ec && !would_block(ec)) taken(ec);
    return !would_block(ec);
}

// A look or a write takes an error out of the socket, and the read behind it would find a plain end. (EPIPE comes behind such an
// end of the peer's own.)
error_code stream::taken(error_code const& ec) noexcept {
    if (ec != asio::error::broken_pipe) seen_ = ec;
    return ec;
}

// What a read found, then.
io_result stream::told(io_result const& r) const noexcept { return !r.ec && r.n == 0 && seen_ ? io_result{seen_, 0} : r; }

void stream::gather(unsigned sweeps) noexcept {
    look_in_ = sweeps;
    if (!std::exchange(gathering_, true)) wake_at(gathered_bytes);
}

void stream::gather_no_more() noexcept {
    if (std::exchange(gathering_, false)) wake_at(1);
}

// How many bytes must have come before the kernel wakes a wait for them. An end wakes it always.
void stream::wake_at(std::size_t bytes) noexcept {
    int const n = static_cast<int>(bytes);
    if (descriptor_ >= 0) ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVLOWAT, &n, sizeof n);
}

void stream::watch(watcher f, void* context) noexcept {
    read_.watch = f;
    read_.context = context;
    read_.awaiting = {};
    if (!read_.pending) arm_read(true);
}

void stream::start_read(std::coroutine_handle<> h) noexcept {
    read_.awaiting = h;
    read_.watch = nullptr;
    if (read_.finished) {  // its result stands already
        read_.pending = true;
        reactor_.post_immediate_completion(&read_, true);
        return;
    }
    // Else a watch was waiting: it serves this read now. A client that was just accepted has mostly not spoken yet.
    // A pipe was tried just now, and a second try would only be one more call than asking to be told.
    if (!read_.pending) arm_read(!read_.handshake && !gathering_ && !read_.pipe);
}

void stream::arm_read(bool try_first) noexcept {
    read_.ec_ = {};
    read_.bytes_transferred_ = 0;
    read_.pending = true;
    read_expired_ = nudged_ = false;
    reactor_.start_op(reactor::read_op, descriptor_, data_, &read_, true, try_first);
    new_ = false;
}

// A short message may be read with others', before its event is served.
void stream::queue_read(reactor::reading& base, call_batch& calls) noexcept {
    auto& o = static_cast<read_op&>(base);
    stream& s = o.owner;
    bool const alone = !o.pool || o.watch || o.handshake || o.pipe || o.large || s.tls_ || s.descriptor_ < 0 || s.seen_;
    if (alone || !o.borrow()) return;
    o.ahead = true;
    // (Its error does not go into the operation, where one that ends the wait would take its place.)
    calls.receive(s.descriptor_, o.into->data(), o.into->size(), s.seen_, o.bytes_transferred_);
}

// Bytes go before an error, be it of a write meanwhile; and behind an error some may still lie in the kernel.
io_result stream::came_ahead(read_op const& o) noexcept {
    if (o.bytes_transferred_ != 0) return {{}, o.bytes_transferred_};
    if (would_block(seen_)) return {std::exchange(seen_, {}), 0};
    return told(receive_from(descriptor_, o.into->data(), o.into->size(), 0));
}

// Runs inside the loop when the descriptor became readable (or at once, where the reactor knows of unread bytes).
status stream::perform_read(asio::detail::reactor_op* base) {
    auto& o = *static_cast<read_op*>(base);
    stream& s = o.owner;
    if (o.watch) {
        s.watch_found_ = s.look();
        return s.watch_found_ ? status::done : status::not_done;  // not exhausted: what is there is still to be read
    }
    if (o.handshake) {
        s.reactor_.serve();  // it may take a millisecond
        return s.shake_hands(o);
    }
    if (o.pipe) {
        io_result r = s.told(o.pipe->fill_from(s.descriptor_, o.size));
        if (would_block(r.ec) && peek(s.descriptor_).n > 0) {
            r = o.pipe->fill_from(s.descriptor_, o.size);  // did they come just now?
            if (would_block(r.ec)) r.ec = asio::error::operation_not_supported;
        }
        if (would_block(r.ec)) return status::not_done;
        o.ec_ = r.ec;
        o.bytes_transferred_ = r.n;
        s.filled_ = r.n == o.size;
        return status::done;  // it may have stopped for want of room in the pipe
    }
    char* data = o.data;
    std::size_t size = o.size;
    if (!data) {
        if (!o.borrow()) {
            o.ec_ = asio::error::no_buffer_space;
            return status::done;  // what came stays in the kernel
        }
        data = o.into->data();
        size = o.into->size();
    }
    io_result r = std::exchange(o.ahead, false) ? s.came_ahead(o) : s.told(receive(s.tls_.get(), s.descriptor_, data, size));
    // What has come is no whole record, and an end that came with it would be told by no event.
    if (would_block(r.ec) && s.tls_ && !s.told_of_more()) r = s.told(receive(s.tls_.get(), s.descriptor_, data, size));
    if (would_block(r.ec)) {
        if (!o.data) o.give_back();
        o.ec_ = {};
        return status::not_done;
    }
    o.ec_ = r.ec;
    o.bytes_transferred_ = r.n;
    s.filled_ = r.n == size;
    return s.read_done(s.tls_ ? s.tls_->drained() : r.n < size);
}

// Whether the next read waits for an event, or tries first.
status stream::read_done(bool drained) const noexcept {
    return drained && told_of_more() ? status::done_and_exhausted : status::done;
}

void stream::complete_read(void* owner, asio::detail::operation* base, error_code const&, std::size_t) {
    auto& o = *static_cast<read_op*>(base);
    if (!owner) {  // the loop is being destroyed
        o.pending = false;
        return;
    }
    if (std::exchange(o.ahead, false)) o.keep_what_came();
    reactor& r = o.owner.reactor_;
    if (r.gathering() && o.together()) return r.later(o.promised ? reactor::message::answer : reactor::message::request, o);
    r.serve();
    finish_read(o);
}

// Whether it is a short message, in a small buffer.
bool stream::read_op::together() const noexcept {
    return pool && !watch && !handshake && !ec_ && bytes_transferred_ > 0 && bytes_transferred_ <= together_bytes_max &&
           into->size() <= pool->small_bytes();
}

void stream::its_turn(reactor::waiting& w) noexcept { finish_read(static_cast<read_op&>(w)); }

void stream::finish_read(read_op& o) {
    o.pending = false;
    o.owner.at_once_ = 0;
    if (o.owner.nudged_ && o.ec_ == asio::error::operation_aborted && !o.owner.look_again()) return;
    // A read has taken the wait over since it found something, which is still to be read.
    if (std::exchange(o.owner.watch_found_, false) && !o.watch && o.owner.descriptor_ >= 0 &&
        perform_read(&o) == status::not_done)
        return o.owner.arm_read(false);
    if (o.watch) {
        auto const f = std::exchange(o.watch, nullptr);
        f(o.context);
        return;
    }
    if (auto const h = std::exchange(o.awaiting, {})) h.resume();
}

// The wait was ended by a nudge: its try is made up for. False: there was nothing after all, and it waits on.
bool stream::look_again() noexcept {
    nudged_ = false;
    if ((read_expired_ && !gathering_ && !read_.pool) || read_.watch || descriptor_ < 0) return true;
    read_.ec_ = {};
    if (perform_read(&read_) != status::not_done) return true;
    if (read_expired_) {
        read_.ec_ = asio::error::operation_aborted;
        return true;
    }
    arm_read(false);
    return false;
}

io_result stream::take_read() noexcept {
    read_.finished = false;
    read_.handshake = nullptr;
    if (read_.ec_ == asio::error::operation_aborted && read_expired_) return {asio::error::timed_out, 0};
    return {read_.ec_, read_.bytes_transferred_};
}

// --- writing

io_result stream::write_now(std::span<iovec const> pieces) noexcept {
    if (tls_) return write_records(pieces);
    if (pieces.size() == 1) return write_now(static_cast<char const*>(pieces[0].iov_base), pieces[0].iov_len);
    if (descriptor_ < 0) return {asio::error::bad_descriptor, 0};
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(pieces.data());
    message.msg_iovlen = pieces.size();
    for (;;) {
        ssize_t const n = ::sendmsg(descriptor_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) return {{}, static_cast<std::size_t>(n)};
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {asio::error::would_block, 0};
        if (errno != EINTR) return {taken(last_error()), 0};
    }
}

io_result stream::write_records(std::span<iovec const> pieces) noexcept {
    io_result const r = tls_->write(pieces);
    if (read_.pending && tls_->read_wants_write()) end_by_nudge();
    return r;
}

io_result stream::write_now(char const* data, std::size_t size) noexcept {
    if (tls_) {
        iovec const piece{const_cast<char*>(data), size};
        return write_records({&piece, 1});
    }
    if (descriptor_ < 0) return {asio::error::bad_descriptor, 0};
    for (;;) {
        ssize_t const n = plain_send(descriptor_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) return {{}, static_cast<std::size_t>(n)};
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {asio::error::would_block, 0};
        if (errno != EINTR) return {taken(last_error()), 0};
    }
}

bool stream::queue_write(call_batch& calls, std::span<iovec const> pieces, io_result& result) noexcept {
    if (tls_ || descriptor_ < 0 || pieces.empty()) return false;
    calls.send(descriptor_, pieces, result.ec, result.n);
    return true;
}

void stream::written(io_result& result) noexcept {
    if (result.ec && !would_block(result.ec)) taken(result.ec);
}

io_result stream::write_now(pipe_lease& from) noexcept {
    assert(!tls_);
    if (descriptor_ < 0) return {asio::error::bad_descriptor, 0};
    return from.drain_to(descriptor_);
}

void stream::start_write(std::coroutine_handle<> h) noexcept {
    write_.awaiting = h;
    write_.ec_ = {};
    write_.bytes_transferred_ = 0;
    write_.pending = true;
    write_expired_ = new_ = false;
    reactor_.start_op(reactor::write_op, descriptor_, data_, &write_, true, false);
}

status stream::perform_write(asio::detail::reactor_op*) { return status::done; }

void stream::complete_write(void* owner, asio::detail::operation* base, error_code const&, std::size_t) {
    auto& o = *static_cast<write_op*>(base);
    o.pending = false;
    if (!owner) return;
    o.owner.reactor_.serve();
    if (o.owner.write_expired_) o.ec_ = asio::error::timed_out;
    if (auto const h = std::exchange(o.awaiting, {})) h.resume();
}

error_code stream::connect_result() const noexcept {
    int e = 0;
    socklen_t size = sizeof e;
    if (descriptor_ < 0) return asio::error::bad_descriptor;
    if (::getsockopt(descriptor_, SOL_SOCKET, SO_ERROR, &e, &size) != 0) return last_error();
    // An event can be of a descriptor that was closed in the same turn, whose state Asio has used again for this one.
    tcp_info info{};
    socklen_t info_size = sizeof info;
    if (e == 0 && ::getsockopt(descriptor_, IPPROTO_TCP, TCP_INFO, &info, &info_size) == 0 && info.tcpi_state == TCP_SYN_SENT)
        return asio::error::would_block;
    return {e, boost::system::system_category()};
}

// --- deadlines

bool stream::expire(std::int64_t now_ns) noexcept {
    auto const over = [now_ns](std::int64_t deadline) { return deadline != 0 && now_ns >= deadline; };
    if (descriptor_ < 0 || (!gathering_ && !over(read_deadline_) && !over(write_deadline_))) return false;
    // (A read that waits for a write of ours, which the client does not take, is held to that one's deadline. One that was put
    // off has something to read, in its turn, and its reader looks at the clock (of a TLS record once that is whole); but a
    // handshake does not, however its bytes drip.)
    bool const read_late = read_.pending && !read_.watch && over(read_deadline_) &&
                           !(write_.pending && tls_ && tls_->read_wants_write()) &&
                           (read_.handshake || !reactor_.has_put_off(data_));
    bool const write_late = write_.pending && over(write_deadline_);
    if (gathering_ && !read_late) look_in_ > 1 ? void(--look_in_) : nudge();
    if (!read_late && !write_late) return false;
    if (read_late) {
        cancel_read();
        read_expired_ = true;
        nudged_ = gathering_ || read_.pool;
    }
    if (write_late) {
        write_expired_ = true;
        reactor_.cancel_ops_by_key(descriptor_, data_, reactor::write_op, &write_);
    }
    return true;
}

void stream::nudge() noexcept {
    if (descriptor_ < 0 || !read_.pending) return;
    if (look()) end_by_nudge();
}

void stream::end_by_nudge() noexcept {
    cancel_read();
    nudged_ = true;
}

void stream::cancel_read() noexcept {
    nudged_ = false;
    if (descriptor_ >= 0 && read_.pending) reactor_.cancel_ops_by_key(descriptor_, data_, reactor::read_op, &read_);
}

void stream::cancel_write() noexcept {
    if (descriptor_ >= 0 && write_.pending) reactor_.cancel_ops_by_key(descriptor_, data_, reactor::write_op, &write_);
}

}  // namespace latchkey::gateway
