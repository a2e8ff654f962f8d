#include "gateway/head.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "gateway/scan.hpp"
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

// Length, first and last two characters tell our names apart. Each has a slot of its own, and the fields that messages commonly
// have beside ours have empty ones: so a name is compared with one at most, and mostly with none. Two characters at least.
constexpr std::size_t slots = 128;
constexpr std::size_t slot_of(std::string_view name) noexcept {
    // In lower case: where these characters stand none of our names has a hyphen, so no alias has anything but letters there.
    auto const at = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(name[i]) | 0x20U); };
    return (name.size() * 12 + at(0) * 5 + at(name.size() - 1) * 3 + at(name.size() - 2)) % slots;
}
constexpr auto index = [] {
    std::array<field_id, slots> ids{};
    for (std::size_t i = 1; i < names.size(); ++i) ids[slot_of(names[i])] = static_cast<field_id>(i);
    return ids;
}();
static_assert([] {
    for (std::size_t i = 1; i < names.size(); ++i)
        if (auto const n = names[i]; index[slot_of(n)] != static_cast<field_id>(i) || n.front() == '-' ||
                                     n.substr(n.size() - 2).find('-') != std::string_view::npos)
            return false;
    return true;
}());

// Eight characters in lower case: of a token, letters become so and nothing else becomes a letter, a digit or a hyphen.
std::uint64_t eight_lower(char const* at) noexcept {
    std::uint64_t w = 0;
    std::memcpy(&w, at, sizeof w);
    return w | 0x2020202020202020ULL;
}

// Whether a token is `known` but for the case of its letters.
bool same_token(std::string_view name, std::string_view known) noexcept {
    std::size_t const size = known.size();
    if (name.size() != size) return false;
    if (size < 8) return equals_lower(name, known);
    for (std::size_t i = 0; i + 8 < size; i += 8)
        if (eight_lower(name.data() + i) != eight_lower(known.data() + i)) return false;
    return eight_lower(name.data() + size - 8) == eight_lower(known.data() + size - 8);
}

// --- scanning

// Names are letters, digits and hyphens, with few exceptions.
char const* skip_token(char const* p, char const* end) noexcept {
    p = skip_sixteens(p, end, [](sixteen bytes) { return alphanumeric(bytes) | (bytes == '-'); });
    while (p < end && is(*p, char_class::token)) ++p;
    return p;
}

char const* skip_blanks(char const* p, char const* end) noexcept {
    while (p < end && (*p == ' ' || *p == '\t')) ++p;
    return p;
}

// To the first byte that is below `Least` or DEL.
template <unsigned char Least>
char const* skip_above(char const* p, char const* end) noexcept {
    p = skip_sixteens(p, end, [](sixteen bytes) { return (bytes >= Least) & (bytes != 0x7f); });
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
    constexpr std::string_view usual = "HTTP/1.1";
    if (end - p >= 8 && std::memcmp(p, usual.data(), 8) == 0) {
        p += 8;
        version = 11;
        return parsed::whole;
    }
    for (char const c : usual.substr(0, 5)) {
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
    if (id == field_id::other) return id;
    auto const known = names[static_cast<std::size_t>(id)];
    bool const same = same_token(name, known);
    if (!same && !is_folded(name, known)) return field_id::other;
    alias = !same;
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
