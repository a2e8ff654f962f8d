#pragma once
// The frame check: how long a message is and whether two readers could disagree about it (RFC 9112 sections 6 and 9, RFC 9110
// section 7.2). What is not certain is refused, never repaired (law 7). Pure functions over a head.

#include <array>
#include <cstdint>
#include <string_view>

#include "gateway/head.hpp"
#include "gateway/refusal.hpp"
#include "gateway/text.hpp"

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

inline constexpr std::size_t connection_options_max = 16;
inline constexpr std::size_t connection_bytes_max = 1024;

// refusal::none, or why the request cannot be taken. More Connection options than that, or bytes of them, are one such reason.
refusal check_request(head const&, request_frame& out) noexcept;

struct response_frame {
    framing body;
    bool keep_alive = false;  // the upstream will take another request on this connection
    bool nominates = false;
};

// False: the response is invalid (502). `to_head`: it answers a HEAD request.
bool check_response(head const&, bool to_head, response_frame& out) noexcept;

// What the Connection fields of a checked head name, gathered once: so the cost is that of fields and options, and not of each
// field against each option. Views into the head.
class nominations {
  public:
    nominations() = default;  // none
    explicit nominations(head const&) noexcept;
    bool has(std::string_view name) const noexcept { return (sizes_ >> name.size() % 64 & 1U) != 0 && find(name); }

  private:
    struct option {
        char const* text;
        std::uint32_t size;
        std::uint32_t hash;
    };
    bool find(std::string_view name) const noexcept;
    std::array<option, connection_options_max> options_;  // the first count_
    std::size_t count_ = 0;
    std::uint64_t sizes_ = 0;  // a bit for each size that there is
};

// Fields by which other gateways tell an upstream who calls (X-Consumer-Groups, X-Consumer-Custom-Id, X-Anonymous-Consumer ...):
// an API that came from one of them may believe them still, so a client cannot send them, however it spells the hyphens.
inline bool tells_who_calls(std::string_view name) noexcept {
    return lower(name.front()) == 'x' && (begins_folded(name, "x-consumer-") || begins_folded(name, "x-credential-") ||
                                          begins_folded(name, "x-anonymous-consumer"));
}

// X-Original-URL and its like, by which proxies tell what they were asked for. (X-Original-Filename is an API's own.)
inline bool tells_what_was_asked(std::string_view name) noexcept {
    constexpr std::string_view begin = "x-original-";
    if (!begins_folded(name, begin)) return false;
    name.remove_prefix(begin.size());
    for (std::string_view const what : {"url", "uri", "path", "method", "host", "proto", "scheme", "port", "for", "ip"})
        if (is_folded(name, what)) return true;
    return begins_folded(name, "forwarded") || begins_folded(name, "remote") || begins_folded(name, "client");
}

// Fields beside ours in which proxies tell upstreams of the client, its address or what it asked for (X-Forwarded-Prefix,
// X-Real-IP, X-Original-URL ...). Frameworks, and what is copied from program to program to find an address, believe them without
// being told to; a client that is no trusted proxy cannot send them, nor can one behind such a proxy in a spelling that this does
// not know (plainly_spelled()).
inline bool tells_of_client(std::string_view name) noexcept {
    char const first = lower(name.front());
    if (first == 'x')
        return begins_folded(name, "x-forwarded-") || tells_what_was_asked(name) || is_folded(name, "x-real-ip") ||
               is_folded(name, "x-rewrite-url") || is_folded(name, "x-client-ip") || is_folded(name, "x-cluster-client-ip") ||
               is_folded(name, "x-forwarded") || is_folded(name, "x-appengine-user-ip");
    char const last = lower(name.back());
    if (last == 'r') return is_folded(name, "forwarded-for");
    if (last != 'p' || name.size() < 9) return false;
    return is_folded(name, "client-ip") || is_folded(name, "true-client-ip") || is_folded(name, "proxy-client-ip") ||
           is_folded(name, "wl-proxy-client-ip") || is_folded(name, "cf-connecting-ip") || is_folded(name, "fastly-client-ip");
}

// Whether a field may stand in a trailer section: none that frames, routes, authenticates, identifies or steers (RFC 9110
// section 6.5.1).
bool allowed_in_trailer(std::string_view name) noexcept;

}  // namespace latchkey::gateway
