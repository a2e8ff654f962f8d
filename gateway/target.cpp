#include "gateway/target.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

enum : std::uint8_t { path_plain = 1, path_ok = 2, query_ok = 4 };

// path_plain: needs no second look. path_ok: may stand in a path. Real clients send |, ^, {, } and quotes unescaped; a backslash
// is a separator to some servers and is not taken.
constexpr std::array<std::uint8_t, 256> make_table() {
    std::array<std::uint8_t, 256> t{};
    for (int c = 0x21; c < 0x7f; ++c) {
        std::uint8_t m = 0;
        if (c != '#') m |= query_ok;
        if (c != '#' && c != '\\' && c != '?') m |= path_ok;
        if ((m & path_ok) && c != '%' && c != '.' && c != '/' && c != ';') m |= path_plain;
        t[static_cast<std::size_t>(c)] = m;
    }
    return t;
}
constexpr auto table = make_table();
constexpr bool has(char c, std::uint8_t cls) noexcept { return (table[static_cast<unsigned char>(c)] & cls) != 0; }

// Where nothing needs a rewrite: no escape, no "//", no segment that begins with a dot.
bool is_normal(std::string_view path) noexcept {
    char before = 0;
    for (char const c : path) {
        bool const starts_segment = before == '/';
        before = c;
        if (has(c, path_plain) || c == ';') continue;
        if ((c != '/' && c != '.') || starts_segment) return false;
    }
    return true;
}

// `at` stands behind a '%'. Continues a check of UTF-8 against overlong forms, which some decoders take for ASCII.
bool overlong(unsigned lead, std::string_view rest) noexcept {
    if (lead == 0xc0 || lead == 0xc1 || lead >= 0xf5) return true;
    if (lead != 0xe0 && lead != 0xf0) return false;
    if (rest.size() < 3 || rest[0] != '%') return false;
    int const high = hex_value(rest[1]);
    int const low = hex_value(rest[2]);
    if (high < 0 || low < 0) return false;
    int const next = high * 16 + low;
    return lead == 0xe0 ? next < 0xa0 : next < 0x90;
}

// Decodes unreserved characters in place; returns the new size, or npos where an escape is not to be taken.
constexpr std::size_t invalid = std::string_view::npos;

std::size_t decode(char* path, std::size_t size, bool& encoded_slash) noexcept {
    std::size_t w = 0;
    for (std::size_t r = 0; r < size;) {
        if (path[r] != '%') {
            path[w++] = path[r++];
            continue;
        }
        int const high = r + 2 < size ? hex_value(path[r + 1]) : -1;
        int const low = r + 2 < size ? hex_value(path[r + 2]) : -1;
        if (high < 0 || low < 0) return invalid;
        auto const byte = static_cast<unsigned>(high * 16 + low);
        if (byte == 0 || byte == '\\') return invalid;
        if (byte >= 0x80 && overlong(byte, {path + r + 3, size - r - 3})) return invalid;
        if (byte == '/') encoded_slash = true;
        if (is(static_cast<char>(byte), char_class::unreserved) && byte < 0x80) {
            path[w++] = static_cast<char>(byte);
        } else {
            path[w++] = path[r];
            path[w++] = path[r + 1];
            path[w++] = path[r + 2];
        }
        r += 3;
    }
    return w;
}

// A segment that is a dot segment once its parameters are cut off ("..;a=b"): servers disagree on what it means.
bool dotted_parameters(std::string_view segment) noexcept {
    auto const cut = segment.substr(0, segment.find(';'));
    return cut.size() < segment.size() && (cut == "." || cut == ".." || cut.empty());
}

// Where an escape ("%2f", in lower case) stands in a segment whose escapes are well-formed.
std::size_t find_escape(std::string_view segment, std::string_view escape) noexcept {
    std::size_t at = segment.find(escape.substr(0, 2));
    while (at != std::string_view::npos && lower(segment[at + 2]) != escape[2]) at = segment.find(escape.substr(0, 2), at + 1);
    return at;
}

// A dot segment beside an escaped slash ("..%2Fx") or an escaped semicolon ("..%3Bx"): one to a server that decodes before it
// resolves.
bool hidden_dots(std::string_view segment) noexcept {
    bool hidden = false;
    while (!hidden) {
        std::size_t const at = find_escape(segment, "%2f");
        auto part = segment.substr(0, at);
        part = part.substr(0, part.find(';'));
        part = part.substr(0, find_escape(part, "%3b"));
        hidden = part == "." || part == "..";
        if (at == std::string_view::npos) break;
        segment.remove_prefix(at + 3);
    }
    return hidden;
}

// Merges slashes and resolves dot segments in place (RFC 3986 section 5.2.4). path[0] is '/'.
std::size_t resolve(char* path, std::size_t size) noexcept {
    std::size_t w = 0;
    for (std::size_t r = 0; r < size;) {
        while (r < size && path[r] == '/') ++r;
        std::size_t end = r;
        while (end < size && path[end] != '/') ++end;
        std::string_view const segment(path + r, end - r);
        bool const last = end == size;
        if (dotted_parameters(segment)) return invalid;
        bool const dots = segment == ".." || segment == ".";
        if (!dots && hidden_dots(segment)) return invalid;
        if (segment == "..") {
            if (w == 0) return invalid;
            while (path[--w] != '/') {
            }
            if (last) path[w++] = '/';
        } else if (segment.empty() || segment == ".") {
            if (last) path[w++] = '/';
        } else {
            path[w++] = '/';
            std::memmove(path + w, segment.data(), segment.size());
            w += segment.size();
        }
        r = end;
    }
    return w;
}

// "http://authority" in front of the path (RFC 9112 section 3.2.2), or "https://". False: no valid absolute form.
bool cut_authority(std::string_view& target, std::string_view& authority, bool tls) noexcept {
    std::string_view const scheme = tls ? "https://" : "http://";
    if (target.size() <= scheme.size() || !equals_lower(target.substr(0, scheme.size()), scheme)) return false;
    target.remove_prefix(scheme.size());
    auto const end = target.find_first_of("/?#");
    authority = target.substr(0, end);
    target = end == std::string_view::npos ? std::string_view{} : target.substr(end);
    return !authority.empty();
}

constexpr std::size_t host_bytes_max = 255;

// What may stand in a host, in lower case; 0: what may not.
constexpr auto host_lower = [] {
    std::array<char, 256> to{};
    for (std::size_t c = 0; c < 256; ++c)
        if (is(static_cast<char>(c), char_class::host)) to[c] = lower(static_cast<char>(c));
    return to;
}();

// ":" and at most five digits, of 65535 at most.
bool good_port(std::string_view text) noexcept {
    if (text.front() != ':' || text.size() > 6) return false;
    unsigned n = 0;
    for (char const c : text.substr(1)) {
        if (!is(c, char_class::digit)) return false;
        n = n * 10 + static_cast<unsigned>(c - '0');
    }
    return n <= 65535;
}

}  // namespace

refusal normalise_target(char* data, std::size_t size, std::string_view method, request_target& out, bool tls) noexcept {
    out = {};
    std::string_view target(data, size);
    if (target == "*") {
        out.path = target;
        return method == "OPTIONS" ? refusal::none : refusal::invalid_target;
    }
    if (target.empty()) return refusal::invalid_target;
    if (target.front() != '/' && !cut_authority(target, out.authority, tls)) return refusal::invalid_target;

    auto const mark = target.find('?');
    if (mark != std::string_view::npos) out.query = target.substr(mark);
    for (char const c : out.query)
        if (!has(c, query_ok)) return refusal::invalid_target;

    std::string_view path = target.substr(0, mark);
    if (path.empty()) {  // "http://host" and "http://host?q": the path is "/" (RFC 9110 section 4.2.3)
        out.path = "/";
        return refusal::none;
    }
    if (!is_normal(path)) {
        for (char const c : path)
            if (!has(c, path_ok)) return refusal::invalid_target;
        char* const begin = data + (path.data() - data);
        std::size_t n = decode(begin, path.size(), out.encoded_slash);
        if (n != invalid) n = resolve(begin, n);
        if (n == invalid) return refusal::invalid_target;
        path = {begin, n};
        out.escapes = path.find('%') != std::string_view::npos;
        out.parameters = path.find(';') != std::string_view::npos || find_escape(path, "%3b") != std::string_view::npos;
    } else if (path.find(';') != std::string_view::npos) {
        out.parameters = true;
        for (auto rest = path; !rest.empty();) {
            rest.remove_prefix(1);
            auto const slash = rest.find('/');
            if (dotted_parameters(rest.substr(0, slash))) return refusal::invalid_target;
            rest = slash == std::string_view::npos ? std::string_view{} : rest.substr(slash);
        }
    }
    out.path = path;
    return refusal::none;
}

std::string_view read_otherwise(std::string_view path, bool parameters_cut, bool slashes_decoded, std::span<char> out) noexcept {
    std::size_t n = 0;
    bool parameter = false;
    for (std::size_t i = 0; i < path.size() && n < out.size(); ++i) {
        char c = path[i];
        int const byte = c == '%' ? hex_value(path[i + 1]) * 16 + hex_value(path[i + 2]) : 0;
        if (byte > 0x20 && byte < 0x7f && byte != '%' && (byte != '/' || slashes_decoded)) {
            c = static_cast<char>(byte);
            i += 2;
        }
        parameter = parameters_cut && (c == ';' || (parameter && c != '/'));
        bool const repeated = c == '/' && n > 0 && out[n - 1] == '/';
        if (!parameter && !repeated) out[n++] = c;
    }
    return {out.data(), n};
}

bool parse_host(std::string_view authority, host_name& out) noexcept {
    std::size_t n = 0;
    if (authority.starts_with('[')) {  // IPv6 literal
        n = authority.find(']') + 1;
        if (n < 4 || n > out.text.size()) return false;
        for (char const c : authority.substr(1, n - 2))
            if (!is(c, char_class::hex) && c != ':' && c != '.') return false;
        for (std::size_t i = 0; i < n; ++i) out.text[i] = lower(authority[i]);
        out.size = n;
    } else {
        std::size_t const most = std::min(authority.size(), out.text.size());
        char before = '.';  // neither a leading one nor two in a row
        for (; n < most && authority[n] != ':'; ++n) {
            char const c = host_lower[static_cast<unsigned char>(authority[n])];
            if (c == 0 || (c == '.' && before == '.')) return false;
            out.text[n] = before = c;
        }
        out.size = n - (n > 0 && before == '.' ? 1 : 0);
    }
    if (out.size == 0 || out.size > host_bytes_max) return false;
    authority.remove_prefix(n);
    return authority.empty() || good_port(authority);
}

bool same_authority(std::string_view a, std::string_view b, bool tls) noexcept {
    host_name x;
    host_name y;
    if (!parse_host(a, x) || !parse_host(b, y) || x.view() != y.view()) return false;
    auto const port = [tls](std::string_view s) {
        auto const colon = s.rfind(':');
        if (colon == std::string_view::npos || s.back() == ']' || colon + 1 == s.size()) return tls ? 443U : 80U;
        unsigned n = 0;
        for (char const c : s.substr(colon + 1)) n = n * 10 + static_cast<unsigned>(c - '0');
        return n;
    };
    return port(a) == port(b);
}

}  // namespace latchkey::gateway
