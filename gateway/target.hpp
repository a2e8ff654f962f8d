#pragma once
// The request target: its form, one normalisation of its path, and the host it is meant for (RFC 9112 section 3.2, RFC 3986
// section 6.2.2). What is decided on is what is forwarded. Pure; works in place, since normalising only shrinks.

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

#include "gateway/refusal.hpp"

namespace latchkey::gateway {

struct request_target {
    std::string_view path;       // normal: begins with '/', no empty or dot segments; or "*" (OPTIONS)
    std::string_view query;      // with its '?', as sent; or empty
    std::string_view authority;  // of an absolute-form target; else empty
    bool encoded_slash = false;  // the path holds %2F, which an api may refuse
    bool escapes = false;        // the path holds some: what is left is no letter, digit, '-', '.', '_' or '~'
    bool parameters = false;     // a segment has parameters ("/a;b=c"), or has once it is decoded ("/a%3Bb")
};

// Rewrites the bytes at [data, data + size) into the normal path followed by the query, somewhere inside that range.
// The scheme of an absolute form must be the connection's: https where it is TLS, http where it is not.
// Unreserved characters are decoded, repeated slashes merged, dot segments resolved; a path that climbs above its root, and
// escapes that servers read in different ways (%00, %5C, overlong UTF-8, "..;"), are invalid_target.
refusal normalise_target(char* data, std::size_t size, std::string_view method, request_target& out, bool tls = false) noexcept;

// A normal path as servers see it that decode it before they look ("/a%3Ab" is "/a:b" to most), its slashes too, which they
// merge, or take parameters off its segments ("/a;b=c/d" is "/a/d" to Tomcat). Written to `out`, and cut where that is full.
std::string_view read_otherwise(std::string_view path, bool parameters_cut, bool slashes_decoded, std::span<char> out) noexcept;

// A host name for routing: lower-case, without port and trailing dot; in a buffer of its own.
struct host_name {
    std::array<char, 256> text;
    std::size_t size = 0;
    std::string_view view() const noexcept { return {text.data(), size}; }
};

// Checks `host [":" port]` (RFC 9110 section 7.2; no user info, no escapes). False: not valid.
bool parse_host(std::string_view authority, host_name& out) noexcept;

// Whether an absolute-form authority and a Host field mean the same host and port (where none is given 80, with TLS 443).
bool same_authority(std::string_view a, std::string_view b, bool tls = false) noexcept;

}  // namespace latchkey::gateway
