// Request and response heads from hostile peers: what is taken lies inside the input, is well-formed by a second, simpler
// reading, has exactly one length, is read alike by Beast's parser, and comes out the same however the bytes arrive.
//
// Input: one byte (bit 0: a response; bit 1: it answers HEAD; the rest: how much arrives first), then the bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "gateway/frame.hpp"
#include "gateway/head.hpp"
#include "gateway/text.hpp"
#include "tests/gateway/second_reader.hpp"

namespace {

using namespace latchkey::gateway;

constexpr parse_limits limits{4096, 1024, 40};

void require(bool holds) {
    if (!holds) std::abort();
}

void require_inside(std::string_view part, std::string_view whole) {
    if (part.empty()) return;
    std::less_equal<char const*> const at_most;
    require(at_most(whole.data(), part.data()) && at_most(part.data() + part.size(), whole.data() + whole.size()));
}

// What every accepted head is, whichever side it came from.
void require_sound(head const& h, std::string_view input) {
    require(h.bytes >= 4 && h.bytes <= input.size() && h.bytes <= limits.bytes);
    auto const bytes = input.substr(0, h.bytes);
    require(bytes.ends_with("\r\n\r\n"));
    require(bytes.find("\r\n\r\n") == bytes.size() - 4);
    require(h.count <= limits.fields);
    for (std::size_t i = 0; i < bytes.size(); ++i) {  // no line end that somebody else could take for one
        if (bytes[i] == '\n') require(i > 0 && bytes[i - 1] == '\r');
        if (bytes[i] == '\r') require(i + 1 < bytes.size() && bytes[i + 1] == '\n');
        require(bytes[i] != '\0');
    }
    std::size_t lines = 0;
    for (std::size_t at = bytes.find("\r\n"); at != std::string_view::npos; at = bytes.find("\r\n", at + 2)) ++lines;
    require(lines == h.count + 2);  // each field line is one field: nothing was folded or left out
    for (field const& f : h) {
        require_inside(f.name, bytes);
        require_inside(f.value, bytes);
        require(!f.name.empty() && all(f.name, char_class::token) && all(f.value, char_class::value));
        require(f.value == trimmed(f.value));
        bool alias = false;
        require(identify(f.name, alias) == f.id && alias == f.alias);
    }
}

std::size_t count(head const& h, field_id id) {
    return static_cast<std::size_t>(std::count_if(h.begin(), h.end(), [&](field const& f) { return f.id == id && !f.alias; }));
}

// Beast has an opinion on Proxy-Connection, and on Connection in responses; for us these are fields that go no further.
bool judged_by_both(head const& h) {
    return std::none_of(h.begin(), h.end(), [](field const& f) {
        return f.id == field_id::proxy_connection ||
               (f.id == field_id::connection &&
                !each_element(f.value, [](std::string_view option) { return all(option, char_class::token); }));
    });
}

void require_one_length(head const& h, framing const& body) {
    auto const lengths = count(h, field_id::content_length);
    auto const codings = count(h, field_id::transfer_encoding);
    require(lengths + codings <= 1);
    require(body.kind != body_kind::chunked || codings == 1);
    require(body.kind != body_kind::length || (lengths == 1 && body.length > 0));
}

void check_taken_request(head const& h, std::string_view input) {
    require_sound(h, input);
    require_inside(h.method, input);
    require_inside(h.target, input);
    require(!h.method.empty() && all(h.method, char_class::token));
    require(!h.target.empty() && h.target.size() <= limits.target && h.target.find(' ') == std::string_view::npos);
    request_frame frame;
    if (check_request(h, frame) != refusal::none) return;
    require(h.version == 10 || h.version == 11);
    require_one_length(h, frame.body);
    require(frame.body.kind != body_kind::until_close);
    require((frame.body.kind == body_kind::chunked) == (count(h, field_id::transfer_encoding) == 1));
    require(count(h, field_id::host) == 1 || (h.version == 10 && count(h, field_id::host) == 0));
    for (field const& f : h) require(!f.alias);
    require(!judged_by_both(h) || test::seen_alike<true>(h, input));
}

void check_taken_response(head const& h, bool to_head, std::string_view input) {
    require_sound(h, input);
    require_inside(h.reason, input);
    response_frame frame;
    if (!check_response(h, to_head, frame)) return;
    require(h.status >= 100 && h.status <= 599 && h.status != 101);
    require_one_length(h, frame.body);
    if (to_head || h.status < 200 || h.status == 204 || h.status == 304) require(frame.body.kind == body_kind::none);
    if (frame.body.kind == body_kind::until_close) require(!frame.keep_alive);
    constexpr std::size_t blank_after_status = 12;  // Beast wants one even where no reason follows
    require(!judged_by_both(h) || input[blank_after_status] == '\r' || test::seen_alike<false>(h, input));
}

struct outcome {
    parsed said = parsed::more;
    std::size_t bytes = 0;
    std::size_t fields = 0;
    bool operator==(outcome const&) const = default;
};

outcome parse(bool response, std::vector<char> const& data, std::size_t size, std::size_t& searched, head& h) {
    auto why = refusal::none;
    parsed const p = response ? parse_response_head(data.data(), size, searched, limits, h)
                              : parse_request_head(data.data(), size, searched, limits, h, why);
    if (!response && p == parsed::bad) require(why != refusal::none && text_of(why).status >= 400);
    require(searched <= size);
    return p == parsed::whole ? outcome{p, h.bytes, h.count} : outcome{p, 0, 0};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* input, std::size_t size) {
    if (size < 2 || size > 8192) return 0;
    static auto const whole_head = std::make_unique<head>();
    static auto const split_head = std::make_unique<head>();
    bool const response = (input[0] & 1U) != 0;
    bool const to_head = (input[0] & 2U) != 0;
    std::vector<char> const data(reinterpret_cast<char const*>(input) + 1, reinterpret_cast<char const*>(input) + size);
    std::string_view const text(data.data(), data.size());

    std::size_t searched = 0;
    auto const at_once = parse(response, data, data.size(), searched, *whole_head);
    if (at_once.said == parsed::whole) {
        if (response)
            check_taken_response(*whole_head, to_head, text);
        else
            check_taken_request(*whole_head, text);
    }

    // In two parts: the same.
    std::size_t const first = std::min<std::size_t>(1 + (std::size_t{input[0]} >> 2U) * data.size() / 64, data.size());
    searched = 0;
    auto in_parts = parse(response, data, first, searched, *split_head);
    if (in_parts.said == parsed::more) in_parts = parse(response, data, data.size(), searched, *split_head);
    require(in_parts == at_once);
    return 0;
}
