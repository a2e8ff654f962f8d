#pragma once
// The heads that go on: the request as the upstream sees it, the response as the client sees it. Hop-by-hop fields (RFC 9110
// section 7.6.1) and what a Connection field nominates are removed, the credential is removed, identity and forwarding fields
// are ours alone, framing is written anew. Pure.

#include <cstdint>
#include <string_view>

#include "conf/settings.hpp"
#include "gateway/frame.hpp"
#include "gateway/head.hpp"
#include "gateway/target.hpp"
#include "gateway/text.hpp"
#include "keystore/key_table.hpp"

namespace latchkey::gateway {

struct forward_context {
    conf::api const* api = nullptr;
    request_frame const* frame = nullptr;
    keystore::key_view const* key = nullptr;  // null on an open api, and of a preflight
    std::string_view request_id;
    std::string_view client_address;  // text, without port
    std::string_view listener_port;
    std::string_view trace_id;   // 32 lower-case hex, for a traceparent that we make
    std::string_view span_id;    // 16
    bool bearer_is_key = false;  // `Authorization: Bearer` holds the key, and is removed
    bool tls = false;            // the client came by TLS
    bool trusted_peer = false;   // forwarding fields are appended to, not replaced
    bool preflight = false;      // nobody is known to have sent it: of its own fields, those of a preflight go on
};

// The part that depends on the target: request line and Host. `base_path` is the target's; `path` is normal, the api's prefix
// stripped where it says so.
void write_request_lines(writer& w, std::string_view method, std::string_view base_path, std::string_view path,
                         std::string_view query, std::string_view host) noexcept;

// At most what write_request_lines() writes, whichever target is chosen: `client_host` may be sent, and base path and authority
// of a target together have at most `target_bytes`.
std::size_t request_lines_max(std::string_view method, std::string_view path, std::string_view query,
                              std::string_view client_host, std::size_t target_bytes) noexcept;

// All other fields and the empty line. On overflow `w.overflowed()` is set (the head is too large).
void write_request_fields(writer& w, head const&, forward_context const&) noexcept;

struct answer_context {
    framing body;  // as the client will see it (chunked towards HTTP/1.0 is until_close)
    response_frame const* frame = nullptr;
    std::string_view request_id;
    std::string_view date;  // now, for a response that has none (RFC 9110 section 6.6.1)
    bool close = false;     // Connection: close
    bool http_1_0 = false;  // the client's version
    bool to_head = false;
};

// Writes the response head. The status line is ours: HTTP/1.1, the upstream's code and reason.
void write_response_head(writer& w, head const&, answer_context const&) noexcept;

// An interim (1xx) response, as it may be passed on.
void write_interim_head(writer& w, head const&) noexcept;

// Whether a client's X-Request-Id may be kept: 1..128 of A-Za-z0-9._-
bool good_request_id(std::string_view) noexcept;
// Whether a traceparent is well-formed (W3C Trace Context, version 00 and later ones of the same form).
bool good_traceparent(std::string_view) noexcept;

}  // namespace latchkey::gateway
