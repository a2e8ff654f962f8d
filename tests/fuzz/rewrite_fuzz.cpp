// The request as the upstream sees it: an accepted head is rewritten, parsed again and accepted again, with the same length, one
// Host, no key, and no identity or forwarding field but ours; whatever the client sent. Likewise the response, for the client.
//
// Input: one byte (bits: trusted peer, bearer keys, forward_key, key known, close, HTTP/1.0 client, response), then the bytes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "conf/settings.hpp"
#include "gateway/rewrite.hpp"

namespace {

using namespace latchkey;
using namespace latchkey::gateway;

constexpr parse_limits limits{4096, 1024, 40};
constexpr std::size_t room = 32768;

void require(bool holds) {
    if (!holds) std::abort();
}

std::size_t count(head const& h, field_id id) {
    return static_cast<std::size_t>(std::count_if(h.begin(), h.end(), [&](field const& f) { return f.id == id; }));
}

void require_only(head const& h, field_id id, std::string_view value) {
    require(count(h, id) == 1);
    for (field const& f : h)
        if (f.id == id) require(f.value == value);
}

constexpr bool hop_by_hop(field_id id) {
    return id == field_id::connection || id == field_id::keep_alive || id == field_id::proxy_connection || id == field_id::te ||
           id == field_id::trailer || id == field_id::upgrade || id == field_id::http2_settings ||
           id == field_id::proxy_authorization;
}

void rewrite_request(std::uint8_t choice, std::vector<char>& data) {
    static auto const h = std::make_unique<head>();
    static auto const seen = std::make_unique<head>();
    std::size_t searched = 0;
    auto why = refusal::none;
    if (parse_request_head(data.data(), data.size(), searched, limits, *h, why) != parsed::whole) return;
    request_frame frame;
    if (check_request(*h, frame) != refusal::none) return;
    request_target target;
    if (normalise_target(data.data() + (h->target.data() - data.data()), h->target.size(), h->method, target) != refusal::none)
        return;
    if (frame.host.empty()) frame.host = target.authority;
    host_name name;
    if (!frame.host.empty() && !parse_host(frame.host, name)) return;

    conf::api api;
    api.forward_key = (choice & 4U) != 0;
    keystore::key_view key;
    key.key_id = "key_0123456789abcdef";
    key.application_id = "app_0123456789abcdef";
    key.username = "orders%20app";
    forward_context c;
    c.api = &api;
    c.frame = &frame;
    c.key = (choice & 8U) != 0 ? &key : nullptr;
    c.request_id = "0123456789abcdef0123456789abcdef";
    c.client_address = "192.0.2.17";
    c.listener_port = "8080";
    c.trace_id = "0af7651916cd43dd8448eb211c80319c";
    c.span_id = "b7ad6b7169203331";
    c.bearer_is_key = (choice & 2U) != 0;
    c.trusted_peer = (choice & 1U) != 0;
    std::vector<char> memory(room);
    writer w(memory.data(), memory.size());
    write_request_lines(w, h->method, "/base", target.path == "*" ? "/" : target.path, target.query,
                        frame.host.empty() ? "upstream.example" : frame.host);
    write_request_fields(w, *h, c);
    require(!w.overflowed());

    searched = 0;
    parse_limits const wide{room, room, 200};
    require(parse_request_head(memory.data(), w.size(), searched, wide, *seen, why) == parsed::whole);
    require(seen->bytes == w.size());
    request_frame again;
    require(check_request(*seen, again) == refusal::none);
    require(again.body.kind == frame.body.kind && again.body.length == frame.body.length);
    require(seen->version == 11 && seen->method == h->method && again.keep_alive && !again.nominates);
    require(count(*seen, field_id::host) == 1);
    require(count(*seen, field_id::api_key) <= (api.forward_key ? count(*h, field_id::api_key) : 0));
    for (field const& f : *seen) require(!hop_by_hop(f.id) && !f.alias);
    if (c.bearer_is_key)
        for (field const& f : *seen)
            if (f.id == field_id::authorization) require(!equals_lower(f.value.substr(0, 7), "bearer "));
    if (c.key) {
        require_only(*seen, field_id::consumer_id, key.application_id);
        require_only(*seen, field_id::consumer_username, key.username);
        require_only(*seen, field_id::credential_identifier, key.key_id);
    } else {
        require(count(*seen, field_id::consumer_id) + count(*seen, field_id::consumer_username) +
                    count(*seen, field_id::credential_identifier) ==
                0);
    }
    require_only(*seen, field_id::request_id, c.request_id);
    require(count(*seen, field_id::traceparent) == 1 && count(*seen, field_id::forwarded) == 1 &&
            count(*seen, field_id::forwarded_for) == 1);
    for (field const& f : *seen) {
        if (f.id == field_id::traceparent) require(good_traceparent(f.value));
        if (f.id == field_id::forwarded_for) require(f.value.ends_with(c.client_address));
    }
    if (!c.trusted_peer) {
        require_only(*seen, field_id::forwarded_for, c.client_address);
        require_only(*seen, field_id::forwarded_proto, "http");
        require_only(*seen, field_id::forwarded_port, c.listener_port);
    }
}

void rewrite_response(std::uint8_t choice, std::vector<char> const& data) {
    static auto const h = std::make_unique<head>();
    static auto const seen = std::make_unique<head>();
    std::size_t searched = 0;
    if (parse_response_head(data.data(), data.size(), searched, limits, *h) != parsed::whole) return;
    bool const to_head = (choice & 2U) != 0;
    response_frame frame;
    if (!check_response(*h, to_head, frame)) return;
    std::vector<char> memory(room);
    writer w(memory.data(), memory.size());
    answer_context c;
    c.frame = &frame;
    c.request_id = "0123456789abcdef0123456789abcdef";
    c.http_1_0 = (choice & 32U) != 0;
    c.to_head = to_head;
    bool const unmeasured = frame.body.kind == body_kind::chunked || frame.body.kind == body_kind::until_close;
    c.body = !unmeasured ? frame.body : framing{c.http_1_0 ? body_kind::until_close : body_kind::chunked, 0};
    c.close = (choice & 16U) != 0 || c.body.kind == body_kind::until_close;
    if (h->status < 200)
        write_interim_head(w, *h);
    else
        write_response_head(w, *h, c);
    require(!w.overflowed());

    searched = 0;
    require(parse_response_head(memory.data(), w.size(), searched, {room, 0, 200}, *seen) == parsed::whole);
    require(seen->bytes == w.size() && seen->status == h->status && seen->reason == h->reason);
    response_frame again;
    require(check_response(*seen, to_head, again));
    if (h->status < 200) return;
    require(again.body.kind == c.body.kind && again.body.length == c.body.length);
    require(again.keep_alive == !c.close);
    require_only(*seen, field_id::request_id, c.request_id);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* input, std::size_t size) {
    if (size < 2 || size > 8192) return 0;
    std::vector<char> data(reinterpret_cast<char const*>(input) + 1, reinterpret_cast<char const*>(input) + size);
    if ((input[0] & 64U) != 0)
        rewrite_response(input[0], data);
    else
        rewrite_request(input[0], data);
    return 0;
}
