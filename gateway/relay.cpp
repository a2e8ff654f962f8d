// The upstream half of a session's walk: lease a connection, send the request, read the answer, stream its body.

#include <algorithm>
#include <cstring>

#include "base/clock.hpp"
#include "gateway/rewrite.hpp"
#include "gateway/session.hpp"
#include "gateway/worker.hpp"

namespace latchkey::gateway {
namespace {

// A body of this size is copied behind its head, for one plain send costs less than a gathered one. (The response's buffer holds
// more than a head and this.)
constexpr std::size_t copied_bytes_max = 4096;
// A response's body of which so much is to come goes through a pipe, uncopied, where its length is known and nothing is
// encrypted.
constexpr std::uint64_t spliced_bytes_min = 256U << 10U;
// A pooled connection that was idle for so long is looked at before a request that cannot be sent twice. (No server's keep-alive
// timeout is near it.)
constexpr std::int64_t idle_looked_at_ns = 50'000'000;
constexpr unsigned interim_max = 16;  // 1xx responses before the final one (fault U11)

bool is_spliced(response const& r, stream const& client, pipe_pool const& pipes) noexcept {
    return r.kind == body_kind::length && r.left >= spliced_bytes_min && !client.tls() && pipes.may_lend();
}

// Who ended a response that had begun, when its upstream connection gave no more.
usage::outcome blame(exchange const& x) noexcept {
    if (x.upload_failure == refusal::body_timeout) return usage::outcome::timed_out;
    return upload_failed(x) ? usage::outcome::client_aborted : usage::outcome::upstream_aborted;
}

}  // namespace

// --- Lease, send, read: twice where a pooled connection turned out to be stale.

task<refusal> session::ask_upstream(exchange& x) {
    for (bool fresh = false;; fresh = true) {
        refusal why = refusal::none;
        if (fresh || !(lease_pooled(x) || co_await lease_returned(x))) why = co_await lease_fresh(x);
        if (why == refusal::none && !write_request_lines(x)) why = refusal::head_too_large;
        if (why == refusal::none) {
            std::size_t const body_bytes = gather_request(x);
            first_write_up first(*this, x);
            if (co_await reactor::turn(w_.poller(), reactor::part::send, &first)) first.waited();
            // The head goes out first, for the answer's will take its place.
            error_code stalled;
            if (!first.done() && x.unsent.left() > body_bytes) {
                stalled = co_await write_up(x, x.unsent, body_bytes);
                if (!stalled) x.asked_ns = steady_ns();
            }
            begin_upload(x);
            if (stalled) x.up->io.read_until(steady_ns());  // only an answer that is there is of use now
            why = co_await read_answer(x);
        }
        bool const again = why == refusal::upstream_reset && may_retry(x);
        if (!again) co_return why;
        if (x.uploading) {
            stop_upload(x);
            co_await x.upload_done;
            x.stop_uploading = false;
            if (upload_failed(x)) co_return x.upload_failure;
            if (!may_retry(x)) co_return why;  // it took some more of the body before it ended
        }
        x.up->pool().discard(x.up);
        x.up = nullptr;
        if (!promise_room(x)) co_return why;  // what the discarded one and the upload held is free again, but perhaps not for us
        x.up_bytes = 0;
        x.upstream_deaf = false;
        x.retried = true;
        w_.count().upstream_retries.add();
    }
}

// Whether the request may be sent once more: nothing of an answer came, all that was sent is still in hand, and the upstream
// either may see it twice (RFC 9110 section 9.2.2) or provably saw nothing of it. Proof is a clean end of stream that
// acknowledges none of our bytes. A reset proves nothing: the kernel acts on it before it looks at what it acknowledges.
bool session::may_retry(exchange const& x) const noexcept {
    if (!x.up || !x.up->reused || x.retried || x.head_sent || x.client_gone) return false;
    if (x.body_seen != x.body.size()) return false;  // some of the body was read, sent and let go
    return x.idempotent || x.up_bytes == 0 || (x.ended_by_fin && !x.up->peer_has_bytes());
}

// A pooled connection of the target whose turn it is. A request that cannot be sent twice gets none that has ended already: one
// that was idle for a while is looked at. One that was not has had no time for its server's keep-alive timeout, and where it has
// ended all the same, may_retry() mostly finds that nothing was taken; but some of a body may be gone by then.
bool session::lease_pooled(exchange& x) {
    x.to = w_.group(x.api_index).choose(last_ns_, 0);
    while (x.to && (x.up = x.to->pool->take_idle())) {
        bool const looked_at = !x.idempotent && (!x.body_whole || x.up->idle_ns(last_ns_) >= idle_looked_at_ns);
        if (!looked_at || would_block(peek(x.up->io.descriptor()).ec)) return true;
        x.to->pool->discard(x.up);
        x.up = nullptr;
    }
    return false;
}

// One that another request gives back before it would be worth while to make one.
task<bool> session::lease_returned(exchange& x) {
    if (!x.to) co_return false;
    x.up = co_await upstream_pool::returned(*x.to->pool, last_ns_);
    last_ns_ = steady_ns();
    if (x.up) x.asked_ns = last_ns_;
    co_return x.up != nullptr;
}

// A new connection, to the target whose turn it is or, where that cannot be reached, to the others in turn.
task<refusal> session::lease_fresh(exchange& x) {
    target_group& group = w_.group(x.api_index);
    std::uint64_t tried = 0;
    refusal why = refusal::upstream_unreachable;
    for (; x.to; x.to = group.choose(last_ns_, tried)) {
        std::uint64_t const bits = group.bits_of(*x.to);
        tried |= bits;
        upstream_pool& pool = *x.to->pool;
        if (pool.at_limit()) {
            why = refusal::overloaded;
        } else {
            if (w_.closing()) co_return refusal::shutting_down;
            upstream_pool::connected const c = co_await pool.connect(steady_ns());
            x.asked_ns = last_ns_ = steady_ns();
            if (c.connection) {
                pool.succeeded();
                x.up = c.connection;
                co_return w_.closing() ? refusal::shutting_down : refusal::none;
            }
            pool.failed(last_ns_, c.ec);
            why = c.ec == asio::error::timed_out ? refusal::upstream_connect_timeout
                  : is_shortage(c.ec)            ? refusal::overloaded
                                                 : refusal::upstream_unreachable;
            if (w_.closing()) co_return refusal::shutting_down;
        }
        if (bits == 0) break;  // beyond the 64th target: no second round
    }
    co_return why;
}

// The head's first lines, which depend on the target, right before its fields.
bool session::write_request_lines(exchange& x) {
    writer w(x.out.data(), x.fields_begin);
    bool const client_host = x.api->host == conf::host_header::client && !x.frame.host.empty();
    gateway::write_request_lines(w, x.method, x.to->base_path, x.forward_path, x.query,
                                 client_host ? x.frame.host : x.to->pool->authority());
    x.lines_size = w.size();
    std::memmove(x.out.data() + x.fields_begin - x.lines_size, x.out.data(), x.lines_size);
    return !w.overflowed();
}

// Head and body, as far as they are in hand. How much of that is body.
std::size_t session::gather_request(exchange& x) {
    pieces& p = x.unsent;
    std::size_t const head_bytes = x.lines_size + x.fields_end - x.fields_begin;
    p.clear();
    p.add(x.out.data() + x.fields_begin - x.lines_size, head_bytes);
    if (x.frame.body.kind == body_kind::chunked)
        add_chunk(p, x.up_line, x.body, x.body_whole, x.decoder.trailers());
    else
        p.add(x.body);
    if (x.asked_ns == 0) x.asked_ns = last_ns_;
    return p.left() - head_bytes;
}

// Starts what runs beside the answer: the rest of the request, or the wait for the response head. (An upstream may answer before
// it takes all of what is in hand, RFC 9112 section 9.3: so that is not waited for.)
void session::begin_upload(exchange& x) {
    bool const all_sent = x.body_whole && x.unsent.left() == 0;
    if (all_sent || x.upstream_deaf) {
        x.up->io.read_until(x.asked_ns + ns(x.api->deadlines.response_head));
        return;
    }
    x.up->io.read_until(0);  // counts from the end of the upload
    x.upload_done.reset();   // (that before a retry may have ended by itself)
    upload(x);
}

task<refusal> session::read_answer(exchange& x) {
    upstream_connection& up = *x.up;
    auto const& limit = w_.shared().settings.limit;
    head& h = w_.response_scratch();
    response_frame frame;
    unsigned interim = 0;
    unsigned reads = 0;  // after the first
    std::size_t searched = 0;
    up.begin = up.end = 0;
    for (;;) {
        parsed p = parsed::more;
        if (up.begin != up.end)
            p = parse_response_head(up.in.data() + up.begin, up.end - up.begin, searched,
                                    {limit.response_head_bytes, 0, limit.fields}, h);
        if (p == parsed::bad) co_return refusal::upstream_invalid;
        if (p == parsed::whole) {
            if (!check_response(h, x.to_head, frame)) co_return refusal::upstream_invalid;
            if (h.status >= 200) break;
            if (++interim > interim_max) co_return refusal::upstream_invalid;
            up.begin += h.bytes;
            searched = 0;
            bool const client_there = co_await relay_interim(x, h);
            if (!client_there) co_return refusal::none;
            continue;
        }
        if (upload_failed(x)) co_return answer_failure(x, asio::error::operation_aborted);
        io_result r;
        if (up.begin == up.end) up.begin = up.end = 0;
        if (up.end == 0 && interim == 0) {
            r = co_await up.io.read_next(w_.buffers(), up.in, up.pool().expects_long(), &x.answer_room);
            // The answer is there, and the kernel has no memory for the buffer that it was promised: it waits. It cannot be
            // refused any more, for the upstream has done what was asked.
            if (r.ec == asio::error::no_buffer_space) {
                if (x.uploading || steady_ns() < x.asked_ns + ns(x.api->deadlines.response_head)) {
                    co_await w_.next_sweep();
                    continue;
                }
                r.ec = asio::error::timed_out;
            }
        } else {  // within a message, or behind an interim response: an end may have come with the bytes before
            if (up.end == up.in.size()) co_return refusal::upstream_invalid;
            if (++reads > stream::parts_at_once) {
                co_await w_.next_sweep();
                if (upload_failed(x)) co_return answer_failure(x, asio::error::operation_aborted);
                if (up.io.late(steady_ns())) co_return answer_failure(x, asio::error::timed_out);
            }
            r = co_await up.io.read_more(up.in.data() + up.end, up.in.size() - up.end);
        }
        x.ended_by_fin = !r.ec && r.n == 0;
        if (r.ec || r.n == 0) co_return answer_failure(x, r.ec);
        up.end += r.n;
    }
    x.answered_ns = last_ns_ = w_.poller().now();
    if (x.upload_failure == refusal::upstream_timeout) x.upload_failure = refusal::none;  // it came after all
    response r;
    if (!compose_response(x, h, frame, r)) co_return refusal::upstream_invalid;
    error_code ec;
    first_send first(*this, x, r.first, r.last);
    if (co_await reactor::turn(w_.poller(), reactor::part::send, &first)) first.waited();
    if (!first.done(ec)) ec = co_await send(x, r.first, r.last);
    r.more.reset();
    bool sent = !ec;
    if (ec) break_off(x, ec == asio::error::timed_out ? usage::outcome::timed_out : usage::outcome::client_aborted);
    if (sent && !r.last) sent = co_await relay_rest(x, r);
    if (sent) x.keep_upstream = r.reusable && !x.surplus && x.body_whole && !x.upstream_deaf && !x.uploading;
    co_return refusal::none;
}

// The answer did not come. Whose fault it is, and what the client gets.
refusal session::answer_failure(exchange& x, error_code ec) {
    if (w_.closing()) {
        x.end = usage::outcome::shut_down;
        return refusal::shutting_down;
    }
    if (x.upload_failure != refusal::none) return x.upload_failure;
    if (x.client_gone) {
        x.end = usage::outcome::client_aborted;
        x.head_sent = true;  // nobody is there to be told
        return refusal::none;
    }
    return ec == asio::error::timed_out ? refusal::upstream_timeout : refusal::upstream_reset;
}

// --- The response.

task<bool> session::relay_interim(exchange& x, head const& h) {
    if (x.http_1_0) co_return true;  // RFC 9110 section 15.2
    lease space = w_.buffers().small();
    if (!space) co_return true;  // memory is short, and an interim response is never needed
    writer w(space.data(), space.size());
    write_interim_head(w, h);
    pieces p;
    p.add(w.view());
    error_code const ec = co_await send(x, p, false);
    if (ec) break_off(x, usage::outcome::client_aborted);
    co_return !ec;
}

// The final response: its head as the client will see it, with what of the body is in hand, in one write where that is all of
// it. False: it is not valid after all.
bool session::compose_response(exchange& x, head const& h, response_frame const& f, response& r) {
    upstream_connection& up = *x.up;
    char* const body = up.in.data() + up.begin + h.bytes;
    std::size_t const available = up.end - up.begin - h.bytes;
    r.kind = f.body.kind;
    r.reusable = f.keep_alive;

    std::size_t in_hand = 0;
    r.whole = r.kind == body_kind::none;
    x.surplus = r.whole && available > 0;
    if (r.kind == body_kind::length) {
        in_hand = static_cast<std::size_t>(std::min<std::uint64_t>(available, f.body.length));
        r.left = f.body.length - in_hand;
        r.whole = r.left == 0;
        x.surplus = available > in_hand;
    } else if (r.kind == body_kind::chunked) {
        r.decoder.drop_forbidden();
        auto const step = r.decoder.decode(body, available);
        if (step.now == chunk_decoder::state::bad) return false;
        in_hand = step.payload;
        r.whole = step.now == chunk_decoder::state::done;
        x.surplus = step.consumed < available;
    } else if (r.kind == body_kind::until_close) {
        in_hand = available;
    }

    // (One that goes through a pipe wants no large buffer for its beginning.)
    bool const long_one = in_hand + r.left > w_.buffers().small_bytes() || up.end == up.in.size();
    up.pool().expect_long(long_one && !is_spliced(r, client_, w_.pipes()));

    // Without a length, HTTP/1.1 clients get chunks, so that a break is seen; HTTP/1.0 clients the connection's end.
    bool const unmeasured = r.kind == body_kind::chunked || r.kind == body_kind::until_close;
    r.rechunk = unmeasured && !x.http_1_0;
    x.ends_by_close = unmeasured && x.http_1_0;
    x.keep_client = may_keep(x) && !x.ends_by_close;
    // Where the client may still send what we will not read, a plain close could cost it the end of this response.
    linger_ = !x.keep_client && (x.frame.keep_alive || !x.body_whole || begin_ != end_);

    answer_context c;
    c.frame = &f;
    c.body = r.rechunk ? framing{body_kind::chunked, 0} : unmeasured ? framing{body_kind::until_close, 0} : f.body;
    c.request_id = x.request_id;
    c.date = w_.date();
    c.http_1_0 = x.http_1_0;
    c.to_head = x.to_head;
    c.close = !x.keep_client;
    writer w(x.out.data(), x.out.size());
    write_response_head(w, h, c);
    if (w.overflowed()) return false;
    x.status = static_cast<std::uint16_t>(h.status);
    x.head_sent = true;

    bool const short_and_whole = r.whole && !r.rechunk && in_hand <= copied_bytes_max;
    if (short_and_whole) w.add(std::string_view(body, in_hand));
    r.first.add(w.view());
    if (r.rechunk)
        add_chunk(r.first, x.down_line, {body, in_hand}, r.whole, r.decoder.trailers());
    else if (!short_and_whole)
        r.first.add(body, in_hand);

    // A long body whose first part filled the buffer: more of it is probably there, and goes out with the same write.
    if (r.left > 0 && up.end == up.in.size() && !is_spliced(r, client_, w_.pipes())) {
        auto& buffers = w_.buffers();
        r.more = r.left > buffers.small_bytes() ? buffers.large() : buffers.small();
        if (r.more) {
            auto const size = static_cast<std::size_t>(std::min<std::uint64_t>(r.more.size(), r.left));
            io_result const read = up.io.read_now(r.more.data(), size);
            r.first.add(r.more.data(), read.n);
            r.left -= read.n;
            r.whole = r.left == 0;
        }
    }
    if (r.whole) r.kind = body_kind::none;
    r.last = r.whole && c.body.kind != body_kind::until_close;
    return true;
}

// The rest of a body that was not whole with its head. False: it broke off, and `x` says how.
task<bool> session::relay_rest(exchange& x, response& r) {
    upstream_connection& up = *x.up;
    auto& buffers = w_.buffers();
    // What came with the head is sent: its buffer serves the rest too, so a response that has begun needs none that might not be
    // there.
    lease buffer = std::move(up.in);
    x.out.reset();  // nor is that of the heads needed for as long as the rest may take
    if (is_spliced(r, client_, w_.pipes())) {
        if (pipe_lease pipe = w_.pipes().take()) {
            buffers.shrink(buffer, 0);
            bool const sound = co_await relay_spliced(x, r, std::move(pipe), buffer);
            if (!sound) co_return false;
        }
    }
    if (r.kind == body_kind::length && r.left > buffer.size()) buffers.enlarge(buffer);
    // A large one that the answer before made expected, and that was not needed: an event stream would hold it for hours.
    bool const unneeded = (r.kind == body_kind::length ? r.left : up.end) <= buffers.small_bytes();
    if (unneeded && r.kind != body_kind::none) buffers.shrink(buffer, 0);
    while (!r.whole) {
        std::size_t size = buffer.size();
        if (r.kind == body_kind::length) size = static_cast<std::size_t>(std::min<std::uint64_t>(size, r.left));
        if (upload_failed(x)) {
            break_off(x, blame(x));
            co_return false;
        }
        up.io.read_until(steady_ns() + ns(x.api->deadlines.body_stall));
        io_result const read = co_await up.io.read_more(buffer.data(), size);
        bool const ended = !read.ec && read.n == 0;
        if (read.ec || (ended && r.kind != body_kind::until_close)) {
            break_off(x, blame(x));
            co_return false;
        }

        pieces p;
        if (r.kind == body_kind::length) {
            r.left -= read.n;
            r.whole = r.left == 0;
            p.add(buffer.data(), read.n);
        } else if (r.kind == body_kind::chunked) {
            auto const step = r.decoder.decode(buffer.data(), read.n);
            r.whole = step.now == chunk_decoder::state::done;
            if (step.now == chunk_decoder::state::bad) {
                break_off(x, usage::outcome::upstream_aborted);
                co_return false;
            }
            if (r.rechunk)
                add_chunk(p, x.down_line, {buffer.data(), step.payload}, r.whole, r.decoder.trailers());
            else
                p.add(buffer.data(), step.payload);
            x.surplus = r.whole && step.consumed < read.n;
        } else {
            r.whole = ended;
            if (r.rechunk)
                add_chunk(p, x.down_line, {buffer.data(), read.n}, r.whole, {});
            else
                p.add(buffer.data(), read.n);
        }

        bool const last = r.whole && (r.rechunk || r.kind == body_kind::length);
        if (last) last_ns_ = steady_ns();
        error_code ec;
        if (p.left() > 0 && !try_send(x, p, last, ec)) ec = co_await send(x, p, last);
        if (ec) {
            break_off(x, ec == asio::error::timed_out ? usage::outcome::timed_out : usage::outcome::client_aborted);
            co_return false;
        }
        // Long bodies: reads that grow where bytes come faster than they are taken.
        if (read.n == buffer.size() && buffer.size() < buffers.large_bytes() &&
            (r.kind != body_kind::length || r.left > buffer.size()))
            buffers.enlarge(buffer);
    }
    // Towards HTTP/1.0 the end of the connection is the last byte: the record goes first. (Elsewhere it was tried before the last
    // byte; where the ring was full, finish() tries once more.)
    if (x.ends_by_close) {
        last_ns_ = steady_ns();
        if (prepare_record(x, x.response_bytes, false)) {
            w_.ring().commit();
            committed(x);
        }
        if (client_.tls()) co_await end_tls();
        client_.shutdown_write();
    }
    co_return true;
}

// The same by pipe. True: the body is whole, or goes on by copying. `buffer` is for what stands in a pipe that cannot be emptied.
task<bool> session::relay_spliced(exchange& x, response& r, pipe_lease pipe, lease& buffer) {
    upstream_connection& up = *x.up;
    while (!r.whole) {
        if (upload_failed(x)) {
            break_off(x, blame(x));
            co_return false;
        }
        up.io.read_until(steady_ns() + ns(x.api->deadlines.body_stall));
        auto const most = static_cast<std::size_t>(std::min<std::uint64_t>(pipe_lease::size, r.left));
        io_result const read = co_await up.io.read_more(pipe, most);
        if (read.ec == asio::error::operation_not_supported) break;
        if (read.ec || read.n == 0) {
            break_off(x, blame(x));
            co_return false;
        }
        r.left -= read.n;
        r.whole = r.left == 0;
        if (r.whole) last_ns_ = steady_ns();
        error_code ec;
        if (!try_send(x, pipe, r.whole, ec)) ec = co_await send(x, pipe, r.whole);
        while (ec == asio::error::operation_not_supported && pipe.left() > 0) {
            pieces p;
            p.add(buffer.data(), pipe.read(buffer.data(), buffer.size()));
            if (p.left() == 0) break;
            ec = co_await send(x, p, r.whole && pipe.left() == 0);
            if (!ec && pipe.left() > 0) ec = asio::error::operation_not_supported;
        }
        if (ec) {
            break_off(x, ec == asio::error::timed_out ? usage::outcome::timed_out : usage::outcome::client_aborted);
            co_return false;
        }
    }
    co_return true;
}

// The response cannot be completed: the client must see that (law 8). By a reset: behind a clean end, some clients (Python's
// requests, Java's HttpURLConnection) take what is there for the whole, even where it is shorter than its length.
void session::break_off(exchange& x, usage::outcome how) noexcept {
    x.end = w_.closing() ? usage::outcome::shut_down : how;
    x.head_sent = true;
    x.keep_client = x.keep_upstream = false;
    x.hard_close = true;
    linger_ = false;
}

}  // namespace latchkey::gateway
