#include "gateway/session.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

#include "base/clock.hpp"
#include "base/log.hpp"
#include "gateway/rewrite.hpp"
#include "gateway/tls_session.hpp"
#include "gateway/worker.hpp"

namespace latchkey::gateway {
namespace {

std::uint32_t us_between(std::int64_t from_ns, std::int64_t to_ns) noexcept {
    if (from_ns == 0 || to_ns <= from_ns) return 0;
    return static_cast<std::uint32_t>(std::min<std::int64_t>((to_ns - from_ns) / 1000, UINT32_MAX));
}

// RFC 9110 section 9.2.2.
bool is_idempotent(std::string_view method) noexcept {
    return method == "GET" || method == "HEAD" || method == "PUT" || method == "DELETE" || method == "OPTIONS";
}

usage::outcome outcome_of(refusal r) noexcept {
    switch (r) {
        case refusal::head_timeout:
        case refusal::body_timeout: return usage::outcome::timed_out;
        case refusal::upstream_unreachable:
        case refusal::upstream_reset:
        case refusal::upstream_invalid:
        case refusal::upstream_connect_timeout:
        case refusal::upstream_timeout: return usage::outcome::upstream_failed;
        case refusal::shutting_down: return usage::outcome::shut_down;
        default: return usage::outcome::refused;
    }
}

// Whether servers that decode before they look ("/admin%3Ax" is their "/admin:x"), slashes too, or take parameters off
// ("/admin;x" is their "/admin"), see a path of the same api. Else a client would be let in by the rules of one api and served
// what is another's. Where a prefix itself names parameters, it decides.
bool same_read_otherwise(router const& r, std::string_view host, request_target const& t, router::match found) noexcept {
    bool const cut = t.parameters && t.path.substr(0, found.prefix).find(';') == std::string_view::npos;
    std::array<char, conf::path_prefix_bytes_max + 2> room;
    for (auto const& [parameters_cut, slashes_decoded] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        if ((parameters_cut && !cut) || (slashes_decoded && !t.encoded_slash)) continue;
        auto const seen = r.find(host, read_otherwise(t.path, parameters_cut, slashes_decoded, room));
        if (!seen || seen->api != found.api || seen->prefix != found.prefix) return false;
    }
    return true;
}

// Pipelined requests that the gateway refuses need no wait at all. Without a turn for others in between, one client could hold
// the worker for as long as it sends; and where the compiler makes no tail call of a resumption (GCC below -O2), each adds to the
// stack.
constexpr unsigned pipelined_max = 32;
// Old clients send one behind a body. Whoever sends more of them waits for something else than an answer.
constexpr unsigned empty_lines_max = 8;
// What TLS may add to a head: about a thousand records, each of which costs to decrypt.
constexpr std::uint64_t head_overhead_max = 24U << 10U;
constexpr std::int64_t hurried_head_ns = 1'000'000'000;  // what a head may take while memory is short
constexpr std::int64_t look_after_ns = 200'000'000;      // how long a client has waited when the sweep looks whether it is there
constexpr unsigned answered_sweeps = 16;                 // in a response (an event stream, say) it looks this seldom

}  // namespace

void* session::operator new(std::size_t bytes, std::nothrow_t const&) noexcept {
    try {
        return frame_pool::allocate(bytes);
    } catch (std::bad_alloc const&) {
        return nullptr;
    }
}

void session::operator delete(void* memory) noexcept {
    if (memory) frame_pool::release(memory, sizeof(session));
}

session::session(worker& w, address_bytes const& address, std::string_view address_text, bool trusted, listener_address const& at)
    : w_(w), trusted_(trusted), client_(w.poller()), at_(at), address_(address) {
    address_size_ = static_cast<std::uint8_t>(std::min(address_text.size(), address_text_.size()));
    std::memcpy(address_text_.data(), address_text.data(), address_size_);
}

session::~session() = default;

error_code session::open(int descriptor, std::int64_t now_ns) {
    last_ns_ = now_ns;
    return client_.open(descriptor, reactor::message::request);
}

detached session::run() {
    auto const& deadlines = w_.shared().settings.client;
    unsigned pipelined = 0;  // requests in a row that stood in the buffer
    bool go_on = true;
    try {
        if (at_.tls) go_on = co_await shake_hands();
        while (go_on) {
            if (begin_ == end_) {
                in_.reset();
                begin_ = end_ = 0;
                idle_ = true;
                std::int64_t const until = last_ns_ + ns(served_ == 0 ? deadlines.head : deadlines.idle);
                client_.read_until(until);
                assert(!client_.gathering());  // or the sweep would have to look
                w_.unswept_until(*this, until);
                io_result const r = co_await client_.read_next(w_.buffers(), in_, expects_long_);
                if (r.ec == asio::error::no_buffer_space) co_await turn_away(refusal::overloaded, 0);
                if (r.ec || r.n == 0) break;
                end_ = r.n;
                idle_ = false;
                w_.buffers().shrink(in_, end_);
                if (guess_.look({in_.data(), end_})) w_.keys().prefetch_slot(guess_.hash());
                co_await reactor::turn(w_.poller(), reactor::part::decide);
                pipelined = 0;
            } else if (++pipelined == pipelined_max) {
                pipelined = 0;
                co_await w_.next_turn();
            }
            go_on = co_await exchange_once(pipelined != 0);
            guess_.forget();
            if (go_on && w_.draining() && !w_.patient()) {
                linger_ = true;
                go_on = false;
            }
            ++served_;
        }
        w_.unswept_until(*this, 0);
        in_.reset();  // what lingers holds no memory
        if (client_.tls() && !broken_) co_await end_tls();
        if (linger_) co_await linger();
    } catch (std::exception const& e) {  // out of memory: this client is lost, the others are not
        log::error("session", "a connection was closed: {}", e.what());
        if (begin_ != end_) record_unserved();
    }
    client_.close();
    w_.finished(*this);
}

// The TLS handshake, before one deadline however its bytes drip (fault T2). False: there is no connection to go on with.
task<bool> session::shake_hands() {
    std::int64_t const until = last_ns_ + ns(w_.shared().settings.client.tls_handshake);
    client_.read_until(until);
    client_.write_until(until);
    error_code ec;
    do {
        ec = co_await client_.handshake(*w_.shared().tls);
        if (ec != asio::error::would_block) break;
        ec = co_await client_.writable();
    } while (!ec);
    last_ns_ = steady_ns();
    if (!client_.is_open()) co_return false;  // it was ended meanwhile
    tls_session const* const tls = client_.tls();
    if (!ec) {
        w_.count().tls_handshakes.add();
        if (tls->resumed()) w_.count().tls_resumed.add();
        co_return !w_.draining() || w_.patient();
    }
    if (ec == stream::plain_bytes()) {
        std::uint64_t const seen = tls->received();
        client_.drop_tls();
        co_await turn_away(refusal::tls_required, seen);
        co_return false;
    }
    // Who ends a connection without a word has only looked whether the port is open; and a drain is no failure.
    bool const looked = ec != asio::error::timed_out && (!tls || tls->received() == 0);
    if (!looked && !w_.draining()) w_.count().tls_handshakes_failed.add();
    co_return false;
}

// --- The way of one request. Each step either goes on or names the reason why not; there is no way back.

task<bool> session::exchange_once(bool pipelined) {
    exchange x;
    current_ = &x;
    // A request that stood behind another one began when that had ended, which may have taken long.
    x.began_ns = last_ns_ = pipelined ? steady_ns() : w_.poller().now();
    w_.unswept_until(*this, last_ns_ + sweep_interval_ns);
    if (client_.tls()) x.wire_began = client_.tls()->sent();
    try {
        refusal why = refusal::none;
        std::size_t searched = 0;
        if (!try_read_head(x, searched, why)) why = co_await rest_of_head(x, searched);
        if (why == refusal::none && !x.client_gone) {
            why = decide(x);                                           // frame check, route, key, limits, rewrite head
            if (why == refusal::none) why = co_await ask_upstream(x);  // lease upstream, relay both ways
        }
        if (x.uploading) {
            stop_upload(x);
            co_await x.upload_done;
        }
        if (!x.body_whole) x.keep_client = false;
        if (x.client_gone && !x.head_sent) x.end = w_.closing() ? usage::outcome::shut_down : usage::outcome::client_aborted;
        if (why != refusal::none && !x.head_sent && !x.client_gone) co_await refuse(x, why);
    } catch (std::exception const& e) {
        log::error("session", "a request was broken off: {}", e.what());
        break_off(x, x.head_sent ? usage::outcome::shut_down : usage::outcome::refused);
    }
    if (x.uploading) {
        stop_upload(x);
        co_await x.upload_done;
    }
    finish(x);
    current_ = nullptr;
    co_return x.keep_client;
}

// True: the head is whole (then it stands in the worker's request_scratch), or `why` says what is wrong with it.
bool session::try_read_head(exchange& x, std::size_t& searched, refusal& why) {
    auto const& limit = w_.shared().settings.limit;
    if (searched == 0) {  // empty lines before a request line (RFC 9112 section 2.2)
        while (end_ - begin_ >= 2 && in_.data()[begin_] == '\r' && in_.data()[begin_ + 1] == '\n') {
            if (++x.empty_lines > empty_lines_max) {
                why = refusal::malformed_request;
                x.request_bytes = end_ - begin_;
                return true;
            }
            begin_ += 2;
        }
    }
    if (begin_ == end_ || (searched == 0 && end_ - begin_ == 1 && in_.data()[begin_] == '\r')) return false;
    parsed const p = parse_request_head(in_.data() + begin_, end_ - begin_, searched,
                                        {limit.head_bytes, limit.target_bytes, limit.fields}, w_.request_scratch(), why);
    if (p == parsed::whole) why = refusal::none;
    if (p == parsed::bad) x.request_bytes = end_ - begin_;
    return p != parsed::more;
}

// A head that did not come in one part. Whether or not it is whole in the end, `x` and the reason say why.
task<refusal> session::rest_of_head(exchange& x, std::size_t searched) {
    refusal why = refusal::none;
    do {
        why = co_await more_of_head(x);
        if (why != refusal::none || x.client_gone) co_return why;
    } while (!try_read_head(x, searched, why));
    client_.gather_no_more();
    co_return why;
}

task<refusal> session::more_of_head(exchange& x) {
    if (begin_ > 0 && (begin_ == end_ || end_ == in_.size())) {
        std::memmove(in_.data(), in_.data() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
    }
    guess_.forget();
    std::int64_t const until = x.began_ns + ns(w_.shared().settings.client.head);
    if (x.head_late || last_ns_ >= until) co_return refusal::head_timeout;
    if (client_.tls()) {
        if (x.head_reads == 0)
            x.head_overhead = client_.tls()->overhead();
        else if (client_.tls()->overhead() > x.head_overhead + head_overhead_max)
            co_return refusal::head_too_large;
    }
    client_.read_until(until);
    if (++x.head_reads > stream::parts_at_once) client_.gather(stream::sweeps_for(x.head_reads));
    io_result const r = co_await client_.read_more(in_.data() + end_, in_.size() - end_);
    last_ns_ = steady_ns();
    end_ += r.n;
    x.request_bytes = end_ - begin_;
    if (r.ec == asio::error::timed_out) co_return refusal::head_timeout;
    if (r.ec || r.n == 0) {
        x.client_gone = true;
        x.end = usage::outcome::client_aborted;
        if (begin_ == end_) x.recorded = true;  // nothing but empty lines: no request
    }
    co_return refusal::none;
}

// Everything that is decided by looking, in the order of the walk. The head's views end here: no await before it returns.
refusal session::decide(exchange& x) {
    head& h = w_.request_scratch();
    w_.count().in_flight.add();
    x.in_flight = true;
    x.request_bytes = h.bytes;
    x.method = h.method;
    x.to_head = h.method == "HEAD";
    x.http_1_0 = h.version == 10;
    x.idempotent = is_idempotent(h.method);
    for (field const& f : h)
        if (f.id == field_id::request_id && !f.alias && good_request_id(f.value)) x.request_id = f.value;

    // The key is only read here, and its place in the table asked for, so that it has come when the key's turn is.
    credential const shown = read_credential(h, w_.shared().settings.keys, &guess_);
    if (shown.guessed)
        w_.keys().prefetch_entry(shown.hash);
    else if (shown.why == refusal::none)
        w_.keys().prefetch_slot(shown.hash);

    refusal why = check_request(h, x.frame);
    if (why == refusal::none) why = take_body(x, h);  // before all else: what follows on the connection begins behind it
    name_request(x);
    std::array<char, 48> trace;
    w_.make_trace(trace.data());
    if (shown.why == refusal::none && !shown.guessed) w_.keys().prefetch_entry(shown.hash);
    if (why == refusal::none) why = locate(x, h);
    if (why != refusal::none) {
        if (x.path.empty()) x.path = h.target.substr(0, h.target.find('?'));  // for the record, as it came
        return why;
    }

    keystore::key_view key;
    bool wants_key = x.api->require_key;
    if (wants_key && shown.why == refusal::key_missing && x.api->preflights == conf::preflight::forward)
        x.preflight = x.path != "*" && is_preflight(h, x.frame);
    if (x.preflight) wants_key = false;
    if (wants_key) {
        why = admit(shown, w_.keys(), w_.wall_ms(x.began_ns), x.who, key);
        if (why != refusal::none) return why;
    }
    why = within_limits(x);
    if (why != refusal::none) return why;
    return rewrite(x, h, wants_key ? &key : nullptr, {trace.data(), trace.size()});
}

// Every request has an id: the client's, where that was good, or one of ours.
void session::name_request(exchange& x) noexcept {
    if (!x.request_id.empty()) return;
    w_.make_request_id(x.made_id.data());
    x.request_id = {x.made_id.data(), x.made_id.size()};
}

// Target and host to api.
refusal session::locate(exchange& x, head& h) {
    x.host = x.frame.host;
    request_target target;
    char* const bytes = in_.data() + (h.target.data() - in_.data());
    refusal const why = normalise_target(bytes, h.target.size(), h.method, target, at_.tls);
    if (why != refusal::none) return why;
    x.path = x.forward_path = target.path;
    x.query = target.query;
    if (!target.authority.empty()) {
        if (x.frame.host.empty()) x.frame.host = x.host = target.authority;
        if (!same_authority(target.authority, x.frame.host, at_.tls)) return refusal::invalid_host;
    }
    host_name name;
    if (!x.frame.host.empty() && !parse_host(x.frame.host, name)) return refusal::invalid_host;

    auto const found = w_.shared().router.find(name.view(), target.path);
    if (!found) return refusal::no_route;
    if ((target.parameters || target.escapes) && !same_read_otherwise(w_.shared().router, name.view(), target, *found))
        return refusal::invalid_target;
    x.api_index = found->api;
    x.api = &w_.shared().settings.apis[found->api];
    prefetch(x.api);
    prefetch(&w_.group(x.api_index));
    if (x.api->strip_prefix && found->prefix != 0) {
        x.forward_path.remove_prefix(found->prefix);
        if (x.forward_path.empty()) x.forward_path = "/";
    }
    if (target.encoded_slash && x.api->slashes == conf::encoded_slash::refuse) return refusal::invalid_target;
    w_.group(x.api_index).prefetch_pool();
    return refusal::none;
}

// What of the body came with the head. It is checked here, before a byte goes to the upstream.
refusal session::take_body(exchange& x, head const& h) {
    std::size_t const from = begin_ + h.bytes;
    std::size_t const available = end_ - from;
    begin_ = from;
    if (x.frame.body.kind == body_kind::length) {
        auto const n = static_cast<std::size_t>(std::min<std::uint64_t>(available, x.frame.body.length));
        x.body = {in_.data() + from, n};
        x.body_left = x.frame.body.length - n;
        x.body_whole = x.body_left == 0;
        begin_ += n;
    } else if (x.frame.body.kind == body_kind::chunked) {
        auto const step = x.decoder.decode(in_.data() + from, available);
        if (step.now == chunk_decoder::state::bad) return refusal::invalid_chunk;
        x.body = {in_.data() + from, step.payload};
        x.body_whole = step.now == chunk_decoder::state::done;
        begin_ += step.consumed;
    }
    x.body_seen = x.body.size();
    x.request_bytes += begin_ - from;
    return refusal::none;
}

refusal session::within_limits(exchange& x) {
    x.body_limit = x.api->body_bytes != 0 ? x.api->body_bytes : w_.shared().settings.limit.body_bytes;
    if (x.body_limit != 0 && x.body_seen + x.body_left > x.body_limit) return refusal::body_too_large;
    if (w_.memory_short()) return refusal::overloaded;
    if (w_.shared().settings.usage.when_full == conf::ring_full::refuse && !w_.ring().has_room()) return refusal::usage_full;
    x.placed = w_.places().enter();
    return x.placed ? refusal::none : refusal::overloaded;
}

// The fields as the upstream will see them. The lines before them are written when their target is chosen; room is left for them,
// so that the head is one piece of memory: a plain send costs less than a gathered one.
refusal session::rewrite(exchange& x, head const& h, keystore::key_view const* key, std::string_view trace) {
    w_.group(x.api_index).prefetch_connection();
    x.out = w_.buffers().small();
    if (!x.out || !promise_room(x)) return refusal::overloaded;
    forward_context c;
    c.api = x.api;
    c.frame = &x.frame;
    c.key = key;
    c.request_id = x.request_id;
    c.client_address = {address_text_.data(), address_size_};
    c.listener_port = at_.port_text;
    c.tls = at_.tls;
    c.trace_id = trace.substr(0, 32);
    c.span_id = trace.substr(32, 16);
    c.trusted_peer = trusted_;
    c.preflight = x.preflight;
    c.bearer_is_key = bearer_is_key(w_.shared().settings.keys, *x.api, w_.keys(), h);

    x.fields_begin = request_lines_max(x.method, x.forward_path, x.query, x.frame.host, w_.group(x.api_index).lines_max());
    if (x.fields_begin >= x.out.size()) return refusal::head_too_large;
    writer w(x.out.data() + x.fields_begin, x.out.size() - x.fields_begin);
    write_request_fields(w, h, c);
    x.fields_end = x.fields_begin + w.size();
    return w.overflowed() ? refusal::head_too_large : refusal::none;
}

// Memory for what is to come once the head is out. Without it nothing may go to the upstream.
bool session::promise_room(exchange& x) noexcept {
    auto& buffers = w_.buffers();
    return buffers.promise_small(x.answer_room) && (x.body_whole || buffers.promise_small(x.body_room));
}

// --- What the gateway answers by itself. The only place where a reason becomes a response.

task<refusal> session::refuse(exchange& x, refusal why) {
    auto const& text = text_of(why);
    w_.count().problems[static_cast<std::size_t>(why)].add();
    last_ns_ = std::max(last_ns_, w_.poller().now());  // (that of the step may be behind a pipelined request's beginning)
    x.end = outcome_of(why);
    x.status = text.status;
    x.answer_room.reset();
    x.body_room.reset();
    if (!x.out) x.out = w_.buffers().small();
    name_request(x);
    bool const close = text.close || !may_keep(x);
    auto const& keys = w_.shared().settings.keys;
    refusal_context const c{x.request_id, keys.realm, w_.date(), keys.bearer, close, x.to_head, x.http_1_0};
    char* const space = x.out ? x.out.data() : w_.spare().data();
    pieces p;
    p.add(space, write_refusal(space, why, c));
    linger_ = close;
    error_code ec;
    first_send first(*this, x, p, true);
    // Who only waits to be refused takes no other's place.
    if (!x.up) land(x);
    if (x.out && co_await reactor::turn(w_.poller(), reactor::part::send, &first))
        first.waited();  // the spare space cannot be held across a wait
    if (bool const done = first.done(ec); !done && x.out)
        ec = co_await send(x, p, true);
    else if (!done)
        ec = asio::error::no_buffer_space;
    if (ec) {
        x.end = w_.closing()                   ? usage::outcome::shut_down
                : ec == asio::error::timed_out ? usage::outcome::timed_out
                                               : usage::outcome::client_aborted;
        linger_ = false;
    }
    x.keep_client = !close && !ec;
    co_return why;
}

// --- The end of every exchange, whatever happened: connections go where they belong, and one record is left.

void session::finish(exchange& x) noexcept {
    last_ns_ = std::max(last_ns_, x.answered_ns);
    expects_long_ = x.request_bytes > w_.buffers().small_bytes() && x.request_bytes <= w_.buffers().large_bytes();
    if (x.up) {
        upstream_pool& pool = x.up->pool();
        if (x.keep_upstream) {
            x.up->sent += x.up_bytes;
            pool.give_back(x.up, last_ns_);
        } else {
            pool.discard(x.up);
        }
        x.up = nullptr;
    }
    record(x);
    if (x.leftover && x.keep_client) {
        in_ = std::move(x.leftover);
        begin_ = x.leftover_begin;
        end_ = x.leftover_end;
    }
    // A reset takes along what the kernel has not sent yet. Where some of that is of earlier responses, sound and on record, a
    // plain end must do: this one's length or missing last chunk shows the break.
    broken_ = broken_ || x.hard_close;
    if (x.hard_close) {
        std::uint64_t const ours = client_.tls() ? client_.tls()->sent() - x.wire_began : x.response_bytes;
        client_.tell_break();
        if (x.ends_by_close || client_.unsent() <= ours) client_.reset();
    }
    land(x);
}

// It is not in flight any more, if it was.
void session::land(exchange& x) noexcept {
    if (std::exchange(x.in_flight, false)) w_.count().in_flight.subtract();
    if (std::exchange(x.placed, false)) w_.places().leave();
}

// Whether the client's connection can take another request after this one.
bool session::may_keep(exchange const& x) const noexcept {
    auto const most = w_.shared().settings.limit.requests_per_connection;
    return x.frame.keep_alive && x.body_whole && !x.uploading && (!w_.draining() || (w_.patient() && more_waits(x))) &&
           !w_.memory_tight() && (most == 0 || served_ + 1 < most);
}

// The client has sent more behind this request, as one that pipelines does: "close" would leave that unanswered.
bool session::more_waits(exchange const& x) const noexcept {
    bool const in_hand = begin_ != end_ || x.leftover || (client_.tls() && client_.tls()->pending());
    return in_hand || peek(client_.descriptor()).n > 0;
}

// Puts the record into the ring, provisionally: called before the write that sends the response's last byte, with last_ns_ as
// its time.
bool session::prepare_record(exchange& x, std::uint64_t response_bytes, bool count_drop) noexcept {
    usage::record r;
    r.time_ms = w_.wall_ms(x.began_ns);
    r.request_id = x.request_id;
    if (x.who.known()) {
        r.application = x.who.application();
        r.application_id = x.who.application_id();
        r.key_id = x.who.key_id();
    }
    if (x.api) r.api = x.api->name;
    r.method = x.method;
    r.host = x.host;
    r.path = x.path;
    r.status = x.status;
    r.end = x.end;
    r.request_bytes = x.request_bytes;
    r.response_bytes = response_bytes;
    r.duration_us = us_between(x.began_ns, last_ns_);
    r.upstream_us = us_between(x.asked_ns, x.answered_ns != 0 ? x.answered_ns : last_ns_);
    r.client_ip = address_;
    return w_.ring().prepare(r, count_drop);
}

void session::committed(exchange& x) noexcept {
    x.recorded = true;
    auto& c = w_.count();
    c.requests.add();
    c.request_bytes.add(x.request_bytes);
    c.response_bytes.add(x.response_bytes);
    c.status_class[x.status < 600 ? x.status / 100 : 0].add();
    switch (x.end) {
        case usage::outcome::served: c.forwarded.add(); break;
        case usage::outcome::refused: c.refused.add(); break;
        case usage::outcome::upstream_failed:
        case usage::outcome::upstream_aborted: c.upstream_failures.add(); break;
        case usage::outcome::client_aborted: c.client_aborts.add(); break;
        default: break;
    }
}

// For exchanges whose last byte never left, and for those that found the ring full: one more try, and a drop is counted.
void session::record(exchange& x) noexcept {
    if (x.recorded) return;
    last_ns_ = steady_ns();
    name_request(x);
    if (prepare_record(x, x.response_bytes, true)) w_.ring().commit();
    committed(x);
}

// A request that was read, and then there was no memory to begin with it.
void session::record_unserved() noexcept {
    exchange x;
    x.began_ns = last_ns_;
    x.end = usage::outcome::refused;
    x.request_bytes = end_ - begin_;
    record(x);
}

// --- The end of the connection.

// Go, Node, httpx and others report a failed write where a refused upload is cut off, although the answer is there: so what they
// send is read for as long as it may reasonably take. Time is the bound, not bytes: a byte costs less here than one forwarded.
task<bool> session::linger() {
    client_.shutdown_write();
    client_.drop_tls();                 // nor will they be decrypted
    auto const nowhere = w_.nowhere();  // nobody looks at what is read here
    std::int64_t const silence = ns(w_.shared().settings.client.linger_silence);
    std::int64_t now = steady_ns();
    bool hurried = false;
    for (std::int64_t end = now + ns(w_.shared().settings.client.linger); now < end && !w_.closing(); now = steady_ns()) {
        // A gateway that stops waits for answers to be read, not for uploads that nobody wants.
        if (w_.draining() && !std::exchange(hurried, true)) end = std::min(end, now + silence);
        client_.read_until(std::min(now + silence, end));
        client_.gather(1);
        io_result const r = co_await client_.read_more(nowhere.data(), nowhere.size());
        if (r.ec || r.n == 0) break;
    }
    co_return true;
}

// TLS says of an end that it is one.
task<bool> session::end_tls() {
    error_code ec;
    client_.write_until(steady_ns() + ns(w_.shared().settings.client.write_stall));
    while (!ec && client_.close_notify() == asio::error::would_block) ec = co_await client_.writable();
    co_return !ec;
}

// A request that is answered unread, and on record like any other that could not be read: there is no buffer for it, or it came
// in clear where TLS is spoken (of which `seen` bytes are gone).
task<bool> session::turn_away(refusal why, std::uint64_t seen) {
    exchange x;
    current_ = &x;
    idle_ = false;
    w_.unswept_until(*this, 0);
    x.began_ns = last_ns_ = steady_ns();
    if (client_.tls()) x.wire_began = client_.tls()->sent();
    auto const nowhere = w_.nowhere();
    io_result const r = client_.read_now(nowhere.data(), nowhere.size());
    x.request_bytes = seen + r.n;
    x.recorded = x.request_bytes == 0;  // it ended: no request
    try {
        if (!x.recorded) co_await refuse(x, why);
    } catch (std::bad_alloc const&) {
        break_off(x, usage::outcome::refused);
    }
    finish(x);
    current_ = nullptr;
    co_return true;
}

void session::sweep(std::int64_t now_ns) noexcept {
    if (w_.draining() && !w_.patient()) end_if_idle();
    bool const in_head = current_ && !current_->in_flight;  // it holds a buffer, for nothing yet
    if (in_head && w_.memory_short_for_another() && now_ns - current_->began_ns > hurried_head_ns) {
        current_->head_late = true;
        client_.read_until(now_ns);
    }
    client_.expire(now_ns);
    if (now_ns - last_ns_ < look_after_ns) return;
    // A client that reset its connection while the upstream thinks, or takes what is in hand, before its answer or in it: there
    // is nobody to answer. (A half-closed one still reads.)
    bool const its_turn = current_ && (!current_->head_sent || w_.sweeps() % answered_sweeps == 0);
    if (its_turn && current_->up && !client_.read_pending() && client_.is_open()) {
        auto const [ec, n] = peek(client_.descriptor());
        if (ec && ec != asio::error::would_block) {
            current_->client_gone = true;
            current_->up->io.cancel_read();
            current_->up->io.cancel_write();
        }
    }
}

void session::end_if_idle() noexcept {
    if (!idle_) return;
    // A request that has come is served in its turn. (All read at once could be more than the limits allow.) The sweep looks
    // again, for it may be no whole one.
    bool const can_ask = !at_.tls || (client_.tls() && client_.tls()->established());
    if (can_ask && peek(client_.descriptor()).n != 0) return w_.unswept_until(*this, 0);
    client_.cancel_read();
    client_.cancel_write();  // a handshake can wait for that, too
}

void session::end_now() noexcept {
    client_.tell_break();
    client_.close();
    if (current_ && current_->up) current_->up->io.close();
}

}  // namespace latchkey::gateway
