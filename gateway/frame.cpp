#include "gateway/frame.hpp"

#include <algorithm>
#include <array>

#include "gateway/text.hpp"

namespace latchkey::gateway {
namespace {

// 18 digits stay below 2^63; more is no body that anybody sends.
bool parse_length(std::string_view text, std::uint64_t& out) noexcept {
    if (text.empty() || text.size() > 18) return false;
    std::uint64_t n = 0;
    for (char const c : text) {
        if (!is(c, char_class::digit)) return false;
        n = n * 10 + static_cast<std::uint64_t>(c - '0');
    }
    out = n;
    return true;
}

// A coding list that is not exactly "chunked": well-formed with an unknown coding is 501, anything else is ambiguous.
refusal judge_coding(std::string_view value) noexcept {
    bool unknown = false;
    bool chunked_seen = false;
    bool const well_formed = each_element(value, [&](std::string_view coding) {
        if (coding.empty() || !all(coding, char_class::token) || chunked_seen) return false;
        if (equals_lower(coding, "chunked"))
            chunked_seen = true;
        else
            unknown = true;
        return true;
    });
    return well_formed && unknown ? refusal::unknown_transfer_coding : refusal::ambiguous_framing;
}

struct connection_options {
    bool close = false;
    bool keep_alive = false;
    bool nominates = false;
    bool names_framing = false;  // names a field that frames or routes the message
    bool malformed = false;      // no list of tokens (RFC 9110 section 7.6.1): who reads it otherwise removes other fields
    std::size_t count = 0;       // elements, empty ones too
    std::size_t bytes = 0;

    bool too_many() const noexcept { return count > connection_options_max || bytes > connection_bytes_max; }
};

void read_connection(std::string_view value, connection_options& out) noexcept {
    out.bytes += value.size();
    if (out.too_many()) return;
    each_element(value, [&](std::string_view option) {
        ++out.count;
        if (equals_lower(option, "close")) {
            out.close = true;
        } else if (equals_lower(option, "keep-alive")) {
            out.keep_alive = true;
        } else if (!option.empty() && !equals_lower(option, "upgrade")) {
            out.malformed = out.malformed || !all(option, char_class::token);
            out.nominates = true;
            bool alias = false;
            auto const id = identify(option, alias);
            out.names_framing =
                out.names_framing || id == field_id::host || id == field_id::content_length || id == field_id::transfer_encoding;
        }
        return true;
    });
}

// FNV-1a of the name in lower case. Names that are made to collide are compared, no more.
std::uint32_t blind_hash(std::string_view name) noexcept {
    std::uint32_t h = 2166136261U;
    for (char const c : name) h = (h ^ static_cast<unsigned char>(lower(c))) * 16777619U;
    return h;
}

constexpr std::uint64_t bit(field_id id) noexcept { return std::uint64_t{1} << static_cast<unsigned>(id); }

// Fields that mean something only once. (X-API-KEY twice is admission's: 401.)
constexpr std::uint64_t single_fields =
    bit(field_id::host) | bit(field_id::content_length) | bit(field_id::transfer_encoding) | bit(field_id::expect);

}  // namespace

refusal check_request(head const& h, request_frame& out) noexcept {
    if (h.version != 10 && h.version != 11) return refusal::version_not_supported;
    if (h.method == "TRACE" || h.method == "CONNECT") return refusal::method_not_allowed;

    out = {};
    std::uint64_t seen = 0;
    std::string_view length;
    std::string_view coding;
    std::string_view expect;
    connection_options options;
    for (field const& f : h) {
        if (f.id == field_id::other) continue;
        if (f.alias) return refusal::forbidden_field;
        if ((seen & bit(f.id) & single_fields) != 0)
            return f.id == field_id::host ? refusal::invalid_host : refusal::ambiguous_framing;
        seen |= bit(f.id);
        switch (f.id) {
            case field_id::host: out.host = f.value; break;
            case field_id::content_length: length = f.value; break;
            case field_id::transfer_encoding: coding = f.value; break;
            case field_id::expect: expect = f.value; break;
            case field_id::connection: read_connection(f.value, options); break;
            default: break;
        }
    }
    if (options.malformed) return refusal::malformed_request;
    if (options.too_many()) return refusal::head_too_large;
    if (options.names_framing) return refusal::ambiguous_framing;
    out.nominates = options.nominates;

    bool const has_coding = (seen & bit(field_id::transfer_encoding)) != 0;
    bool const has_length = (seen & bit(field_id::content_length)) != 0;
    if (has_coding) {
        if (has_length || h.version == 10) return refusal::ambiguous_framing;
        if (!equals_lower(coding, "chunked")) return judge_coding(coding);
        out.body = {body_kind::chunked, 0};
    } else if (has_length) {
        std::uint64_t n = 0;
        if (!parse_length(length, n)) return refusal::ambiguous_framing;
        out.body = {n == 0 ? body_kind::none : body_kind::length, n};
    }

    if ((seen & bit(field_id::host)) == 0 && h.version == 11) return refusal::invalid_host;
    out.keep_alive = !options.close && (h.version == 11 || options.keep_alive);
    if ((seen & bit(field_id::expect)) != 0 && h.version == 11) {
        if (!equals_lower(expect, "100-continue")) return refusal::expectation_failed;
        out.expects_continue = out.body.kind != body_kind::none;
    }
    return refusal::none;
}

bool check_response(head const& h, bool to_head, response_frame& out) noexcept {
    if ((h.version != 10 && h.version != 11) || h.status < 100 || h.status > 599 || h.status == 101) return false;

    out = {};
    bool has_length = false;
    bool has_coding = false;
    std::uint64_t length = 0;
    connection_options options;
    for (field const& f : h) {
        switch (f.id) {
            case field_id::content_length:
                if (f.alias) break;
                if (has_length || !parse_length(f.value, length)) return false;
                has_length = true;
                break;
            case field_id::transfer_encoding:
                if (f.alias) break;
                if (has_coding || !equals_lower(f.value, "chunked") || h.version == 10) return false;
                has_coding = true;
                break;
            case field_id::connection: read_connection(f.value, options); break;
            default: break;
        }
    }
    if (has_length && has_coding) return false;
    if (options.names_framing || options.too_many()) return false;
    out.nominates = options.nominates;
    // An option that is no token names no field, and clients never see it; but what the upstream means by it is not known.
    out.keep_alive = !options.close && !options.malformed && (h.version == 11 || options.keep_alive);

    bool const bodiless = to_head || h.status < 200 || h.status == 204 || h.status == 304;
    if (bodiless)
        out.body = {};
    else if (has_coding)
        out.body = {body_kind::chunked, 0};
    else if (has_length)
        out.body = {length == 0 ? body_kind::none : body_kind::length, length};
    else
        out.body = {body_kind::until_close, 0};
    bool const lies = h.status == 204 && (has_coding || length > 0);  // it may send that body all the same
    if (out.body.kind == body_kind::until_close || lies) out.keep_alive = false;
    return true;
}

nominations::nominations(head const& h) noexcept {
    for (field const& f : h)
        if (f.id == field_id::connection)
            each_element(f.value, [&](std::string_view name) {
                if (name.empty()) return true;
                options_[count_] = {name.data(), static_cast<std::uint32_t>(name.size()), blind_hash(name)};
                sizes_ |= std::uint64_t{1} << name.size() % 64;
                return ++count_ < options_.size();
            });
}

bool nominations::find(std::string_view name) const noexcept {
    std::uint32_t const hash = blind_hash(name);
    for (std::size_t i = 0; i < count_; ++i) {
        auto const& o = options_[i];
        if (o.hash == hash && equals_blind({o.text, o.size}, name)) return true;
    }
    return false;
}

bool allowed_in_trailer(std::string_view name) noexcept {
    bool alias = false;
    if (identify(name, alias) != field_id::other || tells_who_calls(name) || tells_of_client(name)) return false;
    static constexpr std::array<std::string_view, 22> others{"cache-control",
                                                             "content-encoding",
                                                             "content-range",
                                                             "content-type",
                                                             "cookie",
                                                             "date",
                                                             "expires",
                                                             "if-match",
                                                             "if-modified-since",
                                                             "if-none-match",
                                                             "if-range",
                                                             "if-unmodified-since",
                                                             "location",
                                                             "max-forwards",
                                                             "pragma",
                                                             "range",
                                                             "retry-after",
                                                             "set-cookie",
                                                             "vary",
                                                             "warning",
                                                             "www-authenticate",
                                                             "age"};
    return std::none_of(others.begin(), others.end(), [&](std::string_view o) { return equals_lower(name, o); });
}

}  // namespace latchkey::gateway
