#pragma once
// Why the gateway answers by itself, and with what: one table, reason -> status, stable code, title, text (RFC 9457). Pure.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace latchkey::gateway {

enum class refusal : std::uint8_t {
    none,
    // framing and syntax: the connection closes (law 7)
    malformed_request,
    ambiguous_framing,
    invalid_chunk,
    invalid_host,
    invalid_target,
    forbidden_field,
    unknown_transfer_coding,
    version_not_supported,
    tls_required,
    method_not_allowed,
    expectation_failed,
    head_too_large,
    too_many_fields,
    target_too_long,
    body_too_large,
    head_timeout,
    body_timeout,
    // who may what
    key_missing,
    key_invalid,
    duplicate_key,
    no_route,
    // the other side, or ourselves
    upstream_unreachable,
    upstream_reset,
    upstream_invalid,
    upstream_connect_timeout,
    upstream_timeout,
    overloaded,
    usage_full,
    shutting_down,
    count_,
};

struct refusal_text {
    std::uint16_t status;
    std::string_view reason;  // the status line's phrase, and the problem's title
    std::string_view code;
    std::string_view detail;
    bool close;              // the connection cannot go on: what follows on it is not known
    bool challenge;          // WWW-Authenticate (RFC 9110 section 15.5.2)
    unsigned retry_after_s;  // Retry-After; 0: none
};

refusal_text const& text_of(refusal) noexcept;

struct refusal_context {
    std::string_view request_id;  // checked: A-Za-z0-9._- only
    std::string_view realm;
    std::string_view date;   // IMF-fixdate
    bool bearer = false;     // a Bearer challenge too
    bool close = false;      // Connection: close, beside what the table says
    bool head_only = false;  // answer to HEAD: no body, same fields
    bool http_1_0 = false;   // such a client needs `Connection: keep-alive` to go on
};

inline constexpr std::size_t refusal_bytes_max = 1536;

// Writes the whole response to `out` (at least refusal_bytes_max) and returns its size.
std::size_t write_refusal(char* out, refusal, refusal_context const&) noexcept;

}  // namespace latchkey::gateway
