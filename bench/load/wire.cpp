#include "bench/load/wire.hpp"

#include <strings.h>

#include <charconv>

namespace load {

namespace {

bool is(std::string_view name, std::string_view wanted) noexcept {
    return name.size() == wanted.size() && ::strncasecmp(name.data(), wanted.data(), wanted.size()) == 0;
}

std::string_view trimmed(std::string_view value) noexcept {
    while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
    while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
    return value;
}

// The lengths of the names we look for differ but for few: the length alone dismisses most fields.
bool take_field(std::string_view name, std::string_view value, std::string_view line, head_view& out) noexcept {
    switch (name.size()) {
        case 9:
            if (is(name, "x-api-key")) {
                out.api_key = value;
                out.api_key_line = line;
            }
            return true;
        case 10:
            if (is(name, "connection")) out.close = is(value, "close");
            return true;
        case 13:
            if (is(name, "x-consumer-id")) out.consumer_id = value;
            return true;
        case 14:
            if (is(name, "content-length")) {
                auto const [end, error] = std::from_chars(value.data(), value.data() + value.size(), out.content_length);
                out.has_content_length = true;
                return error == std::errc{} && end == value.data() + value.size();
            }
            return true;
        case 17:
            if (is(name, "transfer-encoding")) out.chunked = true;
            return true;
        default: return true;
    }
}

}  // namespace

scan scan_head(std::string_view text, head_view& out) noexcept {
    out = {};
    auto const first_end = text.find("\r\n");
    if (first_end == std::string_view::npos) return scan::more;
    out.start_line = text.substr(0, first_end);
    for (std::size_t at = first_end + 2;;) {
        auto const end = text.find('\n', at);
        if (end == std::string_view::npos) return scan::more;
        auto const line = text.substr(at, end + 1 - at);
        at = end + 1;
        if (line == "\r\n") break;
        auto const colon = line.find(':');
        if (colon == std::string_view::npos || line.size() < colon + 3) return scan::bad;
        if (!take_field(line.substr(0, colon), trimmed(line.substr(colon + 1, line.size() - colon - 3)), line, out))
            return scan::bad;
        out.bytes = at;
    }
    out.bytes = (out.bytes == 0 ? first_end + 2 : out.bytes) + 2;
    return scan::complete;
}

int status_of(std::string_view start_line) noexcept {
    int status = 0;
    if (start_line.size() < 12 || !start_line.starts_with("HTTP/1.")) return 0;
    auto const [end, error] = std::from_chars(start_line.data() + 9, start_line.data() + 12, status);
    return error == std::errc{} && end == start_line.data() + 12 ? status : 0;
}

}  // namespace load
