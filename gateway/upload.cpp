// The request's body, beside the response: what comes from the client goes to the upstream until it is whole.

#include <algorithm>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "gateway/session.hpp"
#include "gateway/worker.hpp"

namespace latchkey::gateway {
namespace {

// A body is passed on as it comes, for somebody may wait for each byte. But who has sent so many parts that are so small, more of
// them between two sweeps than anything alive needs, is gathered until the next sweep: each costs a read and a write, and the
// upstream a read.
constexpr std::size_t small_part_bytes = 512;
constexpr unsigned small_parts_free = 1024;
constexpr unsigned small_parts_a_sweep = 32;

}  // namespace

detached session::upload(exchange& x) {
    x.uploading = true;
    bool whole = false;
    try {
        whole = co_await upload_all(x);
    } catch (std::exception const& e) {
        log::error("session", "an upload was ended: {}", e.what());
        x.client_gone = true;
    }
    x.uploading = false;
    client_.gather_no_more();
    if (!whole && upload_failed(x))
        x.up->io.cancel_read();  // no answer can come of half a request
    else if (x.answered_ns == 0)
        x.up->io.read_until(steady_ns() + ns(x.api->deadlines.response_head));
    x.upload_done.set();
}

task<bool> session::upload_all(exchange& x) {
    auto const& deadlines = w_.shared().settings.client;
    auto& buffers = w_.buffers();
    bool const chunked = x.frame.body.kind == body_kind::chunked;
    if (x.unsent.left() > 0) {
        error_code const ec = co_await write_up(x, x.unsent, 0);
        if (ec == asio::error::timed_out && x.answered_ns == 0) x.upload_failure = refusal::upstream_timeout;
        if (x.upstream_deaf || x.body_whole) co_return !x.upstream_deaf;
    }
    lease buffer = buffers.redeem(x.body_room, !chunked && x.body_left > buffers.small_bytes());
    if (!buffer) {
        x.upload_failure = refusal::overloaded;
        co_return false;
    }
    while (!x.body_whole && !x.stop_uploading) {
        std::int64_t const now = steady_ns();
        std::int64_t until = now + ns(deadlines.body_stall);
        if (deadlines.request.count() != 0) until = std::min(until, x.began_ns + ns(deadlines.request));
        if (until <= now) {  // what is gathered is taken although its time is up
            x.upload_failure = refusal::body_timeout;
            co_return false;
        }
        client_.read_until(until);
        std::size_t size = buffer.size();
        if (!chunked) size = static_cast<std::size_t>(std::min<std::uint64_t>(size, x.body_left));
        io_result const r = co_await client_.read_more(buffer.data(), size);
        if (r.ec == asio::error::timed_out) {
            x.upload_failure = refusal::body_timeout;
            co_return false;
        }
        if (r.ec || r.n == 0) {
            x.client_gone = !x.stop_uploading;
            co_return false;
        }

        pace_upload(x, r.n);
        pieces p;
        std::size_t consumed = r.n;
        std::size_t payload = r.n;
        if (chunked) {
            auto const step = x.decoder.decode(buffer.data(), r.n);
            if (step.now == chunk_decoder::state::bad) {
                x.upload_failure = refusal::invalid_chunk;
                co_return false;
            }
            consumed = step.consumed;
            payload = step.payload;
            x.body_whole = step.now == chunk_decoder::state::done;
            add_chunk(p, x.up_line, {buffer.data(), payload}, x.body_whole, x.decoder.trailers());
        } else {
            x.body_left -= r.n;
            x.body_whole = x.body_left == 0;
            p.add(buffer.data(), r.n);
        }
        x.request_bytes += consumed;
        x.body_seen += payload;
        if (x.body_limit != 0 && x.body_seen > x.body_limit) {
            x.body_whole = false;
            x.upload_failure = refusal::body_too_large;
            co_return false;
        }
        bool const all_out = p.left() == 0 || try_write_up(x, p);
        if (!all_out) co_await write_up(x, p, 0);
        if (consumed < r.n) {
            x.leftover_begin = consumed;
            x.leftover_end = r.n;
            x.leftover = std::move(buffer);
            co_return !x.upstream_deaf;
        }
        if (x.upstream_deaf) co_return false;
        if (r.n == buffer.size() && buffer.size() < buffers.large_bytes() && (chunked || x.body_left > buffer.size()))
            buffers.enlarge(buffer);
    }
    co_return x.body_whole;
}

void session::pace_upload(exchange& x, std::size_t brought) noexcept {
    if (x.sweep != w_.sweeps()) {
        x.sweep = w_.sweeps();
        x.parts_of_sweep = 0;
        client_.gather_no_more();
    }
    if (brought < small_part_bytes && ++x.small_parts > small_parts_free && ++x.parts_of_sweep >= small_parts_a_sweep)
        client_.gather(1);
}

void session::stop_upload(exchange& x) noexcept {
    x.stop_uploading = true;
    client_.cancel_read();
    if (x.up) x.up->io.cancel_write();
}

}  // namespace latchkey::gateway
