#pragma once
// One request's account. Views: the record is copied into the ring at once and never kept. Pure.

#include <array>
#include <cstdint>
#include <string_view>

namespace latchkey::usage {

// How the request ended. Stable numbers (they are on disk); names are the CSV's `outcome`.
enum class outcome : std::uint8_t {
    served = 0,            // the upstream's response reached the client whole, whatever its status
    refused = 1,           // the gateway answered by itself before forwarding (401, 404, 400, 413, 431, ...)
    upstream_failed = 2,   // 502, 503, 504 made by the gateway
    upstream_aborted = 3,  // the upstream broke off after its head had gone to the client
    client_aborted = 4,    // the client went away first
    timed_out = 5,         // a deadline of the client's side (408, stalled write)
    shut_down = 6,         // the gateway stopped while it ran
};

std::string_view to_string(outcome) noexcept;

inline constexpr std::size_t path_bytes_max = 1024;  // longer paths are cut here in the record and end in "..."
inline constexpr std::size_t host_bytes_max = 255;
inline constexpr std::size_t method_bytes_max = 32;

struct record {
    std::int64_t time_ms = 0;      // wall clock when the head's first byte was in hand
    std::string_view request_id;   // at most 128 bytes
    std::string_view application;  // name; empty where unknown
    std::string_view application_id;
    std::string_view key_id;
    std::string_view api;  // empty where no route was found
    std::string_view method;
    std::string_view host;
    std::string_view path;     // without the query
    std::uint16_t status = 0;  // 0: nothing was sent to the client
    outcome end = outcome::served;
    std::uint64_t request_bytes = 0;   // as read from the client: head and body with their framing
    std::uint64_t response_bytes = 0;  // as sent to the client
    // Where many messages came together, right to what a few of them took: they share a look at the clock.
    std::uint32_t duration_us = 0;              // clamped to 71 minutes
    std::uint32_t upstream_us = 0;              // request handed to the upstream until its response head; 0: never asked
    std::array<unsigned char, 16> client_ip{};  // IPv6, or IPv4 mapped (::ffff:a.b.c.d)
};

}  // namespace latchkey::usage
