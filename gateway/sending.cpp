// What a session writes, to the client and to the upstream: at once, with others of its step, or when there is room again.

#include "base/clock.hpp"
#include "gateway/session.hpp"
#include "gateway/worker.hpp"

namespace latchkey::gateway {
namespace {

// What goes out now, of that what went.
io_result write_some(stream& to, pieces& p) noexcept {
    io_result const r = to.write_now(p.rest());
    p.advance(r.n);
    return r;
}
io_result write_some(stream& to, pipe_lease& p) noexcept { return to.write_now(p); }

}  // namespace

// --- Writing to the client. With `last`, the record is in the ring before the write that may send the last byte, final once that
// byte has left, and taken back if it has not.

// True: all of it went out, or `ec` says why nothing more can.
template <class Bytes>
bool session::try_send(exchange& x, Bytes& p, bool last, error_code& ec) {
    bool const prepared = begin_send(x, p.left(), last);
    io_result const r = write_some(client_, p);
    return end_send(x, r, p.left(), prepared, ec);
}

bool session::begin_send(exchange& x, std::size_t left, bool last) noexcept {
    return last && prepare_record(x, x.response_bytes + left, false);
}

// `left` behind the write.
bool session::end_send(exchange& x, io_result const& r, std::size_t left, bool prepared, error_code& ec) noexcept {
    x.response_bytes += r.n;
    if (prepared) {
        if (left == 0) {
            w_.ring().commit();
            committed(x);
        } else {
            w_.ring().retract();
        }
    }
    if (left == 0) return true;
    if (!r.ec || would_block(r.ec)) return false;
    ec = r.ec;
    return true;
}

// Its record is prepared when all of this step have been decided: what they waited for each other counts for them.
bool session::first_send::begin(call_batch& calls) noexcept {
    if (!s_.client_.queue_write(calls, p_.rest(), result_)) return false;
    s_.last_ns_ = s_.w_.poller().now();
    begun_ = true;
    prepared_ = s_.begin_send(x_, p_.left(), last_);
    return true;
}

void session::first_send::waited() noexcept {
    if (!begun_) s_.last_ns_ = s_.w_.poller().now();
}

void session::first_send::end() noexcept {
    s_.client_.written(result_);
    p_.advance(result_.n);
    done_ = s_.end_send(x_, result_, p_.left(), prepared_, ec_);
}

template <class Bytes>
task<error_code> session::send(exchange& x, Bytes& p, bool last) {
    error_code ec;
    while (!try_send(x, p, last, ec)) {
        client_.write_until(steady_ns() + ns(w_.shared().settings.client.write_stall));
        ec = co_await client_.writable();
        if (ec) break;
        last_ns_ = steady_ns();
    }
    co_return ec;
}

template bool session::try_send(exchange&, pieces&, bool, error_code&);
template bool session::try_send(exchange&, pipe_lease&, bool, error_code&);
template task<error_code> session::send(exchange&, pieces&, bool);
template task<error_code> session::send(exchange&, pipe_lease&, bool);

// --- Writing to the upstream.

// True: all of it went out, or the upstream takes no more (then it may have answered before it stopped listening: read on).
bool session::try_write_up(exchange& x, pieces& p) { return wrote_up(x, p, x.up->io.write_now(p.rest())); }

bool session::wrote_up(exchange& x, pieces& p, io_result const& r) noexcept {
    x.up_bytes += r.n;
    p.advance(r.n);
    x.upstream_deaf = r.ec && !would_block(r.ec);
    return p.left() == 0 || x.upstream_deaf;
}

bool session::first_write_up::begin(call_batch& calls) noexcept {
    if (!x_.up->io.queue_write(calls, x_.unsent.rest(), result_)) return false;
    x_.asked_ns = s_.last_ns_ = s_.w_.poller().now();
    begun_ = true;
    return true;
}

void session::first_write_up::waited() noexcept {
    if (!begun_) x_.asked_ns = s_.last_ns_ = s_.w_.poller().now();
}

void session::first_write_up::end() noexcept {
    x_.up->io.written(result_);
    done_ = s_.wrote_up(x_, x_.unsent, result_);
}

// What that left, until no more than `rest` is left of it. An error where the upstream took nothing for too long, or was not to.
task<error_code> session::write_up(exchange& x, pieces& p, std::size_t rest) {
    do {
        x.up->io.write_until(steady_ns() + ns(x.api->deadlines.body_stall));
        error_code ec = asio::error::operation_aborted;
        if (!x.stop_uploading) ec = co_await x.up->io.writable();
        x.upstream_deaf = static_cast<bool>(ec);
        if (ec) co_return ec;
    } while (!try_write_up(x, p) && p.left() > rest);
    co_return error_code();
}

}  // namespace latchkey::gateway
