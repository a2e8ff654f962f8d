#include "gateway/head.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "gateway/text.hpp"
#include "usage/record.hpp"

// The grammar of RFC 9112 sections 3, 4 and 5, read once, in place and literally: lines end with CRLF and nothing else, a field's
// line is one line (no obs-fold), no white space stands before its colon. Every byte is looked at, and the head of a message is
// bad as soon as a line is; so a bad start is refused at once, and not when the rest of it has come.
//
// A head that comes in parts is judged by whole lines: `searched` is where the first line begins that was not whole yet. Once the
// empty line has come, all is read again from the front, this time for good. So a byte is read twice, or, in the line that is
// being received, once for each part that it is received in.

namespace latchkey::gateway {
namespace {

constexpr std::array<std::string_view, static_cast<std::size_t>(field_id::count_)> names{
    "",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "expect",
    "x-api-key",
    "authorization",
    "x-consumer-id",
    "x-consumer-username",
    "x-credential-identifier",
    "x-request-id",
    "traceparent",
    "tracestate",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
};

constexpr std::size_t longest_name = 23;
constexpr auto method_bytes_max = static_cast<std::ptrdiff_t>(usage::method_bytes_max);  // the longest registered one has 17

constexpr auto folded = [] {
    std::array<char, 256> to{};
    for (std::size_t c = 0; c < 256; ++c) to[c] = fold_name(static_cast<char>(c));
    return to;
}();

constexpr char fold(char c) noexcept { return folded[static_cast<unsigned char>(c)]; }

// Length, first and last two characters tell our names apart. Each has a slot of its own, and the fields that messages commonly
// have beside ours have empty ones: so a name is compared with one at most, and mostly with none. Two characters at least.
constexpr std::size_t slots = 128;
constexpr std::size_t slot_of(std::string_view name) noexcept {
    auto const at = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(fold(name[i]))); };
    return (name.size() * 12 + at(0) * 5 + at(name.size() - 1) * 3 + at(name.size() - 2)) % slots;
}
constexpr auto index = [] {
    std::array<field_id, slots> ids{};
    for (std::size_t i = 1; i < names.size(); ++i) ids[slot_of(names[i])] = static_cast<field_id>(i);
    return ids;
}();
static_assert([] {
    for (std::size_t i = 1; i < names.size(); ++i)
        if (index[slot_of(names[i])] != static_cast<field_id>(i)) return false;
    return true;
}());

// Where the hyphens of each name stand, a bit each: what else stands there makes an alias.
constexpr auto hyphens = [] {
    std::array<std::uint32_t, names.size()> at{};
    for (std::size_t i = 0; i < names.size(); ++i)
        for (std::size_t k = 0; k < names[i].size(); ++k)
            if (names[i][k] == '-') at[i] |= std::uint32_t{1} << k;
    return at;
}();

constexpr bool matches(std::string_view name, std::string_view known) noexcept {
    if (name.size() != known.size()) return false;
    for (std::size_t i = 0; i < name.size(); ++i)
        if (fold(name[i]) != known[i]) return false;
    return true;
}

// --- scanning

char const* skip_token(char const* p, char const* end) noexcept {
    while (p < end && is(*p, char_class::token)) ++p;
    return p;
}

char const* skip_blanks(char const* p, char const* end) noexcept {
    while (p < end && (*p == ' ' || *p == '\t')) ++p;
    return p;
}

// To the first byte that may not stand in a field value. Eight bytes at a time: the mask has the top bit of each byte that is
// below `least` or DEL; of several, the lowest is exact, since only what lies above a hit can be one by its borrow.
template <unsigned char Least>
char const* skip_above(char const* p, char const* end) noexcept {
    constexpr std::uint64_t ones = 0x0101010101010101ULL;
    constexpr std::uint64_t tops = 0x8080808080808080ULL;
    if constexpr (std::endian::native == std::endian::little) {
        while (end - p >= 8) {
            std::uint64_t w = 0;
            std::memcpy(&w, p, sizeof w);
            std::uint64_t const del = w ^ (ones * 0x7f);
            std::uint64_t const hit = (((w - ones * Least) & ~w) | ((del - ones) & ~del)) & tops;
            if (hit != 0) return p + (std::countr_zero(hit) >> 3);
            p += 8;
        }
    }
    while (p < end && static_cast<unsigned char>(*p) >= Least && *p != 0x7f) ++p;
    return p;
}

char const* skip_value(char const* p, char const* end) noexcept {
    for (;;) {
        p = skip_above<0x20>(p, end);
        if (p == end || *p != '\t') return p;
        ++p;
    }
}

// Visible characters and obs-text; what of it a target may have is target.hpp's.
char const* skip_visible(char const* p, char const* end) noexcept { return skip_above<0x21>(p, end); }

// At `p` a line should end. Moves behind its end.
parsed end_line(char const*& p, char const* end) noexcept {
    if (p == end) return parsed::more;
    if (*p != '\r') return parsed::bad;
    if (p + 1 == end) return parsed::more;
    if (p[1] != '\n') return parsed::bad;
    p += 2;
    return parsed::whole;
}

// HTTP-version (RFC 9112 section 2.3), as ten times major plus minor.
parsed read_version(char const*& p, char const* end, int& version) noexcept {
    constexpr std::string_view name = "HTTP/";
    for (char const c : name) {
        if (p == end) return parsed::more;
        if (*p++ != c) return parsed::bad;
    }
    for (int i = 0; i < 3; ++i, ++p) {
        if (p == end) return parsed::more;
        if (i == 1 ? *p != '.' : !is(*p, char_class::digit)) return parsed::bad;
    }
    version = (p[-3] - '0') * 10 + (p[-1] - '0');
    return parsed::whole;
}

// --- the lines. Each is read from its first byte; `p` is moved only behind a whole one.

parsed read_request_line(char const*& at, char const* end, head& out, refusal& why) noexcept {
    char const* p = skip_token(at, end);
    if (p - at > method_bytes_max) return parsed::bad;
    if (p == end) return parsed::more;
    if (p == at || *p != ' ') return parsed::bad;
    out.method = {at, p};
    char const* const target = ++p;
    p = skip_visible(p, end);
    if (p == end) return parsed::more;
    if (p == target || *p != ' ') return parsed::bad;
    out.target = {target, p};
    ++p;
    parsed said = read_version(p, end, out.version);
    if (said == parsed::whole) said = end_line(p, end);
    if (said != parsed::whole) return said;
    if (out.version != 11 && out.version != 10) {
        why = refusal::version_not_supported;
        return parsed::bad;
    }
    at = p;
    return parsed::whole;
}

parsed read_status_line(char const*& at, char const* end, head& out) noexcept {
    char const* p = at;
    parsed said = read_version(p, end, out.version);
    if (said != parsed::whole) return said;
    if (p == end) return parsed::more;
    if (*p++ != ' ') return parsed::bad;
    out.status = 0;
    for (int i = 0; i < 3; ++i, ++p) {
        if (p == end) return parsed::more;
        if (!is(*p, char_class::digit)) return parsed::bad;
        out.status = out.status * 10 + (*p - '0');
    }
    out.reason = {};
    if (p < end && *p == ' ') {  // servers that give no reason leave out the blank before it, too
        char const* const reason = ++p;
        p = skip_value(p, end);
        out.reason = {reason, p};
    }
    said = end_line(p, end);
    if (said != parsed::whole) return said;
    if (out.version != 11 && out.version != 10) return parsed::bad;
    at = p;
    return parsed::whole;
}

parsed read_field(char const*& at, char const* end, field& f) noexcept {
    char const* p = skip_token(at, end);
    if (p == end) return parsed::more;
    if (p == at || *p != ':') return parsed::bad;  // a line that begins with a blank (obs-fold) has no name either
    f.name = {at, p};
    char const* const value = skip_blanks(p + 1, end);
    p = skip_value(value, end);
    char const* last = p;
    parsed const said = end_line(p, end);
    if (said != parsed::whole) return said;
    while (last > value && (last[-1] == ' ' || last[-1] == '\t')) --last;
    f.value = {value, last};
    f.alias = false;
    f.id = identify(f.name, f.alias);
    at = p;
    return parsed::whole;
}

// Fields from `at` to the empty line, which it moves behind. `more`: `at` is where the line begins that is not whole.
parsed read_fields(char const*& at, char const* end, std::size_t most, head& out, refusal& why) noexcept {
    for (;;) {
        if (at < end && *at == '\r') return end_line(at, end);
        if (out.count == most) {
            if (at == end) return parsed::more;
            why = refusal::too_many_fields;
            return parsed::bad;
        }
        parsed const said = read_field(at, end, out.fields[out.count]);
        if (said != parsed::whole) return said;
        ++out.count;
    }
}

// `first_line` reads the first line. See above for how a head that comes in parts is read.
template <class FirstLine>
parsed read_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const& limits, head& out, refusal& why,
                 FirstLine first_line) noexcept {
    char const* const end = data + std::min(size, limits.bytes);
    for (;;) {
        char const* at = data + searched;
        // The lines that were judged before: they are counted, so that too many fields are too many in parts as well.
        auto const lines = static_cast<std::size_t>(std::count(data, at, '\n'));
        out.count = lines == 0 ? 0 : lines - 1;
        parsed said = searched == 0 ? first_line(at, end) : parsed::whole;
        if (said == parsed::whole) said = read_fields(at, end, limits.fields, out, why);
        if (said == parsed::whole && searched != 0) {  // the last part has come
            searched = 0;
            continue;
        }
        if (said == parsed::more && size >= limits.bytes) {
            why = refusal::head_too_large;
            said = parsed::bad;
        }
        out.bytes = searched = static_cast<std::size_t>(at - data);
        return said;
    }
}

}  // namespace

field_id identify(std::string_view name, bool& alias) noexcept {
    if (name.size() > longest_name || name.size() < 2) return field_id::other;
    field_id const id = index[slot_of(name)];
    if (id == field_id::other || !matches(name, names[static_cast<std::size_t>(id)])) return field_id::other;
    alias = false;
    for (auto left = hyphens[static_cast<std::size_t>(id)]; left != 0; left &= left - 1)
        alias = alias || name[static_cast<std::size_t>(std::countr_zero(left))] != '-';
    return id;
}

parsed parse_request_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const& limits, head& out,
                          refusal& why) noexcept {
    constexpr std::size_t rest_of_line = 64;  // more than method, blanks and version have
    why = refusal::malformed_request;
    bool const began = searched == 0;
    parsed const said = read_head(data, size, searched, limits, out, why, [&](char const*& at, char const* end) {
        parsed const line = read_request_line(at, end, out, why);
        bool const endless = line == parsed::more && size > limits.target + rest_of_line;
        if (!endless && !(line == parsed::whole && out.target.size() > limits.target)) return line;
        why = refusal::target_too_long;
        return parsed::bad;
    });
    // Where not even the request line is whole, it is the target that is too large.
    if (said == parsed::bad && why == refusal::head_too_large && began && searched == 0) why = refusal::target_too_long;
    return said;
}

parsed parse_response_head(char const* data, std::size_t size, std::size_t& searched, parse_limits const& limits,
                           head& out) noexcept {
    auto ignored = refusal::none;
    return read_head(data, size, searched, limits, out, ignored,
                     [&](char const*& at, char const* end) { return read_status_line(at, end, out); });
}

}  // namespace latchkey::gateway
