#pragma once
// One client connection: reads requests one after the other and takes each on the way that ARCHITECTURE.md draws. Read
// session.cpp from session::exchange_once down; relay.cpp asks the upstream and streams its answer, upload.cpp the request's
// body, sending.cpp writes.
//
// Belongs to its worker's thread; frees itself through worker::finished().

#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>

#include "base/prefetch.hpp"
#include "conf/settings.hpp"
#include "gateway/admission.hpp"
#include "gateway/buffer_pool.hpp"
#include "gateway/chunk.hpp"
#include "gateway/connection_limit.hpp"
#include "gateway/frame.hpp"
#include "gateway/frame_pool.hpp"
#include "gateway/pieces.hpp"
#include "gateway/refusal.hpp"
#include "gateway/stream.hpp"
#include "gateway/sweep_list.hpp"
#include "gateway/target.hpp"
#include "gateway/task.hpp"
#include "gateway/upstream.hpp"
#include "usage/record.hpp"

namespace latchkey::gateway {

class worker;
struct listener_address;

// One request with its response. Lives in the frame of session::exchange_once.
struct exchange {
    std::int64_t began_ns = 0;
    std::int64_t asked_ns = 0;     // the request was handed to the upstream
    std::int64_t answered_ns = 0;  // the upstream's response head was whole

    // The request, as far as it is needed after its head was read. Views into the session's buffer, or into `made_id`.
    std::string_view method;
    std::string_view host;
    std::string_view path;          // normal, for the record
    std::string_view forward_path;  // without the stripped prefix
    std::string_view query;
    std::string_view request_id;
    std::array<char, 32> made_id;
    unsigned head_reads = 0;          // after the first
    std::uint64_t head_overhead = 0;  // of TLS: what its client had sent beside plain bytes after the first read
    bool head_late = false;           // memory is short: no more time for it
    unsigned empty_lines = 0;         // before the request line
    request_frame frame;
    bool http_1_0 = false;
    bool to_head = false;
    bool idempotent = false;  // RFC 9110 section 9.2.2
    bool preflight = false;   // goes on without a key
    conf::api const* api = nullptr;
    std::size_t api_index = 0;
    identity who;

    // The request's body. What came with the head stands in the session's buffer at `body`; the rest is streamed by upload().
    chunk_decoder decoder;
    std::string_view body;         // payload in hand
    std::uint64_t body_left = 0;   // body_kind::length: to come after what is in hand
    std::uint64_t body_seen = 0;   // payload bytes so far
    std::uint64_t body_limit = 0;  // 0: none
    bool body_whole = true;        // all of it is in hand, or was relayed
    bool uploading = false;        // upload() runs
    bool stop_uploading = false;   // upload() is to end at its next step
    bool upstream_deaf = false;    // the upstream takes no more of it
    bool client_gone = false;
    bool ended_by_fin = false;  // the upstream's last read ended with its end of stream, not with a reset
    bool in_flight = false;     // counted as such
    bool placed = false;        // takes a place of limits.requests_in_flight
    refusal upload_failure = refusal::none;
    event upload_done;
    pieces unsent;  // of what was in hand when the request was sent; once the answer is read, of the body alone
    // Of its reads beyond the head, those that brought little: all, and those since the sweep of that number.
    unsigned small_parts = 0;
    unsigned parts_of_sweep = 0;
    unsigned sweep = 0;
    lease leftover;  // read behind the body's end: the next request
    std::size_t leftover_begin = 0;
    std::size_t leftover_end = 0;

    // The way to the upstream and back.
    lease
        out;  // the request's head: fields at [fields_begin, fields_end), its first lines right before them; then the response's
    // For the answer: a request that went out without it might wait for memory until its time is up; and for a body that is not
    // whole yet: the upstream would get half a request.
    promise answer_room;
    promise body_room;
    std::size_t fields_begin = 0;
    std::size_t fields_end = 0;
    std::size_t lines_size = 0;
    chunk_line up_line;
    chunk_line down_line;
    target* to = nullptr;
    upstream_connection* up = nullptr;
    std::uint64_t up_bytes = 0;  // written to `up` for this exchange
    bool retried = false;
    bool head_sent = false;    // the first byte of the final response went out: errors can only close (law 8)
    bool keep_client = false;  // the client's connection can go on
    bool keep_upstream = false;
    bool surplus = false;        // the upstream sent bytes behind its response's end
    bool hard_close = false;     // a response was broken off: the connection ends by a reset
    bool ends_by_close = false;  // the client takes the connection's end for the body's

    // The account.
    usage::outcome end = usage::outcome::served;
    std::uint16_t status = 0;
    std::uint64_t request_bytes = 0;
    std::uint64_t response_bytes = 0;
    std::uint64_t wire_began = 0;  // of TLS: what had left before this response
    bool recorded = false;
};

// The upload ended so that no answer can come of it. It ends the wait for one, too; this is for who has not begun to wait.
inline bool upload_failed(exchange const& x) noexcept { return x.client_gone || x.upload_failure != refusal::none; }

inline std::int64_t ns(conf::milliseconds d) noexcept { return d.count() * 1'000'000; }

// A response on its way to the client. Lives in the frame of session::read_answer.
struct response {
    body_kind kind = body_kind::none;  // of what is to come of the body
    std::uint64_t left = 0;            // body_kind::length: so much
    chunk_decoder decoder;
    bool rechunk = false;   // it goes on in chunks
    bool whole = false;     // nothing is to come
    bool last = false;      // `first` is all of it
    bool reusable = false;  // the upstream will take another request
    pieces first;           // the head, and what of the body is in hand
    lease more;             // of which some may stand here
};

class alignas(cache_line_bytes) session : public sweep_list::member {
  public:
    session(worker& w, address_bytes const& address, std::string_view address_text, bool trusted, listener_address const& at);
    ~session();
    // From frame_pool, so that connections that ended leave whole chunks. Null where there is no memory.
    static void* operator new(std::size_t bytes, std::nothrow_t const&) noexcept;
    static void operator delete(void* memory) noexcept;
    static void operator delete(void* memory, std::nothrow_t const&) noexcept { operator delete(memory); }
    session(session const&) = delete;
    session& operator=(session const&) = delete;

    // Takes over an accepted descriptor. On success call run(), which then lives until the connection ends.
    error_code open(int descriptor, std::int64_t now_ns);
    detached run();

    // The worker's sweep: deadlines, a client that vanished while its upstream thinks. It passes over a connection that waits for
    // a request, until that is late, and a request that takes less than sweep_interval_ns.
    void sweep(std::int64_t now_ns) noexcept;
    void end_if_idle() noexcept;  // drain: ends the connection unless a request is on its way
    void end_now() noexcept;

    address_bytes const& address() const noexcept { return address_; }

  private:
    // --- the walk (session.cpp)
    task<bool> exchange_once(bool pipelined);
    bool try_read_head(exchange&, std::size_t& searched, refusal& why);
    task<refusal> rest_of_head(exchange&, std::size_t searched);
    task<refusal> more_of_head(exchange&);
    refusal decide(exchange&);
    refusal locate(exchange&, head&);
    refusal take_body(exchange&, head const&);
    refusal within_limits(exchange&);
    void name_request(exchange&) noexcept;
    refusal rewrite(exchange&, head const&, keystore::key_view const*, std::string_view trace);
    bool promise_room(exchange&) noexcept;
    task<refusal> ask_upstream(exchange&);
    task<refusal> refuse(exchange&, refusal);
    void finish(exchange&) noexcept;
    void land(exchange&) noexcept;
    bool may_keep(exchange const&) const noexcept;
    bool more_waits(exchange const&) const noexcept;
    task<bool> linger();
    task<bool> turn_away(refusal why, std::uint64_t seen);
    task<bool> shake_hands();
    task<bool> end_tls();

    // --- the upstream (relay.cpp)
    bool lease_pooled(exchange&);
    task<bool> lease_returned(exchange&);
    task<refusal> lease_fresh(exchange&);
    bool write_request_lines(exchange&);
    std::size_t gather_request(exchange&);
    void begin_upload(exchange&);
    task<refusal> read_answer(exchange&);
    refusal answer_failure(exchange&, error_code);
    bool may_retry(exchange const&) const noexcept;
    task<bool> relay_interim(exchange&, head const&);
    bool compose_response(exchange&, head const&, response_frame const&, response&);
    task<bool> relay_rest(exchange&, response&);
    task<bool> relay_spliced(exchange&, response&, pipe_lease, lease& buffer);
    void break_off(exchange&, usage::outcome) noexcept;

    // --- the request's body (upload.cpp)
    detached upload(exchange&);
    task<bool> upload_all(exchange&);
    void pace_upload(exchange&, std::size_t brought) noexcept;
    void stop_upload(exchange&) noexcept;

    // --- writing (sending.cpp), of pieces or a pipe_lease
    template <class Bytes>
    bool try_send(exchange&, Bytes&, bool last, error_code&);
    class first_send;
    class first_write_up;
    bool begin_send(exchange&, std::size_t left, bool last) noexcept;
    bool end_send(exchange&, io_result const&, std::size_t left, bool prepared, error_code&) noexcept;
    template <class Bytes>
    task<error_code> send(exchange&, Bytes&, bool last);
    bool try_write_up(exchange&, pieces&);
    bool wrote_up(exchange&, pieces&, io_result const&) noexcept;
    task<error_code> write_up(exchange&, pieces&, std::size_t rest);

    // --- the account (session.cpp)
    bool prepare_record(exchange&, std::uint64_t response_bytes, bool count_drop) noexcept;
    void committed(exchange&) noexcept;
    void record(exchange&) noexcept;
    void record_unserved() noexcept;

    // What a sweep looks at stands in the first two lines; the stream begins with its part of it.
    worker& w_;
    exchange* current_ = nullptr;
    std::int64_t last_ns_ = 0;  // the last event on this connection
    bool idle_ = true;
    bool trusted_ = false;
    bool linger_ = false;  // read what the client still sends before closing, so that it sees our answer (RFC 9112 section 9.6)
    bool broken_ = false;  // a response was broken off: its end must not look like one
    bool expects_long_ = false;  // the last request filled more than a small buffer, and would have fitted into a large one
    stream client_;
    lease in_;  // bytes from the client that are in hand: [begin_, end_)
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
    key_guess guess_;
    listener_address const& at_;
    std::uint64_t served_ = 0;
    address_bytes address_;
    std::array<char, 46> address_text_;
    std::uint8_t address_size_ = 0;
};

// The first write of a message, which may be made with those of others: to be handed to its turn, then done() says how it went.
// (sending.cpp)
class session::first_send final : public reactor::outgoing {
  public:
    first_send(session& s, exchange& x, pieces& p, bool last) : s_(s), x_(x), p_(p), last_(last) {}
    bool begin(call_batch&) noexcept override;
    void end() noexcept override;
    void waited() noexcept;  // for its turn
    // As try_send().
    bool done(error_code& ec) { return begun_ ? (ec = ec_, done_) : s_.try_send(x_, p_, last_, ec); }

  private:
    session& s_;
    exchange& x_;
    pieces& p_;
    bool last_;
    bool prepared_ = false;
    bool begun_ = false;
    bool done_ = false;
    error_code ec_;
    io_result result_;
};

class session::first_write_up final : public reactor::outgoing {
  public:
    first_write_up(session& s, exchange& x) : s_(s), x_(x) {}
    bool begin(call_batch&) noexcept override;
    void end() noexcept override;
    void waited() noexcept;
    // As try_write_up().
    bool done() { return begun_ ? done_ : s_.try_write_up(x_, x_.unsent); }

  private:
    session& s_;
    exchange& x_;
    bool begun_ = false;
    bool done_ = false;
    io_result result_;
};

}  // namespace latchkey::gateway
