#pragma once
// The frame check: how long a message is and whether two readers could disagree about it (RFC 9112 sections 6 and 9, RFC 9110
// section 7.2). What is not certain is refused, never repaired (law 7). Pure functions over a head.

#include <cstdint>
#include <string_view>

#include "gateway/head.hpp"
#include "gateway/refusal.hpp"

namespace latchkey::gateway {

enum class body_kind : std::uint8_t { none, length, chunked, until_close };

struct framing {
    body_kind kind = body_kind::none;
    std::uint64_t length = 0;
};

struct request_frame {
    framing body;
    std::string_view host;  // the Host field as sent; empty where an HTTP/1.0 client sent none
    bool keep_alive = false;
    bool expects_continue = false;  // RFC 9110 section 10.1.1
    bool nominates = false;         // a Connection field names fields beyond close, keep-alive and upgrade
};

// refusal::none, or why the request cannot be taken. More than 16 Connection options, or 1 KiB of them, are one such reason.
refusal check_request(head const&, request_frame& out) noexcept;

struct response_frame {
    framing body;
    bool keep_alive = false;  // the upstream will take another request on this connection
    bool nominates = false;
};

// False: the response is invalid (502). `to_head`: it answers a HEAD request.
bool check_response(head const&, bool to_head, response_frame& out) noexcept;

// Whether a Connection field of the head names this field.
bool nominated(head const&, std::string_view name) noexcept;

// Whether a field may stand in a trailer section: none that frames, routes, authenticates, identifies or steers (RFC 9110
// section 6.5.1).
bool allowed_in_trailer(std::string_view name) noexcept;

}  // namespace latchkey::gateway
