#pragma once
// A message head as views into the bytes it was read into, parsed in place (RFC 9112 sections 3 to 5; the format is said in
// head.cpp). The parser is our own: Beast's reads the same heads in three times the instructions, unfolds obs-fold into memory of
// its own, and takes some that no reader should; in the tests it is the second opinion on every head that is taken. Nothing here
// decides whether a message is acceptable; that is frame.hpp's, target.hpp's and admission.hpp's. One thread.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "gateway/refusal.hpp"

namespace latchkey::gateway {

// The fields that the gateway itself looks at.
enum class field_id : std::uint8_t {
    other,
    host,
    content_length,
    transfer_encoding,
    connection,
    keep_alive,
    proxy_connection,
    proxy_authorization,
    proxy_authenticate,
    te,
    trailer,
    upgrade,
    http2_settings,
    expect,
    api_key,  // X-API-KEY
    authorization,
    consumer_id,  // X-Consumer-Id
    consumer_username,
    credential_identifier,
    request_id,  // X-Request-Id
    traceparent,
    tracestate,
    forwarded,
    forwarded_for,  // X-Forwarded-For
    forwarded_proto,
    forwarded_host,
    forwarded_port,
    count_,
};

// Of a name that is a token. `alias` is set where it is one of ours but for another character in place of '-' (fold_name()):
// upstreams that make variables of names cannot tell the two apart.
field_id identify(std::string_view name, bool& alias) noexcept;

struct field {
    std::string_view name;
    std::string_view value;  // without the white space around it
    field_id id = field_id::other;
    bool alias = false;
};

inline constexpr std::size_t fields_max = 1000;  // the greatest `limits.fields`

struct head {
    std::size_t bytes = 0;  // with the empty line
    int version = 11;       // 10 or 11
    std::string_view method;
    std::string_view target;
    int status = 0;           // responses
    std::string_view reason;  // responses
    std::size_t count = 0;
    std::array<field, fields_max> fields;  // the first `count` are valid

    field const* begin() const noexcept { return fields.data(); }
    field const* end() const noexcept { return fields.data() + count; }
};

enum class parsed : std::uint8_t { whole, more, bad };

struct parse_limits {
    std::size_t bytes;   // of the head
    std::size_t target;  // of the request target (requests)
    std::size_t fields;
};

// `searched`: how many bytes at the front an earlier call has judged (0 at first: whole lines only); it is moved on, so that a
// head that arrives byte by byte is not read again and again. A line that cannot become valid is `bad` as soon as the byte is
// there that makes it so. On `bad`, `why` is set.
parsed parse_request_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const&, head& out,
                          refusal& why) noexcept;

// On `bad` the response is invalid (502).
parsed parse_response_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const&, head& out) noexcept;

}  // namespace latchkey::gateway
