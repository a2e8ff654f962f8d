#pragma once
// Enough HTTP/1.1 (RFC 9112) for the two ends of a benchmark that trust each other: where a head ends, how long its body is,
// and the fields by which we see that a proxy did its work. Not a parser to copy: it refuses nothing that is merely odd.

#include <cstdint>
#include <string_view>

namespace load {

struct head_view {
    std::size_t bytes = 0;  // with the empty line
    std::string_view start_line;
    std::uint64_t content_length = 0;
    bool has_content_length = false;
    bool chunked = false;
    bool close = false;             // Connection: close
    std::string_view api_key;       // value of X-API-KEY; empty where there is none
    std::string_view api_key_line;  // that line with its CRLF
    std::string_view consumer_id;   // value of X-Consumer-Id
};

enum class scan { complete, more, bad };

// `text` begins with a head. On `complete` the views in `out` point into `text`.
scan scan_head(std::string_view text, head_view& out) noexcept;

// "HTTP/1.1 401 ..." -> 401; 0 where it is no status line.
int status_of(std::string_view start_line) noexcept;

}  // namespace load
